"""Labels, changes of whole masks, scribbles, copies, locks and exports, at the desk."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter
from tiny_photos import SIZE, SameColour, folder_of, truth

from hrseg_cli.annotate.acts import AnyAct, Refused
from hrseg_cli.annotate.desk import Desk
from hrseg_cli.annotate.export import zipped
from hrseg_cli.annotate.folder import Folder
from hrseg_cli.annotate.records import Clicked
from hrseg_cli.errors import HrsegError
from hrseg_cli.recipe import load_protocol

WISH: TypeAdapter[Any] = TypeAdapter(AnyAct)
RED, BLUE = {"row": 30, "col": 30}, {"row": 70, "col": 100}
BOTH = truth("red") | truth("blue")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "shop", "a.png", "b.png")


def desk_of(place: Path, model: str = "tiny") -> Desk:
    protocol = load_protocol("plain")
    return Desk(Folder(place, protocol.threshold), SameColour(), {"name": model}, protocol)


def act(desk: Desk, number: int = 0, **wish: Any) -> dict[str, Any]:
    revision = desk.folder.pictures[number].revision
    return desk.act(number, WISH.validate_json(json.dumps({"revision": revision, **wish})))


def stored(place: Path, key: str) -> np.ndarray:
    return np.asarray(Image.open(place / "masks" / f"{key}.png")) == 255


def line(row: int) -> dict[str, Any]:
    return {"do": "stroke", "points": [[row, 10], [row, 100]], "radius": 3}


# By hand


def test_what_was_painted_stays_through_another_model_and_a_foreign_change(place: Path) -> None:
    """Where somebody else has changed the mask since, theirs is the newer hand."""
    desk = desk_of(place)
    key = act(desk, **line(110))["object"]["key"]
    painted = stored(place, key)
    another = desk_of(place, "another")
    act(another, do="click", object=key, **RED)
    act(another, do="click", object=key, row=5, col=5, positive=False)  # takes the ground's colour away
    assert np.array_equal(stored(place, key), truth("red") | painted)
    changed = stored(place, key)
    changed[:, 50:] = False
    Image.fromarray(changed.astype(np.uint8) * 255).save(place / "masks" / f"{key}.png")
    act(another, do="click", object=key, row=5, col=6, positive=False)
    assert np.array_equal(stored(place, key), changed)
    assert act(another, do="click", object=key, row=110, col=20, positive=False)["note"].startswith("this pixel was")


def test_records_of_earlier_versions_give_the_masks_they_gave(place: Path) -> None:
    """Their strokes were not pinned, and their boxes did not end at the margin."""
    desk = desk_of(place)
    key = act(desk, **line(110))["object"]["key"]
    path = place / "annotations" / "images" / "a.json"
    record = json.loads(path.read_text())
    del record["objects"][0]["actions"][0]["pinned"], record["last"]
    path.write_text(json.dumps(record))
    act(desk_of(place), do="click", object=key, row=5, col=5, positive=False)
    assert not (place / "masks" / f"{key}.png").exists()


def test_a_box_is_answered_inside_it_and_a_margin(place: Path) -> None:
    desk = desk_of(place)
    key = act(desk, do="click", row=35, col=45, box=[25, 44, 35, 54])["object"]["key"]
    found = np.argwhere(stored(place, key))
    assert [*found.min(0), *found.max(0)] == [22, 32, 47, 57]
    act(desk, do="click", object=key, row=70, col=120, box=[60, 80, 100, 140])
    assert stored(place, key)[30, 40], "what was outside stays"


def test_a_scribble_is_one_action_of_several_clicks(place: Path) -> None:
    desk = desk_of(place)
    points = [[30, 30], [55, 60], [70, 100]]
    shown = act(desk, do="scribble", points=points)["object"]
    assert len(shown["clicks"]) > 2
    assert shown["undo"] == 1
    assert stored(place, "a_0")[truth("red") | truth("blue")].all()
    trace = json.loads((place / "annotations" / "traces.jsonl").read_text())
    assert trace["notes"] == {"scribbles": 1}
    assert len(trace["seconds"]) == len(trace["clicks"]) == len(shown["clicks"])
    act(desk, do="undo", object="a_0")
    assert not (place / "masks" / "a_0.png").exists()


def test_an_edited_outline_is_the_mask_and_stays(place: Path) -> None:
    desk = desk_of(place)
    key = act(desk, do="click", **RED)["object"]["key"]
    act(desk, do="outline", object=key, rings=[[[20, 20], [20, 90], [60, 90], [60, 20]]])
    wanted = np.zeros(SIZE, bool)
    wanted[20:60, 20:90] = True
    assert np.array_equal(stored(place, key), wanted)
    act(desk, do="click", object=key, row=5, col=5, positive=False)
    assert np.array_equal(stored(place, key), wanted)
    act(desk, do="shape", object=key, how="shrink")
    assert stored(place, key).sum() == wanted.sum() - 2 * (40 + 70) + 4
    act(desk, do="undo", object=key)
    assert np.array_equal(stored(place, key), wanted)
    for rings in ([[[20, 20], [20, 161], [60, 60]]], [[[k % 100, 0] for k in range(2501)]] * 2):
        with pytest.raises(Refused, match="outside the image, or has more than 5000 corners"):
            act(desk, do="outline", object=key, rings=rings)
    act(desk, do="outline", object=key, rings=[])
    assert not (place / "masks" / f"{key}.png").exists()


# Objects and labels


def test_labels_give_categories_names_and_colours(place: Path) -> None:
    (place / "labels.txt").write_text("cat\n\n dog \ncat\nbird\n")
    desk = desk_of(place)
    assert desk.overview()["labels"] == ["cat", "dog", "bird"]
    shown = act(desk, do="click", label="dog", **RED)["object"]
    assert (shown["name"], shown["colour"]) == ("dog", 1)
    act(desk, do="click", **BLUE)
    act(desk, do="rename", object="a_1", name="lamp")
    coco = json.loads((place / "annotations" / "coco.json").read_text())
    names = {one["id"]: one["name"] for one in coco["categories"]}
    assert names == {1: "cat", 2: "dog", 3: "bird", 4: "lamp"}
    assert [one["category_id"] for one in coco["annotations"]] == [2, 4]
    assert desk.overview()["labels"] == ["cat", "dog", "bird", "lamp"]
    shown = act(desk, 1, do="add", label="lamp")["object"]
    assert shown["colour"] == desk.folder.pictures[0].objects[1].colour
    (place / "labels.txt").write_text("a" * 61)
    with pytest.raises(HrsegError, match=r"labels\.txt: 'a+' is no label"):
        desk_of(place)


def test_locked_objects_do_not_change_and_objects_can_be_moved(place: Path) -> None:
    desk = desk_of(place)
    for at in (RED, BLUE):
        act(desk, do="click", **at)
    act(desk, do="lock", object="a_0", locked=True)
    before = stored(place, "a_0")
    wishes: list[dict[str, Any]] = [{"do": "click", **BLUE}, line(3), {"do": "undo"}, {"do": "delete"}]
    for wish in [*wishes, {"do": "rename", "name": "x"}, {"do": "shape", "how": "grow"}]:
        with pytest.raises(Refused, match="locked") as refused:
            act(desk, object="a_0", **wish)
        assert refused.value.status == 423
    assert np.array_equal(stored(place, "a_0"), before)
    assert act(desk, do="move", object="a_0", to=1)["order"] == ["a_1", "a_0"]
    desk = desk_of(place)
    assert [(one["key"], one["locked"]) for one in desk.picture(0)["objects"]] == [("a_1", False), ("a_0", True)]
    act(desk, do="lock", object="a_0", locked=False)
    act(desk, do="undo", object="a_0")


def test_objects_that_never_overlap(place: Path) -> None:
    desk = desk_of(place)
    act(desk, do="click", **RED)
    act(desk, do="stroke", points=[[40, 10], [40, 100]], radius=5, apart=True)
    assert not (stored(place, "a_0") & stored(place, "a_1")).any()
    assert stored(place, "a_1")[40, 90]
    act(desk, do="click", object="a_1", **BLUE)
    assert (stored(place, "a_0") & stored(place, "a_1")).any()


def test_a_mask_is_copied_to_another_image(place: Path) -> None:
    desk = desk_of(place)
    act(desk, do="click", **RED)
    act(desk, do="rename", object="a_0", name="box")
    shown = act(desk, 1, do="copy", image=0, source="a_0")["object"]
    assert (shown["key"], shown["name"], shown["undo"]) == ("b_0", "box", 0)
    desk = desk_of(place)
    act(desk, 1, do="click", object="b_0", **BLUE)
    assert np.array_equal(stored(place, "b_0"), BOTH)
    act(desk, 1, do="undo", object="b_0")
    assert np.array_equal(stored(place, "b_0"), truth("red"))
    Image.fromarray(np.zeros((10, 10, 3), np.uint8)).save(place / "images" / "c.png")
    desk = desk_of(place)
    for source in ("a_0", "../a", "a_9"):
        with pytest.raises(Refused):
            act(desk, 2, do="copy", image=0, source=source)
    with pytest.raises(Refused):
        act(desk, 1, do="copy", image=99, source="a_0")


def test_a_repeated_request_is_applied_once(place: Path) -> None:
    """Its answer may have been lost, and the server may have been started again since."""
    desk = desk_of(place)
    first = act(desk, do="click", ident="one", **RED)
    wish = {"do": "click", "object": "a_0", "ident": "two", "revision": 1, **BLUE}
    answers = [act(desk, **wish), act(desk, **wish)]
    answers.append(act(desk_of(place), **wish))
    assert answers[0]["revision"] == 2
    for answer in answers[1:]:
        assert answer == answers[0]
    assert len(first["order"]) == 1
    with pytest.raises(Refused, match="another tab"):
        act(desk, **{**wish, "ident": "three"})


def test_a_preview_changes_nothing_and_is_the_answer(place: Path) -> None:
    desk = desk_of(place)
    click = Clicked(row=70, col=100, positive=True)
    desk.preview(0, 0, None, click)
    assert not (place / "annotations").exists()
    act(desk, do="click", **RED)
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    shown = desk.preview(0, 1, "a_0", click)
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before
    answer = act(desk, do="click", object="a_0", **BLUE)["object"]
    assert answer["mask"] == shown
    assert answer["seconds"] > 0, "that the model took for the preview"
    for revision, key in ((1, "a_0"), (2, "a_9")):
        with pytest.raises(Refused):
            desk.preview(0, revision, key, click)


# Export


def test_an_export_has_what_was_asked_for(place: Path) -> None:
    desk = desk_of(place)
    for at in (RED, BLUE):
        act(desk, do="click", **at)
    act(desk, do="stroke", object="a_1", points=[[40, 40], [80, 120]], radius=3)
    act(desk, 1, do="click", **BLUE)
    act(desk, 1, do="finish", finished=True)
    with zipped(desk.folder, ["masks", "instances", "coco"], False) as file, zipfile.ZipFile(file) as whole:
        names = {"masks/a_0.png", "masks/a_1.png", "masks/b_0.png", "instances/a.png", "instances/b.png", "coco.json"}
        assert set(whole.namelist()) == names
        assert whole.read("masks/a_0.png") == (place / "masks" / "a_0.png").read_bytes()
        instances = np.asarray(Image.open(io.BytesIO(whole.read("instances/a.png"))))
        assert np.array_equal(instances == 1, truth("red")), "the first one of the list is in front"
        assert np.array_equal(instances == 2, stored(place, "a_1") & ~truth("red"))
        assert len(json.loads(whole.read("coco.json"))["annotations"]) == 3
    with zipped(desk.folder, ["masks", "coco"], True) as file, zipfile.ZipFile(file) as whole:
        assert set(whole.namelist()) == {"masks/b_0.png", "coco.json"}
        assert [one["file_name"] for one in json.loads(whole.read("coco.json"))["images"]] == ["images/b.png"]


def test_time_is_counted_and_the_last_image_is_known(place: Path) -> None:
    desk = desk_of(place)
    assert desk.overview()["last"] is None
    act(desk, 1, do="click", spent=3.5, **RED)
    act(desk, 1, do="undo", object="b_0", spent=2)
    shown = desk_of(place).overview()
    assert shown["last"] == 1
    assert [one["spent"] for one in shown["images"]] == [0, 5.5]
