"""What a run cost: `cost.json` beside its results."""

import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sousa_jax import models
from sousa_jax.checkpoint import write_json
from sousa_jax.frontends import FrontendSpec

COST_JSON = "cost.json"


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
