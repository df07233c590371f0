"""Flax parameters → PyTorch twins: official names by the inverse of the port's rule table, and Flax's for stroke heads.

twin = to_torch.listener(checkpoint.load_model(RUN))
logits = twin(samples)            # samples: (n_samples,) float32 at the model's sample rate
"""

from typing import Any

import numpy as np
import torch
from torch import nn

from bridge.mel import LogMel
from bridge.torch_strokes import StrokeEfficientAT, Strokes
from bridge.torch_student import EfficientAT
from ports import efficientat, rules
from ports.rules import Arrays
from sousa_jax.checkpoint import Model
from sousa_jax.errors import InputError

_SUFFIXES = {"kernel": "weight", "scale": "weight", "bias": "bias"}


class Listener(nn.Module):
    """Samples `(n_samples,)` float32 → logits `(1, num_classes)`, of a network that hears strokes
    `(logits, strokes)`: their probabilities `(4, T)` in the order of `FrameTargets`."""

    def __init__(self, frontend: LogMel, network: nn.Module):
        super().__init__()
        self.frontend, self.network = frontend, network

    def forward(self, samples: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        return self.network(self.frontend(samples))


def listener(model: Model) -> Listener:
    """The twin of a model with its frontend, in evaluation mode, for windows of exactly `frontend.window_samples`.

    `InputError` if bridge/ has no twin of the model or of its frontend, or if its arrays are not what the twin needs.
    """
    network, frontend = _network(model.name, model.config), LogMel(model.config.frontend)
    expected = network.state_dict()
    found = state_dict(model, {key: tuple(value.shape) for key, value in expected.items()})
    found |= {key: np.zeros((), np.int64) for key in expected if key.endswith(".num_batches_tracked")}
    shapes = [{key: tuple(value.shape) for key, value in state.items()} for state in (found, expected)]
    if wrong := sorted({key for key, _ in shapes[0].items() ^ shapes[1].items()}):
        raise InputError(f"the arrays do not fit the PyTorch twin: {', '.join(wrong[:6])}")
    network.load_state_dict({key: torch.tensor(value) for key, value in found.items()})
    return Listener(frontend, network).eval()


def _network(name: str, config: Any) -> nn.Module:
    if name == "efficientat":
        return StrokeEfficientAT(config) if config.strokes_per_second else EfficientAT(config)
    if name == "strokes":
        return Strokes(config)
    raise InputError(
        f"bridge/ has no PyTorch twin of {name!r}, only of 'efficientat' and 'strokes'; distil it into one"
    )


def state_dict(model: Model, shapes: dict[str, tuple[int, ...]]) -> Arrays:
    """The state dict of a model's twin, without batch norm's counters. `shapes` are those of the twin's own.

    Plain EfficientAT's is the official one. `InputError` for arrays that are not finite float32.
    """
    arrays = {path: np.asarray(array) for path, array in {**model.params, **model.stats}.items()}
    for path, array in arrays.items():
        if array.dtype != np.float32 or not np.isfinite(array).all():
            found = "not finite" if array.dtype == np.float32 else str(array.dtype)
            raise InputError(f"{path} is {found}; the bridge begins from finite float32 weights, and quantizes itself")
    table = efficientat.rules(model.config) if model.name == "efficientat" else []
    table = [rule for rule in table if rule.target in arrays]  # with strokes there is no `last` and no `head`
    state = rules.invert(table, {rule.target: arrays.pop(rule.target) for rule in table})
    for path, array in arrays.items():  # what has no official name
        layer, _, kind = path.rpartition(".")
        key = f"{layer}.{_SUFFIXES[kind]}"
        state[key] = _unfolded(array, shapes[key]) if kind == "kernel" and key in shapes else array
    return state


def _unfolded(kernel: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Flax's kernel, in which time, mel band and input channel make up the leading axes in this order, as the twin's
    `(out, in, mel, time)`."""
    n_out, n_in, mels, steps = shape
    return np.ascontiguousarray(kernel.reshape(steps, mels, n_in, n_out).transpose(3, 2, 1, 0))
