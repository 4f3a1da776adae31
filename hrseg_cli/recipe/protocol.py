"""A protocol: how a click becomes a mask. Named, versioned and stored with every number."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal, cast, get_args

from pydantic import Field, model_validator

from hrseg_cli.errors import UnknownName
from hrseg_cli.recipe.reading import Settings, names, read

BinarizeRule = Literal["auto", "nonzero", "gt128", "void128", "void255", "grabcut"]
Pixels = Annotated[int, Field(ge=1)]


class ZoomIn(Settings):
    """The network sees a crop around the object, resized (RITM paper, section 3.3; fBRS, section 4.2).

    target: longer side of the resized crop in pixels, or (height, width) exactly.
    skip_clicks: this many clicks see the whole image; -1 resizes the whole image before the first.
    expansion: crop side over object side. min_crop: smallest crop side in pixels.
    recompute_iou: the crop moves when its overlap with the current wish falls below this.
    mask_threshold: probability above which a pixel belongs to the object whose box is taken.
    pad: the resized crop's sides are padded to multiples of this (its last row and column repeated), so that crops of
        many objects have few shapes and make large batches.
    """

    target: Pixels | tuple[Pixels, Pixels] = 400
    skip_clicks: int = Field(1, ge=-1)
    expansion: float = Field(1.4, ge=1)
    min_crop: int | None = Field(200, ge=1)
    recompute_iou: float = Field(0.5, ge=0, le=1)
    mask_threshold: float = Field(0.5, ge=0, le=1)
    pad: Pixels | None = None


class Tiles(Settings):
    """Inputs with a side longer than ``size`` pixels go through the network in squares that overlap by ``overlap``."""

    size: int = Field(1024, ge=64)
    overlap: int = Field(128, ge=0)

    @model_validator(mode="after")
    def _strides(self) -> Tiles:
        if 2 * self.overlap > self.size:
            raise ValueError("tiles.overlap must be at most half of tiles.size")
        return self


class Protocol(Settings):
    """How clicks become a mask, and how the mask is judged.

    flip: average the logits of the image and its mirror image.
    threshold: a pixel is object where its probability is above this.
    max_clicks: clicks an object gets before it counts as not reached.
    network_clicks: the network sees only the first so many clicks (None: all).
    binarize: how grey values of a mask file become truth (see docs/data.md).
    keep_stale_roi: RITM keeps the old crop when the mask has become empty and squeezes the whole-image answer into it.
    click_when_perfect: with nothing left to correct, RITM's annotator clicks the first pixel negatively; otherwise the
        loop ends there.
    """

    name: str
    version: int = 1
    zoom: ZoomIn | None = None
    flip: bool = False
    tiles: Tiles | None = None
    threshold: float = Field(0.49, gt=0, lt=1)
    max_clicks: int = Field(20, ge=1)
    network_clicks: int | None = Field(None, ge=1)
    binarize: BinarizeRule = "auto"
    keep_stale_roi: bool = False
    click_when_perfect: bool = True


def load_protocol(name: str, overrides: Iterable[str] = ()) -> Protocol:
    """A protocol by name or by path of a YAML file, changed by ``key=value`` texts such as ``zoom.target=600``.

    A changed protocol carries the changes in its name. Raises UnknownName or HrsegError.
    """
    return read(Protocol, "protocol", name, overrides)


def binarize_rule(name: str | None) -> BinarizeRule:
    """The label rule of that name, "auto" for None. Raises UnknownName."""
    rules = get_args(BinarizeRule)
    if name is not None and name not in rules:
        raise UnknownName("label rule", name, rules)
    return cast(BinarizeRule, name or "auto")


def protocol_names() -> list[str]:
    """Names of the protocols that come with hrseg."""
    return names("protocol")
