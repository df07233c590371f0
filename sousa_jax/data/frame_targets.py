"""What a network that hears strokes is to say of each frame: one definition for synthetic and for recorded clips."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sousa_jax.errors import InputError

if TYPE_CHECKING:  # the host's side needs no JAX
    import jax

    Array = np.ndarray | jax.Array

DENSITY_WINDOW_S = 0.05
DENSEST_PER_S = 400  # strokes; the bounces of a buzz lie 2 to 5 ms apart


class FrameTargets(NamedTuple):
    """All float32 `(..., n_frames)`, zero where nothing is struck; frame i is centred at `i / frames_per_second`.

    Strokes that fall into the same frame are one stroke, with the velocity and the grace of the hardest. The bounces
    of a buzz stroke after its first cannot be told apart: they count in `density` alone.

    onset: 1 where at least one stroke falls.
    velocity: 0 … 1 (MIDI velocity / 127).
    grace: 1 where the stroke is a grace note; of equally hard strokes one is enough.
    density: strokes and bounces per second within 50 ms centred on the frame, as a fraction of 400, at most 1.
    """

    onset: "Array"
    velocity: "Array"
    grace: "Array"
    density: "Array"


def count_frames(window_s: float, strokes_per_second: int) -> int:
    """The frames of a window at that rate, 0 for a rate of 0. `InputError` where a rate above 0 leaves none."""
    n_frames = round(window_s * strokes_per_second)
    if strokes_per_second < 0 or (strokes_per_second and n_frames < 1):
        raise InputError(f"strokes_per_second is {strokes_per_second}: a window of {window_s} s has no frame then")
    return n_frames


def place_on_frames(
    time_s: "Array",
    velocity: "Array",
    is_grace: "Array",
    is_bounce: "Array",
    n_frames: int,
    frames_per_second: float,
) -> FrameTargets:
    """The strokes of one window on its frames, by NumPy or, for JAX's arrays, under `jit` and `vmap`.

    A stroke in the last half frame is nearer to a frame that the window does not have: only `density` counts it.

    Args:
      time_s: `(S,)` float32, seconds from the window's first sample, in any order; those outside are left out.
      velocity: `(S,)` float32, MIDI velocity; 0 is no stroke, as in MIDI.
      is_grace: `(S,)` bool, grace notes.
      is_bounce: `(S,)` bool, the bounces of a buzz stroke after its first.
      n_frames: of the window; static.
      frames_per_second: any rate, such as 100 or 200; static.
    """
    xp = velocity.__array_namespace__()
    sounds = (velocity > 0) & (time_s >= 0) & (time_s < n_frames / frames_per_second)
    counted = sounds & ~is_bounce
    frame = xp.where(counted, xp.round(time_s * frames_per_second), n_frames).astype(np.int32)
    strength = xp.where(counted, velocity, 0)
    hardest = _largest(strength, frame, n_frames)
    grace = _largest((counted & is_grace & (strength == hardest[frame])).astype(np.float32), frame, n_frames)

    centre_s = np.arange(n_frames, dtype=np.float32) / np.float32(frames_per_second)  # by NumPy always: equal to a bit
    half_s = np.float32(DENSITY_WINDOW_S / 2)
    in_order_s = xp.sort(xp.where(sounds, time_s, np.inf))
    count = xp.searchsorted(in_order_s, centre_s + half_s) - xp.searchsorted(in_order_s, centre_s - half_s)
    density = count.astype(np.float32) / np.float32(DENSITY_WINDOW_S * DENSEST_PER_S)
    hardest, grace = hardest[:n_frames], grace[:n_frames]
    return FrameTargets((hardest > 0).astype(np.float32), hardest / 127, grace, xp.minimum(density, 1))


def _largest(value: "Array", frame: "Array", n_frames: int) -> "Array":
    """The largest value ≥ 0 in each frame, `(n_frames + 1,)`; the last is of what belongs to no frame."""
    if isinstance(value, np.ndarray):
        largest = np.zeros(n_frames + 1, np.float32)
        np.maximum.at(largest, frame, value)
        return largest
    xp = value.__array_namespace__()
    return xp.zeros(n_frames + 1, np.float32).at[frame].max(value)
