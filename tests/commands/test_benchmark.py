"""hrseg benchmark: the parts are there, add up, and what is wrong is one line. No absolute times."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]


def test_rows_for_a_pipeline_and_a_table_for_people(hrseg: Command) -> None:
    words = ["-m", "grabcut", "--size", "96x128", "--objects", 1, "--clicks", 2, "--protocol", "plain"]
    done = hrseg("benchmark", *words)
    assert done.code == 0, done.err
    (row,) = (json.loads(line) for line in done.out.splitlines())
    assert (row["model"], row["protocol"], row["size"], row["device"]) == ("grabcut", "plain", "96x128", "cpu")
    for which in ("first", "later"):
        total = row[which].pop("total")
        assert set(row[which]) == {"next_click", "view", "network", "paste", "metrics"}
        assert sum(row[which].values()) == pytest.approx(total, abs=1e-4)  # one click each: medians add up
        assert row[which]["network"] > 0
    assert row["memory_mb"] > 50
    assert "next_click" in done.err


@pytest.mark.parametrize("size", ["1024", "10x10", "axb", "100000x100"])
def test_a_wrong_size_is_one_line(hrseg: Command, size: str) -> None:
    done = hrseg("benchmark", "-m", "grabcut", "--size", size)
    assert done.code == 1
    assert done.err.startswith(f"hrseg: --size {size}: write HEIGHTxWIDTH")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system does not tell a process's memory")
def test_the_peak_of_memory_is_not_the_parents() -> None:
    """``ru_maxrss`` of a child begins at what its parent has held."""
    script = "from hrseg_cli.engine.benchmark import peak_memory; print(peak_memory())"
    held = b"x" * 2**30
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert 50e6 < int(done.stdout) < len(held)
