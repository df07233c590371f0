"""The engine of listening: however a stream is cut, its readings are the same; memory is bounded; as on the phone."""

import dataclasses
import itertools
import json
import pathlib
import re
import types

import jax
import numpy as np
import pytest
import scipy.special
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from sousa_jax import checkpoint, models, stream
from sousa_jax.data.clips import loop_fill, trim_tail
from sousa_jax.data.frame_targets import FrameTargets
from sousa_jax.errors import InputError
from sousa_jax.recording import Resampler
from sousa_jax.rudiments import SLUGS
from sousa_jax.step import Heard
from sousa_jax.stream import Latency, Settings, Stream, peak_db, together

# A network that parrots: its logits are the window's first and last samples, its strokes every tenth sample.
RATE, PER_SECOND = 200, 20
SETTINGS = Settings(window_s=1.5, hop_s=0.25, silence_db=-50)
LENGTH, HOP, FRAME = 300, 50, 10
TEMPERATURE = 2.0


def parrot_step(params, stats, batch):
    wave = batch["waveform"]
    strokes = wave[:, ::FRAME]
    return Heard(np.stack([wave[:, 0], wave[:, -1]], 1), FrameTargets(*[strokes] * 4))


def parrot(n_samples=LENGTH, per_second=PER_SECOND):
    spec = types.SimpleNamespace(sample_rate=RATE, window_samples=n_samples)
    config = types.SimpleNamespace(frontend=spec, strokes_per_second=per_second)
    return checkpoint.Model("parrot", config, {}, {}, {}, TEMPERATURE)


@pytest.fixture(scope="module", autouse=True)
def parrots_are_heard():
    with pytest.MonkeyPatch.context() as patch:
        real = stream._eval_step
        patch.setattr(
            stream, "_eval_step", lambda name, config: parrot_step if name == "parrot" else real(name, config)
        )
        yield


def hear(engine, samples, cuts=()):
    """All readings of a stream that is pushed in pieces, and the largest number of windows that waited."""
    state, readings = engine.start(), []
    size = len(state.buffer)
    for piece in np.split(samples, cuts):
        readings += engine.push(state, piece)
        assert len(state.buffer) == size == engine.length + engine.hop, "memory is bounded"
        assert state.held <= size
        assert len(state.waiting) < engine.batch
        assert len(state.logs) <= engine.settings.smoothed_windows
    assert state.n_samples == len(samples)
    return readings + engine.finish(state)


def same(found, expected):
    """All but the latency, bit for bit."""
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        jax.tree.map(np.testing.assert_array_equal, a._replace(latency=None), b._replace(latency=None))


def noise(n, seed=0, level=0.5):
    return np.random.default_rng(seed).uniform(-level, level, n).astype(np.float32)


@st.composite
def streams(draw):
    """Sound and silence, up to eleven seconds, and where it is cut; pieces may be empty."""
    spans = draw(st.lists(st.tuples(st.booleans(), st.integers(0, 700)), min_size=1, max_size=6))
    parts = [noise(n, seed) * loud for seed, (loud, n) in enumerate(spans)]
    samples = np.concatenate(parts).astype(np.float32)
    return samples, sorted(draw(st.lists(st.integers(0, len(samples)), max_size=12)))


# ---------------------------------------------------------------------------------------------------------------------
# However it is cut
# ---------------------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(streams(), st.integers(1, 4))
def test_pieces_and_batches_change_no_reading(made, batch):
    samples, cuts = made
    whole = hear(Stream(parrot(), SETTINGS), samples)
    same(hear(Stream(parrot(), SETTINGS, batch), samples, cuts), whole)
    same(hear(Stream(parrot(), SETTINGS, batch), samples), whole)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_real_network_hears_the_same_of_single_samples_and_of_ten_seconds(batch):
    config = models.make_config("strokes", "strokes", width=16, dilations=(1, 2), rhythm_widths=(8, 8))
    config = config.for_window(1.5, "fill")
    engine = Stream(checkpoint.Model("strokes", config, *models.init("strokes", config, 0), {}), batch=batch)
    samples = noise(10 * 16_000 + 1234)
    samples[50_000:90_000] = 0
    whole = hear(engine, samples, [160_000])
    assert any(reading.log_probs is None for reading in whole)
    assert any(reading.log_probs is not None for reading in whole)
    for size in (1, 441, 16_000):
        same(hear(engine, samples, range(size, len(samples), size)), whole)


@pytest.mark.parametrize("rate", [8000, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("size", [1, 1000, 10**6])
def test_resampled_pieces_are_the_whole_resampled(rate, size):
    wave = noise(rate // 5)
    resampler, parts = Resampler(rate, 16_000), []
    for begin in range(0, len(wave), size):
        parts.append(resampler.push(wave[begin : begin + size]))
        assert 0 <= resampler.delay_s < 0.2
    parts.append(resampler.push(wave[:0], last=True))
    np.testing.assert_allclose(np.concatenate(parts), soxr.resample(wave, rate, 16_000, quality="HQ"), atol=1e-6)


def test_the_models_own_rate_is_not_resampled():
    wave = noise(100)
    assert Resampler(16_000, 16_000).push(wave) is wave


# ---------------------------------------------------------------------------------------------------------------------
# Which windows, and what is heard of them
# ---------------------------------------------------------------------------------------------------------------------


def test_windows_slide_and_hear_their_sound_in_a_circle():
    """Window k holds k · hop ≤ i < k · hop + length; its silent tail is cut off, what is left goes round."""
    samples = noise(3 * LENGTH)
    samples[2 * LENGTH : 2 * LENGTH + 130] = 0
    for reading in Stream(parrot(), SETTINGS).push(Stream(parrot(), SETTINGS).start(), samples):
        wave = samples[reading.start : reading.end]
        kept = trim_tail(wave, RATE)
        heard = loop_fill(kept, LENGTH, 0)
        assert (reading.start % HOP, reading.end - reading.start, reading.sound) == (0, LENGTH, len(kept))
        expected = scipy.special.log_softmax(np.array([heard[0], heard[-1]], float) / TEMPERATURE)
        np.testing.assert_allclose(reading.log_probs, expected, rtol=1e-6)
        np.testing.assert_array_equal(reading.strokes.onset, heard[::FRAME])
        assert reading.loudness_db == peak_db(wave, RATE)


def test_a_window_shorter_than_the_models_goes_in_a_circle():
    engine = Stream(parrot(n_samples=2 * LENGTH), SETTINGS)
    samples = noise(LENGTH)
    (reading,) = engine.push(engine.start(), samples)
    np.testing.assert_array_equal(reading.strokes.onset, np.tile(samples, 2)[::FRAME])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 5 * LENGTH))
def test_the_end_is_heard(n):
    """Of a short stream all; of a longer one every sample but those that do not fill a frame of the stroke stream."""
    readings = hear(Stream(parrot(), SETTINGS), noise(n))
    spans = [(reading.start, reading.end) for reading in readings]
    if n < LENGTH:
        assert spans == ([(0, n)] if n else [])
        return
    assert spans[0] == (0, LENGTH)
    assert n - FRAME < spans[-1][1] <= n
    assert all(start % FRAME == 0 and end - start == LENGTH for start, end in spans)
    assert all(0 < b - a <= HOP for (a, _), (b, _) in itertools.pairwise(spans))


def test_after_the_end_another_stream_begins():
    engine, samples = Stream(parrot(), SETTINGS, batch=3), noise(777)
    state = engine.start()
    first = engine.push(state, samples) + engine.finish(state)
    same(engine.push(state, samples) + engine.finish(state), first)
    assert engine.finish(state) == []


def test_silence_is_not_asked_and_ends_what_was_smoothed():
    samples = np.concatenate([noise(400), np.zeros(700), noise(400)]).astype(np.float32)
    readings = hear(Stream(parrot(), SETTINGS), samples)
    silent = [reading.log_probs is None for reading in readings]
    assert True in silent
    for reading in readings:
        assert (reading.log_probs is None) == (reading.loudness_db < SETTINGS.silence_db)
        if reading.log_probs is None:
            assert (reading.smoothed, reading.strokes, reading.sound) == (None, None, 0)
    first_again = silent.index(False, silent.index(True))
    reading = readings[first_again]
    np.testing.assert_allclose(reading.smoothed, np.exp(reading.log_probs), rtol=1e-12)


def test_three_windows_are_smoothed():
    readings = hear(Stream(parrot(), SETTINGS), noise(800))
    for k, reading in enumerate(readings):
        logs = np.stack([r.log_probs for r in readings[max(0, k - 2) : k + 1]])
        np.testing.assert_allclose(reading.smoothed, scipy.special.softmax(logs.mean(0)), rtol=1e-9)


def test_nothing_outvotes_every_other_window():
    sure = np.log(np.array([1e-30, 1.0]))
    assert together((sure, np.log([0.999, 0.001])))[0] == pytest.approx(0.0099, rel=0.01)


@pytest.mark.parametrize("level", [1.0, 0.003])
def test_loudness_is_of_the_loudest_ten_milliseconds(level):
    wave = np.zeros(1000, np.float32)
    wave[502:504] = level  # RATE // 100 samples are a frame
    assert peak_db(wave, RATE) == pytest.approx(20 * np.log10(level), abs=1e-4)
    assert peak_db(np.zeros(7, np.float32), RATE) == -np.inf


def test_latency_is_what_came_after_the_last_sample_and_the_networks_time():
    engine = Stream(parrot(), SETTINGS)
    state = engine.start()
    assert engine.push(state, noise(LENGTH - 1)) == []
    (reading,) = engine.push(state, noise(21))
    assert reading.latency.buffering_s == 20 / RATE
    assert reading.latency.inference_s > 0
    assert reading.latency.total_s == reading.latency.buffering_s + reading.latency.inference_s
    waits = Stream(parrot(), SETTINGS, batch=2)
    first, second = waits.push(waits.start(), noise(LENGTH + HOP))
    assert (first.latency.buffering_s, second.latency.buffering_s) == (HOP / RATE, 0)


@pytest.mark.parametrize("samples", [np.zeros((2, 5), np.float32), np.zeros(5, np.int16)])
def test_what_is_no_channel_of_floats_is_refused(samples):
    engine = Stream(parrot(), SETTINGS)
    with pytest.raises(ValueError, match="expected one channel"):
        engine.push(engine.start(), samples)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window_s": 1.0}, "a window lasts 1.5 to 5 s, not 1"),
        ({"hop_s": 0.0}, "need a hop above 0"),
        ({"hop_s": 5.5}, "need a hop above 0 and up to that, not 5.5"),
        ({"smoothed_windows": 0}, "at least one window"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        Settings(**changes)


# ---------------------------------------------------------------------------------------------------------------------
# As the phone does it
# ---------------------------------------------------------------------------------------------------------------------

PACKAGE = pathlib.Path(__file__).resolve().parents[1] / "bridge" / "ios"


def swift(name):
    return (PACKAGE / "Sources" / "RudimentWindows" / f"{name}.swift").read_text("utf-8")


def constant(name, text):
    (found,) = re.findall(rf"public (?:static let|var) {name}(?:: \w+)? = (\S+)", text)
    return found


def test_the_settings_are_the_phones():
    """All but the hop: the phone's default is an overlap of a half, and it may be given in seconds, too."""
    ours, text = Settings(), swift("ListeningSession")
    assert float(constant("window", text)) == ours.window_s
    assert int(constant("smoothedWindows", text)) == ours.smoothed_windows
    assert float(constant("silenceDecibels", text)) == ours.silence_db
    low, high = map(float, constant("windowRange", text).split("..."))
    assert (low, high) == stream.WINDOW_RANGE_S
    assert "public var hop: Double?" in text
    assert float(constant("smallestProbability", swift("Smoother"))) == stream.SMALLEST_PROBABILITY
    assert int(constant("framesPerSecond", swift("LengthPolicy"))) == stream.FRAMES_PER_SECOND


def test_smoothing_is_the_phones():
    """On the numbers that Swift is tested with."""
    shared = json.loads((PACKAGE / "Tests" / "RudimentWindowsTests" / "vectors.json").read_text("utf-8"))["smoothing"]
    smoothed = together(tuple(np.log(shared["windows"])))
    np.testing.assert_allclose(smoothed, [shared["smoothed"][slug] for slug in SLUGS], atol=2e-6)


def test_a_change_is_heard_as_late_as_on_the_phone():
    assert "(window + Double(smoothedWindows - 1) * hop) / 2 + hop + total" in swift("Latency")
    settings = dataclasses.replace(Settings(), window_s=4.0, hop_s=1.0, smoothed_windows=5)
    assert Latency(0.02, 0.03).until_change_is_heard_s(settings) == pytest.approx(4 + 1 + 0.05)
