"""The frontend against independent references; exactness against the official one is in tests/ports."""

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest

from sousa_jax.frontends import FrontendSpec, spectrogram

SPEC = FrontendSpec()


def _reference(wave: np.ndarray, spec: FrontendSpec) -> np.ndarray:
    """The same definition in float64, with librosa's STFT and the mel triangles written out one by one."""
    y = wave[1:].astype(np.float64) - 0.97 * wave[:-1]
    stft = librosa.stft(
        y, n_fft=spec.n_fft, hop_length=spec.hop_length, win_length=spec.win_length,
        window=np.hanning(spec.win_length), center=True, pad_mode="reflect",
    )  # fmt: skip
    power = np.abs(stft[:-1]) ** 2
    mel = lambda f: 1127 * np.log(1 + f / 700)  # noqa: E731
    edges = np.linspace(mel(spec.fmin_hz), mel(spec.fmax_hz), spec.n_mels + 2)
    bins = mel(np.arange(spec.n_fft // 2) * spec.sample_rate / spec.n_fft)
    bank = np.stack([np.interp(bins, edges[i : i + 3], [0, 1, 0], left=0, right=0) for i in range(spec.n_mels)])
    return (np.log(bank @ power + spec.log_offset) - spec.mean) / spec.std


@pytest.mark.parametrize("hop_ms", [5, 10, 15, 20, 25])
@pytest.mark.parametrize("n_mels", [40, 128])
def test_equals_a_float64_reference(hop_ms, n_mels):
    spec = FrontendSpec(hop_length=32 * hop_ms, n_mels=n_mels)
    wave = np.random.default_rng(0).normal(0, 0.2, (2, 32_001)).astype(np.float32)
    ours = np.asarray(spectrogram(jnp.asarray(wave), spec))
    reference = np.stack([_reference(w, spec) for w in wave])
    assert ours.shape == reference.shape == (2, n_mels, spec.n_frames(wave.shape[1]))
    np.testing.assert_allclose(ours, reference, atol=2e-4)


def test_silence_is_finite_and_lowest():
    x = spectrogram(jnp.zeros((1, 16_000)), SPEC)
    assert jnp.allclose(x, (np.log(1e-5) + 4.5) / 5.0)


def test_training_edges_vary_and_stay_near_evaluation():
    wave = jax.random.normal(jax.random.key(0), (1, 32_000)) * 0.1
    still = spectrogram(wave, SPEC)
    a, b = (spectrogram(wave, SPEC, rng=jax.random.key(seed)) for seed in (1, 2))
    assert not jnp.array_equal(a, b)
    assert jnp.array_equal(a, spectrogram(wave, SPEC, rng=jax.random.key(1)))
    assert jnp.abs(a - still).mean() < 0.2


def test_no_jitter_is_the_evaluation_bank():
    spec = FrontendSpec(fmin_jitter_hz=1, fmax_jitter_hz=1)
    wave = jax.random.normal(jax.random.key(0), (1, 8_000)) * 0.1
    np.testing.assert_allclose(spectrogram(wave, spec, rng=jax.random.key(3)), spectrogram(wave, spec), atol=2e-4)


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="unknown frontend"):
        spectrogram(jnp.zeros((1, 8_000)), FrontendSpec(kind="mfcc"))
