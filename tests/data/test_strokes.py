"""What was struck when: read from SOUSA's table, and where the sound is in every window that training cuts."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_sousa import ClickClips, FakeClips, write_strokes

from sousa_jax.data import pipeline
from sousa_jax.data.cache import CachedClips
from sousa_jax.data.clips import BadClip
from sousa_jax.data.pipeline import BadClips, TrainBatches
from sousa_jax.data.sousa import open_clips, stream_clips
from sousa_jax.errors import InputError

RATE, FRAMES_PER_SECOND = 4000, 100
BUZZ = [(-3.0, 0, True, "grace"), (-2.0, 80, False, "buzz"), (3.0, 68, True, "buzz"), (1.0, 40, True, "grace")]
HUB, GENERATOR = "auxiliary/strokes.parquet", "labels/strokes.parquet"


def batches(clips, n, position=None, **options):
    made = {
        "batch_size": 4, "sample_rate": RATE, "window_s": 0.6, "seed": 1, "bad": BadClips(clips, 0.5),
        "strokes_per_second": FRAMES_PER_SECOND, **options,
    }  # fmt: skip
    with TrainBatches(clips, position=position, **made) as endless:
        return list(itertools.islice(endless, n))


# --------------------------------------------------------------------------------------------- where the sound is

TIMES = st.lists(st.integers(0, 1600), min_size=1, max_size=12).map(lambda ms: [m / 1000 for m in ms])


@settings(max_examples=25, deadline=None)
@given(st.lists(TIMES, min_size=2, max_size=5), st.integers(0, 9), st.sampled_from([2000, 4000, 11_025]), st.data())
def test_every_target_has_its_click_and_every_click_its_target(times_s, seed, rate, data):
    """Clips longer than the window and shorter ones, which go round up to hundreds of times."""
    velocities = [[data.draw(st.integers(20, 127)) for _ in clip] for clip in times_s]
    clips = ClickClips(times_s, velocities)
    for batch, _ in batches(clips, 2, seed=seed, sample_rate=rate, workers=1):
        for wave, onset, velocity, grace, density in zip(batch["waveform"], *batch["stroke_targets"], strict=True):
            samples = np.flatnonzero(wave)
            places = samples / rate * FRAMES_PER_SECOND  # in frames
            apart = np.abs(places[:, None] - np.arange(60))
            near, nearly = 0.5 + FRAMES_PER_SECOND / rate, 0.5 - FRAMES_PER_SECOND / rate
            assert not (onset.astype(bool) & ~(apart <= near).any(0)).any(), "an onset without a click"
            assert onset[(apart < nearly).any(0)].all(), "a click without an onset"
            for frame in np.flatnonzero(onset):
                heard = wave[samples[apart[:, frame] <= near]]
                assert np.isclose(heard, velocity[frame]).any()
            assert not grace.any()
            # Strokes of one sample are one click, so the clicks are no more than the strokes.
            assert (density >= np.minimum((apart < 2.5 - FRAMES_PER_SECOND / rate).sum(0) / 20, 1) - 1e-6).all()


def test_at_another_speed_strokes_are_where_the_sound_is():
    """Clips of four hard strokes a third of a second apart, up to a fifth faster or slower, gaps and pitch alike."""
    clips = ClickClips([[0.0, 0.3, 0.6, 0.9]] * 3, [[100] * 4] * 3)
    gaps = []
    for batch, _ in batches(clips, 8, window_s=1.5, speed=0.2):
        for wave, onset in zip(batch["waveform"], batch["stroke_targets"].onset, strict=True):
            loudest = np.abs(wave).reshape(-1, RATE // FRAMES_PER_SECOND).max(1)
            frames = np.flatnonzero(onset)
            for frame in frames:
                assert loudest[max(0, frame - 1) : frame + 1].max() > 0.2
            gaps += np.diff(frames).tolist()
    longest = max(gap for gap in gaps if gap < 40)  # the others go round the clip's end
    assert min(gaps) < 28
    assert longest > 32


def test_speed_is_drawn_apart_and_resumes():
    """The order and the places of a run do not depend on it, a resumed run hears the same."""
    clips = ClickClips([[0.0, 0.3, 0.7]] * 9, [[100] * 3] * 9)
    plain, fast = batches(clips, 6), batches(clips, 6, speed=0.2)
    for (one, _), (other, _) in zip(plain, fast, strict=True):
        np.testing.assert_array_equal(one["clip"], other["clip"])
        assert not np.array_equal(one["waveform"], other["waveform"])
    later = batches(clips, 2, position=fast[3][1], speed=0.2)
    for (one, _), (other, _) in zip(fast[4:], later, strict=True):
        np.testing.assert_array_equal(one["waveform"], other["waveform"])
    for wrong in (-0.1, 0.6):
        with pytest.raises(InputError, match=f"speed is {wrong}"):
            batches(clips, 1, speed=wrong)


def test_a_stroke_in_the_tail_that_is_trimmed_has_no_target():
    """A ghost note 53 dB below the others: the clip goes round before it."""
    clips = ClickClips([[0.05, 0.2, 0.39]], [[127, 64, 0.3]])
    for batch, _ in batches(clips, 3):
        assert set(np.unique(batch["stroke_targets"].velocity)) == set(np.float32([0, 64 / 127, 1]))


def test_batches_are_what_they_are_without_targets():
    clips = ClickClips([[0.0, 0.3], [0.1, 1.5], [0.7]])
    for (plain, position), (with_targets, same) in zip(
        batches(clips, 5, strokes_per_second=0), batches(clips, 5), strict=True
    ):
        assert position == same
        assert set(with_targets) - set(plain) == {"stroke_targets"}
        for name, column in plain.items():
            np.testing.assert_array_equal(column, with_targets[name])
    batches(FakeClips(3), 1, strokes_per_second=0)  # whose strokes nobody knows


def test_targets_resume_and_tile():
    clips = ClickClips([[0.0, 0.3, 0.31], [0.1, 1.5], [0.7]])
    (_, position), (second, _) = batches(clips, 2)
    ((resumed, _),) = batches(clips, 1, position, workers=4, prefetch=0)
    halves = [batches(clips, 1, position, process_index=i, process_count=2)[0][0] for i in range(2)]
    for whole, again, *parts in zip(*(b["stroke_targets"] for b in (second, resumed, *halves)), strict=True):
        assert whole.shape == (4, 60)
        assert whole.dtype == np.float32
        np.testing.assert_array_equal(whole, again)
        np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_real_clips_sound_where_their_strokes_are(sousa_mini, monkeypatch):
    """Over 5 ms the level rises far more at onsets than elsewhere, and most if targets are not shifted."""
    monkeypatch.setattr(pipeline, "BLOCK_ROWS", 16)
    clips, rate, hop = stream_clips(sousa_mini, "train"), 16_000, 80
    options = {"batch_size": 16, "sample_rate": rate, "window_s": 4.0, "strokes_per_second": rate // hop}
    ((batch, _),) = batches(clips, 1, **options)
    framed = np.pad(batch["waveform"], ((0, 0), (hop // 2, hop // 2))).reshape(16, -1, hop)  # centred on the frames
    level_db = 10 * np.log10((framed**2).mean(2) + 1e-6)
    rise_db = np.maximum(np.diff(level_db, axis=1), 0)  # (16, 800): from frame i to i + 1
    onset = batch["stroke_targets"].onset.astype(bool)
    assert onset.any(1).all()
    assert (onset.mean() > 0.01) & (onset.mean() < 0.2)
    at = {lag: np.roll(rise_db, -lag, axis=1)[onset].mean() for lag in range(-20, 21)}
    assert max(at, key=at.get) in (-1, 0, 1)
    assert max(at.values()) > 3 * rise_db.mean()


# ------------------------------------------------------------------------------------------------- SOUSA's table


def test_strokes_as_the_table_has_them(small_hub, tmp_path):
    """Both ways of reading and the cache. Rows of a clip may lie apart, in any order; the clip begins at 0."""
    clips, stream = open_clips(small_hub, "train"), stream_clips(small_hub, "train")
    cached = CachedClips(clips, RATE, tmp_path / "cache")
    ids, encoded = clips.table["sample_id"], list(stream.read(0))
    second = [(ids[1], *stroke) for stroke in BUZZ]
    write_strokes(small_hub / HUB, [*second[:2], (ids[0], 9.5, 100, False, "tap"), *second[2:]])  # read when asked for
    for second in (clips.clip_strokes(1), cached.clip_strokes(1), encoded[1].clip_strokes()):
        np.testing.assert_allclose(second.time_s, [0, 0, 0.003, 0.001])
        np.testing.assert_array_equal(second.velocity, [0, 80, 68, 40])
        np.testing.assert_array_equal(second.is_grace, [True, False, False, True])
        np.testing.assert_array_equal(second.is_bounce, [False, False, True, False])
        assert second.time_s.dtype == second.velocity.dtype == np.float32
    (small_hub / HUB).unlink()  # read once
    np.testing.assert_allclose(clips.clip_strokes(0).time_s, [0.0095])
    with pytest.raises(BadClip, match=rf"{ids[2]}: no strokes in .*auxiliary/strokes\.parquet"):
        clips.clip_strokes(2)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_both_layouts_know_the_same_strokes(sousa_formats, split):
    hub, local = open_clips(sousa_formats / "hub", split), open_clips(sousa_formats / "local", split)
    place = dict(zip(local.table["sample_id"], range(len(local)), strict=True))
    streamed = list(stream_clips(sousa_formats / "local", split).read(0))
    for i, sample_id in enumerate(hub.table["sample_id"]):
        others = (local.clip_strokes(place[sample_id]), streamed[place[sample_id]].clip_strokes())
        for ours, *theirs in zip(hub.clip_strokes(i), *others, strict=True):
            assert len(ours) > 0
            for column in theirs:
                np.testing.assert_array_equal(ours, column)


@pytest.mark.parametrize(("layout", "file"), [("hub", HUB), ("local", GENERATOR)])
def test_a_missing_table_is_named_and_only_missed_where_strokes_are_wanted(sousa_formats, tmp_path, layout, file):
    folder = tmp_path / layout
    folder.mkdir()
    for entry in (sousa_formats / layout).iterdir():
        if entry.name != file.split("/")[0]:
            (folder / entry.name).symlink_to(entry)
    if layout == "local":
        (folder / "labels").mkdir()
        (folder / "labels/samples.parquet").symlink_to(sousa_formats / layout / "labels/samples.parquet")
    for clips in (open_clips(folder, "train"), stream_clips(folder, "train")):
        batches(clips, 1, strokes_per_second=0)
        with pytest.raises(InputError, match=rf"{file} is missing; only training on strokes .* needs it") as error:
            batches(clips, 1)
        assert "\n" not in str(error.value)


def test_a_clip_without_strokes_is_a_bad_clip(small_hub):
    clips = open_clips(small_hub, "train")
    write_strokes(small_hub / HUB, [(name, *BUZZ[1]) for name in clips.table["sample_id"][1:]])
    bad = BadClips(clips, 0.1)
    made = batches(clips, 8, bad=bad)  # an epoch
    assert list(bad.reasons) == [clips.table["sample_id"][0]]
    assert all(batch["mask"].all() for batch, _ in made)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda file: file.write_bytes(b"PAR1"), r"strokes\.parquet cannot be read"),
        (lambda file: write_strokes(file, [("a", None, 1, False, "tap")] * 2), r"'actual_time_ms' is empty in 2"),
        (lambda file: write_strokes(file, []), r"has no column 'sample_id'"),
    ],
)
def test_a_damaged_table_is_named(small_hub, spoil, reason):
    write_strokes(small_hub / HUB, [("a", *BUZZ[0])])
    spoil(small_hub / HUB)
    with pytest.raises(InputError, match=reason) as error:
        open_clips(small_hub, "train").clip_strokes(0)
    assert "\n" not in str(error.value)
