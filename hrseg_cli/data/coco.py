"""COCO-format JSON files as datasets: polygons and run lengths, as written by COCO, CVAT and Label Studio."""

from __future__ import annotations

import logging
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as pycoco

from hrseg_cli.data.json_files import content_of, state_of
from hrseg_cli.data.paths import inner
from hrseg_cli.data.refs import Ref, Rule
from hrseg_cli.errors import HrsegError, UnknownName
from hrseg_cli.limits import DATASET
from hrseg_cli.parsing import reason, shown
from hrseg_cli.recipe import BinarizeRule

log = logging.getLogger(__name__)

CROWD_RULES: dict[str, Rule] = {"void": "coco", "object": "coco_crowd"}


class _File(NamedTuple):
    """images and annotations by id; crowds: image id -> its annotations marked as crowd; categories: id -> name."""

    images: dict[Any, dict[str, Any]]
    annotations: dict[int, dict[str, Any]]
    crowds: dict[Any, list[dict[str, Any]]]
    categories: dict[Any, str]


def list_coco(
    folder: Path,
    name: str,
    *,
    instances: bool,
    binarize: BinarizeRule,
    broken: list[str] | None = None,
    crowd: str = "void",
    category: str = "",
) -> list[Ref]:
    """A JSON file in the format of COCO, as CVAT and Label Studio write it: one object per annotation with a mask.

    ``folder`` is the JSON file.

    Images are searched for next to it, in images/, and in the same places relative to its parent folder (CVAT:
    annotations/instances_default.json). ``instances`` and ``binarize`` have no effect.

    crowd: how to treat annotations with ``iscrowd``: "void" makes them ignored pixels for the other objects, as COCO
        defines it; "object" makes them objects. CVAT sets the flag on every brushed mask, and the file does not say
        which meaning applies.
    category: objects of these categories only, by name or id: "cat", "cat+dog". Objects of others are background.
    Raises HrsegError if the file of an image is ambiguous, or two images resolve to one file.
    """
    if crowd not in CROWD_RULES:
        raise UnknownName("crowd", crowd, CROWD_RULES)
    file = _read(folder)
    chosen = _chosen(file, category.split("+")) if category else None
    crowds = {one["id"] for its in file.crowds.values() for one in its} if crowd == "void" else set()
    found: dict[Any, list[int]] = defaultdict(list)
    bare = 0
    for key, annotation in file.annotations.items():
        if chosen is not None and annotation.get("category_id") not in chosen:
            continue
        if not annotation.get("segmentation"):
            bare += 1
        elif key not in crowds:
            found[annotation["image_id"]].append(key)
    hint = f"{len(crowds)} annotations with iscrowd (brush masks of CVAT? then write {folder}:crowd=object)"
    if not found:
        left = [*([f"{bare} annotations with a box but no mask"] if bare else []), *([hint] if crowds else [])]
        raise HrsegError(f"{folder}: no objects, only {' and '.join(left) or 'images without annotations'}")
    if bare:
        log.warning("%s: skipped %d annotations with a box but no mask", folder, bare)
    if crowds:
        log.warning("%s: ignored regions, not objects: %s", folder, hint)
    if empty := len(file.images.keys() - found.keys()):
        log.warning("%s: skipped %d of %d images without objects", folder, empty, len(file.images))
    refs = []
    owners: dict[str, tuple[Any, Path]] = {}
    last_parts = Counter(_last_part(_file_name(file, image_id)) for image_id in file.images)
    for image_id in sorted(found, key=lambda image_id: _file_name(file, image_id)):
        text = _file_name(file, image_id)
        try:
            image = _image(folder, text, last_parts[_last_part(text)])
        except HrsegError as error:
            if broken is None:
                raise
            broken.append(str(error))
            continue
        other, path = owners.setdefault(os.path.normpath(image).casefold(), (image_id, image))
        if other != image_id and os.path.samefile(path, image):
            raise HrsegError(
                f"{folder}: image {other} ('{_file_name(file, other)}') and image {image_id} ('{text}') are the same "
                f"file, {image}; give each its own file, or all annotations of it the same image_id"
            )
        stem = Path(inner(text)).with_suffix("").as_posix()
        refs += [Ref(f"{stem}#{key}", name, image, folder, CROWD_RULES[crowd], key) for key in sorted(found[image_id])]
    return refs


def _chosen(file: _File, wanted: list[str]) -> list[Any]:
    """Ids of the categories with these names or ids. Raises UnknownName."""
    for one in wanted:
        if one not in file.categories.values() and one not in map(str, file.categories):
            raise UnknownName("category", one, file.categories.values())
    return [key for key, name in file.categories.items() if name in wanted or str(key) in wanted]


def truth(ref: Ref, size: tuple[int, int]) -> np.ndarray:
    """int8 (H, W): 1 object, 0 background, -1 crowd, of an annotation on an image of ``size``. Raises HrsegError."""
    file = _read(ref.mask)
    annotation = file.annotations.get(ref.instance if ref.instance is not None else -1)
    if annotation is None:
        raise HrsegError(f"{ref.mask}: annotation {ref.instance} is gone; open the dataset again")
    image = file.images[annotation["image_id"]]
    name = f"image {image['id']}: "
    said = tuple(
        side_of(ref.mask, image, key, name) or side for key, side in zip(("height", "width"), size, strict=True)
    )
    if said != size:
        raise HrsegError(
            f"{ref.mask}: gives {said[1]}x{said[0]} for {ref.image}, which has {size[1]}x{size[0]} pixels; "
            "use the images that were annotated"
        )
    mask = mask_of(ref.mask, annotation, size)
    if not mask.any():
        raise HrsegError(f"{ref.mask}: annotation {ref.instance} covers no pixel; remove it")
    values = mask.astype(np.int8)
    for crowd in file.crowds.get(annotation["image_id"], ()) if ref.rule == "coco" else ():
        values[mask_of(ref.mask, crowd, size) & ~mask] = -1
    return values


def _file_name(file: _File, image_id: Any) -> str:
    return str(file.images[image_id]["file_name"]).replace("\\", "/")


def side_of(path: Path, image: dict[str, Any], key: str, name: str = "") -> int:
    """The height or width of an image, which some programs write as text; 0 if it is not given. name: of the image, for
    the HrsegError."""
    value = image.get(key) or 0
    if isinstance(value, str) and re.fullmatch(r" *[0-9]{1,9}(\.0+)? *", value):
        return int(float(value))
    if isinstance(value, bool) or not isinstance(value, int | float) or not float(value).is_integer():
        raise HrsegError(f"{path}: {name}{key} is {shown(value)}; write a number")
    return int(value)


def _last_part(text: str) -> str:
    return text.rpartition("/")[2]


def _image(folder: Path, text: str, alike: int) -> Path:
    """The file of an image: by the listed path, else by its last part, because Label Studio may write paths of its own
    server. alike: number of listed images with that last part; with more than one the match would be a guess."""
    for name in (text, _last_part(text)):
        for path in _places(folder, name):
            if not path.is_file():
                continue
            if name != text and alike > 1:
                raise HrsegError(
                    f"{folder}: no file '{text}', and {path} matches {alike} listed images of that name; put them "
                    "into the folders that the JSON file names"
                )
            return path
    raise HrsegError(f"{folder}: no file '{text}'; put it next to the JSON file or into images/ there")


def _places(path: Path, name: str) -> Iterator[Path]:
    """Paths where an image may be."""
    subset = path.stem.partition("_")[2]  # instances_val2017.json -> val2017/
    for base in (path.parent, path.parent.parent):
        for below in ("", "images", subset, f"images/{subset}"):
            yield base / below / name


def _read(path: Path) -> _File:
    return _parse(path, *state_of(path))


@lru_cache(maxsize=4)
def _parse(path: Path, _time: int, _size: int) -> _File:
    """Parse the file once for all its objects; modification time and size are cache keys, so changes are noticed."""
    content = content_of(path, DATASET)
    wanted = {"images": ("id", "file_name"), "annotations": ("id", "image_id")}
    if isinstance(content, dict) and isinstance(content.get("shapes"), list):
        raise HrsegError(f"{path}: a file of labelme, not of COCO; give its folder, {path.parent}, as the dataset")
    for key, fields in wanted.items():
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise HrsegError(f"{path}: no list '{key}'; export it in COCO format")
        for entry in content[key]:
            missing = [f for f in fields if not isinstance(entry, dict) or not isinstance(entry.get(f), int | str)]
            if missing:
                raise HrsegError(f"{path}: an entry of '{key}' has no valid '{missing[0]}'; export it again")
    listed = content.get("categories", [])
    named = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    categories = {one["id"]: str(one.get("name", one["id"])) for one in named if isinstance(one.get("id"), int | str)}
    file = _File({}, {}, defaultdict(list), categories)
    for image in content["images"]:
        if image["id"] in file.images:
            raise HrsegError(f"{path}: duplicate image id {image['id']}; give each image its own")
        file.images[image["id"]] = image
    for annotation in content["annotations"]:
        key, image_id = annotation["id"], annotation["image_id"]
        if not isinstance(key, int):
            raise HrsegError(f"{path}: annotation id '{key}' is not an integer; number the annotations")
        if key in file.annotations:
            raise HrsegError(f"{path}: duplicate annotation id {key}; give each annotation its own")
        if image_id not in file.images:
            raise HrsegError(f"{path}: annotation {key} is on image {image_id}, which is not listed; export it again")
        file.annotations[key] = annotation
        if _is_crowd(path, annotation) and annotation.get("segmentation"):
            file.crowds[image_id].append(annotation)
    return file


def _is_crowd(path: Path, annotation: dict[str, Any]) -> bool:
    """Some scripts write the flag as a string; "0" is then false."""
    flag = annotation.get("iscrowd")
    text = str(flag).strip().lower()
    if flag is None or text in ("", "0", "0.0", "false"):
        return False
    if text in ("1", "1.0", "true"):
        return True
    raise HrsegError(f"{path}: annotation {annotation['id']}: iscrowd is {shown(text)}; write 0 or 1")


def mask_of(path: Path, annotation: dict[str, Any], size: tuple[int, int], name: str | None = None) -> np.ndarray:
    """bool (H, W) from the ``segmentation`` of an annotation. Raises HrsegError with its ``name``."""
    # The C library does not validate its input, so everything is checked before the call.
    shape = annotation["segmentation"]
    try:
        return from_runs(shape, size) if isinstance(shape, dict) else from_polygons(shape, size)
    except (TypeError, ValueError, LookupError, OverflowError) as error:
        name = name or f"annotation {annotation['id']}"
        raise HrsegError(f"{path}: {name}: {reason(error)}; correct or remove it") from None


def from_polygons(polygons: Any, size: tuple[int, int]) -> np.ndarray:
    """bool (H, W) from lists of x, y, x, y, ... in pixels, or one such list. Raises ValueError, LookupError or
    TypeError for anything else."""
    height, width = size
    rings = [polygons] if not isinstance(polygons[0], list) else polygons
    for ring in rings:
        if len(ring) < 6 or len(ring) % 2:
            raise ValueError(f"a polygon of {len(ring)} numbers; it needs x, y of at least three corners")
        if not all(isinstance(v, int | float) and math.isfinite(v) for v in ring):
            raise ValueError("a polygon with values that are not numbers")
        if not all(-side <= v <= 2 * side for k, side in enumerate((width, height)) for v in ring[k::2]):
            raise ValueError(f"a polygon far outside its image of {width}x{height} pixels")
        corners = np.array(ring, float).reshape(-1, 2)
        if np.abs(np.diff(corners, axis=0)).max(axis=1).sum() > 4 * height * width + 100 * (height + width):
            raise ValueError("a polygon whose outline is longer than all rows of its image together")
    runs = pycoco.merge(pycoco.frPyObjects([[float(v) for v in ring] for ring in rings], height, width))
    return from_runs({"size": size, "counts": runs["counts"].decode()}, size)


def from_runs(shape: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    """bool (H, W) from COCO's run lengths; see :func:`run_counts`."""
    counts = run_counts(shape, size)
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(size[::-1]).T


def run_counts(shape: dict[str, Any], size: tuple[int, int]) -> list[int]:
    """The run lengths of background, object, background, ... down the columns, from numbers or COCO's compressed
    string. Raises ValueError, KeyError or TypeError unless they fit ``size``."""
    counts: Any = shape["counts"]
    if isinstance(counts, str):
        counts = _unpacked(counts)
    if [int(side) for side in shape["size"]] != list(size):
        raise ValueError(f"run lengths for {shown(shape['size'])} (height, width), but the image has {list(size)}")
    if not all(isinstance(count, int) and count >= 0 for count in counts) or sum(counts) != size[0] * size[1]:
        raise ValueError(f"run lengths that do not add up to {size[0]} x {size[1]} pixels")
    return list(counts)


def _unpacked(text: str) -> list[int]:
    """Decode COCO's compressed run lengths: five bits per character, counted from "0", low bits first; bit 5 set when
    more follow; the highest bit of the last character is the sign. From the fourth number on, each is the difference to
    the run two before it."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64:
            raise ValueError("run lengths with an invalid character")
        value |= (code & 31) << shift
        shift += 5
        if shift > 60:
            raise ValueError("run lengths with a number of more than 60 bits")
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("run lengths that end in the middle of a number")
    return counts
