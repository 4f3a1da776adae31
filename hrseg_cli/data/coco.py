"""A JSON file in the format of COCO as a dataset: polygons and runs, as COCO, CVAT and Label Studio write them."""

from __future__ import annotations

import json
import logging
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as pycoco

from hrseg_cli.data.paths import inner
from hrseg_cli.data.refs import Ref, Rule
from hrseg_cli.errors import HrsegError, UnknownName
from hrseg_cli.recipe import BinarizeRule

log = logging.getLogger(__name__)

CROWD_RULES: dict[str, Rule] = {"void": "coco", "object": "coco_crowd"}


class _File(NamedTuple):
    """images and annotations by id; crowds: image id -> its annotations that are marked as crowd."""

    images: dict[Any, dict[str, Any]]
    annotations: dict[int, dict[str, Any]]
    crowds: dict[Any, list[dict[str, Any]]]


def list_coco(folder: Path, name: str, *, instances: bool, binarize: BinarizeRule, crowd: str = "void") -> list[Ref]:
    """A JSON file in the format of COCO, as CVAT and Label Studio write it: one object per annotation with a mask.

    ``folder`` is the JSON file.

    Images lie next to it, in images/, or likewise next to its folder (CVAT: annotations/instances_default.json).
    ``instances`` and ``binarize`` change nothing.

    crowd: what is marked by ``iscrowd``: "void" for the objects of its image and none itself, as COCO means it, or
        "object" like all others: CVAT marks every mask that was brushed. Nothing in the file tells the two apart.
    Raises HrsegError where it is not sure which file an image is, or two images would be read from one.
    """
    if crowd not in CROWD_RULES:
        raise UnknownName("crowd", crowd, CROWD_RULES)
    file = _read(folder)
    crowds = {one["id"] for its in file.crowds.values() for one in its} if crowd == "void" else set()
    found: dict[Any, list[int]] = defaultdict(list)
    bare = 0
    for key, annotation in file.annotations.items():
        if not annotation.get("segmentation"):
            bare += 1
        elif key not in crowds:
            found[annotation["image_id"]].append(key)
    hint = f"{len(crowds)} annotations marked by iscrowd (brush masks of CVAT? then write {folder}:crowd=object)"
    if not found:
        left = [*([f"{bare} annotations that have a box but no mask"] if bare else []), *([hint] if crowds else [])]
        raise HrsegError(f"{folder}: no object: it holds {' and '.join(left) or 'no annotations'}")
    if bare:
        log.warning("%s: left out %d annotations that have a box but no mask", folder, bare)
    if crowds:
        log.warning("%s: no objects but void for others: %s", folder, hint)
    if empty := len(file.images.keys() - found.keys()):
        log.warning("%s: left out %d of %d images, which have no object", folder, empty, len(file.images))
    refs = []
    owners: dict[str, tuple[Any, Path]] = {}
    last_parts = Counter(_last_part(_file_name(file, image_id)) for image_id in file.images)
    for image_id in sorted(found, key=lambda image_id: _file_name(file, image_id)):
        text = _file_name(file, image_id)
        image = _image(folder, text, last_parts[_last_part(text)])
        other, path = owners.setdefault(os.path.normpath(image).casefold(), (image_id, image))
        if other != image_id and os.path.samefile(path, image):
            raise HrsegError(
                f"{folder}: image {other} ('{_file_name(file, other)}') and image {image_id} ('{text}') are one file, "
                f"{image}; give each its own file, or all annotations of it one image_id"
            )
        stem = Path(inner(text)).with_suffix("").as_posix()
        refs += [Ref(f"{stem}#{key}", name, image, folder, CROWD_RULES[crowd], key) for key in sorted(found[image_id])]
    return refs


def truth(ref: Ref, size: tuple[int, int]) -> np.ndarray:
    """int8 (H, W): 1 object, 0 background, -1 crowd, of an annotation on an image of ``size``. Raises HrsegError."""
    file = _read(ref.mask)
    annotation = file.annotations.get(ref.instance if ref.instance is not None else -1)
    if annotation is None:
        raise HrsegError(f"{ref.mask}: has no annotation {ref.instance} any more; open the dataset again")
    image = file.images[annotation["image_id"]]
    said = image.get("height") or size[0], image.get("width") or size[1]
    if said != size:
        raise HrsegError(
            f"{ref.mask}: says {said[1]}x{said[0]} for {ref.image}, which has {size[1]}x{size[0]} pixels; "
            "use the images it was made with"
        )
    mask = _mask(ref.mask, annotation, size)
    if not mask.any():
        raise HrsegError(f"{ref.mask}: annotation {ref.instance} covers no pixel; remove it")
    values = mask.astype(np.int8)
    for crowd in file.crowds.get(annotation["image_id"], ()) if ref.rule == "coco" else ():
        values[_mask(ref.mask, crowd, size) & ~mask] = -1
    return values


def _file_name(file: _File, image_id: Any) -> str:
    return str(file.images[image_id]["file_name"]).replace("\\", "/")


def _last_part(text: str) -> str:
    return text.rpartition("/")[2]


def _image(folder: Path, text: str, alike: int) -> Path:
    """The file of an image: as listed, else by its last part alone, for Label Studio may write the path on its own
    server. alike: how many listed images end in that part; of several it would be a guess."""
    for name in (text, _last_part(text)):
        for path in _places(folder, name):
            if not path.is_file():
                continue
            if name != text and alike > 1:
                raise HrsegError(
                    f"{folder}: no file '{text}', and {path} may be any of {alike} listed images of that name; put "
                    "them into folders as the JSON file says"
                )
            return path
    raise HrsegError(f"{folder}: no file '{text}'; put it beside the JSON file or in images/ there")


def _places(path: Path, name: str) -> Iterator[Path]:
    """Where an image may lie."""
    subset = path.stem.partition("_")[2]  # instances_val2017.json -> val2017/
    for base in (path.parent, path.parent.parent):
        for below in ("", "images", subset, f"images/{subset}"):
            yield base / below / name


def _read(path: Path) -> _File:
    try:
        stat = path.stat()
    except OSError:
        raise HrsegError(f"{path}: no such file; put it back") from None
    return _parse(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4)
def _parse(path: Path, _time: int, _size: int) -> _File:
    """The file once for all its objects; time and size are those of the file, so that a changed one is read again."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise HrsegError(f"{path}: cannot be read ({error.strerror}); mend its rights") from None
    except (ValueError, RecursionError) as error:
        reason = "an empty file" if _size == 0 else " ".join(str(error).split())
        raise HrsegError(f"{path}: cannot be read as JSON ({reason}); export it again") from None
    wanted = {"images": ("id", "file_name"), "annotations": ("id", "image_id")}
    for key, fields in wanted.items():
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise HrsegError(f"{path}: no list '{key}'; export it in the format of COCO")
        for entry in content[key]:
            missing = [f for f in fields if not isinstance(entry, dict) or not isinstance(entry.get(f), int | str)]
            if missing:
                raise HrsegError(f"{path}: an entry of '{key}' has no usable '{missing[0]}'; export it again")
    file = _File({}, {}, defaultdict(list))
    for image in content["images"]:
        if image["id"] in file.images:
            raise HrsegError(f"{path}: image id {image['id']} is there twice; give each its own")
        file.images[image["id"]] = image
    for annotation in content["annotations"]:
        key, image_id = annotation["id"], annotation["image_id"]
        if not isinstance(key, int):
            raise HrsegError(f"{path}: annotation id '{key}' is no whole number; number the annotations")
        if key in file.annotations:
            raise HrsegError(f"{path}: annotation id {key} is there twice; give each its own")
        if image_id not in file.images:
            raise HrsegError(f"{path}: annotation {key} is on image {image_id}, which is not listed; export it again")
        file.annotations[key] = annotation
        if _is_crowd(path, annotation) and annotation.get("segmentation"):
            file.crowds[image_id].append(annotation)
    return file


def _is_crowd(path: Path, annotation: dict[str, Any]) -> bool:
    """Tables and scripts write the flag as a text, too; "0" is false there."""
    flag = annotation.get("iscrowd")
    text = str(flag).strip().lower()
    if flag is None or text in ("", "0", "0.0", "false"):
        return False
    if text in ("1", "1.0", "true"):
        return True
    raise HrsegError(f"{path}: annotation {annotation['id']}: iscrowd is {text[:40]!r}; write 0 or 1")


def _mask(path: Path, annotation: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    """bool (H, W). The library in C believes what it is told, so everything is checked before it is called."""
    shape = annotation["segmentation"]
    try:
        return _runs(shape, size) if isinstance(shape, dict) else _polygons(shape, size)
    except (TypeError, ValueError, KeyError) as error:
        reason = f"no '{error.args[0]}'" if isinstance(error, KeyError) else str(error)
        raise HrsegError(f"{path}: annotation {annotation['id']}: {reason}; correct or remove it") from None


def _polygons(polygons: Any, size: tuple[int, int]) -> np.ndarray:
    """Lists of x, y, x, y, ... in pixels, or one such list."""
    height, width = size
    rings = [polygons] if not isinstance(polygons[0], list) else polygons
    for ring in rings:
        if len(ring) < 6 or len(ring) % 2:
            raise ValueError(f"a polygon of {len(ring)} numbers, where x, y of at least three corners are wanted")
        if not all(isinstance(v, int | float) and math.isfinite(v) for v in ring):
            raise ValueError("a polygon with something else than numbers")
        if not all(-side <= v <= 2 * side for k, side in enumerate((width, height)) for v in ring[k::2]):
            raise ValueError(f"a polygon far outside of the {width}x{height} pixels of its image")
    runs = pycoco.merge(pycoco.frPyObjects([[float(v) for v in ring] for ring in rings], height, width))
    return _runs({"size": size, "counts": runs["counts"].decode()}, size)


def _runs(shape: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    """Lengths of runs of background, object, background, ... down the columns; as numbers, or packed into a text."""
    counts = shape["counts"]
    if isinstance(counts, str):
        counts = _unpacked(counts)
    if list(shape["size"]) != list(size):
        raise ValueError(f"runs for {shape['size']} (height, width), but the image has {list(size)}")
    if not all(isinstance(count, int) and count >= 0 for count in counts) or sum(counts) != size[0] * size[1]:
        raise ValueError(f"runs that do not add up to {size[0]} x {size[1]} pixels")
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(size[::-1]).T


def _unpacked(text: str) -> list[int]:
    """COCO's text of runs: five bits a character from "0" on, low bits first, bit 5 when more follow, the highest bit
    of the last is the sign; from the fourth on a number is the difference to the run before the last."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64:
            raise ValueError("runs with a character that COCO does not use")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("runs that end in the middle of a number")
    return counts
