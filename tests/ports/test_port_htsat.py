"""HTS-AT's port: `ports.verify` on every golden file, the mistakes that it catches, and what a file must hold."""

import functools
import re

import jax
import numpy as np
import pytest
import torch

from ports import checkpoints, convert, htsat, rules, verify
from sousa_jax import checkpoint, models
from sousa_jax.errors import InputError
from sousa_jax.frontends import FrontendSpec
from sousa_jax.models.htsat import HTSATConfig, cubic_weights


@pytest.fixture(scope="module")
def official(fixture_code, tmp_path_factory):
    """`official(seed)`: path of a checkpoint as released, written once."""
    folder = tmp_path_factory.mktemp("htsat")

    @functools.cache
    def write(seed=0):
        path = folder / f"HTSAT_AudioSet_seed{seed}.ckpt"
        fixture_code[0].write("htsat", "audioset", seed, path)
        return path

    return write


@pytest.fixture(scope="module")
def state(fixture_code):
    """The state dict of seed 0; a test that spoils it takes a copy."""
    return fixture_code[0].arrays("htsat", "audioset", 0)[0]


@pytest.fixture(scope="module")
def short_golden(parity, tmp_path_factory):
    """Only the plain run of 1.5 s of seed 0."""
    path = tmp_path_factory.mktemp("golden") / "short.npz"
    with np.load(parity / "htsat" / "golden_seed0.npz") as file:
        np.savez(path, **{key: file[key] for key in file.files if "/" not in key or key.startswith("1p5s/")})
    return path


@pytest.fixture
def save(tmp_path):
    """`save(state)`: writes a Lightning checkpoint."""

    def write(state, **others):
        tensors = {key: torch.from_numpy(np.array(value)) for key, value in state.items()}
        torch.save({"epoch": 0, "global_step": 0, "state_dict": tensors, **others}, tmp_path / "file.ckpt")
        return tmp_path / "file.ckpt"

    return write


@pytest.fixture
def verified(run):
    def call(file, golden_file, *flags):
        return run(verify.main, "--model=htsat", f"--checkpoint={file}", f"--golden={golden_file}", *flags)

    return call


def _arrays(state):
    """`(params, stats)` straight from the table."""
    inferred = htsat.infer(checkpoints.Checkpoint("file.ckpt", "", state))
    params, stats = models.abstract("htsat", inferred.config)
    arrays, report = rules.apply(inferred.table, state, {**params, **stats}, ignored=htsat.IGNORED, fresh={})
    return inferred, arrays, report


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_every_golden_file(parity, official, verified, seed):
    reference = parity / "htsat" / f"golden_seed{seed}.npz"
    code, out, _ = verified(official(seed), reference)
    assert code == 0, out
    assert "PASSED" in out
    assert "one section: the fingerprint says these very weights" in out
    with np.load(reference) as file:
        wanted = [key for key in file.files if "/" in key]
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if re.match(r"\w+s(_\w+)?/", line)}
    assert sorted(rows) == sorted(wanted)
    # Rounding leaves more room than the tolerances need: a change that eats it up should be noticed.
    for name, (_, _, _, stored, waveform) in rows.items():
        assert stored == "-" or float(stored) < 2e-5, name
        assert float(waveform) < (1.3e-4 if name.endswith("/frontend") else 8e-5), name
        assert (stored == "-") == bool(re.search("frontend|_twice|_crops", name)), name


# The change is a fifth, as in the fixtures' own table of what each weight moves.
@pytest.mark.slow
@pytest.mark.parametrize(
    "key",
    ["bn0.running_var", "layers.1.blocks.1.attn.relative_position_bias_table", "layers.3.blocks.1.mlp.fc2.bias"],
)
def test_one_changed_weight_fails(state, save, short_golden, verified, key):
    changed = {**state, f"sed_model.{key}": state[f"sed_model.{key}"] * np.float32(1.2)}
    code, out, _ = verified(save(changed), short_golden)
    assert code == 1
    assert "FAILED" in out
    assert "THE WEIGHTS ARE NOT THE SAME" in out


def _tanh_gelu(x):
    return jax.nn.gelu(x, approximate=True)


def _half_cubic(n_out, n_in):
    """Cubic with a = -0.5, corners aligned."""
    x = np.linspace(0, n_in - 1, n_out)[:, None] - np.arange(-1, n_in + 1)
    near, far = 1.5 * abs(x) ** 3 - 2.5 * x**2 + 1, -0.5 * abs(x) ** 3 + 2.5 * x**2 - 4 * abs(x) + 2
    weights = np.where(abs(x) <= 1, near, np.where(abs(x) < 2, far, 0.0))
    weights[:, 1] += weights[:, 0]
    weights[:, -2] += weights[:, -1]
    return weights[:, 1:-1].astype(np.float32)


def _bilinear(n_out, n_in):
    return np.maximum(0, 1 - abs(np.linspace(0, n_in - 1, n_out)[:, None] - np.arange(n_in))).astype(np.float32)


# Fractions of the logits' spread as the fixtures' table gives them.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "mistake", "effect"),
    [
        ("sousa_jax.models.transformer.gelu", _tanh_gelu, 0.0017),
        ("sousa_jax.models.htsat._shift_mask", lambda grid, window, shift: None, 0.47),
        ("sousa_jax.models.htsat.cubic_weights", _half_cubic, 0.023),
        ("sousa_jax.models.htsat.cubic_weights", _bilinear, 0.07),
    ],
)
def test_known_mistakes_are_caught(official, short_golden, verified, monkeypatch, place, mistake, effect):
    monkeypatch.setattr(place, mistake)
    if "cubic" not in place:  # the compiled network holds the right thing
        monkeypatch.setattr(htsat, "_network", htsat._network.__wrapped__)
    monkeypatch.setattr(htsat, "_activations", htsat._activations.__wrapped__)
    code, out, _ = verified(official(0), short_golden)
    assert code == 1
    (logits,) = (float(line.split()[-1]) for line in out.splitlines() if line.startswith("1p5s/logits"))
    assert 0.3 * effect < logits < 3 * effect


@pytest.mark.parametrize("n_frames", [2, 151, 501, 906, 1002])
def test_interpolation_is_that_of_pytorch(n_frames):
    """To the rounding of the kernel's polynomials, 1.4e-6 at most. With positions in float64, not rounded as there,
    weights are off by up to 7e-5."""
    eye = torch.eye(n_frames)[None, None]
    theirs = torch.nn.functional.interpolate(eye, (1024, n_frames), mode="bicubic", align_corners=True)[0, 0]
    np.testing.assert_allclose(cubic_weights(1024, n_frames), theirs, rtol=0, atol=2e-6)


def test_there_and_back(state):
    inferred, arrays, report = _arrays(state)
    assert inferred.config == HTSATConfig.preset("htsat", num_classes=527)
    assert report.n_values == 30_241_687 - 278_256 + 128
    back = rules.invert(inferred.table, arrays)
    assert state.keys() - back.keys() == report.ignored.keys()
    assert all(np.array_equal(back[key], state[key]) for key in back)
    assert {key for key in report.ignored if not key.startswith("sed_model.")} == set()
    ignored = " ".join(sorted(key.removeprefix("sed_model.") for key in report.ignored))
    assert re.sub(r"layers\.\d\.blocks\.\d\.attn(_mask|\.relative_position_index) ", "", ignored) == (
        "bn0.num_batches_tracked head.bias head.weight logmel_extractor.melW "
        "spectrogram_extractor.stft.conv_imag.weight spectrogram_extractor.stft.conv_real.weight"
    )


def test_query_key_and_value_are_the_thirds_of_qkv(state):
    _, arrays, _ = _arrays(state)
    fused = state["sed_model.layers.2.blocks.4.attn.qkv.weight"]
    for i, part in enumerate(("query", "key", "value")):
        ours = arrays[f"stages.2.blocks.4.attention.{part}.kernel"]
        np.testing.assert_array_equal(ours, fused[384 * i : 384 * (i + 1)].T)


def test_names_without_prefix_are_taken_too(state):
    """The official code strips it before it loads."""
    stripped = {key.removeprefix("sed_model."): array for key, array in state.items()}
    inferred, arrays, report = _arrays(stripped)
    _, expected, expected_report = _arrays(state)
    assert inferred.table[0].source == "bn0.weight"
    assert all(np.array_equal(arrays[key], expected[key]) for key in expected)
    assert [f"sed_model.{key}" for key in report.ignored] == list(expected_report.ignored)
    mixed = {**state, "norm.bias": state["sed_model.norm.bias"]}
    with pytest.raises(InputError, match=r"1 not used by the model: norm\.bias"):
        _arrays(mixed)


@pytest.mark.slow
def test_forty_classes_keep_the_body(official, state, run, tmp_path):
    out = tmp_path / "model"
    code, text, _ = run(convert.main, "--model=htsat", f"--checkpoint={official(0)}", f"--out={out}")
    assert code == 0
    assert "head.kernel, head.bias: class layer, 527 classes in the file, 40 wanted: newly initialized" in text
    assert "sed_model.tscam_conv.weight, sed_model.tscam_conv.bias: class layer, 527 classes" in text
    assert "sed_model.head.weight, sed_model.head.bias: linear layer on classes" in text
    model = checkpoint.load_model(out)
    assert (model.name, model.config) == ("htsat", HTSATConfig.preset("htsat"))
    assert model.params["head.kernel"].shape == (2, 3, 768, 40)
    assert np.abs(model.params["head.kernel"]).max() == pytest.approx((2 * 3 * 768) ** -0.5, rel=1e-3)
    np.testing.assert_array_equal(model.params["norm.scale"], state["sed_model.norm.weight"])
    np.testing.assert_array_equal(model.stats["bn0.mean"], state["sed_model.bn0.running_mean"])


def test_misfits_are_named(state):
    def message(change):
        with pytest.raises(InputError) as error:
            _arrays({key: array for key, array in {**state, **change}.items() if array is not None})
        assert "\n" not in str(error.value)
        return str(error.value)

    block = "sed_model.layers.2.blocks.5"
    assert f"1 missing in the file: {block}.norm2.weight" in message({f"{block}.norm2.weight": None})
    assert "1 not used by the model: sed_model.norm2.weight" in message({"sed_model.norm2.weight": np.ones(3)})
    wrong = message({f"{block}.attn.qkv.weight": np.ones((768, 384), np.float32)})
    assert f"{block}.attn.qkv.weight has shape (768, 384), expected (1152, 384)" in wrong
    assert "has no 'tscam_conv.weight'" in message({"sed_model.tscam_conv.weight": None})
    assert "bn0.weight has shape (1, 64), expected 1 axes" in message({"sed_model.bn0.weight": np.ones((1, 64))})
    assert "missing in the file: sed_model.layers.2.blocks.3." in message(
        {key: None for key in state if key.startswith("sed_model.layers.2.blocks.3.")}
    )
    mask = {"sed_model.layers.0.blocks.1.attn_mask": np.zeros((60, 64, 64), np.float32)}
    assert "spec_size 224 must be a multiple of the 64 mel bands" in message(mask)


def test_a_file_without_blocks_is_refused():
    with pytest.raises(InputError, match=r"has no 'bn0.weight'"):
        htsat.infer(checkpoints.Checkpoint("file.ckpt", "", {"tscam_conv.weight": np.ones(3)}))


def test_other_sizes_are_read_from_the_shapes():
    """A small network's arrays, taken back to official names, give its config again."""
    config = HTSATConfig(
        num_classes=7,
        spec_size=128,
        embed_dim=8,
        depths=(2, 1),
        heads=(1, 2),
        window_size=4,
        mlp_ratio=2,
        frontend=FrontendSpec.htsat(n_mels=32),
    )
    shapes = {key: array.shape for part in models.abstract("htsat", config) for key, array in part.items()}
    state = rules.invert(htsat.rules(config), {key: np.zeros(shape, np.float32) for key, shape in shapes.items()})
    masked = {**state, "sed_model.layers.0.blocks.1.attn_mask": np.zeros((64, 16, 16), np.float32)}
    assert htsat.infer(checkpoints.Checkpoint("file.ckpt", "", masked)).config == config
    assumed = htsat.infer(checkpoints.Checkpoint("file.ckpt", "", state))
    assert assumed.config.spec_size == 256
    assert "image of 256 by assumption" in assumed.evidence
