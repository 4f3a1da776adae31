"""A mask as the files and the page get it."""

from __future__ import annotations

import io
import zlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from hrseg_cli.annotate import regions
from hrseg_cli.annotate.regions import Region

SMALL = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=9))


@st.composite
def long_runs(draw: st.DrawFn) -> np.ndarray:
    """Rectangles in a wide mask, whose runs are as long as deflate's codes and longer."""
    height, width = draw(st.integers(1, 5)), draw(st.integers(1, 1100))
    mask = np.zeros((height, width), bool)
    for _ in range(draw(st.integers(0, 3))):
        left, wide = draw(st.integers(0, width - 1)), draw(st.integers(1, width))
        mask[draw(st.integers(0, height - 1)) :, left : left + wide] ^= True
    return mask


@given(SMALL)
def test_its_parts_tell_the_mask(mask: np.ndarray) -> None:
    region = Region.of(mask)
    told = region.runs()
    top, left, height, width = told["box"]
    flat = np.repeat(np.arange(len(told["runs"])) % 2, told["runs"])
    inside = np.zeros(height * width, bool)
    inside[: len(flat)] = flat
    again = np.zeros_like(mask)
    again[top : top + height, left : left + width] = inside.reshape(height, width)
    assert np.array_equal(again, mask)
    assert region.area == mask.sum()
    if mask.any():
        x, y, wide, high = region.bbox
        rows, cols = mask.nonzero()
        assert (x, y, x + wide - 1, y + high - 1) == (cols.min(), rows.min(), cols.max(), rows.max())


@given(SMALL | long_runs(), st.booleans())
def test_a_png_is_the_mask(mask: np.ndarray, noisy: bool) -> None:
    """Packed in either way; Pillow does not look at the sum of the bytes, zlib does."""
    region = Region.of(mask)
    before, regions.NOISE = regions.NOISE, mask.size + 1 if noisy else 1
    try:
        png = region.png()
        packed = region._packed()
    finally:
        regions.NOISE = before
    with Image.open(io.BytesIO(png)) as image:
        assert image.mode == "L"
        assert np.array_equal(np.asarray(image), mask * np.uint8(255))
    rows = np.pad(mask * np.uint8(255), ((0, 0), (1, 0)))
    assert zlib.decompress(packed) == rows.tobytes()


def test_a_png_of_a_large_mask_is_as_small_as_zlibs() -> None:
    rows, cols = np.indices((1500, 2000), np.float32)
    mask = (rows - 700) ** 2 + (cols - 900) ** 2 + 9000 * np.sin(cols / 9) < 500**2
    region = Region.of(mask)
    assert len(region._packed()) < 1.5 * len(region._zipped())
    assert zlib.decompress(region._packed()) == zlib.decompress(region._zipped())
