"""The networks that hear strokes in PyTorch: EfficientAT with stroke heads, and the small `strokes` model.

Twins of `sousa_jax.models.{heads,strokes}` and of `efficientat.Pyramid`, for inference, in the same form as
`torch_student`: `(1, channels, bands, time)` throughout, of fixed sizes. Heads have no official names, so theirs are
Flax's. Where Flax joins neighbours along an axis and maps them linearly, here a convolution strides over them.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from bridge.torch_student import block_shapes, body
from sousa_jax.data.frame_targets import count_frames
from sousa_jax.models.efficientat import (
    FLAT_BLOCKS,
    PYRAMID_BLOCKS,
    PYRAMID_DILATIONS,
    PYRAMID_WIDTH,
    EfficientATConfig,
)
from sousa_jax.models.heads import (
    CERTAIN,
    COARSE_PER_SECOND,
    DECISIVE,
    LAG,
    NEIGHBOUR,
    RARE,
    SHARPNESS,
    SHORTEST_S,
    STREAMS,
)
from sousa_jax.models.strokes import STEP, StrokesConfig


class StrokeEfficientAT(nn.Module):
    """`(1, 1, n_mels, n_frames)` float32 to logits `(1, num_classes)` and stroke probabilities `(4, T)`."""

    def __init__(self, config: EfficientATConfig):
        super().__init__()
        self.features = nn.Sequential(*body(config))
        self.pyramid = Pyramid(config)
        n_stream = count_frames(config.frontend.window_s, config.strokes_per_second)
        self.strokes = StrokeHead(PYRAMID_WIDTH, config.strokes_per_step, self.pyramid.n_steps, n_stream)
        self.rhythm = RhythmHead(config.num_classes, config.strokes_per_second, n_stream)

    def forward(self, log_mel: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        maps, x = [], self.features[0](log_mel)
        for i, block in enumerate(self.features[1:]):
            x = block(x)
            maps += [x] if i in PYRAMID_BLOCKS else []
        heard = self.strokes(self.pyramid(maps))
        return self.rhythm(heard).flatten(1), heard.flatten(0, 2)


class Strokes(nn.Module):
    """`(1, 1, n_mels, n_frames)` float32 to logits `(1, num_classes)` and stroke probabilities `(4, T)`."""

    def __init__(self, config: StrokesConfig):
        super().__init__()
        self.ear = Ear(config)
        n_stream = count_frames(config.frontend.window_s, config.strokes_per_second)
        self.strokes = StrokeHead(config.width, STEP, self.ear.n_steps, n_stream)
        self.rhythm = RhythmHead(config.num_classes, config.strokes_per_second, n_stream, *config.rhythm_widths)

    def forward(self, log_mel: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        heard = self.strokes(self.ear(log_mel))
        return self.rhythm(heard).flatten(1), heard.flatten(0, 2)


# ------------------------------------------------------------------------------------------------------------- layers


class ChannelNorm(nn.Module):
    """Layer norm over channels, written out: the built-in one wants them last."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x - x.mean(1, keepdim=True)
        x = x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-6)
        return x * self.weight.reshape(1, -1, 1, 1) + self.bias.reshape(1, -1, 1, 1)


class DilatedBlock(nn.Module):
    """A residual block along time: norm, dilated convolution, GELU, linear."""

    def __init__(self, width: int, dilation: int, taps: int = 5):
        super().__init__()
        self.norm = ChannelNorm(width)
        padding = (0, dilation * (taps // 2))
        self.taps = nn.Conv2d(width, width, (1, taps), padding=padding, dilation=(1, dilation))
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.out(F.gelu(self.taps(self.norm(x)), approximate="tanh"))


def dilated_blocks(width: int, dilations: tuple[int, ...]) -> nn.Sequential:
    """Blocks one after another."""
    return nn.Sequential(*(DilatedBlock(width, dilation) for dilation in dilations))


def over_bands(in_channels: int, out_channels: int, bands: int) -> nn.Conv2d:
    """A linear layer on `bands` neighbouring mel bands side by side."""
    return nn.Conv2d(in_channels, out_channels, (bands, 1), stride=(bands, 1))


def over_time(in_channels: int, out_channels: int, steps: int) -> nn.Conv2d:
    """A linear layer on `steps` neighbouring time steps side by side."""
    return nn.Conv2d(in_channels, out_channels, (1, steps), stride=(1, steps))


# --------------------------------------------------------------------------------------------------------------- ears


class Pyramid(nn.Module):
    """Maps of several resolutions, the finest first → `(1, 64, 1, T)` at the rate of the finest."""

    def __init__(self, config: EfficientATConfig):
        super().__init__()
        shapes = [block_shapes(config)[i] for i in PYRAMID_BLOCKS]
        self.levels = nn.ModuleList(
            over_bands(shape.channels, PYRAMID_WIDTH, shape.mels if i < FLAT_BLOCKS else 1)
            for i, shape in enumerate(shapes)
        )
        self.repeats, self.n_steps = [shape.repeat for shape in shapes], shapes[0].frames
        self.blocks = dilated_blocks(PYRAMID_WIDTH, PYRAMID_DILATIONS)

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        total = self.levels[0](maps[0])
        for i in range(1, len(maps)):
            x = maps[i] if i < FLAT_BLOCKS else maps[i].mean(2, keepdim=True)
            x = F.interpolate(self.levels[i](x), scale_factor=(1.0, float(self.repeats[i])), mode="nearest")
            total = total + x[..., : self.n_steps]
        return self.blocks(total)


class Ear(nn.Module):
    """Log-mel `(1, 1, n_mels, T)` → features of every `STEP` frames, `(1, width, 1, ⌈T / STEP⌉)`."""

    def __init__(self, config: StrokesConfig):
        super().__init__()
        spec = config.frontend
        bands = spec.n_mels // 4
        self.patches = nn.Conv2d(1, 16, (7, 3), stride=(4, 1))
        self.mix = over_bands(16, 32, 2)
        self.flat = over_bands(32, 64, bands // 2)
        self.join = over_time(64, config.width, STEP)
        self.room = nn.Conv2d(config.width, config.width, 1)
        self.blocks = dilated_blocks(config.width, config.dilations)
        n_frames = spec.n_frames(spec.window_samples)
        self.missing = -n_frames % STEP
        self.n_steps = (n_frames + self.missing) // STEP

    def forward(self, log_mel: torch.Tensor) -> torch.Tensor:
        x = log_mel - log_mel.mean([2, 3], keepdim=True)
        x = torch.relu(self.patches(F.pad(x, (1, 1, 1, 2))))
        x = torch.relu(self.flat(torch.relu(self.mix(x))))  # (1, 64, 1, T)
        x = self.join(F.pad(x, (0, self.missing)))
        x = x + self.room(torch.relu(x).mean(3, keepdim=True))
        return self.blocks(x)


class StrokeHead(nn.Module):
    """Frames of a backbone `(1, width, 1, steps)` → probabilities of the streams, `(1, 4, 1, n_stream)`."""

    def __init__(self, width: int, per_step: int, n_steps: int, n_stream: int):
        super().__init__()
        self.linear = nn.Conv2d(width, STREAMS * per_step, 1)
        self.per_step, self.n_stream = per_step, n_stream
        self.silent = max(0, n_stream - n_steps * per_step)  # frames that no step reaches

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        x = self.linear(frames).reshape(self.per_step, STREAMS, -1)
        x = x.permute(1, 2, 0).reshape(1, STREAMS, 1, -1)[..., : self.n_stream]
        return torch.sigmoid(F.pad(x, (0, self.silent), value=2 * RARE))


# ------------------------------------------------------------------------------------------------------------- rhythm


class RhythmHead(nn.Module):
    """Probabilities of strokes `(1, 4, 1, T)` → logits `(1, num_classes, 1, 1)`. In float32: half precision cannot tell
    the frames of a second apart, and gaps between strokes are what it reads."""

    def __init__(
        self, num_classes: int, per_second: int, n_stream: int, fine: int = 64, coarse: int = 96, reach: int = 4
    ):
        super().__init__()
        group = per_second // COARSE_PER_SECOND
        self.missing = -n_stream % group
        n_frames = n_stream + self.missing
        self.neighbourhood = Neighbourhood(n_frames, per_second, reach)
        self.stem = nn.Conv2d(STREAMS + 1 + 2 * reach * NEIGHBOUR, fine, 1)
        self.fine = nn.Conv2d(fine, fine // 2, 1)
        self.join = over_time(fine // 2, coarse, group)
        self.coarse = dilated_blocks(coarse, (1, 2, 4, 8, 16))
        self.norm = ChannelNorm(3 * coarse)
        self.output = nn.Conv2d(3 * coarse, num_classes, 1)
        self.group, self.n_coarse = group, n_frames // group

    def forward(self, heard: torch.Tensor) -> torch.Tensor:
        heard = condense(F.pad(heard, (0, self.missing)))
        x = F.gelu(self.stem(self.neighbourhood(heard)), approximate="tanh")
        x = F.gelu(self.fine(x), approximate="tanh")
        x = self.coarse(self.join(x))
        strokes = F.avg_pool2d(heard[:, :1], (1, self.group)) * self.group
        of_strokes = (x * strokes).sum(3, keepdim=True) / (strokes.sum(3, keepdim=True) + 1)
        largest = (torch.logsumexp(SHARPNESS * x, 3, keepdim=True) - math.log(self.n_coarse)) / SHARPNESS
        embedding = self.norm(torch.cat([x.mean(3, keepdim=True), of_strokes, largest], 1))
        return self.output(embedding)


class Neighbourhood(nn.Module):
    """What each frame knows of the strokes around it: condensed `(1, 4, 1, T)` → `(1, 5 + 6 · reach, 1, T)`."""

    def __init__(self, n_frames: int, per_second: int, reach: int):
        super().__init__()
        self.n_frames = n_frames
        time_s = torch.arange(n_frames, dtype=torch.float32) / per_second
        self.register_buffer("time_s", time_s.expand(1, 1, 2, -1).clone(), persistent=False)
        # As if strokes had fallen a second apart, without a sound, before the window: time, velocity, grace.
        nothing = torch.zeros(reach, 1, 3, 1, 1)
        nothing[:, 0, 0, 0, 0] = -1.0 - torch.arange(reach)
        self.register_buffer("nothing", nothing, persistent=False)

    def forward(self, heard: torch.Tensor) -> torch.Tensor:
        onset, velocity, grace, density = heard.split(1, 1)
        both = torch.cat([heard, heard.flip(3)], 2)  # (1, 4, 2, T): read forwards and backwards
        values = torch.cat([self.time_s, both[:, 1:3]], 1)
        held = latest_strokes(both[:, :1], values, self.nothing, self.n_frames)
        gaps, later = [], self.time_s
        for stroke in held:
            time_s = stroke[:, :1]
            gaps.append(torch.log(SHORTEST_S + torch.relu(later - time_s)) / 1.5 + 1)
            later = time_s
        known = torch.cat([*gaps, *(x[:, 1:2] for x in held), *(x[:, 2:] for x in held)], 1)
        before, after = known[:, :, :1], known[:, :, 1:].flip(3)
        mean_gap = (onset * before[:, :1]).sum(3, keepdim=True) / (onset.sum(3, keepdim=True) + 1)
        own = [onset, onset * velocity, onset * grace, density]
        return torch.cat([*own, mean_gap + torch.zeros_like(onset), before, after], 1)


def condense(heard: torch.Tensor) -> torch.Tensor:
    """The stream of an ear as strokes of one frame, most of them nearly sure; `(1, 4, 1, T)` to the same."""
    heard = gather(heard)
    onset = heard[:, :1]
    fell, not_fell = (onset / CERTAIN) ** DECISIVE, ((1 - onset) / (1 - CERTAIN)) ** DECISIVE
    return torch.cat([fell / (fell + not_fell), heard[:, 1:]], 1)


def gather(heard: torch.Tensor) -> torch.Tensor:
    """The largest of neighbouring frames takes what the smaller ones beside it hold; `(1, 4, 1, T)` to the same."""
    before, after = (lambda x: delayed(x, 1)), (lambda x: F.pad(x[..., 1:], (0, 1)))
    p = heard[:, :1]
    is_peak = (p >= before(p)) & (p >= after(p))
    shares = [torch.where(beside(p) < p, beside(p), torch.zeros_like(p)) for beside in (before, after)]
    mass = p + shares[0] + shares[1]
    loud = heard[:, 1:3]  # velocity and grace
    loud = (p * loud + shares[0] * before(loud) + shares[1] * after(loud)) / torch.clamp(mass, min=1e-6)
    onset = torch.where(is_peak, torch.clamp(mass, max=1.0), torch.zeros_like(p))
    return torch.cat([onset, loud, heard[:, 3:]], 1)


def latest_strokes(
    onset: torch.Tensor, values: torch.Tensor, nothing: torch.Tensor, n_frames: int
) -> list[torch.Tensor]:
    """The latest strokes before each frame, as they are expected to be: the recurrence of `sousa_jax.models.heads`
    without a recurrence, which Core ML could only loop over.

    Place by place of the shift register, each fed by the one before it as it was a frame ago:
    `y[t] = (1 - p[t]) y[t-1] + p[t] fed[t]`, summed up over 1, 2, 4, … frames.

    Args:
      onset: `(1, 1, H, T)`, probabilities.
      values: `(1, C, H, T)` of a stroke in that frame.
      nothing: `(reach, 1, C, 1, 1)`, what the register holds in the beginning.
      n_frames: T, at least 2, as a number that a trace does not follow.

    Returns:
      `reach` tensors `(1, C, H, T)`, the latest first; at frame t of strokes up to `t - LAG`.
    """
    kept = [1 - onset]  # what stays over 1, 2, 4, ... frames; nobody reads it where those reach out of the window
    for level in range(math.ceil(math.log2(n_frames)) - 1):
        kept.append(kept[-1] * delayed(kept[-1], 2**level))
    fed, found = values, []
    for first in nothing.unbind():
        held = onset * (fed - first)
        for level, stays in enumerate(kept):
            held = held + stays * delayed(held, 2**level)
        fed = delayed(held, 1) + first
        found.append(delayed(held, LAG) + first)
    return found


def delayed(x: torch.Tensor, frames: int) -> torch.Tensor:
    """`x` that many frames later, zeros before it."""
    return F.pad(x[..., :-frames], (frames, 0))
