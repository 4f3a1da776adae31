"""Training prompts: initial clicks, boxes and faulty masks sampled from the ground truth, and corrections where the
network is wrong.

Sofiiuk et al. 2021 (iterative sampling strategy); random initial clicks after Xu et al. 2016.
A click is a row (row, col, order) of a float32 array (2 * max_points, 3), in pixels: the first half are positive slots,
the second half negative ones; (-1, -1, -1) is an empty slot. Flat indices count pixels in raster order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from hrseg_cli.distances import squared_distance_to_zero
from hrseg_cli.recipe import Clicks

SCATTERED, FIRST = 100, 0  # the order of sampled clicks; corrections count from 1


class Drawn(NamedTuple):
    """The target of a training sample, and the prompt of its first prediction.

    truth: int8, (H, W): 1 target, 0 background, -1 ignored. points: float32, (2 * max_points, 3).
    box: float32, (4): its top, left, bottom, right in pixels, inclusive; negative without a box.
    previous: float32, (H, W), in [0, 1]: the previous mask; None: empty. corrections: number of clicks that already
    correct it.
    """

    truth: np.ndarray
    points: np.ndarray
    box: np.ndarray
    previous: np.ndarray | None = None
    corrections: int = 0


def draw(targets: np.ndarray, labelled: np.ndarray, rng: np.random.Generator, settings: Clicks) -> Drawn:
    """Sample a target object (or several merged) and its initial prompt; no click falls on an ignored pixel.

    targets: int8, (N, H, W), 1 / 0 / -1: candidate objects. With N = 0 the truth is empty and all clicks are negative.
    labelled: bool, (H, W): ignored pixels and pixels of any object, including those too small to be targets; with N = 0
    no click falls on them.
    Of merged objects, a pixel is ignored if it is ignored in one and object in none.
    """
    chosen = _choose(len(targets), rng, settings)
    truth = _merge(targets[chosen]) if chosen else np.zeros(labelled.shape, np.int8)
    regions = [targets[number] == 1 for number in chosen[: settings.max_points]]
    inside, orders = _draw_inside([region for region in regions if region.any()], rng, settings)
    outside = _draw_outside(truth, labelled, len(targets), len(chosen), rng, settings)
    points = np.full((2, settings.max_points, 3), -1, np.float32)
    for slots, pixels in zip(points, (inside, outside), strict=True):
        slots[: len(pixels), 0], slots[: len(pixels), 1] = np.divmod(pixels, labelled.shape[1])
        slots[: len(pixels), 2] = SCATTERED
    points[0, : len(orders), 2] = orders
    drawn = Drawn(truth, np.concatenate(points), np.full(4, -1, np.float32))
    if not (truth == 1).any():
        return drawn
    if rng.random() < settings.box_probability:
        kept = np.full_like(drawn.points, -1) if rng.random() < settings.box_only else drawn.points
        return drawn._replace(points=kept, box=_jittered_box(truth == 1, rng, settings.box_jitter))
    if rng.random() < settings.perturbed_probability:
        previous = perturbed(truth, targets, rng)
        points = add_next_click(drawn.points, previous, truth, order=1, rng=rng, off_centre=settings.off_centre)
        return drawn._replace(points=points, previous=previous, corrections=1)
    return drawn


def perturbed(truth: np.ndarray, targets: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """float32, (H, W), in [0, 1]: the mask of ``truth`` with the typical faults of a prediction.

    A neighbour is included, or a part is missing, or there is an extra blob; the edge is displaced and blurred.
    truth: int8, (H, W), with object pixels. targets: int8, (N, H, W): the objects of the image.
    """
    mask = truth == 1
    kind = rng.random()
    neighbours = [target == 1 for target in targets if np.count_nonzero((target == 1) & (truth == 0)) > 50]
    if neighbours and kind < 0.55:
        mask = mask | neighbours[int(rng.integers(len(neighbours)))]
    else:
        extra = kind >= 0.8
        places = np.flatnonzero(mask)
        size = math.sqrt(len(places)) * rng.uniform(0.3, 0.9)
        row, col = np.divmod(places[int(rng.integers(len(places)))], mask.shape[1]) + extra * rng.normal(0, size, 2)
        axes = int(size) + 2, int(size * rng.uniform(0.4, 1)) + 2
        mask = mask.astype(np.uint8)
        cv2.ellipse(mask, (int(col), int(row)), axes, rng.uniform(0, 180), 0, 360, int(extra), cv2.FILLED)
    change = (cv2.MORPH_DILATE, cv2.MORPH_ERODE, cv2.MORPH_OPEN, cv2.MORPH_CLOSE)[int(rng.integers(4))]
    side = 2 * int(rng.integers(4)) + 1
    changed = cv2.morphologyEx(mask.astype(np.uint8), change, np.ones((side, side), np.uint8)).astype(np.float32)
    blurred: np.ndarray = cv2.GaussianBlur(changed, (0, 0), rng.uniform(0.5, 4)).clip(0, 1)  # its sum is rounded
    return blurred


def draw_close_up(truth: np.ndarray, rng: np.random.Generator, max_points: int) -> np.ndarray:
    """Clicks on a close-up, float32 (2 * max_points, 3): one in the centre, unless it is ignored, and up to three of
    each sign anywhere (FocusCut). truth: int8 (H, W), 1 / 0 / -1."""
    centre = truth.shape[0] // 2 * truth.shape[1] + truth.shape[1] // 2
    points = np.full((2, max_points, 3), -1, np.float32)
    for slots, value in zip(points, (1, 0), strict=True):
        pixels = np.full(int(truth.flat[centre] == value), centre)
        pixels = np.concatenate([pixels, _mix([truth == value], int(rng.integers(4)), rng)])[:max_points]
        slots[: len(pixels), 0], slots[: len(pixels), 1] = np.divmod(pixels, truth.shape[1])
        slots[: len(pixels), 2] = SCATTERED
    return np.concatenate(points)


def add_next_click(
    points: np.ndarray,
    probability: np.ndarray,
    truth: np.ndarray,
    *,
    order: int,
    rng: np.random.Generator,
    threshold: float = 0.49,
    precise: bool = True,
    off_centre: float = 0.0,
    click_ignored: bool = False,
) -> np.ndarray:
    """Add one correction near the centre of the largest error (RITM's ``get_next_points``); returns the new points.

    points: float32, (2N, 3). probability: float, (H, W), in [0, 1]. truth: int8, (H, W): 1 / 0 / -1. A pixel exactly at
    ``threshold`` is not an error. The click is drawn uniformly from the pixels at least half as deep as the deepest;
    with probability ``off_centre`` from all wrong pixels of its sign, weighted by squared depth. It is positive only if
    the deepest false negative is strictly deeper than the deepest false positive. It overwrites slot N - order of its
    sign (order: 1 to N); without an error the points are unchanged.
    RITM reads ignored pixels as background (click_ignored=True) and measures depth to about 2 % (precise=False).
    """
    slots = len(points) // 2
    if not 1 <= order <= slots:
        raise ValueError(f"order is {order}; it must be 1 to {slots}")
    missed = _depths((truth == 1) & (probability < threshold), precise)
    outside = truth != 1 if click_ignored else truth == 0
    added = _depths(outside & (probability > threshold), precise)
    positive = missed.limit > added.limit
    mistake = missed if positive else added
    points = points.copy()
    if mistake.limit > 0:
        pixel = _off_centre(mistake, rng) if rng.random() < off_centre else _inner(mistake, 2, rng)
        points[(slots if positive else 2 * slots) - order] = *divmod(pixel, truth.shape[1]), order
    return points


def _jittered_box(mask: np.ndarray, rng: np.random.Generator, jitter: float) -> np.ndarray:
    """float32, (4): the box of a non-empty mask, each edge displaced by a normal deviate of ``jitter`` times its
    size."""
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    ends = np.array([top, left, top + height - 1, left + width - 1])
    sizes = np.array([height, width, height, width])
    limit = np.array([*mask.shape, *mask.shape]) - 1
    moved: np.ndarray = (ends + rng.normal(0, jitter, 4) * sizes).round().clip(0, limit).astype(np.float32)
    return np.concatenate([np.minimum(moved[:2], moved[2:]), np.maximum(moved[:2], moved[2:])])


def _choose(count: int, rng: np.random.Generator, settings: Clicks) -> list[int]:
    """Indices of the targets to merge; empty if there are no targets."""
    if count == 0:
        return []
    if count > 1 and rng.random() < settings.merge_probability:
        several = rng.integers(2, min(count, settings.max_merged), endpoint=True)
        return [int(number) for number in rng.choice(count, size=several, replace=False)]
    return [int(rng.integers(count))]


def _merge(chosen: np.ndarray) -> np.ndarray:
    """(M, H, W) -> (H, W): object where any is object, else ignored where any is ignored."""
    truth: np.ndarray = chosen.max(axis=0).astype(np.int8)
    truth[(truth == 0) & (chosen.min(axis=0) < 0)] = -1
    return truth


def _draw_inside(
    regions: Sequence[np.ndarray], rng: np.random.Generator, settings: Clicks
) -> tuple[np.ndarray, np.ndarray]:
    """Flat indices and orders of the positive clicks: one in every region, then more anywhere in them."""
    if not regions:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    eroded = [_erode(region, rng, settings) for region in regions]
    certain = list(zip(regions, eroded, strict=True))[: 1 if settings.only_one_first_click else None]
    firsts = [_first(region, kept, rng, settings) for region, kept in certain]
    pixels, orders = np.array(firsts, np.int64).T
    room = settings.max_points - len(pixels)
    # Several regions: fill the slots with further clicks, then truncate. One region: the sampled clicks always fit.
    further = _count(room if len(regions) == 1 else settings.max_points, rng, settings)
    others = _mix(eroded, further, rng)[:room]
    return np.concatenate([pixels, others]), np.concatenate([orders, np.full(len(others), SCATTERED)])


def _first(region: np.ndarray, eroded: np.ndarray, rng: np.random.Generator, settings: Clicks) -> tuple[int, int]:
    """Flat index and order of an object's first click."""
    if rng.random() < settings.off_centre:
        return _off_centre(_depths(region), rng), FIRST
    centred = settings.first_click_center
    if centred and rng.random() >= settings.first_click_anywhere:
        return _inner(_depths(eroded), settings.inner_k, rng), FIRST
    return int(_mix([eroded], 1, rng)[0]), FIRST if centred else SCATTERED


def _draw_outside(
    truth: np.ndarray, labelled: np.ndarray, targets: int, chosen: int, rng: np.random.Generator, settings: Clicks
) -> np.ndarray:
    """Flat indices of the negative clicks. ``targets`` and ``chosen`` count objects."""
    if targets == 0:
        regions = [~labelled] * 3
    else:
        background, asked = truth == 0, truth == 1
        reach = math.ceil(settings.expand_ratio * math.sqrt(np.count_nonzero(asked)))
        others = background & labelled if targets > chosen else background
        regions = [background, others, background & _dilate(asked, reach)]
    weights = [settings.background, settings.other, settings.border]
    return _mix(regions, _count(settings.max_points, rng, settings), rng, weights)


def _count(most: int, rng: np.random.Generator, settings: Clicks) -> int:
    """A random number from 0 to ``most``, each ``gamma`` times as likely as the previous one."""
    weights = settings.gamma ** np.arange(most + 1)
    return int(rng.choice(most + 1, p=weights / weights.sum()))


def _mix(
    regions: Sequence[np.ndarray], count: int, rng: np.random.Generator, weights: Sequence[float] | None = None
) -> np.ndarray:
    """Flat indices of ``count`` pixels: choose a region by weight (None: all alike), then any pixel of it. Empty
    regions give none."""
    share = np.ones(len(regions)) if weights is None else np.asarray(weights)
    source = rng.choice(len(regions), size=count, p=share / share.sum())
    pixels = np.full(count, -1)
    for number in sorted(set(source.tolist())):
        pool = np.flatnonzero(regions[number])
        if pool.size:
            pixels[source == number] = pool[rng.integers(pool.size, size=np.count_nonzero(source == number))]
    return pixels[pixels >= 0]


def _erode(region: np.ndarray, rng: np.random.Generator, settings: Clicks) -> np.ndarray:
    """Erode the region; the border of the image is not an edge."""
    if rng.random() >= settings.erode_probability:
        return region
    kernel = np.ones((3, 3), np.uint8)
    eroded = cv2.erode(region.astype(np.uint8), kernel, iterations=settings.erode_iterations).astype(bool)
    return eroded if np.count_nonzero(eroded) > 10 else region


def _dilate(region: np.ndarray, reach: int) -> np.ndarray:
    """Pixels at most ``reach`` from the region in chessboard distance."""
    kernel = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    return cv2.dilate(region.astype(np.uint8), kernel).astype(bool)


class _Depths(NamedTuple):
    """Squared distance to the edge of a region, on its bounding box; ``width`` is that of the image."""

    squared: np.ndarray
    top: int
    left: int
    width: int

    @property
    def limit(self) -> float:
        """The largest squared distance; 0 for an empty region."""
        return float(self.squared.max()) if self.squared.size else 0.0

    def flat(self, index: int) -> int:
        """Convert a flat index into the box to one into the image."""
        row, col = divmod(index, int(self.squared.shape[1]))
        return (self.top + row) * self.width + self.left + col


def _depths(region: np.ndarray, precise: bool = True) -> _Depths:
    """Depths of a bool region (H, W); pixels outside the image count as outside the region.

    precise: exact distances, whose squares are whole numbers; otherwise OpenCV's quicker approximation.
    """
    left, top, width, height = cv2.boundingRect(region.astype(np.uint8))
    window = np.pad(region[top : top + height, left : left + width].astype(np.uint8), 1)
    if precise:
        squared = squared_distance_to_zero(window)
    else:
        squared = cv2.distanceTransform(window, cv2.DIST_L2, cv2.DIST_MASK_5).astype(np.float64) ** 2
    return _Depths(squared[1:-1, 1:-1], top, left, region.shape[1])


def _inner(depths: _Depths, part: float, rng: np.random.Generator) -> int:
    """Flat index of a random pixel deeper than 1 / ``part`` of the maximum; of a deepest pixel if ``part`` is 0."""
    squared, limit = depths.squared, depths.limit
    pool = np.flatnonzero(squared * part**2 > limit if part else squared == limit)
    return depths.flat(int(pool[rng.integers(pool.size)]))


def _off_centre(depths: _Depths, rng: np.random.Generator) -> int:
    """Flat index of a pixel sampled by squared depth, which resembles where people click."""
    total = np.cumsum(depths.squared)
    return depths.flat(int(np.searchsorted(total, rng.integers(int(total[-1])), side="right")))
