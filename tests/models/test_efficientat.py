"""The network's shape, modes and options. Equality with the official numbers is in tests/ports."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sousa_jax import models
from sousa_jax.errors import InputError
from sousa_jax.models.efficientat import PRESETS, EfficientATConfig

FEATURES = jax.random.normal(jax.random.key(0), (2, 128, 60))


@functools.cache
def _tiny(**changes):
    config = EfficientATConfig.preset("mn01", **changes)
    apply = jax.jit(models.apply_fn("efficientat", config), static_argnames="train")
    return config, *models.init("efficientat", config), apply


@pytest.mark.parametrize(("name", "count"), [("mn01", 123_783), ("mn04", 983_599), ("mn10", 4_876_831)])
def test_parameter_counts_of_the_released_models(name, count):
    params, _ = models.abstract("efficientat", EfficientATConfig.preset(name, num_classes=527))
    assert sum(math.prod(p.shape) for p in params.values()) == count


# Millions of parameters as the project page states them.
@pytest.mark.parametrize(("name", "millions"), [("mn05", 1.43), ("mn20", 17.91), ("mn30", 39.09), ("mn40", 68.43)])
def test_published_sizes(name, millions):
    params, _ = models.abstract("efficientat", EfficientATConfig.preset(name, num_classes=527))
    assert sum(math.prod(p.shape) for p in params.values()) / 1e6 == pytest.approx(millions, abs=0.006)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_builds(name):
    config = EfficientATConfig.preset(name)
    params, _ = models.abstract("efficientat", config)
    assert config.num_classes == 40
    assert params


@pytest.mark.parametrize(
    ("head", "se_dims", "se_agg"),
    [
        ("mlp", "", "max"),
        ("fully_convolutional", "cft", "min"),
        ("multihead_attention_pooling", "cf", "avg"),
    ],
)
def test_heads_and_squeeze_excitation(head, se_dims, se_agg):
    frontend = models.FrontendSpec(window_s=0.6)
    _, params, stats, apply = _tiny(head=head, se_dims=se_dims, se_agg=se_agg, frontend=frontend)
    outputs, _ = apply(params, stats, FEATURES)
    assert outputs.logits.shape == (2, 40)
    assert outputs.embedding.shape == (2, 96)
    assert jnp.isfinite(outputs.logits).all()


def test_squeeze_excitation_over_mel_bands_gates_mel_bands():
    """The `f` branch must depend on the band, not on the channel: silencing it changes bands differently."""
    params, _ = models.abstract("efficientat", EfficientATConfig.preset("mn01", se_dims="f"))
    assert params["blocks.3.se.branches.0.fc1.kernel"].shape[0] == 16  # mel bands left after that block


def test_train_mode_updates_statistics_and_eval_does_not():
    _, params, stats, apply = _tiny()
    _, evaluated = apply(params, stats, FEATURES)
    _, trained = apply(params, stats, FEATURES, train=True, rng=jax.random.key(0))
    assert all(jnp.array_equal(evaluated[k], stats[k]) for k in stats)
    assert all(not jnp.array_equal(trained[k], stats[k]) for k in stats if k.endswith(".mean"))


def test_dropout_only_in_training():
    _, params, stats, apply = _tiny()
    run = lambda train, seed: apply(params, stats, FEATURES, train=train, rng=jax.random.key(seed))[0].logits  # noqa: E731
    assert not jnp.array_equal(run(True, 0), run(True, 1))
    assert jnp.array_equal(run(False, 0), run(False, 1))


def test_batch_norm_follows_torch():
    """New running statistics are 0.99 old + 0.01 batch, eps 1e-3: the official constants."""
    _, params, stats, apply = _tiny()
    _, new = apply(params, stats, FEATURES, train=True, rng=jax.random.key(0))
    module = models.module("efficientat", _tiny()[0], params, stats)
    x = jnp.pad(FEATURES, ((0, 0), (1, 1), (1, 1)))
    patches = jnp.stack([x[:, i : i + 127 : 2, j : j + 59 : 2] for i in range(3) for j in range(3)], -1)
    before_norm = patches @ module.stem.kernel[...].reshape(9, -1)
    np.testing.assert_allclose(new["stem.norm.mean"], 0.01 * before_norm.mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(new["stem.norm.var"], 0.99 + 0.01 * before_norm.var((0, 1, 2), ddof=1), rtol=1e-4)
    out = module.stem(FEATURES, False)
    np.testing.assert_allclose(out, jax.nn.hard_swish(before_norm / np.sqrt(1.0 + 1e-3)), atol=1e-5)


@pytest.mark.parametrize("n_frames", [1, 250])
def test_any_length(n_frames):
    _, params, stats, apply = _tiny()
    outputs, _ = apply(params, stats, jnp.zeros((1, 128, n_frames)))
    assert jnp.isfinite(outputs.logits).all()


def test_bfloat16_stays_near_float32():
    _, params, stats, apply = _tiny()
    exact = apply(params, stats, FEATURES)[0]
    rough = apply(params, stats, FEATURES.astype(jnp.bfloat16))[0]
    assert rough.logits.dtype == jnp.float32
    assert jnp.abs(rough.embedding - exact.embedding).max() < 0.05 * jnp.abs(exact.embedding).max()


def test_init_is_the_official_one_and_deterministic():
    """Convolutions kaiming-normal over fan-out (all output channels, even if grouped), linears N(0, 0.01)."""
    config = EfficientATConfig.preset("mn04")
    params, stats = models.init("efficientat", config, seed=3)
    again, _ = models.init("efficientat", config, seed=3)
    assert all(np.array_equal(params[k], again[k]) for k in params)
    assert np.std(params["last.kernel"]) == pytest.approx((2 / 384) ** 0.5, rel=0.03)
    assert np.std(params["blocks.14.depthwise.kernel"]) == pytest.approx((2 / (25 * 384)) ** 0.5, rel=0.05)
    assert np.std(params["head.hidden.kernel"]) == pytest.approx(0.01, rel=0.03)
    assert set(np.unique(stats["stem.norm.var"])) == {1.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": "lstm"}, "head 'lstm' is unknown"),
        ({"se_dims": "cc"}, "se_dims 'cc'"),
        ({"se_agg": "mul"}, "se_agg 'mul'"),
        ({"strides": (2, 3, 2, 2)}, "strides"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        EfficientATConfig(**changes)


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match="nearest: 'mn10'"):
        EfficientATConfig.preset("mn1O")
    with pytest.raises(InputError, match="unknown model"):
        models.make_config("efficentat", "mn10")
    with pytest.raises(InputError, match="no setting 'widht'"):
        models.make_config("efficientat", "mn10", widht=2)


def test_config_survives_json():
    config = EfficientATConfig.preset("mn10_fc_s2211", dropout=0.3)
    stored = json.loads(json.dumps(models.config_to_json("efficientat", config)))
    assert models.config_from_json(stored) == ("efficientat", config)
