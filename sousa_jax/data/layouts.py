"""The two layouts of a folder with SOUSA, and what has to hold in both.

The Hub's has the audio inside parquet files, `audio/{split}-00000-of-00001.parquet`; the one that the dataset's
generator leaves behind has `labels/samples.parquet`, `splits.json` and one FLAC file a clip. Labels are read
without touching the audio. Class ids come from `sousa_jax.rudiments`, never from the order of the data.
"""

import contextlib
import dataclasses
import functools
import glob
import hashlib
import itertools
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from sousa_jax.data.clips import METADATA_COLUMNS
from sousa_jax.errors import InputError, nearest
from sousa_jax.rudiments import CLASS_IDS, by_slug

if TYPE_CHECKING:
    import datasets
    import fsspec
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

SPLITS = ("train", "validation", "test")
STROKES_OF_HUB, STROKES_OF_GENERATOR = "auxiliary/strokes.parquet", "labels/strokes.parquet"
STREAM_ROWS = 32  # encoded clips in memory per read: 32 MB of SOUSA

Encoded = bytes | pathlib.Path | None  # a clip's file, its content, or nothing where the data has none


@dataclasses.dataclass(frozen=True)
class Shard:
    """A run of rows that can be read on its own: `rows(start)` yields `(metadata, encoded)` pieces, `metadata`
    a DataFrame and `encoded` the list of its rows' audio, from row `start` of the shard on."""

    name: str
    n_rows: int
    rows: Callable[[int], "Iterator[tuple[pd.DataFrame, list[Encoded]]]"]


# ---------------------------------------------------------------------------------------------------------------------
# Labels
# ---------------------------------------------------------------------------------------------------------------------


def labelled(metadata: "pd.DataFrame", where: str) -> "pd.DataFrame":
    """A copy with the column `label` (int32). `InputError` for a row without id or label, or an unknown slug."""
    for column in ("sample_id", "rudiment_slug", "augmentation_group_id"):
        if metadata[column].isna().any():
            row = int(metadata[column].isna().to_numpy().argmax())
            raise InputError(f"{where}: row {row} has no {column}")
    for slug in metadata["rudiment_slug"].unique():
        try:
            by_slug(slug)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
    return metadata.assign(label=metadata["rudiment_slug"].map(CLASS_IDS).astype(np.int32))


def _whole_table(tables: list["pa.Table"], where: str) -> "pd.DataFrame":
    import pyarrow as pa

    # A column that is empty in one file has arrow's type `null` there and its true type in the next file.
    table = labelled(pa.concat_tables(tables, promote_options="permissive").to_pandas(), where)
    twice = table["sample_id"].duplicated()
    if twice.any():
        raise InputError(f"{where}: sample_id {table['sample_id'][twice].iloc[0]!r} occurs more than once")
    return table


def refuse_shared_performances(where: str | pathlib.Path, performances: dict[str, set[str]]) -> None:
    """The audio variants of one performance are near-duplicates: in two splits they make a test worthless."""
    for a, b in itertools.combinations(performances, 2):
        if shared := performances[a] & performances[b]:
            raise InputError(
                f"{where}: {len(shared)} performances are both in {a} and in {b}, {min(shared)!r} for one; "
                "no augmentation_group_id may be in two splits"
            )


def digest(parts: Iterable[Any]) -> str:
    """16 hex digits that stand for all the parts."""
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:16]


def _folder_fingerprint(table: "pd.DataFrame", sizes: Iterable[tuple[str, int]]) -> str:
    labels = sorted(zip(table["sample_id"], table["label"], strict=True))
    return digest([*labels, *sorted(sizes)])


# ---------------------------------------------------------------------------------------------------------------------
# The Hub's layout: audio/{split}-00000-of-00001.parquet
# ---------------------------------------------------------------------------------------------------------------------


def read_hub_layout(root: pathlib.Path, split: str) -> tuple["pd.DataFrame", list[str], str]:
    """Table, files and fingerprint of a folder; no audio is read."""
    disk = local_disk()
    files = shard_files(disk, str(root), "audio", split)
    tables = []
    for file in files:
        with open_parquet(disk, file) as parquet:
            tables.append(parquet.read(columns=list(METADATA_COLUMNS)))
    table = _whole_table(tables, str(root))
    if table.empty:
        raise InputError(f"{root}: the {split} split has no rows")
    others = {**performances(disk, str(root), "labels_only"), **performances(disk, str(root), "audio")}
    refuse_shared_performances(root, {**others, split: set(table["augmentation_group_id"])})
    return table, files, _folder_fingerprint(table, ((os.path.basename(f), os.path.getsize(f)) for f in files))


def shard_files(disk: "fsspec.AbstractFileSystem", root: str, config: str, split: str) -> list[str]:
    """The parquet files of one split in their order; `InputError` if there are none or one is missing."""
    try:
        names = sorted(name for name in disk.ls(f"{root}/{config}", detail=False) if name.endswith(".parquet"))
    except (FileNotFoundError, NotADirectoryError):
        names = []
    files = [name for name in names if os.path.basename(name).startswith(f"{split}-")]
    if not names:
        raise InputError(
            f"{root} holds no SOUSA: expected {config}/{split}-*.parquet (the Hub's layout), or "
            "labels/samples.parquet and splits.json (the generator's)"
        )
    if not files:
        found = sorted({os.path.basename(name).split("-")[0] for name in names})
        raise InputError(f"{root}/{config} has no {split} split; found {', '.join(found)}")
    declared = re.search(r"-of-(\d+)\.parquet$", files[0])
    if declared and int(declared[1]) != len(files):
        raise InputError(f"{root}/{config} has {len(files)} of the {int(declared[1])} files of {split}")
    return files


def performances(disk: "fsspec.AbstractFileSystem", root: str, config: str) -> dict[str, set[str]]:
    """The augmentation groups of each split that is there, read without the audio."""
    groups = {}
    for split in SPLITS:
        try:
            files = shard_files(disk, root, config, split)
        except InputError:
            continue
        groups[split] = set()
        for file in files:
            with open_parquet(disk, file, ("augmentation_group_id",)) as parquet:
                groups[split].update(parquet.read(["augmentation_group_id"]).column(0).to_pylist())
    return groups


def load_audio(files: list[str]) -> "datasets.Dataset":
    """The encoded clips with random access, through the arrow copy that `datasets` keeps in its cache.

    A parquet file can only be read by whole row groups: 95 MB for one clip where a hundred of the Hub's
    share one. From the memory-mapped copy a clip takes 20 µs. Without disk for a copy: `stream_clips`.
    """
    import datasets

    audio = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}  # not Audio: that asks for FFmpeg
    try:
        return datasets.load_dataset(
            "parquet",
            data_files={"clips": [glob.escape(file) for file in files]},
            split="clips",
            columns=["audio"],
            features=datasets.Features(audio=audio),
            batch_size=100,
        )
    except (datasets.exceptions.DatasetGenerationError, OSError) as error:
        cause = one_line(error.__cause__ or error)
        raise InputError(f"{_first_unreadable(files)}: {cause}") from error


def _first_unreadable(files: list[str]) -> str:
    """Which file to name after a failure: the first whose audio does not read, else all."""
    for file in files:
        try:
            with open_parquet(local_disk(), file) as parquet:
                for _ in parquet.iter_batches(STREAM_ROWS, columns=["audio"]):
                    pass
        except InputError:
            return file
    return ", ".join(files)


def parquet_shards(disk: "fsspec.AbstractFileSystem", files: list[str]) -> list[Shard]:
    """One shard a file; only the footers are read."""

    def shard(file: str) -> Shard:
        with open_parquet(disk, file) as parquet:
            return Shard(file, parquet.metadata.num_rows, functools.partial(_parquet_rows, disk, file))

    with ThreadPoolExecutor(16) as pool:  # on the Hub a footer takes two round trips
        return list(pool.map(shard, files))


def _parquet_rows(
    disk: "fsspec.AbstractFileSystem", file: str, start: int
) -> Iterator[tuple["pd.DataFrame", list[Encoded]]]:
    """The rows of one file from `start` on. Row groups before it are skipped unread, which makes resuming cheap."""
    with open_parquet(disk, file) as parquet:
        group, n_groups = 0, parquet.num_row_groups
        while group < n_groups and start >= parquet.metadata.row_group(group).num_rows:
            start -= parquet.metadata.row_group(group).num_rows
            group += 1
        columns = [*METADATA_COLUMNS, "audio"]
        for batch in parquet.iter_batches(STREAM_ROWS, row_groups=list(range(group, n_groups)), columns=columns):
            if start >= len(batch):
                start -= len(batch)
                continue
            batch, start = batch.slice(start), 0
            audio = batch.column("audio").field("bytes").to_pylist()
            yield batch.select(list(METADATA_COLUMNS)).to_pandas(), audio


@contextlib.contextmanager
def open_parquet(
    disk: "fsspec.AbstractFileSystem", file: str, columns: tuple[str, ...] = (*METADATA_COLUMNS, "audio")
) -> Iterator["pq.ParquetFile"]:
    """The file, read with little memory; `InputError` naming it if it is damaged or lacks one of `columns`."""
    import pyarrow.parquet as pq

    with reading(file):
        # A buffer makes arrow read a column as it goes instead of a whole row group at once.
        with pq.ParquetFile(file, filesystem=disk, buffer_size=1 << 20, pre_buffer=False) as parquet:
            _check_columns(file, parquet.schema_arrow, columns)
            yield parquet


def _check_columns(file: str, schema: "pa.Schema", columns: Iterable[str]) -> None:
    import pyarrow as pa

    for column in columns:
        if column not in schema.names:
            near = nearest(column, schema.names)
            raise InputError(f"{file} has no column {column!r}" + (f"; did {near} mean that?" if near else ""))
    if "audio" in columns:
        kind = schema.field("audio").type
        if not (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0):
            raise InputError(f"{file}: column 'audio' is {kind}, expected struct<bytes: binary, path: string>")


# ---------------------------------------------------------------------------------------------------------------------
# The generator's layout: labels/samples.parquet, splits.json, audio/{slug}/{sample_id}.flac
# ---------------------------------------------------------------------------------------------------------------------


def is_generator_layout(root: pathlib.Path) -> bool:
    """Whether the folder is the generator's; otherwise it should be in the Hub's layout."""
    return (root / "labels" / "samples.parquet").exists()


def read_generator_layout(root: pathlib.Path, split: str) -> tuple["pd.DataFrame", list[pathlib.Path | None], str]:
    """Table, one audio file a row (None where the table names none), and fingerprint."""
    samples = str(root / "labels" / "samples.parquet")
    columns = (*METADATA_COLUMNS, "audio_path")
    with open_parquet(local_disk(), samples, columns) as parquet:
        rows = parquet.read(columns=list(columns))
    everything = _whole_table([rows], samples)
    with reading(f"{root}/splits.json (expected: train_, val_ and test_profile_ids)"):
        players = json.loads((root / "splits.json").read_text("utf-8"))
        players = {name: players[f"{'val' if name == 'validation' else name}_profile_ids"] for name in SPLITS}
    by_split = {name: everything[everything["profile_id"].isin(ids)] for name, ids in players.items()}
    refuse_shared_performances(root, {name: set(rows["augmentation_group_id"]) for name, rows in by_split.items()})
    table = by_split[split].reset_index(drop=True)
    if table.empty:
        raise InputError(
            f"{root}: the {split} split has no rows; splits.json gives it {len(players[split])} players, "
            f"samples.parquet has clips of {everything['profile_id'].nunique()} players"
        )
    files = [_inside(root, path, samples) for path in table.pop("audio_path")]
    sizes = ((str(file.relative_to(root)), file.stat().st_size) for file in files if file and file.exists())
    return table, files, _folder_fingerprint(table, sizes)


def _inside(root: pathlib.Path, audio_path: str | None, where: str) -> pathlib.Path | None:
    """`root / audio_path`; `InputError` if a dataset points at files that are not its own."""
    if not isinstance(audio_path, str):
        return None
    path = pathlib.PurePosixPath(audio_path)
    if path.is_absolute() or ".." in path.parts:
        raise InputError(f"{where}: audio_path {audio_path!r} leaves the dataset's folder")
    return root / path


def file_shards(table: "pd.DataFrame", files: list[pathlib.Path | None], n_rows: int = 256) -> list[Shard]:
    """Runs of `n_rows` rows of the table, each with its clip's file."""

    def rows(first: int, last: int, start: int) -> Iterator[tuple["pd.DataFrame", list[Encoded]]]:
        for at in range(first + start, last, STREAM_ROWS):
            piece = slice(at, min(at + STREAM_ROWS, last))
            yield table.iloc[piece], list(files[piece])

    bounds = [(first, min(first + n_rows, len(table))) for first in range(0, len(table), n_rows)]
    return [Shard(f"rows {a} to {b}", b - a, functools.partial(rows, a, b)) for a, b in bounds]


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


def local_disk() -> "fsspec.AbstractFileSystem":
    """This machine's files, behind the interface that the Hub's have too."""
    import fsspec

    return fsspec.filesystem("file")


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Arrow, the file system and the HTTP library each have their own errors: here they become one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{what} cannot be read: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """An error's type and text without line breaks, at most 200 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
