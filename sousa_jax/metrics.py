"""What is measured on predictions, with scikit-learn, and the files that show it."""

import itertools
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.optimize
import scipy.special
from sklearn import metrics as sk

from sousa_jax import predictions
from sousa_jax.checkpoint import write_json
from sousa_jax.predictions import Answers
from sousa_jax.rudiments import FAMILIES, NUM_CLASSES, RUDIMENTS, SLUGS

TIERS = ("beginner", "intermediate", "advanced", "professional")
TEMPO_EDGES = (60, 90, 120, 150, 181)  # BPM
CYCLE_EDGES = (0, 1, 2, 4, np.inf)
CYCLES = "cycles in the first"
CALIBRATION_BINS = 15
# Class ids with families together, as on the PAS sheet within each.
BY_FAMILY = sorted(range(NUM_CLASSES), key=lambda i: (FAMILIES.index(RUDIMENTS[i].family), RUDIMENTS[i].pas_number))
FAMILY_OF = np.array([FAMILIES.index(rudiment.family) for rudiment in RUDIMENTS])


def scores(labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Balanced accuracy (the primary one), top-1, top-5 and macro F1 over the classes that occur.

    labels: `(n,)` class ids; logits: `(n, NUM_CLASSES)`.
    """
    predicted = logits.argmax(1)
    present = np.unique(labels)
    return {
        "balanced_accuracy": balanced_accuracy(labels, predicted),
        "top1": float(sk.accuracy_score(labels, predicted)),
        "top5": float(sk.top_k_accuracy_score(labels, logits, k=5, labels=np.arange(NUM_CLASSES))),
        "macro_f1": float(sk.f1_score(labels, predicted, labels=present, average="macro", zero_division=0)),
        "n_clips": len(labels),
    }


def balanced_accuracy(labels: np.ndarray, predicted: np.ndarray) -> float:
    """The mean recall of the classes that occur. `(n,)` class ids each."""
    # What balanced_accuracy_score gives, without its warning when a class was predicted that does not occur.
    return float(sk.recall_score(labels, predicted, labels=np.unique(labels), average="macro"))


# -------------------------------------------------------------------------------------------------------- calibration


class Calibration(NamedTuple):
    """How often answers of about the same confidence are right: means and counts of bins, `(CALIBRATION_BINS,)` each.

    `error` is the expected calibration error: the mean distance of confidence and accuracy over all clips. (C. Guo et
    al., "On calibration of modern neural networks", ICML 2017.)
    """

    error: float
    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray


def calibration(labels: np.ndarray, logits: np.ndarray) -> Calibration:
    """Of the class that is named, in bins of equal width; those without a clip are NaN. Arguments as of `scores`."""
    probabilities = scipy.special.softmax(logits.astype(np.float64), axis=1)
    confidence, right = probabilities.max(1), logits.argmax(1) == labels
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    count, summed, hits = (
        np.bincount(bins, weights=weights, minlength=CALIBRATION_BINS) for weights in (None, confidence, right)
    )
    error = np.abs(summed - hits).sum() / len(labels)
    with np.errstate(invalid="ignore"):
        return Calibration(float(error), summed / count, hits / count, count)


def fit_temperature(labels: np.ndarray, logits: np.ndarray) -> float:
    """What logits are to be divided by so that labels are likeliest; between 0.05 and 20. Arguments as of `scores`.

    It changes how sure the answers are and no answer. (Guo et al., section 4.2.)
    """

    def surprise(log_temperature: float) -> float:
        log_probs = scipy.special.log_softmax(logits / np.exp(log_temperature), axis=1)
        return float(-log_probs[np.arange(len(labels)), labels].mean())

    logits = logits.astype(np.float64)
    found = scipy.optimize.minimize_scalar(surprise, bounds=(np.log(0.05), np.log(20)), method="bounded")
    return float(np.exp(found.x))


# ------------------------------------------------------------------------------------------------ who is taken for whom


def confusion(labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """`(NUM_CLASSES, NUM_CLASSES)` counts by class id: rows what was played, columns what was named."""
    return sk.confusion_matrix(labels, predicted, labels=np.arange(NUM_CLASSES))


def family_confusion(labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """The same of `FAMILIES`, `(4, 4)` counts."""
    return sk.confusion_matrix(FAMILY_OF[labels], FAMILY_OF[predicted], labels=np.arange(len(FAMILIES)))


def error_split(labels: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Shares of all clips that were named wrongly: `within_family`, and `between_families`."""
    wrong, same = labels != predicted, FAMILY_OF[labels] == FAMILY_OF[predicted]
    return {
        "within_family": float((wrong & same).mean()),
        "between_families": float((wrong & ~same).mean()),
    }


def per_rudiment(labels: np.ndarray, predicted: np.ndarray) -> pd.DataFrame:
    """Precision, recall, F1 and support of each of the 40, in the order of their ids."""
    columns = sk.precision_recall_fscore_support(labels, predicted, labels=np.arange(NUM_CLASSES), zero_division=0)
    names = {"rudiment": SLUGS, "family": [rudiment.family for rudiment in RUDIMENTS]}
    return pd.DataFrame(names | dict(zip(("precision", "recall", "f1", "support"), columns, strict=True)))


# --------------------------------------------------------------------------------------------------- groups of clips


def groups(table: pd.DataFrame, window_s: float) -> dict[str, np.ndarray]:
    """To which group each clip belongs, `(n,)` strings, by what the groups are about.

    table: one row a clip with `METADATA_COLUMNS` and `label`; window_s: the first window's length. A window that goes
    round in a circle holds no more cycles than were played.
    """
    cycle_s = np.array([rudiment.beats_per_cycle for rudiment in RUDIMENTS])[table["label"]] * 60 / table["tempo_bpm"]
    cycles = np.minimum(window_s / cycle_s, table["num_cycles"].where(table["num_cycles"] > 0, np.inf))
    return {
        "skill tier": table["skill_tier"].to_numpy(str),
        "tempo": _binned(table["tempo_bpm"], TEMPO_EDGES, "BPM"),
        f"{CYCLES} {window_s:g} s": _binned(cycles, CYCLE_EDGES, ""),
        "sound bank": table["soundfont"].to_numpy(str),
        "preset": table["augmentation_preset"].to_numpy(str),
        "hand": table["dominant_hand"].to_numpy(str),
        "family": np.array(FAMILIES)[FAMILY_OF[table["label"]]],
    }


def _binned(values: pd.Series, edges: tuple[float, ...], unit: str) -> np.ndarray:
    def name(low: float, high: float) -> str:
        text = f"{low:g} and more" if high == np.inf else f"{low:g} to {high - (edges is TEMPO_EDGES):g}"
        return f"{text} {unit}".strip()

    names = [f"below {edges[0]:g} {unit}", *(name(*pair) for pair in itertools.pairwise(edges))]
    names.append(f"{edges[-1]:g} {unit} and more")
    values = np.asarray(values, float)
    return np.where(np.isnan(values), "not known", np.array(names)[np.digitize(values, edges)])


def in_order(names: Any) -> list[str]:
    """Names of groups: tiers by skill, families as on the sheet, others as they sort, numbers by size."""
    known = {name: rank for ranks in (TIERS, FAMILIES) for rank, name in enumerate(ranks)}

    def key(name: str) -> tuple[float, str]:
        digits = "".join(c for c in name.split(" ")[0] if c.isdigit() or c == ".")
        number = float(digits) if digits and digits != "." and name[0].isdigit() else -1.0 if "below" in name else 1e9
        return known.get(name, number), name

    return sorted(set(names), key=key)


# -------------------------------------------------------------------------------------------------------------- files


def write_results(folder: pathlib.Path, summary: dict[str, Any], answers: Answers, window_s: float) -> None:
    """Writes `predictions.parquet` and what it shows: `test_metrics.json`, `per_rudiment_metrics.csv`,
    `skill_tier_breakdown.json`, `breakdowns.csv` and `confusion_matrix.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    predictions.write(folder, answers)
    labels, named = answers.labels, answers.named()
    write_json(folder / "test_metrics.json", summary)
    write_json(folder / "skill_tier_breakdown.json", tier_breakdown(answers))
    rounded = per_rudiment(labels, named).round({"precision": 4, "recall": 4, "f1": 4})
    rounded.to_csv(folder / "per_rudiment_metrics.csv", index=False)
    pd.DataFrame(_breakdown(answers, window_s)).round(4).to_csv(folder / "breakdowns.csv", index=False)
    _plot_confusion(folder / "confusion_matrix.png", labels, named, summary["balanced_accuracy"])


def tier_breakdown(answers: Answers) -> dict[str, dict[str, float]]:
    """`scores` for each skill tier that occurs, known tiers first and in order of skill."""
    tiers, logits = answers.table["skill_tier"].to_numpy(), answers.logits["all windows"]
    return {tier: scores(answers.labels[tiers == tier], logits[tiers == tier]) for tier in in_order(tiers)}


def _breakdown(answers: Answers, window_s: float) -> Iterator[dict[str, Any]]:
    """Rows of `breakdowns.csv`: scores of each group of clips."""
    for about, names in groups(answers.table, window_s).items():
        for name in in_order(names):
            inside = names == name
            found = scores(answers.labels[inside], answers.logits["all windows"][inside])
            first = balanced_accuracy(answers.labels[inside], answers.named("first window")[inside])
            yield {"by": about, "group": name, **found, "first_window_balanced_accuracy": first}


def _plot_confusion(path: pathlib.Path, labels: np.ndarray, predicted: np.ndarray, score: float) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 11), layout="constrained")
    draw_confusion(figure, confusion(labels, predicted))
    figure.suptitle(f"Balanced accuracy {score:.3f} on {len(labels)} clips; families: {', '.join(FAMILIES)}")
    figure.savefig(path, dpi=130)


def draw_confusion(figure: Any, matrix: np.ndarray) -> None:
    """Draws what `confusion` found, grouped and ruled by family, each row in shares of its clips."""
    share = matrix[np.ix_(BY_FAMILY, BY_FAMILY)] / np.maximum(matrix.sum(1)[BY_FAMILY, None], 1)
    axes = figure.subplots()
    image = axes.imshow(share, cmap="magma_r", vmin=0, vmax=1)
    names = [SLUGS[i].replace("_", " ") for i in BY_FAMILY]
    axes.set_xticks(range(NUM_CLASSES), names, rotation=90, fontsize=7)
    axes.set_yticks(range(NUM_CLASSES), names, fontsize=7)
    axes.set_xlabel("heard")
    axes.set_ylabel("played")
    families = FAMILY_OF[BY_FAMILY]
    for edge in np.flatnonzero(np.diff(families)) + 0.5:
        axes.axhline(edge, color="0.5", linewidth=0.8)
        axes.axvline(edge, color="0.5", linewidth=0.8)
    figure.colorbar(image, ax=axes, shrink=0.6, label="share of the row's clips")
