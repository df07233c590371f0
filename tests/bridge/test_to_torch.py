"""The PyTorch twins answer as the Flax networks do, and hold the same numbers under the official names."""

import dataclasses

import numpy as np
import pytest
import torch
from random_models import HEAR_STROKES, clips, drawn_model, errors, mn, small_strokes

from bridge import to_torch
from bridge.torch_student import EfficientAT
from ports import efficientat, golden
from ports.port import port
from ports.rules import apply
from sousa_jax import models
from sousa_jax.checkpoint import Model
from sousa_jax.errors import InputError
from sousa_jax.frontends import FrontendSpec

# Largest error of float32 logits as a fraction of the spread between two clips. From samples, near-silent bins add to
# it: two float32 Fourier transforms differ there.
TOLERANCE, FROM_SAMPLES = 2e-5, 1e-3


def hop(ms):
    return FrontendSpec(hop_length=32 * ms)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "hop_ms"), [("mn01", 10), ("mn04", 15), ("mn10", 5), ("mn10", 20), ("mn04", 25)])
def test_logits_of_every_width_and_hop(name, hop_ms):
    stored, from_samples, _ = errors(drawn_model("efficientat", mn(name, frontend=hop(hop_ms))))
    assert stored < TOLERANCE
    assert from_samples < FROM_SAMPLES


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"head": "fully_convolutional", "strides": (2, 2, 1, 1), "se_dims": "fc", "se_agg": "min"},
        {"head": "multihead_attention_pooling", "se_dims": "cft", "se_agg": "avg"},
    ],
)
def test_logits_of_other_heads_and_gates(changes):
    assert errors(drawn_model("efficientat", mn(**changes)))[0] < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "config"), [("strokes", small_strokes()), ("efficientat", mn(window_s=1.0, **HEAR_STROKES))]
)
def test_strokes_and_the_name_read_from_them(name, config):
    """The rhythm head multiplies rounding: it raises to powers what lies between two strokes."""
    stored, from_samples, of_strokes = errors(drawn_model(name, config))
    assert of_strokes < 5e-5  # of a probability; measured 1.2e-5
    assert stored < 2e-4
    assert from_samples < 2e-3


# ------------------------------------------------------------------------------------------------------ official names


@pytest.mark.parametrize("changes", [{}, {"head": "fully_convolutional"}, {"head": "multihead_attention_pooling"}])
def test_flax_to_official_to_flax_is_the_identity(changes):
    """Through the twin's own state dict, which the port accepts as it accepts an official file."""
    model = drawn_model("efficientat", mn(**changes))
    state = {key: value.numpy() for key, value in to_torch.listener(model).network.state_dict().items()}
    expected = {**model.params, **model.stats}
    back, _ = apply(efficientat.rules(model.config), state, expected, ignored=efficientat.IGNORED, fresh={})
    assert back.keys() == expected.keys()
    assert all(np.array_equal(back[path], expected[path]) for path in expected)


def test_official_to_flax_to_official_is_the_identity(official_file):
    """The very file, counters apart, comes out of the twin again."""
    path = official_file("mn01_as")
    ported = port("efficientat", path)
    twin = to_torch.listener(Model("efficientat", ported.config, ported.params, ported.stats, {}))
    official = torch.load(path, weights_only=True)
    state = twin.network.state_dict()
    assert state.keys() == official.keys()
    assert all(torch.equal(state[key], official[key]) for key in state if not key.endswith("num_batches_tracked"))


@pytest.mark.slow
@pytest.mark.parametrize("section", ["mn01_as", "mn04_as", "mn10_as"])
def test_official_activations(official_file, parity, section):
    """The twin gives what the official code gave, for clips of every length that was recorded."""
    ported = port("efficientat", official_file(section))
    reference = golden.read(parity / "efficientat" / "golden_seed0.npz", "efficientat")
    for run in reference.runs("frontend"):
        n_samples = golden.clip_samples(run, reference.sample_rate)
        config = ported.config.for_window(n_samples / reference.sample_rate, "fill")
        twin = to_torch.listener(Model("efficientat", config, ported.params, ported.stats, {}))
        features = reference.reference(f"{run}/frontend").whole()
        logits = reference.reference(f"{run}/{section}/logits")
        with torch.inference_mode():
            stored = np.concatenate([twin.network(torch.from_numpy(x)[None, None]) for x in features])
            whole = np.concatenate([twin(torch.from_numpy(x)) for x in clips(config.frontend)])
        assert logits.error(stored) < 5e-5 * logits.spread, run
        assert logits.error(whole) < 1e-3 * logits.spread, run


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.fixture(scope="module")
def model():
    return drawn_model("efficientat", mn())


def test_networks_without_a_twin_are_refused():
    config = models.make_config("beats", "beats", frontend=FrontendSpec())
    with pytest.raises(InputError, match="no PyTorch twin of 'beats'"):
        to_torch.listener(Model("beats", config, {}, {}, {}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.astype(np.float16), r"head\.output\.bias is float16"),
        (lambda x: x.astype(np.int8), r"head\.output\.bias is int8"),
        (lambda x: x * np.nan, "is not finite"),
        (lambda x: x[1:], r"do not fit the PyTorch twin: classifier\.5\.bias"),
    ],
)
def test_other_arrays_are_refused(model, change, message):
    params = model.params | {"head.output.bias": change(model.params["head.output.bias"])}
    with pytest.raises(InputError, match=message):
        to_torch.listener(dataclasses.replace(model, params=params))


def test_missing_and_additional_arrays_are_refused(model):
    less = {path: array for path, array in model.params.items() if path != "last.kernel"}
    with pytest.raises(InputError, match=r"do not fit the PyTorch twin: features\.16\.0\.weight"):
        to_torch.listener(dataclasses.replace(model, params=less))
    more = model.params | {"head.third.bias": model.params["head.output.bias"]}
    with pytest.raises(InputError, match=r"do not fit the PyTorch twin: head\.third\.bias"):
        to_torch.listener(dataclasses.replace(model, params=more))


def test_gates_over_frames_belong_to_one_window():
    model = drawn_model("efficientat", mn(se_dims="t"))
    with pytest.raises(InputError, match="do not fit"):
        to_torch.listener(dataclasses.replace(model, config=model.config.for_window(1.0, "fill")))


def test_the_layout_is_four_dimensional():
    """Every convolution and norm of a twin sees `(1, C, mel, T)`: no linear layer and no 1-D convolution is left."""
    kinds = {type(module) for module in EfficientAT(mn()).modules()}
    assert not kinds & {torch.nn.Linear, torch.nn.Conv1d, torch.nn.BatchNorm1d, torch.nn.Dropout}
