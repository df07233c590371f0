"""What a run starts from: the network that its config describes, and the first weights."""

import dataclasses
import json
import pathlib
from typing import Any

from ml_collections import ConfigDict

from sousa_jax import checkpoint, models, strategies
from sousa_jax.data.synth.mishearing import HearingErrors
from sousa_jax.errors import InputError
from sousa_jax.logging import logger
from sousa_jax.lora import LoRA, is_adapter
from sousa_jax.models.layers import LENGTHS
from sousa_jax.rudiments import NUM_CLASSES

# Where the arrays lie in which a network that hears strokes may differ from one that does not.
HEAD_PATHS = ("head.", "last.", "pyramid.", "strokes.", "rhythm.")


def check_stage(config: ConfigDict) -> None:
    """`InputError` if `config.strokes.stage` does not go with `config.model.head`."""
    head, stage = config.model.head, config.strokes.stage
    if head not in models.HEADS:
        raise InputError(f"config.model.head={head!r} is unknown, expected one of {models.HEADS}")
    stages = tuple(strategies.STAGES) if head == "strokes" else ("",)
    if stage not in stages:
        raise InputError(f"config.strokes.stage={stage!r} with config.model.head={head!r}: expected one of {stages}")


def network(config: ConfigDict) -> Any:
    """The network's own config, its frontend included, from `config.model`."""
    settings = config.model
    if settings.length not in LENGTHS:
        raise InputError(f"config.model.length={settings.length!r} is unknown, expected one of {LENGTHS}")
    released = models.make_config(settings.name, settings.variant).frontend
    changes = {"window_s": settings.window_s}
    if settings.hop_ms:
        changes["hop_length"] = settings.hop_ms * released.sample_rate // 1000
    if settings.n_mels:
        changes["n_mels"] = settings.n_mels
    frontend = dataclasses.replace(released, **changes)
    fields = {"num_classes": NUM_CLASSES, "frontend": frontend, **settings.settings}
    if "strokes_per_second" in settings.settings:
        raise InputError("config.model.settings cannot set strokes_per_second, config.model.strokes_per_second does")
    made = models.make_config(settings.name, settings.variant, **fields).for_window(settings.window_s, settings.length)
    if settings.name == "strokes" and settings.head != "strokes":
        raise InputError(f"config.model.head={settings.head!r}: model strokes knows no other head than 'strokes'")
    if settings.name == "strokes" or settings.head != "strokes":  # the former's rate is that of its spectrogram
        return made
    if settings.strokes_per_second < 1:
        raise InputError(f"config.model.strokes_per_second={settings.strokes_per_second} must be at least 1")
    return dataclasses.replace(made, strokes_per_second=settings.strokes_per_second)


def hearing_errors(config: ConfigDict) -> HearingErrors | None:
    """With which errors the stage `rhythm` hears strokes: those of the file that `config.strokes.errors` names."""
    if not config.strokes.errors:
        return None
    path = pathlib.Path(config.strokes.errors)
    try:
        return HearingErrors(**json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{path} holds no hearing errors ({error}); "
            f"`python -m sousa_jax.evaluate_strokes --workdir=RUN --errors={path}` measures them"
        ) from error


def arrays(config: ConfigDict, model_config: Any, adapters: LoRA | None) -> tuple[models.Arrays, models.Arrays]:
    """Random weights, or those of `config.init_from`, which must fit entirely; and fresh adapters.

    For head `strokes` only what lies below the heads must fit: heads that the given model lacks are fresh, those that
    the network has no use for are left out, so that a plain model can begin to hear strokes. The rhythm head may come
    from another run, `config.strokes.rhythm_from`, whose network may be another one.
    """
    params, stats = _network_arrays(config, model_config, adapters)
    return {**params, **_rhythm_head(config, params)}, stats


def _rhythm_head(config: ConfigDict, params: models.Arrays) -> models.Arrays:
    """The arrays of the rhythm head that `config.strokes.rhythm_from` gives, in place of those in `params`."""
    folder = config.strokes.rhythm_from
    if not folder:
        return {}
    if not pathlib.Path(folder).is_dir():
        raise InputError(f"there is no folder {folder}; config.strokes.rhythm_from is that of a run of stage rhythm")
    of_head = lambda arrays: {path: x for path, x in arrays.items() if path.startswith("rhythm.")}  # noqa: E731
    wanted, given = of_head(params), of_head(checkpoint.load_model(folder).params)
    if not wanted or (differences := checkpoint.tree_differences(given, wanted)):
        what = differences if wanted else f"{config.model.name} has no rhythm head"
        raise InputError(f"config.strokes.rhythm_from={folder} does not fit: {what}")
    return given


def _network_arrays(
    config: ConfigDict, model_config: Any, adapters: LoRA | None
) -> tuple[models.Arrays, models.Arrays]:
    name, variant = config.model.name, config.model.variant
    convert = f"python -m ports.convert --model={name} --checkpoint=OFFICIAL_FILE --out={config.init_from or 'DIR'}"
    if not config.init_from and config.strategy in strategies.NEEDS_WEIGHTS and not config.allow_random_init:
        raise InputError(
            f"strategy {config.strategy!r} needs trained weights: give --config.init_from=DIR, which a run leaves or "
            f"`{convert}` writes (--config.allow_random_init=True starts from random ones all the same)"
        )
    if not config.init_from:
        return models.init(name, model_config, config.seed, adapters=adapters)
    if not pathlib.Path(config.init_from).is_dir():
        raise InputError(f"there is no folder {config.init_from}; `{convert}` writes one")
    given = checkpoint.load_model(config.init_from)
    fresh, unused = _other_heads(given, name, model_config) if config.model.head == "strokes" else (set(), set())
    params, stats = (_without(part, unused) for part in (given.params, given.stats))
    differences = checkpoint.tree_differences(params, _without(models.abstract(name, model_config)[0], fresh))
    if differences:
        raise InputError(f"{config.init_from} ({given.name}) does not fit {name} {variant}: {differences}")
    # Warnings, because the run's log, which would show more, does not exist yet.
    if fresh:
        logger.warning("%s lacks %d arrays of the heads, which start from random ones", config.init_from, len(fresh))
    if unused:
        logger.warning("%d arrays of the heads of %s have no use here", len(unused), config.init_from)
    fresh |= {path for path in models.abstract(name, model_config, adapters=adapters)[0] if is_adapter(path)}
    made, made_stats = models.init(name, model_config, config.seed, adapters=adapters, only=fresh)
    return {**params, **made}, {**stats, **made_stats}


def _other_heads(given: checkpoint.Model, name: str, model_config: Any) -> tuple[set[str], set[str]]:
    """Paths of arrays that only the network has, and that only the given model has, where they belong to heads."""
    found = given.params.keys() | given.stats.keys()
    params, stats = models.abstract(name, model_config)
    wanted = params.keys() | stats.keys()
    return tuple({path for path in paths if path.startswith(HEAD_PATHS)} for paths in (wanted - found, found - wanted))


def _without(arrays: dict[str, Any], paths: set[str]) -> dict[str, Any]:
    return {path: array for path, array in arrays.items() if path not in paths}
