"""A sweep costs what its table says, runs each experiment once, survives failures and stops, and keeps secrets."""

import json
import pathlib
import re
import signal
import subprocess
import sys
import textwrap
import time
import tomllib

import pytest
from test_publish import SECRETS, hold_no_secret, hub  # noqa: F401 (a fixture)

from configs import sweep
from configs.common import VARIANTS
from sousa_jax import jobs, launch, publish
from sousa_jax.errors import InputError
from sousa_jax.launch import Experiment

ROOT = pathlib.Path(__file__).resolve().parents[1]
SWEEP = "--sweep=configs/sweep.py"
SOURCE = f"--source=https://github.com/me/drums.git@{'a1' * 20}"
TABLE = {  # hours and dollars as they were estimated
    "htsat_lora": ((3, 4), (3, 4)), "htsat_full": ((8, 10), (16, 20)),
    "beats_lora": ((4, 5), (8, 10)), "beats_full": ((10, 12), (20, 24)),
    **{f"efficientat_{strategy}": ((2, 3), (2, 3)) for strategy in ("lora", "full", "scratch")},
    **{f"ast_{strategy}": ((4, 5), (4, 5)) for strategy in ("lora", "full", "scratch")},
}  # fmt: skip


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def call(*args):
    """Exit code of the program."""
    with pytest.raises(SystemExit) as exit_info:
        launch.main([str(arg) for arg in args])
    return exit_info.value.code


@pytest.fixture
def small_sweep(tmp_path):
    """A sweep file with three rows."""
    path = tmp_path / "small.py"
    path.write_text(
        textwrap.dedent("""
        from sousa_jax.launch import Experiment

        def get_sweep():
            return [
                Experiment("one", "configs/ast_scratch.py", "a10g-small", 1.0, (1, 2)),
                Experiment("two", "configs/ast_full.py", "t4-small", 0.4, (1, 2), init_from="hf://me/ast@v1",
                           overrides={"train.learning_rate": 3e-4, "train.unfreeze": (0.1, 0.3)}),
                Experiment("three", "configs/beats_scratch.py", "a100-large", 2.0, (1, 2)),
            ]
        """)
    )
    return f"--sweep={path}"


# ----------------------------------------------------------------------------------------------------------- the sweep


def test_the_twelve_experiments_and_what_they_cost():
    rows = sweep.get_sweep()
    configs = sorted(path for model in VARIANTS for path in (ROOT / "configs").glob(f"{model}_*.py"))
    assert sorted(row.name for row in rows) == [path.stem for path in configs]
    assert all(row.config == f"configs/{row.name}.py" for row in rows)
    assert all(bool(row.init_from) != row.name.endswith("scratch") for row in rows)
    of = {row.name: row for row in rows}
    for name, (hours, cost) in TABLE.items():
        assert (of[name].hours, of[name].cost) == (hours, cost), name
    for model in ("htsat", "beats"):
        assert of[f"{model}_scratch"].cost == of[f"{model}_full"].cost
    assert of["htsat_lora"].timeout_s == 6 * 3600
    assert jobs.cost_table(rows).splitlines()[-1].split(maxsplit=1) == ["total", "$101 to 126"]


def test_what_a_program_can_download_is_what_the_sources_say():
    sources = tomllib.loads((ROOT / "ports" / "sources.toml").read_text())
    can = {model for model, about in sources.items() if about.get("base_url") or about["files"][0].get("urls")}
    assert can == set(sweep.DOWNLOADABLE)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--sweep=no.py"], "there is no sweep file 'no.py'"),
        (["--sweep=configs/common.py"], "should define get_sweep()"),
        ([SWEEP, "--only=ast_lra"], "nearest: 'ast_lora'"),
        ([SWEEP, "--preset=smok", "--local"], "unknown preset 'smok'"),
        ([SWEEP, "--repo=drums"], "should be USER/NAME"),
        ([SWEEP, "--only=ast_scratch", "--init_from=x"], "no experiment here needs weights"),
        ([SWEEP, "--init_from=asd=x"], "no experiment asd needs weights"),
        ([SWEEP], "HF_TOKEN is not set"),
        ([SWEEP, "--local", "--repo=me/drums"], "HF_TOKEN is not set"),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(args, says, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert call(*args, f"--out={tmp_path / 'out'}") == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert says in errors
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["htsat=hf://me/h"], {"htsat_lora": "hf://me/h", "ast_lora": "pretrained/ast", "ast_scratch": ""}),
        (["htsat=hf://me/h", "ast_lora=x=y"], None),
        (["hf://me/all"], {"htsat_lora": "hf://me/all", "ast_lora": "hf://me/all", "ast_scratch": ""}),
    ],
)
def test_weights_are_given_by_name(given, expected):
    if expected is None:
        with pytest.raises(InputError, match="ast_lora=x"):
            launch.with_weights(sweep.get_sweep(), given)
        return
    rows = {row.name: row.init_from for row in launch.with_weights(sweep.get_sweep(), given)}
    assert expected.items() <= rows.items()


def test_overrides_and_weights_become_arguments():
    row = Experiment(
        "x", "c.py", "cpu-basic", 1, (1, 1), "hf://me/ast@v1", overrides={"train.epochs": 3, "a.b": [1, 2]}
    )
    shared = ["--config.train.epochs=3", "--config.a.b=(1, 2)"]
    assert launch.training_arguments(row, "smoke") == ["--config=c.py:smoke", *shared]
    folder = "pretrained/me_ast"
    assert launch.training_arguments(row, "") == ["--config=c.py", *shared, f"--config.init_from={folder}"]
    download, train = launch.local_commands(row, "full", pathlib.Path("out"))
    assert download[2:] == [
        "huggingface_hub.cli.hf",
        "download",
        "me/ast",
        "--revision=v1",
        f"--local-dir={folder}",
    ]
    assert train[-1] == "--workdir=out/x"


# ------------------------------------------------------------------------------------------------------------- as jobs


def test_a_dry_run_says_all_and_submits_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert call(SWEEP, "--dry_run", "--repo=me/drums", SOURCE, f"--out={tmp_path / 'out'}") == 0
    said = capsys.readouterr().out
    assert "$101 to 126" in said
    for name in ("beats_lora", "ast_full", "htsat_scratch"):
        assert f"--config=configs/{name}.py:full" in said
    assert "python -m ports.convert --model=beats --download --out=pretrained/beats" in said
    assert "not ready: htsat_lora: a job cannot get pretrained/htsat" in said
    assert "--init_from=htsat=hf://USER/REPO" in said
    assert all(name in said for name in publish.SECRETS)
    assert list(tmp_path.iterdir()) == []


def test_jobs_are_submitted_once(tmp_path, hub, capsys):  # noqa: F811
    args = [SWEEP, "--only=htsat_lora,beats_lora,ast_scratch", SOURCE, "--repo=me/drums", f"--out={tmp_path / 'out'}"]
    assert call(*args) == 2  # HTS-AT's weights are missing: nothing is submitted, not even what could be
    assert hub.calls == []
    args.append("--init_from=htsat=hf://me/htsat")
    assert call(*args) == 0
    assert hub.token == SECRETS["HF_TOKEN"]
    submitted = {name: settings for _, name, settings in hub.calls}
    assert list(submitted) == ["htsat_lora", "beats_lora", "ast_scratch"]
    for name, settings in submitted.items():
        assert settings.pop("secrets") == SECRETS
        assert all(value not in json.dumps(settings) for value in SECRETS.values())
        assert settings["env"] == {"PYTHONUNBUFFERED": "1"}
        compile(settings["script"], name, "exec")
    assert (submitted["beats_lora"]["flavor"], submitted["beats_lora"]["timeout"]) == ("a100-large", 27_000)
    script = submitted["htsat_lora"]["script"]
    assert '"download", "me/htsat"' in script
    assert '"--repo=me/drums", "--tag=htsat_lora", "--best"' in script
    ledger = json.loads((tmp_path / "out" / "jobs.json").read_text())
    assert ledger["ast_scratch"]["url"].startswith("https://huggingface.co/jobs/")

    capsys.readouterr()
    assert call(*args) == 0
    assert len(hub.calls) == 3
    assert capsys.readouterr().out.count("already submitted") == 3
    assert call(*args, "--preset=small") == 2
    assert "choose another --out" in capsys.readouterr().err
    assert call(*args, "--again") == 0
    assert len(hub.calls) == 6
    said = capsys.readouterr()
    hold_no_secret(tmp_path, said.out, said.err)


def test_what_was_submitted_before_the_hub_refused_is_not_forgotten(tmp_path, hub, small_sweep, capsys):  # noqa: F811
    once, tries = hub.run_uv_job, []

    def refusing(script, **settings):
        tries.append(settings["name"])
        if len(tries) == 2:
            raise ValueError(f"no credit for {SECRETS['HF_TOKEN']}")
        return once(script, **settings)

    hub.run_uv_job = refusing
    args = [small_sweep, SOURCE, "--repo=me/drums", f"--out={tmp_path / 'out'}"]
    assert call(*args) == 2
    assert "two was not submitted: no credit for $HF_TOKEN" in capsys.readouterr().err
    assert call(*args) == 0
    assert tries == ["one", "two", "two", "three"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"config": "mine/x.py"}, "only has the configs that the package brings"),
        ({"hardware": "a100-larg"}, "nearest: 'a100-large'"),
        ({"init_from": "somewhere"}, "a job cannot get somewhere"),
    ],
)
def test_what_a_job_cannot_do_is_refused(changes, says):
    row = Experiment(
        **{"name": "x", "config": "configs/ast_full.py", "hardware": "cpu-basic", "price": 1, "hours": (1, 1)} | changes
    )
    with pytest.raises(InputError, match=says):
        jobs.job_commands(row, "full", "me/drums")


@pytest.mark.parametrize("converts", [True, False])
def test_the_script_names_what_uv_must_install(converts):
    commands = [["ports.convert"]] * converts + [["sousa_jax.main", "--config.x='\"y\"'"]]
    script = jobs.job_script("x", commands, "https://host/me/drums@abc1234")
    # As PEP 723 defines it.
    (block,) = re.findall(r"(?m)^# /// script$\s(?P<content>(^#(| .*)$\s)+)^# ///$", script)
    header = tomllib.loads("".join(line[2:] for line in block[0].splitlines(keepends=True)))
    extras = "gpu,ports" if converts else "gpu"
    assert header["dependencies"][0] == f"sousa-jax[{extras}] @ git+https://host/me/drums@abc1234"
    assert ("torch" in header["dependencies"]) == converts


def test_the_script_runs_its_commands_until_one_fails(tmp_path):
    """With the configs of the package where a user would have them."""
    path = tmp_path / "job.py"
    path.write_text(jobs.job_script("x", [["configs.sweep"], ["no_such_module"], ["this"]], "https://host/x@abc1234"))
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 1
    assert done.stdout.splitlines() == ["+ python -m configs.sweep", "+ python -m no_such_module"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("https://github.com/me/drums.git", "https://github.com/me/drums.git"),
        ("https://me:password@github.com/me/drums", "https://github.com/me/drums"),
        ("https://ghp_token@github.com/me/drums", "https://github.com/me/drums"),
        ("git@github.com:me/drums.git", "https://github.com/me/drums.git"),
        ("ssh://git@host.org/me/drums", "https://host.org/me/drums"),
        ("https://github.com/me/drums?access_token=password", None),
        ("/somewhere/drums", None),
        ("file:///somewhere/drums", None),
        ("http://me:password@github.com/me/drums", None),
    ],
)
def test_no_credential_is_passed_on_in_an_address(given, expected):
    if expected:
        assert jobs.job_source(f"{given}@abcdef0") == f"{expected}@abcdef0"
    else:
        with pytest.raises(InputError, match="without a token in it") as error:
            jobs.job_source(f"{given}@abcdef0")
        assert "password" not in str(error.value)


# ---------------------------------------------------------------------------------------------------------------- here


@pytest.fixture
def fake_runs(monkeypatch):
    """Runs that end at once, with the score that is told here, or not at all. Returns the scores."""
    scores = {"one": 0.2, "two": 0.9, "three": 0.4}

    def run(_, command):
        if "sousa_jax.main" not in command:
            return 0
        workdir = pathlib.Path(command[-1].removeprefix("--workdir="))
        score = scores[workdir.name]
        if isinstance(score, int):
            return score
        (workdir / "results").mkdir(parents=True)
        summary = {"balanced_accuracy": score, "first_window": {"balanced_accuracy": score / 2}}
        (workdir / publish.TEST_METRICS).write_text(json.dumps(summary))
        return 0

    monkeypatch.setattr(launch.Stop, "call", run)
    return scores


def test_each_run_once_and_the_best_first(tmp_path, small_sweep, fake_runs, capsys):
    args = [small_sweep, "--local", f"--out={tmp_path / 'out'}"]
    assert call(*args) == 0
    said = capsys.readouterr().out
    assert [line for line in said.splitlines() if line.startswith("===")] == [
        "=== one (1 of 3)", "=== two (2 of 3)", "=== three (3 of 3)",
    ]  # fmt: skip
    board = [line.split()[:3] for line in said[said.index("balanced accuracy, test") :].splitlines()[1:4]]
    assert board == [["two", "0.900", "0.450"], ["three", "0.400", "0.200"], ["one", "0.200", "0.100"]]
    ledger = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert {entry["state"] for entry in ledger.values()} == {"finished"}
    assert ledger["two"]["settings"][-1] == "--config.init_from=pretrained/me_ast"

    fake_runs.clear()  # a run would now be an error
    assert call(*args) == 0
    assert capsys.readouterr().out.count("finished already") == 3
    assert call(*args, "--only=two", "--dry_run") == 0
    assert "two, finished already" in capsys.readouterr().out
    assert call(*args, "--preset=smoke") == 2
    assert "choose another --out" in capsys.readouterr().err


def test_a_failing_run_does_not_stop_the_others(tmp_path, small_sweep, fake_runs, capsys):
    fake_runs["one"] = 2
    args = [small_sweep, "--local", f"--out={tmp_path / 'out'}"]
    assert call(*args) == 1
    said = capsys.readouterr()
    assert "failed: one: exit code 2; the same command tries again" in said.err
    assert "three  " in said.out
    fake_runs["one"] = 0  # a run that was stopped from outside: saved, but without a result
    assert call(*args) == 1
    assert "failed: one: it stopped before its end" in capsys.readouterr().err
    fake_runs["one"] = 0.3
    assert call(*args) == 0


def test_every_run_is_published_and_the_best_is_tagged(tmp_path, small_sweep, fake_runs, hub, monkeypatch, capsys):  # noqa: F811
    def assemble(run, out, repo):
        out.mkdir()
        (out / "model.json").write_text(json.dumps({"provenance": {"run": run.name}}))
        return out

    monkeypatch.setattr(publish, "assemble", assemble)
    fake_runs["one"] = 2
    assert call(small_sweep, "--local", "--repo=me/drums", f"--out={tmp_path / 'out'}") == 1
    uploads = [settings["commit_message"] for kind, _, settings in hub.calls if kind == "upload_folder"]
    assert uploads == ["three", "two"]  # what the repository shows is the last: the best
    assert hub.tags == {"three": "commit2", "two": "commit4", "best": "commit4"}
    said = capsys.readouterr()
    hold_no_secret(tmp_path, said.out, said.err)


def test_a_secret_among_the_settings_is_refused(tmp_path, monkeypatch, capsys):
    path = tmp_path / "sweep.py"
    path.write_text(
        "from sousa_jax.launch import Experiment\n"
        "import os\n"
        "def get_sweep():\n"
        "    return [Experiment('one', 'configs/ast_scratch.py', 'a10g-small', 1.0, (1, 2), overrides={\n"
        "        'tracking.wandb_project': os.environ['WANDB_API_KEY']})]\n"
    )
    monkeypatch.setenv("WANDB_API_KEY", SECRETS["WANDB_API_KEY"])
    for how in ("--local", "--again"):
        assert call(f"--sweep={path}", how, "--dry_run", f"--out={tmp_path / 'out'}") == 2
        said = capsys.readouterr()
        assert "the value of a secret is among its settings" in said.err
        hold_no_secret(tmp_path, said.out, said.err)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_reaches_the_run_once_and_stops_the_sweep(tmp_path, name, small_sweep):
    """The run saves its state and ends well; the next one is not begun."""
    child = tmp_path / "child.py"
    child.write_text(
        textwrap.dedent("""
        import pathlib, signal, sys, time
        heard = []
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, frame: heard.append(number))
        print("begun", flush=True)
        while not heard:
            time.sleep(0.01)
        time.sleep(0.3)
        print("heard", *(signal.Signals(number).name for number in heard), flush=True)
        """)
    )
    code = f"""
        import sys
        from sousa_jax import launch
        launch.local_commands = lambda row, preset, out: [[sys.executable, {str(child)!r}]]
        launch.main([{small_sweep!r}, "--local", "--out={tmp_path / "out"}"])
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
    ) as sweep_process:
        lines = []
        for line in sweep_process.stdout:
            lines.append(line.strip())
            if line == "begun\n":
                time.sleep(0.1)
                # As a terminal does it: to the whole group that is in the foreground.
                subprocess.run(["kill", f"-{name[3:]}", "--", f"-{sweep_process.pid}"], check=True)
        errors = sweep_process.stderr.read()
    assert sweep_process.returncode == 128 + signal.Signals[name], errors
    assert f"heard {name}" in lines
    assert f"stopped by {name} in one; the same command goes on there" in lines
    assert not any("two" in line for line in lines)
    assert json.loads((tmp_path / "out" / "sweep.json").read_text())["one"]["state"] == "stopped"
