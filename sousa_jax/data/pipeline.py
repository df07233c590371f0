"""Clips → batches: decoded by parallel threads, cut by the one length policy, a few batches ahead.

A batch is a dict of arrays with `batch_size / process_count` rows:

    waveform   (B, n_samples) float32
    label      (B,) int32     class id
    clip       (B,) int32     row of the clip in `clips.table`; -1 in a padding row
    mask       (B,) bool      False where a row must not be counted
    stroke_targets            `FrameTargets` (B, n_frames), if asked for
    crop       (B,) int32     which of a clip's crops it is, in training on a number of them

Training has no state but a number: the sample position p, the count of rows made before. What row p holds (which
clip, cut where) is a function of (seed, p) alone, so a run resumes exactly where it stopped, whatever the number of
workers, and the rows of several processes tile the batch that one process would make.
"""

import collections
import contextlib
import dataclasses
import functools
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, NamedTuple, TypeVar

import numpy as np

from sousa_jax.data.clips import BadClip, Clips, at_speed, crop_start, loop_fill, random_start, trim_tail, window_starts
from sousa_jax.data.frame_targets import FrameTargets, count_frames, place_on_frames
from sousa_jax.data.layouts import STREAM_ROWS
from sousa_jax.data.sousa import EncodedClip, StreamedClips
from sousa_jax.data.strokes import ClipStrokes
from sousa_jax.errors import InputError

Batch = dict[str, np.ndarray | FrameTargets]
In, Out = TypeVar("In"), TypeVar("Out")

BLOCK_ROWS = 512  # a stream is shuffled within blocks of that many encoded clips: half a GB of SOUSA, held twice
MAX_REDRAWS = 1000  # of a row whose clip is bad


class BadClips:
    """The clips of a split that could not be used. Thread-safe; a clip counts once however often it is met.

    Args:
      clips: the split, for its size and name.
      max_fraction: of the split's clips; above it the run stops.
    """

    def __init__(self, clips: Clips | StreamedClips, max_fraction: float):
        self.n_clips = len(clips)
        self.split = clips.split
        self.max_fraction = max_fraction
        self.reasons: dict[str, str] = {}  # by sample_id
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.reasons)

    def add(self, bad: BadClip) -> None:
        """Counts a clip. `InputError` with the list when there are too many."""
        with self._lock:
            self.reasons.setdefault(bad.sample_id, bad.reason)
            if len(self) > self.max_fraction * self.n_clips or len(self) == self.n_clips:
                raise InputError(f"{self.report()}; at most {self.max_fraction:.2%} may be bad (max_bad_fraction)")

    def report(self) -> str:
        """One line for the end of a run, `""` if all was well."""
        if not self.reasons:
            return ""
        named = [f"{sample_id} ({reason})" for sample_id, reason in itertools.islice(sorted(self.reasons.items()), 20)]
        if len(self) > len(named):
            named.append(f"and {len(self) - len(named)} more")
        return f"{len(self)} of {self.n_clips} {self.split} clips could not be used: {', '.join(named)}"


# ---------------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------------


class TrainBatches:
    """Infinite shuffled batches: an iterator of `(batch, position)`, `position` being where the next batch starts.

    Random-access clips are drawn in a new random order each epoch, every clip once; a batch may straddle two
    epochs. Streamed clips come shard by shard, the shards in a new random order each epoch, shuffled within
    blocks of `BLOCK_ROWS`; each process reads its own shards. The row of a bad clip is given to another clip.

    Attributes:
      n_per_epoch: rows after which every clip (or performance) has been drawn once.

    Args:
      clips: random access or streamed.
      batch_size: rows of the global batch; a process makes `batch_size / process_count` of them.
      sample_rate: Hz.
      window_s: length of the windows, seconds.
      seed: of the order and of where windows are cut, ≥ 0.
      bad: counts what could not be used.
      position: as yielded, to resume there; None starts at the beginning.
      by_performance: draw performances and a random audio variant of each, so that a performance with many
        variants does not weigh more.
      workers: decoding threads.
      prefetch: batches made ahead.
      process_index, process_count: which rows of the global batch this process makes.
      strokes_per_second: frames a second of `stroke_targets`, of which a window has
        `round(window_s * strokes_per_second)`; 0: batches have none, and the clips need not know their strokes.
      crops: evenly spaced places where a clip is cut (`crop_start`); 0: anywhere.
      speed: each clip is played faster or slower by up to this, as a tape is: strokes and pitch move together.

    Raises:
      InputError: what cannot be had; from `next` when there are too many bad clips or no strokes.
    """

    def __init__(
        self,
        clips: Clips | StreamedClips,
        *,
        batch_size: int,
        sample_rate: int,
        window_s: float,
        seed: int,
        bad: BadClips,
        position: dict[str, int] | None = None,
        by_performance: bool = False,
        workers: int = 2,
        prefetch: int = 2,
        process_index: int = 0,
        process_count: int = 1,
        strokes_per_second: int = 0,
        crops: int = 0,
        speed: float = 0.0,
    ):
        if crops < 0:
            raise InputError(f"config.data.crops is {crops}; it must be a number of places, or 0 for anywhere")
        if not 0 <= speed <= 0.5:
            raise InputError(f"config.data.speed is {speed}; it must lie in 0 … 0.5 (0.1: up to a tenth)")
        self._crops, self._speed = crops, speed
        self._clips, self._seed, self._bad, self._sample_rate = clips, seed, bad, sample_rate
        self._n_samples = _window_samples(window_s, sample_rate)
        self._n_frames, self._strokes_per_second = count_frames(window_s, strokes_per_second), strokes_per_second
        self._batch_size = batch_size
        self._rows = _rows_of_process(batch_size, process_index, process_count)
        start = position["sample"] if position else 0
        if isinstance(clips, StreamedClips):
            if by_performance:
                raise InputError("a stream cannot be drawn by performance: turn one of the two off")
            self.n_per_epoch = len(clips)
            picks = _streamed_picks(clips, seed, start // process_count, process_index, process_count)
        else:
            draw = _Draw(clips, seed, by_performance)
            self.n_per_epoch = len(draw)
            picks = draw.picks(start, batch_size, self._rows)
        self._batches = self._make(picks, start, workers, prefetch)

    def __iter__(self) -> "TrainBatches":
        return self

    def __next__(self) -> tuple[Batch, dict[str, int]]:
        return next(self._batches)

    def __enter__(self) -> "TrainBatches":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def names(self, batch: Batch, _: dict[str, int]) -> list[str]:
        """The `sample_id` of each row of a batch."""
        return self._clips.table["sample_id"].reindex(batch["clip"]).astype(str).tolist()

    def close(self) -> None:
        """Ends the threads; clips being decoded are finished first."""
        self._batches.close()

    def _make(
        self, picks: Iterator["_Pick"], start: int, workers: int, prefetch: int
    ) -> Iterator[tuple[Batch, dict[str, int]]]:
        def rows() -> Iterator[tuple[Batch, int, int, _Pick]]:
            for first in itertools.count(start, self._batch_size):
                batch = _empty_batch(len(self._rows), self._n_samples, self._n_frames)
                if self._crops:
                    batch["crop"] = np.zeros(len(self._rows), np.int32)
                for row, j in enumerate(self._rows):
                    yield batch, row, first + j, next(picks)

        with contextlib.closing(
            ordered_map(self._fill, rows(), workers, ahead=prefetch * len(self._rows) + workers)
        ) as filled:
            for done in itertools.count(1):
                for _ in self._rows:
                    batch = next(filled)
                yield batch, {"sample": start + done * self._batch_size}

    def _fill(self, task: tuple[Batch, int, int, "_Pick"]) -> Batch:
        batch, row, p, pick = task
        for attempt in range(MAX_REDRAWS):
            clip = pick(_rng(self._seed, _REDRAW, p, attempt) if attempt else None)
            try:
                wave = trim_tail(clip.waveform(self._sample_rate), self._sample_rate)
                strokes = clip.clip_strokes() if self._n_frames else None
            except BadClip as bad:
                self._bad.add(bad)
                continue
            if self._speed:
                rate = 1 + self._speed * _rng(self._seed, _SPEED, p).uniform(-1, 1)
                wave, strokes = at_speed(wave, self._sample_rate, rate), strokes and strokes.at_speed(rate)
            rng = _rng(self._seed, _CROP, p)
            if self._crops:
                batch["crop"][row] = crop = rng.integers(self._crops)
                start = crop_start(len(wave), self._n_samples, int(crop), self._crops)
            else:
                start = random_start(len(wave), self._n_samples, rng)
            window = _Window.cut(wave, start, self._n_samples, self._sample_rate, strokes)
            window.fill(batch, row, clip, self._strokes_per_second)
            return batch
        raise InputError(f"{MAX_REDRAWS} clips drawn one after another were bad; {self._bad.report()}")


# What random numbers are for: each use has its own streams.
_ORDER, _VARIANT, _CROP, _REDRAW, _SPEED = range(5)


def _rng(seed: int, purpose: int, *numbers: int) -> np.random.Generator:
    return np.random.default_rng([seed, purpose, *numbers])


@dataclasses.dataclass(frozen=True)
class _ClipOf:
    """One clip of a random-access split, with what `EncodedClip` has."""

    clips: Clips
    index: int
    label: int

    def waveform(self, sample_rate: int) -> np.ndarray:
        return self.clips.waveform(self.index, sample_rate)

    def clip_strokes(self) -> ClipStrokes:
        return self.clips.clip_strokes(self.index)


# The clip of a row; given a generator, another clip to replace it.
_Pick = Callable[[np.random.Generator | None], _ClipOf | EncodedClip]


class _Draw:
    """Which clip of a random-access split is at sample position p."""

    def __init__(self, clips: Clips, seed: int, by_performance: bool):
        self._clips, self._seed = clips, seed
        self._labels = clips.table["label"].to_numpy()
        if by_performance:
            self._variants = list(clips.table.groupby("augmentation_group_id").indices.values())  # sorted by id
        else:
            self._variants = list(np.arange(len(clips))[:, None])

    def __len__(self) -> int:
        return len(self._variants)

    def picks(self, start: int, batch_size: int, rows: range) -> Iterator[_Pick]:
        epoch, order = -1, np.zeros(0)
        for first in itertools.count(start, batch_size):
            for p in range(first + rows.start, first + rows.stop):
                if p // len(self) != epoch:
                    epoch = p // len(self)
                    order = _rng(self._seed, _ORDER, epoch).permutation(len(self))
                yield functools.partial(self._clip, p, order[p % len(self)])

    def _clip(self, p: int, performance: int, redraw: np.random.Generator | None) -> _ClipOf:
        if redraw is not None:
            index = redraw.integers(len(self._clips))
        else:
            variants = self._variants[performance]
            index = variants[0] if len(variants) == 1 else _rng(self._seed, _VARIANT, p).choice(variants)
        return _ClipOf(self._clips, int(index), int(self._labels[index]))


def _streamed_picks(
    clips: StreamedClips, seed: int, start: int, process_index: int, process_count: int
) -> Iterator[_Pick]:
    """The clips of this process in their shuffled order, from the `start`-th on.

    Only the block in which `start` lies has to be read again to resume.
    """
    n_shards = len(clips.shards)
    if n_shards < process_count:
        raise InputError(
            f"the {clips.split} split has {n_shards} files for {process_count} processes; streaming needs one for each"
        )

    def blocks() -> Iterator[list[EncodedClip]]:
        skip = start
        for epoch in itertools.count():
            shards = _rng(seed, _ORDER, epoch).permutation(n_shards)[process_index::process_count]
            n_rows = sum(clips.shards[shard].n_rows for shard in shards)
            if skip >= n_rows:
                skip -= n_rows
                continue
            first_block, offset = divmod(skip, BLOCK_ROWS)
            rows = _read_shards(clips, shards, first_block * BLOCK_ROWS)
            for block in itertools.count(first_block):
                encoded = list(itertools.islice(rows, BLOCK_ROWS))
                if not encoded:
                    break
                order = _rng(seed, _ORDER, epoch, process_index, block).permutation(len(encoded))
                yield [encoded[i] for i in order][offset:]
                offset = 0
            skip = 0

    def pick(clip: EncodedClip, block: list[EncodedClip], redraw: np.random.Generator | None) -> EncodedClip:
        return clip if redraw is None else block[redraw.integers(len(block))]

    return (functools.partial(pick, clip, block) for block in _read_ahead(blocks()) for clip in block)


def _read_shards(clips: StreamedClips, shards: Iterable[int], start: int = 0) -> Iterator[EncodedClip]:
    """The rows of several shards one after another, without reading the first `start`."""
    for shard in shards:
        n_rows = clips.shards[shard].n_rows
        if start < n_rows:
            yield from clips.read(shard, start)
        start = max(0, start - n_rows)


# ---------------------------------------------------------------------------------------------------------------------
# Evaluation
# ---------------------------------------------------------------------------------------------------------------------


def eval_batches(
    clips: Clips | StreamedClips,
    *,
    batch_size: int,
    sample_rate: int,
    window_s: float,
    bad: BadClips,
    windows: Literal["first", "padded", "all"] = "first",
    hop_s: float | None = None,
    workers: int = 2,
    prefetch: int = 2,
    process_index: int = 0,
    process_count: int = 1,
    strokes_per_second: int = 0,
) -> Iterator[Batch]:
    """Every clip exactly once, in order: its first window, or all of them (rows that share a `clip`).

    `padded` is what the length policy avoids, to test what depends on it: the clip as it is, its silent tail included,
    cut or filled up with zeros.

    The last batch is filled up with rows whose mask is False, and so is the row of a bad clip. All processes make
    the same number of batches; with `windows="all"` each has to decode every clip to know it. After a stream
    from the Hub has been read to its end, `clips.table` is complete.

    Args:
      windows: `first`, `padded` (without strokes), or `all`: evenly spaced windows that cover the clip.
      hop_s: for `all`, the windows are at most that far apart, seconds; by default half a window.
      (others): as `TrainBatches`.

    Raises:
      InputError: too many bad clips.
    """
    n_samples = _window_samples(window_s, sample_rate)
    hop = n_samples // 2 if hop_s is None else round(hop_s * sample_rate)
    rows = _rows_of_process(batch_size, process_index, process_count)
    n_frames = count_frames(window_s, strokes_per_second)

    def cut(task: tuple[int, _ClipOf | EncodedClip]) -> tuple[_ClipOf | EncodedClip, list[_Window | None]]:
        ordinal, clip = task
        if windows != "all" and ordinal % batch_size not in rows:
            return clip, [None]
        try:
            wave = clip.waveform(sample_rate)
            if windows == "padded":
                return clip, [_Window(_padded(wave, n_samples), None)]
            wave = trim_tail(wave, sample_rate)
            strokes = clip.clip_strokes() if n_frames else None
        except BadClip as error:
            bad.add(error)
            return clip, [None]
        starts = window_starts(len(wave), n_samples, hop) if windows == "all" else [0]
        return clip, [_Window.cut(wave, start, n_samples, sample_rate, strokes) for start in starts]

    if isinstance(clips, StreamedClips):
        in_order = _read_shards(clips, range(len(clips.shards)))
        blocks = iter(lambda: list(itertools.islice(in_order, STREAM_ROWS)), [])
        ordered = (clip for block in _read_ahead(blocks) for clip in block)
    else:
        ordered = (_ClipOf(clips, i, int(label)) for i, label in enumerate(clips.table["label"]))
    g = 0  # rows of global batches so far
    batch = _empty_batch(len(rows), n_samples, n_frames)
    with contextlib.closing(ordered_map(cut, enumerate(ordered), workers, prefetch * len(rows) + workers)) as results:
        for clip, cuts in results:
            for window in cuts:
                j = g % batch_size
                if window is not None and j in rows:
                    window.fill(batch, j - rows.start, clip, strokes_per_second)
                g += 1
                if g % batch_size == 0:
                    yield batch
                    batch = _empty_batch(len(rows), n_samples, n_frames)
    if g % batch_size:
        yield batch


# ---------------------------------------------------------------------------------------------------------------------
# Rows and threads
# ---------------------------------------------------------------------------------------------------------------------


def _empty_batch(n_rows: int, n_samples: int, n_frames: int) -> Batch:
    batch = {
        "waveform": np.zeros((n_rows, n_samples), np.float32),
        "label": np.zeros(n_rows, np.int32),
        "clip": np.full(n_rows, -1, np.int32),
        "mask": np.zeros(n_rows, bool),
    }
    if n_frames:
        batch["stroke_targets"] = FrameTargets(*np.zeros((4, n_rows, n_frames), np.float32))
    return batch


class _Window(NamedTuple):
    """A window of a clip by the length policy, and its strokes if they are wanted."""

    wave: np.ndarray
    strokes: ClipStrokes | None

    @classmethod
    def cut(
        cls, wave: np.ndarray, start: int, n_samples: int, sample_rate: int, strokes: ClipStrokes | None
    ) -> "_Window":
        struck = strokes.window(start, len(wave), n_samples, sample_rate) if strokes is not None else None
        return cls(loop_fill(wave, n_samples, start), struck)

    def fill(self, batch: Batch, row: int, clip: _ClipOf | EncodedClip, strokes_per_second: int) -> None:
        batch["waveform"][row] = self.wave
        batch["label"][row] = clip.label
        batch["clip"][row] = clip.index
        batch["mask"][row] = True
        if self.strokes is not None:
            n_frames = batch["stroke_targets"].onset.shape[1]
            for rows, target in zip(
                batch["stroke_targets"], place_on_frames(*self.strokes, n_frames, strokes_per_second), strict=True
            ):
                rows[row] = target


def _padded(wave: np.ndarray, n_samples: int) -> np.ndarray:
    return np.pad(wave[:n_samples], (0, max(0, n_samples - len(wave))))


def _window_samples(window_s: float, sample_rate: int) -> int:
    n_samples = round(window_s * sample_rate)
    if n_samples < 1:
        raise InputError(f"a window of {window_s} s holds no sample at {sample_rate} Hz")
    return n_samples


def _rows_of_process(batch_size: int, process_index: int, process_count: int) -> range:
    if batch_size < 1 or batch_size % process_count:
        raise InputError(f"a batch of {batch_size} rows does not divide among {process_count} processes")
    n_rows = batch_size // process_count
    return range(process_index * n_rows, (process_index + 1) * n_rows)


def ordered_map(function: Callable[[In], Out], items: Iterable[In], workers: int, ahead: int) -> Iterator[Out]:
    """`function(item)` of each item, in order, computed by threads up to `ahead` items early.

    Items are taken in the caller's thread. An exception comes out where its item's result would. Closing the
    generator drops what has not begun and waits for what has.
    """
    pending: collections.deque[Future[Out]] = collections.deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _read_ahead(blocks: Iterator[list[EncodedClip]]) -> Iterator[list[EncodedClip]]:
    """The same blocks, the next one being read by a thread meanwhile."""
    ahead = ordered_map(lambda _: next(blocks, None), itertools.count(), workers=1, ahead=1)
    with contextlib.closing(ahead):
        yield from iter(lambda: next(ahead), None)
