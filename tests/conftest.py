from __future__ import annotations

import contextlib
import functools
import io
import multiprocessing
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
def quick_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker processes forked from one that has imported PyTorch, which each spawned one would take seconds for."""
    from hrseg_cli.engine import benchmark, simulate

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hrseg_cli.engine.benchmark", "hrseg_cli.engine.simulate"])
    for module in (benchmark, simulate):
        monkeypatch.setattr(module, "get_context", lambda _: context)


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
