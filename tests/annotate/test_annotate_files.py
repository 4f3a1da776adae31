"""What an annotated folder holds afterwards, and that it can be gone on with whatever happened in between."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as pycoco
from pydantic import TypeAdapter
from tiny_photos import SIZE, SameColour, folder_of, truth

from hrseg_cli.annotate import folder as annotate_folder
from hrseg_cli.annotate.acts import AnyAct, Refused
from hrseg_cli.annotate.answers import Memory
from hrseg_cli.annotate.desk import Desk
from hrseg_cli.annotate.folder import Folder
from hrseg_cli.annotate.records import Stroke
from hrseg_cli.annotate.shapes import drawn
from hrseg_cli.checkpoints.resolve import load_model
from hrseg_cli.data.datasets import open_dataset
from hrseg_cli.data.pixels import Span
from hrseg_cli.data.samples import load
from hrseg_cli.errors import HrsegError
from hrseg_cli.interaction import Box
from hrseg_cli.recipe import load_protocol
from hrseg_cli.runs import read_traces

# pycocotools 2.0.11 decodes by way of NumPy 1's array protocol.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

WISH: TypeAdapter[Any] = TypeAdapter(AnyAct)
RED, BLUE, GROUND = (30, 30), (70, 100), (5, 5)


def desk_of(place: Path, model: str = "tiny", memory: int = 10**9) -> Desk:
    protocol = load_protocol("plain")
    return Desk(Folder(place, protocol.threshold), SameColour(), {"name": model}, protocol, memory)


def act(desk: Desk, number: int = 0, **wish: Any) -> dict[str, Any]:
    revision = desk.folder.pictures[number].revision
    return desk.act(number, WISH.validate_json(json.dumps({"revision": revision, **wish})))


def click(desk: Desk, at: tuple[int, int], key: str | None = None, positive: bool = True, number: int = 0) -> str:
    """The object's key."""
    answer = act(desk, number, do="click", object=key, row=at[0], col=at[1], positive=positive)
    return str(answer["object"]["key"])


def stored(place: Path, key: str) -> np.ndarray:
    return np.asarray(Image.open(place / "masks" / f"{key}.png")) == 255


@pytest.mark.parametrize("flat", [False, True], ids=["images/", "flat"])
def test_the_folder_is_a_dataset_with_its_clicks_at_once(tmp_path: Path, flat: bool) -> None:
    """evaluate and train open it, the traces belong to its objects, COCO's file tells the same masks."""
    place = folder_of(tmp_path / "shop", "a.png", "b.png", flat=flat)
    desk = desk_of(place)
    for at in (RED, BLUE):
        click(desk, at)
    click(desk, RED, number=1)
    act(desk, 0, do="rename", object="a_1", name="chair")
    masks = {"a_0": truth("red"), "a_1": truth("blue"), "b": truth("red")}
    samples = [load(ref) for ref in open_dataset(str(place))]
    assert {one.id for one in samples} == masks.keys()
    for one in samples:
        assert np.array_equal(one.truth == 1, masks[one.id])
    traces = list(read_traces(place / "annotations" / "traces.jsonl"))
    assert [(one.dataset, one.id, one.clicks[0][:2]) for one in traces] == [
        ("shop", "a_0", RED), ("shop", "a_1", BLUE), ("shop", "b", RED),
    ]  # fmt: skip
    assert all(len(one.seconds) == 1 and one.size == SIZE for one in traces)
    refs = open_dataset(str(place / "annotations" / "coco.json"))
    assert [np.count_nonzero(load(ref).truth == 1) for ref in refs] == [2000, 3000, 2000]
    coco = json.loads((place / "annotations" / "coco.json").read_text())
    assert [one["name"] for one in coco["categories"]] == ["object", "chair"]
    for one, mask in zip(coco["annotations"], masks.values(), strict=True):
        rows, cols = np.nonzero(mask)
        assert one["bbox"] == [cols.min(), rows.min(), np.ptp(cols) + 1, np.ptp(rows) + 1]
        assert np.array_equal(pycoco.decode(one["segmentation"]), mask)


def test_masks_that_are_there_are_read_as_datasets_read_them(tmp_path: Path) -> None:
    """Palettes, cut-outs and 0/1 masks; one with two readings is an object with an error, and stays as it is."""
    place = folder_of(tmp_path / "shop", "a.png")
    (place / "masks").mkdir()
    red = truth("red").astype(np.uint8)
    Image.fromarray(red).save(place / "masks" / "a_0.png")
    palette = Image.fromarray(red * 3)
    palette.putpalette([0, 0, 0, 9, 0, 0, 0, 9, 0, 0, 0, 9])
    palette.save(place / "masks" / "a_1.png")
    Image.fromarray(np.dstack([red * 70, red * 20, red * 200, red * 255])).save(place / "masks" / "a_2.png")
    Image.fromarray(red * 127 + truth("blue") * np.uint8(255)).save(place / "masks" / "a_3.png")
    desk = desk_of(place)
    errors = [one.get("error", "") for one in desk.picture(0)["objects"]]
    assert errors[:3] == ["", "", ""]
    assert errors[3].startswith(f"{place / 'masks' / 'a_3.png'}: values seen: 0, 127, 255")
    assert errors[3].endswith("save it as 0 and 255")
    for one in desk.folder.pictures[0].objects[:3]:
        assert np.array_equal(desk.folder.mask(one, SIZE), truth("red"))
    with pytest.raises(HrsegError, match="0, 127, 255"):
        click(desk, BLUE, "a_3")
    assert (place / "masks" / "a_3.png").is_file()


def test_an_image_of_12_bits_is_shown_and_clicked_by_its_range(tmp_path: Path) -> None:
    place = folder_of(tmp_path / "shop", "a.png")
    image = place / "images" / "a.png"
    grey = np.asarray(Image.open(image))[..., 0]
    Image.fromarray(grey.astype(np.uint16) * 16).save(image)
    folder, protocol = Folder(place, 0.5), load_protocol("plain")
    with pytest.raises(HrsegError, match=r"`span` 0\.\.4095"):
        Desk(folder, SameColour(), {}, protocol).pixels(0)
    desk = Desk(folder, SameColour(), {}, protocol, span=Span(0, 4095))
    shown = np.asarray(Image.open(io.BytesIO(desk.pixels(0))))[..., 0].astype(int)
    assert np.abs(shown - grey).mean() < 3
    assert desk.digest != Desk(folder, SameColour(), {}, protocol).digest  # answers are others
    assert stored(place, click(desk, RED))[RED]


def test_undo_and_redo_and_a_restart_in_between(tmp_path: Path) -> None:
    """Forgotten answers are made again from the clicks: with no memory at all it is the same."""
    place = folder_of(tmp_path / "shop", "a.png")
    desk = desk_of(place, memory=1)
    key = click(desk, RED)
    click(desk, BLUE, key)
    assert np.array_equal(stored(place, key), truth("red") | truth("blue"))
    act(desk, do="undo", object=key)
    assert np.array_equal(stored(place, key), truth("red"))
    desk = desk_of(place)
    shown = desk.picture(0)["objects"][0]
    assert (shown["undo"], shown["redo"], shown["clicks"]) == (1, 1, [[*RED, 1]])
    act(desk, do="redo", object=key)
    assert np.array_equal(stored(place, key), truth("red") | truth("blue"))
    for _ in range(3):
        answer = act(desk, do="undo", object=key)
    assert answer["object"]["undo"] == 0
    assert not (place / "masks" / f"{key}.png").exists(), "a dataset has no object without pixels"
    click(desk, BLUE, key)
    assert np.array_equal(stored(place, key), truth("blue"))
    assert act(desk, do="redo", object=key)["object"]["redo"] == 0, "a new click ends what could be redone"


def test_a_mask_that_lay_there_is_corrected_and_kept(tmp_path: Path) -> None:
    place = folder_of(tmp_path / "shop", "a.png", "a_1.png")
    (place / "masks").mkdir()
    Image.fromarray((truth("red") | truth("blue")).astype(np.uint8)).save(place / "masks" / "a.bmp")
    desk = desk_of(place)
    assert [one["key"] for one in desk.picture(0)["objects"]] == ["a"]
    assert desk.overview()["images"][0]["state"] == "work"
    assert not (place / "annotations").exists(), "looking changes nothing"
    click(desk, BLUE, "a", positive=False)
    assert [path.name for path in (place / "masks").iterdir()] == ["a.png"]
    assert np.array_equal(stored(place, "a"), truth("red"))
    act(desk, do="undo", object="a")
    assert np.array_equal(stored(place, "a"), truth("red") | truth("blue"))
    assert [path.name for path in (place / "annotations" / "start").iterdir()] == ["a-1.bmp"]
    act(desk, do="redo", object="a")
    assert next(read_traces(place / "annotations" / "traces.jsonl")).notes == {"restarts": 1}
    assert click(desk, RED) == "a_0", "a_1 is another image"
    assert desk.picture(1)["objects"] == []


def test_a_mask_changed_by_another_program_is_the_new_start(tmp_path: Path) -> None:
    place = folder_of(tmp_path / "shop", "a.png")
    desk = desk_of(place)
    key = click(desk, RED)
    Image.fromarray(truth("blue").astype(np.uint8) * 255).save(place / "masks" / f"{key}.png")
    answer = act(desk, do="undo", object=key)
    assert answer["object"]["undo"] == 0
    assert np.array_equal(stored(place, key), truth("blue"))
    click(desk, RED, key)
    assert np.array_equal(stored(place, key), truth("red") | truth("blue"))
    assert len(next(read_traces(place / "annotations" / "traces.jsonl")).clicks) == 2


def test_another_model_starts_from_the_mask_of_the_first(tmp_path: Path) -> None:
    """Its answers to the old clicks would be others than the person has seen."""
    place = folder_of(tmp_path / "shop", "a.png")
    key = click(desk_of(place), RED)
    desk = desk_of(place, model="another")
    click(desk, BLUE, key)
    assert np.array_equal(stored(place, key), truth("red") | truth("blue"))
    assert act(desk, do="undo", object=key)["object"]["undo"] == 0
    assert np.array_equal(stored(place, key), truth("red"))


def test_brush_threshold_box_and_delete(tmp_path: Path) -> None:
    place = folder_of(tmp_path / "shop", "a.png")
    desk = desk_of(place)
    key = act(desk, do="stroke", points=[[10, 10], [10, 100]], radius=3)["object"]["key"]
    line = stored(place, key)
    assert line[7:14, 10:101].all()
    assert not line[:6].any()
    assert not line[15:].any()
    act(desk, do="stroke", object=key, points=[[10, 55]], radius=10, positive=False)
    assert not stored(place, key)[5:15, 50:60].any()
    click(desk, RED, key)
    erased = drawn(Stroke(points=[(10, 55)], radius=10, positive=False), SIZE)
    assert np.array_equal(stored(place, key), (truth("red") | line) & ~erased), "what was painted and erased stays"
    assert act(desk, do="threshold", object=key, threshold=0.9)["object"]["threshold"] == 0.9
    act(desk, do="delete", object=key)
    assert list((place / "masks").iterdir()) == []
    assert desk.picture(0)["objects"] == []
    assert (place / "annotations" / "traces.jsonl").read_text() == ""
    act(desk, do="finish", finished=True)
    assert desk_of(place).overview()["images"][0]["state"] == "done"


def test_no_two_objects_get_one_name(tmp_path: Path) -> None:
    """Where one of two was deleted, the next is not a second "object 2"; nor is one for a mask that lies there."""
    place = folder_of(tmp_path / "shop", "a.png")
    desk = desk_of(place)
    first, second = click(desk, RED), click(desk, BLUE)
    act(desk, do="delete", object=first)
    click(desk, RED)
    act(desk, do="delete", object=second)
    click(desk, BLUE)
    assert [one.name for one in desk.folder.pictures[0].objects] == ["object", "object 2"]
    Image.fromarray(truth("red").astype(np.uint8) * 255).save(place / "masks" / "a_9.png")
    assert [one.name for one in desk_of(place).folder.pictures[0].objects] == ["object", "object 2", "object 3"]


def test_a_box_makes_the_model_look_there(tmp_path: Path) -> None:
    place = folder_of(tmp_path / "shop", "a.png")
    protocol = load_protocol("photo", ["zoom.min_crop=8"])
    desk = Desk(Folder(place, protocol.threshold), SameColour(), {}, protocol)
    box = [40, 59, 20, 39]
    key = act(desk, do="click", row=50, col=30, positive=True, box=box)["object"]["key"]
    found = stored(place, key)
    assert found[40:60, 20:40].all()
    assert not found[:30].any(), "the square's other end lies outside of what was looked at"
    trace = next(read_traces(place / "annotations" / "traces.jsonl"))
    assert trace.clicks == (Box(*box),), "a replay gets the box, not a click at its centre"
    assert trace.notes == {"boxes": 1}


def test_two_tabs_do_not_undo_each_other(tmp_path: Path) -> None:
    desk = desk_of(folder_of(tmp_path / "shop", "a.png"))
    key = click(desk, RED)
    with pytest.raises(Refused, match="another tab") as refused:
        desk.act(0, WISH.validate_python({"do": "undo", "object": key, "revision": 0}))
    assert refused.value.status == 409


def test_what_is_refused_changes_nothing(tmp_path: Path) -> None:
    place = folder_of(tmp_path / "shop", "a.png")
    desk = desk_of(place)
    key = click(desk, RED)
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    for status, wish in [
        (422, {"do": "click", "object": key, "row": SIZE[0], "col": 0}),
        (422, {"do": "click", "object": key, "row": 0, "col": 0, "box": [5, 1, 0, 9]}),
        (422, {"do": "stroke", "object": key, "points": [[-1, 0]], "radius": 3}),
        (422, {"do": "undo"}),
        (404, {"do": "undo", "object": "../a"}),
    ]:
        with pytest.raises(Refused) as refused:
            act(desk, **wish)
        assert refused.value.status == status
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record["objects"][0].update(file="../../a.png"), "not written by hrseg annotate"),
        (lambda record: record["objects"][0].update(key="../x"), "not written by hrseg annotate"),
        (lambda record: record["objects"][0].update(start="../../../etc/passwd"), "not written by hrseg annotate"),
        (lambda record: record["objects"][0].update(done=9), "not written by hrseg annotate"),
        (lambda record: record.update(gone={"../images/a.png": "1 2"}), "not written by hrseg annotate"),
        (lambda record: record.update(revision="1"), "valid integer"),
    ],
)
def test_a_tampered_record_leads_nowhere(tmp_path: Path, change: Any, message: str) -> None:
    """It may have come with somebody else's folder."""
    place = folder_of(tmp_path / "shop", "a.png")
    click(desk_of(place), RED)
    path = place / "annotations" / "images" / "a.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    with pytest.raises(HrsegError, match=message):
        desk_of(place)


@pytest.mark.parametrize("part", ["masks/s", "annotations/images", "annotations/images/s", "annotations/start"])
def test_a_link_in_the_folder_is_not_written_through(tmp_path: Path, part: str) -> None:
    """A folder of somebody else's may hold links to anywhere."""
    place = folder_of(tmp_path / "shop", "a.png")
    (place / "images/s").mkdir()
    (place / "images/a.png").rename(place / "images/s/a.png")
    (tmp_path / "elsewhere").mkdir()
    (place / part).parent.mkdir(parents=True, exist_ok=True)
    (place / part).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(HrsegError, match="link that points outside"):
        desk_of(place)
    assert not any((tmp_path / "elsewhere").iterdir())
    (tmp_path / "masks").mkdir()
    (place / part).unlink()
    if not (place / "masks").exists():
        (place / "masks").symlink_to(tmp_path / "masks")  # the folder of masks itself may lie on another disk
        click(desk_of(place), RED)
        assert (tmp_path / "masks/s/a_0.png").is_file()


def test_folders_that_cannot_be_worked_in(tmp_path: Path) -> None:
    with pytest.raises(HrsegError, match="no such folder"):
        desk_of(tmp_path / "none")
    (tmp_path / "empty" / "images").mkdir(parents=True)
    with pytest.raises(HrsegError, match="no images"):
        desk_of(tmp_path / "empty")
    with pytest.raises(HrsegError, match="duplicate name"):
        desk_of(folder_of(tmp_path / "twice", "a.png", "a.jpg", flat=True))
    place = folder_of(tmp_path / "pairs", "a.png", flat=True)
    (place / "pairs.csv").write_text("image,mask\na.png,truth/a.png\n")
    with pytest.raises(HrsegError, match="cannot edit"):
        desk_of(place)


@pytest.mark.slow
def test_the_traces_replayed_give_the_same_masks(tmp_path: Path, hrseg: Callable[..., Any]) -> None:
    """With the model and the protocol of the page, as docs/annotate.md says."""
    place = folder_of(tmp_path / "shop", "a.png", "b.png")
    protocol = load_protocol("photo")
    model, provenance = load_model("grabcut")
    desk = Desk(Folder(place, protocol.threshold), model, provenance, protocol)
    key = click(desk, RED)
    click(desk, (40, 60), key)
    click(desk, BLUE)
    click(desk, BLUE, number=1)
    traces = place / "annotations" / "traces.jsonl"
    done = hrseg(
        "simulate-clicks", "--model", "grabcut", "--dataset", place, "--protocol", "photo", "--replay", traces,
    )  # fmt: skip
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert [(row["id"], len(row["clicks"]), row["iou"][-1]) for row in rows] == [
        ("a_0", 2, 1), ("a_1", 1, 1), ("b", 1, 1),
    ]  # fmt: skip


CHANGES: dict[str, dict[str, Any]] = {
    "erased": {"do": "stroke", "points": [[50, 50]], "radius": 2000, "positive": False},
    "changed": {"do": "click", "row": BLUE[0], "col": BLUE[1]},
    "deleted": {"do": "delete"},
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_cannot_be_recorded_changes_nothing(tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk: the mask is as it was, and so are its object and its clicks after a restart."""
    place = folder_of(tmp_path / "shop", "a.png")
    desk = desk_of(place)
    key = click(desk, RED)

    def full(path: Path, data: str) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(annotate_folder, "write_atomically", full)
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file()}
    with pytest.raises(OSError, match=r"a\.json"):
        act(desk, object=key, **CHANGES[change])
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file()} == before
    monkeypatch.undo()
    for again in (desk, desk_of(place)):
        (one,) = again.picture(0)["objects"]
        assert (one["key"], one["clicks"]) == (key, [[*RED, 1]])
        assert "error" not in one
    assert click(desk, BLUE, key) == key
    assert np.array_equal(stored(place, key), truth("red") | truth("blue"))


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("step", ["_settle_files", "write_tables"])
def test_what_is_recorded_is_done_after_a_kill(
    tmp_path: Path, change: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the record and the mask, or before the files about all images: as without the kill, and no litter."""
    contents = []
    for name in ("whole", "killed"):
        place = folder_of(tmp_path / name / "shop", "a.png", flat=True)
        desk = desk_of(place)
        key = click(desk, RED)
        if name == "killed":
            monkeypatch.setattr(Folder, step, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                act(desk, object=key, **CHANGES[change])
            monkeypatch.undo()
            desk_of(place)
        else:
            act(desk, object=key, **CHANGES[change])
        files = {path.relative_to(place): path for path in sorted(place.rglob("*")) if path.is_file()}
        clocks = re.compile(rb'"(stamp|seconds)":\s?("[^"]*"|\[[^]]*\]|[0-9.e-]+)|\d+ \d{16,}')
        contents.append({name: clocks.sub(b"", path.read_bytes()) for name, path in files.items()})
    assert contents[0] == contents[1]


def test_a_derived_file_that_cannot_be_written_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The change itself is saved: the message must not say otherwise."""
    place = folder_of(tmp_path / "shop", "a.png")
    desk = desk_of(place)
    key = click(desk, RED)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "coco.json")

    monkeypatch.setattr(Folder, "write_tables", full)
    with pytest.raises(Refused, match=r"^coco\.json: No space left on device; your change is saved, but this file"):
        click(desk, BLUE, key)
    assert np.array_equal(stored(place, key), truth("red") | truth("blue"))


@pytest.mark.parametrize("size", [SIZE, (60, 80)])
@pytest.mark.parametrize("clicked", [False, True])
def test_an_image_that_is_replaced_while_it_is_shown(tmp_path: Path, size: tuple[int, int], clicked: bool) -> None:
    """The click was meant for the old one. The new one is clicked on once it is shown, by no tab that shows the old."""
    place = folder_of(tmp_path / "shop", "a.png")
    desk = desk_of(place)
    shown = desk.picture(0)
    key = click(desk, RED) if clicked else None
    Image.fromarray(np.rot90(np.asarray(Image.open(place / "images" / "a.png")), 2)[: size[0], : size[1]]).save(
        place / "images" / "a.png"
    )
    before = [path for path in place.rglob("*") if path.is_file()]
    if clicked and size != SIZE:
        with pytest.raises(HrsegError, match="restore that image"):
            click(desk, BLUE, key)
        return
    with pytest.raises(Refused, match="file was replaced"):
        click(desk, BLUE, key)
    assert [path for path in place.rglob("*") if path.is_file()] == before
    again = desk.picture(0)
    assert (again["size"], again["file"] != shown["file"]) == (size, True)
    with pytest.raises(Refused, match="another tab"):
        act(desk, do="click", row=5, col=5, revision=again["revision"] - 1)
    key = click(desk, (size[0] - 1, size[1] - 1), key)
    assert stored(place, key).shape == size
    refs = open_dataset(str(place / "annotations" / "coco.json"))
    assert [load(ref).truth.shape for ref in refs] == [size]


def test_an_image_of_another_size_is_not_taken_for_the_old_one(tmp_path: Path) -> None:
    """The clicks' places would mean something else."""
    place = folder_of(tmp_path / "shop", "a.png")
    click(desk_of(place), RED)
    whole = Image.open(place / "images" / "a.png").copy()
    whole.resize((80, 60)).save(place / "images" / "a.png")
    desk = desk_of(place)
    with pytest.raises(HrsegError, match=r"a\.png: has 60 rows and 80 columns, but its clicks .* remove .*a\.json"):
        desk.picture(0)
    whole.save(place / "images" / "a.png")
    assert desk.picture(0)["size"] == SIZE


def test_a_mask_is_kept_once_however_often_it_is_clicked_on(tmp_path: Path) -> None:
    place = folder_of(tmp_path / "shop", "a.png")
    (place / "masks").mkdir()
    (place / "masks" / "a.png").write_bytes(b"torn")
    desk = desk_of(place)
    for _ in range(3):
        with pytest.raises(HrsegError, match=r"a-1\.png: cannot be read"):
            click(desk, RED, "a")
    assert [path.name for path in (place / "annotations" / "start").iterdir()] == ["a-1.png"]


def test_memory_keeps_what_was_used_last() -> None:
    memory = Memory(30)
    for key in "abc":
        memory.put(key, key, 10)
    assert memory.get("a") == "a"
    memory.put("d", "d", 10)
    assert [memory.get(key) for key in "abcd"] == ["a", None, "c", "d"]
    memory.put("e", "e", 1000)
    assert len(memory) == 2, "the image and the answer at work stay, however large"


KILLS = """
import os, signal, sys, time
from pathlib import Path
from test_annotate_files import BLUE, GROUND, RED, act, click, desk_of, stored, truth

def whole(mask):
    assert (mask == truth("red")).all() or (mask == truth("red") | truth("blue")).all()
    return mask

place = Path(sys.argv[1])
key = click(desk_of(place), RED)
killed, seen = 0, set()
for number in range(20):
    child = os.fork()
    if child == 0:
        desk = desk_of(place)
        while True:
            click(desk, BLUE, key)
            act(desk, do="undo", object=key)
    time.sleep(0.01 + 0.013 * number)
    os.kill(child, signal.SIGKILL)
    killed += os.waitpid(child, 0)[1] == signal.SIGKILL
    whole(stored(place, key))
    desk = desk_of(place)  # puts a recorded mask in its place that the kill left waiting
    mask = whole(stored(place, key))
    click(desk, GROUND, key)
    act(desk, do="undo", object=key)
    assert (stored(place, key) == mask).all()
    if not mask[BLUE]:
        seen.add("red")
    else:
        click(desk, BLUE, key, positive=False)
        seen.add("both")
print(killed, sorted(seen))
"""


def test_a_kill_leaves_whole_files(tmp_path: Path) -> None:
    """Killed outright twenty times, at any moment: masks are one of the two, and the next start goes on from them."""
    place = folder_of(tmp_path / "shop", "a.png")
    here = Path(__file__).parent
    path = os.pathsep.join(map(str, (here, here.parent, here.parent.parent)))
    done = subprocess.run(
        [sys.executable, "-c", KILLS, str(place)],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, timeout=120,
    )  # fmt: skip
    assert done.stdout == "20 ['both', 'red']\n", done.stderr
    list(read_traces(place / "annotations" / "traces.jsonl"))
    json.loads((place / "annotations" / "coco.json").read_text())


def test_a_table_keeps_its_columns_and_the_rows_of_other_images(tmp_path: Path) -> None:
    """An image may be away for a while, and a table may say more than annotate knows."""
    place = folder_of(tmp_path / "shop", "a.png", flat=True)
    away = "away.png,masks/away.png,train"
    (place / "pairs.csv").write_text(f"image,mask,split\n{away}\na.png,masks/a_0.png,test\n")
    desk = desk_of(place)
    for spot in (RED, BLUE):
        click(desk, spot)
    lines = (place / "pairs.csv").read_text().splitlines()
    assert lines[0] == "image,mask,split"
    assert away in lines
    assert "a.png,masks/a_0.png,test" in lines
    assert len(lines) == 4
