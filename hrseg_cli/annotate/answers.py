"""What an object's actions give: the model's answer after each, with what was painted by hand kept as it is."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from typing import Any, NamedTuple

import numpy as np
import torch

from hrseg_cli.annotate.records import Action, Object, Outline, Refined, Reshaped, Scribble, Stroke
from hrseg_cli.annotate.shapes import drawn, filled, near_box, reshaped
from hrseg_cli.engine.session import Session, SessionState
from hrseg_cli.interaction import Click


class Memory:
    """An LRU cache of images and answers, up to ``limit`` bytes (more only for the current image and answer)."""

    def __init__(self, limit: int) -> None:
        self.limit, self.size = limit, 0
        self._kept: OrderedDict[Any, tuple[Any, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Any) -> Any:
        """The value, or None if it was evicted."""
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key][0]

    def put(self, key: Any, value: Any, size: int) -> None:
        """Add a value. key: must not exist yet."""
        self._kept[key] = value, size
        self.size += size
        while self.size > self.limit and len(self._kept) > 2:
            _, (_, freed) = self._kept.popitem(last=False)
            self.size -= freed

    def drop(self, number: int) -> None:
        """Drop everything of one image: its session, keyed by its number, and answers, whose keys start with it."""
        for key in [key for key in self._kept if key == number or (isinstance(key, tuple) and key[0] == number)]:
            self.size -= self._kept.pop(key)[1]


class Outcome(NamedTuple):
    """What an object's actions give. pins: uint8 (H, W): 1 painted and 2 erased by hand, which later clicks do not
    change; None for no such pixel. seconds: that the model took."""

    state: SessionState
    pins: np.ndarray | None
    seconds: float = 0.0

    @property
    def size(self) -> int:
        """Bytes."""
        return 4 * self.state.answer.patch.numel() + (0 if self.pins is None else self.pins.size)


def first_pins(one: Object, first: np.ndarray | None, size: tuple[int, int]) -> np.ndarray | None:
    """Pins of the strokes that the first mask contains, where nobody has changed it since."""
    pins = None
    for action in one.actions[: one.base]:
        if isinstance(action, Stroke) and action.pinned:
            pins = _pinned(pins, drawn(action, size), 1 if action.positive else 2)
    if pins is None:
        return None
    there = np.zeros(size, bool) if first is None else np.asarray(first) > 0.5
    return np.where(there, pins & 1, pins & 2).astype(np.uint8)


def _pinned(pins: np.ndarray | None, where: np.ndarray, value: int) -> np.ndarray:
    pins = np.zeros(where.shape, np.uint8) if pins is None else pins.copy()
    pins[where] = value
    return pins


def after(session: Session, answer: Outcome, action: Action, size: tuple[int, int]) -> Outcome:
    """The answer after one more action."""
    before, pins, _ = answer
    session.state = before
    if isinstance(action, Stroke):
        where = drawn(action, size)
        session.paint(where, action.positive)
        return Outcome(session.state, _pinned(pins, where, 1 if action.positive else 2) if action.pinned else pins)
    if isinstance(action, Reshaped | Outline):
        old = before.probability[0, 0].cpu().numpy() > action.threshold
        new = reshaped(old, action.how) if isinstance(action, Reshaped) else filled(action.rings, size)
        for where, positive in ((new & ~old, True), (old & ~new, False)):
            session.paint(where, positive)
            if isinstance(action, Outline) or pins is not None:
                pins = _pinned(pins, where, 0 if isinstance(action, Reshaped) else 1 if positive else 2)
        return Outcome(session.state, pins)
    started = time.perf_counter()
    if isinstance(action, Refined):
        session.refine()
    elif isinstance(action, Scribble):
        *first, last = (Click(row, col, action.positive) for row, col in action.points)
        session.state = replace(before, clicks=(*before.clicks, *first))
        session.apply(last)
    else:
        session.apply(action.prompt)
        if action.box and action.clip:
            within = torch.zeros_like(before.probability, dtype=torch.bool)
            within[(..., *near_box(action.box, size))] = True
            kept = torch.where(within, session.state.probability, before.probability)
            session.state = session.state.with_probability(kept)
    seconds = round(time.perf_counter() - started, 4)
    if pins is not None:
        session.paint(pins == 1, True)
        session.paint(pins == 2, False)
    return Outcome(session.state, pins, seconds)


def beginnings(number: int, one: Object) -> Iterator[tuple[Any, ...]]:
    """Cache keys: of the initial state, and of the state after each action that is not undone."""
    digest = sha256(f"{one.start} {one.base}".encode())
    yield number, one.key, digest.hexdigest()
    for action in one.actions[one.base : one.done]:
        digest.update(action.model_dump_json(exclude={"seconds"}).encode())
        yield number, one.key, digest.hexdigest()
