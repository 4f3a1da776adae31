"""Training after every click of a batch, with crops of several sizes and prompts other than clicks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_photos import boxes

from hrseg_cli.errors import HrsegError, Interrupted
from hrseg_cli.models.clicknet.network import ClickNet
from hrseg_cli.models.hrnet import h18s
from hrseg_cli.recipe import Optim, Recipe, load_recipe, recipe_of
from hrseg_cli.training import fit, judge, step
from hrseg_cli.training.feed import Batch, Feed, Loader, Order, batches, steps_per_epoch, training_images
from hrseg_cli.training.run import _completed

SMALL = {"variant": "lite0", "widths": [4, 8, 8, 8, 8], "guide": [4, 4, 4, 4], "blocks": [1, 1, 1, 1], "mixers": 1}
PLANS = [
    {},
    {"epoch": 100, "sizes": [{"crop": [32, 48], "batch": 3, "share": 2}, {"crop": [64, 64], "batch": 2}]},
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return boxes(tmp_path_factory.mktemp("data") / "boxes")


def recipe_on(photos: Path | str, **changes: Any) -> Recipe:
    """Everything that the recipe clicknet_photos uses, as small as possible."""
    sizes = [{"crop": [32, 32], "batch": 2, "share": 2}, {"crop": [64, 32], "batch": 1}]
    settings: dict[str, Any] = {
        "name": "tiny",
        "model": {"name": "clicknet", "options": SMALL},
        "data": {
            "parts": [{"dataset": str(photos)}],
            "crop": [32, 32],
            "sizes": sizes,
            "epoch": 6,
            "min_area": 20,
            "held_out": 0.2,
            "cache": 1,
            "augment": {"keep_background": 0},
            "composite": {"probability": 0.3, "duplicate": 0.3},
        },
        "clicks": {
            "rounds": [0, 1, 1],
            "trained": "every",
            "box_probability": 0.3,
            "perturbed_probability": 0.4,
            "off_centre": 0.2,
        },
        "losses": [{"name": "bce"}, {"name": "boundary_bce"}, {"name": "dice", "output": "aux16"}],
        "optim": {"name": "adamw", "lr": 1e-3, "backbone_later": 0.5, "freeze_norms": True, "ema": 0.5},
        "validation": {"objects": 1, "max_clicks": 2, "protocol": "plain"},
        "epochs": 2,
    }
    for key, value in changes.items():
        settings[key] = {**settings[key], **value} if isinstance(settings.get(key), dict) else value
    return recipe_of(settings, "test")


def run(recipe: Recipe, folder: Path) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    model, provenance = fit.start_model(recipe)
    feed = Feed(training_images(recipe.data, None, folder), recipe)
    machine = fit.Machine(workers=0, loggers=("csv",), progress=False)
    return fit.fit(model, recipe, feed, judge.judged_objects(recipe, None), folder, machine, provenance)


def taken(recipe: Recipe, tmp_path: Path) -> tuple[step.ClickTraining, list[Batch]]:
    """The recipe's training, and the batches of its first epoch."""
    model, _ = fit.start_model(recipe)
    for parameter in model.untrained():
        parameter.requires_grad_(False)
    feed = Feed(training_images(recipe.data, None, tmp_path), recipe)
    return step.ClickTraining(model, recipe), list(Loader(feed, Order(recipe, 0, 1), 0))


# ---- the plan of an epoch --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", PLANS)
@pytest.mark.parametrize("rounds", [3, [0.5, 0, 0.5]])
def test_every_epoch_has_the_same_steps_and_ranks_share_its_samples(data: dict[str, Any], rounds: Any) -> None:
    """The learning rate and the number of batches of an epoch are fixed before it starts."""
    recipe = recipe_on("x", data={"sizes": [], "epoch": 40, **data}, clicks={"rounds": rounds}, batch=4)
    seen = set()
    for epoch in range(5):
        plan = batches(recipe, epoch, 2)
        assert len(plan) + plan[:, 1].sum() == steps_per_epoch(recipe, 2)
        seen.add(plan.tobytes())
        orders = [Order(recipe, rank, 2) for rank in (0, 1)]
        for order in orders:
            order.set_epoch(epoch)
        lists = [list(order) for order in orders]
        assert [[len(keys) for keys in one] for one in lists] == [
            [recipe.sizes[size].batch for size in plan[:, 0]] for _ in orders
        ]
        steps = sorted(key[1] for one in lists for keys in one for key in keys)
        assert steps == list(range(len(steps)))
        assert len(steps) <= recipe.data.epoch
        shares = np.array(recipe.clicks.round_shares)
        expected = len(plan) * shares / shares.sum()
        assert (abs(np.bincount(plan[:, 1], minlength=len(shares)) - expected) <= 1).all()
    assert len(seen) > 1


def test_short_epochs_have_all_numbers_of_rounds_in_turn() -> None:
    """Where only the last prediction of a batch is trained, its rounds do not change the length of an epoch."""
    recipe = recipe_on("x", data={"sizes": [], "epoch": 4}, clicks={"rounds": 3, "trained": "last"}, batch=4)
    assert steps_per_epoch(recipe, 1) == 1
    assert {int(batches(recipe, epoch, 1)[0, 1]) for epoch in range(40)} == {0, 1, 2, 3}


def test_a_share_smaller_than_a_batch_is_refused_with_its_size() -> None:
    sizes = [{"crop": [32, 32], "batch": 2, "share": 9}, {"crop": [64, 32], "batch": 8}]
    with pytest.raises(HrsegError, match=r"data.epoch=20: fewer samples than one batch of 8 x 1 at 64x32; raise it"):
        batches(recipe_on("x", data={"sizes": sizes, "epoch": 20}), 0, 1)


def test_other_sizes_have_scale_and_smallest_area_in_proportion() -> None:
    data = load_recipe("clicknet_photos").data
    half = data.at((data.crop[0] // 2, data.crop[1] // 2))
    assert half.min_area == round(data.min_area / 4)
    assert half.augment.scale == pytest.approx([limit / 2 for limit in data.augment.scale])
    assert data.at(data.crop) == data


# ---- steps -----------------------------------------------------------------------------------------------------------


def test_a_batch_is_given_once_per_click(photos: Path, tmp_path: Path) -> None:
    recipe = recipe_on(photos, clicks={"rounds": [0, 0, 1]})
    _, found = taken(recipe, tmp_path)
    assert [batch["turn"].tolist() for batch in found] == [[k // 3, k % 3, 2] for k in range(len(found))]
    assert len(found) == steps_per_epoch(recipe, 1) == 12
    assert [batch.keys() == {"turn"} for batch in found] == [k % 3 > 0 for k in range(len(found))]
    sides = {tuple(batch["image"].shape) for batch in found if "image" in batch}
    assert sides == {(2, 3, 32, 32), (1, 3, 64, 32)}


def test_each_step_corrects_the_prediction_of_the_one_before(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No forward pass is made without being trained, and the image's features are computed once."""
    recipe = recipe_on(photos, clicks={"rounds": [0, 0, 1], "box_probability": 0})
    training, found = taken(recipe, tmp_path)
    asked: list[tuple[torch.Tensor, torch.Tensor]] = []
    encoded = 0

    def spied(self: ClickNet, features: Any, previous: torch.Tensor, points: torch.Tensor) -> dict[str, torch.Tensor]:
        asked.append((previous, points))
        return decode(self, features, previous, points)

    def counted(self: ClickNet, image: torch.Tensor) -> Any:
        nonlocal encoded
        encoded += 1
        return encode(self, image)

    decode, encode = ClickNet.decode, ClickNet.encode
    monkeypatch.setattr(ClickNet, "decode", spied)
    monkeypatch.setattr(ClickNet, "encode", counted)
    monkeypatch.setattr(training, "log", lambda *_, **__: None)
    monkeypatch.setattr(training, "_refuse_nan", lambda *_: None)  # both need a Trainer
    for number, batch in enumerate(found[:3]):
        training.on_train_batch_start(batch, number)
        seen = training.current.seen
        loss = training.training_step(batch, number)
        assert loss.requires_grad
        assert len(asked) == number + 1
        if number:
            assert asked[-1][0] is seen
            assert ((asked[-1][1] != asked[-2][1]).any(2).sum(1) <= 1).all()
    assert encoded == 1


def test_late_batches_begin_with_clicks_that_are_not_trained(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a session that has been going on; the image is encoded once for all of them, and once for the training."""
    clicks = {"rounds": [0, 1], "late": 1, "max_points": 12, "box_probability": 0, "perturbed_probability": 0}
    training, found = taken(recipe_on(photos, clicks=clicks, data={"composite": {"probability": 0}}), tmp_path)
    encoded = 0

    def counted(self: ClickNet, image: torch.Tensor) -> Any:
        nonlocal encoded
        encoded += 1
        return encode(self, image)

    encode = ClickNet.encode
    monkeypatch.setattr(ClickNet, "encode", counted)
    starts = set()
    for number, batch in enumerate(found):
        training.current = training.current if number % 2 else step.begun(batch)
        out, seen = training.outputs(batch)
        assert out["logits"].requires_grad
        turn = number % 2
        starts.add(training.current.rounds - turn)
        given, now = ((points[..., 0] >= 0).sum(1) for points in (training.current.batch["points"], seen["points"]))
        assert (now - given <= training.current.rounds).all()  # a network that is right gets no further click
        assert (now > given).any()
        assert encoded == number - turn + 2
    assert starts <= set(range(2, 9))
    assert len(starts) > 1


@pytest.mark.parametrize("family", ["clicknet", "h18s"])
def test_a_step_without_the_backbone_trains_all_else(family: str, photos: Path, tmp_path: Path) -> None:
    options = {"name": "clicknet", "options": SMALL} if family == "clicknet" else {"name": family, "options": {}}
    changes: dict[str, Any] = {} if family == "clicknet" else {"losses": [{"name": "bce"}]}
    clicks = {"box_probability": 0}
    training, found = taken(recipe_on(photos, model=options, clicks=clicks, **changes), tmp_path)
    model = training.model
    groups = model.parameter_groups()
    current = step.begun(found[0])
    step.train_mode(model, len(current.image), freeze_norms=True)
    for whole in (False, True):
        model.zero_grad()
        loss, _ = training.loss(training.predict(current, whole), current.batch)
        loss.backward()
        trained = {name for name in ("new", "heads", "backbone") for p in groups.get(name, ()) if p.grad is not None}
        assert trained == set(groups) - {"fixed"} - (set() if whole else {"backbone"})
    assert all(parameter.requires_grad for parameter in groups["backbone"])


@pytest.mark.parametrize("freeze", [False, True])
def test_statistics_of_norms_are_frozen_on_demand(freeze: bool) -> None:
    model = ClickNet(**SMALL)  # type: ignore[arg-type]
    before = {name: value.clone() for name, value in model.named_buffers()}
    step.train_mode(model, 2, freeze)
    model(torch.rand(2, 4, 32, 32), torch.full((2, 4, 3), -1.0))
    assert any(not torch.equal(value, before[name]) for name, value in model.named_buffers()) != freeze
    assert model.training


# ---- the same weights, whatever happens ------------------------------------------------------------------------------


def test_stopped_between_clicks_it_goes_on_to_the_same_weights(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop in the middle of a batch's clicks waits for the last of them."""
    recipe = recipe_on(photos)
    whole = run(recipe, tmp_path / "whole")
    handed = fit.Checkpointing.on_train_batch_end
    steps = 0

    def stop_at_times(self: fit.Checkpointing, *arguments: Any) -> None:
        nonlocal steps
        steps += 1
        self.stop_requested = self.stop_requested or steps in (1, 5)
        handed(self, *arguments)

    monkeypatch.setattr(fit.Checkpointing, "on_train_batch_end", stop_at_times)
    for _ in range(2):
        with pytest.raises(Interrupted):
            run(recipe, tmp_path / "parts")
    assert run(recipe, tmp_path / "parts") == whole
    assert whole["steps"] == 2 * steps_per_epoch(recipe, 1)
    files = [load_file(tmp_path / name / fit.LAST_WEIGHTS) for name in ("whole", "parts")]
    assert all(torch.equal(files[0][key], files[1][key]) for key in files[0])
    logs = [(tmp_path / name / "log" / "metrics.csv").read_text() for name in ("whole", "parts")]
    assert logs[0] == logs[1]

    monkeypatch.setattr(ClickNet, "parameter_groups", lambda self: {"new": list(self.parameters())})
    with pytest.raises(HrsegError, match=r"of an earlier version, which trained other layers; .* model.weights="):
        run(recipe, tmp_path / "parts")


@pytest.mark.slow
def test_two_processes_skip_the_backbone_together(photos: Path, tmp_path: Path) -> None:
    """No process waits for gradients that no process has."""
    recipe = recipe_on(photos, data={"epoch": 12})
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    options = ["--recipe", "r.yaml", "--out", "run", "--processes", "2", "--workers", "0", "--logger", "csv"]
    done = subprocess.run(
        [str(Path(sys.executable).with_name("hrseg")), "train", *options],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["steps"] == 2 * steps_per_epoch(recipe, 2)


def test_a_run_from_before_a_key_existed_has_its_default(tmp_path: Path) -> None:
    recipe = load_recipe("tiny_procedural").model_dump(mode="json")
    old = {**recipe, "clicks": {key: value for key, value in recipe["clicks"].items() if key != "trained"}}
    assert _completed(tmp_path, {"recipe": old, "images": [3]}) == {"recipe": recipe, "images": [3]}
    with pytest.raises(HrsegError, match=r"run.json: unknown key 'clicks.gone'"):
        _completed(tmp_path, {"recipe": {**recipe, "clicks": {"gone": 1}}})


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("clicks.rounds=[0, 0]", "rounds are all 0; set one of them above 0"),
        ("clicks.max_points=2", "clicks.max_points: must be at least 5, for the corrections of a sample"),
        ("clicks.drop_previous=0.5", "drop_previous works with trained=last only"),
        ("clicks.late=0.5; clicks.trained=last", "clicks: late works with trained=every only; set it to 0"),
        ("clicks.late=0.5; clicks.max_points=12", "clicks.max_points: must be at least 13, for the corrections of a"),
        ("optim.accumulate=2", "clicks.trained=every takes a step after each click; set optim.accumulate=1"),
        ("data.composite.probability=0.9", "probability and duplicate add up to more than 1"),
        ("data.cache=-1", "data.cache: input should be greater than or equal to 0"),
        ("optim.level=1", "optim.level: input should be less than 1"),
        ("data.sizes=[{crop: [32, 32]}]", "'data.sizes.0.batch' is missing"),
    ],
)
def test_impossible_settings_name_their_keys(change: str, told: str) -> None:
    with pytest.raises(HrsegError, match=told.replace("[", r"\[")):
        load_recipe("clicknet_photos", change.split("; "))


def test_boxes_need_a_network_that_takes_them() -> None:
    recipe = recipe_on("x", losses=[{"name": "bce"}])
    with pytest.raises(HrsegError, match=r"clicks.box_probability: 'hrnet_ocr' does not take boxes; set it to 0"):
        fit.check_recipe(h18s(), recipe)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda groups: groups["new"].append(groups["backbone"][0]), "is in 2 groups"),
        (lambda groups: groups["new"].pop(), "is in 0 groups"),
        (lambda groups: groups["new"].append(torch.nn.Parameter(torch.zeros(1))), "not one of the model's"),
        (lambda groups: groups.update(decoder=groups.pop("new")), "unknown group 'decoder'"),
    ],
)
def test_groups_that_are_not_total_and_disjoint_name_the_family(change: Any, told: str) -> None:
    model = ClickNet(**SMALL)  # type: ignore[arg-type]
    groups = model.parameter_groups()
    change(groups)
    model.parameter_groups = lambda: groups  # type: ignore[method-assign]
    with pytest.raises(HrsegError, match=rf"model 'clicknet': parameter_groups\(\) must list each parameter.*{told}"):
        step.make_optimizer(model, Optim())
