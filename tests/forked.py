"""Commands in forked children that kill themselves at a given moment: of their own starts they would spend seconds.

Reads one JSON object a line: words, cwd, folder (whose files count), moment (kill before its N-th opening, renaming or
removal of a file there, 0: never) and delay (in seconds, after it). Answers with the process, then with its exit code;
the file ``moments`` in cwd says how many there were in a run that was not killed.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

time.perf_counter = lambda: 0.0  # clicks take no time: what is recorded of them can be compared

EVENTS = ("open", "os.rename", "os.remove", "os.truncate")


def count_moments(folder: str, moment: int, delay: float) -> list[int]:
    seen = [0]

    def die() -> None:
        time.sleep(delay)
        os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in EVENTS or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        path = os.path.abspath(os.fsdecode(arguments[0]))
        if not path.startswith(folder):
            return
        seen[0] += 1
        if seen[0] == moment:
            die() if not delay else threading.Thread(target=die, daemon=True).start()

    sys.addaudithook(hook)
    return seen


def run(words: list[str], cwd: str, folder: str, moment: int, delay: float) -> None:
    from hrseg_cli import cli

    os.chdir(cwd)
    for number, name in ((1, "out.txt"), (2, "err.txt")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = ["hrseg", *words]
    seen = count_moments(folder, moment, delay)
    code: Any = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code
    finally:
        sys.stdout.flush()
        Path("moments").write_text(str(seen[0]))
        os._exit(int(code or 0))


def main() -> None:
    from hrseg_cli.annotate import server  # noqa: F401
    from hrseg_cli.engine import predict, simulate  # noqa: F401
    from hrseg_cli.training import fit

    fit.KEEP_EVERY = 0.2
    simulate.get_context = lambda _: multiprocessing.get_context("fork")  # spawned workers take seconds to import torch
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            run(**json.loads(line))
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
