"""EfficientAT's network in plain eager PyTorch, as a user would run it: the yardstick of the speed benchmark.

Only what the benchmark needs: the `mlp` head and channel squeeze-excitation, same shapes and operations.
"""

import torch
from torch import nn

from sousa_jax.models.efficientat import BLOCKS, EfficientATConfig


def _conv_norm(in_channels, out_channels, kernel=1, stride=1, groups=1, activation=None):
    layers = [
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels, eps=1e-3, momentum=0.01),
    ]
    return nn.Sequential(*layers, *([activation(inplace=True)] if activation else []))


class _SqueezeExcitation(nn.Module):
    def __init__(self, channels, squeezed):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(channels, squeezed), nn.Linear(squeezed, channels)

    def forward(self, x):
        gate = torch.sigmoid(self.fc2(torch.relu(self.fc1(x.mean((2, 3))))))
        return x * gate[:, :, None, None]


class _InvertedResidual(nn.Module):
    def __init__(self, in_channels, kernel, expanded, out_channels, squeezed, activation, stride):
        super().__init__()
        layers = [_conv_norm(in_channels, expanded, activation=activation)] if expanded != in_channels else []
        layers.append(_conv_norm(expanded, expanded, kernel, stride, expanded, activation))
        if squeezed:
            layers.append(_SqueezeExcitation(expanded, squeezed))
        self.block = nn.Sequential(*layers, _conv_norm(expanded, out_channels))
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x):
        return x + self.block(x) if self.residual else self.block(x)


class TorchEfficientAT(nn.Module):
    """`(batch, 1, n_mels, n_frames)` float32 to `(batch, num_classes)` logits."""

    def __init__(self, config: EfficientATConfig):
        super().__init__()
        channels = config.channels(16)
        layers = [_conv_norm(1, channels, 3, 2, activation=nn.Hardswish)]
        for kernel, expanded, out_channels, use_se, activation, stride in BLOCKS:
            expanded, out_channels = config.channels(expanded), config.channels(out_channels)
            squeezed = EfficientATConfig(width=1).channels(expanded // config.se_reduction) if use_se else 0
            act = {"relu": nn.ReLU, "hard_swish": nn.Hardswish}[activation]
            layers.append(_InvertedResidual(channels, kernel, expanded, out_channels, squeezed, act, stride))
            channels = out_channels
        layers.append(_conv_norm(channels, 6 * channels, activation=nn.Hardswish))
        self.features = nn.Sequential(*layers)
        hidden = config.channels(1280)
        self.classifier = nn.Sequential(
            nn.Linear(6 * channels, hidden), nn.Hardswish(), nn.Dropout(config.dropout),
            nn.Linear(hidden, config.num_classes),
        )  # fmt: skip

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))
