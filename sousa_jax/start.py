"""What a run starts from: the network that its config describes, and the first weights."""

import dataclasses
import pathlib
from typing import Any

from ml_collections import ConfigDict

from sousa_jax import checkpoint, models, strategies
from sousa_jax.errors import InputError
from sousa_jax.lora import LoRA, is_adapter
from sousa_jax.models.layers import LENGTHS
from sousa_jax.rudiments import NUM_CLASSES


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
    return models.make_config(settings.name, settings.variant, **fields).for_window(settings.window_s, settings.length)


def arrays(config: ConfigDict, model_config: Any, adapters: LoRA | None) -> tuple[models.Arrays, models.Arrays]:
    """Random weights, or those of `config.init_from`, which must fit entirely; and fresh adapters."""
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
    differences = checkpoint.tree_differences(given.params, models.abstract(name, model_config)[0])
    if differences:
        raise InputError(f"{config.init_from} ({given.name}) does not fit {name} {variant}: {differences}")
    fresh = {path for path in models.abstract(name, model_config, adapters=adapters)[0] if is_adapter(path)}
    made, _ = models.init(name, model_config, config.seed, adapters=adapters, only=fresh)
    return {**given.params, **made}, given.stats
