"""Boxes, and what a stored trace without optional values means."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest

from hrseg_cli.interaction import Box, Click, Sample, Trace, as_numbers


def test_the_centre_of_a_box_is_a_pixel_of_it() -> None:
    assert Box(4, 6, 10, 13).centre == Click(5, 11, True)
    assert Box(7, 7, 9, 9).centre == Click(7, 9, True)
    assert Box(4, 7, 10, 12).centre == Click(5, 11, True)


def test_both_ends_of_a_box_belong_to_it() -> None:
    assert Box(2, 5, 3, 3).size == (4, 1)
    box = Box(2, 9, 3, 8)
    assert box.covers(box)
    for outside in (Box(1, 9, 3, 8), Box(2, 10, 3, 8), Box(2, 9, 2, 8), Box(2, 9, 3, 9)):
        assert not box.covers(outside)
        assert outside.covers(box)


@pytest.mark.parametrize(
    ("box", "inside"),
    [
        (Box(-3, 50, -2, 60), Box(0, 19, 0, 29)),
        (Box(2, 5, 3, 8), Box(2, 5, 3, 8)),
        (Box(19, 40, 29, 40), Box(19, 19, 29, 29)),  # one pixel is left
        (Box(-5, 0, 4, 4), Box(0, 0, 4, 4)),
        (Box(20, 40, 3, 8), None),
        (Box(2, 5, 30, 40), None),
        (Box(-5, -1, 3, 8), None),
    ],
)
def test_the_part_of_a_box_inside_an_image(box: Box, inside: Box | None) -> None:
    assert box.inside(20, 30) == inside


def test_a_click_in_an_image_lies_on_one_of_its_pixels() -> None:
    inside = [Click(0, 0, True), Click(19.9, 29.9, True)]
    outside = [Click(-0.1, 5, True), Click(20, 5, True), Click(5, -0.1, True), Click(5, 30, True)]
    assert [click.lies_in(20, 30) for click in inside + outside] == [True] * 2 + [False] * 4


def test_a_record_without_size_and_area_has_none() -> None:
    """As runs of earlier versions stored them."""
    trace = Trace(
        id="a", dataset="d", clicks=(Click(1, 2, True),), scores={"iou": (0.5,)}, seconds=(), until={"iou": 0.9}
    )
    assert (trace.size, trace.area, trace.rule) == ((0, 0), 0, "")


def test_a_trace_keeps_its_boxes() -> None:
    trace = Trace("a", "d", (Box(1, 7, 2, 9), Click(3, 4.5, False)), {"iou": (0.5, 0.6)}, (0.1, 0.2), {"iou": 0.9})
    assert Trace.from_json(trace.to_json()) == trace
    assert [as_numbers(one) for one in trace.clicks] == [[1, 2, 7, 9], [3, 4.5, 0]]


@pytest.mark.parametrize("box", ["[7, 2, 1, 9]", "[1, 2, null, 9]", "[1, 2, 7, 9, 1]", '"1279"', "7", "[]"])
def test_a_trace_with_a_broken_box_is_no_trace(box: str) -> None:
    line = '{"id": "a", "dataset": "d", "clicks": [BOX, [1, 2, 1]], "iou": [0.5, 0.6]}'
    with pytest.raises(ValueError, match=r"box|values|unpack"):
        Trace.from_json(line.replace("BOX", box))


def test_a_trace_is_read_as_it_was_written() -> None:
    trace = Trace(
        id="Bär",
        dataset="d",
        clicks=(Click(1, 2.5, True), Click(3, 4, False)),
        scores={"iou": (0.5, 1 / 3)},
        seconds=(0.12345678, 2.0),
        until={"iou": 0.9},
        size=(20, 30),
        area=7,
        rule="half",
        notes={"stale": 1},
    )
    line = trace.to_json()
    assert '"id":"Bär"' in line
    assert '"clicks":[[1,2.5,1],[3,4,0]]' in line
    assert '"seconds":[0.1235,2.0]' in line
    assert Trace.from_json(line) == Trace(**vars(trace) | {"seconds": (0.1235, 2.0)})
    old = Trace.from_json('{"id": "a", "dataset": "d", "clicks": [[1, 2, 1]], "iou": [0.5], "biou": []}')
    assert old == Trace("a", "d", (Click(1, 2, True),), {"iou": (0.5,)}, (), {}, (0, 0), 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": 5},
        {"dataset": 5},
        {"clicks": [[True, 2, 1]]},
        {"clicks": [["1", 2, 1]]},
        {"iou": [0.5, 0.6]},
        {"seconds": [1, 2]},
        {"area": "7"},
        {"until": {"iou": None}},
    ],
)
def test_a_line_with_other_values_is_no_trace(wrong: dict[str, Any]) -> None:
    record = {"id": "a", "dataset": "d", "clicks": [[1, 2, 1]], "iou": [0.5]}
    assert Trace.from_json(json.dumps(record)).scores == {"iou": (0.5,)}
    with pytest.raises(ValueError, match=r"not a|values of"):
        Trace.from_json(json.dumps(record | wrong))
    with pytest.raises(ValueError):  # noqa: PT011 - a message of the reader's
        Trace.from_json(json.dumps(record | {"iou": [float("nan")]}))


def test_traces_and_samples_cannot_be_changed() -> None:
    """Several metrics, tables and tasks look at the same one."""
    sample = Sample("a", "d", np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.int8))
    for one in (sample, Trace("a", "d", (), {}, (), {})):
        with pytest.raises(FrozenInstanceError):
            one.id = "b"  # type: ignore[misc]
