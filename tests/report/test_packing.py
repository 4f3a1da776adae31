"""Runs packed into one file: the tables made from it are those of the runs."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hrseg_cli.errors import HrsegError
from hrseg_cli.interaction import Click, Trace
from hrseg_cli.recipe import data_folder
from hrseg_cli.report.packing import opened, packed
from hrseg_cli.runs import Run

Command = Callable[..., Any]
TABLES = data_folder("recipes").parent / "docs" / "tables"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The base and one row, one seed each."""
    settings = {
        "model": {"name": "h18s", "file": "x"},
        "metrics": ["iou", "biou"],
        "until": {"iou": 0.9, "biou": 0.9},
        "max_clicks": 3,
        "band": {"ratio": 0.02},
        "protocol": {"name": "plain", "version": 1},
        "seed": 0,
    }
    for row, score in (("base", 0.95), ("t3_lora", 0.5)):
        for part in ("regular", "high"):
            traces = {
                str(k): Trace(
                    *(str(k), "pets", (Click(1, 2, True),) * 3),
                    {"iou": (0.3, score, score), "biou": (0.3, 0.3, score)},
                    *((0.5,) * 3, {}, (9, 9), 5),
                )
                for k in range(4)
            }
            with Run(tmp_path / "runs" / row / "0" / part, "evaluate", settings) as run:
                run.finish(list(traces), traces, keep_masks=False)
    data = {"crop": [320, 480], "parts": [{"dataset": "/home/me/hqseg44k"}]}
    recipe = {"recipe": {"data": data, "model": {"weights": "/home/me/base.safetensors+/home/path.safetensors"}}}
    with Run(tmp_path / "runs" / "t3_lora" / "0" / "train", "adapt", recipe, {"root": "/home/me"}) as run:
        run.summary = {"trained": 5, "gmac": 1.0, "base_gmac": 2.0}
    (tmp_path / "runs" / "t3_lora" / "0" / "train" / "best.safetensors").write_bytes(bytes(100_000))
    return tmp_path / "runs"


def test_tables_are_checked_from_the_packed_runs_alone(hrseg: Command, folder: Path, tmp_path: Path) -> None:
    table, file = tmp_path / "t.md", tmp_path / "t.zip"
    done = hrseg("report", "--paper", folder, "--out", table, "--pack", file)
    assert done.code == 0, done.err
    assert "| + LoRA " in table.read_text()
    folder.rename(tmp_path / "gone")
    assert hrseg("report", "--paper", file, "--check", table).code == 0
    assert hrseg("report", "--tables", "adapters", file, "--check", table).code == 0
    table.write_text(table.read_text().replace("2.00", "1.90"))
    assert hrseg("report", "--paper", file, "--check", table).code == 1


def test_the_file_is_small_always_the_same_and_says_nothing_about_the_machine(folder: Path) -> None:
    data = packed(folder)
    assert data == packed(folder)
    assert len(data) < 10_000
    (folder.parent / "t.zip").write_bytes(data)
    with zipfile.ZipFile(folder.parent / "t.zip") as file:
        assert len(file.namelist()) == 9
        record = json.loads(file.read("runs/t3_lora/0/train/run.json"))
        texts = b"".join(map(file.read, file.namelist()))
    assert record["asked"].keys() == {"command", "settings"}
    assert record["asked"]["settings"]["recipe"]["model"]["weights"] == "base.safetensors+path.safetensors"
    assert b"/home" not in texts


def test_wrong_usage_and_damaged_files_are_one_line(hrseg: Command, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "t.zip").write_bytes(packed(folder)[:-200])
    done = hrseg("report", "--paper", tmp_path / "t.zip")
    assert done.code == 1
    assert "t.zip: damaged or not an archive" in done.err
    assert hrseg("report", folder, "--pack", tmp_path / "u.zip").code == 2
    with pytest.raises(HrsegError, match="no run folders"):
        packed(tmp_path / "runs" / "base" / "0" / "regular" / "none")
    with opened(tmp_path / "none") as same:
        assert same == tmp_path / "none", "whose absence is reported by who reads it"


@pytest.mark.parametrize("table", sorted(TABLES.glob("*.md")), ids=lambda path: path.stem)
def test_committed_tables_are_those_of_their_runs(table: Path, hrseg: Command) -> None:
    kind = table.stem.partition("_")[0]
    plan = kind if kind in ("own", "transformers", "zoo") else "adapters"
    done = hrseg("report", "--tables", plan, table.with_suffix(".zip"), "--check", table)
    assert done.code == 0, done.err
