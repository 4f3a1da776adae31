"""hrseg train on the command line: a run folder, going on, and wrong usage."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hrseg_cli.engine.checkpoint import read_checkpoint
from hrseg_cli.recipe import load_recipe

SMALL = [
    "--recipe", "tiny_procedural", "--workers", "0", "--set", "data.epoch=4", "--set", "batch=2", "--set", "epochs=1",
    "--set", "data.crop=[32,32]", "--set", "data.parts=[{dataset: 'procedural:count=2,size=64,seed=7'}]",
    "--set", "validation.datasets=['procedural:count=1,size=64,seed=8']", "--set", "validation.max_clicks=1",
]  # fmt: skip


def test_a_recipe_becomes_weights_and_a_second_call_finds_them_done(hrseg: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = hrseg("train", *SMALL, "--set", "half=true", "--out", str(out), "--logger", "csv")
    assert done.code == 0, done.err
    assert json.loads(done.out.splitlines()[-1])["steps"] == 2
    model, provenance = read_checkpoint(out / "last.safetensors")
    assert model.config["width"] == 18
    assert provenance["recipe"].startswith("tiny_procedural+")
    assert (out / "last.safetensors").stat().st_size < 10_000_000
    record = json.loads((out / "run.json").read_text())
    assert record["got"]["status"] == "done"
    assert record["asked"]["settings"]["recipe"]["half"] is True
    again = hrseg("train", "--resume", str(out), "--logger", "csv")
    assert again.code == 0, again.err
    assert json.loads(again.out.splitlines()[-1])["steps"] == 2


def test_tiny_procedural_is_what_the_demo_can_afford() -> None:
    recipe = load_recipe("tiny_procedural")
    assert recipe.epochs * recipe.data.epoch <= 1000


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        ([], 1, "or --resume RUN"),
        (["--recipe", "h18_paper", "--resume", "x"], 1, "or --resume RUN"),
        (["--recipe", "h18_papr"], 2, "Did you mean 'h18_paper'?"),
        (["--resume", "nowhere"], 1, "no run.json there"),
        (["--resume", "x", "--set", "a=b"], 1, "leave the options that change it off"),
        (["--recipe", "h18_paper", "--logger", "csvv"], 2, "unknown logger 'csvv'. Did you mean 'csv'?"),
        (["--recipe", "h18_paper", "--device", "cuda"], 1, "sees no GPU"),
        (["--recipe", "tiny_procedural", "--set", "model.name=h19"], 2, "unknown model 'h19'"),
        (["--recipe", "tiny_procedural", "--set", "model.weights=none.pth"], 1, "none.pth"),
    ],
)
def test_wrong_usage(
    hrseg: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = hrseg("train", *arguments)
    assert done.code == code
    assert told in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not list(tmp_path.glob("runs/*/last.ckpt"))
