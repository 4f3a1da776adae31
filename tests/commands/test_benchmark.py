"""hrseg benchmark: the parts are there, add up, and what is wrong is one line. No absolute times."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch

from hrseg_cli.engine import benchmark
from hrseg_cli.engine.runtimes import open_model
from hrseg_cli.recipe import load_protocol

Command = Callable[..., Any]


def test_rows_for_a_pipeline_and_a_table_for_people(hrseg: Command) -> None:
    """The peak of memory is that of the measuring process: ``ru_maxrss`` of a child begins at what its parent has held,
    here a gigabyte."""
    held = b"x" * 2**30
    words = ["-m", "grabcut", "--size", "96x128", "--objects", 1, "--clicks", 2, "--protocol", "plain"]
    done = hrseg("benchmark", *words)
    assert done.code == 0, done.err
    (row,) = (json.loads(line) for line in done.out.splitlines())
    told = [row[name] for name in ("model", "protocol", "size", "device", "runtime", "precision")]
    assert told == ["grabcut", "plain", "96x128", "cpu", "torch", "fp32"]
    for which in ("first", "later"):
        total = row[which].pop("total")
        assert set(row[which]) == {"next_click", "view", "encode", "network", "paste", "metrics"}
        assert sum(row[which].values()) == pytest.approx(total, abs=1e-4)  # one click each: medians add up
        assert row[which]["network"] > 0
    assert 50 < row["memory_mb"] < len(held) / 1e6
    assert "next_click" in done.err


def test_it_measures_the_network_that_commands_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """The form made for answering, in the runtime and the precision asked for, as reproducible as evaluate's."""
    opened: list[tuple[Any, ...]] = []

    def seen(*asked: Any) -> tuple[Any, dict[str, Any]]:
        opened.append((*asked, torch.backends.cudnn.deterministic))
        return open_model(*asked)

    monkeypatch.setattr(benchmark, "open_model", seen)
    threads = torch.get_num_threads(), cv2.getNumThreads()
    case = benchmark.Case("grabcut", load_protocol("plain"), (64, 64), "cpu", ("iou",), 1, 1, 1, "torch", "fp32")
    row = benchmark.measure(case)
    torch.set_num_threads(threads[0])
    cv2.setNumThreads(threads[1])
    assert opened == [("grabcut", "torch", "cpu", "fp32", True)]
    assert (row["runtime"], row["precision"]) == ("torch", "fp32")


def test_runtimes_beside_precisions(hrseg: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pair that can be: others than torch have one row; a wish that cannot be fulfilled stays, to be refused."""
    part = dict.fromkeys(("next_click", "total"), 0.0)

    def fake(case: benchmark.Case) -> dict[str, Any]:
        row = {"model": "", "protocol": "", "size": "", "device": "", "decode": 0.0, "first": part, "memory_mb": 1}
        return {**row, "runtime": case.runtime or "torch", "precision": case.precision}

    monkeypatch.setattr(benchmark, "measure_apart", fake)
    both, graph = ["--precision", "fp32", "--precision", "bf16"], ["--runtime", "openvino"]
    for words, expected in (
        ([], [("torch", "fp32")]),
        (["--runtime", "torch", *graph, *both], [("torch", "fp32"), ("torch", "bf16"), ("openvino", "fp32")]),
        ([*graph, "--precision", "bf16"], [("openvino", "bf16")]),
    ):
        done = hrseg("benchmark", *words)
        assert done.code == 0, done.err
        rows = [json.loads(line) for line in done.out.splitlines()]
        assert [(row["runtime"], row["precision"]) for row in rows] == expected
        assert "precision" in done.err


@pytest.mark.parametrize("size", ["1024", "10x10", "axb", "100000x100"])
def test_a_wrong_size_is_one_line(hrseg: Command, size: str) -> None:
    done = hrseg("benchmark", "-m", "grabcut", "--size", size)
    assert done.code == 1
    assert done.err.startswith(f"hrseg: --size {size}: write HEIGHTxWIDTH")


def test_an_unknown_name_is_wrong_usage_from_another_process_too(hrseg: Command, quick_workers: None) -> None:
    done = hrseg("benchmark", "-m", "grabcutt")
    assert done.code == 2
    assert done.err.startswith("hrseg: unknown model 'grabcutt'. Did you mean 'grabcut'?")


def test_a_system_that_does_not_tell_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has neither /proc nor the module ``resource``."""
    monkeypatch.setattr(Path, "exists", lambda _: False)
    monkeypatch.setitem(sys.modules, "resource", None)
    assert benchmark.peak_memory() is None
