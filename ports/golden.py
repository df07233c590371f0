"""Golden files: reference activations of an official model, computed from synthetic weights and clips.

An `.npz` with arrays `<run>/frontend` and `<run>/<section>/<name>` and a JSON text `meta`: model, seed,
sample rate, the weights' fingerprint per section, and for each array its full shape, layout and stride.
A run is named by the clip's length (`2p6s` is 2.6 s), a section by the checkpoint that was used.
"""

import dataclasses
import json
import math
import pathlib
import re
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ports import checkpoints
from sousa_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Reference:
    """One stored tensor: `values` are every `stride`-th of each clip, flattened from `shape` in C order."""

    name: str
    values: np.ndarray
    shape: tuple[int, ...]
    stride: int

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

    @property
    def runs(self) -> list[str]:
        """`10s`, `5s`, ...: every run with a stored frontend, in the file's order."""
        return [key.removesuffix("/frontend") for key in self.arrays if re.fullmatch(r"[^/]+/frontend", key)]

    def clip_samples(self, run: str) -> int:
        """Samples of a run's clips, from its name."""
        match = re.fullmatch(r"(\d+)(?:p(\d+))?s", run)
        if not match:
            raise InputError(f"{self.path}: the run {run!r} is not named by a length, like 10s or 2p6s")
        return round(float(f"{match[1]}.{match[2] or 0}") * self.sample_rate)

    def reference(self, key: str) -> Reference:
        """One tensor by its key in the file; `InputError` if it is not what its `meta` says."""
        values = self.arrays[key]
        meta = self.meta.get(key, {})
        shape, stride = tuple(meta.get("shape", values.shape)), int(meta.get("stride", 1))
        if len(values) < 2:
            raise InputError(f"{self.path}: {key} holds {len(values)} clip, two are needed for the spread")
        if values.size != shape[0] * -(-math.prod(shape[1:]) // stride):
            raise InputError(f"{self.path}: {key} has shape {values.shape}, not every {stride}th value of {shape}")
        return Reference(key, values, shape, stride)

    def outputs(self, run: str, section: str) -> dict[str, Reference]:
        """Everything stored of one section in one run: name to tensor."""
        prefix = f"{run}/{section}/"
        return {key.removeprefix(prefix): self.reference(key) for key in self.arrays if key.startswith(prefix)}

    def section_of(self, state: Mapping[str, np.ndarray], stats: Mapping[str, Any], n_classes: int) -> tuple[str, bool]:
        """The section that a checkpoint belongs to, and whether its weights are exactly those used there.

        Found by the fingerprint of the official state dict; failing that, by the number of batch-norm
        statistics and of classes.
        """
        weights = checkpoints.fingerprint(state)
        for section, expected in self.fingerprints.items():
            if weights == expected:
                return section, True
        ours = (sum(array.size for array in stats.values()), n_classes)
        theirs = {section: self._sizes(section) for section in self.fingerprints}
        alike = [section for section, sizes in theirs.items() if sizes == ours]
        if len(alike) == 1:
            return alike[0], False
        raise InputError(
            f"{self.path}: {len(alike) or 'no'} sections with {ours[0]} statistics and {ours[1]} classes; "
            f"it has {', '.join(f'{section} with {a} and {b}' for section, (a, b) in theirs.items())}"
        )

    def _sizes(self, section: str) -> tuple[int, int]:
        statistics = self.arrays.get(f"{section}/statistics", np.empty(0)).size
        logits = [array.shape[-1] for key, array in self.arrays.items() if key.endswith(f"/{section}/logits")]
        return statistics, logits[0] if logits else 0


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
            dict(meta["weights_sha256"]),
            arrays,
            meta["arrays"],
        )
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} is no golden file, or a damaged one ({type(error).__name__}: {error})") from error
    if golden.model != model:
        raise InputError(f"{path} is a golden file of {golden.model!r}, not of {model!r}")
    if not golden.runs:
        raise InputError(f"{path} holds no <run>/frontend to compare with")
    return golden
