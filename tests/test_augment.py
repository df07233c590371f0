"""Each augmentation does what its name says and nothing to what it should leave alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sousa_jax import augment
from sousa_jax.frontends import FrontendSpec, spectrogram

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (8, 16, 50))


def test_tempo_stretch_moves_an_onset_in_time_only():
    clicks = jnp.zeros((64, 4, 200)).at[:, 2, 100].set(1.0)
    out = np.asarray(augment.tempo_stretch(KEY, clicks, 0.1))
    assert (out[:, [0, 1, 3]] == 0).all()
    place = out[:, 2].argmax(1)
    assert place.min() >= 90
    assert place.max() <= 112  # 100 / 0.9
    assert len(np.unique(place)) > 10


def test_tempo_stretch_of_zero_is_the_identity():
    np.testing.assert_allclose(augment.tempo_stretch(KEY, X, 0.0), X, atol=1e-6)


def test_gain_equals_a_louder_waveform():
    """An offset of the log-mel is what a gain of the waveform does, but for the floor under the logarithm."""
    spec = FrontendSpec()
    wave = jax.random.normal(KEY, (1, 16_000)) * 0.3
    plain = spectrogram(wave, spec)
    shift = augment.gain(jax.random.key(5), plain, 6.0, spec) - plain
    db = float(shift[0, 0, 0] * spec.std * 10 / np.log(10))
    assert abs(db) <= 6
    assert float(jnp.ptp(shift)) < 1e-5
    louder = spectrogram(wave * 10 ** (db / 20), spec)
    well_above = plain > 0  # far from the 1e-5 that is added to the power
    np.testing.assert_allclose((plain + shift)[well_above], louder[well_above], atol=1e-4)


@pytest.mark.parametrize("axis", [1, 2])
def test_masks_cover_whole_stripes_of_bounded_width(axis):
    out = np.asarray(augment.mask(KEY, jnp.ones((200, 16, 50)), axis, 2, 5, FrontendSpec()))
    other = 3 - axis
    assert (out.min(other) == out.max(other)).all()  # a stripe goes through the whole other axis
    covered = (out.max(other) == 0).sum(1)
    assert covered.max() <= 10
    assert covered.max() > 5
    assert covered.min() == 0


def test_masks_in_decibels_are_as_loud_as_the_clip():
    """Zero decibels would be the loudest thing in a spectrogram of HTS-AT's."""
    decibels = jnp.stack([jnp.full((16, 50), -40.0), jnp.full((16, 50), -60.0).at[3, 7].set(-10.0)])
    out = np.asarray(augment.mask(KEY, decibels, 2, 2, 20, FrontendSpec.htsat()))
    assert (out[0] == -40).all()
    covered = (out[1] != decibels[1]).all(0)
    assert covered.any()
    np.testing.assert_allclose(out[1][:, covered], decibels[1].mean(), rtol=1e-6)
    assert [spec.normalized for spec in (FrontendSpec(), FrontendSpec.ast(), FrontendSpec.beats())] == [True] * 3


def test_mixup_mixes_inputs_and_targets_alike():
    targets = jax.nn.one_hot(jnp.arange(8), 8)
    inputs = jnp.broadcast_to(targets[:, :, None], (8, 8, 5))
    mixed, mixed_targets = augment.mixup(KEY, inputs, targets, alpha=0.5)
    np.testing.assert_allclose(mixed[:, :, 0], mixed_targets, atol=1e-6)
    np.testing.assert_allclose(mixed_targets.sum(1), 1.0, rtol=1e-5)
    assert (mixed_targets.argmax(1) == jnp.arange(8)).all()  # the clip itself keeps the larger share
