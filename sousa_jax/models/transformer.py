"""The parts that HTS-AT, BEATs and AST share: each is a transformer on patches of a spectrogram.

Every part computes in the dtype of its input (float32 or bfloat16) from float32 parameters; normalization and
softmax are float32 throughout. Paths of parameters speak one language in all three networks:
`blocks.3.attention.query.kernel`, `blocks.3.mlp.hidden.kernel`.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

Initializer = jax.nn.initializers.Initializer

# timm's and Swin's initialization of linear layers. There it is "truncated", but at ±2: a hundred deviations.
NORMAL = nnx.initializers.normal(0.02)


def project(x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """`x @ kernel + bias`: `(…, in_features)` to `(…, out_features)`, in x's dtype.

    Computed as a product of two matrices: with more axes, XLA's CPU takes up to three times as long for the gradients.
    """
    y = x.reshape(-1, x.shape[-1]) @ kernel.astype(x.dtype)
    y = y if bias is None else y + bias.astype(x.dtype)
    return y.reshape(*x.shape[:-1], -1)


class Linear(nnx.Module):
    """`project` with parameters of its own: `(…, in_features)` to `(…, out_features)`. `lora` is an adapter's place."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        kernel_init: Initializer = NORMAL,
        use_bias: bool = True,
        rngs: nnx.Rngs,
    ):
        self.kernel = nnx.Param(kernel_init(rngs.params(), (in_features, out_features), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(out_features)) if use_bias else None
        self.lora = nnx.data(None)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = project(x, self.kernel[...], None if self.bias is None else self.bias[...])
        return y if self.lora is None else y + self.lora(x)


class LayerNorm(nnx.Module):
    """Layer norm over the last axis, in float32 whatever the input; the output keeps the input's dtype."""

    def __init__(self, features: int, *, epsilon: float):
        self.scale, self.bias = nnx.Param(jnp.ones(features)), nnx.Param(jnp.zeros(features))
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        centred = wide - wide.mean(-1, keepdims=True)
        variance = jnp.square(centred).mean(-1, keepdims=True)
        return (centred * lax.rsqrt(variance + self.epsilon) * self.scale[...] + self.bias[...]).astype(x.dtype)


def gelu(x: jax.Array) -> jax.Array:
    """The exact (erf) GELU of PyTorch; JAX's default is the tanh approximation, off by up to 5e-4."""
    return jax.nn.gelu(x, approximate=False)


def split_heads(x: jax.Array, n_heads: int) -> jax.Array:
    """`(…, T, heads · D)` to `(…, heads, T, D)`."""
    return jnp.swapaxes(x.reshape(*x.shape[:-1], n_heads, -1), -3, -2)


def attend(query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """Scaled dot-product attention.

    Args:
      query, key, value: `(…, heads, T, D)`.
      bias: added to the scores, broadcastable to `(…, heads, T, T)`; `-inf` hides a key.

    Returns:
      `(…, T, heads · D)`: the heads side by side again.
    """
    scores = jnp.einsum("...qd,...kd->...qk", query * query.shape[-1] ** -0.5, key)
    scores = scores.astype(jnp.float32)
    weights = jax.nn.softmax(scores if bias is None else scores + bias, axis=-1).astype(value.dtype)
    mixed = jnp.swapaxes(jnp.einsum("...qk,...kd->...qd", weights, value), -3, -2)
    return mixed.reshape(*mixed.shape[:-2], -1)


class MLP(nnx.Module):
    """Linear, exact GELU, linear, with dropout after each."""

    def __init__(
        self,
        features: int,
        hidden_features: int,
        *,
        dropout: float = 0.0,
        kernel_init: Initializer = NORMAL,
        rngs: nnx.Rngs,
    ):
        self.hidden = Linear(features, hidden_features, kernel_init=kernel_init, rngs=rngs)
        self.output = Linear(hidden_features, features, kernel_init=kernel_init, rngs=rngs)
        self.dropout = dropout

    def __call__(self, x: jax.Array, rng: jax.Array | None = None) -> jax.Array:
        hidden = dropout(gelu(self.hidden(x)), self.dropout, rng, 0)
        return dropout(self.output(hidden), self.dropout, rng, 1)


def dropout(x: jax.Array, rate: float, rng: jax.Array | None, place: int) -> jax.Array:
    """Zeroes values with probability `rate` and scales up the rest. No key means evaluation: x itself.
    `place` tells apart the draws that come from one key."""
    if rng is None or rate == 0.0:
        return x
    kept = jax.random.bernoulli(jax.random.fold_in(rng, place), 1.0 - rate, x.shape)
    return jnp.where(kept, x / (1.0 - rate), 0).astype(x.dtype)


def drop_path(x: jax.Array, rate: float, rng: jax.Array | None, place: int) -> jax.Array:
    """Stochastic depth (arXiv:1603.09382): drops a residual branch `(batch, …)` for whole clips."""
    if rng is None or rate == 0.0:
        return x
    kept = jax.random.bernoulli(jax.random.fold_in(rng, place), 1.0 - rate, (x.shape[0],) + (1,) * (x.ndim - 1))
    return jnp.where(kept, x / (1.0 - rate), 0).astype(x.dtype)


def layer_rng(rng: jax.Array | None, layer: int) -> jax.Array | None:
    """The key of one layer; None stays None."""
    return None if rng is None else jax.random.fold_in(rng, layer)
