"""FocusCut: refine the mask with close-up views around the clicks that corrected details.

Source: FocusCut (Lin et al., CVPR 2022), sections 3.2 and 3.3, and its public code. It works with any click model:
:func:`views` yields the views to run the model on and is sent its probabilities.

Masks are bool (H, W), probabilities float32 (H, W) in [0, 1], images uint8 (H, W, 3), RGB. Distances count steps to the
eight neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from hrseg_cli.distances import distance_to_zero
from hrseg_cli.interaction import Click
from hrseg_cli.refiners import Look, check_sizes

SMALLEST = 5  # pixels; views of this radius or less are skipped


class Focus(NamedTuple):
    """A place to refine after this and every later click; ``radius`` in pixels."""

    click: Click
    radius: int


def focus(click: Click, before: np.ndarray, after: np.ndarray) -> Focus | None:
    """The place to refine after a click that changed the mask ``before`` to ``after``; None if it changed too much to
    correct a detail."""
    radius, is_detail = radius_of(click, before, after)
    return Focus(click, radius) if is_detail else None


def radius_of(click: Click, before: np.ndarray, after: np.ndarray) -> tuple[int, bool]:
    """The radius of a click's correction, and whether it corrects a detail.

    If the click did not change its own pixel, the radius is the distance to the nearest outline in ``before``, and it
    is a detail. Otherwise the radius covers the part that changed, which is a detail if it is smaller than a fifth of
    the object.
    """
    row, col = int(click.row), int(click.col)
    changed = before != after
    if not changed[row, col]:
        return max(_to_outline(before, row, col), SMALLEST), True
    part = _part(changed, row, col)
    is_detail = int(np.count_nonzero(part)) < 0.2 * int(np.count_nonzero(after))
    return max(_reach(part, row, col), SMALLEST), is_detail


def _to_outline(mask: np.ndarray, row: int, col: int) -> int:
    """Steps from a pixel to the nearest one with the other value; 0 if there is none. The image border does not
    count."""
    same = (mask == mask[row, col]).astype(np.uint8)
    if same.all():
        return 0
    return int(cv2.distanceTransform(same, cv2.DIST_C, 3)[row, col])


def _part(mask: np.ndarray, row: int, col: int) -> np.ndarray:
    """The 4-connected component of a mask that contains a pixel."""
    _, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    return np.asarray(labels == labels[row, col])


def _reach(mask: np.ndarray, row: int, col: int) -> int:
    """Steps from a pixel to the farthest pixel of a mask."""
    rows, cols = np.nonzero(mask)
    return int(max(np.abs(rows - row).max(), np.abs(cols - col).max()))


def next_scale(before: np.ndarray, after: np.ndarray, tolerance: float = 2.0) -> float | None:
    """Scale of the next view relative to this one, at most 1.1, so that it covers the change; None if nothing changed
    and no further view is needed.

    before, after: masks of a view, bool (S, S). tolerance: minimum thickness of a change, in pixels of a view of size
    384.
    """
    side = len(before)
    distance = distance_to_zero(before != after)
    thick = distance >= tolerance * side / 384
    if not thick.any():
        return None
    return 1.1 * _reach(thick, side // 2, side // 2) / (side // 2)


def views(
    image: np.ndarray,
    probability: np.ndarray,
    focuses: Sequence[Focus],
    clicks: Sequence[Click],
    *,
    side: int = 384,
    turns: int = 3,
    scale: float = 1.75,
    ratio: float | None = None,
) -> Generator[Look, np.ndarray, np.ndarray]:
    """Yield each view as a :class:`Look` at an enlarged square, (S, S), 0 beyond the image border; expect the model's
    probability for it, float32 (S, S), and return that of the image.

    In each turn every focus gets a view. Overlapping results are averaged, replace the previous probabilities, and
    give the mask that the next turn starts from. Views shrink around what changes, and end when nothing changes. No
    view is wider than the image's longer side (the public code has no limit, which takes gigabytes on large images).

    probability: the current probability of the whole image, (H, W). side: S. scale: of the first views, as a multiple
    of their radius. ratio: fixed change of the scale per turn, with all views from the initial mask: the paper's fast
    variant.
    """
    check_sizes(image, probability)
    result = probability.copy()
    mask = result > 0.5
    widest = max(mask.shape) // 2
    scales: list[float | None] = [min(scale, widest / place.radius) for place in focuses]
    latest: dict[int, tuple[int, np.ndarray]] = {}  # focus -> radius of its last view, and the probability in it
    for _ in range(turns):
        for number, place in enumerate(focuses):
            now = scales[number]
            radius = int(place.radius * now) if now is not None else 0
            if now is None or radius <= SMALLEST:
                continue
            view = _view(image, mask, place.click, clicks, radius, side)
            answer = yield view
            latest[number] = radius, answer
            change = next_scale(view.previous, answer > 0.5) if ratio is None else ratio
            scales[number] = None if change is None else min(max(now * change, 0.2), widest / place.radius)
        _average(result, [(focuses[number].click, *one) for number, one in latest.items()])
        if ratio is None:
            mask = result > 0.5
    return result


def follow(answer: Callable[[Look], np.ndarray], generator: Generator[Look, np.ndarray, np.ndarray]) -> np.ndarray:
    """The result of :func:`views` if ``answer`` computes the probability, float32 (S, S), of each view."""
    try:
        view = next(generator)
        while True:
            view = generator.send(answer(view))
    except StopIteration as end:
        return np.asarray(end.value)


def _view(image: np.ndarray, mask: np.ndarray, centre: Click, clicks: Sequence[Click], radius: int, side: int) -> Look:
    top, left, width = int(centre.row) - radius, int(centre.col) - radius, 2 * radius + 1
    size = side, side
    picture = cv2.resize(_window(image, top, left, width), size, interpolation=cv2.INTER_LINEAR)
    previous = cv2.resize(_window(mask.astype(np.uint8), top, left, width), size, interpolation=cv2.INTER_NEAREST) > 0
    placed = [(int(click.row) - top, int(click.col) - left, click.positive) for click in clicks]
    inside = tuple(
        Click(int((row + 0.5) * side / width), int((col + 0.5) * side / width), positive)
        for row, col, positive in placed
        if 0 <= row < width and 0 <= col < width
    )
    return Look(picture, previous, inside)


def _window(x: np.ndarray, top: int, left: int, width: int) -> np.ndarray:
    """A square of an array (H, W, ...), filled with 0 beyond its border."""
    square = np.zeros((width, width, *x.shape[2:]), x.dtype)
    rows, cols = (slice(max(0, start), start + width) for start in (top, left))
    part = x[rows, cols]
    square[rows.start - top :, cols.start - left :][: part.shape[0], : part.shape[1]] = part
    return square


def _average(result: np.ndarray, answers: Sequence[tuple[Click, int, np.ndarray]]) -> None:
    """Write the mean of overlapping squares around clicks into ``result``."""
    total, count = np.zeros(result.shape, np.float32), np.zeros(result.shape, np.uint16)
    for click, radius, answer in answers:
        top, left, width = int(click.row) - radius, int(click.col) - radius, 2 * radius + 1
        place = np.s_[max(0, top) : top + width, max(0, left) : left + width]
        square = cv2.resize(answer, (width, width), interpolation=cv2.INTER_LINEAR)
        inside = total[place]
        inside += square[max(0, -top) :, max(0, -left) :][: inside.shape[0], : inside.shape[1]]
        count[place] += 1
    np.divide(total, count, out=result, where=count > 0)
