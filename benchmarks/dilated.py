"""The body that the small networks of `benchmarks.symbols` and `benchmarks.onsets` share."""

import jax
import jax.numpy as jnp
from flax import nnx

TAPS = 5


class DilatedBlocks(nnx.Module):
    """Residual convolutions of five taps along the middle axis: `(B, T, width)` to the same shape.

    `mask` is `(B, T, 1)` or None; what is masked stays zero. Outside of the sequence everything is zero.
    """

    def __init__(self, width: int, dilations: tuple[int, ...], *, rngs: nnx.Rngs):
        self.dilations = dilations
        self.blocks = nnx.List(
            nnx.Dict(
                norm=nnx.LayerNorm(width, rngs=rngs),
                taps=nnx.Linear(TAPS * width, width, rngs=rngs),
                out=nnx.Linear(width, width, rngs=rngs),
            )
            for _ in dilations
        )

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        mask = jnp.ones((), x.dtype) if mask is None else mask
        for block, dilation in zip(self.blocks, self.dilations, strict=True):
            reach = TAPS // 2 * dilation
            padded = jnp.pad(block.norm(x) * mask, ((0, 0), (reach, reach), (0, 0)))
            taps = [padded[:, i * dilation : i * dilation + x.shape[1]] for i in range(TAPS)]
            x = (x + block.out(nnx.gelu(block.taps(jnp.concatenate(taps, -1))))) * mask
        return x
