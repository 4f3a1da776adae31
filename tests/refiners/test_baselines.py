"""Plain refiners against the same thing written out slowly."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import cv2
import numpy as np
import pytest

from hrseg_cli import cutting
from hrseg_cli.errors import HrsegError
from hrseg_cli.refiners import baselines
from hrseg_cli.refiners.baselines import dense_crf, graph_cut, guided_filter
from hrseg_cli.refiners.lattice import Lattice

Refiner = Callable[..., np.ndarray]
REFINERS = (partial(guided_filter, radius=4), dense_crf, graph_cut)


@pytest.fixture(scope="module")
def scene() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A noisy picture of a disk, the disk, and a coarse probability three pixels beside it."""
    rows, cols = np.indices((24, 30))
    truth = (rows - 12) ** 2 + (cols - 15) ** 2 < 64
    noise = np.random.default_rng(0).integers(-8, 9, (24, 30, 3))
    image = (np.where(truth[..., None], (180, 90, 60), (60, 100, 140)) + noise).astype(np.uint8)
    return image, truth, np.roll(truth, 3, 1).astype(np.float32)


def iou(probability: np.ndarray, truth: np.ndarray) -> float:
    mask = probability > 0.5
    return float(np.count_nonzero(mask & truth) / np.count_nonzero(mask | truth))


# All of them


@pytest.mark.parametrize("refiner", REFINERS)
def test_a_coarse_mask_gets_better(refiner: Refiner, scene: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    image, truth, coarse = scene
    for array in scene:
        array.flags.writeable = False
    refined = refiner(image, coarse)
    assert refined.dtype == np.float32
    assert refined.shape == coarse.shape
    assert 0 <= refined.min() <= refined.max() <= 1
    assert iou(refined, truth) > iou(coarse, truth) + 0.1


@pytest.mark.parametrize("refiner", REFINERS)
def test_a_mask_counts_as_probabilities(refiner: Refiner, scene: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    image, _, coarse = scene
    for mask in (coarse > 0, coarse.astype(np.uint8), coarse.astype(float)):
        np.testing.assert_array_equal(refiner(image, mask), refiner(image, coarse))


@pytest.mark.parametrize("refiner", REFINERS)
def test_a_mask_of_another_size_is_refused(refiner: Refiner) -> None:
    """Also where both would be resized to the same."""
    with pytest.raises(HrsegError, match=r"\(40, 30\)"):
        refiner(np.zeros((30, 40, 3), np.uint8), np.zeros((40, 30), np.float32))


@pytest.mark.parametrize("refiner", REFINERS)
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (37, 2)])
@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_masks_of_one_kind_stay_so(refiner: Refiner, size: tuple[int, int], level: float) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    refined = refiner(image, np.full(size, level, np.float32))
    assert np.isfinite(refined).all()
    assert np.ptp(refined) < 0.02
    assert abs(refined - level).max() < 0.06


# Guided filter


def fitted_in_every_window(image: np.ndarray, value: np.ndarray, radius: int, smoothness: float) -> np.ndarray:
    """He et al., equations (19) to (21), one window after the other."""
    guide, size = image / 255, value.shape

    def window(row: int, col: int) -> tuple[slice, slice]:
        return slice(max(0, row - radius), row + radius + 1), slice(max(0, col - radius), col + radius + 1)

    slopes, offsets = np.zeros((*size, 3)), np.zeros(size)
    for place in np.ndindex(*size):
        colours, values = guide[window(*place)].reshape(-1, 3), value[window(*place)].ravel()
        along = (colours * values[:, None]).mean(0) - colours.mean(0) * values.mean()
        slopes[place] = np.linalg.solve(np.cov(colours.T, bias=True) + smoothness * np.eye(3), along)
        offsets[place] = values.mean() - slopes[place] @ colours.mean(0)
    result = np.zeros(size)
    for place in np.ndindex(*size):
        result[place] = slopes[window(*place)].reshape(-1, 3).mean(0) @ guide[place] + offsets[window(*place)].mean()
    return result.clip(0, 1)


@pytest.mark.parametrize(("radius", "smoothness"), [(4, 1e-3), (1, 1e-4), (40, 1e-2)])
def test_guided_filter_by_its_definition(
    scene: tuple[np.ndarray, np.ndarray, np.ndarray], radius: int, smoothness: float
) -> None:
    image, _, coarse = scene
    expected = fitted_in_every_window(image, coarse.astype(float), radius, smoothness)
    filtered = guided_filter(image, coarse, radius=radius, smoothness=smoothness, step=1)
    np.testing.assert_allclose(filtered, expected, atol=1e-5)


def test_guided_filter_in_steps_is_close_to_the_exact_one() -> None:
    rows, cols = np.indices((200, 260))
    truth = np.hypot(rows - 100, cols - 120) < 70
    image = cv2.GaussianBlur(np.where(truth[..., None], (180, 90, 60), (60, 100, 140)).astype(np.float32), (5, 5), 0)
    coarse = np.roll(truth, 6, 1).astype(np.float32)
    exact, fast = (guided_filter(image.astype(np.uint8), coarse, radius=16, step=step) for step in (1, None))
    assert abs(fast - exact).mean() < 0.01
    assert iou(fast, truth) > iou(coarse, truth) + 0.05


def test_strips_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    image, value = rng.integers(0, 256, (97, 20, 3)).astype(np.uint8), rng.random((97, 20)).astype(np.float32)
    whole = guided_filter(image, value, radius=5, step=1)
    monkeypatch.setattr(baselines, "STRIP", 20 * 13)
    np.testing.assert_allclose(guided_filter(image, value, radius=5, step=1), whole, atol=1e-6)


# Dense CRF


def mean_field_over_all_pairs(
    image: np.ndarray,
    probability: np.ndarray,
    appearance: float,
    distance: float,
    colour: float,
    smoothness: float,
    near: float,
) -> np.ndarray:
    """Krähenbühl and Koltun, algorithm 1, with two labels, every pair of pixels and five rounds."""
    places = np.indices(probability.shape).reshape(2, -1).T.astype(float)
    colours = image.reshape(-1, 3).astype(float)
    away = np.square(places[:, None] - places).sum(-1)
    unlike = np.square(colours[:, None] - colours).sum(-1)
    kernels = [
        appearance * normalised(np.exp(-away / (2 * distance**2) - unlike / (2 * colour**2))),
        smoothness * normalised(np.exp(-away / (2 * near**2))),
    ]
    clipped = probability.ravel().clip(0.3, 0.7)
    unary = -np.log(np.stack([1 - clipped, clipped]))
    belief = softmax(-unary)
    for _ in range(5):
        heard = sum((kernel @ belief.T).T for kernel in kernels)
        belief = softmax(-unary - heard[::-1])  # Potts: what is heard for the other label counts against this one
    return np.asarray(belief[1].reshape(probability.shape))


def normalised(kernel: np.ndarray) -> np.ndarray:
    sums = kernel.sum(1)
    return np.asarray(kernel / np.sqrt(sums[:, None] * sums))


def softmax(x: np.ndarray) -> np.ndarray:
    raised = np.exp(x - x.max(0))
    return np.asarray(raised / raised.sum(0))


@pytest.mark.parametrize(
    "options",
    [
        {"appearance": 4, "distance": 60, "colour": 8, "smoothness": 3, "near": 3},
        {"appearance": 10, "distance": 6, "colour": 20, "smoothness": 1, "near": 2},
        {"appearance": 6, "distance": 10, "colour": 40, "smoothness": 0, "near": 1},
        {"appearance": 0, "distance": 10, "colour": 40, "smoothness": 3, "near": 2},
    ],
)
def test_dense_crf_is_close_to_all_pairs(
    scene: tuple[np.ndarray, np.ndarray, np.ndarray], options: dict[str, float]
) -> None:
    """The lattice's Gaussian is piecewise linear; the mask is the same, and probabilities within a few hundredths."""
    image, _, coarse = scene
    exact, ours = mean_field_over_all_pairs(image, coarse, **options), dense_crf(image, coarse, **options)
    tolerance = 0.05 if options["appearance"] else 1e-3
    np.testing.assert_allclose(ours, exact, atol=tolerance)
    unclear = abs(exact - 0.5) < tolerance
    np.testing.assert_array_equal((ours > 0.5)[~unclear], (exact > 0.5)[~unclear])


def test_lattice_is_close_to_a_gaussian() -> None:
    """In two dimensions, with many positions in each cell, weighted means differ by a few percent."""
    rng = np.random.default_rng(0)
    positions = rng.random((900, 2)) * 6
    values = np.sin(positions[:, 0]).astype(np.float32)
    kernel = np.exp(-0.5 * np.square(positions[:, None] - positions).sum(-1))
    lattice = Lattice(positions)
    ours = lattice.blur(values) / lattice.blur(np.ones(900, np.float32))
    away = abs(ours - kernel @ values / kernel.sum(1))
    assert away.max() < 0.07
    assert away.mean() < 0.02


def test_a_single_value_spreads_alike_to_all_sides() -> None:
    """Symmetric and falling with distance: no axis of the lattice is forgotten or turned round."""
    step = np.array([0.8, 0, 0])
    directions = [np.roll(step, axis) * sign for axis in range(3) for sign in (1, -1)]
    steps = np.random.default_rng(0).random((200, 3)) * 3
    far, near = [], []
    for start in steps:  # the lattice's cells lie differently around each
        ring = start + np.array([np.zeros(3), *directions, *(3 * d for d in directions)])
        crowd = np.concatenate([ring, start + np.random.default_rng(1).normal(0, 1.5, (300, 3))])
        spread = Lattice(crowd).blur((np.arange(len(crowd)) == 0).astype(np.float32))
        near.append(spread[1:7] / spread[0])
        far.append(spread[7:13] / spread[0])
    np.testing.assert_allclose(np.mean(near, 0), np.exp(-0.5 * 0.8**2), atol=0.1)
    assert np.ptp(np.mean(near, 0)) < 0.05
    assert np.max(np.mean(far, 0)) < 0.1


def test_a_large_image_is_solved_small(scene: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    image, truth, coarse = (cv2.resize(part.astype(np.float32), (240, 192)) for part in scene)
    refined = dense_crf(image.astype(np.uint8), coarse, distance=60, near=8, largest=3000)
    assert refined.shape == (192, 240)
    assert iou(refined, truth > 0.5) > iou(coarse, truth > 0.5) + 0.1


def test_sigmas_too_small_to_number_the_lattice_are_refused() -> None:
    positions = np.array([[0.0] * 5, [1e5] * 5])
    with pytest.raises(HrsegError, match="increase them"):
        Lattice(positions)


# Graph cut


def test_outside_the_band_nothing_changes(scene: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    image, _, coarse = (cv2.resize(part.astype(np.float32), (300, 240)) for part in scene)
    soft = np.where(coarse > 0.5, np.float32(0.95), np.float32(0.05))
    refined = graph_cut(image.astype(np.uint8), soft, width=12)
    mask = (soft > 0.5).astype(np.uint8)
    band = sum(cv2.distanceTransform(x, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for x in (mask, 1 - mask)) <= 12
    np.testing.assert_array_equal(refined[~band], soft[~band])
    assert (refined[band] != soft[band]).any()


def test_a_large_band_is_cut_small(scene: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    image, truth, coarse = (cv2.resize(part.astype(np.float32), (480, 384)) for part in scene)
    refined = graph_cut(image.astype(np.uint8), coarse, width=60, max_side=200)
    assert iou(refined, truth > 0.5) > 0.97


def test_pixels_that_nobody_is_sure_of_are_decided() -> None:
    """A doubtful island far from the outline: background, for it has the background's colour."""
    image = np.random.default_rng(0).integers(0, 40, (80, 120, 3)).astype(np.uint8)
    image[20:60, 10:50] += 150
    probability = np.full((80, 120), 0.02, np.float32)
    probability[20:60, 10:50] = 0.98
    probability[30:40, 90:100] = 0.6
    refined = graph_cut(image, probability, width=3)
    assert refined[30:40, 90:100].max() < 0.5
    assert refined[25:55, 15:45].min() > 0.5


def test_no_cut_in_time_and_blank_pictures_keep_the_mask(
    scene: tuple[np.ndarray, np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    image, _, coarse = scene
    monkeypatch.setattr(cutting, "cut", lambda *_: None)
    np.testing.assert_array_equal(graph_cut(image, coarse), coarse)
    assert "time limit" in caplog.text
    monkeypatch.setattr(cutting, "cut", lambda *_: pytest.fail("a blank picture is not cut"))
    np.testing.assert_array_equal(graph_cut(np.full_like(image, 90), coarse), coarse)
