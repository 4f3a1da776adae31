"""A new family is one file (toy_vit.py) and one line of the catalog: this one is no convolutional network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from contract import *  # noqa: F403
from safetensors.torch import load_file

from hrseg_cli import catalog
from hrseg_cli.checkpoints.formats import save_checkpoint
from hrseg_cli.engine import benchmark

Command = Callable[..., Any]
DRAWN = "procedural:count=4,size=64,seed=7"
FEW = [
    "--workers", "0", "--logger", "csv", "--set", "data.epoch=4", "--set", "batch=2", "--set", "epochs=1",
    "--set", "data.crop=[32,48]", "--set", "data.min_area=20", "--set", "clicks.rounds=1",
    "--set", "optim.warmup=0", "--set", "validation.max_clicks=1", "--set", "validation.objects=1",
    "--set", f"validation.datasets=['{DRAWN}']",
]  # fmt: skip
EVALUATE = ["--dataset", DRAWN, "--limit", "1", "--max-clicks", "2", "--workers", "1"]


@pytest.fixture(autouse=True)
def name(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.setitem(catalog.MODELS, "toy_vit", "toy_vit:ToyViT")
    return "toy_vit"


@pytest.fixture
def done(hrseg: Command) -> Command:
    """A command that has to succeed, and the last line of what it prints."""

    def run(*words: object) -> dict[str, Any]:
        ended = hrseg(*words)
        assert ended.code == 0, ended.err
        found: dict[str, Any] = json.loads(ended.out.splitlines()[-1])
        return found

    return run


def test_commands_that_train_and_ask(
    done: Command, hrseg: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ["--set", "model={name: toy_vit, options: {depth: 1}}", "--set", "losses=[{name: nfl}]"]
    done("train", "--recipe", "tiny_procedural", *FEW, *model, "--out", tmp_path / "run")
    weights = tmp_path / "run" / "best.safetensors"
    clicks = []
    done("export", weights, "--out", tmp_path / "toy.onnx")
    for number, words in enumerate((["-m", weights], ["-m", tmp_path / "toy.onnx"])):
        out = tmp_path / str(number)
        ended = hrseg("evaluate", *words, *EVALUATE, "--out", out)
        assert ended.code == 0, ended.err
        clicks.append([json.loads(line)["clicks"] for line in (out / "traces.jsonl").read_text().splitlines()])
    assert clicks[0] == clicks[1]
    assert len(clicks[0][0]) == 2
    words = ["--int8", "--calibrate", DRAWN, "--calibrate-count", 2, "--out", tmp_path / "small.onnx"]
    ended = hrseg("export", weights, *words)
    assert (ended.code, "'toy_vit' has no inner convolution" in ended.err) == (1, True)  # rather than 8 bits in name
    monkeypatch.setattr(benchmark, "measure_apart", benchmark.measure)  # another process would lack the line
    row = done("benchmark", "-m", weights, "--size", "64x64", "--objects", 1, "--clicks", 1, "--precision", "bf16")
    assert row["precision"] == "bf16"


@pytest.mark.parametrize(
    "kind",
    [
        "lora",
        "conv",
        "head",
        pytest.param("full", marks=pytest.mark.slow),
        pytest.param("bn", marks=pytest.mark.slow),
        pytest.param("bitfit", marks=pytest.mark.slow),
    ],
)
def test_adapters_are_trained_and_used(
    done: Command, hrseg: Command, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    weights = tmp_path / "toy.safetensors"
    save_checkpoint(catalog.resolve("model", "toy_vit")(depth=1), weights, {})
    done("adapt", "--from", weights, "--dataset", DRAWN, "--adapter", kind, *FEW, "--out", tmp_path / kind)
    kept = load_file(tmp_path / kind / "last.safetensors")
    if kind == "lora":
        assert (
            sum("lora_B" in key for key in kept) == 9
        )  # six linear layers, three convolutions; not the transposed one
    if kind == "head":
        assert {key.partition(".")[0] for key in kept} == {"grow", "classify"}
    both = f"{weights}+{tmp_path / kind / 'last.safetensors'}"
    ended = hrseg("evaluate", "--model", both, *EVALUATE, "--out", tmp_path / "judged")
    assert ended.code == 0, ended.err
    ended = hrseg("adapt", "--from", both, "--merge", tmp_path / "whole.safetensors")
    assert (ended.code == 0) == (kind != "conv"), ended.err
    notes = [message for message in caplog.messages if message.startswith("LoRA")]  # once, by the training
    assert notes == ["LoRA does not support 1 of the layers; they stay frozen: grow"] * (kind == "lora")
