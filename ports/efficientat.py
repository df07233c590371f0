"""EfficientAT's official state dicts: their names, and the config that they belong to.

Official code: github.com/fschmid56/EfficientAT, `models/mn/{model,block_types,attention_pooling}.py`.
"""

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ports import golden
from ports.checkpoints import Checkpoint
from ports.golden import Golden, Replay
from ports.rules import (
    CONV_ONE_INPUT,
    DEPTHWISE,
    POINTWISE,
    VECTOR,
    Inferred,
    Rule,
    Transform,
    shape,
    weight_and_bias,
)
from sousa_jax import models
from sousa_jax.errors import InputError
from sousa_jax.models.efficientat import BLOCKS, PRESETS, EfficientATConfig

IGNORED = {"*.num_batches_tracked": "counter of training steps, not a weight"}

# Largest error that `ports.verify` lets pass, as a fraction of the spread. With the same spectrogram float32
# rounding stays under 6e-5; from the waveform, near-silent bins of a float32 FFT move the logits by up to 7e-4.
TOLERANCES = {"stored": 2e-4, "waveform": 2e-3, "frontend": 2e-3}
# In bfloat16; measured 2.0. Random weights put a common offset on all clips, and its rounding counts here.
TOLERANCE_BFLOAT16 = 2.5


# ----------------------------------------------------------------------------------------- names


def rules(config: EfficientATConfig) -> list[Rule]:
    """The rule table of a network, in the order of the official state dict."""
    table = [*_conv_norm("features.0", "stem", CONV_ONE_INPUT)]
    in_channels = config.channels(16)
    for i, (_, expanded, out_channels, use_se, _, _) in enumerate(BLOCKS):
        parts = itertools.count()  # a part that is absent takes no number in the official sequence
        official = f"features.{i + 1}.block"
        if config.channels(expanded) != in_channels:
            table += _conv_norm(f"{official}.{next(parts)}", f"blocks.{i}.expand", POINTWISE)
        table += _conv_norm(f"{official}.{next(parts)}", f"blocks.{i}.depthwise", DEPTHWISE)
        if use_se and config.se_dims:
            part = next(parts)
            for branch, layer in itertools.product(range(len(config.se_dims)), ("fc1", "fc2")):
                source = f"{official}.{part}.conc_se_layers.{branch}.{layer}"
                table += weight_and_bias(source, f"blocks.{i}.se.branches.{branch}.{layer}")
        table += _conv_norm(f"{official}.{next(parts)}", f"blocks.{i}.project", POINTWISE)
        in_channels = config.channels(out_channels)
    table += _conv_norm(f"features.{len(BLOCKS) + 1}", "last", POINTWISE)
    return [*table, *_HEAD_RULES[config.head]()]


def class_layer(config: EfficientATConfig) -> list[str]:
    """Our paths of the arrays that a change of classes replaces: the last linear layer of `mlp`, or all of
    another head, as the official code does when it fine-tunes."""
    replaced = "head.output." if config.head == "mlp" else "head."
    return [rule.target for rule in rules(config) if rule.target.startswith(replaced)]


def _conv_norm(source: str, target: str, kernel: Transform) -> Iterator[Rule]:
    yield Rule(f"{source}.0.weight", f"{target}.kernel", kernel)
    for theirs, ours in (("weight", "scale"), ("bias", "bias"), ("running_mean", "mean"), ("running_var", "var")):
        yield Rule(f"{source}.1.{theirs}", f"{target}.norm.{ours}", VECTOR)


def _attention_head() -> Iterator[Rule]:
    yield Rule("classifier.head_weight", "head.head_weight", Transform("1H1->H"))
    yield from weight_and_bias("classifier.subspace_proj", "head.proj")


_HEAD_RULES = {
    "mlp": lambda: (*weight_and_bias("classifier.2", "head.hidden"), *weight_and_bias("classifier.5", "head.output")),
    "fully_convolutional": lambda: _conv_norm("classifier", "head", POINTWISE),
    "multihead_attention_pooling": _attention_head,
}


# ---------------------------------------------------------------------------------------- config


def infer(checkpoint: Checkpoint, variant: str | None = None) -> Inferred:
    """The network that an official file holds.

    Width, head, classes and squeeze-excitation are read from the shapes. Hop, mel bands and strides leave no
    trace there: they come from `variant`, else from the official file name, else they are the standard ones.
    Raises `InputError` if the variant or the file name contradicts the shapes, or if a telling key is missing.
    """
    state = checkpoint.state
    width, head = _width(state), _head(state)
    if variant:
        name, told_by = variant, "--variant"
    elif name := _variant_in(checkpoint.path.name):
        told_by = "the file name"
    else:
        name, told_by = _standard_variant(width, head["head"]), "assumption (--variant can say otherwise)"
    claims = {"width": EfficientATConfig.preset(name).width, **PRESETS[name]}
    for setting, found in (("width", width), ("head", head["head"])):
        if claims.get(setting, found) != found:
            raise InputError(f"{told_by} says {name}, {setting} {claims[setting]}, but the shapes say {found}")
    config = _with_squeeze_excitation(state, EfficientATConfig.preset(name, **head))
    spec = config.frontend
    evidence = (
        f"from the shapes: width {width}, {config.head} head, {config.num_classes} classes, "
        f"squeeze-excitation {config.se_dims or 'none'}; by {told_by}: hop "
        f"{1000 * spec.hop_length / spec.sample_rate:g} ms, {spec.n_mels} mel bands, strides {config.strides}"
    )
    if len(config.se_dims) > 1:
        evidence += f"; by assumption: branches joined by {config.se_agg}"
    return Inferred(config, name, evidence, rules(config))


def _variant_in(file_name: str) -> str | None:
    """`mn10_hop_5` of `mn10_as_hop_5_mAP_475.pt`, None if it is not named as the official files are."""
    match = re.match(r"(mn\d\d)_(?:as|im)(?:_(hop_\d+|mels_\d+|fc(?:_s\d{4})?))?(?![a-z0-9])", file_name)
    name = "_".join(part for part in match.groups() if part) if match else None
    return name if name in PRESETS else None


def _standard_variant(width: float, head: str) -> str:
    """The released variant of this width with the standard frontend and strides, of this head if there is one."""
    standard = {
        (config.width, config.head): name
        for name, preset in PRESETS.items()
        if preset.keys() <= {"width", "head"} and (config := EfficientATConfig.preset(name))
    }
    return standard.get((width, head)) or standard[width, "mlp"]


def _width(state: Mapping[str, np.ndarray]) -> float:
    channels = shape(state, f"features.{len(BLOCKS) + 1}.0.weight", 4)[1]
    by_channels = {
        EfficientATConfig.preset(name).channels(160): EfficientATConfig.preset(name).width for name in PRESETS
    }
    if channels not in by_channels:
        raise InputError(f"{channels} channels before the last convolution are of no released width {by_channels}")
    return by_channels[channels]


def _head(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    if "classifier.head_weight" in state:
        heads = shape(state, "classifier.head_weight", 3)[1]
        classes = shape(state, "classifier.subspace_proj.weight", 2)[0] // (2 * heads)
        return {"head": "multihead_attention_pooling", "attention_heads": heads, "num_classes": classes}
    if "classifier.0.weight" in state:
        return {"head": "fully_convolutional", "num_classes": shape(state, "classifier.0.weight", 4)[0]}
    return {"head": "mlp", "num_classes": shape(state, "classifier.5.weight", 2)[0]}


def _with_squeeze_excitation(state: Mapping[str, np.ndarray], config: EfficientATConfig) -> EfficientATConfig:
    """Reads axes and bottleneck off the layers `fc1`, `(squeezed, size)`, of each branch of each block."""
    branches: dict[int, dict[int, tuple[int, int]]] = {}
    for key in state:
        if match := re.fullmatch(r"features\.(\d+)\.block\.\d+\.conc_se_layers\.(\d+)\.fc1\.weight", key):
            branches.setdefault(int(match[2]), {})[int(match[1]) - 1] = shape(state, key, 2)
    if not branches:
        return dataclasses.replace(config, se_dims="")
    layers = [shape for blocks in branches.values() for shape in blocks.values()]
    reduction = next(
        (r for r in (4, 2, 8, 16, 1) if all(_squeezed(size, r) == squeezed for squeezed, size in layers)), 4
    )
    config = dataclasses.replace(config, se_reduction=reduction)
    found = [{block: size for block, (_, size) in branches[n].items()} for n in sorted(branches)]
    channels = {block: config.channels(BLOCKS[block][1]) for block in found[0]}
    if found == [channels]:
        return config
    # A branch over frames fits one clip length only; the official networks are built for 10 s.
    frontend = dataclasses.replace(config.frontend, window_s=10.0)
    shapes, _ = models.abstract("efficientat", dataclasses.replace(config, se_dims="cft", frontend=frontend))
    letters = [
        dim
        for sizes in found
        for i, dim in enumerate("cft")
        if all(shapes[f"blocks.{block}.se.branches.{i}.fc1.kernel"].shape[0] == size for block, size in sizes.items())
    ]
    if len(letters) != len(found):
        raise InputError(f"squeeze-excitation over {found} fits no axis of {config.frontend.n_mels} mel bands and 10 s")
    return dataclasses.replace(
        config, se_dims="".join(letters), frontend=frontend if "t" in letters else config.frontend
    )


def _squeezed(size: int, reduction: int) -> int:
    return EfficientATConfig(width=1.0).channels(size // reduction)


# ----------------------------------------------------------------------------------------- proof


def section(reference: Golden, checkpoint: Checkpoint, config: EfficientATConfig) -> tuple[str, bool]:
    """The section of a golden file that a checkpoint belongs to, and whether it has the weights used there: by their
    fingerprint; failing that, by the number of batch-norm statistics and of classes."""
    if found := reference.section_of_weights(checkpoint.state):
        return found, True
    _, stats = models.abstract("efficientat", config)
    ours = (sum(math.prod(array.shape) for array in stats.values()), config.num_classes)
    theirs = {name: _sizes(reference, name) for name in reference.fingerprints}
    alike = [name for name, sizes in theirs.items() if sizes == ours]
    if len(alike) == 1:
        return alike[0], False
    raise InputError(
        f"{reference.path}: {len(alike) or 'no'} sections with {ours[0]} statistics and {ours[1]} classes; "
        f"it has {', '.join(f'{name} with {a} and {b}' for name, (a, b) in theirs.items())}"
    )


def _sizes(reference: Golden, name: str) -> tuple[int, int]:
    statistics = reference.arrays.get(f"{name}/statistics", np.empty(0)).size
    logits = [array.shape[-1] for key, array in reference.arrays.items() if key.endswith(f"/{name}/logits")]
    return statistics, logits[0] if logits else 0


def replays(config: EfficientATConfig, reference: Golden, section: str) -> Iterator[Replay]:
    """Every run of a section: clips of 10 to 1.5 s, each with `features00` .. `features16`, embedding and logits."""
    network = _activations(config)
    for run in reference.runs("frontend"):
        stored = reference.reference(f"{run}/frontend")
        yield Replay(
            run,
            golden.clip_samples(run, reference.sample_rate),
            config.frontend,
            stored,
            stored.whole(),
            reference.outputs(f"{run}/{section}"),
            network,
        )


@functools.cache
def _activations(config: EfficientATConfig) -> Callable[..., dict[str, jax.Array]]:
    """Jitted `f(params, stats, features) -> {name: array}`: everything that the golden files hold, feature maps as
    `(batch, channel, mel, frame)`."""

    @jax.jit
    def run(params: models.Arrays, stats: models.Arrays, features: jax.Array) -> dict[str, jax.Array]:
        model = models.module("efficientat", config, params, stats)
        outputs = model(features)
        maps = {f"features{i:02d}": jnp.moveaxis(x, -1, 1) for i, x in enumerate(model.stages(features))}
        return {**maps, "embedding": outputs.embedding, "logits": outputs.logits}

    return run
