"""Mask metrics: IoU, Boundary IoU, mean boundary accuracy and pixel accuracies.

Masks are (H, W), axis order (row, col). A prediction is bool (or uint8, non-zero is object); the ground truth is int8:
1 object, 0 background, -1 ignored. Ignored pixels never count. Every score is a float64 in [0, 1]; 1 is perfect.

A function scores one mask. The classes of the same names score many masks against one truth: they do the truth's
share of the work once. A metric of the catalog is called with a truth, and what that gives with each mask. It may have
a ``label`` for tables, and ``takes_band`` where ``ratio`` or ``width`` (see :func:`boundary_iou`) are its options.
"""

from __future__ import annotations

import math
import re

import cv2
import numpy as np

from hrseg_cli.errors import HrsegError


def band_of(text: str) -> dict[str, float]:
    """Keyword arguments of Boundary IoU for a band such as "0.02" or "5px": ``ratio`` of the diagonal, or ``width`` in
    pixels. Raises HrsegError."""
    if pixels := re.fullmatch(r"([1-9]\d*)px", text):
        return {"width": int(pixels.group(1))}
    try:
        ratio = float(text)
    except ValueError:
        ratio = 0.0
    if not 0 < ratio < 1:
        raise HrsegError(f"`band` {text}: write a share of the diagonal such as 0.02, or pixels such as 5px")
    return {"ratio": ratio}


def iou(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Intersection over union of the object. 1 if both are empty, because they agree."""
    return IoU(truth)(prediction)


def boundary_iou(prediction: np.ndarray, truth: np.ndarray, ratio: float = 0.02, width: int | None = None) -> float:
    """Intersection over union of the inner bands along both outlines (Cheng et al., CVPR 2021, arXiv 2103.16562).

    ratio: band width as a fraction of the image diagonal. width: band width in pixels, instead. The relative band is
    wide in a large image (74 px at 2048 x 3072), and an object thinner than twice its width is all band.

    1 if both are empty. This is the plain Boundary IoU, as reported by HQ-SAM; the COCO tools of the paper's authors
    print min(IoU, Boundary IoU).

    Ignored pixels are removed from both masks before the bands are computed, so masks that agree elsewhere get the same
    score. Removing them from the finished bands, as RClicks does, would break this: the prediction inside the ignored
    region would affect its band outside. The drawback is that the border of an ignored region inside the object counts
    as an outline of both masks.
    """
    return BoundaryIoU(truth, ratio, width)(prediction)


def mba(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Mean boundary accuracy: fraction of correct pixels around the true outline, averaged over five widths.

    Source: CascadePSP (Cheng et al., CVPR 2020, arXiv 2005.02551) and its evaluation code; regions as in
    :func:`accuracy_rings`. For a ground truth without an outline (all object or all background) the original divides 0
    by 0; here all pixels count instead, and the score is 1 if there are none.
    """
    return MeanBoundaryAccuracy(truth)(prediction)


class IoU:
    """Intersection over union of mask and object. See :func:`iou`."""

    label = "IoU"

    def __init__(self, truth: np.ndarray) -> None:
        self._object, self._valid = _split(truth)
        self._pixels = cv2.countNonZero(self._object)

    def __call__(self, prediction: np.ndarray) -> float:
        mask = _without_ignored(prediction, self._valid)
        return _share(cv2.countNonZero(mask & self._object), cv2.countNonZero(mask), self._pixels)


class BoundaryIoU:
    """Boundary IoU: intersection over union of the bands along the two outlines. See :func:`boundary_iou`.

    ``width``: the band's width in pixels.

    From click to click only parts of a mask change. The band of the previous mask is kept, and recomputed only within
    ``width`` pixels of the changes. The score is bit-identical.
    """

    label = "bIoU"
    takes_band = True

    def __init__(self, truth: np.ndarray, ratio: float = 0.02, width: int | None = None) -> None:
        mask, self._valid = _split(truth)
        self.width = band_width(truth.shape[0], truth.shape[1], ratio) if width is None else width
        self._band = boundary(mask, self.width)
        self._pixels = cv2.countNonZero(self._band)
        self._seen = np.zeros_like(mask)
        self._seen_band = np.zeros_like(mask)
        self._counts = 0, 0  # pixels of the current band: those also in the ground truth's band, and all

    def __call__(self, prediction: np.ndarray) -> float:
        mask = _without_ignored(prediction, self._valid)
        left, top, columns, rows = cv2.boundingRect(mask ^ self._seen)
        if not rows:
            return _share(*self._counts, self._pixels)
        self._seen = mask
        within = _grown(top, left, rows, columns, 2 * self.width)
        _, _, *whole = cv2.boundingRect(mask)
        if mask[within].size >= whole[0] * whole[1]:  # much has changed: the object's own box is smaller
            self._seen_band = boundary(mask, self.width)
            self._counts = cv2.countNonZero(self._seen_band & self._band), cv2.countNonZero(self._seen_band)
            return _share(*self._counts, self._pixels)
        near = _grown(top, left, rows, columns, self.width)
        old, truth = self._seen_band[near], self._band[near]
        # boundary() sees background beyond the outer window, but no pixel of the inner window is affected by that.
        inner = np.s_[near[0].start - within[0].start :, near[1].start - within[1].start :]
        new = boundary(mask[within], self.width)[inner][: old.shape[0], : old.shape[1]]
        self._counts = (
            self._counts[0] + cv2.countNonZero(new & truth) - cv2.countNonZero(old & truth),
            self._counts[1] + cv2.countNonZero(new) - cv2.countNonZero(old),
        )
        self._seen_band[near] = new
        return _share(*self._counts, self._pixels)


class MeanBoundaryAccuracy:
    """Mean boundary accuracy: share of correct pixels around the true outline. See :func:`mba`."""

    label = "mBA"

    def __init__(self, truth: np.ndarray) -> None:
        mask, self._valid = _split(truth)
        rings = accuracy_rings(mask)
        if not rings.any():
            rings[:] = 1
        rings *= self._valid
        self._where = np.flatnonzero(rings)
        self._ring = rings.ravel()[self._where]
        self._truth = mask.ravel()[self._where]
        self._sizes = _pixels_within(self._ring)

    def __call__(self, prediction: np.ndarray) -> float:
        if not self._where.size:
            return 1.0
        right = _without_ignored(prediction, self._valid).ravel()[self._where] == self._truth
        return float(np.mean(_pixels_within(self._ring[right]) / self._sizes))


class PixelAccuracy:
    """Pixel accuracy: share of correct pixels.

    A small object hardly counts: an empty mask of an object of one percent scores 0.99. 1 if there are no pixels.
    """

    label = "PA"

    def __init__(self, truth: np.ndarray) -> None:
        self._object, self._valid = _split(truth)
        self._objects = cv2.countNonZero(self._object)
        self._background = cv2.countNonZero(self._valid) - self._objects

    def __call__(self, prediction: np.ndarray) -> float:
        found, false = self._in_mask(prediction)
        pixels = self._objects + self._background
        return (found + self._background - false) / pixels if pixels else 1.0

    def _in_mask(self, prediction: np.ndarray) -> tuple[int, int]:
        """How many pixels of object and of background are in the mask."""
        mask = _without_ignored(prediction, self._valid)
        found = cv2.countNonZero(mask & self._object)
        return found, cv2.countNonZero(mask) - found


class MeanPixelAccuracy(PixelAccuracy):
    """Mean pixel accuracy: mean over object and background of the share of its pixels that are correct.

    One that is absent from the truth is left out. 1 if there are no pixels.
    """

    label = "mPA"

    def __call__(self, prediction: np.ndarray) -> float:
        found, false = self._in_mask(prediction)
        pairs = ((found, self._objects), (self._background - false, self._background))
        shares = [right / pixels for right, pixels in pairs if pixels]
        return sum(shares) / len(shares) if shares else 1.0


def band_width(height: int, width: int, ratio: float = 0.02) -> int:
    """Width in pixels of the Boundary IoU band of an image: a fraction of its diagonal, at least 1."""
    return max(1, round(ratio * math.sqrt(height**2 + width**2)))


def boundary(mask: np.ndarray, width: int) -> np.ndarray:
    """The object pixels at most ``width`` steps (8 neighbours) away from background.

    mask: (H, W), bool or uint8. Returns uint8, (H, W), 0 or 1: the mask minus its erosion by a square of side
    2 * width + 1. Everything outside the image is background. Raises HrsegError if ``width`` is below 1.

    A pixel survives the erosion if its square contains only object pixels. Counting them with a running sum costs the
    same for every width. Only the object's bounding box is processed, because all pixels outside it are background.
    """
    if width < 1:
        raise HrsegError(f"the boundary band is {width} pixels wide; it must be at least 1")
    mask = _as_bytes(mask)
    left, top, columns, rows = cv2.boundingRect(mask)
    inside = mask[top : top + rows, left : left + columns]
    side = 2 * width + 1
    if side > min(rows, columns):  # no square fits into the object
        return mask.copy()
    counts = cv2.boxFilter(inside, cv2.CV_32S, (side, side), normalize=False, borderType=cv2.BORDER_CONSTANT)
    lacking = cv2.compare(counts, side * side, cv2.CMP_LT)  # type: ignore[call-overload]
    band = np.zeros_like(mask)
    band[top : top + rows, left : left + columns] = inside & lacking
    return band


def accuracy_rings(mask: np.ndarray) -> np.ndarray:
    """The five nested regions around an outline in which CascadePSP counts correct pixels.

    mask: (H, W), bool or uint8. Returns uint8, (H, W): the first region, 1 to 5, that holds the pixel, 0 for none.
    Region i is the morphological gradient under a disc of radius 1 + int(((H + W) / 300 - 1) / 5 * (i - 1)). The
    image border is not an outline.
    """
    mask = _as_bytes(mask)
    rings = np.zeros_like(mask)
    left, top, columns, rows = cv2.boundingRect(mask)
    radii = [1 + int((sum(mask.shape) / 300 - 1) / 5 * i) for i in range(5)]
    # A disc reaches no further than its radius beyond the object.
    reach = max(radii)
    near = np.s_[max(0, top - reach) : top + rows + reach, max(0, left - reach) : left + columns + reach]
    # The discs are nested, so the regions are too: starting with the widest, each overwrites part of the previous one.
    for number, radius in reversed(list(enumerate(radii, 1))):
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
        rings[near][cv2.morphologyEx(mask[near], cv2.MORPH_GRADIENT, disc) > 0] = number
    return rings


def _pixels_within(ring: np.ndarray) -> np.ndarray:
    """Number of pixels in each of the five nested regions."""
    pixels: np.ndarray = np.cumsum(np.bincount(ring, minlength=6)[1:])
    return pixels


def _split(truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Object mask and valid (not ignored) mask, uint8, 0 or 1."""
    return _as_bytes(truth == 1), _as_bytes(truth != -1)


def _without_ignored(prediction: np.ndarray, valid: np.ndarray) -> np.ndarray:
    if prediction.shape != valid.shape:
        raise ValueError(f"prediction of shape {prediction.shape} does not match ground truth of shape {valid.shape}")
    kept: np.ndarray = _as_bytes(prediction) & valid
    return kept


def _as_bytes(mask: np.ndarray) -> np.ndarray:
    """uint8, 0 or 1, as OpenCV needs; a view if the mask is bool."""
    flags: np.ndarray = mask if mask.dtype == bool else mask != 0
    return flags.view(np.uint8)


def _share(both: int, one: int, other: int) -> float:
    """Intersection over union from pixel counts: of the intersection and of the two masks."""
    either = one + other - both
    return both / either if either else 1.0


def _grown(top: int, left: int, rows: int, columns: int, by: int) -> tuple[slice, slice]:
    """A window extended by ``by`` pixels on each side, clipped at the top and left of the image."""
    return slice(max(0, top - by), top + rows + by), slice(max(0, left - by), left + columns + by)
