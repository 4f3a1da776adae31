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
    rough = cv2.distanceTransform(mask.view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.asarray(np.sqrt(np.rint(rough * rough)))  # squares of exact distances are whole numbers
