"""Rule tables: bijective, strict, and named as the official code names."""

import functools
import pathlib

import numpy as np
import pytest

from ports import efficientat
from ports.checkpoints import Checkpoint
from ports.rules import CONV, DEPTHWISE, LINEAR, POINTWISE, Rule, Transform, apply, invert
from sousa_jax import models
from sousa_jax.errors import InputError
from sousa_jax.frontends import FrontendSpec
from sousa_jax.models.efficientat import HEADS, EfficientATConfig


@functools.cache
def expected_arrays(config):
    params, stats = models.abstract("efficientat", config)
    return {**params, **stats}


def random_arrays(config):
    rng = np.random.default_rng(0)
    return {k: rng.standard_normal(a.shape).astype(np.float32) for k, a in expected_arrays(config).items()}


def ported(state, config, **options):
    options = {"ignored": efficientat.IGNORED, "fresh": {}} | options
    return apply(efficientat.rules(config), state, expected_arrays(config), **options)


CONFIGS = {
    "mlp": EfficientATConfig(width=0.1, num_classes=527),
    "wide": EfficientATConfig(width=1.0, num_classes=527),
    "fully_convolutional": EfficientATConfig(width=1.0, num_classes=7, head=HEADS[1]),
    "attention": EfficientATConfig(width=0.4, num_classes=9, head=HEADS[2], attention_heads=3),
    "no squeeze-excitation": EfficientATConfig(width=0.1, num_classes=527, se_dims=""),
    "channel and mel": EfficientATConfig(width=0.1, num_classes=527, se_dims="cf"),
    "all three, narrow": EfficientATConfig(
        width=0.4, num_classes=527, se_dims="tcf", se_reduction=8, frontend=FrontendSpec(window_s=10.0)
    ),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_round_trip_is_the_identity_and_the_config_comes_back(config):
    arrays = random_arrays(config)
    official = invert(efficientat.rules(config), arrays)
    back, report = ported(official, config)
    assert back.keys() == arrays.keys()
    assert all(np.array_equal(back[key], arrays[key]) and back[key].dtype == np.float32 for key in arrays)
    again = invert(efficientat.rules(config), back)
    assert again.keys() == official.keys()
    assert all(np.array_equal(again[key], official[key]) for key in official)
    assert (report.n_ported, report.ignored, report.fresh) == (len(arrays), {}, {})
    assert efficientat.infer(Checkpoint(pathlib.Path("renamed.pt"), "", official)).config == config


@pytest.mark.parametrize("width", [0.1, 0.2, 0.4, 0.5, 1.0, 2.0, 3.0, 4.0])
def test_table_is_bijective_and_covers_the_model(width):
    config = EfficientATConfig(width=width)
    table = efficientat.rules(config)
    assert len({rule.source for rule in table}) == len(table)
    assert sorted(rule.target for rule in table) == sorted(expected_arrays(config))


def test_heads_have_their_official_names_and_shapes():
    def head(name):
        config = EfficientATConfig(width=0.1, num_classes=5, head=name)
        official = invert(efficientat.rules(config), random_arrays(config))
        return {key: array.shape for key, array in official.items() if key.startswith("classifier")}

    assert head("mlp") == {
        "classifier.2.weight": (128, 96),
        "classifier.2.bias": (128,),
        "classifier.5.weight": (5, 128),
        "classifier.5.bias": (5,),
    }
    norm = {f"classifier.1.{name}": (5,) for name in ("weight", "bias", "running_mean", "running_var")}
    assert head("fully_convolutional") == {"classifier.0.weight": (5, 96, 1, 1)} | norm
    assert head("multihead_attention_pooling") == {
        "classifier.head_weight": (1, 4, 1),
        "classifier.subspace_proj.weight": (40, 96),
        "classifier.subspace_proj.bias": (40,),
    }


@pytest.mark.parametrize(("section", "width"), [("mn10_as", 1.0), ("mn04_as", 0.4), ("mn01_as", 0.1)])
def test_official_state_dicts_are_used_up(official_state, section, width):
    state = official_state(section)
    arrays, report = ported(state, EfficientATConfig(width=width, num_classes=527))
    counters = {key for key in state if key.endswith("num_batches_tracked")}
    assert report.ignored.keys() == counters
    assert report.n_ported == len(arrays) == len(state) - len(counters)
    assert report.n_values == sum(state[key].size for key in state.keys() - counters)


# A fused projection of two inputs and six outputs: our three kernels have two outputs each.
FUSED = [Rule("qkv", name, LINEAR, part=(i, 3)) for i, name in enumerate(("query", "key", "value"))]


def test_parts_of_one_source():
    source = np.arange(12, dtype=np.float32).reshape(6, 2)
    expected = {name: np.zeros((2, 2)) for name in ("query", "key", "value")}
    arrays, report = apply(FUSED, {"qkv": source}, expected, ignored={}, fresh={})
    np.testing.assert_array_equal(arrays["key"], source[2:4].T)
    assert report.n_values == 12
    shuffled = [FUSED[2], FUSED[0], FUSED[1]]
    np.testing.assert_array_equal(invert(shuffled, arrays)["qkv"], source)
    with pytest.raises(InputError, match=r"1 unlike the model's: qkv has shape \(2, 2\), expected \(6, 2\)$"):
        apply(FUSED, {"qkv": source[:2]}, expected, ignored={}, fresh={})


@pytest.mark.parametrize(
    "table",
    [FUSED[:2], [*FUSED[:2], Rule("qkv", "value", LINEAR, part=(1, 3))], [*FUSED[:2], Rule("qkv", "value", LINEAR)]],
    ids=["a part is missing", "a part is there twice", "parts and the whole"],
)
def test_parts_must_make_up_the_whole(table):
    with pytest.raises(ValueError, match="not bijective"):
        apply(table, {}, {name: np.zeros((2, 2)) for name in ("query", "key", "value")}, ignored={}, fresh={})


@pytest.fixture
def spoilt():
    """A config and a fitting official state dict to spoil."""
    config = CONFIGS["mlp"]
    return config, invert(efficientat.rules(config), random_arrays(config))


def test_missing_and_extra_keys_are_both_named(spoilt):
    config, state = spoilt
    del state["features.3.block.1.1.running_var"]
    state["features.3.block.1.1.running_variance"] = np.ones(8, np.float32)
    with pytest.raises(InputError) as error:
        ported(state, config)
    message = str(error.value)
    assert "features.3.block.1.1.running_var (for blocks.2" in message
    assert "1 not used by the model: features.3.block.1.1.running_variance" in message
    assert "\n" not in message


def test_a_wrong_shape_is_named_with_both_shapes(spoilt):
    config, state = spoilt
    state["features.0.0.weight"] = np.ones((8, 1, 5, 5), np.float32)
    with pytest.raises(InputError, match=r"features\.0\.0\.weight has shape \(8, 1, 5, 5\), expected \(8, 1, 3, 3\)"):
        ported(state, config)


def test_half_precision_is_refused(spoilt):
    config, state = spoilt
    state["classifier.5.bias"] = state["classifier.5.bias"].astype(np.float16)
    with pytest.raises(InputError, match=r"classifier\.5\.bias is float16, expected float32"):
        ported(state, config)


def test_values_that_are_not_finite_are_refused(spoilt):
    config, state = spoilt
    state["classifier.5.bias"][3] = np.nan
    with pytest.raises(InputError, match=r"classifier\.5\.bias holds values that are not finite"):
        ported(state, config)


def test_long_lists_are_cut(spoilt):
    config, state = spoilt
    with pytest.raises(InputError) as error:
        ported({}, config)
    assert f"{len(state)} missing in the file" in str(error.value)
    assert f"and {len(state) - 6} more" in str(error.value)
    assert len(str(error.value)) < 1000


def test_fresh_arrays_are_left_to_the_caller_and_reported(spoilt):
    config, state = spoilt
    table = [rule for rule in efficientat.rules(config) if not rule.source.startswith("classifier.5")]
    options = {"ignored": {"classifier.5.*": "replaced"}, "sha256": "abc"}
    with pytest.raises(InputError, match=r"2 not filled by any key: head\.output"):
        apply(table, state, expected_arrays(config), fresh={}, **options)
    fresh = {"head.output.kernel": "new classes", "head.output.bias": "new classes"}
    arrays, report = apply(table, state, expected_arrays(config), fresh=fresh, **options)
    assert arrays.keys() == expected_arrays(config).keys() - fresh.keys()
    assert report.ignored == {"classifier.5.weight": "replaced", "classifier.5.bias": "replaced"}
    assert report.fresh == fresh
    for part in ("abc", "new classes", "head.output.kernel", "replaced", "classifier.5.weight"):
        assert part in str(report)


def test_a_faulty_table_is_a_bug_and_no_input_error():
    vector = Transform("C->C")
    shape = {"a": np.ones(1), "b": np.ones(1)}
    for table in (
        [Rule("x", "a", vector), Rule("x", "b", vector)],
        [Rule("x", "a", vector), Rule("y", "a", vector)],
        [Rule("x", "c", vector)],
    ):
        with pytest.raises(ValueError, match="table"):
            apply(table, {}, shape, ignored={}, fresh={})


def test_invert_wants_exactly_the_arrays_of_the_table(spoilt):
    config, _ = spoilt
    arrays = random_arrays(config)
    arrays["extra"] = arrays.pop("stem.kernel")
    with pytest.raises(InputError, match=r"missing: stem\.kernel.*without a rule: extra"):
        invert(efficientat.rules(config), arrays)


def test_layouts():
    rng = np.random.default_rng(0)
    dense, pointwise = rng.standard_normal((4, 3, 2, 5)), rng.standard_normal((4, 3, 1, 1))
    np.testing.assert_array_equal(CONV.forward(dense), dense.transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(POINTWISE.forward(pointwise), pointwise[:, :, 0, 0].T)
    np.testing.assert_array_equal(LINEAR.forward(dense[..., 0, 0]), dense[..., 0, 0].T)
    depthwise = rng.standard_normal((4, 1, 3, 5))
    np.testing.assert_array_equal(DEPTHWISE.forward(depthwise), depthwise[:, 0].transpose(1, 2, 0))
    for transform, array in ((CONV, dense), (POINTWISE, pointwise), (DEPTHWISE, depthwise)):
        ours = transform.forward(array)
        np.testing.assert_array_equal(transform.inverse(ours), array)
        assert transform.source_shape(ours.shape) == array.shape


@pytest.mark.parametrize("layout", ["OI->I", "OI->IIO", "OI->IX", "OI->II"])
def test_a_layout_that_loses_something_is_refused(layout):
    with pytest.raises(ValueError, match="not a change of layout"):
        Transform(layout)
