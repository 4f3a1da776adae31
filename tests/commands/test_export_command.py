"""hrseg export as it is typed, and its file as --model of the other commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from reference import case, deterministic_weights

from hrseg_cli.checkpoints.formats import save_checkpoint
from hrseg_cli.models.hrnet import h18s

Command = Callable[..., Any]
SMALL = ["--set", "zoom.target=96", "--set", "zoom.min_crop=60", "--set", "zoom.skip_clicks=-1"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """h18s; the bias makes the untrained answers cover something."""
    model = h18s()
    model.load_state_dict(deterministic_weights(model.state_dict()))
    with torch.no_grad():
        model.feature_extractor.cls_head.bias += 0.5
    path = tmp_path_factory.mktemp("weights") / "h18s.safetensors"
    save_checkpoint(model, path, {})
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two synthetic objects, at half of their size."""
    home = tmp_path_factory.mktemp("photos")
    for part in ("images", "masks"):
        (home / part).mkdir()
    for number in (8, 0):
        image, truth = case(number)
        cv2.imwrite(str(home / "images" / f"{number}.png"), image[::2, ::2, ::-1])
        cv2.imwrite(str(home / "masks" / f"{number}.png"), (truth[::2, ::2] == 1).astype(np.uint8) * 255)
    return home


def test_written_then_clicked_with(hrseg: Command, checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    """One file goes through export, evaluate and predict; the clicks are those that PyTorch needs."""
    graph = tmp_path / "h18s.onnx"
    done = hrseg("export", checkpoint, "--out", graph)
    assert done.code == 0, done.err
    row = json.loads(done.out)
    assert row["written"] == str(graph)
    assert row["bytes"] == graph.stat().st_size
    assert all(size["logits"] <= 1e-4 for size in row["checked"])

    words = ["--dataset", f"mine={folder}", "--max-clicks", 3, "--workers", 1, *SMALL]
    clicks = {}
    for name, model in (("torch", checkpoint), ("onnxruntime", graph)):
        done = hrseg("evaluate", "--model", model, *words, "--out", tmp_path / name)
        assert done.code == 0, done.err
        lines = [json.loads(line) for line in (tmp_path / name / "traces.jsonl").read_text().splitlines()]
        clicks[name] = [line["clicks"] for line in lines]
    assert clicks["onnxruntime"] == clicks["torch"]
    assert [len(one) for one in clicks["torch"]] == [3, 3]
    settings = json.loads((tmp_path / "onnxruntime" / "run.json").read_text())["asked"]["settings"]
    assert settings["model"]["runtime"]["name"] == "onnxruntime"
    assert settings["model"]["exported_from"]["file"] == checkpoint.name

    image = folder / "images" / "0.png"
    done = hrseg("predict", image, "-m", graph, "--click", "60,80", *SMALL, "-o", tmp_path / "masks")
    assert done.code == 0, done.err
    assert json.loads(done.out)["area"] > 0


@pytest.mark.slow
def test_eight_bits_stay_near(hrseg: Command, checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    """Calibrated on two objects; random weights answer near the threshold everywhere, so little must flip."""
    out = tmp_path / "small.onnx"
    done = hrseg("export", checkpoint, "--out", out, "--int8", "--calibrate", f"mine={folder}", "--calibrate-count", 2)
    assert done.code == 0, done.err
    row = json.loads(done.out)
    assert row["precision"] == "int8"
    assert row["int8"]["objects"] == 2
    assert row["bytes"] < 0.5 * checkpoint.stat().st_size
    assert 0 < row["int8"]["probability"] < 0.03


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["grabcut", "--out", "x.onnx"], 1, "no network"),
        (["grabcut", "--out", "x.pt"], 1, "ends in .onnx"),
        (["absent.pth", "--out", "x.onnx"], 1, "no such file"),
        (["h18x", "--out", "x.onnx"], 2, "Did you mean"),
        (["grabcut", "--out", "x.onnx", "--int8"], 1, "--calibrate"),
        (["grabcut", "--out", "x.onnx", "--calibrate", "procedural"], 1, "--int8"),
        (
            ["{checkpoint}", "--out", "x.onnx", "--int8", "--calibrate", "{folder}", "--calibrate-count", "9"],
            1,
            "2 objects",
        ),
    ],
)
def test_what_is_wrong_is_one_line(
    words: list[str], code: int, message: str, hrseg: Command, checkpoint: Path, folder: Path,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    done = hrseg("export", *(word.format(checkpoint=checkpoint, folder=folder) for word in words))
    assert done.code == code
    assert message in done.err
    assert len(done.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())
