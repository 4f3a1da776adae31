"""The record of an image: its objects, and what the annotator did to them, in order."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from hrseg_cli.errors import HrsegError
from hrseg_cli.interaction import Box, Click, Prompt

COLOURS = 8
POINTS = 5000  # of a stroke or an outline


class Strict(BaseModel):
    """Strict parsing: no unknown keys, no strings for numbers, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Clicked(Strict):
    """A click, row and col in pixels. box: [top, bottom, left, right], inclusive, if a box was dragged. clip: outside
    of the box and a margin the mask stays as it was; not so in records of earlier versions."""

    kind: Literal["click"] = "click"
    row: int = Field(ge=0)
    col: int = Field(ge=0)
    positive: bool
    box: tuple[int, int, int, int] | None = None
    clip: bool = False
    seconds: float = Field(0.0, ge=0)

    @property
    def prompt(self) -> Prompt:
        """What the model is asked."""
        return Box(*self.box) if self.box else Click(self.row, self.col, self.positive)


class Scribble(Strict):
    """Clicks at pixels (row, col) sampled along a stroke, answered together."""

    kind: Literal["scribble"] = "scribble"
    points: list[tuple[int, int]] = Field(min_length=1, max_length=50)
    positive: bool
    seconds: float = Field(0.0, ge=0)


class Stroke(Strict):
    """A brush stroke along points (row, col), in pixels. pinned: later clicks do not change its pixels; not in records
    of earlier versions."""

    kind: Literal["stroke"] = "stroke"
    points: list[tuple[float, float]] = Field(min_length=1, max_length=POINTS)
    radius: float = Field(ge=0.5, le=2000)
    positive: bool
    pinned: bool = False


class Reshaped(Strict):
    """A change of the whole mask: holes filled, only its largest part kept, grown or shrunk by a pixel. threshold: of
    the object at that moment, which said what the mask was."""

    kind: Literal["shape"] = "shape"
    how: Literal["fill", "largest", "grow", "shrink"]
    threshold: float = Field(gt=0, lt=1)


class Outline(Strict):
    """The mask drawn as polygons, even-odd; corners (row, col) on the grid between the pixels. Pixels that it changes
    are pinned."""

    kind: Literal["outline"] = "outline"
    rings: list[list[tuple[float, float]]] = Field(max_length=POINTS)
    threshold: float = Field(gt=0, lt=1)


class Refined(Strict):
    """The mask refined, as the protocol says."""

    kind: Literal["refine"] = "refine"


Action = Annotated[Clicked | Scribble | Stroke | Reshaped | Outline | Refined, Field(discriminator="kind")]
Name = Annotated[str, Field(min_length=1, max_length=60, pattern=r"^[^\x00-\x1f\x7f]+$")]


class Object(Strict):
    """One object of an image.

    key: stem of its mask file in masks/. name: its label, the category in exports. file: the existing mask file, "" for
        none. value: its id in ``file``, if that has several objects, or -1 if that has another program's name; 0 in
        records. locked: refuses changes.
    actions: all actions; only the first ``done`` are in effect, later ones are undone. The first ``base`` are already
        included in ``start``.
    start: the initial mask, in annotations/start/. stamp: size and time of ``file`` when it was written.
    model: the model used for the clicks. spent: seconds of the annotator's time.
    bbox, area, counts: the mask in COCO's terms, with compressed run lengths.
    """

    key: str
    name: Name
    colour: int = Field(ge=0, lt=COLOURS)
    threshold: float = Field(gt=0, lt=1)
    file: str = ""
    value: int = Field(0, exclude=True)
    locked: bool = False
    actions: list[Action] = []
    done: int = 0
    base: int = 0
    start: str = ""
    stamp: str = ""
    model: str = ""
    spent: float = Field(0.0, ge=0)
    bbox: list[int] = []
    area: int = 0
    counts: str = ""

    @property
    def clicks(self) -> list[Clicked]:
        """The clicks in effect, those of scribbles included."""
        return list(self._clicks())

    def _clicks(self) -> Iterator[Clicked]:
        for action in self.actions[: self.done]:
            if isinstance(action, Clicked):
                yield action
            elif isinstance(action, Scribble):
                for number, (row, col) in enumerate(action.points, 1):
                    seconds = action.seconds if number == len(action.points) else 0.0
                    yield Clicked(row=row, col=col, positive=action.positive, seconds=seconds)

    def notes(self) -> dict[str, int]:
        """What a replay of the trace leaves out (of a box, the limit of its answer): how often each of it happened."""
        acts = self.actions[: self.done]
        counts = {
            "boxes": sum(isinstance(act, Clicked) and act.box is not None for act in acts),
            "scribbles": sum(isinstance(act, Scribble) for act in acts),
            "strokes": sum(isinstance(act, Stroke) for act in acts),
            "edits": sum(isinstance(act, Reshaped | Outline | Refined) for act in acts),
            "restarts": int(bool(self.base or self.start)),
        }
        return {name: number for name, number in counts.items() if number}


class Picture(Strict):
    """The record of one image. revision: increases with every change, so that two tabs do not overwrite each other.
    last: the last change by the name its tab gave it, and the object changed, so that a repeated request is not applied
    twice. gone: files in masks/ deleted by the last change, with their size and time before.
    """

    version: Literal[1] = 1
    revision: int = 0
    last: tuple[str, str] = ("", "")
    finished: bool = False
    size: tuple[int, int] = (0, 0)
    objects: list[Object] = []
    gone: dict[str, str] = {}

    @property
    def state(self) -> str:
        return "done" if self.finished else "work" if self.objects else "todo"

    def draft(self) -> Picture:
        """A copy to change. Its actions are the same ones: they may have many points, and do not change."""
        objects = [one.model_copy(update={"actions": list(one.actions)}) for one in self.objects]
        return self.model_copy(update={"objects": objects, "gone": dict(self.gone)})

    def find(self, key: str) -> Object | None:
        return next((one for one in self.objects if one.key == key), None)

    def new_name(self) -> str:
        """The first unused name of "object", "object 2", ..."""
        taken = {one.name for one in self.objects}
        return next(name for n in count(1) if (name := f"object {n}" if n > 1 else "object") not in taken)


def is_label(name: str) -> bool:
    """Whether somebody chose this name; "object 2" is a new object's."""
    return not re.fullmatch(r"object( \d+)?", name)


def category_of(name: str) -> str:
    """The category of an object of this name."""
    return name if is_label(name) else "object"


def check_names(path: Path, picture: Picture, stem: str) -> None:
    """Check that the file names in a record, whoever wrote it, stay inside their folders."""
    for file in picture.gone:
        if not re.fullmatch(rf"{re.escape(stem)}(_mask)?(_\d+)?(\.\w+){{1,2}}", file):
            raise HrsegError(f"{path}: invalid name '{file}', not written by hrseg annotate; fix or remove the file")
    for one in picture.objects:
        suffix = rf"{re.escape(one.key)}(-\d+)?\.\w+"
        own = re.fullmatch(rf"{re.escape(stem)}(_\d+)?", one.key)
        files = all(not name or re.fullmatch(suffix, name) for name in (one.file, one.start))
        if not (own and files and 0 <= one.base <= one.done <= len(one.actions)):
            raise HrsegError(
                f"{path}: invalid object '{one.key}', not written by hrseg annotate; fix or remove the file"
            )
