"""The session of the Python API: whatever an image comes as, and what the command makes of the same clicks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_photos import SIZE, SameColour, photograph, truth

import hrseg_cli as hrseg
from hrseg_cli.engine.runtimes import ModelChoice

# What some readers of array-likes warn of is theirs.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def model() -> hrseg.Model:
    return hrseg.Model(ModelChoice("fake"), SameColour(), {"name": "same-colour"})


GREY = np.where(truth("red"), 200, 30).astype(np.uint8)
RGBA = np.dstack([photograph(), np.zeros(SIZE, np.uint8)])  # all transparent: alpha does not count
IMAGES: dict[str, Callable[[Path], Any]] = {
    "RGB": lambda _: photograph(),
    "a view with negative strides": lambda _: photograph()[::-1, ::-1][::-1, ::-1],
    "read-only": lambda _: np.asarray(Image.fromarray(photograph())),
    "RGBA": lambda _: RGBA,
    "grey": lambda _: GREY,
    "grey with an axis": lambda _: GREY[:, :, None],
    "PIL RGB": lambda _: Image.fromarray(photograph()),
    "PIL RGBA": lambda _: Image.fromarray(RGBA),
    "PIL grey": lambda _: Image.fromarray(GREY),
    "PIL palette": lambda _: Image.fromarray(photograph()).convert("P", palette=Image.Palette.ADAPTIVE),
    "PIL 1 bit": lambda _: Image.fromarray(GREY).convert("1", dither=Image.Dither.NONE),
    "path": lambda folder: saved(folder / "a.png"),
    "text": lambda folder: str(saved(folder / "a.png")),
}


def saved(path: Path) -> Path:
    Image.fromarray(photograph()).save(path)
    return path


@pytest.mark.parametrize("kind", IMAGES)
def test_an_image_comes_as_anything(kind: str, model: hrseg.Model, tmp_path: Path) -> None:
    session = model.session(IMAGES[kind](tmp_path), protocol="plain")
    assert session.size == SIZE
    mask = session.click(30, 30)
    assert mask.dtype == bool
    assert np.array_equal(mask, truth("red"))


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (photograph() / 255, r"float64 pixels; give uint8, such as \(255 \* image\)"),
        (photograph().astype(np.uint16), "uint16 pixels; give uint8"),
        (photograph() > 99, r"bool pixels; give uint8, such as 255 \* image"),
        (photograph().transpose(2, 0, 1), r"channels last: image\.transpose\(1, 2, 0\)"),
        (photograph()[None], "one image at a time"),
        (photograph()[:, :, :2], r"shape \(120, 160, 2\)"),
        (photograph()[:0], r"shape \(0, 160, 3\)"),
        (None, "a NoneType; give the path of an image"),
        ([photograph(), GREY], "a list; give the path"),
        (Image.fromarray(np.zeros((5, 5), np.float32)), "mode F has more than 8 bits"),
    ],
)
def test_an_image_of_another_kind_is_one_line(image: Any, said: str, model: hrseg.Model) -> None:
    with pytest.raises(hrseg.HrsegError, match=f"^`image`.*{said}") as caught:
        model.session(image)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(model: hrseg.Model, tmp_path: Path) -> None:
    with pytest.raises(hrseg.HrsegError, match=r"gone\.jpg"):
        model.session(tmp_path / "gone.jpg")


def test_the_caller_s_arrays_and_the_session_s_stay_apart(model: hrseg.Model) -> None:
    image = photograph()
    session = model.session(image, protocol="plain")
    image[:] = 0
    mask = session.click(30, 30)
    mask[:] = False
    session.probability[:] = 0
    assert np.array_equal(session.mask, truth("red"))


def test_clicks_undo_and_reset(model: hrseg.Model) -> None:
    session = model.session(photograph(), protocol="plain", max_undo=1)
    assert not session.mask.any()
    session.click(np.int64(30), np.float32(30.5))
    both = session.click(row=70, col=100)
    assert np.array_equal(both, truth("red") | truth("blue"))
    only = session.click(30, 30, positive=False)
    assert np.array_equal(only, truth("blue"))
    assert session.clicks[-1] == hrseg.Click(30, 30, False)
    assert session.undo()
    assert np.array_equal(session.mask, both)
    assert not session.undo()  # max_undo
    session.reset()
    assert session.clicks == ()
    assert not session.mask.any()
    assert session.probability.dtype == np.float32
    assert session.probability.shape == SIZE


@pytest.mark.parametrize(
    ("click", "said"),
    [
        ((120, 5), "`row` 120: outside the image; rows range from 0 to 119"),
        ((5, -1), "`col` -1: outside the image; cols range from 0 to 159"),
        ((float("nan"), 5), "`row` nan: give a number"),
        (("5", 5), "`row` '5': give a number"),
        ((True, 5), "`row` True: give a number"),
        (((5, 5), 5), "`row` .*: give a number"),
        ((10**400, 5), "`row` 1000.*: give a number"),
        ((5, 5, "neg"), "`positive` 'neg': give True on the object, False"),
    ],
)
def test_a_wrong_click_changes_nothing(click: tuple[Any, ...], said: str, model: hrseg.Model) -> None:
    session = model.session(photograph(), protocol="plain")
    before = session.click(30, 30)
    with pytest.raises(hrseg.HrsegError, match=said):
        session.click(*click)
    assert np.array_equal(session.mask, before)
    assert len(session.clicks) == 1


RED = truth("red")


@pytest.mark.parametrize(
    "initial",
    [RED, RED.astype(np.uint8), RED * 255, RED.astype(np.int64), RED.astype(np.float64), Image.fromarray(RED)],
)
def test_a_mask_to_start_from(initial: Any, model: hrseg.Model, tmp_path: Path) -> None:
    session = model.session(photograph(), protocol="plain", initial=initial)
    assert np.array_equal(session.mask, RED)
    assert np.array_equal(session.click(70, 100), RED | truth("blue"))
    session.reset(initial)
    assert np.array_equal(session.mask, RED)
    Image.fromarray(RED).save(tmp_path / "mask.png")
    assert np.array_equal(model.session(photograph(), initial=tmp_path / "mask.png").mask, RED)


@pytest.mark.parametrize(
    ("initial", "said"),
    [
        (RED[:-1], r"shape \(119, 160\); the image has \(120, 160\)"),
        (photograph(), "shape"),
        (RED * 3, "integers must be 0 and 1"),
        (RED * 2.0 - 1, r"values outside 0\.\.1"),
        (np.full(SIZE, np.nan), r"values outside 0\.\.1"),
        (RED * 1j, "a ndarray"),
    ],
)
def test_a_wrong_mask_to_start_from_is_one_line(initial: Any, said: str, model: hrseg.Model) -> None:
    with pytest.raises(hrseg.HrsegError, match=f"^`initial`: {said}"):
        model.session(photograph(), initial=initial)


def test_settings_that_do_not_exist_are_told(model: hrseg.Model) -> None:
    with pytest.raises(hrseg.UnknownName, match="Did you mean 'photo'"):
        model.session(photograph(), protocol="phoot")
    with pytest.raises(hrseg.HrsegError, match="zoom"):
        model.session(photograph(), changes={"zoom.tarmac": 3})
    with pytest.raises(hrseg.HrsegError, match="`protocol`: a NoneType; give a name"):
        model.session(photograph(), protocol=None)  # type: ignore[arg-type]
    with pytest.raises(hrseg.HrsegError, match=r"`image` no\.jpg: no such file$"):
        model.session("no.jpg")
    with pytest.raises(hrseg.HrsegError, match=r"`protocol` own\.yaml: no such file"):
        model.session(photograph(), protocol=Path("own.yaml"))
    with pytest.raises(hrseg.HrsegError, match="`changes`: give a mapping"):
        model.session(photograph(), changes=3)  # type: ignore[arg-type]
    with pytest.raises(hrseg.HrsegError, match=r"`span` \(5, 1\): give the values"):
        model.session("a.tif", span=(5, 1))
    with pytest.raises(hrseg.HrsegError, match="`device` tpu"):
        hrseg.load("grabcut", device="tpu")
    with pytest.raises(hrseg.HrsegError, match="`precision` bf16: 'grabcut' supports only fp32"):
        hrseg.load("grabcut", precision="bf16")
    with pytest.raises(hrseg.HrsegError, match="`model`: a SameColour; give a name or the path"):
        hrseg.load(SameColour())  # type: ignore[arg-type]


@pytest.mark.parametrize("changes", [{"zoom.target": 96}, ["zoom.target=96"]])
def test_the_command_makes_the_same_mask(changes: Any, hrseg_command: Callable[..., Any], tmp_path: Path) -> None:
    """The network that comes with hrseg, by session, by predict() and by hrseg predict."""
    path = saved(tmp_path / "a.png")
    loaded = hrseg.load()
    session = loaded.session(path, changes=changes)
    session.click(30, 30)
    mask = session.click(70, 100, positive=False)
    (found,) = hrseg.predict(loaded, path, [(30, 30), (70, 100, False)], changes=changes)
    assert found.mask is not None
    assert np.array_equal(found.mask, mask)
    done = hrseg_command(
        "predict", path, "--click", "30,30", "--click", "70,100,neg", "--set", "zoom.target=96", "-o", tmp_path / "out"
    )
    assert done.code == 0, done.err
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "a.png")) > 0, mask)
    assert mask.any()
