"""From waveform to the spectrogram that a backbone expects, on the device, inside the jitted step.

A frontend is part of its model: `FrontendSpec` is stored with every checkpoint and shipped in every
export. Each frontend reproduces the official one, normalization included.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class FrontendSpec:
    """Everything between samples and the backbone's input.

    Attributes:
      kind: which frontend; `efficientat` is the only one so far.
      sample_rate: Hz.
      n_fft, win_length, hop_length: samples; the window is centred in the FFT frame.
      n_mels, fmin_hz, fmax_hz: the mel filter bank.
      fmin_jitter_hz, fmax_jitter_hz: in training the bank's edges are drawn once a batch, from integers
        `fmin .. fmin + fmin_jitter - 1` and `fmax ± fmax_jitter / 2` (1 means no jitter).
      log_offset: added to the mel power before the logarithm.
      mean, std: the spectrogram is `(log_mel - mean) / std`.
      window_s: seconds that the model hears at a time.
      length_policy: how a clip becomes a window: `trim_loop` cuts the silent tail, then repeats the clip
        until the window is full (`sousa_jax.data.clips`). The same in training, evaluation and deployment.
    """

    kind: str = "efficientat"
    sample_rate: int = 32_000
    n_fft: int = 1024
    win_length: int = 800
    hop_length: int = 320
    n_mels: int = 128
    fmin_hz: float = 0.0
    fmax_hz: float = 15_000.0
    fmin_jitter_hz: int = 10
    fmax_jitter_hz: int = 2000
    log_offset: float = 1e-5
    mean: float = -4.5
    std: float = 5.0
    window_s: float = 5.0
    length_policy: str = "trim_loop"

    @property
    def window_samples(self) -> int:
        return round(self.window_s * self.sample_rate)

    def n_frames(self, n_samples: int) -> int:
        """Frames of a waveform of `n_samples`: pre-emphasis eats one sample, frames are centred."""
        return (n_samples - 1) // self.hop_length + 1


def spectrogram(waveform: jax.Array, spec: FrontendSpec, *, rng: jax.Array | None = None) -> jax.Array:
    """The normalized log-mel spectrogram of EfficientAT.

    Args:
      waveform: `(batch, n_samples)` float32 in about [-1, 1], at `spec.sample_rate`.
      rng: a key draws the mel edges as the official training does; None is evaluation.

    Returns:
      `(batch, n_mels, n_frames)` float32.

    Source: EfficientAT `models/preprocess.py` (AugmentMelSTFT). Pre-emphasis 0.97, symmetric Hann
    window, reflected edges, power, Kaldi mel bank without the Nyquist bin, natural logarithm.
    """
    if spec.kind != "efficientat":
        raise ValueError(f"unknown frontend {spec.kind!r}, known: 'efficientat'")
    x = waveform[:, 1:] - 0.97 * waveform[:, :-1]
    # The window is shorter than the FFT frame and centred in it, and the power spectrum does not see a
    # shift: frames of win_length, reflected by half of that, give the same result from fewer samples.
    half = spec.win_length // 2
    x = jnp.pad(x, ((0, 0), (half, half)), mode="reflect")
    frames = _frames(x, spec.win_length, spec.hop_length, spec.n_frames(waveform.shape[1]))
    window = np.hanning(spec.win_length).astype(np.float32)  # symmetric, as torch's periodic=False
    spectrum = jnp.fft.rfft(frames * window, n=spec.n_fft)[..., :-1]  # (B, T, n_fft / 2)
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    mel = jnp.dot(power, _training_mel_bank(spec, rng) if rng is not None else _mel_bank(spec))  # (B, T, M)
    log_mel = (jnp.log(mel + spec.log_offset) - spec.mean) / spec.std
    return jnp.swapaxes(log_mel, 1, 2)


def _frames(x: jax.Array, length: int, hop: int, count: int) -> jax.Array:
    """`(B, count, length)` overlapping frames of `(B, n)`. Built from whole blocks of the greatest common
    divisor of length and hop: strided slices are several times faster than a gather on the CPU."""
    block = math.gcd(length, hop)
    per_frame, per_hop = length // block, hop // block
    n_blocks = (count - 1) * per_hop + per_frame
    blocks = x[:, : n_blocks * block].reshape(x.shape[0], n_blocks, block)
    span = (count - 1) * per_hop + 1
    return jnp.concatenate([blocks[:, i : i + span : per_hop] for i in range(per_frame)], axis=-1)


def _mel_of_bins(spec: FrontendSpec) -> np.ndarray:
    """`(n_fft / 2,)` float32, rounded where the official code rounds."""
    ratio = 1.0 + np.arange(spec.n_fft // 2, dtype=np.float32) * (spec.sample_rate / spec.n_fft) / 700.0
    return 1127.0 * np.log(ratio.astype(np.float64)).astype(np.float32)  # a float32 log varies between machines


def _mel_bank(spec: FrontendSpec) -> np.ndarray:
    """The evaluation bank, Kaldi's triangles: linear in mel, peak one. `(n_fft / 2, n_mels)` float32.

    In float32 throughout, as official: the lowest bands hold one bin or two, and where such a bin lies near
    the foot of its triangle the rounding shows in the logarithm.
    """
    low, high = (1127.0 * math.log(1.0 + f / 700.0) for f in (spec.fmin_hz, spec.fmax_hz))
    delta = (high - low) / (spec.n_mels + 1)
    edges = low + np.arange(spec.n_mels + 2, dtype=np.float32) * delta
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    mel = _mel_of_bins(spec)[:, None]
    return np.maximum(0.0, np.minimum((mel - left) / (centre - left), (right - mel) / (right - centre)))


def _training_mel_bank(spec: FrontendSpec, rng: jax.Array) -> jax.Array:
    """A bank whose edges are drawn from the key: `(n_fft / 2, n_mels)` float32."""
    low_rng, high_rng = jax.random.split(rng)
    fmin = spec.fmin_hz + jax.random.randint(low_rng, (), 0, spec.fmin_jitter_hz)
    fmax = spec.fmax_hz + spec.fmax_jitter_hz // 2 - jax.random.randint(high_rng, (), 0, spec.fmax_jitter_hz)
    low, high = (1127.0 * jnp.log1p(f / 700.0) for f in (fmin, fmax))
    delta = (high - low) / (spec.n_mels + 1)
    up = (_mel_of_bins(spec)[:, None] - (low + delta * jnp.arange(spec.n_mels))) / delta
    return jnp.maximum(0.0, jnp.minimum(up, 2.0 - up))
