"""The frontends against the official ones' stored output, and against independent references."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ports import synthetic
from sousa_jax.errors import InputError
from sousa_jax.frontends import FrontendSpec, spectrogram

SPEC = FrontendSpec()
SPECS = {
    "efficientat": SPEC, "htsat": FrontendSpec.htsat(), "beats": FrontendSpec.beats(), "ast": FrontendSpec.ast(),
}  # fmt: skip
# Fractions of the spread between the two clips. What counts is that all but a few near-silent bins agree: there
# the official float32 output is itself up to 1.7e-3 (BEATs) from the same definition in float64.
TOLERANCE, TOLERANCE_MAX, TOLERANCE_MEAN = 5e-4, 3e-3, 5e-6


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


def _official_spec(model: str, key: str, n_frames: int) -> FrontendSpec:
    """The frontend of one stored array: AST's come raw, padded to a length, or without the mean's removal."""
    if model != "ast":
        return SPECS[model]
    if key.endswith("/fbank"):
        return FrontendSpec.ast(target_frames=0, mean=0.0, std=1.0)
    return FrontendSpec.ast(target_frames=n_frames, remove_mean=not key.startswith("hf/"))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("model", SPECS)
def test_equals_the_official_output(parity, model, seed):
    apply = jax.jit(spectrogram, static_argnums=1)
    with np.load(parity / model / f"golden_seed{seed}.npz") as file:
        meta = json.loads(str(file["meta"]))
        stored = {key: file[key] for key in file.files if re.search(r"/(fbank|frontend)$", key)}
    assert len(stored) >= 4
    for key, values in stored.items():
        array, run = meta["arrays"][key], re.search(r"(\d+(?:p\d)?)s", key)[1]
        axis = 2 if model == "efficientat" else 1
        spec = _official_spec(model, key, array["shape"][axis])
        assert spec.sample_rate == meta["sample_rate"]
        n_samples = round(float(run.replace("p", ".")) * spec.sample_rate)
        ours = np.asarray(apply(synthetic.test_batch(seed, spec.sample_rate, n_samples, batch=2), spec))
        assert ours.shape[2] == spec.n_frames(n_samples)
        ours = ours if axis == 2 else ours.swapaxes(1, 2)
        assert list(ours.shape) == array["shape"], key
        values = values.reshape(2, -1).astype(np.float64)
        error = np.abs(ours.reshape(2, -1)[:, :: array["stride"]] - values) / np.std(values[0] - values[1])
        assert error.mean() < TOLERANCE_MEAN, key
        assert (error > TOLERANCE).mean() < 5e-4, key
        assert error.max() < TOLERANCE_MAX, key


@pytest.mark.parametrize(
    "changes", [{}, {"n_mels": 40, "fmin_hz": 0.0, "fmax_hz": 16_000.0}, {"hop_length": 160, "win_length": 800}]
)
def test_torchlibrosa_equals_librosa(changes):
    spec = FrontendSpec.htsat(**changes)
    wave = np.random.default_rng(0).normal(0, 0.2, (2, 16_001)).astype(np.float32)
    power = librosa.feature.melspectrogram(
        y=wave.astype(np.float64), sr=spec.sample_rate, n_fft=spec.n_fft, hop_length=spec.hop_length,
        win_length=spec.win_length, window="hann", center=True, pad_mode="reflect", power=2.0,
        n_mels=spec.n_mels, fmin=spec.fmin_hz, fmax=spec.fmax_hz,
    )  # fmt: skip
    reference = librosa.power_to_db(power, ref=1.0, amin=1e-10, top_db=None)
    ours = np.asarray(spectrogram(jnp.asarray(wave), spec))
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, reference, atol=2e-3)


def _kaldi_reference(wave: np.ndarray, spec: FrontendSpec, window: np.ndarray) -> np.ndarray:
    """Kaldi's filter bank written out frame by frame in float64, `(n_mels, n_frames)`."""
    mel = lambda f: 1127 * np.log(1 + f / 700)  # noqa: E731
    edges = np.linspace(mel(spec.fmin_hz), mel(spec.fmax_hz), spec.n_mels + 2)
    bins = mel(np.arange(257) * 16_000 / 512)
    bank = np.stack([np.interp(bins, edges[i : i + 3], [0, 1, 0], left=0, right=0) for i in range(spec.n_mels)])
    columns = []
    for start in range(0, len(wave) - 400 + 1, 160):
        frame = wave[start : start + 400] - wave[start : start + 400].mean()
        frame = np.concatenate([[frame[0] - 0.97 * frame[0]], frame[1:] - 0.97 * frame[:-1]])
        power = np.abs(np.fft.rfft(frame * window, 512)) ** 2
        columns.append(np.log(np.maximum(bank @ power, 2.0**-23)))
    return np.stack(columns, axis=1)


@pytest.mark.parametrize("n_mels", [80, 128])
def test_kaldi_equals_a_float64_reference(n_mels):
    wave = np.random.default_rng(0).normal(0.05, 0.2, (2, 16_123)).astype(np.float32)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)

    beats = FrontendSpec.beats(n_mels=n_mels)
    reference = np.stack([_kaldi_reference(w * 2.0**15, beats, hann**0.85) for w in wave.astype(np.float64)])
    ours = spectrogram(jnp.asarray(wave), beats)
    np.testing.assert_allclose(ours, (reference - 15.41663) / (2 * 6.55582), atol=2e-4)

    ast = FrontendSpec.ast(n_mels=n_mels, target_frames=0)
    reference = np.stack([_kaldi_reference(w - w.mean(), ast, hann) for w in wave.astype(np.float64)])
    ours = spectrogram(jnp.asarray(wave), ast)
    np.testing.assert_allclose(ours, (reference + 4.2677393) / (2 * 4.5689974), atol=2e-4)


def test_target_frames_pad_before_the_normalization_and_cut_the_end():
    wave = jax.random.normal(jax.random.key(0), (2, 8_000)) * 0.1  # 48 frames
    raw, padded, cut = (spectrogram(wave, FrontendSpec.ast(target_frames=frames)) for frames in (0, 64, 20))
    assert (raw.shape, padded.shape, cut.shape) == ((2, 128, 48), (2, 128, 64), (2, 128, 20))
    np.testing.assert_allclose(padded[..., :48], raw, atol=1e-6)
    np.testing.assert_allclose(padded[..., 48:], 0.46703, atol=1e-5)
    np.testing.assert_allclose(cut, raw[..., :20], atol=1e-6)


@given(
    n_samples=st.integers(513, 60_000),
    hop=st.sampled_from([80, 160, 320]),
    preset=st.sampled_from([FrontendSpec, FrontendSpec.htsat, FrontendSpec.beats, FrontendSpec.ast]),
    target=st.sampled_from([0, 37]),
)
@settings(deadline=None)
def test_n_frames_is_the_spectrogram_s_length(n_samples, hop, preset, target):
    spec = preset(hop_length=hop, target_frames=target)
    shape = jax.eval_shape(lambda wave: spectrogram(wave, spec), jnp.zeros((3, n_samples))).shape
    assert shape == (3, spec.n_mels, spec.n_frames(n_samples))
    if spec.kind == "kaldi" and not target:  # every whole frame, and no sample beyond the clip
        end = (shape[2] - 1) * hop + spec.win_length
        assert end <= n_samples < end + hop


@pytest.mark.parametrize("name", SPECS)
def test_silence_and_its_gradient_are_finite(name):
    spec = SPECS[name]
    for level in (0.0, 0.5):  # Kaldi takes a constant for silence too
        wave = jnp.full((1, 8_000), level)
        x, gradient = jax.jit(jax.value_and_grad(lambda w: spectrogram(w, spec).sum()))(wave)
        assert jnp.isfinite(x)
        assert jnp.isfinite(gradient).all()


def test_silence_lies_on_the_floor():
    wave = jnp.zeros((1, 8_000))
    np.testing.assert_allclose(spectrogram(wave, SPECS["htsat"]), -100.0, rtol=1e-6)
    np.testing.assert_allclose(spectrogram(wave, SPECS["beats"]), (np.log(2.0**-23) - 15.41663) / 13.11164, rtol=1e-6)


@pytest.mark.parametrize("name", SPECS)
def test_gradient_is_that_of_finite_differences(name):
    spec = dataclasses.replace(SPECS[name], target_frames=0)
    wave, direction = (np.random.default_rng(seed).normal(0, 0.1, (1, 4_000)).astype(np.float32) for seed in (0, 1))
    along = lambda t: spectrogram(wave + t * direction, spec).mean()  # noqa: E731
    step = 1e-3
    numeric = (along(step) - along(-step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(along)(0.0), numeric, rtol=0.05, atol=5e-3 / spec.std)


@pytest.mark.parametrize("name", SPECS)
def test_nan_comes_out_in_its_own_clip_only(name):
    spec = dataclasses.replace(SPECS[name], target_frames=0)
    clean = np.random.default_rng(0).normal(0, 0.1, (2, 8_000)).astype(np.float32)
    wave = clean.copy()
    wave[0, 4_000] = np.nan
    x = np.asarray(spectrogram(jnp.asarray(wave), spec))
    frames = np.isnan(x[0])
    assert (frames.all(0) == frames.any(0)).all()
    assert frames.all() if name == "ast" else 1 <= frames.any(0).sum() <= 4
    np.testing.assert_array_equal(x[1], spectrogram(jnp.asarray(clean), spec)[1])


@pytest.mark.parametrize("name", SPECS)
def test_a_spec_survives_json_and_older_files_load(name):
    stored = json.loads(json.dumps(dataclasses.asdict(SPECS[name])))
    assert FrontendSpec(**stored) == SPECS[name]
    assert hash(FrontendSpec(**stored)) == hash(SPECS[name])  # a static argument of jit
    if name == "efficientat":
        for field in ("window", "scale", "remove_mean", "log_floor", "target_frames"):
            del stored[field]
        assert FrontendSpec(**stored) == SPEC


@pytest.mark.parametrize(("name", "shortest"), [("beats", 400), ("ast", 400), ("htsat", 513)])
def test_too_short_clips_are_refused(name, shortest):
    spec = SPECS[name]
    assert spectrogram(jnp.zeros((1, shortest)), spec).shape[2] == spec.n_frames(shortest)
    for n_samples in (0, shortest - 1):
        with pytest.raises(InputError) as jitted:
            jax.jit(spectrogram, static_argnums=1)(jnp.zeros((1, n_samples)), spec)
        with pytest.raises(InputError) as plain:
            spec.n_frames(n_samples)
        message = f"a clip of {n_samples} samples is too short for {spec.kind}, at least {shortest} needed"
        assert str(jitted.value) == str(plain.value) == message


def test_a_key_draws_edges_only_where_the_spec_jitters():
    wave = jax.random.normal(jax.random.key(0), (1, 8_000)) * 0.1
    for name in ("htsat", "beats", "ast"):
        still = spectrogram(wave, SPECS[name])
        assert jnp.array_equal(spectrogram(wave, SPECS[name], rng=jax.random.key(1)), still)
    spec = FrontendSpec.beats(fmax_jitter_hz=500)
    assert not jnp.array_equal(spectrogram(wave, spec, rng=jax.random.key(1)), spectrogram(wave, spec))
    with pytest.raises(ValueError, match="cannot be jittered"):
        spectrogram(wave, FrontendSpec.htsat(fmax_jitter_hz=500), rng=jax.random.key(1))


def test_unknown_window_is_refused():
    with pytest.raises(ValueError, match="unknown window 'hamming'"):
        spectrogram(jnp.zeros((1, 8_000)), FrontendSpec.beats(window="hamming"))
