"""What runs show, on runs that were made to show it."""

import json

import numpy as np
import pytest

from benchmarks.report import answers, made_up_clips, make
from sousa_jax import predictions, significance
from sousa_jax.report import analysis, runs
from sousa_jax.rudiments import CLASS_IDS

CLIPS = made_up_clips(400, n_players=20)


def findings(folders):
    return analysis.analyse(*runs.read(folders))


def told(found):
    return {question: " ".join(sentences) for question, sentences in analysis.questions(found)}


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """A run from given weights, the same network from random ones, one of the same kind that hears worse, and one that
    was trained without a sound bank."""
    root = tmp_path_factory.mktemp("four")
    return findings([
        make(root / "scratch", CLIPS, 0.6, 0, "efficientat_scratch"),
        make(root / "full", CLIPS, 0.9, 1, "efficientat_full", **{"init_from": "pretrained/mn10"}),
        make(root / "poor", CLIPS, 0.3, 2, "efficientat_scratch", **{"augment.gain_db": 0.0}),
        make(root / "apart", CLIPS, 0.5, 3, "ast_scratch", **{"data.exclude": ("soundfont=FluidR3",)}),
    ])  # fmt: skip


def test_the_best_stands_first_with_its_own_numbers(four):
    assert [entry.name for entry in four.entries] == ["full", "scratch", "apart", "poor"]
    best = four.best.run.answers
    assert four.best.whole == significance.by_player(best.players, best.labels, best.correct())
    assert four.best.whole.low < four.best.whole.value < four.best.whole.high
    assert four.best.padded.value > 0, "made-up runs name fewer padded windows"
    assert four.n_players == 20


def test_pairs_are_known_from_both_sides(four):
    assert len(four.pairs) == 4 * 3
    assert four.pairs["full", "poor"] is four.pairs["poor", "full"]
    assert four.pairs["poor", "full"].better == "full"


def test_groups_count_every_clip_once(four):
    for about, groups in four.groups.items():
        assert sum(group.n_clips for group in groups) == 400, about
        assert all(len(group.scores) == 4 for group in groups)
    assert [group.name for group in four.groups["skill tier"]] == [
        "beginner",
        "intermediate",
        "advanced",
        "professional",
    ]
    marching = next(group for group in four.groups["sound bank"] if group.name == "Marching_Snare")
    best = four.best.run.answers
    inside = (best.table["soundfont"] == "Marching_Snare").to_numpy()
    expected = significance.by_player(best.players[inside], best.labels[inside], best.correct()[inside])
    assert marching.scores[0] == expected


def test_cycles_are_counted_in_the_first_window(four):
    groups = four.groups["cycles in the first 2.5 s"]
    best = four.best.run.answers
    hits = sum(group.scores[0].value * group.n_clips for group in groups) / 400
    assert abs(hits - best.correct("first window").mean()) < 0.05


def test_hardest_pairs_by_hand():
    matrix = np.zeros((40, 40), int)
    matrix[0, 0], matrix[0, 1] = 5, 5  # half of ten
    matrix[2, 3], matrix[2, 2] = 2, 0  # all of two
    matrix[4, 5], matrix[4, 4] = 1, 9
    found = analysis.hardest_pairs(matrix, limit=2)
    assert found == [(2, 3, 2, 2), (0, 1, 5, 10)]


def test_what_was_never_heard_is_marked(four):
    rows = {row.run: row for row in four.held_out["soundfont"]}
    assert rows["apart"].never_heard == {"FluidR3"}
    assert rows["full"].never_heard == set()
    assert set(rows["full"].scores) == {"Douglas", "FluidR3", "Marching_Snare"}


def test_runs_that_differ_in_one_thing_are_found(four):
    found = {(a.about, a.with_it, a.without) for a in four.ablations}
    assert ("pre-training", "full", "scratch") in found
    assert ("augmentation", "scratch", "poor") in found
    assert not any("apart" in (a.with_it, a.without) for a in four.ablations), "another network on other data"
    pretraining = next(a for a in four.ablations if a.about == "pre-training" and a.without == "scratch")
    assert "train.learning_rate" in pretraining.also or pretraining.also == []


def test_settings_that_differ_and_only_those(four):
    assert four.settings["init_from"] == ["pretrained/mn10", "none", "none", "none"]
    assert four.settings["augment.gain_db"][3] == "0.0"
    assert four.settings["data.exclude"][2] == "soundfont=FluidR3"
    assert "train.batch_size" not in four.settings
    assert not any(key.startswith("tracking.") for key in four.settings)


def test_the_three_questions_are_answered(four):
    best, pretraining, published = told(four).values()
    assert "full (EfficientAT mn01)" in best
    assert "better than every other run here" in best
    assert "By chance 2.5 %" in best or "by chance 2.5 %" in best
    assert "full is better than scratch" in pretraining
    assert "full began from given weights" in pretraining
    assert "Not directly" in published
    assert analysis.verdict(four).startswith("full names ")


def test_equal_runs_are_not_told_apart(tmp_path):
    found = findings([make(tmp_path / name, CLIPS, 0.6, seed) for seed, name in enumerate("ab")])
    assert "It is not shown to be better than" in told(found)["What works best for drum techniques?"]
    assert "not answered" in told(found)["What does pre-training bring?"]


def test_one_run_of_few_players_says_so(tmp_path):
    found = findings([make(tmp_path / "only", made_up_clips(80, n_players=2), 0.6)])
    best = told(found)["What works best for drum techniques?"]
    assert "only 2 players" in best
    assert "better" not in best
    assert found.pairs == {}
    assert analysis.verdict(found).endswith("each rudiment counting alike.")


def test_shortcuts_come_from_the_run_that_knows_them(tmp_path):
    old, new = make(tmp_path / "old", CLIPS, 0.9), make(tmp_path / "new", CLIPS, 0.5)
    given = answers(CLIPS, 0.9)
    table = given.table.drop(columns=["by_duration", "by_soundfont", "by_loudness"])
    predictions.write(old / "results", predictions.Answers(table, given.logits))
    found = findings([old, new])
    assert found.best.name == "old"
    assert set(found.shortcuts) == set(predictions.SHORTCUTS)


def test_published_numbers_have_sources(four):
    named = {model["name"]: model for model in four.published}
    assert all(model["source"] for model in four.published)
    # Errors of the proposal that this project began with.
    assert named["HTS-AT"]["audioset_map"] == 0.471
    assert named["AST"]["audioset_map"] == 0.459
    assert named["EfficientAT mn10"]["parameters_m"] == 4.9


def test_a_made_up_rudiment_is_never_shown():
    assert analysis.title(CLASS_IDS["lesson_25"]) == "Lesson 25"
    assert json.dumps(analysis.percent(0.1234)) == '"12.3 %"'
