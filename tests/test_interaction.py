"""Boxes, and what a stored trace without optional values means."""

from __future__ import annotations

import pytest

from hrseg_cli.interaction import Box, Click, Trace, as_numbers


def test_the_centre_of_a_box_is_a_pixel_of_it() -> None:
    assert Box(4, 6, 10, 13).centre == Click(5, 11, True)
    assert Box(7, 7, 9, 9).centre == Click(7, 9, True)


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
