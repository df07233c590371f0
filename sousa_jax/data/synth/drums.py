"""A random snare drum: what one hit of it sounds like, and how it answers to the player.

A hit is a sum of two layers: the *head* (modes of a membrane, gliding a little in pitch), and the *wires* (coloured
noise of snare wires, stick and the air around). A drum keeps both as `VARIANTS` templates; a stroke picks one template
and two levels. Two ways to answer:

* a *sampled* drum, as a sound bank plays it: every hit of a velocity layer is the identical sample, both hands are the
  same, and loudness follows velocity by anything between nothing at all and 40·log10(v / 127) dB;
* an *acoustic* drum: hands differ, every hit differs a little, soft strokes are softer and duller.

All numbers are drawn per clip, evenly on a logarithmic scale, from the ranges of `RANGES`: no two drums are alike.
Randomness is drawn mode by mode and frequency by frequency, so equal keys give the same drum at every sample rate.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sousa_jax.data.synth.presets import NATURAL, SOUSA
from sousa_jax.data.synth.strokes import RIGHT, Strokes

HIT_S = 0.4  # a template; what rings longer is faded out
VARIANTS = 8
LAYERS = 4  # velocity layers of a sampled drum, at most: its variants 0 … 3
HITS_PER_HAND = VARIANTS // 2  # of an acoustic drum: variants 0 … 3 are the right hand's

KINDS = ("kit", "marching", "pad", "rim", "electronic")
# How often each kind is drawn, by style. SOUSA renders sound banks of kits and marching snares.
KIND_WEIGHTS = {SOUSA: (0.60, 0.30, 0.03, 0.02, 0.05), NATURAL: (0.40, 0.25, 0.15, 0.08, 0.12)}
SAMPLED_SHARE = {SOUSA: 0.85, NATURAL: 0.25}

# name: (unit, then from … to for kit, marching, pad, rim, electronic). Levels are relative to the head's.
RANGES = {
    "tension": ("Hz", (110, 290), (220, 620), (150, 500), (300, 900), (100, 300)),  # the lowest mode
    "head_decay": ("ms", (20, 180), (8, 60), (4, 20), (6, 30), (30, 180)),  # of the lowest mode, to 1/e
    "decay_slope": ("", (0.4, 1.4), (0.4, 1.3), (0.2, 0.8), (0.2, 1.0), (0.5, 1.5)),  # decay ~ frequency^-slope
    "mode_slope": ("", (0.3, 2.6), (0.05, 1.2), (0.3, 1.8), (0.05, 0.8), (0.8, 3.0)),  # strength ~ frequency^-slope
    "detuning": ("", (0.01, 0.06), (0.01, 0.05), (0.03, 0.2), (0.05, 0.3), (0.002, 0.02)),  # of the modes, relative
    "glide": ("", (0.002, 0.08), (0.002, 0.03), (0.002, 0.05), (0.002, 0.02), (0.01, 0.6)),  # pitch falls by this
    "glide_time": ("ms", (5, 40), (5, 20), (3, 10), (3, 10), (5, 40)),
    "wires": ("", (0.12, 1.8), (0.12, 2.0), (0.003, 0.06), (0.01, 0.4), (0.15, 2.5)),
    "wires_attack": ("ms", (0.2, 3), (0.2, 3), (0.2, 2), (0.2, 2), (0.1, 2)),
    "wires_decay": ("ms", (15, 90), (10, 60), (5, 25), (8, 60), (20, 120)),
    "ring": ("", (0.01, 0.40), (0.01, 0.3), (0.002, 0.03), (0.01, 0.2), (0.002, 0.2)),  # slower part of the wires
    "ring_decay": ("ms", (80, 300), (50, 250), (20, 60), (40, 200), (60, 250)),
    "wires_low": ("Hz", (120, 2000), (250, 2500), (150, 1500), (300, 3000), (200, 3000)),
    "wires_high": ("Hz", (3000, 14000), (2500, 14000), (1000, 6000), (3000, 14000), (3000, 18000)),
    "ripple": ("dB", (1, 6), (1, 6), (1, 6), (1, 6), (0.5, 4)),  # unevenness of the wires' colour
    "stick": ("", (0.05, 1.2), (0.1, 1.5), (0.3, 3.0), (0.5, 4.0), (0.02, 0.6)),
    "stick_decay": ("ms", (0.4, 4), (0.4, 3), (0.4, 3), (0.5, 5), (0.3, 3)),
    "stick_tone": ("Hz", (1000, 6000), (1200, 7000), (700, 4000), (800, 4000), (1500, 7000)),
    "hands": ("", (0.05, 0.5), (0.05, 0.35), (0.05, 0.4), (0.05, 0.5), (0.001, 0.01)),  # where they land: log strength
    "hits": ("", (0.03, 0.25), (0.02, 0.15), (0.02, 0.2), (0.05, 0.3), (0.001, 0.01)),  # the same, hit by hit
}
# Ideal membrane (zeros of Bessel functions), relative to its lowest mode.
MEMBRANE_MODES = np.array([1.0, 1.59, 2.14, 2.30, 2.65, 2.92, 3.16, 3.50, 3.60, 4.06, 4.15, 4.60], np.float32)
STICK_MODES = np.array([1.0, 1.47, 2.09], np.float32)

_LOG_RANGES = np.log(np.array([columns[1:] for columns in RANGES.values()], np.float32))  # (parameter, kind, 2)


class Drum(NamedTuple):
    """One drum at one sample rate.

    Attributes:
      head, wires: (VARIANTS, n_hit) float32, hits at velocity 127; the loudest sum of both peaks at 1.
      sampled: bool, scalar; else acoustic.
      layers: int32, scalar, velocity layers of a sampled drum, 1 … LAYERS, or of a learnt one VARIANTS.
      exponent: float32, scalar: level is (velocity / 127) ** exponent; 2 is General MIDI's 40·log10(v / 127) dB.
      brightness: float32, scalar: what the exponent of the wires is larger by.
      spread: float32, scalar: log level by which hits of an acoustic drum differ.
    """

    head: jax.Array
    wires: jax.Array
    sampled: jax.Array
    layers: jax.Array
    exponent: jax.Array
    brightness: jax.Array
    spread: jax.Array


class Hits(NamedTuple):
    """How the strokes of a performance sound on a drum; arrays (S,)."""

    variant: jax.Array
    head_level: jax.Array
    wires_level: jax.Array


def random_signs(key: jax.Array, count: int, n_bins: int) -> jax.Array:
    """A white spectrum, (count, n_bins) complex64 of ±1 ± 1j. More bins begin with the same ones.

    A word of random bits serves 16 bins: normal numbers would cost more than the Fourier transform after them.
    """
    words = jax.random.bits(key, (-(-n_bins // 16), count), jnp.uint32).T  # bins first: that keeps the beginning
    signs = 1.0 - 2.0 * ((words[..., None] >> jnp.arange(32, dtype=jnp.uint32)) & 1).astype(jnp.float32)
    real, imag = (signs[..., half].reshape(count, -1)[:, :n_bins] for half in (slice(16), slice(16, 32)))
    return jax.lax.complex(real, imag)


def draw_drum(key: jax.Array, style: jax.Array | int = NATURAL, *, sample_rate: int) -> Drum:
    """A random drum. Equal keys and styles give the same drum at every `sample_rate` (Hz, static)."""
    uniform_key, normal_key, wires_key = jax.random.split(key, 3)
    # Few calls of the random generator: each is a piece of code to compile.
    kind_u, answer, ripple, value_u = jnp.split(
        jax.random.uniform(uniform_key, (20 + len(RANGES),)), np.cumsum([1, 7, 12])
    )
    sousa = jnp.asarray(style) == SOUSA
    shares = np.cumsum([KIND_WEIGHTS[SOUSA], KIND_WEIGHTS[NATURAL]], axis=1, dtype=np.float32)
    kind = jnp.sum(kind_u >= jnp.where(sousa, shares[0, :-1], shares[1, :-1]))
    low, high = jnp.asarray(_LOG_RANGES)[:, kind].T
    value = dict(zip(RANGES, jnp.exp(low + (high - low) * value_u), strict=True))

    sampled = answer[0] < jnp.where(sousa, SAMPLED_SHARE[SOUSA], SAMPLED_SHARE[NATURAL])
    # Where SOUSA's gain curve follows velocity already, a bank may be flat; elsewhere the drum must answer itself.
    bank = jnp.where(answer[1] < 0.25, 0.0, jnp.where(answer[1] < 0.75, 2.0, 2.0 * answer[2]))
    exponent = jnp.where(sousa, jnp.where(sampled, bank, 2.0 * answer[2]), 0.8 + 1.6 * answer[2])
    brightness = jnp.where(sampled & (answer[3] < 0.7), 0.0, 0.1 + 0.9 * answer[4])
    layers = jnp.where(sampled, 1 + jnp.floor(LAYERS * answer[5] ** 2), 1).astype(jnp.int32)
    spread = jnp.where(sampled, 0.0, 0.03 + 0.12 * answer[6])

    t = jnp.asarray(np.arange(round(HIT_S * sample_rate), dtype=np.float32) / np.float32(sample_rate))
    normal = jax.random.normal(normal_key, (4 + VARIANTS, len(MEMBRANE_MODES)))
    head = _head(normal, value, sampled, t, sample_rate)
    wires = _wires(wires_key, ripple.reshape(3, 4), value, sampled, t, sample_rate)
    fade = jnp.minimum(1.0, (HIT_S - t) / (HIT_S / 4))
    peak = jnp.max(jnp.abs(head + wires))
    head, wires = head * (fade / peak), wires * (fade / peak)
    return Drum(head, wires, sampled, layers, exponent, brightness, spread)


def _head(normal: jax.Array, value: dict, sampled: jax.Array, t: jax.Array, sample_rate: int) -> jax.Array:
    """(VARIANTS, n_hit): decaying modes; what differs between variants is how strongly each mode is struck.

    `normal` is (4 + VARIANTS, modes) standard normal: the modes' detuning and strength, both hands, the hits.
    """
    detuning, strength, hands, hits = normal[0], normal[1], normal[2:4], normal[4:]
    hz = value["tension"] * MEMBRANE_MODES * (1 + value["detuning"] * detuning)
    rate = 1000 / value["head_decay"] * MEMBRANE_MODES ** value["decay_slope"]
    strength = MEMBRANE_MODES ** -value["mode_slope"] * jnp.exp(0.5 * strength)
    strength = strength / jnp.sum(strength) * (hz < 0.48 * sample_rate)
    by_hand = jnp.repeat(hands, HITS_PER_HAND, axis=0)
    landing = jnp.exp(jnp.where(sampled, 0.2 * hits, value["hands"] * by_hand + value["hits"] * hits))
    glide_s = value["glide_time"] / 1000
    turns = t + value["glide"] * glide_s * (1 - jnp.exp(-t / glide_s))
    modes = jnp.sin(2 * jnp.pi * hz[:, None] * turns) * jnp.exp(-rate[:, None] * t)
    return (strength * landing) @ modes


def _wires(
    key: jax.Array, ripple: jax.Array, value: dict, sampled: jax.Array, t: jax.Array, sample_rate: int
) -> jax.Array:
    """(VARIANTS, n_hit): coloured noise of wires and stick, and the ringing stick itself. `ripple` is (3, 4) in 0 … 1:
    speed, phase and height of four slow waves over the octaves, an unevenness without a pattern."""
    n_hit = t.shape[0]
    hz = jnp.asarray(np.arange(n_hit // 2 + 1, dtype=np.float32) * np.float32(sample_rate / n_hit))
    octave = jnp.log2(jnp.maximum(hz, 20.0) / 1000)
    speed, phase, height = ripple[..., None]
    ripple_db = value["ripple"] * jnp.sum(jnp.sin((1.5 + 4 * speed) * octave + 2 * jnp.pi * phase) * height, axis=0)
    low, high = jnp.square(hz / value["wires_low"]), jnp.square(hz / value["wires_high"])
    # Variance 1 for a white band of 10 kHz, whatever the sample rate.
    colour = 10 ** (ripple_db / 20) * low / (1 + low) / (1 + high) / np.float32(np.sqrt(4 * 10_000 * HIT_S))
    # Soft layers of a sampled drum are duller: a slope from 2 kHz upwards.
    duller = jnp.where(sampled, 0.35 * jnp.maximum(0, LAYERS - 1 - jnp.arange(VARIANTS)), 0.0)
    colour = colour * jnp.exp(-0.5 * duller[:, None] * jnp.log1p(jnp.square(hz / 2000)))
    noise = jnp.fft.irfft(random_signs(key, VARIANTS, hz.shape[0]) * colour, n_hit, norm="forward")

    def decay(name: str) -> jax.Array:
        return jnp.exp(-t * (1000 / value[name]))

    rise = 1 - decay("wires_attack")
    wires = value["wires"] * rise * ((1 - value["ring"]) * decay("wires_decay") + value["ring"] * decay("ring_decay"))
    tone_hz = value["stick_tone"] * STICK_MODES
    tone = (tone_hz < 0.48 * sample_rate) @ jnp.sin(2 * jnp.pi * tone_hz[:, None] * t) / len(STICK_MODES)
    stick = value["stick"] * decay("stick_decay")
    # Peaks of noise are at about three times its standard deviation.
    return 0.33 * noise * (wires + stick) + 0.5 * stick * tone


def strike(key: jax.Array, drum: Drum, strokes: Strokes) -> Hits:
    """Which template each stroke sounds with, and how loud its two layers are. Arrays (S,), in the order of strokes."""
    hit_key, level_key = jax.random.split(key)
    n = strokes.velocity.shape[-1]
    velocity = strokes.velocity / 127
    layer = jnp.clip(jnp.floor(velocity * drum.layers), 0, drum.layers - 1).astype(jnp.int32)
    # The loudest layer is the last, however many there are.
    layer = layer + jnp.where(drum.layers > LAYERS, VARIANTS, LAYERS) - drum.layers
    hit = jnp.floor(HITS_PER_HAND * jax.random.uniform(hit_key, (n,))).astype(jnp.int32)
    hit = hit + HITS_PER_HAND * (strokes.hand != RIGHT)
    spread = jnp.exp(drum.spread * jax.random.normal(level_key, (n, 2)).T)  # rows first: padding changes nothing
    head_level = velocity**drum.exponent * spread[0]
    wires_level = velocity ** (drum.exponent + drum.brightness) * spread[1]
    return Hits(jnp.where(drum.sampled, layer, hit), head_level, wires_level)
