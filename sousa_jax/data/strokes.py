"""What was struck when in a recorded clip: SOUSA's table of strokes, and the strokes that sound in a window."""

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sousa_jax.data import layouts
from sousa_jax.data.clips import BadClip
from sousa_jax.errors import InputError

if TYPE_CHECKING:
    import fsspec

COLUMNS = ("sample_id", "actual_time_ms", "actual_velocity", "is_grace_note", "stroke_type")


class ClipStrokes(NamedTuple):
    """The strokes of one clip or window, `(S,)` each, in any order; what `frame_targets.place_on_frames` takes.

    time_s: float32, seconds from the first sample.
    velocity: float32, MIDI velocity.
    is_grace: bool, grace notes.
    is_bounce: bool, the bounces of a buzz stroke after its first.
    """

    time_s: np.ndarray
    velocity: np.ndarray
    is_grace: np.ndarray
    is_bounce: np.ndarray

    def window(self, start: int, n_clip: int, n_samples: int, sample_rate: int) -> "ClipStrokes":
        """The strokes of the window that `clips.loop_fill` cuts at `start` out of a clip of `n_clip` samples.

        Times count from the window's first sample; a stroke comes once in each round of a clip that goes in a circle.
        What is struck after the clip's end, in the tail that was trimmed, does not come.
        """
        sample = np.rint(self.time_s * np.float64(sample_rate)).astype(int)  # whole: no stroke is lost at an edge
        shift = np.arange(1 + (start + n_samples - 1) // n_clip)[:, None] * n_clip - start  # of each round
        inside = (sample < n_clip) & (sample + shift >= 0) & (sample + shift < n_samples)  # (rounds, S)
        time_s = np.maximum(self.time_s + shift / sample_rate, 0)[inside].astype(np.float32)
        return ClipStrokes(time_s, *(np.broadcast_to(column, inside.shape)[inside] for column in self[1:]))

    def at_speed(self, rate: float) -> "ClipStrokes":
        """The strokes of the clip played `rate` times as fast."""
        return self._replace(time_s=(self.time_s / rate).astype(np.float32))


class StrokeTable:
    """The strokes of a dataset's clips, by `sample_id`. The file is read whole when it is first asked for; thread-safe.

    Args:
      disk: where the file is.
      file: `auxiliary/strokes.parquet` of the Hub's layout, `labels/strokes.parquet` of the generator's.
      fetch: brings a file that is not there.
    """

    def __init__(self, disk: "fsspec.AbstractFileSystem", file: str, fetch: Callable[[], None] | None = None):
        self._disk, self._file, self._fetch = disk, file, fetch
        self._lock = threading.Lock()
        self._strokes: ClipStrokes | None = None  # of all clips, one clip after another
        self._places: dict[str, slice] = {}

    def of(self, sample_id: str) -> ClipStrokes:
        """The strokes of a clip as they sound: those with a negative time at 0, where the clip begins.

        Raises:
          BadClip: the table has no stroke of it.
          InputError: there is no such file, or it is damaged.
        """
        with self._lock:
            if self._strokes is None:
                self._read()
        if sample_id not in self._places:
            raise BadClip(sample_id, f"no strokes in {self._file}")
        return ClipStrokes(*(column[self._places[sample_id]] for column in self._strokes))

    def _read(self) -> None:
        import pyarrow.compute as pc

        with layouts.reading(self._file):
            if self._fetch and not self._disk.exists(self._file):
                self._fetch()
            if not self._disk.exists(self._file):
                raise InputError(f"{self._file} is missing; only training on strokes (strokes_per_second) needs it")
        with layouts.open_parquet(self._disk, self._file, COLUMNS) as parquet:
            table = parquet.read(columns=list(COLUMNS))
        for name in COLUMNS:
            if table[name].null_count:
                raise InputError(f"{self._file}: column {name!r} is empty in {table[name].null_count} rows")
        ids = table["sample_id"].combine_chunks().dictionary_encode()
        clip = ids.indices.to_numpy()
        order = np.argsort(clip, kind="stable")  # a clip's rows need not lie together
        ends = np.cumsum(np.bincount(clip, minlength=len(ids.dictionary)))
        is_grace = table["is_grace_note"].to_numpy()[order]
        is_buzz = pc.equal(table["stroke_type"], "buzz").to_numpy()[order]
        self._strokes = ClipStrokes(
            np.maximum(table["actual_time_ms"].to_numpy()[order] / 1000, 0).astype(np.float32),
            table["actual_velocity"].to_numpy()[order].astype(np.float32),
            is_grace & ~is_buzz,
            is_grace & is_buzz,
        )
        self._places = dict(zip(ids.dictionary.to_pylist(), map(slice, [0, *ends[:-1]], ends), strict=True))
