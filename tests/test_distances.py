"""Distances that do not depend on where in memory they are."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from hrseg_cli.distances import distance_to_zero


@pytest.mark.parametrize("shape", [(1, 1), (1, 90), (32, 48), (47, 61), (200, 301), (3, 1000)])
def test_distances_are_correctly_rounded(shape: tuple[int, int]) -> None:
    """As SciPy's, which are of double precision, at any place in memory."""
    rng = np.random.default_rng(0)
    kept = []
    for _ in range(20):
        mask = rng.random(shape) > 2 / (1 + rng.integers(shape[0] * shape[1]))
        mask[rng.integers(shape[0]), rng.integers(shape[1])] = False
        expected = distance_transform_edt(mask).astype(np.float32)
        for form in (mask, mask.astype(np.uint8) * 255):
            found = distance_to_zero(form)
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, expected)
            kept.append((found, np.empty(rng.integers(1, 500), np.uint8)))  # moves the next result


def test_without_a_zero_distances_are_infinite() -> None:
    assert np.isposinf(distance_to_zero(np.ones((3, 5), bool))).all()
