"""The network's shape, modes and options. Equality with the official numbers is in tests/ports."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sousa_jax import models
from sousa_jax.errors import InputError
from sousa_jax.frontends import FrontendSpec, spectrogram
from sousa_jax.models import beats
from sousa_jax.models.beats import PRESETS, BEATsConfig
from sousa_jax.models.layers import LENGTHS

FEATURES = jax.random.normal(jax.random.key(0), (2, 32, 64))  # 4 steps of 2 patches
DROPOUTS = ("dropout", "input_dropout", "attention_dropout", "activation_dropout", "head_dropout")


def tiny_config(**changes):
    sizes = dict(
        patch_features=24, features=32, hidden_features=64, n_layers=2, n_heads=4, conv_kernel=8, conv_groups=4,
        n_buckets=16, max_distance=40, layer_drop=0.0, frontend=FrontendSpec.beats(n_mels=32, window_s=1.0),
    )  # fmt: skip
    return BEATsConfig(**{**sizes, **changes})


@functools.cache
def _params():
    """Of the tiny network, biases and gains no zeros and ones, so that every array matters."""
    rng = np.random.default_rng(0)
    params, _ = models.init("beats", tiny_config())
    return {
        key: value + np.float32(0.1) * rng.standard_normal(value.shape, np.float32) for key, value in params.items()
    }


def _module(params, **changes):
    config = tiny_config(**changes)
    shapes, _ = models.abstract("beats", config)
    return models.module("beats", config, {key: params[key] for key in shapes}, {})


@functools.cache
def _apply(**changes):
    """The jitted network: compiled once for all tests that share its settings."""

    def apply(params, features, *, train=False, rng=None, padding=None):
        return _module(params, **changes)(features, train=train, rng=rng, padding=padding)

    return jax.jit(apply, static_argnames="train")


@functools.cache
def _stages():
    return jax.jit(lambda params, features: _module(params).stages(features))


def _loss(params, features, padding, **options):
    target = np.random.default_rng(5).standard_normal((2, 40), np.float32)
    logits = _module(params)(features, padding=padding, **options).logits
    return jnp.square(logits - target).mean()


@functools.cache
def _gradient(**options):
    """Jitted `f(params, features, padding)` of a loss: its value and gradient."""
    return jax.jit(jax.value_and_grad(functools.partial(_loss, **options)))


NOTHING_PADDED = np.zeros((2, 64), bool)


# ----------------------------------------------------------------------------------------------------- sizes and config


@pytest.mark.parametrize(
    ("name", "count"), [("beats_iter3_plus_as2m", 90_311_792), ("beats_iter3_plus_as2m_ft", 90_717_055)]
)
def test_parameter_counts_of_the_released_models(name, count):
    params, stats = models.abstract("beats", BEATsConfig.preset(name))
    assert sum(math.prod(p.shape) for p in params.values()) == count
    assert not stats


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_builds(name):
    config = BEATsConfig.preset(name, num_classes=40)
    params, _ = models.abstract("beats", config)
    assert params["head.kernel"].shape == (768, 40)
    assert params["rel_pos_bias"].shape == (320, 12)  # once, not per layer
    assert (round(config.alpha, 4), round(config.beta, 4)) == (2.2134, 0.3195)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_heads": 5}, "32 features do not split into n_heads = 5"),
        ({"conv_groups": 3}, "32 features do not split into conv_groups = 3"),
        ({"n_layers": 0}, "n_layers is 0, expected at least 1"),
        ({"num_classes": -1}, "num_classes is -1"),
        ({"dropout": 1.0}, r"dropout is 1\.0, expected at least 0 and less than 1"),
        ({"layer_drop": -0.1}, r"layer_drop is -0\.1"),
        ({"gradient_decay": 0.0}, r"gradient_decay is 0\.0"),
        ({"n_buckets": 18}, "n_buckets 18 must be a multiple of 4"),
        ({"max_distance": 4}, "a quarter of it below max_distance 4"),
        ({"frontend": FrontendSpec.beats(n_mels=40)}, "40 mel bands are no multiple of patch_size 16"),
        ({"frontend": FrontendSpec.beats(n_mels=32, window_s=0.17)}, "15 frames is shorter than a patch"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(InputError, match=message) as error:
        tiny_config(**changes)
    assert "\n" not in str(error.value)


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match="nearest: 'beats_iter3_plus_as2m'"):
        BEATsConfig.preset("beats_iter3_plus_as20k")
    with pytest.raises(InputError, match="no setting 'n_layer'"):
        models.make_config("beats", "beats", n_layer=2)


def test_config_survives_json():
    config = tiny_config(dropout=0.3, num_classes=0)
    stored = json.loads(json.dumps(models.config_to_json("beats", config)))
    assert models.config_from_json(stored) == ("beats", config)


# -------------------------------------------------------------------------------------------------------------- outputs


def test_outputs():
    params = _params()
    outputs = _apply()(params, FEATURES)
    assert [a.shape for a in jax.tree.leaves(outputs)] == [(2, 40), (2, 32), (2, 4, 32)]
    assert {a.dtype for a in jax.tree.leaves(outputs)} == {jnp.dtype("float32")}
    tokens = _stages()(params, FEATURES)["layer01"]
    np.testing.assert_allclose(outputs.embedding, tokens.mean(1), atol=1e-6)
    np.testing.assert_allclose(outputs.frames[:, 1], tokens[:, 2:4].mean(1), atol=1e-6)
    # The official order: the class layer on every token, then the mean.
    np.testing.assert_allclose(
        outputs.logits, (tokens @ params["head.kernel"] + params["head.bias"]).mean(1), atol=1e-5
    )


def test_without_classes_the_logits_have_width_zero():
    params, _ = models.abstract("beats", tiny_config(num_classes=0))
    assert not any(key.startswith("head") for key in params)
    outputs = _apply(num_classes=0)(_params(), FEATURES)
    assert (outputs.logits.shape, outputs.embedding.shape) == ((2, 0), (2, 32))


def test_bfloat16_stays_near_float32():
    params, apply = _params(), _apply()
    exact, rough = apply(params, FEATURES), apply(params, FEATURES.astype(jnp.bfloat16))
    assert {a.dtype for a in jax.tree.leaves(rough)} == {jnp.dtype("float32")}
    for a, b in zip(*map(jax.tree.leaves, (exact, rough)), strict=True):
        assert 0 < jnp.abs(a - b).max() < 0.02 * jnp.abs(a).max()  # found: 0.4 to 1.0 %


# -------------------------------------------------------------------------------------------------------------- lengths


def test_frames_that_fill_no_patch_are_left_out():
    params, apply = _params(), _apply()
    longer = jnp.concatenate([FEATURES, 100 * jnp.ones((2, 32, 15))], axis=2)
    for a, b in zip(*map(jax.tree.leaves, (apply(params, longer), apply(params, FEATURES))), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_clip_shorter_than_a_patch_is_refused():
    params, apply = _params(), _apply()
    assert apply(params, FEATURES[:, :, :16]).frames.shape == (2, 1, 32)
    with pytest.raises(InputError, match="15 frames is shorter than a patch, at least 16 needed"):
        apply(params, FEATURES[:, :, :15])


def test_a_clip_far_beyond_max_distance():
    params, apply = _params(), _apply()
    outputs = apply(params, jax.random.normal(jax.random.key(1), (1, 32, 3000)))
    assert outputs.frames.shape == (1, 187, 32)
    assert all(jnp.isfinite(a).all() for a in jax.tree.leaves(outputs))


@pytest.mark.parametrize("length", LENGTHS)
def test_a_short_window_is_neither_stretched_nor_padded(length):
    config = BEATsConfig.preset("beats").for_window(2.6, length)
    assert config == BEATsConfig(frontend=FrontendSpec.beats(window_s=2.6))
    tiny = tiny_config().for_window(0.6, length)
    n_frames = tiny.frontend.n_frames(tiny.frontend.window_samples)
    module = _module(_params())
    at = lambda frame: jnp.zeros((1, 32, n_frames)).at[:, :, frame].set(1.0)  # noqa: E731
    for frame in (0, 20, 47):  # what happens at a frame reaches the patches of that time, and no others
        reached = jnp.abs(module.patch_embed(at(frame))).sum(-1).reshape(n_frames // 16, 2) > 0
        np.testing.assert_array_equal(reached.any(1), np.arange(n_frames // 16) == frame // 16)


def test_silence_is_finite_and_so_is_its_gradient():
    features = spectrogram(jnp.zeros((2, 16_000)), tiny_config().frontend)[:, :, :64]
    assert jnp.unique(features).size == 1  # all at the floor
    value, grads = _gradient()(_params(), features, NOTHING_PADDED)
    assert jnp.isfinite(value)
    assert all(np.isfinite(grad).all() for grad in grads.values())


def test_nan_stays_in_its_clip():
    config, params, apply = tiny_config(), _params(), _apply()
    clips = 0.1 * jax.random.normal(jax.random.key(0), (3, 16_000))
    clean = apply(params, spectrogram(clips, config.frontend))
    spoilt = apply(params, spectrogram(clips.at[1, 8000].set(jnp.nan), config.frontend))
    for a, b in zip(*map(jax.tree.leaves, (clean, spoilt)), strict=True):
        assert jnp.isnan(b[1]).all()
        np.testing.assert_array_equal(b[::2], a[::2])


# -------------------------------------------------------------------------------------------------------------- padding


@pytest.mark.parametrize(("n", "count"), [(160_000, 998), (998, 496), (24_000, 148), (148, 72), (31, 8), (16, 16)])
def test_padding_is_reduced_as_officially(n, count):
    """Written out: the remainder is cut, groups of equal size follow, all of a group must be padded."""
    padding = np.random.default_rng(n).random((3, n)) < 0.7
    padding[1, n // 3 :] = True
    kept = n - n % count
    expected = [[bool(group.all()) for group in np.split(row[:kept], count)] for row in padding]
    np.testing.assert_array_equal(beats.reduce_padding(padding, count), expected)


def test_what_is_padded_does_not_matter():
    params, apply = _params(), _apply()
    padding = np.arange(64) >= np.array([[64], [32]])
    outputs = apply(params, FEATURES, padding=padding)
    other = apply(params, FEATURES.at[1, :, 32:].multiply(-3.0), padding=padding)
    for a, b in zip(outputs[:2], other[:2], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    np.testing.assert_allclose(outputs.frames[1, :2], other.frames[1, :2], atol=1e-6)
    # Not so if the keys are not hidden, or the padded tokens averaged.
    assert jnp.abs(outputs.embedding[1] - apply(params, FEATURES).embedding[1]).max() > 0.01
    for a, b in zip(*map(jax.tree.leaves, (outputs, apply(params, FEATURES))), strict=True):
        np.testing.assert_allclose(a[0], b[0], atol=1e-6)


def test_a_hidden_key_is_as_if_it_were_not_there():
    attention = _module(_params()).blocks[0].attention
    keys = jax.random.split(jax.random.key(0), 2)
    x, bias = jax.random.normal(keys[0], (2, 6, 32)), jax.random.normal(keys[1], (4, 6, 6))
    hidden = np.repeat([np.arange(6) >= 4], 2, axis=0)
    attended = attention(x, bias, hidden, None)
    np.testing.assert_allclose(attended[:, :4], attention(x[:, :4], bias[:, :4, :4], None, None), atol=1e-6)


def test_no_padding_is_the_same_as_none():
    params, apply = _params(), _apply()
    padded, plain = apply(params, FEATURES, padding=NOTHING_PADDED), apply(params, FEATURES)
    for a, b in zip(*map(jax.tree.leaves, (padded, plain)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_clip_of_nothing_but_padding_has_the_embedding_zero():
    params, apply = _params(), _apply()
    padding = np.repeat([[True], [False]], 64, axis=1)
    outputs = apply(params, FEATURES, padding=padding)
    assert all(jnp.isfinite(a).all() for a in jax.tree.leaves(outputs))
    assert not outputs.embedding[0].any()
    np.testing.assert_array_equal(outputs.logits[0], params["head.bias"])
    np.testing.assert_allclose(outputs.logits[1], apply(params, FEATURES).logits[1], atol=1e-5)
    _, grads = _gradient()(params, FEATURES, padding)
    assert all(np.isfinite(grad).all() for grad in grads.values())


# ------------------------------------------------------------------------------------------------------------ positions


@pytest.mark.parametrize(("length", "taps", "groups"), [(1, 8, 2), (5, 8, 1), (72, 16, 4), (40, 7, 2), (248, 128, 2)])
def test_fourier_convolution_equals_the_grouped_one(length, taps, groups):
    keys = jax.random.split(jax.random.key(length), 3)
    x = jax.random.normal(keys[0], (2, length, 8))
    kernel = jax.random.normal(keys[1], (taps, 8 // groups, 8)) * (taps * 8 // groups) ** -0.5
    grad = jax.random.normal(keys[2], x.shape)

    @functools.partial(jax.jit, static_argnums=0)
    def value_and_gradients(conv, x, kernel):
        out, vjp = jax.vjp(conv, x, kernel)
        return out, *vjp(grad)

    expected = value_and_gradients(beats._grouped_conv, x, kernel)
    for ours, theirs in zip(value_and_gradients(beats._fourier_conv, x, kernel), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-6 * jnp.abs(theirs).max())


def test_the_cpu_takes_the_fourier_form():
    text = jax.jit(beats.position_conv).lower(jnp.zeros((1, 9, 8)), jnp.zeros((4, 4, 8))).as_text()
    assert ("convolution" in text) == (jax.default_backend() != "cpu")
    assert ("fft" in text) == (jax.default_backend() == "cpu")
    x = jnp.zeros((1, 9, 8), jnp.bfloat16)
    assert {conv(x, jnp.zeros((4, 4, 8))).dtype for conv in (beats._fourier_conv, beats._grouped_conv)} == {x.dtype}


def test_weight_norm_has_one_gain_a_tap():
    params = _params()
    conv = _module(params).pos_conv
    kernel = conv.kernel()
    assert kernel.shape == (8, 8, 32)
    np.testing.assert_allclose(jnp.sqrt(jnp.square(kernel).sum((1, 2))), params["pos_conv.g"], rtol=1e-5)
    conv.v[...] = jnp.asarray(params["pos_conv.v"]).at[3].multiply(5.0)
    np.testing.assert_allclose(conv.kernel(), kernel, rtol=1e-4)


def test_buckets_of_the_released_table():
    """By hand: exact below 80, then 80 · log10(d / 80) further steps up to 800; later keys have the second half."""
    distance = np.array([0, 1, 79, 80, 82, 83, 253, 799, 800, 5000])
    expected = np.array([0, 1, 79, 80, 80, 81, 120, 159, 159, 159])
    np.testing.assert_array_equal(beats.buckets(-distance, 320, 800), expected)
    np.testing.assert_array_equal(beats.buckets(distance[1:], 320, 800), 160 + expected[1:])


@pytest.mark.parametrize("n_tokens", [1, 2, 7, 60])
def test_relative_bias_is_the_table_looked_up(n_tokens):
    table = jax.random.normal(jax.random.key(0), (16, 3))
    bias = beats.relative_bias(table, n_tokens, 40)
    for query in range(n_tokens):
        for key in range(n_tokens):
            row = int(beats.buckets(np.array(key - query), 16, 40))
            np.testing.assert_array_equal(bias[:, query, key], table[row])


# ------------------------------------------------------------------------------------------------------------- training


def test_init_is_deterministic():
    params, again, other = (models.init("beats", tiny_config(), seed=seed)[0] for seed in (0, 0, 1))
    assert all(np.array_equal(params[key], again[key]) for key in params)
    assert not np.array_equal(params["proj.kernel"], other["proj.kernel"])


def test_init_is_the_official_one():
    params, _ = models.init("beats", BEATsConfig(n_layers=2, num_classes=527), seed=3)
    std = lambda key: float(np.std(params[key]))  # noqa: E731
    beta = 16**-0.25
    assert std("blocks.1.attention.query.kernel") == pytest.approx(768**-0.5, rel=0.01)
    assert std("blocks.1.attention.key.kernel") == pytest.approx(768**-0.5, rel=0.01)
    assert std("blocks.1.attention.value.kernel") == pytest.approx(beta * 768**-0.5, rel=0.01)
    assert std("blocks.1.attention.output.kernel") == pytest.approx(beta * 768**-0.5, rel=0.01)
    assert std("blocks.1.mlp.hidden.kernel") == pytest.approx(beta * (2 / 3840) ** 0.5, rel=0.01)
    assert std("blocks.1.mlp.output.kernel") == pytest.approx(beta * (2 / 3840) ** 0.5, rel=0.01)
    assert std("rel_pos_bias") == pytest.approx(0.02, rel=0.05)
    assert std("blocks.0.attention.gate.kernel") == pytest.approx(0.02, rel=0.15)
    assert std("pos_conv.v") == pytest.approx((4 / (128 * 768)) ** 0.5, rel=0.01)
    for key, fan_in in (("patch_embed.kernel", 256), ("proj.kernel", 512), ("head.kernel", 768)):
        assert np.abs(params[key]).max() == pytest.approx(fan_in**-0.5, rel=0.001)
        assert std(key) == pytest.approx((3 * fan_in) ** -0.5, rel=0.02)
    np.testing.assert_allclose(params["pos_conv.g"], np.sqrt(np.square(params["pos_conv.v"]).sum((1, 2))), rtol=1e-5)
    assert all(not params[key].any() for key in params if key.endswith("bias") and key != "rel_pos_bias")
    assert set(np.unique(params["blocks.1.attention.gate_scale"])) == {1.0}


@pytest.mark.parametrize("field", [*DROPOUTS, "layer_drop"])
def test_every_dropout_acts_in_training(field):
    module = _module(_params(), n_layers=1, **{field: 0.5})
    draw = jax.jit(jax.vmap(lambda rng: module(FEATURES, train=True, rng=rng).logits))
    logits = np.asarray(draw(jax.random.split(jax.random.key(0), 8)))
    assert len(np.unique(logits, axis=0)) > 1
    assert np.isfinite(logits).all()


def test_no_dropout_acts_in_evaluation_or_without_a_key():
    apply = _apply(**dict.fromkeys((*DROPOUTS, "layer_drop"), 0.5))
    plain = _apply()(_params(), FEATURES)
    for options in ({"rng": jax.random.key(0)}, {"train": True}):
        for a, b in zip(*map(jax.tree.leaves, (apply(_params(), FEATURES, **options), plain)), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


def test_head_dropout_has_its_rate():
    """Zeroing tokens' values independently with probability p, and scaling up the rest, adds this variance."""
    rate, params = 0.3, _params()
    tokens = _stages()(params, FEATURES)["layer01"]
    per_value = np.square(tokens[..., None] * params["head.kernel"] / tokens.shape[1]).sum((1, 2))  # (B, classes)
    draw = jax.jit(jax.vmap(lambda rng: _module(params, head_dropout=rate)(FEATURES, train=True, rng=rng).logits))
    logits = np.asarray(draw(jax.random.split(jax.random.key(0), 2000)))
    assert (logits.var(0) / per_value).mean() == pytest.approx(rate / (1 - rate), rel=0.03)
    assert np.abs(logits.mean(0) - _apply()(params, FEATURES).logits).max() < 0.03


def test_layer_drop_skips_a_layer_for_the_whole_batch_at_its_rate():
    rate = 0.3

    @jax.jit
    @jax.vmap
    def skipped(rng):
        stages = _module(_params(), layer_drop=rate).stages(FEATURES, train=True, rng=rng)
        before = (stages["encoder_in"], stages["layer00"])
        return jnp.stack([(stages[f"layer{i:02d}"] == x).all((1, 2)) for i, x in enumerate(before)])

    found = np.asarray(skipped(jax.random.split(jax.random.key(0), 1000)))  # (draw, layer, clip)
    np.testing.assert_array_equal(found[..., 0], found[..., 1])
    first, second = found[:, 0, 0], found[:, 1, 0]
    assert first.mean() == pytest.approx(rate, abs=0.06)  # four standard deviations
    assert second.mean() == pytest.approx(rate, abs=0.06)
    assert (first & second).mean() == pytest.approx(rate**2, abs=0.04)  # independent of each other


OWN_PARTS = (
    "pos_conv.v",
    "pos_conv.g",
    "rel_pos_bias",
    "blocks.0.attention.gate.kernel",
    "blocks.0.attention.gate_scale",
)


@pytest.mark.parametrize("names", ["all", *OWN_PARTS])
def test_gradient_against_finite_differences(names):
    """Along the gradient of one array, or of all, each at its own norm: within 1 %, in float32. The decay of gradients
    is set, and must not act in evaluation."""
    assert tiny_config().gradient_decay == 0.6
    params, padding = _params(), np.arange(64) >= np.array([[64], [40]])
    _, grads = _gradient()(params, FEATURES, padding)
    assert grads.keys() == params.keys()
    moved = [name for name in params if names in ("all", name)]
    norms = {name: float(np.linalg.norm(grads[name])) for name in moved}
    step = {name: np.asarray(grads[name]) / norms[name] for name in moved if norms[name] > 1e-6}  # not the keys' biases
    # The loss must move by much more than its rounding, 2e-7: a weak array (the gate's scale) needs a longer step.
    h = 5e-3 if names == "all" else max(2e-2, 5e-5 / sum(norms.values()))
    loss = lambda h: float(  # noqa: E731
        _gradient()({**params, **{name: params[name] + h * step[name] for name in step}}, FEATURES, padding)[0]
    )
    assert (loss(h) - loss(-h)) / (2 * h) == pytest.approx(sum(norms[name] for name in step), rel=0.01)


def test_gradient_decay_scales_gradients_layer_by_layer_and_no_values():
    value, plain = _gradient()(_params(), FEATURES, NOTHING_PADDED)
    same, decayed = _gradient(train=True)(_params(), FEATURES, NOTHING_PADDED)
    assert float(same) == pytest.approx(float(value), rel=1e-6)
    for key, grad in plain.items():
        if key == "rel_pos_bias" or key.endswith("attention.key.bias"):
            continue  # the one by way of both layers, the other zero but for rounding
        last, first = key.startswith(("head", "blocks.1")), key.startswith("blocks.0")
        factor = 1.0 if last else 0.6 if first else 0.36
        np.testing.assert_allclose(decayed[key], factor * grad, atol=1e-4 * np.abs(grad).max(), err_msg=key)


@pytest.mark.slow
def test_a_tiny_network_learns_forty_clips_by_heart():
    """One clip of each class, random spectrograms: 100 % within 60 steps of Adam, from scratch (found: 15)."""
    config = tiny_config(layer_drop=0.05, dropout=0.1)
    params, _ = models.init("beats", config)
    features, labels = jax.random.normal(jax.random.key(1), (40, 32, 32)), jnp.arange(40)
    optimizer = optax.adam(3e-3)

    def loss_of(params, rng):
        logits = models.module("beats", config, params, {})(features, train=True, rng=rng).logits
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def step(carry, rng):
        params, state = carry
        loss, grads = jax.value_and_grad(loss_of)(params, rng)
        updates, state = optimizer.update(grads, state)
        return (optax.apply_updates(params, updates), state), loss

    keys = jax.random.split(jax.random.key(2), 60)
    (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), keys)
    assert losses[0] == pytest.approx(math.log(40), rel=0.3)
    assert losses[-10:].mean() < 0.1 * losses[0]
    assert (jnp.argmax(_apply()(params, features).logits, -1) == labels).all()
