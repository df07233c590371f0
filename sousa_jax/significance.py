"""How sure a result is: intervals over players, and whether one run is better than another.

    python -m sousa_jax.significance RUN [RUN ...] [--by=soundfont]

A RUN is a run's folder or one with a `predictions.parquet`. Clips of one player are alike, so intervals draw players
again, not clips.
"""

import argparse
import itertools
import pathlib

import numpy as np
import pandas as pd
import scipy.stats

from sousa_jax.errors import InputError, one_line_errors
from sousa_jax.metrics import TIERS

COLUMNS = ("sample_id", "profile_id", "label", "logits", "first_logits")
GROUPS = ("skill_tier", "soundfont", "augmentation_preset", "dominant_hand")
HEARD = {"all windows": "logits", "first window": "first_logits"}
N_RESAMPLES = 2000
LEVEL = 0.95


def by_player(
    player: np.ndarray, label: np.ndarray, correct: np.ndarray, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """Balanced accuracy and its 95 % interval (percentiles of a bootstrap over players).

    A class that no drawn player has does not count in that draw. With one player there is no interval: NaN.

    Args:
      player, label: `(n,)`, of any kind that sorts.
      correct: `(n,)` bool.
    """
    players, p = np.unique(player, return_inverse=True)
    classes, c = np.unique(label, return_inverse=True)
    clips, hits = np.zeros((2, len(players), len(classes)))
    np.add.at(clips, (p, c), 1)
    np.add.at(hits, (p, c), correct)

    def score(drawn: np.ndarray) -> float:
        of_class = clips[drawn].sum(0)
        return float((hits[drawn].sum(0)[of_class > 0] / of_class[of_class > 0]).mean())

    everyone = np.arange(len(players))
    if len(players) < 2:
        return score(everyone), (np.nan, np.nan)
    found = scipy.stats.bootstrap(
        (everyone,), score, vectorized=False, n_resamples=N_RESAMPLES, confidence_level=LEVEL, method="percentile",
        rng=np.random.default_rng(seed),
    )  # fmt: skip
    return score(everyone), (float(found.confidence_interval.low), float(found.confidence_interval.high))


def mcnemar(correct_a: np.ndarray, correct_b: np.ndarray) -> tuple[int, int, float]:
    """Clips that only a names, clips that only b names, and the exact two-sided p of McNemar's test (Psychometrika 12,
    1947): a difference as large by chance alone, if neither were better. `(n,)` bool each, the same clips."""
    only_a, only_b = int((correct_a & ~correct_b).sum()), int((correct_b & ~correct_a).sum())
    p = scipy.stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    return only_a, only_b, float(p)


def read(run: pathlib.Path, by: str) -> pd.DataFrame:
    """The predictions of a run on its test split, one row a clip, with the column `by`, sorted by `sample_id`;
    `InputError` without any."""
    path = run / "predictions.parquet"
    if not path.is_file():
        path = run / "results" / "predictions.parquet"
    if not path.is_file():
        raise InputError(f"{run} has no predictions.parquet; `python -m sousa_jax.evaluate --workdir={run}` writes one")
    try:
        table = pd.read_parquet(path, columns=[*COLUMNS, by])
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged or of another kind ({str(error).splitlines()[0]})") from error
    if table.empty:
        raise InputError(f"{path} holds no predictions")
    return table.sort_values("sample_id", ignore_index=True)


def correct(predictions: pd.DataFrame, heard: str) -> np.ndarray:
    """Which clips are named rightly, `(n,)` bool; `heard` is a key of `HEARD`."""
    return np.stack(predictions[HEARD[heard]].to_numpy()).argmax(1) == predictions["label"].to_numpy()


def lines(runs: dict[str, pd.DataFrame], by: str) -> list[str]:
    """Runs by name as text: balanced accuracies with intervals, in all and of each group `by`, then every pair."""
    said = []
    for name, table in runs.items():
        for heard in HEARD:
            ok = correct(table, heard)
            said.append(f"{name}, {heard}: {_interval(table, ok)}")
            groups = table[by].to_numpy()
            for group in sorted(set(groups), key=lambda g: (TIERS.index(g) if g in TIERS else len(TIERS), g)):
                said.append(f"    {group:<28} {_interval(table[groups == group], ok[groups == group])}")
    for (a, of_a), (b, of_b) in itertools.combinations(runs.items(), 2):
        if not of_a["sample_id"].equals(of_b["sample_id"]):
            raise InputError(f"{a} and {b} were tested on different clips: they cannot be compared")
        for heard in HEARD:
            only_a, only_b, p = mcnemar(correct(of_a, heard), correct(of_b, heard))
            verdict = "no difference is shown" if p >= 1 - LEVEL else f"{a if only_a > only_b else b} is better"
            said.append(f"{heard}: only {a} right {only_a}, only {b} right {only_b}, p = {p:.2g}: {verdict}")
    return said


def _interval(table: pd.DataFrame, ok: np.ndarray) -> str:
    players = table["profile_id"].to_numpy()
    score, (low, high) = by_player(players, table["label"].to_numpy(), ok)
    return f"{score:.3f} ({low:.3f} … {high:.3f}), {len(ok)} clips of {len(set(players))} players"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", type=pathlib.Path)
    parser.add_argument("--by", choices=GROUPS, default=GROUPS[0], help="groups of clips; default: %(default)s")
    args = parser.parse_args(argv)
    with one_line_errors():
        print("\n".join(lines({str(run): read(run, args.by) for run in args.runs}, args.by)))


if __name__ == "__main__":
    main()
