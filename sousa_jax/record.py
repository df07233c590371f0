"""What a run is: `config.json` and `model.json` in its folder, and which run may go on there."""

import json
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from sousa_jax import checkpoint, models, strategies
from sousa_jax.devices import is_main, wait_for_all
from sousa_jax.errors import InputError
from sousa_jax.logging import environment

CONFIG_JSON, LOGS, RESULTS = "config.json", "logs", "results"

# Settings that a run may go on with changed: they do not change what it computes.
FREE = (
    "devices.", "tracking.", "data.workers", "data.prefetch", "data.cache_dir", "train.log_every_steps",
    "distill.cache_mb", "distill.baseline",
)  # fmt: skip


def refuse_other_config(workdir: pathlib.Path, config: ConfigDict) -> None:
    """`InputError` if the folder holds a run with another config."""
    if not (workdir / CONFIG_JSON).exists():
        return
    before = json.loads((workdir / CONFIG_JSON).read_text("utf-8"))["config"]
    flat = [dict(leaves(c)) for c in (before, _stored(config))]
    keys = sorted(key for key in flat[0] | flat[1] if not key.startswith(FREE))
    changed = [key for key in keys if flat[0].get(key) != flat[1].get(key)]
    if changed:
        shown = ", ".join(f"{key} was {flat[0].get(key)!r}, is {flat[1].get(key)!r}" for key in changed[:5])
        raise InputError(
            f"{workdir} holds a run with another config ({shown}); choose another --workdir, "
            "or --overwrite to delete that run"
        )


def delete_run(workdir: pathlib.Path) -> None:
    """Removes what a run left in its folder, and nothing else. Its config goes last: half deleted it is still a run."""
    if is_main() and (workdir / CONFIG_JSON).exists():
        for name in (checkpoint.CHECKPOINTS, LOGS, RESULTS):
            shutil.rmtree(workdir / name, ignore_errors=True)
        for path in (*workdir.glob("non_finite_batch*.json"), workdir / checkpoint.MODEL_JSON, workdir / CONFIG_JSON):
            path.unlink(missing_ok=True)
    wait_for_all("deleted the run that was there")


def begin(workdir: pathlib.Path, config: ConfigDict, model_config: Any, splits: tuple) -> None:
    """Writes `config.json` and `model.json` when the run begins; later, `InputError` if it would go on with other data.

    `splits` are the clips of train, validation and test.
    """
    fingerprints = {clips.split: clips.fingerprint for clips in splits}
    if (workdir / CONFIG_JSON).exists():
        before = json.loads((workdir / CONFIG_JSON).read_text("utf-8"))["data"]["fingerprints"]
        if before != fingerprints:
            raise InputError(
                f"{workdir} was trained on data {before}, {config.data.path} now is {fingerprints}; "
                "choose another --workdir"
            )
    elif is_main():
        workdir.mkdir(parents=True, exist_ok=True)
        model = models.config_to_json(config.model.name, model_config)
        if config.strategy in ("lora", "head"):
            settings = (config.train.head, strategies.adapters(config), config.init_from, config.seed)
            model["partly"] = checkpoint.partly_trained(config.strategy, *settings)
        checkpoint.write_json(workdir / checkpoint.MODEL_JSON, model)
        data = {
            "path": config.data.path,
            "revision": getattr(splits[0], "resolved_revision", None),
            "fingerprints": fingerprints,
            "clips": {clips.split: len(clips) for clips in splits},
        }
        record = {"config": _stored(config), "seed": config.seed, **environment(), "data": data}
        checkpoint.write_json(workdir / CONFIG_JSON, record)
    wait_for_all("the run's record")


def _stored(config: ConfigDict) -> dict[str, Any]:
    return json.loads(config.to_json())


def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The settings of a config by their paths, such as `train.learning_rate`."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
