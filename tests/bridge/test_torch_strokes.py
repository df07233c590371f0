"""The list of strokes that the twin reads is Flax's, and so is what it reads of them."""

import jax
import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge import torch_strokes
from sousa_jax.data.frame_targets import FrameTargets
from sousa_jax.models import heads

N, RATE = 120, 200
listed = jax.jit(lambda heard: heads.list_strokes(heard, RATE))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1, width=16), min_size=N, max_size=N), st.floats(0, 1), st.integers(0, 99))
def test_lists_are_equal(onset, sparse, seed):
    """Of few strokes and of more than there is room for, neighbours as large as each other included."""
    rng = np.random.default_rng(seed)
    onset = np.float32(onset) * (rng.random(N) < sparse)
    heard = np.concatenate([onset[None], rng.random((3, N))]).astype(np.float32)
    expected = listed(FrameTargets(*heard[:, None]))
    found = torch_strokes.StrokeList(N, RATE)(torch.from_numpy(heard)[None, :, None])
    np.testing.assert_allclose(found[0, :, 0], np.stack(expected)[:, 0], atol=1e-5)
    np.testing.assert_allclose(
        torch_strokes.describe(found)[0, :, 0].T, heads.describe(expected)[0], atol=2e-4, rtol=1e-4
    )


def test_a_window_of_five_seconds():
    """1,000 frames: the last of a hundred strokes is where it fell."""
    onset = np.zeros((4, 1000), np.float32)
    onset[0, 9::10] = 1
    found = torch_strokes.StrokeList(1000, RATE)(torch.from_numpy(onset)[None, :, None])[0, :, 0]
    np.testing.assert_allclose(found[0], np.arange(9, 1000, 10) / RATE, atol=1e-6)
    assert found[5].all()
