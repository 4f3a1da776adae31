"""A protocol: how clicks become a mask. Named, versioned and stored with every result."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from hrseg_cli.errors import HrsegError, UnknownName
from hrseg_cli.limits import CLICKS
from hrseg_cli.recipe.reading import Settings, names, read

BinarizeRule = Literal["auto", "nonzero", "gt128", "void128", "void255", "grabcut"]
Pixels = Annotated[int, Field(ge=1, le=4096)]  # of what a network sees at once


class ZoomIn(Settings):
    """The network sees a crop around the object, resized (RITM paper, section 3.3; fBRS, section 4.2).

    target: longer side of the resized crop in pixels, or exact (height, width).
    skip_clicks: the first clicks, this many, see the whole image; -1: even the first click sees it resized.
    expansion: crop side divided by object side. min_crop: smallest crop side in pixels.
    recompute_iou: the crop is moved when its IoU with the ideal crop falls below this.
    mask_threshold: pixels above this probability belong to the object whose box is cropped.
    pad: pad the sides of the resized crop to multiples of this, by repeating the last row and column. Crops then have
        few different shapes, and those of many objects form large batches.
    """

    target: Pixels | tuple[Pixels, Pixels] = 400
    skip_clicks: int = Field(1, ge=-1, le=CLICKS)
    expansion: float = Field(1.4, ge=1, le=100)
    min_crop: int | None = Field(200, ge=1, le=100_000)
    recompute_iou: float = Field(0.5, ge=0, le=1)
    mask_threshold: float = Field(0.5, ge=0, le=1)
    pad: Pixels | None = None


class Tiles(Settings):
    """Inputs with a side longer than ``size`` pixels are processed in square tiles, ``overlap`` pixels overlapping.

    border: mirror as many pixels at the borders of every input, so that the network sees something beyond them
        ("overlap-tile", Ronneberger et al. 2015).
    """

    size: int = Field(1024, ge=64, le=4096)
    overlap: int = Field(128, ge=0)
    border: int = Field(0, ge=0, le=1024)

    @model_validator(mode="after")
    def _strides(self) -> Tiles:
        if 2 * self.overlap > self.size:
            raise ValueError("tiles.overlap must be at most half of tiles.size")
        return self

    @model_serializer(mode="wrap")
    def _without_border(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Runs of earlier versions, whose tiles have no border, must still be resumed.
        return {key: value for key, value in handler(self).items() if key != "border" or value}


class Refine(Settings):
    """A refiner that improves the masks of a protocol ('hrseg list refiners').

    weights: file of its network; None: the one that comes with hrseg, if it needs any. sha256: of the weights, filled
        in by :func:`load_protocol`; a file with another hash is refused.
    when: "each": after every click; the model and the annotator see the refined mask. "last": they see the model's own
        masks, and a click is scored as if it were the last one, after which the mask is refined.
    options: keyword arguments of the refiner.
    """

    name: str
    weights: str | None = None
    sha256: str | None = None
    when: Literal["each", "last"] = "each"
    options: dict[str, Any] = {}


class Focus(Settings):
    """Close-up views around the clicks that corrected details (FocusCut, Lin et al. 2022).

    A click corrects a detail if it did not change its own pixel, or changed a part smaller than a fifth of the object.
    From then on, every click is followed by ``turns`` passes of the network over a square around each of these places.
    side: of the square as the network sees it, in pixels. scale: of the first squares, as a multiple of the radius of
        what the click changed. ratio: change of the scale per turn; None: it follows what changes in the view.
    """

    side: Pixels = 384
    turns: int = Field(3, ge=1)
    scale: float = Field(1.75, gt=0)
    ratio: float | None = Field(None, gt=0)


class Protocol(Settings):
    """How clicks become a mask, and how the mask is evaluated.

    flip: average the logits of the image and its mirror image.
    threshold: pixels above this probability are object.
    max_clicks: clicks per object before its target counts as not reached.
    focus: close-up views of details after each click (None: none).
    network_clicks: the network sees only the first clicks, this many (None: all).
    binarize: label rule of mask files (see docs/data.md).
    keep_stale_roi: as in RITM, keep the old crop when the mask becomes empty, squeezing the whole-image answer into it.
    click_when_perfect: as in RITM, place a negative click on the first pixel when there is no error left; otherwise
        stop there.
    refine: how masks are refined after a click (None: not at all).
    click_group: draw clicks at random from the largest error instead of clicking on its centre; the number is the seed
        (None: the centre).
    first: "box": the simulated annotator first draws the object's bounding box, then clicks. box_jitter: it moves each
        side of the box by up to this share of the box's height or width, at random; click_group is the seed.
    """

    name: str
    version: int = 1
    zoom: ZoomIn | None = None
    flip: bool = False
    tiles: Tiles | None = None
    threshold: float = Field(0.49, gt=0, lt=1)
    max_clicks: int = Field(20, ge=1, le=CLICKS)
    network_clicks: int | None = Field(None, ge=1, le=CLICKS)
    binarize: BinarizeRule = "auto"
    keep_stale_roi: bool = False
    click_when_perfect: bool = True
    refine: Refine | None = None
    focus: Focus | None = None
    click_group: int | None = Field(None, ge=0, lt=1_000_000)
    first: Literal["click", "box"] = "click"
    box_jitter: float = Field(0, ge=0, le=0.5)

    @model_validator(mode="after")
    def _boxes(self) -> Protocol:
        if self.box_jitter and self.first != "box":
            raise ValueError("`box_jitter` needs `first` box")
        return self

    @model_serializer(mode="wrap")
    def _without_new(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Runs of earlier versions, whose protocols lack these keys, must still be resumed.
        new = ("refine", "focus", "click_group", "first", "box_jitter")
        default = {key: Protocol.model_fields[key].default for key in new}
        return {key: value for key, value in handler(self).items() if key not in new or value != default[key]}


def load_protocol(name: str, overrides: Iterable[str] = ()) -> Protocol:
    """A protocol by name or path of a YAML file, with ``key=value`` overrides such as ``zoom.target=600``.

    The name of a changed protocol includes the changes. Raises UnknownName or HrsegError.
    """
    protocol = read(Protocol, "protocol", name, overrides)
    if protocol.refine is None:
        return protocol
    return protocol.model_copy(update={"refine": with_hash(protocol.refine)})


def with_hash(refine: Refine) -> Refine:
    """The same with the hash of its weights. Raises HrsegError for a missing file, or one with another hash."""
    file = weights_of(refine)
    if file is None:
        return refine
    try:
        found = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise HrsegError(f"refiner {refine.name}: weights {file}: {error.strerror}; give an existing file") from None
    if refine.sha256 not in (None, found):
        raise HrsegError(f"refiner {refine.name}: weights {file}: not the file with SHA-256 {refine.sha256}")
    return refine.model_copy(update={"sha256": found})


def weights_of(refine: Refine) -> Path | None:
    """The file of its weights: the given one, otherwise the one that comes with hrseg; None if there is none."""
    if refine.weights is not None:
        return Path(refine.weights)
    shipped = Path(__file__).resolve().parent.parent / "weights" / f"{refine.name}.safetensors"
    return shipped if shipped.is_file() else None


def binarize_rule(name: str | None) -> BinarizeRule:
    """The label rule of that name, "auto" for None. Raises UnknownName."""
    rules = get_args(BinarizeRule)
    if name is not None and name not in rules:
        raise UnknownName("label rule", name, rules)
    return cast(BinarizeRule, name or "auto")


def with_binarize(overrides: Iterable[str], rule: str | None) -> list[str]:
    """Overrides of a protocol, with its label rule if one is given. Raises UnknownName for an unknown rule."""
    return [*overrides, *([f"binarize={binarize_rule(rule)}"] if rule else [])]


def protocol_names() -> list[str]:
    """Names of the protocols shipped with hrseg."""
    return names("protocol")
