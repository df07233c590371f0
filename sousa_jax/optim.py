"""The optimizer and its schedule, from the config."""

import jax
import optax
from ml_collections import ConfigDict


def learning_rate(config: ConfigDict, n_updates: int) -> optax.Schedule:
    """Linear warm-up over `warmup_fraction` of all updates, then cosine to zero."""
    warmup = max(1, round(config.train.warmup_fraction * n_updates))
    return optax.warmup_cosine_decay_schedule(0.0, config.train.learning_rate, warmup, max(n_updates, warmup + 1))


def make_optimizer(config: ConfigDict, n_updates: int) -> optax.GradientTransformation:
    """AdamW with clipped gradients; weight decay on kernels only (biases and norms have one axis)."""
    optimizer = optax.chain(
        optax.clip_by_global_norm(config.train.gradient_norm),
        optax.adamw(
            learning_rate(config, n_updates),
            weight_decay=config.train.weight_decay,
            mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
        ),
    )
    if config.train.accumulate > 1:
        return optax.MultiSteps(optimizer, config.train.accumulate).gradient_transformation()
    return optimizer
