"""Training a refiner: coarse masks as samples, steps of the diffusion, validation before and after, resumption."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_photos
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from hrseg_cli.errors import HrsegError
from hrseg_cli.metrics.masks import iou
from hrseg_cli.recipe import Recipe, load_recipe, recipe_of
from hrseg_cli.refiners.draws import uniform
from hrseg_cli.refiners.segrefiner.diffusion import loss, texture_loss
from hrseg_cli.refiners.segrefiner.training import TrainedDenoiser
from hrseg_cli.refiners.segrefiner.unet import small
from hrseg_cli.training import fit
from hrseg_cli.training.feed import training_images
from hrseg_cli.training.judge import BEST_WEIGHTS, judged_objects
from hrseg_cli.training.refine import RefineFeed

TINY = {"width": 4, "multipliers": [1, 2], "blocks": 1, "attention_strides": [], "heads": 1, "side": 32}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_photos.boxes(tmp_path_factory.mktemp("data") / "boxes")


def recipe_on(photos: Path, **changes: Any) -> Recipe:
    settings: dict[str, Any] = {
        "name": "tiny",
        "task": "refine",
        "model": {"name": "segrefiner", "options": TINY},
        "data": {
            "parts": [{"dataset": str(photos)}],
            "crop": [32, 32],
            "epoch": 8,
            "min_area": 20,
            "held_out": 0.3,
            "augment": {"keep_background": 0},
        },
        "coarse": {"iou": [0.6, 0.9]},
        "losses": [{"name": "bce", "options": {"over": "valid"}}, {"name": "texture", "weight": 5}],
        "optim": {"name": "adamw", "lr": 2e-3, "schedule": "constant"},
        "validation": {"objects": 2, "metric": "mba"},
        "batch": 2,
        "epochs": 2,
        "half": True,
    }
    return recipe_of({**settings, **changes}, "test")


def run(recipe: Recipe, folder: Path) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    model, provenance = fit.start_model(recipe)
    feed = RefineFeed(training_images(recipe.data, None, folder), recipe)
    machine = fit.Machine(workers=0, loggers=("csv",), progress=False)
    return fit.fit(model, recipe, feed, judged_objects(recipe, None), folder, machine, provenance)


def test_samples_are_coarse_masks_of_the_wanted_quality(photos: Path, tmp_path: Path) -> None:
    recipe = recipe_on(photos)
    feed = RefineFeed(training_images(recipe.data, None, tmp_path), recipe)
    scores = []
    for step in range(8):
        sample, again = feed[0, step, 0], feed[0, step, 0]
        assert all(torch.equal(sample[key], again[key]) for key in sample)
        assert sample["coarse"].shape == sample["truth"].shape == (1, 32, 32)
        scores.append(iou(sample["coarse"][0].numpy() > 0, sample["truth"][0].numpy()))
    assert all(0.1 < score < 0.9 for score in scores)
    assert np.ptp(scores) > 0.05


def test_a_run_can_be_resumed_and_leaves_what_refining_needs(photos: Path, tmp_path: Path) -> None:
    """Stopped after the first epoch, it ends with the same weights; the file names the refiner and its options."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    summary = run(recipe_on(photos), whole)
    run(recipe_on(photos, epochs=1), parts)
    run(recipe_on(photos), parts)
    first, second = load_file(whole / fit.LAST_WEIGHTS), load_file(parts / fit.LAST_WEIGHTS)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert {value.dtype for value in first.values()} == {torch.float16}
    assert (whole / "judged.csv").read_text() == (parts / "judged.csv").read_text()
    with safe_open(whole / BEST_WEIGHTS, "pt") as file:
        header = json.loads(file.metadata()["hrseg"])
    assert (header["kind"], header["name"], header["options"]["side"]) == ("refiner", "segrefiner", 32)
    network = TrainedDenoiser(**header["options"])
    network.load_state_dict({key: value.float() for key, value in load_file(whole / BEST_WEIGHTS).items()})
    rows = list(csv.DictReader((whole / "judged.csv").read_text().splitlines()))
    assert [list(row) for row in rows] == [["epoch", "refined", "coarse", "coarse_biou", "refined_biou"]] * 2
    assert len({row["coarse"] for row in rows}) == 1
    assert summary["best"] == max(float(row["refined"]) for row in rows)


@pytest.mark.slow
def test_training_lowers_the_loss(photos: Path, tmp_path: Path) -> None:
    recipe = recipe_on(photos)
    model, _ = fit.start_model(recipe)
    feed = RefineFeed(training_images(recipe.data, None, tmp_path), recipe)
    module = fit.TASKS["refine"].step(model, recipe)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    batch = {key: torch.stack([feed[0, step, 0][key] for step in range(8)]) for key in feed[0, 0, 0]}
    values = []
    for _ in range(30):
        torch.manual_seed(0)
        total, terms = module.loss(*module.outputs(batch))
        assert terms.keys() == {"train/logits_bce", "train/logits_texture"}
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        values.append(total.item())
    assert values[-1] < 0.6 * values[0]


def test_ignored_pixels_teach_nothing() -> None:
    torch.manual_seed(0)
    logits, truth = torch.randn(1, 1, 16, 16, requires_grad=True), torch.randint(0, 2, (1, 1, 16, 16)).float()
    whole = loss(logits, truth)
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth)
    torch.testing.assert_close(entropy + 5 * texture_loss(logits, truth), whole)
    truth[..., 8:] = -1
    texture_loss(logits, truth).sum().backward()
    assert logits.grad is not None
    assert not logits.grad[..., 8:].any()
    assert logits.grad[..., :8].any()
    # Nor do they show the network anything but the coarse mask.
    network = TrainedDenoiser(**TINY).eval()
    image, coarse = torch.rand(1, 3, 16, 16), torch.randint(0, 2, (1, 1, 16, 16))
    filled = torch.where(truth < 0, coarse.float(), truth)
    with torch.no_grad():
        answers = [network.predicted(image, coarse, one, uniform(1))["logits"] for one in (truth, filled)]
    assert torch.equal(*answers)


def test_cascadepsp_learns_too(photos: Path, tmp_path: Path) -> None:
    """Its predictions at three strides have losses of their own."""
    recipe = recipe_on(
        photos,
        model={"name": "cascadepsp", "options": {"width": 4, "blocks": [1, 1, 1, 1], "side": 32}},
        losses=[loss.model_dump() for loss in load_recipe("cascadepsp_small").losses],
        epochs=1,
    )
    run(recipe, tmp_path)
    weights = load_file(tmp_path / "last.safetensors")
    untrained = {name: value for name, value in fit.start_model(recipe)[0].state_dict().items() if "final" in name}
    assert len(untrained) == 12
    assert not any(torch.equal(weights[name].float(), value.half().float()) for name, value in untrained.items())


def test_the_small_recipe_is_the_small_network() -> None:
    recipe = load_recipe("segrefiner_small")
    network = TrainedDenoiser(**recipe.model.options)
    assert network.config == small().config | {"side": recipe.data.crop[0]}
    assert 2 * sum(value.numel() for value in network.state_dict().values()) < 8e6  # bytes as float16


def test_settings_that_do_not_fit(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(HrsegError, match=r"data.crop=\[32, 48\]: model.options.side of the refiner is 32"):
        run(recipe_on(photos, data={**recipe_on(photos).data.model_dump(), "crop": [32, 48]}), tmp_path / "a")
    with pytest.raises(HrsegError, match="task refine trains all weights from the start"):
        recipe_on(photos, model={"name": "segrefiner", "weights": "h18s"})
    with pytest.raises(HrsegError, match=r"model.name=segrefiner: .*; fix model.options"):
        fit.start_model(recipe_on(photos, model={"name": "segrefiner", "options": {"with": 3}}))
