"""The fast depthwise convolution equals the grouped one, values and gradients, wherever it is used."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from sousa_jax.models.layers import _shifted_conv, depthwise_conv, grouped_conv


def _case(height, width, channels, size, batch=2):
    keys = jax.random.split(jax.random.key(height * 100 + width), 2)
    return jax.random.normal(keys[0], (batch, height, width, channels)), jax.random.normal(keys[1], (size, size, channels))


@settings(deadline=None, max_examples=8)
@given(
    height=st.integers(1, 9), width=st.integers(1, 9), channels=st.integers(1, 3),
    size=st.sampled_from([3, 5]), stride=st.sampled_from([1, 2]),
)  # fmt: skip
@example(height=8, width=8, channels=2, size=3, stride=2)
@example(height=7, width=1, channels=1, size=5, stride=2)
def test_values_and_gradients_equal_the_grouped_convolution(height, width, channels, size, stride):
    x, kernel = _case(height, width, channels, size)
    grad = jax.random.normal(jax.random.key(9), (2, (height - 1) // stride + 1, (width - 1) // stride + 1, channels))

    @functools.partial(jax.jit, static_argnums=0)
    def value_and_gradients(conv, x, kernel, grad):
        out, vjp = jax.vjp(lambda x, k: conv(x, k, stride), x, kernel)
        return out, *vjp(grad)

    expected = value_and_gradients(grouped_conv, x, kernel, grad)
    got = value_and_gradients(_shifted_conv, x, kernel, grad)
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
def test_gradient_against_finite_differences(stride):
    x, kernel = _case(6, 5, 2, 3)
    check_grads(lambda x, k: _shifted_conv(x, k, stride), (x, kernel), order=1, modes=["rev"], atol=1e-2, rtol=1e-2)


def test_the_cpu_takes_the_fast_form():
    """On the CPU no grouped convolution may be left in the program: it is what makes it slow."""
    x, kernel = _case(8, 8, 4, 3)
    text = jax.jit(lambda x, k: depthwise_conv(x, k, 2)).lower(x, kernel).as_text()
    assert ("convolution" in text) == (jax.default_backend() != "cpu")


def test_bfloat16_in_bfloat16_out():
    x, kernel = (a.astype(jnp.bfloat16) for a in _case(6, 6, 4, 3))
    out, vjp = jax.vjp(lambda x, k: depthwise_conv(x, k, 1), x, kernel)
    assert out.dtype == jnp.bfloat16
    assert {g.dtype for g in vjp(out)} == {jnp.dtype(jnp.bfloat16)}
