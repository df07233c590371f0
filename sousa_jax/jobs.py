"""A sweep as jobs on Hugging Face's machines: what each costs, the script that it runs, and its submission.

`python -m sousa_jax.launch` is the program. The values of secrets go to the Hub as the job's secrets and nowhere else.
"""

import argparse
import contextlib
import datetime
import json
import os
import pathlib
import re
import shlex
import string
import subprocess
import tempfile
import urllib.parse
from collections.abc import Iterator, Sequence
from typing import Any

from sousa_jax import publish
from sousa_jax.errors import InputError, nearest
from sousa_jax.launch import (
    Experiment,
    aligned,
    check_settings,
    read_ledger,
    refuse_other_settings,
    training_arguments,
    weights,
)

ROOT = pathlib.Path(__file__).resolve().parents[1]
JOBS_JSON = "jobs.json"


def submit(rows: Sequence[Experiment], args: argparse.Namespace) -> int:
    """Says what the jobs cost, then makes all of their scripts, then submits them. Returns the exit code."""
    print(cost_table(rows), flush=True)
    ledger = read_ledger(args.out / JOBS_JSON)
    todo = [row for row in rows if args.again or row.name not in ledger]
    for row in rows:
        if row not in todo:
            refuse_other_settings(row, args, ledger[row.name]["settings"])
            print(f"{row.name}: already submitted, {ledger[row.name]['url']}")
    check_settings(todo, args.preset)
    api = None if args.dry_run or not todo else publish.hub()
    source, scripts = "https://HOST/PATH@COMMIT", {}
    if todo:
        with _noted(args.dry_run):
            source = job_source(args.source)
        with _noted(args.dry_run):
            if not args.repo:
                raise InputError("a job's machine is gone when it ends; say where to publish: --repo=USER/NAME")
    for row in todo:
        with _noted(args.dry_run):
            commands = job_commands(row, args.preset, args.repo or "USER/NAME", args.private)
            scripts[row.name] = job_script(row.name, commands, source)
            if args.dry_run:
                print(f"\n{row.name}: {row.hardware}, stopped after {row.timeout_s / 3600:g} h, installs {source}")
                print("\n".join(f"  python -m {shlex.join(command)}" for command in commands))
    if args.dry_run:
        print(f"\nsecrets, if they are in the environment: {', '.join(publish.SECRETS)}")
        print("dry run: nothing was submitted")
    elif todo:
        _submit_scripts(todo, scripts, source, ledger, args, api)
    return 0


@contextlib.contextmanager
def _noted(dry_run: bool) -> Iterator[None]:
    """What would stop a submission is only said in a dry run, which goes on."""
    try:
        yield
    except InputError as error:
        if not dry_run:
            raise
        print(f"\nnot ready: {error}")


def _submit_scripts(rows, scripts: dict[str, str], source: str, ledger: dict[str, Any], args, api) -> None:
    """One job each; `jobs.json` is written after every single one, so that none is forgotten."""
    from sousa_jax.checkpoint import write_json

    commit = source.rpartition("@")[2]
    if _git("status", "--porcelain", "--untracked-files=no"):
        print(f"note: jobs get the commit {commit[:12]}; what is not committed does not reach them")
    if not _git("branch", "--remotes", "--contains", commit):
        print("note: no remote branch known here contains that commit; a job that cannot fetch it fails at once")
    secrets = {name: os.environ[name] for name in publish.SECRETS if os.environ.get(name)}
    args.out.mkdir(parents=True, exist_ok=True)
    for row in rows:
        with tempfile.TemporaryDirectory() as folder, publish.hub_errors(f"{row.name} was not submitted"):
            script = pathlib.Path(folder, f"{row.name}.py")
            script.write_text(scripts[row.name], "utf-8")
            job = api.run_uv_job(
                str(script),
                flavor=row.hardware,
                timeout=row.timeout_s,
                secrets=secrets,
                env={"PYTHONUNBUFFERED": "1"},
                name=row.name,
                labels={"project": "sousa-jax", "preset": args.preset or "none"},
            )
        ledger[row.name] = {
            "id": job.id,
            "url": job.url,
            "submitted": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "source": source,
            "settings": training_arguments(row, args.preset),
        }
        write_json(args.out / JOBS_JSON, ledger)
        print(f"{row.name}: submitted, {job.url}", flush=True)


# ---------------------------------------------------------------------------------------------------------- its pieces


def cost_table(rows: Sequence[Experiment]) -> str:
    """What each runs on, for how long and at what cost, and the total."""
    lines = [(row.name, row.hardware, f"{row.hours[0]:g} to {row.hours[1]:g} h", _dollars(row.cost)) for row in rows]
    total = tuple(sum(row.cost[i] for row in rows) for i in (0, 1))
    return aligned([("experiment", "hardware", "hours", "cost"), *lines, ("total", "", "", _dollars(total))])


def _dollars(cost: tuple[float, float]) -> str:
    return f"${cost[0]:g} to {cost[1]:g}"


def job_commands(row: Experiment, preset: str, repo: str, private: bool = False) -> list[list[str]]:
    """What a job does, each to be put behind `python -m`.

    `InputError` if its hardware is unknown, or if it could not get its config or its weights.
    """
    if not re.fullmatch(r"configs/[\w.-]+\.py", row.config):
        raise InputError(f"{row.name}: a job only has the configs that the package brings, not {row.config}")
    from huggingface_hub import JobHardware

    flavors = [flavor.value for flavor in JobHardware]
    if row.hardware not in flavors:
        raise InputError(
            f"{row.name}: no hardware is called {row.hardware!r}; nearest: {nearest(row.hardware, flavors)}"
        )
    folder, commands = weights(row, preset)
    if folder and not commands:
        if not row.convert:
            name = row.name.split("_")[0]
            raise InputError(
                f"{row.name}: a job cannot get {folder}, no program may download the official file. Convert it here "
                f"(python -m ports.convert), put the folder on the Hub (hf upload USER/REPO {folder}), then give "
                f"--init_from={name}=hf://USER/REPO"
            )
        commands = [["ports.convert", f"--model={row.convert}", "--download", f"--out={folder}"]]
    run = f"experiments/{row.name}"
    train = ["sousa_jax.main", *training_arguments(row, preset), f"--workdir={run}"]
    bring_home = ["sousa_jax.publish", run, f"--repo={repo}", f"--tag={row.name}", "--best"]
    return [*commands, train, [*bring_home, "--private"] if private else bring_home]


def job_script(name: str, commands: Sequence[Sequence[str]], source: str) -> str:
    """The script of a job, which `uv run` gives the packages that it names.

    source: `URL@COMMIT`, where it installs this project from. `InputError` if a secret is in that address.
    """
    dependencies = [f"sousa-jax[gpu] @ git+{source}"]
    if any(command[0] == "ports.convert" for command in commands):
        # PyTorch reads the official file on the CPU; its build for CUDA would want other libraries than JAX's.
        dependencies = [f"sousa-jax[gpu,ports] @ git+{source}", "torch"]
    listed = "[\n" + "".join(f"    {json.dumps(command)},\n" for command in commands) + "]"
    template = string.Template(pathlib.Path(__file__).with_name("job_script.txt").read_text("utf-8"))
    script = template.substitute(name=name, dependencies=json.dumps(dependencies), commands=listed)
    if publish.hidden(script) != script:
        raise InputError(f"{name}: the value of a secret would be in its script; nothing was submitted")
    return script


def job_source(given: str | None) -> str:
    """`URL@COMMIT` of --source, or of this clone's remote `origin` and HEAD; never with a credential in it.

    `InputError` if there is no clone, or if a machine elsewhere could not read the address.
    """
    given, _, commit = re.fullmatch(r"(.*?)(@([0-9a-f]{7,40}))?", given or _git("remote", "get-url", "origin")).groups()
    commit = commit or _git("rev-parse", "HEAD")
    if not given or not commit:
        raise InputError("jobs install from a Git address and there is no remote here; give --source=URL@COMMIT")
    over_ssh = re.fullmatch(r"(?:ssh://)?git@([\w.-]+)[:/]([\w./~-]+)", given)  # a job has no key for it
    url = urllib.parse.urlsplit(f"https://{over_ssh[1]}/{over_ssh[2]}" if over_ssh else given)
    public = f"https://{url.netloc.rpartition('@')[2]}{url.path}"  # what stands before the @ is a name and a password
    if url.scheme != "https" or url.query or url.fragment or not re.fullmatch(r"https://[\w.:/~-]+", public, re.ASCII):
        raise InputError(
            "jobs install from https://HOST/PATH without a token in it, and the address is not one: --source"
        )
    return f"{public}@{commit}"


def _git(*args: str) -> str:
    """What Git answers about the clone that this file lies in, `""` if it lies in none."""

    def ask(*args: str) -> str:
        try:
            done = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True)
        except OSError:  # no Git
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    # An installed package may lie inside another project's clone.
    return ask(*args) if ask("rev-parse", "--show-toplevel") == str(ROOT) else ""
