"""Scores on cases worked out by hand, and the files that show them."""

import csv
import json

import numpy as np
import pandas as pd
import pytest

from sousa_jax import metrics


def _logits(predicted):
    return np.eye(40, dtype=np.float32)[predicted]


def test_scores_by_hand():
    """Class 0: 3 of 4 right, class 1: 0 of 1. Top-1 3/5, balanced (3/4 + 0) / 2."""
    got = metrics.scores(np.array([0, 0, 0, 0, 1]), _logits([0, 0, 0, 1, 0]))
    assert got["balanced_accuracy"] == pytest.approx(0.375)
    assert got["top1"] == pytest.approx(0.6)
    assert got["macro_f1"] == pytest.approx((2 * 0.75 * 0.75 / 1.5) / 2)
    assert got["n_clips"] == 5


def test_top5_counts_the_fifth_and_not_the_sixth():
    logits = -np.arange(40, dtype=np.float32)[None].repeat(2, 0)
    assert metrics.scores(np.array([4, 5]), logits)["top5"] == 0.5


def test_duration_only_finds_a_leak_and_nothing_else():
    rng = np.random.default_rng(0)
    label = np.repeat(np.arange(4), 50)
    leak = pd.DataFrame({"label": label, "duration_sec": label + rng.uniform(0, 0.5, 200)})
    none = pd.DataFrame({"label": label, "duration_sec": rng.uniform(0, 1, 200)})
    assert metrics.duration_only(leak, leak) > 0.95
    assert metrics.duration_only(none.iloc[::2], none.iloc[1::2]) < 0.5


def test_files(tmp_path):
    labels = np.arange(80) % 40
    predicted = np.where(np.arange(80) < 40, labels, (labels + 1) % 40)
    table = pd.DataFrame({"label": labels, "skill_tier": np.where(np.arange(80) < 40, "professional", "beginner")})
    logits = _logits(predicted)
    metrics.write_results(tmp_path, metrics.scores(labels, logits), table, logits, -logits)
    assert json.loads((tmp_path / "test_metrics.json").read_text())["top1"] == 0.5
    tiers = json.loads((tmp_path / "skill_tier_breakdown.json").read_text())
    assert list(tiers) == ["beginner", "professional"]
    assert tiers["professional"]["top1"] == 1.0
    assert tiers["beginner"]["top1"] == 0.0
    rows = list(csv.DictReader((tmp_path / "per_rudiment_metrics.csv").open()))
    assert len(rows) == 40
    assert {row["support"] for row in rows} == {"2"}
    assert (tmp_path / "confusion_matrix.png").stat().st_size > 10_000
    kept = pd.read_parquet(tmp_path / "predictions.parquet")
    pd.testing.assert_frame_equal(kept[["label", "skill_tier"]], table)
    np.testing.assert_array_equal(np.stack(kept["logits"]), logits)
    np.testing.assert_array_equal(np.stack(kept["first_logits"]), -logits)
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith(".")} == set()
