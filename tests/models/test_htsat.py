"""The network's shape, modes, lengths and options. Equality with the official numbers is in tests/ports."""

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from sousa_jax import models
from sousa_jax.errors import InputError
from sousa_jax.frontends import FrontendSpec, spectrogram
from sousa_jax.models.htsat import FITS, HTSAT, HTSATConfig, _position_index, average_crops, crops, cubic_weights, fit

# 16 mel bands fold into an image of 64 x 64, which holds 256 frames; 16 x 16 tokens, then 8 x 8; windows of 4 shift.
TINY = HTSATConfig(
    spec_size=64,
    embed_dim=16,
    depths=(2, 2),
    heads=(2, 4),
    window_size=4,
    frontend=FrontendSpec.htsat(n_mels=16, window_s=1.0),
)


def _features(n_frames, n_clips=2, seed=0):
    """Noise around -30 dB."""
    return 15.0 * jax.random.normal(jax.random.key(seed), (n_clips, 16, n_frames)) - 30.0


@functools.cache
def _arrays():
    """`(params, stats)`, with statistics of noise as in `_features`, so that bn0 does its part."""
    params, stats = models.init("htsat", TINY)
    return params, {"bn0.mean": stats["bn0.mean"] - 30.0, "bn0.var": stats["bn0.var"] * 225.0}


@functools.cache
def _jitted(**changes):
    return jax.jit(models.apply_fn("htsat", dataclasses.replace(TINY, **changes)), static_argnames="train")


def _apply(features, *, train=False, rng=None, **changes):
    return _jitted(**changes)(*_arrays(), features, train=train, rng=rng)


def _module(**changes):
    return models.module("htsat", dataclasses.replace(TINY, **changes), *_arrays())


@functools.cache
def _jitted_images(length):
    config = dataclasses.replace(TINY, length=length)
    return jax.jit(lambda arrays, features: models.module("htsat", config, *arrays).images(features))


def _images(features, length):
    return _jitted_images(length)(_arrays(), features)


@functools.cache
def _jitted_activations(**changes):
    config = dataclasses.replace(TINY, **changes)

    def run(arrays, images, train, rng):
        return models.module("htsat", config, *arrays).activations(images, train=train, rng=rng)

    return jax.jit(run, static_argnames="train")


def _activations(images, *, train=False, rng=None, **changes):
    return _jitted_activations(**changes)(_arrays(), images, train=train, rng=rng)


def _unfold(images, n_mels=16):
    """Frames `(…, T, M)` of images, the inverse of the official fold written the other way round."""
    pieces = [images[..., q * n_mels : (q + 1) * n_mels, :] for q in range(images.shape[-1] // n_mels)]
    return np.swapaxes(np.concatenate(pieces, axis=-1), -2, -1)


# ------------------------------------------------------------------------------------------- sizes and initialization


def test_size_of_the_released_model():
    params, stats = models.abstract("htsat", HTSATConfig.preset("htsat", num_classes=527))
    assert sum(math.prod(p.shape) for p in params.values()) == 30_241_687 - 278_256  # but for the unused `head`
    assert {key: array.shape for key, array in stats.items()} == {"bn0.mean": (64,), "bn0.var": (64,)}


def test_outputs_of_the_released_model():
    config = HTSATConfig.preset("htsat")
    params, stats = models.abstract("htsat", config)
    features = jax.ShapeDtypeStruct((3, 64, 1001), jnp.bfloat16)
    outputs, _ = jax.eval_shape(models.apply_fn("htsat", config), params, stats, features)
    assert {name: (x.shape, x.dtype) for name, x in outputs._asdict().items() if x is not None} == {
        "logits": ((3, 40), jnp.float32),
        "embedding": ((3, 768), jnp.float32),
        "frames": ((3, 32, 768), jnp.float32),
    }


def test_init_is_the_official_one_and_deterministic():
    """Linear layers and bias tables N(0, 0.02), convolutions as PyTorch leaves them, norms 1 and 0."""
    config = HTSATConfig(depths=(1, 1), heads=(4, 8))
    params, stats = models.init("htsat", config, seed=3)
    again, _ = models.init("htsat", config, seed=3)
    other, _ = models.init("htsat", config, seed=4)
    assert all(np.array_equal(params[k], again[k]) for k in params)
    assert not np.array_equal(params["head.kernel"], other["head.kernel"])
    for key in ("stages.0.blocks.0.attention.query", "stages.1.blocks.0.mlp.hidden", "stages.0.merge.reduction"):
        assert np.std(params[f"{key}.kernel"]) == pytest.approx(0.02, rel=0.03)
    assert np.std(params["stages.1.blocks.0.attention.rel_pos_bias"]) == pytest.approx(0.02, rel=0.1)
    assert not np.any(params["stages.1.blocks.0.mlp.hidden.bias"])
    for key, limit in (("patch_embed", 1 / 4), ("head", (config.frontend.n_mels // 8 * 3 * 192) ** -0.5)):
        for part in ("kernel", "bias"):
            largest = np.abs(params[f"{key}.{part}"]).max()
            assert 0.9 * limit < largest <= limit
    for name in ("bn0", "norm", "patch_embed.norm", "stages.0.merge.norm"):
        assert set(np.unique(params[f"{name}.scale"])) == {1.0}
        assert not np.any(params[f"{name}.bias"])
    assert set(np.unique(stats["bn0.var"])) == {1.0}


def test_outputs_hang_together():
    """The embedding is the mean of the frames, the logits of the frame-wise ones; frames follow time."""
    features = _features(256)
    found = _activations(_images(features, "fill")[:, 0])
    np.testing.assert_allclose(found["embedding"], found["frames"].mean(1), atol=1e-6)
    np.testing.assert_allclose(found["logits"], found["frame_logits"].mean(1), atol=1e-6)
    assert found["frame_logits"].shape == (2, 32, 40)
    louder = features.at[:, :, 100:104].add(30.0)  # 8 frames make a coarse one
    change = _activations(_images(louder, "fill")[:, 0])["frames"] - found["frames"]
    assert int(jnp.abs(change).mean((0, 2)).argmax()) == 100 // 8


# ------------------------------------------------------------------------------------------------ blocks and training


def test_windows_see_only_themselves_and_shifted_ones_do_not_wrap():
    """A changed corner token moves its own window; in a shifted block only the part next to it, as others in that
    window come from the opposite edges."""
    model = _module()
    x = jax.random.normal(jax.random.key(1), (1, 16, 16, 16))
    for block, reach in zip(model.stages[0].blocks, (4, 2), strict=True):
        moved = jnp.abs(block(x.at[0, 0, 0].multiply(-1.0), None) - block(x, None)).max(-1)[0]
        expected = np.zeros((16, 16), bool)
        expected[:reach, :reach] = True
        np.testing.assert_array_equal(moved > 0, expected)


@pytest.mark.parametrize(
    ("window_size", "windows", "shifts"),
    [
        (4, [[4, 4], [4, 4]], [[0, 2], [0, 2]]),
        (8, [[8, 8], [8, 8]], [[0, 4], [0, 0]]),
        (16, [[16, 16], [8, 8]], [[0, 0]] * 2),
    ],
)
def test_one_window_does_not_shift_and_is_no_larger_than_the_image(window_size, windows, shifts):
    config = dataclasses.replace(TINY, window_size=window_size)
    stages = nnx.eval_shape(lambda: HTSAT(config, rngs=nnx.Rngs(0))).stages
    assert [[block.window for block in stage.blocks] for stage in stages] == windows
    assert [[block.shift for block in stage.blocks] for stage in stages] == shifts


def test_relative_positions_are_numbered_as_in_swin():
    """A row of the table for each offset between query and key, rows first, both backwards."""
    expected = [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]
    np.testing.assert_array_equal(_position_index(2), expected)


def test_batch_norm_follows_torch():
    """New running statistics are 0.9 old + 0.1 batch with the unbiased variance; eps 1e-5."""
    params, stats = _arrays()
    features = _features(101)
    _, evaluated = _apply(features)
    _, trained = _apply(features, train=True, rng=jax.random.key(0))
    assert all(jnp.array_equal(evaluated[k], stats[k]) for k in stats)
    mean, var = features.mean((0, 2)), features.var((0, 2), ddof=1)
    np.testing.assert_allclose(trained["bn0.mean"], 0.9 * stats["bn0.mean"] + 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(trained["bn0.var"], 0.9 * stats["bn0.var"] + 0.1 * var, rtol=1e-4)
    model = models.module("htsat", TINY, params, {"bn0.mean": 0 * mean, "bn0.var": 0 * var})
    ours = model.bn0(features.swapaxes(1, 2), False)
    np.testing.assert_allclose(ours, features.swapaxes(1, 2) * 1e5**0.5, rtol=1e-4)


def test_drop_path_grows_over_the_blocks_and_drops_at_its_rate():
    """Both branches of a block are gone for rate² of the clips, only in training and only with a key."""
    rates = [block.drop_path for stage in _module().stages for block in stage.blocks]
    np.testing.assert_allclose(rates, [0.0, 0.1 / 3, 0.2 / 3, 0.1])
    images = jnp.repeat(_images(_features(256, 1), "fill")[:, 0], 600, axis=0)

    def unchanged(images, train, rng):
        found = _activations(images, train=train, rng=rng, drop_path=0.5)
        return jnp.mean((found["stage1_block0"] == found["stage1_block1"]).all((1, 2, 3)))

    assert unchanged(images, True, jax.random.key(0)) == pytest.approx(0.25, abs=0.06)  # 3.4 deviations
    assert unchanged(images[:2], False, jax.random.key(0)) == 0.0
    assert unchanged(images[:2], True, None) == 0.0


def test_dropout_only_in_training():
    def run(train, seed):
        rng = jax.random.key(seed)
        return _apply(_features(101), train=train, rng=rng, dropout=0.3, drop_path=0.0)[0].logits

    assert not jnp.array_equal(run(True, 0), run(True, 1))
    assert jnp.array_equal(run(False, 0), run(False, 1))


@pytest.mark.slow
def test_gradients_against_finite_differences():
    """Along each array's own gradient and along a random direction, within 1 %. Kernels are larger than at the
    beginning of training, so that attention is not flat."""
    params, stats = _arrays()
    apply, features = models.apply_fn("htsat", TINY), _features(101)
    grow = {"attention.query.kernel": 10, "attention.key.kernel": 10, "rel_pos_bias": 30}
    params = {k: v * next((g for name, g in grow.items() if k.endswith(name)), 3) for k, v in params.items()}
    weights = jax.random.normal(jax.random.key(5), (2, 40))

    @jax.jit
    def loss(params):
        outputs, _ = apply(params, stats, features, train=True)
        return (outputs.logits * weights).sum() + (outputs.embedding * jnp.arange(32.0)).mean()

    gradient = jax.jit(jax.grad(loss))(params)

    def slope(direction, step):
        moved = [{k: v + sign * step * direction.get(k, 0.0) for k, v in params.items()} for sign in (1, -1)]
        return float(loss(moved[0]) - loss(moved[1])) / (2 * step)

    for key, part in gradient.items():
        size = float(jnp.linalg.norm(part))
        if key.endswith("attention.key.bias"):  # the same for all scores of a query: softmax does not see it
            assert size < 1e-5
            continue
        assert slope({key: part / size}, min(0.02, 0.1 / size)) == pytest.approx(size, rel=0.01), key
    direction = {k: jax.random.normal(jax.random.key(i), v.shape) for i, (k, v) in enumerate(params.items())}
    along = sum(float((gradient[k] * direction[k]).sum()) for k in params)
    assert slope(direction, 5e-5) == pytest.approx(along, rel=0.01)


def test_bfloat16_stays_near_float32():
    """Measured, of the largest value: logits 0.5 %, embedding 0.4 %, frames 0.7 %."""
    exact = _apply(_features(101))[0]
    rough = _apply(_features(101).astype(jnp.bfloat16))[0]
    for ours, theirs in zip(*map(jax.tree.leaves, (rough, exact)), strict=True):
        assert ours.dtype == jnp.float32
        assert jnp.abs(ours - theirs).max() < 0.015 * jnp.abs(theirs).max()


@pytest.mark.slow
def test_training_from_scratch_overfits_one_clip_of_each_class():
    """40 clips of noise, 45 steps of AdamW: all are named right, in evaluation mode too (30 steps are enough)."""
    features, labels = _features(101, 40), jnp.arange(40)
    params = _arrays()[0]
    stats = {"bn0.mean": jnp.zeros(16), "bn0.var": jnp.ones(16)}  # as from scratch
    apply, optimizer = models.apply_fn("htsat", TINY), optax.adamw(3e-3)

    @jax.jit
    def step(params, stats, state, rng):
        def loss(params):
            outputs, new_stats = apply(params, stats, features, train=True, rng=rng)
            return optax.softmax_cross_entropy_with_integer_labels(outputs.logits, labels).mean(), new_stats

        (value, stats), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), stats, state, value

    state, losses = optimizer.init(params), []
    for i in range(45):
        params, stats, state, value = step(params, stats, state, jax.random.key(i))
        losses.append(float(value))
    assert losses[0] == pytest.approx(math.log(40), abs=0.3)
    assert losses[-1] < 0.2
    assert jnp.array_equal(jax.jit(apply)(params, stats, features)[0].logits.argmax(-1), labels)


# ------------------------------------------------------------------------------------------------------ short and long


@pytest.mark.parametrize("n_frames", [2, 40, 101, 256])
def test_fill_goes_round_and_does_not_stretch(n_frames):
    features = _features(n_frames)
    images = _images(features, "fill")
    assert images.shape == (2, 1, 64, 64)
    normalized = (features.swapaxes(1, 2) + 30.0) / 15.0
    np.testing.assert_allclose(_unfold(images[:, 0]), normalized[:, np.arange(256) % n_frames], atol=1e-5)


def test_a_beat_keeps_its_period_when_filled_but_not_when_stretched():
    beat = jnp.where(jnp.arange(100) % 10 == 0, 0.0, -60.0) * jnp.ones((1, 16, 1))
    period = lambda length: np.diff(np.flatnonzero(_unfold(_images(beat, length)[0, 0])[:, 3] > 0)[:3])  # noqa: E731
    assert period("fill").tolist() == [10, 10]
    assert period("stretch").tolist() != [10, 10]


def test_stretch_is_cubic_with_aligned_corners():
    weights = cubic_weights(9, 5)
    np.testing.assert_allclose(weights[0], [1, 0, 0, 0, 0])
    np.testing.assert_allclose(weights[-1], [0, 0, 0, 0, 1])
    np.testing.assert_allclose(weights[3], np.array([-3, 19, 19, -3, 0]) / 32)  # halfway, a = -0.75
    np.testing.assert_allclose(weights[1], np.array([16, 19, -3, 0, 0]) / 32)  # beyond the edge is the edge
    np.testing.assert_allclose(cubic_weights(1024, 501).sum(1), 1.0, atol=1e-6)
    np.testing.assert_array_equal(cubic_weights(7, 7), np.eye(7))
    x = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    np.testing.assert_allclose(fit(x, 9, "stretch"), weights @ x, atol=1e-6)


def test_repeat_repeats_as_often_as_it_fits_then_stretches():
    x = _features(100).swapaxes(1, 2)
    np.testing.assert_array_equal(fit(x, 256, "repeat"), fit(jnp.concatenate([x, x], 1), 256, "stretch"))
    np.testing.assert_array_equal(fit(x[:, :64], 256, "repeat"), fit(x[:, :64], 256, "fill"))
    x = _features(200).swapaxes(1, 2)
    np.testing.assert_array_equal(fit(x, 256, "repeat"), fit(x, 256, "stretch"))


def test_long_input_averages_probabilities_of_crops():
    features = _features(361)
    pieces = crops(features.swapaxes(1, 2))
    assert [piece.shape for piece in pieces] == [(2, 180, 16)] * 2
    np.testing.assert_array_equal(pieces[1], features[:, :, 90:270].swapaxes(1, 2))
    parts = _apply(jnp.concatenate(pieces).swapaxes(1, 2))[0]  # both clips' first crop, then both clips' second
    whole = _apply(features)[0]
    mean = lambda x: np.mean([x[:2], x[2:]], axis=0)  # noqa: E731
    np.testing.assert_allclose(jax.nn.sigmoid(whole.logits), mean(jax.nn.sigmoid(parts.logits)), atol=1e-6)
    np.testing.assert_allclose(whole.embedding, mean(parts.embedding), atol=1e-5)
    np.testing.assert_allclose(whole.frames, mean(parts.frames), atol=1e-5)


def test_averaged_logits_are_exact_where_probabilities_round():
    np.testing.assert_allclose(average_crops(jnp.array([[[-200.0], [-200.0]]])), [[-200.0]])
    np.testing.assert_allclose(average_crops(jnp.array([[[200.0], [90.0]]])), [[90.0 + math.log(2.0)]], rtol=1e-6)
    np.testing.assert_allclose(average_crops(jnp.array([[[0.0], [math.log(3.0)]]])), [[math.log(0.625 / 0.375)]])


def test_too_long_input_is_refused():
    shape = lambda n_frames, length: _images(_features(n_frames), length).shape  # noqa: E731
    assert shape(514, "stretch") == (2, 3, 64, 64)  # crops of 256
    with pytest.raises(InputError, match="515 frames are too many, length 'stretch' takes at most 514"):
        shape(515, "stretch")
    with pytest.raises(InputError, match=r"257 frames are too many, length 'fill' takes at most 256: .* below 2\.56"):
        shape(257, "fill")


def test_silence_and_the_shortest_clip():
    for n_samples, train in ((513, False), (32_000, False), (32_000, True)):  # in training bn0 meets a variance of zero
        features = spectrogram(jnp.zeros((2, n_samples)), TINY.frontend)
        np.testing.assert_allclose(features, -100.0, rtol=1e-6)
        outputs, _ = _apply(features, train=train)
        assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(outputs))


def test_nan_stays_in_its_clip():
    waveform = 0.1 * jax.random.normal(jax.random.key(2), (3, 32_000))
    broken = spectrogram(waveform.at[1, 5000].set(jnp.nan), TINY.frontend)
    features = spectrogram(waveform, TINY.frontend)
    for length in FITS:
        ours, theirs = _images(broken, length), _images(features, length)
        np.testing.assert_array_equal(ours[::2], theirs[::2])
        assert jnp.isnan(ours[1]).any()
    for ours, theirs in zip(*map(jax.tree.leaves, (_apply(broken)[0], _apply(features)[0])), strict=True):
        np.testing.assert_array_equal(ours[::2], theirs[::2])
        assert jnp.isnan(ours[1]).all()


# --------------------------------------------------------------------------------------------------------- the config


def test_for_window():
    config = HTSATConfig.preset("htsat")
    assert config.length == "stretch"
    filled, official = config.for_window(5.0, "fill"), config.for_window(5.0, "official")
    assert (filled.length, filled.frontend.window_s) == ("fill", 5.0)
    assert (official.length, official.frontend.window_s) == ("stretch", 5.0)
    assert filled.for_window(10.0, "official") == config
    with pytest.raises(InputError, match="length 'stretch' is unknown"):
        config.for_window(5.0, "stretch")
    with pytest.raises(InputError, match=r"window_s must be below 10\.24"):
        config.for_window(10.24, "fill")
    assert config.for_window(10.2399, "fill").frontend.window_s == 10.2399


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": "official"}, "length 'official' is unknown"),
        ({"embed_dim": 0}, "embed_dim 0 must be at least 1"),
        ({"heads": (4, 8, 16)}, r"heads \(4, 8, 16\) must be as many numbers"),
        ({"depths": (2, 2, 6, 0)}, r"depths \(2, 2, 6, 0\)"),
        ({"depths": (), "heads": ()}, r"depths \(\)"),
        ({"drop_path": 1.0}, r"drop_path 1\.0 must be"),
        ({"norm_momentum": -0.1}, "norm_momentum -0.1 must be"),
        ({"spec_size": 200}, "spec_size 200 must be a multiple of the 64 mel bands"),
        ({"frontend": FrontendSpec.htsat(n_mels=16)}, "16 mel bands must be a multiple of 32"),
        ({"window_size": 7}, "stage 0 has 64 x 64 tokens, windows of 7 do not fit"),
        ({"heads": (4, 8, 16, 31)}, "stage 3 has 768 channels, not a multiple of its 31 heads"),
        ({"frontend": FrontendSpec.htsat(window_s=10.24), "length": "fill"}, "1025 frames are too many"),
        ({"frontend": FrontendSpec.htsat(window_s=20.5)}, "2051 frames are too many"),
        ({"frontend": FrontendSpec.htsat(window_s=0.01)}, "too short"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        HTSATConfig(**changes)


def test_unknown_variant_is_refused():
    with pytest.raises(InputError, match="unknown HTS-AT variant 'htsta'; nearest: 'htsat'"):
        HTSATConfig.preset("htsta")


def test_config_survives_json():
    config = HTSATConfig.preset("htsat", drop_path=0.2).for_window(5.0, "fill")
    stored = json.loads(json.dumps(models.config_to_json("htsat", config)))
    assert models.config_from_json(stored) == ("htsat", config)
