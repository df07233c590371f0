"""One training step and one evaluation step: pure functions, each jitted once."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from sousa_jax import augment, lora, models
from sousa_jax.frontends import FrontendSpec, spectrogram
from sousa_jax.lora import LoRA

Batch = dict[str, jax.Array]

# Apart from the numbers of layers, by which networks derive keys from the same one.
LORA_PLACE = 1_000


class TrainState(NamedTuple):
    """All that changes in training: `params` are those that are trained. The step number is also what every random
    draw is derived from."""

    step: jax.Array
    params: models.Arrays
    stats: models.Arrays
    opt_state: optax.OptState

    @classmethod
    def create(
        cls, params: models.Arrays, stats: models.Arrays, optimizer: optax.GradientTransformation
    ) -> "TrainState":
        return cls(jnp.zeros((), jnp.int32), params, stats, optimizer.init(params))


def features_and_targets(
    rng: jax.Array, batch: Batch, n_classes: int, spec: FrontendSpec, config: ConfigDict
) -> tuple[jax.Array, jax.Array]:
    """Waveform → augmented spectrogram `(B, n_mels, n_frames)` and soft targets `(B, n_classes)`."""
    edges_rng, stretch_rng, gain_rng, freq_rng, time_rng, mix_rng = jax.random.split(rng, 6)
    settings = config.augment
    x = spectrogram(batch["waveform"], spec, rng=edges_rng if settings.mel_jitter else None)
    if settings.tempo_stretch:
        x = augment.tempo_stretch(stretch_rng, x, settings.tempo_stretch)
    if settings.gain_db:
        x = augment.gain(gain_rng, x, settings.gain_db, spec)
    targets = optax.smooth_labels(jax.nn.one_hot(batch["label"], n_classes), config.train.label_smoothing)
    if settings.mixup_alpha:
        x, targets = augment.mixup(mix_rng, x, targets, settings.mixup_alpha)
    if settings.freq_masks:
        x = augment.mask(freq_rng, x, 1, settings.freq_masks, settings.freq_mask_bins, spec)
    if settings.time_masks:
        x = augment.mask(time_rng, x, 2, settings.time_masks, settings.time_mask_frames, spec)
    return x, targets


def make_train_step(
    model_name: str,
    model_config: Any,
    optimizer: optax.GradientTransformation,
    config: ConfigDict,
    adapters: LoRA | None = None,
) -> Callable[[TrainState, models.Arrays, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """`train_step(state, frozen, batch) -> (state, metrics)`, jitted; the given state is donated. `frozen` are the
    parameters that are not trained; gradients and moments exist for the others alone."""
    apply = models.apply_fn(model_name, model_config, adapters=adapters)
    spec = model_config.frontend
    seed = config.seed

    def loss_fn(params, frozen, stats, batch, rng):
        features_rng, dropout_rng = jax.random.split(rng)
        if adapters is not None and adapters.dropout:
            params = lora.drop_features(jax.random.fold_in(dropout_rng, LORA_PLACE), params, adapters.dropout)
        x, targets = features_and_targets(features_rng, batch, model_config.num_classes, spec, config)
        x = x.astype(config.train.compute_dtype)
        outputs, stats = apply({**frozen, **params}, stats, x, train=True, rng=dropout_rng)
        return optax.softmax_cross_entropy(outputs.logits, targets).mean(), stats

    def train_step(state: TrainState, frozen: models.Arrays, batch: Batch):
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        (loss, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params, frozen, state.stats, batch, rng)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss, "gradient_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, params, stats, opt_state), metrics

    return jax.jit(train_step, donate_argnums=0)


def make_eval_step(
    model_name: str, model_config: Any, compute_dtype: str = "float32", adapters: LoRA | None = None
) -> Callable[[models.Arrays, models.Arrays, jax.Array], jax.Array]:
    """`eval_step(params, stats, waveform) -> logits`, jitted: `(B, n_samples)` to `(B, num_classes)` float32."""
    apply = models.apply_fn(model_name, model_config, adapters=adapters)

    @jax.jit
    def eval_step(params, stats, waveform):
        x = spectrogram(waveform, model_config.frontend).astype(compute_dtype)
        return apply(params, stats, x)[0].logits

    return eval_step
