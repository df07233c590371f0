"""What a network that hears strokes is to say of each frame: is there a stroke, how hard, is it a grace note."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sousa_jax.data.synth.strokes import Strokes


class FrameTargets(NamedTuple):
    """All float32 `(..., n_frames)`, zero where no stroke falls into the frame.

    onset: 1 where at least one stroke falls. velocity: 0 … 1 (MIDI velocity / 127), of the hardest.
    grace: 1 where the hardest stroke is a grace note or a bounce.
    """

    onset: jax.Array
    velocity: jax.Array
    grace: jax.Array


def frame_targets(strokes: Strokes, n_frames: int, frames_per_second: float) -> FrameTargets:
    """The strokes of one clip on a grid; frame i is centred at `i / frames_per_second` seconds.

    Args:
      strokes: `(S,)`, times in seconds from the clip's first sample; those outside are left out. `vmap` for a batch.
      n_frames: static.
      frames_per_second: any rate, such as 100 or 200.
    """
    frame = jnp.round(strokes.time_s * frames_per_second).astype(jnp.int32)
    heard = strokes.valid & (frame >= 0) & (frame < n_frames)
    frame = jnp.where(heard, frame, n_frames)  # out of bounds, hence dropped
    strength = jnp.where(heard, strokes.velocity / 127, 0)
    velocity = jnp.zeros(n_frames).at[frame].max(strength, mode="drop")
    hardest = strength >= velocity[jnp.minimum(frame, n_frames - 1)]
    grace = jnp.zeros(n_frames).at[frame].max((strokes.is_grace & hardest).astype(jnp.float32), mode="drop")
    return FrameTargets((velocity > 0).astype(jnp.float32), velocity, grace)


def around_the_loop(
    strokes: Strokes, start_s: jax.Array, length_s: jax.Array, window_s: float, max_rounds: int
) -> Strokes:
    """The strokes of a window which goes round in a circle through a clip shorter than itself.

    Args:
      strokes: `(S,)`, times in seconds from the clip's first sample.
      start_s: where in the clip the window begins.
      length_s: of the clip, at which it begins again.
      window_s: of the window.
      max_rounds: static; how often a stroke can come at most.

    Returns:
      `(max_rounds * S,)`, times from the window's first sample; those outside of it are not valid. `parent` is the
      row within the same round.
    """
    n = strokes.time_s.shape[0]
    rounds = jnp.repeat(jnp.arange(max_rounds), n)
    tiled = Strokes(*(jnp.tile(column, max_rounds) for column in strokes))
    time_s = tiled.time_s - start_s + rounds * length_s
    written_s = tiled.written_s - start_s + rounds * length_s
    valid = tiled.valid & (tiled.time_s < length_s) & (time_s >= 0) & (time_s < window_s)
    parent = jnp.where(tiled.parent < 0, -1, tiled.parent + rounds * n)
    return tiled._replace(time_s=time_s, written_s=written_s, valid=valid, parent=parent)
