"""Files about many images and their objects, as other programs read them.

    coco         coco.json                      all objects as COCO run lengths, with categories
    yolo         yolo/labels/IMAGE.txt          a line per object: its class, then x and y of the corners of a polygon
    yolo_boxes   yolo_boxes/labels/IMAGE.txt    a line per object: its class, then centre, width and height of its box
    labelme      labelme/IMAGE.json             polygons; the parts of one object have the same group_id

In YOLO's files x and y are fractions of the image's width and height, and ``data.yaml`` next to labels/ names the
classes; images belong into images/ there. Polygons are those of :func:`hrseg_cli.data.masks_out.polygons`: x points
right, y down, and the corner pixel covers 0..1.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from hrseg_cli.data.coco import from_runs
from hrseg_cli.data.masks_out import annotation_of, joined, polygons
from hrseg_cli.errors import HrsegError

KINDS = ("coco", "yolo", "yolo_boxes", "labelme")
PLACES = {"coco": "coco.json", "yolo": "yolo/", "yolo_boxes": "yolo_boxes/", "labelme": "labelme/"}
_PER_IMAGE = {
    "yolo": ("yolo/labels/", ".txt"),
    "yolo_boxes": ("yolo_boxes/labels/", ".txt"),
    "labelme": ("labelme/", ".json"),
}
_LABELME = "5.5.0"  # the version whose fields these are


class Shape(NamedTuple):
    """An object. counts: COCO's compressed run lengths. tolerance: of polygons, in pixels."""

    category: str
    counts: str
    tolerance: float = 1.0


class Exported(NamedTuple):
    """An image. name: its path with "/" below the folder of all images. path: its file. size: (H, W)."""

    name: str
    path: Path
    size: tuple[int, int]
    shapes: tuple[Shape, ...]


def category_of(name: str) -> str:
    """The category of an object of this name: "cat" for "cat", "cat 2" and "cat_2"; "object" for "" and "2"."""
    return re.sub(r"(^|[ _#-]+)[0-9]+$", "", name) or "object"


def names_below(paths: Sequence[Path]) -> list[str]:
    """The path of each file below the folder that contains all of them."""
    try:
        above = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths]) if paths else ""
        return [os.path.relpath(path, above).replace(os.sep, "/") for path in paths]
    except ValueError:  # several drives
        return [path.name for path in paths]


def files(
    kinds: Iterable[str], pictures: Sequence[Exported], labels: Sequence[str] = (), folder: Path | None = None
) -> dict[str, Callable[[], str]]:
    """Path of each file -> a function that makes its text.

    labels: the first categories, used or not; others follow in the order of their first use. folder: where the files
    will be, so that labelme finds the images from there; None: they are to be next to the JSON files.

    Raises HrsegError if two images would share a file.
    """
    numbers = {name: number for number, name in enumerate(labels)}
    for picture in pictures:
        for shape in picture.shapes:
            numbers.setdefault(shape.category, len(numbers))
    made: dict[str, Callable[[], str]] = {}
    for kind in kinds:
        if kind == "coco":
            made[PLACES[kind]] = lambda: _dumped(_coco(pictures, numbers))
            continue
        for picture, path in zip(pictures, paths_of(kind, [picture.name for picture in pictures]), strict=True):
            made[path] = _maker(kind, picture, path, numbers, folder)
        if kind != "labelme":
            made[f"{PLACES[kind]}data.yaml"] = lambda: _classes(numbers)
    return made


def paths_of(kind: str, names: Sequence[str]) -> list[str]:
    """The file about each image. Raises HrsegError if two images would share one that is about a single image."""
    if kind == "coco":
        return [PLACES[kind]] * len(names)
    place, ending = _PER_IMAGE[kind]
    owners: dict[str, str] = {}
    found = []
    for name in names:
        path = f"{place}{PurePosixPath(name).with_suffix('')}{ending}"
        if (other := owners.setdefault(path.casefold(), name)) != name:
            raise HrsegError(
                f"{other} and {name}: `formats` {kind} would write both to {path}; process them in separate calls with "
                "different `out`"
            )
        found.append(path)
    return found


def files_about(kind: str, names: Sequence[str]) -> list[str]:
    """The files that change with these images, those about all images included."""
    shared = [f"{PLACES[kind]}data.yaml"] if kind in ("yolo", "yolo_boxes") else []
    return [*paths_of(kind, names), *shared]


def _maker(kind: str, picture: Exported, path: str, numbers: dict[str, int], folder: Path | None) -> Callable[[], str]:
    if kind == "labelme":
        place = None if folder is None else (folder / path).parent
        return lambda: _dumped(_labelme(picture, place))
    return lambda: "".join(f"{line}\n" for line in _yolo(picture, numbers, boxes=kind == "yolo_boxes"))


def _dumped(content: Any) -> str:
    return json.dumps(content, ensure_ascii=False) + "\n"


def _mask(picture: Exported, shape: Shape) -> np.ndarray:
    """bool (H, W)."""
    return from_runs({"size": list(picture.size), "counts": shape.counts}, picture.size)


def _coco(pictures: Sequence[Exported], numbers: dict[str, int]) -> dict[str, Any]:
    annotations: list[dict[str, Any]] = []
    images = []
    for number, picture in enumerate(pictures, 1):
        height, width = picture.size
        images.append({"id": number, "file_name": picture.name, "height": height, "width": width})
        for shape in picture.shapes:
            mask = _mask(picture, shape)
            runs = {"size": [height, width], "counts": shape.counts}
            if mask.any():
                ids = {"id": len(annotations) + 1, "image_id": number, "category_id": numbers[shape.category] + 1}
                annotations.append(ids | annotation_of(mask, runs))
    categories = [{"id": number + 1, "name": name} for name, number in numbers.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def _yolo(picture: Exported, numbers: dict[str, int], boxes: bool) -> Iterable[str]:
    height, width = picture.size
    for shape in picture.shapes:
        mask = _mask(picture, shape)
        if not mask.any():
            continue
        if boxes:
            left, top, wide, high = annotation_of(mask, None)["bbox"]
            places = np.array([[left + wide / 2, top + high / 2], [wide, high]])
        else:
            # A line is one object, so its parts become one outline, joined by lines there and back.
            first, *others = [np.array(ring).reshape(-1, 2) for ring in polygons(mask, shape.tolerance)]
            places = joined(first, others)
        yield " ".join([str(numbers[shape.category]), *(f"{v:.7f}" for v in (places / (width, height)).ravel())])


def _classes(numbers: dict[str, int]) -> str:
    """YOLO's data.yaml. Without ``path``, its folders are next to it. A JSON string is a YAML string."""
    names = {number: name for name, number in numbers.items()}
    lines = [f"  {number}: {json.dumps(name, ensure_ascii=False)}" for number, name in names.items()]
    head = ["# Put the images into images/, next to labels/.", "train: images", "val: images"]
    return "\n".join([*head, *(["names:", *lines] if lines else ["names: {}"]), ""])


def _labelme(picture: Exported, place: Path | None) -> dict[str, Any]:
    """place: the folder of the JSON file; None: that of the image."""
    shapes: list[dict[str, Any]] = []
    for number, shape in enumerate(picture.shapes, 1):
        rings = polygons(_mask(picture, shape), shape.tolerance)
        for ring in rings:
            shapes.append(
                {
                    "label": shape.category,
                    "points": np.array(ring).reshape(-1, 2).tolist(),
                    "group_id": number if len(rings) > 1 else None,
                    "description": "",
                    "shape_type": "polygon",
                    "flags": {},
                    "mask": None,
                }
            )
    path = PurePosixPath(picture.name).name
    if place is not None:
        try:
            path = os.path.relpath(picture.path, place).replace(os.sep, "/")
        except ValueError:  # on another drive
            path = os.path.abspath(picture.path)
    return {
        "version": _LABELME,
        "flags": {},
        "shapes": shapes,
        "imagePath": path,
        "imageData": None,
        "imageHeight": picture.size[0],
        "imageWidth": picture.size[1],
    }
