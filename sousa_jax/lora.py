"""LoRA: low-rank adapters beside frozen kernels (E. Hu et al., ICLR 2022, arXiv:2106.09685).

A layer `y = x W + b` becomes `y = x W + b + (α / r) x A B`, with A `(in, r)` random and B `(r, out)` zero at first, so
that nothing changes before training. `attach` gives a network such adapters, `merge` folds them into the kernels.
"""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sousa_jax.errors import InputError

ADAPTER = "lora"  # `blocks.3.attention.query.lora.a` stands beside `blocks.3.attention.query.kernel`


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Which layers are adapted, and how.

    Attributes:
      targets: regular expression; layers whose whole path it matches are adapted (`blocks.3.attention.query`).
      rank: r.
      alpha: α; adapters count α / r.
      dropout: of the features that the adapters read, in training. The same features for a whole batch, because it
        is done by leaving out rows of A.
    """

    targets: str
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError(f"the rank of LoRA is {self.rank}, expected at least 1")
        if not 0.0 <= self.dropout < 1.0:
            raise InputError(f"the dropout of LoRA is {self.dropout}, expected at least 0 and below 1")
        try:
            re.compile(self.targets)
        except re.error as error:
            raise InputError(f"the targets of LoRA are no regular expression ({error}): {self.targets!r}") from error


class Adapter(nnx.Module):
    """`(α / r) x A B` in x's dtype: `(…, in)` to `(…, out)`."""

    def __init__(self, in_features: int, out_features: int, settings: LoRA, *, rngs: nnx.Rngs):
        bound = in_features**-0.5
        self.a = nnx.Param(jax.random.uniform(rngs.params(), (in_features, settings.rank), minval=-bound, maxval=bound))
        self.b = nnx.Param(jnp.zeros((settings.rank, out_features)))
        self.scale = settings.alpha / settings.rank

    def __call__(self, x: jax.Array) -> jax.Array:
        rows = x.reshape(-1, x.shape[-1])
        y = (rows @ self.a[...].astype(x.dtype)) @ self.b[...].astype(x.dtype) * self.scale
        return y.reshape(*x.shape[:-1], -1)


def attach(model: nnx.Module, settings: LoRA, *, rngs: nnx.Rngs) -> None:
    """Gives every layer of a network that `settings.targets` matches an adapter; `InputError` if it matches none.

    A layer that can be adapted has a `kernel` `(in, out)` and an attribute `lora`.
    """
    layers = {
        ".".join(map(str, path)): node
        for path, node in nnx.iter_graph(model)
        if isinstance(node, nnx.Module) and hasattr(node, ADAPTER)
    }
    wanted = [path for path in layers if re.fullmatch(settings.targets, path)]
    if not wanted:
        raise InputError(
            f"no layer's path matches {settings.targets!r}; there are {', '.join(sorted(layers)[:6])}, ..."
        )
    for path in sorted(wanted):
        layers[path].lora = Adapter(*layers[path].kernel.shape, settings, rngs=rngs)


def is_adapter(path: str) -> bool:
    """Whether a dotted path is an adapter's array."""
    return f".{ADAPTER}." in path


def drop_features(rng: jax.Array, params: dict[str, jax.Array], rate: float) -> dict[str, jax.Array]:
    """`params` in which every adapter reads a random part of its features (`LoRA.dropout`), scaled up."""
    dropped = dict(params)
    for i, path in enumerate(sorted(path for path in params if path.endswith(f".{ADAPTER}.a"))):
        kept = jax.random.bernoulli(jax.random.fold_in(rng, i), 1.0 - rate, (params[path].shape[0], 1))
        dropped[path] = jnp.where(kept, params[path] / (1.0 - rate), 0.0)
    return dropped


def merge(params: dict[str, Any], settings: LoRA) -> dict[str, Any]:
    """The parameters of a network without adapters that gives the same outputs."""
    merged = {path: array for path, array in params.items() if not is_adapter(path)}
    for path in params:
        if path.endswith(f".{ADAPTER}.a"):
            layer = path.removesuffix(f".{ADAPTER}.a")
            change = jnp.matmul(params[path], params[f"{layer}.{ADAPTER}.b"], precision=jax.lax.Precision.HIGHEST)
            merged[f"{layer}.kernel"] = params[f"{layer}.kernel"] + change * (settings.alpha / settings.rank)
    return merged
