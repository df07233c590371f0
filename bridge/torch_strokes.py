"""The networks that hear strokes in PyTorch: EfficientAT with stroke heads, and the small `strokes` model.

Twins of `sousa_jax.models.{heads,strokes}` and of `efficientat.Pyramid`, for inference, in the same form as
`torch_student`: `(1, channels, bands, time)` throughout, of fixed sizes. Heads have no official names, so theirs are
Flax's. Where Flax joins neighbours along an axis and maps them linearly, here a convolution strides over them.
"""

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
    FEATURES,
    LIKELY,
    LOWEST,
    MOST_PER_SECOND,
    RARE,
    RHYTHM_DILATIONS,
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
        self.rhythm = RhythmHead(config.num_classes, config.strokes_per_second, n_stream, config.rhythm_width)

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
    """A residual block along time: norm, dilated convolution, GELU, linear; zero where `there` is."""

    def __init__(self, width: int, dilation: int, taps: int = 5):
        super().__init__()
        self.norm = ChannelNorm(width)
        padding = (0, dilation * (taps // 2))
        self.taps = nn.Conv2d(width, width, (1, taps), padding=padding, dilation=(1, dilation))
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, x: torch.Tensor, there: torch.Tensor | None = None) -> torch.Tensor:
        normed = self.norm(x)
        if there is None:
            return x + self.out(F.gelu(self.taps(normed), approximate="tanh"))
        return (x + self.out(F.gelu(self.taps(normed * there), approximate="tanh"))) * there


def dilated_blocks(width: int, dilations: tuple[int, ...]) -> nn.ModuleList:
    """Blocks to be called one after another."""
    return nn.ModuleList(DilatedBlock(width, dilation) for dilation in dilations)


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
        for block in self.blocks:
            total = block(total)
        return total


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
        for block in self.blocks:
            x = block(x)
        return x


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

    def __init__(self, num_classes: int, per_second: int, n_stream: int, width: int = 96):
        super().__init__()
        self.list = StrokeList(n_stream, per_second)
        self.stem = nn.Conv2d(FEATURES, width, 1)
        self.blocks = dilated_blocks(width, RHYTHM_DILATIONS)
        self.norm = ChannelNorm(3 * width)
        self.output = nn.Conv2d(3 * width, num_classes, 1)

    def forward(self, heard: torch.Tensor) -> torch.Tensor:
        strokes = self.list(heard)
        likely, there = strokes[:, 1:2], strokes[:, 5:]
        x = F.gelu(self.stem(describe(strokes)), approximate="tanh") * there
        for block in self.blocks:
            x = block(x, there)
        alike, as_likely = (
            (x * weight).sum(3, keepdim=True) / (weight.sum(3, keepdim=True) + 1) for weight in (there, likely)
        )
        largest = (x + (1 - there) * LOWEST).amax(3, keepdim=True)  # behind the last stroke x is zero
        return self.output(self.norm(torch.cat([alike, as_likely, largest], 1)))


class StrokeList(nn.Module):
    """The likely strokes of a stream: `(1, 4, 1, T)` → `(1, 6, 1, S)`, in the order of `sousa_jax.models.heads`'s."""

    def __init__(self, n_frames: int, per_second: int):
        super().__init__()
        self.per_second = per_second
        n_strokes = -(-n_frames * MOST_PER_SECOND // per_second)
        self.register_buffer(
            "frame", torch.arange(n_frames, dtype=torch.float32).reshape(1, 1, 1, -1), persistent=False
        )
        self.register_buffer("rank", torch.arange(1, n_strokes + 1.0).reshape(1, 1, -1, 1), persistent=False)

    def forward(self, heard: torch.Tensor) -> torch.Tensor:
        gathered = gather(heard)
        likely = (gathered[:, :1] >= LIKELY).to(heard.dtype)
        p = heard[:, :1]
        earlier, later = shares(p)
        late = (later - earlier) / torch.clamp(p + earlier + later, min=1e-6)
        columns = torch.cat([(self.frame + late) / self.per_second, gathered, torch.ones_like(p)], 1)
        # 1 at the k-th likely frame of row k: whole numbers differ by 0, 1, ...
        place = torch.relu(1 - torch.abs(torch.cumsum(likely, 3) - self.rank)) * likely  # (1, 1, S, T)
        return torch.matmul(columns.transpose(1, 2), place.transpose(2, 3)).transpose(1, 2)


def describe(strokes: torch.Tensor) -> torch.Tensor:
    """What a rhythm head reads of each stroke: `(1, 6, 1, S)` → `(1, FEATURES, 1, S)`."""
    time_s, onset, velocity, grace, density, there = strokes.split(1, 1)
    gap_s = (time_s[..., 1:] - time_s[..., :-1]) * there[..., 1:]
    before, after = F.pad(gap_s, (1, 0)), F.pad(gap_s, (0, 1))
    total = lambda x: x.sum(3, keepdim=True)  # noqa: E731
    mean_gap = total(before * onset) / (total(onset[..., 1:]) + 0.1) + SHORTEST_S
    mean_velocity = total(velocity * onset) / (total(onset) + 0.1) + 0.01
    columns = [
        *(torch.log(SHORTEST_S + gap) / 2 + 1 for gap in (before, after)),
        *(torch.clamp(gap / mean_gap, max=8.0) - 1 for gap in (before, after)),
        3 * velocity - 1.6,
        torch.clamp(velocity / mean_velocity, max=8.0) - 1,
        grace,
        density,
        onset,
    ]
    return torch.cat(columns, 1) * there


def gather(heard: torch.Tensor) -> torch.Tensor:
    """The largest of neighbouring frames takes what the smaller ones beside it hold; `(1, 4, 1, T)` to the same."""
    p = heard[:, :1]
    is_peak = (p >= before(p)) & (p >= after(p))
    earlier, later = shares(p)
    mass = p + earlier + later
    loud = heard[:, 1:3]  # velocity and grace
    loud = (p * loud + earlier * before(loud) + later * after(loud)) / torch.clamp(mass, min=1e-6)
    onset = torch.where(is_peak, torch.clamp(mass, max=1.0), torch.zeros_like(p))
    return torch.cat([onset, loud, heard[:, 3:]], 1)


def shares(p: torch.Tensor) -> list[torch.Tensor]:
    """What each frame takes of the one before it and of the one after: all of it where it is smaller."""
    return [torch.where(beside < p, beside, torch.zeros_like(p)) for beside in (before(p), after(p))]


def before(x: torch.Tensor) -> torch.Tensor:
    return F.pad(x[..., :-1], (1, 0))


def after(x: torch.Tensor) -> torch.Tensor:
    return F.pad(x[..., 1:], (0, 1))
