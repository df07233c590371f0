"""Augmentation, on the device, inside the jitted step: from a batch of waveforms to what the network is trained on.

`STAGES` is the whole pipeline, in order: noise on the waveform, jitter of the frontend, the rest on its normalized
log-mel spectrogram. The draws are independent for each clip of the batch (of the frontend: one for all) and a function
of the key alone, which the training step derives from (seed, step).

A sheet of clips before and after each of them:

    python -m sousa_jax.augment --plot=OUT.png [--config=configs/efficientat_scratch.py:smoke] [--data=synth|FOLDER]
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict
from scipy.fft import next_fast_len

from sousa_jax.errors import InputError
from sousa_jax.frontends import FrontendSpec, spectrogram

STEEPEST = 2.0  # of noise: its power falls as f^-2, brown
EQUALIZER_POINTS = 5
FLAT_BELOW = 1 / 500  # of the sample rate, 64 Hz of 32 kHz: below it noise does not rise any more, or all were rumble


def noise(rng: jax.Array, waveform: jax.Array, snr_db: tuple[float, float]) -> jax.Array:
    """Adds background noise: to each clip of another colour, white … brown, and loudness.

    The colour is the slope of the power spectrum, f^0 … f^-2. The phases are random, the magnitudes are not: sums of so
    many sines are as good as Gaussian, from half the random numbers and one Fourier transform.

    Args:
      waveform: `(B, n_samples)` float32. A silent clip stays silent.
      snr_db: lowest and highest ratio of the clip's power to the noise's, decibels, drawn evenly for each clip. Every
        clip gets noise: of 50 dB it is as good as none.

    Returns:
      `(B, n_samples)` float32.
    """
    batch, n_samples = waveform.shape
    ratio_db, slope = _noise_draws(rng, batch, snr_db)
    n = 2 * next_fast_len(-(-n_samples // 2), real=True)
    bins = jnp.arange(n // 2 + 1) / n
    power = jnp.where(bins > 0, jnp.maximum(bins, FLAT_BELOW) ** slope[:, None], 0.0)
    phase = jax.random.uniform(jax.random.fold_in(rng, 1), power.shape, maxval=2 * jnp.pi)
    magnitude = jnp.sqrt(power)
    sound = jnp.fft.irfft(jax.lax.complex(magnitude * jnp.cos(phase), magnitude * jnp.sin(phase)), n)[:, :n_samples]
    rms = lambda x: jnp.sqrt(jnp.mean(jnp.square(x), axis=1, keepdims=True))  # noqa: E731
    return waveform + sound * (rms(waveform) / rms(sound) * 10 ** (-ratio_db[:, None] / 20))


def _noise_draws(rng: jax.Array, batch: int, snr_db: tuple[float, float]) -> jax.Array:
    """Signal-to-noise ratio in dB and exponent of the power spectrum, negative, of each clip: `(2, B)`."""
    if len(snr_db) != 2 or snr_db[0] > snr_db[1]:
        raise InputError(f"config.augment.noise_snr_db={snr_db} must be (lowest, highest) in decibels, or () for none")
    low, high = map(float, snr_db)
    lowest, highest = jnp.array([[low], [0.0]]), jnp.array([[high], [-STEEPEST]])
    return lowest + (highest - lowest) * jax.random.uniform(jax.random.fold_in(rng, 0), (2, batch))


def tempo_stretch(rng: jax.Array, x: jax.Array, amount: float) -> jax.Array:
    """Plays each clip of `(B, n_mels, n_frames)` faster or slower by up to `amount` (0.1 is ±10 %) without a change of
    pitch: frames are interpolated linearly. A clip that runs out starts again, like the length policy's loop."""
    batch, _, n_frames = x.shape
    position = (jnp.arange(n_frames) * _rates(rng, batch, amount)) % n_frames  # (B, T)
    before = jnp.floor(position).astype(jnp.int32) % n_frames
    after = (before + 1) % n_frames
    weight = (position - jnp.floor(position)).astype(x.dtype)[:, None]
    take = jax.vmap(lambda clip, index: clip[:, index])
    return take(x, before) * (1 - weight) + take(x, after) * weight


def _rates(rng: jax.Array, batch: int, amount: float) -> jax.Array:
    return jax.random.uniform(rng, (batch, 1), minval=1.0 - amount, maxval=1.0 + amount)


def gain(rng: jax.Array, x: jax.Array, max_db: float, spec: FrontendSpec) -> jax.Array:
    """Makes each clip of `(B, n_mels, n_frames)` louder or softer by up to `max_db`: in a log-mel spectrogram an
    offset."""
    return x + _decibels(rng, x.shape[0], max_db) * (jnp.log(10.0) / 10.0 / spec.std).astype(x.dtype)


def _decibels(rng: jax.Array, batch: int, max_db: float) -> jax.Array:
    return jax.random.uniform(rng, (batch, 1, 1), minval=-max_db, maxval=max_db)


def equalizer(rng: jax.Array, x: jax.Array, max_db: float, spec: FrontendSpec) -> jax.Array:
    """Colours each clip of `(B, n_mels, n_frames)`, as another microphone and another drum would: a curve over the mel
    bands, straight between `EQUALIZER_POINTS` evenly spaced ones of up to ± `max_db` each (the linear kind of
    FilterAugment, arXiv:2110.03282)."""
    points = jax.random.uniform(rng, (x.shape[0], EQUALIZER_POINTS), minval=-max_db, maxval=max_db)
    bands = jnp.linspace(0, EQUALIZER_POINTS - 1, x.shape[1])
    weights = jnp.maximum(1 - jnp.abs(bands - jnp.arange(EQUALIZER_POINTS)[:, None]), 0)  # (points, n_mels)
    curve = jnp.matmul(points, weights, precision="highest")[..., None]
    return x + curve * (jnp.log(10.0) / 10.0 / spec.std).astype(x.dtype)


def mask(rng: jax.Array, x: jax.Array, axis: int, count: int, max_width: int, spec: FrontendSpec) -> jax.Array:
    """SpecAugment (arXiv:1904.08779): `count` stripes along `axis` (1 mel, 2 time), each 0 … `max_width`
    wide, set to zero, which is about the mean of a normalized spectrogram; of decibels, to each clip's mean."""
    size = x.shape[axis]
    width_rng, start_rng = jax.random.split(rng)
    width = jax.random.randint(width_rng, (x.shape[0], count, 1), 0, min(max_width, size) + 1)
    start = jnp.floor(jax.random.uniform(start_rng, width.shape) * (size - width + 1))
    place = jnp.arange(size)
    covered = ((place >= start) & (place < start + width)).any(1)  # (B, size)
    level = 0.0 if spec.normalized else x.mean((1, 2), keepdims=True)
    return jnp.where(jnp.expand_dims(covered, 3 - axis), level, x)


def mixup(rng: jax.Array, x: jax.Array, targets: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    """Mixup (arXiv:1710.09412) of each clip with another one of the batch, targets `(batch, classes)` too.
    The clip itself keeps the larger share."""
    share_rng, order_rng = jax.random.split(rng)
    share = jax.random.beta(share_rng, alpha, alpha, (x.shape[0],))
    share = jnp.maximum(share, 1.0 - share).astype(x.dtype)
    other = jax.random.permutation(order_rng, x.shape[0])
    mix = lambda a, s: a * s + a[other] * (1 - s)  # noqa: E731
    return mix(x, share[:, None, None]), mix(targets, share[:, None])


# ------------------------------------------------------------------------------------------------------- the pipeline


class Stage(NamedTuple):
    """One augmentation of the pipeline.

    Attributes:
      name: as people read it.
      switch: the field of `config.augment` that turns it on; zero, False and empty are off.
      usual: a value of `switch` to show it with.
      key: which of the keys it draws from; see `stage_key`.
      apply: `(key, x, targets, settings, spec) -> (x, targets)`, `settings` being `config.augment`; `x` is the waveform
        before the frontend, the spectrogram after it. None: the frontend itself does it, given the key.
      drawn: `(key, batch, settings) -> [text of each clip]`: what it draws, where a number tells it.
    """

    name: str
    switch: str
    usual: Any
    key: int
    apply: Callable[..., tuple[jax.Array, jax.Array]] | None
    drawn: Callable[..., list[str]] | None = None


STAGES = (
    Stage(
        "noise", "noise_snr_db", (20.0, 50.0), 6,
        lambda key, x, targets, s, spec: (noise(key, x, s.noise_snr_db), targets),
        lambda key, n, s: [f"{db:.0f} dB, 1/f^{-slope:.1f}" for db, slope in _noise_draws(key, n, s.noise_snr_db).T],
    ),
    Stage("mel jitter", "mel_jitter", True, 0, None),
    Stage(
        "tempo stretch", "tempo_stretch", 0.1, 1,
        lambda key, x, targets, s, spec: (tempo_stretch(key, x, s.tempo_stretch), targets),
        lambda key, n, s: [f"{rate - 1:+.0%}" for rate in _rates(key, n, s.tempo_stretch)[:, 0]],
    ),
    Stage(
        "gain", "gain_db", 6.0, 2,
        lambda key, x, targets, s, spec: (gain(key, x, s.gain_db, spec), targets),
        lambda key, n, s: [f"{db:+.1f} dB" for db in _decibels(key, n, s.gain_db)[:, 0, 0]],
    ),
    Stage(
        "equalizer", "equalizer_db", 6.0, 7,
        lambda key, x, targets, s, spec: (equalizer(key, x, s.equalizer_db, spec), targets),
    ),
    Stage("mixup", "mixup_alpha", 0.2, 5, lambda key, x, targets, s, spec: mixup(key, x, targets, s.mixup_alpha)),
    Stage(
        "frequency masks", "freq_masks", 2, 3,
        lambda key, x, targets, s, spec: (mask(key, x, 1, s.freq_masks, s.freq_mask_bins, spec), targets),
    ),
    Stage(
        "time masks", "time_masks", 2, 4,
        lambda key, x, targets, s, spec: (mask(key, x, 2, s.time_masks, s.time_mask_frames, spec), targets),
    ),
)  # fmt: skip


def stage_key(rng: jax.Array, stage: Stage) -> jax.Array:
    """What a stage draws from. A new stage takes the next number and leaves the draws of all others as they are."""
    return jax.random.split(rng, 6)[stage.key] if stage.key < 6 else jax.random.fold_in(rng, stage.key)


def features_and_targets(
    rng: jax.Array, batch: dict[str, jax.Array], n_classes: int, spec: FrontendSpec, config: ConfigDict
) -> tuple[jax.Array, jax.Array]:
    """Waveforms and labels → augmented spectrograms and soft targets, by every stage that `config.augment` turns on.

    Args:
      batch: `waveform` `(B, n_samples)` float32 and `label` `(B,)` int32.

    Returns:
      `(B, n_mels, n_frames)` float32 and `(B, n_classes)` float32, whose rows sum to one.
    """
    settings = config.augment
    targets = optax.smooth_labels(jax.nn.one_hot(batch["label"], n_classes), config.train.label_smoothing)
    x = batch["waveform"]
    for stage in STAGES:
        on, key = settings[stage.switch], stage_key(rng, stage)
        if stage.apply is None:
            x = spectrogram(x, spec, rng=key if on else None)
        elif on:
            x, targets = stage.apply(key, x, targets, settings, spec)
    return x, targets


if __name__ == "__main__":
    from sousa_jax.contact_sheet import main

    main()
