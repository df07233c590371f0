"""What a run leaves in its logs, and what must never be there."""

import json
import logging

import pytest

from configs import efficientat_scratch
from sousa_jax.logging import Progress, RunLog, environment, logger


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


def test_progress_lines_off_a_terminal(caplog, monkeypatch):
    monkeypatch.setattr(logger, "propagate", True)
    bar = Progress(total_steps=10, done_steps=4, clips_per_step=8, line_every_s=0.0)
    with caplog.at_level(logging.INFO, "sousa_jax"):
        bar.update("loss 1.0")
    bar.close()
    assert "step 5/10" in caplog.text
    assert "clips/s" in caplog.text
    assert "min left, loss 1.0" in caplog.text


@pytest.mark.parametrize("package", ["jax", "flax", "optax", "orbax-checkpoint", "python"])
def test_environment_names_versions(package):
    record = environment()
    assert record["packages"][package]
    json.dumps(record)
