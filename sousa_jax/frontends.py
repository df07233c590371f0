"""From waveform to the spectrogram that a backbone expects, on the device, inside the jitted step.

A frontend is part of its model: `FrontendSpec` is stored with every checkpoint and shipped in every
export. Each frontend reproduces the official one, normalization included. All of them are a mel power
spectrum, a logarithm and a shift; a *kind* is a way to frame the samples and to draw the mel bank.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sousa_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class FrontendSpec:
    """Everything between samples and the backbone's input.

    Without arguments it is EfficientAT's; `htsat()`, `beats()` and `ast()` are those of the other released
    models, with some fields changed if given: `FrontendSpec.beats(window_s=5.0)`.

    Attributes:
      kind: how samples are framed and which mel bank follows: `efficientat`, `torchlibrosa` or `kaldi`.
      sample_rate: Hz.
      n_fft, win_length, hop_length: samples. In centred frames the window lies in the middle of the FFT frame,
        in Kaldi's zeros follow it.
      n_mels, fmin_hz, fmax_hz: the mel filter bank.
      fmin_jitter_hz, fmax_jitter_hz: in training the bank's edges are drawn once a batch, from integers
        `fmin .. fmin + fmin_jitter - 1` and `fmax ± fmax_jitter / 2` (1 means no jitter).
      log_offset: added to the mel power before the logarithm.
      mean, std: the spectrogram is `(log_mel - mean) / std`, with the natural logarithm. BEATs and AST halve
        it once more, so here `std` is twice theirs; a `std` of ln(10) / 10 gives decibels.
      window_s: seconds that the model hears at a time.
      length_policy: how a clip becomes a window: `trim_loop` cuts the silent tail, then repeats the clip
        until the window is full (`sousa_jax.data.clips`). The same in training, evaluation and deployment.
      window: `hanning` is the symmetric Hann window, `povey` its power of 0.85 (Kaldi's default), and
        `periodic_hann` the one of FFT libraries.
      scale: the waveform is multiplied by it; Kaldi recipes expect 16-bit integers, 32768.
      remove_mean: subtracts the clip's mean from the waveform.
      log_floor: smaller mel powers (after `log_offset`) are raised to it.
      target_frames: zeros are appended to the log mel before it is normalized, or its end is cut, to make so
        many frames; 0 leaves what the clip gives.
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
    # Checkpoints written before these fields existed load with their defaults: they are EfficientAT's.
    window: str = "hanning"
    scale: float = 1.0
    remove_mean: bool = False
    log_floor: float = 0.0
    target_frames: int = 0

    @classmethod
    def htsat(cls, **changes: Any) -> "FrontendSpec":
        """HTS-AT as released for AudioSet: decibels before `bn0`, whose statistics normalize them."""
        released = dict(
            kind="torchlibrosa", win_length=1024, n_mels=64, fmin_hz=50.0, fmax_hz=14_000.0, fmin_jitter_hz=1,
            fmax_jitter_hz=1, log_offset=0.0, mean=0.0, std=math.log(10.0) / 10.0, window_s=10.0,
            window="periodic_hann", log_floor=1e-10,
        )  # fmt: skip
        return cls(**{**released, **changes})

    @classmethod
    def beats(cls, **changes: Any) -> "FrontendSpec":
        """BEATs, every released checkpoint: 16-bit range, Povey window, no fixed length."""
        released = dict(window="povey", scale=32_768.0, mean=15.41663, std=2 * 6.55582, window_s=10.0)
        return cls(**{**_KALDI, **released, **changes})

    @classmethod
    def ast(cls, **changes: Any) -> "FrontendSpec":
        """AST as released for AudioSet: 1024 frames, of which 10.24 s of sound fill 1022. The published ESC-50
        recipe changes `target_frames=512, mean=-6.6268077, std=2 * 5.358466, window_s=5.0`."""
        released = dict(remove_mean=True, mean=-4.2677393, std=2 * 4.5689974, window_s=10.24, target_frames=1024)
        return cls(**{**_KALDI, **released, **changes})

    @property
    def normalized(self) -> bool:
        """Whether zero is about the mean of a spectrogram. HTS-AT's decibels are left to the network's batch norm."""
        return self.mean != 0.0

    @property
    def window_samples(self) -> int:
        return round(self.window_s * self.sample_rate)

    def n_frames(self, n_samples: int) -> int:
        """Frames of the spectrogram of `n_samples`; `InputError` if they are too few for it."""
        frames = self.frames_before_padding(n_samples)
        return self.target_frames or frames

    def frames_before_padding(self, n_samples: int) -> int:
        """Frames that `n_samples` fill, whatever `target_frames` says.

        EfficientAT's pre-emphasis eats one sample and its frames are centred, as torchlibrosa's are. Kaldi
        takes only frames that lie within the clip ("snip edges").
        """
        shortest = {"kaldi": self.win_length, "torchlibrosa": self.n_fft // 2 + 1}.get(self.kind, 0)
        if n_samples < shortest:
            raise InputError(f"a clip of {n_samples} samples is too short for {self.kind}, at least {shortest} needed")
        if self.kind == "kaldi":
            return (n_samples - self.win_length) // self.hop_length + 1
        if self.kind == "torchlibrosa":
            return n_samples // self.hop_length + 1
        return (n_samples - 1) // self.hop_length + 1


# What the Kaldi filter banks of BEATs and AST share: 25 ms every 10 ms at 16 kHz, and the smallest step of
# float32 above one as the floor.
_KALDI = dict(
    kind="kaldi", sample_rate=16_000, n_fft=512, win_length=400, hop_length=160, fmin_hz=20.0, fmax_hz=8_000.0,
    fmin_jitter_hz=1, fmax_jitter_hz=1, log_offset=0.0, log_floor=float(np.finfo(np.float32).eps),
)  # fmt: skip


def spectrogram(waveform: jax.Array, spec: FrontendSpec, *, rng: jax.Array | None = None) -> jax.Array:
    """The normalized log-mel spectrogram of `spec`.

    Finite for silence, and so is its gradient. A NaN sample makes every frame NaN that contains it, with
    `remove_mean` the whole clip; other clips of the batch are untouched.

    Args:
      waveform: `(batch, n_samples)` float32 in about [-1, 1], at `spec.sample_rate`.
      rng: a key draws the mel edges as EfficientAT's official training does; None is evaluation. Without jitter
        in the spec it changes nothing.

    Returns:
      `(batch, n_mels, n_frames)` float32, for every kind: where the official code goes on with
      `(batch, frame, mel)`, the backbone turns it.

    Raises:
      InputError: the clip is too short for a frame (Kaldi) or for reflected edges (torchlibrosa).
    """
    if spec.kind not in _MEL_POWER:
        raise ValueError(f"unknown frontend {spec.kind!r}, known: {', '.join(map(repr, _MEL_POWER))}")
    count = spec.frames_before_padding(waveform.shape[1])
    if spec.remove_mean:
        waveform = waveform - jnp.mean(waveform, axis=1, keepdims=True)
    if spec.scale != 1.0:
        waveform = waveform * spec.scale
    power = _MEL_POWER[spec.kind](waveform, spec, count, rng) + spec.log_offset  # (B, T, M)
    log_mel = jnp.log(jnp.maximum(power, spec.log_floor) if spec.log_floor else power)
    if spec.target_frames:
        log_mel = log_mel[:, : spec.target_frames]
        log_mel = jnp.pad(log_mel, ((0, 0), (0, spec.target_frames - log_mel.shape[1]), (0, 0)))
    return jnp.swapaxes((log_mel - spec.mean) / spec.std, 1, 2)


def _efficientat(waveform: jax.Array, spec: FrontendSpec, count: int, rng: jax.Array | None) -> jax.Array:
    """Mel power `(B, count, n_mels)` of `(B, n)`. Pre-emphasis 0.97, centred frames, Kaldi mel bank without the
    Nyquist bin. Source: EfficientAT `models/preprocess.py` (AugmentMelSTFT)."""
    x = waveform[:, 1:] - 0.97 * waveform[:, :-1]
    power = _power(_centred_frames(x, spec, count), spec)[..., :-1]  # (B, T, n_fft / 2)
    return jnp.dot(power, _kaldi_bank(spec, rng))


def _torchlibrosa(waveform: jax.Array, spec: FrontendSpec, count: int, rng: jax.Array | None) -> jax.Array:
    """Mel power `(B, count, n_mels)` of `(B, n)`: librosa's default mel spectrogram. Source: torchlibrosa
    `stft.py` (Spectrogram, LogmelFilterBank), as HTS-AT `model/htsat.py` sets them up."""
    if rng is not None and (spec.fmin_jitter_hz, spec.fmax_jitter_hz) != (1, 1):
        raise ValueError("the mel edges of the frontend 'torchlibrosa' cannot be jittered: set both jitters to 1")
    power = _power(_centred_frames(waveform, spec, count), spec)
    return jnp.dot(power, _slaney_bank(spec), precision=jax.lax.Precision.HIGHEST)


def _kaldi(waveform: jax.Array, spec: FrontendSpec, count: int, rng: jax.Array | None) -> jax.Array:
    """Mel power `(B, count, n_mels)` of `(B, n)`: Kaldi's filter bank without dither and energy. Every frame on
    its own loses its mean and is pre-emphasized, its first sample by itself. Source: Kaldi `feature-window.cc`
    and `mel-computations.cc`; torchaudio `compliance/kaldi.py` (fbank), which BEATs and AST call."""
    frames = _frames(waveform, spec.win_length, spec.hop_length, count)
    frames = frames - jnp.mean(frames, axis=-1, keepdims=True)
    before = jnp.concatenate([frames[..., :1], frames[..., :-1]], axis=-1)
    power = _power(frames - 0.97 * before, spec)[..., :-1]
    return jnp.dot(power, _kaldi_bank(spec, rng), precision=jax.lax.Precision.HIGHEST)


_MEL_POWER = {"efficientat": _efficientat, "torchlibrosa": _torchlibrosa, "kaldi": _kaldi}


def _power(frames: jax.Array, spec: FrontendSpec) -> jax.Array:
    """Power spectra `(B, T, n_fft / 2 + 1)` of frames `(B, T, win_length)`."""
    spectrum = jnp.fft.rfft(frames * analysis_window(spec), n=spec.n_fft)
    return jnp.square(spectrum.real) + jnp.square(spectrum.imag)


def analysis_window(spec: FrontendSpec) -> np.ndarray:
    """`(win_length,)` float32."""
    if spec.window not in ("hanning", "povey", "periodic_hann"):
        raise ValueError(f"unknown window {spec.window!r}, known: 'hanning', 'povey', 'periodic_hann'")
    if spec.window == "periodic_hann":
        return np.hanning(spec.win_length + 1)[:-1].astype(np.float32)
    window = np.hanning(spec.win_length)
    if spec.kind == "kaldi":
        # torchaudio has rounded it at every step. The rounding is the same in every frame and leaks into its
        # near-silent bins: with the float64 window BEATs' spectrograms are off by 2.8e-3 of the spread, not 1.3e-3.
        angle = np.arange(spec.win_length, dtype=np.float32) * np.float32(2 * np.pi / (spec.win_length - 1))
        window = np.float32(0.5) - np.float32(0.5) * np.cos(angle.astype(np.float64)).astype(np.float32)
    return (window.astype(np.float64) ** 0.85 if spec.window == "povey" else window).astype(np.float32)


def _centred_frames(x: jax.Array, spec: FrontendSpec, count: int) -> jax.Array:
    """`(B, count, win_length)` frames of `(B, n)` around multiples of the hop, edges reflected.

    Where the window is shorter than the FFT frame it is centred in it, and the power spectrum does not see a
    shift: frames of win_length, reflected by half of that, give the same result from fewer samples.
    """
    half = spec.win_length // 2
    x = jnp.pad(x, ((0, 0), (half, half)), mode="reflect")
    return _frames(x, spec.win_length, spec.hop_length, count)


def _frames(x: jax.Array, length: int, hop: int, count: int) -> jax.Array:
    """`(B, count, length)` overlapping frames of `(B, n)`. Built from whole blocks of the greatest common
    divisor of length and hop: strided slices are several times faster than a gather on the CPU."""
    block = math.gcd(length, hop)
    per_frame, per_hop = length // block, hop // block
    n_blocks = (count - 1) * per_hop + per_frame
    blocks = x[:, : n_blocks * block].reshape(x.shape[0], n_blocks, block)
    span = (count - 1) * per_hop + 1
    return jnp.concatenate([blocks[:, i : i + span : per_hop] for i in range(per_frame)], axis=-1)


def _slaney_bank(spec: FrontendSpec) -> np.ndarray:
    """librosa's default bank: triangles linear in Hz, of equal area, between edges evenly spaced on Slaney's scale,
    which is linear to 1 kHz and logarithmic above. `(n_fft / 2 + 1, n_mels)` float32."""
    corner_hz, mel_per_hz, mel_per_ln = 1000.0, 3.0 / 200.0, 27.0 / math.log(6.4)
    corner = corner_hz * mel_per_hz
    to_mel = lambda f: f * mel_per_hz if f < corner_hz else corner + mel_per_ln * math.log(f / corner_hz)  # noqa: E731
    mel = np.linspace(to_mel(spec.fmin_hz), to_mel(spec.fmax_hz), spec.n_mels + 2)
    edges = np.where(mel < corner, mel / mel_per_hz, corner_hz * np.exp((mel - corner) / mel_per_ln))
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    hz = np.arange(spec.n_fft // 2 + 1)[:, None] * (spec.sample_rate / spec.n_fft)
    triangles = np.maximum(0.0, np.minimum((hz - left) / (centre - left), (right - hz) / (right - centre)))
    return (triangles * (2.0 / (right - left))).astype(np.float32)


def _kaldi_bank(spec: FrontendSpec, rng: jax.Array | None) -> np.ndarray | jax.Array:
    """Kaldi's triangles without the Nyquist bin, `(n_fft / 2, n_mels)` float32; jittered if there is a key."""
    jittered = rng is not None and (spec.fmin_jitter_hz, spec.fmax_jitter_hz) != (1, 1)
    return _training_mel_bank(spec, rng) if jittered else mel_bank(spec)


def _mel_of_bins(spec: FrontendSpec) -> np.ndarray:
    """`(n_fft / 2,)` float32, rounded where the official code rounds."""
    ratio = 1.0 + np.arange(spec.n_fft // 2, dtype=np.float32) * (spec.sample_rate / spec.n_fft) / 700.0
    return 1127.0 * np.log(ratio.astype(np.float64)).astype(np.float32)  # a float32 log varies between machines


def mel_bank(spec: FrontendSpec) -> np.ndarray:
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
