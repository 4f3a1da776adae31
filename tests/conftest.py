from __future__ import annotations

import contextlib
import functools
import io
import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

from hrseg_cli import cli
from hrseg_cli.data import procedural

# Tests of commands read the same few drawn images again and again; drawing one takes longer than clicking on it.
procedural.draw = functools.lru_cache(maxsize=64)(procedural.draw)


class Done(NamedTuple):
    """What a command left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


@pytest.fixture
def hrseg(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """The console command, run in this process exactly as the console script runs it."""

    def run(*words: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["hrseg", *map(str, words)])
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                cli.main()
                code = 0
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        return Done(code, out.getvalue(), err.getvalue())

    return run
