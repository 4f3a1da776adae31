"""recipes/zoo: recipes that can be compared, and zoo.sh from nothing to the table and again with nothing left to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hrseg_cli import catalog
from hrseg_cli.recipe import data_folder, load_recipe, load_tables, recipe_names

SCRIPT = data_folder("recipes") / "zoo" / "zoo.sh"
FEW = [
    'data.parts=[{"dataset":"procedural:count=4,size=64,seed=7"}]', "model.backbone=null", 'model.options={"width":8}',
    'data.sizes=[{"crop":[32,32],"batch":2}]', "data.epoch=4", "epochs=1", "data.min_area=20", "clicks.rounds=0",
    "optim.warmup=0", "validation.objects=1",
    'validation.datasets=["procedural:count=1,size=64,seed=8"]', "validation.max_clicks=1", "data.cache=10",
]  # fmt: skip


def test_recipes_differ_in_the_decoder_only() -> None:
    """Samples, clicks, steps and seed are those of the base; where a network has more outputs they have a loss."""
    base = load_recipe("zoo/base")
    for name in (name for name in recipe_names() if name.startswith("zoo/")):
        recipe = load_recipe(name)
        same = {"name": "", "model": base.model, "losses": base.losses}
        alone = name == "zoo/pixel_classifier"  # has no backbone
        assert recipe.model_copy(update=same) == base.model_copy(update={"name": ""})
        assert recipe.model.backbone == (None if alone else "efficientnet_lite0")
        assert recipe.losses[: len(base.losses)] == base.losses
        assert all(loss.output.startswith("aux") for loss in recipe.losses[len(base.losses) :])
        assert ".zoo." in catalog.MODELS[recipe.model.name]
        assert recipe.model.name == recipe.name or name == "zoo/base"
    assert base.epochs * base.data.epoch >= 15_000
    assert [size.crop for size in base.sizes] == [(224, 224)]


def test_the_tables_have_a_row_for_each_recipe() -> None:
    rows = set(load_tables("zoo").rows)
    recipes = {name.removeprefix("zoo/") for name in recipe_names() if name.startswith("zoo/")} - {"base"}
    assert recipes <= rows
    assert all(row in catalog.MODELS for row in rows)


@pytest.mark.slow
def test_from_nothing_to_the_table(tmp_path: Path) -> None:
    (tmp_path / "hrseg").write_text(
        f'#!/bin/sh\necho "$1" >>{tmp_path}/calls\nexec {sys.executable} -m hrseg_cli.cli "$@"\n'
    )
    (tmp_path / "hrseg").chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "ROWS": "lraspp sharpmask watershed",
        "OUT": str(tmp_path / "out"),
        "TEST": "procedural:count=2,size=64,seed=9",
        "TRAIN": " ".join(["--workers 0 --logger csv", *(f"--set {change}" for change in FEW)]),
        "EVALUATE": "--protocol plain --max-clicks 2 --workers 1",
    }
    for _ in range(2):
        subprocess.run([SCRIPT, tmp_path], env=environment, check=True)
    table = (tmp_path / "out" / "table.md").read_text()
    assert "lraspp" in table
    assert "watershed" in table
    compared = (tmp_path / "out" / "compared.md").read_text()
    assert "| LR-ASPP " in compared
    assert "| SharpMask " in compared
    assert "| watershed " in compared
    assert "LinkNet" in compared.partition("Not measured, omitted: ")[2]
    calls = (tmp_path / "calls").read_text().split()
    reports = ["report"] * 2
    assert calls == ["train", "evaluate"] * 2 + ["evaluate"] + reports * 2
    packed = [tmp_path / "out" / "runs.zip", "--check", tmp_path / "out" / "compared.md"]
    subprocess.run([tmp_path / "hrseg", "report", "--tables", "zoo", *packed], env=environment, check=True)
    missing = subprocess.run([SCRIPT, tmp_path / "nowhere"], env=environment, capture_output=True, text=True)
    assert missing.returncode == 2
    assert "make zoo DATA=" in missing.stderr
