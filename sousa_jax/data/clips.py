"""What every source of labelled clips looks like, and the one policy for a clip's length.

Training, evaluation and the exported model all see windows of the same length, cut here. In SOUSA a
clip's length nearly names its class (always four cycles, then about a second of silence), so a window must
not show where the clip ended: the silent tail is cut off, and a clip shorter than the window goes round
in a circle until the window is full. No sample of a window is ever padding.

    wave = trim_tail(clips.waveform(i, 32_000), 32_000)
    train = random_window(wave, n_samples, rng)
    evaluate = [loop_fill(wave, n_samples, start) for start in window_starts(len(wave), n_samples, hop)]
"""

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:  # pandas takes half a second to import
    import pandas as pd

    from sousa_jax.data.strokes import ClipStrokes

# What is known of a clip besides its sound. `rudiment_slug` is the label; `augmentation_group_id` names the
# performance (same strokes, other audio); `soundfont` is what the dataset says, which need not be what sounds.
METADATA_COLUMNS = (
    "sample_id",
    "profile_id",
    "rudiment_slug",
    "tempo_bpm",
    "duration_sec",
    "num_cycles",
    "skill_tier",
    "dominant_hand",
    "soundfont",
    "augmentation_preset",
    "augmentation_group_id",
)


class BadClip(Exception):
    """A clip that cannot be used: its audio is missing, empty, or does not decode."""

    def __init__(self, sample_id: str, reason: str):
        super().__init__(sample_id, reason)
        self.sample_id = sample_id
        self.reason = reason

    def __str__(self) -> str:
        return f"clip {self.sample_id}: {self.reason}"


@runtime_checkable
class Clips(Protocol):
    """Random access to the labelled clips of one split. Safe to use from several threads.

    Attributes:
      fingerprint: 16 hex digits that change whenever a label or the audio does.
      split: `train`, `validation` or `test`.
      table: one row a clip, index 0 … N-1, `METADATA_COLUMNS` plus `label` (int32, a class id of
        `sousa_jax.rudiments`). Do not modify it.
    """

    fingerprint: str
    split: str
    table: "pd.DataFrame"

    def __len__(self) -> int: ...

    def waveform(self, index: int, sample_rate: int) -> np.ndarray:
        """The whole clip, one channel at `sample_rate` Hz: (n,) float32, n ≥ 1. Raises `BadClip`."""
        ...

    def clip_strokes(self, index: int) -> "ClipStrokes":
        """What is struck in the clip. `BadClip` or, where the whole split lacks them, `InputError` if not known."""
        ...


def trim_tail(wave: np.ndarray, sample_rate: int, floor_db: float = -40.0) -> np.ndarray:
    """The clip up to the end of the last 10 ms frame louder than `floor_db` below its loudest frame.

    Loudness is the RMS of a frame; frames are counted from the clip's start and the last one is filled up with
    zeros, so that digital silence appended to a clip changes nothing. A silent clip is returned whole.

    On 200 whole SOUSA clips of all presets -40 dB leaves 0.33 s (median) of the 1.0 s after the last stroke and
    cuts off a last stroke in 1 % of them; -50 dB leaves the whole tail of a quarter of them.

    Args:
      wave: (n,) float32.
      sample_rate: Hz.
      floor_db: relative to the loudest frame, negative.

    Returns:
      A view (m,) of `wave`, 1 ≤ m ≤ n for n ≥ 1.
    """
    frame = max(1, sample_rate // 100)
    frames = np.zeros((-(-len(wave) // frame), frame))  # float64: the square of any float32 is above zero
    frames.reshape(-1)[: len(wave)] = wave
    power = np.einsum("ij,ij->i", frames, frames)
    if not power.any():
        return wave
    last = np.flatnonzero(power >= power.max() * 10 ** (floor_db / 10))[-1]
    return wave[: last * frame + np.flatnonzero(frames[last])[-1] + 1]  # that frame may end in digital silence


def loop_fill(wave: np.ndarray, n_samples: int, start: int) -> np.ndarray:
    """Exactly `n_samples` of the clip from sample `start` on, going round in a circle if the clip is shorter.

    Args:
      wave: (n,) with n ≥ 1.
      n_samples: length of the window.
      start: 0 ≤ start < n for a clip shorter than the window, 0 ≤ start ≤ n - n_samples otherwise.

    Returns:
      (n_samples,), a copy, same dtype.

    Raises:
      ValueError: the clip is empty or the window would leave it.
    """
    n = len(wave)
    last_start = n - 1 if n < n_samples else n - n_samples
    if not 0 <= start <= last_start:
        raise ValueError(f"a window of {n_samples} samples cannot start at {start} in a clip of {n}")
    if n < n_samples:
        return np.resize(np.roll(wave, -start), n_samples)
    return wave[start : start + n_samples].copy()


def at_speed(wave: np.ndarray, sample_rate: int, rate: float) -> np.ndarray:
    """The clip `(n,)` played `rate` times as fast, about `(n / rate,)`, pitch and all, as a tape is."""
    import soxr

    return soxr.resample(wave, sample_rate * rate, sample_rate)


def random_window(wave: np.ndarray, n_samples: int, rng: np.random.Generator) -> np.ndarray:
    """A window of exactly `n_samples` at a random place; a short clip starts at a random phase. (n_samples,)."""
    return loop_fill(wave, n_samples, random_start(len(wave), n_samples, rng))


def random_start(n_clip: int, n_samples: int, rng: np.random.Generator) -> int:
    """Where `random_window` begins in a clip of `n_clip` samples."""
    return int(rng.integers(n_clip if n_clip < n_samples else n_clip - n_samples + 1))


def crop_start(n_clip: int, n_samples: int, crop: int, n_crops: int) -> int:
    """Where the `crop`-th of `n_crops` evenly spaced windows of a clip begins: 0 is at its start, the last one of a
    clip that is longer than a window at its end; those of a shorter clip begin at so many phases of it."""
    if n_clip < n_samples:
        return crop * n_clip // n_crops
    return round(crop * (n_clip - n_samples) / max(1, n_crops - 1))


def window_starts(n_clip: int, n_window: int, hop: int) -> list[int]:
    """Where the windows of an evaluated clip start, in samples.

    A clip that fits in one window has one, at 0. A longer one has evenly spaced windows at most `hop`
    apart, the first at its start and the last at its end, so that every sample is heard.
    """
    if not 0 < hop <= n_window:
        raise ValueError(f"windows of {n_window} samples need a hop between 1 and {n_window}, not {hop}")
    rest = n_clip - n_window
    if rest <= 0:
        return [0]
    count = 1 + -(-rest // hop)
    return [round(i * rest / (count - 1)) for i in range(count)]
