"""Distillation: a small network learns what larger ones answer, beside what is true.

    loss = α · T² · KL(teacher ‖ student) + (1 − α) · cross-entropy

both at temperature T in the first term (G. Hinton, O. Vinyals, J. Dean, arXiv:1503.02531). Teachers answer online, in
the same jitted step: each hears the student's very view of a clip (crop, tempo, mixup) through its own frontend at its
own sample rate, but none of what only makes hearing harder (noise, gain, masks, jitter). They are frozen: no gradient,
no moments, no place in a checkpoint.
"""

import copy
import dataclasses
import json
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sousa_jax import checkpoint, models
from sousa_jax.augment import features_and_targets
from sousa_jax.errors import InputError
from sousa_jax.frontends import FrontendSpec
from sousa_jax.rudiments import NUM_CLASSES

MEANS = ("probabilities", "logits")
HARDER = {"noise_snr_db": (), "mel_jitter": False, "gain_db": 0.0, "freq_masks": 0, "time_masks": 0}


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A trained network and how much it counts; the weights of all teachers sum to one."""

    folder: str
    model: checkpoint.Model
    weight: float


def load(config: ConfigDict, student: FrontendSpec) -> list[Teacher]:
    """The teachers that `config.teachers` names, a run's folder each; none without any.

    `InputError` for one that is missing, that knows other classes, that never learnt to name sound, or that hears other
    windows than the student; and for settings that make no sense.
    """
    folders, settings = tuple(config.teachers), config.distill
    if not folders:
        return []
    if not 0 <= settings.alpha <= 1 or settings.temperature <= 0:
        raise InputError(
            f"config.distill.alpha={settings.alpha} must be 0 to 1, temperature={settings.temperature} above 0"
        )
    if settings.mean not in MEANS:
        raise InputError(f"config.distill.mean={settings.mean!r} is unknown, expected one of {MEANS}")
    weights = np.array(settings.weights or [1.0] * len(folders), float)
    if len(weights) != len(folders) or (weights < 0).any() or not weights.sum():
        raise InputError(
            f"config.distill.weights={tuple(settings.weights)} must be {len(folders)} numbers, not negative"
        )
    if config.strokes.stage in ("hearing", "rhythm"):
        raise InputError(
            f"config.strokes.stage={config.strokes.stage!r} names nothing from sound; teachers need 'joint'"
        )
    pairs = zip(folders, weights / weights.sum(), strict=True)
    return [Teacher(folder, _model(folder, student), float(weight)) for folder, weight in pairs]


def _model(folder: str, student: FrontendSpec) -> checkpoint.Model:
    if not pathlib.Path(folder).is_dir():
        raise InputError(f"there is no teacher in {folder}; config.teachers are folders of finished runs")
    model = checkpoint.load_model(folder)
    if model.config.num_classes != NUM_CLASSES:
        raise InputError(
            f"the teacher {folder} knows {model.config.num_classes} classes, not the {NUM_CLASSES} rudiments"
        )
    record = pathlib.Path(folder, "config.json")
    stage = json.loads(record.read_text("utf-8"))["config"].get("strokes", {}).get("stage") if record.is_file() else ""
    if stage in ("hearing", "rhythm"):
        raise InputError(f"the teacher {folder} is of stage {stage!r}: it never learnt to name what sounds")
    heard = model.config.frontend.window_s
    if heard != student.window_s:
        raise InputError(
            f"the teacher {folder} hears windows of {heard:g} s, the student of {student.window_s:g} s; "
            f"--config.model.window_s={heard:g} makes them alike"
        )
    return model


def arrays(teachers: list[Teacher]) -> models.Arrays:
    """Parameters and statistics of all teachers by paths of their own, to be given to `taught`."""
    return {
        _path(i, path): array
        for i, teacher in enumerate(teachers)
        for path, array in {**teacher.model.params, **teacher.model.stats}.items()
    }


def _path(number: int, path: str) -> str:
    return f"teachers.{number}.{path}"


def taught(teachers: list[Teacher], student: FrontendSpec, config: ConfigDict) -> Callable[..., jax.Array]:
    """What the teachers answer: `answer(arrays, rng, batch) -> (B, NUM_CLASSES)` probabilities at temperature T.

    `rng` and `batch` are those of `features_and_targets` for the student: the view is the same.
    """
    settings = config.distill
    view = copy.deepcopy(config)
    with view.unlocked():
        view.augment.update(HARDER)
    applied = [models.apply_fn(teacher.model.name, teacher.model.config) for teacher in teachers]

    def logits(number: int, given: models.Arrays, rng: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
        model = teachers[number].model
        spec = model.config.frontend
        heard = batch | {"waveform": resample(batch["waveform"], student.sample_rate, spec.sample_rate)}
        x, _ = features_and_targets(rng, heard, NUM_CLASSES, spec, view)
        params, stats = ({path: given[_path(number, path)] for path in part} for part in (model.params, model.stats))
        outputs, _ = applied[number](params, stats, x.astype(config.train.compute_dtype))
        return outputs.logits.astype(jnp.float32)

    def answer(given: models.Arrays, rng: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
        scaled = [logits(i, given, rng, batch) / settings.temperature for i in range(len(teachers))]
        if settings.mean == "logits":
            return jax.nn.softmax(sum(t.weight * z for t, z in zip(teachers, scaled, strict=True)))
        return sum(t.weight * jax.nn.softmax(z) for t, z in zip(teachers, scaled, strict=True))

    return lambda given, rng, batch: jax.lax.stop_gradient(answer(given, rng, batch))


def distillation_loss(logits: jax.Array, teacher: jax.Array, temperature: float) -> jax.Array:
    """`T² · KL(teacher ‖ student)`, the mean over a batch, in nats.

    logits: `(B, n_classes)` of the student. teacher: `(B, n_classes)` probabilities at the same temperature. T² keeps
    the gradients as large as those of the cross-entropy.
    """
    log_student = jax.nn.log_softmax(logits / temperature)
    divergence = jax.scipy.special.rel_entr(teacher, jnp.exp(log_student)).sum(-1)
    return temperature**2 * divergence.mean()


def resample(waveform: jax.Array, rate: int, wanted: int) -> jax.Array:
    """`(B, n)` at `rate` Hz → `(B, round(n · wanted / rate))` at `wanted` Hz, by its Fourier transform: what both can
    hold is kept as it is. A window goes round, so that its ends belong together."""
    if rate == wanted:
        return waveform
    n = waveform.shape[1]
    n_wanted = round(n * wanted / rate)
    spectrum = jnp.fft.rfft(waveform)[:, : n_wanted // 2 + 1]
    return jnp.fft.irfft(spectrum, n_wanted) * (n_wanted / n)
