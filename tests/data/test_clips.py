"""The length policy: a window must not tell how long its clip was, and must hold nothing but the clip."""

import io

import numpy as np
import pandas as pd
import pytest
import soundfile
from hypothesis import assume, example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sousa_jax.data.clips import BadClip, crop_start, loop_fill, random_window, trim_tail, window_starts

RATE = 800  # Hz: a frame of trim_tail has 8 samples

waves = arrays(np.float32, st.integers(1, 200), elements=st.floats(-1, 1, width=32))
sounding = arrays(np.float32, st.integers(1, 200), elements=st.floats(0.5, 1, width=32))
sizes = st.integers(1, 300)


@given(waves, st.integers(0, 100), sizes, st.integers(0, 9))
@example(np.float32([1e-42]), 9, 5, 0)  # its square is below float32
@example(np.float32([1, 0.5, 0]), 7, 30, 0)  # silence begins within a frame
def test_appended_silence_changes_no_window(wave, n_silent, n_window, seed):
    assume(wave.any())
    longer = np.concatenate([wave, np.zeros(n_silent, np.float32)])
    a, b = trim_tail(wave, RATE), trim_tail(longer, RATE)
    np.testing.assert_array_equal(a, b)
    starts = window_starts(len(a), n_window, n_window)
    assert starts == window_starts(len(b), n_window, n_window)
    np.testing.assert_array_equal(
        random_window(a, n_window, np.random.default_rng(seed)), random_window(b, n_window, np.random.default_rng(seed))
    )


@given(sounding, sizes, st.data())
def test_window_is_the_clip_going_round(wave, n_window, data):
    n = len(wave)
    start = data.draw(st.integers(0, n - 1 if n < n_window else n - n_window))
    window = loop_fill(wave, n_window, start)
    assert window.shape == (n_window,)
    assert window.dtype == np.float32
    np.testing.assert_array_equal(window, wave[(start + np.arange(n_window)) % n])
    assert window.all(), "the clip has no zeros, so none may be put in"


@given(sounding, sizes, st.integers(0, 99))
def test_random_window_has_its_length_and_only_the_clip(wave, n_window, seed):
    window = random_window(wave, n_window, np.random.default_rng(seed))
    assert window.shape == (n_window,)
    assert np.isin(window, wave).all()


def test_random_window_reaches_every_start():
    short, long = np.arange(4, dtype=np.float32), np.arange(10, dtype=np.float32)
    rng = np.random.default_rng(0)
    assert {random_window(short, 6, rng)[0] for _ in range(200)} == {0, 1, 2, 3}
    assert {random_window(long, 6, rng)[0] for _ in range(200)} == {0, 1, 2, 3, 4}, "a long clip does not wrap"
    assert {random_window(long[:6], 6, rng)[0] for _ in range(20)} == {0}


def test_a_window_is_a_copy():
    wave = np.ones(8, np.float32)
    loop_fill(wave, 4, 2)[:] = 0
    assert wave.all(), "augmenting a window must not change the clip it came from"


@given(st.integers(1, 1000), st.integers(1, 300), st.integers(1, 20))
def test_crops_are_windows_of_the_clip_evenly_apart(n_clip, n_window, n_crops):
    starts = [crop_start(n_clip, n_window, crop, n_crops) for crop in range(n_crops)]
    wave = np.arange(n_clip)
    assert all(loop_fill(wave, n_window, start).shape == (n_window,) for start in starts)
    assert starts[0] == 0
    if n_clip >= n_window and n_crops > 1:
        assert starts[-1] == n_clip - n_window
    assert np.ptp(np.diff([*starts, n_clip] if n_clip < n_window else starts) if n_crops > 1 else [0]) <= 1


@pytest.mark.parametrize(("n", "start"), [(4, 4), (4, -1), (10, 5), (0, 0)])
def test_window_outside_the_clip_is_an_error(n, start):
    with pytest.raises(ValueError, match="cannot start"):
        loop_fill(np.ones(n, np.float32), 6, start)


@given(st.integers(1, 1000), st.integers(1, 300), st.data())
def test_evaluation_windows_cover_the_clip_evenly(n_clip, n_window, data):
    hop = data.draw(st.integers(1, n_window))
    starts = window_starts(n_clip, n_window, hop)
    assert starts[0] == 0
    if n_clip <= n_window:
        assert starts == [0]
        return
    gaps = np.diff(starts)
    assert starts[-1] == n_clip - n_window, "the end is heard"
    assert gaps.max() <= hop, "hop ≤ window, so every sample is heard"
    assert gaps.max() - gaps.min() <= 1, "even"
    assert len(starts) == 1 + int(np.ceil((n_clip - n_window) / hop)), "no more than needed"


def test_hop_beyond_the_window_is_an_error():
    with pytest.raises(ValueError, match="hop"):
        window_starts(100, 10, 11)


@given(waves, st.floats(1e-3, 1e3))
def test_trimming_does_not_depend_on_the_level(wave, gain):
    assume(np.abs(wave).max() > 1e-3)
    wave = np.round(wave, 3)  # away from the threshold's rounding
    assert abs(len(trim_tail(wave, RATE)) - len(trim_tail(wave * np.float32(gain), RATE))) <= 8


def test_trimming_cuts_what_is_40_db_down_and_no_more():
    stroke = np.ones(80, np.float32)
    soft, hum = stroke * 10 ** (-39 / 20), stroke * 10 ** (-41 / 20)
    assert len(trim_tail(np.concatenate([stroke, soft, hum]), RATE)) == 160
    assert len(trim_tail(np.concatenate([stroke, hum, soft]), RATE)) == 240, "a pause inside the clip stays"
    assert len(trim_tail(np.concatenate([stroke, soft, hum]), RATE, floor_db=-20)) == 80


def test_a_silent_clip_stays_whole():
    assert len(trim_tail(np.zeros(50, np.float32), RATE)) == 50
    assert not loop_fill(np.zeros(50, np.float32), 70, 0).any()


def test_trimming_keeps_the_strokes_of_real_clips(sousa_mini):
    """The floor is a compromise: it must cut most of the silent second, and hardly ever a stroke."""
    import pyarrow.parquet as pq

    clips = pq.read_table(sousa_mini / "audio/validation-00000-of-00001.parquet", columns=["sample_id", "audio"])
    strokes = pd.read_parquet(sousa_mini / "auxiliary/strokes.parquet", columns=["sample_id", "actual_time_ms"])
    last_s = strokes.groupby("sample_id")["actual_time_ms"].max() / 1000
    after_s = []
    for row in clips.slice(0, 100).to_pylist():
        wave, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="float32")
        after_s.append(len(trim_tail(wave, rate)) / rate - last_s[row["sample_id"]])
    after_s = np.array(after_s)
    assert np.mean(after_s < 0) <= 0.02, "last strokes cut off"
    assert np.median(after_s) < 0.45, "of the second after the last stroke"
    assert np.mean(after_s > 0.8) <= 0.03, "tails left whole"


def test_bad_clip_says_which_and_why():
    assert str(BadClip("adv001_flam", "empty")) == "clip adv001_flam: empty"
