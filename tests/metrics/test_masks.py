"""Mask metrics against recorded reference answers and against their definitions, written out slowly."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hrseg_cli import catalog
from hrseg_cli.errors import HrsegError
from hrseg_cli.metrics.masks import (
    BoundaryIoU,
    IoU,
    MeanBoundaryAccuracy,
    MeanPixelAccuracy,
    PixelAccuracy,
    accuracy_rings,
    band_of,
    band_width,
    boundary,
    boundary_iou,
    iou,
    mba,
)

GOLDEN = Path(__file__).parent.parent / "golden"
BIOU = json.loads((GOLDEN / "f08_boundary_iou.json").read_text())
MBA = json.loads((GOLDEN / "f09_mba.json").read_text())

SHAPES = arrays.array_shapes(min_dims=2, max_dims=2, max_side=14)
MASKS = arrays.arrays(bool, SHAPES)
FEW = settings(max_examples=40)  # enough where one metric after the other is tried
METRICS = (IoU, BoundaryIoU, MeanBoundaryAccuracy, PixelAccuracy, MeanPixelAccuracy)


@st.composite
def blocky(draw: st.DrawFn, shapes: st.SearchStrategy[tuple[int, ...]] = SHAPES) -> np.ndarray:
    """Masks of a few rectangles, most with an interior, unlike noise; some touch the border."""
    height, width = draw(shapes)
    mask = np.zeros((height, width), bool)
    for _ in range(draw(st.integers(0, 3))):
        top, bottom = sorted(draw(st.tuples(st.integers(0, height), st.integers(0, height))))
        left, right = sorted(draw(st.tuples(st.integers(0, width), st.integers(0, width))))
        mask[top:bottom, left:right] ^= True
    return mask


@st.composite
def judged(draw: st.DrawFn, ignoring: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """A prediction and a truth of one shape."""
    prediction = draw(blocky() | MASKS)
    same = st.just(prediction.shape)
    truth = draw(blocky(same) | arrays.arrays(bool, same)).astype(np.int8)
    if ignoring:
        truth[draw(blocky(same))] = -1
    return prediction, truth


@pytest.fixture(scope="module")
def biou_pairs() -> dict[str, dict[str, np.ndarray]]:
    with np.load(GOLDEN / "f08_boundary_iou.npz") as file:
        return {name: {part: file[f"{name}__{part}"] for part in ("a", "b", "ba", "bb")} for name in BIOU}


@pytest.fixture(scope="module")
def mba_pairs() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Prediction (bool) and truth (int8)."""
    pairs = {}
    with np.load(GOLDEN / "f09_mba.npz") as file:
        for name in MBA:
            shape = tuple(file[f"{name}__shape"])
            prediction, truth = (
                np.unpackbits(file[f"{name}__{part}"])[: np.prod(shape)].reshape(shape) for part in ("pred", "gt")
            )
            pairs[name] = prediction.astype(bool), truth.astype(np.int8)
    return pairs


# Boundary IoU


@pytest.mark.parametrize("name", BIOU)
def test_recorded_bands(name: str, biou_pairs: dict[str, dict[str, np.ndarray]]) -> None:
    pair, width = biou_pairs[name], BIOU[name]["d"]
    np.testing.assert_array_equal(boundary(pair["a"], width), pair["ba"])
    np.testing.assert_array_equal(boundary(pair["b"], width), pair["bb"])


@pytest.mark.parametrize("name", BIOU)
def test_recorded_iou_and_boundary_iou(name: str, biou_pairs: dict[str, dict[str, np.ndarray]]) -> None:
    """Equal in every bit; only where the reference divides 0 by 0 (both masks empty) we say 1."""
    truth, prediction = biou_pairs[name]["a"].astype(np.int8), biou_pairs[name]["b"].astype(bool)
    expected = BIOU[name]
    assert np.isnan(expected["biou"]) == (name == "both_empty")
    assert boundary_iou(prediction, truth) == (1.0 if name == "both_empty" else expected["biou"])
    assert iou(prediction, truth) == (1.0 if name == "both_empty" else expected["iou"])


def eroded_step_by_step(mask: np.ndarray, width: int) -> np.ndarray:
    """The definition: ``width`` erosions by 3 x 3, all beyond the image is background."""
    for _ in range(width):
        padded = np.pad(mask, 1)
        near = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))
        mask = near.all(axis=(2, 3))
    return mask


@given(blocky() | MASKS, st.integers(1, 16))
def test_band_in_the_bounding_box_is_the_band_of_the_whole_mask(mask: np.ndarray, width: int) -> None:
    band = boundary(mask, width)
    assert band.dtype == np.uint8
    np.testing.assert_array_equal(band, mask & ~eroded_step_by_step(mask, width))


@given(blocky(), st.integers(1, 6), st.tuples(*[st.integers(0, 5)] * 4))
def test_band_does_not_change_in_a_larger_image(
    mask: np.ndarray, width: int, margins: tuple[int, int, int, int]
) -> None:
    """What the bounding box relies on: empty rows and columns around an object do not matter."""
    padding = (margins[:2], margins[2:])
    np.testing.assert_array_equal(boundary(np.pad(mask, padding), width), np.pad(boundary(mask, width), padding))


def test_band_of_any_non_zero_value() -> None:
    """0/255 masks, and views that are not contiguous, give the band of the 0/1 mask."""
    mask = np.zeros((40, 30), np.uint8)
    mask[5:33, 3:28] = 255
    np.testing.assert_array_equal(boundary(mask.T, 4), boundary(mask.T > 0, 4))
    np.testing.assert_array_equal(boundary(mask[::-1], 4), boundary(mask > 0, 4)[::-1])
    assert boundary(mask, 4).max() == 1


def test_counts_are_exact_beyond_float32() -> None:
    """The square around the middle holds 4099^2 - 1 object pixels, which float32 cannot tell from 4099^2."""
    mask = np.ones((4099, 4099), bool)
    mask[1, 1] = False
    assert boundary(mask, 2049)[2049, 2049] == 1


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (320, 480, 12),
        (480, 640, 16),
        (1024, 1024, 29),
        (1080, 1920, 44),
        (2048, 3072, 74),
        (4000, 6000, 144),
        (5, 5, 1),
        (75, 100, 2),
    ],
)
def test_band_width(height: int, width: int, expected: int) -> None:
    """At least 1; a half (2.5 at 75 x 100) is rounded to even, as in the reference."""
    assert band_width(height, width) == expected


def test_fixed_band_width_replaces_the_ratio() -> None:
    truth = np.zeros((200, 200), np.int8)
    truth[50:150, 50:150] = 1
    prediction = np.roll(truth, 1, axis=1) == 1
    assert BoundaryIoU(truth).width == band_width(200, 200) == 6
    assert BoundaryIoU(truth, ratio=0.05).width == 14
    # Frames one pixel wide, moved by one: 2 of the 4 sides (98 pixels each) and 2 corners each way stay in common.
    assert boundary_iou(prediction, truth, width=1) == (99 + 99) / (2 * 396 - 198)


def test_a_band_as_typed() -> None:
    """A share of the diagonal between 0 and 1, or whole pixels."""
    assert band_of("0.02") == {"ratio": 0.02}
    assert band_of("5px") == {"width": 5}
    for text in ("0", "1", "1.5", "-0.1", "nan", "wide", "0px", "1.5px", ""):
        with pytest.raises(HrsegError, match=f"`band` {text}: write a share"):
            band_of(text)


def test_only_boundary_iou_takes_a_band() -> None:
    metrics = {name: catalog.resolve("metric", name) for name in catalog.METRICS}
    assert [name for name, metric in metrics.items() if getattr(metric, "takes_band", False)] == ["biou"]


def test_band_without_width_is_refused() -> None:
    """A band of 0 pixels would be empty, and every prediction perfect."""
    with pytest.raises(HrsegError, match="at least 1"):
        BoundaryIoU(np.ones((4, 4), np.int8), width=0)


@st.composite
def sequences(draw: st.DrawFn) -> tuple[np.ndarray, list[np.ndarray]]:
    """A truth, ignored pixels too, and masks that change a little, much, or not at all, as from click to click."""
    mask, truth = draw(judged())
    masks = [mask]
    for _ in range(draw(st.integers(1, 5))):
        masks.append(masks[-1].copy())
        top, left = (draw(st.integers(0, side - 1)) for side in mask.shape)
        rows, columns = (draw(st.integers(0, side)) for side in mask.shape)
        masks[-1][top : top + rows, left : left + columns] ^= True
    if draw(st.booleans()):  # larger than twice the band, so that only a part is taken anew
        masks, truth = [one.repeat(5, 0).repeat(5, 1) for one in masks], truth.repeat(5, 0).repeat(5, 1)
    return truth, masks


@given(sequences(), st.integers(1, 4))
def test_boundary_iou_from_click_to_click_is_the_one_from_nothing(
    sequence: tuple[np.ndarray, list[np.ndarray]], width: int
) -> None:
    truth, masks = sequence
    kept = BoundaryIoU(truth, width=width)
    assert [kept(mask) for mask in masks] == [BoundaryIoU(truth, width=width)(mask) for mask in masks]


def test_thin_object_has_the_plain_iou() -> None:
    """An object no thicker than two bands is all band."""
    truth = np.zeros((300, 400), np.int8)
    truth[100:104, 20:300] = 1
    prediction = np.roll(truth, 2, axis=0) == 1
    assert boundary_iou(prediction, truth) == iou(prediction, truth) == 1 / 3


# Mean boundary accuracy


@pytest.mark.parametrize("name", MBA)
def test_recorded_mba(name: str, mba_pairs: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Where the reference divides 0 by 0 (no outline in the truth), all pixels count."""
    prediction, truth = mba_pairs[name]
    expected = MBA[name]["mba"]
    assert np.isnan(expected) == (name in ("gt_empty", "gt_full"))
    assert mba(prediction, truth) == (np.mean(prediction == truth) if np.isnan(expected) else expected)


@pytest.mark.parametrize("name", MBA)
def test_recorded_mba_regions(name: str, mba_pairs: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    rings = accuracy_rings(mba_pairs[name][1] == 1)
    assert [int(((rings > 0) & (rings <= i)).sum()) for i in range(1, 6)] == MBA[name]["region_sizes"]


@given(judged())
def test_mba_of_a_small_image_by_its_definition(pair: tuple[np.ndarray, np.ndarray]) -> None:
    """All radii are 1 there: what counts are the pixels on both sides of every edge between object and not object."""
    prediction, truth = pair
    mask = truth == 1
    near = np.zeros_like(mask)
    down, right = mask[1:] != mask[:-1], mask[:, 1:] != mask[:, :-1]
    near[1:] |= down
    near[:-1] |= down
    near[:, 1:] |= right
    near[:, :-1] |= right
    counted = (near if near.any() else ~near) & (truth != -1)
    expected = np.mean(prediction[counted] == mask[counted]) if counted.any() else 1
    assert mba(prediction, truth) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("height", "width", "radii"), [(100, 200, [1] * 5), (200, 475, [1, 1, 1, 1, 2]), (1000, 1400, [1, 2, 3, 5, 6])]
)
def test_mba_regions_along_a_straight_outline(height: int, width: int, radii: list[int]) -> None:
    """By hand: radius i is 1 + int(((H + W) / 300 - 1) / 5 * (i - 1)), on both sides of it; at 675 it just gets 2."""
    rings = accuracy_rings(np.arange(width) < np.full((height, 1), width // 2))[height // 2]
    assert [int(((rings > 0) & (rings <= i)).sum()) for i in range(1, 6)] == [2 * radius for radius in radii]
    assert rings.max() <= 5


def test_mba_regions_of_an_object_in_a_corner_of_a_large_image() -> None:
    """The part of the image that is looked at must hold the widest region; shifting the object must not change it."""
    mask = np.zeros((1000, 1400), bool)
    mask[300:340, 500:590] = True
    moved = np.roll(mask, (-280, 790), axis=(0, 1))
    assert moved[20:60, 1290:1380].all()
    np.testing.assert_array_equal(np.roll(accuracy_rings(mask), (-280, 790), axis=(0, 1)), accuracy_rings(moved))


# All metrics


@pytest.mark.parametrize("name", catalog.METRICS)
@FEW
@given(judged(ignoring=False))
def test_perfect_and_opposite(name: str, pair: tuple[np.ndarray, np.ndarray]) -> None:
    truth = pair[1]
    metric: Callable[[np.ndarray], float] = catalog.resolve("metric", name)(truth)
    assert metric(truth == 1) == 1
    assert metric(truth != 1) == 0


@pytest.mark.parametrize("metric", METRICS)
def test_empty_and_full(metric: type) -> None:
    """Agreement on nothing is agreement; nothing against something is not."""
    empty, full = np.zeros((30, 40), bool), np.ones((30, 40), bool)
    assert metric(empty.astype(np.int8))(empty) == 1
    assert metric(full.astype(np.int8))(full) == 1
    assert metric(empty.astype(np.int8))(full) == 0
    assert metric(full.astype(np.int8))(empty) == 0
    assert metric(np.full((30, 40), -1, np.int8))(full) == 1


@pytest.mark.parametrize("metric", [*METRICS, partial(BoundaryIoU, width=2)])
@FEW
@given(judged(), st.integers(0, 2**32 - 1))
def test_what_happens_inside_the_ignored_region_never_counts(
    metric: Callable[[np.ndarray], Callable[[np.ndarray], float]], pair: tuple[np.ndarray, np.ndarray], seed: int
) -> None:
    prediction, truth = pair
    score = metric(truth)
    other = prediction ^ ((truth == -1) & (np.random.default_rng(seed).random(truth.shape) < 0.5))
    assert score(prediction) == score(other)


def test_bands_taken_before_ignoring_would_count_it() -> None:
    """Why ignored pixels go first: the other order scores two masks apart that agree wherever truth is known."""
    truth = np.zeros((60, 60), np.int8)
    truth[10:40, 10:40] = 1
    truth[10:40, 40:44] = -1
    inside, across = truth == 1, truth != 0
    valid = truth != -1
    bands = [boundary(mask, 3)[valid] for mask in (inside, across)]
    assert (bands[0] != bands[1]).any()
    assert boundary_iou(inside, truth, width=3) == boundary_iou(across, truth, width=3) == 1


@FEW
@given(judged())
def test_iou_by_its_definition(pair: tuple[np.ndarray, np.ndarray]) -> None:
    prediction, truth = pair
    one, other = (set(zip(*np.nonzero(mask & (truth != -1)), strict=True)) for mask in (prediction, truth == 1))
    assert iou(prediction, truth) == (len(one & other) / len(one | other) if one | other else 1)


@FEW
@given(judged())
def test_pixel_accuracies_by_their_definition(pair: tuple[np.ndarray, np.ndarray]) -> None:
    """From the confusion matrix over object and background, as Long et al. 2015 write it (section 5)."""
    prediction, truth = pair
    right, total = np.zeros(2), np.zeros(2)
    for guess, label in zip(prediction.ravel(), truth.ravel(), strict=True):
        if label != -1:
            total[label] += 1
            right[label] += guess == label
    assert PixelAccuracy(truth)(prediction) == pytest.approx(right.sum() / total.sum() if total.sum() else 1)
    there = total > 0
    mean = (right[there] / total[there]).mean() if there.any() else 1
    assert MeanPixelAccuracy(truth)(prediction) == pytest.approx(mean)


@FEW
@given(judged(ignoring=False), st.integers(1, 5))
def test_boundary_iou_is_symmetric(pair: tuple[np.ndarray, np.ndarray], width: int) -> None:
    prediction, truth = pair
    assert boundary_iou(prediction, truth, width=width) == boundary_iou(
        truth == 1, prediction.astype(np.int8), width=width
    )


@pytest.mark.parametrize("metric", METRICS)
@FEW
@given(judged())
def test_mirrored_image_has_the_same_score(metric: type, pair: tuple[np.ndarray, np.ndarray]) -> None:
    prediction, truth = pair
    score = metric(truth)(prediction)
    assert metric(truth[:, ::-1])(prediction[:, ::-1]) == metric(truth[::-1])(prediction[::-1]) == score


@pytest.mark.parametrize("metric", METRICS)
def test_prediction_of_another_size_is_refused(metric: type) -> None:
    """NumPy would stretch a row over the image, and pick wrong pixels from a transposed mask, without a word."""
    score = metric(np.eye(6, 8, dtype=np.int8))
    for shape in ((8, 6), (1, 8), (6, 8, 1)):
        with pytest.raises(ValueError, match="shape"):
            score(np.zeros(shape, bool))


@pytest.mark.parametrize("metric", METRICS)
def test_nothing_handed_in_is_changed(metric: type) -> None:
    """A bool mask is looked at without a copy, so it must not be written to."""
    truth = np.eye(20, dtype=np.int8)
    truth[3, 7] = -1
    prediction = np.tri(20, dtype=bool)
    before = truth.copy(), prediction.copy()
    truth.flags.writeable = prediction.flags.writeable = False
    metric(truth)(prediction)
    np.testing.assert_array_equal(truth, before[0])
    np.testing.assert_array_equal(prediction, before[1])
