"""Training clicks against RITM's recorded sampler, and against distance transforms of SciPy."""

from __future__ import annotations

import json
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import ValidationError
from reference import GOLDEN
from scipy import ndimage

from hrseg_cli.clicks.sampler import Drawn, add_next_click, draw, draw_close_up, perturbed
from hrseg_cli.recipe import Clicks

RECORDED = json.loads((GOLDEN / "unit_fixture.json").read_text())["get_next_points"]["cases"]
SQUARE = np.ones((3, 3))


class FirstCandidate:
    """Stands in for a generator: always the first candidate, as when the answers were recorded; counts them."""

    seen = 0

    def integers(self, count: int) -> int:
        self.seen = count
        return 0

    def random(self) -> float:
        return 0.0


class Fixed(np.random.Generator):
    """Asked for one number between 0 and 1, it always returns this one."""

    def __init__(self, value: float, seed: int) -> None:
        super().__init__(np.random.PCG64(seed))
        self.value = value

    def random(self, *size: Any, **more: Any) -> Any:
        return super().random(*size, **more) if size or more else self.value


def disk(row: int, col: int, radius: int, height: int = 40, width: int = 50) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return (y - row) ** 2 + (x - col) ** 2 <= radius * radius


def clicks_of(drawn: Drawn) -> tuple[np.ndarray, np.ndarray]:
    """Positive and negative clicks, int (n, 3)."""
    positive, negative = np.split(drawn.points, 2)
    return positive[positive[:, 2] >= 0].astype(int), negative[negative[:, 2] >= 0].astype(int)


def empty(slots: int = 4) -> np.ndarray:
    return np.full((2 * slots, 3), -1, np.float32)


def depth(region: np.ndarray) -> np.ndarray:
    """Exact squared distance to the outside of a region, the outside of the image included."""
    return np.rint(ndimage.distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1] ** 2)


# --- corrections ------------------------------------------------------------------------------------------------------

# The recording names only the truth, so its predictions are worked out from the answers: nothing, a second disk beside
# it, the truth itself, the rows above 12, the threshold everywhere (2 and 4 have no candidate), a disk at its corner.
# The first is certain; several disks would fit the last.
PREDICTED = [
    np.zeros((40, 50)),
    disk(20, 25, 12) | disk(20, 33, 12),
    disk(20, 25, 12),
    np.arange(40)[:, None].repeat(50, 1) < 12,
    np.full((40, 50), 0.49),
    disk(10, 10, 9),
]


@pytest.mark.parametrize("number", range(6))
def test_recorded_corrections(number: int) -> None:
    """Slot, order, number of candidates and the first of them, by RITM's approximate distances."""
    recorded, rng = RECORDED[number], FirstCandidate()
    points = empty()
    points[0] = 20, 25, 100
    answer = add_next_click(
        points,
        PREDICTED[number].astype(np.float32),
        disk(20, 25, 12).astype(np.int8),
        order=2,
        rng=rng,  # type: ignore[arg-type]
        precise=False,
        click_ignored=True,
    )
    assert answer.tolist() == recorded["points"]
    assert rng.seen == recorded["n_candidates"]


TRUTHS = hnp.arrays(np.int8, st.tuples(st.integers(1, 20), st.integers(1, 20)), elements=st.integers(-1, 1))


def blobs(seed: int, height: int, width: int, values: tuple[float, ...], block: int) -> np.ndarray:
    """Random blocks of some values: regions with an inside, which independent pixels have not."""
    rng = np.random.default_rng(seed)
    small = rng.choice(values, size=(height // block + 1, width // block + 1))
    return small.repeat(block, 0).repeat(block, 1)[:height, :width]


@st.composite
def mistakes(strategy: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """A truth with ignored pixels and a prediction with values at and around the threshold."""
    height, width, block = strategy(st.integers(1, 30)), strategy(st.integers(1, 30)), strategy(st.integers(1, 7))
    seed = strategy(st.integers(0, 10_000))
    truth = blobs(seed, height, width, (-1, 0, 0, 1, 1), block).astype(np.int8)
    return truth, blobs(seed + 1, height, width, (0.0, 0.48, 0.49, 0.5, 1.0), block).astype(np.float32)


@given(mistakes(), st.integers(1, 4), st.integers(0, 99), st.sampled_from([0.0, 1.0]), st.booleans())
def test_correction_lies_in_the_larger_mistake(
    scene: tuple[np.ndarray, np.ndarray], order: int, seed: int, off_centre: float, click_ignored: bool
) -> None:
    truth, probability = scene
    rng = np.random.default_rng(seed)
    before = np.arange(24, dtype=np.float32).reshape(8, 3)
    kept = before.copy()
    options = {"off_centre": off_centre, "click_ignored": click_ignored}
    after = add_next_click(before, probability, truth, order=order, rng=rng, **options)  # type: ignore[arg-type]
    assert (before == kept).all()
    missed = depth((truth == 1) & (probability < np.float32(0.49)))
    outside = truth != 1 if click_ignored else truth == 0
    added = depth(outside & (probability > np.float32(0.49)))
    larger = missed if missed.max() > added.max() else added
    slot = (4 if larger is missed else 8) - order
    changed = np.flatnonzero((after != before).any(axis=1))
    if larger.max() == 0:
        assert changed.size == 0
        return
    assert changed.tolist() == [slot]
    row, col, number = after[slot].astype(int)
    assert number == order
    assert larger[row, col] > 0 if off_centre else 4 * larger[row, col] > larger.max()
    assert truth[row, col] >= 0 or click_ignored


@given(TRUTHS, st.integers(0, 99))
def test_approximate_distances_on_the_window_equal_those_on_the_image(truth: np.ndarray, seed: int) -> None:
    """A knight's move could jump the ring around the window; it must never pay."""
    truth = truth.repeat(2, 0).repeat(3, 1)
    region = (truth == 1).astype(np.uint8)
    whole = cv2.distanceTransform(np.pad(region, 1), cv2.DIST_L2, cv2.DIST_MASK_5)[1:-1, 1:-1]
    rng = FirstCandidate()
    nothing = np.zeros(truth.shape, np.float32)
    add_next_click(empty(), nothing, truth, order=1, rng=rng, precise=False)  # type: ignore[arg-type]
    assert rng.seen == np.count_nonzero(whole > whole.max() / 2)


def test_every_candidate_is_reached_and_no_other_pixel() -> None:
    truth = disk(20, 25, 6).astype(np.int8)
    nothing, rng = np.zeros(truth.shape, np.float32), np.random.default_rng(0)
    hit = {tuple(add_next_click(empty(), nothing, truth, order=1, rng=rng)[3, :2].astype(int)) for _ in range(600)}
    inner = depth(truth == 1)
    assert hit == set(map(tuple, np.argwhere(4 * inner > inner.max())))


def test_ignored_pixels_are_mistakes_only_in_the_old_reading() -> None:
    truth = np.full((9, 9), -1, np.int8)
    sure = np.ones((9, 9), np.float32)
    rng = np.random.default_rng(0)
    assert (add_next_click(empty(), sure, truth, order=1, rng=rng) == -1).all()
    assert add_next_click(empty(), sure, truth, order=1, rng=rng, click_ignored=True)[7, 2] == 1


def test_a_correction_needs_a_slot() -> None:
    """A fifth correction of four slots would land among the clicks of the other sign."""
    truth = np.ones((3, 3), np.int8)
    for order in (0, 5):
        with pytest.raises(ValueError, match="must be 1 to 4"):
            add_next_click(empty(), np.zeros((3, 3)), truth, order=order, rng=np.random.default_rng(0))


# --- drawn clicks -----------------------------------------------------------------------------------------------------


def three_objects() -> tuple[np.ndarray, np.ndarray]:
    """Three objects and a fragment too small to be asked for."""
    targets = [disk(40, 40, 22, 96, 128), disk(30, 100, 15, 96, 128), disk(80, 90, 10, 96, 128)]
    return np.stack(targets).astype(np.int8), np.any(targets, axis=0) | disk(88, 8, 3, 96, 128)


DRAWS = 2000


@pytest.fixture(scope="module")
def many() -> list[Drawn]:
    targets, labelled = three_objects()
    rng = np.random.default_rng(5)
    return [draw(targets, labelled, rng, Clicks()) for _ in range(DRAWS)]


def within(found: np.ndarray, expected: float, recorded_draws: float = np.inf) -> bool:
    """Whether the mean of the found values is 4.5 standard errors from what is expected: once in 150 000 by chance."""
    error = np.std(found) * np.sqrt(1 / len(found) + 1 / recorded_draws)
    return bool(abs(np.mean(found) - expected) < 4.5 * error)


def test_numbers_of_clicks_follow_the_recorded_ones(many: list[Drawn]) -> None:
    """Shares and means as given for RITM's settings; the two measured means are themselves taken as 1000 draws."""
    merged = np.array([np.count_nonzero(d.truth) not in (1517, 709, 317) for d in many])
    inside = np.array([len(clicks_of(d)[0]) for d in many])
    outside = np.array([len(clicks_of(d)[1]) for d in many])
    assert within(merged, 0.15)
    assert within(merged, 0.142, 1000)
    assert within(inside[~merged] == 1, 0.2009)
    assert within(inside[~merged], 4.886)
    assert inside[merged].min() == 2
    # Two first clicks, and j more of which those above 22 are cut.
    more, share = np.arange(25), 0.8 ** np.arange(25)
    assert within(inside[merged], 2 + float((np.minimum(more, 22) * share).sum() / share.sum()))
    assert within(outside == 0, 0.2008)
    assert within(outside, 3.905)
    assert within(inside, 5.02, 1000)
    assert within(outside, 4.01, 1000)
    assert max(inside.max(), outside.max()) <= 24


def test_negative_clicks_fall_where_they_should(many: list[Drawn]) -> None:
    """On other objects, in the band, elsewhere: the weights, plus what the tenth drawn anywhere happens to hit."""
    _, labelled = three_objects()
    hits: list[list[float]] = []
    for drawn in many:
        asked = drawn.truth == 1
        reach = int(np.ceil(0.1 * np.sqrt(asked.sum())))
        band = ndimage.binary_dilation(asked, SQUARE, iterations=reach) & ~asked
        others = labelled & ~asked
        assert not (band & others).any()  # else the places could not be told apart
        anywhere = np.array([region[~asked].mean() for region in (others, band)])
        rows, cols = clicks_of(drawn)[1][:, :2].T
        for region, weight, chance in zip((others, band), (0.4, 0.5), anywhere, strict=True):
            hits += [[weight, float(hit), weight + 0.1 * chance] for hit in region[rows, cols]]
    table = np.array(hits)
    for weight, recorded in ((0.4, 0.41), (0.5, 0.51)):
        _, found, expected = table[table[:, 0] == weight].T
        assert within(found - expected, 0)
        assert within(found, recorded, 4000)  # about 1000 draws of 4 clicks


def test_merged_objects_each_get_a_click() -> None:
    targets, labelled = three_objects()
    rng = np.random.default_rng(0)
    together = Clicks(merge_probability=1, max_merged=3)
    sizes, lonely = set(), 0
    for _ in range(200):
        drawn = draw(targets, labelled, rng, together)
        asked = [t == 1 for t in targets if (drawn.truth[t == 1] == 1).all()]
        rows, cols = clicks_of(drawn)[0][:, :2].T
        assert all(region[rows, cols].any() for region in asked)
        sizes.add(len(asked))
        drawn = draw(targets, labelled, rng, together.model_copy(update={"only_one_first_click": True}))
        asked = [t == 1 for t in targets if (drawn.truth[t == 1] == 1).all()]
        rows, cols = clicks_of(drawn)[0][:, :2].T
        lonely += not all(region[rows, cols].any() for region in asked)
    assert sizes == {2, 3}
    assert lonely > 50  # every fifth sample has no second click at all


def test_merged_clicks_are_cut_to_the_slots_after_drawing() -> None:
    """With 3 slots 0 to 3 further clicks are equally likely at gamma 1, of which one fits: 3 clicks in 3 of 4 draws."""
    targets, labelled = three_objects()
    settings, rng = Clicks(max_points=3, gamma=1, merge_probability=1), np.random.default_rng(4)
    assert within(np.array([len(clicks_of(draw(targets, labelled, rng, settings))[0]) for _ in range(300)]), 2.75)


def test_the_same_generator_gives_the_same_clicks() -> None:
    targets, labelled = three_objects()
    one, two, other = (draw(targets, labelled, np.random.default_rng(seed), Clicks()) for seed in (7, 7, 8))
    assert (one.points == two.points).all()
    assert (one.truth == two.truth).all()
    assert (one.points != other.points).any()


SHARES = st.sampled_from([0.0, 0.5, 1.0])
SETTINGS = st.builds(
    Clicks,
    max_points=st.integers(1, 6),
    merge_probability=SHARES,
    max_merged=st.integers(2, 4),
    erode_probability=SHARES,
    erode_iterations=st.integers(0, 3),
    expand_ratio=st.sampled_from([0.0, 0.1, 1.0]),
    first_click_center=st.booleans(),
    first_click_anywhere=SHARES,
    inner_k=st.sampled_from([0.0, 1.001, 1.7]),
    only_one_first_click=st.booleans(),
    off_centre=SHARES,
)


@given(
    hnp.arrays(
        np.int8,
        st.tuples(st.integers(0, 3), st.integers(1, 12), st.integers(1, 12)),
        elements=st.integers(-1, 1),
    ),
    st.integers(1, 3),
    st.booleans(),
    SETTINGS,
    st.integers(0, 999),
)
def test_any_scene_gives_clicks_on_the_right_side(
    targets: np.ndarray, block: int, all_labelled: bool, settings: Clicks, seed: int
) -> None:
    """Objects of one pixel, of none, on all borders, ignored ones, no objects: nothing raises, nothing is misplaced."""
    targets = targets.repeat(block, 1).repeat(block, 2)
    labelled = (targets != 0).any(axis=0) | all_labelled
    drawn = draw(targets, labelled, np.random.default_rng(seed), settings)
    truth, points = drawn.truth, drawn.points
    assert truth.dtype == np.int8
    assert truth.shape == labelled.shape
    assert points.dtype == np.float32
    assert points.shape == (2 * settings.max_points, 3)
    positive, negative = clicks_of(drawn)
    for slots, clicks in zip(np.split(points, 2), (positive, negative), strict=True):
        assert (slots[len(clicks) :] == -1).all()  # clicks first, padding after
        assert (slots[: len(clicks)] == clicks).all()  # whole pixels
    assert (truth[positive[:, 0], positive[:, 1]] == 1).all()
    assert (truth[negative[:, 0], negative[:, 1]] == 0).all()
    assert bool(len(positive)) == bool((truth == 1).any())
    assert set(positive[:, 2]) <= {0, 100}
    assert set(negative[:, 2]) <= {100}
    if len(targets) == 0:
        assert not labelled[negative[:, 0], negative[:, 1]].any()


def test_a_merged_truth_is_ignored_only_where_no_object_lies() -> None:
    targets = np.array([[[1, 1, 0, 0, -1]], [[0, -1, -1, 0, 1]]], np.int8)
    truth = draw(targets, targets.any(0), np.random.default_rng(0), Clicks(merge_probability=1)).truth
    assert truth.tolist() == [[1, 1, -1, 0, 1]]


def positives(target: np.ndarray, settings: Clicks, count: int = 150) -> np.ndarray:
    """Bool (H, W): pixels clicked in many draws of one object."""
    rng, hit = np.random.default_rng(1), np.zeros(target.shape, bool)
    for _ in range(count):
        rows, cols = clicks_of(draw(target[None].astype(np.int8), target, rng, settings))[0][:, :2].T
        hit[rows, cols] = True
    return hit


@pytest.mark.parametrize("shape", [disk(20, 25, 8), disk(0, 0, 9), np.ones((40, 50), bool)])
def test_positive_clicks_stay_off_the_edge_but_not_off_the_image_border(shape: np.ndarray) -> None:
    always = Clicks(erode_probability=1, gamma=0.95)
    kept = ndimage.binary_erosion(shape, SQUARE, iterations=3, border_value=1)
    hit = positives(shape, always)
    assert not (hit & ~kept).any()
    assert hit[kept].mean() > 0.5
    assert (positives(shape, always.model_copy(update={"erode_probability": 0})) & ~kept).any() or kept.all()


def test_small_objects_are_not_eroded() -> None:
    """8 x 7 pixels would leave 2; clicks reach the rim all the same."""
    small = np.zeros((40, 50), bool)
    small[10:18, 10:17] = True
    assert (positives(small, Clicks(erode_probability=1)) == small).all()


@pytest.mark.parametrize(("rows", "cols", "eroded"), [(4, 7, False), (3, 13, True)])
def test_more_than_ten_pixels_must_be_left(rows: int, cols: int, eroded: bool) -> None:
    """Of 4 x 7 pixels ten are left, of 3 x 13 eleven."""
    shape = np.zeros((40, 50), bool)
    shape[10 : 10 + rows, 10 : 10 + cols] = True
    hit = positives(shape, Clicks(erode_probability=1, erode_iterations=1))
    assert (hit == (ndimage.binary_erosion(shape, SQUARE) if eroded else shape)).all()


def test_band_is_as_wide_as_a_tenth_of_the_object() -> None:
    shape = disk(20, 25, 14)  # 613 pixels: 3 wide
    settings = Clicks(background=0, other=0, border=1, gamma=1)
    rng, hit = np.random.default_rng(1), np.zeros(shape.shape, bool)
    for _ in range(500):  # 6000 clicks on 340 pixels
        rows, cols = clicks_of(draw(shape[None].astype(np.int8), shape, rng, settings))[1][:, :2].T
        hit[rows, cols] = True
    assert (hit == (ndimage.binary_dilation(shape, SQUARE, iterations=3) & ~shape)).all()


def test_other_objects_only_count_while_there_are_some() -> None:
    """With all objects asked for, those clicks fall anywhere outside, the fragments too small included."""
    target, fragment = disk(20, 25, 8), disk(5, 5, 2)
    settings = Clicks(background=0, other=1, border=0, gamma=1, merge_probability=0)
    labelled = target | fragment
    rng = np.random.default_rng(1)
    alone = np.concatenate([clicks_of(draw(target[None].astype(np.int8), labelled, rng, settings))[1] for _ in "ab"])
    assert not labelled[alone[:, 0], alone[:, 1]].all()
    both = np.stack([target, disk(20, 45, 3)]).astype(np.int8)
    for _ in range(20):
        truth, points = draw(both, both.any(0) | fragment, rng, settings)[:2]
        rows, cols = points[settings.max_points :, :2][points[settings.max_points :, 2] > 0].astype(int).T
        assert (both.any(0) | fragment)[rows, cols].all()
        assert not truth[rows, cols].any()


def first_clicks(target: np.ndarray, settings: Clicks, count: int) -> np.ndarray:
    """Int (count, 3), one draw each."""
    rng, labelled = np.random.default_rng(2), target != 0
    return np.array([draw(target[None], labelled, rng, settings).points[0] for _ in range(count)]).astype(int)


@pytest.mark.parametrize("inner_k", [1.7, 0])
def test_central_first_clicks(inner_k: float) -> None:
    shape = disk(12, 15, 10) | disk(25, 30, 6)
    settings = Clicks(first_click_center=True, erode_probability=0, inner_k=inner_k)
    inner = np.sqrt(depth(shape))
    wanted = inner > inner.max() / 1.7 if inner_k else inner == inner.max()
    clicks = first_clicks(shape.astype(np.int8), settings, 400)
    assert set(map(tuple, clicks[:, :2])) <= set(map(tuple, np.argwhere(wanted)))
    assert (clicks[:, 2] == 0).all()
    anywhere = first_clicks(shape.astype(np.int8), settings.model_copy(update={"first_click_anywhere": 1}), 400)
    assert not wanted[anywhere[:, 0], anywhere[:, 1]].all()


def test_centres_are_those_of_exact_distances() -> None:
    """Both are 5 deep: a square, and a disc whose border is (3, 4) away. Approximately, the square is deeper."""
    y, x = np.mgrid[:40, :50]
    shape = (y - 20) ** 2 + (x - 38) ** 2 < 25
    shape[10:19, 10:19] = True
    settings = Clicks(first_click_center=True, first_click_anywhere=0, erode_probability=0, inner_k=0)
    assert set(map(tuple, first_clicks(shape.astype(np.int8), settings, 30)[:, :2])) == {(14, 14), (20, 38)}


def test_off_centre_clicks_lie_between_the_middle_and_anywhere() -> None:
    """In a disk of radius R squared depth has its mean at 0.4 R; the middle 41 % at 0.27 R, the whole at 0.67 R."""
    target = disk(40, 40, 30, 81, 81).astype(np.int8)
    clicks = first_clicks(target, Clicks(off_centre=1, max_points=1), 1500)
    away = np.hypot(*(clicks[:, :2].T - 40.0)) / 31  # the first pixel outside is one further
    assert within(away, 0.4)
    assert (clicks[:, 2] == 0).all()
    rng, nothing = np.random.default_rng(3), np.zeros(target.shape, np.float32)
    correct = [add_next_click(empty(), nothing, target, order=1, rng=rng, off_centre=1)[3] for _ in range(800)]
    assert within(np.hypot(*(np.array(correct)[:, :2].T - 40.0)) / 31, 0.4)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"gamma": 1.5}, "gamma"),
        ({"off_centre": -0.1}, "off_centre"),
        ({"max_points": 0}, "max_points"),
        ({"max_merged": 1}, "max_merged"),
        ({"expand_ratio": float("nan")}, "expand_ratio"),
        ({"inner_k": 0.5}, "inner_k"),
        ({"background": 0, "other": 0, "border": 0}, "background"),
    ],
)
def test_impossible_settings_name_themselves(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        Clicks(**wrong)


# --- boxes and faulty masks -------------------------------------------------------------------------------------------


def test_boxes_come_as_often_as_asked_alone_and_with_clicks() -> None:
    targets, labelled = three_objects()
    settings = Clicks(box_probability=0.5, box_only=0.5, box_jitter=0, merge_probability=0)
    rng = np.random.default_rng(0)
    drawn = [draw(targets, labelled, rng, settings) for _ in range(400)]
    boxed = [one for one in drawn if one.box[0] >= 0]
    alone = [one for one in boxed if (one.points < 0).all()]
    assert abs(len(boxed) - 200) < 40
    assert abs(len(alone) - len(boxed) / 2) < 30
    for one in boxed:
        rows, cols = np.nonzero(one.truth == 1)
        assert one.box.tolist() == [rows.min(), cols.min(), rows.max(), cols.max()]
    jittered = draw(targets, labelled, rng, Clicks(box_probability=1, box_jitter=1.0, merge_probability=0)).box
    assert (jittered[:2] <= jittered[2:]).all()
    assert (jittered >= 0).all()
    assert (jittered < [*labelled.shape, *labelled.shape]).all()
    assert (draw(targets[:0], labelled, rng, settings).box == -1).all()
    everything = np.ones((1, 20, 30), targets.dtype)
    exact = Clicks(box_probability=1, box_jitter=0, merge_probability=0)
    assert draw(everything, everything[0].astype(labelled.dtype), rng, exact).box.tolist() == [0, 0, 19, 29]


def test_faulty_masks_are_near_their_object_and_get_a_correction() -> None:
    """Mistakes of both kinds, a neighbour included now and then, and a click that corrects the largest."""
    targets, labelled = three_objects()
    rng = np.random.default_rng(0)
    settings = Clicks(perturbed_probability=1, merge_probability=0, gamma=0)
    overlaps, signs = [], set()
    for _ in range(150):
        one = draw(targets, labelled, rng, settings)
        assert one.previous is not None
        assert one.previous.dtype == np.float32
        assert 0 <= one.previous.min() <= one.previous.max() <= 1
        truth, found = one.truth == 1, one.previous > 0.49
        overlaps.append((truth & found).sum() / (truth | found).sum())
        positive, negative = clicks_of(one)
        corrections = [(click, sign) for sign, part in ((True, positive), (False, negative)) for click in part]
        for (row, col, order), sign in corrections:
            if order == 1:
                assert truth[row, col] == sign != found[row, col]
                signs.add(sign)
        assert one.corrections == 1
    assert signs == {True, False}
    assert 0.4 < np.mean(overlaps) < 0.9
    others = [np.count_nonzero((perturbed(targets[0], targets, rng) > 0.49) & (targets[1] == 1)) for _ in range(40)]
    assert max(others) > 0.6 * np.count_nonzero(targets[1] == 1)


# For these seeds, sums of a mask and of its upper half, and once a box: recorded 2026-11-30.
MASKS = [
    *((4083.0, 1221.3), (7694.0, 3779.6), (8154.1, 4010.4), (7618.0, 3744.8), (7434.0, 3135.9), (11388.2, 4448.4)),
    *((7610.0, 3741.0), (979.0, 595.5), (9260.0, 4559.0), (10199.3, 5373.0), (7516.0, 3135.8), (7618.0, 3744.7)),
]


def test_the_same_seeds_make_the_recorded_masks_and_box() -> None:
    """So that a training can be repeated; with all kinds of faults, and all ways in which an edge is displaced."""
    targets = np.stack([disk(60, 60, 45, 120, 160), disk(60, 130, 20, 120, 160)]).astype(np.int8)
    found = [perturbed(targets[0], targets, np.random.default_rng(seed)) for seed in range(12)]
    np.testing.assert_allclose([(mask.sum(), mask[:60].sum()) for mask in found], MASKS, atol=0.3)
    jittered = Clicks(merge_probability=0, box_probability=1, box_jitter=0.1)
    box = draw(targets[:1], targets[0] == 1, np.random.default_rng(0), jittered).box
    assert box.tolist() == [19, 24, 104, 117]


def test_a_probability_of_zero_is_never() -> None:
    """Not even with the smallest number that a generator returns."""
    targets, labelled = three_objects()
    settings = Clicks(
        merge_probability=0, erode_probability=0, off_centre=0, first_click_center=True, first_click_anywhere=0,
        inner_k=0, box_probability=0, perturbed_probability=0, gamma=1,
    )  # fmt: skip
    rim = 0
    for seed in range(20):
        drawn = draw(targets, labelled, Fixed(0.0, seed), settings)
        inner = depth(drawn.truth == 1)
        rows, cols = clicks_of(drawn)[0][:, :2].T
        rim += int((inner[rows, cols] == 1).sum())
        assert any(np.array_equal(drawn.truth, target) for target in targets)
        assert inner[rows[0], cols[0]] == inner.max()
        assert (drawn.box == -1).all()
        assert (drawn.previous, drawn.corrections) == (None, 0)
    assert rim > 0
    boxed = draw(targets, labelled, Fixed(0.0, 0), settings.model_copy(update={"box_probability": 1.0, "box_only": 0}))
    assert (boxed.box >= 0).all()
    assert (boxed.points >= 0).any()


def test_shares_of_the_kinds_of_faults() -> None:
    """Below 0.55 a neighbour is included, from 0.8 on there is an extra blob, between them a part is missing."""
    targets = np.stack([disk(60, 60, 45, 120, 160), disk(60, 135, 15, 120, 160)]).astype(np.int8)
    deep, other = depth(targets[0] == 1) > 15**2, targets[1] == 1
    for kind, neighbour, hole in ((0.54, True, False), (0.55, False, True), (0.79, False, True), (0.8, False, False)):
        found = [perturbed(targets[0], targets, Fixed(kind, seed)) for seed in range(12)]
        assert all(mask[other].mean() > 0.5 for mask in found) == neighbour
        assert any((mask[deep] < 0.5).any() for mask in found) == hole


@pytest.mark.parametrize(("pixels", "included"), [(50, False), (51, True)])
def test_a_neighbour_of_a_few_pixels_is_not_included(pixels: int, included: bool) -> None:
    targets = np.stack([disk(60, 60, 30, 120, 160), np.zeros((120, 160), bool)]).astype(np.int8)
    targets[1, 100, 100 : 100 + pixels] = 1
    found = [perturbed(targets[0], targets, Fixed(0.3, seed))[100, 100:].any() for seed in range(8)]
    assert any(found) == included


def test_a_merged_object_has_one_first_click_if_asked() -> None:
    targets, labelled = three_objects()
    settings = Clicks(merge_probability=1, max_merged=2, only_one_first_click=True, gamma=0)
    assert [len(clicks_of(draw(targets, labelled, np.random.default_rng(s), settings))[0]) for s in range(6)] == [1] * 6


def test_close_ups_are_clicked_in_the_centre_and_anywhere() -> None:
    """FocusCut: the centre by its own label, and up to three more clicks of each sign on pixels of theirs."""
    for value in (1, 0, -1):
        truth = np.zeros((21, 31), np.int8)
        truth[:, 12:] = 1
        truth[10, 15] = value
        numbers = set()
        for seed in range(20):
            points = draw_close_up(truth, np.random.default_rng(seed), 6)
            assert points.shape == (12, 3)
            for label, slots in ((1, points[:6]), (0, points[6:])):
                rows, cols = slots[slots[:, 0] >= 0, :2].astype(int).T
                assert (truth[rows, cols] == label).all()
                centred = [(10, 15)] if value == label else []
                assert list(zip(rows, cols, strict=True))[: len(centred)] == centred
                numbers.add((label, len(rows) - len(centred)))
        assert numbers == {(label, count) for label in (1, 0) for count in range(4)}
    assert (draw_close_up(np.ones((21, 31), np.int8), np.random.default_rng(0), 1)[1] == -1).all()
