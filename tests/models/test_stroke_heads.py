"""The four released backbones with strokes: what they give, where time lies in it, what is refused, what it learns."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from configs import common
from sousa_jax import models, start, strategies
from sousa_jax.data.frame_targets import FrameTargets, count_frames, place_on_frames
from sousa_jax.errors import InputError
from sousa_jax.frontends import FrontendSpec, spectrogram
from sousa_jax.losses import class_loss, stroke_loss
from sousa_jax.models.ast import ASTConfig
from sousa_jax.models.beats import BEATsConfig
from sousa_jax.models.efficientat import PYRAMID_WIDTH, EfficientATConfig, Pyramid
from sousa_jax.models.heads import RARE, StrokeHead, stream_frames, stream_frames_per_step
from sousa_jax.models.htsat import HTSATConfig

RATE = 200
TRANSFORMERS = ("htsat", "beats", "ast")
NAMES = ("efficientat", *TRANSFORMERS)
NEW = ("pyramid.", "strokes.", "rhythm.")
REPLACED = ("head.", "last.")


def tiny(name, per_second=RATE, **changes):
    """A small network on half a second."""
    config_class, fields = {
        "efficientat": (
            EfficientATConfig,
            dict(width=0.1, grouped_init=True, frontend=FrontendSpec(n_mels=32, hop_length=160, window_s=0.5)),
        ),
        "htsat": (
            HTSATConfig,
            dict(
                length="fill", spec_size=64, embed_dim=16, depths=(1, 1), heads=(2, 4), window_size=4,
                frontend=FrontendSpec.htsat(n_mels=16, window_s=0.5),
            ),
        ),
        "beats": (
            BEATsConfig,
            dict(
                patch_features=16, features=32, hidden_features=32, n_layers=1, n_heads=2, conv_kernel=8,
                conv_groups=4, layer_drop=0.0, frontend=FrontendSpec.beats(n_mels=32, window_s=0.5),
            ),
        ),
        "ast": (
            ASTConfig,
            dict(
                width=16, depth=1, n_heads=2, mlp_width=32,
                frontend=FrontendSpec.ast(n_mels=32, window_s=0.5, target_frames=0),
            ),
        ),
    }[name]  # fmt: skip
    return config_class(**{**fields, "strokes_per_second": per_second, **changes})


def features(config, batch=2, more=0):
    spec = config.frontend
    return jax.random.normal(jax.random.key(1), (batch, spec.n_mels, spec.n_frames(spec.window_samples) + more))


@functools.cache
def made(name, per_second=RATE):
    """`(config, params, stats)`."""
    config = tiny(name, per_second)
    return config, *models.init(name, config, seed=3)


@functools.cache
def outputs(name, per_second=RATE):
    """What the network gives for `features`."""
    config, params, stats = made(name, per_second)
    return jax.jit(models.apply_fn(name, config))(params, stats, features(config))[0]


def shapes(name, config, x):
    """Shapes and dtypes of the outputs; nothing is computed."""
    params, stats = models.abstract(name, config)
    return jax.eval_shape(lambda *args: models.apply_fn(name, config)(*args)[0], params, stats, x)


# ------------------------------------------------------------------------------------------------------ what they give


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_outputs(name, dtype):
    """Everything is float32, and the strokes are those of the window: half a second at 200."""
    config = tiny(name)
    found = shapes(name, config, features(config).astype(dtype))
    assert found.logits.shape == (2, 40)
    assert isinstance(found.strokes, FrameTargets)
    assert {stream.shape for stream in found.strokes} == {(2, 100)}
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", NAMES)
def test_every_output_is_finite(name):
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(outputs(name)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("window_s", [0.333, 0.5, 0.77, 1.003])
def test_as_many_frames_as_the_targets_of_the_window(name, window_s):
    """Whatever remainder of a hop or a patch the window leaves."""
    config = tiny(name).for_window(window_s, "fill")
    found = shapes(name, config, features(config))
    assert found.strokes.onset.shape == (2, count_frames(window_s, RATE))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("more", [-5, 30])
def test_other_lengths_than_the_window(name, more):
    """30 frames of 10 ms are 60 frames of the stream; of EfficientAT's 5 ms, 30."""
    config = tiny(name)
    found = shapes(name, config, features(config, more=more))
    assert found.strokes.onset.shape == (2, 100 + more * (1 if name == "efficientat" else 2))


def test_efficientat_reads_the_name_from_the_strokes():
    """Its embedding is the rhythm head's, its frames are the pyramid's: one a step of the stem, 10 ms."""
    config, params, stats = made("efficientat")
    found = outputs("efficientat")
    assert found.frames.shape == (2, 50, PYRAMID_WIDTH)
    silenced = {key: np.zeros_like(array) if key.startswith("strokes.") else array for key, array in params.items()}
    deaf = jax.jit(models.apply_fn("efficientat", config))(silenced, stats, features(config))[0]
    # Two clips of which nothing is heard; alike to rounding, since a CPU may add up one row in another order.
    np.testing.assert_allclose(deaf.logits[0], deaf.logits[1], atol=1e-5)
    assert np.abs(found.logits[0] - found.logits[1]).max() > 0.1


def test_efficientat_keeps_what_it_was_but_for_the_head():
    config = tiny("efficientat")
    assert len(models.module("efficientat", *made("efficientat")).stages(features(config))) == 16
    assert config.strokes_per_step == 2
    assert dataclasses.replace(config, strokes_per_second=100).strokes_per_step == 1


# ---------------------------------------------------------------------------------------------- plain networks, strokes


@pytest.mark.parametrize("name", NAMES)
def test_plain_networks_have_nothing_new(name):
    """Below the heads both have the same arrays, drawn alike; beside the plain head transformers have one more."""
    _, plain, plain_stats = made(name, 0)
    _, hears, hears_stats = made(name)
    assert not [path for path in plain if path.startswith(NEW)]
    kept = [path for path in plain if path in hears]
    assert {path for path in hears if path not in plain} == {path for path in hears if path.startswith(NEW)}
    lost = {path.split(".")[0] + "." for path in {**plain, **plain_stats} if path not in {**hears, **hears_stats}}
    assert lost == (set(REPLACED) if name == "efficientat" else set())
    for path in kept:
        np.testing.assert_array_equal(plain[path], hears[path], err_msg=path)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_name_what_they_named(name):
    """The strokes are beside the name, not before it."""
    plain, hears = outputs(name, 0), outputs(name)
    assert plain.strokes is None
    np.testing.assert_allclose(plain.logits, hears.logits, atol=1e-6)


# ------------------------------------------------------------------------------------------------------ where time lies


@pytest.mark.parametrize("per_step", [1, 2, 20])
def test_frame_k_of_a_step_lies_k_frames_after_its_beginning(per_step):
    """A head that adds its output's number to the frames that the step began at counts 0, 1, 2, ...; then silence."""
    head = StrokeHead(1, per_step, rngs=nnx.Rngs(0))
    head.linear.kernel[...] = jnp.ones_like(head.linear.kernel[...])
    head.linear.bias[...] = jnp.repeat(jnp.arange(per_step, dtype=jnp.float32), len(FrameTargets._fields))
    steps = 7
    begin = per_step * jnp.arange(steps, dtype=jnp.float32)[None, :, None]
    for stream in head(begin, steps * per_step + 3):
        np.testing.assert_array_equal(stream[0, :-3], np.arange(steps * per_step))
        np.testing.assert_array_equal(stream[0, -3:], 2 * RARE)
    for stream in head(begin, steps * per_step - 1):
        np.testing.assert_array_equal(stream[0], np.arange(steps * per_step - 1))


@pytest.mark.parametrize(("name", "step_s"), [("htsat", 0.08), ("beats", 0.16), ("ast", 0.1), ("efficientat", 0.01)])
def test_the_stream_is_the_steps_one_after_another(name, step_s):
    """Frame f is said by the step that begins at or before f / 200 s, by its own row of the layer."""
    config, params, _ = made(name)
    found, per_step = outputs(name), config.strokes_per_step
    assert per_step == round(step_s * RATE)
    kernel, bias = params["strokes.linear.kernel"], params["strokes.linear.bias"]
    for f in range(0, 100, 7):
        step, k = int(f / RATE / step_s + 1e-6), f - round(int(f / RATE / step_s + 1e-6) * step_s * RATE)
        heard = [stream[:, f] for stream in found.strokes]
        if step >= found.frames.shape[1]:
            assert np.all(np.array(heard) == 2 * RARE)
            continue
        columns = slice(4 * k, 4 * k + 4)
        expected = np.asarray(found.frames)[:, step] @ np.asarray(kernel)[:, columns] + np.asarray(bias)[columns]
        np.testing.assert_allclose(np.stack(heard, -1), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "window_s", "reached_s"), [("htsat", 5.0, 5.0), ("beats", 5.0, 4.96), ("ast", 5.0, 4.9), ("ast", 2.5, 2.4)]
)
def test_how_much_of_a_window_the_released_networks_reach(name, window_s, reached_s):
    """HTS-AT's image goes on beyond the window; of patches only whole ones count."""
    config = models.make_config(name, name).for_window(window_s, "fill")
    config = dataclasses.replace(config, strokes_per_second=RATE)
    found = shapes(name, config, features(config, 1))
    assert found.strokes.onset.shape == (1, window_s * RATE)
    reached = min(found.frames.shape[1] * config.strokes_per_step, window_s * RATE)
    assert reached == pytest.approx(reached_s * RATE)


def test_a_step_of_a_coarse_map_covers_its_own_fine_ones():
    """Step 3 of a map at a quarter of the rate: frames 12 to 15; what lies beyond the finest map is cut."""
    pyramid = Pyramid([(4, 2), (2, 3), (1, 2)], [1, 2, 4], rngs=nnx.Rngs(0))
    pyramid.blocks = nnx.List([])
    maps = [jnp.zeros((1, 4, 15, 2)), jnp.zeros((1, 2, 8, 3)), jnp.zeros((1, 1, 4, 2))]
    quiet = pyramid(maps)
    for level, step, expected in ((0, 3, [3]), (1, 3, [6, 7]), (2, 2, [8, 9, 10, 11]), (2, 3, [12, 13, 14])):
        changed = pyramid([x.at[:, :, step].set(1.0) if i == level else x for i, x in enumerate(maps)])
        assert np.flatnonzero(np.abs(changed - quiet).sum((0, 2))).tolist() == expected


def test_coarse_maps_follow_the_strides():
    """A network that keeps the resolution at its last stride repeats that map less often."""
    repeats = {
        strides: models.module("efficientat", config, *models.abstract("efficientat", config)).pyramid.repeats
        for strides in ((2, 2, 2, 2), (2, 2, 1, 1))
        for config in [tiny("efficientat", strides=strides)]
    }
    assert repeats == {(2, 2, 2, 2): (1, 2, 4, 8, 16), (2, 2, 1, 1): (1, 2, 4, 4, 4)}


# ------------------------------------------------------------------------------------------------------- finer in time


def test_ast_with_a_finer_stride():
    """From the same parameters: 97 steps of 50 ms instead of 49 of 100 ms."""
    config = common.base("ast", "ast", "scratch")
    config.model.head = "strokes"
    coarse = start.network(config)
    config.model.settings.time_stride = 5
    fine = start.network(config)
    assert (coarse.strokes_per_step, fine.strokes_per_step) == (20, 10)
    steps = [shapes("ast", network, features(network, 1)).frames.shape[1] for network in (coarse, fine)]
    assert steps == [49, 97]
    assert _shapes_below_strokes("ast", fine) == _shapes_below_strokes("ast", coarse)


def _shapes_below_strokes(name, config):
    params, _ = models.abstract(name, config)
    return {path: array.shape for path, array in params.items() if not path.startswith("strokes.")}


def test_beats_with_a_finer_stride():
    """The released parameters fit; twice the steps less one, of which every other is the released one's patch."""
    config, params, _ = made("beats", 0)
    x = features(config)
    fine = dataclasses.replace(config, time_stride=8)
    assert _shapes_below_strokes("beats", fine) == {path: array.shape for path, array in params.items()}
    coarse_patches, fine_patches = (
        jax.jit(models.module("beats", network, params, {}).patch_embed)(x).reshape(2, -1, 2, 16)
        for network in (config, fine)
    )
    assert (coarse_patches.shape[1], fine_patches.shape[1]) == (3, 5)
    np.testing.assert_allclose(fine_patches[:, ::2], coarse_patches, atol=1e-5)
    assert shapes("beats", tiny("beats", time_stride=4), x).frames.shape == (2, 9, 32)
    assert tiny("beats", time_stride=4).strokes_per_step == 8


def test_beats_as_released_has_a_stride_of_a_patch():
    """To write it out changes no bit."""
    config, params, stats = made("beats", 0)
    written = jax.jit(models.apply_fn("beats", dataclasses.replace(config, time_stride=16)))
    for a, b in zip(written(params, stats, features(config))[0][:3], outputs("beats", 0)[:3], strict=True):
        np.testing.assert_array_equal(a, b)


def test_beats_knows_no_padding_of_patches_that_overlap():
    config, params, stats = made("beats", 0)
    network = models.module("beats", dataclasses.replace(config, time_stride=8), params, stats)
    with pytest.raises(InputError, match=r"^padding does not go with time_stride 8: patches overlap$"):
        network(features(config), padding=jnp.zeros((2, 48), bool))


# -------------------------------------------------------------------------------------------------------------- refusal


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("efficientat", {"strokes_per_second": 150}, r"150: a step of 10 ms must hold .* choose a multiple of 100"),
        ("efficientat", {"strokes_per_second": -100}, r"strokes_per_second is -100: .* a multiple of 100"),
        ("htsat", {"strokes_per_second": 30}, r"30: a step of 80 ms must hold .* choose a multiple of 25"),
        ("htsat", {"length": "stretch"}, r"strokes are heard with length 'fill' only, 'stretch' moves them in time"),
        ("htsat", {"length": "repeat"}, r"strokes are heard with length 'fill' only, 'repeat' moves"),
        ("beats", {"strokes_per_second": 30}, r"30: a step of 160 ms must hold .* choose a multiple of 25"),
        ("beats", {"time_stride": 17}, r"time_stride is 17, expected at most patch_size = 16"),
        ("beats", {"time_stride": -1}, r"time_stride is -1, expected at least 0"),
        ("ast", {"strokes_per_second": 25}, r"25: a step of 100 ms must hold .* choose a multiple of 10"),
        ("ast", {"time_stride": 3}, r"200 .*|200: a step of 30 ms"),
    ],
)
def test_what_cannot_be_heard_is_refused(name, changes, message):
    if (name, changes) == ("ast", {"time_stride": 3}):
        tiny(name, **changes)  # 30 ms are six frames
        return
    with pytest.raises(InputError, match=message) as error:
        tiny(name, **changes)
    assert "\n" not in str(error.value)


def test_a_window_for_the_official_length_of_htsat_is_refused():
    with pytest.raises(InputError, match=r"strokes are heard with length 'fill' only"):
        tiny("htsat").for_window(0.5, "official")


def test_the_rhythm_head_has_its_own_demand():
    config = tiny("efficientat", 225, frontend=FrontendSpec(n_mels=32, hop_length=640, window_s=0.5))
    with pytest.raises(InputError, match=r"a rhythm head needs a multiple of 50 frames a second, not 225"):
        models.abstract("efficientat", config)


@pytest.mark.parametrize("name", NAMES)
def test_config_survives_json(name):
    changes = {"time_stride": 8} if name in ("beats", "ast") else {}
    config = tiny(name, **changes)
    stored = json.loads(json.dumps(models.config_to_json(name, config)))
    assert models.config_from_json(stored) == (name, config)


def test_step_arithmetic():
    """The window's own count for as many frames as it has, a hop's worth for each more; 0 of no stream."""
    spec = FrontendSpec.beats(window_s=5.0)  # 498 frames
    assert stream_frames_per_step(spec, 16, 0) == 0
    assert stream_frames_per_step(spec, 16, 25) == 4
    assert [stream_frames(spec, n, 200) for n in (497, 498, 508)] == [998, 1000, 1020]
    with pytest.raises(InputError, match=r"a window of 0\.0\d* s has no frame then|has no frame then"):
        stream_frames(spec, 0, 20)


# ------------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("name", NAMES)
def test_the_strokes_teach_the_early_backbone(name):
    """Their loss reaches the first layer and, in transformers, not the plain head; the name's goes through the strokes
    of EfficientAT and past those of the others."""
    config, params, stats = made(name)
    apply, x = models.apply_fn(name, config), features(config)
    struck = FrameTargets(*(jnp.zeros((2, 100)).at[:, ::20].set(value) for value in (1.0, 0.7, 0.0, 0.1)))

    def losses(params):
        found = apply(params, stats, x)[0]
        return jnp.stack([stroke_loss(found.strokes, struck), class_loss(found.logits, jnp.eye(40)[:2])])

    found = jax.jit(jax.jacrev(losses))(params)
    size = {path: np.abs(grad).reshape(2, -1).max(1) for path, grad in found.items()}
    first = "stem.kernel" if name == "efficientat" else "patch_embed.kernel"
    assert size[first].min() > 0
    assert size["strokes.linear.kernel"][0] > 0
    if name == "efficientat":
        assert size["strokes.linear.kernel"][1] > 0
        assert size["rhythm.output.kernel"].tolist()[0] == 0
        assert [path for path in params if size[path].max() == 0] == []
    else:
        assert size["strokes.linear.kernel"][1] == 0
        assert max(size[path][0] for path in params if path.startswith("head.")) == 0


@pytest.mark.parametrize("name", NAMES)
def test_lora_trains_adapters_and_heads(name):
    """By the default of `config.train.head`, which for plain networks means what it meant."""
    config = common.experiment(name, "lora", "smoke")
    tops = {}
    for head in ("plain", "strokes"):
        config.model.head = head
        network = start.network(config)
        params, _ = models.abstract(name, network, adapters=strategies.adapters(config))
        trained, frozen = strategies.split("lora", config.train.head, params)
        tops[head] = {path.split(".")[0] for path in trained}
        assert not [path for path in frozen if path.startswith(NEW)]
    blocks = "stages" if name == "htsat" else "blocks"
    assert tops["plain"] == {blocks, "head"}
    assert tops["strokes"] == {
        blocks,
        *(("pyramid", "strokes", "rhythm") if name == "efficientat" else ("head", "strokes")),
    }


def _struck(config, batch):
    """Clicks of noise at random times, as `(waveform, FrameTargets)`."""
    rng, spec = np.random.default_rng(0), config.frontend
    waveform = 1e-3 * rng.standard_normal((batch, spec.window_samples))
    targets = []
    for sound in waveform:
        time_s, velocity = np.sort(rng.uniform(0.02, 0.95 * spec.window_s, 6)), rng.integers(30, 128, 6)
        for at, hardness in zip(time_s, velocity, strict=True):
            tail = sound[round(at * spec.sample_rate) :][:800]
            tail += (hardness / 127) ** 2 * rng.standard_normal(len(tail)) * np.exp(-np.arange(len(tail)) / 200)
        no = np.zeros(6, bool)
        strokes = (time_s.astype(np.float32), velocity.astype(np.float32), no, no)
        targets.append(place_on_frames(*strokes, count_frames(spec.window_s, RATE), RATE))
    return jnp.asarray(waveform, jnp.float32), jax.tree.map(lambda *rows: jnp.stack(rows), *targets)


def test_efficientat_learns_the_strokes_of_a_batch():
    config, params, stats = made("efficientat")
    waveform, targets = _struck(config, 4)
    x = spectrogram(waveform, config.frontend)
    apply, optimizer = models.apply_fn("efficientat", config), optax.adam(5e-3)

    def loss_fn(params, stats):
        found, stats = apply(params, stats, x, train=True)
        return stroke_loss(found.strokes, targets), stats

    @jax.jit
    def step(params, stats, state):
        (loss, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, stats)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), stats, state, loss

    state, losses = optimizer.init(params), []
    for _ in range(40):
        params, stats, state, loss = step(params, stats, state)
        losses.append(float(loss))
    assert losses[-1] < losses[0] / 3
