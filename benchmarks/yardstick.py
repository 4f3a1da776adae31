"""A plain implementation of RITM's evaluator: the yardstick that hrseg's speed is compared with.

It follows Sofiiuk et al. 2021: the first click runs on the whole image, later ones on a crop of 400 pixels; image and
mirrored image form a batch of two; distance transforms cover the whole image; the network runs in eager mode, as
trained. It shares the network definition and weights with hrseg, but none of its optimisations. With a GPU, the
network, crops and masks are on it, while clicks and scores are computed on the CPU.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hrseg_cli.interaction import Click, Sample
from hrseg_cli.models.hrnet.network import ClickHRNet

TARGET, EXPANSION, SMALLEST, KEPT_ABOVE = 400, 1.4, 200, 0.5
Roi = tuple[int, int, int, int]  # first and last row, first and last column


class PlainNetwork(ClickHRNet):
    """Click maps from the distance of every pixel to every click."""

    def click_features(self, image: Tensor, points: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        rows, cols = (torch.arange(side, device=image.device) for side in (height, width))
        rows, cols = rows[:, None], cols[None, :]
        places = points[..., :2, None, None]  # (B, 2N, 2, 1, 1)
        squared = (rows - places[:, :, 0]).float().square() + (cols - places[:, :, 1]).float().square()
        squared[points[..., :2].amax(2) < 0] = 1e6
        near = squared.view(len(points), 2, -1, height, width).amin(2)
        maps = (near <= self.norm_radius**2).float()
        return torch.cat([image[:, 3:4], maps], 1)


@torch.no_grad()
def count_clicks(network: ClickHRNet, sample: Sample, max_clicks: int, until: float) -> tuple[list[Click], list[float]]:
    """Click until the IoU reaches ``until``, at most ``max_clicks`` times. Returns clicks and the IoU after each."""
    device = network._mean.device
    truth, valid = sample.truth == 1, sample.truth != -1
    height, width = truth.shape
    mask, free = np.zeros_like(truth), np.ones_like(truth)
    previous = torch.zeros(1, 1, height, width, device=device)
    clicks: list[Click] = []
    scores: list[float] = []
    roi: Roi | None = None
    while len(clicks) < max_clicks and not (scores and scores[-1] >= until):
        clicks.append(_next_click(truth, mask, valid, free))
        image = torch.from_numpy(sample.image).to(device).permute(2, 0, 1)[None].float() / 255
        x = torch.cat([image, previous], 1)
        wanted = _roi_of(previous[0, 0].cpu().numpy() > 0.5, clicks) if len(clicks) > 1 else None
        if wanted is None:
            probability = _predict(network, x, clicks)
        else:
            roi = wanted if roi is None or _must_move(roi, wanted, clicks) else roi
            top, bottom, left, right = roi
            tall, wide = bottom - top + 1, right - left + 1
            scale = TARGET / max(tall, wide)
            size = round(tall * scale), round(wide * scale)
            window = x[:, :, top : bottom + 1, left : right + 1]
            window = F.interpolate(window, size=size, mode="bilinear", align_corners=True)
            inside = [
                Click(size[0] * (c.row - top) / tall, size[1] * (c.col - left) / wide, c.positive) for c in clicks
            ]
            probability = _predict(network, window, inside)
        if roi is not None:  # even if this click ran on the whole image, as in RITM's evaluator
            top, bottom, left, right = roi
            whole = torch.zeros(1, 1, height, width, device=device)
            size = bottom - top + 1, right - left + 1
            inside_roi = F.interpolate(probability, size=size, mode="bilinear", align_corners=True)
            whole[:, :, top : bottom + 1, left : right + 1] = inside_roi
            probability = whole
        previous = probability
        mask = probability[0, 0].cpu().numpy() > 0.49
        scores.append(float((mask & truth & valid).sum() / ((mask | truth) & valid).sum()))
    return clicks, scores


def _next_click(truth: np.ndarray, mask: np.ndarray, valid: np.ndarray, free: np.ndarray) -> Click:
    depths = []
    for region in (truth & ~mask & valid, ~truth & mask & valid):
        padded = np.pad(region, 1).astype(np.uint8)
        depths.append(cv2.distanceTransform(padded, cv2.DIST_L2, 0)[1:-1, 1:-1] * free)
    positive = bool(depths[0].max() > depths[1].max())
    depth = depths[0] if positive else depths[1]
    row, col = np.argwhere(depth == depth.max())[0]
    free[row, col] = False
    return Click(int(row), int(col), positive)


def _predict(network: ClickHRNet, x: Tensor, clicks: list[Click]) -> Tensor:
    mirrored = [Click(c.row, x.shape[-1] - c.col - 1, c.positive) for c in clicks]
    points = torch.cat([_points(clicks), _points(mirrored)]).to(x.device)
    straight, flipped = network(torch.cat([x, x.flip(3)]), points)["logits"]
    return torch.sigmoid(0.5 * (straight + flipped.flip(2)))[None]


def _points(clicks: list[Click]) -> Tensor:
    sides = [[(c.row, c.col, i) for i, c in enumerate(clicks) if c.positive == side] for side in (True, False)]
    slots = max(1, len(sides[0]), len(sides[1]))
    return torch.tensor([[*sides[0], *[(-1, -1, -1)] * (slots - len(sides[0])),
                          *sides[1], *[(-1, -1, -1)] * (slots - len(sides[1]))]], dtype=torch.float64)  # fmt: skip


def _roi_of(mask: np.ndarray, clicks: list[Click]) -> Roi | None:
    rows, cols = np.where(mask)
    if not len(rows):
        return None
    rows = [*rows, *(c.row for c in clicks if c.positive)]
    cols = [*cols, *(c.col for c in clicks if c.positive)]
    ends = []
    for places, limit in ((rows, mask.shape[0]), (cols, mask.shape[1])):
        low, high = int(min(places)), int(max(places))
        side = max(EXPANSION * (high - low + 1), SMALLEST)
        ends += [max(0, round((low + high) / 2 - side / 2)), min(limit - 1, round((low + high) / 2 + side / 2))]
    return ends[0], ends[1], ends[2], ends[3]


def _must_move(roi: Roi, wanted: Roi, clicks: list[Click]) -> bool:
    if any(not (roi[0] <= c.row < roi[1] and roi[2] <= c.col < roi[3]) for c in clicks if c.positive):
        return True
    overlap = 1.0
    for i in (0, 2):
        shared = max(0, min(roi[i + 1], wanted[i + 1]) - max(roi[i], wanted[i]) + 1)
        overlap *= shared / max(1e-6, max(roi[i + 1], wanted[i + 1]) - min(roi[i], wanted[i]) + 1)
    return overlap < KEPT_ABOVE
