"""Files about many images, read back by the rules of the programs that they are for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw
from pycocotools.coco import COCO

from hrseg_cli.data.exports import KINDS, Exported, Shape, category_of, files, names_below
from hrseg_cli.data.masks_out import run_lengths
from hrseg_cli.errors import HrsegError

# pycocotools 2.0.11 decodes by way of NumPy 1's array protocol.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SIZE = 90, 140


def ring() -> np.ndarray:
    """An object in two parts, one with a hole."""
    row, col = np.mgrid[: SIZE[0], : SIZE[1]]
    away = np.hypot(row - 45, col - 50)
    mask: np.ndarray = (away < 35) & (away > 12)
    mask[10:30, 110:135] = True
    return mask


def box() -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[60:85, 100:130] = True
    return mask


MASKS = {"a": [("cat", ring()), ("dog", box())], "b": [("dog", ring()), ("empty", np.zeros(SIZE, bool))], "c": []}


def written(folder: Path, *kinds: str, labels: tuple[str, ...] = ()) -> Path:
    pictures = [
        Exported(
            f"{'sub/' if stem == 'b' else ''}{stem}.jpg",
            folder / "photos" / f"{stem}.jpg",
            SIZE,
            tuple(Shape(name, run_lengths(mask)["counts"], 0.5) for name, mask in its),
        )
        for stem, its in MASKS.items()
    ]
    for path, text in files(kinds, pictures, labels, folder).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text(), encoding="utf-8")
    return folder


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


def test_pycocotools_reads_one_file_with_all_images_and_categories(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco = COCO(written(tmp_path, "coco") / "coco.json")
    named = {one["id"]: one["name"] for one in coco.loadCats(coco.getCatIds())}
    assert list(named.values()) == ["cat", "dog", "empty"]
    assert [coco.imgs[key]["file_name"] for key in coco.getImgIds()] == ["a.jpg", "sub/b.jpg", "c.jpg"]
    found = [coco.anns[key] for key in coco.getAnnIds()]
    wanted = [(number, *one) for number, its in enumerate(MASKS.values(), 1) for one in its if one[1].any()]
    for annotation, (image, name, mask) in zip(found, wanted, strict=True):
        assert (annotation["image_id"], named[annotation["category_id"]]) == (image, name)
        assert np.array_equal(coco.annToMask(annotation).astype(bool), mask)
        assert annotation["area"] == mask.sum()
    assert found[1]["bbox"] == [100, 60, 30, 25]
    assert "Done" in capsys.readouterr().out


def test_yolo_finds_a_line_per_object_and_the_names_of_its_classes(tmp_path: Path) -> None:
    """Its rule: images/A.jpg has labels/A.txt; a line is a class and a polygon, from 0 to 1, or a box."""
    written(tmp_path, "yolo", "yolo_boxes")
    for kind in ("yolo", "yolo_boxes"):
        names = yaml.safe_load((tmp_path / kind / "data.yaml").read_text())["names"]
        assert names == {0: "cat", 1: "dog", 2: "empty"}
        for path, its in (("a", MASKS["a"]), ("sub/b", MASKS["b"][:1]), ("c", [])):
            lines = (tmp_path / kind / "labels" / f"{path}.txt").read_text().splitlines()
            for line, (name, mask) in zip(lines, its, strict=True):
                number, *values = line.split()
                places = np.array(values, float)
                assert names[int(number)] == name
                assert (places >= 0).all()
                assert (places <= 1).all()
                if kind == "yolo_boxes":
                    x, y, width, height = places * ([SIZE[1], SIZE[0]] * 2)
                    rows, cols = np.nonzero(mask)
                    assert np.allclose([x - width / 2, x + width / 2], [cols.min(), cols.max() + 1], atol=1e-3)
                    assert np.allclose([y - height / 2, y + height / 2], [rows.min(), rows.max() + 1], atol=1e-3)
                    continue
                corners = np.rint(places.reshape(-1, 2) * [SIZE[1], SIZE[0]] * 16 - 8).astype(np.int32)
                filled = np.zeros(SIZE, np.uint8)
                cv2.fillPoly(filled, [corners], 1, shift=4)
                assert iou(filled > 0, mask) > 0.93
                assert not filled[45, 50] or mask[45, 50], "the hole stays open"


def test_labelme_opens_the_image_and_the_parts_of_an_object(tmp_path: Path) -> None:
    """Its fields, as labelme 5 loads them."""
    written(tmp_path, "labelme")
    for path, its in (("a", MASKS["a"]), ("sub/b", MASKS["b"][:1]), ("c", [])):
        file = tmp_path / "labelme" / f"{path}.json"
        content = json.loads(file.read_text())
        assert (file.parent / content["imagePath"]).resolve() == tmp_path / "photos" / f"{Path(path).name}.jpg"
        assert (content["imageHeight"], content["imageWidth"], content["imageData"]) == (*SIZE, None)
        assert content["flags"] == {}
        objects: dict[Any, list[Any]] = {}
        for number, shape in enumerate(content["shapes"]):
            assert shape.keys() == {"label", "points", "group_id", "description", "shape_type", "flags", "mask"}
            assert shape["shape_type"] == "polygon"
            key = shape["label"], number if shape["group_id"] is None else f"group {shape['group_id']}"
            objects.setdefault(key, []).append(shape["points"])
        for (name, _), rings, (wanted, mask) in zip(objects, objects.values(), its, strict=True):
            drawn = Image.new("1", SIZE[::-1])
            for ring_ in rings:
                ImageDraw.Draw(drawn).polygon([tuple(point) for point in ring_], fill=1, outline=1)
            assert name == wanted
            assert iou(np.asarray(drawn), mask) > 0.9
    moved = files(["labelme"], [Exported("sub/b.jpg", tmp_path / "b.jpg", SIZE, ())])["labelme/sub/b.json"]
    assert json.loads(moved())["imagePath"] == "b.jpg", "next to the file, wherever that will be"


def test_labels_are_the_first_categories_used_or_not(tmp_path: Path) -> None:
    content = json.loads((written(tmp_path, "coco", labels=("bird", "dog")) / "coco.json").read_text())
    assert [one["name"] for one in content["categories"]] == ["bird", "dog", "cat", "empty"]
    assert [one["category_id"] for one in content["annotations"]] == [3, 2, 2]


def test_names_of_objects_and_images_become_categories_and_paths() -> None:
    names = ["", "1", "cat", "cat 2", "cat_12", "class1", "2 cats"]
    assert [category_of(name) for name in names] == ["object", "object", "cat", "cat", "cat", "class1", "2 cats"]
    assert names_below([Path("p/a.jpg"), Path("p/q/b.jpg")]) == ["a.jpg", "q/b.jpg"]
    assert names_below([]) == []
    assert files(KINDS, [Exported('5".jpg', Path('5".jpg'), SIZE, ())])["yolo/data.yaml"]().endswith("names: {}\n")


@pytest.mark.parametrize("kind", ["yolo", "yolo_boxes", "labelme"])
def test_two_images_do_not_share_a_file(kind: str) -> None:
    alike = [Exported(name, Path(name), SIZE, ()) for name in ("a.jpg", "A.png")]
    with pytest.raises(HrsegError, match=f"a.jpg and A.png: `formats` {kind} would write both"):
        files([kind], alike)
    assert list(files(["coco"], alike)) == ["coco.json"]
