"""The simulated annotator: clicks the centre of the largest error, or first draws a box around the object.

Sofiiuk et al. 2021, section 4 (evaluation protocol), after Xu et al. 2016 and Li et al. 2018.

An exact distance transform of the whole image costs more than the rest of a click, including metrics, and computes the
depth of every pixel although only the deepest is needed. Here cheap bounds first narrow down where that pixel can be.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import product
from typing import NamedTuple

import cv2
import numpy as np

from hrseg_cli.distances import distance_to_zero
from hrseg_cli.interaction import Box, Click, Prompt
from hrseg_cli.recipe import Protocol

BLOCK = 8  # pixels: one 64-bit word, so that a row of a block is compared in one operation
FULL_ROW = np.uint64(0x0101010101010101)
SLACK = (BLOCK - 1) * 2**0.5  # maximum error of a distance from a pixel's position in its block


def next_prompt(
    protocol: Protocol, truth: np.ndarray, prediction: np.ndarray, used: Sequence[Prompt], key: str
) -> Prompt | None:
    """The next click or box under a protocol; None if there is no error left and the protocol stops there.

    key: of the object, for what is drawn at random. Other arguments as for :func:`next_click`.
    """
    clicks = [one for one in used if isinstance(one, Click)]
    group = protocol.click_group
    if group is None:
        click = next_click(truth, prediction, clicks)
    else:
        click = drawn_click(truth, prediction, clicks, group, key)
    if click is None:
        return Click(0, 0, False) if protocol.click_when_perfect else None
    if protocol.first == "box" and not used:
        return box_around(truth == 1, protocol.box_jitter, f"{group or 0}/box/{key}") or click
    return click


def box_around(region: np.ndarray, jitter: float = 0, seed: str = "") -> Box | None:
    """The bounding box of a bool region (H, W), with each side moved by up to ``jitter`` times the box's height or
    width; None for an empty region. The box stays inside the image and keeps at least one pixel."""
    left, top, columns, rows = cv2.boundingRect(region.view(np.uint8))
    if not rows:
        return None
    bottom, right = top + rows - 1, left + columns - 1
    moves = np.random.default_rng(_number(seed)).uniform(-jitter, jitter, 4) * (rows, rows, columns, columns)
    up, down, near, far = np.rint(moves).astype(int).tolist()
    height, width = region.shape
    top, left = min(max(0, top + up), bottom), min(max(0, left + near), right)
    return Box(top, min(max(top, bottom + down), height - 1), left, min(max(left, right + far), width - 1))


def drawn_click(truth: np.ndarray, prediction: np.ndarray, used: Sequence[Click], group: int, key: str) -> Click | None:
    """A click off the centre: drawn from the connected error around the pixel that :func:`next_click` would click on,
    each pixel with a probability proportional to its depth. Other arguments as for :func:`next_click`.

    group, key: the seed, together with the number of clicks so far; key: of the object.
    """
    centre = next_click(truth, prediction, used)
    if centre is None:
        return None
    wrong = truth > prediction.view(np.int8) if centre.positive else (truth == 0) & prediction
    _, parts = cv2.connectedComponents(wrong.view(np.uint8), connectivity=8)
    part = parts == parts[int(centre.row), int(centre.col)]
    left, top, columns, rows = cv2.boundingRect(part.view(np.uint8))
    window = np.pad(part[top : top + rows, left : left + columns].view(np.uint8), 1)
    depth = distance_to_zero(window)[1:-1, 1:-1]
    for click in used:
        row, col = int(click.row), int(click.col)
        if part[row, col]:
            depth[row - top, col - left] = 0
    weight = np.rint(depth.astype(np.float64) * 64).astype(np.int64).cumsum()
    random = np.random.default_rng(_number(f"{group}/{len(used)}/{key}"))
    found = int(np.searchsorted(weight, int(random.integers(weight[-1])), side="right"))
    row, col = divmod(found, columns)
    return Click(top + row, left + col, centre.positive)


def _number(seed: str) -> int:
    return int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "little")


class Deepest(NamedTuple):
    """squared: squared distance to the nearest pixel outside the region, at least 1."""

    squared: int
    row: int
    col: int


def next_click(truth: np.ndarray, prediction: np.ndarray, used: Iterable[Click] = ()) -> Click | None:
    """The deepest pixel of a false-negative or false-positive region; None if there is no error left to click.

    truth: int8, (H, W): 1 object, 0 background, -1 ignored. prediction: bool, (H, W). used: clicks so far; their pixels
    are not clicked again. Depth is the exact Euclidean distance to the nearest correct pixel; pixels outside the image
    count as correct. The click is positive only if the deepest false negative is strictly deeper than the deepest false
    positive. Of equally deep pixels, the first in raster order is clicked.
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
    """The deepest pixel of a bool region (H, W) that is not excluded, the first in raster order; None if there is none.

    excluded: (row, col) of pixels that must not be returned; they still belong to the region when depth is measured.
    Only the region's bounding box with a ring of zeros around it is processed. The result is the same as for the whole
    image, because the nearest zero of a pixel is never beyond that ring.
    """
    left, top, columns, rows = cv2.boundingRect(region.view(np.uint8))
    if not rows:
        return None
    sides = [-(-(side + 2) // BLOCK) * BLOCK for side in (rows, columns)]  # the ring, padded with zeros to whole blocks
    window = np.zeros(sides, np.uint8)
    window[1 : rows + 1, 1 : columns + 1] = region[top : top + rows, left : left + columns]
    spent = [(row - top + 1, col - left + 1) for row, col in set(excluded) if region[row, col]]

    # Pixels left after one, two and four erosions are at least 2, 3 and 5 chessboard moves deep. A pixel of Euclidean
    # depth d is between d / sqrt(2) and d moves deep.
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


# The functions below take a window, uint8 (H, W), 0 or 1, framed by zeros, with sides of whole blocks, and the excluded
# positions in it, all of which are 1.


def _by_walking(window: np.ndarray, level: np.ndarray, moves: int, spent: list[tuple[int, int]]) -> Deepest | None:
    """For shallow regions: from all pixels of ``level`` at once, test positions nearest first until no pixel is left.

    level: the pixels at least ``moves`` moves deep; the deepest is less than 5. A pixel is dropped at its first zero,
    so the search never leaves the window.
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
    """Squared distance -> offsets at that distance; complete up to four diagonal moves, where searches end."""
    found: dict[int, list[tuple[int, int]]] = {}
    for row, col in product(range(-5, 6), repeat=2):
        found.setdefault(row**2 + col**2, []).append((row, col))
    return sorted(found.items())


def _by_blocks(window: np.ndarray, thick: np.ndarray, spent: list[tuple[int, int]]) -> Deepest | None:
    """For regions at least 5 moves deep: exact transforms around the blocks that may contain the deepest pixel.

    thick: the pixels at least 3 moves deep. Distances between blocks equal those between their pixels up to SLACK.
    """
    full = (window.view(np.uint64) == FULL_ROW).reshape(-1, BLOCK, window.shape[1] // BLOCK).all(axis=1)
    touched = thick.view(np.uint64).astype(bool).reshape(-1, BLOCK, full.shape[1]).any(axis=1)
    blocks = BLOCK * cv2.distanceTransform(full.view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    most = float(blocks.max())
    least = most - SLACK  # every pixel of the deepest block is at least this deep
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
    free = _free(window, spent)
    best: Deepest | None = None
    for limit, core, (top, left, bottom, right) in sorted(groups, reverse=True):
        if best and best.squared > limit**2:
            break
        depth = cv2.distanceTransform(window[top:bottom, left:right], cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        depth = depth * free[top:bottom, left:right]
        found = _maximum(depth[core[0] - top : core[2] - top, core[1] - left : core[3] - left])
        if found:
            found = Deepest(found.squared, found.row + core[0], found.col + core[1])
            best = found if best is None else max(best, found, key=lambda one: (one.squared, -one.row, -one.col))
    if (
        best is None or best.squared <= 8 or best.squared < max(0.0, least) ** 2
    ):  # so many clicks that a block has no candidates left
        return _by_transform(window, spent)
    return best


def _by_transform(window: np.ndarray, spent: list[tuple[int, int]]) -> Deepest | None:
    return _maximum(cv2.distanceTransform(window, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) * _free(window, spent))


def _free(window: np.ndarray, spent: list[tuple[int, int]]) -> np.ndarray:
    """uint8, 0 at the excluded positions, else 1."""
    free = np.ones_like(window)
    for place in spent:
        free[place] = 0
    return free


def _maximum(depth: np.ndarray) -> Deepest | None:
    """The maximum of OpenCV's float distances, first in raster order; None if all are 0.

    Compared as squared integers (exact to a depth of 2048 pixels), because the last bit of the floats depends on
    OpenCV's version and threads.
    """
    limit = float(depth.max())
    if limit <= 0:
        return None
    near = np.argwhere(depth >= limit * (1 - 1e-6))  # a few pixels, in raster order
    squared = np.rint(depth[near[:, 0], near[:, 1]].astype(np.float64) ** 2).astype(np.int64)
    first = int(squared.argmax())
    return Deepest(int(squared[first]), int(near[first, 0]), int(near[first, 1]))
