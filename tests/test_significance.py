"""How sure a result is: worked by hand, against statsmodels, against the chance that intervals promise, and what cannot
be compared."""

import numpy as np
import pytest
from statsmodels.stats import contingency_tables, multitest

from benchmarks.report import answers, made_up_clips
from sousa_jax import predictions, significance
from sousa_jax.errors import InputError
from sousa_jax.predictions import Answers
from sousa_jax.significance import Interval, Pair


def test_balanced_accuracy_and_interval_by_hand():
    """Two players of whom one names all and one nothing: a draw holds one, the other, or both."""
    found = significance.by_player(np.array(list("aabb")), np.array([0, 1, 0, 1]), np.array([1, 1, 0, 0]))
    assert found == (0.5, 0.0, 1.0)


def test_rare_classes_count_as_much():
    """Class 0: three of four, class 1: none of one."""
    players, labels = np.array(list("abcda")), np.array([0, 0, 0, 0, 1])
    found = significance.by_player(players, labels, np.array([True, True, True, False, False]))
    assert found.value == pytest.approx(0.375)


def test_one_player_has_no_interval():
    found = significance.by_player(np.array(["a", "a"]), np.array([0, 1]), np.array([True, False]))
    assert found.value == 0.5
    assert np.isnan(found[1:]).all()


def test_clips_of_a_player_are_no_news():
    """Each clip ten times over: an interval over clips would shrink threefold."""
    rng = np.random.default_rng(0)
    players, labels, ok = np.repeat(np.arange(20), 10), np.tile(np.arange(10), 20), rng.random(200) < 0.6
    once = significance.by_player(players, labels, ok)
    often = significance.by_player(*(np.repeat(x, 10) for x in (players, labels, ok)))
    np.testing.assert_allclose(often, once, atol=1e-12)


@pytest.mark.parametrize(("n_players", "n_classes", "n_clips"), [(10, 40, 40), (19, 40, 20), (40, 4, 20)])
def test_intervals_hold_the_truth_as_often_as_they_say(n_players, n_classes, n_clips):
    """Players of different skill, mean 0.6: 95 of 100 intervals should hold it; plain percentiles of ten players do so
    90 times. 300 draws vary by 0.025."""
    rng, held = np.random.default_rng(1), []
    players = np.repeat(np.arange(n_players), n_clips)
    for seed in range(300):
        skill = rng.beta(6, 4, n_players)
        ok = rng.random((n_players, n_clips)) < skill[:, None]
        labels = np.concatenate([rng.permutation(np.arange(n_clips) % n_classes) for _ in range(n_players)])
        found = significance.by_player(players, labels, ok.ravel(), seed)
        held.append(found.low <= 0.6 <= found.high)
    assert 0.915 <= np.mean(held) <= 0.985


def test_intervals_of_a_difference_hold_the_truth_as_often_as_they_say():
    """Both hear the same 19 players; one is better by 0.1 with every one of them."""
    rng, held = np.random.default_rng(2), []
    players, labels = np.repeat(np.arange(19), 20), np.tile(np.arange(20), 19)
    for seed in range(300):
        skill = rng.beta(6, 4, 19) * 0.8
        a, b = (rng.random((19, 20)) < np.minimum(skill + more, 1)[:, None] for more in (0.1, 0))
        found = significance.difference(players, labels, a.ravel(), b.ravel(), seed)
        held.append(found.low <= 0.1 <= found.high)
    assert 0.915 <= np.mean(held) <= 0.985


def test_a_difference_is_that_of_the_scores_and_turns_with_the_runs():
    rng = np.random.default_rng(0)
    players, labels = np.repeat(np.arange(12), 10), np.tile(np.arange(10), 12)
    a, b = rng.random(120) < 0.8, rng.random(120) < 0.5
    scores = [significance.by_player(players, labels, ok).value for ok in (a, b)]
    found, turned = significance.difference(players, labels, a, b), significance.difference(players, labels, b, a)
    assert found.value == pytest.approx(scores[0] - scores[1])
    np.testing.assert_allclose(turned, [-found.value, -found.high, -found.low], atol=1e-12)
    np.testing.assert_array_equal(significance.difference(players, labels, a, a), [0, 0, 0])


def test_a_share_is_that_of_the_scores():
    rng = np.random.default_rng(0)
    players, labels = np.repeat(np.arange(12), 10), np.tile(np.arange(10), 12)
    a, b = rng.random(120) < 0.6, rng.random(120) < 0.8
    scores = [significance.by_player(players, labels, ok).value for ok in (a, b)]
    found = significance.ratio(players, labels, a, b)
    assert found.value == pytest.approx(scores[0] / scores[1])
    assert found.low < found.value < found.high
    np.testing.assert_allclose(significance.ratio(players, labels, b, b), 1)
    assert np.isnan(significance.ratio(players, labels, a, np.zeros(120, bool))).all()


# --------------------------------------------------------------------------------------------------------------- pairs


@pytest.mark.parametrize(("only_a", "only_b"), [(9, 1), (1, 9), (5, 5), (0, 0), (30, 12), (400, 300)])
def test_mcnemar_is_that_of_statsmodels(only_a, only_b):
    both, neither = np.ones(7, bool), np.zeros(4, bool)
    a = np.concatenate([both, neither, np.ones(only_a, bool), np.zeros(only_b, bool)])
    b = np.concatenate([both, neither, np.zeros(only_a, bool), np.ones(only_b, bool)])
    found_a, found_b, p = significance.mcnemar(a, b)
    assert (found_a, found_b) == (only_a, only_b)
    expected = contingency_tables.mcnemar([[7, only_a], [only_b, 4]], exact=True).pvalue if only_a + only_b else 1
    assert p == pytest.approx(expected, rel=1e-9)


def made_up(correct: int, n: int = 200) -> Answers:
    """The first `correct` of `n` clips, which lie in another order than their names, are named rightly."""
    found = answers(made_up_clips(n), 0.5)
    named = np.where(np.arange(n) < correct, found.labels, (found.labels + 1) % 40)
    return Answers(found.table, {"all windows": np.eye(40)[named], "first window": np.eye(40)[found.labels]})


def test_p_of_many_pairs_is_corrected_as_holm_says():
    runs = {name: made_up(correct) for name, correct in (("a", 150), ("b", 144), ("c", 120), ("d", 119))}
    found = significance.pairs(runs)
    assert [(pair.a, pair.b) for pair in found] == [(x, y) for i, x in enumerate("abcd") for y in "abcd"[i + 1 :]]
    alone = {(p.a, p.b): significance.mcnemar(runs[p.a].correct(), runs[p.b].correct())[2] for p in found}
    # By hand: the k-th smallest of six times 6 - k, never less than those before, at most 1.
    ranked, at_least = sorted(alone, key=alone.get), 0.0
    for k, key in enumerate(ranked):
        at_least = max(at_least, min(1.0, (6 - k) * alone[key]))
        assert next(p.p for p in found if (p.a, p.b) == key) == pytest.approx(at_least)
    np.testing.assert_allclose([p.p for p in found], multitest.multipletests(list(alone.values()), method="holm")[1])
    assert significance.pairs({"a": runs["a"]}) == []


@pytest.mark.parametrize(
    ("p", "interval", "better", "says"),
    [
        (0.001, (0.1, 0.05, 0.15), "a", "a is better than b: 10.0 points, more than luck would give (p = 0.001"),
        (0.0001, (-0.1, -0.15, -0.05), "b", "b is better than a: 10.0 points, more than luck would give (p < 0.001"),
        (0.2, (0.1, 0.05, 0.15), "", "a scores 10.0 points more than b, which may be luck (p = 0.2"),
        (0.001, (0.1, -0.05, 0.25), "", "may be luck (p = 0.001, 95 % interval -5.0 … 25.0)"),
        (0.001, (-0.1, -0.25, 0.05), "", "b scores 10.0 points more than a, which may be luck"),
        (0.001, (0.1, np.nan, np.nan), "", "may be luck"),
        (1.0, (0.0, -0.05, 0.05), "", "a and b have the same score"),
    ],
)
def test_a_run_is_better_only_if_clips_and_players_say_so(p, interval, better, says):
    pair = Pair("a", "b", 10, 5, p, Interval(*interval))
    assert pair.better == better
    assert says in pair.verdict()


# ---------------------------------------------------------------------------------------------------------- the program


@pytest.fixture
def runs(tmp_path):
    for name, correct in (("good", 180), ("poor", 100)):
        (tmp_path / name / "results").mkdir(parents=True)
        predictions.write(tmp_path / name / "results", made_up(correct))
    return tmp_path


def test_two_runs_side_by_side(runs, capsys):
    significance.main([str(runs / "good"), str(runs / "poor" / "results")])
    said = capsys.readouterr().out
    good, poor = runs / "good", runs / "poor" / "results"
    score = significance.by_player(*((a := made_up(180)).players, a.labels, a.correct()))
    assert f"{good}, all windows: {score}, 200 clips of 20 players" in said
    assert f"{poor}, first window: 1.000 (1.000 … 1.000), 200 clips of 20 players" in said
    assert said.index("    beginner  ") < said.index("    professional  "), "in order of skill"
    assert "50 clips of 5 players" in said
    assert f"all windows: only {good} right 80, only {poor} right 0: {good} is better than {poor}" in said
    assert f"{good} and {poor} have the same score" in said


@pytest.mark.parametrize("wrong", ["missing", "other clips", "other labels"])
def test_what_cannot_be_compared_is_one_line(runs, capsys, wrong):
    folder = runs / "poor" / "results"
    if wrong == "missing":
        (folder / predictions.FILE).unlink()
    elif wrong == "other clips":
        predictions.write(folder, made_up(40, n=160))
    else:
        found = made_up(40)
        predictions.write(folder, Answers(found.table.assign(profile_id="someone"), found.logits))
    with pytest.raises(SystemExit) as stopped:
        significance.main([str(runs / "good"), str(runs / "poor")])
    assert stopped.value.code not in (0, None)
    text = (str(stopped.value.code) + capsys.readouterr().err).strip()
    assert ("has no predictions.parquet" if wrong == "missing" else "different clips") in text


def test_an_unknown_group_is_one_line(runs):
    with pytest.raises(InputError, match="does not know the loudness"):
        significance.lines({"x": predictions.read(runs / "good")}, "loudness")
