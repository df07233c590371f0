"""SOUSA on the Hub, as far as a fake one can tell: revisions, what is downloaded, what is streamed, no network."""

import os
import shutil
import subprocess
import sys
import time
import types

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_sousa import streamed, write_strokes

from sousa_jax.data.sousa import open_clips, stream_clips
from sousa_jax.errors import InputError

both = pytest.mark.parametrize("open_", [open_clips, stream_clips])
SHA = "0123456789" * 4


@pytest.fixture
def fake_hub(monkeypatch, small_hub):
    """`owner/name` on the Hub is the small folder; what is asked of the Hub is noted."""
    import fsspec
    import huggingface_hub

    asked = []

    def dataset_info(self, repo_id, *, revision=None, timeout=None):
        asked.append(("resolve", repo_id, revision))
        return types.SimpleNamespace(sha=SHA)

    def snapshot_download(repo_id, *, repo_type, revision, allow_patterns, local_files_only=False):
        asked.append(("look up" if local_files_only else "download", repo_id, repo_type, revision, *allow_patterns))
        return str(small_hub)

    class Disk(fsspec.implementations.dirfs.DirFileSystem):
        def __init__(self):
            super().__init__(str(small_hub.parent / "hub"), fsspec.filesystem("file"))

    shutil.copytree(small_hub, small_hub.parent / "hub/datasets" / f"owner/name@{SHA}")
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub, "HfFileSystem", Disk)
    return asked


def test_hub_revision_is_resolved_and_only_the_split_is_downloaded(fake_hub, small_hub):
    clips = open_clips("owner/name", "train", revision="v1")
    assert clips.resolved_revision == SHA
    assert fake_hub == [
        ("resolve", "owner/name", "v1"),
        ("download", "owner/name", "dataset", SHA, "audio/train-*.parquet", "labels_only/*.parquet"),
    ]
    assert open_clips(small_hub, "train").resolved_revision is None
    assert clips.fingerprint != open_clips(small_hub, "train").fingerprint


def test_a_commit_that_was_downloaded_needs_no_network(fake_hub, small_hub):
    assert open_clips("owner/name", "train", revision=SHA).resolved_revision == SHA
    assert [what for what, *_ in fake_hub] == ["look up"]
    (small_hub / "audio/train-00001-of-00003.parquet").rename(small_hub / "elsewhere")
    with pytest.raises(InputError, match="2 of the 3 files"):
        open_clips("owner/name", "train", revision=SHA)
    assert [what for what, *_ in fake_hub] == ["look up", "look up", "resolve", "download"], "half of it will not do"


def test_hub_fingerprint_follows_the_revision(fake_hub):
    a, b = (open_clips("owner/name", "train", revision=sha).fingerprint for sha in (SHA, SHA[::-1]))
    assert a != b
    assert stream_clips("owner/name", "train").fingerprint == a


def test_hub_stream_downloads_nothing_and_has_the_same_clips(fake_hub, small_hub):
    stream, clips = stream_clips("owner/name", "train"), open_clips(small_hub, "train")
    assert stream.resolved_revision == SHA
    assert len(stream) == 30
    for clip in streamed(stream):
        np.testing.assert_array_equal(clip.waveform(8000), clips.waveform(clip.index, 8000))
    pd.testing.assert_frame_equal(stream.table, clips.table, check_index_type=False)
    assert [what for what, *_ in fake_hub] == ["resolve"]


def test_the_strokes_of_the_hub_are_fetched_when_asked_for(fake_hub, small_hub):
    """Of the same commit as the audio; a stream reads them where they are."""
    clips, stream = open_clips("owner/name", "train"), stream_clips("owner/name", "train")
    with pytest.raises(InputError, match=r"auxiliary/strokes\.parquet is missing"):
        clips.clip_strokes(0)
    assert fake_hub[-1] == ("download", "owner/name", "dataset", SHA, "auxiliary/strokes.parquet")
    n_asked = len(fake_hub)
    on_the_hub = small_hub.parent / "hub/datasets" / f"owner/name@{SHA}"
    for folder, time_ms in ((small_hub, 7.0), (on_the_hub, 8.0)):
        write_strokes(folder / "auxiliary/strokes.parquet", [("train000", time_ms, 90, False, "tap")])
    np.testing.assert_allclose(clips.clip_strokes(0).time_s, [0.007])
    np.testing.assert_allclose(next(stream.read(0)).clip_strokes().time_s, [0.008])
    assert len(fake_hub) == n_asked


def test_shared_performances_of_a_hub_stream_are_found_by_the_labels(fake_hub, small_hub):
    labels = small_hub.parent / "hub/datasets" / f"owner/name@{SHA}/labels_only"
    labels.mkdir()
    for split in ("train", "test"):
        table = pa.table({"augmentation_group_id": ["shared", split]})
        pq.write_table(table, labels / f"{split}-00000-of-00001.parquet")
    with pytest.raises(InputError, match="'shared'"):
        stream_clips("owner/name", "train")


def test_no_code_of_a_dataset_is_ever_run(fake_hub, small_hub, monkeypatch):
    import datasets

    load, asked = datasets.load_dataset, []
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: asked.append((a, k)) or load(*a, **k))
    open_clips("owner/name", "train")
    ((builder,), options) = asked[0]
    assert builder == "parquet", "datasets' own reader, not one that a dataset brings along"
    assert "trust_remote_code" not in options


@both
def test_unreachable_hub_is_one_line_at_once(open_):
    """The tests run with HF_HUB_OFFLINE set."""
    begin_s = time.perf_counter()
    with pytest.raises(InputError, match="owner/name: no such folder, and the Hub cannot be reached") as error:
        open_("owner/name", "train")
    assert time.perf_counter() - begin_s < 5
    assert "\n" not in str(error.value)


def test_refused_connections_are_not_retried_for_long():
    program = """
from sousa_jax.data.sousa import open_clips, stream_clips
from sousa_jax.errors import InputError
for open_ in (open_clips, stream_clips):
    for revision in (None, "0123456789" * 4):
        try:
            open_("owner/name", "train", revision=revision)
        except InputError as error:
            assert "\\n" not in str(error)
            print(error)
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
    begin_s = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 4
    assert time.perf_counter() - begin_s < 15
