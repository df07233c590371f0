"""All that is heard in one take, a recording or what a microphone heard, in memory that hardly grows with its length.

    listener = Listener(stream, limits)
    for samples in pieces:
        listener.push(samples)
    take = listener.finish()

Of an hour it keeps some 16 MB: log-probabilities of each window, the power of each 10 ms, a stream of strokes.
"""

import dataclasses
import itertools
import math

import numpy as np

from sousa_jax import lesson, rejection, timeline
from sousa_jax.data.frame_targets import FrameTargets
from sousa_jax.hearing import HeardStrokes, pick, seam
from sousa_jax.rejection import Limits
from sousa_jax.rudiments import by_slug
from sousa_jax.stream import Latency, Reading, Stream
from sousa_jax.timeline import Answer, Segment

BESIDE_S = 0.02
LESSON_S = 60.0  # longer segments are compared with the written pattern in parts: a tempo wanders


@dataclasses.dataclass(frozen=True)
class Played:
    """A segment and its strokes, as `hearing.pick` finds them.

    tempo_bpm: of the beats of the pattern, None where too few strokes tell it. deviation_ms: of each stroke from the
    written one, `(S,)`, positive is late; NaN of a stroke that is not written, and of all where there is no tempo.
    """

    segment: Segment
    tempo_bpm: float | None
    strokes: HeardStrokes
    deviation_ms: np.ndarray


@dataclasses.dataclass(frozen=True)
class Take:
    """overall: probabilities of the rudiments, `(C,)`, None of silence. played: segments in order of time. power: mean
    square of each 10 ms. latency: the median of the windows' latencies, None if none was heard."""

    duration_s: float
    overall: np.ndarray | None
    played: list[Played]
    power: np.ndarray
    latency: Latency | None

    @property
    def tempo_bpm(self) -> float | None:
        """Of the longest segment with a tempo."""
        known = [played for played in self.played if played.tempo_bpm is not None]
        longest = max(known, key=lambda played: played.segment.end_s - played.segment.start_s, default=None)
        return longest.tempo_bpm if longest else None


class Listener:
    """Hears one take through a stream.

    Args:
      stream: the engine.
      limits: what is no rudiment.
    """

    def __init__(self, stream: Stream, limits: Limits):
        self._stream, self._limits, self._state = stream, limits, stream.start()
        self._per_second = stream.model.config.strokes_per_second
        self._n_samples = 0
        self._answers: list[Answer] = []
        self._latencies: list[Latency] = []
        self._powers: list[np.ndarray] = []
        self._rest = np.zeros(0, np.float32)  # samples that do not fill 10 ms yet
        self._last: Reading | None = None  # whose strokes are taken over up to `_n_frames`
        self._frames: list[FrameTargets] = []
        self._n_frames = 0

    def push(self, samples: np.ndarray) -> list[tuple[Reading, str]]:
        """Takes in `(n,)` float32 and returns the readings that they complete, each with what `Limits.objection` says
        of its window."""
        self._n_samples += len(samples)
        self._measure(samples)
        return [(reading, self._hear(reading)) for reading in self._stream.push(self._state, samples)]

    def finish(self) -> Take:
        """The end of the take."""
        for reading in self._stream.finish(self._state):
            self._hear(reading)
        frame = self._stream.sample_rate // timeline.PER_SECOND
        self._measure(np.zeros(-len(self._rest) % frame, np.float32))
        power = np.concatenate(self._powers) if self._powers else np.zeros(0, np.float32)
        found = timeline.segments(self._answers, power)
        duration_s = self._n_samples / self._stream.sample_rate
        strokes = self._strokes()
        latency = Latency(*np.median(self._latencies, axis=0).tolist()) if self._latencies else None
        played = [_played(segment, strokes, *span) for segment, span in zip(found, _spans(found), strict=True)]
        return Take(duration_s, timeline.overall(self._answers, found), played, power, latency)

    def _measure(self, samples: np.ndarray) -> None:
        frame = self._stream.sample_rate // timeline.PER_SECOND
        samples = np.concatenate([self._rest, samples])
        n = len(samples) // frame * frame
        self._rest = samples[n:]
        self._powers.append(np.square(samples[:n].reshape(-1, frame)).mean(1, dtype=np.float32))

    def _hear(self, reading: Reading) -> str:
        rate, objection = self._stream.sample_rate, ""
        if reading.log_probs is not None:
            objection = self._limits.objection(rejection.marks(reading.log_probs, reading.strokes, self._per_second))
            self._latencies.append(reading.latency)
        end = reading.start + reading.sound if reading.sound else reading.end
        self._answers.append(Answer(reading.start / rate, end / rate, reading.log_probs, objection))
        if self._last is not None:
            n_frames = self._frame(self._last.end) - self._frame(self._last.start)
            self._take_over(seam(self._frame(self._last.start), self._frame(reading.start), n_frames))
        self._last = reading
        return objection

    def _frame(self, sample: int) -> int:
        return sample * self._per_second // self._stream.sample_rate

    def _frames_until(self, sample: int) -> int:
        return -(-sample * self._per_second // self._stream.sample_rate)

    def _take_over(self, until: int) -> None:
        """The last window's frames up to that one of the stream; nothing is heard in its silent tail."""
        begin, sound_end = self._frame(self._last.start), self._frames_until(self._last.start + self._last.sound)
        nothing = np.zeros(until - self._n_frames, np.float32)
        frames = FrameTargets(*[nothing] * len(FrameTargets._fields))
        if self._last.strokes is not None:
            part = slice(self._n_frames - begin, max(0, min(until, sound_end) - begin))
            frames = FrameTargets(*(nothing.copy() for _ in frames))
            for row, heard in zip(frames, self._last.strokes, strict=True):
                row[: len(heard[part])] = heard[part]
        self._frames.append(frames)
        self._n_frames = until

    def _strokes(self) -> HeardStrokes | None:
        """All of them; None of a network that hears none."""
        if not self._per_second or self._last is None:
            return None
        self._take_over(max(self._n_frames, self._frames_until(self._last.end)))
        return pick(FrameTargets(*map(np.concatenate, zip(*self._frames, strict=True))), self._per_second)


def _spans(found: list[Segment]) -> list[tuple[float, float]]:
    """Whose strokes are whose, in seconds: a stroke may be heard a little before or after its sound."""
    meet_s = [(a.end_s + b.start_s) / 2 for a, b in itertools.pairwise(found)]
    edges = zip(found, [-math.inf, *meet_s], [*meet_s, math.inf], strict=False)
    return [(max(low, segment.start_s - BESIDE_S), min(high, segment.end_s + BESIDE_S)) for segment, low, high in edges]


def _played(segment: Segment, strokes: HeardStrokes | None, start_s: float, end_s: float) -> Played:
    """The segment with its strokes, those from `start_s` to `end_s`."""
    if strokes is None or not segment.rudiment:
        return Played(segment, None, HeardStrokes(*np.zeros((4, 0), np.float32)), np.zeros(0))
    mine = _between(strokes, start_s, end_s)
    n_parts = math.ceil((end_s - start_s) / LESSON_S)
    tempos, deviations = [], []
    for part_start_s, part_end_s in itertools.pairwise(np.linspace(start_s, end_s, n_parts + 1)):
        part = _between(mine, part_start_s, part_end_s)
        deviation_ms = np.full(len(part.time_s), np.nan)
        if len(part.time_s) >= lesson.FEWEST:
            taught = lesson.teach(part, by_slug(segment.rudiment))
            tempos.append(taught.tempo_bpm)
            deviation_ms = taught.table.loc[taught.table["time_s"].notna(), "deviation_ms"].to_numpy(float)
        deviations.append(deviation_ms)
    tempo_bpm = float(np.median(tempos)) if tempos else None
    return Played(segment, tempo_bpm, mine, np.concatenate(deviations))


def _between(strokes: HeardStrokes, start_s: float, end_s: float) -> HeardStrokes:
    inside = (strokes.time_s >= start_s) & (strokes.time_s < end_s)
    return HeardStrokes(*(column[inside] for column in strokes))
