"""Recipes: none can rot, and a misspelt key is answered in one line."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest

from hrseg_cli import catalog
from hrseg_cli.data.manifest import manifest_names
from hrseg_cli.errors import HrsegError, UnknownName
from hrseg_cli.recipe import data_folder, load_protocol, load_recipe, recipe_names, recipe_of

PHOTOS = (
    *("h18s_photos", "clicknet_photos", "segrefiner_small", "cascadepsp_small", "zoo/"),
    *("simpleclick_distil", "simpleclick_photos", "toast_pretune", "vit/"),
)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_and_names_things_that_exist(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == Path(name).name
    assert recipe.model.name in (catalog.TRAINED_REFINERS if recipe.task == "refine" else catalog.MODELS)
    assert recipe.teacher in (None, *catalog.MODELS)
    assert all(loss.name in catalog.LOSSES for loss in recipe.losses)
    load_protocol(recipe.validation.protocol, recipe.validation.changes)
    assert recipe.validation.metric in catalog.METRICS
    for dataset in [*(part.dataset for part in recipe.data.parts), *recipe.validation.datasets]:
        known = dataset.partition(":")[0] in {*manifest_names(), "procedural", "samples"}
        assert known or name.startswith(PHOTOS)  # folders of photographs that do not come with hrseg


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_opens_with_what_to_type_and_to_expect(name: str) -> None:
    lines = (data_folder("recipes") / f"{name}.yaml").read_text().splitlines()
    header = "\n".join(line for line in lines if line.startswith("#"))
    assert lines[0].startswith("# ")
    assert "# Command: " in header
    assert f"--recipe {name}" in header
    assert "# Time" in header


def test_a_recipe_survives_its_run_folder() -> None:
    recipe = load_recipe("h32_cocolvis", ["optim.lr=1e-4", "data.augment.scale=[0.5, 2]"])
    assert recipe.optim.lr == 1e-4
    assert recipe.name == "h32_cocolvis+optim.lr=1e-4+data.augment.scale=[0.5, 2]"
    assert recipe_of(recipe.model_dump(mode="json"), "run.json") == recipe


def test_adapters_start_from_the_default_model() -> None:
    assert {load_recipe(f"adapt_{name}").model.weights for name in ("lora", "conv", "small")} == {catalog.DEFAULT_MODEL}


def test_reference_recipes_differ_only_where_the_reference_does() -> None:
    h18, h18s = load_recipe("h18_cocolvis"), load_recipe("h18s_cocolvis")
    assert h18s.data == h18.data
    assert h18s.optim == h18.optim
    assert (h18.batch, h18s.batch, h18.epochs) == (28, 32, 230)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("optim.lrr=1", "unknown key 'optim.lrr'; did you mean 'lr'?"),
        ("clicks.round=1", "unknown key 'clicks.round'; did you mean 'rounds'?"),
        ("optim.lr=-1", "optim.lr: input should be greater than 0"),
        ("data.augment.flip=2", "data.augment.flip: input should be less than or equal to 1"),
        ("clicks={background: 0, other: 0, border: 0}", "clicks: background, other and border"),
        ("losses=[{nam: nfl}]", "losses.0.name. is missing"),
        ("nonsense", "write key=value, for example `changes` optim.lr=1e-4"),
    ],
)
def test_wrong_settings_name_themselves(change: str, told: str) -> None:
    with pytest.raises(HrsegError, match=told):
        load_recipe("h18_cocolvis", [change])


def test_what_cannot_be_both_is_refused() -> None:
    with pytest.raises(HrsegError, match=r"model\.weights or model\.backbone, not both"):
        load_recipe("h18_cocolvis", ["model.weights=a", "model.backbone=b"])


def test_unknown_names_and_parts_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="Did you mean 'h18_cocolvis'"):
        load_recipe("h18_coco")
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\n")
    with pytest.raises(HrsegError, match="'data' is missing"):
        load_recipe(str(path))
    path.write_text("extends: tiny_procedural\nname: mine\nepochs: 1\n")
    assert load_recipe(str(path)).data == load_recipe("tiny_procedural").data


def test_folders_below_are_part_of_the_name(tmp_path: Path) -> None:
    """And a protocol is no recipe."""
    assert "paper/t3_lora" in recipe_names()
    assert not any(name.startswith("protocols") for name in recipe_names())
    with pytest.raises(UnknownName, match="Did you mean 'paper/t3_lora'"):
        load_recipe("paper/t3_lor")
    path = tmp_path / "mine.yaml"
    path.write_text("extends: paper/t3_lora\nname: mine\n")
    assert load_recipe(str(path)).losses == load_recipe("paper/t3_lora").losses


def test_a_circle_through_folders_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "one.yaml").write_text("extends: below/two\n")
    (tmp_path / "below" / "two.yaml").write_text("extends: ../one\n")
    with pytest.raises(HrsegError, match="forms a cycle"):
        load_recipe(str(tmp_path / "one.yaml"))


FAR: dict[str, list[str]] = {
    "recipe": [
        "data.augment.brightness=[.nan,.nan]", "data.augment.scale=[2,1]", "data.augment.scale=[.inf,.inf]",
        "data.augment.zoom_expansion=[1,1000]", "data.augment.rgb_shift=1000", "data.crop=[100000,100000]",
        "data.composite.area=[0.5,2]", "data.composite.feather=[1e9,1e9]", "clicks.max_points=99999999",
        "clicks.rounds=99999999", "batch=99999999", "optim.lr=.inf", "loss_schedule.step=.nan", "data.longest=70000",
        "validation.max_clicks=99999999", "clicks.expand_ratio=1e9", "optim.milestones=[-1]",
    ],
    "protocol": [
        "zoom.expansion=.inf", "zoom.target=100000", "zoom.target=[100000,5]", "zoom.pad=100000", "max_clicks=99999999",
        "threshold=.nan", "tiles.size=100000", "zoom.min_crop=99999999",
    ],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "change"), [(kind, change) for kind, changes in FAR.items() for change in changes])
def test_settings_that_would_fail_later_are_refused_at_once(kind: str, change: str) -> None:
    """After 34 seconds and 3.8 GB, as one of them did."""
    load = {"recipe": partial(load_recipe, "tiny_procedural"), "protocol": partial(load_protocol, "ritm")}[kind]
    with pytest.raises(HrsegError, match=re.escape(change.partition("=")[0])):
        load([change])


def test_a_bomb_of_aliases_is_not_written_into_the_message(tmp_path: Path) -> None:
    levels = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 4)]
    (tmp_path / "p.yaml").write_text("\n".join(["a0: &a0 [x, x, x]", *levels, "name: x", "threshold: *a3"]))
    with pytest.raises(HrsegError) as error:
        load_protocol(str(tmp_path / "p.yaml"))
    assert len(str(error.value)) < 1000
