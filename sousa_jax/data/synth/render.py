"""Strokes become sound: a random drum plays them, a random recording catches it. Pure functions of their keys.

waves = render_batch(keys, strokes, sample_rate=32_000, n_samples=160_000, start_s=start_s, style=style,
                     preset=preset)
"""

import functools
import math

import jax
import jax.numpy as jnp
from scipy.fft import next_fast_len

from sousa_jax.data.synth import chain, learned_drums
from sousa_jax.data.synth.drums import Drum, Hits, draw_drum, strike
from sousa_jax.data.synth.learned_drums import LearnedDrums
from sousa_jax.data.synth.presets import draw_recording
from sousa_jax.data.synth.strokes import Strokes, in_order_of_time
from sousa_jax.errors import InputError

PRE_ROLL_S = 0.4  # strokes that long before the clip still ring in it
ACCELERATOR_CHUNK = 32  # clips that an accelerator renders at a time; a CPU takes them one by one


def render(
    key: jax.Array,
    strokes: Strokes,
    *,
    sample_rate: int,
    n_samples: int,
    start_s: jax.Array | float,
    style: jax.Array | int,
    preset: jax.Array | int,
    bandwidth_hz: float = 0,
    learned: LearnedDrums | None = None,
) -> jax.Array:
    """The sound of `strokes` on a random drum, in a random room, through a random microphone.

    Args:
      key: draws drum, room, microphone and noise. Equal keys give the same drum and room at every sample rate.
      strokes: (S,) each, in any order.
      sample_rate: Hz, static, at least 8,000.
      n_samples: static length of the clip.
      start_s: when the clip begins, on the strokes' clock; strokes of the `PRE_ROLL_S` before it still ring.
      style: `presets.SOUSA` or `presets.NATURAL`.
      preset: a number of `presets.PRESETS`, for style `SOUSA`.
      bandwidth_hz: static; nothing above it sounds (0: no limit). Below sample_rate / 2 it also saves time.
      learned: drums that take the place of random ones in style `SOUSA`, at `inner_rate`.

    Returns:
      (n_samples,) float32 in -1 … 1; all zeros if no stroke sounds.

    Raises:
      InputError: a sample rate below 8,000 Hz, no samples, or a negative bandwidth.
    """
    _check(sample_rate, n_samples, bandwidth_hz)
    rate = inner_rate(sample_rate, bandwidth_hz)
    limited = 0 < bandwidth_hz < sample_rate / 2
    n = math.ceil(n_samples * rate / sample_rate)
    drum_key, strike_key, recording_key, room_key = jax.random.split(key, 4)
    drum = draw_drum(drum_key, style, sample_rate=rate)
    if learned is not None:
        drum = learned_drums.draw(drum_key, learned, drum, style)
    recording = draw_recording(recording_key, style, preset)
    strokes = in_order_of_time(strokes)
    onset_s = strokes.time_s - start_s + PRE_ROLL_S

    step = chain.control_samples(rate)
    n_pre = round(PRE_ROLL_S * rate)
    n_steps = -(-(n_pre + n) // step)
    dry = dry_sound(drum, strike(strike_key, drum, strokes), strokes, onset_s, n_steps * step, rate)
    gain = chain.velocity_gain(strokes, onset_s, n_steps, step / rate)
    gain = jnp.where(recording.follows_velocity, gain, 1.0)
    dry = dry * chain.at_samples(gain, step)

    # The room's tail behind the end comes round to the beginning: it must fall into the pre-roll.
    n_fft = _fft_length(n_steps * step + round(chain.IR_S * rate) - n_pre)
    wave = chain.record(room_key, dry, recording, n_fft, rate)[n_pre : n_pre + n]
    wave = chain.finish(room_key, wave, recording, _fft_length(n), rate)
    return chain.at_level(_raised(wave, rate, sample_rate, n_samples, bandwidth_hz), recording) if limited else wave


@functools.partial(jax.jit, static_argnames=("sample_rate", "n_samples", "bandwidth_hz"))
def render_batch(
    keys: jax.Array,
    strokes: Strokes,
    *,
    sample_rate: int,
    n_samples: int,
    start_s: jax.Array,
    style: jax.Array,
    preset: jax.Array,
    bandwidth_hz: float = 0,
    learned: LearnedDrums | None = None,
) -> jax.Array:
    """`render` of every clip of a batch: keys (B,), strokes (B, S), start_s, style and preset (B,) to (B, n_samples).

    A clip does not depend on its neighbours: any split of a batch gives the same clips. On a CPU clips are rendered one
    after the other, elsewhere `ACCELERATOR_CHUNK` at a time: beyond the result, memory does not grow with the batch.
    """
    _check(sample_rate, n_samples, bandwidth_hz)

    def one(clip):
        key, strokes, start_s, style, preset = clip
        return render(
            key, strokes, sample_rate=sample_rate, n_samples=n_samples, start_s=start_s, style=style, preset=preset,
            bandwidth_hz=bandwidth_hz, learned=learned,
        )  # fmt: skip

    chunk = None if jax.default_backend() == "cpu" else ACCELERATOR_CHUNK
    return jax.lax.map(one, (keys, strokes, start_s, style, preset), batch_size=chunk)


def dry_sound(
    drum: Drum, hits: Hits, strokes: Strokes, onset_s: jax.Array, n_samples: int, sample_rate: int
) -> jax.Array:
    """The drum alone: (n_samples,). `strokes` (S,) are in the order of time, `onset_s` counts from the first sample.

    Strokes outside of the clip, and rows that are not valid, are skipped: the loop runs over the ones that sound.
    """
    n_hit = drum.head.shape[-1]
    at = jnp.round(onset_s * sample_rate).astype(jnp.int32)
    first = jnp.sum(strokes.valid & (at < 0))
    last = jnp.sum(strokes.valid & (at < n_samples))

    def add(i: jax.Array, wave: jax.Array) -> jax.Array:
        head = jax.lax.dynamic_index_in_dim(drum.head, hits.variant[i], keepdims=False)
        wires = jax.lax.dynamic_index_in_dim(drum.wires, hits.variant[i], keepdims=False)
        old = jax.lax.dynamic_slice(wave, (at[i],), (n_hit,))
        return jax.lax.dynamic_update_slice(
            wave, old + hits.head_level[i] * head + hits.wires_level[i] * wires, (at[i],)
        )

    return jax.lax.fori_loop(first, last, add, jnp.zeros(n_samples + n_hit))[:n_samples]


def _check(sample_rate: int, n_samples: int, bandwidth_hz: float) -> None:
    if sample_rate < 8_000 or n_samples < 1 or bandwidth_hz < 0:
        raise InputError(
            f"cannot render {n_samples} samples at {sample_rate} Hz with a bandwidth of {bandwidth_hz} Hz; "
            "at least one sample, 8000 Hz and no negative bandwidth are needed"
        )


def _fft_length(n: int) -> int:
    """The next even length of small prime factors."""
    return 2 * next_fast_len(-(-n // 2), real=True)


def inner_rate(sample_rate: int, bandwidth_hz: float) -> int:
    """The rate at which clips are rendered: the lowest that holds the bandwidth and whose clips can be raised to
    `sample_rate` exactly; without a limit that itself."""
    if not 0 < bandwidth_hz < sample_rate / 2:
        return sample_rate
    lowest = max(8_000, math.ceil(2 * bandwidth_hz))
    return min((r for r in range(-(-lowest // 1_000) * 1_000, sample_rate, 1_000)), default=sample_rate)


def _raised(wave: jax.Array, rate: int, sample_rate: int, n_samples: int, bandwidth_hz: float) -> jax.Array:
    """`wave` at a higher sample rate, with nothing above the bandwidth."""
    # Both lengths must last equally long: a whole multiple of the shortest time that has whole samples of both.
    common = math.gcd(rate, sample_rate)
    shortest = rate // common
    periods = next_fast_len(-(-wave.shape[0] // shortest), real=True)
    while periods * sample_rate // common % 2 or periods * shortest % 2:
        periods = next_fast_len(periods + 1, real=True)
    n_in, n_out = periods * shortest, periods * (sample_rate // common)
    n_bins = math.floor(bandwidth_hz * n_in / rate) + 1
    spectrum = jnp.fft.rfft(wave, n_in)[:n_bins]
    return jnp.fft.irfft(spectrum, n_out)[:n_samples] * (n_out / n_in)
