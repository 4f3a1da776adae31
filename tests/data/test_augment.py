"""Windows, colours and composites of training samples."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from hrseg_cli.data.augment import augment, duplicate, paste
from hrseg_cli.recipe import Augmentation, Composite

STILL: dict[str, Any] = {"scale": (1.0, 1.0), "flip": 0.0, "colour_probability": 0.0, "keep_background": 1.0}
PLAIN = Composite(colour=(0.0, 0.0), flip=0.0)
TILE = 16


def coordinates(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """An image whose red and green tell where a pixel was, whose blue tells that it was in the image; a checkerboard
    and its reverse as objects."""
    rows, cols = np.mgrid[:height, :width]
    image = np.dstack([rows, cols, np.full_like(rows, 255)]).astype(np.uint8)
    board = (rows // TILE + cols // TILE) % 2
    return image, np.stack([board, 1 - board]).astype(np.int8)


def rectangle(height: int, width: int, rows: slice, cols: slice) -> np.ndarray:
    truth = np.zeros((height, width), np.int8)
    truth[rows, cols] = 1
    return truth


# ---- geometry --------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(20, 90), st.integers(20, 90), st.integers(0, 99))
def test_at_scale_1_a_sample_is_a_piece_of_the_image(height: int, width: int, seed: int) -> None:
    image, truths = coordinates(90, 90)
    new, masks = augment(image, truths, (height, width), Augmentation(**STILL), np.random.default_rng(seed))
    top, left = int(new[0, 0, 0]), int(new[0, 0, 1])
    assert np.array_equal(new, image[top : top + height, left : left + width])
    assert np.array_equal(masks, truths[:, top : top + height, left : left + width])


def test_every_place_of_the_window_is_drawn_equally_often() -> None:
    image, truths = coordinates(20, 24)
    rng = np.random.default_rng(0)
    corners = [augment(image, truths, (17, 23), Augmentation(**STILL), rng)[0][0, 0, :2] for _ in range(1600)]
    _, counts = np.unique(corners, axis=0, return_counts=True)
    assert len(counts) == 4 * 2
    assert abs(counts - 200).max() < 60


def test_padding_is_centred_with_the_odd_pixel_below_and_to_the_right() -> None:
    """As PadIfNeeded of RITM's pipeline; black and background."""
    image, truths = np.full((5, 8, 3), 200, np.uint8), np.ones((1, 5, 8), np.int8)
    new, masks = augment(image, truths, (10, 11), Augmentation(**STILL), np.random.default_rng(0))
    expected = rectangle(10, 11, slice(2, 7), slice(1, 9))
    assert np.array_equal(masks[0], expected)
    assert np.array_equal(new, np.repeat(expected[..., None], 3, axis=2) * np.uint8(200))
    _, masks = augment(image, truths, (10, 11), Augmentation(**STILL, pad="ignore"), np.random.default_rng(0))
    assert np.array_equal(masks[0], 2 * expected - 1)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(50, 250), st.integers(50, 250)),
    st.tuples(st.integers(40, 120), st.integers(40, 120)),
    st.floats(0.4, 2.5),
    st.fixed_dictionaries(
        {
            "flip": st.sampled_from([0.0, 1.0]),
            "rotate90": st.sampled_from([0.0, 1.0]),
            "rotate_degrees": st.sampled_from([0.0, 20.0, 180.0]),
            "elastic": st.sampled_from([0.0, 0.05]),
            "zoom": st.sampled_from([0.0, 1.0]),
        }
    ),
    st.integers(0, 2**32),
)
def test_image_and_masks_stay_together(
    full: tuple[int, int], crop: tuple[int, int], factor: float, changes: dict[str, float], seed: int
) -> None:
    """Wherever a pixel comes from, the mask is that of the place its colour tells; up to two pixels at edges."""
    image, truths = coordinates(*full)
    truths = np.concatenate([truths, np.zeros((1, *full), np.int8)])
    chosen = Augmentation(**{**STILL, **changes, "scale": (factor, factor)}, pad="ignore")
    new, masks = augment(image, truths, crop, chosen, np.random.default_rng(seed))
    assert new.shape == (*crop, 3)
    assert masks.shape == (3, *crop)
    assert not masks[2][masks[0] >= 0].any()
    inside = cv2.erode((new[..., 2] == 255).astype(np.uint8), np.ones((5, 5)), borderValue=255) > 0
    outside = cv2.dilate(new[..., 2], np.ones((5, 5))) == 0
    assert (masks[:, outside] == -1).all()
    assert inside.any()
    rows, cols = (new[..., axis].astype(float) for axis in (0, 1))
    slack = 2 + 2 / min(factor, 0.3 if changes["zoom"] else 1)
    near = (np.minimum((rows + 0.5) % TILE, -(rows + 0.5) % TILE) < slack) | (
        np.minimum((cols + 0.5) % TILE, -(cols + 0.5) % TILE) < slack
    )
    board = (rows // TILE + cols // TILE) % 2
    for mask, expected in ((masks[0], board), (masks[1], 1 - board)):
        assert np.array_equal(mask[inside & ~near], expected[inside & ~near])


def test_flips_and_turns_are_all_drawn() -> None:
    image, truths = coordinates(64, 64)
    rng = np.random.default_rng(1)
    chosen = Augmentation(**{**STILL, "flip": 0.5, "rotate90": 0.5})
    news = [augment(image, truths, (64, 64), chosen, rng)[0] for _ in range(400)]
    counts = {}
    for new in news:
        key = tuple(new[0, 0, :2].tolist()), tuple(new[0, -1, :2].tolist())
        counts[key] = counts.get(key, 0) + 1
    assert len(counts) == 8
    upright = counts[(0, 0), (0, 63)] / 400
    assert 0.22 < upright < 0.41  # no flip (1/2) and no turn (1/2 + 1/2 * 1/4)


def test_a_rotation_by_nothing_is_the_plain_resize() -> None:
    """The remap must put pixel centres where the resize puts them."""
    image = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8), (0, 0), 3)
    image = cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX)
    truths = coordinates(90, 70)[1]
    for factor, crop in ((1.6, (60, 80)), (1.0, (99, 41)), (0.7, (40, 60))):
        results = []
        for degrees in (0.0, 1e-9):
            chosen = Augmentation(**{**STILL, "scale": (factor, factor), "rotate_degrees": degrees})
            results.append(augment(image, truths, crop, chosen, np.random.default_rng(3)))
        inner = slice(2, -2), slice(2, -2)
        filled = cv2.erode((results[0][0].sum(2) > 0).astype(np.uint8), np.ones((5, 5))) > 0
        gap = np.abs(results[0][0].astype(int) - results[1][0])[filled]
        assert gap.max() <= 6  # remap knows 32 places between two pixels
        assert (results[0][1][0] != results[1][1][0])[inner].mean() < 0.01


def test_shrinking_a_lot_takes_the_average() -> None:
    """A linear resize of fine stripes to a quarter reads the same two of each four pixels: white."""
    image = np.zeros((160, 160, 3), np.uint8)
    image[:, 1::4] = image[:, 2::4] = 255
    for degrees in (0.0, 1e-9):
        chosen = Augmentation(**{**STILL, "scale": (0.25, 0.25), "rotate_degrees": degrees})
        new, _ = augment(image, np.zeros((0, 160, 160), np.int8), (30, 30), chosen, np.random.default_rng(0))
        assert abs(new.astype(int) - 127).max() <= 1


# ---- which window ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0.0, 0.2, 1.0])
def test_background_is_kept_as_often_as_asked(keep: float) -> None:
    """Each window without an object is kept with that probability, else drawn again: RITM's loop."""
    image, truth = np.zeros((40, 40, 3), np.uint8), rectangle(40, 40, slice(0, 12), slice(0, 40))
    chosen = Augmentation(**{**STILL, "keep_background": keep})
    rng = np.random.default_rng(0)
    without = sum(not augment(image, truth[None], (10, 10), chosen, rng)[1].any() for _ in range(2000)) / 2000
    bare = 19 / 31  # of the 31 windows of 10 rows, those below row 12
    assert abs(without - bare * keep / (1 - bare * (1 - keep))) < 0.04


def test_an_object_of_one_pixel_is_found_in_a_large_image() -> None:
    image, truth = np.zeros((500, 600, 3), np.uint8), rectangle(500, 600, slice(407, 408), slice(599, 600))
    chosen = Augmentation(**{**STILL, "keep_background": 0.0})
    rng = np.random.default_rng(0)
    for _ in range(20):
        assert augment(image, truth[None], (20, 30), chosen, rng)[1].sum() == 1


@pytest.mark.parametrize("zoom", [0.0, 1.0])
def test_only_ignored_pixels_are_no_object(zoom: float) -> None:
    image, truth = np.zeros((90, 90, 3), np.uint8), np.full((90, 90), -1, np.int8)
    truth[80, 10] = 1
    chosen = Augmentation(**{**STILL, "keep_background": 0.0, "zoom": zoom}, zoom_limit=1.0)
    rng = np.random.default_rng(0)
    for _ in range(20):
        assert (augment(image, truth[None], (5, 7), chosen, rng)[1] == 1).sum() == 1


@pytest.mark.parametrize("count", [0, 2])
def test_without_any_object_the_sample_is_a_plain_crop(count: int) -> None:
    image, _ = coordinates(50, 60)
    chosen = Augmentation(**{**STILL, "keep_background": 0.0, "zoom": 1.0})
    new, masks = augment(image, np.zeros((count, 50, 60), np.int8), (20, 30), chosen, np.random.default_rng(0))
    top, left = int(new[0, 0, 0]), int(new[0, 0, 1])
    assert np.array_equal(new, image[top : top + 20, left : left + 30])
    assert masks.shape == (count, 20, 30)
    assert not masks.any()


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_zoom_shows_all_of_one_object_as_large_as_asked(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(30, 250)), data.draw(st.integers(30, 250))
    top, left = data.draw(st.integers(0, height - 10)), data.draw(st.integers(0, width - 10))
    bottom, right = data.draw(st.integers(top + 5, height)), data.draw(st.integers(left + 5, width))
    expansion = data.draw(st.floats(1.0, 2.0))
    image, _ = coordinates(height, width)
    truth = rectangle(height, width, slice(top, bottom), slice(left, right))
    chosen = Augmentation(**STILL, zoom=1.0, zoom_expansion=(expansion, expansion), zoom_limit=3.0)
    crop = 96, 144
    new, masks = augment(image, truth[None], crop, chosen, np.random.default_rng(data.draw(st.integers(0, 999))))
    seen = new[masks[0] == 1]
    fits = [
        want / min(n, side * expansion)
        for want, n, side in zip(crop, (height, width), (bottom - top, right - left), strict=True)
    ]
    factor = min(3.0, *fits)
    for axis, (start, stop) in enumerate(((top, bottom), (left, right))):
        slack = 1 + 1 / factor
        assert seen[:, axis].min() <= start + slack
        assert seen[:, axis].max() >= stop - 1 - slack
        extent = np.ptp(np.nonzero(masks[0])[axis]) + 1
        assert extent == pytest.approx((stop - start) * factor, rel=0.03, abs=2)


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_the_smallest_images_and_crops(height: int, width: int, rows: int, cols: int, seed: int) -> None:
    image, truth = np.full((height, width, 3), 9, np.uint8), np.zeros((1, height, width), np.int8)
    truth[0, seed % height, seed % width] = 1
    chosen = Augmentation(rotate90=0.5, rotate_degrees=5.0 * (seed % 2), elastic=0.05, zoom=0.5, blur=0.5, jpeg=0.5)
    new, masks = augment(image, truth, (rows, cols), chosen, np.random.default_rng(seed))
    assert (new.shape, new.dtype) == ((rows, cols, 3), np.uint8)
    assert (masks.shape, masks.dtype) == ((1, rows, cols), np.int8)


# ---- colours ---------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.floats(-0.25, 0.25), st.floats(-0.15, 0.4))
def test_brightness_and_contrast_are_those_of_ritm(brightness: float, contrast: float) -> None:
    """albumentations 0.5.2: v * (1 + contrast) + brightness * 255 in float32, clipped, cut to a whole number."""
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    chosen = Augmentation(
        **{**STILL, "colour_probability": 1.0},
        brightness=(brightness, brightness),
        contrast=(contrast, contrast),
        rgb_shift=0.0,
    )
    image = np.repeat(grey[..., None], 3, axis=2)
    new, _ = augment(image, np.zeros((0, 16, 16), np.int8), (16, 16), chosen, np.random.default_rng(0))
    values = grey.astype(np.float32) * np.float32(1 + contrast) + np.float32(brightness * 255)
    assert np.array_equal(new, np.repeat(values.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2))


def test_each_channel_shifts_by_its_own_amount_and_is_clipped() -> None:
    image = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    chosen = Augmentation(**{**STILL, "colour_probability": 1.0}, brightness=(0.0, 0.0), contrast=(0.0, 0.0))
    rng = np.random.default_rng(0)
    shifts = []
    for _ in range(50):
        new, _ = augment(image, np.zeros((0, 16, 16), np.int8), (16, 16), chosen, rng)
        shift = new[8, 0].astype(int) - image[8, 0]
        assert np.array_equal(new, (image + shift).clip(0, 255))
        shifts.append(shift)
    assert np.abs(shifts).max() == 10
    assert np.std(shifts) == pytest.approx(20 / 12**0.5, rel=0.15)
    assert np.abs(np.corrcoef(np.transpose(shifts)) - np.eye(3)).max() < 0.5


def test_colour_is_changed_as_often_as_asked() -> None:
    """Brightness with contrast, and the shift, fall independently: a quarter of a quarter stays as it was."""
    image, truths = coordinates(8, 8)
    chosen = Augmentation(**{**STILL, "colour_probability": 0.75})
    rng = np.random.default_rng(0)
    same = sum(np.array_equal(augment(image, truths, (8, 8), chosen, rng)[0], image) for _ in range(2000))
    assert 85 < same < 170


@pytest.mark.parametrize("kind", ["blur", "noise", "jpeg"])
def test_worse_pictures_keep_their_masks_and_colours(kind: str) -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    image[:] = (200, 60, 20)
    image[16:48, 16:48] = (20, 90, 220)
    truths = rectangle(64, 64, slice(16, 48), slice(16, 48))[None]
    chosen = Augmentation(**STILL, **{kind: 1.0})
    new, masks = augment(image, truths, (64, 64), chosen, np.random.default_rng(2))
    assert np.array_equal(masks, truths)
    assert not np.array_equal(new, image)
    for part in (slice(22, 42), slice(0, 10)):
        assert np.abs(new[part, part].mean(axis=(0, 1)) - image[part, part].mean(axis=(0, 1))).max() < 5


# ---- what holds for all ----------------------------------------------------------------------------------------------


def test_the_same_state_gives_the_same_bytes_and_the_arguments_stay_as_they_were() -> None:
    image = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    truths = coordinates(70, 90)[1]
    before = image.copy(), truths.copy()
    rich = Augmentation(rotate90=0.3, rotate_degrees=9.0, elastic=0.03, blur=0.5, jpeg=0.5, noise=0.5, zoom=0.5)
    for chosen in (Augmentation(), rich, Augmentation(**STILL)):
        for seed in range(8):
            runs = []
            for _ in range(2):
                rng = np.random.default_rng(seed)
                made = paste(*augment(image, truths, (50, 60), chosen, rng), image, truths[0], rng, Composite())
                runs.append((*(array.tobytes() for array in made), rng.random()))
            assert runs[0] == runs[1]
    new, masks = augment(image, truths, (70, 90), Augmentation(**STILL), np.random.default_rng(0))
    new[:], masks[:] = 0, 0
    assert np.array_equal(image, before[0])
    assert np.array_equal(truths, before[1])


def test_settings_are_checked_where_a_recipe_is_read() -> None:
    assert TypeAdapter(Augmentation).validate_python({"scale": [0.5, 2], "pad": "ignore"}).scale == (0.5, 2.0)
    for wrong in ({"flip": 2}, {"scale": [0, 1]}, {"zoom_expansion": [0.5, 1]}, {"pad": "grey"}):
        with pytest.raises(ValidationError):
            TypeAdapter(Augmentation).validate_python(wrong)


# ---- composites ------------------------------------------------------------------------------------------------------


def disc(height: int, width: int, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """A red disc on green, with a ring of blue that is void."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 1] = 255
    truth = np.zeros((height, width), np.int8)
    centre = width // 2, height // 2
    cv2.circle(image, centre, radius + 4, (0, 0, 255), -1)
    cv2.circle(truth, centre, radius + 4, -1, -1)
    cv2.circle(image, centre, radius, (255, 0, 0), -1)
    cv2.circle(truth, centre, radius, 1, -1)
    return image, truth


@settings(max_examples=60, deadline=None)
@given(st.integers(40, 120), st.integers(40, 120), st.floats(0.01, 0.3), st.integers(0, 2**32))
def test_a_paste_changes_the_object_and_its_edge_alone(height: int, width: int, area: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    truths = np.stack([np.ones((height, width)), -np.ones((height, width)), np.zeros((height, width))]).astype(np.int8)
    donor = disc(100, 90, 30)
    made, masks = paste(image, truths, *donor, rng, Composite(area=(area, area), colour=(0.0, 0.0)))
    assert masks.shape == (4, height, width)
    new = masks[-1] == 1
    assert set(np.unique(masks[-1])) == {0, 1}
    assert (masks[:-1, new] == 0).all()
    assert np.array_equal(masks[:-1, ~new], truths[:, ~new])
    edge = cv2.dilate(new.astype(np.uint8), np.ones((9, 9))) > 0
    assert np.array_equal(made[~edge], image[~edge])
    inner = cv2.erode(new.astype(np.uint8), np.ones((9, 9)), borderValue=0) > 0
    assert np.abs(made[inner] - (255.0, 0, 0)).max(initial=0) <= 3  # what Lab in whole numbers costs
    pixels = (donor[1] == 1).sum()
    whole = pixels * min((area * height * width / pixels) ** 0.5, 1.5, height / 61, width / 61) ** 2
    slack = 4 + 2 * whole**0.5  # sides are whole pixels
    assert 0.5 * whole - slack <= new.sum() <= whole + slack


@pytest.mark.parametrize("ground", [(0, 0, 0), (255, 0, 0)])
def test_nothing_around_the_object_comes_along(ground: tuple[int, int, int]) -> None:
    """A halo of the old background, or of void, would be green or blue; one of nothing would be black on red."""
    rng = np.random.default_rng(0)
    image = np.full((90, 100, 3), ground, np.uint8)
    for share in (0.01, 0.05, 0.2, 0.6):
        for feather in (0.0, 0.6, 1.5):
            chosen = Composite(area=(share, share), enlarge=4.0, colour=(0.0, 0.0), feather=(feather, feather))
            made, masks = paste(image, np.zeros((0, 90, 100), np.int8), *disc(80, 80, 20), rng, chosen)
            assert masks[-1].any()
            assert made[..., 1:].max() <= 3  # what Lab in whole numbers costs
            assert made[..., 0].max() >= 252
            assert made[..., 0].min() >= min(ground[0], 252)


def test_a_small_donor_is_not_blown_up() -> None:
    donor, truth = np.zeros((9, 9, 3), np.uint8), rectangle(9, 9, slice(2, 8), slice(2, 8))
    rng = np.random.default_rng(0)
    chosen = Composite(area=(0.5, 0.5), enlarge=1.5)
    sizes = [
        paste(np.zeros((90, 100, 3), np.uint8), np.zeros((0, 90, 100), np.int8), donor, truth, rng, chosen)[1].sum()
        for _ in range(20)
    ]
    assert max(sizes) == pytest.approx(81, abs=8)


def test_truth_is_where_the_object_is_more_than_half_of_the_colour() -> None:
    made, masks = paste(
        np.zeros((90, 100, 3), np.uint8),
        np.zeros((1, 90, 100), np.int8),
        *disc(80, 80, 20),
        np.random.default_rng(5),
        PLAIN,
    )
    assert np.array_equal(made[..., 0] > 127, masks[-1] == 1)
    assert ((made[..., 0] > 0) & (made[..., 0] < 255)).any()  # the edge is soft


def test_objects_may_be_cut_by_the_border_but_half_stays() -> None:
    rng = np.random.default_rng(0)
    areas, borders = [], 0
    for _ in range(200):
        _, masks = paste(
            np.zeros((90, 100, 3), np.uint8),
            np.zeros((0, 90, 100), np.int8),
            *disc(80, 80, 20),
            rng,
            Composite(area=(0.1, 0.1)),
        )
        areas.append(masks.sum() / 900)
        borders += bool(masks[0, [0, -1]].any() or masks[0][:, [0, -1]].any())
    assert 0.47 < min(areas) < 0.75
    assert max(areas) == pytest.approx(1, abs=0.05)
    assert 40 < borders < 180


def test_what_its_photograph_cut_lies_at_the_border_again() -> None:
    donor, truth = disc(80, 80, 20)
    rng = np.random.default_rng(0)
    image, none = np.zeros((90, 100, 3), np.uint8), np.zeros((0, 90, 100), np.int8)
    for part, flip, place in (
        ((slice(0, 80), slice(40, 80)), 0.0, (0, slice(None), 0)),  # the right half: at the left border
        ((slice(0, 80), slice(40, 80)), 1.0, (0, slice(None), -1)),  # mirrored: at the right border
        ((slice(0, 80), slice(0, 40)), 0.0, (0, slice(None), -1)),
        ((slice(0, 40), slice(0, 80)), 0.5, (0, -1)),
        ((slice(40, 80), slice(0, 80)), 0.5, (0, 0)),
    ):
        for _ in range(20):
            chosen = Composite(area=(0.05, 0.05), flip=flip)
            _, masks = paste(image, none, donor[part], truth[part], rng, chosen)
            assert masks[place].any()


def test_colours_move_towards_the_image() -> None:
    dark = np.full((80, 80, 3), 40, np.uint8)
    bright, truth = np.full((60, 60, 3), 220, np.uint8), rectangle(60, 60, slice(20, 40), slice(20, 40))
    shades = []
    for strength in (0.0, 0.5, 1.0):
        chosen = Composite(colour=(strength, strength), area=(0.1, 0.1))
        made, masks = paste(dark, np.zeros((0, 80, 80), np.int8), bright, truth, np.random.default_rng(1), chosen)
        inner = cv2.erode(masks[0].astype(np.uint8), np.ones((7, 7))) > 0
        shades.append(float(made[inner].mean()))
    assert shades[0] == pytest.approx(220, abs=2)
    assert 100 < shades[1] < 160
    assert shades[2] == pytest.approx(40, abs=3)


def test_a_donor_without_an_object_changes_nothing() -> None:
    image, truths = coordinates(30, 40)
    nothing = np.full((20, 20), -1, np.int8)
    made, masks = paste(image, truths, np.zeros((20, 20, 3), np.uint8), nothing, np.random.default_rng(0), Composite())
    assert np.array_equal(made, image)
    assert np.array_equal(masks, truths)


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5), st.integers(0, 999))
def test_the_smallest_pastes(height: int, width: int, side: int, seed: int) -> None:
    made, masks = paste(
        np.zeros((height, width, 3), np.uint8),
        np.zeros((0, height, width), np.int8),
        np.full((side, side, 3), 255, np.uint8),
        np.ones((side, side), np.int8),
        np.random.default_rng(seed),
        Composite(),
    )
    assert made.shape == (height, width, 3)
    assert masks.shape == (1, height, width)


def test_copies_of_an_object_resemble_it_and_leave_its_mask() -> None:
    """Up to two further objects of about its size and colour; none where it is too large."""
    rng = np.random.default_rng(0)
    image, truth = disc(80, 100, 12)
    area = np.count_nonzero(truth == 1)
    counts = set()
    for _ in range(12):
        made, truths = duplicate(image, truth[None], rng, Composite())
        counts.add(len(truths))
        original, *copies = truths == 1
        assert not (original & (truth != 1)).any()
        assert 0.25 * area < np.count_nonzero(copies[-1]) < 1.7 * area
        inner = cv2.erode(copies[-1].astype(np.uint8), np.ones((5, 5))) > 0
        assert abs(made[inner].mean(0) - image[truth == 1].mean(0)).max() < 40
    assert counts == {2, 3}
    image, truth = disc(40, 40, 18)
    assert duplicate(image, truth[None], rng, Composite())[0] is image
