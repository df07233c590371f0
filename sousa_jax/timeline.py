"""From the answers of overlapping windows to what was played from when to when.

1. *Path.* The likeliest sequence of labels, one a window: a rudiment, or none. A change costs `SWITCH` nats, so that a
   flicker of a window or two is no change. (A. Viterbi, "Error bounds for convolutional codes", IEEE Trans. Inf. Theory
   1967.) Silent windows are silence.
2. *Changes.* A window answers for its middle. Where two rudiments meet, about ten windows hold some of both: the change
   is put where they are likeliest, each speaking for both in proportion to what it holds. A pause nearby is it.
3. *Edges.* A stretch begins and ends with its sound, and a long pause parts it.
"""

import itertools
from typing import NamedTuple

import numpy as np
import scipy.special

from sousa_jax.rudiments import NUM_CLASSES, SLUGS
from sousa_jax.stream import Settings

SWITCH = 12.0  # nats
LEAST = np.log(1e-3)  # no window says more against a rudiment
NOT_ONE = -3.0  # nats in favour of what the rejection did not say, that it is one or that it is none
NONE, SILENCE = NUM_CLASSES, NUM_CLASSES + 1  # labels beside the rudiments'
STEP_S = 0.05  # of the places that a change is tried at
REACH_S = 2.5  # before and behind the first guess
PAUSE_S, PAUSE_REACH_S = 0.45, 1.5  # longer than any gap of a rudiment at 60 beats a minute
PART_S = 2.0  # a pause that parts one stretch into two
QUIET_DB = -40.0  # relative to the loudest 10 ms around, as the length policy has it; or what the stream calls silent
PER_SECOND = 100  # of the measured powers


class Answer(NamedTuple):
    """Of one window. begin_s, end_s: of its sound, without the silent tail. log_probs: `(C,)`, None if it is silent.
    objection: why it is no rudiment, "" if it may be one."""

    begin_s: float
    end_s: float
    log_probs: np.ndarray | None
    objection: str

    @property
    def middle_s(self) -> float:
        return (self.begin_s + self.end_s) / 2


class Segment(NamedTuple):
    """What was played from when to when. rudiment: its slug, "" of what is none; then `objection` says why.
    probability: of the rudiment; nothing is known of others, 0. probabilities: `(C,)` of all."""

    start_s: float
    end_s: float
    rudiment: str
    probability: float
    objection: str
    probabilities: np.ndarray


def segments(answers: list[Answer], power: np.ndarray) -> list[Segment]:
    """What a stream held, in order of time; what lies between is silence.

    Args:
      answers: of its windows, in order of time.
      power: mean square of each 10 ms of the stream, `(P,)`.
    """
    if not answers:
        return []
    score = scores(answers)
    labels = path(score)
    starts = [0, *(np.flatnonzero(np.diff(labels)) + 1), len(labels)]
    edges = [0.0]
    for begin, at, end in zip(starts, starts[1:], starts[2:], strict=False):
        guess_s = (answers[at - 1].middle_s + answers[at].middle_s) / 2
        if SILENCE not in (labels[at - 1], labels[at]):
            guess_s = _change(answers[begin:end], score[begin:end], labels[at - 1], labels[at], guess_s)
        edges.append(max(edges[-1], _pause_near(power, guess_s)))
    edges.append(len(power) / PER_SECOND)
    found = []
    for (first, last), (start_s, end_s) in zip(itertools.pairwise(starts), itertools.pairwise(edges), strict=True):
        if labels[first] != SILENCE:
            inside = answers[first:last]
            found += [_segment(labels[first], inside, *span) for span in _sounding(power, start_s, end_s)]
    return found


def overall(answers: list[Answer], found: list[Segment]) -> np.ndarray | None:
    """Probabilities of the rudiments in the whole stream, `(C,)`: the means over its segments with one, by their
    length; without any, over all windows with sound, as if it were one; None of silence."""
    named = [segment for segment in found if segment.rudiment]
    if named:
        lengths = [segment.end_s - segment.start_s for segment in named]
        return np.average([segment.probabilities for segment in named], axis=0, weights=lengths)
    heard = [answer for answer in answers if answer.log_probs is not None]
    return _together(heard) if heard else None


def scores(answers: list[Answer]) -> np.ndarray:
    """`(W, NUM_CLASSES + 2)` log-likelihoods of each label."""
    score = np.full((len(answers), NUM_CLASSES + 2), -np.inf)
    for row, answer in zip(score, answers, strict=True):
        if answer.log_probs is None:
            row[SILENCE] = 0
        else:
            row[:NUM_CLASSES] = np.maximum(answer.log_probs, LEAST) + (NOT_ONE if answer.objection else 0)
            row[NONE] = 0 if answer.objection else LEAST
    return score


def path(score: np.ndarray) -> np.ndarray:
    """The likeliest label of each window, `(W,)`, of `(W, L)` log-likelihoods, where a change costs `SWITCH`."""
    total, before = score[0], np.zeros(score.shape, int)
    for row, came_from in zip(score[1:], before[1:], strict=True):
        best = total.argmax()
        stays = total >= total[best] - SWITCH
        came_from[:] = np.where(stays, np.arange(len(total)), best)
        total = np.where(stays, total, total[best] - SWITCH) + row
    labels = [total.argmax()]
    for came_from in before[:0:-1]:
        labels.append(came_from[labels[-1]])
    return np.array(labels[::-1])


def _change(answers: list[Answer], score: np.ndarray, old: int, new: int, guess_s: float) -> float:
    """Where the label changes from `old` to `new`, of windows that have no others."""
    begin_s, end_s = (np.array([getattr(answer, name) for answer in answers]) for name in ("begin_s", "end_s"))
    at_s = guess_s + np.arange(-REACH_S, REACH_S + STEP_S / 2, STEP_S)
    is_old = np.clip((at_s[:, None] - begin_s) / (end_s - begin_s), 0, 1)  # the share of each window
    return float(at_s[(is_old * score[:, old] + (1 - is_old) * score[:, new]).sum(1).argmax()])


def _pause_near(power: np.ndarray, at_s: float) -> float:
    """The middle of the longest pause around, or `at_s` where there is none."""
    begin = max(0, round((at_s - PAUSE_REACH_S) * PER_SECOND))
    around = power[begin : round((at_s + PAUSE_REACH_S) * PER_SECOND)]
    spans = [span for span in _runs(_is_quiet(around)) if span[1] - span[0] >= PAUSE_S * PER_SECOND]
    if not spans:
        return at_s
    longest = max(spans, key=lambda span: span[1] - span[0])
    return (begin + sum(longest) / 2) / PER_SECOND


def _sounding(power: np.ndarray, start_s: float, end_s: float) -> list[tuple[float, float]]:
    """The stretches between two times in which there is sound, parted by long pauses."""
    begin = round(start_s * PER_SECOND)
    inside = power[begin : round(end_s * PER_SECOND)]
    quiet = [span for span in _runs(_is_quiet(inside)) if span[1] - span[0] >= PART_S * PER_SECOND]
    loud = np.flatnonzero(~_is_quiet(inside))
    if not len(loud):
        return []
    edges = [loud[0], *(edge for span in quiet if loud[0] < span[0] < loud[-1] for edge in span), loud[-1] + 1]
    return [((begin + a) / PER_SECOND, (begin + b) / PER_SECOND) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _is_quiet(power: np.ndarray) -> np.ndarray:
    return power <= max(10 ** (Settings.silence_db / 10), power.max(initial=0) * 10 ** (QUIET_DB / 10))


def _runs(is_true: np.ndarray) -> list[tuple[int, int]]:
    """`(begin, end)` of each stretch of True."""
    edges = np.flatnonzero(np.diff(is_true.astype(np.int8), prepend=0, append=0))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _segment(label: int, answers: list[Answer], start_s: float, end_s: float) -> Segment:
    """Of the windows with its label those answer whose middle lies in it; if none does, the nearest one."""
    inside = [answer for answer in answers if start_s <= answer.middle_s < end_s]
    middle_s = (start_s + end_s) / 2
    inside = inside or [min(answers, key=lambda answer: abs(answer.middle_s - middle_s))]
    probabilities = _together(inside)
    if label == NONE:
        objections = [answer.objection for answer in inside if answer.objection] or [""]
        return Segment(start_s, end_s, "", 0.0, max(objections, key=objections.count), probabilities)
    return Segment(start_s, end_s, SLUGS[label], float(probabilities[label]), "", probabilities)


def _together(answers: list[Answer]) -> np.ndarray:
    """The mean of log-probabilities, each window's by the length of its sound, as probabilities that sum to one."""
    weights = [answer.end_s - answer.begin_s for answer in answers]
    return scipy.special.softmax(np.average([answer.log_probs for answer in answers], axis=0, weights=weights))
