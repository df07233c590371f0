"""One training step and one evaluation step: pure functions, each jitted once."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from sousa_jax import distill, lora, models, strategies
from sousa_jax.augment import features_and_targets
from sousa_jax.data.frame_targets import FrameTargets
from sousa_jax.data.synth.mishearing import HearingErrors, mishear
from sousa_jax.devices import Layout
from sousa_jax.distill import Teacher
from sousa_jax.frontends import spectrogram
from sousa_jax.lora import LoRA
from sousa_jax.losses import class_loss, stroke_loss
from sousa_jax.models.heads import probabilities

Batch = dict[str, jax.Array]

# Apart from the numbers of layers, by which networks derive keys from the same one.
LORA_PLACE = 1_000


class TrainState(NamedTuple):
    """All that changes in training: `params` are those that are trained. The step number is also what every random
    draw is derived from. `ema` holds running averages of `params` and `stats`, by the same paths, or nothing."""

    step: jax.Array
    params: models.Arrays
    stats: models.Arrays
    opt_state: optax.OptState
    ema: models.Arrays

    @classmethod
    def create(
        cls,
        params: models.Arrays,
        stats: models.Arrays,
        optimizer: optax.GradientTransformation,
        averaged: bool = False,
    ) -> "TrainState":
        ema = jax.tree.map(jnp.copy, {**params, **stats}) if averaged else {}  # the state's buffers are donated
        return cls(jnp.zeros((), jnp.int32), params, stats, optimizer.init(params), ema)

    def evaluated(self) -> tuple[models.Arrays, models.Arrays]:
        """The `(params, stats)` that are evaluated and kept as the best: the averages where there are any."""
        if not self.ema:
            return self.params, self.stats
        return tuple({path: self.ema[path] for path in arrays} for arrays in (self.params, self.stats))


def make_train_step(
    model_name: str,
    model_config: Any,
    optimizer: optax.GradientTransformation,
    config: ConfigDict,
    adapters: LoRA | None = None,
    layout: Layout | None = None,
    errors: HearingErrors | None = None,
    teachers: Sequence[Teacher] = (),
) -> Callable[[TrainState, models.Arrays, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """`train_step(state, frozen, batch) -> (state, metrics)`, jitted; the given state is donated. `frozen` are the
    parameters that are not trained; gradients and moments exist for the others alone. The new state lies on the
    devices as `layout` says. In the stage `rhythm` strokes are misheard with these `errors`. Where there are `teachers`
    their arrays are among the frozen ones."""
    if config.strokes.stage == "rhythm":
        losses = _rhythm_losses(model_name, model_config, config, errors)
    else:
        losses = _sound_losses(model_name, model_config, config, adapters, teachers)
    weights = {"stroke_loss": config.strokes.weight}
    if teachers:
        weights = distill.weights(config)
    seed, accumulate, decay = config.seed, config.train.accumulate, config.train.ema

    def loss_fn(params, frozen, stats, batch, rng):
        found, stats = losses(params, frozen, stats, batch, rng)
        return sum(weights.get(name, 1.0) * loss for name, loss in found.items()), (found, stats)

    def averaged(ema: models.Arrays, step: jax.Array, weights: models.Arrays) -> models.Arrays:
        # Faster at first, so that random weights are soon forgotten; only when the optimizer has updated.
        n_updates = step // accumulate
        rate = 1.0 - jnp.minimum(decay, (1 + n_updates) / (10 + n_updates))
        return optax.incremental_update(weights, ema, jnp.where(step % accumulate == 0, rate, 0.0))

    def train_step(state: TrainState, frozen: models.Arrays, batch: Batch):
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        (loss, (losses, stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params, frozen, state.stats, batch, rng
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        step = state.step + 1
        ema = averaged(state.ema, step, {**params, **stats}) if state.ema else {}
        metrics = {
            "loss": loss,
            **(losses if len(losses) > 1 else {}),
            "gradient_norm": optax.tree.norm(grads),
            "update_norm": optax.tree.norm(updates),
            "parameter_norm": optax.tree.norm(params),
        }
        state = TrainState(step, params, stats, opt_state, ema)
        return (layout.constrain(state) if layout else state), metrics

    return jax.jit(train_step, donate_argnums=0)


# A part of the loss of a batch: `(trained, frozen, stats, batch, rng) -> ({name: loss}, stats)`.
_Losses = Callable[..., tuple[dict[str, jax.Array], models.Arrays]]


def _sound_losses(
    model_name: str, model_config: Any, config: ConfigDict, adapters: LoRA | None, teachers: Sequence[Teacher]
) -> _Losses:
    """Of what is heard: the name's, the strokes', or both; and of what teachers answer."""
    apply = models.apply_fn(model_name, model_config, adapters=adapters, recompute=config.train.remat)
    spec, stage = model_config.frontend, config.strokes.stage
    answer = distill.taught(teachers, model_config, config) if teachers else None
    if stage:
        strategies.check_augmentation_keeps_strokes(config)

    def losses(params, frozen, stats, batch, rng):
        features_rng, dropout_rng = jax.random.split(rng)
        if adapters is not None and adapters.dropout:
            params = lora.drop_features(jax.random.fold_in(dropout_rng, LORA_PLACE), params, adapters.dropout)
        x, targets = features_and_targets(features_rng, batch, model_config.num_classes, spec, config)
        x = x.astype(config.train.compute_dtype)
        outputs, stats = apply({**frozen, **params}, stats, x, train=True, rng=dropout_rng)
        found = {}
        if stage != "hearing":
            found["class_loss"] = class_loss(outputs.logits, targets)
        if answer is not None:
            found |= distill.losses(outputs, answer(frozen, features_rng, batch), config)
        if stage:
            found["stroke_loss"] = stroke_loss(outputs.strokes, batch["stroke_targets"])
        return found, stats

    return losses


def _rhythm_losses(model_name: str, model_config: Any, config: ConfigDict, errors: HearingErrors | None) -> _Losses:
    """Of the name alone, from strokes that were misheard, not from sound."""
    rhythm, per_second = models.rhythm_fn(model_name, model_config), model_config.strokes_per_second

    def losses(params, frozen, stats, batch, rng):
        heard = batch["stroke_targets"]
        if errors is not None:
            heard = mishear(rng, heard, errors, per_second)
        targets = jax.nn.one_hot(batch["label"], model_config.num_classes)
        targets = optax.smooth_labels(targets, config.train.label_smoothing)
        return {"class_loss": class_loss(rhythm({**frozen, **params}, heard), targets)}, stats

    return losses


class Heard(NamedTuple):
    """What an evaluation step returns. logits: `(B, num_classes)` float32. strokes: probabilities, `(B, n_frames)`
    each, of a network that hears strokes; else None."""

    logits: jax.Array
    strokes: FrameTargets | None


def make_eval_step(
    model_name: str,
    model_config: Any,
    compute_dtype: str = "float32",
    adapters: LoRA | None = None,
    from_strokes: bool = False,
) -> Callable[[models.Arrays, models.Arrays, Batch], Heard]:
    """`eval_step(params, stats, batch) -> Heard`, jitted. `batch` has `waveform` `(B, n_samples)` or, `from_strokes`,
    `stroke_targets`: then the rhythm head reads the true strokes."""
    if from_strokes:
        rhythm = models.rhythm_fn(model_name, model_config)
        return jax.jit(lambda params, stats, batch: Heard(rhythm(params, batch["stroke_targets"]), None))
    apply = models.apply_fn(model_name, model_config, adapters=adapters)

    @jax.jit
    def eval_step(params, stats, batch):
        x = spectrogram(batch["waveform"], model_config.frontend).astype(compute_dtype)
        outputs, _ = apply(params, stats, x)
        return Heard(outputs.logits, None if outputs.strokes is None else probabilities(outputs.strokes))

    return eval_step
