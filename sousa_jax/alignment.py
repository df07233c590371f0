"""A written pattern, repeated, laid over strokes that were heard.

    fit = align(heard, pattern_of(by_slug("five_stroke_roll"), "notated"))

In three steps:

1. *Search.* Strokes are a random process whose rate is high where the pattern has a stroke, and whose velocities are
   those of accents, taps and grace notes. The likelihood of every tempo and phase comes from folding the strokes at
   each tempo and correlating with the pattern in a circle. It rewards heard strokes that are written and charges
   written ones that are not heard, so that half the tempo explains too little and twice the tempo asks for too much.
   Where phases are equally likely the first stroke is the first of the pattern.
2. *Pairs.* For the best of these, heard and written strokes are paired one to one (linear assignment), a straight line
   and the spread around it fitted again to the pairs, a few times over. Of a long recording this is done for the
   busiest 8 s, then followed to both ends in windows of 6 s.
3. *Drift.* At last the line may bend, by a smoothing spline that follows half of a tempo wave of 16 s: a clip of a few
   seconds has a straight line, in minutes slow drift is taken out. What bends faster is the player's deviation.

Grace notes that lean on a primary do not count for the line: how far ahead they are is the player's own.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.fft
import scipy.interpolate
import scipy.optimize

from sousa_jax.data.synth.performance import DRAG_GAPS, LARGEST_SHIFT_S
from sousa_jax.data.synth.strokes import GRACE
from sousa_jax.data.synth.written import DIALECTS, DRAG_FIRST, DRAG_SECOND, FLAM, SCORES
from sousa_jax.hearing import HeardStrokes
from sousa_jax.rudiments import Rudiment

TEMPO_BPM = (40, 240)
FEWEST = 4  # strokes from which anything can be said
FLAM_S = 0.030  # spacing of grace notes, before the player's own is known

# The process that strokes are: the chance that a written one is heard; false alarms per heard stroke, and how many more
# if its confidence is 0.
HIT, ALARM, DOUBT = 0.93, 0.03, 0.3
VELOCITY_SD = 0.16  # of a stroke about what is written, 0 … 1
MISTAKEN = 0.15  # strokes whose velocity says nothing: missed accents, wrong ones
DOWNBEAT = 1.5  # nats in favour of a first stroke that begins the pattern: where nothing else tells, it does
SEARCH_SPREAD_S = (0.014, 0.035)  # of a steady and of an unsteady player
SPREAD_S = (0.006, 0.060)  # limits of the fitted one
N_CANDIDATES, N_FINALISTS = 20, 5  # of a search; of all, those whose pairs are fitted to the end
PART_S = 8.0  # of a recording longer than 1.5 times that: where tempo is searched for
FOLLOW_S, HOP_S = 3.0, 1.0  # half a window in which it is followed from there, and from window to window
LARGEST_CHANGE = 0.2  # of the tempo in one round of fitting, as a logarithm; more is no fit
LARGEST_DRIFT = 0.7  # the same in a whole recording: twice or half the tempo
DRIFT_S = 16.0  # a wave of the tempo that long is half drift, half deviation; a faster one is deviation
LONGEST_LEAD_S = 0.15

TimeOf = Callable[[np.ndarray], np.ndarray]  # seconds of a beat, counted from where cycle 0 begins


class Pattern(NamedTuple):
    """One cycle, `(J,)` by slot. beats: of the cycle. beat: of each slot, SOUSA's offset of grace notes included.
    leans: whether it is a grace note that leans on a primary. gap: how far ahead of it, in flam spacings."""

    beats: float
    beat: np.ndarray
    kind: np.ndarray
    hand: np.ndarray
    to_primary: np.ndarray
    leans: np.ndarray
    gap: np.ndarray
    velocity: np.ndarray  # 0 … 1


def pattern_of(rudiment: Rudiment, dialect: str) -> Pattern:
    """The written pattern of a rudiment."""
    d, c = DIALECTS.index(dialect), rudiment.id
    n = SCORES.length[d, c]
    rule, kind = SCORES.rule[d, c, :n], SCORES.kind[d, c, :n]
    near, far = DRAG_GAPS[d]
    gap = np.select([rule == FLAM, rule == DRAG_SECOND, rule == DRAG_FIRST], [1.0, near, near + far], 0.0)
    beat = SCORES.beat[d, c, :n].astype(np.float64) + SCORES.offset_beats[d, c, :n]
    columns = (SCORES.hand[d, c, :n], SCORES.to_primary[d, c, :n], gap > 0, gap, SCORES.velocity[kind] / 127)
    return Pattern(float(SCORES.beats[d, c]), beat, kind, *columns)


def _placed(primary_s: np.ndarray, own_s: np.ndarray, lead_s: np.ndarray) -> np.ndarray:
    """Where strokes are expected that are written at `own_s`, if their primaries are at `primary_s`, themselves where
    there is none. A grace note leaves its own place by 0.3 s at most: SOUSA's slow drags begin far ahead."""
    return np.where(lead_s > 0, np.clip(primary_s - lead_s, own_s - LARGEST_SHIFT_S, own_s + LARGEST_SHIFT_S), own_s)


def _marks(heard: HeardStrokes, pattern: Pattern) -> np.ndarray:
    """`(N, J)`: how much likelier the velocity and grace of each heard stroke are in each slot than in any.

    Velocities are scaled to the mean of the written ones: how loud a recording is says nothing.
    """
    scale = pattern.velocity.mean() / max(heard.velocity.mean(), 1e-6)
    off = (heard.velocity[:, None] * scale - pattern.velocity) / VELOCITY_SD
    of_velocity = (1 - MISTAKEN) * np.exp(-0.5 * off**2) / (VELOCITY_SD * np.sqrt(2 * np.pi)) + MISTAKEN
    is_grace = pattern.kind == GRACE
    of_grace = np.where(is_grace, 0.25 + 0.5 * heard.grace[:, None], 0.75 - 0.5 * heard.grace[:, None])
    marks = of_velocity * of_grace
    return marks / marks.mean(1, keepdims=True)


# ---------------------------------------------------------------------------------------------------------------------
# The whole
# ---------------------------------------------------------------------------------------------------------------------


class Fit(NamedTuple):
    """A pattern laid over strokes.

    time_of: seconds of a beat. cycle, slot, beat, written_s: `(W,)`, the written strokes around, some more than were
    played. of_heard, of_written: `(P,)`, the pairs, as indices. firm: `(P,)`, all but leaning grace notes.
    log_likelihood: in nats; comparable for the same strokes only.
    """

    time_of: TimeOf
    cycle: np.ndarray
    slot: np.ndarray
    beat: np.ndarray
    written_s: np.ndarray
    of_heard: np.ndarray
    of_written: np.ndarray
    firm: np.ndarray
    log_likelihood: float

    @property
    def tempo_bpm(self) -> float:
        """Beats a minute, the mean from the first firm stroke to the last."""
        at = self.beat[self.of_written[self.firm]]
        ends = np.array([at.min(), at.max()] if len(np.unique(at)) > 1 else [0.0, 1.0])
        return float(60 * np.ptp(ends) / np.ptp(self.time_of(ends)))


def align(heard: HeardStrokes, pattern: Pattern) -> Fit:
    """The likeliest fit; `heard` are at least `FEWEST` strokes in order of time, not all at once."""
    marks = _marks(heard, pattern)
    part = _densest(heard.time_s)
    some, some_marks = _cut(heard, part), marks[part]
    starts = [s for spread_s in SEARCH_SPREAD_S for s in _search(some, pattern, some_marks, spread_s)]
    fits = [_pair(some, pattern, some_marks, np.poly1d(start), n_rounds=2) for start in starts]
    fits = sorted(fits, key=lambda fit: -fit.log_likelihood)[:N_FINALISTS]
    fits = [_pair(some, pattern, some_marks, fit.time_of, n_rounds=5) for fit in fits]
    fit = max(fits, key=lambda fit: fit.log_likelihood)
    if len(some.time_s) < len(heard.time_s):
        fit = fit._replace(time_of=_followed(heard, pattern, marks, part, fit))
    return _pair(heard, pattern, marks, fit.time_of, n_rounds=4, refit=_bent)


def _cut(heard: HeardStrokes, part: slice) -> HeardStrokes:
    return HeardStrokes(*(column[part] for column in heard))


def _densest(time_s: np.ndarray) -> slice:
    """The strokes of the `PART_S` seconds that hold most; all, where there is not much more."""
    if np.ptp(time_s) <= 1.5 * PART_S:
        return slice(0, len(time_s))
    ends = np.searchsorted(time_s, time_s + PART_S)
    first = int(np.argmax(ends - np.arange(len(time_s))))
    part = slice(first, int(ends[first]))
    return part if part.stop - first >= FEWEST and np.ptp(time_s[part]) > 0 else slice(0, len(time_s))


def _followed(heard: HeardStrokes, pattern: Pattern, marks: np.ndarray, part: slice, of_part: Fit) -> TimeOf:
    """The time of beats in a whole recording, from the fit of a part of it: followed from window to window."""
    fits = [(of_part, heard.time_s[part])]
    first_s, *edges_s, last_s = heard.time_s[[0, part.start, part.stop - 1, -1]]
    for edge_s, end_s, hop_s in ((edges_s[0], first_s, -HOP_S), (edges_s[1], last_s, HOP_S)):
        time_of = of_part.time_of
        for middle_s in np.arange(edge_s, end_s, hop_s):
            window = slice(*np.searchsorted(heard.time_s, (middle_s - FOLLOW_S, middle_s + FOLLOW_S)))
            some = _cut(heard, window)
            if len(some.time_s) >= FEWEST and np.ptp(some.time_s) > 0:
                fit = _pair(some, pattern, marks[window], time_of, n_rounds=3)
                at = fit.beat[fit.of_written[fit.firm]]
                if len(at) and _change(fit.time_of, of_part.time_of, at) < LARGEST_DRIFT:  # else what follows is noise
                    fits.append((fit, some.time_s))
                    time_of = fit.time_of
    beat = np.concatenate([fit.beat[fit.of_written[fit.firm]] for fit, _ in fits])
    time_s = np.concatenate([time_s[fit.of_heard[fit.firm]] for fit, time_s in fits])
    if len(np.unique(beat)) < 3:
        return of_part.time_of
    followed = _bent(beat, time_s, np.ones(len(beat)))
    return followed if _change(followed, of_part.time_of, beat) < LARGEST_DRIFT else of_part.time_of


# ---------------------------------------------------------------------------------------------------------------------
# Search
# ---------------------------------------------------------------------------------------------------------------------


def _search(heard: HeardStrokes, pattern: Pattern, marks: np.ndarray, spread_s: float) -> list[tuple[float, float]]:
    """The likeliest `(beat_s, start_s)`: how long a beat is, and where a cycle begins."""
    first_s, span_s = heard.time_s[0], np.ptp(heard.time_s)
    n_heard, n_slots = len(heard.time_s), len(pattern.beat)
    middle_s, per_second = first_s + span_s / 2, (n_heard - 1) / span_s
    likely_s = n_slots / pattern.beats / per_second  # a beat, if all strokes were heard and no others
    limits_s = 60 / TEMPO_BPM[1], 60 / TEMPO_BPM[0]
    low, high = np.clip((0.55 * likely_s, 1.8 * likely_s), *limits_s)
    if low == high:
        low, high = limits_s
    step = max(1e-3, 2.5 * spread_s / max(span_s, 0.5))  # the ends of the clip are off by less than the spread
    beat_s = np.geomspace(low, high, max(2, 1 + int(np.ceil(np.log(high / low) / step))))
    cycle_s = beat_s * pattern.beats
    n_bins = scipy.fft.next_fast_len(int(np.ceil(cycle_s[-1] / spread_s * 1.5)) + 16, real=True)
    row = np.arange(len(beat_s))[:, None]

    # Strokes of like marks share a histogram over the cycle; at most four of them.
    order = np.lexsort((heard.velocity, heard.grace > 0.5))
    level = np.empty(n_heard, int)
    level[order] = np.arange(n_heard) * 4 // n_heard

    lead_s = pattern.gap * FLAM_S
    own_s = beat_s[:, None] * pattern.beat
    primary_s = own_s[:, np.arange(n_slots) + pattern.to_primary]
    expected = _placed(primary_s, own_s, lead_s) / cycle_s[:, None] * n_bins  # (tempi, J), in bins
    bins, part = np.floor(expected).astype(int), expected % 1
    folded = (((heard.time_s - middle_s) / cycle_s[:, None]) % 1 * n_bins).astype(int) % n_bins  # (tempi, N)
    blur = np.exp(-2 * (np.pi * np.arange(n_bins // 2 + 1) * spread_s / cycle_s[:, None]) ** 2)
    per_bin_s = n_bins / cycle_s[:, None]

    total = np.zeros((len(beat_s), n_bins // 2 + 1), complex)
    for k in range(level.max() + 1):
        mine = level == k
        weight = HIT * marks[mine].mean(0)
        template = np.zeros((len(beat_s), n_bins))
        np.add.at(template, (row, bins % n_bins), weight * (1 - part))
        np.add.at(template, (row, (bins + 1) % n_bins), weight * part)
        rate = scipy.fft.irfft(scipy.fft.rfft(template) * blur, n_bins) * per_bin_s
        gain = np.log1p(np.maximum(rate, 0) / (ALARM * per_second))
        flat = (row * n_bins + folded[:, mine]).ravel()
        histogram = np.bincount(flat, np.tile(heard.confidence[mine], len(beat_s)), len(beat_s) * n_bins)
        total += scipy.fft.rfft(histogram.reshape(-1, n_bins)) * scipy.fft.rfft(gain).conj()
    score = scipy.fft.irfft(total, n_bins) - (HIT * n_slots * span_s / cycle_s)[:, None]

    found = []
    apart = max(1, int(0.03 * n_bins / pattern.beats))
    for _ in range(N_CANDIDATES):
        i, j = np.unravel_index(np.argmax(score), score.shape)
        start_s = middle_s + cycle_s[i] * j / n_bins
        found.append((beat_s[i], start_s))
        near = (np.arange(j - apart, j + apart + 1)) % n_bins
        score[max(0, i - 2) : i + 3, near] = -np.inf
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Pairs
# ---------------------------------------------------------------------------------------------------------------------


def _line(beat: np.ndarray, time_s: np.ndarray, weight: np.ndarray) -> TimeOf:
    return np.poly1d(np.polyfit(beat, time_s, 1, w=np.sqrt(weight)))


def _beat_s(time_of: TimeOf) -> float:
    return float(time_of(1.0) - time_of(0.0))


def _change(fitted: TimeOf, time_of: TimeOf, beat: np.ndarray) -> float:
    """How much the tempo of `fitted` differs from that of `time_of` at the first and last beat, as a logarithm;
    infinite where time runs backwards."""
    before = np.array([beat.min() - 1, beat.max()])
    one, other = (np.asarray(f(before + 1) - f(before)) for f in (fitted, time_of))
    return float(np.abs(np.log(one / other)).max()) if min(one.min(), other.min()) > 0 else np.inf


def _bent(beat: np.ndarray, time_s: np.ndarray, weight: np.ndarray) -> TimeOf:
    """As `_line`, and what is left of slow drift, by a smoothing spline that follows half of a `DRIFT_S` wave."""
    line = _line(beat, time_s, weight)
    beat, first = np.unique(beat, return_index=True)
    if len(beat) < 5:
        return line
    time_s, weight, x = time_s[first], weight[first], line(beat)
    charge = weight.sum() / np.ptp(x) * (DRIFT_S / (2 * np.pi)) ** 4
    spline = scipy.interpolate.make_smoothing_spline(x, time_s - x, weight, charge)
    slope = spline.derivative()

    def time_of(beat: np.ndarray) -> np.ndarray:
        at = line(beat)
        inside = np.clip(at, x[0], x[-1])
        return at + spline(inside) + slope(inside) * (at - inside)  # straight on, outside

    return time_of


def _pair(
    heard: HeardStrokes, pattern: Pattern, marks: np.ndarray, time_of: TimeOf, n_rounds: int, refit: Callable = _line
) -> Fit:
    """Pairs heard and written strokes, fits time again to the pairs, and so on."""
    first_s, last_s = heard.time_s[0], heard.time_s[-1]
    cycle, slot, beat = _written(pattern, time_of, first_s, last_s)
    primary = np.minimum(np.arange(len(slot)) + pattern.to_primary[slot], len(slot) - 1)
    gap, leans = pattern.gap[slot], pattern.leans[slot]
    lead_s = gap * FLAM_S
    alarms = (ALARM + DOUBT * (1 - heard.confidence)) * len(heard.time_s) / (last_s - first_s)
    known = np.log(HIT / (1 - HIT) / np.sqrt(2 * np.pi)) - np.log(alarms)[:, None] + np.log(marks)[:, slot]
    sure = np.maximum(heard.confidence, 0.01)
    spread_s = SEARCH_SPREAD_S[-1]
    for i in range(n_rounds):
        own_s = time_of(beat)
        written_s = _placed(own_s[primary], own_s, lead_s)
        off_s = heard.time_s[:, None] - written_s
        gain = known - np.log(spread_s) - 0.5 * (off_s / spread_s) ** 2  # (N, W): of a pair, against none
        of_heard, of_written = scipy.optimize.linear_sum_assignment(np.maximum(gain, 0), maximize=True)
        good = gain[of_heard, of_written] > 0
        of_heard, of_written = of_heard[good], _not_alone(gain, of_heard[good], of_written[good], primary)
        firm = ~leans[of_written]
        at, time_s, weight = beat[of_written[firm]], heard.time_s[of_heard[firm]], sure[of_heard[firm]]
        if i == n_rounds - 1 or len(np.unique(at)) < 3:
            break
        fitted = refit(at, time_s, weight)
        if _change(fitted, time_of, at) > LARGEST_CHANGE:
            break
        time_of = fitted
        spread_s = np.clip(np.sqrt(np.mean((time_s - time_of(at)) ** 2)), *SPREAD_S)
        if i > 0:
            lead_s = _own_leads(spacings(heard.time_s, of_heard, of_written, primary), gap, lead_s)
    asked = (written_s > first_s - spread_s) & (written_s < last_s + spread_s)
    asked[of_written] = True
    log_likelihood = gain[of_heard, of_written].sum() + asked.sum() * np.log(1 - HIT)
    if len(of_written) and slot[of_written.min()] == 0:
        log_likelihood += DOWNBEAT
    return Fit(time_of, cycle, slot, beat, written_s, of_heard, of_written, firm, log_likelihood)


def _not_alone(gain: np.ndarray, of_heard: np.ndarray, of_written: np.ndarray, primary: np.ndarray) -> np.ndarray:
    """`of_written` where a grace note without its primary is that primary, if it may be: of a flam heard as one stroke
    it is the softer half that was missed."""
    leader = primary[of_written]
    (alone,) = np.nonzero(~np.isin(leader, of_written) & (gain[of_heard, leader] > 0))
    _, last = np.unique(leader[alone][::-1], return_index=True)  # of the two of a drag, the one nearer to it
    alone = alone[::-1][last]
    of_written = of_written.copy()
    of_written[alone] = leader[alone]
    return of_written


def _written(pattern: Pattern, time_of: TimeOf, first_s: float, last_s: float) -> tuple[np.ndarray, ...]:
    """Cycle, slot and beat of the strokes written from a cycle before `first_s` to a cycle after `last_s`."""
    low = int((first_s - time_of(0.0)) / _beat_s(time_of) / pattern.beats)
    while time_of(low * pattern.beats) > first_s:
        low -= 1
    high = low
    while time_of(high * pattern.beats) < last_s:
        high += 1
    cycle, slot = (x.ravel() for x in np.mgrid[low - 1 : high + 2, : len(pattern.beat)])
    return cycle, slot, cycle * pattern.beats + pattern.beat[slot]


def _own_leads(spacing_s: np.ndarray, gap: np.ndarray, lead_s: np.ndarray) -> np.ndarray:
    """How far ahead the player's leaning grace notes are, by the median of each sort (flams, outer, inner of drags)."""
    lead_s = lead_s.copy()
    for sort in np.unique(gap[gap > 0]):
        mine = spacing_s[gap == sort]
        mine = mine[(mine > 0) & (mine < LONGEST_LEAD_S)]
        if len(mine) >= 3:
            lead_s[gap == sort] = np.median(mine)
    return lead_s


def spacings(time_s: np.ndarray, of_heard: np.ndarray, of_written: np.ndarray, primary: np.ndarray) -> np.ndarray:
    """How long before its primary each written stroke was heard, `(W,)`; 0 for a primary, NaN where one is missed."""
    heard_s = np.full(len(primary), np.nan)
    heard_s[of_written] = time_s[of_heard]
    return heard_s[primary] - heard_s
