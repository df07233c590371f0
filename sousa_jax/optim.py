"""The optimizer and its schedule, from the config."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from sousa_jax.strategies import Pace


def learning_rate(config: ConfigDict, n_updates: int) -> optax.Schedule:
    """Linear warm-up over `warmup_fraction` of all updates, then cosine to zero."""
    warmup = max(1, round(config.train.warmup_fraction * n_updates))
    return optax.warmup_cosine_decay_schedule(0.0, config.train.learning_rate, warmup, max(n_updates, warmup + 1))


def make_optimizer(
    config: ConfigDict, n_updates: int, paces: Mapping[str, Pace] | None = None
) -> optax.GradientTransformation:
    """AdamW with clipped gradients; weight decay on kernels only (biases and norms have one axis).

    `paces` slows arrays down or lets them start late, by path; its keys are those of the parameters.
    """
    steps = [
        optax.clip_by_global_norm(config.train.gradient_norm),
        optax.adamw(
            learning_rate(config, n_updates),
            weight_decay=config.train.weight_decay,
            mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
        ),
    ]
    if paces and set(paces.values()) != {Pace(1.0, 0)}:
        steps.append(_at_their_pace(paces))
    optimizer = optax.chain(*steps)
    if config.train.accumulate > 1:
        return optax.MultiSteps(optimizer, config.train.accumulate).gradient_transformation()
    return optimizer


class _Count(NamedTuple):
    count: jax.Array


def _at_their_pace(paces: Mapping[str, Pace]) -> optax.GradientTransformation:
    """Scales final updates, weight decay included. An array that has not started stays bit for bit what it is; its
    moments are those of its gradients all along."""

    def init(params):
        return _Count(jnp.zeros((), jnp.int32))

    def update(updates, state, params=None):
        scaled = {
            path: jnp.where(state.count >= paces[path].start, paces[path].factor, 0.0).astype(u.dtype) * u
            for path, u in updates.items()
        }
        return scaled, _Count(state.count + 1)

    return optax.GradientTransformation(init, update)
