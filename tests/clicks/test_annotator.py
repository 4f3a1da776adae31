"""The simulated annotator against RITM's Clicker and against a distance transform of the whole image."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from reference import GOLDEN
from scipy import ndimage

from hrseg_cli.clicks.annotator import deepest, next_click
from hrseg_cli.interaction import Click
from hrseg_cli.metrics.masks import iou

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
