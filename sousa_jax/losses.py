"""What training lowers: the loss of the name, and that of the strokes."""

import jax
import jax.numpy as jnp
import optax

from sousa_jax.data.frame_targets import FrameTargets


def class_loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean cross-entropy of logits `(B, n_classes)` against soft targets of the same shape."""
    return optax.softmax_cross_entropy(logits, targets).mean()


def stroke_loss(logits: FrameTargets, targets: FrameTargets) -> jax.Array:
    """Cross-entropies of what is heard, `(B, T)` each, in nats for each stroke that falls (as if one more fell).

    An onset is wanted in its very frame: what is heard in neighbouring frames then adds up to the probability that a
    stroke fell. Velocity and grace count only where one falls, density everywhere.
    """
    n_strokes = targets.onset.sum() + 1.0
    loss = optax.sigmoid_binary_cross_entropy
    where_struck = loss(logits.velocity, targets.velocity) + loss(logits.grace, targets.grace)
    everywhere = loss(logits.onset, targets.onset) + loss(logits.density, targets.density)
    return (jnp.sum(everywhere) + jnp.sum(where_struck * targets.onset)) / n_strokes
