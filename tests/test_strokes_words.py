"""What a drummer reads of the strokes that were heard: the likeliest names, a line for each stroke, whole sentences."""

import numpy as np
import pandas as pd
import pytest

from sousa_jax import lesson
from sousa_jax.hearing import HeardStrokes
from sousa_jax.lesson import Lesson, Summary
from sousa_jax.rudiments import RUDIMENTS, by_slug
from sousa_jax.strokes import likeliest, sentences, table_lines, without_pattern


def test_the_likeliest_rudiments_and_their_shares():
    """Means of log-probabilities sum to less than one; here they are doubled."""
    probs = np.full(40, 0.1 / 37)
    probs[[7, 3, 30]] = 0.5, 0.25, 0.15
    names = likeliest(np.log(probs) - 3.0)
    assert [slug for slug, _ in names] == [RUDIMENTS[i].slug for i in (7, 3, 30)]
    assert [prob for _, prob in names] == pytest.approx([0.5, 0.25, 0.15])
    assert [slug for slug, _ in likeliest(np.zeros(40), 2)] == [RUDIMENTS[0].slug, RUDIMENTS[1].slug]
    assert sum(prob for _, prob in likeliest(np.zeros(40), 40)) == pytest.approx(1)


def row(**changes):
    """A stroke of a lesson's table."""
    stroke = {
        "time_s": 1.25, "written_s": 1.238, "deviation_ms": 12.4, "velocity": 0.5, "grace": 0.0, "confidence": 0.97,
        "kind": "tap", "hand": "L", "is_accent": False, "leans": False, "spacing_ms": np.nan, "cycle": 0, "slot": 0,
        "status": "played",
    }  # fmt: skip
    return stroke | changes


NOTHING = dict.fromkeys(("time_s", "deviation_ms", "velocity", "grace", "confidence"), np.nan)
NOT_WRITTEN = {"written_s": np.nan, "deviation_ms": np.nan, "kind": "", "hand": "", "status": "extra"}


def test_a_line_for_each_stroke():
    """Played, as hard as can be and late by seconds; missed, where it is written; not written, and a grace note."""
    lines = table_lines(
        pd.DataFrame([
            row(),
            row(velocity=1.7, kind="accent", hand="R", confidence=1.0, deviation_ms=-1203.0),
            row(**NOTHING, status="missed"),
            row(**NOT_WRITTEN, velocity=0.07, grace=0.4),
            row(**NOT_WRITTEN, velocity=0.0, grace=0.6),
        ])
    )  # fmt: skip
    assert lines == [
        "  time s  hand  stroke  loud              sure    off",
        "   1.250  L     tap     █████       50     97%   +12 ms",
        "   1.250  R     accent  ██████████ 170    100%  -1203 ms",
        "   1.238  L     tap                              missed",
        "   1.250                ▊            7     97%    extra",
        "   1.250        grace                0     97%    extra",
    ]


def test_strokes_too_few_for_a_lesson_have_its_columns():
    heard = HeardStrokes(*np.float32([[0.1, 0.2], [0.5, 0.6], [0.0, 0.9], [1.0, 0.9]]))
    table = without_pattern(heard)
    assert tuple(table.columns) == lesson.COLUMNS
    assert table["time_s"].tolist() == pytest.approx([0.1, 0.2])
    assert table[["written_s", "deviation_ms", "spacing_ms"]].isna().all(axis=None)
    assert (table["status"] == "extra").all()
    assert [len(line) for line in table_lines(table)[1:]] == [55, 55]
    nothing = without_pattern(HeardStrokes(*np.zeros((4, 0), np.float32)))
    assert tuple(nothing.columns) == lesson.COLUMNS
    assert len(table_lines(nothing)) == 1


UNKNOWN = Summary(0, *[np.nan] * 12, missed=0.0, extra=0.0)


def told(statuses, dialect="notated", **numbers):
    table = pd.DataFrame({"status": statuses, "deviation_ms": 0.0})
    return Lesson(by_slug("flam"), dialect, 99.96, 0.0, table, UNKNOWN._replace(**numbers))


def test_a_summary_in_whole_sentences():
    numbers = dict(
        n_strokes=3, sd_ms=11.6, late_right_ms=-3.0, late_left_ms=4.0, sd_right_ms=9.0, sd_left_ms=14.0,
        accent_contrast=1.846, accent_evenness=0.951, tap_evenness=0.9, hand_balance=1.25, grace_spacing_ms=31.2,
        grace_spacing_sd_ms=4.4, missed=0.25,
    )  # fmt: skip
    assert sentences(told(["played"] * 3 + ["missed", "extra", "extra"], **numbers)) == [
        "Tempo 100.0 beats a minute, Flam in the printed rhythm.",
        "Timing: strokes lie 12 ms (standard deviation) around the written ones; right hand 3 ms early, give or take 9"
        "; left hand 4 ms late, give or take 14.",
        "Accents: 1.85 times as hard as the other strokes; evenness 0.95 of 1.",
        "Unaccented strokes: evenness 0.90 of 1; the right hand 25% harder.",
        "Grace notes: 31 ms before their primary, give or take 4.",
        "Heard 3 of 4 written strokes (25% missed), and 2 that are not written.",
    ]


def test_what_is_not_known_is_not_said():
    """A summary of which only the tempo is known, in SOUSA's slots."""
    assert sentences(told(["extra"] * 4, "sousa")) == [
        "Tempo 100.0 beats a minute, Flam in SOUSA's even slots.",
        "Heard 0 of 0 written strokes (0% missed), and 4 that are not written.",
    ]


@pytest.mark.parametrize(
    ("balance", "said"),
    [
        (1.25, "; the right hand 25% harder."),
        (0.8, "; the left hand 25% harder."),
        (1.005, "; both hands alike."),
        (0.995, "; both hands alike."),
        (np.nan, "of 1."),
        (np.inf, "of 1."),
    ],
)
def test_the_hand_that_is_louder(balance, said):
    (line,) = (s for s in sentences(told([], tap_evenness=0.5, hand_balance=balance)) if s.startswith("Unaccented"))
    assert line.endswith(said)
