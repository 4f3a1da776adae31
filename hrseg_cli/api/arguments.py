"""Check the arguments of the Python API: each error is one line that names the parameter."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hrseg_cli.data.labels import read_object
from hrseg_cli.data.pixels import Span, parse_span, read_image
from hrseg_cli.errors import HrsegError
from hrseg_cli.interaction import Box, Click, Prompt, as_box
from hrseg_cli.limits import PIXELS
from hrseg_cli.parsing import Malformed, parse_yaml
from hrseg_cli.recipe import BinarizeRule


def as_image(image: Any, span: str | tuple[float, float] | None = None) -> np.ndarray:
    """Convert the path of an image file, a PIL image or a uint8 array to uint8 (H, W, 3) RGB, always a copy.

    Arrays are grey (H, W) or (H, W, 1), RGB (H, W, 3), or RGBA (H, W, 4), whose alpha channel is dropped.

    Files are rotated according to their EXIF tag; PIL images are not, so that masks have their size. span: the values
    of black and white in a file with more than 8 bits. Raises HrsegError.
    """
    if isinstance(image, str | os.PathLike):
        path, given = Path(image), span_of(span)
        if not path.exists():  # read_image's error is about a dataset
            raise HrsegError(f"`image` {path}: no such file")
        return read_image(path, span=given)
    if span is not None:
        raise HrsegError("`span`: applies to image files only; omit it")
    if isinstance(image, Image.Image):
        if image.mode == "F" or image.mode.startswith("I"):
            raise HrsegError(
                f"`image`: a PIL image of mode {image.mode} has more than 8 bits; give the path of its file"
            )
        image = image.convert("RGB")
    pixels = _array("image", image, "the path of an image, a PIL image or a uint8 array (H, W, 3)")
    if pixels.dtype != np.uint8:
        fix = {"f": "give uint8, such as (255 * image).astype(np.uint8)", "b": "give uint8, such as 255 * image"}
        raise HrsegError(f"`image`: {pixels.dtype} pixels; {fix.get(pixels.dtype.kind, 'give uint8, 0 to 255')}")
    if pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4) and pixels.shape[0] in (1, 3, 4):
        raise HrsegError(f"`image`: shape {pixels.shape}; move channels last: image.transpose(1, 2, 0)")
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4) or not pixels.size:
        raise HrsegError(f"`image`: shape {np.shape(image)}; give (H, W), (H, W, 3) or (H, W, 4), one image at a time")
    rgb = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels[:, :, :3]
    return np.array(rgb, order="C")


def as_initial(
    initial: Any, size: tuple[int, int], rule: BinarizeRule | None = None, name: str = "initial"
) -> np.ndarray | None:
    """Convert the path of a mask file, an array or a PIL image to float32 (H, W) in [0, 1]; None stays None.

    size: (H, W), required of the mask. Arrays are bool, probabilities, or integers: 0 and 1, or 0 and 255. rule: label
    rule for files. name: of the parameter, for messages. Raises HrsegError.
    """
    if initial is None:
        return None
    if isinstance(initial, str | os.PathLike):
        return read_object(Path(initial), size, rule, "the image").astype(np.float32)
    values = _array(name, initial, "the path of a mask, or an array (H, W)")
    if values.shape != size:
        raise HrsegError(f"`{name}`: shape {values.shape}; the image has {size}, give a mask of that shape")
    if values.dtype.kind in "iu":
        highest = values.max(initial=0)
        if highest not in (0, 1, 255) or not np.isin(values, (0, highest)).all():
            raise HrsegError(f"`{name}`: integers must be 0 and 1, or 0 and 255; give one object, such as ids == 3")
        values = values > 0
    elif values.dtype.kind not in "bf":
        raise HrsegError(f"`{name}`: {values.dtype} values; give bool, or probabilities in 0..1")
    if not ((values >= 0) & (values <= 1)).all():  # rejects NaN too
        raise HrsegError(f"`{name}`: values outside 0..1; give probabilities, not logits")
    return np.array(values, np.float32)


def _array(name: str, value: Any, wanted: str) -> np.ndarray:
    try:
        found = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):
        found = np.empty(0, object)
    if found.dtype.kind not in "biuf" or not found.ndim:
        raise HrsegError(f"`{name}`: a {type(value).__name__}; give {wanted}")
    return found


def as_click(row: Any, col: Any, positive: Any = True, size: tuple[int, int] | None = None) -> Click:
    """A checked click; ``size``: (H, W) of its image, if known. Raises HrsegError with the name of the coordinate."""
    numbers = []
    for name, value, length in (("row", row, size and size[0]), ("col", col, size and size[1])):
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < PIXELS:  # or NaN
            raise HrsegError(f"`{name}` {value!r}: give a number of pixels")
        if length is not None and not 0 <= value < length:
            raise HrsegError(f"`{name}` {value}: outside the image; {name}s range from 0 to {length - 1}")
        numbers.append(value)
    if not isinstance(positive, int | float | np.generic) or positive not in (0, 1):
        raise HrsegError(f"`positive` {positive!r}: give True on the object, False on the background")
    return Click(numbers[0], numbers[1], bool(positive))


def checked_box(values: Any, size: tuple[int, int] | None = None) -> Box:
    """A checked box from (top, left, bottom, right); ``size``: (H, W) of its image, if known. Raises HrsegError."""
    try:
        box = as_box([value.item() if isinstance(value, np.generic) else value for value in values])
    except (TypeError, ValueError):
        raise HrsegError(
            f"`box` {tuple(values)}: give top, left, bottom and right in pixels, bottom and right not below the others"
        ) from None
    if size and box.inside(*size) is None:
        raise HrsegError(f"`box` {tuple(values)}: outside the image, which has {size[0]} rows and {size[1]} columns")
    return box


def as_prompt(prompt: Prompt, size: tuple[int, int]) -> Prompt:
    """A click or a box, checked against the (H, W) of its image. Raises HrsegError."""
    if isinstance(prompt, Box):
        return checked_box((prompt.top, prompt.left, prompt.bottom, prompt.right), size)
    return as_click(*prompt, size=size)


def as_clicks(clicks: Any) -> tuple[Prompt, ...]:
    """The clicks on one object, each given as (row, col), (row, col, positive) or a Click, and its boxes, each
    (top, left, bottom, right) or a Box. Raises HrsegError."""
    how = "give a list of (row, col), (row, col, positive) or boxes (top, left, bottom, right)"
    if isinstance(clicks, str | Mapping) or not np.iterable(clicks):
        raise HrsegError(f"`clicks`: a {type(clicks).__name__}; {how}")
    found: list[Prompt] = []
    for click in clicks:
        if isinstance(click, Box):
            click = (click.top, click.left, click.bottom, click.right)
        values = tuple(click) if np.iterable(click) and not isinstance(click, str) else ()
        if len(values) not in (2, 3, 4):
            raise HrsegError(f"`clicks`: {click!r} is not a click; {how}")
        found.append(checked_box(values) if len(values) == 4 else as_click(*values))
    if not found:
        raise HrsegError(f"`clicks`: an object without clicks; {how}")
    return tuple(found)


def span_of(span: str | tuple[float, float] | None) -> Span | None:
    """The values of black and white, given as "0..4095" or (0, 4095)."""
    if span is None:
        return None
    try:
        return parse_span(span if isinstance(span, str) else "..".join(str(float(value)) for value in span))
    except (HrsegError, TypeError, ValueError):
        raise HrsegError(f"`span` {span!r}: give the values of black and white, such as (0, 4095)") from None


def changes_of(changes: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """Changes as a list of ``key=value`` texts, the form of ``--set``."""
    if isinstance(changes, str):
        return [changes]
    if not isinstance(changes, Mapping):
        if not np.iterable(changes) or not all(isinstance(change, str) for change in changes):
            raise HrsegError("`changes`: give a mapping such as {'zoom.target': 600}, or a list of KEY=VALUE texts")
        return list(changes)
    return [f"{key}={_yaml(value)}" for key, value in changes.items()]


def _yaml(value: Any) -> str:
    if isinstance(value, str):
        try:
            return value if parse_yaml(value) == value else json.dumps(value)
        except Malformed:
            return json.dumps(value)
    try:
        return json.dumps(value, default=lambda other: other.item() if isinstance(other, np.generic) else str(other))
    except (TypeError, ValueError):
        raise HrsegError(f"`changes`: {value!r} is not a value; give numbers, texts, lists or mappings") from None


def listed(name: str, values: Any) -> list[str]:
    """One or several texts or paths as a list without duplicates. Raises HrsegError."""
    several = [values] if isinstance(values, str | os.PathLike) else values
    if not np.iterable(several) or not all(isinstance(value, str | os.PathLike) for value in several):
        raise HrsegError(f"`{name}`: a {type(values).__name__}; give a string, or a list of strings")
    found = list(dict.fromkeys(os.fspath(value) for value in several))
    if not found:
        raise HrsegError(f"`{name}`: empty; give at least one")
    return found


def name_of(parameter: str, name: Any) -> str:
    """A name or path as a string. Raises HrsegError."""
    if not isinstance(name, str | os.PathLike):
        raise HrsegError(f"`{parameter}`: a {type(name).__name__}; give a name or the path of a file")
    return str(os.fspath(name))


def path_of(path: str | os.PathLike[str] | None) -> Path | None:
    """The path, or None if there is none."""
    return None if path is None else Path(path)


def checked_count(name: str, number: Any, least: int = 1) -> int:
    """A checked integer, at least ``least``. Raises HrsegError."""
    if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < least:
        raise HrsegError(f"`{name}` {number!r}: give an integer, {least} or more")
    return int(number)


def target_of(value: Any) -> float:
    """A checked target score. Raises HrsegError."""
    number = isinstance(value, int | float | np.generic) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf:
        raise HrsegError(f"`until` {value!r}: give a number above 0, such as 0.9; above 1 disables stopping")
    return float(value)
