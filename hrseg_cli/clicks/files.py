"""Clicks in files: which clicks belong to which object of which image.

JSON    {"cat.jpg": [[row, col, 1], [row, col, 0]]}             one object; 1 on it, 0 on the background
        {"cats.jpg": {"left": [[row, col, 1]], "right": [...]}} several, by name
        {"cats.jpg": [[[row, col, 1]], [[row, col, 1]]]}        several, named 1, 2, ...
CSV     a header image,row,col[,positive][,object], a line a click
JSONL   traces of hrseg; STEM#K is object K of that image

Rows and columns are pixels of the upright image, from 0, row 0 on top; fractions are taken, up to below the height and
the width.
"""

from __future__ import annotations

import csv
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
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
    """Image as the file names it -> its objects. Raises HrsegError with the line or the image that is wrong."""
    if path.suffix.lower() == ".jsonl":
        if not path.is_file():
            raise HrsegError(f"--clicks {path}: no such file; give JSON, CSV or traces of hrseg")
        return _from_traces(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise HrsegError(f"--clicks {path}: cannot be read ({reason}); give JSON, CSV or traces of hrseg") from None
    return _from_csv(path, text) if path.suffix.lower() == ".csv" else _from_json(path, text)


def parse_click(text: str) -> Click:
    """A click as typed: ``row,col``, with ``,neg`` behind it on the background."""
    row, _, rest = text.partition(",")
    col, _, side = rest.partition(",")
    try:
        return _click([float(row), float(col), SIDES[side.strip().lower()]])
    except (ValueError, KeyError):
        raise HrsegError(f"--click {text}: write row,col such as 120,48, or 120,48,neg on the background") from None


def for_images(clicks: dict[str, Objects], images: Iterable[Path]) -> tuple[dict[Path, Objects], list[str]]:
    """Image -> its objects, in the order of ``images``, and the names that belong to none of them.

    A name is the end of an image's path, with or without its suffix: ``cat``, ``cat.jpg`` and ``pets/cat.jpg`` all
    mean /photos/pets/cat.jpg. ``cat_left`` is object "left" of cat.jpg where no image is called so, as one mask
    of several is. Raises HrsegError for a name that means several images.
    """
    images = list(images)
    ends: dict[tuple[str, ...], list[Path]] = defaultdict(list)
    for image in images:
        parts = image.absolute().parts
        for last in {image.name, image.stem}:
            for start in range(len(parts)):
                ends[(*parts[start:-1], last)].append(image)
    found: dict[Path, Objects] = {}
    strangers = []
    for name, objects in clicks.items():
        parts, object_name = _split(PurePosixPath(name).parts, ends)
        if parts not in ends:
            strangers.append(name)
            continue
        meant = ends[parts]
        if len(meant) > 1:
            raise HrsegError(f"'{name}' means {meant[0]} and {meant[1]}; write more of the path for its clicks")
        mine = found.setdefault(meant[0], {})
        for inner, its in objects.items():
            key = inner or object_name
            if key in mine:
                raise HrsegError(f"'{name}': object '{key}' of {meant[0]} has its clicks twice; remove one")
            mine[key] = its
    return {image: found[image] for image in images if image in found}, strangers


def _split(parts: tuple[str, ...], known: dict[tuple[str, ...], list[Path]]) -> tuple[tuple[str, ...], str]:
    """A name's parts and the object at the end of it, if the whole is no image."""
    cut = parts[-1].rfind("_") if parts else -1
    while parts not in known and cut > 0:
        shorter = (*parts[:-1], parts[-1][:cut])
        if shorter in known:
            return shorter, parts[-1][cut + 1 :]
        cut = parts[-1].rfind("_", 0, cut)
    return parts, ""


def _from_json(path: Path, text: str) -> dict[str, Objects]:
    try:
        content = json.loads(text, object_pairs_hook=_once)
    except ValueError as error:
        raise HrsegError(f"--clicks {path}: not JSON ({error}); mend it, or name a CSV file .csv") from None
    if not isinstance(content, dict):
        raise HrsegError(f'--clicks {path}: write {{"cat.jpg": [[row, col, 1], ...]}}')
    found = {}
    for image, value in content.items():
        try:
            found[image] = {name: tuple(_click(one) for one in clicks) for name, clicks in _objects(value)}
        except (TypeError, ValueError):
            raise HrsegError(f"--clicks {path}, {image}: not clicks; {HOW}") from None
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
        raise HrsegError(f"--clicks {path}: the first line must name the columns image,row,col[,positive][,object]")
    found: dict[str, dict[str, list[Click]]] = defaultdict(lambda: defaultdict(list))
    for line in table:
        try:
            side = SIDES[(line.get("positive") or "").strip().lower()]
            click = _click([float(line["row"]), float(line["col"]), side])
        except (TypeError, ValueError, KeyError):
            raise HrsegError(
                f"--clicks {path}, line {table.line_num}: not a click; row and col are numbers, positive is 1 or 0"
            ) from None
        found[line["image"].strip()][(line.get("object") or "").strip()].append(click)
    return {image: {name: tuple(clicks) for name, clicks in its.items()} for image, its in found.items()}


def _from_traces(path: Path) -> dict[str, Objects]:
    found: dict[str, Objects] = defaultdict(dict)
    for trace in read_traces(path):
        image, _, name = trace.id.partition("#")
        if name in found[image]:
            raise HrsegError(f"--clicks {path}, {trace.id}: its clicks are there twice; remove one of the two lines")
        found[image][name] = trace.clicks
        _check_some(path, trace.id, {name: trace.clicks})
    return dict(found)


def _check_some(path: Path, image: str, objects: Objects) -> None:
    if not objects or not all(objects.values()):
        raise HrsegError(f"--clicks {path}, {image}: an object without clicks; {HOW}")


def _click(values: Any) -> Click:
    """Raises ValueError or TypeError for anything but [row, col] and [row, col, positive]."""
    row, col, positive = values if len(values) == 3 else (*values, True)
    if positive not in (0, 1) or isinstance(row, bool | str) or isinstance(col, bool | str):
        raise ValueError
    if not (abs(row) < LARGEST and abs(col) < LARGEST):  # neither NaN is
        raise ValueError
    return Click(row, col, bool(positive))
