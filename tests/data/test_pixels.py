"""Images of more than 8 bits and files of several pages."""

import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from hrseg_cli.data import pixels
from hrseg_cli.data.datasets import open_dataset
from hrseg_cli.data.index import Index, build_index, is_fresh
from hrseg_cli.data.pixels import Span, parse_span, read_image, read_mask
from hrseg_cli.data.samples import file_state, list_masks, load
from hrseg_cli.data.views import cache_longest, load_scene
from hrseg_cli.errors import HrsegError


def ramp() -> np.ndarray:
    """uint8 (16, 16), every value once."""
    return np.arange(256, dtype=np.uint8).reshape(16, 16)


def write(path: Path, values: np.ndarray) -> Path:
    """Colours as cv2 writes them: BGR."""
    if values.ndim == 3:
        assert cv2.imwrite(str(path), values)
    else:
        Image.fromarray(values).save(path)
    return path


def colours(bits: int) -> np.ndarray:
    """uint16 (16, 16, 3), BGR: a ramp in one channel, half of it in the others."""
    values = ramp().astype(np.uint16) << (bits - 8)
    return np.dstack([values // 2, values, values // 2])


# ---- how far values reach ----

FEW_BITS = {
    "10 bits.png": (lambda: ramp().astype(np.uint16) * 4, Span(0, 1023)),
    "12 bits.png": (lambda: ramp().astype(np.uint16) * 16, Span(0, 4095)),
    "12 bits.tif": (lambda: ramp().astype(np.uint16) * 16, Span(0, 4095)),
    "12 bits in colour.png": (lambda: colours(12), Span(0, 4095)),
    "12 bits in colour.tif": (lambda: colours(12), Span(0, 4095)),
    "12 bits in colour.ppm": (lambda: colours(12), Span(0, 4095)),
    "8 of 32 bits.tif": (lambda: ramp().astype(np.int32), Span(0, 255)),
    "beyond 16 bits.tif": (lambda: ramp().astype(np.int32) * 1000, Span(0, 255000)),
    "signed.tif": (lambda: ramp().astype(np.int32) * 10 - 1000, Span(-1000, 1550)),
    "float.tif": (lambda: ramp().astype(np.float32) / 255, Span(0, 1)),
    "large float.tif": (lambda: ramp().astype(np.float32) * 1000, Span(0, 255000)),
}


@pytest.mark.parametrize("name", FEW_BITS)
def test_values_that_are_not_8_or_16_bits_ask_for_a_range(tmp_path: Path, name: str) -> None:
    """They came out black, or wrapped. The line says what to type, and typing it gives the picture."""
    make, span = FEW_BITS[name]
    path = write(tmp_path / name, make())
    with pytest.raises(HrsegError, match=r"values from .* to .* as `span`") as caught:
        read_image(path)
    asked = str(caught.value).partition("`span` LOW")[0].rpartition("`span` ")[2].split(" ")[0]
    assert asked == str(span)
    assert f"DATASET:range={span}" in str(caught.value)
    assert "\n" not in str(caught.value)
    image = read_image(path, span=parse_span(asked))
    assert image.dtype == np.uint8
    # 255 of 256 levels of n bits is not quite the white of n bits.
    assert np.abs(image[:, :, 1].astype(int) - ramp()).max() <= 2
    assert np.abs(image.max(axis=2).astype(int) - ramp()).max() <= 2


@pytest.mark.parametrize("make", [lambda: ramp().astype(np.uint16) * 257, lambda: colours(16)])
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_16_bits_need_no_range_and_may_have_one(tmp_path: Path, make: Callable[[], np.ndarray], ending: str) -> None:
    path = write(tmp_path / f"a.{ending}", make())
    assert np.array_equal(read_image(path)[:, :, 1], ramp())
    upper = read_image(path, span=Span(32768, 65535))[:, :, 1].astype(int)
    assert (upper[:8] == 0).all()
    assert np.abs(upper[8:] - (2.0 * ramp()[8:] - 255)).max() <= 2


def test_a_black_picture_of_16_bits_is_black(tmp_path: Path) -> None:
    assert not read_image(write(tmp_path / "a.png", np.zeros((4, 4), np.uint16))).any()
    assert not read_image(write(tmp_path / "c.png", np.zeros((4, 4, 3), np.uint16))).any()


def test_unsigned_32_bits_are_not_negative(tmp_path: Path) -> None:
    values = np.array([[0, 2**31, 2**32 - 1]], np.uint32)
    cv2.imwrite(str(tmp_path / "a.tif"), values)
    with Image.open(tmp_path / "a.tif") as file:
        assert np.asarray(file).min() < 0  # as Pillow reads them
    assert read_image(tmp_path / "a.tif", span=Span(0, 2**32 - 1))[:, :, 0].tolist() == [[0, 128, 255]]


def test_what_is_no_number_is_black(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", np.array([[np.nan, -np.inf, 0.5, np.inf]], np.float32))
    assert read_image(path, span=Span(0, 1))[:, :, 0].tolist() == [[0, 0, 128, 255]]
    with pytest.raises(HrsegError, match="`span`"):
        read_image(path)
    with pytest.raises(HrsegError, match="floating-point pixels"):
        read_mask(path)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_range_meets_a_turned_picture_of_16_bits(tmp_path: Path, orientation: int) -> None:
    """Of such colours Pillow knows the turn, OpenCV the lower bits."""
    write(tmp_path / "plain.png", np.ascontiguousarray(colours(12)[:9]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    chunk = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    png, crc = (tmp_path / "plain.png").read_bytes(), zlib.crc32(chunk)
    (tmp_path / "turned.png").write_bytes(png[:33] + (len(chunk) - 4).to_bytes(4) + chunk + crc.to_bytes(4) + png[33:])
    upright = Image.fromarray(read_image(tmp_path / "plain.png", span=Span(0, 4095)))
    turns = Image.Transpose
    turn = {
        2: turns.FLIP_LEFT_RIGHT,
        3: turns.ROTATE_180,
        4: turns.FLIP_TOP_BOTTOM,
        5: turns.TRANSPOSE,
        6: turns.ROTATE_270,
        7: turns.TRANSVERSE,
        8: turns.ROTATE_90,
    }[orientation]
    expected = np.asarray(upright.transpose(turn))
    assert np.array_equal(read_image(tmp_path / "turned.png", span=Span(0, 4095)), expected)


def test_8_bits_do_not_change_with_a_range(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", ramp())
    assert np.array_equal(read_image(path, span=Span(0, 4095))[:, :, 0], ramp())


@pytest.mark.parametrize("text", ["", "4095", "0-4095", "0..", "9..9", "9..1", "nan..1", "0..inf", "a..b"])
def test_a_wrong_range_is_told(text: str) -> None:
    with pytest.raises(HrsegError, match=r"LOW\.\.HIGH, such as 0\.\.4095"):
        parse_span(text)


def test_a_range_is_read_as_it_is_written() -> None:
    for text in ("0..4095", "-1000..400", "0.25..0.75", "0..4294967295"):
        assert str(parse_span(text)) == text


# ---- a dataset with a range ----


def test_a_range_behind_a_dataset_goes_with_its_objects(tmp_path: Path) -> None:
    folder = tmp_path / "cells"
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    write(folder / "images/a.png", ramp().astype(np.uint16) * 16)
    write(folder / "masks/a.png", np.where(ramp() > 99, 255, 0).astype(np.uint8))
    with pytest.raises(HrsegError, match=r"a\.png: .* DATASET:range=0\.\.4095"):
        load(open_dataset(str(folder))[0])
    spec = f"{folder}:range=0..4095"
    (ref,) = open_dataset(spec)
    expected = load(ref).image
    assert np.abs(expected[:, :, 0].astype(int) - ramp()).max() <= 1
    assert file_state(ref).endswith(", range 0..4095")
    assert np.array_equal(load_scene([ref]).image, expected)
    listing = list_masks(spec)
    assert build_index(listing).problems == []
    assert is_fresh(listing)
    assert not is_fresh(list_masks(f"{folder}:range=0..4094")._replace(index_file=listing.index_file))
    assert list(Index(listing.index_file)) == [ref]
    (small,) = open_dataset(str(cache_longest([ref], tmp_path / "same", 16)))
    assert np.abs(load(small).image.astype(int) - expected).max() < 40  # a JPEG, not the 12 bits
    with pytest.raises(HrsegError, match=r"0\.\.4095"):
        open_dataset(f"{folder}:range=4095")


# ---- pages ----


def pages(path: Path, sizes: list[int], kinds: list[int] | None = None) -> Path:
    """A TIFF with a page for each side length; kinds: their tag 254."""
    images = [Image.fromarray(np.full((side, side), 255, np.uint8)) for side in sizes]
    for image, kind in zip(images, kinds or [0] * len(sizes), strict=True):
        image.encoderinfo = {"tiffinfo": {254: kind}}
    images[0].save(path, save_all=True, append_images=images[1:], tiffinfo={254: (kinds or [0])[0]})
    return path


@pytest.mark.parametrize("name", ["a.tif", "a.gif", "a.webp", "a.png"])
def test_several_pages_are_refused(tmp_path: Path, name: str) -> None:
    """Only the first was read."""
    frames = [Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (0, 255, 100)]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    for read in (read_image, read_mask):
        with pytest.raises(HrsegError, match="contains 3 pages; save each one as a separate file"):
            read(tmp_path / name)  # type: ignore[operator]


def test_smaller_copies_in_a_tiff_are_no_pages(tmp_path: Path) -> None:
    assert read_image(pages(tmp_path / "a.tif", [16, 8, 4], [0, 1, 1])).shape == (16, 16, 3)
    with pytest.raises(HrsegError, match="contains 2 pages"):
        read_image(pages(tmp_path / "b.tif", [16, 16, 4], [0, 0, 1]))


def test_the_second_picture_of_a_telephone_is_no_page(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (200, 20)]
    frames[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=frames[1:])
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - 200).max() < 5


# ---- what a file costs before it is known to be a picture ------------------------------------------------------------


def test_photographs_of_iphones_are_read_upright(tmp_path: Path) -> None:
    """With the plugin; colours survive its compression nearly, and the orientation is applied once."""
    colours = np.zeros((40, 64, 3), np.uint8)
    colours[:, :32], colours[:, 32:] = (200, 30, 30), (30, 30, 200)
    pytest.importorskip("pillow_heif").register_heif_opener()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    Image.fromarray(colours).save(tmp_path / "IMG_1.HEIC", quality=95, exif=exif.tobytes())
    image = read_image(tmp_path / "IMG_1.HEIC")
    assert image.shape == (64, 40, 3)
    assert abs(image[:28].astype(int) - (200, 30, 30)).max() < 12
    assert abs(image[36:].astype(int) - (30, 30, 200)).max() < 12
    assert read_mask(tmp_path / "IMG_1.HEIC").lossy


def test_postscript_is_not_run_whatever_it_is_called(tmp_path: Path) -> None:
    """Pillow gives an EPS to Ghostscript, by its content and not by its name."""
    (tmp_path / "cat.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\n%%EndComments\nshowpage\n")
    with pytest.raises(HrsegError, match=r"not PNG, JPEG, .* AVIF"):
        read_image(tmp_path / "cat.png")


def test_a_file_far_too_small_for_its_pixels_is_not_decoded(tmp_path: Path) -> None:
    """9 kB of PNG were a gigabyte of pixels."""
    whole = np.zeros((100, 100), np.uint8)
    data = cv2.imencode(".png", whole)[1].tobytes()
    head = data[:16] + (9000).to_bytes(4, "big") + (9000).to_bytes(4, "big") + data[24:29]
    (tmp_path / "a.png").write_bytes(head + zlib.crc32(head[12:29]).to_bytes(4, "big") + data[33:])
    with pytest.raises(HrsegError, match=r"9000x9000 pixels in .* bytes is no photograph"):
        read_mask(tmp_path / "a.png")


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "I;16"])
def test_bands_are_joined_to_the_whole(mode: str) -> None:
    """Large pictures are converted band by band, to save memory."""
    rows = np.random.default_rng(0).integers(0, 256, (3, (1 << 22) // 2 + 1), np.uint8)  # one row a band
    picture = Image.fromarray(rows.astype(np.uint16)) if mode == "I;16" else Image.fromarray(rows).convert(mode)
    for target in (None,) if mode == "I;16" else (None, "RGB"):
        wanted = np.array(picture if target is None else picture.convert(target))
        assert np.array_equal(pixels._array(picture, target), wanted)


def test_profiles_and_histories_of_megabytes_are_read(tmp_path: Path) -> None:
    """Other programs read such PNGs; Pillow refuses texts of more than a megabyte."""
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", "x" * 1_500_000, zip=True)
    Image.fromarray(ramp()).save(tmp_path / "a.png", pnginfo=info, icc_profile=bytes(1_500_000))
    assert np.array_equal(read_image(tmp_path / "a.png")[..., 0], ramp())


def with_chunk(path: Path, name: bytes, body: bytes, sum_: bytes) -> None:
    """Insert a chunk before the pixels of a PNG."""
    data = path.read_bytes()
    place = data.index(b"IDAT") - 4
    path.write_bytes(data[:place] + len(body).to_bytes(4, "big") + name + body + sum_ + data[place:])


def test_a_wrong_checksum_outside_the_pixels_is_ignored(tmp_path: Path) -> None:
    """As by other programs, except in what changes the mask: its transparency and its pixels."""
    for name, reads in ((b"gAMA", True), (b"tRNS", False), (b"PLTE", False)):
        path = write(tmp_path / f"{name.decode()}.png", ramp())
        with_chunk(path, name, b"\0\0\xb1\x8f\0\0", bytes(4))
        if reads:
            assert np.array_equal(read_mask(path).values, ramp())
        else:
            with pytest.raises(HrsegError, match="cannot be read as an image"):
                read_mask(path)


def test_odd_metadata_prints_nothing(tmp_path: Path) -> None:
    """Pillow warns about it, and libpng prints by itself, in lines that name no file."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", 4, 3, 16, 2, 0, 0, 0)
    deep = [chunk(b"IHDR", head), chunk(b"iCCP", b"x\0\0" + zlib.compress(b"junk")), chunk(b"gAMA", bytes(4))]
    deep += [chunk(b"IDAT", zlib.compress((b"\0" + b"\xff" * 24) * 3)), chunk(b"IEND", b"")]
    (tmp_path / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(deep))
    grey = Image.fromarray(np.zeros((3, 4), np.uint8))
    grey.convert("P").save(tmp_path / "palette.png", transparency=bytes([0, 128]))
    grey.save(tmp_path / "exif.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0\xff\xff\xff\xff")
    program = (
        "import sys; from pathlib import Path; from hrseg_cli.data.pixels import read_image, read_mask\n"
        "for path in map(Path, sys.argv[1:]): read_image(path), read_mask(path)"
    )
    words = [sys.executable, "-c", program, *map(str, sorted(tmp_path.iterdir()))]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
