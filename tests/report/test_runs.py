"""Which runs are compared, and what is said of those that are not."""

import json

import numpy as np
import pytest

from benchmarks.report import answers, made_up_clips, make
from sousa_jax import predictions
from sousa_jax.errors import InputError
from sousa_jax.predictions import Answers
from sousa_jax.report import runs

CLIPS = made_up_clips(80)


def reasons(apart):
    return {run.name: run.reason for run in apart}


def test_runs_of_the_same_clips_are_compared_with_all_they_recorded(tmp_path):
    folders = [make(tmp_path / name, CLIPS, skill, i) for i, (name, skill) in enumerate({"a": 0.5, "b": 0.9}.items())]
    found, apart = runs.read([folders[0], folders[1] / "results"])
    assert [run.name for run in found] == ["a", "b"]
    assert apart == []
    assert found[1].config["model"]["name"] == "efficientat"
    assert found[1].model == "EfficientAT mn01"
    assert found[1].window_s == 2.5
    assert found[1].cost["training_minutes"] == 12.5
    assert found[1].curves["train/loss"].count() == 19
    assert found[1].curves["validation/balanced_accuracy"].count() == 3


def test_other_clips_stand_apart_with_their_own_score(tmp_path):
    """The set that most runs were tested on is compared, whatever was given first."""
    other = answers(made_up_clips(60), 0.5)
    other.logits["all windows"][:] = np.eye(40)[other.labels]
    folders = [make(tmp_path / name, CLIPS, 0.5) for name in "abc"]
    predictions.write(folders[0] / "results", other)
    found, apart = runs.read(folders)
    assert [run.name for run in found] == ["b", "c"]
    assert "it was tested on other clips (60 clips" in reasons(apart)["a"]
    assert apart[0].score.value == 1.0
    assert apart[0].n_clips == 60


def test_the_same_clips_of_other_players_are_other_clips(tmp_path):
    folders = [make(tmp_path / name, CLIPS, 0.5) for name in "ab"]
    given = answers(CLIPS, 0.5)
    predictions.write(folders[1] / "results", Answers(given.table.assign(profile_id="someone"), given.logits))
    found, apart = runs.read(folders)
    assert [run.name for run in found] == ["a"]
    assert [run.name for run in apart] == ["b"]


def test_a_run_that_was_told_the_strokes_is_no_rival(tmp_path):
    folders = [make(tmp_path / name, CLIPS, 0.5) for name in "ab"]
    path = folders[1] / "results" / "test_metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"read": "strokes"}))
    found, apart = runs.read(folders)
    assert [run.name for run in found] == ["a"]
    assert "told the strokes" in reasons(apart)["b"]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("missing", "does not exist"),
        ("unfinished", "has no predictions.parquet"),
        ("empty", "holds no predictions"),
        ("classes", "has another list of classes"),
        ("config", "is no JSON"),
        ("list", "holds no JSON object"),
        ("twice", "it was given twice"),
        ("its results, too", "it was given twice"),
    ],
)
def test_what_cannot_be_read_is_named_and_the_others_are_compared(tmp_path, wrong, says):
    good, bad = make(tmp_path / "good", CLIPS, 0.5), tmp_path / "bad"
    if wrong == "twice":
        bad = tmp_path / "good"
    elif wrong == "its results, too":
        bad = good / "results"
    elif wrong == "unfinished":
        bad.mkdir()
    elif wrong != "missing":
        make(bad, CLIPS, 0.5)
        given = answers(CLIPS, 0.5)
        if wrong == "empty":
            predictions.write(bad / "results", Answers(given.table[:0], {k: v[:0] for k, v in given.logits.items()}))
        elif wrong == "classes":
            slugs = given.table["rudiment_slug"].replace({"drag": "flam", "flam": "drag"})
            predictions.write(bad / "results", Answers(given.table.assign(rudiment_slug=slugs), given.logits))
        else:
            (bad / "config.json").write_text("{" if wrong == "config" else "[]")
    found, apart = runs.read([good, bad])
    assert len(found) == len(apart) == 1
    assert says in apart[0].reason
    assert "\n" not in apart[0].reason
    if "given twice" not in says:
        with pytest.raises(InputError, match=says):
            runs.read([bad])


def test_names_are_as_short_as_tells_them_apart(tmp_path):
    folders = [make(tmp_path / name, CLIPS, 0.5) for name in ("x/one", "y/one", "y/two")]
    found, _ = runs.read(folders)
    assert [run.name for run in found] == ["x/one", "y/one", "two"]


def test_results_on_other_data_belong_to_their_run(tmp_path):
    folder = make(tmp_path / "run", CLIPS, 0.5)
    (folder / "results" / "test_on_mine").mkdir()
    predictions.write(folder / "results" / "test_on_mine", answers(CLIPS, 0.6))
    (run,), _ = runs.read([folder / "results" / "test_on_mine"])
    assert run.name == "run/test_on_mine"
    assert run.config["model"]["name"] == "efficientat"
    assert run.cost["training_minutes"] == 12.5


def test_a_run_without_records_is_compared_all_the_same(tmp_path):
    predictions.write(tmp_path, answers(CLIPS, 0.5))
    (run,), _ = runs.read([tmp_path])
    assert (run.record, run.cost, run.model) == ({}, {}, "not recorded")
    assert run.curves.empty


def test_curves_of_a_run_that_was_killed(tmp_path):
    """It noted step 2 again when it went on, and its last line is cut off."""
    folder = make(tmp_path / "run", CLIPS, 0.5)
    noted = [json.dumps({"step": step, "train/loss": loss}) for step, loss in ((1, 3), (2, 9), (2, 2), (3, 1))]
    (folder / "logs" / "scalars.jsonl").write_text("\n".join(noted)[:-5])
    (run,), _ = runs.read([folder])
    assert run.curves[["step", "train/loss"]].to_numpy().tolist() == [[1, 3], [2, 2]]
