"""A run that is killed, again and again, ends as one that nobody touched: bit for bit, for every strategy."""

import concurrent.futures
import os
import pathlib
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
from test_train import finished_run, last_state, tiny_config

from sousa_jax import train

TESTS = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(TESTS / "data"))
from small_sousa import rows, write_hub  # noqa: E402

AVERAGED = {"ema": 0.9}
SETTINGS = {
    "scratch": {},
    "full": AVERAGED | {"unfreeze": (0.2, 0.4), "layer_decay": 0.8},
    "lora": AVERAGED,
    "head": AVERAGED,
}
N_STEPS = 10
SAVED = (3, 5, 6, 9)  # steps after which these runs write a checkpoint, the end aside


def small_config(strategy, clips, **train_settings):
    """`tiny_config` with a transformer and five batches of recorded clips an epoch: runs in seconds."""
    config = tiny_config("ast", "full", train=SETTINGS[strategy] | {"batch_size": 2} | train_settings)
    config.strategy = strategy
    config.data.path = str(clips)
    return config


def small_clips(folder: pathlib.Path) -> pathlib.Path:
    """Ten clips for training, four for validation, four for the test."""
    return write_hub(folder, {s: [rows(s, n)] for s, n in (("train", 5), ("validation", 2), ("test", 2))})


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return small_clips(tmp_path_factory.mktemp("clips") / "hub")


def run_until(step: int, signal_name: str, workdir: pathlib.Path, config: str) -> subprocess.CompletedProcess:
    """Runs the config, an expression, in a process of its own that gets a signal when it has batch number `step`."""
    code = f"""
        import os, pathlib, signal, sys
        import jax
        jax.config.update("jax_compilation_cache_dir", {jax.config.jax_compilation_cache_dir!r})
        from sousa_jax import train
        from test_resume import small_config, tiny_config

        class Batches:
            def __init__(self, batches):
                self.batches, self.names = batches, batches.names
            def __enter__(self):
                self.batches.__enter__()
                return self
            def __exit__(self, *exception):
                self.batches.__exit__(*exception)
            def __next__(self):
                batch, position = next(self.batches)
                if position["sample"] == {step} * config.train.batch_size:
                    os.kill(os.getpid(), signal.{signal_name})
                return batch, position

        make = train.train_batches
        train.train_batches = lambda *args, **settings: Batches(make(*args, **settings))
        config = {config}
        sys.exit(train.run(config, pathlib.Path({str(workdir)!r})))
    """
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])},
        capture_output=True,
        text=True,
        timeout=300,
    )


def assert_equal_runs(one: pathlib.Path, other: pathlib.Path) -> None:
    """Their last checkpoints and results are the same bytes."""
    states = [last_state(folder) for folder in (one, other)]
    assert states[0].keys() == states[1].keys()
    differ = [key for key in states[0] if states[0][key].tobytes() != states[1][key].tobytes()]
    assert not differ
    step = int(states[0]["at"])
    names = [f"checkpoints/last/{step}/progress/metadata"]
    names += [f"results/{path.name}" for path in (one / "results").iterdir() if path.suffix in (".json", ".csv")]
    names.remove("results/cost.json")  # minutes
    assert len(names) == 5
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def kill_steps(seed: int) -> list[int]:
    """Three rising steps, the first batch after a checkpoint among them: its asynchronous save may be under way."""
    rng = np.random.default_rng(seed)
    after_save = 1 + int(rng.choice(SAVED))
    others = [step for step in range(2, N_STEPS + 1) if step != after_save]
    return sorted([after_save, *rng.choice(others, 2, replace=False).tolist()])


@pytest.fixture(scope="module")
def killed(clips, tmp_path_factory):
    """By strategy: a folder, and the exit codes of three processes that worked there one after another."""
    root = tmp_path_factory.mktemp("killed")

    def kill(seed: int, strategy: str) -> tuple[pathlib.Path, list[int]]:
        expression = f"small_config({strategy!r}, {str(clips)!r})"
        done = [run_until(step, "SIGKILL", root / strategy, expression) for step in kill_steps(seed)]
        return root / strategy, [process.returncode for process in done]

    with concurrent.futures.ThreadPoolExecutor(2) as pool:  # mostly Python: two take hardly longer than one
        return dict(zip(SETTINGS, pool.map(kill, range(len(SETTINGS)), SETTINGS), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", SETTINGS)
def test_killed_three_times_the_result_is_the_same_bit_for_bit(strategy, killed, clips, tmp_path):
    """Weights, moments, half-gathered gradients, averages, random draws and the clips' order go on where they were."""
    config, whole = small_config(strategy, clips), tmp_path / "whole"
    assert train.run(config, whole) == 0
    state = last_state(whole)
    assert state["at"] == N_STEPS
    assert any("ema" in key for key in state) == bool(config.train.ema)
    assert any("acc_grads" in key for key in state)
    assert any("mu" in key for key in state)
    workdir, exit_codes = killed[strategy]
    assert exit_codes == [-9, -9, -9]
    assert not (workdir / "results").exists()
    assert train.run(config, workdir) == 0
    assert "resumed at step" in (workdir / "logs" / "training.log").read_text()
    assert_equal_runs(whole, workdir)


@pytest.mark.slow
def test_sigterm_saves_says_how_to_go_on_and_exits_with_zero(tmp_path, tmp_path_factory):
    """What clusters send before they take a machine away costs no step. With batch norm's statistics and with clips
    that are synthesized, which the other runs of this module have not."""
    workdir = tmp_path / "stopped"
    done = run_until(7, "SIGTERM", workdir, "tiny_config()")
    assert done.returncode == 0, done.stderr
    assert f"stopped by SIGTERM; state saved at step 7. To go on: same command with --workdir={workdir}" in done.stdout
    assert last_state(workdir)["at"] == 7
    assert not (workdir / "results").exists()
    assert train.run(tiny_config(), workdir) == 0
    assert "resumed at step 7 of 10" in (workdir / "logs" / "training.log").read_text()
    assert any("stats" in key for key in last_state(workdir))
    assert_equal_runs(finished_run(tmp_path_factory.getbasetemp()), workdir)
