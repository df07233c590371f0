"""The cache: the same clips, built once, and nothing that looks finished unless it is."""

import errno
import json
import logging
import shutil
import threading

import numpy as np
import pytest
from small_sousa import FakeClips

from sousa_jax.data.cache import CachedClips
from sousa_jax.data.clips import BadClip, Clips
from sousa_jax.data.pipeline import BadClips, TrainBatches
from sousa_jax.data.sousa import open_clips
from sousa_jax.errors import InputError

RATE = 8000


def test_cached_clips_are_the_clips_within_a_16_bit_step(small_hub, tmp_path):
    clips = open_clips(small_hub, "train")
    cached = CachedClips(clips, RATE, tmp_path / "cache", workers=2)
    assert isinstance(cached, Clips)
    assert len(cached) == len(clips)
    assert cached.table is clips.table
    assert (cached.split, cached.fingerprint) == (clips.split, clips.fingerprint)
    for i in range(len(clips)):
        wave, copy = clips.waveform(i, RATE), cached.waveform(i, RATE)
        assert copy.dtype == np.float32
        assert type(copy) is np.ndarray
        assert np.abs(copy - wave).max() <= np.abs(wave).max() / 65534 * 1.01


def test_loud_soft_and_silent_clips_keep_their_level(tmp_path):
    """Clips above full scale must not be clipped, and soft ones must not lose their bits."""
    clips, shape = FakeClips(4), np.linspace(-1, 1, 101, dtype=np.float32)
    peaks = np.float32([7.5, 1e-6, 0, 1])
    clips.waveform = lambda index, rate: peaks[index] * shape
    cached = CachedClips(clips, RATE, tmp_path)
    for i, peak in enumerate(peaks):
        np.testing.assert_allclose(cached.waveform(i, RATE), peak * shape, atol=peak / 65534 * 1.01)


def test_batches_from_the_cache_are_the_batches(small_hub, tmp_path):
    clips = open_clips(small_hub, "train")
    cached = CachedClips(clips, RATE, tmp_path / "cache")
    options = {"batch_size": 4, "sample_rate": RATE, "window_s": 0.1, "seed": 0}
    with (
        TrainBatches(clips, bad=BadClips(clips, 0), **options) as plain,
        TrainBatches(cached, bad=BadClips(cached, 0), **options) as copies,
    ):
        for _ in range(10):
            (a, _), (b, _) = next(plain), next(copies)
            np.testing.assert_array_equal(a["clip"], b["clip"])
            np.testing.assert_allclose(a["waveform"], b["waveform"], atol=1e-5)


def test_it_is_built_once_and_says_its_size(tmp_path, caplog):
    clips = FakeClips(5)
    with caplog.at_level(logging.INFO, "sousa_jax.data.cache"):
        CachedClips(clips, RATE, tmp_path)
    assert "5 clips, 0.00 GB" in caplog.text
    assert sorted(clips.asked) == list(range(5))
    CachedClips(clips, RATE, tmp_path)
    assert len(clips.asked) == 5


def test_rate_fingerprint_and_split_each_have_their_own_cache(tmp_path):
    clips = FakeClips(3)
    low, high = CachedClips(clips, 8000, tmp_path), CachedClips(clips, 16_000, tmp_path)
    assert (len(low.waveform(0, 8000)), len(high.waveform(0, 16_000))) == (800, 1600)
    with pytest.raises(ValueError, match="cached at 8000 Hz"):
        low.waveform(0, 16_000)
    other_data, other_split = FakeClips(3), FakeClips(3)
    other_data.fingerprint, other_split.split = "f" * 16, "test"
    for other in (other_data, other_split):
        CachedClips(other, 8000, tmp_path)
        assert len(other.asked) == 3
    assert len(list(tmp_path.iterdir())) == 4


def test_bad_clips_are_remembered(tmp_path):
    clips = FakeClips(5, bad=(0, 3))
    for cached in (CachedClips(clips, RATE, tmp_path), CachedClips(clips, RATE, tmp_path)):
        for i in (0, 3):
            with pytest.raises(BadClip, match=f"sample_id{i}: broken on purpose"):
                cached.waveform(i, RATE)
        assert [cached.waveform(i, RATE)[0] for i in (1, 2, 4)] == pytest.approx([2, 3, 5], rel=1e-4)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_build_leaves_nothing(tmp_path, stop):
    clips = FakeClips(20)
    whole = clips.waveform

    def interrupted(index, rate):
        if index == 12:
            raise stop
        return whole(index, rate)

    clips.waveform = interrupted
    with pytest.raises(stop):
        CachedClips(clips, RATE, tmp_path)
    assert list(tmp_path.iterdir()) == []
    clips.waveform = whole
    assert len(CachedClips(clips, RATE, tmp_path).waveform(12, RATE)) == 812


def test_leftovers_of_a_killed_build_are_not_read(tmp_path):
    clips = FakeClips(3)
    leftover = tmp_path / f".{clips.fingerprint}-train-{RATE}.abc.tmp"
    leftover.mkdir()
    (leftover / "samples.int16").write_bytes(b"\1" * 10)
    assert CachedClips(clips, RATE, tmp_path).waveform(2, RATE)[0] == pytest.approx(3, rel=1e-4)


def test_builders_at_the_same_time_do_not_disturb_one_another(tmp_path):
    together, results, errors = threading.Barrier(3, timeout=20), [], []

    def build():
        clips = FakeClips(10)
        whole = clips.waveform

        def waveform(index, rate):
            if index == 0:
                together.wait()  # all three are building
            return whole(index, rate)

        clips.waveform = waveform
        try:
            results.append(CachedClips(clips, RATE, tmp_path))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=build) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(list(tmp_path.iterdir())) == 1
    for cached in results:
        assert cached.waveform(9, RATE)[0] == pytest.approx(10, rel=1e-4)


def test_no_room_is_seen_before_anything_is_written(tmp_path, monkeypatch):
    clips = FakeClips(10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6 - 1000, 1000))
    with pytest.raises(InputError, match=r"needs about 96000 bytes, 1000 are free"):
        CachedClips(clips, RATE, tmp_path)
    assert clips.asked == []
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_meanwhile_leaves_nothing(tmp_path):
    clips = FakeClips(10)

    def waveform(index, rate):
        raise OSError(errno.ENOSPC, "No space left on device")

    clips.waveform = waveform
    with pytest.raises(InputError, match="no room for the cache"):
        CachedClips(clips, RATE, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        CachedClips(FakeClips(2), RATE, tmp_path / "file")


@pytest.mark.parametrize("damage", ["samples.int16", "clips.npz", "manifest.json"])
def test_a_damaged_cache_is_refused(tmp_path, damage):
    clips = FakeClips(4)
    CachedClips(clips, RATE, tmp_path)
    (folder,) = tmp_path.iterdir()
    content = (folder / damage).read_bytes()
    (folder / damage).write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"is damaged .* delete it"):
        CachedClips(clips, RATE, tmp_path)


def test_manifest_says_what_the_cache_is_of(tmp_path):
    clips = FakeClips(3, bad=(1,))
    CachedClips(clips, RATE, tmp_path)
    (folder,) = tmp_path.iterdir()
    assert json.loads((folder / "manifest.json").read_text()) == {
        "format": 1,
        "fingerprint": clips.fingerprint,
        "sample_rate": RATE,
        "bad": {"sample_id1": "broken on purpose"},
    }
