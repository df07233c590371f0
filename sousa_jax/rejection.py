"""What is no rudiment: a network of 40 names gives every sound one of them, so something else must say that it is none.

Of a window that is not silent four things are asked. The numbers are fitted on rudiments and on other sounds by
`python -m sousa_jax.thresholds`, which stores them beside the weights.

    probability   of the likeliest rudiment, calibrated: at least so much
    doubt         how undecided the ear is about its strokes: at most so much; noise and voices make it waver
    strokes_per_s at least so many: a slow metronome has fewer
    clockwork     gaps and velocities that are all the same: no hand plays so, a metronome does

A network that hears no strokes is asked for its probability alone.
"""

import dataclasses
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np

from sousa_jax.data.frame_targets import FrameTargets
from sousa_jax.errors import InputError
from sousa_jax.hearing import pick

FILE = "listening.json"
# Clockwork: spreads that no window of a real rudiment has both of (docs/listening.md); four strokes have a spread.
EVEN, EQUAL, FEWEST = 0.02, 0.08, 4


class Marks(NamedTuple):
    """What a window is judged by; all but `probability` are NaN where no strokes are heard, as a network that cannot.

    probability: 0 … 1. doubt: mean of 1 - p over the onset's probability p, 0 … 1, that is Σ p (1 - p) / Σ p.
    strokes_per_s: from the first to the last one, 0 for fewer than four. gap_spread: standard deviation of the
    logarithms of the gaps between strokes. velocity_spread: that of their velocities; both infinite for fewer than
    four.
    """

    probability: float
    doubt: float = np.nan
    strokes_per_s: float = np.nan
    gap_spread: float = np.nan
    velocity_spread: float = np.nan


def marks(log_probs: np.ndarray, strokes: FrameTargets | None, per_second: int) -> Marks:
    """Of one window: `(C,)` calibrated log-probabilities and its stream of strokes, `(T,)` each, or None."""
    probability = float(np.exp(log_probs.max()))
    if strokes is None:
        return Marks(probability)
    onset, heard = np.asarray(strokes.onset, np.float64), pick(strokes, per_second)
    doubt = float((onset * (1 - onset)).sum() / max(onset.sum(), 1e-9))
    n_strokes = len(heard.time_s)
    if n_strokes < FEWEST:
        return Marks(probability, doubt, 0.0, np.inf, np.inf)
    rate = float((n_strokes - 1) / np.ptp(heard.time_s))  # a pause before or after them does not count
    gap_spread = np.log(np.maximum(np.diff(heard.time_s), 1e-3)).std()
    return Marks(probability, doubt, rate, float(gap_spread), float(heard.velocity.std()))


@dataclasses.dataclass(frozen=True)
class Limits:
    """The smallest probability and rate of strokes and the largest doubt that a rudiment has. By default everything
    passes but clockwork: a network whose limits nobody has fitted."""

    probability: float = 0.0
    doubt: float = 1.0
    strokes_per_s: float = 0.0

    def objection(self, marks: Marks) -> str:
        """Why it is no rudiment, in a few words; "" if it may be one."""
        if marks.doubt > self.doubt:
            return "no clear strokes"
        if marks.strokes_per_s < self.strokes_per_s:
            return "too few strokes"
        if marks.gap_spread < EVEN and marks.velocity_spread < EQUAL:
            return "even as clockwork"
        return "like no rudiment" if marks.probability < self.probability else ""


def load(folder: pathlib.Path) -> Limits | None:
    """The limits stored beside a model's weights; None if nobody has fitted them. `InputError` if they are damaged."""
    path = pathlib.Path(folder) / FILE
    if not path.is_file():
        return None
    try:
        stored: dict[str, Any] = json.loads(path.read_text("utf-8"))["limits"]
        return Limits(**{field.name: float(stored[field.name]) for field in dataclasses.fields(Limits)})
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error!r}); write it again by python -m sousa_jax.thresholds") from None
