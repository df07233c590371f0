"""The fast depthwise convolution equals the grouped one, values and gradients, wherever it is used."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from sousa_jax.models.layers import (
    ACTIVATIONS,
    _shifted_conv,
    batch_normalize,
    depthwise_conv,
    grouped_conv,
    pointwise_conv,
)


def _case(height, width, channels, size, batch=2):
    keys = jax.random.split(jax.random.key(height * 100 + width), 2)
    return jax.random.normal(keys[0], (batch, height, width, channels)), jax.random.normal(
        keys[1], (size, size, channels)
    )


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


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_batch_norm_equals_the_textbook_and_its_gradient(activation):
    """Against the formula written out, differentiated by JAX."""
    x = jax.random.normal(jax.random.key(0), (4, 5, 6, 3)) * 3 + 2
    scale, bias = jnp.array([0.5, 2.0, -1.0]), jnp.array([0.1, -1.0, 3.0])

    def textbook(x, scale, bias):
        mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
        return ACTIVATIONS[activation][0]((x - mean) / jnp.sqrt(var + 1e-3) * scale + bias)

    ours = lambda x, scale, bias: batch_normalize(x, scale, bias, activation, 1e-3)[0]  # noqa: E731
    expected, expected_vjp = jax.vjp(textbook, x, scale, bias)
    got, got_vjp = jax.vjp(ours, x, scale, bias)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    grad = jax.random.normal(jax.random.key(1), got.shape)
    for a, b in zip(got_vjp(grad), expected_vjp(grad), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize(("inside", "outside"), [(3, 7), (7, 3)])
def test_pointwise_gradient_whichever_side_is_narrower(inside, outside):
    x = jax.random.normal(jax.random.key(0), (2, 4, 5, inside))
    kernel = jax.random.normal(jax.random.key(1), (inside, outside))
    grad = jax.random.normal(jax.random.key(2), (2, 4, 5, outside))
    for a, b in zip(jax.vjp(pointwise_conv, x, kernel)[1](grad), jax.vjp(jnp.matmul, x, kernel)[1](grad), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
