"""The network's shape, lengths, modes and training. Equality with the official numbers is in tests/ports."""

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from sousa_jax import models
from sousa_jax.errors import InputError
from sousa_jax.frontends import FrontendSpec, spectrogram
from sousa_jax.models.ast import PRESETS, ASTConfig

# 48 frames of 32 bands: 2 x 4 patches, of a table for 2 x 5.
SHAPE = dict(width=32, depth=2, n_heads=4, mlp_width=64, positions_shape=(2, 5))
FRONTEND = FrontendSpec.ast(n_mels=32, window_s=0.5, target_frames=0)
FEATURES = jax.random.normal(jax.random.key(0), (2, 32, 48))


@functools.cache
def _tiny(**changes):
    config = ASTConfig(**{**SHAPE, "frontend": FRONTEND, **changes})
    apply = jax.jit(models.apply_fn("ast", config), static_argnames="train")
    params, stats = models.init("ast", config)
    assert stats == {}
    return config, params, lambda params, features, **flags: apply(params, {}, features, **flags)[0]


def _stages(config, params, features, **flags):
    return jax.jit(lambda params, x: models.module("ast", config, params, {}).stages(x, **flags))(params, features)


@pytest.mark.parametrize("name", PRESETS)
def test_parameter_count_of_the_released_models(name):
    params, stats = models.abstract("ast", ASTConfig.preset(name, num_classes=527))
    assert sum(math.prod(p.shape) for p in params.values()) == 86_594_063
    assert (params["positions"].shape, params["patch_embed.kernel"].shape) == ((1214, 768), (16, 16, 768))
    assert stats == {}


def test_outputs():
    _, params, apply = _tiny()
    outputs = apply(params, FEATURES)
    assert [x.shape for x in jax.tree.leaves(outputs)] == [(2, 40), (2, 32), (2, 4, 32)]
    assert [x.dtype for x in jax.tree.leaves(outputs)] == [jnp.float32] * 3


def test_epsilons_of_the_released_models():
    """The golden files cannot tell them apart (4e-5 of the spread)."""
    for name, in_blocks, in_head in (("ast", 1e-6, 1e-5), ("ast_hf", 1e-12, 1e-12)):
        config = ASTConfig.preset(name, width=8, depth=1, n_heads=1, mlp_width=8)
        model = models.module("ast", config, *models.abstract("ast", config))
        norms = (model.blocks[0].norm1, model.blocks[0].norm2, model.norm, model.head.norm)
        assert [norm.epsilon for norm in norms] == [in_blocks] * 3 + [in_head]


def test_embedding_and_frames_are_means_of_the_normed_tokens():
    config, params, apply = _tiny()
    last = _stages(config, params, FEATURES)["block01"]
    normed = (last - last.mean(-1, keepdims=True)) / np.sqrt(last.var(-1, keepdims=True) + 1e-6)
    outputs = apply(params, FEATURES)
    np.testing.assert_allclose(outputs.embedding, (normed[:, 0] + normed[:, 1]) / 2, atol=1e-5)
    by_row = normed[:, 2:].reshape(2, 2, 4, 32)  # index = row * 4 + column
    np.testing.assert_allclose(outputs.frames, (by_row[:, 0] + by_row[:, 1]) / 2, atol=1e-5)


# ------------------------------------------------------------------------------------- patches and positions


@pytest.mark.parametrize("strides", [(10, 10), (7, 3), (16, 16)])
def test_patches_are_a_convolution_of_mel_by_time(strides):
    config = ASTConfig(**SHAPE, frontend=FRONTEND, frequency_stride=strides[0], time_stride=strides[1])
    params, _ = models.init("ast", config)
    patches = _stages(config, params, FEATURES)["patch_embed"]
    kernel = params["patch_embed.kernel"][:, :, None]  # (16, 16, 1, D)
    layout = ("NHWC", "HWIO", "NHWC")
    expected = lax.conv_general_dilated(FEATURES[..., None], kernel, strides, "VALID", dimension_numbers=layout)
    expected = expected.reshape(2, -1, 32) + params["patch_embed.bias"]
    assert patches.shape == expected.shape
    np.testing.assert_allclose(patches, expected, atol=1e-5)


def test_frames_beyond_the_last_whole_patch_are_not_seen():
    _, params, apply = _tiny()
    seen = 16 + 3 * 10
    logits = apply(params, FEATURES).logits
    assert jnp.array_equal(logits, apply(params, FEATURES.at[:, :, seen:].add(1.0)).logits)
    assert not jnp.array_equal(logits, apply(params, FEATURES.at[:, :, seen - 1].add(1.0)).logits)


def _numbered(config):
    """Parameters whose position of row r, column c is (r, c, 0, 0), of the class and distillation token -1 and -2;
    all others are 0."""
    params = {key: np.zeros(value.shape, np.float32) for key, value in models.abstract("ast", config)[0].items()}
    rows, columns = np.indices(config.positions_shape).reshape(2, -1)
    params["positions"][0], params["positions"][1] = -1, -2
    params["positions"][2:, 0], params["positions"][2:, 1] = rows, columns
    return params


@pytest.mark.parametrize(
    ("n_frames", "first", "count"), [(16, 50, 1), (151, 43, 14), (256, 38, 25), (512, 25, 50), (1015, 0, 100)]
)
def test_fewer_columns_are_cut_from_the_middle(n_frames, first, count):
    config = ASTConfig(width=4, depth=1, n_heads=1, mlp_width=4)
    positions = _stages(config, _numbered(config), jnp.zeros((1, 128, n_frames)))["tokens"][0]
    assert np.unique(positions[:2]).tolist() == [-2, -1]
    grid = positions[2:].reshape(12, count, 4)
    np.testing.assert_array_equal(grid[..., 1], np.broadcast_to(np.arange(first, first + count), (12, count)))
    np.testing.assert_array_equal(grid[..., 0], np.broadcast_to(np.arange(12)[:, None], (12, count)))


def test_the_released_length_takes_the_table_as_it_is():
    config = ASTConfig(width=4, depth=1, n_heads=1, mlp_width=4)
    params = _numbered(config)
    tokens = _stages(config, params, jnp.zeros((1, 128, 1024)))["tokens"][0]
    np.testing.assert_array_equal(tokens, params["positions"])


def test_more_columns_and_rows_are_interpolated_without_aligned_corners():
    config = ASTConfig(width=4, depth=1, n_heads=1, mlp_width=4)
    grid = _stages(config, _numbered(config), jnp.zeros((1, 158, 1526)))["tokens"][0, 2:].reshape(15, 152, 4)
    at = lambda n, size: np.clip((np.arange(n) + 0.5) * size / n - 0.5, 0, size - 1)  # noqa: E731
    np.testing.assert_allclose(grid[3, :, 1], at(152, 101), atol=1e-4)
    np.testing.assert_allclose(grid[:, 7, 0], at(15, 12), atol=1e-5)


def test_fewer_rows_are_cut_from_the_middle():
    config = ASTConfig(width=4, depth=1, n_heads=1, mlp_width=4)
    grid = _stages(config, _numbered(config), jnp.zeros((1, 96, 1024)))["tokens"][0, 2:].reshape(9, 101, 4)
    assert grid[:, 0, 0].tolist() == list(range(2, 11))  # 6 - 9 // 2 = 2


def test_gradients_reach_the_table_where_it_is_used():
    config = ASTConfig(width=4, depth=1, n_heads=1, mlp_width=4)
    params, _ = models.init("ast", config)

    @functools.partial(jax.jit, static_argnums=1)
    @functools.partial(jax.grad, argnums=0)
    def gradient(positions, n_frames):
        model = models.module("ast", config, params | {"positions": positions}, {})
        return model.stages(jnp.zeros((1, 128, n_frames)))["tokens"].sum()

    cut = gradient(params["positions"], 512)[2:, 0].reshape(12, 101)
    assert np.flatnonzero(cut[0]).tolist() == list(range(25, 75))
    assert np.unique(cut[:, 25:75]).tolist() == [1.0]
    spread_out = gradient(params["positions"], 2024)[2:, 0].reshape(12, 101)  # 201 columns
    assert spread_out.sum() == pytest.approx(12 * 201, rel=1e-5)
    assert np.all(spread_out > 0)


def test_a_finer_time_stride_gives_more_steps_from_the_same_parameters():
    _, params, _ = _tiny()
    outputs = _tiny(time_stride=5)[2](params, FEATURES)
    assert outputs.frames.shape == (2, 7, 32)
    assert jnp.isfinite(outputs.logits).all()


# ----------------------------------------------------------------------------------------------------- lengths


def _clip(seconds, click_at_s=None):
    wave = 0.01 * np.random.default_rng(0).standard_normal((1, round(16_000 * seconds))).astype(np.float32)
    if click_at_s is not None:
        wave[:, round(16_000 * click_at_s) :][:, :20] += 0.9
    return wave


@pytest.mark.parametrize(("window_s", "steps"), [(2.0, 19), (5.0, 49)])
def test_fill_does_not_stretch_time(window_s, steps):
    """A click moves exactly the steps whose 16 frames hold it, at ten steps a second, whatever the window.

    Frame n hears 10 n to 10 n + 25 ms, step c has frames 10 c to 10 c + 15: a click at 1.03 s is in frames 101 to 103
    and so in steps 9 and 10, one at 1.08 s in frames 106 to 108 and in step 10 alone.
    """
    config = ASTConfig(width=8, depth=1, n_heads=1, mlp_width=8).for_window(window_s, "fill")
    params, _ = models.init("ast", config)

    @jax.jit
    def embedded(wave):
        features = spectrogram(wave, config.frontend)
        assert features.shape[2] == (16_000 * window_s - 400) // 160 + 1  # not one frame is padding
        return models.module("ast", config, params, {}).stages(features)["patch_embed"].reshape(12, steps, 8)

    quiet = embedded(_clip(window_s))
    for click_at_s, expected in ((1.03, [9, 10]), (1.08, [10])):
        moved = jnp.abs(embedded(_clip(window_s, click_at_s)) - quiet).max((0, 2))
        assert np.flatnonzero(moved > 0.05).tolist() == expected


def test_official_pads_to_the_released_length_before_normalizing():
    config = ASTConfig().for_window(2.0, "official")
    features = spectrogram(_clip(2.0), config.frontend)
    assert features.shape == (1, 128, 1024)
    np.testing.assert_allclose(features[:, :, 198:], 4.2677393 / 9.1379948, rtol=1e-6)
    assert config.for_window(2.0, "fill").frontend.target_frames == 0
    assert ASTConfig().frontend == FrontendSpec.ast()


def test_long_clips_silence_and_the_shortest_clip_are_finite():
    _, params, apply = _tiny()
    floor = (math.log(FRONTEND.log_floor) - FRONTEND.mean) / FRONTEND.std
    for features in (jnp.zeros((1, 32, 500)), jnp.full((1, 32, 48), floor), jnp.zeros((1, 32, 16))):
        assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(apply(params, features)))
    silence = spectrogram(jnp.zeros((1, 8000)), FRONTEND)
    np.testing.assert_allclose(silence, floor, rtol=1e-6)


def test_less_than_one_patch_is_refused():
    _, params, apply = _tiny()
    with pytest.raises(InputError, match=r"32 mel bands x 15 frames are less than one patch, at least 16"):
        apply(params, jnp.zeros((1, 32, 15)))
    with pytest.raises(InputError, match="15 frames are less than one patch"):
        ASTConfig().for_window(0.17, "fill")
    with pytest.raises(InputError, match="too short for kaldi"):
        ASTConfig().for_window(0.02, "fill")


def test_nan_stays_in_its_clip():
    _, params, apply = _tiny()
    wave = np.repeat(_clip(0.5), 3, axis=0)
    clean = apply(params, spectrogram(wave, FRONTEND))
    wave[1, 4000] = np.nan
    spoiled = apply(params, spectrogram(wave, FRONTEND))
    for before, after in zip(*map(jax.tree.leaves, (clean, spoiled)), strict=True):
        assert jnp.isnan(after[1]).all()
        assert jnp.array_equal(after[::2], before[::2])


# -------------------------------------------------------------------------------------------- modes and dtypes


def test_dropout_and_drop_path_only_in_training_with_a_key():
    for changes in ({"dropout": 0.3}, {"drop_path": 0.5}):
        _, params, apply = _tiny(**changes)
        run = lambda train, seed: apply(params, FEATURES, train=train, rng=jax.random.key(seed)).logits  # noqa: B023, E731
        assert not jnp.array_equal(run(True, 0), run(True, 1))
        assert jnp.array_equal(run(True, 0), run(True, 0))
        assert jnp.array_equal(run(False, 0), run(False, 1))
        assert jnp.array_equal(run(False, 0), apply(params, FEATURES, train=True).logits)


@pytest.mark.parametrize("source", ["positions", "blocks.0.attention.output.bias", "blocks.0.mlp.output.bias"])
def test_dropout_rate_after_positions_attention_and_mlp(source):
    """With every parameter zero but one of ones, the block's output is dropout of ones."""
    config = dataclasses.replace(_tiny()[0], depth=1, dropout=0.3)
    params = {key: jnp.zeros(value.shape) for key, value in models.abstract("ast", config)[0].items()}
    params[source] = jnp.ones_like(params[source])
    block = _stages(config, params, jnp.zeros((64, 32, 48)), train=True, rng=jax.random.key(0))["block00"]
    np.testing.assert_allclose(np.unique(block), [0, 1 / 0.7], rtol=1e-6)
    assert np.mean(block == 0) == pytest.approx(0.3, abs=0.01)  # 20,480 values: deviation 0.003


def test_drop_path_grows_with_depth_and_drops_whole_clips():
    config, params, _ = _tiny(drop_path=0.5)
    features = jnp.broadcast_to(FEATURES[:1], (1024, 32, 48))
    stages = _stages(config, params, features, train=True, rng=jax.random.key(0))
    # The first block drops nothing: identical clips stay identical.
    assert jnp.array_equal(stages["block00"], jnp.broadcast_to(stages["block00"][:1], stages["block00"].shape))
    # The last drops each of two branches with probability 1/2: one clip in four passes unchanged.
    unchanged = (stages["block01"] == stages["block00"]).all((1, 2))
    assert unchanged.mean() == pytest.approx(0.25, abs=0.05)  # deviation 0.0135
    assert len(np.unique(np.asarray(stages["block01"]).reshape(1024, -1).round(4), axis=0)) == 4


def test_bfloat16_stays_near_float32():
    """Measured, as a fraction of the largest value: embedding 0.006, logits 0.004, frames 0.008."""
    _, params, apply = _tiny()
    exact, rough = apply(params, FEATURES), apply(params, FEATURES.astype(jnp.bfloat16))
    assert [x.dtype for x in jax.tree.leaves(rough)] == [jnp.float32] * 3
    for name in ("embedding", "logits", "frames"):
        a, b = getattr(exact, name), getattr(rough, name)
        assert 0 < jnp.abs(a - b).max() < 0.02 * jnp.abs(a).max(), name


# ----------------------------------------------------------------------------------------------------- training


def test_init_is_the_official_one_and_deterministic():
    """timm: N(0, 0.02), no bias; the patch convolution and the class layer as PyTorch makes them, ±1/sqrt(fan in)."""
    config = ASTConfig(width=192, depth=2, n_heads=3, mlp_width=768)
    params, _ = models.init("ast", config, seed=3)
    again, _ = models.init("ast", config, seed=3)
    other, _ = models.init("ast", config, seed=4)
    assert all(np.array_equal(params[k], again[k]) for k in params)
    drawn = [k for k in params if k.endswith("kernel") or "token" in k or k in ("positions", "patch_embed.bias")]
    assert len(drawn) == 1 + 1 + 2 + 1 + 2 * 6 + 1
    assert all(not np.array_equal(params[k], other[k]) for k in drawn)
    for name in ("positions", "blocks.1.attention.key.kernel", "blocks.0.mlp.output.kernel"):
        assert np.std(params[name]) == pytest.approx(0.02, rel=0.02), name
    assert np.std(params["class_token"]) == pytest.approx(0.02, rel=0.2)
    for name, bound in (("patch_embed.kernel", 1 / 16), ("head.output.kernel", 192**-0.5)):
        assert np.abs(params[name]).max() == pytest.approx(bound, rel=0.01), name
        assert np.std(params[name]) == pytest.approx(bound / 3**0.5, rel=0.02), name
        assert 0.5 * bound < np.abs(params[name.replace("kernel", "bias")]).max() <= bound
    assert not np.any(params["blocks.1.attention.query.bias"])
    assert np.all(params["norm.scale"] == 1)


@pytest.mark.slow
def test_gradients_agree_with_finite_differences():
    """For every parameter array, along half its gradient's signs and half a random direction, so that no derivative
    is small: central differences in float32 agree to 3e-4, 2e-3 is allowed."""
    config, initial, _ = _tiny()
    apply = models.apply_fn("ast", config)
    weights = jax.random.normal(jax.random.key(5), (2, 40))
    # Weights larger than the initial ones, so that attention is far from uniform.
    keys = jax.random.split(jax.random.key(6), len(initial))
    params = {k: v + 0.2 * jax.random.normal(key, v.shape) for key, (k, v) in zip(keys, initial.items(), strict=True)}

    @jax.jit
    def loss(params):
        outputs, _ = apply(params, {}, FEATURES)
        return (outputs.logits * weights).sum() + (outputs.frames * jnp.cos(jnp.arange(32.0))).sum()

    unit = lambda x: x / np.linalg.norm(x)  # noqa: E731
    for name, gradient in jax.device_get(jax.jit(jax.grad(loss))(params)).items():
        if name.endswith("attention.key.bias"):  # adds the same to all scores of a query: the softmax cancels it
            assert np.abs(gradient).max() < 1e-5
            continue
        draw = np.random.default_rng(len(name)).standard_normal(gradient.shape)
        direction = unit(unit(np.sign(gradient)) + unit(draw)).astype(np.float32)
        plus, minus = (loss(params | {name: params[name] + step * direction}) for step in (1e-2, -1e-2))
        derivative = np.sum(gradient * direction)
        assert abs(derivative) > 0.5, name
        assert (plus - minus) / 2e-2 == pytest.approx(derivative, rel=2e-3), name


@pytest.mark.slow
def test_training_from_scratch_learns_forty_clips():
    """One clip of each class, random features, Adam at 1e-3, 100 steps. Measured: all are named after 14
    steps, the loss is a tenth after 68."""
    config, params, _ = _tiny()
    apply = models.apply_fn("ast", config)
    features = jax.random.normal(jax.random.key(1), (40, 32, 48))
    labels = jnp.arange(40)
    optimizer = optax.adam(1e-3)

    def loss(params):
        logits = apply(params, {}, features, train=True)[0].logits
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), logits

    @jax.jit
    def step(params, state):
        (value, logits), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value, (logits.argmax(-1) == labels).mean()

    state, losses = optimizer.init(params), []
    for _ in range(100):
        params, state, value, accuracy = step(params, state)
        losses.append(float(value))
    assert losses[0] == pytest.approx(math.log(40), abs=0.5)
    assert losses[-1] < 0.1 * losses[0]
    assert accuracy == 1.0


# ----------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_heads": 5}, "width 768 is not a multiple of n_heads 5"),
        ({"depth": 0}, "depth 0 must be at least 1"),
        ({"num_classes": 0}, "num_classes 0"),
        ({"time_stride": 0}, "time_stride 0"),
        ({"positions_shape": (12,)}, "positions_shape"),
        ({"positions_shape": (12, 0)}, "positions_shape"),
        ({"dropout": 1.0}, "dropout 1.0 must be at least 0 and below 1"),
        ({"drop_path": -0.1}, "drop_path -0.1"),
        ({"frontend": FrontendSpec.ast(n_mels=8)}, "8 mel bands x 1024 frames are less than one patch"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        ASTConfig(**changes)


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match="nearest: 'ast_hf'"):
        ASTConfig.preset("ast_hg")
    with pytest.raises(InputError, match="length 'loop' is unknown"):
        ASTConfig().for_window(5.0, "loop")


def test_config_survives_json():
    config = ASTConfig.preset("ast_hf", positions_shape=(12, 50), dropout=0.1).for_window(5.0, "fill")
    stored = json.loads(json.dumps(models.config_to_json("ast", config)))
    back = models.config_from_json(stored)
    assert back == ("ast", config)
    assert hash(back[1]) == hash(config)
