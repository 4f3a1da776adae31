"""A click model without weights: OpenCV's GrabCut, driven by the same clicks.

Rother et al. 2004, "GrabCut: Interactive Foreground Extraction using Iterated Graph Cuts". It serves as a baseline, and
lets every command run without a checkpoint.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from hrseg_cli import cutting
from hrseg_cli.models.base import InteractiveModel
from hrseg_cli.models.parts.click_pixels import nearest_click, pixels_under, shrunk

log = logging.getLogger(__name__)

# Logit of object pixels; negated, of background. Far from any threshold, but a probability of neither 0 nor 1.
CERTAIN = 4.0
BLANK = 2  # an image whose channels span at most this many grey levels counts as blank


class GrabCut(InteractiveModel):
    """OpenCV's graph cut, which needs no weights: each answer is a cut from the previous mask, the clicked disks fixed.

    For a blank image, or if the cut takes too long (:mod:`hrseg_cli.cutting`), the result is the initial guess:
    the surroundings of each positive click, up to the next negative one.

    max_side: larger inputs are downsampled to this longer side (pixels), and the mask is resized back.
    radius: radius of the fixed disk around a click, as a share of the shorter side.
    reach: expected extent of the object around a positive click, as a share of the shorter side.
    iterations: rounds of colour model fitting and graph cut.
    """

    name = "grabcut"
    weightless = True
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
            raise ValueError(
                "max_side and iterations must be integers of at least 1, radius and reach at least 0, "
                f"not {self.config}"
            )
        self.max_side, self.radius, self.reach, self.iterations = max_side, radius, reach, iterations

    def forward(self, image: Tensor, points: Tensor) -> dict[str, Tensor]:
        images = (image[:, :3].clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        previous = (image[:, 3] > 0.5).cpu().numpy()
        masks = [self.cut(*one) for one in zip(images, previous, points.cpu().numpy(), strict=True)]
        objects = torch.from_numpy(np.stack(masks)).unsqueeze(1)
        return {"logits": torch.where(objects, CERTAIN, -CERTAIN).to(image.device)}

    def cut(self, image: np.ndarray, previous: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Mask, bool (H, W), from an image (H, W, 3) uint8, a previous mask, bool (H, W), and points (2N, 3)."""
        size = height, width = previous.shape
        scale = min(1.0, self.max_side / max(height, width))
        image, previous = shrunk(image, scale), shrunk(previous, scale)
        labels = self.seeds(previous, pixels_under(points[:, :2], size, scale, previous.shape))
        known = {int(value) for value in np.unique(labels)}
        background, foreground = {cv2.GC_BGD, cv2.GC_PR_BGD}, {cv2.GC_FGD, cv2.GC_PR_FGD}
        # A blank image, or labels of only one kind, give nothing to cut: keep the initial guess.
        if known & background and known & foreground and np.ptp(image, axis=(0, 1)).max() > BLANK:
            found = cutting.cut(image, labels, self.iterations)
            if found is None:
                log.warning("grabcut: the graph cut of this image took too long; using a guess from the clicks alone")
            else:
                labels = found
        mask = np.isin(labels, list(foreground)).astype(np.uint8) * 255
        return np.asarray(cv2.resize(mask, (width, height), interpolation=cv2.INTER_LINEAR) > 127)

    def seeds(self, previous: np.ndarray, clicked: np.ndarray) -> np.ndarray:
        """OpenCV's four labels, uint8 (H, W): certain in the disks around clicks, probable elsewhere.

        previous: bool (H, W). clicked: int (2N, 2), pixels of N positive and N negative clicks, -1 for unused slots.

        A pixel is probably object if its nearest click is positive and it is within reach of that click or belongs to
        the previous mask. So a negative click clears its surroundings, up to the next positive click.
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
