"""Strokes on frames: one rule, the same by NumPy on the host and jitted on the device."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sousa_jax.data.frame_targets import count_frames, place_on_frames
from sousa_jax.errors import InputError

N_STROKES, N_FRAMES = 12, 40

# Many strokes share a frame, a velocity or an edge of a density window; some lie outside, some are none.
STROKE = st.tuples(
    st.one_of(st.integers(-10, 450).map(lambda ms: ms / 1000), st.floats(-0.125, 0.5, width=32, allow_subnormal=False)),
    st.sampled_from([0, 1, 64, 64, 127]),
    st.booleans(),
    st.booleans(),
)


def columns(strokes):
    time_s, velocity, is_grace, is_bounce = zip(*strokes, strict=True)
    return np.float32(time_s), np.float32(velocity), np.array(is_grace), np.array(is_bounce)


@functools.partial(jax.jit, static_argnums=1)
def on_the_device(strokes, frames_per_second):
    return jax.vmap(lambda *s: place_on_frames(*s, N_FRAMES, frames_per_second))(*strokes)


@settings(max_examples=100, deadline=None)
@given(st.lists(STROKE, min_size=2 * N_STROKES, max_size=2 * N_STROKES), st.sampled_from([100, 62.5]))
def test_host_and_device_agree(strokes, frames_per_second):
    made = columns(strokes)
    batch = tuple(column.reshape(2, N_STROKES) for column in made)
    device = jax.device_get(on_the_device(batch, frames_per_second))
    for row in range(2):
        host = place_on_frames(*(column[row] for column in batch), N_FRAMES, frames_per_second)
        for name, ours, theirs in zip(host._fields, host, device, strict=True):
            assert ours.dtype == theirs.dtype == np.float32
            assert ours.shape == (N_FRAMES,)
            exact = name in ("onset", "grace")
            np.testing.assert_allclose(ours, theirs[row], rtol=0 if exact else 1e-6, err_msg=name)


@settings(max_examples=100, deadline=None)
@given(st.lists(STROKE, min_size=1, max_size=30))
def test_each_frame_says_what_the_rule_says(strokes):
    """The rule once more, stroke by stroke."""
    time_s, velocity, is_grace, is_bounce = columns(strokes)
    sounds = (velocity > 0) & (time_s >= 0) & (time_s < np.float32(0.4))
    nearest = np.round(time_s * np.float32(100))
    made = place_on_frames(time_s, velocity, is_grace, is_bounce, 40, 100)
    for i in range(40):
        here = sounds & ~is_bounce & (nearest == i)
        hardest = max(velocity[here], default=0)
        assert made.onset[i] == here.any()
        assert made.velocity[i] == pytest.approx(hardest / 127)
        assert made.grace[i] == (is_grace & here & (velocity == hardest)).any()
        distance = np.abs(time_s[sounds].astype(np.float64) - i / 100)
        at_least, at_most = ((distance < 0.025 + nearly).sum() for nearly in (-1e-6, 1e-6))
        assert min(at_least / 20, 1) - 1e-6 <= made.density[i] <= min(at_most / 20, 1) + 1e-6


def test_density_is_full_in_the_densest_buzz():
    time_s = np.arange(0, 0.2, 0.001, dtype=np.float32)
    made = place_on_frames(time_s, np.full(200, 90, np.float32), *np.zeros((2, 200), bool), 20, 100)
    assert made.density.max() == 1
    assert made.density[0] == 1, "25 strokes in the half window that there is"


def test_no_strokes_are_zeros():
    nothing = np.zeros(0, np.float32)
    for column in place_on_frames(nothing, nothing, nothing > 0, nothing > 0, 5, 100):
        np.testing.assert_array_equal(column, np.zeros(5, np.float32))


def test_how_many_frames_a_window_has():
    assert [count_frames(2.5, rate) for rate in (0, 1, 100)] == [0, 2, 250]
    for window_s, rate in ((2.5, -1), (0.1, 2)):
        with pytest.raises(InputError, match=f"strokes_per_second is {rate}"):
            count_frames(window_s, rate)
