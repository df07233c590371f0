"""The frontend in the graph is the one that the networks were trained with."""

import jax
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.mel import LogMel
from ports import synthetic
from sousa_jax.errors import InputError
from sousa_jax.frontends import FrontendSpec, spectrogram
from sousa_jax.models.strokes import FRONTEND

SPECS = {
    "efficientat": FrontendSpec(window_s=0.7),
    "hop_5": FrontendSpec(window_s=0.7, hop_length=160, n_mels=64),
    "hop_15": FrontendSpec(window_s=0.7, hop_length=480),
    "strokes": FrontendSpec(**{**vars(FRONTEND), "window_s": 0.7}),
}
FLAX = {name: jax.jit(lambda x, spec=spec: spectrogram(x, spec)) for name, spec in SPECS.items()}


def difference(name, waveform):
    twin = LogMel(SPECS[name])(torch.from_numpy(waveform))
    flax = np.asarray(FLAX[name](waveform[None]))
    assert tuple(twin.shape) == (1, *flax.shape)
    return np.abs(twin[0].numpy() - flax).max()


@pytest.mark.parametrize("name", SPECS)
def test_equals_flax(name):
    spec = SPECS[name]
    for waveform in synthetic.test_batch(0, spec.sample_rate, spec.window_samples, 2):
        assert difference(name, waveform) < 1e-3


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999), st.floats(-120, 12), st.integers(0, 22_400))
def test_any_loudness(seed, level_db, silent_from):
    """From below the floor of the logarithm to clipping, and digital silence."""
    waveform = np.float32(np.random.default_rng(seed).standard_normal(22_400) * 10 ** (level_db / 20))
    waveform[silent_from:] = 0
    assert difference("efficientat", waveform) < 2e-3


def test_bins_that_no_band_reads_are_left_out():
    """15 kHz of 16: the constants end with the bank."""
    mel = LogMel(SPECS["efficientat"])
    assert mel.even_cosines.shape == mel.odd_sines.shape == (256, 240)
    assert mel.even_bank.shape == mel.odd_bank.shape == (128, 240)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (FrontendSpec.beats(), "kind 'kaldi'"),
        (FrontendSpec.htsat(), "kind 'torchlibrosa'"),
        (FrontendSpec(window="periodic_hann"), "window 'periodic_hann'"),
        (FrontendSpec(target_frames=100), "target_frames 100"),
        (FrontendSpec(win_length=801), "801 samples"),
        (FrontendSpec(n_fft=1022), "n_fft 1022"),
    ],
)
def test_other_frontends_are_refused(spec, message):
    with pytest.raises(InputError, match=message):
        LogMel(spec)
