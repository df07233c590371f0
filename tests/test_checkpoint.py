"""What is read is exactly what was written, or refused with the difference; nothing is ever half there."""

import json

import jax
import numpy as np
import pytest

from sousa_jax import checkpoint, models
from sousa_jax.checkpoint import Model, RunCheckpoints, load_model, save_model, tree_differences
from sousa_jax.errors import InputError

CONFIG = models.make_config("efficientat", "mn01", dropout=0.3)


@pytest.fixture(scope="module")
def model():
    return Model("efficientat", CONFIG, *models.init("efficientat", CONFIG, seed=1), {"source": "a test"})


def test_round_trip(model, tmp_path):
    save_model(tmp_path / "deep" / "folder", model)
    back = load_model(tmp_path / "deep" / "folder")
    assert back.config == CONFIG
    assert back.provenance == {"source": "a test"}
    for ours, theirs in ((model.params, back.params), (model.stats, back.stats)):
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[key], theirs[key]) for key in ours)


def test_json_is_there_as_a_whole_and_for_everyone(tmp_path):
    checkpoint.write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(TypeError):
        checkpoint.write_json(tmp_path / "x.json", {"a": object()})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
    assert (tmp_path / "x.json").stat().st_mode & 0o777 == 0o644


def test_nothing_is_overwritten(model, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="already exists"):
        save_model(tmp_path / "there", model)


def test_a_failed_save_leaves_nothing(model, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "write_json", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_model(tmp_path / "out", model)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_another_network_is_refused_with_the_difference(model, tmp_path):
    """Orbax alone would restore what fits and say nothing."""
    save_model(tmp_path / "out", model)
    stored = json.loads((tmp_path / "out" / "model.json").read_text())
    stored["config"]["num_classes"] = 41
    (tmp_path / "out" / "model.json").write_text(json.dumps(stored))
    with pytest.raises(InputError, match=r"2 wrong shape \(params/head\.output\.bias \(40,\) instead of \(41,\)"):
        load_model(tmp_path / "out")


@pytest.mark.parametrize("content", ["empty", "unfinished"])
def test_folders_without_a_model(content, tmp_path):
    if content == "unfinished":
        checkpoint.write_json(tmp_path / "model.json", models.config_to_json("efficientat", CONFIG))
    with pytest.raises(InputError, match=r"holds no model\.json|holds no evaluated checkpoint"):
        load_model(tmp_path)


def test_differences_name_both_sides():
    has = {"a": np.zeros(2), "b": np.zeros(3)}
    wants = {"b": np.zeros(4), "c": np.zeros(1)}
    text = tree_differences(has, wants)
    assert "1 missing (c)" in text
    assert "1 unexpected (a)" in text
    assert "b (3,) instead of (4,)" in text
    assert tree_differences(has, has) == ""


def test_run_checkpoints_keep_the_best_and_the_two_last(tmp_path):
    checkpoints = RunCheckpoints(tmp_path)
    for step in (1, 2, 3):
        state = {"params": {"w": jax.numpy.full(3, float(step))}, "stats": {}}
        progress = {"position": {"sample": step}}
        checkpoints.save_last(step, state, progress)
        progress["position"] = None  # what is saved must not follow later changes
        if step == 2:
            checkpoints.save_best(step, state["params"], state["stats"], {})
    checkpoints.wait()
    state, progress = checkpoints.restore_last({"params": {"w": np.zeros(3, np.float32)}, "stats": {}})
    assert progress == {"position": {"sample": 3}}
    assert state["params"]["w"].tolist() == [3, 3, 3]
    best = checkpoints.restore_best({"params": {"w": np.zeros(3, np.float32)}, "stats": {}})
    assert best["params"]["w"].tolist() == [2, 2, 2]
    kept = sorted(int(p.name) for p in (tmp_path / "checkpoints" / "last").iterdir() if p.name.isdigit())
    assert kept == [2, 3]
    checkpoints.close()


def test_a_new_run_has_nothing_to_restore(tmp_path):
    checkpoints = RunCheckpoints(tmp_path)
    assert checkpoints.restore_last({"params": {}}) is None
    checkpoints.close()
