"""How much of a network is trained: all of it, or adapters and head. A strategy is a filter on paths and a schedule.

`scratch` trains everything from random weights; `full` everything from given ones, heads first if
`config.train.unfreeze` says so; `lora` only adapters and the class layer; `head` only the class layer.
"""

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from sousa_jax.errors import InputError
from sousa_jax.lora import LoRA, is_adapter

STRATEGIES = ("lora", "full", "scratch", "head")
STAGES = {  # of a network that hears strokes → what is trained
    "hearing": r"(?!rhythm\.).*",  # sound to strokes
    "rhythm": r"rhythm\..*",  # strokes to the name, without sound
    "joint": r".*",  # both at once, end to end
}
NEEDS_WEIGHTS = ("lora", "full", "head")  # training these from random weights is a mistake, unless it is asked for


def adapters(config: ConfigDict) -> LoRA | None:
    """The adapters that the strategy adds to the network; None for all but `lora`."""
    if config.strategy not in STRATEGIES:
        raise InputError(f"config.strategy={config.strategy!r} is unknown, expected one of {STRATEGIES}")
    if config.strategy != "lora":
        return None
    settings = config.lora
    return LoRA(settings.targets, settings.rank, settings.alpha, settings.dropout)


def split(strategy: str, head: str, params: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`(trained, frozen)` parameters. `head` is a regular expression for the paths that are trained beside adapters;
    `InputError` if it matches none."""
    if strategy in ("full", "scratch"):
        return dict(params), {}
    of_head = {path for path in params if re.fullmatch(head, path)}
    if not of_head:
        raise InputError(f"no parameter's path matches config.train.head={head!r}; the class layer must be trained")
    trained = {path: array for path, array in params.items() if path in of_head or is_adapter(path)}
    return trained, {path: array for path, array in params.items() if path not in trained}


# ------------------------------------------------------------------------------------------------------------ layers


def layers(paths: Iterable[str]) -> dict[str, int]:
    """How deep each path lies: 0 for what comes before the blocks, 1, 2, ... for the blocks, one more for the head.

    Reads `blocks.3.…` (BEATs, AST, EfficientAT) and `stages.2.blocks.3.…` (HTS-AT). What stands between two blocks or
    behind the last one belongs to the one before it.
    """
    paths = list(paths)
    blocks = sorted({block for path in paths if (block := _block(path))})
    order = {block: i + 1 for i, block in enumerate(blocks)}
    last = len(blocks)

    def layer(path: str) -> int:
        if re.match(r"(head|pyramid|strokes|rhythm)\.", path):
            return last + 1
        if block := _block(path):
            return order[block]
        if match := re.match(r"stages\.(\d+)\.merge\.", path):
            return max((order[block] for block in blocks if block[0] == int(match[1])), default=0)
        return last if re.match(r"(norm|last)\.", path) else 0

    return {path: layer(path) for path in paths}


def _block(path: str) -> tuple[int, int] | None:
    match = re.match(r"(?:stages\.(\d+)\.)?blocks\.(\d+)\.", path)
    return (int(match[1] or 0), int(match[2])) if match else None


@dataclasses.dataclass(frozen=True)
class Pace:
    """How fast one array learns: `factor` times the learning rate, from update number `start` on."""

    factor: float
    start: int


def paces(config: ConfigDict, paths: Iterable[str], n_updates: int) -> dict[str, Pace]:
    """The pace of every trained path.

    `config.train.unfreeze = (a, b)`: the head learns from the start, the upper half of the blocks from the fraction a
    of all updates on, everything from b on. `config.train.layer_decay`: each layer below the head learns that much
    slower than the one above.
    """
    found = layers(paths)
    top = max(found.values())
    upper_at, all_at = config.train.unfreeze
    if not 0.0 <= upper_at <= all_at < 1.0:
        raise InputError(f"config.train.unfreeze={config.train.unfreeze} must be two rising fractions below 1")
    if not 0.0 < config.train.layer_decay <= 1.0:
        raise InputError(f"config.train.layer_decay={config.train.layer_decay} must be above 0 and at most 1")

    trained = STAGES.get(config.strokes.stage, ".*")

    def pace(path: str, layer: int) -> Pace:
        if not re.fullmatch(trained, path):
            return Pace(0.0, 0)
        start = 0.0 if layer == top else upper_at if 2 * layer > top else all_at
        return Pace(config.train.layer_decay ** (top - layer), round(start * n_updates))

    return {path: pace(path, layer) for path, layer in found.items()}


def check_augmentation_keeps_strokes(config: ConfigDict) -> None:
    """`InputError` if an augmentation would take strokes away from where they are said to fall."""
    for name in ("tempo_stretch", "mixup_alpha", "time_masks"):
        if config.augment[name]:
            raise InputError(
                f"config.augment.{name}={config.augment[name]} moves, mixes or hides strokes, which the network is to "
                "hear where they fall: set it to 0, or config.model.head='plain'"
            )
