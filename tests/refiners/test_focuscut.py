"""FocusCut against recorded answers, and what its views must show."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hrseg_cli.errors import HrsegError
from hrseg_cli.interaction import Click
from hrseg_cli.refiners import Look
from hrseg_cli.refiners.focuscut import Focus, focus, follow, next_scale, radius_of, views

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "focuscut.npz") as file:
        return {key: file[key] for key in file.files}


def clicks_of(rows: np.ndarray) -> list[Click]:
    return [Click(int(y), int(x), bool(label)) for x, y, label in np.atleast_2d(rows)]


def toy(view: Look) -> np.ndarray:
    """The network of the recorded answers: redness, the previous mask, and nearness to clicks."""
    red = (view.image[..., 0] / np.float32(255) - np.float32(0.485)) / np.float32(0.229)
    logits = 4 * red + 1.5 * (view.previous - 0.5)
    for positive, sign in ((True, 1.5), (False, -1.5)):
        away = np.ones(view.previous.shape, np.uint8)
        for click in view.clicks:
            if click.positive == positive:
                away[int(click.row), int(click.col)] = 0
        distance = cv2.distanceTransform(away, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) if not away.all() else np.inf
        logits = logits + sign * np.exp(-np.minimum(distance, 255) / 8)
    return np.asarray(1 / (1 + np.exp(-logits)), np.float32)


# Recorded answers


@pytest.mark.parametrize("number", range(6))
def test_recorded_radius(golden: dict[str, np.ndarray], number: int) -> None:
    (click,) = clicks_of(golden[f"er{number}_pt"])
    before, after = (golden[f"er{number}_{name}"] > 0 for name in ("pre", "pred"))
    radius, is_detail = golden[f"er{number}_r"], bool(golden[f"er{number}_ifhr"])
    assert radius_of(click, before, after) == (radius, is_detail)
    assert focus(click, before, after) == (Focus(click, radius) if is_detail else None)


@pytest.mark.parametrize("number", range(4))
def test_recorded_change_of_scale(golden: dict[str, np.ndarray], number: int) -> None:
    before, after = (golden[f"ratio{number}_{name}"] > 0 for name in "ab")
    expected = float(golden[f"ratio{number}"])
    assert next_scale(before, after) == (None if np.isnan(expected) else pytest.approx(expected, abs=1e-12))


def test_recorded_course(golden: dict[str, np.ndarray]) -> None:
    """Two places, three turns."""
    clicks = clicks_of(golden["e2e_pts"])
    places = [Focus(click, int(radius)) for click, radius in zip(clicks[1:], golden["e2e_expand_r"], strict=True)]
    changes = []

    def answer(view: Look) -> np.ndarray:
        probability = toy(view)
        changes.append(next_scale(view.previous, probability > 0.5))
        return probability

    before = golden["e2e_result_in"].copy()
    result = follow(answer, views(golden["e2e_img"], golden["e2e_result_in"], places, clicks, side=48))
    np.testing.assert_allclose(changes, golden["e2e_ratios"], atol=1e-12)
    np.testing.assert_allclose(result, golden["e2e_result_out"], atol=1e-6)
    np.testing.assert_array_equal(result > 0.5, golden["e2e_out"])
    np.testing.assert_array_equal(golden["e2e_result_in"], before)  # handed in, and left alone


# What must hold


def image_of(mask: np.ndarray) -> np.ndarray:
    return np.repeat(np.where(mask, 210, 30).astype(np.uint8)[..., None], 3, 2)


@given(st.integers(0, 59), st.integers(0, 79), st.integers(5, 40), st.integers(0, 59), st.integers(0, 79))
def test_a_click_lies_on_the_same_pixel_in_a_view(row: int, col: int, radius: int, at: int, along: int) -> None:
    """Every click within the view, and no other, shows the image's pixel under it, also at the image's border."""
    image = np.indices((60, 80)).sum(0)[..., None].repeat(3, 2).astype(np.uint8)
    image[at, along] = 255
    clicks = [Click(at + 0.9, along + 0.9, False), Click(row, col, True)]
    side = 5 * (2 * radius + 1)  # every pixel becomes 5 x 5, whose middle is the pixel itself
    course = views(image, np.zeros((60, 80), np.float32), [Focus(clicks[1], radius)], clicks, side=side, scale=1.0)
    if radius <= 5:
        assert next(course, None) is None
        return
    view = next(course)
    inside = [c for c in clicks if abs(int(c.row) - row) <= radius and abs(int(c.col) - col) <= radius]
    assert [c.positive for c in view.clicks] == [c.positive for c in inside]
    for there, here in zip(view.clicks, inside, strict=True):
        assert view.image[int(there.row), int(there.col), 0] == image[int(here.row), int(here.col), 0]


def test_beyond_the_image_a_view_is_black_and_nothing_is_written() -> None:
    image, probability = np.full((40, 50, 3), 90, np.uint8), np.full((40, 50), 0.75, np.float32)
    course = views(image, probability, [Focus(Click(0, 0, True), 10)], [], side=21, scale=1.0)
    view = next(course)
    assert not view.image[:10].any()
    assert (view.image[10:, 10:] == 90).all()
    assert view.previous.tolist() == (view.image[..., 0] > 0).tolist()
    with pytest.raises(StopIteration) as end:
        course.send(np.where(view.previous, np.float32(0.9), np.float32(0.1)))
    result = end.value.value
    np.testing.assert_allclose(result[:11, :11], 0.9)
    np.testing.assert_allclose(result[11:], 0.75)
    np.testing.assert_allclose(result[:, 11:], 0.75)


def test_overlapping_answers_are_averaged() -> None:
    image, probability = np.zeros((40, 60, 3), np.uint8), np.zeros((40, 60), np.float32)
    places = [Focus(Click(20, 20, True), 10), Focus(Click(20, 35, False), 10)]
    answers = iter([0.2, 0.4])
    result = follow(
        lambda view: np.full((32, 32), next(answers), np.float32),
        views(image, probability, places, [], side=32, scale=1.0),
    )
    np.testing.assert_allclose(result[20, [15, 27, 40, 50]], [0.2, 0.3, 0.4, 0], atol=1e-6)


def test_views_zoom_in_on_what_changes() -> None:
    """A small hole is found in the first view and shown many times larger in the second."""
    truth = np.zeros((200, 200), bool)
    truth[20:180, 20:180] = True
    mask = truth.copy()
    truth[95:106, 95:106] = False
    places, seen = [Focus(Click(100, 100, False), 40)], []

    def answer(view: Look) -> np.ndarray:
        seen.append(int(np.count_nonzero(view.image[..., 0] < 120)))
        return (view.image[..., 0] / np.float32(255)).astype(np.float32)

    result = follow(answer, views(image_of(truth), mask.astype(np.float32), places, [], side=96))
    np.testing.assert_array_equal(result > 0.5, truth)
    assert seen[1] > 50 * seen[0]


def test_no_further_view_where_nothing_changes() -> None:
    mask = np.zeros((100, 100), np.float32)
    mask[30:70, 30:70] = 1
    shown = []

    def answer(view: Look) -> np.ndarray:
        shown.append(view)
        return view.previous.astype(np.float32)

    result = follow(answer, views(image_of(mask > 0), mask, [Focus(Click(50, 50, True), 20)], [], side=71))
    assert len(shown) == 1
    np.testing.assert_array_equal(result, mask)


def test_a_fixed_ratio_starts_every_turn_from_the_first_mask() -> None:
    image, probability = np.zeros((80, 80, 3), np.uint8), np.zeros((80, 80), np.float32)
    shown = []

    def answer(view: Look) -> np.ndarray:
        shown.append(view.previous.any())
        return np.full(view.previous.shape, 0.9, np.float32)

    follow(answer, views(image, probability, [Focus(Click(40, 40, True), 20)], [], side=32, ratio=0.8))
    assert shown == [False, False, False]
    shown.clear()
    follow(answer, views(image, probability, [Focus(Click(40, 40, True), 20)], [], side=32))
    assert shown == [False, True, True]


def test_a_place_too_small_to_look_at_is_skipped() -> None:
    """The public code ends with an error where its first view would be."""
    image, probability = np.zeros((40, 40, 3), np.uint8), np.full((40, 40), 0.3, np.float32)
    result = follow(
        lambda view: pytest.fail("shown"), views(image, probability, [Focus(Click(20, 20, True), 5)], [], scale=1.0)
    )
    np.testing.assert_array_equal(result, probability)


def test_a_mask_of_another_size_is_refused() -> None:
    with pytest.raises(HrsegError, match=r"\(40, 30\)"):
        next(views(np.zeros((30, 40, 3), np.uint8), np.zeros((40, 30), np.float32), [], []))


def test_no_view_is_wider_than_the_image() -> None:
    """Far from any outline, with a model that changes its mind about everything, so that views want to grow."""
    image, probability = np.full((60, 100, 3), 90, np.uint8), np.zeros((60, 100), np.float32)
    widths = []

    def answer(view: Look) -> np.ndarray:
        rows = np.count_nonzero(view.image[..., 0].any(1))  # that show some of the image's 60
        widths.append(60 * 200 / rows)
        return np.where(view.previous, np.float32(0.1), np.float32(0.9))

    follow(answer, views(image, probability, [Focus(Click(30, 50, True), 80)], [], side=200))
    assert len(widths) == 3
    assert max(widths) < 103


def test_clicks_without_an_outline_nearby() -> None:
    """On an empty or full mask that stays as it is there is no distance to an outline."""
    for mask in (np.zeros((30, 40), bool), np.ones((30, 40), bool)):
        assert focus(Click(10.5, 20.5, True), mask, mask) == Focus(Click(10.5, 20.5, True), 5)


def test_parts_that_touch_at_corners_are_two() -> None:
    before, after = np.zeros((60, 60), bool), np.zeros((60, 60), bool)
    after[:30, :30] = before[:30, :30] = True
    after[40:44, 40:44] = after[44:58, 44:58] = True
    assert radius_of(Click(41, 41, True), before, after) == (5, True)
    assert radius_of(Click(50, 50, True), before, after)[0] == 7


def test_all_changed() -> None:
    """There is no unchanged pixel to measure from; the next view is as large as may be."""
    mask = np.zeros((48, 48), bool)
    assert next_scale(mask, ~mask) == pytest.approx(1.1)
