"""What a run writes while it works: `logs/training.log`, TensorBoard, Weights & Biases, and progress."""

import collections
import contextlib
import importlib.metadata
import json
import logging
import os
import pathlib
import re
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import jax
from ml_collections import ConfigDict
from tqdm import tqdm

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
    """The log of one run; a context manager. Goes on with what an interrupted run wrote.

    A full disk costs lines of it, and one line on stderr that says so, but never stops the run.

    Args:
      workdir: the run's folder; `logs/` in it is written.
      config: its `tracking` says where to; all of it goes to Weights & Biases.
      main: False in all processes of a run but one. They write nothing; their warnings go to stderr.
    """

    def __init__(self, workdir: pathlib.Path, config: ConfigDict, main: bool = True):
        self._folder, self._config, self._main = workdir / "logs", config, main
        self._events = None
        self._scalars = None
        self._wandb = None

    def __enter__(self) -> "RunLog":
        if self._main:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._handlers = [_Console(sys.stdout), _File(self._folder / "training.log")]
            form, dates = "%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"
        else:
            self._handlers = [_Console(sys.stderr)]
            form, dates = f"process {jax.process_index()}: %(message)s", None
        for handler in self._handlers:
            handler.setFormatter(logging.Formatter(form, dates))
            logger.addHandler(handler)
        logger.setLevel(logging.INFO if self._main else logging.WARNING)
        logger.propagate = False
        if self._main:
            if self._config.tracking.tensorboard:
                self._events = _Events(self._folder / "tensorboard")
            self._scalars = _File(self._folder / "scalars.jsonl")
            self._wandb = self._start_wandb()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._events:
            self._events.close()
        if self._scalars:
            self._scalars.close()
        if self._wandb:
            self._wandb.finish(exit_code=0 if exception[0] is None else 1)
        logger.propagate = True
        for handler in self._handlers:
            logger.removeHandler(handler)
            handler.close()

    def _start_wandb(self):
        mode, in_sweep = self._config.tracking.wandb, "WANDB_SWEEP_ID" in os.environ
        if mode == "auto":
            online = in_sweep or os.environ.get("WANDB_API_KEY")
            mode = os.environ.get("WANDB_MODE") or ("online" if online else "offline")
        if mode == "disabled":
            return None
        import wandb

        id_file = self._folder / "wandb_id"
        run_id = id_file.read_text().strip() if id_file.exists() else uuid.uuid4().hex
        run = wandb.init(
            project=self._config.tracking.wandb_project,
            name=self._folder.parent.name,
            config=self._config.to_dict(),
            dir=str(self._folder),
            id=None if in_sweep else run_id,  # the sweep's agent has given one, in WANDB_RUN_ID
            resume="allow",
            mode=mode,
        )
        id_file.write_text(run.id)
        return run

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Records numbers under names such as `train/loss`, everywhere and as a line of `logs/scalars.jsonl`.

        A run that was killed and went on may have noted a step twice: the later line counts.
        """
        if self._scalars:
            line = json.dumps({"step": step} | {name: float(value) for name, value in values.items()})
            self._scalars.handle(logging.makeLogRecord({"msg": line}))
        if self._events:
            self._events.write(step, values)
        if self._wandb:
            self._wandb.log(values, step=step)

    def checkpoint(self, folder: pathlib.Path, name: str, metadata: dict[str, Any]) -> None:
        """Uploads a folder with the best model as a version of the artifact `name`, letters, digits, `_`, `-` and `.`.

        Only while Weights & Biases is online. The version is `best`, which moves on with the next one, and for good
        the id of the run. It takes the folder's full size there, so this is for the end of a run.
        """
        if not self._wandb or self._wandb.offline:
            return
        import wandb

        try:
            artifact = wandb.Artifact(name, type="model", metadata=metadata)
            artifact.add_dir(str(folder))
            self._wandb.log_artifact(artifact, aliases=["latest", "best", self._wandb.id])
        except (OSError, wandb.Error) as error:  # the files stay where they are
            logger.warning("%s was not uploaded: %s", folder, " ".join(str(error).split()))


class _Forgiving(logging.StreamHandler):
    """Warns once when it cannot write, where `logging` would print a traceback for every line."""

    _failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._failed:
            self._failed = True
            _complain(f"lines of the log are lost: {error}")


class _File(_Forgiving, logging.FileHandler):
    def close(self) -> None:
        with contextlib.suppress(OSError):  # what the full disk did not take before
            super().close()


class _Console(_Forgiving):
    """Lines above the progress bar, not through it."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=self.stream)
            self.flush()
        except Exception:
            self.handleError(record)


def _complain(text: str) -> None:
    """To stderr and not to the log, which may be what is broken; if that is, too, to nobody."""
    with contextlib.suppress(OSError):
        print(f"warning: {text}", file=sys.stderr, flush=True)


class _Events:
    """Scalars for TensorBoard, in files of a folder.

    tensorboardX's own writer leaves them to a thread, which a full disk ends; the next ones then wait for it forever.
    """

    def __init__(self, folder: pathlib.Path):
        folder.mkdir(exist_ok=True)
        self._name = str(folder / f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}")
        self._number, self._writer, self._written, self._failed = 0, None, False, False

    def write(self, step: int, values: dict[str, float]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary
        from tensorboardX.record_writer import RecordWriter

        numbers = [Summary.Value(tag=name, simple_value=float(value)) for name, value in values.items()]
        event = Event(wall_time=time.time(), step=step, summary=Summary(value=numbers))
        try:
            if self._writer is None:
                self._writer, self._written = RecordWriter(f"{self._name}.{self._number:03d}"), False
                self._writer.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
            self._writer.write(event.SerializeToString())
            self._writer.flush()
            self._written = True
        except OSError as error:
            # The file may end in half an event. TensorBoard then goes on with the next one.
            self._writer, self._number = None, self._number + self._written
            if not self._failed:
                self._failed = True
                _complain(f"scalars for TensorBoard are lost: {error}")

    def close(self) -> None:
        if self._writer:
            self._writer.close()


# ------------------------------------------------------------------------------------------------------------ progress

WINDOW_S, WINDOW_STEPS = 60.0, 10  # a speed is that of the last minute, or of that many steps if they take longer


class Progress:
    """A bar on a terminal, otherwise a line now and then: speed, and time left.

        step 500/1000, 812 clips/s, 39 ms a step, MFU 41 %, 3 min left, loss 2.3

    Speeds are those of the last minute, without the first step (it is compiled) and without pauses.

    Args:
      total_steps, done_steps: of the whole run, and those that were done before.
      clips_per_step: of all devices together.
      flops_per_step: of the model, forward and backward, of all devices together; 0: unknown.
      peak_flops: FLOP/s of all devices together, see `peak_flops`; 0: unknown.
      line_every_s: seconds between lines.
      clock: seconds from anywhere.
    """

    def __init__(
        self,
        total_steps: int,
        done_steps: int,
        clips_per_step: int,
        flops_per_step: float = 0.0,
        peak_flops: float = 0.0,
        line_every_s: float = 30.0,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._total, self._done, self._clips = total_steps, done_steps, clips_per_step
        self._flops, self._peak = flops_per_step, peak_flops
        self._clock, self._paused_s = clock, 0.0
        self._ends: collections.deque[float] = collections.deque()  # of recent steps, pauses taken out
        self._line_every_s, self._last_line = line_every_s, clock()
        self._bar = None
        if sys.stderr.isatty() and logger.level <= logging.INFO:  # not in the other processes of a run
            shape = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"
            self._bar = tqdm(total=total_steps, initial=done_steps, dynamic_ncols=True, bar_format=shape)

    def update(self, text: str) -> None:
        """One step is done; `text` says what to show beside the numbers."""
        self._done += 1
        self._ends.append(self._clock() - self._paused_s)
        while len(self._ends) > WINDOW_STEPS + 1 and self._ends[-1] - self._ends[0] > WINDOW_S:
            self._ends.popleft()
        if self._bar is not None:
            self._bar.set_postfix_str(self._numbers(text), refresh=False)
            self._bar.update()
        elif self._clock() - self._last_line > self._line_every_s:
            self._last_line = self._clock()
            logger.info("step %d/%d, %s", self._done, self._total, self._numbers(text))

    def _numbers(self, text: str) -> str:
        if not self.step_s():
            return text
        ms, mfu = 1000 * self.step_s(), self.mfu()
        parts = [f"{self.clips_per_second():.0f} clips/s", f"{ms:.{0 if ms >= 10 else 1}f} ms a step"]
        if mfu is not None:
            parts.append(f"MFU {mfu:.0%}")
        minutes = round((self._total - self._done) * self.step_s() / 60)
        left = f"{minutes} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d} h"
        return ", ".join([*parts, f"{left} left", text])

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """What happens inside is no part of a step: evaluation, checkpoints. Not to be nested."""
        began = self._clock()
        try:
            yield
        finally:
            self._paused_s += self._clock() - began

    def step_s(self) -> float:
        """Seconds a step; 0 before two steps are done."""
        return (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1) if len(self._ends) > 1 else 0.0

    def clips_per_second(self) -> float:
        """0 before two steps are done."""
        return self._clips / self.step_s() if self.step_s() else 0.0

    def mfu(self) -> float | None:
        """Model FLOP utilization, 0 … 1: of the devices' peak, what the model's own operations use (PaLM,
        arXiv:2204.02311, appendix B). None if it is unknown."""
        known = self._flops and self._peak and self.step_s()
        return self._flops / self.step_s() / self._peak if known else None

    def speeds(self) -> dict[str, float]:
        """What is known of them, as scalars: `train/clips_per_second`, `train/step_s`, `train/mfu`."""
        found = {"clips_per_second": self.clips_per_second(), "step_s": self.step_s(), "mfu": self.mfu()}
        return {f"train/{name}": value for name, value in found.items() if value}

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


# Published dense peaks in TFLOP/s, bfloat16 and float32, of what JAX calls a device. By default XLA multiplies float32
# matrices in TF32 on NVIDIA's Ampere and later, in one bfloat16 pass on TPUs, in float32 on older GPUs, and that peak
# stands here (docs.jax.dev, "Matmul precision"). None: the device has no such unit.
# GPUs: NVIDIA's data sheets (AWS's of the A10G), halved where they count 2:4 sparsity. TPUs: cloud.google.com/tpu/docs,
# a page for each; on v2 and v3 a JAX device is one of a chip's two cores.
_PEAKS = (
    (r"\bV100-SXM2\b", None, 15.7),
    (r"\bV100-PCIE\b", None, 14.0),
    (r"\bT4\b", None, 8.1),
    (r"\bA10G\b", 70.0, 35.0),
    (r"\bA100\b", 312.0, 156.0),
    (r"\bL4\b", 121.0, 60.0),
    (r"\bH[12]00 NVL\b", 835.5, 417.5),
    (r"\bH100 PCIe\b", 756.5, 378.0),
    (r"\bH[12]00\b", 989.5, 494.5),
    (r"^TPU v2$", 23.0, 23.0),
    (r"^TPU v3$", 61.5, 61.5),
    (r"^TPU v4$", 275.0, 275.0),
    (r"^TPU v5( lite|e)$", 197.0, 197.0),
    (r"^TPU v5p?$", 459.0, 459.0),
    (r"^TPU v6( lite|e)$", 918.0, 918.0),
)


def peak_flops(device_kind: str, dtype: str) -> float:
    """FLOP/s that a device can do at best in matrix multiplications; 0 if unknown, as for every CPU.

    Args:
      device_kind: as JAX calls it, such as `NVIDIA A100-SXM4-40GB`.
      dtype: of the computation, `bfloat16` or `float32`.
    """
    column = {"bfloat16": 1, "float32": 2}.get(dtype)
    row = next((row for row in _PEAKS if re.search(row[0], device_kind)), None)
    if column is None or row is None or "MIG" in device_kind:  # MIG: some part of a GPU
        return 0.0
    return (row[column] or 0.0) * 1e12
