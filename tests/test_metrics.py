"""Scores on cases worked out by hand and against scikit-learn, and the files that show them."""

import itertools
import json
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from benchmarks.report import answers, made_up_clips
from sousa_jax import metrics
from sousa_jax.rudiments import CLASS_IDS, FAMILIES, RUDIMENTS


def _logits(predicted):
    return np.eye(40, dtype=np.float32)[predicted]


def test_scores_by_hand():
    """Class 0: 3 of 4 right, class 1: 0 of 1. Top-1 3/5, balanced (3/4 + 0) / 2."""
    got = metrics.scores(np.array([0, 0, 0, 0, 1]), _logits([0, 0, 0, 1, 0]))
    assert got["balanced_accuracy"] == pytest.approx(0.375)
    assert got["top1"] == pytest.approx(0.6)
    assert got["macro_f1"] == pytest.approx((2 * 0.75 * 0.75 / 1.5) / 2)
    assert got["n_clips"] == 5


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 39), st.integers(0, 39)), min_size=1, max_size=60))
def test_balanced_accuracy_is_scikit_learn_s(pairs):
    labels, predicted = np.array(pairs).T
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes that were predicted and do not occur
        expected = sk.balanced_accuracy_score(labels, predicted)
    assert metrics.balanced_accuracy(labels, predicted) == pytest.approx(expected)


def test_top5_counts_the_fifth_and_not_the_sixth():
    logits = -np.arange(40, dtype=np.float32)[None].repeat(2, 0)
    assert metrics.scores(np.array([4, 5]), logits)["top5"] == 0.5


# -------------------------------------------------------------------------------------------------------- calibration


def _sure(probability, n):
    """Logits that name class 0 with that probability."""
    rest = np.log((1 - probability) / 39)
    return np.tile(np.r_[np.log(probability), np.full(39, rest)].astype(np.float32), (n, 1))


def test_calibration_by_hand():
    """Ten clips at 0.9, of which seven are right, and ten at 0.5, of which five are: (10 · 0.2 + 10 · 0) / 20."""
    labels = np.r_[np.zeros(7), np.ones(3), np.zeros(5), np.ones(5)].astype(int)
    found = metrics.calibration(labels, np.concatenate([_sure(0.9, 10), _sure(0.5, 10)]))
    assert found.error == pytest.approx(0.1, abs=1e-6)
    filled = np.flatnonzero(found.count)
    np.testing.assert_allclose(found.confidence[filled], [0.5, 0.9], atol=1e-6)
    np.testing.assert_allclose(found.accuracy[filled], [0.5, 0.7])
    assert found.count[filled].tolist() == [10, 10]
    assert np.isnan(np.delete(found.confidence, filled)).all()


def test_calibration_of_one_who_knows_what_it_knows():
    """Labels drawn from the very probabilities: hardly any error; the same, twice as sure: much."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20_000, 40)).astype(np.float32)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = np.array([rng.choice(40, p=p / p.sum()) for p in probabilities.astype(float)])
    assert metrics.calibration(labels, logits).error < 0.02
    assert metrics.calibration(labels, 2 * logits).error > 0.2
    assert metrics.calibration(labels[:3], np.eye(40)[labels[:3]] * 1e4).error == 0


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_was_forgotten_is_found(temperature):
    """Labels drawn from the probabilities of z; asked about z · T."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (5000, 40))
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(1)
    found = metrics.fit_temperature(labels, (logits * temperature).astype(np.float32))
    assert found == pytest.approx(temperature, rel=0.05)
    before, after = (metrics.calibration(labels, logits * temperature / t).error for t in (1.0, found))
    assert after < 0.02
    assert after <= before + 0.01


def test_a_temperature_stays_within_bounds():
    assert metrics.fit_temperature(np.arange(40), _logits(np.arange(40))) == pytest.approx(0.05, rel=0.01)
    assert metrics.fit_temperature(np.arange(40), _logits((np.arange(40) + 1) % 40)) == pytest.approx(20, rel=0.01)


# ------------------------------------------------------------------------------------------------ who is taken for whom


def test_confusions_by_hand():
    flam, flam_tap, drag = (CLASS_IDS[slug] for slug in ("flam", "flam_tap", "drag"))
    labels, predicted = np.array([flam, flam, flam, drag]), np.array([flam, flam_tap, drag, drag])
    matrix = metrics.confusion(labels, predicted)
    assert matrix.shape == (40, 40)
    assert (matrix[flam, flam], matrix[flam, flam_tap], matrix[flam, drag], matrix[drag, drag]) == (1, 1, 1, 1)
    families = metrics.family_confusion(labels, predicted)
    assert families[FAMILIES.index("flam")].tolist() == [0, 0, 2, 1]
    assert families.sum() == matrix.sum() == 4
    assert metrics.error_split(labels, predicted) == {"within_family": 0.25, "between_families": 0.25}


def test_rudiments_stand_by_family():
    families = [RUDIMENTS[i].family for i in metrics.BY_FAMILY]
    assert sorted(metrics.BY_FAMILY) == list(range(40))
    assert sum(a != b for a, b in itertools.pairwise(families)) == len(FAMILIES) - 1


def test_each_rudiment_by_hand():
    found = metrics.per_rudiment(np.array([0, 0, 1]), np.array([0, 1, 1])).set_index("rudiment")
    first, second = found.index[0], found.index[1]
    assert tuple(found.loc[first, ["precision", "recall", "support"]]) == (1.0, 0.5, 2)
    assert tuple(found.loc[second, ["precision", "recall", "support"]]) == (0.5, 1.0, 1)
    assert found["support"].sum() == 3


# --------------------------------------------------------------------------------------------------- groups of clips


def test_groups_by_hand():
    """A flam takes 1 beat a cycle: at 60 BPM 2.5 s are 2.5 cycles, at 120 all four that were played, not 5."""
    clips = made_up_clips(4).assign(
        label=CLASS_IDS["flam"], tempo_bpm=[60, 89, 120, 180], num_cycles=[4, 4, 4, 0],
        skill_tier=["professional", "beginner", "beginner", "advanced"],
    )  # fmt: skip
    assert RUDIMENTS[CLASS_IDS["flam"]].beats_per_cycle == 1
    found = metrics.groups(clips, window_s=2.5)
    assert found["tempo"].tolist() == ["60 to 89 BPM", "60 to 89 BPM", "120 to 149 BPM", "150 to 180 BPM"]
    assert found["cycles in the first 2.5 s"].tolist() == ["2 to 4", "2 to 4", "4 and more", "4 and more"]
    assert found["family"].tolist() == ["flam"] * 4
    assert metrics.in_order(found["skill tier"]) == ["beginner", "advanced", "professional"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["4 and more", "0 to 1", "2 to 4", "1 to 2"], ["0 to 1", "1 to 2", "2 to 4", "4 and more"]),
        (["120 to 149 BPM", "below 60 BPM", "90 to 119 BPM", "181 BPM and more"],
         ["below 60 BPM", "90 to 119 BPM", "120 to 149 BPM", "181 BPM and more"]),
        (["drag", "roll", "flam", "diddle"], ["roll", "diddle", "flam", "drag"]),
        (["gym", "clean_studio"], ["clean_studio", "gym"]),
    ],
)  # fmt: skip
def test_groups_stand_in_order(names, expected):
    assert metrics.in_order(names) == expected


def test_no_tempo_falls_through():
    found = metrics.groups(made_up_clips(4).assign(tempo_bpm=[30, 59, 181, np.nan]), 2.5)
    assert found["tempo"].tolist() == ["below 60 BPM", "below 60 BPM", "181 BPM and more", "not known"]
    assert found["cycles in the first 2.5 s"][3] == "not known"
    assert metrics.in_order(found["tempo"])[-1] == "not known"


# -------------------------------------------------------------------------------------------------------------- files


def test_files(tmp_path):
    given_answers = answers(made_up_clips(80, n_players=2), 0.5)
    named = np.where(np.arange(80) < 40, given_answers.labels, (given_answers.labels + 1) % 40)
    given_answers.logits["all windows"][:] = _logits(named)
    given_answers.table["skill_tier"] = np.where(np.arange(80) < 40, "professional", "beginner")
    summary = metrics.scores(given_answers.labels, given_answers.logits["all windows"])
    metrics.write_results(tmp_path, summary, given_answers, window_s=2.5)
    assert json.loads((tmp_path / "test_metrics.json").read_text())["top1"] == 0.5
    tiers = json.loads((tmp_path / "skill_tier_breakdown.json").read_text())
    assert list(tiers) == ["beginner", "professional"]
    assert tiers["professional"]["top1"] == 1.0
    assert tiers["beginner"]["top1"] == 0.0
    rows = pd.read_csv(tmp_path / "per_rudiment_metrics.csv")
    assert list(rows) == ["rudiment", "family", "precision", "recall", "f1", "support"]
    assert len(rows) == 40
    assert rows["support"].sum() == 80
    groups = pd.read_csv(tmp_path / "breakdowns.csv").set_index(["by", "group"])
    assert groups.loc["skill tier", "beginner"]["balanced_accuracy"] == 0
    assert groups.groupby("by")["n_clips"].sum().eq(80).all()
    assert (tmp_path / "confusion_matrix.png").stat().st_size > 10_000
    assert (tmp_path / "predictions.parquet").is_file()
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith(".")} == set()
