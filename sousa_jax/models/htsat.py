"""HTS-AT in Flax NNX: a Swin transformer on a spectrogram that is folded into a square image.

Paper: K. Chen et al., "HTS-AT: A Hierarchical Token-Semantic Audio Transformer for Sound Classification and
Detection", ICASSP 2022 (arXiv:2202.00874). Official code: github.com/RetroCirce/HTS-Audio-Transformer,
`model/htsat.py`; released weights come in through `ports`.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sousa_jax.errors import InputError, nearest
from sousa_jax.frontends import FrontendSpec
from sousa_jax.models.heads import StrokeHead, stream_frames, stream_frames_per_step
from sousa_jax.models.layers import LENGTHS, Norm, Outputs, Recomputable
from sousa_jax.models.transformer import (
    MLP,
    NORMAL,
    LayerNorm,
    Linear,
    attend,
    drop_path,
    dropout,
    layer_rng,
    project,
    split_heads,
)

# How a spectrogram of T frames becomes the network's 1024 (`HTSATConfig.length`).
FITS = ("fill", "stretch", "repeat")

# Layer norms of Swin, and batch norm with PyTorch's default.
EPSILON = 1e-5

# Added to the attention scores of tokens that only the shift has made neighbours.
MASKED = -100.0

# Frames that the head sees at a time, of the 32 coarse ones.
HEAD_FRAMES = 3

# The released variants.
PRESETS: dict[str, dict[str, Any]] = {"htsat": {}}


@dataclasses.dataclass(frozen=True)
class HTSATConfig:
    """Shape of an HTS-AT network; without arguments the released one, but for `num_classes`.

    The spectrogram of M mel bands is cut into `folds` = spec_size / M pieces of spec_size frames, which are stacked:
    256 / 64 = 4 pieces of 256 frames make an image of 256 × 256. A small network is, for example, `spec_size=64,
    frontend=FrontendSpec.htsat(n_mels=16), embed_dim=16, depths=(2, 2), heads=(2, 4), window_size=4`.

    Attributes:
      num_classes: size of the logits.
      length: how T frames fill the image. `fill`: frame i is frame i % T, nothing is stretched. `stretch`: bicubic
        interpolation, as the official code in training and in plain evaluation. `repeat`: as often as they fit, then
        stretched, as its inference mode. `fill` takes no more frames than the image; the others average over crops.
      spec_size: rows and columns of the image.
      patch_size: rows and columns of a patch.
      embed_dim: channels of the first stage; each further stage doubles them and halves rows and columns.
      depths, heads: blocks and attention heads of each stage.
      window_size: rows and columns of an attention window, in tokens.
      mlp_ratio: width of the MLPs' hidden layer, in channels of the stage.
      dropout: of patch embeddings, attention outputs and in the MLPs; 0 officially.
      drop_path: stochastic depth of the last block; it grows linearly from 0 at the first.
      norm_momentum: how much of `bn0`'s running statistics stays at each step.
      strokes_per_second: frames a second of the strokes that it is taught to hear beside the name; 0: none. Only with
        `length` `fill`: the image then begins with the window once, and one of its 32 coarse frames says what falls
        within its own 32 frames of the spectrogram, 320 ms.
      frontend: what turns samples into the network's input.
    """

    num_classes: int = 40
    length: str = "stretch"
    spec_size: int = 256
    patch_size: int = 4
    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (4, 8, 16, 32)
    window_size: int = 8
    mlp_ratio: int = 4
    dropout: float = 0.0
    drop_path: float = 0.1
    norm_momentum: float = 0.9
    strokes_per_second: int = 0
    frontend: FrontendSpec = dataclasses.field(default_factory=FrontendSpec.htsat)

    def __post_init__(self) -> None:
        for name in ("depths", "heads"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON brings them back as lists
        if self.length not in FITS:
            raise InputError(f"length {self.length!r} is unknown, expected one of {FITS}")
        sizes = ("num_classes", "spec_size", "patch_size", "embed_dim", "window_size", "mlp_ratio")
        for name in sizes:
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)} must be at least 1")
        if len(self.depths) != len(self.heads) or min((*self.depths, *self.heads), default=0) < 1:
            raise InputError(f"depths {self.depths} and heads {self.heads} must be as many numbers, each at least 1")
        for name in ("dropout", "drop_path", "norm_momentum"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise InputError(f"{name} {getattr(self, name)} must be at least 0 and below 1")
        if self.spec_size % self.frontend.n_mels:
            raise InputError(f"spec_size {self.spec_size} must be a multiple of the {self.frontend.n_mels} mel bands")
        self._check_grids()
        self.check_frames(self.frontend.n_frames(self.frontend.window_samples))
        if self.strokes_per_second and self.length != "fill":
            raise InputError(f"strokes are heard with length 'fill' only, {self.length!r} moves them in time")
        _ = self.strokes_per_step

    def _check_grids(self) -> None:
        halvings = 2 ** (len(self.depths) - 1)
        if self.frontend.n_mels % (self.patch_size * halvings):
            raise InputError(
                f"{self.frontend.n_mels} mel bands must be a multiple of {self.patch_size * halvings}, the rows of a "
                f"token of the last of {len(self.depths)} stages"
            )
        for stage, heads in enumerate(self.heads):
            grid, channels = self.grid(stage), self.channels(stage)
            if grid % min(self.window_size, grid):
                raise InputError(f"stage {stage} has {grid} x {grid} tokens, windows of {self.window_size} do not fit")
            if channels % heads:
                raise InputError(f"stage {stage} has {channels} channels, not a multiple of its {heads} heads")

    def check_frames(self, n_frames: int) -> None:
        """Raises `InputError` if the network cannot take a spectrogram of so many frames."""
        most = self.n_frames if self.length == "fill" else 2 * self.n_frames + 2  # longer crops would not fit
        if n_frames > most:
            limit_s = most * self.frontend.hop_length / self.frontend.sample_rate
            raise InputError(
                f"{n_frames} frames are too many, length {self.length!r} takes at most {most}: "
                f"window_s must be below {limit_s:g}"
            )

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "HTSATConfig":
        """A released variant by name (`PRESETS`): `htsat`, trained on AudioSet."""
        if name not in PRESETS:
            raise InputError(f"unknown HTS-AT variant {name!r}; nearest: {nearest(name, PRESETS) or list(PRESETS)}")
        return cls(**{**PRESETS[name], **changes})

    def for_window(self, window_s: float, length: str) -> "HTSATConfig":
        """The same network on windows of `window_s` seconds, filled (`fill`) or stretched (`official`)."""
        if length not in LENGTHS:
            raise InputError(f"length {length!r} is unknown, expected one of {LENGTHS}")
        frontend = dataclasses.replace(self.frontend, window_s=window_s)
        return dataclasses.replace(self, length="fill" if length == "fill" else "stretch", frontend=frontend)

    @property
    def folds(self) -> int:
        """Pieces that the spectrogram is cut into."""
        return self.spec_size // self.frontend.n_mels

    @property
    def strokes_per_step(self) -> int:
        """Frames of the stroke stream in a coarse frame; `InputError` if they are not whole."""
        step_frames = self.patch_size * 2 ** (len(self.depths) - 1)
        return stream_frames_per_step(self.frontend, step_frames, self.strokes_per_second)

    @property
    def n_frames(self) -> int:
        """Frames that the image holds."""
        return self.spec_size * self.folds

    def grid(self, stage: int) -> int:
        """Rows and columns of tokens in a stage."""
        return self.spec_size // self.patch_size // 2**stage

    def channels(self, stage: int) -> int:
        """Channels of a token in a stage."""
        return self.embed_dim * 2**stage


# --------------------------------------------------------------------------------------------------- frames to image


def cubic_weights(n_out: int, n_in: int) -> np.ndarray:
    """Bicubic interpolation along one axis with aligned corners, `(n_out, n_in)` float32: rows of four weights.

    As PyTorch does it, rounded where it rounds: kernel with a = -0.75, edge frames repeated beyond the edges.
    """
    a = np.float32(-0.75)
    scale = np.float32(n_in - 1) / np.float32(max(n_out - 1, 1))
    position = scale * np.arange(n_out, dtype=np.float32)
    first = np.minimum(np.floor(position).astype(np.int64), n_in - 1)
    after = position - first.astype(np.float32)
    near = lambda x: ((a + 2) * x - (a + 3)) * x * x + 1  # noqa: E731
    far = lambda x: ((a * x - 5 * a) * x + 8 * a) * x - 4 * a  # noqa: E731
    weights = np.zeros((n_out, n_in), np.float32)
    taps = ((-1, far(after + 1)), (0, near(after)), (1, near(1 - after)), (2, far(2 - after)))
    for offset, weight in taps:
        np.add.at(weights, (np.arange(n_out), np.clip(first + offset, 0, n_in - 1)), weight)
    return weights


def fit(x: jax.Array, n_frames: int, length: str) -> jax.Array:
    """`(…, T, M)` to `(…, n_frames, M)`, T at most n_frames, by one of `FITS`."""
    n_in = x.shape[-2]
    if length == "fill":
        return jnp.tile(x, (-(-n_frames // n_in), 1))[..., :n_frames, :]
    if length == "repeat":
        x = jnp.tile(x, (n_frames // n_in, 1))
    if x.shape[-2] == n_frames:
        return x
    weights = cubic_weights(n_frames, x.shape[-2])
    return jnp.einsum("st,...tm->...sm", weights, x, precision=jax.lax.Precision.HIGHEST)


def fold(x: jax.Array, folds: int) -> jax.Array:
    """`(…, folds · S, M)` to an image `(…, folds · M, S)`: row `M q + mel`, column t hold frame `S q + t`."""
    pieces = x.reshape(*x.shape[:-2], folds, -1, x.shape[-1])  # (…, folds, S, M)
    return jnp.swapaxes(pieces, -2, -1).reshape(*x.shape[:-2], folds * x.shape[-1], -1)


def crops(x: jax.Array) -> list[jax.Array]:
    """The official way with more frames than fit, `(B, T, M)`: pieces of (T - 1) // 2 frames, overlapping by half."""
    n_in = x.shape[1]
    size, step = (n_in - 1) // 2, (n_in - 1) // 4
    return [x[:, start : start + size] for start in range(0, n_in - size - 1, step)]


def average_crops(logits: jax.Array) -> jax.Array:
    """`(B, crops, classes)` to `(B, classes)`: the log-odds of the probabilities' mean. Exact where a sigmoid rounds
    to 0 or 1; the mean's common 1 / crops cancels."""
    if logits.shape[1] == 1:
        return logits[:, 0]
    yes, no = (jax.nn.logsumexp(jax.nn.log_sigmoid(sign * logits), axis=1) for sign in (1.0, -1.0))
    return yes - no


# ---------------------------------------------------------------------------------------------------------- network


def _torch_conv(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int) -> nnx.Param:
    """PyTorch's initialization of a convolution's kernel or bias, which the official code leaves as it is."""
    limit = fan_in**-0.5
    return nnx.Param(jax.random.uniform(rngs.params(), shape, minval=-limit, maxval=limit))


class PatchEmbed(nnx.Module):
    """Convolution of patch × patch with that stride, as one product; layer norm."""

    def __init__(self, patch: int, features: int, *, rngs: nnx.Rngs):
        self.kernel = _torch_conv(rngs, (patch, patch, features), fan_in=patch**2)
        self.bias = _torch_conv(rngs, (features,), fan_in=patch**2)
        self.norm = LayerNorm(features, epsilon=EPSILON)

    def __call__(self, image: jax.Array) -> jax.Array:
        patch, _, features = self.kernel.shape
        batch, size, _ = image.shape
        x = image.reshape(batch, size // patch, patch, size // patch, patch).swapaxes(2, 3)
        x = x.reshape(batch, size // patch, size // patch, patch**2)
        return self.norm(project(x, self.kernel[...].reshape(patch**2, features), self.bias[...]))  # (B, H, W, C)


@functools.cache
def _position_index(window: int) -> np.ndarray:
    """`(L, L)`, L = window²: row of the bias table for each query and key."""
    row, column = np.divmod(np.arange(window**2), window)
    relative = lambda place: place[:, None] - place[None, :] + window - 1  # noqa: E731
    return relative(row) * (2 * window - 1) + relative(column)


@functools.cache
def _shift_mask(grid: int, window: int, shift: int) -> np.ndarray:
    """`(windows, 1, L, L)` float32: hides tokens that came together from opposite edges of the image."""
    part = np.searchsorted([grid - window, grid - shift], np.arange(grid), side="right")
    region = _partition((3 * part[:, None] + part[None, :])[None, :, :, None], window)[0, ..., 0]  # (windows, L)
    return np.where(region[:, None, :, None] == region[:, None, None, :], 0.0, MASKED).astype(np.float32)


def _partition(x: Any, window: int) -> Any:
    """`(B, H, W, C)` to `(B, windows, L, C)`, row by row."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // window, window, width // window, window, channels).swapaxes(2, 3)
    return x.reshape(batch, -1, window**2, channels)


def _join(x: jax.Array, window: int, grid: int) -> jax.Array:
    """Inverse of `_partition`."""
    batch, channels = x.shape[0], x.shape[-1]
    x = x.reshape(batch, grid // window, grid // window, window, window, channels).swapaxes(2, 3)
    return x.reshape(batch, grid, grid, channels)


class WindowAttention(nnx.Module):
    """Self-attention within each window, with a learned bias for each head and relative position."""

    def __init__(self, features: int, heads: int, window: int, *, rngs: nnx.Rngs):
        self.query, self.key, self.value, self.output = (Linear(features, features, rngs=rngs) for _ in range(4))
        self.rel_pos_bias = nnx.Param(NORMAL(rngs.params(), ((2 * window - 1) ** 2, heads), jnp.float32))
        self.heads, self.window = heads, window

    def __call__(self, x: jax.Array, mask: np.ndarray | None) -> jax.Array:
        bias = jnp.moveaxis(self.rel_pos_bias[...][_position_index(self.window)], -1, 0)  # (heads, L, L)
        bias = bias if mask is None else bias + mask  # (windows, heads, L, L)
        projected = (split_heads(part(x), self.heads) for part in (self.query, self.key, self.value))
        return self.output(attend(*projected, bias))  # (B, windows, L, C)


class Block(Recomputable):
    """Attention in windows, every other block's shifted by half a window; MLP; both pre-norm and residual."""

    def __init__(self, config: HTSATConfig, stage: int, shifted: bool, drop_path: float, *, rngs: nnx.Rngs):
        features, self.grid = config.channels(stage), config.grid(stage)
        self.window = min(config.window_size, self.grid)
        self.shift = self.window // 2 if shifted and self.window < self.grid else 0  # one window: nothing to join
        self.dropout, self.drop_path = config.dropout, drop_path
        self.norm1 = LayerNorm(features, epsilon=EPSILON)
        self.attention = WindowAttention(features, config.heads[stage], self.window, rngs=rngs)
        self.norm2 = LayerNorm(features, epsilon=EPSILON)
        self.mlp = MLP(features, config.mlp_ratio * features, dropout=config.dropout, rngs=rngs)

    def forward(self, x: jax.Array, rng: jax.Array | None) -> jax.Array:
        # The MLP draws at places 0 and 1 of the key.
        y = dropout(self._attend(self.norm1(x)), self.dropout, rng, 2)
        x = x + drop_path(y, self.drop_path, rng, 3)
        return x + drop_path(self.mlp(self.norm2(x), rng), self.drop_path, rng, 4)  # (B, H, W, C)

    def _attend(self, x: jax.Array) -> jax.Array:
        if not self.shift:
            return _join(self.attention(_partition(x, self.window), None), self.window, self.grid)
        windows = _partition(jnp.roll(x, (-self.shift, -self.shift), (1, 2)), self.window)
        y = self.attention(windows, _shift_mask(self.grid, self.window, self.shift))
        return jnp.roll(_join(y, self.window, self.grid), (self.shift, self.shift), (1, 2))


class Merge(nnx.Module):
    """2 × 2 tokens side by side, the rows' parity running fastest; layer norm; linear to twice the channels."""

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        self.norm = LayerNorm(4 * features, epsilon=EPSILON)
        self.reduction = Linear(4 * features, 2 * features, use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 4, 2, 5)
        return self.reduction(self.norm(x.reshape(batch, height // 2, width // 2, 4 * channels)))  # (B, H/2, W/2, 2C)


class Stage(nnx.Module):
    """Blocks of one resolution, then `merge`, but for the last stage."""

    def __init__(self, config: HTSATConfig, stage: int, drop_paths: list[float], *, rngs: nnx.Rngs):
        self.blocks = nnx.List(
            [Block(config, stage, bool(i % 2), rate, rngs=rngs) for i, rate in enumerate(drop_paths)]
        )
        last = stage == len(config.depths) - 1
        self.merge = None if last else Merge(config.channels(stage), rngs=rngs)


class TokenSemanticHead(nnx.Module):
    """Classes of each coarse frame: a convolution over all rows and three frames, zeros beyond the edges."""

    def __init__(self, rows: int, features: int, num_classes: int, *, rngs: nnx.Rngs):
        fan_in = rows * HEAD_FRAMES * features
        self.kernel = _torch_conv(rngs, (rows, HEAD_FRAMES, features, num_classes), fan_in)
        self.bias = _torch_conv(rngs, (num_classes,), fan_in)

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel, n_frames = self.kernel[...], x.shape[2]
        x = jnp.pad(x, ((0, 0), (0, 0), (HEAD_FRAMES // 2, HEAD_FRAMES // 2), (0, 0)))
        taps = [jnp.einsum("brtc,rco->bto", x[:, :, k : k + n_frames], kernel[:, k]) for k in range(HEAD_FRAMES)]
        return sum(taps) + self.bias[...]  # (B, frames, classes)


class HTSAT(nnx.Module):
    """`model(features) -> Outputs`. Compute runs in the dtype of the features (float32 or bfloat16); parameters,
    statistics, `bn0`, interpolation, norms, softmax and what follows the last norm are float32."""

    def __init__(self, config: HTSATConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.bn0 = Norm(config.frontend.n_mels, "none", momentum=config.norm_momentum, epsilon=EPSILON)
        self.patch_embed = PatchEmbed(config.patch_size, config.embed_dim, rngs=rngs)
        rates = iter(np.linspace(0.0, config.drop_path, sum(config.depths)).tolist())
        self.stages = nnx.List(
            [Stage(config, i, [next(rates) for _ in range(depth)], rngs=rngs) for i, depth in enumerate(config.depths)]
        )
        last = len(config.depths) - 1
        self.norm = LayerNorm(config.channels(last), epsilon=EPSILON)
        rows = config.grid(last) // config.folds
        self.head = TokenSemanticHead(rows, config.channels(last), config.num_classes, rngs=rngs)
        per_step = config.strokes_per_step
        self.strokes = StrokeHead(config.channels(last), per_step, rngs=rngs) if per_step else None

    def images(self, features: jax.Array, *, train: bool = False) -> jax.Array:
        """The network's folded input, `(batch, crops, spec_size, spec_size)`: one crop unless the features are longer
        than the image. Batch norm comes first, as officially."""
        config, n_in = self.config, features.shape[2]
        config.check_frames(n_in)
        x = self.bn0(jnp.swapaxes(features, 1, 2).astype(jnp.float32), train)  # (B, T, M)
        x = jnp.stack([x] if n_in <= config.n_frames else crops(x), axis=1)  # (B, crops, T, M)
        return fold(fit(x, config.n_frames, config.length), config.folds).astype(features.dtype)

    def activations(
        self, images: jax.Array, *, train: bool = False, rng: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        """Everything that the network makes of images `(batch, spec_size, spec_size)`.

        Returns `patch_embed`, `stage0_block0`, … and `stage0`, … (merged), each `(batch, row, column, channel)`;
        `frames` `(batch, 32, 768)` and their mean `embedding`; `frame_logits` `(batch, 32, num_classes)`, whose
        sigmoid is the official frame-wise output (there each is repeated 32 times, to 1024), and their mean `logits`.
        """
        rng = rng if train else None
        found = {"patch_embed": self.patch_embed(images)}
        blocks = sum(self.config.depths)
        x = dropout(found["patch_embed"], self.config.dropout, layer_rng(rng, blocks), 0)
        keys = iter([layer_rng(rng, i) for i in range(blocks)])
        for i, stage in enumerate(self.stages):
            for j, block in enumerate(stage.blocks):
                x = found[f"stage{i}_block{j}"] = block(x, next(keys))
            x = found[f"stage{i}"] = x if stage.merge is None else stage.merge(x)
        x = self.norm(x.astype(jnp.float32))  # (B, H, W, C)
        batch, _, columns, channels = x.shape
        x = x.reshape(batch, self.config.folds, -1, columns, channels).swapaxes(1, 2)  # (B, rows, folds, W, C)
        x = x.reshape(batch, x.shape[1], -1, channels)  # time runs through the folds
        found["frames"] = x.mean(1)
        found["embedding"] = found["frames"].mean(1)
        found["frame_logits"] = self.head(x)
        found["logits"] = found["frame_logits"].mean(1)
        return found

    def __call__(self, features: jax.Array, *, train: bool = False, rng: jax.Array | None = None) -> Outputs:
        """
        Args:
          features: `(batch, n_mels, n_frames)`, the frontend's spectrogram in decibels. More frames than the image
            holds (1024) are officially cut into crops whose probabilities are averaged (and in training, other than
            here, into one random crop): the logits are the log-odds of that mean. Embedding and frames are averaged
            too, which is our own choice. `InputError` if `length` does not allow so many.
          train: batch statistics in `bn0` instead of running ones (which are updated), dropout and drop-path.
          rng: key for the latter two; without it they are off.
        """
        images = self.images(features, train=train)
        batch, n_crops = images.shape[:2]
        found = self.activations(images.reshape(-1, *images.shape[2:]), train=train, rng=rng)
        logits, embedding, frames = (
            found[name].reshape(batch, n_crops, *found[name].shape[1:]) for name in ("logits", "embedding", "frames")
        )
        frames, strokes = frames.mean(1), None
        if self.strokes is not None:  # of the window's first round through the image
            n_stream = stream_frames(self.config.frontend, features.shape[2], self.config.strokes_per_second)
            strokes = self.strokes(frames, n_stream)
        return Outputs(average_crops(logits), embedding.mean(1), frames, strokes)
