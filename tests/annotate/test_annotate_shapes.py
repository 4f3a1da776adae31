"""Masks from strokes and outlines, and changes of whole masks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage
from tiny_photos import SIZE

from hrseg_cli.annotate.records import Stroke
from hrseg_cli.annotate.shapes import drawn, filled, reshaped, sampled


@given(st.lists(st.tuples(st.floats(0, 50), st.floats(0, 70)), min_size=1, max_size=4), st.floats(1, 20))
def test_a_stroke_covers_what_is_near_it(points: list[tuple[float, float]], radius: float) -> None:
    """To within the pixel and a half that OpenCV rounds."""
    found = drawn(Stroke(points=points, radius=radius, positive=True), (50, 70))
    rows, cols = np.indices(found.shape) + 0.5
    away = np.min([np.hypot(rows - row, cols - col) for row, col in points], axis=0)
    assert found[away < radius - 2].all()
    assert len(points) > 1 or not found[away > radius + 2].any()


@pytest.mark.parametrize("place", [(40, 60), (40.0, 5.5), (7, 60.0)])
def test_a_brush_on_the_far_edge_paints_the_last_pixel(place: tuple[float, float]) -> None:
    """The page sends places up to the height and the width themselves."""
    painted = drawn(Stroke(points=[place], radius=0.5, positive=True), (40, 60))
    assert np.argwhere(painted).tolist() == [[min(int(place[0]), 39), min(int(place[1]), 59)]]


@given(st.lists(st.tuples(st.floats(0, 120), st.floats(0, 160)), min_size=1, max_size=9))
def test_clicks_of_a_scribble_lie_on_it(points: list[tuple[float, float]]) -> None:
    found = sampled(points, SIZE)
    assert 1 <= len(found) <= 6
    assert len(set(found)) == len(found)
    path = np.vstack([np.linspace(a, b, 200) for a, b in zip(points, points[1:] or points, strict=False)])
    for place in found:
        assert np.hypot(*(path - place).T).min() < 2
        assert 0 <= place[0] < SIZE[0]
        assert 0 <= place[1] < SIZE[1]


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=8)))
def test_changes_of_whole_masks(mask: np.ndarray) -> None:
    assert np.array_equal(reshaped(mask, "fill"), ndimage.binary_fill_holes(mask))
    assert np.array_equal(reshaped(mask, "grow"), ndimage.binary_dilation(mask))
    assert np.array_equal(reshaped(mask, "shrink"), ndimage.binary_erosion(mask, border_value=1))
    labels, number = ndimage.label(mask, np.ones((3, 3)))
    sizes = np.bincount(labels.ravel())[1:]
    largest = reshaped(mask, "largest")
    assert largest.sum() == (sizes.max() if number else 0)
    assert not (largest & ~mask).any()


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=6)))
def test_an_outline_of_pixels_fills_these_pixels(mask: np.ndarray) -> None:
    """Each pixel as a square of its own: even-odd, exact."""
    rings = [[(r, c), (r, c + 1), (r + 1, c + 1), (r + 1, c)] for r, c in np.argwhere(mask).tolist()]
    assert np.array_equal(filled(rings, mask.shape), mask)
