"""Settings that decide numbers, read from YAML.

A protocol says how a click becomes a mask: where the network looks, what is averaged, when a pixel counts. It is
named, versioned and stored with every number. ``extends: NAME`` starts from another file of the same folder.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hrseg_cli.errors import HrsegError, UnknownName, nearest

BinarizeRule = Literal["auto", "nonzero", "gt128", "void128", "grabcut"]


Pixels = Annotated[int, Field(ge=1)]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ZoomIn(_Settings):
    """The network sees a crop around the object, resized (RITM paper, section 3.3; fBRS, section 4.2).

    target: longer side of the resized crop in pixels, or (height, width) exactly.
    skip_clicks: this many clicks see the whole image; -1 resizes the whole image before the first.
    expansion: crop side over object side. min_crop: smallest crop side in pixels.
    recompute_iou: the crop moves when its overlap with the current wish falls below this.
    mask_threshold: probability above which a pixel belongs to the object whose box is taken.
    """

    target: Pixels | tuple[Pixels, Pixels] = 400
    skip_clicks: int = Field(1, ge=-1)
    expansion: float = Field(1.4, ge=1)
    min_crop: int | None = Field(200, ge=1)
    recompute_iou: float = Field(0.5, ge=0, le=1)
    mask_threshold: float = Field(0.5, ge=0, le=1)


class Tiles(_Settings):
    """Inputs with a side longer than ``size`` pixels go through the network in squares that overlap by ``overlap``."""

    size: int = Field(1024, ge=64)
    overlap: int = Field(128, ge=0)

    @model_validator(mode="after")
    def _strides(self) -> Tiles:
        if 2 * self.overlap > self.size:
            raise ValueError("tiles.overlap must be at most half of tiles.size")
        return self


class Protocol(_Settings):
    """How clicks become a mask, and how the mask is judged.

    flip: average the logits of the image and its mirror image.
    threshold: a pixel is object where its probability is above this.
    max_clicks: clicks an object gets before it counts as not reached.
    network_clicks: the network sees only the first so many clicks (None: all).
    binarize: how grey values of a mask file become truth (see ``hrseg_cli.data.samples.binarize``).
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


def data_folder(name: str) -> Path:
    """``recipes`` or ``data_manifests``: inside an installed package, or at the top of a source checkout."""
    here = Path(__file__).resolve().parent
    inside = here / name
    return inside if inside.is_dir() else here.parent / name


def load_protocol(name: str, overrides: Iterable[str] = ()) -> Protocol:
    """A protocol by name or by path of a YAML file, changed by ``key=value`` texts such as ``zoom.target=600``.

    A changed protocol carries the changes in its name. Raises UnknownName or HrsegError.
    """
    settings = _read_extended(_find("protocol", name, data_folder("recipes") / "protocols"))
    changes = list(overrides)
    for change in changes:
        _set(settings, change)
    if changes:
        settings["name"] = "+".join([str(settings.get("name", name)), *changes])
    try:
        return Protocol.model_validate(settings)
    except ValidationError as error:
        raise HrsegError(f"protocol {name}: {_explain(error)}") from None


def protocol_names() -> list[str]:
    """Names of the protocols that come with hrseg."""
    return sorted(path.stem for path in (data_folder("recipes") / "protocols").glob("*.yaml"))


def _find(kind: str, name: str, folder: Path) -> Path:
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise HrsegError(f"--{kind} {name}: no such file; give an existing YAML file or one of its known names")
        return path
    path = folder / f"{name}.yaml"
    if not path.is_file():
        raise UnknownName(kind, name, [p.stem for p in folder.glob("*.yaml")], "A path of a YAML file works too.")
    return path


def _read_extended(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    if path in seen:
        raise HrsegError(f"{path}: 'extends' goes round in a circle; remove one of them")
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise HrsegError(f"{path}: cannot be read as YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(settings, dict):
        raise HrsegError(f"{path}: must hold 'key: value' lines")
    base = settings.pop("extends", None)
    if base is None:
        return settings
    beside = path.parent / f"{base}.yaml"
    parent = beside if beside.is_file() else _find("protocol", str(base), data_folder("recipes") / "protocols")
    return _merge(_read_extended(parent, (*seen, path)), settings)


def _merge(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _set(settings: dict[str, Any], change: str) -> None:
    key, equals, text = change.partition("=")
    if not equals or not key:
        raise HrsegError(f"--set {change}: write key=value, for example --set zoom.target=600")
    *path, leaf = key.strip().split(".")
    place = settings
    for part in path:
        if not isinstance(place.get(part), dict):
            place[part] = {}
        place = place[part]
    try:
        place[leaf] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise HrsegError(f"--set {change}: the value is not valid YAML") from None


def _explain(error: ValidationError) -> str:
    """The first complaint of pydantic in one line, with the nearest known key for a misspelt one."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] != "extra_forbidden":
        message = first["msg"].removeprefix("Value error, ")
        return f"{place}: {message[0].lower()}{message[1:]} (got {first['input']!r})"
    model: type[BaseModel] = Protocol
    inner: dict[str, type[BaseModel]] = {"zoom": ZoomIn, "tiles": Tiles}
    for part in first["loc"][:-1]:
        model = inner.get(str(part), model)
    guess = nearest(str(first["loc"][-1]), model.model_fields)
    return f"unknown key '{place}'" + (
        f"; did you mean '{guess}'?" if guess else f"; known: {', '.join(model.model_fields)}"
    )
