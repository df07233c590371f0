"""AST's official files: their names, and the config that they belong to.

Two files hold the same network under other names: `audioset_10_10_0.4593.pth` of github.com/YuanGongND/ast
(`src/models/ast_models.py`), a state dict whose keys begin with `module.` or, saved again, without; and
`MIT/ast-finetuned-audioset-10-10-0.4593` on the Hub, safetensors for transformers. The keys tell which it is.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np

from ports import golden
from ports.checkpoints import Checkpoint
from ports.golden import Golden, Replay
from ports.rules import CONV_ONE_INPUT, Inferred, Rule, Transform, norm, shape, weight_and_bias
from sousa_jax import models
from sousa_jax.errors import InputError
from sousa_jax.frontends import FrontendSpec
from sousa_jax.models.ast import ASTConfig

# What DataParallel puts before the authors' names; files that were saved again lack it, transformers' have none.
PREFIX = "module."
IGNORED = {
    f"{prefix}v.{head}.*": "ImageNet classifier left over from DeiT, which AST does not use"
    for prefix in ("", PREFIX)
    for head in ("head", "head_dist")
}

# Largest error that `ports.verify` lets pass, as a fraction of the spread. Measured: 4.0e-5 with the stored frontend
# output; from the waveform 4.4e-4 in patches and 4.2e-5 in logits; 1.8e-3 in the frontend itself. The largest sit
# where a high tone rings alone (`2p6s` of seed 1, frames 104 to 113): in mel bands 2 to 6 there is e^-22 of its power,
# less than a float32 Fourier transform tells from zero. With the reference's values in the 2 % of bins that are e^-20
# below the loudest of their frame, those patches agree to 5.9e-5.
TOLERANCES = {"stored": 2e-4, "waveform": 5e-4, "frontend": 2e-3}
# In bfloat16; measured 0.47. Random weights put a common offset on all clips, and its rounding counts here.
TOLERANCE_BFLOAT16 = 0.7

# A released variant's section of the golden files.
_SECTIONS = {"ast": "original", "ast_hf": "hf"}
_HEAD_WIDTH = 64  # channels of an attention head, in every DeiT

TOKEN = Transform("11D->D")
POSITIONS = Transform("1TD->TD")


# ----------------------------------------------------------------------------------------- names


def original_rules(config: ASTConfig, prefix: str = PREFIX) -> list[Rule]:
    """The rule table for the authors' names."""
    v = f"{prefix}v"
    table = [
        Rule(f"{v}.cls_token", "class_token", TOKEN),
        Rule(f"{v}.pos_embed", "positions", POSITIONS),
        Rule(f"{v}.dist_token", "distillation_token", TOKEN),
        *weight_and_bias(f"{v}.patch_embed.proj", "patch_embed", CONV_ONE_INPUT),
    ]
    for i in range(config.depth):
        theirs, ours = f"{v}.blocks.{i}", f"blocks.{i}"
        table += norm(f"{theirs}.norm1", f"{ours}.norm1")
        for part, name in enumerate(("query", "key", "value")):
            table += weight_and_bias(f"{theirs}.attn.qkv", f"{ours}.attention.{name}", part=(part, 3))
        table += weight_and_bias(f"{theirs}.attn.proj", f"{ours}.attention.output")
        table += norm(f"{theirs}.norm2", f"{ours}.norm2")
        table += weight_and_bias(f"{theirs}.mlp.fc1", f"{ours}.mlp.hidden")
        table += weight_and_bias(f"{theirs}.mlp.fc2", f"{ours}.mlp.output")
    table += norm(f"{v}.norm", "norm")
    table += norm(f"{prefix}mlp_head.0", "head.norm")
    return [*table, *weight_and_bias(f"{prefix}mlp_head.1", "head.output")]


def hf_rules(config: ASTConfig) -> list[Rule]:
    """The rule table for transformers' names."""
    top = "audio_spectrogram_transformer"
    table = [
        Rule(f"{top}.embeddings.cls_token", "class_token", TOKEN),
        Rule(f"{top}.embeddings.distillation_token", "distillation_token", TOKEN),
        Rule(f"{top}.embeddings.position_embeddings", "positions", POSITIONS),
        *weight_and_bias(f"{top}.embeddings.patch_embeddings.projection", "patch_embed", CONV_ONE_INPUT),
    ]
    for i in range(config.depth):
        theirs, ours = f"{top}.encoder.layer.{i}", f"blocks.{i}"
        for name in ("query", "key", "value"):
            table += weight_and_bias(f"{theirs}.attention.attention.{name}", f"{ours}.attention.{name}")
        table += weight_and_bias(f"{theirs}.attention.output.dense", f"{ours}.attention.output")
        table += weight_and_bias(f"{theirs}.intermediate.dense", f"{ours}.mlp.hidden")
        table += weight_and_bias(f"{theirs}.output.dense", f"{ours}.mlp.output")
        table += norm(f"{theirs}.layernorm_before", f"{ours}.norm1")
        table += norm(f"{theirs}.layernorm_after", f"{ours}.norm2")
    table += norm(f"{top}.layernorm", "norm")
    table += norm("classifier.layernorm", "head.norm")
    return [*table, *weight_and_bias("classifier.dense", "head.output")]


def class_layer(config: ASTConfig) -> list[str]:
    """Our paths of the arrays that a change of classes replaces: layer norm and linear, as the official code does
    when it fine-tunes."""
    return [rule.target for rule in hf_rules(config) if rule.target.startswith("head.")]


# ---------------------------------------------------------------------------------------- config


def infer(checkpoint: Checkpoint, variant: str | None = None) -> Inferred:
    """The network that an official file holds.

    The keys tell the variant; width, depth, MLP and classes are read from the shapes. Strides, epsilons and frontend
    leave no trace and are the variant's. Raises `InputError` if `variant` contradicts the keys, or if a telling key
    is missing or of an impossible shape.
    """
    state = checkpoint.state
    hf = any(key.startswith("audio_spectrogram_transformer.") for key in state)
    name = "ast_hf" if hf else "ast"
    if variant not in (None, name):
        ASTConfig.preset(variant)  # an unknown name is refused as such
        raise InputError(f"--variant says {variant}, but the keys are those of {name}")
    prefix = PREFIX if any(key.startswith(PREFIX) for key in state) else ""
    if hf:
        token = "audio_spectrogram_transformer.embeddings.cls_token"
        block, hidden = "audio_spectrogram_transformer.encoder.layer", "intermediate.dense.weight"
        classes, table = "classifier.dense.weight", hf_rules
    else:
        token = f"{prefix}v.cls_token"
        block, hidden = f"{prefix}v.blocks", "mlp.fc1.weight"
        classes, table = f"{prefix}mlp_head.1.weight", functools.partial(original_rules, prefix=prefix)
    width = shape(state, token, 3)[2]
    if width % _HEAD_WIDTH:
        raise InputError(f"{token} has {width} channels, expected a multiple of {_HEAD_WIDTH}, the width of a head")
    config = ASTConfig.preset(
        name,
        width=width,
        n_heads=width // _HEAD_WIDTH,
        depth=_depth(state, block),
        mlp_width=shape(state, f"{block}.0.{hidden}", 2)[0],
        num_classes=shape(state, classes, 2)[0],
    )
    evidence = (
        f"from the shapes: width {width}, {config.depth} blocks, MLP of {config.mlp_width}, {config.num_classes} "
        f"classes; from the keys: {name}, the names of {'transformers' if hf else 'the authors'}; as in every "
        f"released {name}: heads of {_HEAD_WIDTH}, strides {config.frequency_stride} and {config.time_stride}, "
        f"epsilons {config.norm_epsilon:g} and {config.head_norm_epsilon:g}, {config.frontend.target_frames} frames"
    )
    return Inferred(config, name, evidence, table(config))


def _depth(state: Mapping[str, np.ndarray], block: str) -> int:
    """One more than the highest number of a block; a gap below it shows as missing keys."""
    numbers = [int(match[1]) for key in state if (match := re.match(rf"{re.escape(block)}\.(\d+)\.", key))]
    return max(numbers, default=0) + 1


# ----------------------------------------------------------------------------------------- proof


def section(reference: Golden, checkpoint: Checkpoint, config: ASTConfig) -> tuple[str, bool]:
    """The section of a golden file that a checkpoint belongs to, and whether it has the weights used there: by their
    fingerprint; failing that, by the names in the checkpoint."""
    named = _SECTIONS[infer(checkpoint).variant]
    prefix = PREFIX if named == "original" else ""
    if found := reference.section_of_weights(checkpoint.state, prefix=prefix):
        return found, True
    if named not in reference.fingerprints:
        raise InputError(f"{reference.path} has no section {named}, only {', '.join(reference.fingerprints)}")
    return named, False


def replays(config: ASTConfig, reference: Golden, section: str) -> Iterator[Replay]:
    """Every run of a section. `original`: raw log energies (`5s/fbank`), then networks for 1024 frames (`5s_padded`)
    and for as many as the clip has (`5s_tdim512`). `hf`: 1024 frames (`hf/5s`)."""
    network = _activations(config)
    if section == "original":
        raw = dataclasses.replace(config.frontend, mean=0.0, std=1.0, target_frames=0)
        for length in reference.runs("fbank"):
            stored = reference.reference(f"{length}/fbank")
            yield Replay(length, golden.clip_samples(length, reference.sample_rate), raw, stored, None, {}, None)
    for run in reference.runs("frontend"):
        if run.startswith("hf/") != (section == "hf"):
            continue
        length, _, kind = run.removeprefix("hf/").partition("_")
        spec = dataclasses.replace(config.frontend, target_frames=_target_frames(run, kind, config.frontend))
        yield Replay(
            run,
            golden.clip_samples(length, reference.sample_rate),
            spec,
            reference.reference(f"{run}/frontend"),
            _stored_features(reference, length, spec),
            reference.outputs(run),
            network,
        )


def _target_frames(run: str, kind: str, spec: FrontendSpec) -> int:
    if kind in ("", "padded"):
        return spec.target_frames
    if match := re.fullmatch(r"tdim(\d+)", kind):
        return int(match[1])
    raise InputError(f"the run {run!r} of a golden file is of no known kind: padded, tdim<frames>")


def _stored_features(reference: Golden, length: str, spec: FrontendSpec) -> np.ndarray | None:
    """The network's official input `(batch, n_mels, n_frames)`, made of the raw log energies: of the input itself the
    files hold only a part. None if the energies are not there.

    For `original` it is that input bit for bit, as far as the files tell. For `hf` the energies are of clips without
    their mean, the input of clips with it; the two differ by up to 2.9e-4 of their spread. That can fail a comparison
    but not pass it, and the logits still agree to 4e-5: it proves more than the waveform with its wider tolerance.
    """
    key = f"{length}/fbank"
    log_mel = reference.reference(key).whole() if key in reference.arrays else None
    if log_mel is None:
        return None
    log_mel = log_mel[..., : spec.target_frames]
    log_mel = np.pad(log_mel, ((0, 0), (0, 0), (0, spec.target_frames - log_mel.shape[2])))
    return ((log_mel - np.float32(spec.mean)) / np.float32(spec.std)).astype(np.float32)


@functools.cache
def _activations(config: ASTConfig) -> Callable[..., dict[str, jax.Array]]:
    """Jitted `f(params, stats, features) -> {name: array}`: everything that the golden files hold."""

    @jax.jit
    def run(params: models.Arrays, stats: models.Arrays, features: jax.Array) -> dict[str, jax.Array]:
        model = models.module("ast", config, params, stats)
        outputs = model(features)
        return {**model.stages(features), "embedding": outputs.embedding, "logits": outputs.logits}

    return run
