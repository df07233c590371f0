"""Heads that hear strokes: one that says when and how hard each stroke falls, one that names the rudiment from that.

features → backbone → frames → `StrokeHead` → stream of strokes → `RhythmHead` → 40 logits

The stream is soft: each stroke comes with its probability, and none but the unlikely ones are left out, so that the
loss of the name reaches the ear. Both heads are made of convolutions, linear layers, norms, means, comparisons and a
cumulative sum, all of which Core ML has.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from sousa_jax.data.frame_targets import FrameTargets, count_frames
from sousa_jax.errors import InputError
from sousa_jax.frontends import FrontendSpec
from sousa_jax.models.layers import Recomputable

STREAMS = len(FrameTargets._fields)
RARE = -3.0  # initial logit of a stroke: most frames have none
MOST_PER_SECOND = 20  # strokes that a rhythm head reads: the fastest rolls have 18
LIKELY = 0.1  # probability from which it reads them
FEATURES = 9  # of a stroke, `describe`
RHYTHM_DILATIONS = (1, 2, 4, 8, 1)
SHORTEST_S = 0.005  # gaps are told apart down to about that
LOWEST = -10.0  # the maximum where no stroke is


class DilatedBlock(Recomputable):
    """A residual block along time: norm, dilated convolution, GELU, linear. `(B, T, width)` to the same shape; outside
    of the sequence everything is zero, and so it is where `there`, `(B, T, 1)`, is zero."""

    def __init__(self, width: int, dilation: int, *, taps: int = 5, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.taps = nnx.Conv(width, width, (taps,), kernel_dilation=dilation, rngs=rngs)
        self.out = nnx.Linear(width, width, rngs=rngs)

    def forward(self, x: jax.Array, there: jax.Array | float = 1.0) -> jax.Array:
        return (x + self.out(nnx.gelu(self.taps(self.norm(x) * there)))) * there


def dilated_blocks(width: int, dilations: tuple[int, ...], *, rngs: nnx.Rngs) -> nnx.List:
    """Blocks to be called one after another."""
    return nnx.List([DilatedBlock(width, dilation, rngs=rngs) for dilation in dilations])


class StrokeHead(nnx.Module):
    """Frames of a backbone → logits of `FrameTargets`, float32 `(B, n_frames)` each.

    One linear layer; where the backbone has fewer frames than the stream it gives several of each.

    Args:
      width: of the backbone's frames.
      per_step: frames of the stream in one step of the backbone.
    """

    def __init__(self, width: int, per_step: int, *, rngs: nnx.Rngs):
        self.linear = nnx.Linear(width, STREAMS * per_step, rngs=rngs)
        self.linear.bias[...] = jnp.full(STREAMS * per_step, RARE)
        self.per_step = per_step

    def __call__(self, frames: jax.Array, n_frames: int) -> FrameTargets:
        """`(B, steps, width)` to the stream of a window; steps beyond it are cut off, what none reaches is silent."""
        batch, steps, _ = frames.shape
        x = self.linear(frames.astype(jnp.float32)).reshape(batch, steps * self.per_step, STREAMS)[:, :n_frames]
        x = jnp.pad(x, ((0, 0), (0, n_frames - x.shape[1]), (0, 0)), constant_values=2 * RARE)
        return FrameTargets(*jnp.moveaxis(x, -1, 0))


def stream_frames_per_step(spec: FrontendSpec, step_frames: int, per_second: int) -> int:
    """How many frames of a stroke stream of `per_second` fall into a step of `step_frames` spectrogram frames; 0 of no
    stream. `InputError` if they are not whole: frame k of step i must lie at `(i · frames of a step + k) / per_second`.
    """
    step_samples = step_frames * spec.hop_length
    per_step, rest = divmod(per_second * step_samples, spec.sample_rate)
    if per_second < 0 or rest:
        fits = spec.sample_rate // math.gcd(step_samples, spec.sample_rate)
        raise InputError(
            f"strokes_per_second is {per_second}: a step of {1000 * step_samples / spec.sample_rate:g} ms must hold "
            f"a whole number of them, choose a multiple of {fits}"
        )
    return per_step


def stream_frames(spec: FrontendSpec, n_frames: int, per_second: int) -> int:
    """Frames of the stroke stream of a spectrogram of `n_frames`. With as many as the window of `spec` has they are the
    window's own, `round(window_s · per_second)`; each frame more or less is a hop more or less of sound."""
    more = n_frames - spec.n_frames(spec.window_samples)
    return count_frames(spec.window_s + more * spec.hop_length / spec.sample_rate, per_second)


class StrokeList(NamedTuple):
    """The likely strokes of each window in order of time: `(B, S)` float32 each, zeros behind the last one.

    time_s: from the window's first sample, between frames where neighbouring ones share a stroke. onset, velocity,
    grace, density: as `FrameTargets`. there: 1 for a stroke, 0 behind the last.
    """

    time_s: jax.Array
    onset: jax.Array
    velocity: jax.Array
    grace: jax.Array
    density: jax.Array
    there: jax.Array


class RhythmHead(nnx.Module):
    """A stream of strokes → logits of the rudiments; any number of frames.

    A rhythm goes from stroke to stroke, not from frame to frame. So the stream becomes a list of all strokes that are
    not unlikely, each with its probability (`list_strokes`): a tempo is then nothing but longer gaps. Dilated
    convolutions along the list see 32 strokes to either side; of what they find the mean over all strokes is taken, the
    mean over those that are likely, and the maximum.

    Args:
      num_classes: logits.
      per_second: frames of the stream, at least `MOST_PER_SECOND`.
      width: of the layers.
    """

    def __init__(self, num_classes: int, per_second: int, width: int = 96, *, rngs: nnx.Rngs):
        if per_second < MOST_PER_SECOND:
            raise InputError(f"a rhythm head needs at least {MOST_PER_SECOND} frames a second, not {per_second}")
        self.per_second = per_second
        self.stem = nnx.Linear(FEATURES, width, rngs=rngs)
        self.blocks = dilated_blocks(width, RHYTHM_DILATIONS, rngs=rngs)
        self.norm = nnx.LayerNorm(3 * width, rngs=rngs)
        self.output = nnx.Linear(3 * width, num_classes, rngs=rngs)

    def __call__(self, heard: FrameTargets) -> tuple[jax.Array, jax.Array]:
        """`(logits, embedding)`, float32 `(B, num_classes)` and `(B, 3 · width)`.

        heard: 0 … 1, `(B, T)` each: probabilities, or `FrameTargets` themselves. Velocity and grace count as far as
        there is an onset.
        """
        strokes = list_strokes(heard, self.per_second)
        there = strokes.there[..., None]
        x = nnx.gelu(self.stem(describe(strokes))) * there
        for block in self.blocks:
            x = block(x, there)
        likely = strokes.onset[..., None]
        alike, as_likely = (x * there).sum(1) / (there.sum(1) + 1), (x * likely).sum(1) / (likely.sum(1) + 1)
        embedding = self.norm(jnp.concatenate([alike, as_likely, jnp.where(there > 0, x, LOWEST).max(1)], -1))
        return self.output(embedding), embedding


def describe(strokes: StrokeList) -> jax.Array:
    """What a rhythm head reads of each stroke, `(B, S, FEATURES)`, zeros behind the last one: the gaps to its
    neighbours, on a logarithmic scale and beside the window's mean gap, its velocity, as it is and beside the mean one,
    its grace, the density around it, and how likely it is at all."""
    onset, velocity = strokes.onset, strokes.velocity
    gap_s = jnp.diff(strokes.time_s, axis=1) * strokes.there[:, 1:]
    before, after = jnp.pad(gap_s, ((0, 0), (1, 0))), jnp.pad(gap_s, ((0, 0), (0, 1)))
    mean_gap = (before * onset).sum(1, keepdims=True) / (onset[:, 1:].sum(1, keepdims=True) + 0.1) + SHORTEST_S
    mean_velocity = (velocity * onset).sum(1, keepdims=True) / (onset.sum(1, keepdims=True) + 0.1) + 0.01
    columns = [
        *(jnp.log(SHORTEST_S + gap) / 2 + 1 for gap in (before, after)),
        *(jnp.minimum(gap / mean_gap, 8) - 1 for gap in (before, after)),
        3 * velocity - 1.6,
        jnp.minimum(velocity / mean_velocity, 8) - 1,
        strokes.grace,
        strokes.density,
        onset,
    ]
    return jnp.stack(columns, -1) * strokes.there[..., None]


def list_strokes(heard: FrameTargets, per_second: int) -> StrokeList:
    """The strokes of a stream, `(B, T)` each, that are not unlikely: peaks of at least `LIKELY`, after `gather`.

    Which ones these are has no gradient; how likely, hard and late they are does. There is room for `MOST_PER_SECOND`;
    what is beyond is left out.
    """
    gathered = gather(heard)
    likely = gathered.onset >= LIKELY
    n_frames = heard.onset.shape[1]
    earlier, later = _shares(heard.onset)
    late = (later - earlier) / jnp.maximum(heard.onset + earlier + later, 1e-6)  # frames
    time_s = (jnp.arange(n_frames) + late) / per_second
    rank = jnp.where(likely, jnp.cumsum(likely, 1) - 1, -1)
    place = rank[:, None] == jnp.arange(-(-n_frames * MOST_PER_SECOND // per_second))[:, None]  # (B, S, T)
    columns = jnp.stack([time_s, *gathered, jnp.ones_like(time_s)], -1)
    # By a product of zeros and ones, which Core ML has as well; times want all of float32.
    listed = jnp.einsum("bst,btc->bsc", place.astype(jnp.float32), columns, precision="highest")
    return StrokeList(*jnp.moveaxis(listed, -1, 0))


def gather(heard: FrameTargets) -> FrameTargets:
    """An ear spreads a stroke over neighbouring frames: the largest takes what the smaller ones beside it hold.

    Its velocity and grace are means of all three, what is left of the others is nothing; at most 1. `(B, T)` each.
    """
    p = heard.onset
    is_peak = (p >= _before(p)) & (p >= _after(p))
    earlier, later = _shares(p)
    mass = p + earlier + later

    def of_all(x: jax.Array) -> jax.Array:
        return (p * x + earlier * _before(x) + later * _after(x)) / jnp.maximum(mass, 1e-6)

    onset = jnp.where(is_peak, jnp.minimum(mass, 1), 0)
    return FrameTargets(onset, of_all(heard.velocity), of_all(heard.grace), heard.density)


def _shares(p: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What each frame takes of the one before it and of the one after: all of it where it is smaller."""
    return jnp.where(_before(p) < p, _before(p), 0), jnp.where(_after(p) < p, _after(p), 0)


def _before(x: jax.Array) -> jax.Array:
    return jnp.pad(x[:, :-1], ((0, 0), (1, 0)))


def _after(x: jax.Array) -> jax.Array:
    return jnp.pad(x[:, 1:], ((0, 0), (0, 1)))


def probabilities(logits: FrameTargets) -> FrameTargets:
    """What is heard, 0 … 1, of the logits."""
    return FrameTargets(*map(jax.nn.sigmoid, logits))
