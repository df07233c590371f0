"""Files that a program was asked for: whole, or not there at all."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

from sousa_jax.errors import InputError


def check_writable(path: pathlib.Path | None, ending: str) -> None:
    """`InputError` before anything is heard, not after; None is not to be written."""
    if path is None:
        return
    if path.suffix != ending:
        raise InputError(f"cannot write {path}: its name must end in {ending}")
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"cannot write {path}: " + ("a folder" if path.is_dir() else f"no folder {path.parent}"))


@contextlib.contextmanager
def finished(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary name beside `path`, which it takes once the block has ended well; else nothing is left. `InputError`
    where the disk refuses."""
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        yield unfinished
        os.replace(unfinished, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        unfinished.unlink(missing_ok=True)
