"""How a clip is recorded: SOUSA's eleven presets, and `Recording`, every number of a recording, drawn in two styles:

* `SOUSA`: the chain of SOUSA's generator for one of its presets, with a little jitter;
* `NATURAL`: what a player might own: rooms from dry to hall, any microphone, any level, no velocity gain.

The presets are in the order of SOUSA's table; the first `HUB_PRESETS` are those of the data on the hub. A stage that is
off is NaN, as in SOUSA's metadata; a `Recording` has the value there that makes its formula do nothing, so that a
traced preset number needs no branches. Source: SOUSA's generator (MIT, Copyright (c) 2025 Zak Keown).
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

HUB_PRESETS = 5
STYLES = ("sousa", "natural")  # how a clip is recorded: as SOUSA does it, or as the world might
SOUSA, NATURAL = range(len(STYLES))
MIC_TYPES = ("condenser", "dynamic", "ribbon", "piezo")
MIC_POSITIONS = ("close", "overhead", "distant")
NOISES = ("none", "pink", "hum", "hiss", "band")
CLIPS = ("none", "hard", "tube")
REFLECTIONS = 6
PEAK_DB = -1.0  # of SOUSA's clips
FILTERS_HZ = 44_100  # SOUSA's rate: its digital filters are squeezed towards 22 kHz, its white noise ends there
OFF_HZ = 1e6  # the corner of a low-pass that is off


@dataclasses.dataclass(frozen=True)
class Preset:
    """One way of recording.

    Attributes:
      name: snake_case, as in SOUSA's column `augmentation_preset`.
      room_type: a name; every room of SOUSA has the same reverberation time.
      wet: share of the reverberated sound, 0 … 1.
      mic_type, mic_position: of `MIC_TYPES` and `MIC_POSITIONS`.
      mic_distance_m: metres.
      compression_ratio: NaN if there is no compressor.
      threshold_db: of the compressor, dB below full scale.
      noise: of `NOISES`, by the names of SOUSA, whose pink noise is white.
      noise_db: RMS of the noise over that of the signal, dB; NaN without noise.
      clip: of `CLIPS`; `drive` 0 … 1 is how hard it is driven.
      low_cut_hz, high_cut_hz: the band that is left.
      bass_db: a shelf below 200 Hz, SOUSA's proximity effect of microphones nearer than 0.3 m.
      bits: resolution; 0 is not reduced.
    """

    name: str
    room_type: str
    wet: float
    mic_type: str
    mic_distance_m: float
    mic_position: str = "close"
    compression_ratio: float = math.nan
    threshold_db: float = math.nan
    noise: str = "none"
    noise_db: float = math.nan
    clip: str = "none"
    drive: float = 0.0
    low_cut_hz: float = 40.0
    high_cut_hz: float = 18_000.0
    bass_db: float = 0.0
    bits: int = 0


PRESETS: tuple[Preset, ...] = (
    Preset("clean_studio", "studio", 0.20, "condenser", 0.4, compression_ratio=2.0, threshold_db=-18.0),
    Preset(
        "practice_room", "practice_room", 0.15, "dynamic", 0.5,
        compression_ratio=2.0, threshold_db=-18.0, noise="pink", noise_db=-45.0,
    ),
    Preset(
        "gym", "gym", 0.35, "dynamic", 2.0, "overhead",
        compression_ratio=2.5, threshold_db=-15.0, noise="hum", noise_db=-40.0,
    ),
    Preset(
        "garage", "garage", 0.30, "dynamic", 0.8,
        compression_ratio=2.5, threshold_db=-15.0, noise="pink", noise_db=-35.0, clip="hard", drive=0.2,
    ),
    Preset(
        "marching_field", "outdoor", 0.05, "dynamic", 5.0, "distant",
        noise="pink", noise_db=-35.0, high_cut_hz=10_000.0,
    ),
    Preset("clean_close", "none", 0.0, "dynamic", 0.15, compression_ratio=1.5, threshold_db=-12.0, bass_db=3.0),
    Preset("concert_hall", "concert_hall", 0.40, "condenser", 3.0, "distant"),
    Preset(
        "vintage_tape", "studio", 0.25, "ribbon", 0.6,
        compression_ratio=6.0, threshold_db=-10.0, noise="hiss", noise_db=-35.0, clip="tube", drive=0.3,
        low_cut_hz=80.0, high_cut_hz=12_000.0,
    ),
    Preset(
        "lo_fi", "bedroom", 0.10, "piezo", 0.3,
        compression_ratio=8.0, threshold_db=-8.0, noise="pink", noise_db=-25.0, clip="hard", drive=0.4,
        low_cut_hz=200.0, high_cut_hz=6_000.0, bits=12,
    ),
    Preset(
        "phone_recording", "bedroom", 0.15, "piezo", 1.5, "distant",
        compression_ratio=10.0, threshold_db=-6.0, noise="band", noise_db=-30.0, clip="hard", drive=0.3,
        low_cut_hz=300.0, high_cut_hz=4_000.0,
    ),
    Preset(
        "indoor_competition", "gym", 0.30, "condenser", 2.5, "overhead",
        compression_ratio=2.5, threshold_db=-12.0, noise="band", noise_db=-40.0,
    ),
)  # fmt: skip
PRESET_NAMES = tuple(preset.name for preset in PRESETS)


class PresetArrays(NamedTuple):
    """The presets as arrays of one row each, or one row of them: names are numbers, stages that are off do nothing."""

    wet: jax.Array
    mic_type: jax.Array  # int32, of MIC_TYPES
    mic_distance_m: jax.Array
    mic_position: jax.Array  # int32, of MIC_POSITIONS
    compression_ratio: jax.Array  # 1 is off
    threshold_db: jax.Array
    noise: jax.Array  # int32, of NOISES
    noise_db: jax.Array  # -inf is off
    clip: jax.Array  # int32, of CLIPS
    drive: jax.Array
    low_cut_hz: jax.Array
    high_cut_hz: jax.Array
    bass_db: jax.Array
    bits: jax.Array  # float32, 0 is off


_CODES = {"mic_type": MIC_TYPES, "mic_position": MIC_POSITIONS, "noise": NOISES, "clip": CLIPS}
_OFF = {"compression_ratio": 1.0, "threshold_db": 0.0, "noise_db": -math.inf}


def _column(field: str) -> np.ndarray:
    values = [getattr(preset, field) for preset in PRESETS]
    if field in _CODES:
        return np.array([_CODES[field].index(value) for value in values], np.int32)
    column = np.array(values, np.float32)
    return np.where(np.isnan(column), np.float32(_OFF[field]), column) if field in _OFF else column


_TABLE = PresetArrays(*(_column(field) for field in PresetArrays._fields))


def preset_arrays(preset: jax.Array) -> PresetArrays:
    """The rows of a traced preset number, any shape."""
    return PresetArrays(*(jnp.asarray(column)[preset] for column in _TABLE))


# ---------------------------------------------------------------------------------------------------------- recordings

# dB at Hz; SOUSA's microphones. They are applied forwards and backwards, that is twice.
MIC_CURVES = {
    "condenser": ((20, -3), (50, 0), (1000, 0), (5000, 1), (10000, 2), (15000, 1), (20000, -2)),
    "dynamic": ((20, -6), (80, -3), (200, 0), (1000, 0), (3000, 3), (5000, 2), (8000, 0), (12000, -3), (16000, -8),
                (20000, -15)),
    "ribbon": ((20, -2), (100, 0), (500, 1), (1000, 0), (3000, -1), (5000, -2), (8000, -4), (12000, -8), (16000, -15),
               (20000, -25)),
    "piezo": ((20, -15), (100, -8), (300, -2), (800, 3), (2000, 5), (4000, 2), (6000, -2), (10000, -8), (16000, -15),
              (20000, -25)),
}  # fmt: skip

# Energy of SOUSA's noise tail over that of the direct sound: normal numbers times 0.3, decaying since time 0 but cut
# off before 30 ms, at 44.1 kHz, over a direct hit of 0.8. So 30 ms after a stroke the room can be as loud as it.
TAIL_ENERGY = (0.3 / 0.8) ** 2 * FILTERS_HZ * 0.5 / 13.82 * np.exp(-13.82 * 0.030 / 0.5)

# Style NATURAL. name: (unit, from, to): evenly in dB, everything else evenly on a logarithmic scale.
NATURAL_RANGES = {
    "rt60": ("s", 0.1, 1.5),
    "distance": ("m", 0.1, 6.0),
    # Where direct and reverberated sound are equally strong, 0.057 sqrt(volume / RT60): small dead rooms … halls.
    "critical_distance": ("m", 0.5, 4.0),
    "late": ("", 0.3, 0.95),  # the tail's part of the reverberated energy
    "room_size": ("s", 0.001, 0.02),  # spread of the first reflections
    "room_high": ("Hz", 2_000, 12_000),
    "mic_colour": ("", 0.3, 1.5),  # a mixture of MIC_CURVES, times this
    "mic_high": ("Hz", 3_000, 60_000),
    "dull_high": ("Hz", 3_000, 12_000),
    "low_cut": ("Hz", 50, 400),
    "high_cut": ("Hz", 4_000, 16_000),
    "bass": ("dB", -3, 6),
    "input": ("dB", -20, 0),
    "drive": ("", 0.1, 1.0),
    "overload": ("dB", 1, 12),
    "threshold": ("dB", -30, -8),
    "ratio": ("", 1.5, 10),
    "attack": ("s", 0.001, 0.03),
    "release": ("s", 0.02, 0.4),
    "noise": ("dB", -65, -20),
    "noise_slope": ("", 0.1, 1.2),
    "noise_low": ("Hz", 20, 200),
    "noise_high": ("Hz", 3_000, 60_000),
    "hum": ("dB", -60, -25),
    "peak": ("dB", -30, -1),
}
# How often a stage is there at all.
NATURAL_SHARES = {
    "dull": 0.25, "low_cut": 0.4, "high_cut": 0.2, "drive": 0.1, "tube": 0.6, "overload": 0.1, "compressor": 0.45,
    "noise": 0.85, "hum": 0.15, "hum_50_hz": 0.5,
}  # fmt: skip


class Recording(NamedTuple):
    """Every number of a recording; scalars, but for `reflection_s`, `reflection` (REFLECTIONS,) and `mic` (4,).

    A corner frequency far above the band is a filter that is off. Filters have no phase: they shift nothing in time.
    """

    follows_velocity: jax.Array  # bool: SOUSA's velocity gain
    input_db: jax.Array  # peak of a stroke at velocity 127, dB below full scale
    dry: jax.Array  # gain of the direct sound
    wet: jax.Array  # gain of the reflections and the tail
    reflection_s: jax.Array
    reflection: jax.Array
    tail_start_s: jax.Array
    rt60_s: jax.Array
    tail_energy: jax.Array  # over that of a direct sound of gain 1
    room_high_hz: jax.Array
    mic: jax.Array  # weights of MIC_CURVES, in dB
    distance_hz: jax.Array  # first-order low-pass, twice
    overhead_hz: jax.Array  # another
    distant_hz: jax.Array  # second-order low-pass, twice
    low_cut_hz: jax.Array
    high_cut_hz: jax.Array
    bass_db: jax.Array  # below 200 Hz
    drive: jax.Array  # 0 is off
    tube: jax.Array  # bool; else clipped hard
    overload_db: jax.Array  # how far below its peak the signal is cut off
    threshold_db: jax.Array
    ratio: jax.Array  # 1 is off
    attack_s: jax.Array
    release_s: jax.Array
    bits: jax.Array  # 0 is off
    noise_db: jax.Array  # RMS up to 22 kHz over that of the signal; -inf is off
    noise_slope: jax.Array  # of amplitude over frequency: 0 white, -0.5 pink
    noise_low_hz: jax.Array
    noise_high_hz: jax.Array
    hum_db: jax.Array  # RMS of mains hum over that of the signal
    hum_hz: jax.Array
    peak_db: jax.Array  # of the clip


def draw_recording(key: jax.Array, style: jax.Array | int, preset: jax.Array | int) -> Recording:
    """How a clip is recorded; `preset` (a number of `presets.PRESETS`) matters to style `SOUSA` alone."""
    sousa, natural = _sousa(key, preset), _natural(key)
    return Recording(*(jnp.where(jnp.asarray(style) == SOUSA, s, n) for s, n in zip(sousa, natural, strict=True)))


def _sousa(key: jax.Array, preset: jax.Array | int) -> Recording:
    p = preset_arrays(preset)
    u, height, lateness, sign = jnp.split(
        jax.random.uniform(key, (6 + 3 * REFLECTIONS,)), 6 + REFLECTIONS * np.arange(3)
    )
    near = p.mic_distance_m < 0.3
    distance_m = p.mic_distance_m * (0.9 + 0.2 * u[0])
    # What comes through the air is soft, and so compressed less.
    loss = jnp.where(near, 1.0, 1 / (1 + distance_m**1.5)) * jnp.array([1.0, 0.85, 0.6])[p.mic_position]
    hum, hiss, band = (p.noise == NOISES.index(name) for name in ("hum", "hiss", "band"))
    noise_db = p.noise_db + 4 * u[1] - 2
    step = np.arange(REFLECTIONS, dtype=np.float32)
    return Recording(
        follows_velocity=jnp.array(True),
        input_db=-18 + 14 * u[2] + 20 * jnp.log10(loss),  # FluidSynth at gain 0.5, loud and soft banks
        dry=jnp.float32(1.0),  # 1 - wet past the room, and wet through it
        wet=p.wet * (0.85 + 0.3 * u[3]),
        # SOUSA's reflections come at fixed times; here they move by up to a millisecond.
        reflection_s=0.010 + (1 + step) * 0.020 / REFLECTIONS + 0.002 * (lateness - 0.5),
        reflection=jnp.sign(sign - 0.5) * 0.625 * (1 - step / REFLECTIONS) * (0.8 + 0.2 * height),
        tail_start_s=jnp.float32(0.030),
        rt60_s=jnp.float32(0.5),
        tail_energy=jnp.float32(TAIL_ENERGY),
        room_high_hz=jnp.float32(8_000.0),
        mic=jax.nn.one_hot(p.mic_type, len(MIC_TYPES)) * (0.9 + 0.2 * u[4]),
        distance_hz=jnp.where(near, OFF_HZ, jnp.clip(20_000 / (1 + 2 * distance_m), 3_000, 15_000)),
        overhead_hz=jnp.where(p.mic_position == MIC_POSITIONS.index("overhead"), 5_000.0, OFF_HZ),
        distant_hz=jnp.where(p.mic_position == MIC_POSITIONS.index("distant"), 3_000.0, OFF_HZ),
        low_cut_hz=p.low_cut_hz,
        high_cut_hz=p.high_cut_hz,
        bass_db=p.bass_db,
        drive=jnp.where(p.clip == CLIPS.index("none"), 0.0, p.drive),
        tube=p.clip == CLIPS.index("tube"),
        overload_db=jnp.float32(0.0),
        threshold_db=p.threshold_db,
        ratio=p.compression_ratio,
        # SOUSA says 10 and 100 ms; the library that it compresses with means 2 pi time constants by that.
        attack_s=0.010 * (2 * jnp.pi) ** -u[5],
        release_s=0.100 * (2 * jnp.pi) ** -u[5],
        bits=p.bits,
        noise_db=jnp.where(hum, noise_db - 20, noise_db),
        noise_slope=jnp.float32(0.0),  # what SOUSA calls pink is white: measured on its clips
        noise_low_hz=jnp.where(hiss, 2_000.0, jnp.where(band, 100.0, 1.0)),
        noise_high_hz=jnp.where(hum, 500.0, jnp.where(band, 4_000.0, OFF_HZ)),
        hum_db=jnp.where(hum, noise_db, -jnp.inf),
        hum_hz=jnp.float32(60.0),
        peak_db=jnp.float32(PEAK_DB),
    )


def _natural(key: jax.Array) -> Recording:
    uniform_key, normal_key = jax.random.split(key)
    u, shares, delay, tilt = jnp.split(
        jax.random.uniform(uniform_key, (len(NATURAL_RANGES) + len(NATURAL_SHARES) + REFLECTIONS + len(MIC_TYPES),)),
        np.cumsum([len(NATURAL_RANGES), len(NATURAL_SHARES), REFLECTIONS]),
    )
    low, high = jnp.array([limits for _, *limits in NATURAL_RANGES.values()]).T
    is_db = np.array([unit == "dB" for unit, *_ in NATURAL_RANGES.values()])
    drawn = jnp.where(is_db, low + (high - low) * u, jnp.abs(low) * jnp.abs(high / low) ** u)
    value = dict(zip(NATURAL_RANGES, drawn, strict=True))
    has = dict(zip(NATURAL_SHARES, shares < jnp.array(list(NATURAL_SHARES.values())), strict=True))

    wet_energy = jnp.minimum(jnp.square(value["distance"] / value["critical_distance"]), 8.0)
    reflection = jax.random.normal(normal_key, (REFLECTIONS,))
    weights = -jnp.log1p(-tilt)  # exponential numbers over their sum: any mixture is equally likely
    return Recording(
        follows_velocity=jnp.array(False),
        input_db=value["input"],
        dry=jnp.float32(1.0),
        wet=jnp.sqrt(wet_energy),
        reflection_s=0.0007 - value["room_size"] * jnp.log1p(-delay),
        reflection=reflection * jnp.sqrt((1 - value["late"]) / jnp.sum(jnp.square(reflection))),
        tail_start_s=value["room_size"] / 5,
        rt60_s=value["rt60"],
        tail_energy=value["late"],
        room_high_hz=value["room_high"],
        mic=weights / jnp.sum(weights) * value["mic_colour"],
        distance_hz=value["mic_high"],
        overhead_hz=jnp.float32(OFF_HZ),
        distant_hz=jnp.where(has["dull"], value["dull_high"], OFF_HZ),
        low_cut_hz=jnp.where(has["low_cut"], value["low_cut"], 20.0),
        high_cut_hz=jnp.where(has["high_cut"], value["high_cut"], OFF_HZ),
        bass_db=value["bass"],
        drive=jnp.where(has["drive"], value["drive"], 0.0),
        tube=has["tube"],
        overload_db=jnp.where(has["overload"], value["overload"], 0.0),
        threshold_db=value["threshold"],
        ratio=jnp.where(has["compressor"], value["ratio"], 1.0),
        attack_s=value["attack"],
        release_s=value["release"],
        bits=jnp.float32(0.0),
        noise_db=jnp.where(has["noise"], value["noise"], -jnp.inf),
        noise_slope=-value["noise_slope"],
        noise_low_hz=value["noise_low"],
        noise_high_hz=value["noise_high"],
        hum_db=jnp.where(has["hum"], value["hum"], -jnp.inf),
        hum_hz=jnp.where(has["hum_50_hz"], 50.0, 60.0),
        peak_db=value["peak"],
    )
