"""What was played: the strokes of one performance, or of a batch of them, as arrays."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sousa_jax.rudiments import STROKE_TYPES

KINDS = tuple(STROKE_TYPES)  # the letters; `Strokes.kind` counts in this order
ACCENT, TAP, DIDDLE, BUZZ, GRACE = range(len(KINDS))
RIGHT, LEFT = 0, 1


class Strokes(NamedTuple):
    """A performance; every array is `(..., S)`, S being a maximum: rows beyond the last stroke have `valid` False.

    Strokes are in the order of the written music, cycle by cycle, as in SOUSA's stroke table. That need not be the
    order in which they sound: grace notes, bounces and a beginner's strokes move past their neighbours.

    Attributes:
      time_s: float32, seconds since the first written downbeat, ≥ 0.
      written_s: float32, where the stroke is written.
      velocity: float32, MIDI velocity, a whole number 1 … 127.
      written_velocity: float32.
      hand: int32, `RIGHT` or `LEFT`.
      kind: int32, `ACCENT`, `TAP`, `DIDDLE`, `BUZZ` or `GRACE`.
      is_grace: bool. True for grace notes and, as in SOUSA, for the bounces of a buzz stroke after its first.
      diddle: int32, 1 or 2 for the first or second of a double stroke, else 0.
      parent: int32, row of the stroke that a grace note or a bounce belongs to, -1 for others.
      valid: bool.
    """

    time_s: jax.Array
    written_s: jax.Array
    velocity: jax.Array
    written_velocity: jax.Array
    hand: jax.Array
    kind: jax.Array
    is_grace: jax.Array
    diddle: jax.Array
    parent: jax.Array
    valid: jax.Array


def in_order_of_time(strokes: Strokes) -> Strokes:
    """The same strokes as they sound, rows that are not valid last. `parent` still counts in the written order."""
    order = jnp.argsort(jnp.where(strokes.valid, strokes.time_s, jnp.inf), axis=-1, stable=True)
    return Strokes(*(jnp.take_along_axis(column, order, -1) for column in strokes))


def is_bounce(strokes: Strokes) -> jax.Array:
    """Which rows are bounces of a buzz stroke after its first; the other `is_grace` rows are grace notes. Bool."""
    return strokes.is_grace & (strokes.kind != GRACE)
