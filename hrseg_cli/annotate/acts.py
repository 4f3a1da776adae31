"""What a tab of the page may ask for: the requests that change an image."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from hrseg_cli.annotate.records import COLOURS, POINTS, Name, Strict

LARGEST = 120_000_000  # pixels of an image: twelve bytes each for the model, five for each cached answer
Box = tuple[int, int, int, int]
Path = Annotated[list[tuple[float, float]], Field(min_length=1, max_length=POINTS)]  # (row, col), in pixels


class Act(Strict):
    """revision: of the picture that the tab shows. object: a key, None for a new object. ident: a name of this request,
    the same when it is repeated. label: the name of a new object. spent: seconds of the annotator's time since the last
    request. apart: leave out the pixels of other objects."""

    revision: int
    object: str | None = None
    ident: str = Field("", max_length=40)
    label: Name | None = None
    spent: float = Field(0.0, ge=0, le=600)
    apart: bool = False


class DoClick(Act):
    do: Literal["click"]
    row: int = Field(ge=0, le=LARGEST)
    col: int = Field(ge=0, le=LARGEST)
    positive: bool = True
    box: Box | None = None


class DoScribble(Act):
    do: Literal["scribble"]
    points: Path
    positive: bool = True


class DoStroke(Act):
    do: Literal["stroke"]
    points: Path
    radius: float = Field(ge=0.5, le=2000)
    positive: bool = True


class DoShape(Act):
    do: Literal["shape"]
    how: Literal["fill", "largest", "grow", "shrink"]


class DoOutline(Act):
    do: Literal["outline"]
    rings: list[Path] = Field(max_length=POINTS)


class DoRefine(Act):
    do: Literal["refine"]


class DoPlain(Act):
    do: Literal["undo", "redo", "add", "delete"]


class DoName(Act):
    do: Literal["rename"]
    name: Name


class DoColour(Act):
    do: Literal["colour"]
    colour: int = Field(ge=0, lt=COLOURS)


class DoLock(Act):
    do: Literal["lock"]
    locked: bool


class DoMove(Act):
    """to: the object's new place in the list, from 0."""

    do: Literal["move"]
    to: int = Field(ge=0, le=100_000)


class DoCopy(Act):
    """A new object whose first mask is that of another image's object."""

    do: Literal["copy"]
    image: int = Field(ge=0)
    source: str


class DoThreshold(Act):
    do: Literal["threshold"]
    threshold: float = Field(ge=0.01, le=0.99)


class DoFinish(Act):
    do: Literal["finish"]
    finished: bool


AnyAct = Annotated[
    DoClick
    | DoScribble
    | DoStroke
    | DoShape
    | DoOutline
    | DoRefine
    | DoPlain
    | DoName
    | DoColour
    | DoLock
    | DoMove
    | DoCopy
    | DoThreshold
    | DoFinish,
    Field(discriminator="do"),
]


class Refused(Exception):
    """A rejected request: status 404 for a missing object, 409 for a picture that has changed since, 422 for a position
    outside the image, 423 for a locked object, 507 for a full disk. The message is shown to the annotator.
    saved: the change was made nevertheless; only a file derived from it is out of date."""

    def __init__(self, status: int, message: str, saved: bool = False) -> None:
        super().__init__(message)
        self.status, self.saved = status, saved
