"""Folders as others keep them: masks with several objects, and images in sub-folders."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as pycoco
from pydantic import TypeAdapter
from tiny_photos import SIZE, SQUARES, SameColour, folder_of, truth

from hrseg_cli.annotate import folder as annotate_folder
from hrseg_cli.annotate.acts import AnyAct
from hrseg_cli.annotate.desk import Desk
from hrseg_cli.annotate.export import KINDS, zipped
from hrseg_cli.annotate.folder import Folder
from hrseg_cli.data.datasets import open_dataset
from hrseg_cli.data.samples import load
from hrseg_cli.errors import HrsegError
from hrseg_cli.recipe import load_protocol

# pycocotools 2.0.11 decodes by way of NumPy 1's array protocol.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

RED, GROUND = {"row": 30, "col": 30, "positive": True}, {"row": 5, "col": 5, "positive": True}


def desk_of(place: Path) -> Desk:
    protocol = load_protocol("plain")
    return Desk(Folder(place, protocol.threshold), SameColour(), {"name": "tiny"}, protocol)


def act(desk: Desk, number: int = 0, **asked: Any) -> dict[str, Any]:
    revision = desk.folder.pictures[number].revision
    return desk.act(number, TypeAdapter(AnyAct).validate_json(json.dumps({"revision": revision, **asked})))


def ids(dtype: Any = np.uint8) -> np.ndarray:
    values = np.zeros(SIZE, dtype)
    for value, name in enumerate(SQUARES, 3):
        values[SQUARES[name]] = value
    return values


def grey(path: Path) -> None:
    Image.fromarray(ids()).save(path)


def deep(path: Path) -> None:
    Image.fromarray(ids(np.uint16) * np.uint16(300)).save(path)


def palette(path: Path) -> None:
    image = Image.fromarray(ids())
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0, 0, 0, 128] + [9] * 753)
    image.save(path)


def shown(desk: Desk, number: int = 0) -> list[tuple[str, str, int]]:
    return [(one["key"], one["name"], one["area"]) for one in desk.picture(number)["objects"]]


BOTH = [("a_0", "object", truth("red").sum()), ("a_1", "object 2", truth("blue").sum())]


@pytest.mark.parametrize("save", [grey, deep, palette])
def test_a_mask_with_several_objects_is_opened_as_several(save: Callable[[Path], None], tmp_path: Path) -> None:
    place = folder_of(tmp_path / "shop", "a.png")
    (place / "masks").mkdir()
    whole = place / "masks" / "a.png"
    save(whole)
    before = whole.read_bytes()
    desk = desk_of(place)
    assert shown(desk) == BOTH
    assert shown(desk) == BOTH, "looking again changes nothing"
    assert whole.read_bytes() == before
    assert not (place / "annotations").exists(), "looking writes nothing"
    act(desk, do="click", object="a_1", **RED)
    assert not whole.exists()
    assert np.array_equal(np.asarray(Image.open(place / "masks" / "a_0.png")) == 255, truth("red"))
    assert np.array_equal(np.asarray(Image.open(place / "masks" / "a_1.png")) == 255, truth("red") | truth("blue"))
    assert before in [path.read_bytes() for path in (place / "annotations" / "start").iterdir()], "nothing is lost"
    act(desk, do="undo", object="a_1")
    assert shown(desk) == shown(desk_of(place)) == BOTH
    samples = {one.id: one for one in map(load, open_dataset(str(place)))}
    assert np.array_equal(samples["a_1"].truth == 1, truth("blue"))


def test_a_stop_while_it_is_split_leaves_the_mask_or_its_objects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = folder_of(tmp_path / "shop", "a.png")
    (place / "masks").mkdir()
    grey(place / "masks" / "a.png")
    written = annotate_folder.write_atomically
    desk = desk_of(place)

    def full(path: Path, data: bytes, durable: bool = True) -> None:
        if path.suffix == ".json":
            raise OSError(28, "No space left on device")
        written(path, data, durable)

    with monkeypatch.context() as now:
        now.setattr(annotate_folder, "write_atomically", full)
        with pytest.raises(OSError, match="No space"):
            act(desk, do="finish", finished=True)
    assert [path.name for path in (place / "masks").iterdir()] == ["a.png"]
    assert shown(desk) == BOTH
    with monkeypatch.context() as now:  # killed after the record is written
        now.setattr(Folder, "_settle_files", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            act(desk, do="finish", finished=True)
    assert (place / "masks" / "a.png").exists()
    again = desk_of(place)
    assert [path.name for path in sorted((place / "masks").iterdir())] == ["a_0.png", "a_1.png"]
    assert shown(again) == BOTH


def test_pairs_name_the_objects_once_they_are_split(tmp_path: Path) -> None:
    """Ids that alone could be one object's grey values are told apart by the table's kind."""
    place = folder_of(tmp_path / "shop", "a.png", "b.png", flat=True)
    (place / "masks").mkdir()
    Image.fromarray((ids() == 3).astype(np.uint8)).save(place / "masks" / "a.png")
    grey(place / "masks" / "b.png")
    (place / "pairs.csv").write_text("image,mask,kind,who\na.png,masks/a.png,instance,me\n")
    desk = desk_of(place)
    assert shown(desk) == BOTH[:1]
    assert len(shown(desk, 1)) == 2
    act(desk, 0, do="click", object=None, **GROUND)
    rows = list(csv.DictReader(io.StringIO((place / "pairs.csv").read_text())))
    assert [(row["mask"], row["kind"]) for row in rows] == [
        ("masks/a_0.png", ""),
        ("masks/a_1.png", ""),
        ("masks/b.png", "instance"),
    ], "b.png has been looked at, so its kind is known"
    act(desk, 1, do="delete", object="b_0")
    assert [load(ref).id for ref in open_dataset(str(place))] == ["a_0", "a_1", "b"]


def test_a_copy_and_an_export_take_one_object_of_several(tmp_path: Path) -> None:
    place = folder_of(tmp_path / "shop", "a.png", "b.png")
    (place / "masks").mkdir()
    grey(place / "masks" / "a.png")
    (place / "labels.txt").write_text("bird\nchair\n")
    desk = desk_of(place)
    with zipped(desk.folder, KINDS, False) as file, zipfile.ZipFile(file) as whole:
        names = whole.namelist()
        assert len(names) == len(set(names)) == 9
        assert {"masks/a_0.png", "masks/a_1.png", "instances/a.png", "labelme/a.json"} <= set(names)
        coco = json.loads(whole.read("coco.json"))
        assert [one["name"] for one in coco["categories"]] == ["bird", "chair", "object"]
        assert np.array_equal(pycoco.decode(coco["annotations"][1]["segmentation"]) == 1, truth("blue"))
        assert [line.split()[0] for line in whole.read("yolo/labels/a.txt").decode().splitlines()] == ["2", "2"]
        label = json.loads(whole.read("labelme/a.json"))
        assert (label["imagePath"], [one["label"] for one in label["shapes"]]) == ("a.png", ["object", "object"])
    assert [path.name for path in (place / "masks").iterdir()] == ["a.png"]
    act(desk, 1, do="copy", image=0, source="a_1")
    assert np.array_equal(np.asarray(Image.open(place / "masks" / "b_0.png")) == 255, truth("blue"))


def test_masks_with_names_of_other_programs_are_shown_and_get_our_names(tmp_path: Path) -> None:
    place = folder_of(tmp_path / "shop", "a.png", "b.png")
    (place / "masks").mkdir()
    for name, part in (("a.png.png", "red"), ("a_mask.png", "blue")):
        Image.fromarray(truth(part)).save(place / "masks" / name)
    grey(place / "masks" / "b_mask.png")
    desk = desk_of(place)
    assert [(key, area) for key, _, area in shown(desk)] == [("a_0", truth("red").sum()), ("a_1", truth("blue").sum())]
    assert len(shown(desk, 1)) == 2
    with zipped(desk.folder, ["masks"], False) as file, zipfile.ZipFile(file) as whole:
        assert sorted(whole.namelist()) == [f"masks/{key}.png" for key in ("a_0", "a_1", "b_1", "b_2")]
    act(desk, do="click", **GROUND)
    assert sorted(path.name for path in (place / "masks").iterdir()) == ["a_0.png", "a_1.png", "a_2.png", "b_mask.png"]
    assert len(shown(desk_of(place))) == 3


def test_images_in_sub_folders_are_annotated_where_they_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = folder_of(tmp_path / "shop", "a.png", flat=True)
    folder_of(place / "day 1", "a.png", "b.png", flat=True)
    folder_of(place / "day 1" / ".thumbs", "t.png", flat=True)
    (place / "day 1" / "c.jxl").write_bytes(b"x")
    desk = desk_of(place)
    assert "skipped 1 pictures" in caplog.text
    assert [one["name"] for one in desk.overview()["images"]] == ["a.png", "day 1/a.png", "day 1/b.png"]
    act(desk, 1, do="click", **RED)
    assert np.array_equal(np.asarray(Image.open(place / "masks" / "day 1" / "a_0.png")) == 255, truth("red"))
    again = desk_of(place)
    assert [len(shown(again, number)) for number in range(3)] == [0, 1, 0]
    samples = [load(ref) for ref in open_dataset(str(place))]
    assert [one.id for one in samples] == ["day 1/a"]
    with zipped(again.folder, ["yolo", "labelme"], False) as file, zipfile.ZipFile(file) as whole:
        assert whole.namelist() == ["yolo/labels/day 1/a.txt", "yolo/data.yaml", "labelme/day 1/a.json"]
    folder_of(place / "day 1", "a.jpg", flat=True)
    with pytest.raises(HrsegError, match="duplicate name"):
        desk_of(place)
