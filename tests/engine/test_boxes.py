"""A box as a prompt: what a network that takes boxes is given, in pixels of its view, and what others get instead."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from hrseg_cli.engine.remote import Remote
from hrseg_cli.engine.runtimes import open_model
from hrseg_cli.engine.session import Session
from hrseg_cli.engine.simulate import Plan, simulate
from hrseg_cli.errors import HrsegError
from hrseg_cli.interaction import Box, Click, Sample
from hrseg_cli.models.base import Features, InteractiveModel
from hrseg_cli.recipe import Protocol, load_protocol

SIZE = (120, 160)
BOX = Box(30, 69, 40, 99)


class Filled(InteractiveModel):
    """Answers with the box it is given, or else with nothing; records the boxes and clicks."""

    name = "filled"
    has_encoder = True
    takes_boxes = True

    def __init__(self) -> None:
        super().__init__()
        self.boxes: list[list[float] | None] = []
        self.points: list[Tensor] = []

    def encode(self, image: Tensor) -> Features:
        return (image,)

    def decode(
        self, features: Features, previous: Tensor, points: Tensor, boxes: Tensor | None = None
    ) -> dict[str, Tensor]:
        self.boxes.append(None if boxes is None else boxes[0].tolist())
        self.points.append(points)
        logits = torch.full_like(previous, -5)
        if boxes is not None:
            top, left, bottom, right = (
                max(0, int(end) + last) for end, last in zip(boxes[0], (0, 0, 1, 1), strict=True)
            )
            logits[..., top:bottom, left:right] = 5
        return {"logits": logits}


class Plain(Filled):
    """The same without boxes."""

    takes_boxes = False


def session_of(model: InteractiveModel, protocol: Protocol | None = None, size: tuple[int, int] = SIZE) -> Session:
    return Session(model, np.zeros((*size, 3), np.uint8), protocol or load_protocol("fast"))


def filled(box: Box, size: tuple[int, int] = SIZE) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[box.top : box.bottom + 1, box.left : box.right + 1] = True
    return mask


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("fast", ["zoom.min_crop=8", "zoom.target=64"]),
        ("photo", ["zoom.min_crop=8", "zoom.target=200"]),
        ("fixed", []),
        ("plain", []),
        ("plain", ["flip=true"]),
        ("plain", ["tiles={size: 64, overlap: 16}"]),
        ("ritm", []),
    ],
)
def test_the_network_sees_the_box_where_it_was_drawn(name: str, changes: list[str]) -> None:
    """In crops, mirror images and tiles: the mask is the box again, up to two pixels."""
    session = session_of(Filled(), load_protocol(name, changes))
    mask = session.box(BOX)
    inner, outer = (filled(Box(BOX.top - by, BOX.bottom + by, BOX.left - by, BOX.right + by)) for by in (-2, 2))
    assert mask[inner].all()
    assert not mask[~outer].any()
    assert session.state.clicks == ()


def test_zoom_in_starts_from_the_box_and_keeps_it_in_view() -> None:
    model = Filled()
    session = session_of(model, load_protocol("fast", ["zoom.min_crop=8"]), (600, 800))
    session.box(Box(300, 339, 400, 459))
    crop = session.state.box
    assert crop is not None
    assert crop.covers(Box(300, 339, 400, 459))
    assert crop.size[0] <= 1.4 * 40 + 2
    session.click(Click(320, 430, True))
    assert session.state.box == crop, "the same crop, encoded once"
    assert model.boxes[0] == model.boxes[1], "the box stays part of the prompt"
    session.box(Box(10, 109, 20, 119))
    assert session.state.drawn == Box(10, 109, 20, 119), "a later box replaces the first"
    assert session.state.box is not None
    assert session.state.box.covers(Box(10, 109, 20, 119))
    assert session.undo()
    assert session.state.drawn == Box(300, 339, 400, 459)
    assert session.undo()
    assert session.undo()
    assert session.state.drawn is None
    assert session.redo()
    assert session.state.drawn == Box(300, 339, 400, 459)
    session.begin()
    session.click(Click(320, 430, True))
    assert model.boxes[-1] is None, "a new object has no box"


def test_a_box_is_clipped_to_the_image_and_one_beyond_it_is_refused() -> None:
    model = Filled()
    session = session_of(model)
    session.box(Box(-50, 40, 100, 900))
    assert session.state.drawn == Box(0, 40, 100, SIZE[1] - 1)
    before = session.state
    for beyond in (Box(-9, -1, 0, 9), Box(SIZE[0], 200, 0, 9), Box(9, 3, 0, 9)):
        with pytest.raises(HrsegError, match="covers no pixel of the image"):
            session.box(beyond)
    assert session.state is before


def test_a_single_pixel_is_a_box_in_any_view() -> None:
    model = Filled()
    session_of(model, load_protocol("fast", ["zoom.target=40"]), (500, 600)).box(Box(250, 250, 300, 300))
    assert model.boxes[-1] is not None
    top, left, bottom, right = model.boxes[-1]
    assert top <= bottom
    assert left <= right


def test_other_models_get_a_click_on_its_centre() -> None:
    model = Plain()
    session = session_of(model, load_protocol("photo", ["zoom.min_crop=8"]))
    session.box(BOX)
    assert session.state.clicks == (Click(49, 69, True),)
    assert set(map(str, model.boxes)) == {"None"}
    assert session.state.box is not None
    assert max(session.state.box.size) <= 1.4 * 60 + 2


@pytest.mark.parametrize("model", [Filled(), Plain()])
def test_a_simulated_annotator_that_starts_with_a_box(model: Filled) -> None:
    """The box is the first of the clicks that are counted, whatever the model makes of it."""
    truth = filled(BOX).astype(np.int8)
    truth[90:] = 1  # beyond the box, so that clicks follow
    sample = Sample("cat", "pets", np.zeros((*SIZE, 3), np.uint8), truth)
    plan = Plan(load_protocol("plain", ["first=box"]), {"iou": 0.9}, 3)
    trace, _ = simulate(sample, model, plan)
    assert trace.clicks[0] == Box(30, 119, 0, 159)
    assert all(isinstance(click, Click) for click in trace.clicks[1:])
    assert len(trace.clicks) == len(trace.scores["iou"]) == len(trace.seconds) == 3
    boxed = model.takes_boxes
    assert model.boxes[0] == ([30, 0, 119, 159] if boxed else None)
    assert ((model.points[0][..., 0] >= 0).sum(), trace.scores["iou"][0] > 0) == (0 if boxed else 1, boxed)


def test_a_remote_box_is_a_prompt_and_the_next_click_keeps_it() -> None:
    model = Filled()
    remote = Remote(model, load_protocol("plain"))
    drawn = (30.0, 40.0, 69.0, 99.0)

    def read() -> np.ndarray:
        return np.zeros((*SIZE, 3), np.uint8)

    assert np.array_equal(remote.mask("a", read, [], drawn), filled(BOX))
    assert not (model.points[-1][..., :2] >= 0).any(), "no click is made up"
    remote.mask("a", read, [Click(50, 60, True)], drawn)
    assert len(model.boxes) == 2, "one more answer"
    remote.mask("a", read, [Click(50, 60, True)], (31.0, 40.0, 69.0, 99.0))
    assert len(model.boxes) == 4, "another box starts over"


@pytest.mark.parametrize("name", ["clicknet_m", "clicknet_s"])
def test_the_shipped_network_follows_a_box(name: str) -> None:
    """Of two equal disks it takes the one in the box; outside of the box there is next to nothing."""
    rows, cols = np.mgrid[:240, :320]
    left, right = ((rows - 120) ** 2 + (cols - at) ** 2 < 45**2 for at in (90, 230))
    image = np.where((left | right)[..., None], (200, 60, 40), (60, 110, 60)).astype(np.uint8)
    session = Session(open_model(name)[0], image, load_protocol("fast"))
    for wanted, box in ((left, Box(75, 165, 45, 135)), (right, Box(75, 165, 185, 275))):
        session.begin()
        mask = session.box(box)
        assert (mask & wanted).sum() / (mask | wanted).sum() > 0.85
