"""Types shared by all dataset readers: a reference to one object, and the listing of a dataset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from hrseg_cli.data.pixels import Span
from hrseg_cli.recipe import BinarizeRule

Rule = BinarizeRule | Literal["instance", "solid", "layers", "coco", "coco_crowd"]

PAIRS = "pairs.csv"
MARKS = {  # files and folders that identify a layout
    "folder": ("images", "masks"),
    "grabcut": ("data_GT", "boundary_GT"),
    "davis": ("img", "gt"),
    "berkeley": ("images", "masks"),
    "sbd": ("img", "inst"),
    "pascalvoc": ("JPEGImages", "SegmentationObject"),
    "coco_lvis": ("*/hannotation.pickle",),
    "davis585": ("*/object*_*.png",),
}


@dataclass(frozen=True)
class Ref:
    """One object of one image; nothing is loaded. ``instance`` is None for a mask of several objects whose ids have not
    been read yet.

    id: unique in the dataset; contains the image's stem (with its subfolders, separated by "/").
    instance: the object in ``mask``, if ``rule`` is "instance", "solid", "layers", "coco" or "coco_crowd".
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
