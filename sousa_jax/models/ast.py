"""AST, the Audio Spectrogram Transformer, in Flax NNX: a ViT-Base on overlapping patches of a spectrogram.

Paper: Y. Gong, Y.-A. Chung, J. Glass, "AST: Audio Spectrogram Transformer", Interspeech 2021 (arXiv:2104.01778).
Official code: github.com/YuanGongND/ast, `src/models/ast_models.py` (on timm 0.4.5's distilled DeiT); the same
network is `ASTForAudioClassification` in Hugging Face transformers. Released weights come in through `ports`.

One difference to the official code, in form but not in numbers: there the table of positions is adapted to another
clip length once, when weights are loaded. Here the table always has its released size and is adapted in every call,
so one set of parameters serves every length, and gradients reach the table through the adaptation.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from sousa_jax.errors import InputError, nearest
from sousa_jax.frontends import FrontendSpec
from sousa_jax.models.heads import StrokeHead, stream_frames, stream_frames_per_step
from sousa_jax.models.layers import LENGTHS, Outputs, Recomputable
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

N_TOKENS = 2  # class and distillation token, in front of the patches

# The released network (AudioSet, mAP 0.4593) as its authors' file runs, and as transformers runs it: with another
# epsilon and a frontend that leaves the clip's mean (every frame loses its own anyway). The numbers hardly differ.
PRESETS: dict[str, dict[str, Any]] = {
    "ast": {},
    "ast_hf": {
        "norm_epsilon": 1e-12,
        "head_norm_epsilon": 1e-12,
        "frontend": FrontendSpec.ast(remove_mean=False),
    },
}


@dataclasses.dataclass(frozen=True)
class ASTConfig:
    """Shape of an AST network.

    Attributes:
      num_classes: size of the logits.
      width: channels of every token.
      depth: number of transformer blocks.
      n_heads: of attention; divides the width. Leaves no trace in the parameters' shapes.
      mlp_width: hidden channels of each block's MLP.
      patch_size: mel bands and frames of a square patch.
      frequency_stride, time_stride: mel bands and frames from patch to patch; a smaller time stride gives more
        steps a second from the same parameters. Frames (and bands) beyond the last whole patch are not seen.
      positions_shape: rows (frequency) and columns (time) of the learned table of positions: of the released 128 mel
        bands and 1024 frames, whatever the frontend gives.
      norm_epsilon: of the layer norms in the blocks and after the last of them.
      head_norm_epsilon: of the class layer's.
      dropout: after the positions are added, after attention and, twice, in the MLP (timm's `drop_rate`).
      drop_path: stochastic depth of the last block; it grows linearly from 0 in the first.
      strokes_per_second: frames a second of the strokes that it is taught to hear beside the name; 0: none. A column
        of patches says what falls within `time_stride` frames from its first one, and itself hears `patch_size` of
        them: at the released strides 100 ms of which it hears 175. Of what follows the last column nothing is said.
      frontend: what turns samples into the network's input.

    Dropout and drop-path are 0 in all released training recipes.
    """

    num_classes: int = 40
    width: int = 768
    depth: int = 12
    n_heads: int = 12
    mlp_width: int = 3072
    patch_size: int = 16
    frequency_stride: int = 10
    time_stride: int = 10
    positions_shape: tuple[int, int] = (12, 101)
    norm_epsilon: float = 1e-6
    head_norm_epsilon: float = 1e-5
    dropout: float = 0.0
    drop_path: float = 0.0
    strokes_per_second: int = 0
    frontend: FrontendSpec = dataclasses.field(default_factory=FrontendSpec.ast)

    def __post_init__(self) -> None:
        object.__setattr__(self, "positions_shape", tuple(self.positions_shape))  # JSON brings it back as a list
        for name in ("num_classes", "width", "depth", "n_heads", "mlp_width", "patch_size", "frequency_stride"):
            _at_least_one(name, getattr(self, name))
        _at_least_one("time_stride", self.time_stride)
        if len(self.positions_shape) != 2 or min(self.positions_shape) < 1:
            raise InputError(f"positions_shape {self.positions_shape} must be rows and columns, each at least 1")
        if self.width % self.n_heads:
            raise InputError(f"width {self.width} is not a multiple of n_heads {self.n_heads}")
        for name in ("dropout", "drop_path"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise InputError(f"{name} {getattr(self, name)} must be at least 0 and below 1")
        self.patch_grid(self.frontend.n_mels, self.frontend.n_frames(self.frontend.window_samples))
        _ = self.strokes_per_step

    @property
    def strokes_per_step(self) -> int:
        """Frames of the stroke stream from patch to patch; `InputError` if they are not whole."""
        return stream_frames_per_step(self.frontend, self.time_stride, self.strokes_per_second)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "ASTConfig":
        """A released variant by name (`PRESETS`): `ast` or `ast_hf`."""
        if name not in PRESETS:
            raise InputError(f"unknown AST variant {name!r}; nearest: {nearest(name, PRESETS) or ', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **changes})

    def for_window(self, window_s: float, length: str) -> "ASTConfig":
        """The same network on windows of `window_s` seconds.

        `fill`: for exactly the window's frames, nothing is padded; the positions are cut or interpolated.
        `official`: zeros are appended to the log mel, or its end is cut, to make the released 1024 frames.
        """
        if length not in LENGTHS:
            raise InputError(f"length {length!r} is unknown, expected one of {LENGTHS}")
        target_frames = FrontendSpec.ast().target_frames if length == "official" else 0
        frontend = dataclasses.replace(self.frontend, window_s=window_s, target_frames=target_frames)
        return dataclasses.replace(self, frontend=frontend)

    def patch_grid(self, n_mels: int, n_frames: int) -> tuple[int, int]:
        """How many patches lie along frequency and time; `InputError` if not one fits."""
        if min(n_mels, n_frames) < self.patch_size:
            raise InputError(
                f"{n_mels} mel bands x {n_frames} frames are less than one patch, "
                f"at least {self.patch_size} of both are needed"
            )
        n_rows = (n_mels - self.patch_size) // self.frequency_stride + 1
        return n_rows, (n_frames - self.patch_size) // self.time_stride + 1


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise InputError(f"{name} {value} must be at least 1")


# PyTorch's default for the weights and biases of convolutions and linear layers. The official code leaves the patch
# convolution and the class layer at it: it makes both after timm has initialized the rest.
def _pytorch(rngs: nnx.Rngs, fan_in: int, shape: tuple[int, ...]) -> jax.Array:
    bound = fan_in**-0.5
    return jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound)


class PatchEmbed(nnx.Module):
    """A convolution over `(mel, frame)` without padding, as slices and one matrix product."""

    def __init__(self, config: ASTConfig, *, rngs: nnx.Rngs):
        size, width = config.patch_size, config.width
        self.kernel = nnx.Param(_pytorch(rngs, size * size, (size, size, width)))
        self.bias = nnx.Param(_pytorch(rngs, size * size, (width,)))
        self.config = config

    def __call__(self, x: jax.Array) -> jax.Array:
        """`(batch, n_mels, n_frames)` to `(batch, rows · columns, width)`, row by row."""
        config, size = self.config, self.config.patch_size
        rows, columns = config.patch_grid(*x.shape[1:])
        x = jnp.stack(_members(x, 2, size, config.time_stride, columns), axis=-1)  # (B, M, columns, 16)
        x = jnp.concatenate(_members(x, 1, size, config.frequency_stride, rows), axis=-1)  # (B, rows, columns, 256)
        x = x.reshape(x.shape[0], rows * columns, size * size)
        return project(x, self.kernel[...].reshape(size * size, -1), self.bias[...])


def _members(x: jax.Array, axis: int, size: int, stride: int, count: int) -> list[jax.Array]:
    """Of `count` overlapping windows along an axis the first members, the second ones, ... up to `size`."""
    return [lax.slice_in_dim(x, i, i + (count - 1) * stride + 1, stride, axis) for i in range(size)]


class Attention(nnx.Module):
    """Multi-head self-attention of all tokens, `(batch, tokens, width)`."""

    def __init__(self, config: ASTConfig, *, rngs: nnx.Rngs):
        self.query = Linear(config.width, config.width, rngs=rngs)
        self.key = Linear(config.width, config.width, rngs=rngs)
        self.value = Linear(config.width, config.width, rngs=rngs)
        self.output = Linear(config.width, config.width, rngs=rngs)
        self.n_heads = config.n_heads

    def __call__(self, x: jax.Array) -> jax.Array:
        query, key, value = (split_heads(linear(x), self.n_heads) for linear in (self.query, self.key, self.value))
        return self.output(attend(query, key, value))  # (B, heads, tokens, 64) each → (B, tokens, D)


class Block(Recomputable):
    """Pre-norm transformer block: attention, then MLP, each added to what it read."""

    def __init__(self, config: ASTConfig, drop_path_rate: float, *, rngs: nnx.Rngs):
        self.norm1 = LayerNorm(config.width, epsilon=config.norm_epsilon)
        self.attention = Attention(config, rngs=rngs)
        self.norm2 = LayerNorm(config.width, epsilon=config.norm_epsilon)
        self.mlp = MLP(config.width, config.mlp_width, dropout=config.dropout, rngs=rngs)
        self.dropout, self.drop_path = config.dropout, drop_path_rate

    def forward(self, x: jax.Array, rng: jax.Array | None) -> jax.Array:
        y = dropout(self.attention(self.norm1(x)), self.dropout, rng, 2)  # the MLP draws in places 0 and 1
        x = x + drop_path(y, self.drop_path, rng, 3)
        return x + drop_path(self.mlp(self.norm2(x), rng), self.drop_path, rng, 4)


class Head(nnx.Module):
    """Layer norm and linear on the embedding. All of it is new when the official code fine-tunes."""

    def __init__(self, config: ASTConfig, *, rngs: nnx.Rngs):
        self.norm = LayerNorm(config.width, epsilon=config.head_norm_epsilon)
        self.output = Linear(config.width, config.num_classes, rngs=rngs)
        self.output.kernel[...] = _pytorch(rngs, config.width, (config.width, config.num_classes))
        self.output.bias[...] = _pytorch(rngs, config.width, (config.num_classes,))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.output(self.norm(x))


class AST(nnx.Module):
    """`model(features) -> Outputs`. Compute runs in the dtype of the features (float32 or bfloat16);
    parameters, the norms' internals, softmax and all outputs are float32.

    Initialized as timm 0.4.5 and the official code do for training from scratch: N(0, 0.02) for linear layers,
    tokens and positions, PyTorch's default for the patch convolution and the class layer. The paper itself starts
    from ImageNet weights.
    """

    def __init__(self, config: ASTConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.patch_embed = PatchEmbed(config, rngs=rngs)
        self.class_token = nnx.Param(NORMAL(rngs.params(), (config.width,)))
        self.distillation_token = nnx.Param(NORMAL(rngs.params(), (config.width,)))
        rows, columns = config.positions_shape
        self.positions = nnx.Param(NORMAL(rngs.params(), (N_TOKENS + rows * columns, config.width)))
        rates = [config.drop_path * i / max(config.depth - 1, 1) for i in range(config.depth)]
        self.blocks = nnx.List([Block(config, rate, rngs=rngs) for rate in rates])
        self.norm = LayerNorm(config.width, epsilon=config.norm_epsilon)
        self.head = Head(config, rngs=rngs)
        per_step = config.strokes_per_step
        self.strokes = StrokeHead(config.width, per_step, rngs=rngs) if per_step else None

    def stages(self, features: jax.Array, *, train: bool = False, rng: jax.Array | None = None) -> dict[str, jax.Array]:
        """What `(batch, n_mels, n_frames)` becomes on its way, each `(batch, tokens, width)`: `patch_embed`, without
        the two leading tokens; `tokens`, with them and with positions; then each block's output, `block00` ..."""
        rng = rng if train else None
        patches = self.patch_embed(features)  # (B, rows · columns, D)
        leading = jnp.stack([self.class_token[...], self.distillation_token[...]]).astype(patches.dtype)
        leading = jnp.broadcast_to(leading, (patches.shape[0], *leading.shape))
        positions = self._positions(*self.config.patch_grid(*features.shape[1:])).astype(patches.dtype)
        x = jnp.concatenate([leading, patches], axis=1) + positions  # (B, 2 + rows · columns, D)
        stages = {"patch_embed": patches, "tokens": x}
        x = dropout(x, self.config.dropout, layer_rng(rng, self.config.depth), 0)
        for i, block in enumerate(self.blocks):
            x = block(x, layer_rng(rng, i))
            stages[f"block{i:02d}"] = x
        return stages

    def _positions(self, rows: int, columns: int) -> jax.Array:
        """The table for a grid of patches, `(2 + rows · columns, width)` float32: along each axis the middle of it if
        the grid is smaller, interpolated linearly if it is larger."""
        table = self.positions[...]
        grid = table[N_TOKENS:].reshape(*self.config.positions_shape, -1)
        for axis, wanted in enumerate((rows, columns)):
            found = grid.shape[axis]
            if wanted < found:
                start = found // 2 - wanted // 2
                grid = lax.slice_in_dim(grid, start, start + wanted, axis=axis)
        # Corners are not aligned, as in PyTorch's default; an axis of the right size stays as it is.
        grid = jax.image.resize(grid, (rows, columns, grid.shape[2]), "linear", antialias=False)
        return jnp.concatenate([table[:N_TOKENS], grid.reshape(rows * columns, -1)])

    def __call__(self, features: jax.Array, *, train: bool = False, rng: jax.Array | None = None) -> Outputs:
        """
        Args:
          features: `(batch, n_mels, n_frames)`, the frontend's spectrogram; any number of frames from `patch_size` on.
          train: dropout and drop-path, if there is a key.
          rng: key for both.

        Returns:
          Outputs; `frames` has one step a column of patches, `(n_frames - 16) // time_stride + 1` of them, `strokes` as
          many as `stream_frames` says.

        Raises:
          InputError: the features are smaller than one patch.
        """
        *_, x = self.stages(features, train=train, rng=rng).values()
        x = self.norm(x.astype(jnp.float32))
        embedding = x[:, :N_TOKENS].mean(1)
        patches = x[:, N_TOKENS:].reshape(x.shape[0], *self.config.patch_grid(*features.shape[1:]), -1)
        frames, strokes = patches.mean(1), None  # (B, columns, D)
        if self.strokes is not None:
            n_stream = stream_frames(self.config.frontend, features.shape[2], self.config.strokes_per_second)
            strokes = self.strokes(frames, n_stream)
        return Outputs(self.head(embedding), embedding, frames, strokes)
