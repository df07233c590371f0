"""Where official checkpoints come from (`sources.toml`), and how to fetch one."""

import functools
import importlib.resources
import os
import pathlib
import tomllib
from typing import Any

from sousa_jax.errors import InputError, nearest

CACHE = pathlib.Path("~/.cache/sousa_jax/checkpoints")


@functools.cache
def _listed() -> dict[str, dict[str, Any]]:
    return tomllib.loads(importlib.resources.files("ports").joinpath("sources.toml").read_text("utf-8"))


def files(model: str) -> dict[str, dict[str, Any]]:
    """A model's official files, the default one first: name to url list, page, licence, citation, and where known
    variant, sha256 and reported figures."""
    about = dict(_listed()[model])
    entries, base_url = about.pop("files"), about.pop("base_url", None)
    return {
        entry["name"]: {**about, **entry, "urls": entry.get("urls") or ([base_url + entry["name"]] if base_url else [])}
        for entry in entries
    }


def source_of(model: str, file_name: str, sha256: str) -> dict[str, Any] | None:
    """The official file that this one is: by its sum; by its name only where no sum is listed. None if neither fits."""
    for name, source in files(model).items():
        if source.get("sha256", sha256) == sha256 and ("sha256" in source or name == file_name):
            return source
    return None


def download(model: str, file_name: str = "", folder: str | os.PathLike = CACHE) -> pathlib.Path:
    """Fetches an official file into a folder, unless it is there already; checks its sha256.

    Args:
      model: a table of `sources.toml`.
      file_name: one of its files; empty for the first.
      folder: is made if it does not exist.

    Raises `InputError` if the name is unknown, if there is no address that a program can fetch from, if no address
    answers, or if the sum is another one (what came is deleted).
    """
    try:
        import pooch
    except ImportError as error:
        raise InputError("downloads need pooch: pip install 'sousa-jax[ports]'") from error
    listed = files(model)
    name = file_name or next(iter(listed))
    if name not in listed:
        raise InputError(f"{name!r} is no official file of {model}; nearest: {nearest(name, listed) or list(listed)}")
    source = listed[name]
    by_hand = f"get it by hand from {source['page']}, then give --checkpoint={name}"
    if not source["urls"]:
        raise InputError(f"no program can fetch {name}: {by_hand}")
    expected = source.get("sha256")
    pooch.get_logger().setLevel("WARNING")  # the progress bar says what it would
    folder = pathlib.Path(folder).expanduser() / model
    failures = []
    for url in source["urls"]:
        try:
            path = pooch.retrieve(url, f"sha256:{expected}" if expected else None, name, folder, progressbar=True)
        except OSError as error:  # every failure of the network is one: requests' exceptions are OSErrors
            failures.append(f"{url}: {_reason(error)}")
        except ValueError as error:  # pooch's word for another sum
            raise InputError(f"{url} gave another file than {name}, not of sha256 {expected}: deleted") from error
        else:
            if not expected:
                print(f"warning: no sha256 is known for {name}, it was not checked")
            return pathlib.Path(path)
    raise InputError(f"could not download {name} ({'; '.join(failures)}); {by_hand}")


def _reason(error: OSError) -> str:
    """The first line of an exception of requests, without its nested representations."""
    response = getattr(error, "response", None)
    return f"HTTP {response.status_code}" if response is not None else type(error).__name__
