"""HTS-AT's official state dict: its names, and the config that it belongs to.

Official code: github.com/RetroCirce/HTS-Audio-Transformer, `model/{htsat,layers}.py`;
`sed_model.py` wraps it for Lightning.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from ports import golden
from ports.checkpoints import Checkpoint
from ports.golden import Golden, Replay
from ports.rules import CONV, CONV_ONE_INPUT, LINEAR, VECTOR, Inferred, Rule, Transform, norm, shape, weight_and_bias
from sousa_jax import models
from sousa_jax.models.htsat import HTSATConfig, average_crops

# Lightning's name of the network. The official code strips it on loading, so files without it are about too.
PREFIX = "sed_model."

_TABLES = {
    "*spectrogram_extractor.*": "Fourier basis of the frontend, which is computed here",
    "*logmel_extractor.*": "mel bank of the frontend, which is computed here",
    "*.attn.relative_position_index": "table of positions, which is computed here",
    "*.attn_mask": "mask of shifted windows, which is computed here",
}
_UNUSED = "linear layer on classes, which the token-semantic head does not use"
IGNORED = {
    **_TABLES,
    "*bn0.num_batches_tracked": "counter of training steps, not a weight",
    "head.*": _UNUSED,
    f"{PREFIX}head.*": _UNUSED,
}

# Largest error that `ports.verify` lets pass, as a fraction of the spread. The frontend's own is 1.2e-4 at most, in
# near-silent bins, where the reference's float32 Fourier transform has few correct digits.
TOLERANCES = {"stored": 2e-4, "waveform": 5e-4, "frontend": 2e-4}
# In bfloat16; measured 0.13. Random weights put a common offset on all clips, and its rounding counts here.
TOLERANCE_BFLOAT16 = 0.2


# ----------------------------------------------------------------------------------------- names


def rules(config: HTSATConfig, prefix: str = PREFIX) -> list[Rule]:
    """The rule table of a network, in the order of the official state dict."""
    return [dataclasses.replace(rule, source=prefix + rule.source) for rule in _rules(config)]


def class_layer(config: HTSATConfig) -> list[str]:
    """Our paths of the arrays that a change of classes replaces, as the official fine-tuning does."""
    return ["head.kernel", "head.bias"]


def _rules(config: HTSATConfig) -> Iterator[Rule]:
    yield from norm("bn0", "bn0")
    yield Rule("bn0.running_mean", "bn0.mean", VECTOR)
    yield Rule("bn0.running_var", "bn0.var", VECTOR)
    yield Rule("patch_embed.proj.weight", "patch_embed.kernel", CONV_ONE_INPUT)
    yield Rule("patch_embed.proj.bias", "patch_embed.bias", VECTOR)
    yield from norm("patch_embed.norm", "patch_embed.norm")
    for stage, depth in enumerate(config.depths):
        for block in range(depth):
            yield from _block(f"layers.{stage}.blocks.{block}", f"stages.{stage}.blocks.{block}")
        if stage < len(config.depths) - 1:
            source, target = f"layers.{stage}.downsample", f"stages.{stage}.merge"
            yield Rule(f"{source}.reduction.weight", f"{target}.reduction.kernel", LINEAR)
            yield from norm(f"{source}.norm", f"{target}.norm")
    yield from norm("norm", "norm")
    yield Rule("tscam_conv.weight", "head.kernel", CONV)
    yield Rule("tscam_conv.bias", "head.bias", VECTOR)


def _block(source: str, target: str) -> Iterator[Rule]:
    yield from norm(f"{source}.norm1", f"{target}.norm1")
    yield Rule(f"{source}.attn.relative_position_bias_table", f"{target}.attention.rel_pos_bias", Transform("PH->PH"))
    for i, part in enumerate(("query", "key", "value")):
        yield Rule(f"{source}.attn.qkv.weight", f"{target}.attention.{part}.kernel", LINEAR, part=(i, 3))
        yield Rule(f"{source}.attn.qkv.bias", f"{target}.attention.{part}.bias", VECTOR, part=(i, 3))
    yield from weight_and_bias(f"{source}.attn.proj", f"{target}.attention.output")
    yield from norm(f"{source}.norm2", f"{target}.norm2")
    yield from weight_and_bias(f"{source}.mlp.fc1", f"{target}.mlp.hidden")
    yield from weight_and_bias(f"{source}.mlp.fc2", f"{target}.mlp.output")


# ---------------------------------------------------------------------------------------- config


def infer(checkpoint: Checkpoint, variant: str | None = None) -> Inferred:
    """The network that an official file holds: all sizes are read from shapes, the image's from the first shift mask.

    Frontend (but for its mel bands) and `length` leave no trace; they are those of the released variant.
    Raises `InputError` if a telling key is missing or if shapes contradict each other.
    """
    name = variant or "htsat"
    HTSATConfig.preset(name)  # refuses an unknown one
    prefix = PREFIX if any(key.startswith(PREFIX) for key in checkpoint.state) else ""
    state = {key.removeprefix(prefix): array for key, array in checkpoint.state.items()}
    (n_mels,) = shape(state, "bn0.weight", 1)
    embed_dim, _, patch_size, _ = shape(state, "patch_embed.proj.weight", 4)
    depths = _depths(state)
    tables = [
        shape(state, f"layers.{stage}.blocks.0.attn.relative_position_bias_table", 2) for stage in range(len(depths))
    ]
    window_size = (math.isqrt(tables[0][0]) + 1) // 2
    hidden, features = shape(state, "layers.0.blocks.0.mlp.fc1.weight", 2)
    sizes = {
        "num_classes": shape(state, "tscam_conv.weight", 4)[0],
        "patch_size": patch_size,
        "embed_dim": embed_dim,
        "depths": depths,
        "heads": tuple(heads for _, heads in tables),
        "window_size": window_size,
        "mlp_ratio": hidden // features,
    }
    spec_size = _spec_size(state, patch_size, window_size)
    frontend = dataclasses.replace(HTSATConfig.preset(name).frontend, n_mels=n_mels)
    config = HTSATConfig.preset(name, **sizes, spec_size=spec_size or HTSATConfig.spec_size, frontend=frontend)
    evidence = (
        f"from the shapes: {config.num_classes} classes, {n_mels} mel bands, {embed_dim} channels, "
        f"blocks {config.depths}, heads {config.heads}, windows of {window_size}; "
        f"image of {config.spec_size} by {'its shift mask' if spec_size else 'assumption'}; "
        f"released frontend, length {config.length!r}"
    )
    return Inferred(config, name, evidence, rules(config, prefix))


def _depths(state: Mapping[str, np.ndarray]) -> tuple[int, ...]:
    found = [re.match(r"layers\.(\d+)\.blocks\.(\d+)\.", key) for key in state]
    last: dict[int, int] = {}
    for match in filter(None, found):
        last[int(match[1])] = max(int(match[2]), last.get(int(match[1]), 0))
    return tuple(last.get(stage, 0) + 1 for stage in range(max(last, default=0) + 1))


def _spec_size(state: Mapping[str, np.ndarray], patch_size: int, window_size: int) -> int | None:
    """Rows of the image, from the number of windows in the first stage; None if there is no mask to tell."""
    mask = state.get("layers.0.blocks.1.attn_mask")
    return None if mask is None or mask.ndim != 3 else math.isqrt(len(mask)) * window_size * patch_size


# ----------------------------------------------------------------------------------------- proof


def section(reference: Golden, checkpoint: Checkpoint, config: HTSATConfig) -> tuple[str, bool]:
    """Golden files of HTS-AT have one section, which has no name. Whether the weights are the ones used there."""
    return "", reference.section_of_weights(checkpoint.state, prefix=PREFIX, derived=_TABLES) == ""


def replays(config: HTSATConfig, reference: Golden, section: str) -> Iterator[Replay]:
    """Every run: clips as they are, repeated (`_repeat`), concatenated with themselves (`_twice`) or longer than the
    image (`_crops`)."""
    for run in dict.fromkeys(key.split("/")[0] for key in reference.arrays if "/" in key):
        length, _, kind = run.partition("_")
        stored = reference.arrays.get(f"{run}/frontend")
        # The spectrogram of a run that repeats it is the plain run's.
        source = f"{length if kind == 'repeat' else run}/frontend"
        yield Replay(
            run,
            golden.clip_samples(run, reference.sample_rate),
            config.frontend,
            None if stored is None else reference.reference(f"{run}/frontend"),
            reference.reference(source).whole() if source in reference.arrays else None,
            reference.outputs(run),
            _activations(dataclasses.replace(config, length="repeat" if kind == "repeat" else "stretch")),
            **({"clips": _twice} if kind == "twice" else {}),
        )


def _twice(clips: np.ndarray) -> np.ndarray:
    return np.concatenate([clips, clips], axis=1)


@functools.cache
def _activations(config: HTSATConfig) -> Callable[..., dict[str, jax.Array]]:
    """`f(params, stats, features) -> {name: array}`: everything that the golden files hold, in official layouts.

    What follows the image is compiled once for all lengths, and runs crop by crop.
    """
    network = _network(dataclasses.replace(config, length="stretch"))

    @jax.jit
    def images(params: models.Arrays, stats: models.Arrays, features: jax.Array) -> jax.Array:
        return models.module("htsat", config, params, stats).images(features)

    def run(params: models.Arrays, stats: models.Arrays, features: jax.Array) -> dict[str, jax.Array]:
        folded = images(params, stats, features)  # (B, crops, S, S)
        found = [network(params, stats, folded[:, crop]) for crop in range(folded.shape[1])]
        clipwise = jax.nn.sigmoid(average_crops(jnp.stack([part["logits"] for part in found], axis=1)))
        return {"image": folded[:, :1], **found[0], "clipwise": clipwise}

    return run


@functools.cache
def _network(config: HTSATConfig) -> Callable[..., dict[str, jax.Array]]:
    @jax.jit
    def run(params: models.Arrays, stats: models.Arrays, image: jax.Array) -> dict[str, jax.Array]:
        found = models.module("htsat", config, params, stats).activations(image)
        framewise = jax.nn.sigmoid(found.pop("frame_logits"))
        tokens = {name: x.reshape(len(x), -1, x.shape[-1]) for name, x in found.items() if x.ndim == 4}
        return {**found, **tokens, "framewise": framewise}

    return run
