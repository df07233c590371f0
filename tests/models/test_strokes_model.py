"""The network that hears strokes: what it gives, what moves with time, what a recording's level does not change."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sousa_jax import models
from sousa_jax.data.frame_targets import count_frames
from sousa_jax.errors import InputError
from sousa_jax.frontends import FrontendSpec, spectrogram
from sousa_jax.models.strokes import FRONTEND, STEP, StrokesConfig

N_MELS = FRONTEND.n_mels
TINY = StrokesConfig(width=16, dilations=(1, 2), rhythm_widths=(8, 12))
REACH = (
    STEP * (2 * sum(TINY.dilations) + 1) + 1
)  # frames to either side that a frame hears; the first convolution's too


@functools.cache
def tiny():
    """A small network, jitted: `logits and all = tiny()(features)`."""
    params, stats = models.init("strokes", TINY, 3)
    apply = models.apply_fn("strokes", TINY)
    return jax.jit(lambda x: apply(params, stats, x)[0])


def clicks(seconds, rate=16_000, seed=0):
    """Bursts of noise on a room's hum, in about [-1, 1]."""
    rng = np.random.default_rng(seed)
    wave = 0.01 * rng.normal(size=round(seconds * rate))
    for at in np.cumsum(rng.uniform(0.08, 0.3, 40)):
        start = round(at * rate)
        if start < len(wave):
            tail = wave[start : start + 2000]
            tail += rng.uniform(0.1, 0.6) * rng.normal(size=len(tail)) * np.exp(-np.arange(len(tail)) / 300)
    return jnp.asarray(wave, jnp.float32)[None]


def stacked(strokes):
    """`(4, B, T)`."""
    return np.stack(strokes)


def test_outputs():
    """Strokes each 5 ms, as many as the spectrogram has; features at half the rate."""
    features = spectrogram(clicks(1.0), FRONTEND)
    assert features.shape == (1, N_MELS, 200)
    found = tiny()(features)
    assert found.logits.shape == (1, 40)
    assert found.embedding.shape == (1, 36)
    assert found.frames.shape == (1, 100, 16)
    assert stacked(found.strokes).shape == (4, 1, 200)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype("float32")}


def test_the_default_network_is_small():
    """What a phone must hold, and what of it names the rhythm."""
    config = models.make_config("strokes", "strokes")
    params, stats = models.abstract("strokes", config)
    sizes = {True: 0, False: 0}
    for path, array in params.items():
        sizes[path.startswith("rhythm.")] += array.size
    assert stats == {}
    assert sizes == {False: 545_992, True: 306_920}
    assert config.strokes_per_second == 200


def test_the_default_network_runs_at_once():
    config = StrokesConfig()
    apply, params = models.apply_fn("strokes", config), models.abstract("strokes", config)[0]
    found, _ = jax.eval_shape(apply, params, {}, jax.ShapeDtypeStruct((2, N_MELS, 1000), jnp.float32))
    assert found.strokes.onset.shape == (2, 1000)
    assert found.logits.shape == (2, 40)


@pytest.mark.parametrize(("factor", "most"), [(3.0, 0.1), (0.3, 0.35)])
def test_the_level_of_a_recording_changes_little(factor, most):
    """10 dB louder and 10 dB softer than clicks of about 0.3 on noise of 0.01: stroke logits move by 0.07 and 0.27 of
    their spread. It is the floor of the logarithm that is left: 20 dB softer they move by 0.7 of it."""
    wave = clicks(1.0)
    one, other = (tiny()(spectrogram(w, FRONTEND)) for w in (wave, factor * wave))
    spread = stacked(one.strokes).std(axis=(1, 2))
    off = np.abs(stacked(one.strokes) - stacked(other.strokes)).mean(axis=(1, 2))
    assert (off < most * spread).all()
    assert np.abs(one.logits - other.logits).max() < most * np.abs(one.logits).max()


def test_an_offset_of_the_spectrogram_is_taken_out():
    """Gain is one in a log-mel spectrogram, but for its floor."""
    features = spectrogram(clicks(1.0), FRONTEND)
    one, other = tiny()(features), tiny()(features + 0.7)
    np.testing.assert_allclose(stacked(one.strokes), stacked(other.strokes), atol=1e-4)
    np.testing.assert_allclose(one.logits, other.logits, atol=1e-4)


def test_strokes_move_with_the_sound():
    """Rolled by 38 frames: so is the stroke stream away from the seam, to a thirtieth of its spread. The mean over the
    window is another one, as other frames stand beside the zeros at its ends. By whole steps: within one, frames have
    weights of their own."""
    features = spectrogram(clicks(1.0), FRONTEND)
    here = stacked(tiny()(features).strokes)
    later = stacked(tiny()(jnp.roll(features, 38, axis=2)).strokes)
    inside = slice(REACH, 200 - 38 - REACH)
    np.testing.assert_allclose(np.roll(later, -38, axis=2)[..., inside], here[..., inside], atol=0.015)
    assert here[..., inside].std(axis=2).min() > 0.15


def test_a_frame_hears_its_neighbours_and_the_room():
    """What changes in one frame reaches its surroundings directly, all others only by the mean over the window."""
    features = spectrogram(clicks(1.0), FRONTEND)
    changed = np.abs(stacked(tiny()(features.at[:, :, 100].add(1.0)).strokes) - stacked(tiny()(features).strokes))
    changed = changed.max(axis=(0, 1))
    near = np.abs(np.arange(200) - 100) <= REACH
    assert changed[near].max() > 10 * changed[~near].max()
    assert changed[~near].max() > 0


@pytest.mark.parametrize("n_frames", [1, 7, 200, 333])
def test_any_number_of_frames(n_frames):
    x = jax.ShapeDtypeStruct((1, N_MELS, n_frames), jnp.float32)
    found = jax.eval_shape(tiny(), x)
    assert found.strokes.onset.shape == (1, n_frames)
    assert found.logits.shape == (1, 40)


@pytest.mark.parametrize("window_s", [0.5, 0.502, 2.5, 3.3333])
def test_the_stream_of_a_window_has_the_frames_of_its_targets(window_s):
    """Or the loss could not compare them."""
    config = StrokesConfig().for_window(window_s, "fill")
    spec = config.frontend
    wave = jax.ShapeDtypeStruct((1, spec.window_samples), jnp.float32)
    apply, params = models.apply_fn("strokes", config), models.abstract("strokes", config)[0]
    found = jax.eval_shape(lambda params, wave: apply(params, {}, spectrogram(wave, spec))[0], params, wave)
    assert found.strokes.onset.shape == (1, count_frames(window_s, config.strokes_per_second))


def test_silence_and_sixteen_bits_are_finite():
    """bfloat16 features, as `config.train.compute_dtype` gives them: float32 comes out, close to what it would be."""
    features = jnp.concatenate([spectrogram(clicks(1.0), FRONTEND), jnp.full((1, N_MELS, 200), -1.4)])
    exact, rounded = tiny()(features), tiny()(features.astype(jnp.bfloat16))
    for one, other in zip(jax.tree.leaves(exact), jax.tree.leaves(rounded), strict=True):
        assert other.dtype == np.float32
        assert np.isfinite(other).all()
        assert np.abs(one - other).mean() < 0.05 * np.abs(one).mean()


def test_training_and_dropout_keys_change_nothing():
    params, stats = models.init("strokes", TINY, 3)
    features = spectrogram(clicks(1.0), FRONTEND)
    trained, moved = jax.jit(functools.partial(models.apply_fn("strokes", TINY), train=True))(
        params, stats, features, rng=jax.random.key(0)
    )
    np.testing.assert_allclose(trained.logits, tiny()(features).logits, atol=1e-6)
    assert moved == stats


def test_it_starts_out_nearly_silent():
    """Of an untrained network hardly one frame in twenty sounds like a stroke."""
    onset = jax.nn.sigmoid(tiny()(spectrogram(clicks(1.0), FRONTEND)).strokes.onset)
    assert float(onset.mean()) < 0.15


def test_the_name_s_loss_reaches_the_ear():
    """Through the soft stream: every array of the network learns from a loss of the logits alone."""
    params, stats = models.init("strokes", TINY, 3)
    features = spectrogram(clicks(1.0), FRONTEND)
    apply = models.apply_fn("strokes", TINY)
    gradient = jax.jit(jax.grad(lambda p: apply(p, stats, features)[0].logits[0, 5]))(params)
    assert {path.split(".")[0] for path in gradient} == {"ear", "strokes", "rhythm"}
    assert not [path for path, g in gradient.items() if not np.isfinite(g).all()]
    assert not [path for path, g in gradient.items() if not np.abs(g).max() > 0]


def test_the_rhythm_head_alone_names_what_the_whole_network_names():
    """`models.rhythm_fn` on what the network heard: the same logits, from the rhythm head's own arrays."""
    params, _ = models.init("strokes", TINY, 3)
    whole = tiny()(spectrogram(clicks(1.0), FRONTEND))
    heard = type(whole.strokes)(*map(jax.nn.sigmoid, whole.strokes))
    of_head = {path: array for path, array in params.items() if path.startswith("rhythm.")}
    found = jax.jit(models.rhythm_fn("strokes", TINY))(of_head, heard)
    np.testing.assert_allclose(found, whole.logits, atol=1e-5)


def test_a_network_without_a_rhythm_head_has_no_rhythm():
    with pytest.raises(InputError, match=r"^ast has no rhythm head; config\.strokes\.stage='rhythm' needs one$"):
        models.rhythm_fn("ast", models.make_config("ast", "ast", width=16, depth=1, n_heads=2, mlp_width=32))


# -------------------------------------------------------------------------------------------------------------- config


def test_config_survives_json():
    config = StrokesConfig(width=8, dilations=(3, 1), rhythm_widths=(8, 12), frontend=FrontendSpec(window_s=2.0))
    stored = json.loads(json.dumps(models.config_to_json("strokes", config)))
    again = models.config_from_json(stored)
    older = {**stored, "config": {**stored["config"], "reach": 4}}
    with pytest.raises(InputError, match="has the setting 'reach', which none of this version has"):
        models.config_from_json(older)
    assert again == ("strokes", config)
    assert hash(again[1]) == hash(config)


def test_a_window_changes_nothing_but_its_length():
    config = StrokesConfig().for_window(2.5, "official")
    assert config == StrokesConfig(frontend=dataclasses.replace(FRONTEND, window_s=2.5))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: StrokesConfig.preset("strok"), r"unknown variant 'strok' of strokes; nearest: .*strokes"),
        (lambda: models.make_config("strokes", "strokes", widht=3), r"has no setting 'widht'; nearest: .*width"),
        (lambda: StrokesConfig(frontend=dataclasses.replace(FRONTEND, n_mels=60)), r"^60 mel bands are not a multiple"),
        (lambda: StrokesConfig(frontend=dataclasses.replace(FRONTEND, hop_length=81)), r"a hop of 81 samples does not"),
        (
            lambda: models.abstract("strokes", StrokesConfig(frontend=dataclasses.replace(FRONTEND, hop_length=128))),
            r"needs a multiple of 50 frames a second, not 125",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(call, message):
    with pytest.raises(InputError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
