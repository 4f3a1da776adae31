"""Average precision by mask IoU and by Boundary IoU, against its definition."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from hrseg_cli.data.masks_out import run_lengths
from hrseg_cli.metrics.masks import boundary_iou, iou
from hrseg_cli.metrics.precision import Instance, average_precision

SIDE = 60
RECALLS = np.linspace(0, 1, 101)


def square(top: int, left: int, side: int = 24) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def instance(
    mask: np.ndarray, score: float = 1.0, image: str = "a", category: Any = 1, crowd: bool = False
) -> Instance:
    return Instance(image, category, run_lengths(mask), score, crowd)


def naive(truths: list[np.ndarray], results: list[np.ndarray], overlap: Any, threshold: float) -> float:
    """AP of one category on one image, from the definition; results by falling score."""
    free, right = list(range(len(truths))), []
    for mask in results:
        found = [(overlap(mask, truths[k]), k) for k in free]
        best = max(found, default=(0.0, -1))
        right.append(best[0] >= threshold)
        if right[-1]:
            free.remove(best[1])
    precision = np.cumsum(right) / np.arange(1, len(right) + 1)
    recall = np.cumsum(right) / len(truths)
    return float(np.mean([max(precision[recall >= wanted], default=0.0) for wanted in RECALLS]))


OBJECTS = [square(2, 2), square(2, 32), square(32, 8)]
RESULTS = [square(2, 3), square(34, 30), square(4, 32), square(32, 11)]  # one pixel off, wrong, two off, three off


@pytest.mark.parametrize("band", [None, {"ratio": 0.02}, {"width": 5}], ids=str)
def test_equals_the_definition(band: dict[str, Any] | None) -> None:
    def overlap(mask: np.ndarray, truth: np.ndarray) -> float:
        return min(iou(mask, truth), boundary_iou(mask, truth, **band)) if band else iou(mask, truth)

    truths = [instance(mask) for mask in OBJECTS]
    results = [instance(mask, 0.9 - k / 10) for k, mask in enumerate(RESULTS)]
    found = average_precision(truths, results, ["a"], band)
    wanted = {threshold: naive(OBJECTS, RESULTS, overlap, threshold) for threshold in np.linspace(0.5, 0.95, 10)}
    assert found["ap"] == pytest.approx(np.mean(list(wanted.values())), abs=1e-9)
    assert found["ap50"] == pytest.approx(wanted[0.5], abs=1e-9)
    assert found["ap75"] == pytest.approx(naive(OBJECTS, RESULTS, overlap, 0.75), abs=1e-9)


def test_the_band_decides_and_perfect_masks_reach_1() -> None:
    """A mask that is one pixel too wide costs a thin band more than it costs the area."""
    perfect = [instance(mask) for mask in OBJECTS]
    assert average_precision(perfect, perfect, ["a"]) == pytest.approx({"ap": 1, "ap50": 1, "ap75": 1})
    assert average_precision(perfect, perfect, ["a"], {"width": 1})["ap"] == pytest.approx(1)
    wide = [instance(square(1, 1, 26)), instance(square(1, 31, 26)), instance(square(31, 7, 26))]
    assert average_precision(perfect, wide, ["a"])["ap75"] == pytest.approx(1)
    assert average_precision(perfect, wide, ["a"], {"width": 1})["ap50"] == 0


def test_images_categories_and_crowds() -> None:
    """Results on other images or of other categories do not count; those in a crowd are neither right nor wrong, and an
    image without results costs recall."""
    truth = instance(OBJECTS[0])
    right, above = instance(OBJECTS[0], 0.5), instance(OBJECTS[2], 0.9)
    assert average_precision([truth], [right, above], ["a"])["ap50"] == pytest.approx(0.5)
    elsewhere = above._replace(image="b")
    assert average_precision([truth], [right, elsewhere], ["a"])["ap50"] == pytest.approx(1)
    assert average_precision([truth], [right, above._replace(category=2)], ["a"])["ap50"] == pytest.approx(1)
    crowd = instance(OBJECTS[2], crowd=True)
    for band in (None, {"width": 1}):
        assert average_precision([truth, crowd], [right, above], ["a"], band)["ap50"] == pytest.approx(1)
    missed = average_precision([truth, truth._replace(image="b")], [right], ["a", "b"])
    assert missed["ap50"] == pytest.approx(51 / 101)
    assert math.isnan(average_precision([crowd], [right], ["a"])["ap"])
