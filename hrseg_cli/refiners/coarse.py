"""Coarse masks made from ground truth, to train refiners: simplified outlines, then eroded and dilated rectangles.

Source: CascadePSP (Cheng et al., CVPR 2020, arXiv 2005.02551), section 4.1 and its training code, which SegRefiner and
FocusCut use too. All randomness comes from the argument ``rng``.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

ROUNDS = 250  # of changes, at most; a large object may stay above its target
SHORTEST = 10  # points; shorter contours are dropped


def coarsened(truth: np.ndarray, rng: np.random.Generator, iou: float = 0.8, reference: bool = False) -> np.ndarray:
    """A coarse mask whose IoU with the ground truth is usually just below ``iou``.

    truth: bool or uint8 (H, W), non-zero is object. Returns bool (H, W). Ground truth without object is returned
    unchanged.

    reference: reproduce the public code, which measures IoU against the simplified outline, so that IoU with the ground
    truth is off by a few hundredths, and adds a few random pixels to empty ground truth.
    """
    mask = _as_bytes(truth)
    if not reference and not mask.any():
        return mask > 0
    rough = simplified(mask, rng)
    return perturbed(rough, rng, iou, against=rough if reference else mask)


def simplified(
    mask: np.ndarray, rng: np.random.Generator, cut: float = 0.1, keep: float = 0.1, move: float = 0.0
) -> np.ndarray:
    """A mask whose outlines are polygons with few points, bool (H, W). Holes stay holes.

    mask: bool or uint8 (H, W), non-zero is object. cut: share of each outline that is replaced by one straight line,
    at a place where its ends are close. keep: share of the remaining points that become corners. move: standard
    deviation of the displacement of a corner, as a share of its distance from the centre. Outlines of fewer than ten
    points are dropped; if that would drop all, the mask is returned unchanged.
    """
    mask = _as_bytes(mask)
    contours, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    polygons = [_corners(contour, rng, cut, keep, move) for contour in contours if len(contour) >= SHORTEST]
    polygons = [corners for corners in polygons if len(corners)]
    if not polygons:
        return mask > 0
    return cv2.drawContours(np.zeros_like(mask), polygons, -1, (255,), cv2.FILLED) > 0


def _corners(contour: np.ndarray, rng: np.random.Generator, cut: float, keep: float, move: float) -> np.ndarray:
    """The corners of a simplified contour, int32 (N, 1, 2), as x and y."""
    moments = cv2.moments(contour)
    run = int(len(contour) * cut)
    starts = len(contour) - run
    gaps = np.square(contour[:starts] - contour[run:]).sum((1, 2))
    closest = np.argsort(gaps, kind="stable")[: math.ceil(0.1 * starts)]
    start = int(rng.choice(closest))
    contour = np.concatenate([contour[:start], contour[start + run :]])
    chosen = rng.choice(len(contour), int(len(contour) * keep), replace=False)
    corners = contour[np.sort(chosen)]
    if moments["m00"]:
        centre = [round(moments[name] / moments["m00"]) for name in ("m10", "m01")]
        shift = rng.normal(0, move, len(corners))[:, None, None]
        corners = (corners + (corners - centre) * shift).astype(np.int32)
    return corners


def perturbed(mask: np.ndarray, rng: np.random.Generator, iou: float, against: np.ndarray | None = None) -> np.ndarray:
    """Dilate or erode random rectangles until the IoU with ``against`` (by default the mask itself) is below ``iou``,
    at most a thousand times; bool (H, W). A mask at most two pixels high or wide is returned unchanged."""
    result = _as_bytes(mask)
    truth = result.copy() if against is None else _as_bytes(against)
    height, width = result.shape
    if min(height, width) <= 2:
        return result > 0
    for _ in range(ROUNDS):
        for _ in range(4):
            left, top = rng.integers(width), rng.integers(height)
            right, bottom = rng.integers(left + 1, width + 1), rng.integers(top + 1, height + 1)
            if rng.random() < 0.25:  # a single pixel, which may grow into a hole or an island
                result[(top + bottom) // 2, (left + right) // 2] = rng.integers(2) * 255
            window = result[top:bottom, left:right]
            change = cv2.dilate if rng.random() < 0.5 else cv2.erode
            window[:] = change(window, _brush(rng))
        union = cv2.countNonZero(result | truth)
        if cv2.countNonZero(result & truth) < iou * union:
            break
    return result > 0


def _brush(rng: np.random.Generator) -> np.ndarray:
    """A rectangle or an ellipse, 3 to 9 pixels long."""
    size = int(rng.integers(3, 10))
    shapes = [
        (cv2.MORPH_RECT, (size, size)),
        (cv2.MORPH_ELLIPSE, (size, size)),
        (cv2.MORPH_ELLIPSE, (size, size // 2)),
        (cv2.MORPH_ELLIPSE, (size // 2, size)),
    ]
    shape, extent = shapes[int(rng.integers(1, 5)) - 1]
    return cv2.getStructuringElement(shape, extent)


def _as_bytes(mask: np.ndarray) -> np.ndarray:
    return np.where(mask, np.uint8(255), np.uint8(0))
