"""From an official file to our arrays: what `ports.convert` and `ports.verify` share."""

import dataclasses
import os
from types import ModuleType
from typing import Any

import numpy as np

from ports import ast, beats, checkpoints, efficientat, htsat, rules
from sousa_jax import models
from sousa_jax.errors import InputError

# What a model's module gives:
#   infer(checkpoint, variant)                         the network that an official file holds (`rules.Inferred`)
#   class_layer(config)                                our paths that a change of classes replaces
#   IGNORED                                            keys of the file that are not used, with reasons
#   section(reference, checkpoint, config)             the part of a golden file that it belongs to, and how exactly
#   replays(config, reference, section)                the runs of that part (`golden.Replay`)
#   TOLERANCES, TOLERANCE_BFLOAT16                     of `ports.verify`, fractions of the spread
PORTS: dict[str, ModuleType] = {"efficientat": efficientat, "htsat": htsat, "beats": beats, "ast": ast}


@dataclasses.dataclass(frozen=True)
class Ported:
    """An official checkpoint as one of our models. `evidence` says where the config was read."""

    checkpoint: checkpoints.Checkpoint
    config: Any
    variant: str
    evidence: str
    params: dict[str, np.ndarray]
    stats: dict[str, np.ndarray]
    report: rules.PortReport


def port(
    model: str, path: str | os.PathLike, *, variant: str | None = None, num_classes: int | None = None, seed: int = 0
) -> Ported:
    """Reads an official checkpoint and takes it to our arrays.

    Args:
      model: a key of `PORTS`.
      path: the official file.
      variant: a released variant; None infers it from shapes and file name.
      num_classes: replaces the class layer by a freshly initialized one, unless the file has just as many
        classes; None keeps it.
      seed: of the fresh class layer.

    Raises `InputError` for every fault of the file, naming it.
    """
    ours = PORTS[model]
    checkpoint = checkpoints.read(path)
    found = checkpoints.looks_like(checkpoint.state)
    if found != model:
        some = ", ".join(list(checkpoint.state)[:3])
        raise InputError(f"{path} is not {model}, it looks like {found or f'no model known here (keys: {some}, ...)'}")
    try:
        config, name, evidence, table = ours.infer(checkpoint, variant)
        ignored, fresh = dict(ours.IGNORED), {}
        if num_classes not in (None, config.num_classes):
            reason = f"class layer, {config.num_classes or 'no'} classes in the file, {num_classes} wanted"
            config = dataclasses.replace(config, num_classes=num_classes)
            replaced = ours.class_layer(config)
            ignored |= {rule.source: f"{reason}: replaced" for rule in table if rule.target in replaced}
            fresh = {path: f"{reason}: newly initialized, seed {seed}" for path in replaced}
            table = [rule for rule in table if rule.target not in replaced]
        params, stats = models.abstract(model, config)
        arrays, report = rules.apply(
            table, checkpoint.state, {**params, **stats}, ignored=ignored, fresh=fresh, sha256=checkpoint.sha256
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if fresh:
        initial = models.init(model, config, seed, only=fresh)
        arrays |= {key: np.asarray(value) for part in initial for key, value in part.items()}
    return Ported(
        checkpoint,
        config,
        name,
        evidence,
        {key: arrays[key] for key in params},
        {key: arrays[key] for key in stats},
        report,
    )
