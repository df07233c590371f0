"""EfficientAT in PyTorch with the official names, in a form that exports to Core ML without loss.

The twin of `sousa_jax.models.efficientat` for inference. Everything is 4-D and channels-first, linear layers are 1 × 1
convolutions, axes are never squeezed, nothing is written in place: the layout that Apple's Neural Engine prefers
(machinelearning.apple.com/research/neural-engine-transformers). Sizes are fixed at construction, so that a trace holds
no arithmetic on shapes.

Official code, whose names the state dict has: github.com/fschmid56/EfficientAT, `models/mn/`.
"""

import functools
from collections import OrderedDict
from typing import NamedTuple

import torch
from torch import nn

from sousa_jax.models.efficientat import BLOCKS, EPSILON, EfficientATConfig


class HardSwish(nn.Module):
    """Written out, because coremltools makes one operation more of `nn.Hardswish`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * nn.functional.hardsigmoid(x)


_ACTIVATIONS = {"relu": nn.ReLU, "hard_swish": HardSwish}


class EfficientAT(nn.Module):
    """`(1, 1, n_mels, n_frames)` float32, the frontend's spectrogram, to logits `(1, num_classes)`."""

    def __init__(self, config: EfficientATConfig):
        super().__init__()
        width = config.channels(BLOCKS[-1][2])
        self.features = nn.Sequential(*body(config), conv_norm(width, 6 * width, activation="hard_swish"))
        self.classifier = _HEADS[config.head](6 * width, config)

    def forward(self, log_mel: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(log_mel)).flatten(1)


def body(config: EfficientATConfig) -> list[nn.Module]:
    """The stem and the 15 blocks, each `(1, C, mel, T)` to the same of other sizes."""
    channels = config.channels(16)
    layers: list[nn.Module] = [conv_norm(1, channels, 3, stride=2, activation="hard_swish")]
    for (kernel, expanded, _, use_se, activation, _), shape in zip(BLOCKS, block_shapes(config), strict=True):
        expanded = config.channels(expanded)
        sizes = {"c": expanded, "f": shape.mels, "t": shape.frames}
        se = ConcurrentSE(config, sizes) if use_se and config.se_dims else None
        layers.append(InvertedResidual(channels, kernel, expanded, shape.channels, activation, shape.stride, se))
        channels = shape.channels
    return layers


class BlockShape(NamedTuple):
    """What a block gives: `(1, channels, mels, frames)`; `stride` is its own, `repeat` the product of all so far."""

    channels: int
    mels: int
    frames: int
    stride: int
    repeat: int


def block_shapes(config: EfficientATConfig) -> list[BlockShape]:
    """Of the 15 blocks."""
    spec = config.frontend
    mels, frames, repeat = (spec.n_mels + 1) // 2, (spec.n_frames(spec.window_samples) + 1) // 2, 1
    strides, shapes = iter(config.strides), []
    for _, _, channels, _, _, stride in BLOCKS:
        stride = next(strides) if stride == 2 else 1
        mels, frames, repeat = (mels - 1) // stride + 1, (frames - 1) // stride + 1, repeat * stride
        shapes.append(BlockShape(config.channels(channels), mels, frames, stride, repeat))
    return shapes


def conv_norm(
    in_channels: int, out_channels: int, kernel: int = 1, *, stride: int = 1, groups: int = 1, activation: str = "none"
) -> nn.Sequential:
    """Convolution, batch norm, activation."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    after = [] if activation == "none" else [_ACTIVATIONS[activation]()]
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels, eps=EPSILON), *after)


def linear(in_features: int, out_features: int) -> nn.Conv2d:
    """A 1 × 1 convolution whose state dict is that of `nn.Linear`, as the official one has it."""
    conv = nn.Conv2d(in_features, out_features, 1)
    conv.register_load_state_dict_pre_hook(_to_kernel)
    conv.register_state_dict_post_hook(_to_matrix)
    return conv


def _to_kernel(module, state, prefix, *_) -> None:
    if (key := f"{prefix}weight") in state:
        state[key] = state[key][:, :, None, None]


def _to_matrix(module, state, prefix, _) -> None:
    state[f"{prefix}weight"] = state[f"{prefix}weight"].flatten(1)


class SqueezeExcitation(nn.Module):
    """Gates one axis by its own mean over the others."""

    def __init__(self, dim: str, size: int, reduction: int):
        super().__init__()
        squeezed = EfficientATConfig(width=1.0).channels(size // reduction)
        self.axis = {"c": 1, "f": 2, "t": 3}[dim]
        self.fc1, self.fc2 = linear(size, squeezed), linear(squeezed, size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean([axis for axis in (1, 2, 3) if axis != self.axis], keepdim=True)
        if self.axis == 1:
            return x * self._gate(mean)
        return x * self._gate(mean.transpose(1, self.axis)).transpose(1, self.axis)

    def _gate(self, mean: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.fc2(torch.relu(self.fc1(mean))))


class ConcurrentSE(nn.Module):
    """Squeeze-excitation over several axes side by side, joined elementwise."""

    def __init__(self, config: EfficientATConfig, sizes: dict[str, int]):
        super().__init__()
        self.conc_se_layers = nn.ModuleList(
            [SqueezeExcitation(dim, sizes[dim], config.se_reduction) for dim in config.se_dims]
        )
        self.agg = config.se_agg

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gated = [branch(x) for branch in self.conc_se_layers]
        join = {"max": torch.maximum, "min": torch.minimum}.get(self.agg, torch.add)
        joined = functools.reduce(join, gated)
        return joined / len(gated) if self.agg == "avg" else joined


class InvertedResidual(nn.Module):
    """1 × 1 expansion (absent where it would not widen), depthwise, squeeze-excitation, 1 × 1 projection."""

    def __init__(self, in_channels, kernel, expanded, out_channels, activation, stride, se):
        super().__init__()
        layers = [conv_norm(in_channels, expanded, activation=activation)] if expanded != in_channels else []
        layers.append(conv_norm(expanded, expanded, kernel, stride=stride, groups=expanded, activation=activation))
        layers += [] if se is None else [se]
        self.block = nn.Sequential(*layers, conv_norm(expanded, out_channels))
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.block(x)
        return x + y if self.residual else y


def _mean(x: torch.Tensor) -> torch.Tensor:
    return x.mean([2, 3], keepdim=True)


class MLPHead(nn.Sequential):
    """Mean over mel and time, linear, hard-swish, linear; layers have the numbers that the official code gives them."""

    def __init__(self, width: int, config: EfficientATConfig):
        hidden = config.channels(1280)
        layers = {"2": linear(width, hidden), "3": HardSwish(), "5": linear(hidden, config.num_classes)}
        super().__init__(OrderedDict(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(_mean(x))


class ConvHead(nn.Sequential):
    """1 × 1 convolution to the classes, batch norm (PyTorch's default constants), mean over mel and time."""

    def __init__(self, width: int, config: EfficientATConfig):
        super().__init__(nn.Conv2d(width, config.num_classes, 1, bias=False), nn.BatchNorm2d(config.num_classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _mean(super().forward(x))


class AttentionHead(nn.Module):
    """Multi-head attention pooling over time, mel bands averaged first."""

    def __init__(self, width: int, config: EfficientATConfig):
        super().__init__()
        self.heads, self.classes = config.attention_heads, config.num_classes
        self.subspace_proj = linear(width, 2 * self.heads * self.classes)
        self.head_weight = nn.Parameter(torch.full((1, self.heads, 1), 1.0 / self.heads))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        attention, answers = self.subspace_proj(x.mean(2, keepdim=True)).chunk(2, dim=1)  # (1, heads · classes, 1, T)
        attention = torch.clamp(torch.sigmoid(attention), 1e-7, 1.0 - 1e-7)
        pooled = (attention / attention.sum(3, keepdim=True) * answers).sum(3)
        pooled = pooled.reshape(-1, self.heads, self.classes) * self.head_weight
        return pooled.sum(1, keepdim=True).transpose(1, 2)  # (1, classes, 1)


_HEADS = {"mlp": MLPHead, "fully_convolutional": ConvHead, "multihead_attention_pooling": AttentionHead}
