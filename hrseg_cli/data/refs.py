"""Types shared by all dataset readers: a reference to one object, and the listing of a dataset."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from hrseg_cli.data.pixels import Span
from hrseg_cli.recipe import BinarizeRule

Rule = BinarizeRule | Literal["instance", "solid", "layers", "coco", "coco_crowd", "labelme"]

PAIRS = "pairs.csv"


@dataclass(frozen=True)
class Ref:
    """One object of one image; nothing is loaded. ``instance`` is None for a mask of several objects whose ids have not
    been read yet.

    id: unique in the dataset; contains the image's stem (with its subfolders, separated by "/").
    instance: the object in ``mask``, if ``rule`` is "instance", "solid", "layers", "coco", "coco_crowd" or
        "labelme".
    others: further masks of the image, read by the same rule; their ignored pixels are ignored for this object too.
    draw: (seed, index, size) of a procedural object, which has no files.
    initial: an initial mask.
    parent: COCO+LVIS: the ``instance`` that this object is a part of.
    stuff: COCO+LVIS: for references to stuff, the first id of ``mask`` that is stuff; None otherwise.
    span: the values of black and white in an image of more than 8 bits.
    """

    id: str
    dataset: str
    image: Path
    mask: Path
    rule: Rule
    instance: int | None = None
    others: tuple[Path, ...] = ()
    draw: tuple[int, int, int] | None = None
    initial: Path | None = None
    parent: int | None = None
    stuff: int | None = None
    span: Span | None = None

    @property
    def unread(self) -> bool:
        """Whether the mask must be opened to find its objects."""
        return self.instance is None and self.rule in ("instance", "solid", "layers")


class Listing(NamedTuple):
    """A dataset before any mask is opened.

    folder: paths in an index are relative to it. masks: one reference per mask, or per object if a list names them.
    index_file: path of its index, if any.
    """

    name: str
    folder: Path
    masks: list[Ref]
    index_file: Path


Lister = TypeVar("Lister", bound=Callable[..., list[Ref]])


class Marks(NamedTuple):
    """The files and folders by which a layout is recognised.

    any_of: a folder fits if it contains all entries of one of these groups. ``images/`` is a folder, ``pairs.csv`` a
        file, ``*/x_*.png`` any file that matches. guess: use this layout for folders that fit, without its name.
    """

    any_of: tuple[tuple[str, ...], ...]
    guess: bool

    def fit(self, folder: Path) -> bool:
        return any(all(_is_there(folder, mark) for mark in group) for group in self.any_of)

    def half(self, folder: Path) -> tuple[str, str] | None:
        """An entry that is there and one of the same group that is missing; None if there are no such entries."""
        for group in self.any_of:
            there = [mark for mark in group if _is_there(folder, mark)]
            if there and len(there) < len(group):
                return there[0], next(mark for mark in group if mark not in there)
        return None

    def __str__(self) -> str:
        return ", or ".join(" and ".join(group) for group in self.any_of)


def _is_there(folder: Path, mark: str) -> bool:
    if "*" in mark:
        return any(folder.glob(f"[!.]{mark}"))
    return (folder / mark).is_dir() if mark.endswith("/") else (folder / mark).is_file()


def layout(*any_of: tuple[str, ...], guess: bool = True) -> Callable[[Lister], Lister]:
    """Make a function a layout, with the entries by which its folders are recognised; see :class:`Marks`.

    The function takes ``(folder, name, *, instances, binarize)`` and its own options, which are strings and follow a
    colon, as in ``FOLDER:option=value``. A manifest passes ``split``, ``images`` and ``masks`` to layouts that have
    these options. The function lists references without opening any mask. With a parameter ``broken`` (a list, or None)
    it adds a line there for each broken or missing file, instead of raising HrsegError.
    """

    def mark(function: Lister) -> Lister:
        noted: Any = function
        noted.marks = Marks(any_of, guess)
        return function

    return mark
