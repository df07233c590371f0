"""Sounds that are no rudiment: noise, something like speech, metronomes. What a threshold is fitted on, made by a seed.

They are caricatures that cost no download: speech has syllables, pitch and moving formants but no words; a real room,
a radio, a band were not tried. Every sound has a level of its own and, most of them, a little noise beneath.
"""

from collections.abc import Callable

import numpy as np
import scipy.signal

PEAK_DB = (-30.0, -3.0)  # of full scale
FLOOR_DB = (-75.0, -45.0)  # of the noise beneath, relative to the peak

# Formants of vowels, Hz, about those of G. E. Peterson, H. L. Barney, "Control methods used in a study of the vowels",
# JASA 1952 (men); bandwidths, Hz.
VOWELS_HZ = np.array([
    (270, 2290, 3010), (390, 1990, 2550), (530, 1840, 2480), (660, 1720, 2410), (730, 1090, 2440),
    (570, 840, 2410), (440, 1020, 2240), (300, 870, 2240), (640, 1190, 2390), (490, 1350, 1690),
], float)  # fmt: skip
BANDWIDTHS_HZ = (60.0, 90.0, 150.0)
STEP_S = 0.01  # in which a vocal tract does not move


def noise(rng: np.random.Generator, n: int, rate: int) -> np.ndarray:
    """Coloured noise, brown (-6 dB an octave) … blue (+3 dB); of half of it the level wanders, as wind's and traffic's.

    Returns:
      `(n,)` float32, as the others do.
    """
    wave = coloured(rng, n, rng.uniform(-2.0, 1.0))
    if rng.random() < 0.5:
        times = np.linspace(0, n / rate, max(2, round(2 * n / rate)))
        wave *= 10 ** (np.interp(np.arange(n) / rate, times, rng.normal(0, 8, len(times))) / 20)
    return _at_some_level(rng, wave, floor=False)


def coloured(rng: np.random.Generator, n: int, exponent: float) -> np.ndarray:
    """Noise whose power falls or rises as frequency to the `exponent`: 0 is white, -1 pink, -2 brown, 1 blue."""
    spectrum = np.fft.rfft(rng.standard_normal(n))
    bins = np.maximum(np.arange(len(spectrum)), 1 + n // 1000)  # level below some 20 Hz
    return np.fft.irfft(spectrum * bins ** (exponent / 2), n)


def speech(rng: np.random.Generator, n: int, rate: int) -> np.ndarray:
    """A voice that babbles: syllables of a consonant, hissed or plosive, and a vowel; phrases with pauses.

    Pulses of a glottis at a wandering pitch go through three resonances that glide from vowel to vowel.
    """
    pitch_hz, size = rng.uniform(85, 240), rng.uniform(0.9, 1.2)
    voiced, hissed = np.zeros(n), np.zeros(n)
    vowels, at_s = [], []
    time_s, end_s = rng.uniform(0, 0.3), n / rate
    while time_s < end_s:
        for _ in range(rng.integers(2, 9)):
            length_s, consonant_s = rng.uniform(0.12, 0.32), rng.choice([0.0, 0.015, rng.uniform(0.05, 0.1)])
            _add(hissed, rate, time_s, _hiss(rng, rate, consonant_s))
            swell = np.sin(np.pi * np.linspace(0, 1, max(2, round(length_s * rate)))) ** rng.uniform(0.3, 1)
            _add(voiced, rate, time_s + consonant_s, rng.uniform(0.4, 1) * swell)
            vowels.append(VOWELS_HZ[rng.integers(len(VOWELS_HZ))] * size)
            at_s.append(time_s + consonant_s)
            time_s += consonant_s + length_s
        time_s += rng.uniform(0.2, 0.8)
    steps_s = np.arange(0, end_s, STEP_S)
    pitch = pitch_hz * np.exp(0.08 * np.cumsum(rng.standard_normal(len(steps_s))) * np.sqrt(STEP_S / 0.2))
    phase = np.cumsum(np.interp(np.arange(n) / rate, steps_s, pitch)) / rate
    source = np.diff(np.floor(phase), prepend=0) * voiced
    source = scipy.signal.lfilter([1], [1, -0.96], source)  # a pulse falls off by 6 dB an octave once it has left
    formants_hz = np.stack([np.interp(steps_s, at_s, f) for f in np.transpose(vowels)], 1)
    wave = _resonances(source, formants_hz, rate)
    return _at_some_level(rng, wave / (np.abs(wave).max() + 1e-9) + 0.3 * hissed)


def _hiss(rng: np.random.Generator, rate: int, length_s: float) -> np.ndarray:
    n = round(length_s * rate)
    return np.hanning(n + 2)[1:-1] * coloured(rng, n, 1.0) if n > 1 else np.zeros(0)


def _resonances(source: np.ndarray, formants_hz: np.ndarray, rate: int) -> np.ndarray:
    """The source through resonances one after another, which stand still for `STEP_S`."""
    wave, step = source, round(STEP_S * rate)
    for centre_hz, width_hz in zip(formants_hz.T, BANDWIDTHS_HZ, strict=True):
        radius, out, state = np.exp(-np.pi * width_hz / rate), np.zeros(len(wave)), np.zeros(2)
        for i, begin in enumerate(range(0, len(wave), step)):
            a = [1, -2 * radius * np.cos(2 * np.pi * centre_hz[min(i, len(centre_hz) - 1)] / rate), radius**2]
            out[begin : begin + step], state = scipy.signal.lfilter([sum(a)], a, wave[begin : begin + step], zi=state)
        wave = out
    return wave


def metronome(rng: np.random.Generator, n: int, rate: int) -> np.ndarray:
    """Clicks at 40 … 240 a minute, exactly even: a pulse, a beep, a block of wood or a short noise, every second to
    fourth one accented or none."""
    period_s, beats = 60 / rng.uniform(40, 240), rng.integers(1, 5)
    weak_db, higher = rng.uniform(-9, 0), rng.choice([1.0, rng.uniform(1.2, 1.6)])
    click = rng.choice([_pulse, _beep, _block, _tick])
    seed, pitch_hz = rng.integers(2**32), rng.uniform(600, 2500)
    wave = np.zeros(n)
    for i, at_s in enumerate(np.arange(rng.uniform(0, period_s), n / rate, period_s)):
        is_strong = beats > 1 and i % beats == 0
        sound = click(np.random.default_rng(seed), rate, pitch_hz * (higher if is_strong else 1))
        _add(wave, rate, at_s, sound * (1 if is_strong else 10 ** (weak_db / 20)))
    return _at_some_level(rng, wave)


def _pulse(rng: np.random.Generator, rate: int, pitch_hz: float) -> np.ndarray:
    return np.hanning(round(rng.uniform(0.0005, 0.002) * rate) + 2)


def _beep(rng: np.random.Generator, rate: int, pitch_hz: float) -> np.ndarray:
    n = round(rng.uniform(0.02, 0.08) * rate)
    return scipy.signal.windows.tukey(n, 0.2) * np.sin(2 * np.pi * pitch_hz * np.arange(n) / rate)


def _block(rng: np.random.Generator, rate: int, pitch_hz: float) -> np.ndarray:
    time_s = np.arange(round(0.12 * rate)) / rate
    modes = [(1.0, 1.0), (rng.uniform(1.5, 2.8), rng.uniform(0.2, 0.6))]
    return np.exp(-time_s / rng.uniform(0.006, 0.02)) * sum(
        level * np.sin(2 * np.pi * pitch_hz * ratio * time_s) for ratio, level in modes
    )


def _tick(rng: np.random.Generator, rate: int, pitch_hz: float) -> np.ndarray:
    time_s = np.arange(round(0.04 * rate)) / rate
    return np.exp(-time_s / rng.uniform(0.001, 0.006)) * rng.standard_normal(len(time_s))


def _add(wave: np.ndarray, rate: int, at_s: float, sound: np.ndarray) -> None:
    begin = round(at_s * rate)
    part = wave[begin : begin + len(sound)]
    part += sound[: len(part)]


def _at_some_level(rng: np.random.Generator, wave: np.ndarray, floor: bool = True) -> np.ndarray:
    wave = wave / (np.abs(wave).max() + 1e-9)
    if floor:
        beneath = coloured(rng, len(wave), rng.uniform(-2, 0))
        wave = wave + 10 ** (rng.uniform(*FLOOR_DB) / 20) * beneath / np.abs(beneath).max()
    return (wave * 10 ** (rng.uniform(*PEAK_DB) / 20)).astype(np.float32)


SOUNDS: dict[str, Callable[[np.random.Generator, int, int], np.ndarray]] = {
    "noise": noise,
    "speech": speech,
    "metronome": metronome,
}
