"""Distillation: a small network learns what larger ones answer, beside what is true.

    loss = α · T² · KL(teacher ‖ student) + (1 − α) · cross-entropy

both at temperature T in the first term (G. Hinton, O. Vinyals, J. Dean, arXiv:1503.02531). On request two more: how
alike the clips of a batch are to a teacher, and the strokes that it hears.

Teachers answer online, in the same jitted step, or from a cache (`answer_cache.py`): each hears the student's very view
of a clip (crop, tempo, mixup) through its own frontend at its own sample rate, but none of what only makes hearing
harder (noise, gain, masks, jitter). They are frozen: no gradient, no moments, no place in a checkpoint.
"""

import copy
import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sousa_jax import checkpoint, models
from sousa_jax.augment import features_and_targets
from sousa_jax.data.frame_targets import FrameTargets
from sousa_jax.errors import InputError
from sousa_jax.frontends import FrontendSpec
from sousa_jax.losses import stroke_loss
from sousa_jax.models.heads import probabilities
from sousa_jax.models.layers import Outputs
from sousa_jax.rudiments import NUM_CLASSES

MEANS = ("probabilities", "logits")
HARDER = {
    "noise_snr_db": (),
    "mel_jitter": False,
    "gain_db": 0.0,
    "equalizer_db": 0.0,
    "freq_masks": 0,
    "time_masks": 0,
}


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A trained network and how much it counts; the weights of all teachers sum to one."""

    folder: str
    model: checkpoint.Model
    weight: float

    @property
    def strokes_per_second(self) -> int:
        """Frames a second of the strokes that it hears; 0: none."""
        return self.model.config.strokes_per_second


def load(config: ConfigDict, student: Any) -> list[Teacher]:
    """The teachers that `config.teachers` names, a run's folder each; none without any. `student` is its config.

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
    teachers = [Teacher(folder, _model(folder, student.frontend), float(weight)) for folder, weight in pairs]
    _check_more(config, student, teachers)
    return teachers


def _check_more(config: ConfigDict, student: Any, teachers: Sequence[Teacher]) -> None:
    """Refuses what the two additional terms cannot have."""
    settings = config.distill
    if settings.embedding < 0 or not 0 <= settings.strokes <= 1:
        raise InputError(
            f"config.distill.embedding={settings.embedding} must not be negative, strokes={settings.strokes} be 0 to 1"
        )
    if not settings.strokes:
        return
    if not config.strokes.stage:
        raise InputError("config.distill.strokes needs a student that hears strokes: --config.model.head=strokes")
    heard = {teacher.strokes_per_second for teacher in teachers}
    if student.strokes_per_second not in heard:
        raise InputError(
            f"config.distill.strokes: no teacher hears strokes at the student's {student.strokes_per_second} frames a "
            f"second (theirs: {', '.join(map(str, sorted(heard)))}; 0 are none)"
        )


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


class Taught(NamedTuple):
    """What teachers say of a batch.

    probabilities: `(B, NUM_CLASSES)` at temperature T. embeddings: `(B, width)` of each teacher, by its weight; none
    unless they are matched. strokes: the probabilities that they hear, `(B, n_frames)` each, or None.
    """

    probabilities: jax.Array
    embeddings: list[tuple[float, jax.Array]]
    strokes: FrameTargets | None


def taught(teachers: Sequence[Teacher], student: Any, config: ConfigDict) -> Callable[..., Taught]:
    """What the teachers say: `answer(arrays, rng, batch) -> Taught`. `student` is its config.

    `rng` and `batch` are those of `features_and_targets` for the student: the view is the same. Where the batch has
    `teacher_logits`, `(B, n_teachers, NUM_CLASSES)`, nobody is asked again.
    """
    settings = config.distill
    hear = hearers(teachers, student.frontend, config)

    def answer(given: models.Arrays, rng: jax.Array, batch: dict[str, jax.Array]) -> Taught:
        if "teacher_logits" in batch:
            return Taught(_mean(teachers, jnp.moveaxis(batch["teacher_logits"], 1, 0), settings), [], None)
        heard = [outputs(given, rng, batch) for outputs in hear]
        embeddings, strokes = [], None
        if settings.embedding:
            embeddings = [(t.weight, outputs.embedding) for t, outputs in zip(teachers, heard, strict=True)]
        if settings.strokes:
            strokes = _mean_strokes(teachers, heard, student.strokes_per_second)
        return Taught(_mean(teachers, [outputs.logits for outputs in heard], settings), embeddings, strokes)

    return lambda given, rng, batch: jax.lax.stop_gradient(answer(given, rng, batch))


def hearers(teachers: Sequence[Teacher], student: FrontendSpec, config: ConfigDict) -> list[Callable[..., Outputs]]:
    """One `outputs(arrays, rng, batch) -> Outputs` a teacher, of what is heard through the student's `rng`."""
    view = copy.deepcopy(config)
    with view.unlocked():
        view.augment.update(HARDER)

    def hearer(number: int, model: checkpoint.Model) -> Callable[..., Outputs]:
        apply, spec = models.apply_fn(model.name, model.config), model.config.frontend

        def outputs(given: models.Arrays, rng: jax.Array, batch: dict[str, jax.Array]) -> Outputs:
            heard = batch | {"waveform": resample(batch["waveform"], student.sample_rate, spec.sample_rate)}
            x, _ = features_and_targets(rng, heard, NUM_CLASSES, spec, view)
            params, stats = (
                {path: given[_path(number, path)] for path in part} for part in (model.params, model.stats)
            )
            said, _ = apply(params, stats, x.astype(config.train.compute_dtype))
            return said._replace(logits=said.logits.astype(jnp.float32))

        return outputs

    return [hearer(number, teacher.model) for number, teacher in enumerate(teachers)]


def _mean(teachers: Sequence[Teacher], logits: Sequence[jax.Array], settings: ConfigDict) -> jax.Array:
    """Probabilities at temperature T of all teachers, from the logits of each, `(B, NUM_CLASSES)`."""
    pairs = [(t.weight, z / settings.temperature) for t, z in zip(teachers, logits, strict=True)]
    if settings.mean == "logits":
        return jax.nn.softmax(sum(weight * scaled for weight, scaled in pairs))
    return sum(weight * jax.nn.softmax(scaled) for weight, scaled in pairs)


def _mean_strokes(teachers: Sequence[Teacher], heard: Sequence[Outputs], per_second: int) -> FrameTargets:
    """Of those teachers that hear strokes at the student's rate."""
    able = [(t.weight, h.strokes) for t, h in zip(teachers, heard, strict=True) if t.strokes_per_second == per_second]
    total = sum(weight for weight, _ in able)
    return jax.tree.map(lambda *p: sum(p), *[
        jax.tree.map(lambda x, share=weight / total: share * x, probabilities(strokes)) for weight, strokes in able
    ])  # fmt: skip


def losses(student: Outputs, said: Taught, config: ConfigDict) -> dict[str, jax.Array]:
    """What a student is told by its teachers, each part by its name; `weights` says how much each counts."""
    found = {"distillation_loss": distillation_loss(student.logits, said.probabilities, config.distill.temperature)}
    if said.embeddings:
        found["embedding_loss"] = sum(w * embedding_loss(student.embedding, e) for w, e in said.embeddings)
    if said.strokes is not None:
        found["taught_stroke_loss"] = stroke_loss(student.strokes, said.strokes)
    return found


def weights(config: ConfigDict) -> dict[str, float]:
    """How much each part of the loss counts where there are teachers."""
    settings, of_strokes = config.distill, config.strokes.weight
    return {
        "class_loss": 1 - settings.alpha,
        "distillation_loss": settings.alpha,
        "embedding_loss": settings.embedding,
        "stroke_loss": of_strokes * (1 - settings.strokes),
        "taught_stroke_loss": of_strokes * settings.strokes,
    }


def distillation_loss(logits: jax.Array, teacher: jax.Array, temperature: float) -> jax.Array:
    """`T² · KL(teacher ‖ student)`, the mean over a batch, in nats.

    logits: `(B, n_classes)` of the student. teacher: `(B, n_classes)` probabilities at the same temperature. T² keeps
    the gradients as large as those of the cross-entropy.
    """
    log_student = jax.nn.log_softmax(logits / temperature)
    divergence = jax.scipy.special.rel_entr(teacher, jnp.exp(log_student)).sum(-1)
    return temperature**2 * divergence.mean()


def embedding_loss(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """How differently two networks see which clips of a batch are alike (F. Tung, G. Mori, arXiv:1907.09682): the
    squared difference of their matrices of inner products, each row of unit length, its mean over all pairs.

    `(B, any width)` each: nothing has to be learnt to compare them.
    """

    def alike(x: jax.Array) -> jax.Array:
        products = x.astype(jnp.float32) @ x.astype(jnp.float32).T
        return products / (jnp.linalg.norm(products, axis=1, keepdims=True) + 1e-12)

    return jnp.square(alike(student) - alike(teacher)).mean()


def resample(waveform: jax.Array, rate: int, wanted: int) -> jax.Array:
    """`(B, n)` at `rate` Hz → `(B, round(n · wanted / rate))` at `wanted` Hz, by its Fourier transform: what both can
    hold is kept as it is. A window goes round, so that its ends belong together."""
    if rate == wanted:
        return waveform
    n = waveform.shape[1]
    n_wanted = round(n * wanted / rate)
    spectrum = jnp.fft.rfft(waveform)[:, : n_wanted // 2 + 1]
    return jnp.fft.irfft(spectrum, n_wanted) * (n_wanted / n)
