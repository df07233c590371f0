"""Runs an experiment from its config.

    python -m sousa_jax.main --config=configs/efficientat_scratch.py[:preset] [--workdir=DIR] [--config.key=value]

Without --workdir the run goes to experiments/{model}_{strategy}_{date}; the same command with the same
--workdir goes on where an interrupted run stopped.
"""

import datetime
import pathlib
import re
import sys

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from sousa_jax.errors import InputError, nearest, one_line_errors

_CONFIG = config_flags.DEFINE_config_file("config", lock_config=True, help_string="configs/NAME.py[:preset]")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run is kept.")


def default_workdir(config: ConfigDict, root: pathlib.Path = pathlib.Path("experiments")) -> pathlib.Path:
    """`experiments/{model}_{strategy}_{YYYYMMDD}`, with `_2`, `_3` … where that is taken."""
    name = f"{config.model.name}_{config.strategy}_{datetime.date.today():%Y%m%d}"
    taken = {path.name for path in root.glob(f"{name}*")}
    numbers = (f"_{n}" for n in range(2, len(taken) + 3))
    return next(root / candidate for candidate in (name, *(name + n for n in numbers)) if candidate not in taken)


def parse_flags(argv: list[str]) -> list[str]:
    """absl's parsing, with its errors as one line; an unknown key names the nearest known ones."""
    try:
        return flags.FLAGS(argv)
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"no such config file: {error.filename or error}") from None
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(_explain(argv, error)) from None


def _explain(argv: list[str], error: Exception) -> str:
    message = " ".join(str(error).split())
    if config_arg := next((a for a in argv if a.startswith("--config=")), None):
        # Which of the given keys does the config not have?
        probe = flags.FlagValues()
        config_flags.DEFINE_config_file("config", flag_values=probe)
        probe([argv[0], config_arg])
        known = list(_keys(probe.config))
        for match in (re.match(r"--config\.([\w.]+)", a) for a in argv):
            if match and match[1] not in known:
                return f"unknown key --config.{match[1]}; nearest: {nearest(match[1], known) or ', '.join(known)}"
    return message


def _keys(config: ConfigDict, prefix: str = ""):
    for key, value in config.items():
        yield prefix + key
        if isinstance(value, ConfigDict):
            yield from _keys(value, f"{prefix}{key}.")


def main(_: list[str]) -> None:
    with one_line_errors():
        if _CONFIG.value is None:
            raise InputError("no --config given; for example --config=configs/efficientat_scratch.py:smoke")
        from sousa_jax import train  # late: flag errors should not wait for JAX

        config = _CONFIG.value
        sys.exit(train.run(config, pathlib.Path(_WORKDIR.value) if _WORKDIR.value else default_workdir(config)))


def _flags_parser(argv: list[str]) -> list[str]:
    with one_line_errors():
        return parse_flags(argv)


if __name__ == "__main__":
    app.run(main, flags_parser=_flags_parser)
