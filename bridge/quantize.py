"""Smaller packages: 8-bit or palettized weights, and 8-bit activations calibrated on clips.

Only convolutions are quantized. The frontend's matrix products keep their float32 constants: a logarithm follows, which
makes much of a small error where there is silence.
"""

import copy
import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ml_collections import ConfigDict
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from bridge.to_torch import Listener
from sousa_jax.data import open_split
from sousa_jax.data.clips import BadClip, random_window, trim_tail
from sousa_jax.errors import InputError
from sousa_jax.frontends import FrontendSpec
from sousa_jax.rudiments import NUM_CLASSES

if TYPE_CHECKING:
    import coremltools as ct
    import pandas as pd

PALETTES = {"palette4": 4, "palette6": 6, "palette8": 8}
FEWEST_CLIPS, USUAL_CLIPS = 1_000, 1_500
# Small; of the pyramid's sums eight bits lose what strokes are told by, the rest is made of comparisons and powers.
UNTOUCHED = ("pyramid", "strokes", "rhythm")


def packing(kind: str) -> "ct.PassPipeline":
    """The passes of a conversion that stores the weights of convolutions in fewer bits; the usual ones for `none` and
    for `w8a8`, whose twin was quantized before. Small arrays (under 2,048 values) stay as they are."""
    import coremltools as ct
    from coremltools.optimize import coreml

    passes = ct.PassPipeline()
    if kind == "int8":
        name = "compression::linear_quantize_weights"
        config = coreml.OpLinearQuantizerConfig(mode="linear_symmetric", granularity="per_channel")
    elif kind in PALETTES:
        name = "compression::palettize_weights"
        config = coreml.OpPalettizerConfig(mode="kmeans", nbits=PALETTES[kind])
    else:
        return passes
    passes.append_pass(name)
    passes.set_options(name, {"config": coreml.OptimizationConfig(op_type_configs={"conv": config})})
    return passes


# ------------------------------------------------------------------------------------------------- 8-bit activations


def with_8_bit_activations(twin: Listener, windows: Iterable[np.ndarray]) -> Listener:
    """The twin with weights and activations of its network in 8 bits, ranges taken from `windows`, `(n_samples,)` each.

    Batch norm is folded into the convolutions first. Frontend and `UNTOUCHED` parts stay in float32.
    """
    from coremltools.optimize.torch.quantization import LinearQuantizer, LinearQuantizerConfig

    parts = [name for name, _ in twin.network.named_children() if name in UNTOUCHED]
    config = LinearQuantizerConfig.from_dict(
        {
            "global_config": {"quantization_scheme": "affine", "weight_per_channel": True},
            "module_name_configs": dict.fromkeys(parts),
            "non_traceable_module_names": parts,
        }
    )
    windows = iter(windows)
    with torch.no_grad():
        log_mel = twin.frontend(torch.from_numpy(next(windows)))
        quantizer = LinearQuantizer(folded(twin.network), config)
        network = quantizer.prepare(example_inputs=(log_mel,)).eval()
        network.apply(torch.ao.quantization.enable_observer)
        network.apply(torch.ao.quantization.disable_fake_quant)
        network(log_mel)
        for window in windows:
            network(twin.frontend(torch.from_numpy(window)))
        network.apply(torch.ao.quantization.disable_observer)
        network.apply(torch.ao.quantization.enable_fake_quant)
        return Listener(twin.frontend, quantizer.finalize()).eval()


def folded(network: nn.Module) -> nn.Module:
    """A copy whose batch norms are part of the convolutions before them."""
    network = copy.deepcopy(network)
    for parent in list(network.modules()):
        children = list(parent.named_children()) if isinstance(parent, nn.Sequential) else []
        for (name, conv), (after, norm) in itertools.pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(conv, norm))
                setattr(parent, after, nn.Identity())
    return network


# ------------------------------------------------------------------------------------------------------- calibration


def calibration_clips(record: dict[str, Any], path: str | None, spec: FrontendSpec) -> list[np.ndarray]:
    """Windows of training clips, `(n_samples,)` float32 each, that cover all classes and tiers (`calibration_rows`).

    Args:
      record: a run's `config.json`; its settings and seed say which clips.
      path: read these in place of `config.data.path`.
      spec: sample rate and window.

    Raises `InputError` if there are fewer than `FEWEST_CLIPS`.
    """
    data = ConfigDict(record["config"]["data"])
    data.streaming = False
    if path:
        data.path, data.revision = path, ""
    clips = open_split(data, "train", seed=record["seed"], sample_rate=spec.sample_rate)
    if len(clips) < FEWEST_CLIPS:
        raise InputError(f"{data.path} has {len(clips)} training clips, w8a8 needs at least {FEWEST_CLIPS}; see --data")
    rng = np.random.default_rng(record["seed"])
    windows = []
    for row in calibration_rows(clips.table, USUAL_CLIPS, rng):
        try:
            wave = trim_tail(clips.waveform(int(row), spec.sample_rate), spec.sample_rate)
            windows.append(random_window(wave, spec.window_samples, rng))
        except BadClip as bad:
            print(f"left out {bad}")
    return windows


def calibration_rows(table: "pd.DataFrame", count: int, rng: np.random.Generator) -> np.ndarray:
    """Up to `count` rows of a table of clips, drawn so that every class in every tier has as many as there are, or as
    many as the others: one of each, then a second of each, and so on.

    `InputError` if a class is missing, or if `count` is too small for one of each.
    """
    missing = NUM_CLASSES - table["label"].nunique()
    if missing:
        raise InputError(f"{missing} of the {NUM_CLASSES} classes have no clip to calibrate on")
    shuffled = table[["label", "skill_tier"]].iloc[rng.permutation(len(table))]
    groups = shuffled.groupby(["label", "skill_tier"], observed=True)
    if groups.ngroups > count:
        raise InputError(f"{count} clips cannot cover {groups.ngroups} pairs of class and tier")
    turn = groups.cumcount().to_numpy()
    return shuffled.index.to_numpy()[np.argsort(turn, kind="stable")[:count]]
