"""The tests notice small changes: see mutants.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import mutants
import pytest


def test_every_change_is_one_change() -> None:
    source = "def f(a: int = 1) -> bool:\n    return a < 2 and a + 1 == 3\n"
    found = [mutants.change(source, which)[1] for which in range(8)]
    assert len(set(found)) == 8
    assert all(line.startswith("line ") for line in found)


def test_lines_are_those_that_execute_the_change() -> None:
    """Tests that execute others say nothing about it."""
    source = "@a\ndef f(\n    b=1,\n):\n    if (\n        b == 2\n    ):\n        c = [\n            3,\n        ]\n"
    source += "C = 4\nc = (\n    C)\n"
    lines = {what: sorted(lines) for _, what, lines in (mutants.change(source, which) for which in range(5))}
    assert {what.partition(": ")[2]: (one[0], one[-1]) for what, one in lines.items()} == {
        "1 -> 2": (1, 4), "b == 2 -> b != 2": (5, 7), "2 -> 3": (5, 7), "3 -> 4": (8, 10), "4 -> 5": (11, 13)
    }  # fmt: skip


@pytest.mark.parametrize("module", sorted({one.module for one in mutants.UNSEEN}))
def test_what_cannot_be_noticed_is_still_there(module: str) -> None:
    """A list of changes without effect must not outlive the code: each is exactly one of those that can be drawn."""
    source = (mutants.ROOT / "hrseg_cli" / module).read_text()
    listed = [one for one in mutants.UNSEEN if one.module == module]
    found = mutants.unseen(module, source)
    assert sorted(found.values()) == sorted(listed)
    assert not mutants.unseen(module, "")


@pytest.mark.slow
def test_the_record_has_what_each_test_executes(tmp_path: Path) -> None:
    """Shared fixtures count for all tests of their file, threads for their test; modules and classes do not count."""
    (tmp_path / "drawn").mkdir()
    (tmp_path / "drawn" / "a.py").write_text("def f(x):\n    if x:\n        return 1\n    return 2\n\nN = 1\n")
    (tmp_path / "test_a.py").write_text(
        "import pytest, threading\n"
        "@pytest.fixture(scope='module')\n"
        "def one():\n    from drawn.a import f\n    return f(1)\n"
        "def test_1(one): pass\n"
        "def test_2(one): pass\n"
        "def test_3():\n    from drawn.a import f\n    t = threading.Thread(target=f, args=(0,))\n"
        "    t.start()\n    t.join()\n"
    )
    out = tmp_path / "out.json"
    assert mutants.passes(tmp_path, ["test_a.py"], mutants.Recorder(tmp_path / "drawn", out))
    lines = {test: [line for _, line in executed] for test, (_, executed) in json.loads(out.read_text()).items()}
    assert lines == {"test_a.py::test_1": [1, 2, 3], "test_a.py::test_2": [1, 2, 3], "test_a.py::test_3": [1, 2, 3, 4]}
    (tmp_path / "drawn" / "a.py").write_text("def f(x): raise ValueError\n")
    assert not mutants.passes(tmp_path, ["test_a.py"], mutants.Chosen({"test_a.py::test_2": 1}))
    assert mutants.passes(tmp_path, ["test_a.py"], mutants.Chosen({}))


@pytest.mark.slow
def test_the_copy_has_all_packages_and_none_of_the_users_data(tmp_path: Path) -> None:
    """Without one, every test fails on every change, as if it were noticed."""
    copy = mutants.copied(tmp_path / "copy")
    for modules, tests in mutants.ROOMS.values():
        assert all((copy / "hrseg_cli" / name).is_file() for name in modules)
        assert all((copy / name).exists() for name in tests)
    assert {path.name for path in (copy / "hrseg_cli").iterdir()} >= {"data", "runs.py"}
    assert not any((copy / name).exists() for name in (".git", "runs", "data"))


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_ninety_five_of_a_hundred_changes_are_noticed(tmp_path: Path) -> None:
    words = [sys.executable, Path(mutants.__file__), "--count", "100", "--out", tmp_path / "survivors.txt"]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, (tmp_path / "survivors.txt").read_text()
