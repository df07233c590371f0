"""Batches: the same rows whatever the threads, processes and interruptions."""

import dataclasses
import io
import itertools
import json
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
import soxr
from small_sousa import ClickClips, FakeClips, rows, write_hub, write_strokes
from test_ordered_map import pool_threads

from sousa_jax.data import pipeline
from sousa_jax.data.clips import BadClip, crop_start, loop_fill, trim_tail
from sousa_jax.data.layouts import labelled
from sousa_jax.data.pipeline import BadClips, TrainBatches, eval_batches
from sousa_jax.data.sousa import StreamedClips, decode, open_clips, stream_clips
from sousa_jax.errors import InputError

RATE, WINDOW_S = 8000, 0.15
N_SAMPLES = 1200


def train(clips, position=None, **options):
    settings = {"batch_size": 4, "seed": 3, "workers": 2, "bad": BadClips(clips, 0.5), **options}
    return TrainBatches(clips, sample_rate=RATE, window_s=WINDOW_S, position=position, **settings)


def take(batches, n):
    with batches:
        return list(itertools.islice(batches, n))


def evaluate(clips, **options):
    settings = {"batch_size": 4, "workers": 2, "bad": BadClips(clips, 0.5), **options}
    return list(eval_batches(clips, sample_rate=RATE, window_s=WINDOW_S, **settings))


def assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        for key in batch:
            np.testing.assert_array_equal(batch[key], other[key], err_msg=key)


def clips_in(batches):
    return np.concatenate([batch["clip"][batch["mask"]] for batch in batches]).tolist()


@pytest.fixture(params=["random access", "streamed"])
def both(request, small_hub, monkeypatch):
    """Thirty clips in three shards, in both ways of reading; a stream is shuffled in blocks of 8 rows."""
    monkeypatch.setattr(pipeline, "BLOCK_ROWS", 8)
    return (open_clips if request.param == "random access" else stream_clips)(small_hub, "train")


# Both ways of reading


def test_rows_are_what_they_say(both):
    (batch, position), *_ = take(train(both), 1)
    assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
        "waveform": ((4, N_SAMPLES), "float32"),
        "label": ((4,), "int32"),
        "clip": ((4,), "int32"),
        "mask": ((4,), "bool"),
    }
    np.testing.assert_array_equal(batch["label"], both.table["label"].to_numpy()[batch["clip"]])
    assert batch["mask"].all()
    assert json.loads(json.dumps(position)) == position, "a checkpoint stores it as JSON"


def test_every_clip_once_an_epoch_in_changing_order(both):
    seen = clips_in(batch for batch, _ in take(train(both), 15))  # two epochs of 30 rows; batches straddle them
    first, second = seen[:30], seen[30:]
    assert sorted(first) == sorted(second) == list(range(30))
    assert first != second
    assert first != sorted(first)


def test_resumes_exactly_in_mid_epoch(both):
    whole = take(train(both), 20)
    for stop in (1, 7, 15):  # in a block, at a shard's end, in the second epoch
        position = json.loads(json.dumps(whole[stop - 1][1]))
        resumed = take(train(both, position), 20 - stop)
        assert_same([b for b, _ in whole[stop:]], [b for b, _ in resumed])
        assert resumed[-1][1] == whole[-1][1]


def test_threads_and_prefetch_do_not_change_anything(both):
    plain = take(train(both, workers=1, prefetch=0), 10)
    for options in ({"workers": 4, "prefetch": 3}, {"workers": 2, "prefetch": 1}):
        assert_same([b for b, _ in plain], [b for b, _ in take(train(both, **options), 10)])


def test_seed_changes_the_order_and_the_windows(both):
    a, b = (take(train(both, seed=seed), 8) for seed in (0, 1))
    assert clips_in(x for x, _ in a) != clips_in(x for x, _ in b)


def test_windows_differ_from_epoch_to_epoch(both):
    seen = {}
    for batch, _ in take(train(both), 30):
        for clip, wave in zip(batch["clip"], batch["waveform"], strict=True):
            seen.setdefault(int(clip), set()).add(wave.tobytes())
    assert np.mean([len(windows) for windows in seen.values()]) > 3, "four epochs, as many windows"


def test_every_row_of_a_run_has_its_own_random_window():
    clips = FakeClips(1)
    clips.waveform = lambda index, rate: np.arange(1, 100_000, dtype=np.float32)
    starts = [batch["waveform"][0, 0] for batch, _ in take(train(clips, batch_size=1), 200)]
    assert len(set(starts)) > 190


def test_evaluation_has_every_clip_once_and_counts_no_padding(both):
    batches = evaluate(both)
    assert clips_in(batches) == list(range(30))
    assert [batch["mask"].sum() for batch in batches] == [4] * 7 + [2]
    assert not batches[-1]["waveform"][2:].any()
    assert (batches[-1]["clip"][2:] == -1).all()
    np.testing.assert_array_equal(
        np.concatenate([b["label"][b["mask"]] for b in batches]), both.table["label"].to_numpy()
    )


def test_evaluation_is_the_same_with_any_threads(both):
    assert_same(evaluate(both, workers=1, prefetch=0), evaluate(both, workers=4, prefetch=2))


@pytest.mark.parametrize("windows", ["first", "padded", "all"])
def test_processes_share_an_evaluation_without_overlap(both, windows):
    """All make the same number of batches, or a collective operation would wait for ever."""
    whole = evaluate(both, windows=windows)
    parts = [evaluate(both, windows=windows, process_index=i, process_count=2) for i in range(2)]
    assert len(parts[0]) == len(parts[1]) == len(whole)
    tiled = [{k: np.concatenate([a[k], b[k]]) for k in a} for a, b in zip(*parts, strict=True)]
    assert_same(whole, tiled)


@pytest.mark.parametrize("windows", ["first", "padded", "all"])
def test_a_bad_clip_does_not_shift_the_rows_of_other_processes(windows):
    """In `first` a process does not learn of the others' bad clips: they must leave their row empty."""
    clips = FakeClips(11, bad=(1, 6))
    whole = evaluate(clips, windows=windows)
    parts = [evaluate(clips, windows=windows, process_index=i, process_count=2) for i in range(2)]
    assert_same(whole, [{k: np.concatenate([a[k], b[k]]) for k in a} for a, b in zip(*parts, strict=True)])
    assert clips_in(whole) == [0, 2, 3, 4, 5, 7, 8, 9, 10]


def test_too_many_rows_for_the_processes(both):
    with pytest.raises(InputError, match="does not divide"):
        train(both, batch_size=5, process_count=2)


def test_both_ways_evaluate_alike(small_hub):
    assert_same(evaluate(open_clips(small_hub, "train")), evaluate(stream_clips(small_hub, "train")))


# Random access


def test_processes_tile_the_global_batch(small_hub):
    clips = open_clips(small_hub, "train")
    whole = take(train(clips), 10)
    parts = [take(train(clips, process_index=i, process_count=2), 10) for i in range(2)]
    for (batch, position), (a, position_a), (b, _) in zip(whole, *parts, strict=True):
        assert position == position_a
        for key in batch:
            np.testing.assert_array_equal(batch[key], np.concatenate([a[key], b[key]]), err_msg=key)


def test_by_performance_draws_each_performance_once_with_any_variant():
    """Five audio variants of one performance are near-duplicates: by rows they weigh five times."""
    clips = FakeClips(30, n_variants=3)
    batches = train(clips, by_performance=True, batch_size=10)
    assert batches.n_per_epoch == 10
    seen = np.array([batch["clip"] for batch, _ in take(batches, 20)])  # one epoch a row
    assert (np.sort(seen // 3, axis=1) == np.arange(10)).all()
    assert set(seen.ravel().tolist()) == set(range(30)), "all variants come up in the end"


def test_by_performance_resumes_exactly():
    clips = FakeClips(30, n_variants=3)
    whole = take(train(clips, by_performance=True), 9)
    resumed = take(train(clips, whole[3][1], by_performance=True), 5)
    assert_same([b for b, _ in whole[4:]], [b for b, _ in resumed])


def test_all_windows_of_a_long_clip_share_its_number():
    clips = FakeClips(3)
    clips.waveform = lambda index, rate: np.full([600, 1200, 3000][index], index + 1, np.float32)
    batches = evaluate(clips, windows="all")
    assert clips_in(batches) == [0, 1, 2, 2, 2, 2], "half-overlapping: 1 + 1800 / 600"
    assert clips_in(evaluate(clips, windows="all", hop_s=0.15)) == [0, 1, 2, 2, 2]
    assert (batches[0]["waveform"][0] == 1).all(), "a short clip goes round, no padding"


def test_trailing_silence_does_not_reach_a_batch():
    """The tail's length tells the class; evaluation and training must cut it before they fill."""
    clips = FakeClips(8)
    clips.waveform = lambda index, rate: np.concatenate([np.ones(500, np.float32), np.zeros(100 * index, np.float32)])
    for batch in [*evaluate(clips, windows="all"), *(b for b, _ in take(train(clips), 4))]:
        assert (batch["waveform"] == 1).all()


def test_padded_windows_show_what_the_policy_hides():
    """The clip as it is, 500 samples and its silent tail, then zeros; a longer one is cut."""
    clips = FakeClips(3)
    clips.waveform = lambda index, rate: np.concatenate([np.ones(500, np.float32), np.zeros(1000 * index, np.float32)])
    batch = evaluate(clips, windows="padded")[0]
    assert batch["waveform"].shape == (4, N_SAMPLES)
    for row in batch["waveform"][:3]:
        np.testing.assert_array_equal(row, np.r_[np.ones(500), np.zeros(N_SAMPLES - 500)])
    assert clips_in([batch]) == [0, 1, 2]


# Strokes in evaluation

PER_SECOND = 200


def assert_clicks_are_onsets(wave, onset):
    """Frames with a click are the frames with an onset; a click in the last half frame has none."""
    frames = np.round(np.flatnonzero(wave) * PER_SECOND / RATE)
    np.testing.assert_array_equal(np.flatnonzero(onset), np.unique(frames[frames < len(onset)]))


@pytest.mark.parametrize("windows", ["first", "all"])
def test_every_evaluated_window_has_the_strokes_that_sound_in_it(windows):
    """Clips that go round, that fill a window and that fill many; on times that no frame shares with its neighbour."""
    times_s = [[0.0, 0.02], [0.01], [0.0, 0.045, 0.15], [0.005 * i for i in range(3, 100, 7)]]
    clips = ClickClips(times_s, [[40 + 5 * i for i in range(len(times))] for times in times_s])
    made = evaluate(clips, windows=windows, strokes_per_second=PER_SECOND)
    n_rows = 0
    for batch in made:
        assert {x.shape for x in batch["stroke_targets"]} == {(4, 30)}
        assert {x.dtype for x in batch["stroke_targets"]} == {np.dtype("float32")}
        for row, counted in enumerate(batch["mask"]):
            onset, velocity = (x[row] for x in batch["stroke_targets"][:2])
            assert_clicks_are_onsets(batch["waveform"][row], onset)
            np.testing.assert_array_equal(velocity > 0, onset > 0)
            assert counted == onset.any(), "a padding row is silent"
            n_rows += counted
    assert n_rows == (4 if windows == "first" else len(clips_in(made)))
    assert clips_in(made)[:2] == [0, 1]


def test_asking_for_strokes_changes_nothing_else_in_an_evaluation():
    clips = ClickClips([[0.0, 0.3], [0.1, 1.5], [0.07]])
    plain, more = evaluate(clips, windows="all"), evaluate(clips, windows="all", strokes_per_second=PER_SECOND)
    assert_same(plain, more)
    assert all(set(b) - set(a) == {"stroke_targets"} for a, b in zip(plain, more, strict=True))


@pytest.mark.parametrize("windows", ["first", "all"])
def test_processes_share_the_strokes_of_an_evaluation(windows):
    clips = ClickClips([[0.0, 0.3], [0.1, 0.5], [0.07], [0.02, 0.04], [0.0, 0.01]])
    options = {"windows": windows, "strokes_per_second": PER_SECOND}
    whole = evaluate(clips, **options)
    parts = [evaluate(clips, process_index=i, process_count=2, **options) for i in range(2)]
    for batch, *halves in zip(whole, *parts, strict=True):
        for column, *of_halves in zip(*(b["stroke_targets"] for b in (batch, *halves)), strict=True):
            np.testing.assert_array_equal(column, np.concatenate(of_halves))


def test_a_clip_whose_strokes_are_unknown_is_bad_where_they_are_asked_for():
    class Clips(ClickClips):
        def clip_strokes(self, index):
            if index == 1:
                raise BadClip(self.table["sample_id"][1], "no strokes")
            return super().clip_strokes(index)

    clips = Clips([[0.0, 0.3], [0.1, 0.5], [0.07]])
    bad = BadClips(clips, 0.5)
    assert clips_in(evaluate(clips, bad=bad, strokes_per_second=PER_SECOND)) == [0, 2]
    assert list(bad.reasons) == ["sample_id1"]
    assert clips_in(evaluate(clips)) == [0, 1, 2]
    with pytest.raises(InputError, match=r"strokes_per_second is 1: a window of 0\.15 s has no frame"):
        evaluate(clips, strokes_per_second=1)


def test_streams_evaluate_the_same_strokes(small_hub):
    ids = open_clips(small_hub, "train").table["sample_id"]
    write_strokes(
        small_hub / "auxiliary/strokes.parquet", [(name, 7.0 * i, 90, False, "tap") for i, name in enumerate(ids)]
    )
    known, streamed = (
        evaluate(opened(small_hub, "train"), strokes_per_second=PER_SECOND) for opened in (open_clips, stream_clips)
    )
    assert_same(known, streamed)
    assert sum(batch["stroke_targets"].onset.sum() for batch in known) > 5


# Streams


def test_streaming_processes_read_each_clip_once_an_epoch(small_hub, monkeypatch):
    monkeypatch.setattr(pipeline, "BLOCK_ROWS", 4)
    clips = stream_clips(small_hub, "train")
    parts = [take(train(clips, batch_size=3, process_index=i, process_count=3), 6) for i in range(3)]
    seen = [set(clips_in(b for b, _ in part)) for part in parts]
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]
    for i, part in enumerate(parts):
        resumed = take(train(clips, part[2][1], batch_size=3, process_index=i, process_count=3), 3)
        assert_same([b for b, _ in part[3:]], [b for b, _ in resumed])


def test_more_processes_than_files_is_refused(small_hub):
    with pytest.raises(InputError, match="3 files for 4 processes"):
        train(stream_clips(small_hub, "train"), process_count=4)


def test_a_stream_is_not_drawn_by_performance(small_hub):
    with pytest.raises(InputError, match="by performance"):
        train(stream_clips(small_hub, "train"), by_performance=True)


def test_resuming_a_stream_reads_one_block(small_hub, monkeypatch):
    """A resumed run must not read everything that it had read before."""
    monkeypatch.setattr(pipeline, "BLOCK_ROWS", 4)
    clips = stream_clips(small_hub, "train")
    n_read = 0
    read = clips.read

    def counted(*args):
        nonlocal n_read
        for clip in read(*args):
            n_read += 1
            yield clip

    monkeypatch.setattr(clips, "read", counted)
    take(train(clips, {"sample": 24}, prefetch=0), 1)
    assert n_read <= 3 * 4, "this block and those read ahead"


def test_table_of_a_stream_without_one_is_whole_after_evaluation(small_hub):
    """From the Hub the labels come with the audio; the evaluator joins on `clip` afterwards."""
    known = stream_clips(small_hub, "train")
    hub = StreamedClips("train", "0", known.shards)
    assert len(hub.table) == 0
    take(train(hub), 3)  # rows out of order, and some of them twice
    evaluate(hub)
    np.testing.assert_array_equal(hub.table.index, np.arange(30))
    assert hub.table["sample_id"].tolist() == known.table["sample_id"].tolist()
    assert hub.table["label"].tolist() == known.table["label"].tolist()


# Bad clips


def test_a_bad_clip_is_replaced_counted_and_named():
    clips = FakeClips(20, bad=(4, 7))
    bad = BadClips(clips, 0.1)
    batches = [b for b, _ in take(train(clips, bad=bad), 20)]  # four epochs
    seen = clips_in(batches)
    assert len(seen) == 80, "every row is filled"
    assert not {4, 7} & set(seen)
    assert bad.report() == (
        "2 of 20 train clips could not be used: sample_id4 (broken on purpose), sample_id7 (broken on purpose)"
    )
    assert_same(batches, [b for b, _ in take(train(clips, workers=1, prefetch=0), 20)])


def test_a_bad_clip_in_a_stream_is_replaced(tmp_path):
    made = rows("train", 10)
    made[3]["audio"]["bytes"] = b"not audio"
    clips = stream_clips(write_hub(tmp_path / "d", {"train": [made]}), "train")
    bad = BadClips(clips, 0.1)
    seen = clips_in(b for b, _ in take(train(clips, bad=bad), 10))
    assert len(seen) == 40
    assert 3 not in seen
    assert "train003" in bad.report()


def test_bad_clips_are_skipped_in_evaluation():
    clips = FakeClips(10, bad=(2,))
    bad = BadClips(clips, 0.5)
    for windows in ("first", "all"):
        batches = evaluate(clips, bad=bad, windows=windows)
        assert clips_in(batches) == [0, 1, 3, 4, 5, 6, 7, 8, 9]
    assert len(bad) == 1, "met twice, counted once"


def test_too_many_bad_clips_stop_the_run_with_the_list():
    clips = FakeClips(20, bad=(1, 2, 3))
    with pytest.raises(InputError, match=r"3 of 20 train clips .*sample_id1 .*sample_id2 .*sample_id3 .*10\.00%"):
        take(train(clips, bad=BadClips(clips, 0.1)), 20)
    with pytest.raises(InputError, match="max_bad_fraction"):
        evaluate(clips, bad=BadClips(clips, 0.1))


def test_a_split_of_bad_clips_only_stops_at_any_threshold():
    clips = FakeClips(4, bad=(0, 1, 2, 3))
    with pytest.raises(InputError, match="4 of 4"):
        take(train(clips, bad=BadClips(clips, 1.0)), 1)


def test_report_is_empty_when_all_is_well_and_short_when_nothing_is():
    clips = FakeClips(100, bad=tuple(range(50)))
    bad = BadClips(clips, 1.0)
    assert bad.report() == ""
    evaluate(clips, bad=bad)
    assert bad.report().startswith("50 of 100")
    assert "and 30 more" in bad.report()


def test_window_must_hold_a_sample():
    clips = FakeClips(4)
    with pytest.raises(InputError, match="no sample"):
        TrainBatches(clips, batch_size=2, sample_rate=8000, window_s=0.0, seed=0, bad=BadClips(clips, 0))


# Threads


def test_close_ends_the_threads(both):
    before = pool_threads()
    batches = train(both, prefetch=3)
    next(batches)
    assert pool_threads() - before
    batches.close()
    assert not pool_threads() - before
    with pytest.raises(StopIteration):
        next(batches)


@pytest.mark.parametrize("library", ["soundfile", "soxr"])
def test_decoding_lets_other_threads_run(library):
    """Decoding threads only help if the C libraries let go of the interpreter while they work."""
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, (60 * 44_100, 2)).astype(np.float32)
    file = io.BytesIO()
    soundfile.write(file, wave, 44_100, format="FLAC", subtype="PCM_24")
    flac, mono = file.getvalue(), wave[:, 0].copy()
    work = {
        "soundfile": lambda: decode(flac, 44_100, "x"),
        "soxr": lambda: soxr.resample(mono, 44_100, 32_000),
    }[library]
    begin_s = time.perf_counter()
    work()
    alone_ms = 1000 * (time.perf_counter() - begin_s)
    with ThreadPoolExecutor(1) as pool:
        begin_s, ran_ms = time.perf_counter(), set()
        future = pool.submit(work)
        while not future.done():
            ran_ms.add(int(1000 * time.perf_counter()))  # each millisecond in which this thread was running
        took_ms = 1000 * (time.perf_counter() - begin_s)
    assert len(ran_ms) > 0.25 * took_ms, "the decoding thread keeps the interpreter"
    assert took_ms < 20 * alone_ms, "the decoding thread keeps asking for the interpreter"


def test_labels_of_a_stream_are_checked_as_they_come(small_hub):
    shards = stream_clips(small_hub, "train").shards
    bad = dataclasses.replace(
        shards[0], rows=lambda start: ((m.assign(rudiment_slug="flam-tap"), e) for m, e in shards[0].rows(start))
    )
    with pytest.raises(InputError, match="did you mean 'flam_tap'"):
        evaluate(StreamedClips("train", "0", [bad]))
    assert labelled(shards[0].rows(0).__next__()[0], "x")["label"].dtype == np.int32


def test_crops_are_the_places_of_the_length_policy(small_hub):
    """Training on a few places of each clip cuts exactly there and says which one it was; a resumed run draws the same
    ones."""
    clips = open_clips(small_hub, "train")
    batches = take(train(clips, crops=3), 30)
    seen = set()
    for batch, _ in batches:
        for clip, crop, window in zip(batch["clip"], batch["crop"], batch["waveform"], strict=True):
            wave = trim_tail(clips.waveform(int(clip), RATE), RATE)
            expected = loop_fill(wave, N_SAMPLES, crop_start(len(wave), N_SAMPLES, int(crop), 3))
            np.testing.assert_array_equal(window, expected)
            seen.add((int(clip), int(crop)))
    assert len(seen) > 70, "of 30 clips at 3 places, in 120 draws"
    later = take(train(clips, position=batches[6][1], crops=3), 3)
    assert_same([batch for batch, _ in later], [batch for batch, _ in batches[7:10]])
    with pytest.raises(InputError, match="crops is -1"):
        train(clips, crops=-1)
