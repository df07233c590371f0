"""What a run leaves in its logs, and what must never be there."""

import contextlib
import errno
import json
import logging
import os
import pathlib
import struct
import sys
import types

import numpy as np
import pytest
import yaml
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter

from configs import efficientat_scratch
from sousa_jax.logging import Progress, RunLog, _Console, _File, environment, logger, peak_flops
from sousa_jax.main import check_config_arguments


def _config(wandb="disabled"):
    config = efficientat_scratch.get_config("smoke")
    config.tracking.wandb = wandb
    return config


def test_log_file_and_tensorboard(tmp_path):
    with RunLog(tmp_path, _config()) as log:
        logger.info("a line")
        log.scalars(1, {"train/loss": 2.5})
    with RunLog(tmp_path, _config()):  # a resumed run goes on in the same file
        logger.info("another line")
    lines = (tmp_path / "logs" / "training.log").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == ["a line", "another line"]
    assert any((tmp_path / "logs" / "tensorboard").iterdir())
    assert not logger.handlers


def test_wandb_offline_keeps_its_id_and_leaks_no_key(tmp_path, monkeypatch):
    """Without a key the run is recorded on disk; a key in the environment is written nowhere."""
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    with RunLog(tmp_path, _config("auto")) as log:
        log.scalars(1, {"train/loss": 2.5})
    assert list((tmp_path / "logs" / "wandb").glob("offline-run-*"))
    run_id = (tmp_path / "logs" / "wandb_id").read_text()
    secret = "k" * 40
    monkeypatch.setenv("WANDB_API_KEY", secret)
    with RunLog(tmp_path, _config("offline")):
        pass
    assert (tmp_path / "logs" / "wandb_id").read_text() == run_id
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or secret.encode() not in path.read_bytes(), path


def _tensorboard_events(folder):
    """Steps and values in all files of the folder."""
    found = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while len(data) >= 12:
            (length,) = struct.unpack("<Q", data[:8])
            record, data = data[12 : 12 + length], data[16 + length :]
            if len(record) == length:
                event = Event.FromString(record)
                found += [(event.step, value.tag, round(value.simple_value, 6)) for value in event.summary.value]
    return found


def test_tensorboard_reads_the_scalars(tmp_path):
    for step in (1, 2):  # the second one resumed
        with RunLog(tmp_path, _config()) as log:
            log.scalars(step, {"train/loss": 2.5 / step, "train/clips_per_second": np.float32(80)})
    expected = [(1, "train/loss", 2.5), (2, "train/loss", 1.25)]
    events = _tensorboard_events(tmp_path / "logs" / "tensorboard")
    assert sorted(e for e in events if e[1] == "train/loss") == expected
    assert len(events) == 4


def test_full_disk_costs_lines_not_the_run(tmp_path, monkeypatch, capsys):
    """Every write fails for a while: two warnings, no traceback, and it goes on when there is space again."""
    full = OSError(errno.ENOSPC, "No space left on device")
    with RunLog(tmp_path, _config()) as log:
        log.scalars(1, {"train/loss": 1.0})
        with monkeypatch.context() as patch:
            patch.setattr(RecordWriter, "write", _raises(full))
            file = next(handler for handler in logger.handlers if isinstance(handler, logging.FileHandler))
            patch.setattr(file, "flush", _raises(full))
            for step in range(2, 52):
                logger.info("a line")
                log.scalars(step, {"train/loss": 1.0})
        log.scalars(52, {"train/loss": 1.0})
        logger.info("the last line")
    error = capsys.readouterr().err
    assert error.count("warning: ") == error.count("\n") == 2
    assert "No space left" in error
    assert "the last line" in (tmp_path / "logs" / "training.log").read_text()
    assert [step for step, *_ in _tensorboard_events(tmp_path / "logs" / "tensorboard")] == [1, 52]
    assert len(list((tmp_path / "logs" / "tensorboard").iterdir())) == 2


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_full_disk_for_real(capsys):
    handler = _File("/dev/full")
    for _ in range(3):
        handler.emit(logging.makeLogRecord({"msg": "a line"}))
    handler.close()
    error = capsys.readouterr().err
    assert error.startswith("warning: lines of the log are lost: ")
    assert error.count("\n") == 1


def test_a_mistake_in_a_line_is_still_reported(capsys):
    handler = _Console(sys.stdout)
    handler.handle(logging.makeLogRecord({"msg": "%d", "args": ("no number",)}))
    assert "Traceback" in capsys.readouterr().err


def _raises(error):
    def call(*_):
        raise error

    return call


def test_other_processes_write_nothing(tmp_path, capsys, monkeypatch):
    config = _config("online")
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import would fail
    with RunLog(tmp_path / "run", config, main=False) as log:
        logger.info("a line")
        logger.warning("a clip is bad")
        log.scalars(1, {"train/loss": 1.0})
        log.checkpoint(tmp_path, "ast_lora", {})
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr() == ("", "process 0: a clip is bad\n")
    assert not logger.handlers


class FakeWandb(types.ModuleType):
    """Remembers what was asked for; `offline` as W&B's own run has it."""

    class Error(Exception):
        pass

    class Artifact:
        def __init__(self, name, type, metadata):
            self.name, self.type, self.metadata, self.folders = name, type, metadata, []

        def add_dir(self, folder):
            self.folders.append(folder)

    def __init__(self):
        super().__init__("wandb")
        self.given, self.logged, self.failure = None, [], None

    def init(self, **given):
        self.given = given
        self.offline = given["mode"] == "offline"
        self.id = given["id"] or os.environ["WANDB_RUN_ID"]
        return self

    def log(self, values, step):
        self.logged.append((step, values))

    def log_artifact(self, artifact, aliases):
        if self.failure:
            raise self.failure
        self.logged.append((artifact, aliases))

    def finish(self, exit_code):
        self.logged.append(exit_code)


@pytest.fixture
def wandb(monkeypatch):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_SWEEP_ID", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_best_checkpoint_is_an_artifact_when_online(tmp_path, wandb):
    with RunLog(tmp_path, _config("online")) as log:
        log.checkpoint(tmp_path / "checkpoints" / "best", "ast_lora", {"step": 7})
    (artifact, aliases), exit_code = wandb.logged
    assert (artifact.name, artifact.type) == ("ast_lora", "model")
    assert artifact.metadata == {"step": 7}
    assert artifact.folders == [str(tmp_path / "checkpoints" / "best")]
    assert {"best", wandb.id} <= set(aliases)
    assert exit_code == 0


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_no_artifact_otherwise(tmp_path, wandb, mode):
    with RunLog(tmp_path, _config(mode)) as log:
        log.checkpoint(tmp_path, "ast_lora", {"step": 7})
    assert [entry for entry in wandb.logged if isinstance(entry, tuple)] == []


def test_a_failed_upload_is_a_warning(tmp_path, wandb, capsys):
    wandb.failure = wandb.Error("the network\nis gone")
    with RunLog(tmp_path, _config("online")) as log:
        log.checkpoint(tmp_path, "ast_lora", {})
    assert "was not uploaded: the network is gone" in capsys.readouterr().out


def test_a_run_of_a_sweep_has_the_agents_id(tmp_path, wandb, monkeypatch):
    """Also online without a key in the environment: the agent may have logged in by file."""
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    monkeypatch.setenv("WANDB_RUN_ID", "given")
    with RunLog(tmp_path, _config("auto")):
        pass
    assert wandb.given["id"] is None
    assert wandb.given["mode"] == "online"
    assert (tmp_path / "logs" / "wandb_id").read_text() == "given"
    monkeypatch.delenv("WANDB_SWEEP_ID")
    with RunLog(tmp_path, _config("auto")):  # taken up by hand
        pass
    assert wandb.given["id"] == "given"
    assert wandb.given["mode"] == "offline"


def test_sweep_file_speaks_of_keys_that_exist(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    sweep = yaml.safe_load(pathlib.Path("configs/wandb_sweep.yaml").read_text("utf-8"))
    known = dict(_leaves(_config().to_dict(), "config."))
    arguments = [part for part in sweep["command"] if part.startswith("--")]
    for name, space in sweep["parameters"].items():
        for value in space.get("values") or (space["min"], space["max"]):
            assert type(value) is type(known[name]), name
            arguments.append(f"--{name}={value}")
    check_config_arguments(arguments)
    assert sweep["metric"] == {"name": "validation/balanced_accuracy", "goal": "maximize"}
    assert sweep["command"][-1] == "${args}"
    assert pathlib.Path(sweep["program"]).is_file()
    assert sweep["project"] == known["config.tracking.wandb_project"]


def _leaves(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


# ------------------------------------------------------------------------------------------------------------ progress


class Clock:
    now_s = 100.0

    def __call__(self):
        return self.now_s


def _progress(**settings):
    clock = Clock()
    return clock, Progress(**{"total_steps": 1000, "done_steps": 0, "clips_per_step": 8, "clock": clock, **settings})


def _steps(clock, bar, count, step_s):
    for _ in range(count):
        clock.now_s += step_s
        bar.update("loss 1.0")


def test_speed_leaves_out_compilation_and_pauses():
    clock, bar = _progress()
    assert (bar.step_s(), bar.clips_per_second(), bar.mfu()) == (0.0, 0.0, None)
    _steps(clock, bar, 1, 40.0)  # compiled
    assert bar.step_s() == 0.0
    _steps(clock, bar, 4, 0.25)
    with bar.pause():
        clock.now_s += 500
    _steps(clock, bar, 4, 0.25)
    assert bar.step_s() == pytest.approx(0.25)
    assert bar.clips_per_second() == pytest.approx(32)
    bar.close()


def test_speeds_are_scalars_when_known():
    clock, bar = _progress(flops_per_step=1e12)
    _steps(clock, bar, 1, 1.0)
    assert bar.speeds() == {}
    _steps(clock, bar, 1, 0.5)
    assert bar.speeds() == pytest.approx({"train/clips_per_second": 16.0, "train/step_s": 0.5})
    clock, bar = _progress(flops_per_step=1e12, peak_flops=4e12)
    _steps(clock, bar, 2, 0.5)
    assert bar.speeds()["train/mfu"] == pytest.approx(0.5)


def test_a_pause_that_fails_is_a_pause_all_the_same():
    clock, bar = _progress()
    _steps(clock, bar, 2, 1.0)
    with contextlib.suppress(KeyboardInterrupt), bar.pause():
        clock.now_s += 500
        raise KeyboardInterrupt
    _steps(clock, bar, 1, 1.0)
    assert bar.step_s() == pytest.approx(1.0)


def test_speed_is_the_recent_one():
    clock, bar = _progress()
    _steps(clock, bar, 200, 1.0)
    _steps(clock, bar, 130, 0.5)  # 65 s
    assert bar.step_s() == pytest.approx(0.5)
    _steps(clock, bar, 11, 20.0)  # of steps this long, ten are not a minute
    assert bar.step_s() == pytest.approx(20.0)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "step 3/1000, 16 clips/s, 500 ms a step, 8 min left, loss 1.0"),
        ({"total_steps": 20_000, "done_steps": 5}, "step 8/20000, 16 clips/s, 500 ms a step, 2:47 h left, loss 1.0"),
        (
            {"flops_per_step": 78e12, "peak_flops": 312e12},
            "step 3/1000, 16 clips/s, 500 ms a step, MFU 50%, 8 min left, loss 1.0",
        ),
        ({"peak_flops": 312e12}, "step 3/1000, 16 clips/s, 500 ms a step, 8 min left, loss 1.0"),
    ],
)
def test_progress_lines_off_a_terminal(caplog, monkeypatch, settings, expected):
    monkeypatch.setattr(logger, "propagate", True)
    clock, bar = _progress(**settings)
    with caplog.at_level(logging.INFO, "sousa_jax"):
        _steps(clock, bar, 1, 31.0)
        _steps(clock, bar, 1, 0.5)  # too soon for another line
        with bar.pause():
            clock.now_s += 31.0
        _steps(clock, bar, 1, 0.5)
    bar.close()
    first = f"step {1 + settings.get('done_steps', 0)}/{settings.get('total_steps', 1000)}, loss 1.0"
    assert caplog.messages == [first, expected]  # after one step no speed is known


def test_bar_on_a_terminal_of_the_main_process_only(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    clock, bar = _progress()
    _steps(clock, bar, 10, 0.5)
    bar.close()
    assert "16 clips/s, 500 ms a step, 8 min left, loss 1.0" in capsys.readouterr().err
    monkeypatch.setattr(logger, "level", logging.WARNING)
    clock, bar = _progress()
    _steps(clock, bar, 10, 0.5)
    bar.close()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("kind", "dtype", "tera"),
    [
        ("NVIDIA A100-SXM4-40GB", "bfloat16", 312),
        ("NVIDIA A100-SXM4-40GB", "float32", 156),  # TF32
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bfloat16", 0),
        ("NVIDIA A10G", "bfloat16", 70),
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.5),
        ("NVIDIA H100 PCIe", "bfloat16", 756.5),
        ("NVIDIA H200", "float32", 494.5),
        ("NVIDIA L4", "bfloat16", 121),
        ("NVIDIA L40S", "bfloat16", 0),
        ("Tesla T4", "float32", 8.1),
        ("Tesla T4", "bfloat16", 0),
        ("Tesla V100-SXM2-16GB", "float32", 15.7),
        ("TPU v4", "bfloat16", 275),
        ("TPU v4 lite", "bfloat16", 0),
        ("TPU v5 lite", "float32", 197),
        ("TPU v5", "bfloat16", 459),
        ("TPU v6 lite", "bfloat16", 918),
        ("cpu", "float32", 0),
        ("NVIDIA A100-SXM4-40GB", "float64", 0),
    ],
)
def test_peaks_of_known_devices(kind, dtype, tera):
    assert peak_flops(kind, dtype) == pytest.approx(tera * 1e12)


@pytest.mark.parametrize("package", ["jax", "flax", "optax", "orbax-checkpoint", "python"])
def test_environment_names_versions(package):
    record = environment()
    assert record["packages"][package]
    json.dumps(record)
