"""How sure a result is: intervals over players, and whether one run is better than another.

    python -m sousa_jax.significance RUN [RUN ...] [--by=soundfont]

A RUN is a run's folder or one with a `predictions.parquet`. Clips of one player are alike, so intervals draw players
again, not clips. A test split has few players, for which plain percentiles are too narrow: they are expanded as far as
Student's t is wider than a normal distribution (T. Hesterberg, "What teachers should know about the bootstrap", The
American Statistician 69, 2015, section 4.3).
"""

import argparse
import itertools
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.stats

from sousa_jax import predictions
from sousa_jax.errors import InputError, one_line_errors
from sousa_jax.metrics import in_order
from sousa_jax.predictions import Answers

GROUPS = ("skill_tier", "soundfont", "augmentation_preset", "dominant_hand")
N_RESAMPLES = 2000
LEVEL = 0.95
AT_ONCE = 50_000  # players drawn, of all draws that are in memory together


class Interval(NamedTuple):
    """A score and its 95 % interval, of which both ends are NaN where there is none."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} … {self.high:.3f})"


def by_player(player: np.ndarray, label: np.ndarray, correct: np.ndarray, seed: int = 0) -> Interval:
    """Balanced accuracy and its interval (expanded percentiles of a bootstrap over players).

    A class that no drawn player has does not count in that draw. With one player there is no interval.

    Args:
      player, label: `(n,)`, of any kind that sorts.
      correct: `(n,)` bool.
    """
    clips, hits = _tallies(player, label, correct)
    return _bootstrap(lambda drawn: _balanced(hits[drawn], clips[drawn]), len(clips), seed)


def difference(
    player: np.ndarray, label: np.ndarray, correct_a: np.ndarray, correct_b: np.ndarray, seed: int = 0
) -> Interval:
    """How much higher the balanced accuracy of a is than that of b, on the same clips, as `by_player`: each draw has
    the same players for both."""
    clips, hits_a, hits_b = _tallies(player, label, correct_a, correct_b)

    def of(drawn: np.ndarray) -> np.ndarray:
        return _balanced(hits_a[drawn], clips[drawn]) - _balanced(hits_b[drawn], clips[drawn])

    return _bootstrap(of, len(clips), seed)


def ratio(
    player: np.ndarray, label: np.ndarray, correct_a: np.ndarray, correct_b: np.ndarray, seed: int = 0
) -> Interval:
    """The balanced accuracy of a as a share of that of b, as `difference`. NaN where b names nothing."""
    if not correct_b.any():
        return Interval(np.nan, np.nan, np.nan)
    clips, hits_a, hits_b = _tallies(player, label, correct_a, correct_b)

    def of(drawn: np.ndarray) -> np.ndarray:
        a, b = (_balanced(hits[drawn], clips[drawn]) for hits in (hits_a, hits_b))
        return np.divide(a, b, out=np.full_like(b, np.nan), where=b > 0)

    return _bootstrap(of, len(clips), seed)


def _tallies(player: np.ndarray, label: np.ndarray, *correct: np.ndarray) -> list[np.ndarray]:
    """Clips of each player and class, then those that are right: `(players, classes)` each."""
    players, p = np.unique(player, return_inverse=True)
    classes, c = np.unique(label, return_inverse=True)
    tallies = []
    for weight in (np.ones(len(p)), *correct):
        tallies.append(np.zeros((len(players), len(classes))))
        np.add.at(tallies[-1], (p, c), weight)
    return tallies


def _balanced(hits: np.ndarray, clips: np.ndarray) -> np.ndarray:
    """Balanced accuracy of the players along the last axis but one."""
    hits, clips = hits.sum(-2), clips.sum(-2)
    return (hits / np.maximum(clips, 1)).sum(-1) / (clips > 0).sum(-1)


def _bootstrap(score: Callable[[np.ndarray], np.ndarray], n_players: int, seed: int) -> Interval:
    everyone = np.arange(n_players)
    value = float(score(everyone))
    if n_players < 2:
        return Interval(value, np.nan, np.nan)
    found = scipy.stats.bootstrap(
        (everyone,), lambda drawn, axis: score(drawn), vectorized=True, n_resamples=N_RESAMPLES,
        batch=max(1, AT_ONCE // n_players), confidence_level=_expanded(n_players), method="percentile",
        rng=np.random.default_rng(seed),
    )  # fmt: skip
    return Interval(value, float(found.confidence_interval.low), float(found.confidence_interval.high))


def _expanded(n: int) -> float:
    """The level of plain percentiles of `n` that hold the truth as often as `LEVEL` says."""
    widest = np.sqrt(n / (n - 1)) * scipy.stats.t.ppf((1 + LEVEL) / 2, n - 1)
    return float(1 - 2 * scipy.stats.norm.sf(widest))


# --------------------------------------------------------------------------------------------------------------- pairs


def mcnemar(correct_a: np.ndarray, correct_b: np.ndarray) -> tuple[int, int, float]:
    """Clips that only a names, clips that only b names, and the exact two-sided p of McNemar's test (Psychometrika 12,
    1947): a difference as large by chance alone, if neither were better. `(n,)` bool each, the same clips."""
    only_a, only_b = int((correct_a & ~correct_b).sum()), int((correct_b & ~correct_a).sum())
    p = scipy.stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    return only_a, only_b, float(p)


class Pair(NamedTuple):
    """Two runs on the same clips. `p` is McNemar's after Holm's correction for all pairs that were asked about."""

    a: str
    b: str
    only_a: int
    only_b: int
    p: float
    difference: Interval

    @property
    def better(self) -> str:
        """The run that is shown to be better, or "". Both must say so: McNemar's test, which counts clips, and the
        interval of the difference, which knows that clips of a player are alike."""
        if self.p >= 1 - LEVEL or not (self.difference.low > 0 or self.difference.high < 0):
            return ""
        return self.a if self.difference.value > 0 else self.b

    def verdict(self) -> str:
        """For people who do not care for statistics."""
        d = self.difference
        first, second = (self.a, self.b) if d.value >= 0 else (self.b, self.a)
        low, high = (d.low, d.high) if d.value >= 0 else (-d.high, -d.low)
        points = f"{100 * abs(d.value):.1f} points"
        p = "p < 0.001" if self.p < 1e-3 else f"p = {self.p:.2g}"
        told = f"{p}, 95 % interval {100 * low:.1f} … {100 * high:.1f}"
        if self.better:
            return f"{first} is better than {second}: {points}, more than luck would give ({told})"
        if d.value == 0:
            return f"{first} and {second} have the same score ({told})"
        return f"{first} scores {points} more than {second}, which may be luck ({told})"


def pairs(runs: dict[str, Answers], heard: str = "all windows") -> list[Pair]:
    """Every pair of runs, as they were tested. `InputError` if two were tested on different clips."""
    from statsmodels.stats.multitest import multipletests  # late: it takes a second to import

    asked = list(itertools.combinations(runs, 2))
    right = {name: answers.correct(heard) for name, answers in runs.items()}
    for a, b in asked:
        if not same_clips(runs[a], runs[b]):
            raise InputError(f"{a} and {b} were tested on different clips: they cannot be compared")
    if not asked:
        return []
    counted = [mcnemar(right[a], right[b]) for a, b in asked]
    corrected = multipletests([p for *_, p in counted], method="holm")[1]
    first = next(iter(runs.values()))
    return [
        Pair(a, b, only_a, only_b, float(p), difference(first.players, first.labels, right[a], right[b]))
        for (a, b), (only_a, only_b, _), p in zip(asked, counted, corrected, strict=True)
    ]


def same_clips(a: Answers, b: Answers) -> bool:
    """Whether both were tested on the same clips with the same labels."""
    columns = ("sample_id", "profile_id", "label")
    return all(np.array_equal(a.table[name].to_numpy(), b.table[name].to_numpy()) for name in columns)


# --------------------------------------------------------------------------------------------------------------- words


def lines(runs: dict[str, Answers], by: str) -> list[str]:
    """Runs by name as text: balanced accuracies with intervals, in all and of each group `by`, then every pair."""
    said = []
    for name, answers in runs.items():
        if by not in answers.table:
            raise InputError(f"{name} does not know the {by} of its clips")
        names = answers.table[by].to_numpy()
        for heard in answers.logits:
            said.append(f"{name}, {heard}: {_told(answers, heard)}")
            for group in in_order(names):
                said.append(f"    {group:<28} {_told(answers, heard, names == group)}")
    for heard in ("all windows", "first window"):
        for pair in pairs(runs, heard):
            said.append(
                f"{heard}: only {pair.a} right {pair.only_a}, only {pair.b} right {pair.only_b}: {pair.verdict()}"
            )
    return said


def _told(answers: Answers, heard: str, inside: np.ndarray | slice = slice(None)) -> str:
    players = answers.players[inside]
    found = by_player(players, answers.labels[inside], answers.correct(heard)[inside])
    return f"{found}, {len(players)} clips of {len(set(players))} players"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", type=pathlib.Path)
    parser.add_argument("--by", choices=GROUPS, default=GROUPS[0], help="groups of clips; default: %(default)s")
    args = parser.parse_args(argv)
    with one_line_errors():
        print("\n".join(lines({str(run): predictions.read(run) for run in args.runs}, args.by)))


if __name__ == "__main__":
    main()
