"""Exact Euclidean distances on a grid of pixels."""

from __future__ import annotations

import cv2
import numpy as np


def distance_to_zero(mask: np.ndarray) -> np.ndarray:
    """Distance in pixels from each pixel's centre to the nearest pixel that is 0: float32, (H, W).

    mask: uint8 or bool, (H, W). Without a 0, the distance is infinite. Distances of up to a thousand pixels are
    correctly rounded, so that the same mask always gives the same ones; the last bit of OpenCV's depends on where in
    memory it writes them.
    """
    if mask.all():
        return np.full(mask.shape, np.inf, np.float32)
    return np.asarray(np.sqrt(squared_distance_to_zero(mask)), np.float32)


def squared_distance_to_zero(mask: np.ndarray) -> np.ndarray:
    """Squares of :func:`distance_to_zero`, whole numbers: float64, (H, W). mask: with at least one 0."""
    rough = cv2.distanceTransform(mask.view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.asarray(np.rint(rough.astype(np.float64) ** 2))
