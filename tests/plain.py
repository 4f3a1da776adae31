"""The plain ways: whole images every time. What the quick ones are tested and measured against."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from hrseg_cli.interaction import Click


def next_click(truth: np.ndarray, prediction: np.ndarray, used: Sequence[Click] = ()) -> Click | None:
    """As RITM's evaluator finds it: two exact transforms of the whole padded image, one click where one is deepest."""
    depths = []
    for region in ((truth == 1) & ~prediction, (truth == 0) & prediction):
        padded = np.pad(region.astype(np.uint8), 1)
        depth = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
        for click in used:
            depth[int(click.row), int(click.col)] = 0
        depths.append((round(float(depth.max()) ** 2), depth))
    (missed, _), (added, _) = depths
    if not missed and not added:
        return None
    limit, depth = depths[0] if missed > added else depths[1]
    near = np.argwhere(depth > limit**0.5 - 0.01)  # the last bit of OpenCV's distances is not to be trusted
    row, col = near[np.rint(depth[tuple(near.T)].astype(np.float64) ** 2).argmax()]
    return Click(int(row), int(col), missed > added)


def boundary_iou(prediction: np.ndarray, truth: np.ndarray, ratio: float = 0.02) -> float:
    """Both bands anew, by erosion of the whole padded mask, as the reference code of Cheng et al. takes them."""
    height, width = truth.shape
    steps = max(1, round(ratio * (height**2 + width**2) ** 0.5))
    bands = []
    for mask in (prediction & (truth != -1), truth == 1):
        padded = np.pad(mask.astype(np.uint8), 1)
        eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=steps)[1:-1, 1:-1]
        bands.append(mask & (eroded == 0))
    union = (bands[0] | bands[1]).sum()
    return float((bands[0] & bands[1]).sum() / union) if union else 1.0
