"""labelme's JSON files as datasets, one next to each image. X-AnyLabeling writes the same format."""

from __future__ import annotations

import base64
import binascii
import contextlib
import logging
import math
from collections import Counter
from functools import lru_cache
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

import numpy as np

from hrseg_cli.data.coco import from_polygons, side_of
from hrseg_cli.data.folders import by_stem
from hrseg_cli.data.json_files import content_of, state_of
from hrseg_cli.data.pixels import SUFFIXES, read_image
from hrseg_cli.data.refs import Ref, layout
from hrseg_cli.errors import HrsegError, UnknownName
from hrseg_cli.limits import OBJECTS, TEXT
from hrseg_cli.parsing import reason, shown
from hrseg_cli.recipe import BinarizeRule

log = logging.getLogger(__name__)

AREAS = ("polygon", "rotation", "circle", "mask")  # kinds of shapes that say which pixels belong to an object


class _File(NamedTuple):
    """image: its path. size: (height, width), 0 where not given. objects: label and shapes of each. others: number of
    shapes that are no areas."""

    image: str
    size: tuple[int, int]
    objects: list[tuple[str, list[dict[str, Any]]]]
    others: int


@layout(("*.json",))
def list_labelme(
    folder: Path,
    name: str,
    *,
    instances: bool,
    binarize: BinarizeRule,
    broken: list[str] | None = None,
    category: str = "",
) -> list[Ref]:
    """labelme and X-AnyLabeling: a JSON file next to each image. One object per polygon, circle or mask; shapes with
    the same label and group are one object.

    Rectangles, lines and points say nothing about an object's pixels and are skipped, with a warning. ``instances`` and
    ``binarize`` have no effect.

    category: objects with these labels only: "cat", "cat+dog". Objects of others are background.
    """
    images, _ = by_stem(folder)
    wanted = category.split("+") if category else None
    refs: list[Ref] = []
    known: dict[str, None] = {}
    others = bare = 0
    for stem, path in sorted(by_stem(folder, (".json",))[0].items()):
        try:
            file = _read(path)
            image = _image(path, file, images.get(stem)) if file.objects else path
        except HrsegError as error:
            if broken is None:
                raise
            broken.append(str(error))
            continue
        found = [k for k, (label, _) in enumerate(file.objects) if wanted is None or label in wanted]
        known |= dict.fromkeys(label for label, _ in file.objects)
        others += file.others
        bare += not found
        refs += [Ref(f"{stem}#{k}", name, image, path, "labelme", k) for k in found]
    for one in wanted or ():
        if one not in known:
            raise UnknownName("label", one, known)
    if others:
        log.warning("%s: skipped %d rectangles, lines and points, which are no masks", folder, others)
    if bare:
        log.warning("%s: skipped %d JSON files without objects", folder, bare)
    return refs


def _image(path: Path, file: _File, beside: Path | None) -> Path:
    """The image with the same stem, or the one that the file names, as seen from its folder."""
    if beside is not None:
        return beside
    # "../images/a.jpg" is usual. An absolute path is that of another machine, and is not followed.
    given = PureWindowsPath(file.image)
    named = path.parent / (given.name if given.anchor else given.as_posix())
    with contextlib.suppress(OSError, ValueError):  # a name that no file can have
        if file.image and named.suffix.lower() in SUFFIXES and named.is_file():
            return named
    raise HrsegError(f"{path}: no image {path.stem}.jpg or '{file.image}' next to it; add it, or remove the JSON file")


def truth(ref: Ref, size: tuple[int, int]) -> np.ndarray:
    """int8 (H, W): 1 object, 0 background, of an object on an image of ``size``. Raises HrsegError."""
    file = _read(ref.mask)
    k = ref.instance or 0
    if k >= len(file.objects):
        raise HrsegError(f"{ref.mask}: object {k} is gone; open the dataset again")
    said = tuple(given or side for given, side in zip(file.size, size, strict=True))
    if said != size:
        raise HrsegError(
            f"{ref.mask}: gives {said[1]}x{said[0]} for {ref.image}, which has {size[1]}x{size[0]} pixels; use the "
            "images that were annotated"
        )
    label, shapes = file.objects[k]
    mask = np.zeros(size, bool)
    for shape in shapes:
        try:
            mask |= _mask(ref.mask, shape, size)
        except (TypeError, ValueError, LookupError, OverflowError) as error:
            raise HrsegError(f"{ref.mask}: object {k} ('{label}'): {reason(error)}; correct or remove it") from None
    if not mask.any():
        raise HrsegError(f"{ref.mask}: object {k} ('{label}') covers no pixel; remove it")
    return mask.astype(np.int8)


def _mask(path: Path, shape: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    points = [[float(x), float(y)] for x, y in shape["points"]]
    match shape.get("shape_type") or "polygon":
        case "mask":
            return _pasted(path, shape["mask"], points, size)
        case "circle":
            (x, y), (edge_x, edge_y) = points
            radius = math.hypot(edge_x - x, edge_y - y)
            turns = np.linspace(0, 2 * math.pi, 720, endpoint=False)
            points = np.stack([x + radius * np.cos(turns), y + radius * np.sin(turns)], 1).tolist()
    return from_polygons([[value for point in points for value in point]], size)


def _pasted(path: Path, text: Any, points: list[list[float]], size: tuple[int, int]) -> np.ndarray:
    """A picture of the part of the mask inside its box, both ends of which are included."""
    left, top, right, bottom = (round(value) for point in points for value in point)
    if not (0 <= left <= right < size[1] and 0 <= top <= bottom < size[0]):
        raise ValueError(f"a mask outside its image of {size[1]}x{size[0]} pixels")
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error:
        raise ValueError("a mask that is not base64 text") from None
    inside = read_image(path, at_most=size[0] * size[1], data=data)[:, :, 0] > 0
    if inside.shape != (bottom - top + 1, right - left + 1):
        raise ValueError(f"a mask of {inside.shape[1]}x{inside.shape[0]} pixels in a box of another size")
    mask = np.zeros(size, bool)
    mask[top : bottom + 1, left : right + 1] = inside
    return mask


def _read(path: Path) -> _File:
    return _parse(path, *state_of(path))


@lru_cache(maxsize=16)
def _parse(path: Path, _time: int, _size: int) -> _File:
    """Modification time and size are cache keys, so changes are noticed."""
    content = content_of(path, TEXT)
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        raise HrsegError(f"{path}: a COCO file, not one of labelme; give the file itself as the dataset")
    shapes = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
        raise HrsegError(f"{path}: no list 'shapes', so not a file of labelme; move it out of the dataset")
    size = side_of(path, content, "imageHeight"), side_of(path, content, "imageWidth")
    objects: dict[object, tuple[str, list[dict[str, Any]]]] = {}
    kinds: Counter[bool] = Counter()
    for number, shape in enumerate(shapes):
        label, group, kind = shape.get("label"), shape.get("group_id"), shape.get("shape_type") or "polygon"
        if not isinstance(label, str) or not isinstance(kind, str) or isinstance(group, list | dict):
            raise HrsegError(f"{path}: shape {number}: no valid label, kind or group; correct or remove it")
        kinds[kind in AREAS] += 1
        if kind in AREAS:
            key: object = number if group is None else (label, group)
            objects.setdefault(key, (label, []))[1].append(shape)
    if len(objects) > OBJECTS:
        raise HrsegError(f"{path}: more than {OBJECTS} objects; split the file")
    image = content.get("imagePath") or ""
    if not isinstance(image, str):
        raise HrsegError(f"{path}: imagePath is {shown(image)}; write the name of its image")
    return _File(image, size, list(objects.values()), kinds[False])
