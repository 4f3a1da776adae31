"""Training and adapting by Python: the run folders are the command's, and their weights load."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_photos
from reference import deterministic_weights

import hrseg_cli as hrseg
from hrseg_cli.checkpoints.formats import save_checkpoint
from hrseg_cli.models.hrnet import h18s

FEW = {
    "data.epoch": 4, "batch": 2, "epochs": 1, "data.crop": [32, 48], "data.min_area": 20, "data.held_out": 0.3,
    "optim.warmup": 0, "validation.objects": 1, "validation.max_clicks": 1, "clicks.rounds": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_photos.boxes(tmp_path_factory.mktemp("data") / "boxes")


@pytest.mark.slow
def test_an_adapter_is_trained_resumed_and_used(
    photos: Path, hrseg_command: Callable[..., Any], tmp_path: Path
) -> None:
    base = tmp_path / "base.safetensors"
    model = h18s()
    model.load_state_dict(deterministic_weights(model.state_dict()))
    save_checkpoint(model, base, {})
    lines: list[str] = []
    done = hrseg.adapt(base, photos, tmp_path / "run", changes=FEW, workers=0, say=lines.append)
    assert (done.folder, done.weights) == (tmp_path / "run", tmp_path / "run" / "best.safetensors")
    assert done.summary["steps"] == 2
    assert lines
    assert lines[0].startswith("epoch 1/1: loss")
    session = hrseg.load(done.model).session(photos / "images" / "0.png")
    assert session.click(20, 30).shape == (56, 72)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["asked"]["command"] == "adapt"
    assert record["asked"]["settings"]["recipe"]["name"].startswith("adapt-lora-boxes+data.epoch=4")
    resumed = hrseg_command("adapt", "--resume", tmp_path / "run")
    assert resumed.code == 0, resumed.err
    assert json.loads(resumed.out)["steps"] == 2
    again = hrseg.adapt(base, photos, tmp_path / "run", changes=FEW, workers=0)
    assert again.summary["steps"] == 2


def test_what_is_wrong_is_named(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(hrseg.UnknownName, match="Did you mean 'lora'"):
        hrseg.adapt("h18s", photos, out, adapter="loar")
    with pytest.raises(hrseg.HrsegError, match=r"^`adapter`: give one"):
        hrseg.adapt("h18s", photos, out, adapter=None)
    with pytest.raises(hrseg.HrsegError, match=r"trains no adapter; give `adapter`, or use train\(\)"):
        hrseg.adapt("h18s", photos, out, adapter=None, recipe="h18s_photos")
    with pytest.raises(hrseg.UnknownName, match="recipe 'h18s_phots'"):
        hrseg.train("h18s_phots", out)
    with pytest.raises(hrseg.HrsegError, match="eopch"):
        hrseg.train("h18s_photos", out, changes={"data.eopch": 4})
    with pytest.raises(hrseg.UnknownName, match="logger 'cvs'"):
        hrseg.train("h18s_photos", out, loggers="cvs")
    with pytest.raises(hrseg.HrsegError, match="`workers` -1"):
        hrseg.train("h18s_photos", out, workers=-1)
    assert not out.exists()
