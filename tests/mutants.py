"""A mutation run: small changes to the code, one at a time, and whether the tests of the same room notice.

    python tests/mutants.py --seed 0 --count 100 [--rooms clicks,session] [--out survivors.txt]

A change swaps a comparison, an operator, a number or a boolean of one module, in a copy of the source. The room's
tests then run until the first failure. A change is noticed when they fail, or take ten times as long. Prints a line per
change, with its place, and the share noticed; the exit code is 1 below 95 %, and 2 if tests fail without any change.
pytest runs 100 of them under ``-m slow``.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Room -> its modules and the quickest tests that must notice.
ROOMS: dict[str, tuple[list[str], list[str]]] = {
    "clicks": (
        ["clicks/annotator.py", "clicks/sampler.py", "clicks/files.py"],
        ["tests/clicks/test_annotator.py", "tests/clicks/test_sampler.py", "tests/clicks/test_files.py"],
    ),
    "session": (["engine/session.py"], ["tests/engine/test_session.py", "tests/engine/test_refining.py"]),
    "views": (["engine/views.py"], ["tests/engine/test_views.py", "tests/engine/test_session.py"]),
    "metrics": (["metrics/masks.py", "metrics/noc.py"], ["tests/metrics"]),
    "losses": (["losses.py"], ["tests/test_losses.py"]),
    "runs": (
        ["runs.py", "interaction.py"],
        ["tests/test_runs.py", "tests/test_interaction.py", "tests/commands/test_evaluate.py"],
    ),
    "report": (["report/table.py", "report/write.py"], ["tests/report/test_table.py", "tests/report/test_write.py"]),
    "lora": (["adapters/lora.py"], ["tests/adapters/test_lora.py"]),
}
SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Div,
    ast.And: ast.Or, ast.Or: ast.And, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip


def places(tree: ast.Module) -> Iterator[tuple[ast.AST, str, int | None]]:
    """(node, field, index) of everything that can be changed, except in annotations, messages and defaults of None."""
    skipped = {id(inner) for node in ast.walk(tree) for part in _untested(node) for inner in ast.walk(part)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Compare):
            yield from ((node, "ops", k) for k, op in enumerate(node.ops) if type(op) in SWAPS)
        elif isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in SWAPS:
            yield node, "op", None
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
            yield node, "value", None


def _untested(node: ast.AST) -> Iterator[ast.AST]:
    """Parts of a node that say something to people or type checkers."""
    if isinstance(node, ast.Raise | ast.JoinedStr | ast.Assert):
        yield node
    if isinstance(node, ast.AnnAssign | ast.arg) and node.annotation:
        yield node.annotation
    if isinstance(node, ast.keyword) and node.arg == "strict":  # of zip: a check of the code by itself
        yield node.value
    if isinstance(node, ast.FunctionDef) and node.returns:
        yield node.returns
    if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("warning", "info", "debug"):
        yield node


def change(source: str, which: int) -> tuple[str, str]:
    """The source after its change number ``which``, and a line that describes the change."""
    tree = ast.parse(source)
    node, field, index = list(places(tree))[which]
    line = getattr(node, "lineno", 0)
    before = ast.unparse(node)
    old = getattr(node, field)
    if field == "ops":
        assert index is not None
        old[index] = SWAPS[type(old[index])]()
    elif field == "op":
        node.op = SWAPS[type(old)]()  # type: ignore[attr-defined]
    else:
        node.value = not old if isinstance(old, bool) else old + 1 if isinstance(old, int) else old * 0.8  # type: ignore[attr-defined]
    return ast.unparse(tree), f"line {line}: {before} -> {ast.unparse(node)}"


def noticed(copy: Path, tests: list[str], seconds: float) -> bool:
    """Whether the tests fail, or do not end within that time, on the changed copy."""
    words = ["-m", "pytest", "-q", "-x", "-p", "no:xdist", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    nowhere = subprocess.DEVNULL
    child = subprocess.Popen(
        [sys.executable, *words], cwd=copy, env=environment, stdout=nowhere, stderr=nowhere, start_new_session=True
    )
    try:
        return child.wait(seconds) != 0
    except subprocess.TimeoutExpired:
        return True
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # commands that the tests have started, too
        child.wait()


def copied(place: Path) -> Path:
    """A copy of the source, with what its tests need."""
    hidden = {"data", "runs"}  # of users; packages of these names lie deeper

    def left_out(folder: str, names: list[str]) -> list[str]:
        top = Path(folder) == ROOT
        return [name for name in names if name.startswith(".") or name == "__pycache__" or (top and name in hidden)]

    shutil.copytree(ROOT, place, ignore=left_out)
    return place


def main() -> int:
    """Run as the module's docstring says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--rooms", default=",".join(ROOMS))
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    chance, rooms = random.Random(asked.seed), asked.rooms.split(",")
    found = 0
    survivors: list[str] = []
    with tempfile.TemporaryDirectory() as place:
        copy = copied(Path(place) / "hrseg")
        allowed: dict[str, float] = {}
        for room in rooms:
            start = time.monotonic()
            if noticed(copy, ROOMS[room][1], 3600):
                print(f"the tests of {room} fail without any change: {' '.join(ROOMS[room][1])}")
                return 2
            allowed[room] = 60 + 10 * (time.monotonic() - start)
            print(f"{room}: {time.monotonic() - start:.0f} s without a change", flush=True)
        for number in range(asked.count):
            room = rooms[number % len(rooms)]
            modules, tests = ROOMS[room]
            name = chance.choice(modules)
            path = copy / "hrseg_cli" / name
            source = path.read_text()
            changed, what = change(source, chance.randrange(len(list(places(ast.parse(source))))))
            path.write_text(changed)
            seen = noticed(copy, tests, allowed[room])
            path.write_text(source)
            found += seen
            if not seen:
                survivors.append(f"{name}, {what}")
            print(f"{number + 1}/{asked.count} {'noticed' if seen else 'SURVIVED'} {name}, {what}", flush=True)
    if asked.out:
        asked.out.write_text("".join(f"{line}\n" for line in survivors))
    print(f"{found} of {asked.count} noticed")
    return int(found < 0.95 * asked.count)


if __name__ == "__main__":
    sys.exit(main())
