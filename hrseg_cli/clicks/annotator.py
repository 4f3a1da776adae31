"""The simulated annotator: one click in the middle of the largest mistake.

Sofiiuk et al. 2021, section 4 (evaluation protocol); the rule goes back to Xu et al. 2016 and Li et al. 2018.

An exact distance transform of the whole image costs more than all the rest of a click, metrics included, and tells the
depth of every pixel where only the deepest is wanted. Here cheap bounds first say where that one can be.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

import cv2
import numpy as np

from hrseg_cli.interaction import Click

BLOCK = 8  # pixels: the bytes of a 64-bit word, so that a row of a block is compared at once
FULL_ROW = np.uint64(0x0101010101010101)
SLACK = (BLOCK - 1) * 2**0.5  # what the place of a pixel within its block can add to or take from a distance


class Deepest(NamedTuple):
    """squared: squared distance to the nearest pixel outside the region, at least 1."""

    squared: int
    row: int
    col: int


def next_click(truth: np.ndarray, prediction: np.ndarray, used: Iterable[Click] = ()) -> Click | None:
    """The pixel deepest inside a missed or a wrongly added region; None when no mistake is left to click.

    truth: int8, (H, W): 1 object, 0 background, -1 ignored. prediction: bool, (H, W). used: clicks so far; their pixels
    are not clicked again. Depth is the exact Euclidean distance to the nearest pixel that is right, the outside of the
    image counting as right. The click is positive only where the deepest missed pixel lies strictly deeper than the
    deepest wrongly added one. Equal depths are settled by the first pixel in raster order.
    """
    clicked = [(int(click.row), int(click.col)) for click in used]
    missed = deepest(truth > prediction.view(np.int8), clicked)
    added = deepest((truth == 0) & prediction, clicked)
    if missed is None and added is None:
        return None
    if missed is not None and (added is None or missed.squared > added.squared):
        return Click(missed.row, missed.col, True)
    assert added is not None
    return Click(added.row, added.col, False)


def deepest(region: np.ndarray, excluded: Iterable[tuple[int, int]] = ()) -> Deepest | None:
    """The deepest pixel of a bool region (H, W) that is not excluded, the first one in raster order; None without one.

    excluded: (row, col) of pixels that are no answer; for the depth of others they stay part of the region. All the
    work happens in the region's bounding box with a ring of zeros around it, which gives what the whole image gives:
    the nearest zero of a pixel is never beyond that ring.
    """
    left, top, columns, rows = cv2.boundingRect(region.view(np.uint8))
    if not rows:
        return None
    sides = [-(-(side + 2) // BLOCK) * BLOCK for side in (rows, columns)]  # the ring, and zeros up to whole blocks
    window = np.zeros(sides, np.uint8)
    window[1 : rows + 1, 1 : columns + 1] = region[top : top + rows, left : left + columns]
    near = {(r - top + 1, c - left + 1) for r, c in excluded if top <= r < top + rows and left <= c < left + columns}
    spent = [place for place in near if window[place]]

    # What is left after one, two and four steps of peeling lies at least 2, 3 and 5 chessboard moves deep. A pixel of
    # Euclidean depth d lies between d / sqrt(2) and d moves deep.
    moves, thick, level = 1, window, window
    for steps in (1, 1, 2):
        peeled: np.ndarray = cv2.erode(level, np.ones((2 * steps + 1, 2 * steps + 1), np.uint8))
        if cv2.countNonZero(peeled) <= sum(int(peeled[place]) for place in spent):
            found = _by_walking(window, level, moves, spent)
            break
        thick, level, moves = level, peeled, moves + steps
    else:
        found = _by_blocks(window, thick, spent)
    return found and Deepest(found.squared, found.row + top - 1, found.col + left - 1)


# The functions below take a window, uint8 (H, W), 0 or 1, framed by zeros, both sides whole blocks, and the places in
# it, all of them 1, that are no answer.


def _by_walking(window: np.ndarray, level: np.ndarray, moves: int, spent: list[tuple[int, int]]) -> Deepest | None:
    """Where nothing lies deep: away from all pixels of ``level`` at once, nearest places first, until none is left.

    level: the pixels at least ``moves`` moves deep, the deepest of them less than 5. A walk ends at the first zero, so
    that it never leaves the window.
    """
    flat = np.flatnonzero(level.view(bool))
    if spent:
        flat = np.setdiff1d(flat, [row * window.shape[1] + col for row, col in spent])
    if 16 * flat.size > window.size:  # noise, say
        return _by_transform(window, spent)
    if not flat.size:
        return None
    for squared, places in _shells():
        if squared >= moves**2:
            steps = np.array([row * window.shape[1] + col for row, col in places])
            further = flat[window.ravel()[flat[:, None] + steps].all(axis=1)]
            if not further.size:
                break
            flat = further
    row, col = divmod(int(flat[0]), window.shape[1])
    return Deepest(squared, row, col)


@cache
def _shells() -> list[tuple[int, list[tuple[int, int]]]]:
    """Squared distance -> the places that far away, up to that of four diagonal moves (five straight ones are less)."""
    found: dict[int, list[tuple[int, int]]] = {}
    for row in range(-5, 6):
        for col in range(-5, 6):
            if row**2 + col**2 <= 2 * 4**2:
                found.setdefault(row**2 + col**2, []).append((row, col))
    return sorted(found.items())


def _by_blocks(window: np.ndarray, thick: np.ndarray, spent: list[tuple[int, int]]) -> Deepest | None:
    """Where something lies at least 5 moves deep: exact transforms around the blocks that may hold the deepest pixel.

    thick: the pixels at least 3 moves deep. Distances between blocks tell those between their pixels to SLACK.
    """
    full = (window.view(np.uint64) == FULL_ROW).reshape(-1, BLOCK, window.shape[1] // BLOCK).all(axis=1)
    touched = thick.view(np.uint64).astype(bool).reshape(-1, BLOCK, full.shape[1]).any(axis=1)
    blocks = BLOCK * cv2.distanceTransform(full.view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    most = float(blocks.max())
    least = most - SLACK  # every pixel of the block with the most is at least that deep
    touched &= blocks + SLACK >= least - 0.01
    _, _, boxes, _ = cv2.connectedComponentsWithStats(touched.view(np.uint8))
    reach = int(most + SLACK) + 1
    groups = []
    for x, y, columns, rows, _ in boxes[1:].tolist():
        core = BLOCK * y, BLOCK * x, BLOCK * (y + rows), BLOCK * (x + columns)
        around = max(0, core[0] - reach), max(0, core[1] - reach), core[2] + reach, core[3] + reach
        groups.append((float(blocks[y : y + rows, x : x + columns].max()) + SLACK, core, around))
    if sum((bottom - top) * (right - left) for _, _, (top, left, bottom, right) in groups) > window.size:
        return _by_transform(window, spent)
    best: Deepest | None = None
    for limit, core, (top, left, bottom, right) in sorted(groups, reverse=True):
        if best and best.squared > limit**2:
            break
        depth = cv2.distanceTransform(window[top:bottom, left:right], cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        for row, col in spent:
            if top <= row < bottom and left <= col < right:
                depth[row - top, col - left] = 0
        found = _maximum(depth[core[0] - top : core[2] - top, core[1] - left : core[3] - left])
        if found:
            found = Deepest(found.squared, found.row + core[0], found.col + core[1])
            best = found if best is None else max(best, found, key=lambda one: (one.squared, -one.row, -one.col))
    if best is None or best.squared <= 8 or best.squared < max(0.0, least) ** 2:  # so many clicks that a block is spent
        return _by_transform(window, spent)
    return best


def _by_transform(window: np.ndarray, spent: list[tuple[int, int]]) -> Deepest | None:
    depth = cv2.distanceTransform(window, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    for place in spent:
        depth[place] = 0
    return _maximum(depth)


def _maximum(depth: np.ndarray) -> Deepest | None:
    """Where OpenCV's float distances are greatest, first in raster order; None where all are 0.

    They are compared as squared integers (exact to a depth of 2048 pixels), because their last bit depends on OpenCV's
    version and threads.
    """
    limit = float(depth.max())
    if limit <= 0:
        return None
    near = np.argwhere(depth >= limit * (1 - 1e-6))  # a few pixels, in raster order
    squared = np.rint(depth[near[:, 0], near[:, 1]].astype(np.float64) ** 2).astype(np.int64)
    first = int(squared.argmax())
    return Deepest(int(squared[first]), int(near[first, 0]), int(near[first, 1]))
