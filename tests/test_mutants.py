"""The tests notice small changes: see mutants.py."""

from __future__ import annotations

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
@pytest.mark.timeout(36_000)
def test_ninety_five_of_a_hundred_changes_are_noticed(tmp_path: Path) -> None:
    words = [sys.executable, Path(mutants.__file__), "--count", "100", "--out", tmp_path / "survivors.txt"]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, (tmp_path / "survivors.txt").read_text()
