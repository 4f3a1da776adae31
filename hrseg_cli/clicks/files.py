"""Clicks in files: which clicks belong to which object of which image.

JSON    {"cat.jpg": [[row, col, 1], [row, col, 0]]}             one object; 1 on it, 0 on the background
        {"cats.jpg": {"left": [[row, col, 1]], "right": [...]}} several, by name
        {"cats.jpg": [[[row, col, 1]], [[row, col, 1]]]}        several, named 1, 2, ...
CSV     a header image,row,col[,positive][,object], a line a click
JSONL   traces of hrseg; STEM#K and STEM_K are object K of that image

Rows and columns are pixels of the upright image, from 0, row 0 on top; fractions are taken, up to below the height and
the width.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import cache
from operator import attrgetter
from pathlib import Path, PurePosixPath
from typing import Any

from hrseg_cli.errors import HrsegError
from hrseg_cli.interaction import Click
from hrseg_cli.runs import read_traces

Objects = dict[str, tuple[Click, ...]]  # name of an object ("" for one without) -> its clicks
HOW = "write [row, col, 1], or 0 in place of 1 for background"
LARGEST = 1e9
SIDES = {"1": True, "0": False, "pos": True, "neg": False, "true": True, "false": False, "": True}


def read_clicks(path: Path) -> dict[str, Objects]:
    """Image as the file names it, or the id of a trace -> its objects. Raises HrsegError with the line or the image
    that is wrong."""
    if path.suffix.lower() == ".jsonl":
        if not path.is_file():
            raise HrsegError(f"`clicks` {path}: no such file; give JSON, CSV or traces of hrseg")
        return _from_traces(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise HrsegError(f"`clicks` {path}: cannot be read ({reason}); give JSON, CSV or traces of hrseg") from None
    return _from_csv(path, text) if path.suffix.lower() == ".csv" else _from_json(path, text)


def parse_click(text: str) -> Click:
    """A click as typed: ``row,col``, with ``,neg`` behind it on the background."""
    row, _, rest = text.partition(",")
    col, _, side = rest.partition(",")
    try:
        return _click([float(row), float(col), SIDES[side.strip().lower()]])
    except (ValueError, KeyError):
        raise HrsegError(f"`click` {text}: write row,col such as 120,48, or 120,48,neg on the background") from None


def for_images(
    clicks: dict[str, Objects], images: Iterable[Path], suffixes: Collection[str], *, ids: bool = False
) -> tuple[dict[Path, Objects], list[str]]:
    """Image -> its objects, in the order of ``images``, and the names that belong to none of them.

    A name is the end of an image's path: ``cat.jpg`` and ``pets/cat.jpg`` mean /photos/pets/cat.jpg. Where no image is
    called exactly so, it may lack the suffix, as ``cat`` does; a name that has one of a picture never means another.
    suffixes: of pictures, in lower case.
    ids: the names are ids of traces, made from names without suffix. So these come first, and ``cat_left`` or
        ``cat#left`` is object "left" of cat.jpg where no picture is called so, be it one next to cat.jpg.

    Raises HrsegError for a name that means several images.
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
        parts = PurePosixPath(name).parts
        with_suffix = PurePosixPath(name).suffix.lower() in suffixes
        object_name = ""
        if ids:
            meant = stems.get(parts) or named.get(parts)
            if not meant and not with_suffix:
                meant, object_name = _object(parts, known, pictures)
        else:
            meant = named.get(parts) or (None if with_suffix else stems.get(parts))
        if not meant:
            strangers.append(name)
            continue
        if len(meant) > 1:
            raise HrsegError(
                f"'{name}' means {meant[0]} and {meant[1]}; write the suffix, or more of the path, for its clicks"
            )
        mine = found.setdefault(meant[0], {})
        for inner, its in objects.items():
            key = inner or object_name
            if key in mine:
                raise HrsegError(f"'{name}': object '{key}' of {meant[0]} has its clicks twice; remove one")
            mine[key] = its
    return {image: found[image] for image in images if image in found}, strangers


def _ends(images: Iterable[Path], last: Callable[[Path], str]) -> dict[tuple[str, ...], list[Path]]:
    """Every end of the images' paths, as parts, with the images that have it; ``last`` makes the last part."""
    ends: dict[tuple[str, ...], list[Path]] = defaultdict(list)
    for image in images:
        parts = Path(os.path.abspath(image)).parts
        for start in range(len(parts)):
            ends[(*parts[start:-1], last(image))].append(image)
    return ends


def _object(
    parts: tuple[str, ...], known: dict[tuple[str, ...], list[Path]], pictures: Callable[[Path], set[str]]
) -> tuple[list[Path], str]:
    """The images that an id without an image of its own belongs to, and the object at its end. No image where one of
    the ``pictures`` of a folder has more of the id for its stem: that one is meant, and it is not among the images."""
    last = parts[-1] if parts else ""
    cuts = [found.start() for found in re.finditer("[#_]", last) if found.start()]
    for cut in reversed(cuts):
        if meant := known.get((*parts[:-1], last[:cut])):
            longer = {last, *(last[:other] for other in cuts if other > cut)}
            if any(longer & pictures(image.absolute().parent) for image in meant):
                break
            return meant, last[cut + 1 :]
    return [], ""


def _from_json(path: Path, text: str) -> dict[str, Objects]:
    try:
        content = json.loads(text, object_pairs_hook=_once)
    except ValueError as error:
        raise HrsegError(f"`clicks` {path}: not JSON ({error}); mend it, or name a CSV file .csv") from None
    if not isinstance(content, dict):
        raise HrsegError(f'`clicks` {path}: write {{"cat.jpg": [[row, col, 1], ...]}}')
    found = {}
    for image, value in content.items():
        try:
            found[image] = {name: tuple(_click(one) for one in clicks) for name, clicks in _objects(value)}
        except (TypeError, ValueError):
            raise HrsegError(f"`clicks` {path}, {image}: not clicks; {HOW}") from None
        _check_some(path, image, found[image])
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, of which a name that is there twice would lose its first clicks without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"'{name}' is there twice")
    return found


def _objects(value: Any) -> Iterator[tuple[str, Any]]:
    """(name, clicks) of what stands behind an image in JSON."""
    if isinstance(value, dict):
        yield from value.items()
    elif value and all(isinstance(one, list) and one and isinstance(one[0], list) for one in value):
        yield from ((str(number), clicks) for number, clicks in enumerate(value, 1))
    else:
        yield "", value


def _from_csv(path: Path, text: str) -> dict[str, Objects]:
    table = csv.DictReader(text.splitlines())
    if not {"image", "row", "col"} <= set(table.fieldnames or ()):
        raise HrsegError(f"`clicks` {path}: the first line must name the columns image,row,col[,positive][,object]")
    found: dict[str, dict[str, list[Click]]] = defaultdict(lambda: defaultdict(list))
    for line in table:
        try:
            side = SIDES[(line.get("positive") or "").strip().lower()]
            click = _click([float(line["row"]), float(line["col"]), side])
        except (TypeError, ValueError, KeyError):
            raise HrsegError(
                f"`clicks` {path}, line {table.line_num}: not a click; row and col are numbers, positive is 1 or 0"
            ) from None
        found[line["image"].strip()][(line.get("object") or "").strip()].append(click)
    return {image: {name: tuple(clicks) for name, clicks in its.items()} for image, its in found.items()}


def _from_traces(path: Path) -> dict[str, Objects]:
    found: dict[str, Objects] = {}
    for trace in read_traces(path):
        if trace.id in found:
            raise HrsegError(f"`clicks` {path}, {trace.id}: its clicks are there twice; give the traces of one dataset")
        found[trace.id] = {"": trace.clicks}
        _check_some(path, trace.id, found[trace.id])
    return found


def _check_some(path: Path, image: str, objects: Objects) -> None:
    if not objects or not all(objects.values()):
        raise HrsegError(f"`clicks` {path}, {image}: an object without clicks; {HOW}")


def _click(values: Any) -> Click:
    """Raises ValueError or TypeError for anything but [row, col] and [row, col, positive]."""
    row, col, positive = values if len(values) == 3 else (*values, True)
    if positive not in (0, 1) or isinstance(row, bool | str) or isinstance(col, bool | str):
        raise ValueError
    if not (abs(row) < LARGEST and abs(col) < LARGEST):  # neither NaN is
        raise ValueError
    return Click(row, col, bool(positive))
