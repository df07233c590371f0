"""What a run cost: `cost.json` beside its results."""

import contextlib
import json
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sousa_jax import models
from sousa_jax.checkpoint import write_json
from sousa_jax.frontends import FrontendSpec

COST_JSON = "cost.json"


class Stopwatch:
    """Seconds of training so far, over all calls of a run that was interrupted.

    They lie in a file of their own: checkpoints are to be the same bytes however long they took. What a killed run did
    after its last checkpoint is done again and counts once.

    Attributes:
      kept: seconds up to the last `keep`.

    Args:
      folder: the run's logs.
      fresh: the run begins; what lies there is of one that came to nothing.
    """

    NAME = "seconds.json"

    def __init__(self, folder: pathlib.Path, fresh: bool):
        self._path = folder / self.NAME
        self.kept = 0.0 if fresh or not self._path.is_file() else float(json.loads(self._path.read_text("utf-8")))
        self._started = time.perf_counter() - self.kept

    def seconds(self) -> float:
        return time.perf_counter() - self._started

    def keep(self) -> None:
        """To be called with each checkpoint. A full disk costs the number, as it costs lines of a log, not the run."""
        self.kept = self.seconds()
        with contextlib.suppress(OSError):
            write_json(self._path, self.kept)


def multiply_adds(eval_step: Callable, params: models.Arrays, stats: models.Arrays, spec: FrontendSpec) -> float:
    """Of one window, from sound to logits: half of the floating-point operations that XLA counts before it optimizes
    (what is done over and over in a loop counts once); NaN where it does not count."""
    batch = {"waveform": jax.ShapeDtypeStruct((1, spec.window_samples), jnp.float32)}
    found = eval_step.lower(*jax.tree.map(_shape, (params, stats)), batch).cost_analysis()
    return (found or {}).get("flops", math.nan) / 2


def _shape(array: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def write(folder: pathlib.Path, **numbers: Any) -> None:
    """Writes `cost.json`; what is not a number there is null."""
    known = {name: None if isinstance(n, float) and math.isnan(n) else n for name, n in numbers.items()}
    write_json(folder / COST_JSON, known)
