"""The errors hrseg raises on purpose.

    HrsegError           exit 1: a problem the user can fix; one line that names the file or option and the fix
    └── UnknownName      exit 2: a name that is not in the catalog, with the closest known one
    Interrupted          exit 130: Ctrl-C or SIGTERM

A message names what to change as a parameter, in backticks: "`out` runs/x: not empty". The command line turns it into a
flag, see :func:`hrseg_cli.commands.options.with_flags`: "--out runs/x: not empty".

Any other exception that reaches the command line is a bug in hrseg; ``--debug`` shows its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable


class HrsegError(Exception):
    """A problem the user can fix. The message is one line and says how."""


class Interrupted(BaseException):
    """The user or the system asked to stop. Not a KeyboardInterrupt, because Typer handles that one on its own."""


class UnknownName(HrsegError):
    """An unknown name, such as that of a model or dataset. The message suggests the nearest known one."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        names = sorted(known)
        near = nearest(name, names)
        guess = f" Did you mean '{near}'?" if near else ""
        super().__init__(f"unknown {kind} '{name}'.{guess} Known: {', '.join(names)}.{' ' + hint if hint else ''}")

    def __reduce__(self) -> tuple[Callable[[str], HrsegError], tuple[str]]:
        return _from_worker, (str(self),)


def _from_worker(line: str) -> UnknownName:
    """Rebuild an error raised in another process from its finished message."""
    error = UnknownName.__new__(UnknownName)
    error.args = (line,)
    return error


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name closest to ``name``, or one that contains it; None when there is none."""
    names = list(known)
    found = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return next(iter([*found, *(one for one in names if len(name) > 2 and name in one)]), None)
