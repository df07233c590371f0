"""Golden files: reference activations of an official model, computed from synthetic weights and clips.

An `.npz` with arrays `<run>/…/<name>` and a JSON text `meta`: model, seed, sample rate, the weights' fingerprint
per section (one checkpoint each), and for each array its full shape, layout and stride. A run is named by the
clip's length first (`2p6s` is 2.6 s). The models' modules know the rest of the names (`replays`).
"""

import dataclasses
import fnmatch
import json
import math
import pathlib
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from ports import checkpoints
from sousa_jax.errors import InputError
from sousa_jax.frontends import FrontendSpec


@dataclasses.dataclass(frozen=True)
class Reference:
    """One stored tensor: `values` are every `stride`-th of each clip, flattened from `shape` in C order."""

    name: str
    values: np.ndarray
    shape: tuple[int, ...]
    stride: int
    layout: str = ""

    @property
    def frames_first(self) -> bool:
        """A spectrogram stored as `(batch, frame, mel)`; ours are `(batch, mel, frame)`."""
        return self.layout.startswith("batch, frame, mel")

    def whole(self) -> np.ndarray | None:
        """A spectrogram in our layout; None if the file does not hold all of it."""
        if self.stride > 1:
            return None
        values = self.values.reshape(self.shape)
        return values.swapaxes(1, 2) if self.frames_first else values

    @property
    def spread(self) -> float:
        """Standard deviation of the difference between the first two clips: the scale of errors."""
        return float(np.std(self.values[0].astype(np.float64) - self.values[1]))

    def error(self, ours: np.ndarray) -> float:
        """Largest absolute difference to our tensor of the full shape; NaN if either holds one."""
        if ours.shape != self.shape:
            raise InputError(
                f"{self.name} has shape {ours.shape} here, {self.shape} in the golden file: another variant?"
            )
        ours = ours.reshape(len(ours), -1)[:, :: self.stride]
        return float(np.max(np.abs(ours.astype(np.float64) - self.values.reshape(ours.shape))))


@dataclasses.dataclass(frozen=True)
class Golden:
    """A golden file in memory."""

    path: pathlib.Path
    model: str
    seed: int
    sample_rate: int
    fingerprints: dict[str, str]
    arrays: dict[str, np.ndarray]
    meta: dict[str, dict[str, Any]]

    def runs(self, name: str) -> list[str]:
        """`10s`, `5s`, ...: every run that holds an array of this name (`frontend`), in the file's order."""
        return [key.removesuffix(f"/{name}") for key in self.arrays if key.endswith(f"/{name}")]

    def reference(self, key: str) -> Reference:
        """One tensor by its key in the file; `InputError` if it is not what its `meta` says."""
        values = self.arrays[key]
        meta = self.meta.get(key, {})
        shape, stride = tuple(meta.get("shape", values.shape)), int(meta.get("stride", 1))
        if len(values) < 2:
            raise InputError(f"{self.path}: {key} holds {len(values)} clip, two are needed for the spread")
        if values.size != shape[0] * -(-math.prod(shape[1:]) // stride):
            raise InputError(f"{self.path}: {key} has shape {values.shape}, not every {stride}th value of {shape}")
        return Reference(key, values, shape, stride, str(meta.get("layout", "")))

    def outputs(self, prefix: str) -> dict[str, Reference]:
        """What is stored directly under a prefix (`5s`, `5s/mn10_as`), but spectrograms: name to tensor."""
        names = {key.removeprefix(f"{prefix}/"): key for key in self.arrays if key.startswith(f"{prefix}/")}
        return {
            name: self.reference(key)
            for name, key in names.items()
            if "/" not in name and name not in ("frontend", "fbank")
        }

    def section_of_weights(
        self, state: Mapping[str, np.ndarray], *, prefix: str = "", derived: Iterable[str] = ()
    ) -> str | None:
        """The section that was made with exactly these weights, by their fingerprint; None if there is none.

        prefix: begins every key of a released file, and may have been taken away. derived: patterns of keys that are
        no weights.
        """
        whole = any(key.startswith(prefix) for key in state)
        weights = {
            key if whole else prefix + key: array
            for key, array in state.items()
            if not any(fnmatch.fnmatchcase(key, pattern) for pattern in derived)
        }
        found = checkpoints.fingerprint(weights)
        return next((name for name, expected in self.fingerprints.items() if found == expected), None)


def _as_they_are(array: np.ndarray) -> np.ndarray:
    return array


@dataclasses.dataclass(frozen=True)
class Replay:
    """One run of the official code, to be done again.

    Attributes:
      name: of the run, as in the file.
      n_samples: of each clip (`synthetic.test_batch`).
      frontend: what makes features of them here.
      stored: the official features, which ours are compared with; None if the file has none for this run.
      features: `(batch, n_mels, n_frames)` float32, the network's official input; None if the file does not hold it
        as a whole.
      outputs: what the official network gave, by name.
      network: `f(params, stats, features) -> {name: array}`, which gives at least those, in official layouts; None
        if there are none.
      clips: what the run does to the clips first.
    """

    name: str
    n_samples: int
    frontend: FrontendSpec
    stored: Reference | None
    features: np.ndarray | None
    outputs: dict[str, Reference]
    network: Callable[..., Mapping[str, jax.Array]] | None
    clips: Callable[[np.ndarray], np.ndarray] = _as_they_are


def clip_samples(run: str, sample_rate: int) -> int:
    """Samples of a run's clips, from the length at the beginning of its name: `2p6s_repeat`."""
    match = re.match(r"(\d+)(?:p(\d+))?s(?![a-z0-9])", run)
    if not match:
        raise InputError(f"the run {run!r} of a golden file is not named by a length, like 10s or 2p6s")
    return round(float(f"{match[1]}.{match[2] or 0}") * sample_rate)


def read(path: str | pathlib.Path, model: str) -> Golden:
    """Reads a golden file of `model`; `InputError` if it is missing, damaged, of another form or model."""
    path = pathlib.Path(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        meta = json.loads(str(arrays.pop("meta")))
        golden = Golden(
            path,
            meta["model"],
            int(meta["seed"]),
            int(meta["sample_rate"]),
            _fingerprints(meta["weights_sha256"]),
            arrays,
            meta["arrays"],
        )
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} is no golden file, or a damaged one ({type(error).__name__}: {error})") from error
    if golden.model != model:
        raise InputError(f"{path} is a golden file of {golden.model!r}, not of {model!r}")
    return golden


def _fingerprints(stored: str | dict[str, str]) -> dict[str, str]:
    """Section to fingerprint; a file with one checkpoint has just the fingerprint, and one section without name."""
    return {"": stored} if isinstance(stored, str) else dict(stored)
