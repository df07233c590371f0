"""What goes wrong in long runs, tried for real: damaged files, a full disk, numbers that are not finite."""

import json
import logging
import os
import pathlib
import shutil
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
from test_resume import N_STEPS, TESTS, assert_equal_runs, small_clips, small_config
from test_train import last_state

from sousa_jax import train
from sousa_jax.data import open_split
from sousa_jax.errors import InputError

STRATEGY = "full"


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return small_clips(tmp_path_factory.mktemp("clips") / "hub")


@pytest.fixture(scope="module")
def config(clips):
    return small_config(STRATEGY, clips)


class _Lines(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines: list[str] = []

    def emit(self, log_record):
        self.lines.append(log_record.getMessage())


@pytest.fixture(scope="module")
def whole_and_compiled(config, tmp_path_factory):
    """A finished run, and what JAX said that it compiled meanwhile."""
    workdir, said = tmp_path_factory.mktemp("run") / "whole", _Lines()
    jax_logger = logging.getLogger("jax")
    jax_logger.addHandler(said)
    try:
        with jax.log_compiles():
            assert train.run(config, workdir) == 0
    finally:
        jax_logger.removeHandler(said)
    return workdir, [line for line in said.lines if line.startswith("Finished XLA compilation of ")]


@pytest.fixture(scope="module")
def whole(whole_and_compiled):
    return whole_and_compiled[0]


@pytest.fixture
def copy(whole, tmp_path):
    """A copy of the finished run, with checkpoints of steps 9 and 10, to do harm to."""
    folder = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(folder / "results")
    (folder / "logs" / "training.log").unlink()
    assert sorted(path.name for path in (folder / "checkpoints" / "last").iterdir()) == ["10", "9"]
    return folder


def files_of(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def log_of(folder: pathlib.Path) -> str:
    return (folder / "logs" / "training.log").read_text()


def test_the_training_step_is_compiled_once(whole_and_compiled):
    """A second program of the step (other shapes, other layouts, evaluation between) would cost minutes in silence."""
    steps = [line for line in whole_and_compiled[1] if "train_step" in line]
    assert len(steps) == 1, steps
    evaluations = [line for line in whole_and_compiled[1] if "eval_step" in line]
    assert evaluations, "what jax says has changed: nothing would be counted"


# ------------------------------------------------------------------------------------------------- damaged checkpoints


def biggest_file(checkpoint: pathlib.Path) -> pathlib.Path:
    return max((checkpoint / "state").rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)


def cut_in_half(checkpoint: pathlib.Path) -> None:
    path = biggest_file(checkpoint)
    os.truncate(path, path.stat().st_size // 2)


def flip_a_byte(checkpoint: pathlib.Path) -> None:
    """Where Orbax reads another array without a word."""
    workdir = checkpoint.parents[2]
    path, before = biggest_file(checkpoint), last_state(workdir)
    content = path.read_bytes()
    for place in np.linspace(0.2, 0.8, 25):
        changed = bytearray(content)
        changed[int(place * len(content))] ^= 0x10
        path.write_bytes(changed)
        try:
            after = last_state(workdir)
        except Exception:  # here it did notice
            continue
        if any(before[key].tobytes() != after[key].tobytes() for key in before):
            return
    pytest.fail("no byte found that Orbax does not notice")


def lose_progress(checkpoint: pathlib.Path) -> None:
    (checkpoint / "progress" / "metadata").unlink()


@pytest.mark.parametrize("harm", [cut_in_half, flip_a_byte, lose_progress])
def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(harm, copy, whole, config):
    """It is named, put aside, and never trained on: the end is that of the run without damage."""
    harm(copy / "checkpoints" / "last" / "10")
    assert train.run(config, copy) == 0
    assert "checkpoint 10 cannot be read (" in log_of(copy)
    assert ("its arrays are not those that were saved" in log_of(copy)) == (harm is flip_a_byte)
    assert f"moved to {copy / 'checkpoints' / 'damaged' / '10'}" in log_of(copy)
    assert "resumed at step 9 of 10" in log_of(copy)
    assert [path.name for path in (copy / "checkpoints" / "damaged").iterdir()] == ["10"]
    assert_equal_runs(whole, copy)


def test_when_all_checkpoints_are_damaged_nothing_is_touched(copy, config):
    """To begin anew in silence would throw away what somebody may yet repair."""
    for step in ("9", "10"):
        cut_in_half(copy / "checkpoints" / "last" / step)
    before = files_of(copy / "checkpoints")
    with pytest.raises(InputError, match=r"none of the checkpoints in .* can be read \(10: .*--overwrite or another"):
        train.run(config, copy)
    assert files_of(copy / "checkpoints") == before


def test_what_a_killed_save_left_is_ignored(copy, whole, config):
    """Half a checkpoint under its temporary name is no damage, and is gone when the run went on."""
    last = copy / "checkpoints" / "last"
    half = last / "10.orbax-checkpoint-tmp"
    (last / "10").rename(half)
    cut_in_half(half)
    shutil.rmtree(half / "progress")
    shutil.copytree(half, last / "7.orbax-checkpoint-tmp")
    assert train.run(config, copy) == 0
    assert "resumed at step 9 of 10" in log_of(copy)
    assert "cannot be read" not in log_of(copy)
    assert sorted(path.name for path in last.iterdir()) == ["10", "9"]
    assert not (copy / "checkpoints" / "damaged").exists()
    assert_equal_runs(whole, copy)


# ----------------------------------------------------------------------------------------------------------- full disk

FULL_DISK = """
    import os, pathlib, shutil, subprocess, sys
    disk, out, config = (pathlib.Path(arg) for arg in sys.argv[1:])
    command = [sys.executable, "-m", "sousa_jax.main", f"--config={config}", f"--workdir={disk / 'run'}"]
    filler = disk / "filler"
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    filler.write_bytes(bytes(free - 3_000_000))  # one checkpoint takes two thirds of what is left
    with (out / "full.txt").open("w") as file:
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode
    (out / "code").write_text(str(code))
    shutil.copytree(disk / "run" / "checkpoints" / "last", out / "kept")
    filler.unlink()
    with (out / "room.txt").open("w") as file:
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode
    shutil.copytree(disk / "run", out / "run")
    sys.exit(code)
"""


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_costs_only_what_was_not_saved(whole, clips, tmp_path):
    """On a disk of its own that takes the first checkpoint and not the second: exit code 2; with room the same command
    goes on to the same end."""
    disk, driver, config = tmp_path / "disk", tmp_path / "driver.py", tmp_path / "config.py"
    disk.mkdir()
    driver.write_text(textwrap.dedent(FULL_DISK))
    config.write_text(
        "from test_resume import small_config\n\n"
        f"def get_config():\n    return small_config({STRATEGY!r}, {str(clips)!r})\n"
    )
    own_disk = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    mount = f'mount -t tmpfs -o size=16m none "{disk}"'
    tried = subprocess.run([*own_disk, mount], capture_output=True, text=True)
    if tried.returncode:
        reason = f"a disk of its own cannot be had: {tried.stderr.strip()}"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    paths = {
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
    }
    run = f'{mount} && exec "$@"'
    arguments = [sys.executable, str(driver), str(disk), str(tmp_path), str(config)]
    done = subprocess.run(
        [*own_disk, run, "sh", *arguments], env=os.environ | paths, capture_output=True, text=True, timeout=300
    )
    full, with_room = (
        (tmp_path / name).read_text() if (tmp_path / name).exists() else "" for name in ("full.txt", "room.txt")
    )
    assert done.returncode == 0, done.stderr + with_room
    assert (tmp_path / "code").read_text() == "2", full
    errors = [line for line in full.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, full
    assert "No space left" not in full, full  # Orbax's own lines about it
    assert "the disk of" in errors[0]
    assert "is full" in errors[0]
    complete = [path.name for path in (tmp_path / "kept").iterdir() if path.name.isdigit()]
    assert complete == ["3"], full
    assert "resumed at step 3 of 10" in with_room
    assert_equal_runs(whole, tmp_path / "run")


# ------------------------------------------------------------------------------------------------ numbers, overwriting


class Poisoned:
    """Batches of which one holds a sample that is not a number."""

    def __init__(self, batches, step, batch_size):
        self._batches, self._behind, self.clips = batches, step * batch_size, None
        self.names = batches.names

    def __enter__(self):
        self._batches.__enter__()
        return self

    def __exit__(self, *exception):
        self._batches.__exit__(*exception)

    def __next__(self):
        batch, position = next(self._batches)
        if position["sample"] == self._behind:
            self.clips = batch["clip"].tolist()
            waveform = np.array(batch["waveform"])
            waveform[1, 100] = np.nan
            batch = batch | {"waveform": waveform}
        return batch, position


@pytest.mark.parametrize("step", [6, 8])
def test_a_number_that_is_not_finite_ends_the_run_before_it_is_saved(step, config, tmp_path, monkeypatch):
    """At a step that is saved and at one that is not: its batch can be found, and the last checkpoint is a good one."""
    made, make = [], train.train_batches

    def poisoned(*args, **settings):
        made.append(Poisoned(make(*args, **settings), step, config.train.batch_size))
        return made[-1]

    monkeypatch.setattr(train, "train_batches", poisoned)
    config = config.copy_and_resolve_references()
    config.train.log_every_steps = 100  # what is logged is read at once
    workdir = tmp_path / "run"
    with pytest.raises(InputError, match=rf"the loss is nan at step {step}; the clips of that batch are in"):
        train.run(config, workdir)
    report = json.loads((workdir / "non_finite_batch.json").read_text())
    assert report["step"] == step
    assert report["numbers"]["loss"] == "nan"
    assert report["position_behind"] == {"sample": step * config.train.batch_size}
    ids = open_split(config.data, "train", seed=0, sample_rate=16_000).table["sample_id"]
    assert report["clips"] == [ids[clip] for clip in made[0].clips]
    state = last_state(workdir)
    assert state["at"] == (5 if step == 6 else 6)
    assert all(np.isfinite(array).all() for array in state.values())


def test_overwrite_deletes_the_run_and_nothing_else(copy, config):
    """Without it, another config is refused; with it, no trace of the old run mixes with the new one."""
    changed = config.copy_and_resolve_references()
    changed.train.checkpoint_every_steps = 4
    (copy / "results").mkdir()
    old = [
        copy / name for name in ("results/old.csv", "checkpoints/damaged/7/x", "non_finite_batch.json", "logs/old.log")
    ]
    foreign = [copy / name for name in ("notes.txt", "figures/one.txt")]
    for path in old + foreign:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    before = files_of(copy)
    with pytest.raises(InputError, match=r"train\.checkpoint_every_steps was 3, is 4.*--overwrite"):
        train.run(changed, copy)
    assert files_of(copy) == before
    assert train.run(changed, copy, overwrite=True) == 0
    assert [path for path in old if path.exists()] == []
    assert all(path.read_text() == "x" for path in foreign)
    assert json.loads((copy / "config.json").read_text())["config"]["train"]["checkpoint_every_steps"] == 4
    assert "resumed" not in log_of(copy)
    assert sorted(path.name for path in (copy / "checkpoints" / "last").iterdir()) == ["10", "8"]
    assert (copy / "results" / "test_metrics.json").exists()


@pytest.mark.parametrize(
    ("part", "settings"),
    [
        ("data", {"path": "no/such/folder"}),
        ("model", {"length": "stretched"}),
        ("devices", {"model": 3}),
        ("data", {"streaming": True, "by_performance": True}),
    ],
)
def test_a_start_that_fails_overwrites_nothing(part, settings, copy, config):
    """A slip on the command line must not cost the run that was there."""
    wrong = config.copy_and_resolve_references()
    wrong[part].update(settings)
    before = files_of(copy)
    with pytest.raises(InputError):
        train.run(wrong, copy, overwrite=True)
    assert files_of(copy) == before


def test_where_and_how_a_run_is_watched_may_change(copy, whole, config):
    """Another machine, no TensorBoard, more workers: the same run goes on, to the same end."""
    other = config.copy_and_resolve_references()
    other.tracking.update({"tensorboard": False, "wandb_project": "elsewhere"})
    other.devices.fully_sharded = True
    other.data.update({"workers": 1, "prefetch": 1})
    other.train.log_every_steps = 4
    shutil.rmtree(copy / "checkpoints" / "last" / "10")
    assert train.run(other, copy) == 0
    assert f"resumed at step 9 of {N_STEPS}" in log_of(copy)
    assert_equal_runs(whole, copy)
