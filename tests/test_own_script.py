"""recipes/own: own.sh adapts to one share of a folder and counts clicks on the other; its recipe and its tables."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hrseg_cli.catalog import ADAPTERS
from hrseg_cli.recipe import data_folder, load_recipe, load_tables

PLACE = data_folder("recipes") / "own"
ROWS = ["base", "lora", "conv", "pointrend", "head", "bn", "bitfit", "full"]
QUICK = (
    "data.crop=[32,32] data.epoch=2 batch=2 data.min_area=20 clicks.rounds=0 optim.warmup=0 validation.objects=1 "
    "validation.max_clicks=1"
)


def own(tmp_path: Path, body: str, data: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run own.sh with a hrseg that notes what it was asked for."""
    (tmp_path / "hrseg").write_text(f'#!/bin/sh\necho "$*" >>{tmp_path}/calls\n{body}\n')
    (tmp_path / "hrseg").chmod(0o755)
    paths = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "OUT": str(tmp_path / "out")}
    return subprocess.run(
        [PLACE / "own.sh", data], env={**os.environ, **paths, **environment}, capture_output=True, text=True
    )


def calls_in(tmp_path: Path) -> list[str]:
    return (tmp_path / "calls").read_text().splitlines()


def test_what_is_evaluated_on_chooses_nothing() -> None:
    recipe = load_recipe("adapt_own")
    assert recipe.validation.datasets == ["samples"]
    assert recipe.data.held_out == 0
    assert recipe.validation.patience is None


def test_tables_have_a_row_for_each_adapter_that_suits_the_base() -> None:
    plan = load_tables("own")
    assert plan.rows == ROWS
    assert set(ADAPTERS) - set(ROWS) == {"toast", "toast_lite"}  # for Vision Transformers


def test_each_row_is_trained_on_one_share_and_evaluated_on_the_other(tmp_path: Path) -> None:
    done = own(tmp_path, "exit 0", "my photos", SHARE="0.4")
    assert done.returncode == 0, done.stderr
    trained = [call for call in calls_in(tmp_path) if call.startswith("adapt")]
    evaluated = [call for call in calls_in(tmp_path) if call.startswith("evaluate")]
    assert [call.split("--adapter ")[1].split()[0] for call in trained] == ROWS[1:]
    assert all("--dataset my photos:kept=0.4 " in call for call in trained)
    assert len(evaluated) == len(ROWS)
    assert all("--dataset my photos:held=0.4 " in call for call in evaluated)
    assert all("last.safetensors" in call for call in evaluated[1:])


def test_options_of_a_dataset_are_kept(tmp_path: Path) -> None:
    own(tmp_path, "exit 0", "hands=pictures:category=hand", ROWS="base")
    assert "--dataset hands=pictures:category=hand,held=0.5 " in calls_in(tmp_path)[0]


def test_a_failed_row_is_repeated_and_finished_ones_are_not(tmp_path: Path) -> None:
    assert own(tmp_path, f'[ "$(wc -l <{tmp_path}/calls)" != 3 ] || exit 1', "photos", ROWS="base lora").returncode
    (tmp_path / "calls").rename(tmp_path / "first")
    assert not own(tmp_path, "exit 0", "photos", ROWS="base lora").returncode
    assert [call.split()[0] for call in calls_in(tmp_path)] == ["evaluate", "report", "report"]


def test_without_a_folder_it_says_what_to_type(tmp_path: Path) -> None:
    refused = own(tmp_path, "exit 0", "")
    assert refused.returncode == 2
    assert "make own DATA=folder" in refused.stderr


@pytest.mark.slow
def test_from_nothing_to_the_tables(tmp_path: Path) -> None:
    for kind in ("images", "masks"):
        (tmp_path / "boxes" / kind).mkdir(parents=True)
    for k in range(8):
        mask = np.zeros((64, 64), np.uint8)
        mask[10 + k : 50, 20 : 50 + k] = 255
        Image.fromarray(np.stack([mask // 2 + 60] * 3, -1)).save(tmp_path / "boxes" / "images" / f"{k}.png")
        Image.fromarray(mask).save(tmp_path / "boxes" / "masks" / f"{k}.png")
    done = own(
        tmp_path,
        f'exec {sys.executable} -m hrseg_cli.cli "$@"',
        str(tmp_path / "boxes"),
        ROWS="base lora conv full",
        TRAIN=" ".join(["--workers 0 --logger csv", *(f"--set {change}" for change in QUICK.split())]),
        EVALUATE="--protocol plain --max-clicks 1 --workers 1",
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "runs.zip").is_file()
    for name in ("table.md", "compared.md"):
        text = (tmp_path / "out" / name).read_text()
        assert all(row in text for row in ("lora", "conv", "full"))
