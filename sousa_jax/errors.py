"""How the programs of this package refuse bad input: one line, no traceback, exit code 2."""

import contextlib
import difflib
import sys
from collections.abc import Iterable, Iterator


class InputError(Exception):
    """Something that the user gave is wrong. The message is one line that a user can act on:
    what was found, what was expected, what to do."""


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """`'x', 'y'`: the known names most like `name`, for an error message; `""` if none is near."""
    return ", ".join(repr(k) for k in difflib.get_close_matches(name, list(known), n=count))


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Wraps a program's main: an `InputError` becomes `error: …` on stderr and exit code 2."""
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
