"""What reads a rhythm without a recurrence is the recurrence."""

import jax
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge import torch_strokes
from sousa_jax.data.frame_targets import FrameTargets
from sousa_jax.models import heads

N = 37
scan = jax.jit(heads.latest_strokes)
condense = jax.jit(heads.condense)


def shifts(onset, values, nothing):
    """`(T, reach, C)` of one stream, as `heads.latest_strokes` has it."""
    as_twin = lambda x: torch.from_numpy(x).T.reshape(1, -1, 1, len(x))  # noqa: E731
    held = torch_strokes.latest_strokes(
        as_twin(onset[:, None]), as_twin(values), torch.from_numpy(nothing)[:, None, :, None, None], len(onset)
    )
    return np.stack([x[0, :, 0].T.numpy() for x in held], 1)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.0, 0.0, 0.25, 0.7, 1.0]), min_size=N, max_size=N), st.integers(0, 99))
def test_shifts_compute_the_recurrence(onset, seed):
    rng = np.random.default_rng(seed)
    values, nothing = np.float32(rng.normal(size=(N, 3))), np.float32(rng.normal(size=(4, 3)))
    onset = np.float32(onset)
    expected = scan(onset[None], values[None], nothing)[0]
    np.testing.assert_allclose(shifts(onset, values, nothing), expected, atol=2e-5)


def test_a_window_of_five_seconds():
    """1,000 frames, ten doublings: the last stroke is remembered from one end to the other."""
    rng = np.random.default_rng(0)
    onset = np.zeros(1000, np.float32)
    onset[3] = 1
    values, nothing = np.float32(rng.normal(size=(1000, 3))), np.float32(rng.normal(size=(4, 3)))
    np.testing.assert_allclose(shifts(onset, values, nothing)[-1, 0], values[3], atol=1e-6)
    np.testing.assert_allclose(shifts(onset, values, nothing)[-1, 1:], nothing[:-1], atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1, width=16), min_size=N, max_size=N), st.integers(0, 99))
def test_condensed_streams_are_equal(onset, seed):
    """Neighbours as large as each other included."""
    others = np.float32(np.random.default_rng(seed).random((3, N)))
    heard = np.concatenate([np.float32(onset)[None], others])
    expected = np.stack(condense(FrameTargets(*heard[:, None])))[:, 0]
    found = torch_strokes.condense(torch.from_numpy(heard)[None, :, None])
    np.testing.assert_allclose(found[0, :, 0], expected, atol=1e-5)


@pytest.mark.parametrize("frames", [1, 2, 64])
def test_delayed(frames):
    x = torch.arange(1.0, 101.0)[None, None, None]
    found = torch_strokes.delayed(x, frames)[0, 0, 0]
    assert not found[:frames].any()
    assert torch.equal(found[frames:], x[0, 0, 0, :-frames])
