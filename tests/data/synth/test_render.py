"""Strokes to sound, as a whole: pure functions of their keys, the right strokes at the right time and loudness."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soxr
from onsets import onset_times

from sousa_jax.data.synth.presets import NATURAL, PRESET_NAMES, SOUSA
from sousa_jax.data.synth.render import render, render_batch
from sousa_jax.data.synth.strokes import Strokes
from sousa_jax.errors import InputError

RATE = 16_000
N = 20_000
ROWS = 12
BATCH = 8
CLOSE = PRESET_NAMES.index("clean_close")  # no room, no noise


def strokes_at(time_s, velocity) -> Strokes:
    """One performance, (ROWS,)."""

    def column(values, dtype):
        return np.concatenate([np.asarray(values, dtype), np.zeros(ROWS - len(values), dtype)])

    n = len(time_s)
    time_s, velocity = column(time_s, np.float32), column(velocity, np.float32)
    hand, zeros = column(np.arange(n) % 2, np.int32), np.zeros(ROWS, np.int32)
    return Strokes(
        time_s, time_s, velocity, velocity, hand, zeros, np.zeros(ROWS, bool), zeros, zeros - 1, np.arange(ROWS) < n
    )


def clips(performances, *, style=SOUSA, preset=CLOSE, seed=0, start_s=0.0, rate=RATE, n=N, bandwidth_hz=0.0):
    """BATCH clips, (BATCH, n); one performance stands for all. Few shapes: each takes seconds to compile."""
    if isinstance(performances, Strokes):
        performances = [performances] * BATCH
    count = len(performances)
    return np.asarray(
        render_batch(
            jax.random.split(jax.random.key(seed), BATCH)[:count],
            jax.tree.map(lambda *rows: jnp.stack(rows), *performances),
            sample_rate=rate,
            n_samples=n,
            start_s=jnp.broadcast_to(jnp.float32(start_s), count),
            style=jnp.broadcast_to(jnp.int32(style), count),
            preset=jnp.broadcast_to(jnp.int32(preset), count),
            bandwidth_hz=bandwidth_hz,
        )
    )


def level_db(waves: np.ndarray, begin_s: float, end_s: float) -> np.ndarray:
    return 10 * np.log10(np.mean(np.square(waves[:, int(begin_s * RATE) : int(end_s * RATE)]), axis=1) + 1e-20)


FOUR = strokes_at([0.05, 0.3, 0.55, 0.8], [110, 60, 90, 30])
STYLES = np.arange(BATCH) % 2
EVERY = np.arange(BATCH)


@pytest.fixture(scope="module")
def mixed() -> np.ndarray:
    return clips(FOUR, style=STYLES, preset=EVERY)


def test_clips_are_sound(mixed):
    assert mixed.shape == (BATCH, N)
    assert mixed.dtype == np.float32
    assert np.isfinite(mixed).all()
    peak_db = 20 * np.log10(np.abs(mixed).max(axis=1))
    np.testing.assert_allclose(peak_db[STYLES == SOUSA], -1, atol=1e-3)
    assert peak_db.max() < -0.999
    assert peak_db.min() > -30.01
    assert np.ptp(peak_db[STYLES == NATURAL]) > 1
    likeness = np.corrcoef(mixed) - np.eye(BATCH)
    assert np.abs(likeness).max() < 0.7


def test_a_clip_is_a_function_of_its_key_and_strokes(mixed):
    np.testing.assert_array_equal(mixed, clips(FOUR, style=STYLES, preset=EVERY))
    assert not np.allclose(mixed, clips(FOUR, style=STYLES, preset=EVERY, seed=1), atol=0.05)


def test_a_clip_does_not_depend_on_its_batch(mixed):
    reverse = slice(None, None, -1)
    again = render_batch(
        jax.random.split(jax.random.key(0), BATCH)[reverse],
        jax.tree.map(lambda column: jnp.stack([column] * BATCH), FOUR),
        sample_rate=RATE,
        n_samples=N,
        start_s=jnp.zeros(BATCH),
        style=jnp.asarray(STYLES[reverse], jnp.int32),
        preset=jnp.asarray(EVERY[reverse], jnp.int32),
    )
    np.testing.assert_array_equal(again[reverse], mixed)


def test_side_by_side_is_the_same_as_one_by_one(mixed):
    """A CPU renders a batch clip by clip, an accelerator several at a time."""
    together = jax.jit(jax.vmap(lambda key, style, preset: render(
        key, FOUR, sample_rate=RATE, n_samples=N, start_s=0.0, style=style, preset=preset
    )))  # fmt: skip
    waves = together(jax.random.split(jax.random.key(0), BATCH)[:4], STYLES[:4], EVERY[:4])
    np.testing.assert_allclose(waves, mixed[:4], atol=2e-4)


def test_the_order_of_rows_and_rows_that_are_not_valid_do_not_matter(mixed):
    order = np.array([2, 0, 7, 3, 1, 4, 5, 6, 8, 9, 10, 11])
    junk = Strokes(*(np.where(FOUR.valid, column, 1) for column in FOUR[:-1]), FOUR.valid)
    shuffled = Strokes(*(column[order] for column in junk))
    np.testing.assert_array_equal(clips(shuffled, style=STYLES, preset=EVERY), mixed)


def test_no_strokes_are_silence():
    silent = clips(strokes_at([], []), style=STYLES)
    assert (silent == 0).all()


def test_a_later_start_cuts_the_beginning():
    """Strokes before the start still ring, those long before are gone."""
    strokes = strokes_at([0.0, 0.25, 0.6, 0.9], [120, 100, 80, 110])
    whole, later = clips(strokes), clips(strokes, start_s=0.3)
    for a, b in zip(whole[:, 4_800:], later, strict=True):
        assert np.corrcoef(a, b[: len(a)])[0, 1] > 0.999
    assert level_db(later, 0, 0.02).max() > -60
    after = clips(strokes, start_s=5.0)
    assert (after == 0).all()
    before = clips(strokes, start_s=-1.0)
    assert level_db(before, 0, 0.9).max() < -80
    assert level_db(before, 1.0, 1.2).min() > -50


def test_softer_strokes_are_softer():
    waves = clips(strokes_at([0.1, 0.7], [120, 50]))
    softer = level_db(waves, 0.7, 0.8) - level_db(waves, 0.1, 0.2)
    # By the gain alone 7.6 dB; the drum adds to it, and a compressor of up to 10:1 takes of it.
    assert (softer < -0.76).all()
    assert np.median(softer) < -7.6
    natural = clips(strokes_at([0.1, 0.7], [120, 50]), style=NATURAL)
    assert np.median(level_db(natural, 0.7, 0.75) - level_db(natural, 0.1, 0.15)) < -4


def test_a_soft_stroke_cuts_the_ring_of_a_loud_one():
    """By the gain of SOUSA: 26 dB. Without it, 6 is simply too soft to be heard."""
    cut = {}
    for style in (SOUSA, NATURAL):
        loud = clips(strokes_at([0.1], [127]), style=style)
        soft = clips(strokes_at([0.1, 0.13], [127, 6]), style=style)
        ring = [level_db(waves, 0.135, 0.16) - level_db(waves, 0.1, 0.12) for waves in (loud, soft)]
        cut[style] = np.median(ring[1] - ring[0])
    assert cut[SOUSA] < -15
    assert abs(cut[NATURAL]) < 3


def test_rooms_ring_between_strokes():
    strokes = strokes_at([0.1, 0.7], [110, 110])
    left = [
        np.median(level_db(waves, 0.3, 0.4) - level_db(waves, 0.1, 0.15))
        for waves in (
            clips(strokes, preset=PRESET_NAMES.index(name)) for name in ("clean_close", "clean_studio", "gym")
        )
    ]
    assert left == sorted(left)
    assert left[-1] > left[0] + 6


def test_onsets_are_where_the_strokes_are():
    """Well separated strokes of one loudness, in a dry room; the detector sees nothing else."""
    rng = np.random.default_rng(0)
    time_s = 0.12 + 0.11 * np.arange(10) + rng.uniform(-0.015, 0.015, (BATCH, 10))
    waves = clips([strokes_at(row, np.full(10, 100)) for row in time_s])
    right = found = wanted = 0
    for wave, row in zip(waves, time_s, strict=True):
        onsets = onset_times(wave, RATE, 80, delta=0.07, wait_s=0.03)
        near = np.abs(onsets[:, None] - row) < 0.02
        right, found, wanted = right + near.any(axis=0).sum(), found + near.any(axis=1).sum(), wanted + len(onsets)
    assert right / time_s.size >= 0.95
    assert found / wanted >= 0.95


def test_every_sample_rate_hears_the_same_clip():
    high = clips(FOUR, style=STYLES, preset=CLOSE, rate=44_100, n=44_100)
    low = clips(FOUR, style=STYLES, preset=CLOSE)
    likeness = [
        np.corrcoef(a[:RATE], soxr.resample(b, 44_100, RATE)[:RATE])[0, 1] for a, b in zip(low, high, strict=True)
    ]
    assert min(likeness[i] for i in range(0, BATCH, 2)) > 0.95  # a room apart, sound for sound
    assert np.median(likeness[1::2]) > 0.8  # reflections fall between samples


def test_nothing_sounds_above_the_bandwidth():
    waves = clips(FOUR, style=STYLES, preset=EVERY, rate=32_000, n=32_001, bandwidth_hz=7_000.0)
    assert waves.shape == (BATCH, 32_001)
    peak_db = 20 * np.log10(np.abs(waves).max(axis=1))
    np.testing.assert_allclose(peak_db[STYLES == SOUSA], -1, atol=1e-3)
    power = np.square(np.abs(np.fft.rfft(waves * np.hanning(32_001))))
    hz = np.fft.rfftfreq(32_001, 1 / 32_000)
    above = 10 * np.log10(power[:, hz > 7_100].sum(axis=1) / power.sum(axis=1))
    assert above.max() < -55
    low = clips(FOUR, style=STYLES, preset=EVERY)
    for a, b in zip(waves[::2], low[::2], strict=True):
        assert np.corrcoef(soxr.resample(a, 32_000, RATE)[:RATE], b[:RATE])[0, 1] > 0.8


def test_a_cpu_needs_the_memory_of_one_clip():
    if jax.default_backend() != "cpu":
        pytest.skip("accelerators render several clips at a time")
    lowered = render_batch.lower(
        jax.random.split(jax.random.key(0), BATCH),
        jax.tree.map(lambda column: jnp.stack([column] * BATCH), FOUR),
        sample_rate=RATE,
        n_samples=N,
        start_s=jnp.zeros(BATCH),
        style=jnp.zeros(BATCH, jnp.int32),
        preset=jnp.zeros(BATCH, jnp.int32),
        bandwidth_hz=0.0,
    )
    one_clip = 20 * 4 * (N + RATE)  # some twenty arrays of samples or of their spectra, pre-roll included
    assert 0 < lowered.compile().memory_analysis().temp_size_in_bytes < one_clip


@pytest.mark.parametrize("wrong", [{"rate": 7_999}, {"n": 0}, {"bandwidth_hz": -1.0}])
def test_what_cannot_be_rendered_is_refused(wrong):
    with pytest.raises(InputError) as error:
        clips(FOUR, **wrong)
    assert "\n" not in str(error.value)
