"""A click model without weights: OpenCV's graph cut, driven by the same clicks.

Rother et al. 2004, "GrabCut: Interactive Foreground Extraction using Iterated Graph Cuts". An honest floor for every
table, and what the commands run on where no checkpoint is at hand.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from hrseg_cli.models import cutting
from hrseg_cli.models.base import InteractiveModel

log = logging.getLogger(__name__)

# Logit of "object" and, negated, of "background": far from any threshold, and not so far as to be exactly 0 or 1.
CERTAIN = 4.0
BLANK = 2  # A picture whose channels span no more grey levels says nothing.


class GrabCut(InteractiveModel):
    """OpenCV's graph cut, which needs no weights: each answer is a cut from the previous mask, the clicked disks fixed.

    Where the picture is blank or the cut takes too long (:mod:`hrseg_cli.models.cutting`), the answer is what it would
    have started from: around each positive click, as far as the next negative one.

    max_side: larger inputs are cut at this longer side (pixels) and the mask is resized back.
    radius: radius of a clicked disk that is held fixed, as a share of the shorter side.
    reach: how far around a positive click the object is expected, as a share of the shorter side.
    iterations: rounds of graph cut and colour models.
    """

    name = "grabcut"
    mirror = False

    def __init__(
        self,
        *,
        max_side: int = 640,
        radius: float = 0.01,
        reach: float = 0.2,
        iterations: int = 1,
    ) -> None:
        self.config: dict[str, Any] = {
            "max_side": max_side,
            "radius": radius,
            "reach": reach,
            "iterations": iterations,
        }
        super().__init__()
        whole = all(isinstance(number, int) and number >= 1 for number in (max_side, iterations))
        if not (whole and 0 <= radius < math.inf and 0 <= reach < math.inf):
            raise ValueError(f"max_side and iterations are whole numbers, radius and reach shares: {self.config}")
        self.max_side, self.radius, self.reach, self.iterations = max_side, radius, reach, iterations

    def forward(self, image: Tensor, points: Tensor) -> dict[str, Tensor]:
        pictures = (image[:, :3].clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        previous = (image[:, 3] > 0.5).cpu().numpy()
        masks = [self.cut(*one) for one in zip(pictures, previous, points.cpu().numpy(), strict=True)]
        objects = torch.from_numpy(np.stack(masks)).unsqueeze(1)
        return {"logits": torch.where(objects, CERTAIN, -CERTAIN).to(image.device)}

    def cut(self, picture: np.ndarray, previous: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Mask, bool (H, W), of a picture (H, W, 3) uint8 from a previous mask (H, W) and points (2N, 3)."""
        size = height, width = previous.shape
        scale = min(1.0, self.max_side / max(height, width))
        if scale < 1:
            small = (max(1, round(width * scale)), max(1, round(height * scale)))
            picture = cv2.resize(picture, small, interpolation=cv2.INTER_AREA)
            previous = cv2.resize(previous.astype(np.uint8), small, interpolation=cv2.INTER_NEAREST) > 0
        labels = self.seeds(previous, pixels_under(points[:, :2], size, scale, previous.shape))
        known = {int(value) for value in np.unique(labels)}
        background, foreground = {cv2.GC_BGD, cv2.GC_PR_BGD}, {cv2.GC_FGD, cv2.GC_PR_FGD}
        # Where the colours say nothing, the clicks alone do: the guess stays as it is.
        if known & background and known & foreground and np.ptp(picture, axis=(0, 1)).max() > BLANK:
            found = cutting.cut(picture, labels, self.iterations)
            if found is None:
                log.warning("grabcut: no cut of this picture in time; the mask is what the clicks say by themselves")
            else:
                labels = found
        mask = np.isin(labels, list(foreground)).astype(np.uint8) * 255
        return np.asarray(cv2.resize(mask, (width, height), interpolation=cv2.INTER_LINEAR) > 127)

    def seeds(self, previous: np.ndarray, clicked: np.ndarray) -> np.ndarray:
        """OpenCV's four labels, uint8 (H, W): clicked disks are certain, the rest is a guess.

        clicked: int (2N, 2), the pixels under N positive and N negative clicks, -1 for none.

        A pixel is guessed to be object where its nearest click is positive and it was object before, or is near that
        click. So a negative click clears what lies around it, as far as the next positive one.
        """
        half, short = len(clicked) // 2, min(previous.shape)
        to_object = nearest_click(clicked[:half], previous.shape)
        to_background = nearest_click(clicked[half:], previous.shape)
        guess = (to_object <= to_background) & (previous | (to_object <= self.reach * short))
        labels = np.where(guess, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
        fixed = max(2.0, self.radius * short)
        labels[to_object <= fixed] = cv2.GC_FGD
        labels[(to_background <= fixed) & (to_background < to_object)] = cv2.GC_BGD
        return labels


def pixels_under(points: np.ndarray, size: tuple[int, int], scale: float, shape: tuple[int, ...]) -> np.ndarray:
    """int (N, 2): the pixels under points (N, 2) of a picture of ``size`` in its copy of ``shape``, -1 for others.

    A point on the last half pixel lies on the last pixel: large crops are shown small, and clicks may be fractional.
    """
    inside = np.all((points >= -0.5) & (points < size), axis=1)
    pixels = np.minimum(np.floor((points + 0.5) * scale), np.subtract(shape, 1)).astype(int)
    return np.where(inside[:, None], pixels, -1)


def nearest_click(clicked: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """float32 (H, W): distance to the nearest of (N, 2) pixels, those at -1 left out; infinite without."""
    rows, cols = clicked[clicked[:, 0] >= 0].T
    if not rows.size:
        return np.full(shape, np.inf, np.float32)
    away = np.ones(shape, np.uint8)
    away[rows, cols] = 0
    return np.asarray(cv2.distanceTransform(away, cv2.DIST_L2, cv2.DIST_MASK_PRECISE))
