"""Clicks on a smaller copy of the image, for models that work on pixels."""

from __future__ import annotations

import cv2
import numpy as np

from hrseg_cli.distances import distance_to_zero


def shrunk(picture: np.ndarray, scale: float) -> np.ndarray:
    """An image (H, W, 3) uint8, averaged, or a mask, bool (H, W), sampled, at ``scale`` times the size, if below 1."""
    if scale >= 1:
        return picture
    height, width = picture.shape[:2]
    small = (max(1, round(width * scale)), max(1, round(height * scale)))
    if picture.dtype == np.bool_:
        return np.asarray(cv2.resize(picture.view(np.uint8), small, interpolation=cv2.INTER_NEAREST) > 0)
    return np.asarray(cv2.resize(picture, small, interpolation=cv2.INTER_AREA))


def pixels_under(points: np.ndarray, size: tuple[int, int], scale: float, shape: tuple[int, ...]) -> np.ndarray:
    """int (N, 2): pixels in a copy of ``shape``, ``scale`` times as large, of points (N, 2) in an image of ``size``.

    -1 for points outside the image. Fractional points within the last half pixel belong to the last pixel.
    """
    inside = np.all((points >= -0.5) & (points < size), axis=1)
    pixels = np.minimum(np.floor((points + 0.5) * scale), np.subtract(shape, 1)).astype(int)
    return np.where(inside[:, None], pixels, -1)


def nearest_click(clicked: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """float32 (H, W): distance to the nearest of the pixels (N, 2), ignoring -1; infinite if there are none."""
    rows, cols = clicked[clicked[:, 0] >= 0].T
    away = np.ones(shape, np.uint8)
    away[rows, cols] = 0
    return distance_to_zero(away)
