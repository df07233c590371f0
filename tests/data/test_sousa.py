"""SOUSA as it comes: both layouts, its traps, and every way in which a dataset can be wrong."""

import io
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from small_sousa import flac, rows, streamed, write_hub

from sousa_jax.data import layouts
from sousa_jax.data.clips import METADATA_COLUMNS, BadClip, Clips
from sousa_jax.data.sousa import decode, open_clips, stream_clips
from sousa_jax.errors import InputError
from sousa_jax.rudiments import CLASS_IDS

both = pytest.mark.parametrize("open_", [open_clips, stream_clips])
SHA = "0123456789" * 4


def hub_of(tmp_path, **splits):
    """A one-shard-a-split folder; `hub_of(tmp_path, train=rows(...))`."""
    return write_hub(tmp_path / "made", {split: [made] for split, made in splits.items()})


@pytest.fixture
def local(sousa_formats, tmp_path):
    """A copy of the generator's folder, to be damaged."""
    return shutil.copytree(sousa_formats / "local", tmp_path / "local")


# What is read


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_both_layouts_hold_the_same_clips(sousa_formats, split):
    hub, local = open_clips(sousa_formats / "hub", split), open_clips(sousa_formats / "local", split)
    assert isinstance(hub, Clips)
    assert len(hub) == len(local) == 3
    columns = [*METADATA_COLUMNS, "label"]
    assert list(hub.table) == list(local.table) == columns
    order = [local.table["sample_id"].to_list().index(name) for name in hub.table["sample_id"]]
    pd.testing.assert_frame_equal(hub.table, local.table.iloc[order].reset_index(drop=True), check_dtype=False)
    for i, j in enumerate(order):
        np.testing.assert_array_equal(hub.waveform(i, 32_000), local.waveform(j, 32_000))


def test_val_is_another_name_of_validation(sousa_formats):
    for layout in ("hub", "local"):
        clips = open_clips(sousa_formats / layout, "val")
        assert clips.split == "validation"
        assert clips.fingerprint == open_clips(sousa_formats / layout, "validation").fingerprint


def test_two_channels_of_24_bit_become_their_mean(sousa_formats):
    clips = open_clips(sousa_formats / "hub", "train")
    file = pq.read_table(sousa_formats / "hub/audio/train-00000-of-00001.parquet")["audio"][0]["bytes"].as_py()
    channels, rate = soundfile.read(io.BytesIO(file))
    assert channels.shape[1] == 2
    assert np.abs(channels[:, 0] - channels[:, 1]).max() > 1e-3, "or one channel would do as well"
    wave = clips.waveform(0, rate)
    assert wave.dtype == np.float32
    np.testing.assert_allclose(wave, channels.mean(axis=1), atol=1e-7)
    assert len(clips.waveform(0, 32_000)) == pytest.approx(len(wave) * 32_000 / 44_100, abs=1)


def test_resampling_keeps_a_tone_and_drops_what_is_above_nyquist():
    seconds = np.arange(44_100) / 44_100
    file = io.BytesIO()
    soundfile.write(file, np.sin(2 * np.pi * 1000 * seconds) / 2, 44_100, format="WAV", subtype="FLOAT")
    wave = decode(file.getvalue(), 32_000, "x")[1000:-1000]
    n = np.arange(1000, 31_000)[: len(wave)]
    np.testing.assert_allclose(wave, np.sin(2 * np.pi * 1000 * n / 32_000) / 2, atol=1e-4)
    file = io.BytesIO()
    soundfile.write(file, np.sin(2 * np.pi * 18_000 * seconds) / 2, 44_100, format="WAV", subtype="FLOAT")
    assert np.abs(decode(file.getvalue(), 32_000, "x")[1000:-1000]).max() < 1e-4


@both
def test_class_ids_are_the_fixed_ones_whatever_the_order_of_the_data(tmp_path, open_):
    made = rows("train", 6)[::-1]
    clips = open_(hub_of(tmp_path, train=made), "train")
    assert clips.table["label"].tolist() == [CLASS_IDS[row["rudiment_slug"]] for row in made]
    assert clips.table["label"].dtype == np.int32


def test_stream_has_the_same_clips_in_the_same_order(small_hub, sousa_formats):
    for folder in (small_hub, sousa_formats / "hub", sousa_formats / "local"):
        clips, stream = open_clips(folder, "train"), stream_clips(folder, "train")
        assert len(stream) == len(clips)
        assert stream.fingerprint == clips.fingerprint
        pd.testing.assert_frame_equal(stream.table, clips.table)
        for i, clip in enumerate(streamed(stream)):
            assert (clip.index, clip.sample_id) == (i, clips.table["sample_id"][i])
            assert clip.label == clips.table["label"][i]
            np.testing.assert_array_equal(clip.waveform(8000), clips.waveform(i, 8000))


@pytest.mark.parametrize("start", [0, 1, 4, 5, 13, 14])
def test_stream_starts_anywhere_in_a_shard(small_hub, start):
    stream = stream_clips(small_hub, "train")  # the second of its shards has 14 rows in groups of 4
    assert [clip.index for clip in stream.read(1, start)] == list(range(10 + start, 24))


def test_stream_never_holds_a_file_in_memory(tmp_path):
    """Not even one that was written as a single row group: it is read page by page."""
    (tmp_path / "audio").mkdir()
    made = rows("train", 200, n_variants=1)
    for row in made:
        row["audio"] = {"bytes": os.urandom(100_000), "path": ""}
    file = tmp_path / "audio/train-00000-of-00001.parquet"
    pq.write_table(pa.Table.from_pylist(made), file, use_dictionary=False, compression="none", write_batch_size=8)
    assert pq.read_metadata(file).num_row_groups == 1
    made.clear()
    before, most = pa.total_allocated_bytes(), 0
    for _ in stream_clips(tmp_path, "train").read(0):
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < 10e6, "of 20 MB"


@both
def test_folder_names_are_not_patterns(tmp_path, open_):
    write_hub(tmp_path / "a[1] *", {"train": [rows("train", 2)]})
    assert len(open_(tmp_path / "a[1] *", "train")) == 4


# Traps of the data


@both
def test_null_columns_nan_scores_and_missing_midi(sousa_formats, tmp_path, open_):
    schema = pq.read_schema(sousa_formats / "hub/audio/train-00000-of-00001.parquet")
    assert pa.types.is_null(schema.field("aug_bit_depth").type), "the sample has the trap"
    assert len(open_(sousa_formats / "hub", "train")) == 3
    made = rows("train", 4)
    first, second = made[:4], made[4:]
    for row in first:
        row.update(soundfont=None, midi=None, flam_quality=float("nan"))  # soundfont: arrow's null type in shard one
    for row in second:
        row.update(midi=b"MThd", flam_quality=50.0)
    clips = open_(write_hub(tmp_path / "d", {"train": [first, second]}), "train")
    assert clips.table["soundfont"].isna().tolist() == [True] * 4 + [False] * 4


@both
def test_one_performance_in_two_splits_is_refused(tmp_path, open_):
    train, test = rows("train", 3), rows("test", 3)
    test[0]["augmentation_group_id"] = "train-group1"
    with pytest.raises(InputError, match=r"1 performances are both in train and in test, 'train-group1'"):
        open_(hub_of(tmp_path, train=train, test=test), "test")


@both
def test_one_performance_in_two_splits_is_refused_in_the_local_layout(local, open_):
    splits = json.loads((local / "splits.json").read_text())
    splits["test_profile_ids"] += splits["train_profile_ids"]
    (local / "splits.json").write_text(json.dumps(splits))
    with pytest.raises(InputError, match="both in train and in test"):
        open_(local, "train")


@both
@pytest.mark.parametrize(
    ("slug", "meant"),
    [
        ("double_stroke_roll", "double_stroke_open_roll"),
        ("single-stroke-roll", "single_stroke_roll"),
        ("single-paradiddle-diddle", "paradiddle_diddle"),
    ],
)
def test_unknown_slugs_name_what_is_meant(tmp_path, open_, slug, meant):
    made = rows("train", 3)
    made[4]["rudiment_slug"] = slug
    with pytest.raises(InputError, match=rf"'{slug}'.*'{meant}'"):
        open_(hub_of(tmp_path, train=made), "train")


def test_the_soundfont_is_carried_as_it_is(sousa_formats):
    raw = pq.read_table(sousa_formats / "hub/audio/train-00000-of-00001.parquet", columns=["soundfont"])
    assert open_clips(sousa_formats / "hub", "train").table["soundfont"].tolist() == raw["soundfont"].to_pylist()


# Fingerprints


def test_fingerprint_follows_labels_and_files(tmp_path):
    def fingerprint(name, made):
        return open_clips(write_hub(tmp_path / name, {"train": [made]}), "train").fingerprint

    first = fingerprint("a", rows("train", 4))
    assert len(first) == 16
    assert int(first, 16) >= 0
    assert fingerprint("b", rows("train", 4)) == first, "a copy elsewhere is the same data"
    other_label, other_audio = rows("train", 4), rows("train", 4)
    other_label[0]["rudiment_slug"], other_label[7]["rudiment_slug"] = (
        other_label[7]["rudiment_slug"],
        other_label[0]["rudiment_slug"],
    )
    other_audio[0]["audio"]["bytes"] += b"\0" * 50
    assert len({first, fingerprint("c", other_label), fingerprint("d", other_audio)}) == 3


def test_fingerprint_follows_the_files_of_the_local_layout(local):
    first = open_clips(local, "train").fingerprint
    name = pq.read_table(local / "labels/samples.parquet")["audio_path"][0].as_py()
    with open(local / name, "ab") as file:
        file.write(b"\0")
    assert open_clips(local, "train").fingerprint != first


# Bad clips


def wav(samples, rate=8000):
    file = io.BytesIO()
    soundfile.write(file, np.asarray(samples, np.float32), rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda file: None, "no audio"),
        (lambda file: b"", "not recogni"),
        (lambda file: b"RIFF but not really", ""),
        (lambda file: file[: len(file) // 2], ""),
        (lambda file: file[:-40], ""),
        (lambda file: file[:300] + os.urandom(300) + file[600:], ""),
        (lambda file: wav([]), "empty"),
        (lambda file: wav([0.1, np.nan, 0.2] * 100), "not finite"),
    ],
    ids=["null", "no bytes", "no audio file", "half a file", "last bytes gone", "garbage inside", "no samples", "NaN"],
)
def test_a_bad_clip_is_named_and_the_others_work(tmp_path, spoil, reason):
    made = rows("train", 3)
    made[2]["audio"]["bytes"] = spoil(made[2]["audio"]["bytes"])
    folder = hub_of(tmp_path, train=made)
    clips = open_clips(folder, "train")
    with pytest.raises(BadClip, match=f"^clip train002: .*{reason}"):
        clips.waveform(2, 8000)
    assert len(clips.waveform(1, 8000)) > 0
    clip = streamed(stream_clips(folder, "train"))[2]
    with pytest.raises(BadClip, match="train002"):
        clip.waveform(8000)


def test_a_decoder_that_stops_early_makes_a_bad_clip(monkeypatch):
    """Not every version of libsndfile reports a FLAC file that ends too soon."""
    read = soundfile.SoundFile.read
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda self, **options: read(self, **options)[:100])
    with pytest.raises(BadClip, match="clip x: ends after 100 of 1600 samples"):
        decode(flac(0), 8000, "x")


def test_threads_and_clips_of_any_length_do_not_mix(small_hub):
    """Each thread overwrites one file in memory: a short clip after a long one must not keep its end."""
    clips = open_clips(small_hub, "train")
    alone = [clips.waveform(i, 8000) for i in range(30)]
    with ThreadPoolExecutor(4) as pool:
        for i, wave in zip(
            list(range(30)) * 20, pool.map(lambda i: clips.waveform(i % 30, 8000), range(600)), strict=True
        ):
            np.testing.assert_array_equal(wave, alone[i])
    before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    for _ in range(20):
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda i: clips.waveform(i, 8000), range(4)))
    after = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    assert after < before + 10, "a thread's file goes with the thread"


def test_a_clip_file_that_is_gone_is_a_bad_clip(local):
    clips = open_clips(local, "train")
    name = pq.read_table(local / "labels/samples.parquet")["audio_path"][0].as_py()
    (local / name).unlink()
    with pytest.raises(BadClip, match=clips.table["sample_id"][0]):
        clips.waveform(0, 8000)
    assert len(open_clips(local, "train")) == 3, "the set opens without it"


# Wrong input: one line that says what was found and what was expected


@both
def test_no_such_folder(tmp_path, open_):
    with pytest.raises(InputError, match="nothing there; expected a folder"):
        open_(tmp_path / "nowhere", "train")


@both
def test_a_file_is_no_folder(tmp_path, open_):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="a file; expected a folder"):
        open_(tmp_path / "file", "train")


@both
def test_empty_folder(tmp_path, open_):
    with pytest.raises(InputError, match=r"no SOUSA: expected audio/train-\*\.parquet .*or labels/samples\.parquet"):
        open_(tmp_path, "train")


@both
def test_missing_split(tmp_path, open_):
    folder = hub_of(tmp_path, train=rows("train", 2), test=rows("test", 2))
    with pytest.raises(InputError, match="no validation split; found test, train"):
        open_(folder, "validation")


@both
def test_unknown_split(tmp_path, open_):
    with pytest.raises(InputError, match="unknown split 'dev'; expected one of train, validation, test"):
        open_(tmp_path, "dev")


@both
def test_missing_file_of_a_split(small_hub, open_):
    (small_hub / "audio/train-00001-of-00003.parquet").unlink()
    with pytest.raises(InputError, match="2 of the 3 files of train"):
        open_(small_hub, "train")


@both
def test_missing_column_names_the_nearest(tmp_path, open_):
    made = rows("train", 2)
    for row in made:
        row["rudiment"] = row.pop("rudiment_slug")
    with pytest.raises(
        InputError, match=r"train-00000-of-00001\.parquet has no column 'rudiment_slug'; did 'rudiment'"
    ):
        open_(hub_of(tmp_path, train=made), "train")


@both
def test_audio_of_another_type(tmp_path, open_):
    made = rows("train", 2)
    for row in made:
        row["audio"] = row["audio"]["bytes"]
    with pytest.raises(InputError, match="column 'audio' is binary, expected struct"):
        open_(hub_of(tmp_path, train=made), "train")


@both
@pytest.mark.parametrize("column", ["sample_id", "rudiment_slug", "augmentation_group_id"])
def test_row_without_id_or_label(tmp_path, open_, column):
    made = rows("train", 2)
    made[2][column] = None
    with pytest.raises(InputError, match=f"row 2 has no {column}"):
        open_(hub_of(tmp_path, train=made), "train")


@both
def test_sample_id_twice(tmp_path, open_):
    made = rows("train", 2)
    made[3]["sample_id"] = made[0]["sample_id"]
    with pytest.raises(InputError, match="'train000' occurs more than once"):
        open_(hub_of(tmp_path, train=made), "train")


@both
def test_a_folder_has_no_revision(small_hub, open_):
    with pytest.raises(InputError, match="has no revision 'main'"):
        open_(small_hub, "train", revision="main")


@both
@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.99])
def test_truncated_parquet_is_named(small_hub, open_, keep):
    file = small_hub / "audio/train-00001-of-00003.parquet"
    content = file.read_bytes()
    file.write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
    with pytest.raises(InputError, match=r"train-00001-of-00003\.parquet cannot be read") as error:
        open_(small_hub, "train")
    assert "\n" not in str(error.value)


def test_damage_inside_a_parquet_file_is_named(small_hub):
    file = small_hub / "audio/train-00001-of-00003.parquet"
    chunk = pq.read_metadata(file).row_group(1)
    column = next(chunk.column(i) for i in range(chunk.num_columns) if chunk.column(i).path_in_schema == "audio.bytes")
    start = column.dictionary_page_offset or column.data_page_offset
    content = bytearray(file.read_bytes())
    content[start : start + 2000] = b"\xff" * 2000
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"train-00001-of-00003\.parquet"):
        open_clips(small_hub, "train")
    with pytest.raises(InputError, match=r"train-00001-of-00003\.parquet"):
        streamed(stream_clips(small_hub, "train"))


@both
@pytest.mark.parametrize("content", [None, "{", '{"train_profile_ids": []}'])
def test_unusable_splits_file(local, open_, content):
    if content is None:
        (local / "splits.json").unlink()
    else:
        (local / "splits.json").write_text(content)
    with pytest.raises(
        InputError, match=r"splits\.json \(expected: train_, val_ and test_profile_ids\) cannot be read"
    ):
        open_(local, "train")


@both
def test_empty_split_of_the_local_layout(local, open_):
    splits = json.loads((local / "splits.json").read_text()) | {"val_profile_ids": ["somebody-else"]}
    (local / "splits.json").write_text(json.dumps(splits))
    with pytest.raises(InputError, match=r"validation split has no rows; .* 1 players"):
        open_(local, "val")


@both
@pytest.mark.parametrize("audio_path", ["../secret.flac", "/etc/passwd", "audio/../../secret.flac"])
def test_audio_outside_the_folder_is_refused(local, open_, audio_path):
    samples = pd.read_parquet(local / "labels/samples.parquet")
    samples.loc[:, "audio_path"] = audio_path
    samples.to_parquet(local / "labels/samples.parquet")
    with pytest.raises(InputError, match="leaves the dataset's folder"):
        open_(local, "train")


def test_labels_are_read_without_the_audio(small_hub, monkeypatch):
    """120 GB of audio must not be read to learn what there is."""
    columns_read = []
    read = pq.ParquetFile.read
    monkeypatch.setattr(
        pq.ParquetFile, "read", lambda self, columns=None: columns_read.append(columns) or read(self, columns=columns)
    )
    stream_clips(small_hub, "train")
    assert columns_read
    assert all(columns is not None and "audio" not in columns for columns in columns_read)
    assert layouts.SPLITS == ("train", "validation", "test")
