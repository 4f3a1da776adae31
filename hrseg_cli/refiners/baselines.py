"""Classical refiners without learning, as baselines for learned ones.

Each takes an image, uint8 (H, W, 3), and a probability, float32 (H, W) in [0, 1], and returns a probability of the same
shape. A mask counts as probabilities 0 and 1. Inputs are not modified.
"""

from __future__ import annotations

import logging
from typing import Annotated

import cv2
import numpy as np
from pydantic import Field

from hrseg_cli import cutting
from hrseg_cli.distances import distance_to_zero
from hrseg_cli.refiners import Count, Positive, Share, check_sizes
from hrseg_cli.refiners.lattice import Lattice

log = logging.getLogger(__name__)

BLANK = 2  # an image whose channels span no more grey levels is treated as blank
OBJECT = (cv2.GC_FGD, cv2.GC_PR_FGD)
STRIP = 2**20  # pixels that the guided filter processes at a time; a large image at once would take gigabytes


def guided_filter(
    image: np.ndarray,
    probability: np.ndarray,
    *,
    radius: Count | None = None,
    smoothness: Positive = 1e-4,
    step: Count | None = None,
) -> np.ndarray:
    """Guided filter: fit the probability as a linear function of colour in every window, which follows image edges.

    radius: of the square windows, in pixels; by default a tenth of the square root of the object's area. smoothness:
    variance of colours, in [0, 1], below which a window counts as flat and is averaged. step: factor by which the image
    is downscaled for fitting; 1 is exact, the default is an eighth of the radius.

    Sources: He et al., "Guided Image Filtering" (ECCV 2010), section 3.5; for steps above 1 He and Sun, "Fast Guided
    Filter" (arXiv 1505.00996).
    """
    probability = _checked(image, probability)
    height, width = probability.shape
    radius = max(2, round(0.1 * float(probability.sum()) ** 0.5)) if radius is None else radius
    step = min(max(1, radius // 8 if step is None else step), height, width)
    picture, value = image, probability
    if step > 1:
        picture, value = (
            cv2.resize(x, (width // step, height // step), interpolation=cv2.INTER_AREA) for x in (image, probability)
        )
    lines = _lines(picture, value, max(1, round(radius / step)), smoothness)
    if step > 1:
        lines = cv2.resize(lines, (width, height), interpolation=cv2.INTER_LINEAR)
    result = lines[..., 3]
    for channel in range(3):
        result += lines[..., channel] * (image[..., channel] / np.float32(255))
    return np.ascontiguousarray(result.clip(0, 1))


def _lines(image: np.ndarray, value: np.ndarray, radius: int, smoothness: float) -> np.ndarray:
    """float32 (H, W, 4): three slopes and an offset per pixel, averaged over its windows."""
    lines = np.empty((*value.shape, 4), np.float32)
    strip = max(2 * radius, STRIP // value.shape[1])
    for top in range(0, len(value), strip):
        rows = slice(max(0, top - 2 * radius), top + strip + 2 * radius)
        fitted = _fitted(image[rows] / 255, value[rows].astype(np.float64), radius, smoothness)
        lines[top : top + strip] = fitted[top - rows.start :][:strip]
    return lines


def _fitted(guide: np.ndarray, value: np.ndarray, radius: int, smoothness: float) -> np.ndarray:
    side = 2 * radius + 1

    def summed(x: np.ndarray) -> np.ndarray:
        return np.asarray(cv2.boxFilter(x, -1, (side, side), normalize=False, borderType=cv2.BORDER_CONSTANT))

    pixels = summed(np.ones_like(value))

    def mean(x: np.ndarray) -> np.ndarray:
        return np.asarray(summed(x) / (pixels if x.ndim == 2 else pixels[..., None]))

    colour, level = mean(guide), mean(value)
    along = mean(guide * value[..., None]) - colour * level[..., None]
    variance = {
        (i, j): mean(guide[..., i] * guide[..., j]) - colour[..., i] * colour[..., j] + smoothness * (i == j)
        for i in range(3)
        for j in range(i, 3)
    }
    slope = _solved(variance, along)
    offset = level - (slope * colour).sum(-1)
    return np.concatenate([mean(slope), mean(offset)[..., None]], -1)


def _solved(matrix: dict[tuple[int, int], np.ndarray], vector: np.ndarray) -> np.ndarray:
    """Solutions (H, W, 3) of symmetric 3 x 3 systems, given by upper triangle and right-hand side (H, W, 3)."""
    a, b, c, d, e, f = (matrix[place] for place in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)))
    aa, ab, ac, bb, bc, cc = d * f - e * e, c * e - b * f, b * e - c * d, a * f - c * c, b * c - a * e, a * d - b * b
    x, y, z = np.moveaxis(vector, -1, 0)
    solution = np.stack([aa * x + ab * y + ac * z, ab * x + bb * y + bc * z, ac * x + bc * y + cc * z], -1)
    return np.asarray(solution / (a * aa + b * ab + c * ac)[..., None])


def dense_crf(
    image: np.ndarray,
    probability: np.ndarray,
    *,
    appearance: float = 4.0,
    distance: Positive = 60.0,
    colour: Positive = 5.0,
    smoothness: float = 3.0,
    near: Positive = 3.0,
    trust: Annotated[float, Field(ge=0.5, lt=1)] = 0.7,
    iterations: Count = 5,
    largest: Count = 2**19,
) -> np.ndarray:
    """Mean field of a fully connected CRF: similar pixels and neighbouring pixels tend to have the same label.

    appearance: weight of pairs of similar colour (``colour``, grey levels) and position (``distance``, pixels); both
    are standard deviations. smoothness: weight of pairs of neighbours (``near``, pixels). trust: more confident
    probabilities are clipped to this one, so that a binary mask can change. largest: number of pixels; a larger image
    is downscaled to it, and the change of the probability is enlarged.

    Source: Krähenbühl and Koltun (NeurIPS 2011, arXiv 1210.5644), sections 2 and 3. As in the authors' code, kernels
    are divided by the square root of both pixels' sums, and each pixel also sends a message to itself.
    """
    probability = _checked(image, probability)
    size = height, width = probability.shape
    if height * width > largest:
        share = (largest / (height * width)) ** 0.5
        to = max(1, int(width * share)), max(1, int(height * share))
        small = cv2.resize(probability, to, interpolation=cv2.INTER_AREA)
        solved = dense_crf(
            cv2.resize(image, to, interpolation=cv2.INTER_AREA),
            small,
            appearance=appearance,
            distance=distance * share,
            colour=colour,
            smoothness=smoothness,
            near=near * share,
            trust=trust,
            iterations=iterations,
            largest=largest,
        )
        change = cv2.resize(solved - small, (width, height), interpolation=cv2.INTER_LINEAR)
        return np.asarray((probability + change).clip(0, 1))
    rows, cols = np.indices(size, np.float32)
    places = np.stack([rows / distance, cols / distance, *np.moveaxis(image / np.float32(colour), -1, 0)], -1)
    lattice = Lattice(places.reshape(-1, 5))
    window = 2 * min(int(4 * near + 0.5), max(size)) + 1

    def alike(x: np.ndarray) -> np.ndarray:
        return lattice.blur(x.ravel()).reshape(size)

    def close(x: np.ndarray) -> np.ndarray:
        return np.asarray(cv2.GaussianBlur(x, (window, window), near, borderType=cv2.BORDER_CONSTANT))

    ones = np.ones(size, np.float32)
    terms = [(weight, blur, blur(ones) ** -0.5) for weight, blur in ((appearance, alike), (smoothness, close))]
    unary = probability.clip(1 - trust, trust)
    unary = np.log(unary / (1 - unary))
    belief = unary
    for _ in range(iterations):
        vote = np.tanh(belief / 2)  # object minus background
        belief = unary + sum(weight * scale * blur(scale * vote) for weight, blur, scale in terms)
    return np.asarray(1 / (1 + np.exp(-belief)), np.float32)


def graph_cut(
    image: np.ndarray,
    probability: np.ndarray,
    *,
    width: Count | None = None,
    unsure: Share = 0.1,
    rounds: Count = 1,
    max_side: Count = 640,
) -> np.ndarray:
    """OpenCV's graph cut, which reassigns a band along the outline, given certain object and certain background.

    width: of the band on each side of the outline, in pixels; by default a twentieth of the square root of the object's
    area. unsure: pixels whose probability is further than this from both 0 and 1 are reassigned too. rounds: of graph
    cut and colour models. max_side: if the surroundings of the band are larger, they are downscaled to this longer
    side. Nothing changes outside the band. A blank image, or one whose cut takes too long (:mod:`hrseg_cli.cutting`),
    keeps its probabilities.

    Source: Rother et al., "GrabCut" (SIGGRAPH 2004).
    """
    probability = _checked(image, probability)
    mask = (probability > 0.5).astype(np.uint8)
    area = int(mask.sum())
    if not 0 < area < mask.size:
        return probability.copy()
    width = max(3, round(0.05 * area**0.5)) if width is None else width
    inwards, outwards = distance_to_zero(mask), distance_to_zero(1 - mask)
    band = np.maximum(inwards, outwards) <= width
    band |= (probability > unsure) & (probability < 1 - unsure)
    labels = np.where(band, np.where(mask, cv2.GC_PR_FGD, cv2.GC_PR_BGD), np.where(mask, cv2.GC_FGD, cv2.GC_BGD))
    place = _around(band, 3 * width)
    found = _cut(image[place], labels[place].astype(np.uint8), rounds, max_side)
    result = probability.copy()
    if found is not None:
        np.copyto(result[place], found, where=band[place])
    return result


def _cut(picture: np.ndarray, labels: np.ndarray, rounds: int, max_side: int) -> np.ndarray | None:
    """The share of object, float32 (h, w), after the cut; None if there is no cut."""
    size = labels.shape[::-1]
    scale = min(1.0, max_side / max(size))
    if scale < 1:
        small = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
        picture = cv2.resize(picture, small, interpolation=cv2.INTER_AREA)
        labels = cv2.resize(labels, small, interpolation=cv2.INTER_NEAREST)
    if np.ptp(picture, axis=(0, 1)).max() <= BLANK or len(np.unique(np.isin(labels, OBJECT))) == 1:
        return None
    found = cutting.cut(np.ascontiguousarray(picture), np.ascontiguousarray(labels), rounds)
    if found is None:
        log.warning("graph cut: exceeded its time limit on this image; the mask is unchanged")
        return None
    return np.asarray(cv2.resize(np.isin(found, OBJECT).astype(np.float32), size, interpolation=cv2.INTER_LINEAR))


def _around(band: np.ndarray, margin: int) -> tuple[slice, slice]:
    """The bounding box of a band with a margin, clipped to the image."""
    left, top, cols, rows = cv2.boundingRect(band.astype(np.uint8))
    down = slice(max(0, top - margin), top + rows + margin)
    return down, slice(max(0, left - margin), left + cols + margin)


def _checked(image: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """The probability or mask as float32."""
    check_sizes(image, probability)
    return np.asarray(probability, np.float32)
