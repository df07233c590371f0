"""Models and training runs on disk, through Orbax.

A **model folder** (what `ports.convert` writes) holds `model.json` (architecture, frontend, provenance)
and `arrays/`. A **run folder** holds the same `model.json` beside `checkpoints/best` and
`checkpoints/last`. `load_model` reads either. Everything is written under a temporary name and renamed.

The checkpoints of a run that trains only adapters or a head hold only those; `load_model` takes the rest from the model
that the run began from, and folds the adapters in.

A run's checkpoints carry a checksum: Orbax finds a file that was cut off, but not a byte that changed inside an array.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from sousa_jax import lora, models, strategies
from sousa_jax.devices import any_process, is_main, wait_for_all
from sousa_jax.errors import InputError
from sousa_jax.logging import logger
from sousa_jax.lora import LoRA

ARRAYS, MODEL_JSON, CHECKPOINTS = "arrays", "model.json", "checkpoints"
SHIPPED = (
    pathlib.Path(__file__).parent / "shipped"
)  # a trained network that comes with the package; its card: README.md
CHECKSUM = "checksum"
TEMPERATURE = "temperature"
FULL_DISK = "No space left on device"


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes JSON so that a reader sees the old file or the new one, never half of it."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False, encoding="utf-8") as file:
        try:
            json.dump(value, file, indent=2)
            file.write("\n")
            file.flush()
            os.chmod(file.name, 0o644)  # temporary files are for one user only
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


@dataclasses.dataclass(frozen=True)
class Model:
    """A network read from disk. `provenance` is what its writer recorded: source file, sha256, variant. `temperature`
    is what its logits are divided by before they are read as probabilities."""

    name: str
    config: Any
    params: models.Arrays
    stats: models.Arrays
    provenance: dict[str, Any]
    temperature: float = 1.0


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
        stored = models.config_to_json(model.name, model.config)
        stored |= {"provenance": model.provenance, TEMPERATURE: model.temperature}
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
    provenance, temperature = stored.get("provenance", {}), stored.get(TEMPERATURE, 1.0)
    return Model(name, config, arrays["params"], arrays["stats"], provenance, temperature)


def digest(model: Model) -> str:
    """sha256 of a network's architecture and all its arrays, hexadecimal: the same for the same network, wherever and
    however it is stored."""
    told = hashlib.sha256(json.dumps(models.config_to_json(model.name, model.config), sort_keys=True).encode())
    for path, array in sorted({**model.params, **model.stats}.items()):
        told.update(f"{path} {array.dtype} {array.shape}".encode())
        told.update(np.ascontiguousarray(array).tobytes())
    return told.hexdigest()


def keep_temperature(folder: pathlib.Path, temperature: float) -> None:
    """Writes it into the `model.json` of a run."""
    stored = json.loads((folder / MODEL_JSON).read_text("utf-8"))
    write_json(folder / MODEL_JSON, stored | {TEMPERATURE: temperature})


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
        dtypes = [sorted({str(leaf.dtype) for leaf in jax.tree.leaves(tree)}) for tree in (found, expected)]
        if dtypes[0] != dtypes[1]:  # which Orbax would convert in silence
            raise InputError(f"{path} holds {', '.join(dtypes[0])}, expected {', '.join(dtypes[1])}")
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


@jax.jit
def checksum(tree: Any) -> jax.Array:
    """A number, uint32, that changes with any bit of any array of the tree, wherever the arrays lie."""

    def bits(leaf: jax.Array) -> jax.Array:
        unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
        return jnp.sum(jax.lax.bitcast_convert_type(leaf, unsigned), dtype=jnp.uint32)

    sums = [bits(leaf) * jnp.uint32(2 * i + 1) for i, leaf in enumerate(jax.tree.leaves(tree))]
    return jnp.sum(jnp.stack(sums), dtype=jnp.uint32)


@functools.cache
def _say_little_of_full_disks() -> None:
    """Orbax's threads log hundreds of lines about what `_full_disk_in_one_line` says. (TensorStore still prints
    `Event loop is closed` for every array whose writing came to nothing; `sys.excepthook` does not get at that.)"""

    def tells_of_something_else(record: logging.LogRecord) -> bool:
        return FULL_DISK not in f"{record.getMessage()} {record.exc_info[1] if record.exc_info else ''}"

    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(tells_of_something_else)


class RunCheckpoints:
    """The checkpoints of one training run.

    `last` holds the two newest complete states, from which a run goes on; `best` holds the parameters
    and statistics with the best validation score. Saves are asynchronous and atomic: what a killed process leaves half
    written has a temporary name and is removed when the run goes on.

    Every method that writes raises `InputError` when the disk is full; what was saved before is intact.
    """

    def __init__(self, workdir: pathlib.Path):
        self._folder = pathlib.Path(workdir).absolute() / CHECKPOINTS
        _say_little_of_full_disks()
        self._last = self._manager(self._folder / "last", keep=2)
        self._best = self._manager(self._folder / "best", keep=1)

    @staticmethod
    def _manager(folder: pathlib.Path, keep: int) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, cleanup_tmp_directories=True)
        return ocp.CheckpointManager(folder, options=options)

    def _save(self, manager: ocp.CheckpointManager, step: int, state: Any, progress: dict[str, Any]) -> None:
        if step in manager.all_steps():  # the same step again, after a resume: it is the same state
            return
        progress = {**progress, CHECKSUM: int(checksum(state))}
        items = {"state": ocp.args.StandardSave(state), "progress": ocp.args.JsonSave(progress)}
        with self._full_disk_in_one_line():
            manager.save(step, args=ocp.args.Composite(**items))

    def save_last(self, step: int, state: Any, progress: dict[str, Any]) -> None:
        """`state` is the whole training state, `progress` JSON: data position, best score, history."""
        self._save(self._last, step, state, progress)

    def save_best(self, step: int, params: models.Arrays, stats: models.Arrays, progress: dict[str, Any]) -> None:
        self._save(self._best, step, {"params": params, "stats": stats}, progress)

    @staticmethod
    def _restore(manager: ocp.CheckpointManager, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)  # with its sharding
        items = {"state": ocp.args.StandardRestore(abstract), "progress": ocp.args.JsonRestore()}
        restored = manager.restore(step, args=ocp.args.Composite(**items))
        state, progress = restored["state"], restored["progress"]
        if progress.pop(CHECKSUM, None) != int(checksum(state)):
            raise ValueError("its arrays are not those that were saved")
        return state, progress

    def restore_last(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """The newest `(state, progress)` that can be read, or None if the run has none yet.

        `like` gives the structure and where its arrays lie. Newer ones that cannot be read are named in the log and
        moved to `checkpoints/damaged/`. `InputError` if there are some and none can be read; they stay where they are.
        """
        problems: dict[int, str] = {}
        for step in sorted(self._last.all_steps(), reverse=True):
            restored = None
            try:
                restored = self._restore(self._last, step, like)
            except Exception as error:  # Orbax raises bare ones, too
                problems[step] = (str(error).splitlines() or [repr(error)])[0][:200]
            if any_process(restored is None):
                problems.setdefault(step, "another process could not read it")
                continue
            self._set_aside(problems)
            return restored
        if problems:
            newest = max(problems)
            raise InputError(
                f"none of the checkpoints in {self._folder / 'last'} can be read ({newest}: {problems[newest]}); "
                "begin anew with --overwrite or another --workdir"
            )
        return None

    def _set_aside(self, problems: dict[int, str]) -> None:
        for step, problem in problems.items():
            kept = self._folder / "damaged" / str(step)
            logger.warning("checkpoint %d cannot be read (%s): moved to %s", step, problem, kept)
            if is_main():
                shutil.rmtree(kept, ignore_errors=True)
                kept.parent.mkdir(exist_ok=True)
                os.replace(self._folder / "last" / str(step), kept)
        if problems:
            wait_for_all("damaged checkpoints")
            self._last.reload()

    def restore_best(self, like: dict[str, models.Arrays]) -> dict[str, models.Arrays]:
        """`{"params", "stats"}` of the best checkpoint."""
        step = self._best.latest_step()
        try:
            return self._restore(self._best, step, like)[0]
        except Exception as error:
            problem = (str(error).splitlines() or [repr(error)])[0][:200]
            raise InputError(
                f"the best checkpoint, {self._folder / 'best' / str(step)}, cannot be read ({problem})"
            ) from error

    def best_folder(self) -> pathlib.Path:
        """Where the best checkpoint lies."""
        return self._folder / "best" / str(self._best.latest_step())

    def wait(self) -> None:
        """Returns when everything saved so far is on disk."""
        with self._full_disk_in_one_line():
            self._last.wait_until_finished()
            self._best.wait_until_finished()

    def close(self) -> None:
        with self._full_disk_in_one_line():
            self._last.close()
            self._best.close()

    @contextlib.contextmanager
    def _full_disk_in_one_line(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if FULL_DISK not in str(error):
                raise
            raise InputError(
                f"the disk of {self._folder} is full; the checkpoints from before are intact. "
                "Make room, then run the same command again"
            ) from error
