"""An exported folder: others' programs, and our own reader, must take it for SOUSA."""

import dataclasses
import io
import pathlib
from collections.abc import Iterator

import datasets
import mido
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import soundfile

from sousa_jax.data import sousa
from sousa_jax.data.synth.export import CONFIGS, ROW_COLUMNS, ExportClip, midi_bytes, write_hub_folder
from sousa_jax.data.synth.strokes import BUZZ, GRACE, KINDS, LEFT, RIGHT, Strokes
from sousa_jax.errors import InputError
from sousa_jax.rudiments import by_slug

RATE = 8000
SLUGS = ("flam_tap", "single_paradiddle", "multiple_bounce_roll", "single_drag_tap", "five_stroke_roll", "flam")
FLOATS = ("aug_room_wet_dry", "aug_mic_distance", "aug_compression_ratio", "aug_noise_level_db")


def strokes(slug: str, seed: int) -> Strokes:
    """Two cycles of the rudiment, a few ms off; a buzz stroke has two bounces; three rows more are not valid."""
    rudiment, rng, rows = by_slug(slug), np.random.default_rng(seed), []
    length = len(rudiment.strokes)
    graces = {g.slot: g.primary - g.slot for g in rudiment.graces}
    diddles = 0
    for i in range(2 * length):
        kind, slot = KINDS.index(rudiment.strokes[i % length]), i % length
        hand = LEFT if rudiment.sticking[slot] == "L" else RIGHT
        diddles += (is_diddle := rudiment.strokes[slot] == "d")
        time_s = 0.2 * i + abs(rng.normal(0, 0.01))
        parent = len(rows) + graces[slot] if slot in graces else -1
        velocity = rng.integers(30, 120)
        rows.append(
            (time_s, 0.2 * i, velocity, 65, hand, kind, kind == GRACE, is_diddle * (2 - diddles % 2), parent, 1)
        )
        for k in (1, 2) if kind == BUZZ else ():
            bounce = (time_s + 0.004 * k, 0.2 * i + 0.004 * k, velocity - k, 50, hand, kind, True, 0, len(rows) - k, 1)
            rows.append(bounce)
    rows += [(0, 0, 0, 0, 0, 0, False, 0, -1, 0)] * 3
    kinds = [np.float32] * 4 + [np.int32, np.int32, bool, np.int32, np.int32, bool]
    return Strokes(*(np.array(column, kind) for column, kind in zip(zip(*rows, strict=True), kinds, strict=True)))


def clip(i: int) -> ExportClip:
    """Clip number i; its noise stage is off."""
    slug = SLUGS[i % len(SLUGS)]
    row = dict.fromkeys(ROW_COLUMNS, "word") | dict.fromkeys(FLOATS, 0.5) | {"tempo_bpm": 90 + i, "num_cycles": 2}
    row |= {"sample_id": f"adv{i:03d}_{slug}", "rudiment_slug": slug, "aug_noise_level_db": np.nan}
    row |= {"skill_tier": "advanced" if i % 2 else "beginner", "augmentation_group_id": f"group{i}", "label": 7}
    waveform = np.linspace(-1, 1, 2000 + 10 * i, dtype=np.float32)
    return ExportClip(row, strokes(slug, i), waveform)


def write(out: pathlib.Path, clips: dict, **kwargs) -> None:
    write_hub_folder(out, clips, sample_rate=RATE, description="python -m program --seed=7", **kwargs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """Four clips of train in two files, two of test, none of validation."""
    out = tmp_path_factory.mktemp("export") / "new" / "hub"
    clips = {"train": map(clip, range(4)), "validation": [], "test": map(clip, (4, 5))}
    write(out, clips, rows_per_shard=3)
    return out


def table(folder: pathlib.Path, name: str) -> pa.Table:
    return pa.concat_tables(pq.read_table(file) for file in sorted(folder.glob(f"{name}*.parquet")))


def test_files_are_named_as_on_the_hub(folder):
    """The Hub's globs and its `-of-` counts, which our reader checks, rest on these names."""
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    names = ("test-00000-of-00001", "train-00000-of-00002", "train-00001-of-00002")
    shards = [f"{config}/{name}.parquet" for config in CONFIGS for name in names]
    assert found == sorted([*shards, "auxiliary/measures.parquet", "auxiliary/strokes.parquet", "README.md"])
    assert list(folder.parent.iterdir()) == [folder]  # no temporary folder beside it
    readme = (folder / "README.md").read_text()
    assert "python -m program --seed=7" in readme
    assert "No drummer was recorded" in readme


@pytest.mark.parametrize("config", CONFIGS)
def test_load_dataset_opens_each_config(folder, tmp_path, config):
    """What a user does first. The README declares configs and splits, the schema the Audio feature."""
    loaded = datasets.load_dataset(str(folder), config, cache_dir=str(tmp_path))
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 4, "test": 2}
    assert loaded["train"]["sample_id"][1] == "adv001_single_paradiddle"
    assert ("midi" in loaded["train"].features) == (config != "labels_only")
    if config == "audio":
        assert loaded["train"].features["audio"] == datasets.Audio()
        undecoded = loaded["test"].cast_column("audio", datasets.Audio(decode=False))
        assert undecoded[0]["audio"]["path"] == "adv004_five_stroke_roll.flac"
        assert soundfile.info(io.BytesIO(undecoded[0]["audio"]["bytes"])).subtype == "PCM_24"


def test_default_config_is_audio(folder, tmp_path):
    assert "audio" in datasets.load_dataset(str(folder), split="test", cache_dir=str(tmp_path)).features


def test_our_reader_opens_it(folder):
    """Training reads an export like SOUSA: same ids, same sound to 24 bits, random access across files."""
    clips = sousa.open_clips(folder, "train")
    assert list(clips.table["sample_id"]) == [clip(i).row["sample_id"] for i in range(4)]
    assert list(clips.table["rudiment_slug"]) == list(SLUGS[:4])
    np.testing.assert_allclose(clips.waveform(3, RATE), clip(3).waveform, atol=2**-22)
    assert len(sousa.open_clips(folder, "test")) == 2
    assert len(list(sousa.stream_clips(folder, "train").read(1))) == 1


@pytest.mark.parametrize("config", CONFIGS)
def test_schema_is_sousas(folder, sousa_mini, sousa_formats, config):
    """Names, order, types, and the features in the metadata: exports and SOUSA can be concatenated."""
    ours = pq.read_schema(folder / config / "train-00000-of-00002.parquet")
    for real in (sousa_mini, sousa_formats / "hub"):
        (theirs, *_) = sorted((real / config).glob("train-*.parquet"))
        assert ours.equals(pq.read_schema(theirs), check_metadata=True)


@pytest.mark.parametrize("name", ["strokes", "measures"])
def test_auxiliary_schema_is_sousas(folder, sousa_mini, name):
    """As above, but for the metadata: SOUSA's writer, pandas, left a description of its own index there."""
    path = f"auxiliary/{name}.parquet"
    assert pq.read_schema(folder / path).equals(pq.read_schema(sousa_mini / path), check_metadata=False)


def test_every_column_is_filled(folder):
    """Missing scores and stages that are off are NaN, never null; only the two empty columns are null."""
    train = table(folder, "audio/train")
    empty = {name for name in train.column_names if train[name].null_count}
    assert empty == {"aug_bit_depth", "aug_sample_rate"}
    rows = train.to_pandas()
    assert list(rows["skill_tier_binary"]) == ["novice", "skilled", "novice", "skilled"]
    assert rows["aug_noise_level_db"].isna().all()
    assert (rows["aug_soundfont"] == rows["soundfont"]).all()
    assert list(rows["flam_quality"].notna()) == [True, False, False, False]
    assert list(rows["diddle_quality"].notna()) == [False, True, True, False]
    assert rows["overall_score"].between(0, 100).all()
    for i in range(4):
        valid = clip(i).strokes.valid
        assert rows["num_strokes"][i] == valid.sum()
        assert rows["duration_sec"][i] == pytest.approx(clip(i).strokes.time_s[valid].max() + 0.5)
    assert list(rows["num_measures"]) == [2, 2, 6, 2]  # the bounces count


def test_scores_are_those_of_the_strokes(folder):
    """The scores are computed in padded batches; a clip must get its own."""
    from sousa_jax.data.synth.scores import SCORE_COLUMNS, scores
    from sousa_jax.rudiments import FAMILIES

    rows = table(folder, "labels_only/train").to_pandas()
    for i in range(4):
        alone = scores(clip(i).strokes, FAMILIES.index(by_slug(SLUGS[i]).family))
        for name in SCORE_COLUMNS:
            np.testing.assert_allclose(rows[name][i], alone[name], rtol=1e-4, atol=1e-3, err_msg=name)


def test_midi_has_every_stroke_at_its_time(folder):
    """The midi column is what other tools read: standard file, one track, note 38, times to half a tick."""
    (content,) = table(folder, "midi_only/train").filter(pc.field("sample_id") == "adv002_multiple_bounce_roll")["midi"]
    file = mido.MidiFile(file=io.BytesIO(content.as_py()))
    assert (file.type, file.ticks_per_beat, len(file.tracks)) == (1, 480, 1)
    assert mido.tempo2bpm(file.tracks[0][0].tempo) == pytest.approx(92, abs=1e-3)
    now, played = 0.0, []
    for message in file:  # times in seconds
        now += message.time
        if message.type == "note_on" and message.velocity > 0:
            assert (message.note, message.channel) == (38, 0)
            played.append((now, message.velocity))
    s = clip(2).strokes
    order = np.argsort(s.time_s[s.valid], kind="stable")
    half_tick = 60 / 92 / 480 / 2
    np.testing.assert_allclose([time for time, _ in played], s.time_s[s.valid][order], atol=half_tick + 1e-6)
    assert [velocity for _, velocity in played] == list(s.velocity[s.valid][order])


def test_midi_of_strokes_at_one_time():
    """A beginner's first strokes can all be at 0: no negative delta, no note lost."""
    s = clip(1).strokes
    s = Strokes(*(column[s.valid] for column in s))._replace(time_s=np.zeros(int(s.valid.sum()), np.float32))
    file = mido.MidiFile(file=io.BytesIO(midi_bytes(s, 60)))
    assert sum(message.type == "note_on" for message in file) == len(s.time_s)


def test_auxiliary_tables_restate_sousas(sousa_mini, tmp_path):
    """Real performances written and read back give SOUSA's own rows: its numbering, errors, nulls and measures."""
    from test_scores import strokes_from_table

    slugs = ("multiple_bounce_roll", "single_drag_tap", "five_stroke_roll", "flam_tap")
    labels = pd.read_parquet(next((sousa_mini / "labels_only").glob("validation-*.parquet")))
    labels = labels[labels["rudiment_slug"].isin(slugs)].groupby("rudiment_slug").head(2)
    real = {name: pd.read_parquet(sousa_mini / "auxiliary" / f"{name}.parquet") for name in ("strokes", "measures")}
    real = {name: rows[rows["sample_id"].isin(labels["sample_id"])] for name, rows in real.items()}
    clips = [
        ExportClip(row, strokes_from_table(real["strokes"].query(f"sample_id == {row['sample_id']!r}")), np.zeros(9))
        for row in labels.to_dict("records")
    ]
    write(tmp_path / "out", {"train": clips})
    for name, theirs in real.items():
        ours = pd.read_parquet(tmp_path / "out" / "auxiliary" / f"{name}.parquet")
        ours, theirs = (rows.sort_values("sample_id", kind="stable", ignore_index=True) for rows in (ours, theirs))
        pd.testing.assert_frame_equal(ours, theirs, rtol=1e-3, atol=1e-2)  # times went through float32
    written = table(tmp_path / "out", "labels_only/train").to_pandas()
    assert list(written["num_measures"]) == list(labels["num_measures"])
    assert list(written["num_strokes"]) == list(labels["num_strokes"])


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_interrupted_writing_leaves_nothing(tmp_path, error):
    """Half a data set under its final name would be trained on."""

    def interrupted() -> Iterator[ExportClip]:
        yield from map(clip, range(3))
        raise error

    with pytest.raises(error):
        write(tmp_path / "out", {"train": interrupted()}, rows_per_shard=1)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_refused_and_kept(tmp_path):
    """Nobody's files are overwritten; the message is one line."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    for out in (tmp_path / "full", tmp_path / "full" / "thesis.tex"):
        with pytest.raises(InputError, match=r"expected a new or empty folder") as refusal:
            write(out, {"train": [clip(0)]})
        assert "\n" not in str(refusal.value)
    assert (tmp_path / "full" / "thesis.tex").read_text() == "x"
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", {"train": [clip(0)]})
    assert (tmp_path / "empty" / "README.md").exists()


def test_bad_input_is_refused(tmp_path):
    """Before it is on disk: a misspelt split, no clips, ids that overwrite or leave the folder, bad arrays."""
    with pytest.raises(InputError, match="unknown split 'dev'"):
        write(tmp_path / "out", {"dev": [clip(0)]})
    with pytest.raises(InputError, match="no clips"):
        write(tmp_path / "out", {"train": []})
    for sample_id in ("../../evil", "a/b", "-rf", "", "x" * 300, "ü"):
        with pytest.raises(ValueError, match="file name"):
            write(
                tmp_path / "out", {"train": [dataclasses.replace(clip(0), row=clip(0).row | {"sample_id": sample_id})]}
            )
    with pytest.raises(ValueError, match="twice"):
        write(tmp_path / "out", {"train": [clip(0)], "test": [clip(0)]})
    for bad, message in (
        (dataclasses.replace(clip(0), row={"sample_id": "a"}), "no aug_"),
        (dataclasses.replace(clip(0), waveform=np.full(9, np.nan, np.float32)), "finite waveform"),
        (dataclasses.replace(clip(0), waveform=np.zeros((9, 2), np.float32)), "finite waveform"),
        (dataclasses.replace(clip(0), strokes=Strokes(*(column[::-1] for column in clip(0).strokes))), "valid"),
    ):
        with pytest.raises(ValueError, match=message):
            write(tmp_path / "out", {"train": [bad]})
    assert list(tmp_path.iterdir()) == []


def test_progress_counts_every_clip(tmp_path):
    """A bar that stops short looks like a program that hangs."""
    counts = []
    write(tmp_path / "out", {"train": map(clip, range(5))}, rows_per_shard=2, progress=counts.append)
    assert sum(counts) == 5
