"""The recording chain: each stage against a plain reference, or what it promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sousa_jax.data.synth import chain
from sousa_jax.data.synth.presets import PRESET_NAMES, SOUSA, draw_recording
from sousa_jax.data.synth.strokes import Strokes

RATE = 16_000
N = RATE  # one second
N_FFT = 28_800


def strokes_at(time_s, velocity) -> Strokes:
    """Three rows more than strokes, which are not valid."""
    n, rows = len(time_s), len(time_s) + 3
    time_s, velocity = (jnp.asarray([*column, 0.0, 0.0, 0.0], jnp.float32) for column in (time_s, velocity))
    zeros = jnp.zeros(rows, jnp.int32)
    return Strokes(time_s, time_s, velocity, velocity, zeros, zeros, zeros > 0, zeros, zeros - 1, jnp.arange(rows) < n)


draw = jax.jit(draw_recording)


def recording(preset: str, **changes):
    return draw(jax.random.key(3), SOUSA, PRESET_NAMES.index(preset))._replace(
        **{name: jnp.float32(value) for name, value in changes.items()}
    )


def impulse_response(preset: str, **changes) -> np.ndarray:
    """What an impulse becomes, (N_FFT,): the chain's linear part, negative times at the end."""
    respond = jax.jit(chain._response, static_argnums=(2, 3))
    return np.fft.irfft(np.asarray(respond(jax.random.key(0), recording(preset, **changes), N_FFT, RATE)))


@pytest.mark.parametrize("step_s", [0.001, 44 / 44_100])
def test_velocity_gain_is_a_smoothed_staircase(step_s):
    time_s, velocity = np.array([0.1, 0.1012, 0.25, 0.6]), np.array([100, 20, 127, 64])
    strokes = strokes_at(time_s, velocity)
    found = chain.velocity_gain(strokes, strokes.time_s, 800, step_s)
    fine_s = np.arange(-0.01, 0.9, 1e-5)
    stairs = (velocity / 127)[np.maximum(np.searchsorted(time_s, fine_s, side="right") - 1, 0)]
    smooth = np.convolve(stairs, np.full(300, 1 / 300), "same")
    expected = np.interp(np.arange(801) * step_s, fine_s, smooth)
    np.testing.assert_allclose(found, expected, atol=0.01)


def test_velocity_gain_begins_with_what_was_before():
    """A clip may begin in the middle: strokes before it have left their gain."""
    strokes = strokes_at([0.1, 0.2, 0.5], [100, 20, 127])
    whole = chain.velocity_gain(strokes, strokes.time_s, 800, 0.001)
    later = chain.velocity_gain(strokes, strokes.time_s - 0.3, 500, 0.001)
    np.testing.assert_allclose(later, whole[300:], atol=1e-5)


def test_compressor_is_its_recursion():
    rng = np.random.default_rng(0)
    peaks = (rng.random(700) ** 4 * (1 + np.sin(np.arange(700) / 40))).astype(np.float32)
    r = recording("garage")
    release, attack = np.exp(-0.001 / float(r.release_s)), np.exp(-0.001 / float(r.attack_s))
    fallen = level = 0.0
    expected = []
    for peak in peaks:
        fallen = max(peak, release * fallen)
        level = attack * level + (1 - attack) * fallen
        over_db = 20 * np.log10(level) - float(r.threshold_db)
        expected.append(10 ** (-max(over_db, 0) * (1 - 1 / float(r.ratio)) / 20))
    compress = jax.jit(chain.compressor_gain, static_argnums=2)
    np.testing.assert_allclose(compress(peaks, r, 0.001), expected, rtol=1e-4)
    assert min(expected) < 0.7
    assert (compress(peaks, recording("concert_hall"), 0.001) == 1).all()  # has none


def test_both_detectors_are_one():
    peaks = jnp.asarray(np.random.default_rng(1).random(700) ** 4, jnp.float32)
    levels = [jax.jit(f)(peaks, jnp.float32(0.97), jnp.float32(0.8)) for f in (chain.detector, chain.parallel_detector)]
    np.testing.assert_allclose(*levels, rtol=1e-4, atol=1e-6)


def test_the_wet_tail_starts_at_30_ms():
    response = impulse_response("gym", room_high_hz=1e6, overhead_hz=1e6, low_cut_hz=1.0)
    power = np.square(response)
    at = [int(s * RATE) for s in (0.003, 0.011, 0.0298, 0.0305, 0.0505)]
    quiet, early, tail = (power[a:b].mean() for a, b in ((at[0], at[1]), (at[1], at[2]), (at[3], at[4])))
    assert tail > 30 * quiet
    assert early > 2 * quiet  # six reflections
    decay_db = 10 * np.log10(power[at[3] :][: RATE // 5].sum() / power[at[3] + RATE // 5 :][: RATE // 5].sum())
    assert decay_db == pytest.approx(24, abs=2)  # 60 dB in 0.5 s


def test_wetter_rooms_ring_more():
    left = []
    for preset in ("clean_close", "marching_field", "practice_room", "clean_studio", "indoor_competition"):
        power = np.square(impulse_response(preset))
        left.append(power[RATE // 50 : N].sum() / power.sum())
    assert left == sorted(left)
    assert left[0] < 1e-4
    assert left[-1] > 0.5


def test_filters_shift_nothing():
    response = impulse_response("clean_close")
    assert np.argmax(np.abs(response)) == 0
    np.testing.assert_allclose(response[1:400], response[:-400:-1], atol=1e-6)


def test_microphones_have_their_curves():
    """At 3 kHz the dynamic one has a peak of 3 dB, twice; a distant one loses its treble."""
    response = np.abs(np.fft.rfft(impulse_response("clean_close", mic=jnp.array([0, 1, 0, 0])))[:: N_FFT // RATE])
    hz = np.linspace(0, RATE / 2, len(response))
    gain_db = 20 * np.log10(np.interp([700, 3_000], hz, response))
    assert gain_db[1] - gain_db[0] == pytest.approx(5.5, abs=1)
    far = np.abs(np.fft.rfft(impulse_response("marching_field", wet=0)))
    assert 20 * np.log10(far[N_FFT * 7_000 // RATE] / far[N_FFT * 700 // RATE]) < -18


@pytest.mark.parametrize(("preset", "low_hz", "high_hz"), [("garage", 0, 8_000), ("phone_recording", 100, 4_000)])
def test_noise_has_its_level_and_colour(preset, low_hz, high_hz):
    r = recording(preset, noise_db=-20)
    noise = np.asarray(chain._noise(jax.random.key(1), r, N_FFT, RATE))
    power = np.square(np.abs(np.fft.rfft(noise)))
    hz = np.fft.rfftfreq(N_FFT, 1 / RATE)
    inside = power[(hz > low_hz) & (hz < high_hz)].sum() / power.sum()
    assert inside > 0.75
    if preset == "garage":  # white up to 22.05 kHz, of which 8 are here
        assert 10 * np.log10(np.mean(noise**2)) == pytest.approx(-20 + 10 * np.log10(8 / 22.05), abs=0.2)


def test_hum_is_at_60_hz():
    noise = np.asarray(chain._noise(jax.random.key(1), recording("gym", hum_db=-20), N_FFT, RATE))
    power = np.square(np.abs(np.fft.rfft(noise)))
    assert np.fft.rfftfreq(N_FFT, 1 / RATE)[np.argmax(power)] == pytest.approx(60, abs=0.5)
    assert 10 * np.log10(np.mean(noise**2)) == pytest.approx(-20, abs=1)


def test_saturation_keeps_soft_and_flattens_loud():
    x = jnp.array([0.01, 0.95, -0.95])
    assert (chain._saturated(x, recording("clean_studio")) == x).all()
    hard = chain._saturated(x, recording("garage", drive=1.0))
    assert abs(hard[1]) / abs(x[1]) < 0.7 * abs(hard[0]) / abs(x[0])
    assert hard[1] == -hard[2]
    tube = chain._saturated(x, recording("vintage_tape", drive=0.5))
    assert abs(tube[1] + tube[2]) > 0.005  # even harmonics


def test_interpolation_runs_through_its_points():
    control = jnp.array([0.0, 1.0, 0.5])
    np.testing.assert_allclose(chain.at_samples(control, 4), [0, 0.25, 0.5, 0.75, 1, 0.875, 0.75, 0.625])


def test_every_stage_together_is_finite_and_causal_enough():
    """Silence before the first stroke stays silence, but for the filters' short ringing."""
    dry = np.zeros(N, np.float32)
    dry[N // 2] = 1
    record = jax.jit(chain.record, static_argnums=(3, 4))
    for preset in ("garage", "gym", "vintage_tape"):
        wave = np.asarray(record(jax.random.key(0), dry, recording(preset), N_FFT, RATE))
        assert np.isfinite(wave).all()
        assert np.abs(wave[: N // 2 - 400]).max() < 1e-3 * np.abs(wave).max()
