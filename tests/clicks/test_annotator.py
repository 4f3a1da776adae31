"""The simulated annotator against RITM's Clicker and against a distance transform of the whole image."""

from __future__ import annotations

import json

import numpy as np
import plain
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from reference import GOLDEN
from scipy import ndimage

from hrseg_cli.clicks.annotator import box_around, deepest, drawn_click, next_click, next_prompt
from hrseg_cli.interaction import Box, Click
from hrseg_cli.metrics.masks import iou
from hrseg_cli.recipe import load_protocol

RECORDED = json.loads((GOLDEN / "unit_fixture.json").read_text())["clicker"]["cases"]


def scenes() -> list[tuple[np.ndarray, np.ndarray]]:
    """Blocky random truths and predictions, some with ignored pixels; the recorded answers were made on these."""
    rng, found = np.random.default_rng(3), []

    def blocks(height: int, width: int) -> np.ndarray:
        small = rng.random((height // 4 + 1, width // 4 + 1)) < 0.45
        return small.repeat(4, 0).repeat(4, 1)[:height, :width]

    for number in range(8):
        height, width = int(rng.integers(20, 60)), int(rng.integers(20, 60))
        truth, prediction = blocks(height, width).astype(np.int8), blocks(height, width)
        if number % 2:
            truth[rng.random((height, width)) < 0.05] = -1
        found.append((truth, prediction))
    return found


@pytest.mark.parametrize("number", range(8))
def test_recorded_sequences(number: int) -> None:
    """Six clicks in a row on a fixed prediction: ties, excluded pixels and ignored pixels all occur."""
    (truth, prediction), recorded = scenes()[number], RECORDED[number]
    assert truth.shape == (recorded["H"], recorded["W"])
    clicks: list[Click] = []
    for _ in recorded["clicks"]:
        click = next_click(truth, prediction, clicks)
        assert click is not None
        clicks.append(click)
    assert [[c.row, c.col, int(c.positive), i] for i, c in enumerate(clicks)] == recorded["clicks"]
    assert iou(prediction, truth) == pytest.approx(recorded["iou"], abs=1e-12)


@given(hnp.arrays(np.bool_, st.tuples(st.integers(1, 24), st.integers(1, 24))), st.data())
def test_window_equals_whole_image(region: np.ndarray, data: st.DataObject) -> None:
    """The transform runs on the bounding box alone; an exact transform of the padded image must agree."""
    excluded = [
        (data.draw(st.integers(0, region.shape[0] - 1)), data.draw(st.integers(0, region.shape[1] - 1)))
        for _ in range(data.draw(st.integers(0, 3)))
    ]
    whole = ndimage.distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1] ** 2
    for row, col in excluded:
        whole[row, col] = 0
    answer = deepest(region, excluded)
    if whole.max() == 0:
        assert answer is None
    else:
        row, col = np.unravel_index(whole.argmax(), whole.shape)
        assert answer == (round(whole.max()), row, col)


def test_depths_of_discs_of_every_size() -> None:
    """Nearest zeros straight ahead, on the diagonal and between them, up to depths that are found in other ways."""
    y, x = np.mgrid[-11:12, -11:12]
    for squared in range(1, 101):
        region = y**2 + x**2 < squared
        whole = ndimage.distance_transform_edt(region) ** 2
        row, col = np.unravel_index(np.rint(whole).argmax(), whole.shape)
        assert deepest(region) == (round(whole.max()), row, col)


def shapes_in(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Nothing, all, noise, rough or smooth, or discs and rectangles that may touch the border or each other."""
    kind = rng.integers(8)
    if kind == 7:  # ragged parts of any thickness
        return np.asarray(ndimage.gaussian_filter(rng.standard_normal((height, width)), rng.uniform(0.5, 6)) > 0)
    if kind < 2:
        return np.full((height, width), bool(kind))
    if kind == 2:
        return rng.random((height, width)) < rng.random()
    mask = np.zeros((height, width), bool)
    y, x = np.ogrid[:height, :width]
    for _ in range(rng.integers(1, 8)):
        row, col, size = rng.integers(height), rng.integers(width), rng.integers(1, 90)
        if rng.random() < 0.5:
            mask ^= (y - row) ** 2 + (x - col) ** 2 < size**2
        else:
            mask[row : row + size, col : col + rng.integers(1, 90)] ^= True
    return mask


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1))
def test_equal_to_transforms_of_the_whole_image(seed: int) -> None:
    """Large enough for every way there is: thin parts, thick ones, noise; ignored pixels and many clicks in a row."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 200, 2)
    truth = shapes_in(rng, height, width).astype(np.int8)
    moved = np.roll(truth == 1, rng.integers(-4, 5, 2), axis=(0, 1))  # a rim of mistakes
    prediction = moved ^ shapes_in(rng, height, width) if rng.random() < 0.5 else moved
    if rng.random() < 0.4:
        truth[shapes_in(rng, height, width)] = -1
    clicks: list[Click] = []
    for _ in range(6):
        click = next_click(truth, prediction, clicks)
        assert click == plain.next_click(truth, prediction, clicks)
        if click is None:
            break
        clicks.append(click)


def test_a_block_full_of_clicks() -> None:
    """More clicks than a block has pixels, all in the middle of one disc: the bounds of that block no longer hold."""
    truth = np.zeros((90, 150), np.int8)
    y, x = np.ogrid[:90, :150]
    truth[(y - 45) ** 2 + (x - 45) ** 2 < 40**2] = 1
    truth[(y - 45) ** 2 + (x - 120) ** 2 < 18**2] = 1
    nothing = np.zeros(truth.shape, bool)
    clicks = [Click(row, col, True) for row in range(10, 80) for col in range(10, 81)]
    assert next_click(truth, nothing, clicks) == plain.next_click(truth, nothing, clicks)


def test_nothing_wrong_is_nothing_to_click() -> None:
    truth = np.zeros((9, 9), np.int8)
    truth[2:5, 2:5] = 1
    assert next_click(truth, truth == 1) is None


def test_mistakes_on_ignored_pixels_are_not_clicked() -> None:
    truth = np.zeros((9, 9), np.int8)
    truth[:, 4:] = -1
    assert next_click(truth, truth == -1) is None


def test_equal_depths_are_negative() -> None:
    """The rule is strict: a positive click needs a deeper miss than the deepest wrong addition."""
    truth = np.zeros((5, 12), np.int8)
    truth[1:4, 1:4] = 1
    prediction = np.zeros((5, 12), bool)
    prediction[1:4, 7:10] = True
    assert next_click(truth, prediction) == Click(2, 8, False)


@pytest.mark.parametrize("flipped", [(1, 1), (-1, 1), (1, -1), (-1, -1)])
def test_squares_far_apart_are_found_in_whatever_blocks_they_are(flipped: tuple[int, int]) -> None:
    """So far that each is transformed on its own; the deepest pixel is in the first or a later block of its square."""
    for side in range(11, 28):
        truth = np.zeros((200, 210), np.int8)
        truth[3 : 3 + side, 5 : 5 + side] = 1
        truth[190 - side + 2 : 190, 200 - side + 2 : 200] = 1
        truth = truth[:: flipped[0], :: flipped[1]]
        nothing = np.zeros(truth.shape, bool)
        assert next_click(truth, nothing) == plain.next_click(truth, nothing), side


# Clicks off the centre


def test_a_drawn_click_lies_on_the_error_that_the_centred_one_corrects() -> None:
    truth = np.zeros((40, 50), np.int8)
    truth[5:25, 30:50] = 1  # up to the right edge
    truth[30:35, 3:6] = 1  # smaller: not clicked on
    nothing, everything = np.zeros(truth.shape, bool), np.ones(truth.shape, bool)
    found = {drawn_click(truth, nothing, [], group, "a") for group in range(40)}
    assert len(found) > 20
    for click in found:
        assert click is not None
        assert click.positive
        assert 5 <= click.row < 25
        assert 30 <= click.col < 50
    wrong = drawn_click(truth, everything, [], 0, "a")
    assert wrong is not None
    assert not wrong.positive
    assert truth[int(wrong.row), int(wrong.col)] == 0
    assert drawn_click(truth, truth == 1, [], 0, "a") is None


def test_a_drawn_click_depends_on_group_object_and_number() -> None:
    truth = np.zeros((60, 60), np.int8)
    truth[5:55, 5:55] = 1
    nothing = np.zeros(truth.shape, bool)
    one = drawn_click(truth, nothing, [], 3, "a")
    assert one == Click(54, 46, True), "a number of 2026-11-30: published results are repeated with these clicks"
    assert one is not None
    ragged = np.array(
        [[0] * 9, [0, 0, 1, 1, 1, 1, 1, 1, 0], [0, 1, 1, 1, 0, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1, 1, 1, 0]], np.int8
    )
    ragged = np.vstack([ragged, [[0, 1, 1, 1, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1, 1, 0, 0], [0] * 9]]).astype(np.int8)
    nowhere = np.zeros(ragged.shape, bool)
    assert drawn_click(ragged, nowhere, [], 961, "a") == Click(3, 6, True), "of depths to a 64th of a pixel"
    assert len({one, drawn_click(truth, nothing, [], 4, "a"), drawn_click(truth, nothing, [], 3, "b")}) == 3
    assert drawn_click(truth, nothing, [one], 3, "a") != one


def test_no_pixel_is_drawn_twice() -> None:
    """Also in the first and the last row and column of the error, and with clicks beyond it."""
    truth = np.zeros((6, 6), np.int8)
    truth[1:3, 2:4] = 1
    used = [Click(row, col, True) for row, col in ((1, 2), (1, 3), (2, 2), (0, 0), (3, 2), (1, 4), (5, 5))]
    assert {drawn_click(truth, np.zeros((6, 6), bool), used, group, "a") for group in range(9)} == {Click(2, 3, True)}
    used[2] = Click(2, 3, True)
    assert {drawn_click(truth, np.zeros((6, 6), bool), used, group, "a") for group in range(9)} == {Click(2, 2, True)}


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 0.05, 0.5]))
def test_a_box_around_an_object(seed: int, jitter: float) -> None:
    """Each side moves by no more than its share, and at least one pixel of the image is left."""
    rng = np.random.default_rng(seed)
    region = shapes_in(rng, *rng.integers(1, 60, 2))
    box = box_around(region, jitter, str(seed))
    if not region.any():
        assert box is None
        return
    rows, cols = (np.flatnonzero(region.any(axis)) for axis in (1, 0))
    exact = Box(int(rows[0]), int(rows[-1]), int(cols[0]), int(cols[-1]))
    assert box is not None
    assert box == box_around(region, jitter, str(seed))
    assert box == box.inside(*region.shape)
    most = jitter * np.repeat(exact.size, 2) + 0.5 if jitter else np.zeros(4)
    assert (np.abs(np.subtract(box, exact)) <= most).all()
    if jitter == 0.5 and min(exact.size) > 20:
        assert box != box_around(region, jitter, "another object")


def test_what_an_annotator_does_first() -> None:
    """The box of the object where it has one, and only first; after it, the clicks without a box."""
    truth = np.zeros((40, 50), np.int8)
    truth[10:20, 5:30] = 1
    truth[30:] = -1
    nothing = np.zeros(truth.shape, bool)
    protocol = load_protocol("ritm", ["first=box"])
    click = next_click(truth, nothing)
    box = next_prompt(protocol, truth, nothing, [], "a/b")
    assert box == Box(10, 19, 5, 29)
    assert next_prompt(protocol, truth, nothing, [box], "a/b") == click
    assert next_prompt(load_protocol("ritm"), truth, nothing, [], "a/b") == click
    moved = [
        next_prompt(load_protocol("ritm", ["first=box", "box_jitter=0.3", *more]), truth, nothing, [], key)
        for more, key in (([], "a/b"), ([], "a/c"), (["click_group=1"], "a/b"))
    ]
    assert len({box, *moved}) == 4
    absent = np.where(truth == 1, 0, truth).astype(np.int8)
    assert next_prompt(protocol, absent, truth == 1, [], "a/b") == next_click(absent, truth == 1)
    assert next_prompt(protocol, absent, nothing, [], "a/b") == Click(0, 0, False)
    assert not {"first", "box_jitter"} & load_protocol("ritm").model_dump().keys(), "earlier runs have no such keys"
    stops = load_protocol("ritm", ["first=box", "click_when_perfect=false"])
    assert next_prompt(stops, truth, truth == 1, [], "a/b") is None
