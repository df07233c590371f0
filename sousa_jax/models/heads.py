"""Heads that hear strokes: one that says when and how hard each stroke falls, one that names the rudiment from that.

features → backbone → frames → `StrokeHead` → stream of strokes → `RhythmHead` → 40 logits

The stream is soft: nothing is rounded inside the network, so that the loss of the name reaches the ear. Both heads are
convolutions, linear layers, norms and means, with the comparisons, shifts and powers of `condense`, all of which Core
ML has, and one recurrence, `latest_strokes`, that log2(T) shifts compute as well (a test shows it).
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from sousa_jax.data.frame_targets import FrameTargets, count_frames
from sousa_jax.errors import InputError
from sousa_jax.frontends import FrontendSpec
from sousa_jax.models.layers import Recomputable

STREAMS = len(FrameTargets._fields)
RARE = -3.0  # initial logit of a stroke: most frames have none
COARSE_PER_SECOND = 50  # frames of the rhythm head's wide layers
SHARPNESS = 4.0  # of the soft maximum over time
NEIGHBOUR = 3  # numbers that are known of a neighbouring stroke
LAG = 2  # frames
CERTAIN, DECISIVE = 0.3, 4  # probability from which a stroke rather fell, and the power that makes it sure
SHORTEST_S = 0.01  # gaps are told apart down to about that


class DilatedBlock(Recomputable):
    """A residual block along time: norm, dilated convolution, GELU, linear. `(B, T, width)` to the same shape; outside
    of the sequence everything is zero."""

    def __init__(self, width: int, dilation: int, *, taps: int = 5, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.taps = nnx.Conv(width, width, (taps,), kernel_dilation=dilation, rngs=rngs)
        self.out = nnx.Linear(width, width, rngs=rngs)

    def forward(self, x: jax.Array) -> jax.Array:
        return x + self.out(nnx.gelu(self.taps(self.norm(x))))


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


class RhythmHead(nnx.Module):
    """A stream of strokes → logits of the rudiments; any number of frames.

    What makes a rhythm is the time from stroke to stroke, not from frame to frame. So the stream is first condensed to
    strokes that are nearly sure, of one frame each (`condense`), and every frame learns which of them came last and
    come next (`latest_strokes`): the gaps between them, on a logarithmic scale on which a tempo is a shift, the mean
    gap of the window, and how hard they were. Dilated convolutions at 50 frames a second then see about 1.3 s; what
    they find is averaged over time and over strokes, and its soft maximum taken.

    Args:
      num_classes: logits.
      per_second: frames of the stream; a multiple of 50.
      reach: strokes before and after each frame.
      fine, coarse: widths of the layers at the stream's own rate and of those at 50 frames a second.
    """

    def __init__(
        self, num_classes: int, per_second: int, fine: int = 64, coarse: int = 96, reach: int = 4, *, rngs: nnx.Rngs
    ):
        if per_second < COARSE_PER_SECOND or per_second % COARSE_PER_SECOND:
            raise InputError(f"a rhythm head needs a multiple of {COARSE_PER_SECOND} frames a second, not {per_second}")
        self.per_second, self.reach = per_second, reach
        self.group = per_second // COARSE_PER_SECOND
        self.stem = nnx.Linear(STREAMS + 1 + 2 * reach * NEIGHBOUR, fine, rngs=rngs)
        self.fine = nnx.Linear(fine, fine // 2, rngs=rngs)
        self.join = nnx.Linear(self.group * (fine // 2), coarse, rngs=rngs)
        self.coarse = dilated_blocks(coarse, (1, 2, 4, 8, 16), rngs=rngs)
        self.norm = nnx.LayerNorm(3 * coarse, rngs=rngs)
        self.output = nnx.Linear(3 * coarse, num_classes, rngs=rngs)

    def __call__(self, heard: FrameTargets) -> tuple[jax.Array, jax.Array]:
        """`(logits, embedding)`, float32 `(B, num_classes)` and `(B, 3 · coarse)`.

        heard: 0 … 1, `(B, T)` each: probabilities, or `FrameTargets` themselves. Velocity and grace count as far as
        there is an onset.
        """
        batch, n = heard.onset.shape
        heard = condense(FrameTargets(*(jnp.pad(x, ((0, 0), (0, -n % self.group))) for x in heard)))
        x = nnx.gelu(self.stem(self.neighbourhood(heard)))
        x = nnx.gelu(self.fine(x))
        x = self.join(x.reshape(batch, -1, self.group * x.shape[2]))
        for block in self.coarse:
            x = block(x)
        strokes = heard.onset.reshape(batch, -1, self.group).sum(-1)[..., None]
        of_strokes = (x * strokes).sum(1) / (strokes.sum(1) + 1)
        largest = (jax.nn.logsumexp(SHARPNESS * x, 1) - math.log(x.shape[1])) / SHARPNESS
        embedding = self.norm(jnp.concatenate([x.mean(1), of_strokes, largest], -1))
        return self.output(embedding), embedding

    def neighbourhood(self, heard: FrameTargets) -> jax.Array:
        """What each frame knows: `(B, T, STREAMS + 1 + 2 · reach · NEIGHBOUR)`."""
        onset = heard.onset
        own = jnp.stack([onset, onset * heard.velocity, onset * heard.grace, heard.density], -1)
        before, after = (self._gaps(heard, backwards) for backwards in (False, True))
        mean_gap = (onset * before[..., 0]).sum(1) / (onset.sum(1) + 1)
        mean_gap = jnp.broadcast_to(mean_gap[:, None, None], (*onset.shape, 1))
        return jnp.concatenate([own, mean_gap, before, after], -1)

    def _gaps(self, heard: FrameTargets, backwards: bool) -> jax.Array:
        """Of the `reach` strokes before (or after) each frame: the gaps from one to the next, then their velocities,
        then whether they are graces. `(B, T, NEIGHBOUR · reach)`."""
        turn = (lambda x: x[:, ::-1]) if backwards else (lambda x: x)
        time_s = jnp.broadcast_to(jnp.arange(heard.onset.shape[1]) / self.per_second, heard.onset.shape)
        values = jnp.stack([time_s, turn(heard.velocity), turn(heard.grace)], -1)
        # As if strokes had fallen a second apart, without a sound, before the window.
        nothing = jnp.stack([-1.0 - jnp.arange(self.reach), *jnp.zeros((2, self.reach))], -1)
        latest = latest_strokes(turn(heard.onset), values, nothing)  # (B, T, reach, 3)
        times = jnp.concatenate([time_s[..., None], latest[..., 0]], -1)
        gaps = jnp.log(SHORTEST_S + jnp.maximum(times[..., :-1] - times[..., 1:], 0)) / 1.5 + 1
        return turn(jnp.concatenate([gaps, latest[..., 1], latest[..., 2]], -1))


def condense(heard: FrameTargets) -> FrameTargets:
    """The stream of an ear, `(B, T)` each, as a stream of what fell: strokes of one frame, most of them nearly sure.

    After `gather`, what is likelier than `CERTAIN` is drawn to 1, what is less to 0. All this is smooth but where
    neighbours change places, exact at 0 and 1, and leaves a stream of certain strokes as it is.
    """
    heard = gather(heard)
    fell, not_fell = (heard.onset / CERTAIN) ** DECISIVE, ((1 - heard.onset) / (1 - CERTAIN)) ** DECISIVE
    return heard._replace(onset=fell / (fell + not_fell))


def gather(heard: FrameTargets) -> FrameTargets:
    """An ear spreads a stroke over neighbouring frames: the largest takes what the smaller ones beside it hold.

    Its velocity and grace are means of all three, what is left of the others is nothing; at most 1. `(B, T)` each.
    """
    p = heard.onset
    before, after = (lambda x: jnp.pad(x[:, :-1], ((0, 0), (1, 0)))), (lambda x: jnp.pad(x[:, 1:], ((0, 0), (0, 1))))
    is_peak = (p >= before(p)) & (p >= after(p))
    shares = [jnp.where(beside(p) < p, beside(p), 0) for beside in (before, after)]
    mass = p + shares[0] + shares[1]

    def of_all(x: jax.Array) -> jax.Array:
        return (p * x + shares[0] * before(x) + shares[1] * after(x)) / jnp.maximum(mass, 1e-6)

    onset = jnp.where(is_peak, jnp.minimum(mass, 1), 0)
    return FrameTargets(onset, of_all(heard.velocity), of_all(heard.grace), heard.density)


def latest_strokes(onset: jax.Array, values: jax.Array, nothing: jax.Array) -> jax.Array:
    """The latest strokes before each frame: what they are expected to be, if strokes fall with these probabilities.

    A shift register that takes in a stroke as far as it is one: with probability p it moves on, else it stays.
    Differentiable; at 0 and 1 exact.

    Args:
      onset: `(B, T)`, probabilities.
      values: `(B, T, C)` of a stroke in that frame.
      nothing: `(reach, C)`, what the register holds in the beginning.

    Returns:
      `(B, T, reach, C)`, the latest first; at frame t of strokes up to t - 2, so that a stroke whose probability lies
      on two frames is not its own predecessor.
    """

    def step(register, frame):
        p, value = frame
        moved = jnp.concatenate([value[:, None], register[:, :-1]], 1)
        register = register + p[:, None, None] * (moved - register)
        return register, register

    first = jnp.broadcast_to(nothing, (onset.shape[0], *nothing.shape))
    _, found = jax.lax.scan(step, first, (onset.T, jnp.swapaxes(values, 0, 1)))
    found = jnp.concatenate([jnp.stack([first] * LAG), found])[: onset.shape[1]]
    return jnp.swapaxes(found, 0, 1)


def probabilities(logits: FrameTargets) -> FrameTargets:
    """What is heard, 0 … 1, of the logits."""
    return FrameTargets(*map(jax.nn.sigmoid, logits))
