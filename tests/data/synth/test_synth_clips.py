"""A fixed set of synthetic clips: a pure function of (seed, split, index), with SOUSA's columns, players kept apart."""

import re

import numpy as np
import pytest

from sousa_jax.data.clips import METADATA_COLUMNS, Clips
from sousa_jax.data.synth import Source, SynthClips
from sousa_jax.data.synth.players import TIERS
from sousa_jax.data.synth.presets import HUB_PRESETS, PRESET_NAMES
from sousa_jax.errors import InputError
from sousa_jax.rudiments import NUM_CLASSES, SLUGS

SPLITS = ("train", "validation", "test")
RATE = 16_000


def test_table_is_what_clips_promise():
    clips = SynthClips("train", 60, seed=3)
    assert isinstance(clips, Clips)
    assert list(clips.table.columns) == [*METADATA_COLUMNS, "label"]
    assert len(clips) == len(clips.table) == 60
    assert clips.table.label.dtype == np.int32
    assert [SLUGS[i] for i in clips.table.label] == list(clips.table.rudiment_slug)
    assert clips.table.tempo_bpm.between(60, 180).all()
    for i in (0, 59):
        strokes = clips.strokes(i)
        last_s = strokes.time_s[strokes.valid].max()
        assert 0 <= strokes.time_s[strokes.valid].min() < 0.5, "a clip begins with the first downbeat"
        assert clips.table.duration_sec[i] == pytest.approx(last_s + 0.5, abs=1e-4)
        assert len(clips.waveform(i, RATE)) == pytest.approx((last_s + 1) * RATE, abs=2)


def test_ids_have_sousas_form():
    table = SynthClips("validation", 2_000, seed=0).table
    form = re.compile(r"^(beg|int|adv|pro)(\d{3})_(.+)_(\d+)bpm_([a-z0-9]+)_([a-z0-9]+)$")
    for row in table.iloc[::50].itertuples():
        tier, _, slug, tempo, font, preset = form.match(row.sample_id).groups()
        assert (tier, slug, tempo) == (row.skill_tier[:3], row.rudiment_slug, str(row.tempo_bpm))
        assert (font, preset) == ("synth", row.augmentation_preset.replace("_", ""))
        assert row.augmentation_group_id == f"{row.profile_id[:8]}_{slug}_{tempo}"
    assert table.sample_id.is_unique
    assert table.augmentation_group_id.is_unique
    rare = table.augmentation_preset.isin(PRESET_NAMES[HUB_PRESETS:]).mean()
    assert 0.1 < rare < 0.2


def test_strokes_as_recorded_clips_have_them():
    clips = SynthClips("train", 60, seed=3)
    for i in (0, clips.table.rudiment_slug.tolist().index("multiple_bounce_roll")):
        strokes, made = clips.strokes(i), clips.clip_strokes(i)
        np.testing.assert_array_equal(made.time_s, strokes.time_s[strokes.valid])
        assert not (made.is_grace & made.is_bounce).any()
        assert (made.is_grace | made.is_bounce).sum() == (strokes.is_grace & strokes.valid).sum()
    assert made.is_bounce.sum() > 20


def test_a_clip_depends_on_seed_split_and_index_only():
    few, many = SynthClips("train", 40, seed=1), SynthClips("train", 300, seed=1)
    many.waveform(70, RATE)  # another order of access
    for i in (39, 0, 17):
        np.testing.assert_array_equal(few.waveform(i, RATE), many.waveform(i, RATE))
        assert few.table.iloc[i].equals(many.table.iloc[i])
    for other in (SynthClips("train", 40, seed=2), SynthClips("test", 40, seed=1)):
        assert not np.array_equal(few.strokes(0).velocity, other.strokes(0).velocity)


def test_fingerprint():
    sets = [
        SynthClips("train", 40, 0),
        SynthClips("train", 41, 0),
        SynthClips("train", 40, 1),
        SynthClips("test", 40, 0),
        SynthClips("train", 40, 0, Source("notated")),
        SynthClips("train", 40, 0, bandwidth_hz=4_000),
    ]
    assert len({s.fingerprint for s in sets}) == len(sets)
    assert re.fullmatch("[0-9a-f]{16}", sets[0].fingerprint)
    assert SynthClips("train", 40, 0).fingerprint == sets[0].fingerprint


def test_players_stay_in_their_split():
    tables = [SynthClips(split, 800, seed=0).table for split in SPLITS]
    players = [set(t.profile_id) for t in tables]
    numbers = [set(t.sample_id.str[3:6]) for t in tables]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert players[a].isdisjoint(players[b])
        assert numbers[a].isdisjoint(numbers[b])
    for table in tables:
        assert set(table.skill_tier) == set(TIERS)
        assert (table.groupby("profile_id")[["skill_tier", "dominant_hand"]].nunique() == 1).all(axis=None)


@pytest.mark.parametrize("num_clips", [40, 85, 600])
def test_classes_are_balanced(num_clips):
    counts = SynthClips("validation", num_clips, seed=5).table.label.value_counts()
    assert len(counts) == NUM_CLASSES
    assert counts.max() - counts.min() <= 1


def test_an_endless_performance_gives_nothing_away():
    """Neither the length of a clip nor where it begins is a matter of its class; most sound to their very end."""
    clips = SynthClips("test", 120, seed=0, source=Source("mixed", num_cycles=0, window_s=6.0))
    assert clips.table.duration_sec.nunique() == 1
    to_the_end = []
    for i in range(0, 120, 3):
        strokes, wave = clips.strokes(i), clips.waveform(i, RATE)
        assert len(wave) == 6 * RATE
        time_s = np.sort(strokes.time_s[strokes.valid])
        longest_s = 1.2 * 60 / clips.table.tempo_bpm[i] * 4  # no rudiment pauses longer than four beats
        assert time_s[0] < longest_s
        to_the_end.append(time_s[-1] > 6.0 - longest_s)
        assert time_s[-1] > 0.4 * 6.0 - longest_s
    assert 0.5 < np.mean(to_the_end) < 1, "a quarter of the players stop earlier"
    begun = [clips.strokes(i).time_s[clips.strokes(i).valid].min() for i in range(120)]
    assert np.std(begun) > 0.05


def test_dialects_are_drawn():
    mixed = SynthClips("train", 200, seed=0, source=Source("mixed"))
    notated = mixed._performances.take.dialect.mean()
    assert (mixed.table.augmentation_preset == "natural").mean() == notated
    where = int(np.flatnonzero(mixed._performances.take.dialect)[0])
    assert mixed.row(where)["aug_room_type"] == "natural"
    assert 0.4 < notated < 0.6
    assert not mixed._performances.take.left_lead[mixed._performances.take.dialect == 0].any()


def test_bad_arguments_are_refused():
    for call in (
        lambda: SynthClips("val", 40, seed=0),
        lambda: SynthClips("train", 0, seed=0),
        lambda: SynthClips("train", 40, seed=-1),
        lambda: Source("swing"),
        lambda: Source("sousa", num_cycles=-1),
        lambda: Source("sousa", num_cycles=0),
        lambda: Source(clips_per_player=0),
        lambda: SynthClips("train", 40, seed=0).waveform(0, 4_000),
    ):
        with pytest.raises(InputError) as error:
            call()
        assert "\n" not in str(error.value)
