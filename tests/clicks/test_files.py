"""Clicks in files: three formats say the same, and a wrong line is named."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from hrseg_cli.clicks.files import for_images, parse_box, parse_click, read_clicks
from hrseg_cli.data.pixels import SUFFIXES
from hrseg_cli.errors import HrsegError
from hrseg_cli.interaction import Box, Click, Trace, as_numbers
from hrseg_cli.limits import PIXELS

LEFT, RIGHT = (Click(3, 4, True), Click(5, 6.5, False)), (Click(7, 8, True),)
JSON = '{"a.jpg": {"left": [[3, 4, 1], [5, 6.5, 0]], "right": [[7, 8]]}, "b": [[7, 8, 1]]}'
CSV = "image,row,col,positive,object\na.jpg,3,4,1,left\na.jpg,5,6.5,0,left\na.jpg,7,8,1,right\nb,7,8,,\n"
TRACE = Trace("a", "mine", RIGHT, {}, (), {}).to_json()
TRACES = [("a.jpg#left", LEFT), ("a.jpg#right", RIGHT), ("b", RIGHT)]


@pytest.mark.parametrize("suffix", ["json", "csv", "jsonl"])
def test_every_format_says_the_same(suffix: str, tmp_path: Path) -> None:
    lines = "".join(Trace(key, "mine", clicks, {}, (), {}).to_json() + "\n" for key, clicks in TRACES)
    path = tmp_path / f"clicks.{suffix}"
    path.write_text({"json": JSON, "csv": "\ufeff" + CSV, "jsonl": lines}[suffix], encoding="utf-8")
    found = for_images(read_clicks(path), [Path("/p/a.jpg"), Path("/p/b.png")], SUFFIXES, ids=suffix == "jsonl")
    assert found == ({Path("/p/a.jpg"): {"left": LEFT, "right": RIGHT}, Path("/p/b.png"): {"": RIGHT}}, [])


def test_a_list_of_lists_is_numbered(tmp_path: Path) -> None:
    path = tmp_path / "clicks.json"
    path.write_text(json.dumps({"a": [[[3, 4, 1], [5, 6.5, 0]], [[7, 8, True]]]}))
    assert read_clicks(path) == {"a": {"1": LEFT, "2": RIGHT}}


def test_boxes_are_read_in_their_order(tmp_path: Path) -> None:
    box = Box(top=10, bottom=40, left=20, right=61)
    (tmp_path / "c.json").write_text(json.dumps({"a": [[10, 20, 40, 61], [3, 4, 0]], "b": [[10, 20, 40, 60.6]]}))
    assert read_clicks(tmp_path / "c.json") == {"a": {"": (box, Click(3, 4, False))}, "b": {"": (box,)}}
    (tmp_path / "c.csv").write_text("image,row,col,positive,bottom,right\na,10,20,,40,61\na,3,4,0,,\n")
    assert read_clicks(tmp_path / "c.csv") == {"a": {"": (box, Click(3, 4, False))}}
    assert parse_box("10,20,40,61") == box
    assert parse_box("10,20,10,20") == Box(10, 10, 20, 20), "of one pixel"
    assert as_numbers(box) == [10, 20, 40, 61]
    for wrong in ("10,20,40", "10,20,5,61", "a,b,c,d", "1,2,nan,4", ""):
        with pytest.raises(HrsegError, match="write TOP,LEFT,BOTTOM,RIGHT"):
            parse_box(wrong)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("c.json", '{"a": [[10, 20, 5, 61]]}', "a: not clicks"),
        ("c.csv", "image,row,col,bottom,right\na,10,20,40,\n", "line 2: not a click"),
        ("c.json", "{", "cannot be read .*line 1 column 2"),
        ("c.json", "[1]", "cat.jpg"),
        ("c.json", '{"a": [3, 4, 1]}', r"c\.json, a: not clicks; write \[row, col, 1\]"),
        ("c.json", '{"a": [[3, "4", 1]]}', "a: not clicks"),
        ("c.json", '{"a": [[3, 4, 2]]}', "a: not clicks"),
        ("c.json", '{"a": [[NaN, 4, 1]]}', "a: not clicks"),
        ("c.json", '{"a": [[true, 4, 20, 30]]}', "a: not clicks"),
        ("c.json", '{"a": [[3, 4, 1e12, 30]]}', "a: not clicks"),
        ("c.json", f'{{"a": [[3, 4, {PIXELS}, 30]]}}', "a: not clicks"),
        ("c.json", f'{{"a": [[{PIXELS}, 4]]}}', "a: not clicks"),
        ("c.json", f'{{"a": [[3, {-PIXELS}]]}}', "a: not clicks"),
        ("c.json", '{"a": [[true, 4, 1]]}', "a: not clicks"),
        ("c.json", '{"a": [[3, false, 1]]}', "a: not clicks"),
        ("c.json", '{"a": [[10, 20, 40, 19]]}', "a: not clicks"),
        ("c.json", '{"a": 5}', "a: not clicks"),
        ("c.json", '{"a": []}', "a: an object without clicks"),
        ("c.json", '{"a": {"left": []}}', "a: an object without clicks"),
        ("c.csv", "a.jpg,3,4\n", "first line must name the column image, row, col"),
        ("c.csv", "image,row,col\na.jpg,3,4\na.jpg,3,four\n", "line 3: not a click"),
        ("c.csv", "image,row,col\na.jpg,3\n", "line 2: 2 columns instead of 3"),
        ("c.csv", "image,row,col,positive\na.jpg,3,4,maybe\n", "line 2: not a click"),
        ("c.csv", "image,row,col\na.jpg,inf,4\n", "line 2: not a click"),
        ("c.json", '{"a": [[3, 4, 1]], "b": [[1, 1]], "a": [[5, 6, 1]]}', "duplicate key 'a'"),
        ("c.json", '{"a": {"left": [[3, 4, 1]], "left": [[5, 6, 1]]}}', "duplicate key 'left'"),
        ("c.jsonl", '{"id": 1}\n\n', "line 1: not a trace"),
        ("c.jsonl", f"{TRACE}\n{TRACE}\n", "a: duplicate trace"),
        ("c.jsonl", f"{TRACE}\n{TRACE[:-20]}", "line 2: incomplete"),
    ],
)
def test_a_wrong_file_is_named(name: str, content: str, told: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(HrsegError, match=told):
        read_clicks(tmp_path / name)


def test_a_number_too_long_for_a_float_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(f'{{"a": [[1{"0" * 400}, 4, 1]]}}')
    with pytest.raises(HrsegError, match="a: not clicks"):
        read_clicks(tmp_path / "c.json")


@pytest.mark.parametrize("name", ["c.json", "c.csv", "c.jsonl"])
def test_a_missing_file_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(HrsegError, match=name):
        read_clicks(tmp_path / name)


def test_clicks_as_typed() -> None:
    assert parse_click("12, 40.5") == Click(12, 40.5, True)
    assert parse_click("12,40,neg") == Click(12, 40, False)
    for text in ("12", "12,x", "12,40,no", "12,40,neg,1", "nan,4", ""):
        with pytest.raises(HrsegError, match=r"write ROW,COL"):
            parse_click(text)


def test_names_find_their_images() -> None:
    """With and without suffix and folder, however the images were typed."""
    images = [Path("/p/pets/cat.jpg"), Path("/p/pets/../dog_big.jpg"), Path("/q/pets/bird.png")]
    clicks = {
        "pets/cat": {"": LEFT},
        "/p/dog_big": {"": LEFT},
        "bird": {"2": LEFT},
        "./bird.png": {"1": RIGHT},
        "x": {},
    }
    found, strangers = for_images(clicks, images, SUFFIXES)
    assert found == {images[0]: {"": LEFT}, images[1]: {"": LEFT}, images[2]: {"2": LEFT, "1": RIGHT}}
    assert strangers == ["x"]


@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize(
    "name", ["photo_1.jpg", "photo_1.JPG", "p/photo_1.webp", "photo.png", "photo.jpg.png", "hoto.jpg"]
)
def test_clicks_of_an_image_that_is_absent_go_nowhere(name: str, ids: bool) -> None:
    images = [Path("/p/photo.jpg"), Path("/p/scan.jpg.png")]
    assert for_images({name: {"": LEFT}}, images, SUFFIXES, ids=ids) == ({}, [name])


@pytest.mark.parametrize("name", ["photo_1", "photo_left", "photo#1", "scan.jpg"])
def test_only_an_id_of_a_trace_may_name_an_object_or_lack_a_suffix_after_another(name: str) -> None:
    images = [Path("/p/photo.jpg"), Path("/p/scan.jpg.png")]
    assert for_images({name: {"": LEFT}}, images, SUFFIXES) == ({}, [name])
    found, strangers = for_images({name: {"": LEFT}}, images, SUFFIXES, ids=True)
    assert strangers == []
    assert list(found.values()) == [{re.sub("^photo[_#]|scan.jpg", "", name): LEFT}]


def test_a_file_of_exactly_that_name_comes_first() -> None:
    """Masks may lie next to their images as cat.jpg.png."""
    images = [Path("/p/cat.jpg.png"), Path("/p/cat.jpg")]
    clicks = {"cat.jpg": {"": LEFT}, "cat.jpg.png": {"": RIGHT}}
    assert for_images(clicks, images, SUFFIXES)[0] == {images[0]: {"": RIGHT}, images[1]: {"": LEFT}}
    ids = {"cat": {"": LEFT}, "cat.jpg": {"": RIGHT}, "cat.jpg#1": {"": LEFT}, "cat_1_2": {"": RIGHT}}
    found = for_images(ids, images, SUFFIXES, ids=True)[0]
    assert found == {images[0]: {"": RIGHT, "1": LEFT}, images[1]: {"": LEFT, "1_2": RIGHT}}


@pytest.mark.parametrize(
    ("name", "picture"), [("a_1", "a_1.JPG"), ("a#1", "a#1.png"), ("a_1#2", "a_1.tif"), ("a_1_2", "a_1.bmp")]
)
def test_an_id_of_a_picture_next_to_the_images_is_not_an_object_of_theirs(
    name: str, picture: str, tmp_path: Path
) -> None:
    """Traces of a whole folder, but only some of its images are given."""
    (tmp_path / "a_9.jpg").touch()
    (tmp_path / "a.jpg").touch()
    clicks = {name: {"": LEFT}}
    assert for_images(clicks, [tmp_path / "a.jpg"], SUFFIXES, ids=True)[1] == []
    (tmp_path / picture).touch()
    assert for_images(clicks, [tmp_path / "a.jpg"], SUFFIXES, ids=True) == ({}, [name])


def test_the_folder_of_an_id_counts_also_where_it_names_an_object() -> None:
    images = [Path("/p/pets/cat.jpg"), Path("/p/zoo/cat.jpg")]
    found = for_images({"zoo/cat_left": {"": LEFT}}, images, SUFFIXES, ids=True)
    assert found == ({images[1]: {"left": LEFT}}, [])


def test_a_name_of_two_images_is_refused_and_more_of_its_path_is_not() -> None:
    images = [Path("/p/a/cat.jpg"), Path("/p/b/cat.jpg")]
    with pytest.raises(HrsegError, match="more of the path"):
        for_images({"cat.jpg": {"": LEFT}}, images, SUFFIXES)
    assert for_images({"b/cat.jpg": {"": LEFT}}, images, SUFFIXES) == ({images[1]: {"": LEFT}}, [])
    twins = [Path("/p/cat.jpg"), Path("/p/cat.png")]
    with pytest.raises(HrsegError, match="write the suffix"):
        for_images({"p/cat": {"": LEFT}}, twins, SUFFIXES)
    assert for_images({"cat.png": {"": LEFT}}, twins, SUFFIXES) == ({twins[1]: {"": LEFT}}, [])


def test_clicks_given_twice_are_refused() -> None:
    with pytest.raises(HrsegError, match="duplicate clicks"):
        for_images({"cat": {"": LEFT}, "cat.jpg": {"": RIGHT}}, [Path("/p/cat.jpg")], SUFFIXES)


def test_names_may_be_written_as_on_windows(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("image,row,col\nsub\\a.png,3,4\n")
    image = tmp_path / "sub" / "a.png"
    assert for_images(read_clicks(tmp_path / "c.csv"), [image], (".png",))[0] == {image: {"": (Click(3.0, 4.0, True),)}}


def test_a_table_of_pandas_has_positive_as_a_float(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("image;row;col;positive\na.png;3;4;1.0\na.png;5;6;0.0\n")
    assert read_clicks(tmp_path / "c.csv") == {"a.png": {"": (Click(3.0, 4.0, True), Click(5.0, 6.0, False))}}
