"""From the soft stream of a network to single strokes, and how good they are."""

from typing import NamedTuple

import mir_eval
import numpy as np
import scipy.signal

from sousa_jax.data.frame_targets import FrameTargets

THRESHOLD = 0.3  # of a stroke's confidence; best F1 on real validation clips is as good from 0.3 to 0.4
TOLERANCE_S = 0.020


class HeardStrokes(NamedTuple):
    """The strokes of one window or clip in order of time, `(S,)` float32 each.

    time_s: seconds from its first sample. velocity: 0 … 1. grace: probability of being a grace note. confidence: of
    being a stroke at all, 0 … 1.
    """

    time_s: np.ndarray
    velocity: np.ndarray
    grace: np.ndarray
    confidence: np.ndarray


def pick(heard: FrameTargets, per_second: int, threshold: float = THRESHOLD) -> HeardStrokes:
    """The strokes of one stream of probabilities, NumPy `(T,)` each.

    A stroke is a local maximum whose probability, with that of the two frames beside it, reaches `threshold`; it fell
    at their centre of mass. Strokes closer than two frames are one.
    """
    onset = np.pad(np.asarray(heard.onset, np.float64), 1)
    frame, _ = scipy.signal.find_peaks(onset, distance=2)
    beside = frame[:, None] + np.arange(-1, 2)
    mass = onset[beside]
    total = mass.sum(1)
    frame, mass, total = (x[total >= threshold] for x in (frame, mass, total))
    time_s = np.maximum(0, frame - 1 + (mass @ np.arange(-1, 2)) / total) / per_second
    columns = (time_s, heard.velocity[frame - 1], heard.grace[frame - 1], np.minimum(total, 1))
    return HeardStrokes(*(np.asarray(column, np.float32) for column in columns))


def seam(begin: int, next_begin: int, n_frames: int) -> int:
    """The first frame that is heard better by the second of two overlapping windows of `n_frames`: each frame is taken
    from the window in whose middle it lies most nearly. All are frames of the whole stream."""
    return (begin + next_begin + n_frames - 1) // 2 + 1


def match(true_s: np.ndarray, heard_s: np.ndarray, tolerance_s: float = TOLERANCE_S) -> tuple[np.ndarray, np.ndarray]:
    """Which true stroke was heard as which: indices into both, a largest set of pairs within the tolerance."""
    if not len(true_s) or not len(heard_s):
        return np.zeros(0, int), np.zeros(0, int)
    pairs = np.array(mir_eval.util.match_events(true_s, heard_s, tolerance_s), int).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


class StrokeCounts(NamedTuple):
    """What was heard of how much; adds up over clips."""

    hits: int = 0
    heard: int = 0
    true: int = 0

    def plus(self, other: "StrokeCounts") -> "StrokeCounts":
        return StrokeCounts(*(a + b for a, b in zip(self, other, strict=True)))

    @property
    def f1(self) -> float:
        return 2 * self.hits / max(1, self.heard + self.true)


def count(heard: FrameTargets, true: FrameTargets, per_second: int) -> StrokeCounts:
    """Strokes of a batch of streams, `(B, T)` each, against those that fell, merged to frames."""
    total = StrokeCounts()
    for row in range(len(true.onset)):
        true_s = np.flatnonzero(true.onset[row]) / per_second
        heard_s = pick(FrameTargets(*(x[row] for x in heard)), per_second).time_s
        hits = len(match(true_s, heard_s)[0])
        total = total.plus(StrokeCounts(hits, len(heard_s), len(true_s)))
    return total
