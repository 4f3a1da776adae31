"""hrseg train on the command line: a run folder, resuming, and wrong usage."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hrseg_cli.checkpoints.formats import read_checkpoint
from hrseg_cli.engine.devices import best_precision
from hrseg_cli.recipe import load_recipe
from hrseg_cli.training.recipes import adapter_change
from hrseg_cli.training.run import _is_first

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
    ("change", "told"),
    [
        ("data.part=1", "did you mean 'parts'?"),
        ("optim=fast", "optim: input should be a valid dictionary"),
        ("losses.0.weight=2", "losses: input should be a valid list"),
        ("losses=[]", "losses: list should have at least 1 item"),
        ("losses=[{name: nfl, output: base}]", "output 'base', which this network does not have; use one of logits"),
        ("losses=[{name: nfl, options: {gama: 1}}]", "losses: 'nfl': "),
        ("losses=[{name: nfl}, {name: boundary, options: {normalize: x}}]", "losses: 'boundary': "),
        ("losses=[{name: nlf}]", "unknown loss 'nlf'. Did you mean 'nfl'?"),
        ("data.crop=[0, 32]", "data.crop.0: input should be greater"),
        ("data.epoch=1", "data.epoch=1: fewer samples than one batch"),
        ("data.parts=[{dataset: nowhere}]", "unknown dataset 'nowhere'"),
        (
            "data.parts=[{dataset: nowhere, group: '('}]",
            "data.parts.0.group: must be a regular expression with a group in parentheses",
        ),
        ("data.parts=[{dataset: 'procedural:count=x'}]", "count must be an integer"),
        ("data.parts=[{dataset: 'procedural:count=2,size=64', weight: 0}]", "every weight is 0"),
        ("model={name: h18s, options: {depth: 3}}", "model.name=h18s: "),
        ("model={name: hrnet_ocr}", "fix model.options"),
        ("model={name: grabcut}", "has no trainable weights"),
        ("model={weights: grabcut}", "has no trainable weights"),
        ("model={name: h18s, options: {with_aux_output: false}}", "output 'aux', which this network does not have"),
        ("model={weights: nowhere.pth}", "nowhere.pth"),
        ("model={weights: broken.safetensors}", "broken.safetensors"),
        ("model={backbone: broken.safetensors}", "broken.safetensors"),
        ("adapter={name: lora}", "an adapter needs a trained base; set model.weights"),
        ("optim.betas=[2, 3]", "optim.betas.0"),
        ("precision=fp16", "precision=fp16: only supported on a GPU"),
        ("precision=fp8", "precision: input should be"),
        ("seed=99999999999999999999", "seed: input should be less"),
        ("validation.datasets=[nowhere]", "unknown dataset 'nowhere'"),
        ("validation.datasets=nowhere", "validation.datasets: input should be a valid list"),
        ("validation.changes=[zoom.taget=5]", "validation.changes: protocol plain: unknown key 'zoom.taget'"),
        ("validation.changes=[zoom]", "validation.changes: "),
        ("validation.protocol=plan", "unknown protocol 'plan'. Did you mean 'plain'?"),
        ("validation.metric=dice", "unknown metric 'dice'"),
    ],
)
def test_wrong_recipes_are_one_line(
    hrseg: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, told: str
) -> None:
    """Before the first step, and none of them is a defect."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.safetensors").write_bytes(bytes(8) + b"{" + bytes(20))
    done = hrseg("train", *SMALL, "--set", change)
    assert done.code in (1, 2), done.err
    assert told in done.err
    assert "defect" not in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not list(tmp_path.glob("runs/*/last.ckpt"))


def test_a_missing_dataset_is_reported_before_anything_slow_is_imported(tmp_path: Path) -> None:
    """The default recipes train on public datasets, which a first try rarely has."""
    code = "import sys; from hrseg_cli.cli import main\ntry: main()\nfinally: assert 'torch' not in sys.modules"
    words = ["train", "--adapter", "lora", "--root", str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "'hrseg prepare-data hqseg44k'" in done.stderr
    assert done.stderr.endswith("; to train on your own images, give --dataset my_photos\n")


def test_a_recipe_whose_data_lies_elsewhere_says_how_to_name_it(hrseg: Callable[..., Any], tmp_path: Path) -> None:
    done = hrseg("train", "--recipe", "zoo/unet", "--root", tmp_path, "--out", tmp_path / "run")
    assert done.code == 1
    hint = "give the folder that contains it as --root; to train on your own images, give --dataset my_photos\n"
    assert done.err.endswith(hint), done.err


def test_an_unknown_adapter_in_a_recipe_is_wrong_usage(hrseg: Callable[..., Any], tmp_path: Path) -> None:
    """The catalog is the only list of names: a recipe's are checked against it, too."""
    done = hrseg("train", *SMALL, "--set", "model={weights: h18s}", "--set", "adapter={name: lorra}")
    assert done.code == 2, done.err
    assert "unknown adapter 'lorra'. Did you mean 'lora'?" in done.err


@pytest.mark.parametrize(
    ("recipe", "adapter", "kept"),
    [("paper/t4_conv_hq_skip", "conv", True), ("adapt_small", "lora", True), ("adapt_small", "conv", False)],
)
def test_a_recipe_of_the_adapter_that_is_asked_keeps_its_options(recipe: str, adapter: str, kept: bool) -> None:
    change = adapter_change(recipe, adapter, [])
    own = load_recipe(recipe).adapter
    assert own.options
    found = load_recipe(recipe, change).adapter
    assert (found.name, found.options) == (adapter, own.options if kept else {})


@pytest.mark.slow
def test_precision_auto_is_recorded_as_what_it_came_to(hrseg: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = hrseg("train", *SMALL, "--set", "precision=auto", "--out", str(out), "--logger", "csv")
    assert done.code == 0, done.err
    asked = json.loads((out / "run.json").read_text())["asked"]
    assert asked["settings"]["recipe"]["precision"] == best_precision("cpu")
    assert asked["machine"]["workers"] == 0
    (out / "last.ckpt").write_bytes(b"torn")
    torn = hrseg("train", "--resume", str(out))
    assert torn.code == 1
    assert "last.ckpt: damaged checkpoint; delete it" in torn.err
    assert json.loads((out / "run.json").read_text())["asked"]["machine"] == asked["machine"]


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        ([], 1, "or --resume RUN"),
        (["--recipe", "h18_paper", "--resume", "x"], 1, "or --resume RUN"),
        (["--recipe", "h18_papr"], 2, "Did you mean 'h18_paper'?"),
        (["--resume", "nowhere"], 1, "no run.json"),
        (["--resume", "x", "--set", "a=b"], 1, "remove the options that change it"),
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


@pytest.mark.slow
def test_datasets_replace_those_of_the_recipe_and_nothing_else(hrseg: Callable[..., Any], tmp_path: Path) -> None:
    parts = next(k for k, word in enumerate(SMALL) if word.startswith("data.parts="))
    few = [*SMALL[: parts - 1], *SMALL[parts + 1 :]]
    out = tmp_path / "run"
    done = hrseg("train", *few, "-d", "procedural:count=2,size=64,seed=7", "--out", out, "--logger", "csv")
    assert done.code == 0, done.err
    told = done.err.splitlines()[0]
    assert told.startswith("training on procedural:count=2,size=64,seed=7, not on procedural:")
    assert told.endswith(" of recipe tiny_procedural; validation still on procedural:count=1,size=64,seed=8")
    recipe = json.loads((out / "run.json").read_text())["asked"]["settings"]["recipe"]
    assert [part["dataset"] for part in recipe["data"]["parts"]] == ["procedural:count=2,size=64,seed=7"]
    assert recipe["validation"]["datasets"] == ["procedural:count=1,size=64,seed=8"]
    assert recipe["data"]["crop"] == [32, 32]
    again = hrseg("train", "--resume", out, "-d", "procedural")
    assert (again.code, "remove the options that change it" in again.err) == (1, True)


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True),
        ({"LOCAL_RANK": "1"}, False),  # started by the first process
        ({"RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"}, True),  # torchrun
        ({"RANK": "4", "LOCAL_RANK": "0", "GROUP_RANK": "1"}, False),
        ({"NODE_RANK": "1"}, False),  # by hand on the second machine
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}, False),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"}, True),
        ({"SLURM_PROCID": "1"}, True),
    ],
)
def test_one_process_writes(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], first: bool) -> None:
    """A second writer would be kept out by the lock, and the others would wait for it for ever."""
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert _is_first() == first
