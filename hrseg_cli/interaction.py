"""The types of a click session: a click, a box, the object to segment, and the trace of what happened.

Axis order is (row, col) everywhere, in pixels of the full image; row 0 is at the top.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from hrseg_cli.limits import LINE, PIXELS
from hrseg_cli.parsing import parse_json, shown

if TYPE_CHECKING:
    import numpy as np


class Click(NamedTuple):
    """One click: ``row`` and ``col`` in pixels; ``positive`` if it marks the object, not the background."""

    row: float
    col: float
    positive: bool

    def lies_in(self, height: int, width: int) -> bool:
        """Whether the click is inside an image: 0 <= row < height and 0 <= col < width; fractions are allowed."""
        return 0 <= self.row < height and 0 <= self.col < width


class Box(NamedTuple):
    """A rectangle of pixels; ``bottom`` and ``right`` are inclusive."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.bottom - self.top + 1, self.right - self.left + 1

    @property
    def centre(self) -> Click:
        """A positive click on its central pixel."""
        return Click((self.top + self.bottom) // 2, (self.left + self.right) // 2, True)

    def inside(self, height: int, width: int) -> Box | None:
        """Its part inside an image, None if there is none."""
        part = Box(max(0, self.top), min(height - 1, self.bottom), max(0, self.left), min(width - 1, self.right))
        return part if part.top <= part.bottom and part.left <= part.right else None

    def covers(self, other: Box) -> bool:
        """Whether the other box lies inside this one."""
        return (
            self.top <= other.top
            and other.bottom <= self.bottom
            and self.left <= other.left
            and other.right <= self.right
        )


Prompt = Click | Box


def as_box(values: Any) -> Box:
    """(top, left, bottom, right) as a box. Raises ValueError or TypeError for anything else."""
    top, left, bottom, right = values
    numbers = (top, bottom, left, right)
    if any(isinstance(end, bool | str) or not abs(end) < PIXELS for end in numbers):  # also true for NaN
        raise ValueError("not the sides of a box in pixels")
    box = Box(*map(round, numbers))
    if box.bottom < box.top or box.right < box.left:
        raise ValueError("a box whose bottom or right lies before its top or left")
    return box


def as_numbers(prompt: Prompt) -> list[float]:
    """The reverse, for JSON: [row, col, 1 or 0], or [top, left, bottom, right]."""
    if isinstance(prompt, Box):
        return [prompt.top, prompt.left, prompt.bottom, prompt.right]
    return [prompt.row, prompt.col, int(prompt.positive)]


@dataclass(frozen=True)
class Sample:
    """One object to segment.

    image: uint8, (H, W, 3), RGB.
    truth: int8, (H, W): 1 object, 0 background, -1 ignored.
    initial: optional float32, (H, W), in [0, 1]: an initial mask.
    """

    id: str
    dataset: str
    image: np.ndarray
    truth: np.ndarray
    initial: np.ndarray | None = None


@dataclass(frozen=True)
class Trace:
    """The clicks on one object and the scores after them; one line of ``traces.jsonl``.

    clicks: in their order; a box drawn around the object counts as a click.
    scores: metric name -> one value after each click; ``iou`` is always measured.
    seconds: wall time of each click: choosing it and predicting the mask, without decoding and scoring. When several
        objects shared a model, the time divided by their number, not the time a person would have waited.
    until: metric name -> target value; clicking stopped once every metric had reached its target.
    size: (height, width) of the image; area: object pixels of the ground truth; rule: the label rule used.
    notes: counts of rare events, e.g. how often a quirk of a protocol took effect.
    """

    id: str
    dataset: str
    clicks: tuple[Prompt, ...]
    scores: dict[str, tuple[float, ...]]
    seconds: tuple[float, ...]
    until: dict[str, float]
    size: tuple[int, int] = (0, 0)
    area: int = 0
    rule: str = ""
    notes: dict[str, int] = field(default_factory=dict)

    @property
    def first(self) -> str:
        """What the annotator started with: "box" or "click"."""
        return "box" if any(isinstance(one, Box) for one in self.clicks[:1]) else "click"

    def to_json(self) -> str:
        """One line without a newline. ``iou`` and ``biou`` are always present, empty if not measured."""
        record: dict[str, Any] = {
            "id": self.id,
            "dataset": self.dataset,
            "clicks": [as_numbers(click) for click in self.clicks],
            "iou": [],
            "biou": [],
        }
        record.update({name: list(values) for name, values in self.scores.items()})
        record["seconds"] = [round(s, 4) for s in self.seconds]
        record["until"] = self.until
        record["size"] = list(self.size)
        record["area"] = self.area
        record["rule"] = self.rule
        record["notes"] = self.notes
        return json.dumps(record, separators=(",", ":"), ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> Trace:
        """The inverse of :meth:`to_json`. Raises ValueError for anything else."""
        record = parse_json(line, LINE)
        try:
            return cls._from_record(record)
        except KeyError as error:
            raise ValueError(f"no {error}") from None
        except (TypeError, AttributeError):
            raise ValueError("values of other types than those of a trace") from None

    @classmethod
    def _from_record(cls, record: dict[str, Any]) -> Trace:
        fixed = {"id", "dataset", "clicks", "seconds", "until", "size", "area", "rule", "notes"}
        clicks = tuple(map(_prompt, record["clicks"]))
        after = {k: tuple(map(_number, v)) for k, v in record.items() if k not in fixed and isinstance(v, list) and v}
        seconds = tuple(map(_number, record.get("seconds", ())))
        for name, values in {**after, "seconds": seconds}.items():
            if values and len(values) != len(clicks):
                raise ValueError(f"{len(values)} values of '{name}' for {len(clicks)} clicks")
        height, width = record.get("size", (0, 0))
        if not (isinstance(record["id"], str) and isinstance(record["dataset"], str)):
            raise ValueError("'id' or 'dataset' is not a string")
        return cls(
            id=record["id"],
            dataset=record["dataset"],
            clicks=clicks,
            scores=after,
            seconds=seconds,
            until={name: _number(value) for name, value in record.get("until", {}).items()},
            size=(int(_number(height)), int(_number(width))),
            area=int(_number(record.get("area", 0))),
            rule=str(record.get("rule", "")),
            notes={name: int(_number(value)) for name, value in record.get("notes", {}).items()},
        )


def _prompt(values: Any) -> Prompt:
    if len(values) == 4:
        return as_box(values)
    row, col, positive = values
    return Click(_number(row), _number(col), bool(positive))


def _number(value: Any) -> Any:
    """``value`` where it is a finite number. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{shown(value)} is not a number")
    return value
