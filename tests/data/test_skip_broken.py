"""Datasets with broken files: everything else is used, and the files are named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_photos import boxes

from hrseg_cli.data.datasets import moved, open_dataset, open_datasets, open_for_training
from hrseg_cli.errors import HrsegError


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """Eight images: one is cut off, one is empty, a mask is of another size, one has no object."""
    folder = boxes(tmp_path / "set")
    whole = (folder / "images" / "1.png").read_bytes()
    (folder / "images" / "1.png").write_bytes(whole[: len(whole) // 2])
    (folder / "images" / "2.png").write_bytes(b"")
    Image.fromarray(np.full((9, 9), 255, np.uint8)).save(folder / "masks" / "4.png")
    Image.fromarray(np.zeros((56, 72), np.uint8)).save(folder / "masks" / "6.png")
    return folder


def test_good_objects_stay_and_broken_files_are_named(damaged: Path) -> None:
    broken: list[str] = []
    refs = open_dataset(str(damaged), broken=broken)
    assert [ref.id for ref in refs] == ["0", "3", "5", "7"]
    for file, line in zip(("images/1.png", "images/2.png", "masks/4.png", "masks/6.png"), broken, strict=True):
        assert line.startswith(f"{damaged / file}: ")
    assert open_for_training(str(damaged), broken=broken) == refs
    assert len(broken) == 4, "each once"
    assert [ref.id for ref in open_dataset(str(damaged), broken=[], limit=2)] == ["0", "3"]
    halves = [{ref.id for ref in open_dataset(f"{damaged}:{part}=0.5", broken=[])} for part in ("held", "kept")]
    assert halves[0] | halves[1] == {"0", "3", "5", "7"}
    Image.fromarray(np.full((56, 72), 255, np.uint8)).save(damaged / "masks" / "6.png")
    assert "6" in {ref.id for ref in open_dataset(str(damaged), broken=[])}, "repaired meanwhile"


def test_masks_with_several_objects_too(tmp_path: Path) -> None:
    folder = boxes(tmp_path / "set")
    for path in (folder / "masks").iterdir():
        Image.fromarray(np.asarray(Image.open(path)) // 127).save(path)
    (folder / "masks" / "3.png").write_bytes(b"x")
    broken: list[str] = []
    opened = open_datasets([f"mine={folder}"], instances=True, broken=broken)
    assert [ref.id for ref in opened.refs] == [f"{k}#2" for k in (0, 1, 2, 4, 5, 6, 7)]
    assert len(broken) == 1


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    folder = boxes(tmp_path / "set")
    for path in (folder / "images").iterdir():
        path.write_bytes(b"x")
    with pytest.raises(HrsegError, match=r"no object in sound files; .*0.png: cannot be read as an image"):
        open_dataset(str(folder), broken=[])


def test_a_listed_image_that_is_missing_is_one_of_them(tmp_path: Path) -> None:
    images = [{"id": k, "file_name": f"{k}.png", "height": 56, "width": 72} for k in range(2)]
    square = [[5, 5, 30, 5, 30, 30, 5, 30]]
    annotations = [{"id": k, "image_id": k, "category_id": 1, "segmentation": square} for k in range(2)]
    (tmp_path / "c.json").write_text(json.dumps({"images": images, "annotations": annotations, "categories": []}))
    Image.fromarray(np.zeros((56, 72, 3), np.uint8)).save(tmp_path / "1.png")
    with pytest.raises(HrsegError, match=r"no file '0.png'"):
        open_dataset(str(tmp_path / "c.json"))
    broken: list[str] = []
    assert [ref.id for ref in open_dataset(str(tmp_path / "c.json"), broken=broken)] == ["1#1"]
    assert "no file '0.png'" in broken[0]


def test_data_that_moved_is_found_below_the_new_root(tmp_path: Path) -> None:
    """By the longest end of its old path; what is still there, and names of datasets, stay."""
    for name in ("new/sets/one", "new/two"):
        boxes(tmp_path / name)
    new = tmp_path / "new"
    assert moved("/old/sets/one:held=0.5", new) == f"{new}/sets/one:held=0.5"
    assert moved("mine=/old/disk/two", new) == f"mine={new}/two"
    assert moved("/old/three", new) == "/old/three"
    assert moved("/old/two", None) == "/old/two"
    assert moved(str(new / "two"), tmp_path) == str(new / "two")
    assert moved("davis", new) == "davis"
    assert moved("procedural:count=3", new) == "procedural:count=3"
