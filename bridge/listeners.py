"""Who hears the same samples: Flax, its PyTorch twin, a package's program evaluated, and Core ML where there is one.

Each is a function from `(n_samples,)` float32 to `Heard`.
"""

import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from sousa_jax.checkpoint import Model
from sousa_jax.errors import InputError

STROKES, LOGITS = "strokes", "logits"  # outputs of a package
# Operations between a classifier's probabilities and the softmax that made them, which only rearrange.
_REARRANGE = ("cast", "reshape", "squeeze", "expand_dims", "identity")


class Heard(NamedTuple):
    """What one of them makes of a window.

    logits: `(num_classes,)` float32, before any temperature. label: the class that a classifier names; None: whoever
    gives only logits. strokes: `(4, T)` probabilities, None without a stroke head. log_mel: the spectrogram, flat;
    None where nobody can look inside.
    """

    logits: np.ndarray
    label: str | None = None
    strokes: np.ndarray | None = None
    log_mel: np.ndarray | None = None


Listener = Callable[[np.ndarray], Heard]


def flax(model: Model) -> Listener:
    """The model as it was trained and evaluated."""
    from sousa_jax.step import make_eval_step

    eval_step = make_eval_step(model.name, model.config)

    def hear(samples: np.ndarray) -> Heard:
        heard = eval_step(model.params, model.stats, {"waveform": samples[None]})
        strokes = None if heard.strokes is None else np.stack([np.asarray(stream)[0] for stream in heard.strokes])
        return Heard(np.asarray(heard.logits)[0], strokes=strokes)

    return hear


def twin(module: Any) -> Listener:
    """A PyTorch twin, as `bridge.to_torch.listener` gives it."""
    import torch

    @torch.no_grad()
    def hear(samples: np.ndarray) -> Heard:
        log_mel = module.frontend(torch.from_numpy(samples))
        found = module.network(log_mel)
        logits, strokes = found if isinstance(found, tuple) else (found, None)
        strokes = None if strokes is None else strokes.numpy()
        return Heard(logits.numpy()[0], strokes=strokes, log_mel=log_mel.numpy().ravel())

    return hear


def evaluated(program: Any, *, temperature: float, flush_subnormals: bool = False, log_mel: str = "") -> Listener:
    """The program of a package (`bridge.mil.read`).

    Args:
      temperature: by which a classifier divides its logits; it is taken out again.
      flush_subnormals: of fp16, see `bridge.mil`.
      log_mel: the result that is the spectrogram.

    `InputError` if the program has no logits: neither an output of that name nor a softmax before its classes.
    """
    from bridge.mil import Evaluator

    evaluator = Evaluator(program, flush_subnormals=flush_subnormals)
    (audio,) = program.inputs
    logits, scale = logits_of(program), temperature if program.labels else 1.0

    def hear(samples: np.ndarray) -> Heard:
        seen = {}

        def see(result: Any, value: Any) -> None:
            if result.name in (logits, log_mel):
                seen[result.name] = np.ravel(value)

        found = evaluator({audio: samples}, see)
        label = next((value for value in found.values() if isinstance(value, str)), None)
        return Heard(seen[logits] * np.float32(scale), label, found.get(STROKES), seen.get(log_mel))

    return hear


def logits_of(program: Any) -> str:
    """The result that holds a program's logits: its output `logits`, or what its classes' softmax is taken of."""
    made_by = {result.name: operation for operation in program.operations for result in operation.results}
    classify = next((operation for operation in program.operations if operation.kind == "classify"), None)
    if classify is None:
        if LOGITS in program.outputs:
            return LOGITS
        raise InputError(f"the package gives {program.outputs}, expected class probabilities or {LOGITS!r}")
    operation = made_by[classify.arguments["probabilities"].name]
    while operation.kind in _REARRANGE:
        operation = made_by[operation.arguments["x"].name]
    if operation.kind != "softmax":
        raise InputError(f"the package's classes come from {operation.kind}, expected a softmax of logits")
    return operation.arguments["x"].name


def core_ml(package: str | os.PathLike, labels: list[str], *, temperature: float) -> Listener:
    """The package run by Core ML itself, on macOS.

    Of a classifier only probabilities can be seen; their logarithms are logits but for a constant, which is set so that
    the mean is 0. `labels` are the classes in order, `[]` of a package that gives logits.
    """
    import coremltools

    model = coremltools.models.MLModel(os.fspath(package))
    description = model.get_spec().description
    (audio,) = (value.name for value in description.input)

    def hear(samples: np.ndarray) -> Heard:
        found = model.predict({audio: samples})
        strokes = found.get(STROKES)
        if not description.predictedFeatureName:
            return Heard(np.ravel(found[LOGITS]), strokes=strokes)
        probabilities = np.array([found[description.predictedProbabilitiesName][label] for label in labels])
        logits = temperature * np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))
        return Heard(np.float32(logits - logits.mean()), found[description.predictedFeatureName], strokes)

    return hear


def has_core_ml() -> bool:
    return sys.platform == "darwin"
