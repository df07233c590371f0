"""The shared parts of the transformers give PyTorch's numbers, keep dtypes, and drop what they say they drop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from sousa_jax.models.transformer import (
    MLP,
    LayerNorm,
    Linear,
    attend,
    drop_path,
    dropout,
    gelu,
    layer_rng,
    split_heads,
)

KEY = jax.random.key(0)


def _random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_gelu_is_the_exact_one():
    x = np.linspace(-6, 6, 501, dtype=np.float32)
    np.testing.assert_allclose(gelu(x), torch.nn.functional.gelu(torch.from_numpy(x)), atol=1e-6)  # tanh: 5e-4


@pytest.mark.parametrize("epsilon", [1e-5, 1e-1])
def test_layer_norm(epsilon):
    x, norm = 3 + 2 * _random(4, 7, 16), LayerNorm(16, epsilon=epsilon)
    norm.scale[...], norm.bias[...] = _random(16, seed=1), _random(16, seed=2)
    arguments = (torch.from_numpy(np.array(a)) for a in (norm.scale[...], norm.bias[...]))
    expected = torch.nn.functional.layer_norm(torch.from_numpy(x), (16,), *arguments, epsilon)
    np.testing.assert_allclose(norm(x), expected, atol=2e-6)


def test_layer_norm_of_a_large_mean():
    """The variance is of centred values: as E[x²] - E[x]² nothing of it would be left here."""
    x = 4096 + _random(2, 64)
    norm = LayerNorm(64, epsilon=1e-5)
    np.testing.assert_allclose(norm(x), norm(x - np.float32(4096)), atol=1e-3)


def test_attention_with_bias_and_hidden_keys():
    query, key, value = (_random(2, 3, 5, 4, seed=seed) for seed in range(3))
    bias = _random(3, 5, 5, seed=3)
    bias[:, :, 4] = -np.inf
    tensors = (torch.from_numpy(a) for a in (query, key, value))
    expected = torch.nn.functional.scaled_dot_product_attention(*tensors, attn_mask=torch.from_numpy(bias))
    ours = attend(query, key, value, bias)
    np.testing.assert_allclose(ours, expected.swapaxes(1, 2).reshape(2, 5, 12), atol=1e-6)
    np.testing.assert_array_equal(split_heads(ours, 3)[:, 1], ours[..., 4:8])


def test_linear_and_mlp():
    mlp = MLP(6, 9, rngs=nnx.Rngs(0))
    x = _random(2, 3, 6)
    hidden = x @ mlp.hidden.kernel[...] + mlp.hidden.bias[...]
    expected = gelu(hidden) @ mlp.output.kernel[...] + mlp.output.bias[...]
    np.testing.assert_allclose(mlp(x), expected, atol=1e-6)
    assert Linear(6, 4, use_bias=False, rngs=nnx.Rngs(0)).bias is None


def test_linear_layers_start_normal_with_zero_bias():
    linear = Linear(200, 300, rngs=nnx.Rngs(0))
    assert np.std(linear.kernel[...]) == pytest.approx(0.02, rel=0.02)
    assert not np.any(linear.bias[...])


def test_the_input_decides_the_dtype():
    x = jnp.asarray(_random(2, 5, 8), jnp.bfloat16)
    assert MLP(8, 16, dropout=0.1, rngs=nnx.Rngs(0))(x, KEY).dtype == jnp.bfloat16
    assert LayerNorm(8, epsilon=1e-5)(x).dtype == jnp.bfloat16
    heads = split_heads(x, 2)
    assert attend(heads, heads, heads, jnp.zeros((5, 5))).dtype == jnp.bfloat16
    assert drop_path(x, 0.5, KEY, 0).dtype == jnp.bfloat16


def test_dropout_zeroes_single_values_and_drop_path_whole_clips():
    x = jnp.ones((4000, 3, 5))
    single, whole = dropout(x, 0.25, KEY, 0), drop_path(x, 0.25, KEY, 0)
    assert set(np.unique(single)) == set(np.unique(whole)) == {0, np.float32(1 / 0.75)}
    assert float((single == 0).mean()) == pytest.approx(0.25, abs=0.01)
    assert float((whole == 0).mean()) == pytest.approx(0.25, abs=0.03)
    assert jnp.array_equal(whole.max((1, 2)), whole.min((1, 2)))
    assert not jnp.array_equal(single.max((1, 2)), single.min((1, 2)))


@pytest.mark.parametrize("drop", [dropout, drop_path])
def test_draws_differ_by_place_and_layer_and_stop_without_a_key(drop):
    x = jnp.ones((64, 8))
    assert drop(x, 0.5, None, 0) is x
    assert drop(x, 0.0, KEY, 0) is x
    draws = [drop(x, 0.5, layer_rng(KEY, layer), place) for layer in range(2) for place in range(2)]
    assert all(not jnp.array_equal(a, b) for i, a in enumerate(draws) for b in draws[:i])
    assert layer_rng(None, 3) is None
