"""The deterministic clips that reference activations were computed from: bursts, sines and clicks.

A golden file stores only a seed; the clips follow from it by this rule. It is exact: the order of the
draws is part of it, and the samples are rounded to 16 bits so that no machine's last digit shows.
"""

import numpy as np


def test_waveform(seed: int, index: int, sample_rate: int, num_samples: int) -> np.ndarray:
    """Clip `index` of a batch: `(num_samples,)` float32 in [-1, 1], multiples of 1/32768.

    Clips of odd index end in digital silence.
    """
    rng = np.random.default_rng([seed, index, sample_rate, num_samples])
    time_s = np.arange(num_samples) / sample_rate
    duration_s = num_samples / sample_rate
    clip = 10.0 ** rng.uniform(-3.2, -2.4) * rng.standard_normal(num_samples)
    for _ in range(max(2, int(1.2 * duration_s))):
        clip += _burst(rng, time_s, duration_s)
    for _ in range(max(3, int(2.5 * duration_s))):
        clip += _decaying_sine(rng, time_s, duration_s, sample_rate)
    for _ in range(max(2, int(1.5 * duration_s))):
        start = int(rng.integers(0, num_samples))
        end = start + int(rng.integers(1, 12))
        sign = rng.choice([-1.0, 1.0])
        clip[start:end] += sign * rng.uniform(0.2, 0.9)
    if index % 2 == 1:
        clip[int(num_samples * rng.uniform(0.82, 0.9)) :] = 0.0
    clip *= rng.uniform(0.35, 0.95) / max(np.abs(clip).max(), 1e-9)
    return (np.round(np.clip(clip, -1.0, 1.0) * 32767.0) / 32768.0).astype(np.float32)


def test_batch(seed: int, sample_rate: int, num_samples: int, batch: int) -> np.ndarray:
    """`batch` different clips: `(batch, num_samples)` float32."""
    return np.stack([test_waveform(seed, index, sample_rate, num_samples) for index in range(batch)])


def _burst(rng: np.random.Generator, time_s: np.ndarray, duration_s: float) -> np.ndarray:
    """Low-passed noise under half a sine."""
    start_s = rng.uniform(0, duration_s)
    length_s = rng.uniform(0.03, 0.6)
    decay = rng.uniform(0.0, 0.97)
    level = 10.0 ** rng.uniform(-1.5, -0.3)
    taps = decay ** np.arange(64)
    noise = rng.standard_normal(len(time_s))
    noise = np.convolve(noise, taps / np.sqrt(np.sum(taps**2)))[: len(time_s)]
    during = (time_s >= start_s) & (time_s < start_s + length_s)
    envelope = np.where(during, np.sin(np.pi * (time_s - start_s) / length_s), 0.0)
    return level * noise * np.maximum(envelope, 0.0) * 0.3


def _decaying_sine(rng: np.random.Generator, time_s: np.ndarray, duration_s: float, sample_rate: int) -> np.ndarray:
    start_s = rng.uniform(-0.2, duration_s)
    decay_s = rng.uniform(0.02, 0.8)
    pitch_hz = np.exp(rng.uniform(np.log(60.0), np.log(0.45 * sample_rate)))
    level = 10.0 ** rng.uniform(-1.5, -0.2)
    phase = rng.uniform(0, 2 * np.pi)
    age_s = time_s - start_s
    envelope = np.where(age_s >= 0, level * np.exp(-np.maximum(age_s, 0) / decay_s), 0.0)
    return envelope * np.sin(2 * np.pi * pitch_hz * age_s + phase)


test_waveform.__test__ = test_batch.__test__ = False  # pytest takes imported `test_*` functions for tests
