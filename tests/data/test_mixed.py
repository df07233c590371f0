"""Recorded and synthetic clips in one batch: how many of each, and that a run resumes in both."""

import numpy as np
import pytest
from ml_collections import ConfigDict
from small_sousa import ClickClips, FakeClips

from configs import common
from sousa_jax.data import rows_from_clips, train_batches
from sousa_jax.data.pipeline import BadClips
from sousa_jax.devices import Layout
from sousa_jax.errors import InputError

RATE = 8_000


def config(share: float, path: str = "folder") -> ConfigDict:
    made = common.base(model="efficientat", variant="mn01", strategy="scratch")
    made.data.path, made.data.synth.share = path, share
    made.train.batch_size = 8
    return made


def batches(settings: ConfigDict, position=None, clips=None, **options):
    clips = clips or FakeClips(20)
    settings_of_all = {"sample_rate": RATE, "window_s": 0.2, "bad": BadClips(clips, 0.0), **options}
    return train_batches(settings, clips, position=position, **settings_of_all)


@pytest.mark.parametrize(("share", "rows"), [(0.0, 8), (0.5, 4), (0.8, 2)])
def test_the_share_is_kept(share, rows):
    assert rows_from_clips(config(share).data, 8) == rows
    with batches(config(share)) as made:
        batch, _ = next(made)
    assert batch["waveform"].shape == (8, round(0.2 * RATE))
    with batches(config(0.0)) as alone:
        recorded, _ = next(alone)
    # The recorded rows are those which they would be alone.
    np.testing.assert_array_equal(np.asarray(batch["label"])[:rows], recorded["label"][:rows])


def test_it_resumes_in_both():
    """The targets of strokes, too, which are those of the recorded and of the synthetic rows."""
    clips, layout = ClickClips([[0.0, 0.05], [0.02, 0.08]]), Layout()
    options = {"clips": clips, "strokes_per_second": 100, "layout": layout}
    with batches(config(0.5), **options) as made:
        _, position = next(made)
        second, _ = next(made)
    assert position == {"recorded": 4, "synthetic": 4}
    with batches(config(0.5), position, **options) as resumed:
        again, _ = next(resumed)
    for name in ("waveform", "label"):
        np.testing.assert_array_equal(again[name], second[name])
    with batches(config(0.0), **options) as alone:
        recorded, _ = next(alone)
    for column, same, clicks in zip(*(b["stroke_targets"] for b in (second, again, recorded)), strict=True):
        assert column.shape == (8, 20)
        assert column.sharding.is_equivalent_to(layout.rows, 2)
        np.testing.assert_array_equal(column, same)
        np.testing.assert_array_equal(column[:4], clicks[4:])  # alone they were the second four rows


@pytest.mark.parametrize("share", [1.0, -0.1, 0.99, 7])
def test_a_share_that_leaves_nothing_is_refused(share):
    with pytest.raises(InputError, match="share"):
        rows_from_clips(config(share).data, 8)


def test_synth_alone_needs_no_share():
    assert rows_from_clips(config(0.5, "synth").data, 8) == 8
