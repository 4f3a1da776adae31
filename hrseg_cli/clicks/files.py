"""Read click files: the clicks and boxes of each object of each image.

JSON    {"cat.jpg": [[row, col, 1], [row, col, 0]]}             one object; 1 on it, 0 on the background
        {"cat.jpg": [[top, left, bottom, right], [row, col]]}   four numbers are a box around the object
        {"cats.jpg": {"left": [[row, col, 1]], "right": [...]}} several, by name
        {"cats.jpg": [[[row, col, 1]], [[row, col, 1]]]}        several, named 1, 2, ...
CSV     a header image,row,col[,positive][,object][,bottom,right], then one line per click; a line with bottom and right
        is a box, whose top and left are row and col
JSONL   traces written by hrseg; STEM#K and STEM_K are object K of that image

Rows and columns are pixels of the upright image, starting at 0, with row 0 at the top. Fractions are allowed; values
must be below the height and the width. A box includes its last row and column, and is clipped to the image.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import cache
from operator import attrgetter
from pathlib import Path, PurePosixPath
from typing import Any

from hrseg_cli.errors import HrsegError
from hrseg_cli.interaction import Box, Click, Prompt, as_box
from hrseg_cli.limits import PIXELS
from hrseg_cli.parsing import Malformed, read_json, read_table, reason
from hrseg_cli.runs import read_traces

Objects = dict[str, tuple[Prompt, ...]]  # name of an object ("" if it has none) -> its clicks and boxes
HOW = "write [row, col, 1], [row, col, 0] for background, or [top, left, bottom, right] for a box"
SIDES = {
    **dict.fromkeys(("1", "1.0", "pos", "true", ""), True),  # pandas writes 1.0 in a column with gaps
    **dict.fromkeys(("0", "0.0", "neg", "false"), False),
}


def read_clicks(path: Path) -> dict[str, Objects]:
    """Image name as in the file, or trace id -> its objects. Raises HrsegError naming the invalid line or image."""
    if path.suffix.lower() == ".jsonl":
        if not path.is_file():
            raise HrsegError(f"`clicks` {path}: no such file; give a JSON, CSV or traces file")
        return _from_traces(path)
    try:
        return _from_csv(path) if path.suffix.lower() == ".csv" else _from_json(path)
    except (OSError, Malformed) as error:
        raise HrsegError(
            f"`clicks` {path}: cannot be read ({reason(error)}); give a JSON file, a table named .csv, or traces named "
            ".jsonl"
        ) from None


def parse_click(text: str) -> Click:
    """Parse a click: ``row,col``, with ``,neg`` appended for background."""
    row, _, rest = text.partition(",")
    col, _, side = rest.partition(",")
    try:
        return _click([float(row), float(col), SIDES[side.strip().lower()]])
    except (ValueError, KeyError):
        raise HrsegError(f"`click` {text}: write ROW,COL such as 120,48, or 120,48,neg for background") from None


def parse_box(text: str) -> Box:
    """Parse a box: ``top,left,bottom,right``."""
    try:
        return as_box([float(end) for end in text.split(",")])
    except (ValueError, TypeError):
        raise HrsegError(f"`box` {text}: write TOP,LEFT,BOTTOM,RIGHT such as 40,60,210,320, in pixels") from None


def for_images(
    clicks: dict[str, Objects], images: Iterable[Path], suffixes: Collection[str], *, ids: bool = False
) -> tuple[dict[Path, Objects], list[str]]:
    """Image -> its objects, in the order of ``images``, and the names that match no image.

    A name is the end of an image's path: ``cat.jpg`` and ``pets/cat.jpg`` match /photos/pets/cat.jpg. If no image has
    exactly that name, the suffix may be missing (``cat``); a name with an image suffix never matches another image.
    suffixes: of images, in lower case.
    ids: the names are ids of traces, which have no suffix. Names without suffix are then tried first, and ``cat_left``
        or ``cat#left`` is object "left" of cat.jpg, unless an image of that name exists, even just next to cat.jpg.

    Raises HrsegError for a name that matches several images.
    """
    images = list(images)
    named, stems = (_ends(images, attrgetter(part)) for part in ("name", "stem"))
    known = {**named, **stems}

    @cache
    def pictures(folder: Path) -> set[str]:
        return {path.stem for path in folder.glob("*") if path.suffix.lower() in suffixes}

    found: dict[Path, Objects] = {}
    strangers = []
    for name, objects in clicks.items():
        meant, object_name = None, ""
        for spelt in dict.fromkeys((name, name.replace("\\", "/"))):  # the second as Windows writes it
            parts = PurePosixPath(spelt).parts
            with_suffix = PurePosixPath(spelt).suffix.lower() in suffixes
            if ids:
                meant = meant or stems.get(parts) or named.get(parts)
                if not meant and not with_suffix:
                    meant, object_name = _object(parts, known, pictures)
            else:
                meant = meant or named.get(parts) or (None if with_suffix else stems.get(parts))
        if not meant:
            strangers.append(name)
            continue
        if len(meant) > 1:
            raise HrsegError(
                f"'{name}' matches {meant[0]} and {meant[1]}; write the suffix, or more of the path, in the click file"
            )
        mine = found.setdefault(meant[0], {})
        for inner, its in objects.items():
            key = inner or object_name
            if key in mine:
                raise HrsegError(f"'{name}': duplicate clicks for object '{key}' of {meant[0]}; remove one")
            mine[key] = its
    return {image: found[image] for image in images if image in found}, strangers


def _ends(images: Iterable[Path], last: Callable[[Path], str]) -> dict[tuple[str, ...], list[Path]]:
    """Every suffix of the images' paths, as parts, -> images that have it; ``last`` gives the last part."""
    ends: dict[tuple[str, ...], list[Path]] = defaultdict(list)
    for image in images:
        parts = Path(os.path.abspath(image)).parts
        for start in range(len(parts)):
            ends[(*parts[start:-1], last(image))].append(image)
    return ends


def _object(
    parts: tuple[str, ...], known: dict[tuple[str, ...], list[Path]], pictures: Callable[[Path], set[str]]
) -> tuple[list[Path], str]:
    """For an id that matches no image: the images it belongs to, and the object at its end. No image if the stem of one
    of the ``pictures`` in a folder matches more of the id: the id then refers to that one, which was not given."""
    last = parts[-1] if parts else ""
    cuts = [found.start() for found in re.finditer("[#_]", last) if found.start()]
    for cut in reversed(cuts):
        if meant := known.get((*parts[:-1], last[:cut])):
            longer = {last, *(last[:other] for other in cuts if other > cut)}
            if any(longer & pictures(image.absolute().parent) for image in meant):
                break
            return meant, last[cut + 1 :]
    return [], ""


def _from_json(path: Path) -> dict[str, Objects]:
    content = read_json(path, finite=False)
    if not isinstance(content, dict):
        raise HrsegError(f'`clicks` {path}: write {{"cat.jpg": [[row, col, 1], ...]}}')
    found = {}
    for image, value in content.items():
        try:
            found[image] = {name: tuple(_prompt(one) for one in clicks) for name, clicks in _objects(value)}
        except (TypeError, ValueError):
            raise HrsegError(f"`clicks` {path}, {image}: not clicks; {HOW}") from None
        _check_some(path, image, found[image])
    return found


def _objects(value: Any) -> Iterator[tuple[str, Any]]:
    """(name, clicks) of each object in the JSON value of an image."""
    if isinstance(value, dict):
        yield from value.items()
    elif value and all(isinstance(one, list) and one and isinstance(one[0], list) for one in value):
        yield from ((str(number), clicks) for number, clicks in enumerate(value, 1))
    else:
        yield "", value


def _from_csv(path: Path) -> dict[str, Objects]:
    found: dict[str, dict[str, list[Prompt]]] = defaultdict(lambda: defaultdict(list))
    for number, line in read_table(path, ("image", "row", "col")):
        try:
            side = SIDES[line.get("positive", "").lower()]
            ends = [text for text in (line.get("bottom"), line.get("right")) if text]
            place = [float(text) for text in (line["row"], line["col"], *ends)]
            click = as_box(place) if ends else _click([*place, side])
        except (ValueError, KeyError):
            raise HrsegError(
                f"`clicks` {path}, line {number}: not a click; row and col must be numbers, positive 1 or 0; a box "
                "needs bottom and right too, not above or left of row and col"
            ) from None
        found[line["image"]][line.get("object", "")].append(click)
    return {image: {name: tuple(clicks) for name, clicks in its.items()} for image, its in found.items()}


def _from_traces(path: Path) -> dict[str, Objects]:
    found: dict[str, Objects] = {}
    for trace in read_traces(path):
        if trace.id in found:
            raise HrsegError(f"`clicks` {path}, {trace.id}: duplicate trace; give the traces of one dataset")
        found[trace.id] = {"": trace.clicks}
        _check_some(path, trace.id, found[trace.id])
    return found


def _check_some(path: Path, image: str, objects: Objects) -> None:
    if not objects or not all(objects.values()):
        raise HrsegError(f"`clicks` {path}, {image}: an object without clicks; {HOW}")


def _prompt(values: Any) -> Prompt:
    return as_box(values) if len(values) == 4 else _click(values)


def _click(values: Any) -> Click:
    """Parse [row, col] or [row, col, positive]. Raises ValueError or TypeError for anything else."""
    row, col, positive = values if len(values) == 3 else (*values, True)
    if positive not in (0, 1) or isinstance(row, bool | str) or isinstance(col, bool | str):
        raise ValueError
    if not (abs(row) < PIXELS and abs(col) < PIXELS):  # also false for NaN
        raise ValueError
    return Click(row, col, bool(positive))
