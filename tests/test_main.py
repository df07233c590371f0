"""What a user types wrongly is answered in one line, with exit code 2 and nothing written."""

import pathlib
import subprocess
import sys

import pytest

from sousa_jax.main import default_workdir

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIG = str(ROOT / "configs" / "efficientat_scratch.py")


def _main(*args, cwd):
    command = [sys.executable, "-m", "sousa_jax.main", *args]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "no --config given"),
        (["--config=nowhere.py"], "nowhere.py"),
        ([f"--config={CONFIG}:smok"], "unknown preset 'smok'; known: smoke"),
        ([f"--config={CONFIG}:smoke", "--config.train.lerning_rate=1"], "nearest: 'train.learning_rate'"),
        ([f"--config={CONFIG}:smoke", "--config.train.epochs=many"], "many"),
        ([f"--config={CONFIG}:smoke", "--wrkdir=x"], "wrkdir"),
        ([f"--config={CONFIG}:smoke", "--config.data.path=/no/such/folder"], "/no/such/folder"),
        ([f"--config={CONFIG}:smoke", "--config.model.variant=mn11"], "nearest: 'mn10'"),
        (["--config.model.variant=mn11", f"--config={CONFIG}:smoke"], "nearest: 'mn10'"),  # keys may come first
    ],
)
def test_one_line_and_exit_code_2(args, says, tmp_path):
    done = _main(*args, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert says in errors[0]
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_default_workdir_never_collides(tmp_path):
    class Config:
        strategy = "scratch"

        class model:
            name = "efficientat"

    first = default_workdir(Config, tmp_path)
    assert first.name.startswith("efficientat_scratch_2")
    first.mkdir()
    second = default_workdir(Config, tmp_path)
    assert second.name == first.name + "_2"
    second.mkdir()
    assert default_workdir(Config, tmp_path).name == first.name + "_3"
