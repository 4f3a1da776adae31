"""Rasterise shapes: placement, coverage, height and tone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np

from hrseg_cli.data.procedural.parts import MIN_RADIUS, Array, ShapePart, moved, points_of, turned

SHIFT = 4  # OpenCV draws at a precision of 1/16 pixel


def place(parts: list[ShapePart], shape: tuple[int, int], centre: Array, span: float, angle: float) -> list[ShapePart]:
    """The shape in pixels: rotated, scaled so that its box is ``span`` times the largest that fits, and centred.

    centre: (x, y) as fractions of width and height.
    """
    points = turned(points_of(parts), angle)
    solid = np.concatenate([np.full(sum(map(len, part.rings)), part.role == "solid") for part in parts])
    low, high = points[solid].min(axis=0), points[solid].max(axis=0)
    frame = np.array([shape[1], shape[0]])
    scale = span * float((frame / (high - low)).min())
    placed = moved(parts, (points - 0.5 * (low + high)) * scale + centre * frame, scale)
    thin = MIN_RADIUS * max(shape)
    return [
        replace(part, radius=np.maximum(part.radius, thin))
        if part.radius is not None and part.role == "solid"
        else part
        for part in placed
    ]


def boxes_of(parts: list[ShapePart]) -> Array:
    """(N, 4) int: left, top, right, bottom of the pixels that each part can touch, with a margin of two pixels."""
    points = points_of(parts)
    starts = np.cumsum([0, *(sum(map(len, part.rings)) for part in parts[:-1])])
    wide = np.array([2.0 if part.radius is None else 2.0 + float(part.radius.max()) for part in parts])[:, None]
    low, high = np.minimum.reduceat(points, starts), np.maximum.reduceat(points, starts)
    return np.concatenate([np.floor(low - wide), np.ceil(high + wide)], axis=1).astype(int)


def _filler(parts: list[ShapePart], fine: int) -> Callable[..., None]:
    """A function that paints part ``k`` onto a canvas ``fine`` times as large as the picture.

    fill(canvas, k, value, share, origin): for a stroke only the inner ``share`` of its width; the canvas starts at
    pixel ``origin`` (x, y). Outlines of all strokes are computed together, because a shape may have thousands.
    """
    lines = [part for part in parts if part.radius is not None]
    owners = [k for k, part in enumerate(parts) if part.radius is not None]
    lengths = [len(part.rings[0]) for part in lines]
    first = np.cumsum([0, *lengths])
    spans = dict(zip(owners, zip(first[:-1].tolist(), first[1:].tolist(), strict=True), strict=True))
    path = points_of(lines) if lines else np.zeros((0, 2))
    half = np.concatenate([part.radius for part in lines if part.radius is not None]) if lines else np.zeros(0)
    step = np.diff(path, axis=0, append=np.zeros((min(len(path), 1), 2)))
    step[first[1:] - 1] = 0
    along = step + np.roll(step, 1, axis=0)
    along /= np.maximum(np.hypot(along[:, :1], along[:, 1:]), 1e-9)
    across = np.stack([-along[:, 1], along[:, 0]], axis=1)
    cosine = np.sum(step * np.roll(step, 1, axis=0), axis=1)
    sharp = cosine < 0.95 * np.hypot(*step.T) * np.hypot(*np.roll(step, 1, axis=0).T)
    sharp[first[:-1]] = sharp[first[1:] - 1] = True  # both ends are round
    corners = {k: (start + np.flatnonzero(sharp[start:stop])).tolist() for k, (start, stop) in spans.items()}
    drawn: dict[float, tuple[Array, Array]] = {}

    def fixed(points: Array) -> Array:
        return np.asarray(np.rint((points * fine - 0.5) * (1 << SHIFT)), np.int32)

    def outlines(share: float) -> tuple[Array, Array]:
        if share not in drawn:
            wide = np.maximum(half * share - 0.5 / fine, 0.0)  # OpenCV fills half a pixel beyond an outline
            left, right = fixed(path + across * wide[:, None]), fixed(path - across * wide[:, None])
            quads = np.stack([left[:-1], left[1:], right[1:], right[:-1]], axis=1)
            drawn[share] = quads, np.rint(wide * fine * (1 << SHIFT)).astype(int)
        return drawn[share]

    middle = fixed(path)

    def fill(
        canvas: Array, k: int, value: tuple[float, ...], share: float = 1.0, origin: tuple[int, int] = (0, 0)
    ) -> None:
        move = np.array(origin, np.int32) * (fine << SHIFT)
        if k not in spans:
            cv2.fillPoly(canvas, [fixed(ring) - move for ring in parts[k].rings], value, cv2.LINE_8, SHIFT)
            return
        start, stop = spans[k]
        quads, wide = outlines(share)
        for quad in quads[start : stop - 1] - move:
            cv2.fillConvexPoly(canvas, quad, value, cv2.LINE_8, SHIFT)
        for corner in corners[k]:
            cv2.circle(canvas, (middle[corner] - move).tolist(), int(wide[corner]), value, -1, cv2.LINE_8, SHIFT)

    return fill


def coverage_of(parts: list[ShapePart], shape: tuple[int, int]) -> Array:
    """Fraction of each pixel covered by the parts: uint8, (H, W), 255 = all; sixteen samples per pixel.

    OpenCV also counts samples under an outline, so areas grow by an eighth of a pixel. The picture is blended with the
    same coverage, so mask and picture agree.
    """
    canvas = np.zeros((shape[0] * 4, shape[1] * 4), np.uint8)
    fill = _filler(parts, 4)
    for k, part in enumerate(parts):
        if part.role != "paint":
            fill(canvas, k, (255.0 if part.role == "solid" else 0.0,))
    return np.asarray(cv2.resize(canvas, shape[::-1], interpolation=cv2.INTER_AREA))


def surface_of(parts: list[ShapePart], shape: tuple[int, int], fine: int = 2) -> tuple[Array, Array]:
    """Tone in [0, 1] and height in pixels of the visible surface, both float32, (H, W); continued past its edge."""
    canvas = np.zeros((shape[0] * fine, shape[1] * fine, 2), np.int16)  # height in eighths, 1 + tone * 1000
    fill = _filler(parts, fine)
    boxes = np.clip(boxes_of(parts), 0, [shape[1], shape[0], shape[1], shape[0]]).tolist()
    for k, (part, (left, top, right, bottom)) in enumerate(zip(parts, boxes, strict=True)):
        if part.role == "cut" or left == right or top == bottom:
            continue
        tone = 1 + round(part.tone * 1000)
        if part.role == "solid" and part.radius is not None:
            radius = float(part.radius.max())
            shares = (1.0,) if radius * fine < 1.5 else (1.0, 0.6) if radius * fine < 5 else (1.0, 0.88, 0.7, 0.45, 0.2)
            for share in shares:
                fill(canvas, k, ((part.lift + radius * math.sqrt(1.04 - share**2)) * 8, tone), share)
            continue
        if part.role == "solid" and part.bevel * fine <= 1:
            fill(canvas, k, (part.lift * 8, tone))
            continue
        window = canvas[top * fine : bottom * fine, left * fine : right * fine]
        mask = np.zeros(window.shape[:2], np.uint8)
        fill(mask, k, (1.0,), 1.0, (left, top))
        if part.role == "paint":
            marked = (mask > 0) & (window[..., 1] > 0)
            window[..., 1][marked] = tone
            window[..., 0][marked] += np.int16(part.lift * 8)
            continue
        inwards = np.minimum(cv2.distanceTransform(mask, cv2.DIST_L2, 3) / (fine * part.bevel), 1)
        rise = 8 * (part.lift + 0.6 * part.bevel * inwards * (1 - 0.5 * inwards))
        both = np.stack([rise, np.full_like(rise, tone)], axis=2).astype(np.int16)
        np.copyto(window, both, where=mask[..., None] > 0)
    seen = (canvas[..., 1] > 0).view(np.uint8) * 255
    cover = np.asarray(cv2.resize(seen, shape[::-1], interpolation=cv2.INTER_AREA), np.float32) / 255
    mean = np.asarray(cv2.resize(canvas, shape[::-1], interpolation=cv2.INTER_AREA), np.float32)
    if fine > 1:
        cover, mean = np.asarray(cv2.blur(cover, (3, 3))), np.asarray(cv2.blur(mean, (3, 3)))
    cover += 1e-6
    return np.clip((mean[..., 1] / cover - 1) / 1000, 0, 1), mean[..., 0] / cover / 8
