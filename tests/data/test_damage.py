"""Damaged inputs, one a row: each ends in one line that names the file, or is read rightly where nothing is wrong.

Beside every damage lies something good. It stays as it is, and is indexed wherever the dataset can be listed at all.
"""

# ruff: noqa: E501 - a row of the table is one line

import json
import os
import pickle
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from hrseg_cli.data.datasets import open_dataset
from hrseg_cli.data.index import Index, build_index
from hrseg_cli.data.samples import load
from hrseg_cli.errors import HrsegError

SIZE = (12, 20)
SQUARE = [[3, 2, 11, 2, 11, 7, 3, 7]]


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), np.uint8)


def box(value: int = 255) -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    mask[2:7, 3:11] = value
    return mask


def put(path: Path, values: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **options)
    return path


def pair(folder: Path, stem: str = "bad", image: str = "jpg", mask: str = "png") -> tuple[Path, Path]:
    return put(folder / f"images/{stem}.{image}", noise()), put(folder / f"masks/{stem}.{mask}", box())


def cut(path: Path, keep: float = 0.6) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


def blank(path: Path, start: float = 0.5) -> None:
    """Zeros to the end, as a download or a disk that gave up leaves them."""
    content = path.read_bytes()
    kept = int(len(content) * start)
    path.write_bytes(content[:kept] + bytes(len(content) - kept))


# ---- what is good in each layout -------------------------------------------------------------------------------------


def good_folder(folder: Path) -> None:
    pair(folder, "good")


def good_sbd(folder: Path) -> None:
    for stem in ("bad", "good"):
        put(folder / f"img/{stem}.jpg", noise())
        (folder / "inst").mkdir(exist_ok=True)
        savemat(folder / f"inst/{stem}.mat", {"GTinst": {"Segmentation": box(1)}}, do_compression=True)
    (folder / "val.txt").write_text("bad\ngood\n")


def good_voc(folder: Path) -> None:
    for stem in ("bad", "good"):
        put(folder / f"JPEGImages/{stem}.jpg", noise())
        put(folder / f"SegmentationObject/{stem}.png", box(1))
    (folder / "ImageSets/Segmentation").mkdir(parents=True)
    (folder / "ImageSets/Segmentation/val.txt").write_text("bad\ngood\n")


def layers(*masks: np.ndarray) -> list[np.ndarray]:
    blobs = []
    for mask in masks:
        with tempfile.TemporaryFile() as file:
            Image.fromarray(mask).save(file, "PNG")
            file.seek(0)
            blobs.append(np.frombuffer(file.read(), np.uint8))
    return blobs


def good_lvis(folder: Path) -> None:
    for stem in ("bad", "good"):
        put(folder / f"val/images/{stem}.jpg", noise())
        (folder / "val/masks").mkdir(exist_ok=True)
        (folder / f"val/masks/{stem}.pickle").write_bytes(pickle.dumps((layers(box(1)), [(0, 1)])))
    one = {"num_instance_masks": 1, "hierarchy": {0: None}}
    (folder / "val/hannotation.pickle").write_bytes(pickle.dumps({"bad": one, "good": one}))


def coco_file(folder: Path) -> Path:
    return folder / "set.json"


def coco(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(coco_file(folder).read_text())
    return content


def good_coco(folder: Path) -> None:
    put(folder / "images/good.jpg", noise())
    image = {"id": 1, "file_name": "good.jpg", "height": SIZE[0], "width": SIZE[1]}
    good = {"id": 1, "image_id": 1, "segmentation": SQUARE, "iscrowd": 0}
    coco_file(folder).write_text(json.dumps({"images": [image], "annotations": [good]}))


def add(segmentation: Any, **more: Any) -> Callable[[Path], None]:
    """Another annotation in the file, number 2."""

    def damage(folder: Path) -> None:
        content = coco(folder)
        content["annotations"].append({"id": 2, "image_id": 1, "segmentation": segmentation, **more})
        coco_file(folder).write_text(json.dumps(content))

    return damage


# ---- damages ---------------------------------------------------------------------------------------------------------


def on_image(damage: Callable[[Path], object], suffix: str = "jpg") -> Callable[[Path], None]:
    return lambda folder: (damage(pair(folder, image=suffix)[0]), None)[1]


def on_mask(damage: Callable[[Path], object], suffix: str = "png") -> Callable[[Path], None]:
    return lambda folder: (damage(pair(folder, mask=suffix)[1]), None)[1]


def on(place: str, damage: Callable[[Path], object]) -> Callable[[Path], None]:
    return lambda folder: (damage(folder / place), None)[1]


def loop(folder: Path) -> None:
    (folder / "images/loop").symlink_to(folder / "images")


def ring_of_links(folder: Path) -> None:
    for one, other in (("p", "q"), ("q", "p")):
        (folder / one).mkdir()
        (folder / one / "link").symlink_to(folder / other)
    (folder / "masks/link").symlink_to(folder / "p")


def dead_link(folder: Path) -> None:
    image, _ = pair(folder)
    image.unlink()
    image.symlink_to(folder / "gone.jpg")


class Evil:
    """Unpickled by Python itself, it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def evil(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(pickle.dumps(({"bad": Evil(folder / "owned")}, [])))

    return damage


def colours(path: Path) -> None:
    put(path, noise())


class Case(NamedTuple):
    """``complaint``: what the line must say, None where nothing is wrong; ``left``: the objects of the index, None
    where the dataset cannot be listed."""

    what: str
    layout: Callable[[Path], None]
    damage: Callable[[Path], None]
    complaint: str | None
    left: list[str] | None


GOOD = ["good"]
HTML = b"<!DOCTYPE html><html><body>404: not found</body></html>"

CASES = [
    # pictures
    Case("JPEG cut off", good_folder, on_image(cut), r"images/bad\.jpg: cannot be read", GOOD),
    Case("JPEG ending in zeros", good_folder, on_image(blank), r"images/bad\.jpg: cannot be read", GOOD),
    Case("JPEG of no bytes", good_folder, on_image(lambda p: cut(p, 0)), r"bad\.jpg: .*an empty file", GOOD),
    Case("PNG cut off", good_folder, on_image(cut, "png"), r"images/bad\.png: cannot be read", GOOD),
    Case("PNG ending in zeros", good_folder, on_image(lambda p: blank(p, 0.9), "png"), r"bad\.png: cannot be", GOOD),
    Case("PNG of no bytes", good_folder, on_image(lambda p: cut(p, 0), "png"), r"bad\.png: .*an empty file", GOOD),
    Case("BMP cut off", good_folder, on_image(cut, "bmp"), r"images/bad\.bmp: cannot be read", GOOD),
    Case("TIFF cut off", good_folder, on_image(cut, "tif"), r"images/bad\.tif: cannot be read", GOOD),
    Case("a web page", good_folder, on_image(lambda p: p.write_bytes(HTML)), r"bad\.jpg: cannot be read", GOOD),
    Case("a header of a gigapixel", good_folder, on_image(lambda p: p.write_bytes(b"P4\n40000 40000\n"), "pbm"), "limit of 300 megapixels", GOOD),
    # masks
    Case("mask cut off", good_folder, on_mask(cut), r"masks/bad\.png: cannot be read", GOOD),
    Case("mask of no bytes", good_folder, on_mask(lambda p: cut(p, 0)), r"masks/bad\.png: .*an empty file", GOOD),
    Case("mask of another size", good_folder, on_mask(lambda p: put(p, box()[1:])), r"masks/bad\.png: 20x11 pixels", GOOD),
    Case("mask lying down", good_folder, on_mask(lambda p: put(p, box().T.copy())), r"bad\.png: 12x20.*rotated", GOOD),
    Case("mask of zeros", good_folder, on_mask(lambda p: put(p, box(0))), r"masks/bad\.png: no object pixel", GOOD),
    Case("mask of void", good_folder, on_mask(lambda p: put(p, box() * 0 + 128)), r"bad\.png: no object pixel", GOOD),
    Case("mask of fractions", good_folder, on_mask(lambda p: put(p, box() / np.float32(300)), "tif"), r"bad\.tif: floating", GOOD),
    Case("mask without image", good_folder, lambda f: pair(f)[0].unlink(), r"masks: no image with the same stem .* bad\.png", None),
    Case("image without mask", good_folder, lambda f: pair(f)[1].unlink(), None, GOOD),
    # names and folders
    Case("two images of a name", good_folder, on_image(lambda p: put(p.with_suffix(".png"), noise())), r"bad\.jpg and .*bad\.png", None),
    Case("names not in ASCII", good_folder, lambda f: pair(f, "Überblick 图 é"), None, ["good", "Überblick 图 é"]),
    Case("names with dots", good_folder, lambda f: pair(f, "a.b.c"), None, ["a.b.c", "good"]),
    Case("names of no encoding", good_folder, lambda f: pair(f, os.fsdecode(b"bad\xff")), r"images/bad.*jpg'?: file name is not UTF-8", None),
    Case("suffixes in capitals", good_folder, lambda f: [p.rename(p.with_suffix(p.suffix.upper())) for p in pair(f)], None, ["bad", "good"]),
    Case("other files", good_folder, lambda f: [(f / "masks" / n).write_text("") for n in (".DS_Store", "Thumbs.db", "a.txt")], None, GOOD),
    Case("hidden folders", good_folder, lambda f: [shutil.copytree(f / n, f / n / ".ipynb_checkpoints") for n in ("images", "masks")], None, GOOD),
    Case("a folder named as an image", good_folder, lambda f: (f / "masks/bad.png").mkdir(), None, GOOD),
    Case("a link to its own folder", good_folder, loop, r"images/loop: a link to a folder that is already read", None),
    Case("links in a ring", good_folder, ring_of_links, r"masks/link.*: a link to a folder that is already read", None),
    Case("a link to nothing", good_folder, dead_link, r"images/bad\.jpg: no such file", GOOD),
    # pairs.csv
    Case("table names no file", good_folder, lambda f: (f / "pairs.csv").write_text("image,mask\nimages/good.jpg,x.png"), r"pairs\.csv, line 2: no file .*x\.png", None),
    Case("table is no text", good_folder, lambda f: (f / "pairs.csv").write_bytes(b"\xff\xfe\0i\0m"), r"pairs\.csv: cannot be read", None),
    # SBD and VOC
    Case(".mat cut off", good_sbd, on("inst/bad.mat", cut), r"inst/bad\.mat: cannot be read as an SBD mask", ["good#1"]),
    Case(".mat with zeros", good_sbd, on("inst/bad.mat", blank), r"inst/bad\.mat: cannot be read", ["good#1"]),
    Case(".mat of no bytes", good_sbd, on("inst/bad.mat", lambda p: cut(p, 0)), r"inst/bad\.mat: .*an empty file", ["good#1"]),
    Case(".mat is a web page", good_sbd, on("inst/bad.mat", lambda p: p.write_bytes(HTML)), r"inst/bad\.mat: cannot", ["good#1"]),
    Case(".mat of another set", good_sbd, on("inst/bad.mat", lambda p: savemat(p, {"x": 1})), r"bad\.mat: cannot .*GTinst", ["good#1"]),
    Case(".mat of fractions", good_sbd, on("inst/bad.mat", lambda p: savemat(p, {"GTinst": {"Segmentation": box() / 3}})), r"bad\.mat: .*not a 2-D array of integers", ["good#1"]),
    Case("listed, not there", good_sbd, on("img/bad.jpg", Path.unlink), r"val\.txt, line 1: no file 'bad' in .*img", None),
    Case("listed twice", good_sbd, on("val.txt", lambda p: p.write_text("good\ngood")), r"val\.txt, line 2: duplicate 'good'", None),
    Case("a list of bytes", good_sbd, on("val.txt", lambda p: p.write_bytes(b"\xff\xfe\0")), r"val\.txt: .*not UTF-8 text", None),
    Case("no mask in VOC", good_voc, on("SegmentationObject/bad.png", Path.unlink), r"val\.txt, line 1: no file 'bad' in .*Segm", None),
    Case("colours of no palette", good_voc, on("SegmentationObject/bad.png", colours), r"bad\.png: contains colours, not ids", ["good#1"]),
    # COCO+LVIS
    Case("a pickle that runs a program", good_lvis, evil("val/masks/bad.pickle"), r"bad\.pickle: .*refers to posix\.mkdir", ["good#0"]),
    Case("annotation that runs a program", good_lvis, evil("val/hannotation.pickle"), r"hannotation\.pickle: .*refers to posix", None),
    Case("pickle cut off", good_lvis, on("val/masks/bad.pickle", cut), r"masks/bad\.pickle: cannot be read", ["good#0"]),
    Case("pickle of no bytes", good_lvis, on("val/masks/bad.pickle", lambda p: cut(p, 0)), r"bad\.pickle: .*an empty file", ["good#0"]),
    Case("pickle of something else", good_lvis, on("val/masks/bad.pickle", lambda p: p.write_bytes(pickle.dumps([1]))), r"bad\.pickle: not the", ["good#0"]),
    Case("pickle of floats", good_lvis, on("val/masks/bad.pickle", lambda p: p.write_bytes(pickle.dumps(([np.ones(3)], [])))), r"bad\.pickle: .*an array whose dtype is not bytes", ["good#0"]),
    Case("object in no layer", good_lvis, on("val/masks/bad.pickle", lambda p: p.write_bytes(pickle.dumps((layers(box(1)), [(1, 1)])))), r"bad\.pickle: not the", ["good#0"]),
    Case("layer cut off", good_lvis, on("val/masks/bad.pickle", lambda p: p.write_bytes(pickle.dumps(([layers(box(1))[0][:50]], [(0, 1)])))), r"bad\.pickle: cannot be read", ["good#0"]),
    Case("fewer objects than said", good_lvis, on("val/masks/bad.pickle", lambda p: p.write_bytes(pickle.dumps((layers(box(1)), [])))), r"bad\.pickle: contains 0 objects", ["good#0"]),
    Case("annotation of something else", good_lvis, on("val/hannotation.pickle", lambda p: p.write_bytes(pickle.dumps({"bad": 3}))), r"hannotation\.pickle: not a COCO\+LVIS annotation", None),
    Case("no pickle", good_lvis, on("val/masks/bad.pickle", Path.unlink), r"bad\.pickle: no such file", ["good#0"]),
    # COCO
    Case("JSON cut off", good_coco, on("set.json", cut), r"set\.json: cannot be read as JSON", None),
    Case("JSON of no bytes", good_coco, on("set.json", lambda p: cut(p, 0)), r"set\.json: .*an empty file", None),
    Case("JSON nested without end", good_coco, on("set.json", lambda p: p.write_text("[" * 10**5)), r"set\.json: cannot", None),
    Case("JSON of something else", good_coco, on("set.json", lambda p: p.write_text("[]")), r"set\.json: no list 'images'", None),
    Case("JSON of numbers", good_coco, on("set.json", lambda p: p.write_text('{"images": [1], "annotations": []}')), r"set\.json: an entry of 'images'", None),
    Case("image of COCO missing", good_coco, on("images/good.jpg", Path.unlink), r"set\.json: no file 'good\.jpg'", None),
    Case("annotation id twice", good_coco, add(SQUARE, id=1), r"set\.json: duplicate annotation id 1", None),
    Case("annotation of no image", good_coco, add(SQUARE, image_id=5), r"annotation 2 is on image 5, which is not", None),
    Case("annotation id is text", good_coco, add(SQUARE, id="b"), r"annotation id 'b' is not an integer", None),
    Case("runs of another size", good_coco, add({"size": [5, 5], "counts": [5, 20]}), r"set\.json: annotation 2: run lengths for \[5, 5\]", ["good#1"]),
    Case("runs past the end", good_coco, add({"size": [*SIZE], "counts": [5, 10**9]}), r"set\.json: annotation 2: .*not add up", ["good#1"]),
    Case("runs that go back", good_coco, add({"size": [*SIZE], "counts": [300, -60]}), r"annotation 2: .*not add up", ["good#1"]),
    Case("runs in half a text", good_coco, add({"size": [*SIZE], "counts": "Z10`"}), r"annotation 2: .*middle of a number", ["good#1"]),
    Case("runs in foreign letters", good_coco, add({"size": [*SIZE], "counts": "é"}), r"annotation 2: .*character", ["good#1"]),
    Case("runs without counts", good_coco, add({"size": [*SIZE]}), r"annotation 2: no 'counts'", ["good#1"]),
    Case("polygon of two corners", good_coco, add([[1, 1, 5, 5]]), r"annotation 2: a polygon of 4 numbers", ["good#1"]),
    Case("polygon of NaN", good_coco, add([[1, 1, float("nan"), 5, 3, 3]]), r"annotation 2: .*not numbers", ["good#1"]),
    Case("polygon of words", good_coco, add([["a", "b", "c", "d", "e", "f"]]), r"annotation 2: .*not numbers", ["good#1"]),
    Case("polygon far away", good_coco, add([[1, 1, 1e9, 5, 3, 3]]), r"annotation 2: a polygon far outside", ["good#1"]),
    Case("segmentation is a text", good_coco, add("x"), r"set\.json: annotation 2: ", ["good#1"]),
    Case("polygon of no pixel", good_coco, add([[3, 3, 3, 3, 3, 3]]), r"annotation 2 covers no pixel", ["good#1"]),
]  # fmt: skip


def contents(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def indexed(spec: Path, out: Path) -> tuple[list[str], list[str] | None]:
    """(lines of complaint, objects of the index; None where the dataset could not be listed)."""
    try:
        summary = build_index(spec, instances=spec.name == "voc", out=out)
    except HrsegError as error:
        return [str(error)], None
    return summary.problems, [ref.id for ref in Index(summary.path, folder=spec if spec.is_dir() else spec.parent)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.what)
def test_each_damage_is_one_line_and_the_good_stays(case: Case, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    case.layout(folder)
    case.damage(folder)
    before = contents(folder)
    spec = coco_file(folder) if case.layout is good_coco else folder
    complaints, left = indexed(spec, tmp_path / "out/i.jsonl")
    assert contents(folder) == before
    assert left == case.left
    if case.complaint is None:
        assert complaints == []
        assert all((load(ref).truth == 1).sum() == 40 for ref in open_dataset(str(spec)))
        return
    (line,) = complaints
    assert "\n" not in line
    assert re.search(case.complaint, line), line
    assert line.lstrip("'").startswith(str(folder)), line  # the path comes before anything else
    assert "; " in line or "mend" in line, line  # what to do
    if left is None:
        with pytest.raises(HrsegError, match=case.complaint):
            open_dataset(str(spec))


def test_the_table_is_long_enough() -> None:
    assert len({case.what for case in CASES}) == len(CASES) >= 40


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """A folder that others can reach; meanwhile this process has no rights beyond those of any user."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    user = os.geteuid()
    good_folder(folder / "set")
    pair(folder / "set")
    indexed(folder / "set", folder / "warm/i.jsonl")  # decoders are imported while this process may still read them
    for path in folder.rglob("*"):
        path.chmod(0o777 if path.is_dir() else 0o666)
    try:
        yield folder
    finally:
        if user == 0:
            os.seteuid(0)
        for path in (folder / "set/images", folder / "set", folder / "set/masks"):
            path.chmod(0o777)
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("place", "complaint", "left"),
    [
        ("images/bad.jpg", r"images/bad\.jpg: cannot be read as an image \(Permission denied\)", ["good"]),
        ("images", r"set/images: cannot be read \(Permission denied\); fix its permissions", None),
        ("", r"set.*: cannot be read \(Permission denied\); fix its permissions", None),
    ],
)
def test_what_may_not_be_read_is_named(as_nobody: Path, place: str, complaint: str, left: list[str] | None) -> None:
    (as_nobody / "set" / place).chmod(0)
    if os.geteuid() == 0:
        os.seteuid(65534)  # rights do not bind root
    (line,), found = indexed(as_nobody / "set", as_nobody / "i.jsonl")
    assert re.search(complaint, line), line
    assert found == left
