"""BEATs' port: names, `cfg`, and the proof against the reference activations. What holds for every model is in
test_rules, test_convert and test_verify."""

import dataclasses
import functools
import json
import pathlib
import re

import jax
import numpy as np
import pytest
import safetensors.numpy
import torch

from ports import beats, golden, verify
from ports.checkpoints import Checkpoint
from ports.port import port
from ports.rules import apply, invert
from sousa_jax import models
from sousa_jax.errors import InputError
from sousa_jax.models import beats as network
from sousa_jax.models.beats import Attention, BEATsConfig, PositionConv

TINY = BEATsConfig(
    num_classes=5, patch_features=24, features=32, hidden_features=64, n_layers=3, n_heads=4, conv_kernel=8,
    conv_groups=4, n_buckets=16, max_distance=40,
)  # fmt: skip
# As in a released file, but for the sizes.
CFG = {
    "encoder_layers": 3, "encoder_embed_dim": 32, "encoder_ffn_embed_dim": 64, "encoder_attention_heads": 4,
    "activation_fn": "gelu", "dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0,
    "encoder_layerdrop": 0.05, "dropout_input": 0.0, "layer_norm_first": False, "conv_bias": False, "conv_pos": 8,
    "conv_pos_groups": 4, "relative_position_embedding": True, "num_buckets": 16, "max_distance": 40,
    "gru_rel_pos": True, "deep_norm": True, "input_patch_size": 16, "layer_wise_gradient_decay_ratio": 0.6,
    "embed_dim": 24, "finetuned_model": True, "predictor_dropout": 0.0, "predictor_class": 5,
}  # fmt: skip
TABLE = "encoder.layers.{}.self_attn.relative_attention_bias.weight"


def tiny_state(config=TINY):
    """A fitting official state dict, the copies of the relative bias included."""
    rng = np.random.default_rng(0)
    shapes, _ = models.abstract("beats", config)
    arrays = {key: rng.standard_normal(array.shape).astype(np.float32) for key, array in shapes.items()}
    state = invert(beats.rules(config), arrays)
    return state | {TABLE.format(i): state[TABLE.format(0)] for i in range(1, config.n_layers)}


def infer(state=None, cfg=CFG, name="renamed.pt", variant=None):
    return beats.infer(Checkpoint(pathlib.Path(name), "", state or tiny_state(), dict(cfg)), variant)


def tensors(state):
    return {key: torch.from_numpy(np.array(value)) for key, value in state.items()}


# ----------------------------------------------------------------------------------------------------- names and shapes


def test_the_config_comes_back_and_every_key_is_used():
    state = tiny_state()
    config, name, evidence, table = infer(state)
    assert (config, name) == (TINY, "beats")
    assert "3 layers of 32 and 64 features, 4 heads, 5 classes; by the file's cfg: max_distance 40" in evidence
    arrays, report = apply(table, state, models.abstract("beats", config)[0], ignored=beats.IGNORED, fresh={})
    assert report.ignored.keys() == {TABLE.format(1), TABLE.format(2)}
    assert "one table serves all layers" in str(report)
    back = invert(table, arrays)
    assert back.keys() == state.keys() - report.ignored.keys()
    assert all(np.array_equal(back[key], state[key]) for key in back)


def test_values_land_where_they_belong():
    state = tiny_state()
    arrays, _ = apply(beats.rules(TINY), state, models.abstract("beats", TINY)[0], ignored=beats.IGNORED, fresh={})
    layer = "encoder.layers.1"
    for ours, theirs in {
        "patch_embed.kernel": state["patch_embedding.weight"][:, 0].transpose(1, 2, 0),
        "pos_conv.g": state["encoder.pos_conv.0.weight_g"][0, 0],
        "pos_conv.v": state["encoder.pos_conv.0.weight_v"].transpose(2, 1, 0),
        "rel_pos_bias": state[TABLE.format(0)],
        "blocks.1.attention.query.kernel": state[f"{layer}.self_attn.q_proj.weight"].T,
        "blocks.1.attention.gate.kernel": state[f"{layer}.self_attn.grep_linear.weight"].T,
        "blocks.1.attention.gate_scale": state[f"{layer}.self_attn.grep_a"].ravel(),
        "blocks.1.norm1.scale": state[f"{layer}.self_attn_layer_norm.weight"],
        "blocks.1.norm2.bias": state[f"{layer}.final_layer_norm.bias"],
        "patch_norm.scale": state["layer_norm.weight"],
        "encoder_norm.scale": state["encoder.layer_norm.weight"],
        "head.kernel": state["predictor.weight"].T,
    }.items():
        np.testing.assert_array_equal(arrays[ours], theirs, err_msg=ours)


@pytest.mark.parametrize(
    ("section", "ported", "values"), [("pretrained", 239, 90_311_792), ("finetuned", 241, 90_717_055)]
)
def test_names_and_shapes_of_the_released_files(parity, section, ported, values):
    released = json.loads((parity / "beats" / "spec.json").read_text())["sections"][section]
    nothing = np.zeros(1, np.float32)
    state = {entry["key"]: np.broadcast_to(nothing, entry["shape"]) for entry in released["entries"]}
    config, _, _, table = infer(state, released["cfg"])
    assert config == BEATsConfig(num_classes=527 if section == "finetuned" else 0)
    _, report = apply(table, state, models.abstract("beats", config)[0], ignored=beats.IGNORED, fresh={})
    assert (report.n_ported, report.n_values, len(report.ignored)) == (ported, values, 11)


def test_a_copy_that_differs_is_refused():
    state = tiny_state()
    state[TABLE.format(2)] = state[TABLE.format(2)] + np.float32(1e-3)
    with pytest.raises(InputError, match=r"layers\.2\.self_attn\.relative_attention_bias\.weight differs from encoder"):
        infer(state)
    assert infer({key: value for key, value in tiny_state().items() if key not in (TABLE.format(1), TABLE.format(2))})


def test_misfits_are_named_in_one_line(tmp_path):
    state = tiny_state()
    state["encoder.layers.1.fc1.wight"] = state.pop("encoder.layers.1.fc1.weight")
    state["predictor.bias"] = np.ones(6, np.float32)
    torch.save({"cfg": CFG, "model": tensors(state)}, tmp_path / "file.pt")
    with pytest.raises(InputError) as error:
        port("beats", tmp_path / "file.pt")
    message = str(error.value)
    assert "1 missing in the file: encoder.layers.1.fc1.weight (for blocks.1.mlp.hidden.kernel)" in message
    assert "1 not used by the model: encoder.layers.1.fc1.wight" in message
    assert "predictor.bias has shape (6,), expected (5,)" in message
    assert "\n" not in message
    with pytest.raises(InputError, match=r"has no 'encoder\.pos_conv\.0\.weight_v'"):
        infer({key: value for key, value in tiny_state().items() if not key.endswith("weight_v")})


# ------------------------------------------------------------------------------------------------------ cfg, containers


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_norm_first": True}, "its cfg says layer_norm_first = True; only False is implemented"),
        ({"activation_fn": "glu"}, "its cfg says activation_fn = 'glu'; only 'gelu' is implemented"),
        ({"conv_bias": True}, "conv_bias = True"),
        ({"deep_norm": None}, "is silent on deep_norm, which then is False; only True"),
        ({"gru_rel_pos": False}, "gru_rel_pos = False"),
        ({"encoder_layers": 12}, "its cfg says encoder_layers = 12, but the shapes say 3"),
        ({"conv_pos_groups": 16}, "conv_pos_groups = 16, but the shapes say 4"),
        ({"num_buckets": 320}, "num_buckets = 320, but the shapes say 16"),
        ({"predictor_class": 527}, "predictor_class = 527, but the shapes say 5"),
        ({"finetuned_model": False}, "finetuned_model = False, but it holds a predictor"),
        ({"max_distance": "far"}, "max_distance = 'far', expected a number"),
        ({"encoder_layerdrop": 1.5}, r"layer_drop is 1\.5"),
    ],
)
def test_a_cfg_that_does_not_fit_is_refused(change, message):
    cfg = {key: value for key, value in {**CFG, **change}.items() if value is not None}
    with pytest.raises(InputError, match=message) as error:
        infer(cfg=cfg)
    assert "\n" not in str(error.value)


def test_settings_come_from_cfg_and_its_silence_has_the_official_meaning():
    told = infer(cfg={**CFG, "max_distance": 99, "dropout": 0.2, "predictor_dropout": 0.3, "unheard_of": 1}).config
    assert (told.max_distance, told.dropout, told.head_dropout) == (99, 0.2, 0.3)
    silent = ("max_distance", "dropout", "encoder_layerdrop", "layer_wise_gradient_decay_ratio")
    config = infer(cfg={key: value for key, value in CFG.items() if key not in silent}).config
    assert (config.max_distance, config.dropout, config.layer_drop, config.gradient_decay) == (1280, 0.1, 0.0, 1.0)


def test_without_a_cfg_the_released_values_are_assumed_and_said():
    config, _, evidence, _ = infer(cfg={})
    assert (config.max_distance, config.layer_drop, config.gradient_decay) == (800, 0.05, 0.6)
    assert "by assumption, for the file has no cfg, as released: max_distance 800" in evidence


@pytest.mark.parametrize("container", ["released", "with labels", "bare", "safetensors"])
def test_containers(container, tmp_path):
    state = tiny_state()
    path = tmp_path / ("file.safetensors" if container == "safetensors" else "file.pt")
    if container == "safetensors":
        safetensors.numpy.save_file(state, path)
    elif container == "bare":
        torch.save(tensors(state), path)
    else:
        labels = {"label_dict": {0: "/m/0"}} if container == "with labels" else {}
        torch.save({"cfg": CFG, "model": tensors(state), **labels}, path)
    ported = port("beats", path)
    has_cfg = container in ("released", "with labels")
    assert ported.config.max_distance == (40 if has_cfg else 800)
    assert ("no cfg" in ported.evidence) != has_cfg
    np.testing.assert_array_equal(ported.params["head.bias"], state["predictor.bias"])


@pytest.mark.parametrize("classes", [0, 5])
def test_other_classes_replace_the_class_layer_only(classes, tmp_path):
    state = {key: value for key, value in tiny_state().items() if classes or not key.startswith("predictor")}
    torch.save({"cfg": {**CFG, "finetuned_model": bool(classes)}, "model": tensors(state)}, tmp_path / "file.pt")
    ported = port("beats", tmp_path / "file.pt", num_classes=40)
    assert ported.report.fresh.keys() == {"head.kernel", "head.bias"}
    assert ported.params["head.kernel"].shape == (32, 40)
    replaced = {"predictor.weight", "predictor.bias"} if classes else set()
    assert {key for key in ported.report.ignored if "relative" not in key} == replaced
    assert f"{classes or 'no'} classes in the file, 40 wanted" in str(ported.report)
    whole = port("beats", tmp_path / "file.pt")
    assert whole.config.num_classes == classes
    body = whole.params.keys() - {"head.kernel", "head.bias"}
    assert all(np.array_equal(ported.params[key], whole.params[key]) for key in body)


def test_variants():
    pretrained = {key: value for key, value in tiny_state().items() if not key.startswith("predictor")}
    cfg = {**CFG, "finetuned_model": False}
    told = infer(pretrained, cfg, "BEATs_iter3_plus_AS2M.pt")
    assert told.variant == "beats_iter3_plus_as2m"
    assert "by the file name: beats_iter3_plus_as2m" in told.evidence
    assert infer(pretrained, cfg, "BEATs_iter3.pt").variant == "beats"
    assert infer(pretrained, cfg, variant="beats_iter3_plus_as2m").variant == "beats_iter3_plus_as2m"
    with pytest.raises(InputError, match="the file name says beats_iter3_plus_as2m, 0 classes, but the shapes say 5"):
        infer(name="BEATs_iter3_plus_AS2M.pt")
    with pytest.raises(InputError, match="unknown BEATs variant 'beets'"):
        infer(variant="beets")
    finetuned = "BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt"
    assert beats._variant_in(finetuned) == "beats_iter3_plus_as2m_ft"
    assert beats._variant_in("BEATs_iter3_plus_AS20K.pt") is None


# ---------------------------------------------------------------------------------------------------------------- proof


@pytest.fixture(scope="module")
def official_beats(fixture_code, tmp_path_factory):
    """`official_beats(section, seed)`: path of a checkpoint as released."""

    def write(section, seed):
        path = tmp_path_factory.mktemp("beats") / f"{section}.pt"
        fixture_code[0].write("beats", section, seed, path)
        return path

    return write


@pytest.mark.slow
@pytest.mark.parametrize("section", ["pretrained", "finetuned"])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_golden_file_and_section(parity, official_beats, run, section, seed):
    reference, file = parity / "beats" / f"golden_seed{seed}.npz", official_beats(section, seed)
    code, out, _ = run(verify.main, "--model=beats", f"--checkpoint={file}", f"--golden={reference}")
    file.unlink()  # 360 MB
    assert code == 0, out
    assert f"section {section}: the fingerprint says these very weights" in out
    with np.load(reference) as stored:
        wanted = {key for key in stored.files if "/" in key and not key.endswith("/valid_samples")}
    if section == "pretrained":
        wanted = {key for key in wanted if not key.endswith("/logits")}
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if re.match(r"\w+s(_masked)?/", line)}
    assert rows.keys() == wanted
    assert rows["10s_masked/token_mask"][2] == "0.0e+00"
    # Rounding leaves more room than the tolerances need: a change that eats it up should be noticed.
    for name, (_, _, _, stored, waveform) in rows.items():
        assert stored == "-" or float(stored) < 4e-5, name
        assert name.endswith("/frontend") or float(waveform) < 4e-4, name
        assert not name.endswith(("embedding", "logits")) or float(waveform) < 5e-5, name


@pytest.fixture(scope="module")
def released(parity, fixture_code):
    """`released(run, changed, config)`: errors of the run's tensors as fractions of the spread, from stored features,
    after a change of some parameters or of the config."""
    state, spec = fixture_code[0].arrays("beats", "finetuned", 0)
    config, _, _, table = beats.infer(Checkpoint(pathlib.Path("x.pt"), "", state, spec["cfg"]))
    params, _ = apply(table, state, models.abstract("beats", config)[0], ignored=beats.IGNORED, fresh={})
    reference = golden.read(parity / "beats" / "golden_seed0.npz", "beats")

    def errors(run, changed=None, config=config):
        replay = next(r for r in beats.replays(config, reference, "finetuned") if r.name == run)
        with jax.default_matmul_precision("highest"):
            given = replay.network({**params, **(changed or {})}, {}, replay.features)
        return {name: ref.error(np.asarray(given[name])) / ref.spread for name, ref in replay.outputs.items()}

    errors.params, errors.config = params, config
    yield errors
    beats._activations.cache_clear()


@pytest.mark.slow
def test_one_changed_weight_is_seen(released):
    """By 20 %, the weakest kinds of parameters among them. Not so a key's bias, nor the scale of what is normalized."""
    allowed = beats.TOLERANCES["stored"]
    assert max(released("1p5s").values()) < 0.1 * allowed
    for name in (
        "patch_embed.kernel", "patch_norm.bias", "pos_conv.g", "pos_conv.bias", "rel_pos_bias", "encoder_norm.bias",
        "blocks.0.attention.gate.bias", "blocks.11.attention.gate.bias", "blocks.11.attention.gate_scale",
        "blocks.7.attention.query.bias", "blocks.3.norm2.scale", "head.bias",
    ):  # fmt: skip
        errors = released("1p5s", {name: released.params[name] * np.float32(1.2)})
        assert max(errors.values()) > 5 * allowed, name
        assert name == "patch_embed.kernel" or errors["logits"] > 1.5 * allowed, name
    errors = released("1p5s", {"blocks.3.attention.key.bias": np.zeros(768, np.float32)})
    assert max(errors.values()) < allowed


def _norm_over_dim_0(self):
    v = self.v[...]
    return v / (v**2).sum((0, 1)) ** 0.5 * self.g[...][:, None, None]


# The mistakes of the fixtures' table, with what they cost there.
MISTAKES = {
    "tanh GELU": (0.0020, (network, "gelu", functools.partial(jax.nn.gelu, approximate=True))),
    "gate left out": (0.36, (Attention, "gates", lambda self, query: 1.0 + 0.0 * query[..., 0])),
    "weight norm over dim 0": (5.0, (PositionConv, "kernel", _norm_over_dim_0)),
}


@pytest.mark.slow
@pytest.mark.parametrize("mistake", [*MISTAKES, "max_distance 1280"])
def test_typical_mistakes_are_seen(released, monkeypatch, mistake):
    """At the cost that the fixtures state, within a factor of two."""
    beats._activations.cache_clear()
    if mistake in MISTAKES:
        cost, patch = MISTAKES[mistake]
        monkeypatch.setattr(*patch)
        found = released("5s")["logits"]
    else:
        cost, changed = 0.36, dataclasses.replace(released.config, max_distance=1280)
        found = released("5s", config=changed)["logits"]
    beats._activations.cache_clear()
    assert 0.5 * cost < found < 2 * cost
    assert found > 5 * beats.TOLERANCES["stored"]


def test_other_weights_belong_to_a_section_by_their_class_layer(parity):
    reference = golden.read(parity / "beats" / "golden_seed0.npz", "beats")
    for classes, expected in ((0, "pretrained"), (527, "finetuned")):
        checkpoint = Checkpoint(pathlib.Path("x.pt"), "", {"a": np.ones(1, np.float32)})
        assert beats.section(reference, checkpoint, BEATsConfig(num_classes=classes)) == (expected, False)
    del reference.fingerprints["finetuned"]
    with pytest.raises(InputError, match="has no section finetuned, only pretrained"):
        beats.section(reference, checkpoint, BEATsConfig())
