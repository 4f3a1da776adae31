"""Mask files: other programs read back what was written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from pycocotools import mask as pycoco
from pycocotools.coco import COCO

from hrseg_cli.data.masks_out import ENDINGS, polygons, run_lengths, soft_values, write_mask

# pycocotools 2.0.11 decodes by way of NumPy 1's array protocol.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

MASKS = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=16), elements=st.booleans())


def ring(side: int = 200) -> np.ndarray:
    """A disk with a hole and, apart from it, a speck of one pixel."""
    row, col = np.mgrid[:side, :side]
    away = np.hypot(row - side / 2, col - side / 2)
    mask: np.ndarray = (away < side * 0.4) & (away > side * 0.15)
    mask[3, 5] = True
    return mask


def filled(shapes: list[list[float]], size: tuple[int, ...]) -> np.ndarray:
    """The mask that COCO's rasteriser makes of polygons."""
    if not shapes:
        return np.zeros(size, bool)
    return np.asarray(pycoco.decode(pycoco.merge(pycoco.frPyObjects(shapes, *size)))).astype(bool)


@given(MASKS)
def test_exact_polygons_and_run_lengths_give_the_mask_back(mask: np.ndarray) -> None:
    """Thin lines, specks, pixels that touch at a corner, holes and objects in holes included."""
    assert np.array_equal(filled(polygons(mask, 0), mask.shape), mask)
    assert np.array_equal(pycoco.decode(run_lengths(mask)).astype(bool), mask)
    assert run_lengths(mask)["counts"].encode() == pycoco.encode(np.asfortranarray(mask, np.uint8))["counts"]


@pytest.mark.parametrize(("tolerance", "points", "iou"), [(0, 10**4, 1.0), (1, 60, 0.98), (4, 30, 0.93)])
def test_a_tolerance_saves_points_and_keeps_the_hole(tolerance: float, points: int, iou: float) -> None:
    mask = ring()
    found = polygons(mask, tolerance)
    assert len(found) == 2
    assert sum(map(len, found)) / 2 <= points
    again = filled(found, mask.shape)
    assert not again[100, 100]
    assert again[3, 5]
    assert (mask & again).sum() / (mask | again).sum() >= iou


def test_a_hole_smaller_than_the_tolerance_is_filled() -> None:
    mask = np.ones((40, 40), bool)
    mask[20, 20] = False
    assert filled(polygons(mask, 2), mask.shape).all()


def test_every_format_is_read_back_by_another_program(tmp_path: Path) -> None:
    mask = ring()
    probability = np.where(mask, 0.75, 0.25).astype(np.float32)
    image = np.random.default_rng(0).integers(1, 255, (*mask.shape, 3)).astype(np.uint8)
    files = write_mask(tmp_path, "é", ENDINGS, image, probability, 0.49, source="é.jpg", category="cup", tolerance=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(files)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "é.png")), mask * np.uint8(255))
    soft = np.asarray(Image.open(tmp_path / "é_soft.png"))
    assert np.abs(soft / 65535 - probability).max() < 1e-5
    assert soft.max() > 255
    cutout = np.asarray(Image.open(tmp_path / "é_cutout.png"))
    assert np.array_equal(cutout[..., 3] > 0, mask)
    assert np.array_equal(cutout[mask][:, :3], image[mask])
    assert not cutout[~mask].any()
    for kind in ("rle", "polygon"):
        coco = COCO()
        coco.dataset = json.loads((tmp_path / f"é_{kind}.json").read_text(encoding="utf-8"))
        coco.createIndex()
        (annotation,) = coco.loadAnns(coco.getAnnIds())
        assert np.array_equal(coco.annToMask(annotation).astype(bool), mask)
        assert annotation["area"] == mask.sum()
        assert annotation["bbox"] == pycoco.toBbox(pycoco.encode(np.asfortranarray(mask, np.uint8))).tolist()
        assert coco.loadCats(annotation["category_id"])[0]["name"] == "cup"


def test_nothing_found_gives_files_without_an_object(tmp_path: Path) -> None:
    nothing = np.zeros((8, 9), np.float32)
    write_mask(tmp_path, "a", ENDINGS, np.zeros((8, 9, 3), np.uint8), nothing, 0.5, source="a.jpg")
    assert not np.asarray(Image.open(tmp_path / "a.png")).any()
    for kind in ("rle", "polygon"):
        assert json.loads((tmp_path / f"a_{kind}.json").read_text())["annotations"] == []


def test_soft_values_use_the_whole_range() -> None:
    assert soft_values(np.array([[0, 0.5, 1]], np.float32)).tolist() == [[0, 32768, 65535]]
