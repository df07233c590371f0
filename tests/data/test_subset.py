"""Clips that are left out are gone from training and validation, and only from there."""

import numpy as np
import pytest
from test_train import tiny_config

from sousa_jax.data import open_split
from sousa_jax.data.subset import SubsetClips
from sousa_jax.data.synth import SynthClips
from sousa_jax.errors import InputError
from sousa_jax.metrics import TIERS


@pytest.fixture(scope="module")
def clips():
    return SynthClips("train", 200, seed=0)  # five players, of all tiers


def test_what_is_excluded_is_gone_and_the_rest_is_as_before(clips):
    left = SubsetClips(clips, ("skill_tier=beginner", "rudiment_slug=flam"))
    stays = (clips.table["skill_tier"] != "beginner") & (clips.table["rudiment_slug"] != "flam")
    assert 0 < len(left) < len(clips)
    assert left.table["sample_id"].tolist() == clips.table["sample_id"][stays].tolist()
    assert left.table.index.tolist() == list(range(len(left)))
    last = len(left) - 1
    row = int(np.flatnonzero(stays)[last])
    np.testing.assert_array_equal(left.waveform(last, 8_000), clips.waveform(row, 8_000))
    np.testing.assert_array_equal(left.clip_strokes(last).time_s, clips.clip_strokes(row).time_s)


def test_the_fingerprint_tells_what_was_left_out(clips):
    some = {SubsetClips(clips, rules).fingerprint for rules in (("skill_tier=beginner",), ("skill_tier=advanced",))}
    assert len({*some, clips.fingerprint}) == 3
    ways = [("skill_tier=beginner", "rudiment_slug=flam"), ("rudiment_slug=flam", "skill_tier=beginner")]
    assert len({SubsetClips(clips, way).fingerprint for way in ways}) == 1


@pytest.mark.parametrize(
    ("exclude", "message"),
    [
        (("skil_tier=beginner",), r"skill_tier"),
        (("skill_tier",), r"no train clip has that skill_tier"),
        (("skill_tier=expert",), r"there are: advanced, beginner, intermediate, professional"),
        (tuple(f"skill_tier={tier}" for tier in TIERS), r"leaves no train"),
    ],
)
def test_mistakes_are_named(clips, exclude, message):
    with pytest.raises(InputError, match=message):
        SubsetClips(clips, exclude)


def test_only_the_test_split_stays_whole(tmp_path):
    config = tiny_config()
    config.data.synth.clips = (200, 200, 200)
    config.data.exclude = ("skill_tier=beginner",)
    for split in ("train", "validation", "test"):
        tiers = set(open_split(config.data, split, seed=0, sample_rate=8_000).table["skill_tier"])
        assert ("beginner" in tiers) == (split == "test")
