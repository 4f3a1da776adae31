"""Distillation: a student learns the teacher's features from images alone, resumes, and is saved as a plain model."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import tiny_photos
import torch
from safetensors.torch import load_file
from torch import Tensor

from hrseg_cli.checkpoints.formats import read_checkpoint, save_checkpoint
from hrseg_cli.errors import HrsegError
from hrseg_cli.models.clicknet.network import ClickNet
from hrseg_cli.models.hrnet import h18s
from hrseg_cli.models.simpleclick.network import SimpleClick
from hrseg_cli.recipe import Recipe, load_recipe, recipe_of
from hrseg_cli.training import fit
from hrseg_cli.training.distil import DistilFeed, Distillation
from hrseg_cli.training.feed import training_images
from hrseg_cli.training.judge import BEST_WEIGHTS, judged_objects

VIT: dict[str, Any] = {"width": 16, "depth": 4, "heads": 2, "size": [64, 64], "levels": [4, 8, 8, 8], "channels": 8}
TEACHER: dict[str, Any] = {
    "variant": "lite0", "widths": [8, 8, 8, 8, 8], "guide": [4, 4, 4, 4], "blocks": [0] * 4, "mixers": 0
}  # fmt: skip


def teacher() -> ClickNet:
    torch.manual_seed(3)
    return ClickNet(**TEACHER).eval()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photographs and a teacher."""
    place = tmp_path_factory.mktemp("distil")
    tiny_photos.boxes(place / "boxes")
    save_checkpoint(teacher(), place / "teacher.safetensors", {})
    return place


def recipe_on(place: Path, **changes: Any) -> Recipe:
    settings: dict[str, Any] = {
        "name": "tiny",
        "task": "distil",
        "teacher": str(place / "teacher.safetensors"),
        "model": {"name": "simpleclick", "options": VIT},
        "data": {"parts": [{"dataset": str(place / "boxes")}], "crop": [32, 48], "epoch": 4, "held_out": 0.3},
        "losses": [{"name": "feature_mse", "output": "features"}],
        "optim": {"name": "adamw", "lr": 1e-3, "schedule": "constant", "backbone": 1, "ema": 0.9},
        "validation": {"objects": 1},
        "batch": 2,
        "epochs": 2,
    }
    return recipe_of({**settings, **changes}, "test")


def run(recipe: Recipe, folder: Path) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    model, provenance = fit.start_model(recipe)
    feed = DistilFeed(training_images(recipe.data, None, folder), recipe)
    machine = fit.Machine(workers=0, loggers=("csv",), progress=False)
    return fit.fit(model, recipe, feed, judged_objects(recipe, None), folder, machine, provenance)


@pytest.mark.slow
def test_it_is_resumed_and_leaves_a_plain_student(place: Path, tmp_path: Path) -> None:
    """Stopped after the first epoch, it ends with the same weights, the projection's included."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    summary = run(recipe_on(place), whole)
    run(recipe_on(place, epochs=1), parts)
    run(recipe_on(place), parts)
    first, second = load_file(whole / fit.LAST_WEIGHTS), load_file(parts / fit.LAST_WEIGHTS)
    assert all(torch.equal(first[key], second[key]) for key in first)
    student, provenance = read_checkpoint(whole / BEST_WEIGHTS)
    assert isinstance(student, SimpleClick)
    assert provenance["teacher"]["file"] == "teacher.safetensors"
    start = fit.start_model(recipe_on(place))[0].student.state_dict()  # type: ignore[union-attr]
    moved = {key for key in start if not torch.equal(start[key], first[key])}
    assert "backbone.blocks.3.mlp.fc2.weight" in moved
    assert not any(key.startswith(("neck.", "head.")) for key in moved)
    rows = list(csv.DictReader((whole / "judged.csv").read_text().splitlines()))
    assert [list(row) for row in rows] == [["epoch", "cosine"]] * 2
    assert summary["best"] == max(float(row["cosine"]) for row in rows)


def test_features_come_nearer_and_the_teacher_stays() -> None:
    torch.manual_seed(0)
    model = Distillation(SimpleClick(**VIT), teacher())
    before = [tensor.clone() for tensor in model._teacher[0].parameters()]
    image = torch.rand(2, 3, 50, 70)
    target = model.targets(image)
    assert target.shape == model(image)["features"].shape == (2, 112, 4, 5)
    torch.testing.assert_close(target.mean(1), torch.zeros(2, 4, 5), atol=1e-5, rtol=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(15):
        loss: Tensor = (model(image)["features"] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert all(torch.equal(one, other) for one, other in zip(before, model._teacher[0].parameters(), strict=True))
    assert not any("teacher" in name for name in model.state_dict())


def test_features_of_a_model_do_not_depend_on_the_padding() -> None:
    """Those of the teacher are at the same places as those of the student, at any size."""
    for model in (teacher(), SimpleClick(**VIT).eval()):
        for height, width in ((32, 64), (17, 33), (9, 7)):
            found = model.image_features(torch.rand(1, 3, height, width))
            assert found.shape == (1, model.image_channels, -(-height // 16), -(-width // 16))


def test_what_cannot_be_distilled(place: Path) -> None:
    with pytest.raises(HrsegError, match="teacher: 'hrnet_ocr' has no features at stride 16"):
        Distillation(SimpleClick(**VIT), h18s())
    with pytest.raises(HrsegError, match=r"model.name: 'simpleclick' has no features at stride 16"):
        Distillation(SimpleClick(**{**VIT, "patch": 14}), teacher())
    with pytest.raises(HrsegError, match="task distil needs a teacher"):
        recipe_on(place, teacher=None)
    recipe = recipe_on(place, losses=[{"name": "nfl"}])
    model, _ = fit.start_model(recipe)
    with pytest.raises(HrsegError, match="losses: 'nfl' applies to output 'logits'"):
        fit.check_recipe(model, recipe)


def test_the_recipes_follow_each_other() -> None:
    first, second = load_recipe("simpleclick_distil"), load_recipe("simpleclick_photos")
    assert (first.model.name, second.model.name) == ("simpleclick_xtiny", "simpleclick_xtiny")
    assert second.model.weights == "runs/simpleclick-distil/best.safetensors"
    assert load_recipe("toast_pretune").model.weights == "runs/simpleclick/best.safetensors"
