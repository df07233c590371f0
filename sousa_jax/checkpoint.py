"""Models and training runs on disk, through Orbax.

A **model folder** (what `ports.convert` writes) holds `model.json` (architecture, frontend, provenance)
and `arrays/`. A **run folder** holds the same `model.json` beside `checkpoints/best` and
`checkpoints/last`. `load_model` reads either. Everything is written under a temporary name and renamed.

The checkpoints of a run that trains only adapters or a head hold only those; `load_model` takes the rest from the model
that the run began from, and folds the adapters in.
"""

import dataclasses
import json
import os
import pathlib
import shutil
import tempfile
from typing import Any

import jax
import orbax.checkpoint as ocp

from sousa_jax import lora, models, strategies
from sousa_jax.errors import InputError
from sousa_jax.lora import LoRA

ARRAYS, MODEL_JSON, CHECKPOINTS = "arrays", "model.json", "checkpoints"


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes JSON so that a reader sees the old file or the new one, never half of it."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False, encoding="utf-8") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
    os.replace(file.name, path)


@dataclasses.dataclass(frozen=True)
class Model:
    """A network read from disk. `provenance` is what its writer recorded: source file, sha256, variant."""

    name: str
    config: Any
    params: models.Arrays
    stats: models.Arrays
    provenance: dict[str, Any]


def save_model(folder: pathlib.Path, model: Model) -> None:
    """Writes a model folder; `InputError` if something is already there."""
    folder = pathlib.Path(folder).absolute()
    if folder.exists():
        raise InputError(f"{folder} already exists; choose another --out or remove it first")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(temporary / ARRAYS, {"params": model.params, "stats": model.stats})
        stored = models.config_to_json(model.name, model.config) | {"provenance": model.provenance}
        write_json(temporary / MODEL_JSON, stored)
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def load_model(folder: str | os.PathLike) -> Model:
    """Reads a model folder, or a run folder's best checkpoint.

    `InputError` when there is nothing to read, or when the arrays do not fit the stored architecture.
    """
    folder = pathlib.Path(folder).absolute()
    if not (folder / MODEL_JSON).is_file():
        raise InputError(f"{folder} holds no {MODEL_JSON}; expected a run's folder or one that ports.convert wrote")
    stored = json.loads((folder / MODEL_JSON).read_text("utf-8"))
    name, config = models.config_from_json(stored)
    partly = stored.get("partly")
    adapters = LoRA(**partly["adapters"]) if partly and partly["adapters"] else None
    params, stats = models.abstract(name, config, adapters=adapters)
    if partly:
        params, _ = strategies.split(partly["strategy"], partly["head"], params)
    arrays = _restore(_arrays_folder(folder), {"params": params, "stats": stats})
    if partly:
        frozen = _frozen(folder, name, config, partly)
        arrays["params"] = {**frozen, **arrays["params"]}
    if adapters:
        arrays["params"] = lora.merge(arrays["params"], adapters)
    return Model(name, config, arrays["params"], arrays["stats"], stored.get("provenance", {}))


def partly_trained(strategy: str, head: str, adapters: LoRA | None, init_from: str, seed: int) -> dict[str, Any]:
    """What `model.json` says of a run whose checkpoints hold only what was trained, and where the rest is."""
    base = str(pathlib.Path(init_from).absolute()) if init_from else ""
    settings = dataclasses.asdict(adapters) if adapters else None
    return {"strategy": strategy, "head": head, "adapters": settings, "base": base, "seed": seed}


def _frozen(folder: pathlib.Path, name: str, config: Any, partly: dict[str, Any]) -> models.Arrays:
    """The parameters that a run did not train: those of the model that it began from."""
    if not partly["base"]:
        return models.init(name, config, partly["seed"])[0]
    try:
        base = load_model(partly["base"])
    except InputError as error:
        raise InputError(f"{folder} holds only what was trained, the rest is missing: {error}") from error
    return base.params


def _arrays_folder(folder: pathlib.Path) -> pathlib.Path:
    if (folder / ARRAYS).is_dir():
        return folder / ARRAYS
    best = folder / CHECKPOINTS / "best"
    steps = ocp.utils.checkpoint_steps(best) if best.is_dir() else []
    if not steps:
        raise InputError(f"{folder} holds no evaluated checkpoint yet ({best} is empty); train it first")
    return best / str(max(steps)) / "state"


def _restore(path: pathlib.Path, expected: Any) -> Any:
    """Restores exactly `expected` (a tree of shapes). Orbax alone would accept a partial tree in silence."""
    with ocp.StandardCheckpointer() as checkpointer:
        found = checkpointer.metadata(path).item_metadata.tree
        differences = tree_differences(found, expected)
        if differences:
            raise InputError(f"{path} does not fit the model: {differences}")
        return checkpointer.restore(path, expected)


def tree_differences(found: Any, expected: Any, limit: int = 6) -> str:
    """What separates two trees of arrays, as one line naming paths on both sides; `""` if nothing does."""
    shapes = [
        {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}
        for leaves in (jax.tree_util.tree_leaves_with_path(tree) for tree in (found, expected))
    ]
    has, wants = shapes
    reshaped = [f"{key} {has[key]} instead of {wants[key]}" for key in has if key in wants and has[key] != wants[key]]
    parts = []
    for label, keys in (
        ("missing", sorted(wants.keys() - has.keys())),
        ("unexpected", sorted(has.keys() - wants.keys())),
        ("wrong shape", sorted(reshaped)),
    ):
        if keys:
            more = f" and {len(keys) - limit} more" if len(keys) > limit else ""
            parts.append(f"{len(keys)} {label} ({', '.join(keys[:limit])}{more})")
    return "; ".join(parts)


class RunCheckpoints:
    """The checkpoints of one training run.

    `last` holds the two newest complete states, from which a run goes on; `best` holds the parameters
    and statistics with the best validation score. Saves are asynchronous and atomic.
    """

    def __init__(self, workdir: pathlib.Path):
        folder = pathlib.Path(workdir).absolute() / CHECKPOINTS
        self._last = self._manager(folder / "last", keep=2)
        self._best = self._manager(folder / "best", keep=1)

    @staticmethod
    def _manager(folder: pathlib.Path, keep: int) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True))

    @staticmethod
    def _save(manager: ocp.CheckpointManager, step: int, state: Any, progress: dict[str, Any]) -> None:
        if step in manager.all_steps():  # the same step again, after a resume: it is the same state
            return
        items = {"state": ocp.args.StandardSave(state), "progress": ocp.args.JsonSave(dict(progress))}  # written later
        manager.save(step, args=ocp.args.Composite(**items))

    def save_last(self, step: int, state: Any, progress: dict[str, Any]) -> None:
        """`state` is the whole training state, `progress` JSON: data position, best score, history."""
        self._save(self._last, step, state, progress)

    def save_best(self, step: int, params: models.Arrays, stats: models.Arrays, progress: dict[str, Any]) -> None:
        self._save(self._best, step, {"params": params, "stats": stats}, progress)

    def restore_last(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """The newest `(state, progress)`, or None if the run has none yet. `like` gives the structure."""
        step = self._last.latest_step()
        if step is None:
            return None
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        items = {"state": ocp.args.StandardRestore(abstract), "progress": ocp.args.JsonRestore()}
        restored = self._last.restore(step, args=ocp.args.Composite(**items))
        return restored["state"], restored["progress"]

    def restore_best(self, like: dict[str, models.Arrays]) -> dict[str, models.Arrays]:
        """`{"params", "stats"}` of the best checkpoint."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        items = {"state": ocp.args.StandardRestore(abstract)}
        return self._best.restore(self._best.latest_step(), args=ocp.args.Composite(**items))["state"]

    def wait(self) -> None:
        """Returns when everything saved so far is on disk."""
        self._last.wait_until_finished()
        self._best.wait_until_finished()

    def close(self) -> None:
        self._last.close()
        self._best.close()
