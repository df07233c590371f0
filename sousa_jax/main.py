"""Runs an experiment from its config.

    python -m sousa_jax.main --config=configs/efficientat_scratch.py[:preset] [--workdir=DIR] [--config.key=value]

Without --workdir the run goes to experiments/{model}_{strategy}_{date}; the same command with the same
--workdir goes on where an interrupted run stopped, --overwrite deletes it and begins anew.

On several machines the same command on each, with a --workdir that all can reach, and --coordinator=auto on TPU pods
and under Slurm, or --coordinator=HOST:PORT --num_processes=N --process_id=0…N-1.
"""

import datetime
import os
import pathlib
import re
import runpy
import sys

import absl.logging
from absl import app, flags
from ml_collections import ConfigDict, config_flags

from sousa_jax.errors import InputError, nearest, one_line_errors

_CONFIG = config_flags.DEFINE_config_file("config", lock_config=True, help_string="configs/NAME.py[:preset]")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run is kept.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Delete the run that is in --workdir.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, or auto where the cluster tells.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes train together.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is.")


def default_workdir(config: ConfigDict, root: pathlib.Path = pathlib.Path("experiments")) -> pathlib.Path:
    """`experiments/{model}_{strategy}_{YYYYMMDD}`, with `_2`, `_3` … where that is taken."""
    name = f"{config.model.name}_{config.strategy}_{datetime.date.today():%Y%m%d}"
    taken = {path.name for path in root.glob(f"{name}*")}
    numbers = (f"_{n}" for n in range(2, len(taken) + 3))
    return next(root / candidate for candidate in (name, *(name + n for n in numbers)) if candidate not in taken)


def check_config_arguments(argv: list[str]) -> None:
    """`InputError` for a config that is not there, an unknown preset, or an unknown key, naming the nearest.

    Done before absl parses the same arguments, whose own errors are tracebacks.
    """
    given = next((arg.removeprefix("--config=") for arg in argv if arg.startswith("--config=")), "")
    if not given:
        raise InputError("no --config given; for example --config=configs/efficientat_scratch.py:smoke")
    path, _, preset = given.partition(":")
    if not pathlib.Path(path).is_file():
        raise InputError(f"there is no config file {path!r} in {pathlib.Path.cwd()}")
    get_config = runpy.run_path(path).get("get_config")
    if get_config is None:
        raise InputError(f"{path} defines no get_config()")
    known = list(_keys(get_config(preset) if preset else get_config()))
    for arg in argv:
        match = re.match(r"--config\.([\w.]+)", arg)
        if match and match[1] not in known:
            raise InputError(
                f"unknown key --config.{match[1]}; nearest: {nearest(match[1], known) or ', '.join(known)}"
            )


def _keys(config: ConfigDict, prefix: str = ""):
    for key, value in config.items():
        yield prefix + key
        if isinstance(value, ConfigDict):
            yield from _keys(value, f"{prefix}{key}.")


def main(_: list[str]) -> None:
    from sousa_jax import devices, train  # late: errors in the arguments should not wait for JAX

    absl.logging.set_verbosity(absl.logging.WARNING)  # Orbax and JAX report every file and backend
    with one_line_errors():
        config = _CONFIG.value
        if config.deterministic:
            devices.use_deterministic_operations()
        if _COORDINATOR.value and not _WORKDIR.value:
            raise InputError("several processes need one --workdir, which all of them can reach")
        devices.join(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
        workdir = pathlib.Path(_WORKDIR.value) if _WORKDIR.value else default_workdir(config)
        sys.exit(train.run(config, workdir, overwrite=_OVERWRITE.value))


def _parse_flags(argv: list[str]) -> list[str]:
    # Keys may stand before their config: ml_collections, which reads sys.argv itself, wants it the other way round.
    sys.argv = argv = argv[:1] + sorted(argv[1:], key=lambda arg: not arg.startswith("--config="))
    with one_line_errors():
        if not {"--help", "-h", "--helpfull"} & set(argv):
            check_config_arguments(argv)
        try:
            return flags.FLAGS(argv)
        except (flags.Error, TypeError, ValueError) as error:
            raise InputError(" ".join(str(error).split())) from None


def _with_huge_pages() -> None:
    """Starts this program again with huge pages for memory, which glibc decides only when a process starts.

    A training step on the CPU takes hundreds of megabytes anew each time; touching them 4 kB at a time can be
    nearly half of its duration (mn04, batch 32, 64 mel bands, 5 ms hop: 460 against 266 ms). Elsewhere the
    variable does nothing.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


if __name__ == "__main__":
    _with_huge_pages()
    app.run(main, flags_parser=_parse_flags)
