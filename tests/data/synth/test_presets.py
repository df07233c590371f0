"""Presets are SOUSA's; recordings are drawn within what a microphone and a room can do."""

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq

from sousa_jax.data.synth.presets import HUB_PRESETS, NATURAL, PRESET_NAMES, PRESETS, SOUSA, draw_recording

HUB = ("clean_studio", "practice_room", "gym", "garage", "marching_field")


def test_the_hubs_presets_come_first():
    assert len(PRESETS) == len(set(PRESET_NAMES)) == 11
    assert PRESET_NAMES[:HUB_PRESETS] == HUB


def test_presets_are_those_of_sousas_table(sousa_mini):
    table = pq.read_table(sousa_mini / "labels_only" / "train-00000-of-00001.parquet").to_pandas()
    rows = table.drop_duplicates("augmentation_preset").set_index("augmentation_preset")
    assert set(rows.index) == set(PRESET_NAMES)
    for preset in PRESETS:
        row = rows.loc[preset.name]
        assert row.aug_mic_type == preset.mic_type
        if preset.wet:  # SOUSA names no room where there is none
            assert row.aug_room_type == preset.room_type
            assert row.aug_room_wet_dry == preset.wet
        for column, value in (
            ("aug_mic_distance", preset.mic_distance_m),
            ("aug_compression_ratio", preset.compression_ratio),
            ("aug_noise_level_db", preset.noise_db),
        ):
            np.testing.assert_equal(float(row[column]), value)


def test_recordings_differ_and_stay_possible():
    keys = jax.random.split(jax.random.key(0), 300)
    draw = jax.jit(jax.vmap(draw_recording))
    for style in (SOUSA, NATURAL):
        r = draw(keys, jnp.full(300, style), jnp.arange(300) % len(PRESETS))
        assert all(not np.isnan(leaf).any() for leaf in r)
        assert len(np.unique(r.input_db)) > 290
        assert (r.follows_velocity == (style == SOUSA)).all()
        for leaf, low, high in (
            (r.rt60_s, 0.1, 1.5),
            (r.wet, 0, 3),
            (r.reflection_s, 0.0007, 0.5),
            (r.ratio, 1, 10),
            (r.attack_s, 0.001, 0.03),
            (r.release_s, 0.015, 0.4),
            (r.peak_db, -30, -1),
        ):
            assert low <= leaf.min(), (low, leaf.min())
            assert leaf.max() <= high, (high, leaf.max())
