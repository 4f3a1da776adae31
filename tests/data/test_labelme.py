"""labelme's files, and X-AnyLabeling's: the fields of their documentation, drawn by other code."""

from __future__ import annotations

import base64
import io
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from hrseg_cli.data.datasets import open_dataset
from hrseg_cli.data.exports import Exported, Shape, files
from hrseg_cli.data.index import Index, build_index
from hrseg_cli.data.masks_out import run_lengths
from hrseg_cli.data.samples import load, load_with_rule
from hrseg_cli.errors import HrsegError, UnknownName

SIZE = 40, 60
SQUARE = [[10, 5], [30, 5], [30, 20], [10, 20]]


def shape(label: str, points: Any, kind: str = "polygon", group: Any = None, **more: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "group_id": group, "shape_type": kind, "flags": {}, **more}


def put(folder: Path, name: str, *shapes: Any, image: str = "", **more: Any) -> Path:
    """A JSON file, and its image next to it."""
    folder.mkdir(parents=True, exist_ok=True)
    image = image or f"{name}.jpg"
    Image.fromarray(np.full((*SIZE, 3), 90, np.uint8)).save(folder / image)
    content = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": image, "imageData": None}
    content |= {"imageHeight": SIZE[0], "imageWidth": SIZE[1], **more}
    (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def truths(folder: Path, options: str = "") -> dict[str, np.ndarray]:
    loaded = [load_with_rule(ref) for ref in open_dataset(f"{folder}{options}")]
    assert {used for _, used in loaded} == {"labelme"}
    return {sample.id: sample.truth == 1 for sample, _ in loaded}


def png(mask: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_every_kind_of_area_is_an_object_and_a_group_is_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    patch = np.random.default_rng(0).random((8, 9)) > 0.5
    put(
        tmp_path / "d",
        "a",
        shape("cat", SQUARE),
        shape("dog", [[40, 20], [46, 20]], "circle"),
        shape("cat", [[40, 30], [48, 37]], "mask", mask=png(patch)),
        shape("cup", [[0, 0], [5, 0], [5, 5]], group=3),
        shape("cup", [[50, 0], [55, 0], [55, 5], [50, 5]], "rotation", group=3, direction=1.5),
        shape("box", [[1, 1], [9, 9]], "rectangle"),
        shape("dot", [[3, 3]], "point"),
    )
    with caplog.at_level(logging.WARNING):
        found = truths(tmp_path / "d")
    assert "skipped 2 rectangles, lines and points" in caplog.text
    assert list(found) == ["a#0", "a#1", "a#2", "a#3"]
    square, circle, pasted, cup = found.values()
    assert np.array_equal(np.argwhere(square)[[0, -1]], [[5, 10], [19, 29]])
    assert abs(circle.sum() - np.pi * 36) < 6
    assert circle[20, 40]
    expected = np.zeros(SIZE, bool)
    expected[30:38, 40:49] = patch
    assert np.array_equal(pasted, expected)
    assert cup[1, 3]
    assert cup[2, 52]
    drawn = Image.new("1", SIZE[::-1])
    ImageDraw.Draw(drawn).polygon([(x - 0.5, y - 0.5) for x, y in SQUARE], fill=1)
    assert (np.asarray(drawn) & square).sum() / (np.asarray(drawn) | square).sum() > 0.85


def test_what_hrseg_exports_comes_back(tmp_path: Path) -> None:
    """With a hole and in two parts, from a folder apart from the image."""
    row, col = np.mgrid[: SIZE[0], : SIZE[1]]
    mask = (np.hypot(row - 20, col - 20) < 15) & (np.hypot(row - 20, col - 20) > 5)
    mask[4:10, 45:55] = True
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(tmp_path / "a.png")
    its = Exported("a.png", tmp_path / "a.png", SIZE, (Shape("cat", run_lengths(mask)["counts"], 0.0),))
    for path, text in files(["labelme"], [its], folder=tmp_path / "out").items():
        (tmp_path / "out" / path).parent.mkdir(parents=True)
        (tmp_path / "out" / path).write_text(text())
    assert np.array_equal(truths(tmp_path / "out" / "labelme")["a#0"], mask)


def test_labels_can_be_chosen_and_the_index_has_the_objects(tmp_path: Path) -> None:
    folder = put(tmp_path / "d", "a", shape("cat", SQUARE), shape("dog", SQUARE))
    put(tmp_path / "d", "b", shape("dog", SQUARE), image="b.png", imageHeight=None, imageWidth=str(SIZE[1]))
    put(tmp_path / "d" / "sub", "c")
    assert list(truths(folder)) == ["a#0", "a#1", "b#0"]
    assert list(truths(folder, ":category=dog")) == ["a#1", "b#0"]
    with pytest.raises(UnknownName, match="dogs"):
        open_dataset(f"{folder}:category=dogs")
    summary = build_index(str(folder))
    assert (summary.objects, summary.problems) == (3, [])
    assert np.array_equal(load(Index(folder / "index.jsonl")[1]).truth == 1, truths(folder)["a#1"])


def test_images_are_looked_for_next_to_the_file_whatever_the_path(tmp_path: Path) -> None:
    """An absolute path is that of another machine, or of a file that is none of ours."""
    elsewhere = put(tmp_path / "elsewhere", "b", shape("cat", SQUARE)) / "b.jpg"
    for path in (str(elsewhere), "C:\\photos\\b.jpg", "x" * 5000 + ".jpg"):
        folder = put(tmp_path / "d", "a", shape("cat", SQUARE))
        content = json.loads((folder / "a.json").read_text()) | {"imagePath": path}
        (folder / "renamed.json").write_text(json.dumps(content))
        with pytest.raises(HrsegError, match=r"renamed.json: no image renamed.jpg or"):
            open_dataset(str(folder))
    Image.fromarray(np.full((*SIZE, 3), 90, np.uint8)).save(tmp_path / "d" / "b.jpg")
    (tmp_path / "d" / "renamed.json").write_text(json.dumps(content | {"imagePath": "C:\\photos\\b.jpg"}))
    assert {ref.image.name for ref in open_dataset(str(tmp_path / "d"))} == {"a.jpg", "b.jpg"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"shapes": 3}', "no list 'shapes'"),
        ("[", "cannot be read as JSON"),
        ('{"images": [], "annotations": []}', "a COCO file, not one of labelme"),
        ({"shapes": [shape("cat", SQUARE), 7]}, "no list 'shapes'"),
        ({"shapes": [shape([], SQUARE)]}, "shape 0: no valid label"),
        ({"shapes": [shape("cat", SQUARE, group=[1])]}, "shape 0: no valid label"),
        ({"shapes": [shape("cat", SQUARE[:2])]}, "object 0 .'cat'.: a polygon of 4 numbers"),
        ({"shapes": [shape("cat", [[1, 2, 3]])]}, "object 0"),
        ({"shapes": [shape("cat", "abc")]}, "object 0"),
        ({"shapes": [shape("cat", [[1e300, 2], [3, 4], [5, 6]])]}, "far outside"),
        ({"shapes": [shape("cat", [[float("nan"), 2], [3, 4], [5, 6]])]}, "not numbers"),
        ({"shapes": [shape("cat", [[1, 1]], "circle")]}, "object 0"),
        ({"shapes": [shape("cat", [[1, 1], [99, 9]], "mask", mask="")]}, "outside its image"),
        ({"shapes": [shape("cat", [[1, 1], [3, 3]], "mask", mask="$$")]}, "not base64"),
        ({"shapes": [shape("cat", [[1, 1], [3, 3]], "mask", mask=png(np.ones((9, 9))))]}, "9x9 pixels in a box"),
        ({"shapes": [shape("cat", [[1, 1], [3, 3]], "mask", mask=png(np.zeros((3, 3))))]}, "covers no pixel"),
        ({"shapes": [shape("cat", SQUARE)], "imageHeight": 7}, "gives 60x7 for"),
        ({"shapes": [shape("cat", SQUARE)], "imageWidth": "x"}, "imageWidth is 'x'"),
        ({"shapes": [shape("cat", SQUARE)], "imagePath": 3}, "imagePath is 3"),
    ],
)
def test_a_broken_file_is_one_line_and_the_others_stay(content: Any, message: str, tmp_path: Path) -> None:
    folder = put(tmp_path / "d", "a", shape("cat", SQUARE))
    put(folder, "b")
    text = content if isinstance(content, str) else json.dumps({"imagePath": "b.jpg", **content})
    (folder / "b.json").write_text(text)
    with pytest.raises(HrsegError, match=message):
        [load(ref) for ref in open_dataset(str(folder))]
    broken: list[str] = []
    assert [ref.id for ref in open_dataset(str(folder), broken=broken)] == ["a#0"]
    assert len(broken) == 1
    assert "b.json" in broken[0]


def test_an_image_may_be_elsewhere_but_must_exist(tmp_path: Path) -> None:
    folder = put(tmp_path / "d", "a", shape("cat", SQUARE), image="other.png")
    assert load(open_dataset(str(folder))[0]).image.shape == (*SIZE, 3)
    (folder / "other.png").unlink()
    with pytest.raises(HrsegError, match=r"no image a.jpg or 'other.png' next to it"):
        open_dataset(str(folder))


def test_a_single_file_is_told_from_coco(tmp_path: Path) -> None:
    folder = put(tmp_path / "d", "a", shape("cat", SQUARE))
    with pytest.raises(HrsegError, match="a file of labelme, not of COCO; give its folder"):
        open_dataset(str(folder / "a.json"))
