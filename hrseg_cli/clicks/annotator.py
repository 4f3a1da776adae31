"""The simulated annotator: one click in the middle of the largest mistake.

Sofiiuk et al. 2021, section 4 (evaluation protocol); the rule goes back to Xu et al. 2016 and Li et al. 2018.
"""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np

from hrseg_cli.interaction import Click


def next_click(truth: np.ndarray, prediction: np.ndarray, used: Iterable[Click] = ()) -> Click | None:
    """The pixel deepest inside a missed or a wrongly added region; None when no mistake is left to click.

    truth: int8, (H, W): 1 object, 0 background, -1 ignored. prediction: bool, (H, W). used: clicks so far; their pixels
    are not clicked again. Depth is the exact Euclidean distance to the nearest pixel that is right, the outside of the
    image counting as right. The click is positive only where the deepest missed pixel lies strictly deeper than the
    deepest wrongly added one. Equal depths are settled by the first pixel in raster order.
    """
    clicked = [(int(click.row), int(click.col)) for click in used]
    missed = deepest((truth == 1) & ~prediction, clicked)
    added = deepest((truth == 0) & prediction, clicked)
    if missed is None and added is None:
        return None
    if missed is not None and (added is None or missed[0] > added[0]):
        return Click(missed[1], missed[2], True)
    assert added is not None
    return Click(added[1], added[2], False)


def deepest(region: np.ndarray, excluded: Iterable[tuple[int, int]] = ()) -> tuple[int, int, int] | None:
    """(squared depth, row, col) of the deepest pixel of a bool region (H, W) that is not excluded; None without one.

    Distances are taken in the region's bounding box with one ring of zeros, which gives what the whole image gives:
    the nearest zero of a pixel is never beyond that ring. They are compared as squared integers (exact to a depth of
    2048 pixels), because the last bit of OpenCV's float distances depends on its version and threads.
    """
    rows = np.flatnonzero(region.any(axis=1))
    if rows.size == 0:
        return None
    top, bottom = rows[0], rows[-1] + 1
    cols = np.flatnonzero(region[top:bottom].any(axis=0))
    left, right = cols[0], cols[-1] + 1
    window = np.pad(region[top:bottom, left:right].astype(np.uint8), 1)
    depth = cv2.distanceTransform(window, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    for row, col in excluded:
        if top <= row < bottom and left <= col < right:
            depth[row - top, col - left] = 0
    limit = float(depth.max())
    if limit <= 0:
        return None
    near = np.argwhere(depth >= limit * (1 - 1e-6))  # a few pixels, in raster order
    squared = np.rint(depth[near[:, 0], near[:, 1]].astype(np.float64) ** 2).astype(np.int64)
    first = int(squared.argmax())
    return int(squared[first]), int(near[first, 0] + top), int(near[first, 1] + left)
