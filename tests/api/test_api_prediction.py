"""Clicks on images to masks: images in memory and as files, clicks in Python and in a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_photos import SameColour, folder_of, photograph, truth

import hrseg_cli as hrseg
from hrseg_cli.engine.runtimes import ModelChoice

RED, BLUE = (30, 30), (70, 100)


@pytest.fixture
def model() -> hrseg.Model:
    return hrseg.Model(ModelChoice("fake"), SameColour(), {"name": "same-colour"})


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "photos", "a.png", "b.png", flat=True)


def test_one_image_and_its_objects(model: hrseg.Model) -> None:
    (found,) = hrseg.predict(model, photograph(), [RED, (*BLUE, True)], protocol="plain")
    assert found.image is None
    assert found.mask is not None
    assert np.array_equal(found.mask, truth("red") | truth("blue"))
    named = hrseg.predict(model, photograph(), {"red": [RED], "blue": [hrseg.Click(*BLUE, True)]}, protocol="plain")
    assert {one.object: one.mask.tobytes() for one in named if one.mask is not None} == {
        name: truth(name).tobytes() for name in ("red", "blue")
    }


def test_several_images_each_with_its_clicks(model: hrseg.Model, photos: Path) -> None:
    """Files, arrays and a folder; and the same by a file of clicks, in which one image has none."""
    images = [photos / "a.png", Image.fromarray(photograph())]
    first, second = hrseg.predict(model, images, [[RED], [BLUE]], protocol="plain")
    assert first.image == photos / "a.png"
    assert np.array_equal(first.mask, truth("red"))  # type: ignore[arg-type]
    assert np.array_equal(second.mask, truth("blue"))  # type: ignore[arg-type]
    (photos / "clicks.json").write_text(json.dumps({"b.png": [[*BLUE, 1]]}))
    (found,) = hrseg.predict(model, photos, photos / "clicks.json", protocol="plain")
    assert found.image == photos / "b.png"
    assert np.array_equal(found.mask, truth("blue"))  # type: ignore[arg-type]


def test_masks_to_start_from(model: hrseg.Model) -> None:
    blue = truth("blue")
    (one,) = hrseg.predict(model, photograph(), [RED], initial=blue, protocol="plain")
    assert np.array_equal(one.mask, blue | truth("red"))  # type: ignore[arg-type]
    pair = [photograph()] * 2
    two = hrseg.predict(model, pair, [[RED], [RED]], initial=[None, blue], protocol="plain")
    assert [int(one.mask.sum()) for one in two if one.mask is not None] == [
        truth("red").sum(), (blue | truth("red")).sum(),
    ]  # fmt: skip


def test_a_folder_as_the_command_writes_it(photos: Path, hrseg_command: Callable[..., Any], tmp_path: Path) -> None:
    """The same files; and each way finds that the other has left nothing to do."""
    (tmp_path / "clicks.json").write_text(json.dumps({"a.png": {"left": [[*RED, 1]]}, "b.png": [[*BLUE, 1]]}))
    found = hrseg.predict("grabcut", photos, tmp_path / "clicks.json", out=tmp_path / "ours", formats=["png", "rle"])
    assert all(one.mask is None for one in found)
    assert [[path.name for path in one.files] for one in found] == [
        ["a_left.png", "a_left_rle.json"],
        ["b.png", "b_rle.json"],
    ]
    words = [
        "predict",
        photos,
        "-m",
        "grabcut",
        "--clicks",
        tmp_path / "clicks.json",
        "--format",
        "png",
        "--format",
        "rle",
    ]
    done = hrseg_command(*words, "-o", tmp_path / "theirs")
    assert done.code == 0, done.err
    for one in found:
        for path in one.files:
            assert path.read_bytes() == (tmp_path / "theirs" / path.name).read_bytes()
    assert "2 of 2 objects" in hrseg_command(*words, "-o", tmp_path / "ours").err


def test_of_many_images_the_good_ones_are_done_first(photos: Path, tmp_path: Path) -> None:
    (photos / "a.png").write_bytes(b"torn")
    with pytest.raises(hrseg.HrsegError, match=r"a\.png"):
        hrseg.predict("grabcut", [photos / "a.png", photos / "b.png"], [[RED], [BLUE]], out=tmp_path / "out")
    assert (tmp_path / "out" / "b.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"clicks": []}, "`clicks`: an object without clicks"),
        ({"clicks": RED}, "`clicks`: 30 is not a click"),
        ({"clicks": [(1, 2, 3, 4, 5)]}, "is not a click; give a list of"),
        ({"clicks": [("1", 2)]}, "`row` '1'"),
        ({"clicks": [(1, 200)]}, "`col` 200: outside the image"),
        ({"clicks": {}}, "`clicks`: no objects"),
        ({"clicks": None}, "`clicks`: a NoneType"),
        ({"images": [photograph(), photograph()], "clicks": [[RED]]}, "1 lists of clicks for 2 images"),
        ({"initial": np.zeros((3, 3), bool)}, "`initial`: shape"),
        ({"out": "out"}, "`out`: masks are named after image files"),
        ({"formats": "jpg"}, "unknown format 'jpg'"),
        ({"tolerance": -1}, "`tolerance` -1"),
        ({"images": "nowhere/*.jpg"}, "no image found"),
        ({"span": (0, 4095)}, "`span`: applies to image files only"),
    ],
)
def test_what_is_wrong_is_named(arguments: dict[str, Any], said: str, model: hrseg.Model) -> None:
    with pytest.raises(hrseg.HrsegError, match=said) as caught:
        hrseg.predict(model, **{"images": photograph(), "clicks": [RED], **arguments})
    assert "--" not in str(caught.value)


def test_nothing_is_overwritten(photos: Path) -> None:
    with pytest.raises(hrseg.HrsegError, match=r"^`out` .*contains the input a\.png"):
        hrseg.predict("grabcut", photos / "a.png", [RED], out=photos)
