"""COCO files: pycocotools has the last word on masks, and exports of CVAT and Label Studio open as they come."""

import json
import logging
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as pycoco

from hrseg_cli.data import coco
from hrseg_cli.data.datasets import open_dataset
from hrseg_cli.data.index import Index, build_index
from hrseg_cli.data.samples import load_with_rule
from hrseg_cli.errors import HrsegError, UnknownName

SIZE = (12, 20)
SQUARE = [[3, 2, 11, 2, 11, 7, 3, 7]]


def picture(path: Path, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(path)


def annotation(key: int, segmentation: Any, **more: Any) -> dict[str, Any]:
    return {"id": key, "image_id": 1, "category_id": 1, "segmentation": segmentation, "iscrowd": 0, **more}


def put(path: Path, annotations: list[dict[str, Any]], file_name: str = "x.jpg", **image: Any) -> Path:
    images = [{"id": 1, "file_name": file_name, "height": SIZE[0], "width": SIZE[1], **image}]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": []}))
    return path


def truths(path: Path) -> dict[str, np.ndarray]:
    loaded = [load_with_rule(ref) for ref in open_dataset(f"mine={path}")]
    assert {used for _, used in loaded} <= {"coco", "coco_crowd"}
    return {sample.id: sample.truth for sample, _ in loaded}


def disc(radius: float) -> np.ndarray:
    return np.hypot(*(np.mgrid[0:12, 0:20] - np.array([[[5]], [[9]]]))) < radius


def test_polygons_and_both_kinds_of_runs_are_one_object_each(tmp_path: Path) -> None:
    picture(tmp_path / "x.jpg")
    packed = pycoco.encode(np.asfortranarray(disc(3.3), np.uint8))
    flat = np.flatnonzero(np.diff(np.r_[0, disc(4.4).T.ravel(), 0])).tolist()
    runs = np.diff([0, *flat, 12 * 20]).tolist()
    ring = [[2, 2, 9, 2, 9, 9, 2, 9], [12, 3, 18, 3, 15, 10]]
    path = put(
        tmp_path / "set.json",
        [
            annotation(7, ring),
            annotation(30, {"size": list(SIZE), "counts": packed["counts"].decode()}),
            annotation(4, {"size": list(SIZE), "counts": runs}),
            annotation(9, SQUARE[0]),  # one ring that is not in a list
        ],
    )
    found = truths(path)
    assert list(found) == ["x#4", "x#7", "x#9", "x#30"]
    with warnings.catch_warnings(action="ignore"):  # pycocotools 2.0.11 calls numpy in a way that it outgrew
        expected = pycoco.decode(pycoco.merge(pycoco.frPyObjects(ring, *SIZE)))
    assert np.array_equal(found["x#7"], expected)
    assert found["x#9"].sum() == 8 * 5
    assert np.array_equal(found["x#30"] == 1, disc(3.3))
    assert np.array_equal(found["x#4"] == 1, disc(4.4))
    assert found["x#4"].dtype == np.int8


@given(st.data())
def test_runs_are_unpacked_as_pycocotools_packs_them(data: st.DataObject) -> None:
    """Any mask up to 40 x 40, with long and short runs, through COCO's text and back."""
    height, width = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    cuts = data.draw(st.lists(st.integers(0, height * width), max_size=30))
    flat = np.zeros(height * width, bool)
    for cut in cuts:
        flat[cut:] ^= True
    mask = flat.reshape(width, height).T
    text = pycoco.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()
    assert np.array_equal(coco.from_runs({"size": [height, width], "counts": text}, (height, width)), mask)


def test_runs_longer_than_16_bits_are_unpacked() -> None:
    mask = np.zeros((600, 700), bool)
    mask[:, 300:303] = mask[100, :] = True
    text = pycoco.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()
    assert np.array_equal(coco.from_runs({"size": [600, 700], "counts": text}, (600, 700)), mask)


def test_crowd_is_void_for_the_objects_of_its_image(tmp_path: Path) -> None:
    picture(tmp_path / "x.jpg")
    crowd = np.zeros(SIZE, np.uint8)
    crowd[:, 8:] = 1
    runs = pycoco.encode(np.asfortranarray(crowd))["counts"].decode()
    path = put(
        tmp_path / "set.json",
        [annotation(1, SQUARE), annotation(2, {"size": list(SIZE), "counts": runs}, iscrowd=1)],
    )
    (truth,) = truths(path).values()
    assert (truth == 1).sum() == 40  # the object keeps its own pixels
    assert np.array_equal(truth == -1, (crowd == 1) & (truth != 1))


def runs_of(mask: np.ndarray) -> dict[str, Any]:
    return {"size": list(SIZE), "counts": pycoco.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()}


def test_brush_masks_of_cvat_are_counted_and_may_be_objects(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """CVAT marks every mask that was brushed as crowd (cvat-ai/cvat#7030); nothing tells it from a crowd of COCO."""
    picture(tmp_path / "x.jpg")
    path = put(tmp_path / "set.json", [annotation(1, SQUARE), annotation(2, runs_of(disc(5)), iscrowd=1)])
    with caplog.at_level(logging.WARNING):
        assert list(truths(path)) == ["x#1"]
    assert f"1 annotations with iscrowd (brush masks of CVAT? then write {path}:crowd=object)" in caplog.text
    found = truths(Path(f"{path}:crowd=object"))
    assert list(found) == ["x#1", "x#2"]
    assert np.array_equal(found["x#2"], disc(5))
    assert (found["x#1"] != -1).all()
    assert build_index(f"{path}:crowd=object").rules == {"coco_crowd": 2}
    indexed = Index(tmp_path / "set.index-crowd-object.jsonl")
    assert [load_with_rule(ref)[1] for ref in indexed] == ["coco_crowd"] * 2
    with pytest.raises(HrsegError, match=r"unknown crowd 'objects'.*object, void"):
        open_dataset(f"{path}:crowd=objects")


@pytest.mark.parametrize(
    ("annotations", "told"),
    [
        ([annotation(1, SQUARE, iscrowd=1)], r"no objects, only 1 annotations with iscrowd .*:crowd=object"),
        ([annotation(1, [])], "no objects, only 1 annotations with a box but no mask"),
        (
            [annotation(1, []), annotation(2, SQUARE, iscrowd=1)],
            "1 annotations with a box .* and 1 annotations with",
        ),
        ([], "no objects, only images without annotations"),
    ],
)
def test_a_file_without_objects_says_what_it_holds(annotations: list[Any], told: str, tmp_path: Path) -> None:
    picture(tmp_path / "x.jpg")
    with pytest.raises(HrsegError, match=told):
        open_dataset(str(put(tmp_path / "set.json", annotations)))


@pytest.mark.parametrize(
    ("flag", "crowd"), [("0", 0), ("", 0), (None, 0), (False, 0), (0.0, 0), ("False", 0), ("1", 1)]
)
def test_iscrowd_may_be_a_text(flag: Any, crowd: int, tmp_path: Path) -> None:
    picture(tmp_path / "x.jpg")
    path = put(tmp_path / "set.json", [annotation(1, SQUARE), annotation(2, SQUARE, iscrowd=flag)])
    assert len(truths(path)) == 2 - crowd


@pytest.mark.parametrize("flag", [2, "no", "maybe", [], -1])
def test_an_iscrowd_that_is_neither_is_named(flag: Any, tmp_path: Path) -> None:
    picture(tmp_path / "x.jpg")
    path = put(tmp_path / "set.json", [annotation(7, SQUARE, iscrowd=flag)])
    with pytest.raises(HrsegError, match=r"annotation 7: iscrowd is .*; write 0 or 1"):
        open_dataset(str(path))


def test_images_without_an_object_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    picture(tmp_path / "x.jpg")
    path = put(tmp_path / "set.json", [annotation(1, SQUARE)])
    content = json.loads(path.read_text())
    content["images"] += [{"id": k, "file_name": f"{k}.jpg"} for k in (2, 3)]
    path.write_text(json.dumps(content))
    with caplog.at_level(logging.WARNING):
        assert len(open_dataset(str(path))) == 1
    assert "skipped 2 of 3 images without objects" in caplog.text


def test_boxes_without_a_mask_are_left_out_with_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    picture(tmp_path / "x.jpg")
    bare = annotation(2, [], bbox=[1, 1, 5, 5])
    path = put(tmp_path / "set.json", [annotation(1, SQUARE), bare, {**bare, "id": 3}])
    with caplog.at_level(logging.WARNING):
        assert list(truths(path)) == ["x#1"]
    assert "skipped 2 annotations" in caplog.text


@pytest.mark.parametrize(
    ("file", "image", "file_name"),
    [
        ("set.json", "x.jpg", "x.jpg"),
        ("set.json", "images/x.jpg", "x.jpg"),
        ("annotations/instances_default.json", "images/a b/x.jpg", "a b/x.jpg"),  # CVAT
        ("annotations/instances_train.json", "images/train/x.jpg", "x.jpg"),  # CVAT, a project with subsets
        ("annotations/instances_val2017.json", "val2017/x.jpg", "x.jpg"),  # COCO itself
        ("result.json", "images/0a1b-x.jpg", "images/0a1b-x.jpg"),  # Label Studio
        ("result.json", "images/0a1b-x.jpg", "images\\0a1b-x.jpg"),  # Label Studio on Windows
        ("result.json", "images/0a1b-x.jpg", "..\\..\\label-studio\\media\\upload\\4\\0a1b-x.jpg"),  # 1.16 with images
    ],
)
def test_images_are_found_where_the_tools_put_them(tmp_path: Path, file: str, image: str, file_name: str) -> None:
    picture(tmp_path / image)
    path = put(tmp_path / file, [annotation(0, SQUARE, attributes={"occluded": False})], file_name, license=0)
    (found,) = truths(path).values()
    assert found.sum() == 40


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["0001.jpg"], ["cam1/0001.jpg", "cam2/0001.jpg"]),
        (["0001.jpg"], ["0001.jpg", "cam2/0001.jpg"]),
        (["0001.jpg", "cam2/0001.jpg"], ["cam1/0001.jpg", "cam2/0001.jpg"]),  # the first may be either's
        (["images/0001.jpg"], ["cam1\\0001.jpg", "cam2\\0001.jpg"]),
        (["images/0001.jpg"], ["0001.jpg", "images/0001.jpg"]),
        (["0001.jpg"], ["0001.jpg", "./0001.jpg"]),
        (["0001.jpg", "x/y.jpg"], ["0001.jpg", "x/../0001.jpg"]),
        (["0001.jpg"], ["0001.jpg", "0001.jpg"]),  # as tools write it that drop the folders
    ],
)
def test_two_images_are_never_read_from_one_file(files: list[str], names: list[str], tmp_path: Path) -> None:
    for file in files:
        picture(tmp_path / file)
    images = [{"id": k, "file_name": name, "height": SIZE[0], "width": SIZE[1]} for k, name in enumerate(names)]
    objects = [annotation(k, SQUARE) | {"image_id": k} for k in range(2)]
    (tmp_path / "set.json").write_text(json.dumps({"images": images, "annotations": objects}))
    with pytest.raises(HrsegError, match=r"0001\.jpg") as caught:
        open_dataset(str(tmp_path / "set.json"))
    assert "the same file" in str(caught.value) or "matches 2 listed images" in str(caught.value)


def test_a_folder_laid_flat_opens_where_its_names_are_clear(tmp_path: Path) -> None:
    """And two names of letters in other case are two files where the disk says so."""
    names = {"cam1/0001.jpg": "0001.jpg", "cam2/0002.jpg": "0002.jpg", "A.jpg": "A.jpg", "a.jpg": "a.jpg"}
    for file in names.values():
        picture(tmp_path / file)
    images = [{"id": k, "file_name": name} for k, name in enumerate(names)]
    objects = [annotation(k, SQUARE) | {"image_id": k} for k in range(4)]
    (tmp_path / "set.json").write_text(json.dumps({"images": images, "annotations": objects}))
    if len(list(tmp_path.glob("*.jpg"))) == 4:
        found = {ref.id: ref.image.name for ref in open_dataset(str(tmp_path / "set.json"))}
        assert found == {"A#2": "A.jpg", "a#3": "a.jpg", "cam1/0001#0": "0001.jpg", "cam2/0002#1": "0002.jpg"}


def test_an_id_holds_nothing_that_leads_out_of_a_folder(tmp_path: Path) -> None:
    picture(tmp_path / "x.jpg")
    for name in ("../../upload/4/x.jpg", "/upload/4/x.jpg", "C:\\upload\\4\\x.jpg"):
        (ref,) = open_dataset(str(put(tmp_path / "set.json", [annotation(7, SQUARE)], name)))
        assert ref.id == "upload/4/x#7"


def test_a_name_below_the_root_opens_too_and_names_itself(tmp_path: Path) -> None:
    picture(tmp_path / "x.jpg")
    put(tmp_path / "set.json", [annotation(1, SQUARE)])
    (ref,) = open_dataset("set.json", root=tmp_path)
    assert (ref.dataset, ref.id) == ("set", "x#1")
    with pytest.raises(HrsegError, match=r"gone\.json: no such file"):
        open_dataset("gone.json", root=tmp_path)


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    picture(tmp_path / "x.jpg")
    path = put(tmp_path / "set.json", [annotation(1, SQUARE)])
    (ref,) = open_dataset(str(path))
    put(path, [annotation(12, SQUARE)])
    assert [ref.id for ref in open_dataset(str(path))] == ["x#12"]
    with pytest.raises(HrsegError, match="annotation 1 is gone"):
        load_with_rule(ref)


def test_a_file_that_cannot_be_read_is_named_when_an_object_is_loaded(tmp_path: Path) -> None:
    picture(tmp_path / "x.jpg")
    path = put(tmp_path / "set.json", [annotation(1, SQUARE)])
    (ref,) = open_dataset(str(path))
    path.unlink()
    with pytest.raises(HrsegError, match=r"set\.json: no such file; restore it"):
        load_with_rule(ref)
    path.mkdir()
    with pytest.raises(HrsegError, match=r"set\.json: cannot be read \(Is a directory\)"):
        load_with_rule(ref)


def test_readers_and_what_calls_them_do_not_need_each_other() -> None:
    """A reference is the same thing wherever it is imported from, and coco stands without samples."""
    code = (
        "import sys; import hrseg_cli.data.coco; assert 'hrseg_cli.data.samples' not in sys.modules\n"
        "from hrseg_cli.data import refs, samples\n"
        "assert (samples.Ref, samples.Listing) == (refs.Ref, refs.Listing)\n"
        "assert (samples.Rule, samples.Marks, samples.PAIRS) == (refs.Rule, refs.Marks, refs.PAIRS)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_run_text_is_read_in_time_in_proportion_to_its_length() -> None:
    """Characters that all say "more follows" shifted an ever longer number: 400 kB took seconds, 4 MB minutes."""
    with pytest.raises(ValueError, match="more than 60 bits"):
        coco.from_runs({"size": [4, 4], "counts": "o" * 10**6}, (4, 4))


def test_a_zigzag_that_would_be_drawn_for_hours_is_refused(tmp_path: Path) -> None:
    picture(tmp_path / "x.jpg")
    zigzag = [[0, 0, 20, 12] * 2000]
    path = put(tmp_path / "set.json", [annotation(1, zigzag), annotation(2, SQUARE)])
    with pytest.raises(HrsegError, match="annotation 1: a polygon whose outline is longer"):
        truths(path)


def test_sizes_written_as_text_are_numbers(tmp_path: Path) -> None:
    """As spreadsheets export them."""
    picture(tmp_path / "x.jpg")
    runs = {"size": ["12", "20"], "counts": [5, 7, 228]}
    path = put(tmp_path / "set.json", [annotation(1, SQUARE), annotation(2, runs)], height="12", width="20")
    assert truths(path)["x#2"].sum() == 7
    for height in ("twelve", 12.5, [12], True):
        path = put(tmp_path / "set.json", [annotation(1, SQUARE)], height=height)
        with pytest.raises(HrsegError, match="image 1: height is"):
            truths(path)


BROKEN = [
    5,
    "text",
    [[]],
    [5],
    [["a"] * 6],
    [[10**400] * 6],
    [None],
    {},
    {"counts": 5, "size": 5},
    {"size": SIZE},
]


@pytest.mark.parametrize("segmentation", BROKEN, ids=range(len(BROKEN)))
def test_a_broken_annotation_is_one_problem_and_the_others_stay(tmp_path: Path, segmentation: Any) -> None:
    picture(tmp_path / "x.jpg")
    path = put(tmp_path / "set.json", [annotation(1, segmentation), annotation(2, SQUARE)])
    found = build_index(path)
    assert found.objects == 1
    assert ["annotation 1: " in problem for problem in found.problems] == [True] * (segmentation != {})


def test_an_equals_sign_in_the_path_is_part_of_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """runs/lr=1/instances.json; a name before a path is NAME=FILE only where no such file exists."""
    monkeypatch.chdir(tmp_path)
    picture(Path("lr=1/x.jpg"))
    put(Path("lr=1/set.json"), [annotation(1, SQUARE)])
    assert [ref.dataset for ref in open_dataset("lr=1/set.json")] == ["set"]
    assert [ref.dataset for ref in open_dataset("mine=lr=1/set.json")] == ["mine"]


def test_objects_of_some_categories_only(tmp_path: Path) -> None:
    picture(tmp_path / "x.jpg")
    path = put(tmp_path / "set.json", [annotation(1, SQUARE), annotation(2, SQUARE, category_id=7)])
    content = json.loads(path.read_text()) | {"categories": [{"id": 1, "name": "cat"}, {"id": 7, "name": "dog"}]}
    path.write_text(json.dumps(content))
    for category, ids in {"cat": ["x#1"], "7": ["x#2"], "dog+cat": ["x#1", "x#2"]}.items():
        assert [ref.id for ref in open_dataset(f"{path}:category={category}")] == ids
    with pytest.raises(UnknownName, match=r"unknown category 'cow'.* Known: cat, dog"):
        open_dataset(f"{path}:category=cow")
