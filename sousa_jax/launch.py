"""Runs a sweep: many experiments one after another here, or each as a job on Hugging Face's machines.

    python -m sousa_jax.launch --sweep=configs/sweep.py --dry_run              # what would be done, and what it costs
    python -m sousa_jax.launch --sweep=configs/sweep.py --repo=USER/NAME --init_from=htsat=hf://USER/HTSAT
    python -m sousa_jax.launch --sweep=configs/sweep.py --local [--preset=smoke] [--only=ast_lora,beats_lora]

The same command goes on where an earlier one stopped: finished runs and submitted jobs are left alone. Every job
installs this project at the commit that is checked out, trains, and publishes its run to --repo under its name as a
tag; the tag `best` moves to whichever scores highest. HF_TOKEN and WANDB_API_KEY are taken from the environment and
reach a job as its secrets, nothing else.
"""

import argparse
import dataclasses
import json
import pathlib
import re
import runpy
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from sousa_jax import publish
from sousa_jax.errors import InputError, nearest, one_line_errors

SWEEP_JSON = "sweep.json"
HUB = "hf://"


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A row of a sweep.

    name: letters, digits, `_`, `-`, `.`; that of its folder, its job and its tag.
    config: a config file, from where the launcher is called; a job needs one that the package brings, in `configs/`.
    hardware, price: a flavor of Hugging Face Jobs, and dollars an hour for it.
    hours: from, to; an estimate. A job is stopped after one and a half times the longer.
    init_from: a folder with weights or `hf://USER/REPO[@REVISION]`; not used with the preset `smoke`.
    convert: the `--model` for `python -m ports.convert --download`, which makes `init_from` in a job; empty: it cannot.
    overrides: settings by path, `{"train.learning_rate": 3e-4}`.
    """

    name: str
    config: str
    hardware: str
    price: float
    hours: tuple[float, float]
    init_from: str = ""
    convert: str = ""
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def cost(self) -> tuple[float, float]:
        """From, to; dollars."""
        return self.hours[0] * self.price, self.hours[1] * self.price

    @property
    def timeout_s(self) -> int:
        return round(1.5 * self.hours[1] * 3600)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", required=True, help="a file with get_sweep(), such as configs/sweep.py")
    parser.add_argument("--only", default="", metavar="NAME[,NAME]", help="some of its experiments")
    parser.add_argument("--preset", default="full", help="of every config: smoke, small, full")
    parser.add_argument("--local", action="store_true", help="run here, one after another")
    parser.add_argument("--dry_run", action="store_true", help="only say what would be done; needs no token")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("experiments/sweep"), help="default %(default)s"
    )
    parser.add_argument("--repo", help="USER/NAME on the Hub, where the runs are published; jobs need one")
    parser.add_argument("--private", action="store_true", help="if the repository is made")
    parser.add_argument(
        "--init_from",
        action="append",
        default=[],
        metavar="[NAME=]WHERE",
        help="weights for the experiments NAME or NAME_…, without NAME for all that need some: "
        "a folder (--local) or hf://USER/REPO[@REVISION]",
    )
    parser.add_argument("--source", help="URL[@COMMIT] that jobs install from; by default the remote origin and HEAD")
    parser.add_argument("--again", action="store_true", help="also what was submitted before")
    args = parser.parse_args(argv)
    with one_line_errors():
        from sousa_jax import jobs  # late: it imports from here

        if args.repo:
            publish.check_repo(args.repo)
        rows = with_weights(read_sweep(args.sweep, args.only), args.init_from)
        sys.exit(_run_local(rows, args) if args.local else jobs.submit(rows, args))


# ----------------------------------------------------------------------------------------------------------- the sweep


def read_sweep(path: str, only: str = "") -> list[Experiment]:
    """The experiments of a sweep file, or those named in `only`, separated by commas. `InputError` if not there."""
    if not pathlib.Path(path).is_file():
        raise InputError(f"there is no sweep file {path!r} in {pathlib.Path.cwd()}")
    get_sweep = runpy.run_path(path).get("get_sweep")
    rows = get_sweep() if get_sweep else None
    if not rows or not all(isinstance(row, Experiment) for row in rows):
        raise InputError(f"{path} should define get_sweep(), which returns a list of sousa_jax.launch.Experiment")
    names = [row.name for row in rows]
    for name in names:
        if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII) or names.count(name) > 1:
            raise InputError(f"{path}: the name {name!r} occurs twice or is no plain name of a folder")
    wanted = only.split(",") if only else names
    for name in wanted:
        if name not in names:
            raise InputError(f"--only={name} is not in {path}; nearest: {nearest(name, names) or ', '.join(names)}")
    return [row for row in rows if row.name in wanted]


def with_weights(rows: Sequence[Experiment], given: Sequence[str]) -> list[Experiment]:
    """The rows with what --init_from says, `[NAME=]WHERE`. `InputError` if it fits none that needs weights."""
    rows = list(rows)
    for argument in given:
        name, _, where = argument.rpartition("=")
        fitting = [
            i for i, row in enumerate(rows) if row.init_from and f"{row.name}_".startswith(f"{name}_" if name else "")
        ]
        if not fitting or not where:
            raise InputError(f"--init_from={argument}: no experiment {name or 'here'} needs weights")
        for i in fitting:
            rows[i] = dataclasses.replace(rows[i], init_from=where, convert="")
    return rows


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """A table as text, one line each, columns as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


# -------------------------------------------------------------------------------------------------------- its commands


def training_arguments(row: Experiment, preset: str) -> list[str]:
    """What `sousa_jax.main` is given besides --workdir."""
    folder = weights(row, preset)[0]
    return [
        f"--config={row.config}" + (f":{preset}" if preset else ""),
        *(publish.setting(key, value) for key, value in row.overrides.items()),
        *([f"--config.init_from={folder}"] if folder else []),
    ]


def weights(row: Experiment, preset: str) -> tuple[str, list[list[str]]]:
    """The folder that a run begins from, `""` if none, and the commands that bring it from the Hub."""
    if preset == "smoke" or not row.init_from:  # a smoke network is a small one, which released weights do not fit
        return "", []
    if not row.init_from.startswith(HUB):
        return row.init_from, []
    repo, _, revision = row.init_from.removeprefix(HUB).partition("@")
    folder = f"pretrained/{repo.replace('/', '_')}"
    at = [f"--revision={revision}"] if revision else []
    return folder, [["huggingface_hub.cli.hf", "download", repo, *at, f"--local-dir={folder}"]]


# ---------------------------------------------------------------------------------------------------------------- here


class Stop:
    """Passes SIGTERM and Ctrl-C on to the run that is going on, which saves its state; a context manager.

    requested: the signal's number, 0 if there was none.
    """

    def __init__(self) -> None:
        self.requested = 0
        self._child: subprocess.Popen | None = None

    def __enter__(self) -> "Stop":
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: object) -> None:
        self.requested = number
        if self._child is not None:
            self._child.send_signal(number)

    def call(self, command: Sequence[str]) -> int:
        """Runs a command, whose output is shown as it comes; returns its exit code."""
        # A group of its own: the terminal would send Ctrl-C to it as well, and a run that gets two stops unsaved.
        self._child = subprocess.Popen(command, process_group=0)
        if self.requested:  # it came while the process was made
            self._child.terminate()
        try:
            return self._child.wait()
        finally:
            self._child = None


def local_commands(row: Experiment, preset: str, out: pathlib.Path) -> list[list[str]]:
    """What runs an experiment here."""
    modules = [
        *weights(row, preset)[1],
        ["sousa_jax.main", *training_arguments(row, preset), f"--workdir={out / row.name}"],
    ]
    return [[sys.executable, "-m", *module] for module in modules]


def _run_local(rows: Sequence[Experiment], args: argparse.Namespace) -> int:
    """Returns the exit code: 0, 1 if a run failed, 128 and the signal's number if one stopped it."""
    ledger = read_ledger(args.out / SWEEP_JSON)
    for row in rows:
        if row.name in ledger:
            refuse_other_settings(row, args, ledger[row.name]["settings"])
    check_settings(rows, args.preset)
    if args.dry_run:
        for row in rows:
            state = ", finished already" if _scores(args.out / row.name) else ""
            print(f"{row.name}{state}")
            for command in local_commands(row, args.preset, args.out):
                print(f"  python {shlex.join(command[1:])}")
        print("dry run: nothing was started")
        return 0
    api = publish.hub() if args.repo else None  # now, not after hours

    failed: dict[str, str] = {}
    with Stop() as stop:
        for number, row in enumerate(rows, 1):
            heading = f"=== {row.name} ({number} of {len(rows)})"
            if _scores(args.out / row.name):
                print(f"{heading}: finished already", flush=True)
                _record(ledger, row, args, state="finished")
                continue
            print(heading, flush=True)
            _record(ledger, row, args, state="started")
            started = time.perf_counter()
            code = 0
            for command in local_commands(row, args.preset, args.out):
                code = code or stop.call(command)
            finished = code == 0 and _scores(args.out / row.name)
            state = "finished" if finished else "stopped" if stop.requested else "failed"
            _record(ledger, row, args, state=state, minutes=(time.perf_counter() - started) / 60)
            if stop.requested:
                print(f"stopped by {signal.Signals(stop.requested).name} in {row.name}; the same command goes on there")
                return 128 + stop.requested
            if not finished:
                failed[row.name] = f"exit code {code}" if code else "it stopped before its end"
    print(f"\n{leaderboard(ledger, rows)}\nwritten to {args.out / SWEEP_JSON}")
    if api is not None:
        _publish([row for row in rows if row.name not in failed], args, api)
    for name, reason in failed.items():
        print(f"failed: {name}: {reason}; the same command tries again", file=sys.stderr)
    return 1 if failed else 0


def leaderboard(ledger: Mapping[str, Mapping[str, Any]], rows: Sequence[Experiment]) -> str:
    """The finished runs of a sweep, the best first: balanced accuracy on the test split, and minutes."""
    names = [row.name for row in rows if "balanced_accuracy" in ledger.get(row.name, {})]
    lines = [
        (name, f"{entry['balanced_accuracy']:.3f}", f"{entry['first_window']:.3f}", f"{entry['minutes']:.1f}")
        for name in sorted(names, key=lambda name: -ledger[name]["balanced_accuracy"])
        for entry in (ledger[name],)
    ]
    return aligned([("balanced accuracy, test", "all windows", "first window", "minutes"), *lines])


def _record(
    ledger: dict[str, Any], row: Experiment, args: argparse.Namespace, *, state: str, minutes: float = 0
) -> None:
    """Writes what is known of a run into `sweep.json`; minutes add up over interruptions."""
    from sousa_jax.checkpoint import write_json

    minutes += ledger.get(row.name, {}).get("minutes", 0)
    settings = training_arguments(row, args.preset)
    ledger[row.name] = {
        "state": state,
        "minutes": round(minutes, 2),
        "settings": settings,
        **_scores(args.out / row.name),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out / SWEEP_JSON, ledger)


def _scores(run: pathlib.Path) -> dict[str, float]:
    """Balanced accuracies of a finished run, nothing of another."""
    if not (run / publish.TEST_METRICS).is_file():
        return {}
    summary = json.loads((run / publish.TEST_METRICS).read_text("utf-8"))
    first = summary["first_window"]["balanced_accuracy"]
    return {"balanced_accuracy": summary["balanced_accuracy"], "first_window": first}


def _publish(rows: Sequence[Experiment], args: argparse.Namespace, api: Any) -> None:
    """Every run under its name as a tag, the best last: it is also what the repository shows, and tagged `best`."""
    rows = sorted(rows, key=lambda row: _scores(args.out / row.name)["balanced_accuracy"])
    for row in rows:
        run = args.out / row.name
        tags = [row.name, *(["best"] if row is rows[-1] else [])]
        folder = publish.assemble(run, run / "publish", args.repo)
        print(f"published {publish.upload(folder, args.repo, api, *tags, private=args.private)}", flush=True)


# ---------------------------------------------------------------------------------------------------------------- both


def read_ledger(path: pathlib.Path) -> dict[str, Any]:
    """What an earlier call noted in `sweep.json` or `jobs.json`, by experiment; empty if there was none."""
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def refuse_other_settings(row: Experiment, args: argparse.Namespace, before: list[str]) -> None:
    """`InputError` if what an earlier call did under this name is not what is asked for now."""
    now = training_arguments(row, args.preset)
    if before != now:
        was, is_now = shlex.join(before), shlex.join(now)
        raise InputError(f"{row.name} is in {args.out} with `{was}`, not `{is_now}`; choose another --out")


def check_settings(rows: Sequence[Experiment], preset: str) -> None:
    """`InputError` for a config, preset or setting that is not there, before the first run begins."""
    from sousa_jax.main import check_config_arguments

    for row in rows:
        arguments = training_arguments(row, preset)
        if any(publish.hidden(argument) != argument for argument in arguments):
            raise InputError(f"{row.name}: the value of a secret is among its settings")
        try:
            check_config_arguments(arguments)
        except InputError as error:
            raise InputError(f"{row.name}: {error}") from None


if __name__ == "__main__":
    from sousa_jax import launch  # sweep files import `Experiment` from there: it must be the same class here

    launch.main()
