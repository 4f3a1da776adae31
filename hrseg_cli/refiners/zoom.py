"""Refine a mask by running the click model on a crop around it: zoom-in, without new clicks."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import cv2
import numpy as np

from hrseg_cli.interaction import Click
from hrseg_cli.refiners import Count, Look, Positive, check_sizes


def zoom_in(
    image: np.ndarray,
    probability: np.ndarray,
    *,
    clicks: Sequence[Click] = (),
    enlarge: int = 1,
    side: Count = 512,
    expansion: Positive = 1.4,
    rounds: Count = 1,
) -> Generator[Look, np.ndarray, np.ndarray]:
    """The click model itself, on a crop around the mask, which is its previous mask.

    side: longer side of the crop in pixels as the model sees it, times ``enlarge`` (of the model: InteractiveModel).
    expansion: side of the crop divided by that of the object's box. rounds: number of predictions, each starting from
    the last.
    """
    check_sizes(image, probability)
    result = np.array(probability, np.float32)
    for _ in range(rounds):
        place = _around(result, expansion)
        if place is None:
            break
        part = result[place]
        scale = side * enlarge / max(part.shape)
        size = max(1, round(part.shape[1] * scale)), max(1, round(part.shape[0] * scale))  # width, height
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        picture, previous = cv2.resize(image[place], size, interpolation=how), cv2.resize(part, size, interpolation=how)
        answer = yield Look(picture, previous, _inside(clicks, place, part.shape, size[::-1]))
        result[:] = 0
        result[place] = cv2.resize(answer, part.shape[::-1], interpolation=cv2.INTER_LINEAR)
    return result


def _around(probability: np.ndarray, expansion: float) -> tuple[slice, slice] | None:
    """The box of the object, expanded about its centre and clipped to the image; None for an empty mask."""
    left, top, cols, rows = cv2.boundingRect((probability > 0.5).astype(np.uint8))
    if not rows:
        return None
    across, down = (round(length * max(0.0, expansion - 1) / 2) for length in (cols, rows))
    return slice(max(0, top - down), top + rows + down), slice(max(0, left - across), left + cols + across)


def _inside(
    clicks: Sequence[Click], place: tuple[slice, slice], size: tuple[int, ...], to: tuple[int, ...]
) -> tuple[Click, ...]:
    """The clicks in a part of the image of ``size`` that is resized to ``to``, both (height, width)."""
    placed = ((click.row - place[0].start, click.col - place[1].start, click.positive) for click in clicks)
    return tuple(
        Click(row * to[0] / size[0], col * to[1] / size[1], positive)
        for row, col, positive in placed
        if 0 <= row < size[0] and 0 <= col < size[1]
    )
