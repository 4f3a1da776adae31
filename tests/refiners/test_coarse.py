"""Coarse masks: recorded ones, and what training relies on."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hrseg_cli.refiners.coarse import coarsened, perturbed, simplified

GOLDEN = Path(__file__).parents[1] / "golden"


class Recorded:
    """The two generators that the recorded masks were drawn from, in place of NumPy's new one."""

    def __init__(self, seed: int) -> None:
        self._numpy, self._python = np.random.RandomState(seed), random.Random(seed)

    def integers(self, *bounds: int) -> int:
        return self._numpy.randint(*bounds)

    def random(self) -> float:
        return self._numpy.rand()

    def normal(self, *arguments: Any) -> np.ndarray:
        return self._numpy.normal(*arguments)

    def choice(self, values: Any, count: int | None = None, replace: bool = True) -> Any:
        if count is None:
            return self._python.choice(list(values))
        assert not replace
        return self._python.sample(range(values), count)


@pytest.fixture
def truth() -> np.ndarray:
    """A disk with a hole."""
    rows, cols = np.indices((240, 320))
    away = np.hypot(rows - 120, cols - 150)
    return np.asarray((away < 90) & (away > 30))


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.count_nonzero(one & other) / np.count_nonzero(one | other))


@pytest.mark.parametrize("number", range(4))
def test_recorded_masks(number: int) -> None:
    """To the last pixel, from the same random numbers in the same order."""
    with np.load(GOLDEN / "coarse_masks.npz") as file:
        truth, polygon, coarse = (file[f"{name}{number}"] for name in ("gt", "poly", "coarse"))
    rng: Any = Recorded(number)
    np.testing.assert_array_equal(simplified(truth, rng), polygon)
    rng = Recorded(number)
    np.testing.assert_array_equal(coarsened(truth, rng, reference=True), coarse)


@pytest.mark.parametrize("target", [0.9, 0.8, 0.6])
def test_iou_with_the_truth_is_just_below_the_target(truth: np.ndarray, target: float) -> None:
    scores = [iou(coarsened(truth, np.random.default_rng(seed), target), truth) for seed in range(12)]
    assert max(scores) < target
    assert np.mean(scores) > target - 0.03


def test_the_public_code_may_miss_its_target(truth: np.ndarray) -> None:
    """It measures against the simplified outline."""
    scores = [iou(coarsened(truth, np.random.default_rng(seed), reference=True), truth) for seed in range(12)]
    assert max(scores) >= 0.8


def test_a_seed_decides(truth: np.ndarray) -> None:
    one, same, other = (coarsened(truth, np.random.default_rng(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_holes_stay_holes(truth: np.ndarray) -> None:
    rough = simplified(truth, np.random.default_rng(0))
    assert rough[120, 80]
    assert not rough[120, 150]
    assert (rough != truth).any()


def test_values_of_a_mask_do_not_matter(truth: np.ndarray) -> None:
    masks = [coarsened(truth.astype(np.uint8) * value, np.random.default_rng(0)) for value in (1, 255)]
    np.testing.assert_array_equal(*masks)


def test_nothing_to_coarsen() -> None:
    """No object, one too small for an outline, and masks too thin for rectangles: always a mask of the same shape."""
    rng = np.random.default_rng(0)
    assert not coarsened(np.zeros((30, 40), bool), rng).any()
    dot = np.zeros((30, 40), bool)
    dot[5:7, 5:7] = True
    np.testing.assert_array_equal(simplified(dot, rng), dot)
    for shape in ((1, 40), (2, 2), (40, 1)):
        thin = np.ones(shape, bool)
        np.testing.assert_array_equal(perturbed(thin, rng, 0.5), thin)
        assert coarsened(thin, rng).shape == shape


def test_the_truth_is_left_alone(truth: np.ndarray) -> None:
    truth.flags.writeable = False
    coarsened(truth, np.random.default_rng(0))
