"""What a student keeps and saves: numbers by hand, answers about the same sounds only, and a whole run."""

import json
import shutil

import jax
import numpy as np
import pytest
from test_distill import random_model
from test_train import finished_run, tiny_config

from benchmarks.report import answers, made_up_clips
from sousa_jax import checkpoint, retention, significance, train
from sousa_jax.errors import InputError
from sousa_jax.predictions import Answers
from sousa_jax.retention import Network, Size


def named_rightly(n_right: int, n: int = 80) -> Answers:
    """Of `n` clips, two of each rudiment, the first `n_right` are named rightly."""
    table = made_up_clips(n)
    labels = np.arange(n) % 40
    named = np.where(np.arange(n) < n_right, labels, (labels + 1) % 40)
    logits = np.eye(40, dtype=np.float32)[named]
    return Answers(table.assign(label=labels), {"all windows": logits, "first window": logits})


def test_retention_and_savings_by_hand():
    teachers = Network(retention.TOGETHER, "T", named_rightly(60), Size(900, 8e6, 50.0))
    student = Network(retention.STUDENT, "S", named_rightly(45), Size(300, 2e6, 5.0))
    networks = [student, teachers]
    pairs = significance.pairs({n.role: n.answers for n in networks})
    found = retention.summarize(networks, pairs)
    kept, low, high = found["retention"]["all windows"]
    assert kept == pytest.approx(45 / 60)
    assert low < kept < high
    assert found["ratios"] == {"parameters": 3.0, "multiply_adds": 4.0, "milliseconds": 10.0}
    (pair,) = found["pairs"]
    assert (pair["only_a"], pair["only_b"]) == (0, 15)
    assert pair["difference"][0] == pytest.approx(-15 / 80)
    text = retention.markdown(found)
    assert "keeps 0.750 (" in text
    assert "3.0 times fewer parameters, 4.0 times fewer multiply-adds, 10.0 times as fast" in text
    assert json.loads(json.dumps(found)) == found


def test_teachers_as_one_are_the_mean_of_their_probabilities():
    a, b = (answers(made_up_clips(20), 0.5, seed) for seed in (1, 2))
    for heard in a.logits:
        both = retention.together([a, b], [0.25, 0.75]).logits[heard]
        expected = 0.25 * jax.nn.softmax(a.logits[heard]) + 0.75 * jax.nn.softmax(b.logits[heard])
        np.testing.assert_allclose(np.exp(both), expected, atol=1e-6)


def test_a_size_is_that_of_the_network():
    found = retention.measure(random_model("ast"))
    assert found.parameters == sum(p.size for p in random_model("ast").params.values())
    assert found.multiply_adds > found.parameters
    assert found.milliseconds > 0


@pytest.fixture(scope="module")
def distilled(tmp_path_factory):
    """A student of two teachers: a finished run of the same test clips, and a model that was never tested."""
    root = tmp_path_factory.mktemp("distilled")
    tested = finished_run(tmp_path_factory.getbasetemp())
    checkpoint.save_model(root / "untested", random_model("ast"))
    config = tiny_config("efficientat", teachers=(str(tested), str(root / "untested")))
    config.distill.baseline = str(tested)
    assert train.run(config, root / "student") == 0
    return root / "student"


def test_a_run_writes_it_at_its_end(distilled):
    found = json.loads((distilled / "results" / "retention.json").read_text())
    roles = [row["role"] for row in found["networks"]]
    assert roles == ["student", "teacher", "teacher", "teachers together", "without a teacher"]
    student, first, second, both, baseline = found["networks"]
    scores = json.loads((distilled / "results" / "test_metrics.json").read_text())
    assert student["all windows"][0] == pytest.approx(scores["balanced_accuracy"])
    assert student["first window"][0] == pytest.approx(scores["first_window"]["balanced_accuracy"])
    assert both["parameters"] == first["parameters"] + second["parameters"]
    assert baseline["all windows"] == first["all windows"], "it is the same run here"
    assert {pair["a"] for pair in found["pairs"]} | {pair["b"] for pair in found["pairs"]} == set(roles) - {"teacher"}
    # The one that had been tested was not tested again, the other one was, here.
    assert not (distilled / "results" / "teachers" / "0").exists()
    assert (distilled / "results" / "teachers" / "1" / "predictions.parquet").is_file()
    assert "The student keeps" in (distilled / "results" / "retention.md").read_text()


def test_it_can_be_made_again_and_tests_nobody_twice(distilled, tmp_path, monkeypatch, capsys):
    student = tmp_path / "student"
    shutil.copytree(distilled, student)
    before = json.loads((student / "results" / "retention.json").read_text())
    monkeypatch.setattr("sousa_jax.evaluate.evaluate_split", None)
    retention.main([str(student)])
    again = json.loads((student / "results" / "retention.json").read_text())
    assert [row["role"] for row in again["networks"]] == [row["role"] for row in before["networks"]][:-1]
    assert again["retention"] == before["retention"]
    assert "| student, " in capsys.readouterr().out


def test_answers_about_other_sounds_are_not_taken(distilled, tmp_path):
    """The teacher's own results are of other data: it is tested on the student's clips."""
    student = tmp_path / "student"
    shutil.copytree(distilled, student)
    record = json.loads((student / "config.json").read_text())
    other = tmp_path / "other"
    shutil.copytree(record["config"]["teachers"][0], other)
    told = json.loads((other / "results" / "test_metrics.json").read_text())
    (other / "results" / "test_metrics.json").write_text(json.dumps(told | {"data_fingerprint": "0" * 16}))
    record["config"]["teachers"] = [str(other)]
    (student / "config.json").write_text(json.dumps(record))
    shutil.rmtree(student / "results" / "teachers")
    retention.write(student)
    assert (student / "results" / "teachers" / "0" / "predictions.parquet").is_file()


def test_a_run_without_teachers_is_refused(tmp_path_factory, tmp_path):
    run = finished_run(tmp_path_factory.getbasetemp())
    with pytest.raises(InputError, match="was trained without teachers"):
        retention.write(run)
    with pytest.raises(InputError, match="expected the folder of a finished run"):
        retention.write(tmp_path)
