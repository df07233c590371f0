"""What a drummer wants to know of strokes that were heard: the tempo, and how each one lies beside the written one.

    lesson = teach(heard, by_slug("five_stroke_roll"))
    lesson.tempo_bpm, lesson.dialect, lesson.table, lesson.summary

The written pattern is laid over the strokes by `alignment`. Grace notes that lean on a primary count neither for its
line nor for the statistics of deviations: how far ahead they are is told as the spacing of flams and drags. Which hand
leads cannot be heard: hands in the table are those of the right-hand lead.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
import pandas as pd

from sousa_jax.alignment import FEWEST, Fit, Pattern, align, pattern_of, spacings
from sousa_jax.data.synth.strokes import ACCENT, KINDS
from sousa_jax.data.synth.written import DIALECTS
from sousa_jax.errors import InputError, nearest
from sousa_jax.hearing import HeardStrokes
from sousa_jax.rudiments import STROKE_TYPES, Rudiment

AS_PRINTED = 0.5  # nats in favour of the printed rhythm: where both dialects are the same, its beat is the drummer's

PLAYED, MISSED, EXTRA = "played", "missed", "extra"


@dataclasses.dataclass(frozen=True)
class Lesson:
    """Strokes beside a pattern.

    Attributes:
      rudiment, dialect: the pattern.
      tempo_bpm: beats of the pattern a minute; the mean tempo, where it drifts.
      log_likelihood: of the fit, in nats; comparable for the same strokes only.
      table: `COLUMNS`, in order of time. A row for each written stroke from the first to the last that was played, and
        one for each heard stroke that is not written.
          time_s: when it was heard, NaN if missed. written_s: where it is written, NaN if extra; for a grace note that
          leans on a primary, the primary's less the player's median spacing. deviation_ms: positive is late.
          velocity, grace, confidence: as heard, NaN if missed. kind: `rudiments.STROKE_TYPES`, "" if extra.
          hand: R or L, "" if extra. is_accent: bool. leans: bool, a grace note placed before a primary.
          spacing_ms: how far such a grace note is ahead of its primary. cycle: from 0, -1 if extra.
          slot: within the cycle, -1 if extra. status: `played`, `missed` or `extra`.
      summary: see `summarize`.
    """

    rudiment: Rudiment
    dialect: str
    tempo_bpm: float
    log_likelihood: float
    table: pd.DataFrame
    summary: "Summary"


COLUMNS = (
    "time_s", "written_s", "deviation_ms", "velocity", "grace", "confidence", "kind", "hand", "is_accent", "leans",
    "spacing_ms", "cycle", "slot", "status",
)  # fmt: skip


class Summary(NamedTuple):
    """Numbers of a lesson; NaN where there is nothing to count.

    Deviations are of played strokes other than leaning grace notes. `late_*_ms` are means, 0 being the fitted line.
    accent_contrast: mean velocity of accents by that of unaccented strokes. accent_evenness, tap_evenness: 1 minus the
    coefficient of variation of the velocities. hand_balance: mean velocity of unaccented right strokes by left ones.
    grace_spacing_ms: median of flams, or of the nearer grace note of drags. missed: share of the written strokes.
    extra: share of the heard ones.
    """

    n_strokes: int
    mean_ms: float
    sd_ms: float
    late_right_ms: float
    late_left_ms: float
    sd_right_ms: float
    sd_left_ms: float
    accent_contrast: float
    accent_evenness: float
    tap_evenness: float
    hand_balance: float
    grace_spacing_ms: float
    grace_spacing_sd_ms: float
    missed: float
    extra: float


def teach(heard: HeardStrokes, rudiment: Rudiment, dialect: str | None = None) -> Lesson:
    """Lays the pattern of a rudiment over heard strokes.

    Args:
      heard: in any order of time.
      rudiment: what was played.
      dialect: `sousa` or `notated`; None takes the one that explains the strokes better.

    Raises:
      InputError: unknown dialect; fewer than `FEWEST` strokes, or all at one time; a number that is not finite.
    """
    if dialect is not None and dialect not in DIALECTS:
        hint = nearest(dialect, DIALECTS)
        raise InputError(f"unknown dialect {dialect!r}; " + (f"did you mean {hint}?" if hint else f"known: {DIALECTS}"))
    columns = [np.asarray(column, np.float64) for column in heard]
    if not all(np.isfinite(column).all() for column in columns):
        raise InputError("heard strokes hold a number that is not finite")
    heard = HeardStrokes(*(column[np.argsort(columns[0], kind="stable")] for column in columns))
    if len(heard.time_s) < FEWEST or np.ptp(heard.time_s) == 0:
        raise InputError(f"{len(heard.time_s)} strokes were heard; at least {FEWEST} are needed to find a tempo")
    fits = {}
    for name in DIALECTS if dialect is None else (dialect,):
        pattern = pattern_of(rudiment, name)
        fits[name] = pattern, align(heard, pattern)
    best = max(fits, key=lambda name: fits[name][1].log_likelihood + AS_PRINTED * (name == "notated"))
    pattern, fit = fits[best]
    table = _table(heard, pattern, fit)
    return Lesson(rudiment, best, fit.tempo_bpm, float(fit.log_likelihood), table, summarize(table))


def _table(heard: HeardStrokes, pattern: Pattern, fit: Fit) -> pd.DataFrame:
    primary = np.minimum(np.arange(len(fit.slot)) + pattern.to_primary[fit.slot], len(fit.slot) - 1)
    grid = pd.DataFrame({
        "written_s": fit.written_s,
        "kind": np.array([STROKE_TYPES[kind] for kind in KINDS], object)[pattern.kind[fit.slot]],
        "hand": np.array(["R", "L"], object)[pattern.hand[fit.slot]],
        "is_accent": pattern.kind[fit.slot] == ACCENT,
        "leans": pattern.leans[fit.slot],
        "spacing_ms": 1000 * spacings(heard.time_s, fit.of_heard, fit.of_written, primary),
        "cycle": fit.cycle,
        "slot": fit.slot,
    })  # fmt: skip
    grid.loc[~grid["leans"], "spacing_ms"] = np.nan
    strokes = pd.DataFrame(heard._asdict())
    strokes["written"] = -1
    strokes.loc[fit.of_heard, "written"] = fit.of_written
    played = np.arange(fit.of_written.min(), fit.of_written.max() + 1) if len(fit.of_written) else []
    table = grid.loc[played].merge(strokes, how="outer", left_index=True, right_on="written")
    table["status"] = np.select([table["written_s"].isna(), table["time_s"].isna()], [EXTRA, MISSED], PLAYED)
    table["deviation_ms"] = 1000 * (table["time_s"] - table["written_s"])
    is_extra = table["status"] == EXTRA
    table[["cycle", "slot"]] = table[["cycle", "slot"]].fillna(-1).astype(int)
    table.loc[~is_extra, "cycle"] -= table.loc[~is_extra, "cycle"].min()
    for name, nothing in (("kind", ""), ("hand", ""), ("is_accent", False), ("leans", False)):
        table[name] = table[name].where(~is_extra, nothing).astype(type(nothing))
    when = table["time_s"].fillna(table["written_s"])
    return table.iloc[np.argsort(when, kind="stable")].reset_index(drop=True)[list(COLUMNS)]


def summarize(table: pd.DataFrame) -> Summary:
    """The numbers of a lesson's table."""
    played = table[table["status"] == PLAYED]
    firm = played[~played["leans"]]
    right, left = (firm.loc[firm["hand"] == hand, "deviation_ms"] for hand in "RL")
    accents, others = firm[firm["is_accent"]], firm[~firm["is_accent"] & (firm["kind"] != STROKE_TYPES["g"])]
    by_hand = others.groupby("hand")["velocity"].mean()
    primary_s = (played["time_s"] + played["spacing_ms"] / 1000).round(4)
    near = played.groupby(primary_s)["spacing_ms"].min()  # of a drag the nearer one
    return Summary(
        n_strokes=len(played),
        mean_ms=firm["deviation_ms"].mean(),
        sd_ms=firm["deviation_ms"].std(),
        late_right_ms=right.mean(),
        late_left_ms=left.mean(),
        sd_right_ms=right.std(),
        sd_left_ms=left.std(),
        accent_contrast=accents["velocity"].mean() / others["velocity"].mean(),
        accent_evenness=_evenness(accents["velocity"]),
        tap_evenness=_evenness(others["velocity"]),
        hand_balance=by_hand.get("R", np.nan) / by_hand.get("L", np.nan),
        grace_spacing_ms=near.median(),
        grace_spacing_sd_ms=near.std(),
        missed=float((table["status"] == MISSED).sum() / max(1, (table["status"] != EXTRA).sum())),
        extra=float((table["status"] == EXTRA).sum() / max(1, (table["status"] != MISSED).sum())),
    )


def _evenness(velocity: pd.Series) -> float:
    """1 minus the coefficient of variation; NaN for fewer than two."""
    return float(1 - velocity.std() / velocity.mean()) if len(velocity) > 1 else float("nan")
