"""The picture of a clip shows every stroke once: as heard, as struck, and how it lies beside the written one."""

import io

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex

from sousa_jax.alignment import pattern_of
from sousa_jax.data.strokes import ClipStrokes
from sousa_jax.frontends import FrontendSpec
from sousa_jax.hearing import HeardStrokes
from sousa_jax.lesson import EXTRA, MISSED, PLAYED, Lesson, summarize, teach
from sousa_jax.rudiments import by_slug
from sousa_jax.strokes import without_pattern
from sousa_jax.strokes_picture import DPI, HANDS, HEARD, OFF_MS, TRUE, WRONG, draw, title

SPEC = FrontendSpec(sample_rate=16_000, n_fft=512, win_length=128, hop_length=80, n_mels=16, fmax_hz=7_500.0)
NOTHING_HEARD = HeardStrokes(*np.zeros((4, 0), np.float32))


def sound(seconds, rate=16_000):
    return np.random.default_rng(0).uniform(-0.5, 0.5, round(seconds * rate)).astype(np.float32)


@pytest.fixture(scope="module")
def heard() -> HeardStrokes:
    """Four cycles of a flam tap, uneven: a tap is missed, one stroke is not written."""
    rng = np.random.default_rng(1)
    pattern = pattern_of(by_slug("flam_tap"), "sousa")
    cycle, slot = (x.ravel() for x in np.mgrid[:4, : len(pattern.beat)])
    time_s = 0.5 * (cycle * pattern.beats + pattern.beat[slot]) + 0.006 * rng.standard_normal(len(slot))
    (leans,) = np.nonzero(pattern.leans[slot])
    time_s[leans] = time_s[leans + 1] - 0.03
    grace = np.where(pattern.leans[slot], 0.9, 0.1)
    columns = [time_s - time_s.min(), pattern.velocity[slot], grace, rng.uniform(0.5, 1, len(slot))]
    kept = np.arange(len(slot)) != len(pattern.beat) + 2
    columns = [np.append(c[kept], more) for c, more in zip(columns, (1.06, 0.3, 0.2, 0.5), strict=True)]
    order = np.argsort(columns[0])
    return HeardStrokes(*(column[order] for column in columns))


@pytest.fixture(scope="module")
def taught(heard) -> Lesson:
    lesson = teach(heard, by_slug("flam_tap"), "sousa")
    assert lesson.table["status"].value_counts()[[MISSED, EXTRA]].tolist() == [1, 1], "what the fixture promises"
    return lesson


TRUE_STROKES = ClipStrokes(
    time_s=np.float32([0.0, 0.03, 0.25, 0.253, 0.5]),
    velocity=np.float32([60, 127, 90, 80, 30]),
    is_grace=np.array([True, False, False, False, False]),
    is_bounce=np.array([False, False, False, True, False]),
)


def markers(axes, colour=None):
    """Where the markers of a panel lie, `(n, 2)`; those of one colour, filled or as a ring."""
    found = [np.zeros((0, 2))]
    for collection in axes.collections:
        if isinstance(collection, PathCollection):
            filled, ring = collection.get_facecolors(), collection.get_edgecolors()
            colours = {to_hex(c) for c in (*filled, *ring)}
            if colour is None or colour in colours:
                found.append(np.asarray(collection.get_offsets()))
    found = np.concatenate(found)
    return found[np.argsort(found[:, 0], kind="stable")]


def lines(axes, colour):
    """How many stems or grid lines of one colour a panel has."""
    return sum(
        len(c.get_segments()) * (colour in {to_hex(x) for x in c.get_colors()})
        for c in axes.collections
        if isinstance(c, LineCollection)
    )


def png(figure) -> np.ndarray:
    """The figure as the program saves it: `(height, width, 4)`, decoded to its end."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    file.seek(0)
    return matplotlib.image.imread(file, format="png")


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_every_stroke_that_was_heard_has_a_stem(heard, taught):
    figure = draw(sound(4), SPEC, heard, taught, "what it is")
    assert figure.get_suptitle() == "what it is"
    sounding, strokes, late = figure.axes
    assert len(sounding.images) == 1
    drawn = markers(strokes, HEARD)
    np.testing.assert_allclose(drawn, np.stack([heard.time_s, heard.velocity], 1), atol=1e-6)
    assert lines(strokes, HEARD) == len(heard.time_s)
    assert {panel.get_xlim() for panel in figure.axes} == {(-0.04, 4.0)}, "one time for all"
    assert late.get_xlabel() == "seconds"
    assert "struck" not in texts(strokes)


def test_opacity_is_confidence_and_a_ring_is_a_grace_note(heard, taught):
    strokes = draw(sound(4), SPEC, heard, taught, "").axes[1]
    dots, rings = [c for c in strokes.collections if isinstance(c, PathCollection)][:2]
    grace = heard.grace > 0.5
    np.testing.assert_allclose(dots.get_facecolors()[:, 3], 0.25 + 0.75 * heard.confidence[~grace], atol=1e-6)
    np.testing.assert_allclose(rings.get_edgecolors()[:, 3], 0.25 + 0.75 * heard.confidence[grace], atol=1e-6)
    assert to_hex(rings.get_facecolors()[0]) == "#ffffff"
    assert (len(dots.get_offsets()), len(rings.get_offsets())) == ((~grace).sum(), grace.sum())


def test_true_strokes_are_mirrored_and_bounces_are_not_drawn(heard, taught):
    strokes = draw(sound(4), SPEC, heard, taught, "", TRUE_STROKES).axes[1]
    drawn = markers(strokes, TRUE)
    np.testing.assert_allclose(drawn[:, 0], [0, 0.03, 0.25, 0.5], atol=1e-6)
    np.testing.assert_allclose(drawn[:, 1], -np.array([60, 127, 90, 30]) / 127, atol=1e-6)
    assert lines(strokes, TRUE) == 4
    assert {"struck", "heard"} <= set(texts(strokes))
    assert strokes.get_ylim()[0] < -1 < 1 < strokes.get_ylim()[1]
    assert len(markers(strokes, HEARD)) == len(heard.time_s)
    labels = [strokes.yaxis.get_major_formatter()(value, 0) for value in strokes.get_yticks()]
    assert labels == ["100", "50", "0", "50", "100"], "downwards is louder too"


def test_deviations_lie_above_and_below_the_written(heard, taught):
    """Each played stroke in the colour of its hand, the missed one as a cross, the one that is not written above."""
    strokes, late = draw(sound(4), SPEC, heard, taught, "").axes[1:]
    table = taught.table
    for hand, colour in HANDS.items():
        mine = table[(table["status"] == PLAYED) & (table["hand"] == hand)]
        assert len(mine) > 5
        np.testing.assert_allclose(markers(late, colour), mine[["time_s", "deviation_ms"]], atol=1e-9)
    missed, extra = (table[table["status"] == status] for status in (MISSED, EXTRA))
    np.testing.assert_allclose(markers(late, WRONG), [[missed["written_s"].item(), 0]])
    np.testing.assert_allclose(markers(strokes, WRONG)[:, 0], extra["time_s"])
    assert late.get_ylim() == (-OFF_MS, OFF_MS)
    grid = next(c for c in late.collections if isinstance(c, LineCollection))
    firm = table[(table["status"] != EXTRA) & ~table["leans"]]
    assert [segment[0][0] for segment in grid.get_segments()] == firm["written_s"].tolist()
    assert [width > 1 for width in grid.get_linewidths()] == firm["is_accent"].tolist()
    assert {"right", "left", "✕ missed", "▾ not written"} <= set(texts(late))
    assert [text for text in texts(late) if text.isdigit()] == ["1", "2", "3", "4"], "cycles are counted"


def test_a_wild_stroke_is_not_cut_off(heard, taught):
    table = taught.table.copy()
    table.loc[table["status"] == PLAYED, "deviation_ms"] *= 20
    late = draw(sound(4), SPEC, heard, Lesson(**{**vars(taught), "table": table}), "").axes[2]
    assert late.get_ylim()[1] > table["deviation_ms"].abs().max() > OFF_MS


def test_no_strokes_heard():
    """Two panels, what was struck in the second; a picture all the same, also of silence and of a single sample."""
    figure = draw(sound(2), SPEC, NOTHING_HEARD, None, "nothing", TRUE_STROKES)
    assert len(figure.axes) == 2
    assert len(markers(figure.axes[1])) == 4
    assert png(figure).std() > 0
    for wave in (np.zeros(8000, np.float32), np.ones(1, np.float32)):
        figure = draw(wave, SPEC, NOTHING_HEARD, None, "nothing")
        assert len(markers(figure.axes[1])) == 0
        assert png(figure).std() > 0


def test_a_lesson_in_which_nothing_is_paired(heard):
    table = without_pattern(heard)
    nothing = Lesson(by_slug("flam_tap"), "sousa", 100.0, 0.0, table, summarize(table))
    strokes, late = draw(sound(4), SPEC, heard, nothing, "").axes[1:]
    assert len(markers(strokes, WRONG)) == len(heard.time_s)
    assert len(markers(late)) == 0


@pytest.mark.parametrize("seconds", [0.2, 5.0, 60.0])
def test_a_picture_has_a_width_that_can_be_looked_at(heard, taught, seconds):
    """At least 11 inches, at most 40, however long the clip; the spectrogram ends with the clip."""
    strokes, lesson = (heard, taught) if seconds > 4 else (NOTHING_HEARD, None)
    figure = draw(sound(seconds), SPEC, strokes, lesson, "long", TRUE_STROKES)
    pixels = png(figure)
    assert 11 * DPI <= pixels.shape[1] <= 40 * DPI
    assert 400 < pixels.shape[0] < 2000
    left, right = figure.axes[0].images[0].get_extent()[:2]
    assert left == 0
    assert right == pytest.approx(seconds, abs=0.05)


@pytest.mark.parametrize("make", [FrontendSpec, FrontendSpec.htsat, FrontendSpec.beats, FrontendSpec.ast])
def test_any_frontend_can_be_drawn(make):
    """AST's fills a window of ten seconds with zeros: they are not part of the clip. Kaldi's needs 25 ms of sound."""
    spec = make()
    for seconds in (1.3, 0.01):
        figure = draw(sound(seconds, spec.sample_rate), spec, NOTHING_HEARD, None, "")
        image = figure.axes[0].images[0]
        assert image.get_extent()[1] == pytest.approx(seconds, abs=0.06)
        assert image.get_array().shape[0] == spec.n_mels


NAMES = [("flam_tap", 0.614), ("flam", 0.2)]


def test_the_title_is_the_answer(taught):
    sd_ms, bpm = taught.summary.sd_ms, taught.tempo_bpm
    assert title(NAMES, None, None) == "Flam Tap, 61%"
    assert title(NAMES, None, taught) == f"Flam Tap, 61%  ·  {bpm:.1f} bpm  ·  ± {sd_ms:.0f} ms"
    assert title(NAMES, by_slug("flamacue"), taught).startswith("Flam Tap, 61%  ·  beside Flamacue  ·  ")
    lone = summarize(pd.concat([taught.table[:0], without_pattern(NOTHING_HEARD)]))
    assert title(NAMES, None, Lesson(**{**vars(taught), "summary": lone})) == f"Flam Tap, 61%  ·  {bpm:.1f} bpm"
