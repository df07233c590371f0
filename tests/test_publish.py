"""What goes to the Hub stands alone, says what it is, and carries neither this machine's paths nor anyone's secrets."""

import json
import types

import numpy as np
import pytest
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError, RevisionNotFoundError
from test_train import tiny_config

from configs import common, strokes
from sousa_jax import checkpoint, models, publish, start, train
from sousa_jax.errors import InputError

SECRETS = {"HF_TOKEN": "hf_" + "t" * 34, "WANDB_API_KEY": "w" * 40}


class FakeHub:
    """In the place of `HfApi`: notes what it is asked; knows which tags and files there are."""

    def __init__(self, token=None):
        self.token, self.calls, self.tags, self.files, self.error = token, [], {}, {}, None

    def create_repo(self, repo, **settings):
        self.calls.append(("create_repo", repo, settings))
        if self.error:
            raise self.error

    def upload_folder(self, **settings):
        self.calls.append(("upload_folder", settings["repo_id"], settings))
        return types.SimpleNamespace(oid=f"commit{len(self.calls)}")

    def delete_tag(self, repo, *, tag):
        if tag not in self.tags:
            raise answer(RevisionNotFoundError, "no such tag")
        del self.tags[tag]

    def create_tag(self, repo, *, tag, revision):
        assert tag not in self.tags
        self.tags[tag] = revision

    def hf_hub_download(self, repo, name, *, revision):
        if revision not in self.files:
            raise answer(RemoteEntryNotFoundError, "nothing there")
        return self.files[revision]

    def run_uv_job(self, script, **settings):
        with open(script, encoding="utf-8") as file:
            settings["script"] = file.read()
        self.calls.append(("run_uv_job", settings["name"], settings))
        return types.SimpleNamespace(
            id=f"job{len(self.calls)}", url=f"https://huggingface.co/jobs/me/{len(self.calls)}"
        )


def answer(kind, text):
    return kind(text, response=types.SimpleNamespace(headers={}, request=None))


@pytest.fixture
def hub(monkeypatch):
    """The Hub, with both secrets in the environment."""
    hub = FakeHub()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda token: setattr(hub, "token", token) or hub)
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    return hub


def hold_no_secret(folder, *texts):
    for value in SECRETS.values():
        assert all(value not in text for text in texts)
        for path in folder.rglob("*"):
            assert not path.is_file() or value.encode() not in path.read_bytes(), path


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with `given` weights, and `run`, whose adapters began from it by its absolute path."""
    folder = tmp_path_factory.mktemp("runs")
    model_config = start.network(tiny_config("ast"))
    arrays = models.init("ast", model_config, 7)
    checkpoint.save_model(folder / "given", checkpoint.Model("ast", model_config, *arrays, {}))
    train.run(tiny_config("ast", "lora", init_from=str(folder / "given"), allow_random_init=False), folder / "run")
    # As of a student: the table names its teacher's folder, whose answers lie beside it.
    (folder / "run" / "results" / "retention.md").write_text(f"| teacher, {folder}/given | 0.900 |")
    (folder / "run" / "results" / "teachers" / "0").mkdir(parents=True)
    return folder


@pytest.fixture(scope="module")
def published(runs):
    return publish.assemble(runs / "run", runs / "out", "me/drums")


def test_the_weights_stand_alone(runs, published):
    """Adapters are folded in: no other folder is read."""
    assert sorted(p.name for p in published.iterdir()) == [
        "README.md",
        "arrays",
        "config.json",
        "model.json",
        "results",
    ]
    assert "partly" not in json.loads((published / "model.json").read_text())
    ours, theirs = checkpoint.load_model(runs / "run"), checkpoint.load_model(published)
    assert (ours.config, ours.temperature) == (theirs.config, theirs.temperature)
    for name in ("params", "stats"):
        mine, other = getattr(ours, name), getattr(theirs, name)
        assert mine.keys() == other.keys()
        assert all(np.array_equal(mine[key], other[key]) for key in mine)


def test_no_path_of_this_machine_leaks(runs, published):
    paths = [str(runs), runs.name]
    for path in published.rglob("*"):
        assert not path.is_file() or all(p.encode() not in path.read_bytes() for p in paths), path
    assert json.loads((published / "config.json").read_text())["config"]["init_from"] == "given"
    assert (published / "results" / "retention.md").read_text() == "| teacher, given | 0.900 |"
    assert not (published / "results" / "teachers").exists()


def test_the_card_says_what_was_done_and_how_well(runs, published):
    card = ModelCard((published / "README.md").read_text())
    summary = json.loads((runs / "run" / publish.TEST_METRICS).read_text())
    assert (card.data.license, card.data.library_name, card.data.datasets) == ("mit", "jax", None)
    assert {"snare-drum", "ast", "lora"} <= set(card.data.tags)
    scores = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert scores["balanced accuracy, all windows"] == round(summary["balanced_accuracy"], 4)
    assert scores["balanced accuracy, first window"] == round(summary["first_window"]["balanced_accuracy"], 4)
    for says in (
        "hf download me/drums", "synthetic clips alone", "chance | 0.025", "balanced accuracy of duration alone",
        "expected calibration error | 0.",
        "balanced accuracy | clips |",
        "--config=configs/ast_lora.py:smoke", "--config.init_from=given", "BSD-3-Clause", "LoRA adapters",
        "--config=configs/ast_full.py:smoke", "--config.init_from=rudiments",
    ):  # fmt: skip
        assert says in card.text, says
    assert "$" not in card.text


def test_every_network_has_a_name_and_sources():
    assert set(publish.NAMES) == set(publish.SOURCES) == set(models.MODEL_NAMES)


def test_recorded_data_are_named(runs):
    record, summary = publish.finished(runs / "run")
    record["config"]["data"]["path"] = "zkeown/sousa"
    record["data"]["revision"] = "0123abcd"
    card = ModelCard(publish._card(runs / "run", record, summary, "me/drums"))
    assert card.data.datasets == ["zkeown/sousa"]
    assert card.data.eval_results[0].dataset_revision == "0123abcd"
    assert "synthetic clips alone" not in card.text
    record["data"]["revision"] = None  # a folder of that name is no data set of the Hub
    assert ModelCard(publish._card(runs / "run", record, summary, "me/drums")).data.datasets is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, ["configs/ast_lora.py:smoke"]),
        ({"strategy": "head"}, ["configs/ast_", "--config.strategy=head"]),
        ({"init_from": "a b"}, ["'--config.init_from=a b'"]),
        ({"seed": 7}, ["--config.seed=7"]),
    ],
)
def test_the_training_command_is_the_shortest_one(changes, says):
    config = common.experiment("ast", "lora", "smoke")
    config.update(changes)
    config.train.unfreeze = (0.1, 0.3)
    command = publish.training_command(json.loads(config.to_json()))
    assert all(part in command for part in [*says, "'--config.train.unfreeze=(0.1, 0.3)'"])
    assert command.count("--config") == 2 + len(changes)


@pytest.mark.parametrize("preset", ["smoke", "small"])
def test_the_stroke_network_is_found_by_its_own_file(preset):
    config = json.loads(strokes.get_config(preset).to_json())
    assert publish.training_command(config).endswith(f"--config=configs/strokes.py:{preset}")


def test_a_config_of_its_own_has_no_command():
    config = json.loads(common.experiment("ast", "lora").to_json()) | {"new": 1}
    assert "config.json" in publish.training_command(config)


@pytest.mark.parametrize(
    ("value", "left"),
    [
        ("/home/me/data/sousa_mini", "sousa_mini"),
        ("/home/me/My Data/sousa", "sousa"),
        (r"C:\Users\me\sousa", "sousa"),
        ("pretrained/beats", "pretrained/beats"),
        ("zkeown/sousa", "zkeown/sousa"),
        ("https://huggingface.co/a/b", "https://huggingface.co/a/b"),
        ("cannot decode '/home/me/x/clip.flac': bad", "cannot decode 'clip.flac': bad"),
        ("~/data/clip.flac is short", "clip.flac is short"),
        ({"a": ["/x/y/z", 1, None]}, {"a": ["z", 1, None]}),
    ],
)
def test_absolute_paths_are_reduced(value, left):
    assert publish.without_paths(value) == left


def test_a_dry_run_uploads_nothing_and_needs_no_token(runs, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for _ in range(2):  # the second takes the first one's place
        publish.main([str(runs / "run"), "--repo=me/drums", "--dry_run"])
    assert str(runs / "run" / "publish") in capsys.readouterr().out
    assert checkpoint.load_model(runs / "run" / "publish").name == "ast"
    assert not list((runs / "run").glob(".publish-*"))


def test_what_fails_leaves_the_earlier_folder(runs, published, monkeypatch):
    before = (published / "README.md").read_text()
    monkeypatch.setattr(publish, "_card", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        publish.assemble(runs / "run", published)
    assert (published / "README.md").read_text() == before
    assert not list(runs.glob(".out-*"))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("not a run", "is no run"),
        ("unfinished", "is not finished"),
        ("repo", "should be USER/NAME"),
        ("strange repo", "is no name of a repository"),
        ("out", "holds no model card"),
        ("token", "HF_TOKEN is not set"),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(runs, tmp_path, monkeypatch, capsys, wrong, says):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    run, repo, out, dry_run = runs / "run", "me/drums", tmp_path / "out", ["--dry_run"]
    if wrong in ("not a run", "unfinished"):
        run = tmp_path / "other"
        run.mkdir()
    if wrong == "unfinished":
        (run / "config.json").write_text("{}")
    elif wrong.endswith("repo"):
        repo = "drums" if wrong == "repo" else "me/dr ums"
    elif wrong == "out":
        out = tmp_path
    elif wrong == "token":
        dry_run = []
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as exit_info:
        publish.main([str(run), f"--repo={repo}", f"--out={out}", *dry_run])
    errors = capsys.readouterr().err
    assert exit_info.value.code == 2
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert says in errors
    assert sorted(tmp_path.rglob("*")) == before


def test_upload_replaces_what_was_there_and_moves_tags(runs, tmp_path, hub, capsys):
    hub.tags["best"] = "an older commit"
    out = tmp_path / "out"
    publish.main([str(runs / "run"), "--repo=me/drums", f"--out={out}", "--tag=ast_lora", "--best", "--private"])
    assert hub.token == SECRETS["HF_TOKEN"]
    (_, _, made), (_, repo, uploaded) = hub.calls
    assert made == {"private": True, "exist_ok": True}
    assert (repo, uploaded["folder_path"], uploaded["commit_message"]) == ("me/drums", out, "run")
    assert "arrays/*" in uploaded["delete_patterns"]
    assert hub.tags == {"best": "commit2", "ast_lora": "commit2"}
    said = capsys.readouterr()
    assert "https://huggingface.co/me/drums/tree/ast_lora, tagged ast_lora, best" in said.out
    hold_no_secret(tmp_path, said.out, said.err)


@pytest.mark.parametrize(
    ("theirs", "expected"),
    [(None, True), ((0.2, "same"), True), ((0.9, "same"), False), ((0.9, "other data"), True)],
)
def test_best_is_what_scores_higher_on_the_same_data(published, tmp_path, hub, theirs, expected):
    ours = json.loads((published / publish.TEST_METRICS).read_text())
    if theirs:
        score, data = theirs
        fingerprint = ours["data_fingerprint"] if data == "same" else data
        hub.files["best"] = tmp_path / "best.json"
        # ours is around chance: the lower one is put below it
        score = score if score > 0.5 else ours["balanced_accuracy"] - 0.001
        hub.files["best"].write_text(json.dumps({"balanced_accuracy": score, "data_fingerprint": fingerprint}))
    assert publish.is_best(published, "me/drums", hub) is expected


def test_the_hub_s_refusal_is_one_line_without_the_token(published, hub):
    hub.error = answer(HfHubHTTPError, f"401 for\n{SECRETS['HF_TOKEN']}")
    with pytest.raises(InputError, match=r"could not publish to me/drums: 401 for \$HF_TOKEN"):
        publish.upload(published, "me/drums", hub)


def test_a_secret_in_a_setting_is_refused(runs, tmp_path, monkeypatch):
    """Whatever way it came into the run, it does not leave it."""
    monkeypatch.setenv("WANDB_API_KEY", "smoke-test-key")
    record, summary = publish.finished(runs / "run")
    monkeypatch.setattr(publish, "finished", lambda run: (record | {"note": "smoke-test-key"}, summary))
    with pytest.raises(InputError, match=r"config\.json would hold the value of WANDB_API_KEY"):
        publish.assemble(runs / "run", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
