"""Writes clips as a folder in the layout of SOUSA's Hub repository, with all of its columns.

    write_hub_folder(out, {"train": clips, "test": others}, sample_rate=44_100, description="synth, seed 0")
    datasets.load_dataset(str(out))                                        or "midi_only", "labels_only"
    sousa_jax.data.sousa.open_clips(out, "train")

A hundred clips are in memory at a time. The folder appears under its name when it is complete.
"""

import collections
import contextlib
import dataclasses
import io
import itertools
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from sousa_jax.data.layouts import SPLITS
from sousa_jax.data.synth.strokes import ACCENT, BUZZ, GRACE, KINDS, LEFT, Strokes
from sousa_jax.errors import InputError
from sousa_jax.rudiments import FAMILIES, STROKE_TYPES, by_slug

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

NOVICES = ("beginner", "intermediate")
CONFIGS = ("audio", "midi_only", "labels_only")  # the first is the default
ROW_GROUP = 100  # rows written at a time, and what a reader of one clip has to read; as on the Hub
SILENCE_S = 0.5  # `duration_sec` is this much more than the time of the last stroke
TICKS_PER_BEAT, SNARE = 480, 38
LENGTHS = 64  # the scores are compiled for each length of the arrays: multiples of this only

# The tables' columns in SOUSA's order, each after its type. Whole numbers that can be missing are floats there.
METADATA = """string sample_id profile_id rudiment_slug int64 tempo_bpm float64 duration_sec int64 num_cycles
    string skill_tier skill_tier_binary dominant_hand int64 num_strokes num_measures string soundfont
    augmentation_preset augmentation_group_id aug_soundfont aug_room_type float64 aug_room_wet_dry aug_mic_distance
    string aug_mic_type float64 aug_compression_ratio aug_noise_level_db null aug_bit_depth aug_sample_rate"""
STROKES = """int64 index string hand stroke_type float64 intended_time_ms actual_time_ms timing_error_ms
    int64 intended_velocity actual_velocity velocity_error bool is_grace_note is_accent
    float64 diddle_position flam_spacing_ms parent_stroke_index buzz_count string sample_id"""
MEASURES = """int64 index stroke_start stroke_end float64 timing_mean_error_ms timing_std_ms timing_max_error_ms
    velocity_mean velocity_std velocity_consistency lr_velocity_ratio lr_timing_diff_ms string sample_id"""

# What the caller says of a clip. The compression ratio and the noise level are NaN where that stage is off.
CALLERS = """sample_id profile_id rudiment_slug tempo_bpm num_cycles skill_tier dominant_hand soundfont
    augmentation_preset augmentation_group_id aug_room_type aug_room_wet_dry aug_mic_distance aug_mic_type
    aug_compression_ratio aug_noise_level_db"""
ROW_COLUMNS = frozenset(CALLERS.split())


@dataclasses.dataclass(frozen=True)
class ExportClip:
    """Metadata with the keys `ROW_COLUMNS` (others are ignored), strokes as NumPy arrays of (S,), valid ones first, and
    a waveform (n,) float32 of one channel, which is clipped to ±1."""

    row: dict[str, Any]
    strokes: Strokes
    waveform: np.ndarray


def write_hub_folder(
    out: pathlib.Path,
    splits: dict[str, Iterable[ExportClip]],
    *,
    sample_rate: int,
    description: str,
    rows_per_shard: int = 1000,
    progress: Callable[[int], object] | None = None,
) -> None:
    """Writes the folder `out`. Nothing is left behind if this is interrupted.

    Args:
      out: the folder; it must not exist, or be empty.
      splits: for some of train, validation and test, its clips; a split without any gets no file.
      sample_rate: of all waveforms, in Hz.
      description: what made the clips, with the command and the seed; it goes into README.md.
      rows_per_shard: clips in a file, the last file of a split excepted.
      progress: called with how many more clips were written, such as the `update` of a progress bar.

    Raises:
      InputError: something is in the way at `out`, a split has another name, or there is no clip at all.
      ValueError: a clip is not what `ExportClip` says, or its `sample_id` is used twice or no good as a file name.
    """
    out = pathlib.Path(out).absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        found = "not empty" if out.is_dir() else "a file"
        raise InputError(f"{out} is {found}; expected a new or empty folder; choose another one or remove it first")
    if unknown := splits.keys() - set(SPLITS):
        raise InputError(f"unknown split {min(unknown)!r}; expected some of {', '.join(SPLITS)}")
    out.parent.mkdir(parents=True, exist_ok=True)
    counts, seen = collections.Counter(), set()
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temporary:
        folder = pathlib.Path(temporary) / out.name  # not the temporary folder itself, which others may not read
        with contextlib.ExitStack() as files:
            strokes = files.enter_context(_parquet(folder / "auxiliary/strokes.parquet", arrow_schema(STROKES)))
            measures = files.enter_context(_parquet(folder / "auxiliary/measures.parquet", arrow_schema(MEASURES)))
            for split, clips in splits.items():
                checked = (_checked(clip, seen) for clip in clips)
                written = _write_split(folder, split, checked, rows_per_shard, sample_rate)
                for group in files.enter_context(contextlib.closing(written)):
                    _write(strokes, [row for clip in group for row in stroke_rows(clip)])
                    _write(measures, [row for clip in group for row in measure_rows(clip)])
                    counts[split] += len(group)
                    if progress:
                        progress(len(group))
        if not counts:
            raise InputError(f"there are no clips to write into {out}; expected at least one; ask for some")
        (folder / "README.md").write_text(_readme(counts, sample_rate, description), "utf-8")
        folder.replace(out)


def _write_split(
    folder: pathlib.Path, split: str, clips: Iterable[ExportClip], rows_per_shard: int, sample_rate: int
) -> Iterator[list[ExportClip]]:
    """Writes the three configs of one split, and yields the clips as they are written, `ROW_GROUP` at a time."""
    shards = 0
    for shard, numbered in itertools.groupby(enumerate(clips), lambda pair: pair[0] // rows_per_shard):
        shards = shard + 1
        with contextlib.ExitStack() as files:
            name = f"{split}-{shard:05d}.parquet"
            opened = (_parquet(folder / config / name, hub_features(config).arrow_schema) for config in CONFIGS)
            writers = [files.enter_context(writer) for writer in opened]
            while group := [clip for _, clip in itertools.islice(numbered, ROW_GROUP)]:
                rows = _rows(group, sample_rate)
                for writer in writers:
                    _write(writer, rows)
                yield group
    for config, shard in itertools.product(CONFIGS, range(shards)):  # only now is it known how many there are
        path = folder / config / f"{split}-{shard:05d}.parquet"
        path.rename(path.with_name(f"{path.stem}-of-{shards:05d}.parquet"))


def _checked(clip: ExportClip, seen: set[str]) -> ExportClip:
    """The clip with only its valid strokes. `ValueError` as `write_hub_folder` says."""
    if missing := ROW_COLUMNS - clip.row.keys():
        raise ValueError(f"a clip's row has no {', '.join(sorted(missing))}")
    sample_id = clip.row["sample_id"]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}", sample_id):
        raise ValueError(f"sample_id {sample_id!r} is no good as a file name")
    if sample_id in seen:
        raise ValueError(f"sample_id {sample_id!r} is used twice")
    seen.add(sample_id)
    valid, wave = np.asarray(clip.strokes.valid), clip.waveform
    count = int(valid.sum())
    if count == 0 or not valid[:count].all():
        raise ValueError(f"{sample_id}: expected at least one valid stroke, and all valid ones first")
    if np.ndim(wave) != 1 or len(wave) == 0 or not np.isfinite(wave).all():
        raise ValueError(f"{sample_id}: expected a finite waveform (n,) with n >= 1, found {np.shape(wave)}")
    return dataclasses.replace(clip, strokes=Strokes(*(np.asarray(column)[:count] for column in clip.strokes)))


def _columns(table: str) -> Iterator[tuple[str, str]]:
    """Name and type of each column of `METADATA`, `STROKES` or `MEASURES`."""
    kind = ""
    for word in table.split():
        if word in ("string", "int64", "float64", "bool", "null"):
            kind = word
        else:
            yield word, kind


def hub_features(config: str) -> "datasets.Features":
    """Columns, order and types of `audio`, `midi_only` or `labels_only`. Source: the Hub's own files."""
    from datasets import Audio, Features, Value

    from sousa_jax.data.synth.scores import SCORE_COLUMNS

    columns = [*_columns(METADATA), *((name, "float64") for name in SCORE_COLUMNS), ("midi", "binary")]
    features = {name: Value(kind) for name, kind in columns} | {"audio": Audio()}
    left_out = {"audio": (), "midi_only": ("audio",), "labels_only": ("audio", "midi")}[config]
    return Features({name: feature for name, feature in features.items() if name not in left_out})


def _rows(clips: list[ExportClip], sample_rate: int) -> list[dict[str, Any]]:
    rows = []
    for clip, scored in zip(clips, _scores(clips), strict=True):
        row, strokes = clip.row, clip.strokes
        made = {
            "duration_sec": float(strokes.time_s.max()) + SILENCE_S,
            "skill_tier_binary": "novice" if row["skill_tier"] in NOVICES else "skilled",
            "num_strokes": len(strokes.time_s),
            "num_measures": len(_measures(clip)),
            "aug_soundfont": row["soundfont"],
            "midi": midi_bytes(strokes, row["tempo_bpm"]),
            "audio": {"bytes": flac_bytes(clip.waveform, sample_rate), "path": f"{row['sample_id']}.flac"},
        }
        rows.append(row | made | scored)
    return rows


def _scores(clips: list[ExportClip]) -> list[dict[str, float]]:
    """SOUSA's scores of up to `ROW_GROUP` clips, computed together."""
    from sousa_jax.data.synth.scores import batched_scores

    longest = max(len(clip.strokes.time_s) for clip in clips)
    shape = (ROW_GROUP, -(-longest // LENGTHS) * LENGTHS)
    batch = Strokes(*(np.zeros(shape, column.dtype) for column in clips[0].strokes))
    family = np.zeros(ROW_GROUP, np.int32)
    for i, clip in enumerate(clips):
        family[i] = FAMILIES.index(by_slug(clip.row["rudiment_slug"]).family)
        for whole, column in zip(batch, clip.strokes, strict=True):
            whole[i, : len(column)] = column
    columns = {name: np.asarray(column) for name, column in batched_scores(batch, family).items()}
    return [{name: float(column[i]) for name, column in columns.items()} for i in range(len(clips))]


def flac_bytes(waveform: np.ndarray, sample_rate: int) -> bytes:
    """A FLAC file, one channel of 24 bits. `waveform` is (n,), and clipped to ±1."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, waveform, sample_rate, format="FLAC", subtype="PCM_24")
    return file.getvalue()


def midi_bytes(strokes: Strokes, tempo_bpm: float) -> bytes:
    """A standard MIDI file, type 1 as SOUSA's: one track, 480 ticks a beat, note 38 on channel 0, one tick long."""
    import mido

    tempo, events = mido.bpm2tempo(tempo_bpm), []
    for time_s, velocity in zip(strokes.time_s.tolist(), strokes.velocity.tolist(), strict=True):
        tick = mido.second2tick(time_s, TICKS_PER_BEAT, tempo)
        events += [(tick, "note_on", round(velocity)), (tick + 1, "note_off", 0)]
    track, last = mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=tempo)]), 0
    for tick, kind, velocity in sorted(events):  # at one tick `note_off` comes first
        track.append(mido.Message(kind, channel=0, note=SNARE, velocity=velocity, time=tick - last))
        last = tick
    file = io.BytesIO()
    mido.MidiFile(type=1, ticks_per_beat=TICKS_PER_BEAT, tracks=[track]).save(file=file)
    return file.getvalue()


def stroke_rows(clip: ExportClip) -> list[dict[str, Any]]:
    """One row a stroke, in the written order; times in ms.

    As in SOUSA, `index` counts all other strokes before the first bounce of a buzz stroke, `parent_stroke_index` is
    such an index, and `buzz_count` is how often a buzz stroke hits, its own hit included.
    """
    s = clip.strokes
    bounce = s.is_grace & (s.kind != GRACE)
    index = np.where(bounce, np.sum(~bounce) + np.cumsum(bounce), np.cumsum(~bounce)) - 1
    hits = 1 + np.bincount(s.parent[bounce], minlength=len(bounce))
    spacing_ms, error_ms = _timing(s)
    velocity, written = (np.rint(column).astype(int) for column in (s.velocity, s.written_velocity))
    columns = {
        "index": index,
        "hand": np.where(s.hand == LEFT, "L", "R"),
        "stroke_type": np.array([STROKE_TYPES[letter] for letter in KINDS])[s.kind],
        "intended_time_ms": 1000 * s.written_s.astype(np.float64),
        "actual_time_ms": 1000 * s.time_s.astype(np.float64),
        "timing_error_ms": error_ms,
        "intended_velocity": written,
        "actual_velocity": velocity,
        "velocity_error": velocity - written,
        "is_grace_note": s.is_grace,
        "is_accent": s.kind == ACCENT,
        "diddle_position": np.where(s.diddle > 0, s.diddle, None),
        "flam_spacing_ms": np.where(s.is_grace, spacing_ms, None),
        "parent_stroke_index": np.where(s.is_grace, index[s.parent], None),
        "buzz_count": np.where((s.kind == BUZZ) & ~bounce, hits, None),
        "sample_id": np.full(len(index), clip.row["sample_id"]),
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*(c.tolist() for c in columns.values()), strict=True)]


def _timing(strokes: Strokes) -> tuple[np.ndarray, np.ndarray]:
    """Distance to the primary and timing error as in `scores.timing_errors_ms`, (S,) float64 in ms."""
    time_ms, written_ms = (1000 * column.astype(np.float64) for column in (strokes.time_s, strokes.written_s))
    spacing_ms = time_ms[strokes.parent] - time_ms  # of no meaning without a primary
    return spacing_ms, np.where(strokes.is_grace, spacing_ms - 30, time_ms - written_ms)


def _measures(clip: ExportClip) -> list[slice]:
    """The rows of each measure: as many as one cycle is written with. A buzz roll's bounces count: it has more."""
    n, cycle = len(clip.strokes.time_s), len(by_slug(clip.row["rudiment_slug"]).strokes)
    return [slice(start, min(start + cycle, n)) for start in range(0, n, cycle)]


def measure_rows(clip: ExportClip) -> list[dict[str, Any]]:
    """One row a measure; `lr_`: of the left hand over, or minus, the right, null where a hand is missing."""
    names, rows, (_, error_ms) = [name for name, _ in _columns(MEASURES)], [], _timing(clip.strokes)
    for index, measure in enumerate(_measures(clip)):
        e, v = error_ms[measure], clip.strokes.velocity[measure].astype(np.float64)
        left = clip.strokes.hand[measure] == LEFT
        both = left.any() and not left.all()
        hands = (v[left].mean() / v[~left].mean(), e[left].mean() - e[~left].mean()) if both else (None, None)
        timing, loudness = (e.mean(), e.std(), np.abs(e).max()), (v.mean(), v.std(), 1 - v.std() / v.mean())
        row = (index, measure.start, measure.stop, *timing, *loudness, *hands, clip.row["sample_id"])
        rows.append(dict(zip(names, row, strict=True)))
    return rows


def arrow_schema(table: str) -> "pa.Schema":
    """Of `STROKES` or `MEASURES`."""
    import pyarrow as pa

    return pa.schema([(name, pa.type_for_alias(kind)) for name, kind in _columns(table)])


def _parquet(path: pathlib.Path, schema: "pa.Schema") -> "pq.ParquetWriter":
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    return pq.ParquetWriter(path, schema)


def _write(writer: "pq.ParquetWriter", rows: list[dict[str, Any]]) -> None:
    """Writes one row group; what is no column is left out, a column without value is null."""
    import pyarrow as pa

    writer.write_table(pa.Table.from_pylist(rows, schema=writer.schema))


def _readme(counts: dict[str, int], sample_rate: int, description: str) -> str:
    """README.md: the YAML that `datasets` and the Hub read, and what this is."""
    configs = ""
    for config in CONFIGS:
        configs += f"- config_name: {config}\n  default: {str(config == CONFIGS[0]).lower()}\n  data_files:\n"
        configs += "".join(f"  - split: {split}\n    path: {config}/{split}-*.parquet\n" for split in counts)
    sizes = ", ".join(f"{count:,} {split}" for split, count in counts.items())
    indented = description.replace("\n", "\n    ")  # as Markdown has code
    return f"""---
tags:
- synthetic
configs:
{configs}---

# Synthetic snare-drum rudiments

No drummer was recorded: players, performances and sounds are simulated by the synthesizer of sousa-jax
(`sousa_jax.data.synth`), after the model of the SOUSA data set (`zkeown/sousa`). No clip of SOUSA is in here.
Made by:

    {indented}

Clips: {sizes}. Audio: FLAC, one channel, 24 bits, {sample_rate:,} Hz. Columns, their order and their types are SOUSA's;
`auxiliary/` joins on `sample_id`. What differs:

* `midi` is in every row; SOUSA has it once per performance.
* `groove_feel_proxy` is a restatement that agrees with SOUSA's only roughly; the other scores follow SOUSA's formulas.
* `soundfont` and the `aug_` columns say what the synthesizer did, in SOUSA's terms; no sound bank was used.
"""
