"""Recorded and synthetic clips in one batch: how many of each, and that a run resumes in both."""

import numpy as np
import pytest
from ml_collections import ConfigDict
from small_sousa import FakeClips

from configs import common
from sousa_jax.data import rows_from_clips, train_batches
from sousa_jax.data.pipeline import BadClips
from sousa_jax.errors import InputError

RATE = 8_000


def config(share: float, path: str = "folder") -> ConfigDict:
    made = common.base(model="efficientat", variant="mn01", strategy="scratch")
    made.data.path, made.data.synth.share = path, share
    made.train.batch_size = 8
    return made


def batches(settings: ConfigDict, position=None):
    clips = FakeClips(20)
    return train_batches(settings, clips, sample_rate=RATE, window_s=0.2, bad=BadClips(clips, 0.0), position=position)


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
    with batches(config(0.5)) as made:
        _, position = next(made)
        second, _ = next(made)
    assert position == {"recorded": 4, "synthetic": 4}
    with batches(config(0.5), position) as resumed:
        again, _ = next(resumed)
    for name in ("waveform", "label"):
        np.testing.assert_array_equal(again[name], second[name])


@pytest.mark.parametrize("share", [1.0, -0.1, 0.99, 7])
def test_a_share_that_leaves_nothing_is_refused(share):
    with pytest.raises(InputError, match="share"):
        rows_from_clips(config(share).data, 8)


def test_synth_alone_needs_no_share():
    assert rows_from_clips(config(0.5, "synth").data, 8) == 8
