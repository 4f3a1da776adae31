"""FocusCut in the click loop: which clicks ask for views, what the network is asked, and what a session keeps."""

from __future__ import annotations

import numpy as np
import torch
from tiny_photos import SameColour
from torch import Tensor

from hrseg_cli.engine.session import Session
from hrseg_cli.engine.simulate import Plan, simulate
from hrseg_cli.interaction import Click, Sample
from hrseg_cli.recipe import Protocol, load_protocol
from hrseg_cli.refiners.focuscut import Focus

PLAIN = load_protocol("plain", ["click_when_perfect=false"])
FOCUSED = load_protocol("plain", ["click_when_perfect=false", "focus={side: 48}"])
DETAIL = (slice(30, 36), slice(60, 66))  # a part of the object in another colour


class Counted(SameColour):
    """Counts the images that it sees, by size."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def forward(self, image: Tensor, points: Tensor) -> dict[str, Tensor]:
        self.seen.append(tuple(image.shape[-2:]))
        return super().forward(image, points)


def picture() -> tuple[np.ndarray, np.ndarray]:
    """A red square with a small blue part, and its mask."""
    image = np.full((90, 120, 3), 225, np.uint8)
    truth = np.zeros((90, 120), np.int8)
    image[20:70, 30:90], truth[20:70, 30:90] = (200, 60, 50), 1
    image[DETAIL] = (60, 80, 190)
    return image, truth


def clicked(protocol: Protocol, *clicks: Click) -> tuple[Session, Counted]:
    model = Counted()
    session = Session(model, picture()[0], protocol)
    for click in clicks:
        session.click(click)
    return session, model


OBJECT, PART = Click(50, 50, True), Click(33, 63, True)


def test_only_corrections_of_details_are_looked_at() -> None:
    session, model = clicked(FOCUSED, OBJECT)
    assert (session.state.focuses, model.seen) == ((), [(90, 120)])
    session.click(PART)
    # Five steps to the farthest changed pixel; one view, whose answer changes nothing more.
    assert session.state.focuses == (Focus(PART, 5),)
    assert model.seen == [(90, 120)] * 2 + [(48, 48)]
    session.click(Click(80, 5, True))  # the whole background: no detail, but the earlier one is looked at again
    assert session.state.focuses == (Focus(PART, 5),)
    assert model.seen[3:] == [(90, 120), (48, 48)]


def test_views_replace_the_answer_where_they_look() -> None:
    """A network that finds more in close-up: everything that is as red as the part's surroundings."""

    class Near(SameColour):
        def forward(self, image: Tensor, points: Tensor) -> dict[str, Tensor]:
            if image.shape[-1] == 48:
                return {"logits": torch.full((1, 1, 48, 48), -8.0)}
            return super().forward(image, points)

    masks = []
    for protocol in (PLAIN, FOCUSED):
        session = Session(Near(), picture()[0], protocol)
        session.click(OBJECT)
        masks.append(session.click(PART))
    changed = masks[0] != masks[1]
    assert changed[25:42, 55:72].all()  # 1.75 times the radius around the click
    assert not changed[:15].any()
    assert not masks[1][33, 63]


def test_focuses_belong_to_the_state() -> None:
    session, _ = clicked(FOCUSED, OBJECT, PART)
    probability = session.probability
    assert session.undo()
    assert session.state.focuses == ()
    assert session.redo()
    assert session.state.focuses == (Focus(PART, 5),)
    assert np.array_equal(session.probability, probability)
    session.begin()
    assert session.state.focuses == ()


def test_a_protocol_without_focus_is_as_before() -> None:
    """Its record too, which says whether a run may be resumed; with focus, the name says so."""
    assert "focus" not in PLAIN.model_dump()
    assert Protocol.model_validate(PLAIN.model_dump()) == PLAIN
    assert FOCUSED.model_dump()["focus"]["side"] == 48
    assert Protocol.model_validate(FOCUSED.model_dump(mode="json")) == FOCUSED
    assert FOCUSED.name.endswith("+focus={side: 48}")
    named = load_protocol("fast_focus")
    assert (named.name, named.version) == ("fast_focus", 1)
    assert clicked(PLAIN, OBJECT, PART)[0].state.focuses == ()


def test_it_runs_in_the_click_loop() -> None:
    image, truth = picture()
    trace, _ = simulate(Sample("red", "drawn", image, truth), Counted(), Plan(FOCUSED, {"iou": 0.999}, 4))
    assert len(trace.clicks) == 2
    assert trace.scores["iou"][-1] == 1
