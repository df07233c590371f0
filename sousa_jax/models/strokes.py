"""A small network that hears strokes, and from strokes the rudiment: the one backbone here that was made for drums.

Log-mel frames every 5 ms → a small convolution and a mixing of mel bands → dilated convolutions along time →
`StrokeHead` → `RhythmHead`. Nothing is pooled over time before the strokes are known, and the name is read from the
strokes alone. Our own design; dilated convolutions for rhythm: M. E. P. Davies, S. Böck, "Temporal convolutional
networks for musical audio beat tracking", EUSIPCO 2019.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sousa_jax.errors import InputError, nearest
from sousa_jax.frontends import FrontendSpec
from sousa_jax.models.heads import RhythmHead, StrokeHead, dilated_blocks, probabilities, stream_frames
from sousa_jax.models.layers import Outputs, Recomputable

FRONTEND = FrontendSpec(
    sample_rate=16_000, n_fft=512, win_length=320, hop_length=80, n_mels=64, fmax_hz=7_500.0, fmax_jitter_hz=800
)
STEP = 2  # frames that wide layers see at a time: the head tells them apart again
# `strokes_small` is a student: it has 3.6 times fewer parameters.
PRESETS: dict[str, dict[str, Any]] = {"strokes": {}, "strokes_small": {"width": 64, "rhythm_widths": (32, 48)}}


@dataclasses.dataclass(frozen=True)
class StrokesConfig:
    """Shape of a `Strokes` network.

    Attributes:
      num_classes: size of the logits.
      width: channels of the ear's blocks.
      dilations: of its blocks, in steps of `STEP` frames; it hears `2 · STEP · Σ dilations` frames to either side.
      rhythm_widths: of the rhythm head's fine and coarse blocks.
      frontend: its frame rate, a multiple of 50 a second, is that of the strokes.
    """

    num_classes: int = 40
    width: int = 128
    dilations: tuple[int, ...] = (1, 2, 4, 8, 16)
    rhythm_widths: tuple[int, int] = (64, 96)
    frontend: FrontendSpec = FRONTEND

    def __post_init__(self) -> None:
        for name in ("dilations", "rhythm_widths"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON brings them back as lists
        if self.frontend.n_mels % 8:
            raise InputError(f"{self.frontend.n_mels} mel bands are not a multiple of 8")
        if self.frontend.sample_rate % self.frontend.hop_length:
            raise InputError(
                f"a hop of {self.frontend.hop_length} samples does not divide a second of {self.frontend.sample_rate}"
            )

    @property
    def strokes_per_second(self) -> int:
        """Frames a second of the stroke stream."""
        return self.frontend.sample_rate // self.frontend.hop_length

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "StrokesConfig":
        """A variant by name (`PRESETS`)."""
        if name not in PRESETS:
            raise InputError(f"unknown variant {name!r} of strokes; nearest: {nearest(name, PRESETS) or 'strokes'}")
        return cls(**{**PRESETS[name], **changes})

    def for_window(self, window_s: float, length: str) -> "StrokesConfig":
        """The same network on windows of `window_s` seconds. It is convolutional: both of `LENGTHS` are the same."""
        return dataclasses.replace(self, frontend=dataclasses.replace(self.frontend, window_s=window_s))


class Ear(Recomputable):
    """Log-mel `(B, n_mels, T)` → features of every `STEP` frames `(B, ⌈T / STEP⌉, width)`. The level of a recording is
    taken out, and the mean over the whole window tells every step which drum in which room it hears."""

    def __init__(self, config: StrokesConfig, *, rngs: nnx.Rngs):
        bands = config.frontend.n_mels // 4
        self.patches = nnx.Conv(1, 16, (3, 7), strides=(1, 4), rngs=rngs)
        self.mix = nnx.Linear(2 * 16, 32, rngs=rngs)  # of two bands side by side
        self.flat = nnx.Linear(32 * (bands // 2), 64, rngs=rngs)
        self.join = nnx.Linear(STEP * 64, config.width, rngs=rngs)
        self.room = nnx.Linear(config.width, config.width, rngs=rngs)
        self.blocks = dilated_blocks(config.width, config.dilations, rngs=rngs)

    def __call__(self, log_mel: jax.Array) -> jax.Array:
        x = super().__call__(log_mel)
        x = x + self.room(nnx.relu(x).mean(1, keepdims=True))
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, log_mel: jax.Array) -> jax.Array:
        """What comes before the blocks: mel bands to features, `STEP` frames joined. `(B, ⌈T / STEP⌉, width)`."""
        x = jnp.swapaxes(log_mel, 1, 2)
        x = x - x.mean((1, 2), keepdims=True)
        x = nnx.relu(self.patches(x[..., None]))
        x = nnx.relu(self.mix(x.reshape(*x.shape[:2], x.shape[2] // 2, -1)))  # (B, T, n_mels / 8, 32)
        x = nnx.relu(self.flat(x.reshape(*x.shape[:2], -1)))
        x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % STEP), (0, 0)))
        return self.join(x.reshape(x.shape[0], x.shape[1] // STEP, -1))


class Strokes(nnx.Module):
    """`model(features) -> Outputs`; the rhythm head alone as `model.rhythm(stream)`."""

    def __init__(self, config: StrokesConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.ear = Ear(config, rngs=rngs)
        self.strokes = StrokeHead(config.width, STEP, rngs=rngs)
        self.rhythm = RhythmHead(config.num_classes, config.strokes_per_second, *config.rhythm_widths, rngs=rngs)

    def __call__(self, features: jax.Array, *, train: bool = False, rng: jax.Array | None = None) -> Outputs:
        """features: `(batch, n_mels, n_frames)`, the frontend's spectrogram. `train` and `rng` change nothing."""
        frames = self.ear(features).astype(jnp.float32)
        n_frames = stream_frames(self.config.frontend, features.shape[2], self.config.strokes_per_second)
        strokes = self.strokes(frames, n_frames)
        logits, embedding = self.rhythm(probabilities(strokes))
        return Outputs(logits, embedding, frames, strokes)
