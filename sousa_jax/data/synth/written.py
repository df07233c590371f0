"""The 40 rudiments as arrays, in two dialects, so that a traced class id can pick one inside a jitted function.

`SOUSA`: every stroke of the pattern, grace notes included, owns an equal slot; no rests, no note values.
`NOTATED`: the PAS sheet: note values, rests, rolls that end on their accent, ornaments before the beat.
"""

from typing import NamedTuple

import numpy as np

from sousa_jax.data.synth.strokes import KINDS
from sousa_jax.rudiments import NUM_CLASSES, RUDIMENTS, Rudiment

DIALECTS = ("sousa", "notated")
SOUSA, NOTATED = range(len(DIALECTS))

# What becomes of a stroke: nothing, or moved before its primary as a flam or as one of the pair of a drag. A grace
# note of SOUSA's rule `own_slot` is not moved.
RULES = ("", "flam", "drag_first", "drag_second", "own_slot")
PLAIN, FLAM, DRAG_FIRST, DRAG_SECOND, OWN_SLOT = range(len(RULES))

VELOCITY = {"A": 120, "t": 65, "d": 75, "b": 70, "g": 40}  # as written, MIDI


class Scores(NamedTuple):
    """One cycle of each rudiment. `(D, C)` arrays by dialect and class, `(D, C, MAX_SLOTS)` by slot as well.

    length: int32, strokes a cycle; slots beyond it mean nothing. beats: float32, beats a cycle.
    n_buzzes: int32 a cycle.
    beat: float32, of each stroke within the cycle. offset_beats: float32, what SOUSA adds to a grace note's beat.
    kind: int32, index into `strokes.KINDS`. hand: int32, 0 right, 1 left. rule: int32, index into `RULES`.
    to_primary: int32, how many slots further on a grace note's primary is; 0 for others.
    diddle: int32, 1 or 2 for the first or second of a double stroke, else 0.
    velocity: (kinds,) float32, of each kind as written. is_roll: (C,) bool, the rudiment is of the roll family.
    """

    length: np.ndarray
    beats: np.ndarray
    n_buzzes: np.ndarray
    beat: np.ndarray
    offset_beats: np.ndarray
    kind: np.ndarray
    hand: np.ndarray
    rule: np.ndarray
    to_primary: np.ndarray
    diddle: np.ndarray
    velocity: np.ndarray
    is_roll: np.ndarray


_Row = tuple[float, float, str, str, str, int, int]  # beat, offset, kind, hand, rule, to_primary, diddle


def _sousa_rows(r: Rudiment) -> list[_Row]:
    length = len(r.strokes)
    graces = {g.slot: g for g in r.graces}
    rows, n_diddles = [], 0
    for slot, (kind, hand) in enumerate(zip(r.strokes, r.sticking, strict=True)):
        grace = graces.get(slot)
        n_diddles += kind == "d"
        rows.append((
            slot * r.beats_per_cycle / length, grace.offset_beats if grace else 0.0, kind, hand,
            grace.rule if grace else "", grace.primary - slot if grace else 0,
            (2 - n_diddles % 2) if kind == "d" else 0,
        ))  # fmt: skip
    return rows


def _notated_rows(r: Rudiment) -> list[_Row]:
    return [
        (float(s.beat), 0.0, s.kind, s.hand, s.rule, s.primary - i if s.primary >= 0 else 0, s.diddle)
        for i, s in enumerate(r.notated_strokes)
    ]


def _scores() -> Scores:
    rows = [[_sousa_rows(r) for r in RUDIMENTS], [_notated_rows(r) for r in RUDIMENTS]]
    max_slots = max(len(cycle) for dialect in rows for cycle in dialect)
    shape = (len(DIALECTS), NUM_CLASSES, max_slots)
    beat, offset = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    kind, hand, rule, to_primary, diddle = (np.zeros(shape, np.int32) for _ in range(5))
    length, n_buzzes = np.zeros(shape[:2], np.int32), np.zeros(shape[:2], np.int32)
    for d, dialect in enumerate(rows):
        for c, cycle in enumerate(dialect):
            length[d, c] = len(cycle)
            for i, (at, shift, k, h, named, steps, of_pair) in enumerate(cycle):
                beat[d, c, i], offset[d, c, i] = at, shift
                kind[d, c, i], hand[d, c, i] = KINDS.index(k), "RL".index(h)
                rule[d, c, i], to_primary[d, c, i], diddle[d, c, i] = RULES.index(named), steps, of_pair
                n_buzzes[d, c] += k == "b"
    beats = np.array([[r.beats_per_cycle for r in RUDIMENTS], [float(r.notated_beats) for r in RUDIMENTS]], np.float32)
    velocity = np.array([VELOCITY[k] for k in KINDS], np.float32)
    is_roll = np.array([r.family == "roll" for r in RUDIMENTS])
    return Scores(length, beats, n_buzzes, beat, offset, kind, hand, rule, to_primary, diddle, velocity, is_roll)


SCORES = _scores()
MAX_SLOTS = SCORES.kind.shape[2]
