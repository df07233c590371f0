"""Augmentation of normalized log-mel spectrograms, on the device, inside the jitted step.

Each function is `(rng, spectrogram, …) -> spectrogram` on `(batch, n_mels, n_frames)`; the draws are
independent for each clip of the batch.
"""

import jax
import jax.numpy as jnp

from sousa_jax.frontends import FrontendSpec


def tempo_stretch(rng: jax.Array, x: jax.Array, amount: float) -> jax.Array:
    """Plays each clip faster or slower by up to `amount` (0.1 is ±10 %) without a change of pitch: frames
    are interpolated linearly. A clip that runs out starts again, like the length policy's loop."""
    batch, _, n_frames = x.shape
    rate = jax.random.uniform(rng, (batch, 1), minval=1.0 - amount, maxval=1.0 + amount)
    position = (jnp.arange(n_frames) * rate) % n_frames  # (B, T)
    before = jnp.floor(position).astype(jnp.int32) % n_frames
    after = (before + 1) % n_frames
    weight = (position - jnp.floor(position)).astype(x.dtype)[:, None]
    take = jax.vmap(lambda clip, index: clip[:, index])
    return take(x, before) * (1 - weight) + take(x, after) * weight


def gain(rng: jax.Array, x: jax.Array, max_db: float, spec: FrontendSpec) -> jax.Array:
    """Makes each clip louder or softer by up to `max_db`: in a log-mel spectrogram an offset."""
    db = jax.random.uniform(rng, (x.shape[0], 1, 1), minval=-max_db, maxval=max_db)
    return x + db * (jnp.log(10.0) / 10.0 / spec.std).astype(x.dtype)


def mask(rng: jax.Array, x: jax.Array, axis: int, count: int, max_width: int, spec: FrontendSpec) -> jax.Array:
    """SpecAugment (arXiv:1904.08779): `count` stripes along `axis` (1 mel, 2 time), each 0 … `max_width`
    wide, set to zero, which is about the mean of a normalized spectrogram; of decibels, to each clip's mean."""
    size = x.shape[axis]
    width_rng, start_rng = jax.random.split(rng)
    width = jax.random.randint(width_rng, (x.shape[0], count, 1), 0, min(max_width, size) + 1)
    start = jnp.floor(jax.random.uniform(start_rng, width.shape) * (size - width + 1))
    place = jnp.arange(size)
    covered = ((place >= start) & (place < start + width)).any(1)  # (B, size)
    level = 0.0 if spec.normalized else x.mean((1, 2), keepdims=True)
    return jnp.where(jnp.expand_dims(covered, 3 - axis), level, x)


def mixup(rng: jax.Array, x: jax.Array, targets: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    """Mixup (arXiv:1710.09412) of each clip with another one of the batch, targets `(batch, classes)` too.
    The clip itself keeps the larger share."""
    share_rng, order_rng = jax.random.split(rng)
    share = jax.random.beta(share_rng, alpha, alpha, (x.shape[0],))
    share = jnp.maximum(share, 1.0 - share).astype(x.dtype)
    other = jax.random.permutation(order_rng, x.shape[0])
    mix = lambda a, s: a * s + a[other] * (1 - s)  # noqa: E731
    return mix(x, share[:, None, None]), mix(targets, share[:, None])
