"""How sure a result is: worked by hand, against the chance that intervals promise, and what cannot be compared."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from sousa_jax import significance
from sousa_jax.errors import InputError


def test_balanced_accuracy_and_interval_by_hand():
    """Two players of whom one names all and one nothing: a draw holds one, the other, or both."""
    score, (low, high) = significance.by_player(np.array(list("aabb")), np.array([0, 1, 0, 1]), np.array([1, 1, 0, 0]))
    assert (score, low, high) == (0.5, 0.0, 1.0)


def test_rare_classes_count_as_much():
    """Class 0: three of four, class 1: none of one."""
    players, labels = np.array(list("abcda")), np.array([0, 0, 0, 0, 1])
    score, _ = significance.by_player(players, labels, np.array([True, True, True, False, False]))
    assert score == pytest.approx(0.375)


def test_one_player_has_no_interval():
    score, interval = significance.by_player(np.array(["a", "a"]), np.array([0, 1]), np.array([True, False]))
    assert score == 0.5
    assert np.isnan(interval).all()


def test_clips_of_a_player_are_no_news():
    """Each clip ten times over: an interval over clips would shrink threefold."""
    rng = np.random.default_rng(0)
    players, labels, ok = np.repeat(np.arange(20), 10), np.tile(np.arange(10), 20), rng.random(200) < 0.6
    _, once = significance.by_player(players, labels, ok)
    _, often = significance.by_player(*(np.repeat(x, 10) for x in (players, labels, ok)))
    np.testing.assert_allclose(often, once, atol=1e-12)


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Players of different skill, 40 each time: 95 % of intervals should hold the mean; few players make it less."""
    rng, held = np.random.default_rng(1), []
    for seed in range(150):
        skill = rng.beta(6, 4, 40)  # mean 0.6
        ok = rng.random((40, 20)) < skill[:, None]
        players, labels = np.repeat(np.arange(40), 20), np.tile(np.arange(4), 200)
        _, (low, high) = significance.by_player(players, labels, ok.ravel(), seed)
        held.append(low <= 0.6 <= high)
    assert 0.88 <= np.mean(held) <= 0.99


@pytest.mark.parametrize(("only_a", "only_b"), [(9, 1), (1, 9), (5, 5), (0, 0), (30, 12)])
def test_mcnemar_is_a_sign_test_of_what_differs(only_a, only_b):
    both, neither = np.ones(7, bool), np.zeros(4, bool)
    a = np.concatenate([both, neither, np.ones(only_a, bool), np.zeros(only_b, bool)])
    b = np.concatenate([both, neither, np.zeros(only_a, bool), np.ones(only_b, bool)])
    found_a, found_b, p = significance.mcnemar(a, b)
    assert (found_a, found_b) == (only_a, only_b)
    tail = scipy.stats.binom.cdf(min(only_a, only_b), only_a + only_b, 0.5)
    assert p == pytest.approx(min(1.0, 2 * tail))


def predictions(correct, seed=0):
    """As a run leaves them, in another order each time: `correct` of 80 clips are named rightly."""
    label = np.arange(80) % 40
    named = np.where(np.arange(80) < correct, label, (label + 1) % 40)
    table = pd.DataFrame({
        "sample_id": [f"clip{i:02d}" for i in range(80)], "profile_id": [f"player{i % 8}" for i in range(80)],
        "label": label, "skill_tier": np.where(np.arange(80) % 8 < 4, "beginner", "professional"),
        "logits": list(np.eye(40)[named]), "first_logits": list(np.eye(40)[label]),
    })  # fmt: skip
    return table.sample(frac=1, random_state=seed)


@pytest.fixture
def runs(tmp_path):
    for name, correct in (("good", 72), ("poor", 40)):
        (tmp_path / name / "results").mkdir(parents=True)
        predictions(correct, seed=correct).to_parquet(tmp_path / name / "results" / "predictions.parquet")
    return tmp_path


def test_two_runs_side_by_side(runs, capsys):
    significance.main([str(runs / "good"), str(runs / "poor" / "results")])
    said = capsys.readouterr().out
    good, poor = runs / "good", runs / "poor" / "results"
    assert f"{good}, all windows: 0.900 (" in said
    assert f"{poor}, all windows: 0.500 (" in said
    assert f"{poor}, first window: 1.000 (1.000 … 1.000), 80 clips of 8 players" in said
    assert said.index("    beginner  ") < said.index("    professional  "), "in order of skill"
    assert "40 clips of 4 players" in said
    assert f"all windows: only {good} right 32, only {poor} right 0, p = 4.7e-10: {good} is better" in said
    assert "p = 1: no difference is shown" in said


@pytest.mark.parametrize("wrong", ["missing", "damaged", "empty", "other clips"])
def test_what_cannot_be_compared_is_one_line(runs, capsys, wrong):
    path = runs / "poor" / "results" / "predictions.parquet"
    if wrong == "missing":
        path.unlink()
    elif wrong == "damaged":
        path.write_bytes(b"PAR1 and no more")
    else:
        table = predictions(40)
        table.iloc[: 0 if wrong == "empty" else 60].to_parquet(path)
    with pytest.raises(SystemExit) as stopped:
        significance.main([str(runs / "good"), str(runs / "poor")])
    assert stopped.value.code not in (0, None)
    text = (str(stopped.value.code) + capsys.readouterr().err).strip()
    expected = {
        "missing": "has no predictions.parquet", "damaged": "is damaged", "empty": "holds no predictions",
        "other clips": "different clips",
    }  # fmt: skip
    assert expected[wrong] in text
    with pytest.raises(InputError):
        significance.lines(
            {name: significance.read(runs / name, "skill_tier") for name in ("good", "poor")}, "skill_tier"
        )
