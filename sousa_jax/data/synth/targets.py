"""Labels from the strokes of a performance: where they lie on a window's frames, and in a clip that goes round."""

import jax
import jax.numpy as jnp

from sousa_jax.data.frame_targets import FrameTargets, place_on_frames
from sousa_jax.data.synth.strokes import Strokes, is_bounce


def frame_targets(strokes: Strokes, n_frames: int, frames_per_second: float) -> FrameTargets:
    """The strokes of one window on its frames; see `FrameTargets` and `place_on_frames`.

    Args:
      strokes: `(S,)`, times in seconds from the window's first sample; those outside are left out. `vmap` for a batch.
      n_frames: static.
      frames_per_second: any rate, such as 100 or 200; static.
    """
    bounce = is_bounce(strokes)
    velocity = jnp.where(strokes.valid, strokes.velocity, 0)  # which is no stroke
    return place_on_frames(strokes.time_s, velocity, strokes.is_grace & ~bounce, bounce, n_frames, frames_per_second)


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
