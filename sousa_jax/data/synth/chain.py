"""From the dry drum to the recording: velocity gain, room, microphone, saturation, compressor, noise, level.

The numbers come from `presets.draw_recording`; every style takes the same way through here. Everything linear (room,
microphone, equalizer) is one frequency response, applied with one Fourier transform and back. What follows the loudness
(velocity gain, compressor) is computed once a millisecond and interpolated. There is no loop over samples.

Unlike in SOUSA there is neither wow and flutter nor dither, and the equalizer stands before saturation and compressor.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from sousa_jax.data.synth.drums import random_signs
from sousa_jax.data.synth.presets import FILTERS_HZ, MIC_CURVES, MIC_TYPES, Recording
from sousa_jax.data.synth.strokes import Strokes

IR_S = 0.8  # a room's impulse response
CONTROL_S = 0.001  # the step of gains and detectors
SMOOTHING_S = 0.003  # SOUSA's velocity gain

# ----------------------------------------------------------------------------------------------------------- control


def control_samples(sample_rate: int) -> int:
    """Samples of one control step."""
    return round(CONTROL_S * sample_rate)


def at_samples(control: jax.Array, step: int) -> jax.Array:
    """(K + 1,) values at the steps' borders, interpolated to the (K * step,) samples between them."""
    ramp = np.arange(step, dtype=np.float32) / np.float32(step)
    return (control[:-1, None] + jnp.diff(control)[:, None] * ramp).reshape(-1)


def velocity_gain(strokes: Strokes, onset_s: jax.Array, n_steps: int, step_s: float) -> jax.Array:
    """SOUSA's gain at the borders of the control steps: (n_steps + 1,), velocity / 127.

    Constant from one stroke to the next, in the order of time, and smoothed over 3 ms; so a soft stroke cuts the ring
    of the loud one before it.

    Args:
      strokes: (S,), in the order in which they sound, the valid ones first.
      onset_s: (S,), seconds from the first border.
    """
    level = jnp.where(strokes.valid, strokes.velocity / 127, 0.0)
    rise = jnp.where(strokes.valid, jnp.diff(level, prepend=level[:1]), 0.0)
    # Each ramp lies between few borders: add what it climbs before each of them, then sum up.
    half = SMOOTHING_S / step_s / 2
    width = int(np.ceil(2 * half)) + 1
    at = jnp.clip(onset_s / step_s, -width, n_steps + width)
    first = jnp.floor(at - half).astype(jnp.int32)
    borders = first[:, None] + jnp.arange(width + 1)
    ramp = jnp.clip((borders - at[:, None]) / (2 * half) + 0.5, 0, 1)
    climbs = rise[:, None] * jnp.diff(ramp, axis=1)
    where = jnp.clip(borders[:, 1:], 0, n_steps + 1)
    return level[0] + jnp.cumsum(jnp.zeros(n_steps + 2).at[where].add(climbs))[:-1]


def compressor_gain(peaks: jax.Array, recording: Recording, step_s: float) -> jax.Array:
    """The gain after each control step, (K,), from the peaks within the steps, (K,).

    The detector falls as the release allows, `fallen = max(peak, release * fallen)`, and is smoothed by the attack,
    `level = attack * level + (1 - attack) * fallen`. Above the threshold, `ratio` dB of level become one.
    """
    release, attack = (jnp.exp(-step_s / s) for s in (recording.release_s, recording.attack_s))
    level = jax.lax.platform_dependent(peaks, release, attack, cpu=detector, default=parallel_detector)
    over = level / 10 ** (recording.threshold_db / 20)
    return jnp.maximum(over, 1.0) ** (1 / recording.ratio - 1)


def detector(peaks: jax.Array, release: jax.Array, attack: jax.Array) -> jax.Array:
    """The detector's level, (K,), step by step: the fastest on a CPU, where it also compiles in no time."""

    def step(state, peak):
        fallen = jnp.maximum(peak, release * state[0])
        level = attack * state[1] + (1 - attack) * fallen
        return (fallen, level), level

    return jax.lax.scan(step, (jnp.zeros_like(release), jnp.zeros_like(release)), peaks, unroll=8)[1]


def parallel_detector(peaks: jax.Array, release: jax.Array, attack: jax.Array) -> jax.Array:
    """The same for an accelerator: both recursions are compositions of functions of one form, so scans of few steps."""
    ones = jnp.ones_like(peaks)

    def falling(left, right):  # x -> max(offset, factor * x)
        return left[0] * right[0], jnp.maximum(right[1], right[0] * left[1])

    def smoothing(left, right):  # x -> factor * x + offset
        return left[0] * right[0], right[0] * left[1] + right[1]

    fallen = jax.lax.associative_scan(falling, (release * ones, peaks))[1]
    return jax.lax.associative_scan(smoothing, (attack * ones, (1 - attack) * fallen))[1]


# ------------------------------------------------------------------------------------------------------ linear stages


@functools.cache
def _mic_table(n_bins: int, bin_hz: float) -> np.ndarray:
    """(4, n_bins) float32: what SOUSA's microphones do, as natural logarithms of gain.

    SOUSA makes each curve a filter of 255 samples with a Hann window; in frequency that is a mean of three
    neighbouring points with weights 1/4, 1/2, 1/4. It is applied twice.
    """
    grid_hz = np.linspace(0, FILTERS_HZ / 2, 128)
    hz = np.arange(n_bins) * bin_hz
    table = []
    for name in MIC_TYPES:
        at_hz, gain_db = np.array(MIC_CURVES[name], float).T
        gain = 10 ** (np.interp(grid_hz, at_hz, gain_db) / 20)
        around = np.concatenate([gain[1:2], gain, gain[-2:-1]])
        smooth = around[:-2] / 4 + around[1:-1] / 2 + around[2:] / 4
        table.append(2 * np.log(np.interp(hz, grid_hz, smooth)))
    return np.array(table, np.float32)


def _warped(hz: np.ndarray | jax.Array) -> np.ndarray | jax.Array:
    """Where SOUSA's digital filters put a frequency: the bilinear transform's tangent, endless from 22 kHz on."""
    xp = jnp if isinstance(hz, jax.Array) else np
    return xp.tan(np.pi * xp.minimum(hz / FILTERS_HZ, 0.4999)).astype(np.float32)


def _impulse_response(key: jax.Array, recording: Recording, sample_rate: int) -> jax.Array:
    """(IR_S * sample_rate,): reflections and noise tail, without the direct sound."""
    n = round(IR_S * sample_rate)
    t = jnp.asarray(np.arange(n, dtype=np.float32) / np.float32(sample_rate))
    fade = jnp.asarray(np.sqrt(np.linspace(1, 0, n)).astype(np.float32))
    since = t - recording.tail_start_s
    # exp(-6.91 t / RT60): amplitude falls by 60 dB in one RT60
    envelope = jnp.where(since >= 0, jnp.exp(-6.91 * since / recording.rt60_s), 0.0) * fade
    noise = jnp.fft.irfft(random_signs(key, 1, n // 2 + 1)[0], n)
    tail = noise * envelope * jnp.sqrt(recording.tail_energy / (2 * jnp.mean(jnp.square(envelope))))
    at = jnp.round(recording.reflection_s * sample_rate).astype(jnp.int32)
    return tail.at[jnp.minimum(at, n - 1)].add(recording.reflection)


def _response(key: jax.Array, recording: Recording, n_fft: int, sample_rate: int) -> jax.Array:
    """(n_fft // 2 + 1,) complex64: room, microphone and equalizer."""
    n_bins, bin_hz = n_fft // 2 + 1, sample_rate / n_fft
    square = jnp.asarray(np.square(_warped(np.arange(n_bins) * bin_hz)))

    def relative(corner_hz: jax.Array) -> jax.Array:  # (f / corner) ** 2
        return square * (1 / jnp.square(_warped(corner_hz)))

    room = jnp.fft.rfft(_impulse_response(key, recording, sample_rate), n_fft)
    room = room * (recording.wet / (1 + jnp.square(relative(recording.room_high_hz)))) + recording.dry
    low = jnp.square(relative(recording.low_cut_hz))
    gain = jnp.exp(recording.mic @ jnp.asarray(_mic_table(n_bins, bin_hz)))
    gain = gain * low * (1 + (10 ** (recording.bass_db / 20) - 1) / (1 + relative(jnp.float32(200.0))))
    gain = gain / ((1 + low) * (1 + relative(recording.distance_hz)) * (1 + relative(recording.overhead_hz)))
    gain = gain / (1 + jnp.square(relative(recording.distant_hz)))
    gain = gain / (1 + jnp.square(relative(recording.high_cut_hz)))
    return room * gain


def _noise(key: jax.Array, recording: Recording, n_fft: int, sample_rate: int) -> jax.Array:
    """(n_fft,): noise and hum for a signal of RMS 1. White noise of 0 dB has RMS 1 up to 22 kHz."""
    n_bins, bin_hz = n_fft // 2 + 1, sample_rate / n_fft
    hz = jnp.asarray(np.maximum(np.arange(n_bins) * bin_hz, bin_hz).astype(np.float32))
    low, high = jnp.square(hz / recording.noise_low_hz), jnp.square(hz / recording.noise_high_hz)
    colour = hz**recording.noise_slope * low / (1 + low) / (1 + high)
    # Steps of 100 Hz up to 22 kHz are enough to know the power of the whole.
    whole_hz = np.arange(50, FILTERS_HZ // 2, 100, dtype=np.float32)
    low, high = jnp.square(whole_hz / recording.noise_low_hz), jnp.square(whole_hz / recording.noise_high_hz)
    power = jnp.sum(jnp.square(whole_hz**recording.noise_slope * low / (1 + low) / (1 + high))) * 100
    # A spectrum of ±1 ± 1j has RMS sqrt(4 * bins) by this inverse transform.
    scale = 10 ** (recording.noise_db / 20) * jnp.sqrt(bin_hz / power / 4)
    lines = jnp.round(recording.hum_hz * jnp.arange(1, 4) / bin_hz).astype(jnp.int32)
    hum = 10 ** (recording.hum_db / 20) * jnp.array([0.3, 0.1, 0.05]) * np.float32(np.sqrt(0.5 / 0.1025))
    spectrum = random_signs(key, 1, n_bins)[0] * (scale * colour)
    return jnp.fft.irfft(spectrum.at[lines].add(hum), n_fft, norm="forward")


# --------------------------------------------------------------------------------------------------------- the chain


def _saturated(x: jax.Array, recording: Recording) -> jax.Array:
    """SOUSA's two overdriven preamplifiers."""
    drive = recording.drive

    def hard(x):
        ceiling = 1 - 0.7 * drive
        clipped = jnp.clip(x * (1 + 2 * drive), -ceiling, ceiling) / ceiling
        return x * (1 - drive / 2) + clipped * (drive / 2)

    def tube(x):  # asymmetric: even harmonics
        pushed = x * (1 + 4 * drive)
        bent = jnp.tanh(jnp.where(pushed > 0, pushed, 0.9 * pushed)) * jnp.where(pushed > 0, 1.0, 1.1)
        return x * (1 - drive) + bent * drive

    which = jnp.where(drive > 0, 1 + recording.tube.astype(jnp.int32), 0)
    return jax.lax.switch(which, [lambda x: x, hard, tube], x)


def record(key: jax.Array, dry: jax.Array, recording: Recording, n_fft: int, sample_rate: int) -> jax.Array:
    """The recording of a dry performance, before its level is set; the pre-roll is still in front.

    Args:
      dry: (n,) float32, n a multiple of `control_samples(sample_rate)`; a stroke at velocity 127 has peak 1.
      n_fft: at least n, and long enough that a room's tail at the end does not come round to what is kept.
    """
    n, step = dry.shape[0], control_samples(sample_rate)
    room_key, _ = jax.random.split(key)
    wave = jnp.fft.irfft(jnp.fft.rfft(dry, n_fft) * _response(room_key, recording, n_fft, sample_rate), n_fft)[:n]
    wave = wave * 10 ** (recording.input_db / 20)
    wave = wave / jnp.maximum(jnp.max(jnp.abs(wave)), 1.0)  # SOUSA's microphone never exceeds full scale
    wave = _saturated(wave, recording)
    peaks = jnp.max(jnp.abs(wave).reshape(-1, step), axis=1)
    ceiling = jnp.max(peaks) * 10 ** (-recording.overload_db / 20)
    wave, peaks = jnp.clip(wave, -ceiling, ceiling), jnp.minimum(peaks, ceiling)
    gain = compressor_gain(peaks, recording, step / sample_rate)
    return wave * at_samples(jnp.append(gain[:1], gain), step)


def finish(key: jax.Array, wave: jax.Array, recording: Recording, n_fft: int, sample_rate: int) -> jax.Array:
    """Noise, resolution and level, on what is kept of the clip: (n,) to (n,), its peak at `peak_db`."""
    _, noise_key = jax.random.split(key)
    noise = _noise(noise_key, recording, n_fft, sample_rate)[: wave.shape[0]]
    steps = jnp.where(recording.bits > 0, 2.0 ** (recording.bits - 1) - 1, 1.0)
    wave = jnp.where(recording.bits > 0, jnp.round(wave * steps) / steps, wave)
    wave = wave + jnp.sqrt(jnp.mean(jnp.square(wave))) * noise
    return at_level(wave, recording)


def at_level(wave: jax.Array, recording: Recording) -> jax.Array:
    """`wave` with its peak at the recording's level; silence stays silence."""
    peak = jnp.max(jnp.abs(wave))
    return wave * jnp.where(peak > 0, 10 ** (recording.peak_db / 20) / jnp.maximum(peak, 1e-20), 0.0)
