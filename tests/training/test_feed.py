"""Training samples from the datasets that recipes name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_photos
import tiny_sets
import torch
from PIL import Image

from hrseg_cli.data.datasets import open_dataset
from hrseg_cli.data.index import Index, build_index
from hrseg_cli.data.known import list_parts
from hrseg_cli.data.refs import Ref
from hrseg_cli.data.views import Decoded, Scene, cache_longest, load_scene
from hrseg_cli.errors import HrsegError
from hrseg_cli.metrics.masks import iou
from hrseg_cli.recipe import Recipe, load_recipe, recipe_of
from hrseg_cli.recipe.training import Part
from hrseg_cli.training import feed
from hrseg_cli.training.feed import Feed, open_part, training_images


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    tiny_sets.write_all(folder)
    return folder


def small(name: str, *changes: str) -> Recipe:
    fixed = ["data.crop=[48, 64]", "data.min_area=1", "data.epoch=4", "data.augment.keep_background=0"]
    return load_recipe(name, [*fixed, *changes])


@pytest.mark.parametrize(
    "name", ["h18_cocolvis", "h18s_cocolvis", "h32_cocolvis", "h18_paper", "adapt_lora", "adapt_conv"]
)
def test_recipes_find_their_known_data(name: str, root: Path, tmp_path: Path) -> None:
    recipe = small(name, "data.held_out=0")
    sample = Feed(training_images(recipe.data, root, tmp_path), recipe)[(0, 0, 0)]
    assert sample["image"].shape == (3, 48, 64)
    assert sample["truth"].shape == (1, 48, 64)
    assert sample["points"].shape == (48, 3)
    assert ("distance" in sample) == name.startswith("adapt")


def test_stuff_comes_as_often_as_asked(root: Path, tmp_path: Path) -> None:
    """Without compositing the same image has fewer objects; with probability 1 an object is always pasted."""
    seen = {}
    for share in (0, 1):
        part = f"data.parts=[{{dataset: 'coco_lvis:split=train,stuff=1', stuff: {share}}}]"
        recipe = small("h18_cocolvis", part, "data.augment.scale=[1, 1]", "clicks.merge_probability=0")
        images = training_images(recipe.data, root, tmp_path)
        assert any(ref.stuff is not None for scene in images[0] for ref in scene)
        feed = Feed(images, recipe)
        seen[share] = [feed[(epoch, 0, 0)]["truth"].numpy() for epoch in range(30)]
    assert not all(np.array_equal(a, b) for a, b in zip(seen[0], seen[1], strict=True))


def test_a_fresh_index_is_read_instead_of_the_files(root: Path) -> None:
    part = Part(dataset="coco_lvis:split=val")
    listed = open_part(part, root)
    assert isinstance(listed, list)
    build_index(list_parts("coco_lvis", split="val", root=root)[0])
    indexed = open_part(part, root)
    assert isinstance(indexed, Index)
    assert [ref.id for ref in indexed] == [ref.id for ref in listed]


def test_smaller_copies_are_made_once(root: Path, tmp_path: Path) -> None:
    settings = {"name": "x", "data": {"parts": [{"dataset": "berkeley:split=val"}], "longest": 64, "crop": [32, 32]}}
    recipe = recipe_of(settings, "test")
    images = training_images(recipe.data, root, tmp_path)
    first = images[0][0][0].image
    assert first.is_relative_to(tmp_path)
    written = first.stat().st_mtime_ns
    training_images(recipe.data, root, tmp_path)
    assert first.stat().st_mtime_ns == written


def test_smaller_copies_of_sets_of_one_name_stay_apart(tmp_path: Path) -> None:
    """Equal stems in A/val and B/val, or in parts of a composed dataset, are different images."""
    for place, value in (("a", 60), ("b", 200)):
        for part, pixel in (("images", value), ("masks", 255)):
            folder = tmp_path / place / "val" / part
            folder.mkdir(parents=True)
            Image.fromarray(np.full((80, 90), pixel, np.uint8)).save(folder / "1.png")
    parts = [{"dataset": str(tmp_path / place / "val")} for place in "ab"]
    recipe = recipe_of({"name": "x", "data": {"parts": parts, "longest": 64, "crop": [32, 32]}}, "test")
    images = training_images(recipe.data, None, tmp_path / "copies")
    assert [round(load_scene(part[0]).image.mean()) for part in images] == [60, 200]
    both = [ref for part in parts for ref in open_part(Part(**part), None)]
    copies = open_dataset(str(cache_longest(both, tmp_path / "both", 64)))
    assert sorted(round(load_scene([ref]).image.mean()) for ref in copies) == [60, 200]


def test_of_a_crowded_image_a_few_objects_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most max_objects, drawn per sample and equal for equal keys; one from a donor."""
    for kind in ("images", "masks"):
        (tmp_path / "crowd" / kind).mkdir(parents=True)
    ids = np.kron(np.arange(12, dtype=np.uint8).reshape(3, 4) + 1, np.ones((16, 16), np.uint8))
    Image.fromarray(ids).save(tmp_path / "crowd" / "masks" / "a.png")
    Image.fromarray(np.repeat(ids[:, :, None] * 20, 3, 2)).save(tmp_path / "crowd" / "images" / "a.png")
    loaded: list[list[str]] = []

    def spied(refs: tuple[Ref, ...], decoded: Decoded) -> Scene:
        loaded.append([ref.id for ref in refs])
        return load_scene(refs, decoded)

    monkeypatch.setattr(feed, "load_scene", spied)
    data = {"parts": [{"dataset": str(tmp_path / "crowd"), "instances": True}], "crop": [32, 32], "min_area": 1}
    data |= {"epoch": 20, "max_objects": 3, "composite": {"probability": 1.0}}
    recipe = recipe_of({"name": "x", "data": data}, "test")
    samples = Feed(training_images(recipe.data, None, tmp_path), recipe)
    first = [samples[(0, step, 0)] for step in range(8)]
    own, donors = loaded[::2], loaded[1::2]
    assert {len(ids) for ids in own} == {3}
    assert {len(ids) for ids in donors} == {1}
    assert len({tuple(ids) for ids in own}) > 4
    assert all(ids == sorted(ids, key=lambda name: int(name.partition("#")[2])) for ids in own)
    again = samples[(0, 5, 0)]
    assert loaded[16] == own[5]
    assert all((again[key] == first[5][key]).all() for key in again)


def test_all_held_out_is_told(root: Path, tmp_path: Path) -> None:
    settings = {"name": "x", "data": {"parts": [{"dataset": "berkeley:split=val"}], "held_out": 0.9999}}
    with pytest.raises(HrsegError, match="all of berkeley:split=val is held out"):
        training_images(recipe_of(settings, "test").data, root, tmp_path)


def test_close_ups_of_outlines_as_focus_views(tmp_path: Path) -> None:
    """FocusCut's samples: a square of the size of the object around a point of its outline, a previous mask that is
    clearly wrong, and a click in the centre with the label of the truth."""
    photos = tiny_photos.boxes(tmp_path / "boxes")
    changes = [
        f"data.parts=[{{dataset: {photos}}}]", "data.crop=[48, 64]", "data.epoch=12", "clicks.focus=1",
        "data.held_out=0", "data.composite.probability=0",
    ]  # fmt: skip
    recipe = load_recipe("tiny_procedural", changes)
    views = Feed(training_images(recipe.data, None, tmp_path), recipe)
    centres = set()
    for step in range(12):
        sample, again = views[0, step, 0], views[0, step, 0]
        assert all(torch.equal(sample[key], again[key]) for key in sample)
        truth, previous = sample["truth"][0].numpy(), sample["previous"][0].numpy()
        assert truth.shape == previous.shape == (48, 64)
        assert 0.1 < (truth == 1).mean() < 0.9  # the outline passes near the centre
        assert iou(previous > 0, truth) < 0.61
        half = len(sample["points"]) // 2
        assert [24, 32] in sample["points"][:, :2].tolist()
        centres.add(int(truth[24, 32]))
        for slot, (row, col, _) in enumerate(sample["points"].int().tolist()):
            assert row < 0 or truth[row, col] == (1 if slot < half else 0)
    assert centres == {0, 1}
    mixed = Feed(views.images, load_recipe("tiny_procedural", [*changes, "clicks.focus=0.5"]))
    known = [bool(mixed[0, step, 0]["previous"].any()) for step in range(12)]
    assert any(known)
    assert not all(known)
    plain = Feed(views.images, load_recipe("tiny_procedural", changes[:3]))
    assert "previous" not in plain[0, 0, 0]
