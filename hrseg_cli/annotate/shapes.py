"""Masks from strokes and outlines, and changes of whole masks."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from hrseg_cli.annotate.records import Stroke

MARGIN = 0.1  # of a box's sides: how far its answer may reach beyond it
MOST = 6  # clicks that stand for one scribble


def drawn(stroke: Stroke, size: tuple[int, int]) -> np.ndarray:
    """bool (H, W): the pixels under a round brush."""
    canvas = np.zeros(size, np.uint8)
    points = _pixels(stroke.points, size)[:, ::-1]
    width = max(1, round(2 * stroke.radius))
    if len(points) == 1:
        cv2.circle(canvas, points[0].tolist(), width // 2, 1, cv2.FILLED)
    else:
        cv2.polylines(canvas, [points.reshape(-1, 1, 2)], isClosed=False, color=1, thickness=width)
    return canvas > 0


def sampled(points: Sequence[tuple[float, float]], size: tuple[int, int]) -> list[tuple[int, int]]:
    """Pixels (row, col) evenly spaced along a path, from its first point to its last: more for a longer path, at most
    ``MOST``, and one for a path that stays within a few pixels."""
    path = np.asarray(points, float)
    along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(path, axis=0).T))])
    spacing = max(8.0, 0.05 * min(size))
    number = min(MOST, 1 + int(along[-1] / spacing))
    if number == 1:
        path, places = path[len(path) // 2 :][:1], np.zeros(1)
        along = np.zeros(1)
    else:
        places = np.linspace(0, along[-1], number)
    found = np.stack([np.interp(places, along, side) for side in path.T], axis=1)
    return [(int(row), int(col)) for row, col in dict.fromkeys(map(tuple, _pixels(found, size).tolist()))]


def _pixels(points: Sequence[tuple[float, float]] | np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """int32 (N, 2); a point on the bottom or right edge of the image is in the last pixel."""
    return np.asarray(np.minimum(np.floor(points), np.subtract(size, 1)), np.int32)


def filled(rings: Sequence[Sequence[tuple[float, float]]], size: tuple[int, int]) -> np.ndarray:
    """bool (H, W): the pixels whose centre lies inside the polygons, even-odd."""
    height, width = size
    turns = np.zeros((height, width + 1), bool)  # where a row changes between outside and inside
    for ring in rings:
        corners = np.asarray(ring, float)
        for (row, col), (to_row, to_col) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            first, last = (int(np.ceil(np.clip(end, 0, height) - 0.5)) for end in sorted((row, to_row)))
            if first >= last:
                continue
            lines = np.arange(first, last)
            across = col + (lines + 0.5 - row) * (to_col - col) / (to_row - row)
            turns[lines, np.clip(np.ceil(across - 0.5), 0, width).astype(int)] ^= True
    return np.logical_xor.accumulate(turns, axis=1)[:, :width]


def reshaped(mask: np.ndarray, how: str) -> np.ndarray:
    """The changed copy of a bool mask (H, W). fill: no holes. largest: only the largest part, connected by sides or
    corners. grow, shrink: by a pixel to each side."""
    pixels = mask.astype(np.uint8)
    if how == "largest":
        number, labels, stats, _ = cv2.connectedComponentsWithStats(pixels, connectivity=8)
        return mask.copy() if number < 3 else np.asarray(labels == 1 + np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    if how == "fill":
        outside = np.pad(1 - pixels, 1, constant_values=1)
        _, labels = cv2.connectedComponents(outside, connectivity=4)
        return np.asarray(labels[1:-1, 1:-1] != labels[0, 0])
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    # Beyond the image's edge there is neither object nor background: an object cut off there does not shrink from it.
    change = cv2.dilate if how == "grow" else cv2.erode
    return np.asarray(change(pixels, cross) > 0)


def near_box(box: tuple[int, int, int, int], size: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of a box (inclusive ends) with its margin, inside the image."""
    sides = []
    for low, high, end in ((box[0], box[1], size[0]), (box[2], box[3], size[1])):
        margin = max(3, round(MARGIN * (high - low + 1)))
        sides.append(slice(max(0, low - margin), min(end, high + 1 + margin)))
    return sides[0], sides[1]
