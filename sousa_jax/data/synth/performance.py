"""The performance model: how a simulated player plays a rudiment. `key → Strokes`, jittable, one performance a call.

It restates SOUSA's performance generator with its numbers (MIT, Copyright (c) 2025 Zak Keown), for both dialects of
`written`. What a player does wrong is drawn stroke by stroke: a timing error in ms that does not shrink with the tempo
(a beginner's strokes change order when they are fast), drift, a late and weak hand, uneven diddles, missed accents.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sousa_jax.data.synth.players import Player
from sousa_jax.data.synth.strokes import ACCENT, BUZZ, DIDDLE, GRACE, LEFT, TAP, Strokes
from sousa_jax.data.synth.written import (
    DRAG_FIRST,
    DRAG_SECOND,
    FLAM,
    NOTATED,
    SCORES,
    SOUSA,
)

TEMPO_BPM = (60, 180)
LARGEST_SHIFT_S = 0.3  # no stroke leaves its written time by more, moved grace notes included
MAX_BOUNCES = 8  # of a buzz stroke
# Gaps of a drag, second grace to primary and first to second, in flam spacings. SOUSA's drags are very tight.
DRAG_GAPS = ((0.48, 0.90), (1.1, 1.1))  # by dialect
# What is multiplied by a normal draw of the player's relative flam spread, and the limits of the two gaps in seconds.
DRAG_SPREAD = (0.6, 1.0)
DRAG_LIMITS_S = (((0.003, 0.050), (0.005, 0.080)), ((0.010, 0.080), (0.010, 0.080)))


class Take(NamedTuple):
    """What is asked of a player; every field a scalar array (a batch of takes has them `(B,)`).

    rudiment: int32 class id. dialect: int32, `SOUSA` or `NOTATED`. tempo_bpm: float32. num_cycles: int32, ≥ 1.
    left_lead: bool, the pattern with its hands exchanged.
    """

    rudiment: jax.Array
    dialect: jax.Array
    tempo_bpm: jax.Array
    num_cycles: jax.Array
    left_lead: jax.Array


class Room(NamedTuple):
    """How many written slots and how many strokes (more, because a buzz stroke is several) a performance may have."""

    n_slots: int
    n_strokes: int


def room_for_cycles(num_cycles: int, dialects: Sequence[int] = (SOUSA, NOTATED)) -> Room:
    """For `num_cycles` cycles of any rudiment."""
    return _room(np.full(SCORES.length.shape, num_cycles), dialects)


def room_for_seconds(duration_s: float, dialects: Sequence[int] = (SOUSA, NOTATED)) -> Room:
    """For `duration_s` seconds of any rudiment at any tempo, begun in the middle of a cycle."""
    return _room(np.ceil(duration_s * TEMPO_BPM[1] / 60 / SCORES.beats).astype(int) + 1, dialects)


def _room(num_cycles: np.ndarray, dialects: Sequence[int]) -> Room:
    n_slots = num_cycles * SCORES.length
    n_strokes = n_slots * np.where(SCORES.n_buzzes > 0, MAX_BOUNCES, 1)
    return Room(*(int(n[list(dialects)].max()) for n in (n_slots, n_strokes)))


def cycle_s(take: Take) -> jax.Array:
    """Duration of one cycle, seconds."""
    return 60 / take.tempo_bpm * jnp.asarray(SCORES.beats)[take.dialect, take.rudiment]


def play(key: jax.Array, take: Take, player: Player, room: Room) -> Strokes:
    """One performance.

    Args:
      key: a JAX random key; every draw comes from it.
      take: what; `take.num_cycles` cycles must fit into `room`.
      player: who plays; the sticking is the same for left-handed players, their weak hand is the right one.
      room: static, for the shape of the result.

    Returns:
      `Strokes` of `room.n_strokes` rows.
    """
    (noise_key, accent_key, pair_key, buzz_key, drift_key) = jax.random.split(key, 5)
    traits = player.traits
    notated = take.dialect == NOTATED

    # ------------------------------------------------------------------------------------ written slots, (n,) each
    n = room.n_slots
    slot = jnp.arange(n)
    length = jnp.asarray(SCORES.length)[take.dialect, take.rudiment]
    n_slots = length * take.num_cycles
    cycle, place = slot // length, slot % length
    column = lambda table: jnp.asarray(table)[take.dialect, take.rudiment][place]  # noqa: E731
    beats = jnp.asarray(SCORES.beats)[take.dialect, take.rudiment]
    beat_s = 60 / take.tempo_bpm
    kind, rule = column(SCORES.kind), column(SCORES.rule)
    hand = jnp.where(take.left_lead, 1 - column(SCORES.hand), column(SCORES.hand))
    beat = column(SCORES.beat) + cycle * beats
    written_s = beat_s * (beat + column(SCORES.offset_beats))
    primary = slot + column(SCORES.to_primary)  # itself, where there is none
    diddle = column(SCORES.diddle)
    written_velocity = jnp.asarray(SCORES.velocity)[kind]

    # ------------------------------------------------------------------------------------------ every stroke by itself
    noise = jax.random.normal(noise_key, (4, n))
    weak = (hand == LEFT) != player.left_handed
    tiring = 0.5 * traits["fatigue"] * slot / n_slots
    slow = jnp.maximum(0, player.comfort_low_bpm - take.tempo_bpm)
    fast = jnp.maximum(0, take.tempo_bpm - player.comfort_high_bpm)
    error_ms = traits["timing_sd_ms"] * (1 + 0.01 * (slow + fast)) * noise[0]
    error_ms += 10 * traits["timing_inconsistency"] * noise[1] + traits["weak_hand_late_ms"] * weak
    error_ms += jax.random.rademacher(drift_key, (), jnp.float32) * traits["tempo_drift"] * 1000 * beat_s * beat
    time_s = written_s + jnp.clip(error_ms * (1 + tiring) / 1000, -LARGEST_SHIFT_S, LARGEST_SHIFT_S)

    velocity = written_velocity * (1 + traits["velocity_sd"] * noise[2] - tiring)
    weaker = traits["weak_hand_velocity"] - 1 + traits["weak_hand_velocity_sd"] * noise[3]
    velocity += written_velocity * weak * weaker
    mistaken = jax.random.uniform(accent_key, (n,)) > traits["accent_accuracy"]  # accents missed, others accented
    velocity += mistaken * jnp.where(kind == ACCENT, -3, 2) * traits["accent_differentiation"]
    velocity = jnp.clip(velocity, 1, 127)

    # --------------------------------------------------------------------------------- strokes that belong together
    noise = jax.random.normal(pair_key, (3, n))
    first = jnp.maximum(slot - 1, 0)
    ratio = jnp.clip(traits["diddle_ratio"] + traits["diddle_ratio_sd"] * noise[0], 0.5, 1.5)
    gap_s = beat_s * jnp.where(diddle == 2, beat - beat[first], 0)
    time_s = jnp.where(diddle == 2, time_s[first] + gap_s * ratio, time_s)
    softer = (diddle == 2) & (kind[first] == DIDDLE)  # an accent's second stroke is a tap of its own strength
    velocity = jnp.where(softer, velocity[first] * (0.92 + 0.03 * noise[1]), velocity)

    spacing_s = traits["flam_spacing_ms"] / 1000
    primary_s, primary_velocity = time_s[primary], velocity[primary]
    gap_s = jnp.clip(spacing_s * (1 + traits["flam_spacing_sd"] * noise[0]), 0.005, 0.100)
    time_s = jnp.where(rule == FLAM, primary_s - gap_s, time_s)
    velocity = jnp.where(rule == FLAM, primary_velocity * (0.6 + 0.05 * noise[1]), velocity)

    gaps, limits = jnp.array(DRAG_GAPS)[take.dialect], jnp.array(DRAG_LIMITS_S)[take.dialect]
    spread = jnp.array(DRAG_SPREAD)[take.dialect] * traits["flam_spacing_sd"] * noise[2]
    near_s, far_s = (jnp.clip(spacing_s * (gaps[i] + spread), *limits[i]) for i in range(2))
    following = jnp.minimum(slot + 1, n - 1)
    drag_s = primary_s - jnp.where(rule == DRAG_SECOND, near_s, near_s[following] + far_s)
    drag_velocity = primary_velocity * jnp.where(rule == DRAG_SECOND, 0.495, 0.55)
    is_drag = (rule == DRAG_FIRST) | (rule == DRAG_SECOND)
    time_s = jnp.where(is_drag, drag_s, time_s)
    velocity = jnp.where(is_drag, drag_velocity, velocity)

    is_roll = jnp.asarray(SCORES.is_roll)[take.rudiment] & ((kind == TAP) | (kind == DIDDLE))
    sustained = jnp.maximum(0.5, 1 - 0.05 * traits["roll_decay"] * slot)
    # SOUSA lets a roll decay over its four cycles; a notated roll of any length decays from accent to accent.
    sustained = jnp.where(notated, jnp.maximum(0.5, 1 - 0.05 * traits["roll_decay"] * place), sustained)
    velocity = jnp.where(is_roll, velocity * sustained, velocity)
    time_s = jnp.maximum(0, jnp.clip(time_s, written_s - LARGEST_SHIFT_S, written_s + LARGEST_SHIFT_S))

    # -------------------------------------------------------------- strokes: a buzz is a few bounces, others are one
    hits_key, gap_key = jax.random.split(buzz_key)
    density = traits["buzz_density"]
    n_hits = jnp.clip(3 + 5 * density + 2 * (1 - density) * jax.random.normal(hits_key, (n,)), 3, MAX_BOUNCES)
    n_hits = jnp.where(kind == BUZZ, jnp.floor(n_hits), 1).astype(jnp.int32)
    bounce_gap_s = jax.random.uniform(gap_key, (n,), minval=0.002, maxval=0.005)

    row = jnp.arange(room.n_strokes)
    bounces_here = jnp.where(jnp.asarray(SCORES.n_buzzes)[take.dialect, take.rudiment] > 0, MAX_BOUNCES, 1)
    source, bounce = jnp.minimum(row // bounces_here, n - 1), row % bounces_here
    # A slot's bounces beyond its number are holes; they are closed by sorting them to the end.
    valid = (row // bounces_here < n_slots) & (bounce < n_hits[source])
    order = jnp.argsort(~valid, stable=True)
    source, bounce, valid = source[order], bounce[order], valid[order]
    start = jnp.arange(len(row)) - bounce  # the row of the slot's first stroke
    first_row = jnp.zeros(n, jnp.int32).at[jnp.where(valid & (bounce == 0), source, n)].set(row, mode="drop")
    owner = jnp.where(bounce > 0, start, jnp.where(kind[source] == GRACE, first_row[primary[source]], -1))

    struck = velocity[source] * 0.85**bounce
    return Strokes(
        time_s=time_s[source] + bounce * bounce_gap_s[source],
        written_s=written_s[source],
        velocity=jnp.floor(jnp.clip(struck, 1, 127)),
        written_velocity=written_velocity[source],
        hand=hand[source],
        kind=kind[source],
        is_grace=(kind[source] == GRACE) | (bounce > 0),
        diddle=diddle[source],
        parent=jnp.where(valid, owner, -1),
        valid=valid,
    )
