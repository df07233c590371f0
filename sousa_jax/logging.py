"""What a run writes while it works: `logs/training.log`, TensorBoard, Weights & Biases, and progress."""

import importlib.metadata
import logging
import os
import pathlib
import subprocess
import sys
import time
import uuid
from typing import Any

import jax
from ml_collections import ConfigDict
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

logger = logging.getLogger("sousa_jax")

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "datasets", "numpy", "soundfile", "soxr")


def environment() -> dict[str, Any]:
    """What a result depends on besides the config: package versions, device, git commit (with `+` if changed)."""
    return {
        "packages": {"python": sys.version.split()[0], **{p: importlib.metadata.version(p) for p in PACKAGES}},
        "device": {"kind": jax.devices()[0].device_kind, "count": jax.device_count(), "hosts": jax.process_count()},
        "git_commit": _git_commit(),
    }


def _git_commit() -> str | None:
    here = pathlib.Path(__file__).parent

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):  # an installed package, or no git
        return None


class RunLog:
    """The log of one run; a context manager. Goes on with what an interrupted run wrote."""

    def __init__(self, workdir: pathlib.Path, config: ConfigDict):
        self._folder = workdir / "logs"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._config = config
        self._writer = None
        self._wandb = None

    def __enter__(self) -> "RunLog":
        form = logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S")
        self._handlers = [logging.FileHandler(self._folder / "training.log"), logging.StreamHandler(sys.stdout)]
        for handler in self._handlers:
            handler.setFormatter(form)
            logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        self._redirect = logging_redirect_tqdm(loggers=[logger])  # log lines above the progress bar, not through it
        self._redirect.__enter__()
        if self._config.tracking.tensorboard:
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(str(self._folder / "tensorboard"))
        self._wandb = self._start_wandb()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._writer:
            self._writer.close()
        if self._wandb:
            self._wandb.finish(exit_code=0 if exception[0] is None else 1)
        self._redirect.__exit__(*exception)
        logger.propagate = True
        for handler in self._handlers:
            logger.removeHandler(handler)
            handler.close()

    def _start_wandb(self):
        mode = self._config.tracking.wandb
        if mode == "auto":
            mode = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
        if mode == "disabled":
            return None
        import wandb

        id_file = self._folder / "wandb_id"
        run_id = id_file.read_text().strip() if id_file.exists() else uuid.uuid4().hex
        id_file.write_text(run_id)
        return wandb.init(
            project=self._config.tracking.wandb_project,
            name=self._folder.parent.name,
            config=self._config.to_dict(),
            dir=str(self._folder),
            id=run_id,
            resume="allow",
            mode=mode,
        )

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Records numbers under names such as `train/loss`."""
        if self._writer:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.log(values, step=step)


class Progress:
    """A bar with clips/s and time left on a terminal, a plain line now and then otherwise."""

    def __init__(self, total_steps: int, done_steps: int, clips_per_step: int, line_every_s: float = 30.0):
        self._total, self._done, self._clips = total_steps, done_steps, clips_per_step
        self._first, self._start = done_steps, time.perf_counter()
        self._line_every_s, self._last_line = line_every_s, self._start
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total_steps, initial=done_steps, unit="step", dynamic_ncols=True)

    def update(self, text: str) -> None:
        """One step is done; `text` says what to show beside the numbers."""
        self._done += 1
        if self._bar is not None:
            self._bar.set_postfix_str(f"{self.clips_per_second():.0f} clips/s, {text}", refresh=False)
            self._bar.update()
        elif time.perf_counter() - self._last_line > self._line_every_s:
            self._last_line = time.perf_counter()
            left_s = (self._total - self._done) * self._clips / max(self.clips_per_second(), 1e-9)
            logger.info(
                "step %d/%d, %.0f clips/s, %.0f min left, %s",
                self._done, self._total, self.clips_per_second(), left_s / 60, text,
            )  # fmt: skip

    def clips_per_second(self) -> float:
        """Since this process started, evaluations and compilation included."""
        return (self._done - self._first) * self._clips / max(time.perf_counter() - self._start, 1e-9)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
