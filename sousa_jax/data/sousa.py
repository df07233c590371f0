"""SOUSA's clips, from wherever they are: the Hugging Face Hub or a folder.

    clips = open_clips("zkeown/sousa", "train", revision="v1.0")     random access, downloads the split
    clips = open_clips("/data/sousa", "validation")                  a folder in either layout (layouts.py)
    stream = stream_clips("zkeown/sousa", "train")                   in file order, nothing is kept on disk

Everything wrong with a dataset as a whole is an `InputError` when it is opened; what is wrong with one clip is a
`BadClip` when that clip is read.
"""

import contextlib
import dataclasses
import functools
import io
import os
import pathlib
import re
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from sousa_jax.data import layouts
from sousa_jax.data.clips import METADATA_COLUMNS, BadClip
from sousa_jax.data.layouts import Encoded, Shard
from sousa_jax.data.strokes import ClipStrokes, StrokeTable
from sousa_jax.errors import InputError

if TYPE_CHECKING:
    import pandas as pd


class SousaClips:
    """Random access to one split, a `sousa_jax.data.clips.Clips`.

    `resolved_revision` is the Hub's commit sha, None for a folder. Decoding is done anew at each access
    and without a lock, so that threads decode in parallel.
    """

    def __init__(
        self,
        split: str,
        table: "pd.DataFrame",
        fingerprint: str,
        encoded: Callable[[int], Encoded],
        strokes: StrokeTable,
        resolved_revision: str | None = None,
    ):
        self.split = split
        self.table = table
        self.fingerprint = fingerprint
        self.resolved_revision = resolved_revision
        self._encoded = encoded
        self._strokes = strokes
        self._sample_ids = table["sample_id"].to_numpy(object)

    def __len__(self) -> int:
        return len(self._sample_ids)

    def waveform(self, index: int, sample_rate: int) -> np.ndarray:
        """The whole clip, one channel at `sample_rate` Hz: (n,) float32. Raises `BadClip`."""
        return decode(self._encoded(index), sample_rate, self._sample_ids[index])

    def clip_strokes(self, index: int) -> ClipStrokes:
        """As `Clips.clip_strokes`; the table of strokes is read when first asked for."""
        return self._strokes.of(self._sample_ids[index])


@dataclasses.dataclass(frozen=True)
class EncodedClip:
    """One row of a stream. `index` counts the split's rows in file order, `label` is the class id."""

    index: int
    sample_id: str
    label: int
    encoded: Encoded
    strokes: StrokeTable | None  # None where nobody is to ask for strokes

    def waveform(self, sample_rate: int) -> np.ndarray:
        """As `Clips.waveform`."""
        return decode(self.encoded, sample_rate, self.sample_id)

    def clip_strokes(self) -> ClipStrokes:
        """As `Clips.clip_strokes`."""
        return self.strokes.of(self.sample_id)


class StreamedClips:
    """One split read shard by shard, at most `layouts.STREAM_ROWS` encoded clips at a time.

    `table` is complete at once for a folder, whose labels are read without the audio; from the Hub it holds
    the rows that were read so far. Either way its index is `EncodedClip.index`.
    """

    def __init__(
        self,
        split: str,
        fingerprint: str,
        shards: list[Shard],
        table: "pd.DataFrame | None" = None,
        strokes: StrokeTable | None = None,
        resolved_revision: str | None = None,
    ):
        self.split = split
        self.fingerprint = fingerprint
        self.shards = shards
        self.resolved_revision = resolved_revision
        self._offsets = np.concatenate([[0], np.cumsum([shard.n_rows for shard in shards])]).astype(int)
        self._whole_table = table
        self._strokes = strokes
        self._pieces: dict[int, pd.DataFrame] = {}  # by the index of their first row

    def __len__(self) -> int:
        return int(self._offsets[-1])

    @property
    def table(self) -> "pd.DataFrame":
        """As `Clips.table`, as far as it is known."""
        import pandas as pd

        if self._whole_table is not None:
            return self._whole_table
        pieces = list(self._pieces.values())  # a copy: a reader may add one meanwhile
        if not pieces:
            return pd.DataFrame(columns=[*METADATA_COLUMNS, "label"])
        table = pd.concat(pieces)
        return table[~table.index.duplicated()].sort_index()

    def read(self, shard: int, start: int = 0) -> Iterator[EncodedClip]:
        """The clips of one shard in file order, from its row `start` on."""
        first = int(self._offsets[shard]) + start
        for metadata, encoded in self.shards[shard].rows(start):
            metadata = layouts.labelled(metadata, self.shards[shard].name)
            metadata.index = range(first, first + len(metadata))
            if self._whole_table is None:
                self._pieces.setdefault(first, metadata)
            for index, sample_id, label, audio in zip(
                metadata.index, metadata["sample_id"], metadata["label"], encoded, strict=True
            ):
                yield EncodedClip(index, sample_id, int(label), audio, self._strokes)
            first += len(metadata)


def open_clips(path: str | pathlib.Path, split: str, *, revision: str | None = None) -> SousaClips:
    """One split of SOUSA with random access.

    Args:
      path: a folder in the Hub's or the generator's layout, or a Hub id `owner/name`.
      split: train, validation (or val) or test.
      revision: branch, tag or commit of a Hub id; a full commit sha needs no network once downloaded.

    Raises:
      InputError: nothing usable there; the message says what was found and what was expected.
    """
    split, sha, fetch_strokes = split_name(split), None, None
    if _is_hub_id(path):
        root, sha = _download(str(path), revision, split)
        fetch_strokes = functools.partial(_download_strokes, str(path), sha)
    else:
        root = _folder(path, revision)
    if layouts.is_generator_layout(root):
        table, files, fingerprint = layouts.read_generator_layout(root, split)
        return SousaClips(split, table, fingerprint, files.__getitem__, _strokes_of_generator(root))
    table, files, fingerprint = layouts.read_hub_layout(root, split)
    audio = layouts.load_audio(files)
    if len(audio) != len(table):
        raise InputError(f"{root}: {len(audio)} clips but {len(table)} labels; has a file changed meanwhile?")
    return SousaClips(
        split,
        table,
        layouts.digest([path, sha]) if sha else fingerprint,
        lambda i: (audio[i]["audio"] or {}).get("bytes"),
        StrokeTable(layouts.local_disk(), str(root / layouts.STROKES_OF_HUB), fetch_strokes),
        sha,
    )


def stream_clips(path: str | pathlib.Path, split: str, *, revision: str | None = None) -> StreamedClips:
    """One split of SOUSA in file order, never in memory as a whole and never copied to disk.

    Arguments and errors as `open_clips`. From the Hub nothing but the files' footers is read here.
    """
    split = split_name(split)
    if _is_hub_id(path):
        import huggingface_hub

        sha = _resolve(str(path), revision)
        hub, root = huggingface_hub.HfFileSystem(), f"datasets/{path}@{sha}"
        with layouts.reading(f"Hub dataset {path}"):
            files = layouts.shard_files(hub, root, "audio", split)
            layouts.refuse_shared_performances(root, layouts.performances(hub, root, "labels_only"))
            shards = layouts.parquet_shards(hub, files)
        strokes = StrokeTable(hub, f"{root}/{layouts.STROKES_OF_HUB}")
        return StreamedClips(split, layouts.digest([path, sha]), shards, strokes=strokes, resolved_revision=sha)
    root = _folder(path, revision)
    if layouts.is_generator_layout(root):
        table, files, fingerprint = layouts.read_generator_layout(root, split)
        return StreamedClips(split, fingerprint, layouts.file_shards(table, files), table, _strokes_of_generator(root))
    table, files, fingerprint = layouts.read_hub_layout(root, split)
    disk = layouts.local_disk()
    strokes = StrokeTable(disk, str(root / layouts.STROKES_OF_HUB))
    return StreamedClips(split, fingerprint, layouts.parquet_shards(disk, files), table, strokes)


def decode(encoded: Encoded, sample_rate: int, sample_id: str) -> np.ndarray:
    """An audio file as one channel at `sample_rate` Hz: (n,) float32, n ≥ 1, finite.

    Channels are averaged, then resampled by soxr at its HQ setting. The C libraries release the
    interpreter's lock.

    Raises:
      BadClip: nothing there, not audio, cut short, empty, or not finite.
    """
    import soundfile
    import soxr

    if encoded is None:
        raise BadClip(sample_id, "the row holds no audio")
    try:
        file = _memory_file.hold(encoded) if isinstance(encoded, bytes) else encoded
        with soundfile.SoundFile(file, closefd=False) as audio:
            rate_hz, n_declared = audio.samplerate, audio.frames
            channels = audio.read(dtype="float32", always_2d=True)  # (n, channels)
    except (soundfile.SoundFileError, OSError) as error:
        raise BadClip(sample_id, layouts.one_line(error)) from error
    if len(channels) < n_declared:
        raise BadClip(sample_id, f"ends after {len(channels)} of {n_declared} samples")
    n_channels = channels.shape[1]
    mono = channels @ np.full(n_channels, 1 / n_channels, np.float32)  # 25 times faster than mean(axis=1)
    wave = soxr.resample(mono, rate_hz, sample_rate, quality="HQ")
    if len(wave) == 0:
        raise BadClip(sample_id, f"empty: {len(mono)} samples")
    if not np.isfinite(wave).all():
        raise BadClip(sample_id, "has samples that are not finite")
    return wave


class _MemoryFile(threading.local):
    """A nameless file in memory, one a thread, that each clip overwrites: what libsndfile reads a clip from.

    Python's own `BytesIO` asks for the interpreter's lock at each of 160 reads a clip; while the main thread
    computes, a five-second clip then takes 1.1 s instead of 0.04 s.
    """

    descriptor, process = -1, -1

    def hold(self, content: bytes) -> int | io.BytesIO:
        if not hasattr(os, "memfd_create"):  # Linux has it
            return io.BytesIO(content)
        if self.process != os.getpid():  # a forked process must not share its parent's
            self.descriptor, self.process = os.memfd_create("clip"), os.getpid()
            weakref.finalize(threading.current_thread(), os.close, self.descriptor)
        os.pwrite(self.descriptor, content, 0)
        os.ftruncate(self.descriptor, len(content))
        os.lseek(self.descriptor, 0, os.SEEK_SET)
        return self.descriptor


_memory_file = _MemoryFile()


def split_name(name: str) -> str:
    """train, validation or test; the generator's `val` is validation. `InputError` for any other name."""
    name = {"val": "validation"}.get(name, name)
    if name not in layouts.SPLITS:
        raise InputError(f"unknown split {name!r}; expected one of {', '.join(layouts.SPLITS)}")
    return name


# ---------------------------------------------------------------------------------------------------------------------
# Folders and the Hub
# ---------------------------------------------------------------------------------------------------------------------


def _is_hub_id(path: str | pathlib.Path) -> bool:
    return not os.path.exists(path) and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(path)) is not None


def _folder(path: str | pathlib.Path, revision: str | None) -> pathlib.Path:
    if not os.path.isdir(path):
        found = "a file" if os.path.exists(path) else "nothing there"
        raise InputError(f"{path}: {found}; expected a folder with SOUSA clips or a Hub id owner/name")
    if revision is not None:
        raise InputError(f"{path} is a folder and has no revision {revision!r}; leave the revision out")
    return pathlib.Path(path)


def _strokes_of_generator(root: pathlib.Path) -> StrokeTable:
    return StrokeTable(layouts.local_disk(), str(root / layouts.STROKES_OF_GENERATOR))


def _resolve(hub_id: str, revision: str | None) -> str:
    """The commit sha of a revision, asked from the Hub once, without retries."""
    import huggingface_hub
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        return huggingface_hub.HfApi().dataset_info(hub_id, revision=revision, timeout=10).sha
    except RevisionNotFoundError:
        raise InputError(f"Hub dataset {hub_id} has no revision {revision!r}") from None
    except RepositoryNotFoundError:
        raise InputError(f"{hub_id}: no such folder, and no such dataset on the Hub (or no access to it)") from None
    except Exception as error:  # whatever the HTTP library of the day raises
        raise InputError(
            f"{hub_id}: no such folder, and the Hub cannot be reached ({layouts.one_line(error)}); give a folder, or "
            "the full commit sha of a revision that was downloaded before"
        ) from error


def _download(hub_id: str, revision: str | None, split: str) -> tuple[pathlib.Path, str]:
    """One split of the Hub's dataset as a folder in the Hub's layout, kept in the Hub's cache, and its commit sha."""
    import huggingface_hub

    wanted = [f"audio/{split}-*.parquet", "labels_only/*.parquet"]  # the labels tell which performances others have
    download = functools.partial(huggingface_hub.snapshot_download, hub_id, repo_type="dataset", allow_patterns=wanted)
    if revision and re.fullmatch(r"[0-9a-f]{40}", revision):  # a commit does not change: what is here will do
        with contextlib.suppress(Exception):
            root = download(revision=revision, local_files_only=True)
            layouts.shard_files(layouts.local_disk(), root, "audio", split)  # raises if not all of it is here
            return pathlib.Path(root), revision
    sha = _resolve(hub_id, revision)
    with layouts.reading(f"Hub dataset {hub_id}"):
        return pathlib.Path(download(revision=sha)), sha


def _download_strokes(hub_id: str, sha: str) -> None:
    """The table of strokes into the folder in which `_download` has put that commit."""
    import huggingface_hub

    wanted = [layouts.STROKES_OF_HUB]
    huggingface_hub.snapshot_download(hub_id, repo_type="dataset", revision=sha, allow_patterns=wanted)
