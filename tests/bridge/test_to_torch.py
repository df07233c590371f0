"""The PyTorch twins answer as the Flax networks do, and hold the same numbers under the official names."""

import dataclasses

import numpy as np
import pytest
import torch

from bridge import to_torch
from bridge.mel import LogMel
from bridge.torch_student import EfficientAT
from conftest_bridge import clips, drawn_model, flax_outputs
from ports import golden, synthetic
from ports.efficientat import rules as efficientat_rules
from ports.port import port
from ports.rules import apply
from sousa_jax import models
from sousa_jax.checkpoint import Model
from sousa_jax.errors import InputError
from sousa_jax.frontends import FrontendSpec
from sousa_jax.models.efficientat import PRESETS, EfficientATConfig
from sousa_jax.models.strokes import StrokesConfig

# Largest error as a fraction of the spread between two clips, given the same spectrogram.
TOLERANCE = 2e-5


def short(name, **changes):
    config = EfficientATConfig.preset(name, **changes)
    return config.for_window(0.64, "fill")


def errors(model):
    """Largest error of the logits, as a fraction of the spread: given Flax's spectrogram, and from samples."""
    waveforms = clips(model.config.frontend)
    features, flax = flax_outputs(model, waveforms)
    spread = np.std(flax.logits[0] - flax.logits[1])
    twin = to_torch.listener(model)
    with torch.inference_mode():
        stored = [twin.network(torch.tensor(x)[None, None]) for x in features]
        whole = [twin(torch.tensor(x)) for x in waveforms]
    if flax.strokes is not None:
        heard = np.stack(flax.strokes, 1)
        for (_, strokes), expected in zip(stored, 1 / (1 + np.exp(-heard)), strict=True):
            np.testing.assert_allclose(strokes, expected, atol=1e-5)
        stored, whole = [x for x, _ in stored], [x for x, _ in whole]
    assert spread > 0.01
    return [np.abs(np.concatenate(x) - flax.logits).max() / spread for x in (stored, whole)]
