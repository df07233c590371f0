"""Decoded and resampled clips on disk, so that an epoch costs reading instead of decoding.

    clips = CachedClips(clips, 32_000, cache_dir, workers=8)      builds it, or finds it

One folder a split and rate, `{fingerprint}-{split}-{rate}/`: all samples one after another in `samples.int16`, where
each clip lies and how loud it is in `clips.npz`, the bad clips in `manifest.json`. Samples are int16 in units of
the clip's own peak / 32767, so that nothing clips and the error is at most peak / 65534 (-96 dB) plus float32
rounding. The folder gets its name only when it is complete.
"""

import contextlib
import errno
import json
import logging
import os
import pathlib
import shutil
import tempfile
import zipfile
from collections.abc import Iterator

import numpy as np

from sousa_jax.data.clips import BadClip, Clips
from sousa_jax.data.pipeline import ordered_map
from sousa_jax.data.strokes import ClipStrokes
from sousa_jax.errors import InputError

log = logging.getLogger(__name__)

_FORMAT = 1  # of the files; raised whenever they change
_INT16_MAX = 32767


class CachedClips:
    """The same clips at one sample rate, read from a cache; a `sousa_jax.data.clips.Clips`.

    Builders at the same time do not disturb one another: each has its own temporary folder, and the first to
    finish wins. A build that is killed leaves a folder `.{key}.*.tmp`, which nothing reads.

    Args:
      clips: what to cache.
      sample_rate: Hz, the only rate that can be read.
      cache_dir: where caches are kept; made if need be.
      workers: decoding threads of the build.

    Raises:
      InputError: the disk has no room, `cache_dir` cannot be written, or the cache found there is damaged.
    """

    def __init__(self, clips: Clips, sample_rate: int, cache_dir: str | pathlib.Path, workers: int = 2):
        self.fingerprint = clips.fingerprint
        self.split = clips.split
        self.table = clips.table
        self._clips = clips
        self.sample_rate = sample_rate
        folder = pathlib.Path(cache_dir) / f"{clips.fingerprint}-{clips.split}-{sample_rate}"
        if not folder.exists():
            _build(clips, sample_rate, folder, workers)
        self._open(folder)

    def _open(self, folder: pathlib.Path) -> None:
        try:
            manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
            index = np.load(folder / "clips.npz")
            self._ends, self._units = index["ends"], index["units"]
            self._samples = np.memmap(folder / "samples.int16", np.int16, mode="r")
            whole = manifest["format"] == _FORMAT and len(self._samples) == self._ends[-1]
            if not whole or len(self._ends) != len(self.table):
                raise ValueError(f"{len(self._samples)} samples of {len(self._ends)} clips")
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise InputError(f"the cache {folder} is damaged ({error}): delete it, and it is built again") from error
        self._bad: dict[str, str] = manifest["bad"]

    def __len__(self) -> int:
        return len(self._ends)

    def waveform(self, index: int, sample_rate: int) -> np.ndarray:
        """The whole clip: (n,) float32. Raises `BadClip` for what was bad when the cache was built."""
        if sample_rate != self.sample_rate:
            raise ValueError(f"cached at {self.sample_rate} Hz, asked for {sample_rate} Hz")
        start, end = self._ends[index - 1] if index else 0, self._ends[index]
        if start == end:
            sample_id = self.table["sample_id"].iloc[index]
            raise BadClip(sample_id, self._bad[sample_id])
        return self._samples[start:end] * self._units[index]

    def clip_strokes(self, index: int) -> ClipStrokes:
        """As `Clips.clip_strokes`; strokes are not part of the cache."""
        return self._clips.clip_strokes(index)


def _build(clips: Clips, sample_rate: int, folder: pathlib.Path, workers: int) -> None:
    needed = round(2 * sample_rate * (clips.table["duration_sec"] + 0.5).sum())  # clips ring for half a second more
    with _room_on_disk(folder, needed):
        folder.parent.mkdir(parents=True, exist_ok=True)
        if needed > shutil.disk_usage(folder.parent).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        unfinished = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
        try:
            n_bytes = _write(clips, sample_rate, unfinished, workers)
            unfinished.chmod(0o755)  # mkdtemp's are for one user only
            try:
                unfinished.rename(folder)
            except OSError:
                if not folder.exists():  # otherwise another builder was first: its cache is as good
                    raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    log.info("cache %s: %d clips, %.2f GB", folder, len(clips), n_bytes / 1e9)


def _write(clips: Clips, sample_rate: int, folder: pathlib.Path, workers: int) -> int:
    """Writes the three files of a cache. Returns the bytes of the samples."""
    import tqdm

    def encode(index: int) -> tuple[np.ndarray, float] | BadClip:
        try:
            wave = clips.waveform(index, sample_rate)
        except BadClip as bad:
            return bad
        unit = np.float32(np.abs(wave).max() / _INT16_MAX) or np.float32(1)  # a silent clip has no peak
        return np.rint(wave / unit).astype(np.int16), unit

    ends, units, bad = np.zeros(len(clips), np.int64), np.zeros(len(clips), np.float32), {}
    n_samples = 0
    with (
        open(folder / "samples.int16", "wb") as file,
        contextlib.closing(ordered_map(encode, range(len(clips)), workers, ahead=8 * workers)) as encoded,
    ):
        progress = tqdm.tqdm(encoded, f"caching {clips.split}", len(clips), unit="clip", disable=None)
        for index, clip in enumerate(progress):
            if isinstance(clip, BadClip):
                bad[clip.sample_id] = clip.reason
            else:
                samples, units[index] = clip
                file.write(samples.data)
                n_samples += len(samples)
            ends[index] = n_samples
        file.flush()
        os.fsync(file.fileno())  # the folder's new name must not reach the disk before the samples do
    np.savez(folder / "clips.npz", ends=ends, units=units)
    manifest = {"format": _FORMAT, "fingerprint": clips.fingerprint, "sample_rate": sample_rate, "bad": bad}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1), "utf-8")
    return 2 * n_samples


@contextlib.contextmanager
def _room_on_disk(folder: pathlib.Path, needed: int) -> Iterator[None]:
    """What the operating system says of a disk, as one line that says what to do."""
    try:
        yield
    except OSError as error:
        where = folder.parent
        if error.errno != errno.ENOSPC:
            raise InputError(f"the cache folder {where} cannot be written: {error}") from error
        free = shutil.disk_usage(where).free
        raise InputError(
            f"no room for the cache in {where}: it needs about {needed} bytes, {free} are free; "
            "give another folder or go without a cache"
        ) from error
