"""A lesson, and the alignment below it: they find the tempo that was played and how far each stroke was off, whatever
the ear missed or made up."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sousa_jax import alignment
from sousa_jax.alignment import FEWEST, pattern_of
from sousa_jax.data.synth.written import DIALECTS
from sousa_jax.errors import InputError
from sousa_jax.hearing import HeardStrokes
from sousa_jax.lesson import COLUMNS, EXTRA, MISSED, PLAYED, teach
from sousa_jax.rudiments import SLUGS, by_slug

GRACE_LEAD_S = 0.028


def play(
    slug, dialect, bpm, *, rng, seconds=8.0, start_s=0.0, sd_s=0.0, missed=0.0, extra=0.0, loud=1.0, cycles=0,
    wave_s=0.0,
):  # fmt: skip
    """A performance as an ear might hear it, written out here anew: `(heard, deviation of each firm stroke in ms)`.

    Deviations are by time of the stroke. wave_s: how far a slow wave of the tempo, a minute long, moves strokes.
    """
    pattern = pattern_of(by_slug(slug), dialect)
    beat_s = 60 / bpm
    cycles = cycles or max(2, round(seconds / beat_s / pattern.beats))
    times, velocities, graces, deviations = [], [], [], []
    for cycle in range(cycles):
        own_s = start_s + beat_s * (cycle * pattern.beats + pattern.beat)
        own_s = own_s + wave_s * np.sin(2 * np.pi * own_s / 60)
        off_s = sd_s * rng.standard_normal(len(own_s))
        for slot in range(len(own_s)):
            at_s = own_s[slot] + off_s[slot]
            if pattern.leans[slot]:
                primary = slot + pattern.to_primary[slot]
                lead_s = pattern.gap[slot] * GRACE_LEAD_S
                at_s = own_s[slot] + np.clip(own_s[primary] + off_s[primary] - lead_s - own_s[slot], -0.3, 0.3)
            times.append(at_s)
            velocities.append(np.clip(pattern.velocity[slot] * loud + 0.03 * rng.standard_normal(), 0.02, 1))
            graces.append(float(pattern.kind[slot] == 4))
            deviations.append(np.nan if pattern.leans[slot] else 1000 * off_s[slot])
    kept = rng.random(len(times)) >= missed
    n_extra = round(extra * len(times))
    times = np.r_[np.array(times)[kept], rng.uniform(min(times), max(times), n_extra)]
    velocities = np.r_[np.array(velocities)[kept], rng.uniform(0.1, 0.5, n_extra)]
    graces = np.r_[np.array(graces)[kept], np.zeros(n_extra)]
    confidence = np.r_[np.full(kept.sum(), 0.95), np.full(n_extra, 0.6)]
    order = np.argsort(times, kind="stable")
    heard = HeardStrokes(*(column[order] for column in (times, velocities, graces, confidence)))
    return heard, pd.Series(np.r_[np.array(deviations)[kept], np.full(n_extra, np.nan)][order], heard.time_s)


def found_deviations(lesson, true):
    """Deviations of firm strokes that were paired, true and found, less what either says of tempo and phase: an error
    that grows with time is a tempo."""
    played = lesson.table[lesson.table["status"] == PLAYED]
    played = played[~played["leans"]].drop_duplicates("time_s").set_index("time_s")["deviation_ms"]
    both = pd.concat([true[~true.index.duplicated()], played], axis=1, keys=["true", "found"])
    both = both.dropna()
    return both.apply(lambda column: column - np.polyval(np.polyfit(both.index, column, 1), both.index))


# ---------------------------------------------------------------------------------------------------------------------
# Every rudiment
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("slug", SLUGS)
def test_a_machine_has_no_deviation(slug, dialect):
    rng = np.random.default_rng(by_slug(slug).id)
    bpm, start_s = rng.uniform(60, 170), rng.uniform(0, 3)
    heard, _ = play(slug, dialect, bpm, rng=rng, seconds=5, start_s=start_s, loud=rng.uniform(0.5, 1))
    lesson = teach(heard, by_slug(slug), dialect)
    assert lesson.tempo_bpm == pytest.approx(bpm, rel=1e-6)
    assert (lesson.table["status"] == PLAYED).all()
    firm = lesson.table[~lesson.table["leans"]]
    assert firm["deviation_ms"].abs().max() < 1e-6
    pattern = pattern_of(by_slug(slug), dialect)
    if len(np.unique(pattern.kind)) > 1:  # else any stroke might be the first
        assert firm["slot"].iloc[0] == np.flatnonzero(~pattern.leans)[0]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("slug", SLUGS)
def test_strokes_are_missed_and_made_up(slug, dialect):
    rng = np.random.default_rng(100 + by_slug(slug).id)
    bpm = rng.uniform(60, 150)
    heard, true = play(slug, dialect, bpm, rng=rng, start_s=0.4, sd_s=0.008, missed=0.1, extra=0.08, loud=0.8)
    lesson = teach(heard, by_slug(slug), dialect)
    assert lesson.tempo_bpm == pytest.approx(bpm, rel=0.02)
    found = found_deviations(lesson, true)
    assert len(found) > 0.85 * true.notna().sum()
    assert (found["true"] - found["found"]).abs().median() < 3


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    slug=st.sampled_from(SLUGS),
    dialect=st.sampled_from(DIALECTS),
    bpm=st.floats(60, 110),
    sd_ms=st.floats(0, 18),
    seed=st.integers(0, 2**16),
)
def test_every_stroke_has_one_row(slug, dialect, bpm, sd_ms, seed):
    rng = np.random.default_rng(seed)
    heard, _ = play(slug, dialect, bpm, rng=rng, sd_s=sd_ms / 1000, missed=0.1, extra=0.1, seconds=6)
    lesson = teach(heard, by_slug(slug), dialect)
    table = lesson.table
    assert tuple(table.columns) == COLUMNS
    assert np.array_equal(np.sort(table["time_s"].dropna()), heard.time_s)
    written = table[table["status"] != EXTRA]
    assert not written.duplicated(["cycle", "slot"]).any()
    cycles = written["cycle"] * len(pattern_of(by_slug(slug), dialect).beat) + written["slot"]
    assert sorted(cycles) == list(range(cycles.min(), cycles.max() + 1))
    assert table.loc[table["status"] == MISSED, ["time_s", "deviation_ms", "velocity"]].isna().all(axis=None)
    assert table.loc[table["status"] == EXTRA, ["written_s", "deviation_ms"]].isna().all(axis=None)
    assert lesson.tempo_bpm == pytest.approx(bpm, rel=0.35)  # at this spread some patterns fit twice


# ---------------------------------------------------------------------------------------------------------------------
# Patterns that resemble themselves, each other, or nothing
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bpm", [70, 90, 140, 180])
@pytest.mark.parametrize("slug", ["single_stroke_roll", "double_stroke_open_roll", "multiple_bounce_roll"])
def test_an_even_stream_is_read_at_the_tempo_that_explains_all_of_it(slug, bpm):
    """Half the tempo would leave every other stroke unexplained, twice the tempo would ask for strokes between them."""
    heard, _ = play(slug, "sousa", bpm, rng=np.random.default_rng(0), sd_s=0.004)
    lesson = teach(heard, by_slug(slug), "sousa")
    assert lesson.tempo_bpm == pytest.approx(bpm, rel=0.01)
    assert lesson.table.loc[0, ["cycle", "slot"]].tolist() == [0, 0]  # nothing else tells where it begins
    assert lesson.summary.missed == lesson.summary.extra == 0


def test_accents_tell_where_the_pattern_begins():
    """The strokes of a paradiddle are even: that the clip begins with its third is known by velocity alone."""
    heard, _ = play("single_paradiddle", "sousa", 100, rng=np.random.default_rng(0), sd_s=0.004)
    late = HeardStrokes(*(column[2:] for column in heard))
    lesson = teach(late, by_slug("single_paradiddle"), "sousa")
    assert lesson.table["slot"].iloc[:4].tolist() == [2, 3, 4, 5]
    assert lesson.table.loc[lesson.table["is_accent"], "velocity"].min() > 0.8


def test_the_dialect_that_fits_better_is_taken():
    for dialect in DIALECTS:
        heard, _ = play("five_stroke_roll", dialect, 90, rng=np.random.default_rng(0), sd_s=0.005)
        lesson = teach(heard, by_slug("five_stroke_roll"))
        assert lesson.dialect == dialect
        assert lesson.tempo_bpm == pytest.approx(90, rel=0.01)


def test_where_both_dialects_are_one_rhythm_the_beat_is_the_printed_one():
    heard, _ = play("paradiddle_diddle", "sousa", 100, rng=np.random.default_rng(0))
    assert teach(heard, by_slug("paradiddle_diddle")).dialect == "notated"


def test_a_flam_heard_as_one_stroke_is_its_primary():
    heard, _ = play("flam", "notated", 80, rng=np.random.default_rng(0), sd_s=0.003)
    without = heard.grace < 0.5
    without[:4] = True
    heard = HeardStrokes(*(column[without] for column in heard))
    lesson = teach(heard, by_slug("flam"), "notated")
    missed = lesson.table[lesson.table["status"] == MISSED]
    assert len(missed) > 4
    assert missed["leans"].all()


def test_slow_drift_is_no_deviation():
    """Two thirds of a minute whose tempo wanders by ±2 %: a straight line would be off by 120 ms."""
    rng = np.random.default_rng(0)
    heard, _ = play("single_paradiddle", "sousa", 100, rng=rng, seconds=60, wave_s=0.2)
    lesson = teach(heard, by_slug("single_paradiddle"), "sousa")
    assert (lesson.table["status"] == PLAYED).all()
    assert lesson.summary.sd_ms < 4
    assert lesson.tempo_bpm == pytest.approx(100, rel=0.01)


# ---------------------------------------------------------------------------------------------------------------------
# The summary
# ---------------------------------------------------------------------------------------------------------------------


def test_numbers_of_a_player_with_habits():
    """A left hand that is 8 ms late and a fifth weaker, grace notes 40 ms ahead."""
    rng = np.random.default_rng(0)
    heard, _ = play("flam_paradiddle", "notated", 90, rng=rng)
    pattern = pattern_of(by_slug("flam_paradiddle"), "notated")
    slot = np.tile(np.arange(len(pattern.beat)), 99)
    # Grace notes are moved to 40 ms ahead of where their primary falls.
    table = teach(heard, by_slug("flam_paradiddle"), "notated").table
    assert table["slot"].tolist() == slot[: len(table)].tolist()
    left = (table["hand"] == "L").to_numpy()
    leans = table["leans"].to_numpy()
    time_s = heard.time_s + 0.008 * (left & ~leans)
    time_s[leans] = time_s[np.flatnonzero(leans) + 1] - 0.040
    played = heard._replace(time_s=time_s, velocity=np.where(left, 0.8, 1) * heard.velocity)
    summary = teach(played, by_slug("flam_paradiddle"), "notated").summary
    assert summary.late_left_ms - summary.late_right_ms == pytest.approx(8, abs=0.5)
    assert summary.hand_balance == pytest.approx(1.25, rel=0.05)
    assert summary.grace_spacing_ms == pytest.approx(40, abs=0.1)
    assert summary.accent_contrast == pytest.approx(120 / 68, rel=0.1)
    assert summary.mean_ms == pytest.approx(0, abs=0.5)
    assert summary.n_strokes == len(table)


def test_an_even_player_scores_one_and_an_uneven_one_less():
    heard, _ = play("single_paradiddle", "sousa", 90, rng=np.random.default_rng(0))
    even = heard._replace(velocity=np.where(heard.velocity > 0.7, 0.9, 0.5))
    summary = teach(even, by_slug("single_paradiddle"), "sousa").summary
    assert summary.accent_evenness == pytest.approx(1)
    assert summary.tap_evenness == pytest.approx(1)
    uneven = heard._replace(velocity=even.velocity * np.random.default_rng(0).uniform(0.7, 1.1, len(heard.time_s)))
    assert 0.8 < teach(uneven, by_slug("single_paradiddle"), "sousa").summary.accent_evenness < 0.95


# ---------------------------------------------------------------------------------------------------------------------
# Input
# ---------------------------------------------------------------------------------------------------------------------


def _strokes(time_s):
    time_s = np.asarray(time_s, np.float64)
    return HeardStrokes(time_s, np.full(len(time_s), 0.5), np.zeros(len(time_s)), np.ones(len(time_s)))


def test_too_few_strokes():
    with pytest.raises(InputError, match=rf"3 strokes were heard; at least {FEWEST} are needed"):
        teach(_strokes([0, 1, 2]), by_slug("flam"), "sousa")
    with pytest.raises(InputError, match=r"5 strokes were heard"):
        teach(_strokes([1.0] * 5), by_slug("flam"), "sousa")


def test_bad_numbers_and_names():
    with pytest.raises(InputError, match=r"not finite"):
        teach(_strokes([0, 1, np.nan, 2]), by_slug("flam"), "sousa")
    with pytest.raises(InputError, match=r"unknown dialect 'notatd'; did you mean 'notated'"):
        teach(_strokes([0, 1, 2, 3]), by_slug("flam"), "notatd")


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    times=st.lists(st.floats(0, 200, width=32), min_size=FEWEST, max_size=30).filter(lambda t: max(t) > min(t)),
    slug=st.sampled_from(SLUGS),
)
def test_noise_gets_a_lesson_too(times, slug):
    """What is no rhythm at all still ends in a table that accounts for every stroke, quickly."""
    lesson = teach(_strokes(times), by_slug(slug), "notated")
    assert lesson.table["time_s"].notna().sum() == len(times)
    assert np.isfinite(lesson.tempo_bpm)


@pytest.mark.parametrize("middle", [[0.0, 3.4, 3.8, 7.2], [0.0, 2.5, 5.0, 7.5]])
def test_a_few_strokes_with_minutes_of_silence_around_them(middle):
    """No window around either end of the busiest part holds strokes enough to be followed from."""
    times = np.r_[-180, -90, middle, 100, 200]
    lesson = teach(_strokes(times), by_slug("swiss_army_triplet"), "notated")
    assert lesson.table["time_s"].notna().sum() == len(times)


def test_a_tempo_that_runs_away_is_not_followed(monkeypatch):
    """Were each window fitted a fifth faster than the one before, after a minute the pattern would be a million times
    too fast: no window begins from a tempo that is far from that of the busiest part."""
    pair, begun = alignment._pair, []

    def hastening(heard, pattern, marks, time_of, n_rounds, **options):
        fit = pair(heard, pattern, marks, time_of, n_rounds, **options)
        if n_rounds != 3:  # no window
            return fit
        begun.append(alignment._beat_s(time_of))
        return fit._replace(time_of=np.poly1d([0.8 * begun[-1], time_of(0.0)]))

    monkeypatch.setattr(alignment, "_pair", hastening)
    heard, _ = play("single_paradiddle", "sousa", 100, rng=np.random.default_rng(0), seconds=60)
    teach(heard, by_slug("single_paradiddle"), "sousa")
    assert len(begun) > 40
    assert 0.6 * np.exp(-alignment.LARGEST_DRIFT) < min(begun) < 0.6
