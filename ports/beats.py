"""BEATs' official checkpoints, `{cfg, model}`: their names, and the config that they belong to.

Official code: github.com/microsoft/unilm, `beats/{BEATs,backbone}.py`.
"""

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from ports import golden
from ports.checkpoints import Checkpoint
from ports.golden import Golden, Replay
from ports.rules import CONV_ONE_INPUT, VECTOR, Inferred, Rule, Transform, norm, shape, weight_and_bias
from sousa_jax import models
from sousa_jax.errors import InputError
from sousa_jax.models.beats import PRESETS, BEATsConfig, reduce_padding

_TABLE = "encoder.layers.{}.self_attn.relative_attention_bias.weight"
IGNORED = {_TABLE.format("*"): "the same tensor as layer 0's, which is ported: one table serves all layers"}

# Largest error that `ports.verify` lets pass, as a fraction of the spread. With the same spectrogram rounding stays
# under 2e-5. The frontend's own output is off by up to 1.29e-3, in bins whose power lies 1e-10 to 1e-12 below the
# loudest of the same frame: there the reference's float32 Fourier transform has few correct digits itself.
TOLERANCES = {"stored": 2e-4, "waveform": 5e-4, "frontend": 1.5e-3}
# In bfloat16; measured 0.14. Random weights put a common offset on all clips, and its rounding counts here.
TOLERANCE_BFLOAT16 = 0.2


# ----------------------------------------------------------------------------------------- names


def rules(config: BEATsConfig) -> list[Rule]:
    """The rule table of a network."""
    table = [
        Rule("patch_embedding.weight", "patch_embed.kernel", CONV_ONE_INPUT),
        *norm("layer_norm", "patch_norm"),
        *weight_and_bias("post_extract_proj", "proj"),
        Rule("encoder.pos_conv.0.weight_g", "pos_conv.g", Transform("11K->K")),
        Rule("encoder.pos_conv.0.weight_v", "pos_conv.v", Transform("OIK->KIO")),
        Rule("encoder.pos_conv.0.bias", "pos_conv.bias", VECTOR),
        *norm("encoder.layer_norm", "encoder_norm"),
        Rule(_TABLE.format(0), "rel_pos_bias", Transform("NH->NH")),
    ]
    for i in range(config.n_layers):
        source, target = f"encoder.layers.{i}", f"blocks.{i}"
        for theirs, ours in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), ("out_proj", "output")):
            table += weight_and_bias(f"{source}.self_attn.{theirs}", f"{target}.attention.{ours}")
        table += weight_and_bias(f"{source}.self_attn.grep_linear", f"{target}.attention.gate")
        table += [Rule(f"{source}.self_attn.grep_a", f"{target}.attention.gate_scale", Transform("1H11->H"))]
        table += norm(f"{source}.self_attn_layer_norm", f"{target}.norm1")
        table += weight_and_bias(f"{source}.fc1", f"{target}.mlp.hidden")
        table += weight_and_bias(f"{source}.fc2", f"{target}.mlp.output")
        table += norm(f"{source}.final_layer_norm", f"{target}.norm2")
    return [*table, *(weight_and_bias("predictor", "head") if config.num_classes else ())]


def class_layer(config: BEATsConfig) -> list[str]:
    """Our paths of the arrays that a change of classes replaces: the one linear layer behind the transformer."""
    return [rule.target for rule in rules(config) if rule.target.startswith("head.")]


# ---------------------------------------------------------------------------------------- config

# Official setting to ours. The shapes tell these, and `cfg` may only agree:
_SIZES = {
    "encoder_layers": "n_layers",
    "encoder_embed_dim": "features",
    "encoder_ffn_embed_dim": "hidden_features",
    "encoder_attention_heads": "n_heads",
    "embed_dim": "patch_features",
    "input_patch_size": "patch_size",
    "conv_pos": "conv_kernel",
    "conv_pos_groups": "conv_groups",
    "num_buckets": "n_buckets",
    "predictor_class": "num_classes",
}
# Only `cfg` tells these; the value is the official one if it is silent.
_SETTINGS = {
    "max_distance": ("max_distance", 1280),
    "dropout": ("dropout", 0.1),
    "dropout_input": ("input_dropout", 0.0),
    "attention_dropout": ("attention_dropout", 0.1),
    "activation_dropout": ("activation_dropout", 0.0),
    "predictor_dropout": ("head_dropout", 0.1),
    "encoder_layerdrop": ("layer_drop", 0.0),
    "layer_wise_gradient_decay_ratio": ("gradient_decay", 1.0),
}
# The one network that is implemented, and again what silence means.
_REQUIRED = {
    "activation_fn": ("gelu", "gelu"),
    "layer_norm_first": (False, False),
    "deep_norm": (True, False),
    "conv_bias": (False, False),
    "relative_position_embedding": (True, False),
    "gru_rel_pos": (True, False),
}


def infer(checkpoint: Checkpoint, variant: str | None = None) -> Inferred:
    """The network that an official file holds: sizes from the shapes, the rest from its `cfg`.

    A file without `cfg` (the weights alone, saved again) is taken for a network as released, and `evidence` says so.
    Raises `InputError` if `cfg`, the variant or the file name contradicts the shapes, if `cfg` asks for what is not
    implemented, if a telling key is missing, or if the layers' copies of the relative bias differ.
    """
    state, cfg = checkpoint.state, checkpoint.cfg
    sizes = _sizes(state)
    settings = _settings(cfg, sizes) if cfg else {}
    config = BEATsConfig(**sizes, **settings)
    _check_copies(state)
    name, told_by = _variant(checkpoint.path.name, variant, sizes)
    by = "the file's cfg" if cfg else "assumption, for the file has no cfg, as released"
    evidence = (
        f"from the shapes: {config.n_layers} layers of {config.features} and {config.hidden_features} features, "
        f"{config.n_heads} heads, {config.num_classes or 'no'} classes; by {by}: max_distance {config.max_distance}, "
        f"layer_drop {config.layer_drop:g}, gradient_decay {config.gradient_decay:g}; by {told_by}: {name}"
    )
    return Inferred(config, name, evidence, rules(config))


def _sizes(state: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Our fields, as the shapes say. Shapes that contradict each other are left to `rules.apply`."""
    features, patch_features = shape(state, "post_extract_proj.weight", 2)
    _, group_size, conv_kernel = shape(state, "encoder.pos_conv.0.weight_v", 3)
    n_buckets, n_heads = shape(state, _TABLE.format(0), 2)
    if not group_size or features % group_size:
        raise InputError(
            f"encoder.pos_conv.0.weight_v has groups of {group_size} channels, which {features} do not split"
        )
    layers = {match[1] for key in state if (match := re.match(r"encoder\.layers\.(\d+)\.", key))}
    return {
        "num_classes": shape(state, "predictor.weight", 2)[0] if "predictor.weight" in state else 0,
        "patch_size": shape(state, "patch_embedding.weight", 4)[2],
        "patch_features": patch_features,
        "features": features,
        "hidden_features": shape(state, "encoder.layers.0.fc1.weight", 2)[0],
        "n_layers": len(layers),
        "n_heads": n_heads,
        "conv_kernel": conv_kernel,
        "conv_groups": features // group_size,
        "n_buckets": n_buckets,
    }


def _settings(cfg: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
    """Our fields, as `cfg` says, which must agree with the shapes."""
    for key, (wanted, silent) in _REQUIRED.items():
        if cfg.get(key, silent) != wanted:
            said = f"says {key} = {cfg[key]!r}" if key in cfg else f"is silent on {key}, which then is {silent}"
            raise InputError(f"its cfg {said}; only {wanted!r} is implemented, as in all released files")
    finetuned = cfg.get("finetuned_model", False)
    if bool(finetuned) != bool(sizes["num_classes"]):
        found = "a predictor" if sizes["num_classes"] else "no predictor"
        raise InputError(f"its cfg says finetuned_model = {finetuned!r}, but it holds {found}")
    for key, ours in _SIZES.items():
        if key in cfg and cfg[key] != sizes[ours] and (finetuned or key != "predictor_class"):
            raise InputError(f"its cfg says {key} = {cfg[key]!r}, but the shapes say {sizes[ours]}")
    # What a predictor would have, had there been one, binds nobody.
    told = {key: ours for key, ours in _SETTINGS.items() if finetuned or key != "predictor_dropout"}
    for key, (ours, _) in told.items():
        kind = int if ours == "max_distance" else (int, float)
        if key in cfg and (not isinstance(cfg[key], kind) or isinstance(cfg[key], bool)):
            raise InputError(f"its cfg says {key} = {cfg[key]!r}, expected a number")
    return {ours: cfg.get(key, silent) for key, (ours, silent) in told.items()}


def _check_copies(state: Mapping[str, np.ndarray]) -> None:
    first = state[_TABLE.format(0)]
    for key in state:
        if re.fullmatch(re.escape(_TABLE).replace(r"\{\}", r"\d+"), key) and not np.array_equal(state[key], first):
            raise InputError(f"{key} differs from {_TABLE.format(0)}: in BEATs they are one tensor")


def _variant(file_name: str, variant: str | None, sizes: Mapping[str, int]) -> tuple[str, str]:
    """The variant, and what told it. All iterations are one network, so neither shapes nor `cfg` can."""
    if variant:
        name, told_by = variant, "--variant"
    elif name := _variant_in(file_name):
        told_by = "the file name"
    else:
        return "beats", "the shapes"
    claimed = BEATsConfig.preset(name).num_classes if "num_classes" in PRESETS.get(name, {}) else sizes["num_classes"]
    if claimed != sizes["num_classes"]:
        raise InputError(f"{told_by} says {name}, {claimed} classes, but the shapes say {sizes['num_classes']}")
    BEATsConfig.preset(name)
    return name, told_by


def _variant_in(file_name: str) -> str | None:
    """`beats_iter3_plus_as2m_ft` of `BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt`; None of any other name."""
    match = re.match(r"BEATs_iter3_plus_AS2M(_finetuned_on_AS2M_cpt\d)?(?![A-Za-z0-9_])", file_name)
    return f"beats_iter3_plus_as2m{'_ft' if match[1] else ''}" if match else None


# ----------------------------------------------------------------------------------------- proof


def section(reference: Golden, checkpoint: Checkpoint, config: BEATsConfig) -> tuple[str, bool]:
    """The section of a golden file that a checkpoint belongs to, and whether it has the weights used there: by their
    fingerprint; failing that, by whether it has a class layer."""
    if found := reference.section_of_weights(checkpoint.state):
        return found, True
    name = "finetuned" if config.num_classes else "pretrained"
    if name not in reference.fingerprints:
        raise InputError(f"{reference.path} has no section {name}, only {', '.join(reference.fingerprints)}")
    return name, False


def replays(config: BEATsConfig, reference: Golden, section: str) -> Iterator[Replay]:
    """Every run: clips of 10 to 1.5 s, and once more the longest with padding, `10s_masked`, silent from
    `valid_samples` on. The file holds the activations of the fine-tuned network; the pre-trained one, of the same
    weights, has all of them but the logits."""
    network = _activations(config)
    apart = {"valid_samples", *(() if section == "finetuned" else ("logits",))}

    def outputs(run: str) -> dict[str, golden.Reference]:
        return {name: tensor for name, tensor in reference.outputs(run).items() if name not in apart}

    for run in reference.runs("frontend"):
        stored = reference.reference(f"{run}/frontend")
        n_samples = golden.clip_samples(run, reference.sample_rate)
        yield Replay(run, n_samples, config.frontend, stored, stored.whole(), outputs(run), network)
    for run in reference.runs("token_mask"):
        n_samples = golden.clip_samples(run, reference.sample_rate)
        padding = np.arange(n_samples) >= reference.reference(f"{run}/valid_samples").values[:, None]
        padded = functools.partial(network, padding=reduce_padding(padding, config.frontend.n_frames(n_samples)))
        silenced = functools.partial(np.where, padding, np.float32(0.0))
        yield Replay(run, n_samples, config.frontend, None, None, outputs(run), padded, silenced)


@functools.cache
def _activations(config: BEATsConfig) -> Callable[..., dict[str, jax.Array]]:
    """Jitted `f(params, stats, features, padding=None) -> {name: array}`: everything that the golden files hold."""

    @jax.jit
    def run(
        params: models.Arrays, stats: models.Arrays, features: jax.Array, padding: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        model = models.module("beats", config, params, stats)
        outputs = model(features, padding=padding)
        mask = None if padding is None else model.token_padding(features, padding)
        stages = model.stages(features, token_padding=mask)
        masks = {} if mask is None else {"token_mask": mask}
        return {**stages, **masks, "embedding": outputs.embedding, "logits": outputs.logits}

    return run
