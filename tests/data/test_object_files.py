"""The files of an object: pixels as other programs read them, and what is missing, torn or of another size by name."""

import os
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from small_pairs import disc, picture, put, put_pair

from hrseg_cli.data.datasets import open_dataset
from hrseg_cli.data.samples import Ref, file_state, fingerprint, load, read_image, read_mask
from hrseg_cli.errors import HrsegError

# ---- pixels ----


@pytest.mark.parametrize(
    "kind", ["jpg", "odd.jpg", "turned.jpg", "grey.jpg", "png", "bmp", "rgba.png", "16.png", "16grey.png"]
)
def test_images_equal_opencvs(tmp_path: Path, kind: str) -> None:
    """Published numbers were made with cv2.imread."""
    path, image = tmp_path / f"x.{kind}", picture(37, 53)
    noise = np.random.default_rng(0).integers(0, 65536, (37, 53, 4), np.uint16)
    if kind == "turned.jpg":
        exif = Image.Exif()
        exif[0x0112] = 6
        put(path, image, exif=exif)
    elif kind.startswith("16"):
        cv2.imwrite(str(path), noise[..., 0] if "grey" in kind else noise[..., :3])
    elif kind == "rgba.png":
        put(path, (noise >> 8).astype(np.uint8))
    else:
        put(
            path,
            image[..., 0] if "grey" in kind else (noise[..., :3] >> 8).astype(np.uint8) if "odd" in kind else image,
        )
    expected = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    assert expected is not None
    assert np.array_equal(read_image(path), expected)


@pytest.mark.parametrize("mode", ["P", "LA", "CMYK", "1"])
def test_other_colour_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    Image.fromarray(picture()).convert(mode).save(path)
    image = read_image(path)
    assert image.shape == (12, 20, 3)
    assert image.dtype == np.uint8
    expected = np.asarray(Image.fromarray(picture()).convert(mode).convert("RGB"))
    assert np.abs(image.astype(int) - expected).mean() < 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_turned_photograph_meets_the_upright_or_turned_mask(folder: Path, orientation: int, suffix: str) -> None:
    """Phones store pixels lying down with a tag; both files are brought upright, whichever of them has the tag."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = disc()
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.T,
        6: np.rot90(stored, -1),
        7: stored[::-1, ::-1].T,
        8: np.rot90(stored),
    }[orientation]
    put(folder / f"images/x.{suffix}", np.dstack([stored] * 3), exif=exif)
    put(folder / "masks/x.png", np.ascontiguousarray(upright))
    sample = load(open_dataset(str(folder))[0])
    assert np.array_equal(sample.truth, upright // 255)
    assert np.abs(sample.image[..., 0].astype(int) - upright).max() < 100  # JPEG rings a little, but never half-way
    put(folder / "masks/x.png", stored, exif=exif)
    assert np.array_equal(load(open_dataset(str(folder))[0]).truth, upright // 255)
    put(folder / "masks/x.png", stored.astype(np.uint16) * 257, exif=exif)
    assert np.array_equal(read_mask(folder / "masks/x.png").values, upright.astype(np.uint16) * 257)


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "tif"])
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_a_cut_file_is_named(folder: Path, suffix: str, keep: float) -> None:
    """OpenCV fills the rest of a cut JPEG with grey and goes on."""
    noise = np.random.default_rng(1).integers(0, 256, (60, 80, 3), np.uint8)
    path = put(folder / f"images/x.{suffix}", noise)
    put(folder / "masks/x.png", disc(60, 80))
    load(open_dataset(str(folder))[0])
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(HrsegError, match=rf"x\.{suffix}: cannot be read.*replace the file") as caught:
        load(open_dataset(str(folder))[0])
    assert "\n" not in str(caught.value)
    assert ("an empty file" in str(caught.value)) == (keep == 0)


def test_wrong_size_and_missing_files_are_named(folder: Path) -> None:
    put_pair(folder, "x", disc(20, 12))
    (ref,) = open_dataset(str(folder))
    with pytest.raises(HrsegError, match=r"x\.png: 12x20 pixels, but .*x\.jpg has 20x12 \(rotated"):
        load(ref)
    ref.mask.unlink()
    with pytest.raises(HrsegError, match=r"x\.png: no such file"):
        load(ref)


def test_another_mask_of_the_wrong_size_is_named(folder: Path) -> None:
    put_pair(folder, "x")
    put(folder / "masks/x_2.png", disc(9, 9))
    with pytest.raises(HrsegError, match=r"x_2\.png: 9x9"):
        load(open_dataset(str(folder), limit=1)[0])


def test_more_than_a_gigapixel_is_refused_before_decoding(tmp_path: Path) -> None:
    """A PBM header promises 40000 x 40000 pixels; only the header is read."""
    (tmp_path / "huge.pbm").write_bytes(b"P4\n40000 40000\n")
    with pytest.raises(HrsegError, match="gigapixel"):
        read_image(tmp_path / "huge.pbm")


def test_a_reference_loads_nothing() -> None:
    """A missing file is noticed on loading, not on making the reference."""
    ref = Ref("x", "d", Path("gone.jpg"), Path("gone.png"), "auto")
    with pytest.raises(HrsegError, match=r"gone\.jpg: no such file"):
        load(ref)


# ---- the files of an object ----


@pytest.fixture
def ref(folder: Path) -> Ref:
    """An object with every kind of file."""
    put_pair(folder, "x")
    other = put(folder / "masks/other.png", disc())
    initial = put(folder / "start.png", disc())
    return Ref("x", "d", folder / "images/x.jpg", folder / "masks/x.png", "void128", others=(other,), initial=initial)


def kinds(ref: Ref) -> dict[str, Path]:
    assert ref.initial is not None
    return {"image": ref.image, "mask": ref.mask, "others": ref.others[0], "initial": ref.initial}


def test_the_state_of_an_object_names_every_file_and_how_it_is_read(ref: Ref) -> None:
    for number, path in enumerate(kinds(ref).values(), 1):
        path.write_bytes(bytes(number))
        os.utime(path, ns=(0, 10 * number))
    assert file_state(ref) == "void128, None, 1 10, 2 20, 3 30, 4 40"
    assert file_state(replace(ref, rule="instance", instance=3, others=(), initial=None)) == (
        "instance, 3, 1 10, 2 20, None"
    )
    assert file_state(ref, stat=lambda path: path.name) == "void128, None, x.jpg, x.png, other.png, start.png"
    (drawn,) = open_dataset("procedural:count=1,size=64,seed=5")
    assert file_state(drawn) == "gt128, None, (5, 0, 64)"


@pytest.mark.parametrize("kind", ["image", "mask", "others", "initial"])
def test_a_fingerprint_is_of_every_file(ref: Ref, folder: Path, kind: str) -> None:
    before = fingerprint(folder, [ref])
    os.utime(kinds(ref)[kind], ns=(1, 1))
    assert fingerprint(folder, [ref]) != before


@pytest.mark.parametrize("damage", ["gone", "dead link", "folder is a file"])
@pytest.mark.parametrize("kind", ["image", "mask", "others", "initial"])
def test_a_file_that_is_gone_is_named(ref: Ref, folder: Path, kind: str, damage: str) -> None:
    path = kinds(ref)[kind]
    if damage == "folder is a file":
        put(folder / "plain", disc(), format="PNG")
        path = folder / "plain" / path.name
        ref = replace(ref, **{kind: (path,) if kind == "others" else path})
    else:
        path.unlink()
        if damage == "dead link":
            path.symlink_to("nowhere")
    with pytest.raises(HrsegError) as caught:
        file_state(ref)
    assert str(caught.value) == f"{path}: no such file; restore it, or remove its partner"
    with pytest.raises(HrsegError) as caught:
        file_state(ref, stat=lambda path: str(path.stat().st_size))
    assert str(caught.value).startswith(f"{path}: no such file")
    with pytest.raises(HrsegError) as caught:
        load(ref)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_link_to_itself_is_named(ref: Ref) -> None:
    ref.mask.unlink()
    ref.mask.symlink_to(ref.mask.name)
    with pytest.raises(HrsegError, match=r"x\.png: cannot be read \("):
        file_state(ref)
