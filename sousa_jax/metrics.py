"""What is measured on predictions, with scikit-learn, and the files that show it."""

import csv
import pathlib
from typing import Any

import numpy as np
import pandas as pd
from sklearn import metrics as sk
from sklearn.tree import DecisionTreeClassifier

from sousa_jax.checkpoint import write_json
from sousa_jax.rudiments import FAMILIES, NUM_CLASSES, RUDIMENTS, SLUGS

TIERS = ("beginner", "intermediate", "advanced", "professional")


def scores(labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Balanced accuracy (the primary one), top-1, top-5 and macro F1 over the classes that occur.

    labels: `(n,)` class ids; logits: `(n, NUM_CLASSES)`.
    """
    predicted = logits.argmax(1)
    present = np.unique(labels)
    return {
        # What balanced_accuracy_score gives, without its warning when a class was predicted that does not occur.
        "balanced_accuracy": float(sk.recall_score(labels, predicted, labels=present, average="macro")),
        "top1": float(sk.accuracy_score(labels, predicted)),
        "top5": float(sk.top_k_accuracy_score(labels, logits, k=5, labels=np.arange(NUM_CLASSES))),
        "macro_f1": float(sk.f1_score(labels, predicted, labels=present, average="macro", zero_division=0)),
        "n_clips": len(labels),
    }


def duration_only(train: pd.DataFrame, test: pd.DataFrame) -> float:
    """Balanced accuracy of a classifier that knows nothing but `duration_sec`.

    In SOUSA every clip is four cycles long, so length alone beats chance (0.025) by far; a model has to be
    compared with this.
    """
    tree = DecisionTreeClassifier(min_samples_leaf=5, random_state=0)
    tree.fit(train[["duration_sec"]].to_numpy(), train["label"])
    predicted = tree.predict(test[["duration_sec"]].to_numpy())
    return float(sk.recall_score(test["label"], predicted, labels=np.unique(test["label"]), average="macro"))


def write_results(
    folder: pathlib.Path, summary: dict[str, Any], table: pd.DataFrame, logits: np.ndarray, first: np.ndarray
) -> None:
    """Writes `test_metrics.json`, `per_rudiment_metrics.csv`, `skill_tier_breakdown.json`, `confusion_matrix.png`, and
    `predictions.parquet`, from which all of them can be made again.

    table: one row a clip with `label` and `skill_tier`; logits, first: `(len(table), NUM_CLASSES)`, same order, over
    all windows and of the first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / ".predictions.parquet.tmp"
    table.assign(logits=list(logits), first_logits=list(first)).to_parquet(unfinished, index=False)
    unfinished.rename(folder / "predictions.parquet")
    labels = table["label"].to_numpy()
    write_json(folder / "test_metrics.json", summary)
    write_json(folder / "skill_tier_breakdown.json", tier_breakdown(table, logits))
    _write_per_rudiment(folder / "per_rudiment_metrics.csv", labels, logits.argmax(1))
    _plot_confusion(folder / "confusion_matrix.png", labels, logits.argmax(1), summary["balanced_accuracy"])


def tier_breakdown(table: pd.DataFrame, logits: np.ndarray) -> dict[str, dict[str, float]]:
    """`scores` for each skill tier that occurs, known tiers first and in order of skill."""
    tiers = table["skill_tier"].to_numpy()
    order = [*TIERS, *sorted(set(tiers) - set(TIERS))]
    labels = table["label"].to_numpy()
    return {tier: scores(labels[tiers == tier], logits[tiers == tier]) for tier in order if (tiers == tier).any()}


def _write_per_rudiment(path: pathlib.Path, labels: np.ndarray, predicted: np.ndarray) -> None:
    columns = sk.precision_recall_fscore_support(labels, predicted, labels=np.arange(NUM_CLASSES), zero_division=0)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["rudiment", "family", "precision", "recall", "f1", "support"])
        for rudiment, precision, recall, f1, support in zip(RUDIMENTS, *columns, strict=True):
            writer.writerow(
                [rudiment.slug, rudiment.family, f"{precision:.4f}", f"{recall:.4f}", f"{f1:.4f}", int(support)]
            )


def _plot_confusion(path: pathlib.Path, labels: np.ndarray, predicted: np.ndarray, score: float) -> None:
    """Rows are what was played, columns what was heard, grouped by family, each row in shares of its clips."""
    from matplotlib.figure import Figure

    order = sorted(range(NUM_CLASSES), key=lambda i: (FAMILIES.index(RUDIMENTS[i].family), RUDIMENTS[i].pas_number))
    matrix = sk.confusion_matrix(labels, predicted, labels=order)
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)

    figure = Figure(figsize=(12, 11), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(share, cmap="magma_r", vmin=0, vmax=1)
    names = [SLUGS[i].replace("_", " ") for i in order]
    axes.set_xticks(range(NUM_CLASSES), names, rotation=90, fontsize=7)
    axes.set_yticks(range(NUM_CLASSES), names, fontsize=7)
    axes.set_xlabel("heard")
    axes.set_ylabel("played")
    families = [RUDIMENTS[i].family for i in order]
    for edge in (i for i in range(1, NUM_CLASSES) if families[i] != families[i - 1]):
        axes.axhline(edge - 0.5, color="0.5", linewidth=0.8)
        axes.axvline(edge - 0.5, color="0.5", linewidth=0.8)
    axes.set_title(f"Balanced accuracy {score:.3f} on {len(labels)} clips; families: {', '.join(FAMILIES)}")
    figure.colorbar(image, ax=axes, shrink=0.6, label="share of the row's clips")
    figure.savefig(path, dpi=130)
