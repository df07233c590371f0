"""Teachers' answers on disk: the same as asked online, made once, never taken for those of others."""

import json
import shutil

import jax
import numpy as np
import pytest
from small_sousa import rows, write_hub
from test_distill import random_model
from test_train import last_state, tiny_config

from sousa_jax import answer_cache, checkpoint, distill, start, train
from sousa_jax.data import open_split
from sousa_jax.data.pipeline import BadClips
from sousa_jax.devices import Layout
from sousa_jax.errors import InputError

PLACES = 3


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    splits = {"train": [rows("train", 8)], "validation": [rows("validation", 2)], "test": [rows("test", 2)]}
    return write_hub(tmp_path_factory.mktemp("data") / "hub", splits)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers") / "ast"
    checkpoint.save_model(folder, random_model("ast"))
    return str(folder)


def cached_config(hub, teacher, folder="", **changes):
    """A student that hears three places of each clip, which are only masked and made louder or softer."""
    config = tiny_config("efficientat", teachers=(teacher,))
    config.data.path, config.data.crops = str(hub), PLACES
    config.augment.update(tempo_stretch=0.0, mixup_alpha=0.0)
    config.distill.cache = str(folder)
    for key, value in changes.items():
        config[key].update(value)
    return config


def ask(config):
    model_config = start.network(config)
    spec = model_config.frontend
    teachers = distill.load(config, model_config)
    clips = open_split(config.data, "train", seed=config.seed, sample_rate=spec.sample_rate)
    return answer_cache.ask(config, teachers, clips, spec, BadClips(clips, 1.0), Layout())


def losses(workdir):
    lines = (workdir / "logs" / "scalars.jsonl").read_text().splitlines()
    return [line["train/distillation_loss"] for line in map(json.loads, lines) if "train/distillation_loss" in line]


def test_online_and_cached_runs_have_the_same_losses(hub, teacher, tmp_path):
    assert train.run(cached_config(hub, teacher), tmp_path / "online") == 0
    assert train.run(cached_config(hub, teacher, tmp_path / "answers"), tmp_path / "cached") == 0
    online, cached = losses(tmp_path / "online"), losses(tmp_path / "cached")
    assert len(online) == 4
    np.testing.assert_allclose(cached, online, atol=1e-5)
    a, b = last_state(tmp_path / "online"), last_state(tmp_path / "cached")
    assert a.keys() == b.keys()
    record = json.loads((tmp_path / "answers" / "answers.json").read_text())
    assert record["clips_done"] == 16
    size = (tmp_path / "answers" / "logits.float32").stat().st_size
    assert size == 4 * 16 * PLACES * 1 * 40
    assert (
        f"16 clips at 3 places each: {tmp_path / 'answers'}"
        in (tmp_path / "cached" / "logs" / "training.log").read_text()
    )


def test_it_is_asked_once_and_goes_on_where_it_stopped(hub, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(answer_cache, "KEEP_EVERY", 5)
    config = cached_config(hub, teacher, tmp_path / "answers")
    asked = []
    real = answer_cache._asker

    def counting(*args):
        answer = real(*args)

        def counted(windows):
            if len(asked) == 2:
                raise KeyboardInterrupt
            asked.append(len(windows))
            return answer(windows)

        return counted

    monkeypatch.setattr(answer_cache, "_asker", counting)
    with pytest.raises(KeyboardInterrupt):
        ask(config)
    assert json.loads((tmp_path / "answers" / "answers.json").read_text())["clips_done"] == 10
    monkeypatch.setattr(answer_cache, "_asker", real)
    resumed = np.array(ask(config).logits)
    monkeypatch.setattr(answer_cache, "_asker", None)  # nobody is asked any more
    np.testing.assert_array_equal(ask(config).logits, resumed)
    monkeypatch.setattr(answer_cache, "_asker", real)
    whole = ask(cached_config(hub, teacher, tmp_path / "whole"))
    np.testing.assert_allclose(whole.logits, resumed, atol=1e-5)


def test_bad_clips_are_never_answered(hub, teacher, tmp_path):
    broken = [dict(row) for row in rows("train", 8)]
    broken[3]["audio"] = {"bytes": b"no sound", "path": "x.flac"}
    data = write_hub(
        tmp_path / "broken", {"train": [broken], "validation": [rows("validation", 2)], "test": [rows("test", 2)]}
    )
    cache = ask(cached_config(data, teacher, tmp_path / "answers"))
    assert np.isnan(cache.logits[3]).all()
    assert np.isfinite(np.delete(cache.logits, 3, axis=0)).all()
    with pytest.raises(InputError, match="are damaged: delete it"):
        cache.of(np.array([2, 3]), np.array([0, 1]))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("teacher", "holds answers of other teachers, or other checkpoints of theirs"),
        ("clips", "holds answers of other clips"),
        ("crops", "holds answers of other places"),
        ("short", "is damaged"),
        ("record", "is damaged"),
        ("else", "holds something else than teachers' answers"),
        ("large", "would take 0.00768 MB, config.distill.cache_mb allows 0"),
    ],
)
def test_a_cache_of_something_else_is_refused(hub, teacher, tmp_path, wrong, says):
    folder = tmp_path / "answers"
    config = cached_config(hub, teacher, folder)
    if wrong == "else":
        folder.mkdir()
        (folder / "thesis.tex").write_text("mine")
    else:
        ask(config)
    if wrong == "teacher":
        changed = random_model("ast")
        params = dict(changed.params)
        path = next(iter(params))
        params[path] = params[path] + 1e-3
        other = checkpoint.Model("ast", changed.config, params, changed.stats, {})
        checkpoint.save_model(tmp_path / "ast", other)
        config.teachers = (str(tmp_path / "ast"),)
    elif wrong == "clips":
        config.data.path = str(tmp_path / "other")
        shutil.copytree(hub, tmp_path / "other")
        splits = {"train": [rows("train", 8)[::-1]], "validation": [rows("validation", 2)], "test": [rows("test", 2)]}
        write_hub(tmp_path / "another", splits)
        config.data.path = str(tmp_path / "another")
    elif wrong == "crops":
        config.data.crops = PLACES + 1
    elif wrong == "short":
        with open(folder / "logits.float32", "r+b") as file:
            file.truncate(100)
    elif wrong == "record":
        (folder / "answers.json").write_text("{")
    elif wrong == "large":
        config.distill.cache_mb = 0
    before = sorted((p.name, p.read_bytes()) for p in folder.iterdir())
    with pytest.raises(InputError, match=says):
        ask(config)
    assert sorted((p.name, p.read_bytes()) for p in folder.iterdir()) == before, "nothing of it was touched"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data": {"crops": 0}}, "needs --config.data.crops=N"),
        ({"data": {"path": "synth"}}, "synthetic and streamed clips are heard once"),
        ({"data": {"streaming": True}}, "synthetic and streamed clips are heard once"),
        ({"data": {"speed": 0.1}}, "no clip is heard twice at the same speed"),
        ({"augment": {"mixup_alpha": 0.2}}, "would hear mixup_alpha too; --config.augment.mixup_alpha=0,"),
        ({"distill": {"embedding": 1.0}}, "not what config.distill.embedding needs"),
    ],
)
def test_what_no_cache_can_hold(hub, teacher, tmp_path, changes, says):
    with pytest.raises(InputError, match=says):
        train.run(cached_config(hub, teacher, tmp_path / "answers", **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_digest_is_that_of_the_network_not_of_its_folder(teacher):
    model = random_model("ast")
    loaded = checkpoint.load_model(teacher)
    assert checkpoint.digest(loaded) == checkpoint.digest(model)
    path = next(iter(model.params))
    other = jax.tree.map(lambda x: x, model.params) | {path: np.asarray(model.params[path]) + 1e-4}
    assert checkpoint.digest(checkpoint.Model("ast", model.config, other, model.stats, {})) != checkpoint.digest(model)
