"""EfficientAT's MobileNets (`mn*`) in Flax NNX: MobileNetV3-Large with one input channel.

Paper: F. Schmid, K. Koutini, G. Widmer, "Efficient Large-Scale Audio Tagging Via
Transformer-to-CNN Knowledge Distillation", ICASSP 2023 (arXiv:2211.04772).
Official code: github.com/fschmid56/EfficientAT, `models/mn/`; released weights come in through `ports`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sousa_jax.errors import InputError, nearest
from sousa_jax.frontends import FrontendSpec
from sousa_jax.models.heads import (
    RhythmHead,
    StrokeHead,
    dilated_blocks,
    probabilities,
    stream_frames,
    stream_frames_per_step,
)
from sousa_jax.models.layers import Norm, Outputs, Recomputable, depthwise_conv, pointwise_conv

# kernel, expanded channels, output channels, squeeze-excitation, activation, stride: at width 1.
# Strides of 2 are replaced by `EfficientATConfig.strides`, in order.
BLOCKS = (
    (3, 16, 16, False, "relu", 1),
    (3, 64, 24, False, "relu", 2),
    (3, 72, 24, False, "relu", 1),
    (5, 72, 40, True, "relu", 2),
    (5, 120, 40, True, "relu", 1),
    (5, 120, 40, True, "relu", 1),
    (3, 240, 80, False, "hard_swish", 2),
    (3, 200, 80, False, "hard_swish", 1),
    (3, 184, 80, False, "hard_swish", 1),
    (3, 184, 80, False, "hard_swish", 1),
    (3, 480, 112, True, "hard_swish", 1),
    (3, 672, 112, True, "hard_swish", 1),
    (5, 672, 160, True, "hard_swish", 2),
    (5, 960, 160, True, "hard_swish", 1),
    (5, 960, 160, True, "hard_swish", 1),
)
EPSILON = 1e-3  # of batch norm, officially
_AGGREGATIONS = {"max": jnp.max, "avg": jnp.mean, "add": jnp.sum, "min": jnp.min}
HEADS = ("mlp", "fully_convolutional", "multihead_attention_pooling")

# With strokes: the last block of each resolution, of which the first keep every mel band apart; and what follows.
PYRAMID_BLOCKS, FLAT_BLOCKS = (0, 2, 5, 11, 14), 3
PYRAMID_WIDTH, PYRAMID_DILATIONS = 64, (1, 2, 4, 8)
STEM_STRIDE = 2


def _mels(n_mels: int) -> FrontendSpec:
    return FrontendSpec(n_mels=n_mels)


def _hop_ms(hop_ms: int) -> FrontendSpec:
    return FrontendSpec(hop_length=32 * hop_ms)


# The released variants: width, hop, mel bands, head and strides of each.
PRESETS: dict[str, dict[str, Any]] = {
    **{f"mn{tenths:02d}": {"width": tenths / 10} for tenths in (1, 2, 4, 5, 10, 20, 30, 40)},
    **{f"mn10_hop_{ms}": {"frontend": _hop_ms(ms)} for ms in (5, 15, 20, 25)},
    **{f"mn10_mels_{n}": {"frontend": _mels(n)} for n in (40, 64, 256)},
    "mn10_fc": {"head": "fully_convolutional"},
    "mn10_fc_s2221": {"head": "fully_convolutional", "strides": (2, 2, 2, 1)},
    "mn10_fc_s2211": {"head": "fully_convolutional", "strides": (2, 2, 1, 1)},
}


@dataclasses.dataclass(frozen=True)
class EfficientATConfig:
    """Shape of an EfficientAT network.

    Attributes:
      width: multiplies every channel count.
      num_classes: size of the logits.
      head: one of `HEADS`; `attention_heads` is for the last of them.
      strides: of the four blocks that halve the resolution in the original (C1 .. C4).
      se_dims: squeeze-excitation over channel (`c`), mel band (`f`) and frame (`t`), side by side;
        any letters of `cft`, or the empty string for none. `t` ties the network to one clip length.
      se_agg: how several such branches are joined: max, avg, add, min.
      se_reduction: the bottleneck is this many times narrower.
      dropout: in the `mlp` head.
      norm_momentum: how much of the running statistics stays at each step. The official 0.99 suits runs of
        many thousand steps; a short run needs less, or its statistics still hold their initial ones.
      grouped_init: scales the initial depthwise kernels by their own fan-out, k², instead of PyTorch's k² times
        channels. The official init leaves depthwise outputs far below batch norm's epsilon.
      strokes_per_second: frames a second of the strokes that it is taught to hear; 0: none. With strokes the name is
        read from them alone, so `head`, `attention_heads` and `dropout` change nothing. The finest features have one
        step every other frame of the spectrogram, 10 ms at the hop of 5 ms, and say what falls from there to the next.
      frontend: what turns samples into the network's input.
    """

    width: float = 1.0
    num_classes: int = 40
    head: str = "mlp"
    attention_heads: int = 4
    strides: tuple[int, int, int, int] = (2, 2, 2, 2)
    se_dims: str = "c"
    se_agg: str = "max"
    se_reduction: int = 4
    dropout: float = 0.2
    norm_momentum: float = 0.99
    grouped_init: bool = False
    strokes_per_second: int = 0
    frontend: FrontendSpec = dataclasses.field(default_factory=FrontendSpec)

    def __post_init__(self) -> None:
        object.__setattr__(self, "strides", tuple(self.strides))  # JSON brings it back as a list
        if self.head not in HEADS:
            raise InputError(f"head {self.head!r} is unknown, expected one of {HEADS}")
        if self.se_agg not in _AGGREGATIONS:
            raise InputError(f"se_agg {self.se_agg!r} is unknown, expected one of {tuple(_AGGREGATIONS)}")
        if len(set(self.se_dims)) != len(self.se_dims) or not set(self.se_dims) <= set("cft"):
            raise InputError(f"se_dims {self.se_dims!r} is not made of different letters of 'cft'")
        if len(self.strides) != 4 or not set(self.strides) <= {1, 2}:
            raise InputError(f"strides {self.strides} must be four numbers, each 1 or 2")
        _ = self.strokes_per_step

    @property
    def strokes_per_step(self) -> int:
        """Frames of the stroke stream in a step of the stem's map; `InputError` if they are not whole."""
        return stream_frames_per_step(self.frontend, STEM_STRIDE, self.strokes_per_second)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "EfficientATConfig":
        """A released variant by name (`PRESETS`), for example `mn10` or `mn10_hop_5`."""
        if name not in PRESETS:
            raise InputError(f"unknown EfficientAT variant {name!r}; nearest: {nearest(name, PRESETS)}")
        return cls(**{**PRESETS[name], **changes})

    def for_window(self, window_s: float, length: str) -> "EfficientATConfig":
        """The same network on windows of `window_s` seconds. It is convolutional: both of `LENGTHS` are the same."""
        return dataclasses.replace(self, frontend=dataclasses.replace(self.frontend, window_s=window_s))

    def channels(self, at_width_one: int) -> int:
        """Channels at this width: a multiple of 8, at least 8, never below 90 % of the exact product."""
        return _divisible_by_8(at_width_one * self.width)


def _divisible_by_8(value: float) -> int:
    rounded = max(8, int(value + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * value else rounded


def _kaiming_fan_out(rngs: nnx.Rngs, shape: tuple[int, ...], fan_out: int) -> nnx.Param:
    return nnx.Param(jax.random.normal(rngs.params(), shape) * (2.0 / fan_out) ** 0.5)


class InputConv(nnx.Module):
    """The 3 × 3 convolution of stride 2 on the single-channel spectrogram, as nine slices and one product."""

    def __init__(self, out_channels: int, config: EfficientATConfig, *, rngs: nnx.Rngs):
        self.kernel = _kaiming_fan_out(rngs, (3, 3, out_channels), fan_out=9 * out_channels)
        self.norm = Norm(out_channels, "hard_swish", momentum=config.norm_momentum, epsilon=EPSILON)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        height, width = (x.shape[1] + 1) // 2, (x.shape[2] + 1) // 2
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1)))
        patches = [x[:, i : i + 2 * height - 1 : 2, j : j + 2 * width - 1 : 2] for i in range(3) for j in range(3)]
        kernel = self.kernel[...].reshape(9, -1).astype(x.dtype)
        return self.norm(pointwise_conv(jnp.stack(patches, axis=-1), kernel), train)  # (B, M/2, T/2, C)


class Pointwise(nnx.Module):
    """1 × 1 convolution, batch norm, activation. `lora` is an adapter's place."""

    def __init__(self, in_channels, out_channels, activation, config: EfficientATConfig, *, rngs: nnx.Rngs):
        self.kernel = _kaiming_fan_out(rngs, (in_channels, out_channels), fan_out=out_channels)
        self.norm = Norm(out_channels, activation, momentum=config.norm_momentum, epsilon=EPSILON)
        self.lora = nnx.data(None)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = pointwise_conv(x, self.kernel[...].astype(x.dtype))
        return self.norm(y if self.lora is None else y + self.lora(x), train)


class Depthwise(nnx.Module):
    """Depthwise k × k convolution, batch norm, activation."""

    def __init__(self, channels, kernel_size, stride, activation, config: EfficientATConfig, *, rngs: nnx.Rngs):
        shape = (kernel_size, kernel_size, channels)
        fan_out = kernel_size**2 * (1 if config.grouped_init else channels)
        self.kernel = _kaiming_fan_out(rngs, shape, fan_out)
        self.norm = Norm(channels, activation, momentum=config.norm_momentum, epsilon=EPSILON)
        self.stride = stride

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return self.norm(depthwise_conv(x, self.kernel[...].astype(x.dtype), self.stride), train)


def _linear(in_features: int, out_features: int, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(in_features, out_features, kernel_init=nnx.initializers.normal(0.01), rngs=rngs)


class SqueezeExcitation(nnx.Module):
    """Gates one axis of `(batch, mel, frame, channel)` by its own mean; the gate is a plain sigmoid.

    The official code gates only channels and frames: its view of a mel-band mean does not fit its linear
    layer. Here `f` does what it says there.
    """

    def __init__(self, dim: str, size: int, reduction: int, *, rngs: nnx.Rngs):
        squeezed = _divisible_by_8(size // reduction)
        self.axis = {"f": 1, "t": 2, "c": 3}[dim]
        self.fc1 = _linear(size, squeezed, rngs)
        self.fc2 = _linear(squeezed, size, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        others = tuple(axis for axis in (1, 2, 3) if axis != self.axis)
        mean = jnp.mean(x, axis=others, dtype=jnp.float32)  # (B, size)
        gate = nnx.sigmoid(self.fc2(nnx.relu(self.fc1(mean)))).astype(x.dtype)
        return x * jnp.expand_dims(gate, others)


class ConcurrentSE(nnx.Module):
    """Squeeze-excitation over several axes side by side, joined elementwise."""

    def __init__(self, config: EfficientATConfig, sizes: dict[str, int], *, rngs: nnx.Rngs):
        self.branches = nnx.List(
            [SqueezeExcitation(dim, sizes[dim], config.se_reduction, rngs=rngs) for dim in config.se_dims]
        )
        self.agg = config.se_agg

    def __call__(self, x: jax.Array) -> jax.Array:
        if len(self.branches) == 1:
            return self.branches[0](x)
        return _AGGREGATIONS[self.agg](jnp.stack([branch(x) for branch in self.branches]), axis=0)


class InvertedResidual(Recomputable):
    """1 × 1 expansion (absent where it would not widen), depthwise, squeeze-excitation, 1 × 1 projection."""

    def __init__(self, in_channels, kernel_size, expanded, out_channels, activation, stride, se, config, *, rngs):
        widens = expanded != in_channels
        self.expand = Pointwise(in_channels, expanded, activation, config, rngs=rngs) if widens else None
        self.depthwise = Depthwise(expanded, kernel_size, stride, activation, config, rngs=rngs)
        self.se = se
        self.project = Pointwise(expanded, out_channels, "none", config, rngs=rngs)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: jax.Array, train: bool) -> jax.Array:
        y = x if self.expand is None else self.expand(x, train)
        y = self.depthwise(y, train)
        y = y if self.se is None else self.se(y)
        y = self.project(y, train)
        return x + y if self.residual else y


class MLPHead(nnx.Module):
    """Linear, hard-swish, dropout, linear on the pooled features."""

    def __init__(self, in_features: int, config: EfficientATConfig, *, rngs: nnx.Rngs):
        self.hidden = _linear(in_features, config.channels(1280), rngs)
        self.dropout = nnx.Dropout(config.dropout)
        self.output = _linear(config.channels(1280), config.num_classes, rngs)

    def __call__(self, x: jax.Array, pooled: jax.Array, train: bool, rng: jax.Array | None) -> jax.Array:
        hidden = nnx.hard_swish(self.hidden(pooled))
        return self.output(self.dropout(hidden, deterministic=not train, rngs=rng))


class ConvHead(nnx.Module):
    """1 × 1 convolution to the classes, batch norm (PyTorch's default constants), mean over mel and time."""

    def __init__(self, in_features: int, config: EfficientATConfig, *, rngs: nnx.Rngs):
        self.kernel = _kaiming_fan_out(rngs, (in_features, config.num_classes), fan_out=config.num_classes)
        self.norm = Norm(config.num_classes, "none", momentum=0.9, epsilon=1e-5)

    def __call__(self, x: jax.Array, pooled: jax.Array, train: bool, rng: jax.Array | None) -> jax.Array:
        logits = self.norm(pointwise_conv(x, self.kernel[...].astype(x.dtype)), train)
        return logits.mean((1, 2), dtype=jnp.float32)


class AttentionHead(nnx.Module):
    """Multi-head attention pooling over time (PSLA, arXiv:2102.01243), mel bands averaged first."""

    def __init__(self, in_features: int, config: EfficientATConfig, *, rngs: nnx.Rngs):
        self.heads, self.classes = config.attention_heads, config.num_classes
        self.proj = _linear(in_features, 2 * self.heads * self.classes, rngs)
        self.head_weight = nnx.Param(jnp.full((self.heads,), 1.0 / self.heads))

    def __call__(self, x: jax.Array, pooled: jax.Array, train: bool, rng: jax.Array | None) -> jax.Array:
        frames = x.mean(1, dtype=jnp.float32)  # (B, T, C)
        both = self.proj(frames).reshape(*frames.shape[:2], 2, self.heads, self.classes)
        attention = jnp.clip(nnx.sigmoid(both[:, :, 0]), 1e-7, 1.0 - 1e-7)  # (B, T, heads, classes)
        pooled_heads = (attention / attention.sum(1, keepdims=True) * both[:, :, 1]).sum(1)
        return jnp.einsum("bhc,h->bc", pooled_heads, self.head_weight[...])


_HEAD_CLASSES = dict(zip(HEADS, (MLPHead, ConvHead, AttentionHead), strict=True))


class Pyramid(nnx.Module):
    """Maps of several resolutions → features at the rate of the finest, `(B, T, 64)` float32.

    Each is mapped linearly to one width, fine ones with all their mel bands side by side and coarse ones with the bands
    averaged; its steps are repeated to the finest rate; the sum goes through dilated convolutions along time.

    Args:
      shapes: mel bands and channels of each map, the finest first.
      repeats: steps of the finest map in one of each.
    """

    def __init__(self, shapes: list[tuple[int, int]], repeats: list[int], *, rngs: nnx.Rngs):
        sizes = [mels * channels if i < FLAT_BLOCKS else channels for i, (mels, channels) in enumerate(shapes)]
        self.levels = nnx.List([nnx.Linear(size, PYRAMID_WIDTH, rngs=rngs) for size in sizes])
        self.blocks = dilated_blocks(PYRAMID_WIDTH, PYRAMID_DILATIONS, rngs=rngs)
        self.repeats = tuple(repeats)

    def __call__(self, maps: list[jax.Array]) -> jax.Array:
        """maps: `(B, mel, T, C)` each."""
        batch, _, n_steps, _ = maps[0].shape
        total = 0.0
        for i, (x, level, repeat) in enumerate(zip(maps, self.levels, self.repeats, strict=True)):
            if i < FLAT_BLOCKS:
                x = jnp.swapaxes(x, 1, 2).reshape(batch, x.shape[2], -1)  # (B, T, mel · C)
            else:
                x = x.mean(1, dtype=jnp.float32)
            total += jnp.repeat(level(x.astype(jnp.float32)), repeat, axis=1)[:, :n_steps]
        for block in self.blocks:
            total = block(total)
        return total


class EfficientAT(nnx.Module):
    """`model(features) -> Outputs`. Compute runs in the dtype of the features (float32 or bfloat16);
    parameters, batch-norm statistics, pooling and logits are float32.

    With `strokes_per_second` the convolution `last` and the head give way to `pyramid`, `strokes` and `rhythm`: frames
    of high rate, the strokes that fall in them, and the name that those strokes have. All of that is float32.
    """

    def __init__(self, config: EfficientATConfig, *, rngs: nnx.Rngs):
        self.config = config
        spec = config.frontend
        in_channels = config.channels(16)
        mels, frames = (spec.n_mels + 1) // 2, (spec.n_frames(spec.window_samples) + 1) // 2
        self.stem = InputConv(in_channels, config, rngs=rngs)
        blocks, shapes, repeats = [], [], []
        strides = iter(config.strides)
        for kernel_size, expanded, out_channels, use_se, activation, stride in BLOCKS:
            stride = next(strides) if stride == 2 else 1
            expanded, out_channels = config.channels(expanded), config.channels(out_channels)
            mels, frames = (mels - 1) // stride + 1, (frames - 1) // stride + 1
            sizes = {"c": expanded, "f": mels, "t": frames}
            se = ConcurrentSE(config, sizes, rngs=rngs) if use_se and config.se_dims else None
            shape = (in_channels, kernel_size, expanded, out_channels, activation, stride)
            blocks.append(InvertedResidual(*shape, se, config, rngs=rngs))
            in_channels = out_channels
            shapes.append((mels, out_channels))
            repeats.append(repeats[-1] * stride if repeats else 1)
        self.blocks = nnx.List(blocks)
        per_second, width = config.strokes_per_second, 6 * in_channels
        self.last = None if per_second else Pointwise(in_channels, width, "hard_swish", config, rngs=rngs)
        self.head = None if per_second else _HEAD_CLASSES[config.head](width, config, rngs=rngs)
        shapes, repeats = ([of[i] for i in PYRAMID_BLOCKS] for of in (shapes, repeats))
        self.pyramid = Pyramid(shapes, repeats, rngs=rngs) if per_second else None
        self.strokes = StrokeHead(PYRAMID_WIDTH, config.strokes_per_step, rngs=rngs) if per_second else None
        self.rhythm = RhythmHead(config.num_classes, per_second, rngs=rngs) if per_second else None

    def stages(self, features: jax.Array, *, train: bool = False) -> list[jax.Array]:
        """The 17 intermediate feature maps, each `(batch, mel, frame, channel)`: stem, blocks, last; with strokes 16,
        there is no last."""
        maps = [self.stem(features, train)]
        for block in self.blocks:
            maps.append(block(maps[-1], train))
        return maps if self.last is None else [*maps, self.last(maps[-1], train)]

    def __call__(self, features: jax.Array, *, train: bool = False, rng: jax.Array | None = None) -> Outputs:
        """
        Args:
          features: `(batch, n_mels, n_frames)`, the frontend's spectrogram; any number of frames (unless
            `se_dims` has `t`).
          train: batch statistics instead of running ones (which are updated), and dropout.
          rng: key for dropout, needed when training.
        """
        maps = self.stages(features, train=train)
        if self.pyramid is not None:
            frames = self.pyramid([maps[1 + i] for i in PYRAMID_BLOCKS])  # (B, T / 2, 64)
            n_stream = stream_frames(self.config.frontend, features.shape[2], self.config.strokes_per_second)
            strokes = self.strokes(frames, n_stream)
            return Outputs(*self.rhythm(probabilities(strokes)), frames, strokes)
        x = maps[-1]
        embedding = x.mean((1, 2), dtype=jnp.float32)
        frames = x.mean(1, dtype=jnp.float32)  # (B, T / 32, C)
        return Outputs(self.head(x, embedding, train, rng).astype(jnp.float32), embedding, frames)
