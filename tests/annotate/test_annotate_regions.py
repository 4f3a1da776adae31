"""A mask as the files and the page get it."""

from __future__ import annotations

import io

import numpy as np
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from hrseg_cli.annotate.regions import Region

SMALL = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=9))


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


@given(SMALL)
def test_a_png_is_the_mask(mask: np.ndarray) -> None:
    with Image.open(io.BytesIO(Region.of(mask).png())) as image:
        assert image.mode == "L"
        assert np.array_equal(np.asarray(image), mask * np.uint8(255))
