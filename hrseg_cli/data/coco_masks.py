"""The masks of a COCO file that are to be improved: annotations, or results with scores. See :mod:`.mask_files`."""

from __future__ import annotations

import hashlib
import json
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as pycoco

from hrseg_cli.data.coco import mask_of, side_of
from hrseg_cli.data.mask_files import Improved, Item, Size, Unit
from hrseg_cli.data.masks_out import polygons, run_lengths
from hrseg_cli.data.paths import below, inner
from hrseg_cli.errors import HrsegError
from hrseg_cli.limits import DATASET
from hrseg_cli.parsing import Malformed, read_json
from hrseg_cli.writing import write_atomically

MATCH = 0.5  # IoU with the ground truth, from which on a result is a mask of that object


class CocoMasks:
    """A COCO file: a dictionary with images and annotations, or a list of results. A unit is an image.

    images: files of the listed images, found by their ``file_name``; for results, by ``image_list``, a COCO file that
        lists them, or by names that are the image ids. tolerance: of polygons, in pixels, see :func:`polygons`.
    Everything that cannot be improved is kept as it is: crowds, boxes without a mask, and whatever is listed in
    ``problems``.
    """

    def __init__(
        self, path: Path, images: Sequence[Path], image_list: Path | None = None, tolerance: float = 0.0
    ) -> None:
        self.path, self.tolerance = path, tolerance
        self.settings: dict[str, Any] = {"kind": "coco", "tolerance": tolerance}
        self.problems: list[str] = []
        self._content = _read(path)
        self._is_results = isinstance(self._content, list)
        self.entries: list[Any] = self._content if self._is_results else self._content["annotations"]
        listed = (
            self._content["images"] if not self._is_results else _read(image_list)["images"] if image_list else None
        )
        self._listed: dict[Any, dict[str, Any]] | None = None
        if listed is not None:
            self._listed = {one["id"]: one for one in listed if isinstance(one, dict) and _is_id(one.get("id"))}
        self._by_image = self._grouped()
        files = _by_name(images) if self._listed is not None else _by_id(images)
        self.units = [unit for key in self._by_image if (unit := self._unit(key, files))]
        self._truths: dict[Any, list[tuple[Any, dict[str, Any]]]] = {}

    def _grouped(self) -> dict[Any, list[int]]:
        """Image id -> positions of its masks in the file."""
        found: dict[Any, list[int]] = {}
        bare = []
        for index, entry in enumerate(self.entries):
            if not isinstance(entry, dict) or not _is_id(entry.get("image_id")):
                self.problems.append(f"{self.path}: entry {index} has no valid image_id; it is kept as it is")
            elif not entry.get("segmentation"):
                bare.append(index)
            elif not is_crowd(entry):
                found.setdefault(entry["image_id"], []).append(index)
        if bare:
            which = f"such as {self._name(bare[0])}, {'have' if len(bare) > 1 else 'has'} no segmentation"
            self.problems.append(f"{self.path}: {len(bare)} of {len(self.entries)} masks, {which}; kept as they are")
        return found

    def _unit(self, key: Any, files: dict[Any, list[Path]]) -> Unit | None:
        """The unit of an image, or None, and a problem, if its file is not found."""
        its = self._by_image[key]
        if self._listed is not None and key not in self._listed:
            why = "is not listed"
        elif self._listed is not None:
            name = str(self._listed[key].get("file_name", "")).replace("\\", "/")
            found = _named(name, files)
            why = f"'{name}' " + ("is not among the images" if not found else "matches several images")
        else:
            found = files.get(key, [])
            why = (
                "matches several images"
                if found
                else "matches no image; give `image_list`, a COCO file that lists them"
            )
        if (self._listed is not None and key not in self._listed) or len(found) != 1:
            self.problems.append(f"{self.path}: image {key!r} {why}; its {len(its)} masks are kept as they are")
            return None
        state = json.dumps([self.entries[index] for index in its], sort_keys=True)
        return Unit(json.dumps(key), found[0], hashlib.sha256(state.encode()).hexdigest())

    def items(self, unit: Unit, size: Size, errors: list[str]) -> Iterator[Item]:
        """The masks of an image of this size; adds a line to ``errors`` for each broken one."""
        key = json.loads(unit.name)
        listed = (self._listed or {}).get(key, {})
        name = f"image {key!r}: "
        said = tuple(side_of(self.path, listed, k, name) or n for k, n in zip(("height", "width"), size, strict=True))
        if said != size:
            raise HrsegError(
                f"{self.path}: gives {said[1]}x{said[0]} for {unit.image}, which has {size[1]}x{size[0]} pixels; use "
                "the images that the masks were made on"
            )
        for index in self._by_image[key]:
            try:
                mask = mask_of(self.path, self.entries[index], size, self._name(index))
            except HrsegError as error:
                errors.append(str(error))
                continue
            yield Item(str(index), mask.astype(np.float32), self.entries[index])

    def name_of(self, unit: Unit, key: str) -> str:
        """The name in a click file of the object with this key: the id of its annotation; results have none, and are
        named by their place in the file, from 0."""
        return str(self.entries[int(key)].get("id", key))

    def names(self, unit: Unit) -> set[str] | None:
        """Names of the unit's objects in a click file."""
        return {self.name_of(unit, str(index)) for index in self._by_image[json.loads(unit.name)]}

    def store(self, out: Path, unit: Unit, size: Size, improved: Improved, threshold: float) -> dict[str, Any]:
        """The changed values of each entry, by its position."""
        return {item.key: self._changes(int(item.key), probability > threshold) for item, probability in improved}

    def _changes(self, index: int, mask: np.ndarray) -> dict[str, Any]:
        entry = self.entries[index]
        shape = entry["segmentation"]
        if not mask.any():  # as it was: an object without pixels stays one
            return {}
        new: Any = run_lengths(mask)
        if isinstance(shape, list):
            new = polygons(mask, self.tolerance)
            if self.tolerance:  # area and box are those of the polygon
                mask = mask_of(self.path, {**entry, "segmentation": new}, mask.shape, self._name(index))
        elif isinstance(shape["counts"], list):
            new = {"size": list(mask.shape), "counts": _counts(mask)}
        changes = {"segmentation": new}
        rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = [int(cols[0]), int(rows[0]), int(np.ptp(cols)) + 1, int(np.ptp(rows)) + 1]
        for name, value in (("area", int(np.count_nonzero(mask))), ("bbox", box)):
            # pycocotools takes the area of a result from its box, if it has one: do not add one.
            if name in entry or not self._is_results:
                changes[name] = value
        return changes

    def is_stored(self, out: Path, stored: dict[str, Any]) -> bool:
        return True  # the record has it all

    def finish(self, out: Path, stored: Iterable[dict[str, Any]]) -> None:
        """Write the file with all changes."""
        changes = {int(key): value for one in stored for key, value in one.items()}
        entries = [{**one, **changes[k]} if k in changes else one for k, one in enumerate(self.entries)]
        content = entries if self._is_results else {**self._content, "annotations": entries}
        path = below(out, self.path.name, self.path)
        write_atomically(path, json.dumps(content, ensure_ascii=False) + "\n")

    def files(self, out: Path) -> list[Path]:
        return [out / self.path.name]

    def truth(self, unit: Unit, item: Item, size: Size) -> np.ndarray | None:
        """The ground truth of a mask of another file, int8 (H, W): of the annotation with the same id, or of the
        annotation of the same image and category that it overlaps most. None if there is none."""
        key = json.loads(unit.name)
        if key not in self._truths:
            self._truths = {key: self._encoded(key, size)}  # of one image at a time
        entry = item.entry or {}
        known = self._truths[key]
        same = [mask for one, mask in known if "id" in entry and one.get("id") == entry["id"]]
        alike = [mask for one, mask in known if one.get("category_id") == entry.get("category_id")]
        if not same and alike:
            runs = run_lengths(item.probability > 0.5)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools uses NumPy 1's array protocol
                overlaps = np.asarray(pycoco.iou([runs], alike, [0] * len(alike)))[0]
            same = [alike[int(overlaps.argmax())]] if overlaps.max() >= MATCH else []
        if not same:
            return None
        return mask_of(self.path, {"segmentation": same[0]}, size, "ground truth").astype(np.int8)

    @property
    def has_scores(self) -> bool:
        """Whether these are results with scores, of which an average precision can be computed."""
        scores = [one.get("score") for one in self.entries if isinstance(one, dict) and one.get("segmentation")]
        numbers = (isinstance(score, int | float) and math.isfinite(score) for score in scores)
        return self._is_results and bool(scores) and all(numbers)

    def run_lengths(
        self, entries: Iterable[Any], sizes: Mapping[str, Size]
    ) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
        """(unit name, entry, run lengths of its mask) of the entries on the images in ``sizes``, crowds included;
        broken ones are left out."""
        for entry in entries:
            if not isinstance(entry, dict) or not entry.get("segmentation") or not _is_id(entry.get("image_id")):
                continue
            name = json.dumps(entry["image_id"])
            if name not in sizes:
                continue
            try:
                yield name, entry, run_lengths(mask_of(self.path, entry, sizes[name], name))
            except HrsegError:
                continue

    def stored(self, out: Path) -> list[Any]:
        """The entries of the file that :meth:`finish` has written."""
        content = _read(out / self.path.name)
        entries: list[Any] = content if self._is_results else content["annotations"]
        return entries

    def state(self, unit: Unit) -> str:
        its = self._by_image.get(json.loads(unit.name), [])
        text = json.dumps([self.entries[index] for index in its], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _encoded(self, key: Any, size: Size) -> list[tuple[Any, dict[str, Any]]]:
        """The annotations of an image with their masks as run lengths; broken ones are left out."""
        found = []
        for index in self._by_image.get(key, ()):
            try:
                mask = mask_of(self.path, self.entries[index], size, self._name(index))
            except HrsegError:
                continue
            found.append((self.entries[index], run_lengths(mask)))
        return found

    def _name(self, index: int) -> str:
        entry = self.entries[index]
        return f"annotation {entry['id']}" if isinstance(entry, dict) and "id" in entry else f"result {index}"


def is_crowd(entry: dict[str, Any]) -> bool:
    return str(entry.get("iscrowd") or 0) not in ("0", "0.0", "False", "false")


def is_coco(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() == ".json"


def _read(path: Path) -> Any:
    try:
        content = read_json(path, DATASET, finite=False)
    except OSError as error:
        raise HrsegError(f"{path}: cannot be read ({error.strerror}); give an existing file") from None
    except Malformed as error:
        raise HrsegError(f"{path}: cannot be read as JSON ({error}); export it again") from None
    lists = isinstance(content, dict) and all(isinstance(content.get(key), list) for key in ("images", "annotations"))
    if not lists and not isinstance(content, list):
        if isinstance(content, dict) and isinstance(content.get("images"), list):
            return {**content, "annotations": []}
        raise HrsegError(f"{path}: neither COCO annotations ('images' and 'annotations') nor a list of COCO results")
    return content


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _by_name(images: Iterable[Path]) -> dict[Any, list[Path]]:
    found: dict[Any, list[Path]] = {}
    for image in images:
        found.setdefault(image.name, []).append(image)
    return found


def _named(name: str, files: dict[Any, list[Path]]) -> list[Path]:
    """The images that a listed name means: by its whole path, otherwise by its last part."""
    parts = Path(inner(name)).parts
    alike = files.get(parts[-1], []) if parts else []
    return [image for image in alike if image.absolute().parts[-len(parts) :] == parts] or alike


def _by_id(images: Iterable[Path]) -> dict[Any, list[Path]]:
    """Image id -> files named by it, perhaps as in COCO: 000000000139.jpg, COCO_val2014_000000000139.jpg."""
    found: dict[Any, list[Path]] = {}
    for image in images:
        number = re.fullmatch(r"([0-9]+)|.*_([0-9]{12})", image.stem)
        for key in {image.stem, *([int(number[1] or number[2])] if number else [])}:
            found.setdefault(key, []).append(image)
    return found


def _counts(mask: np.ndarray) -> list[int]:
    """Uncompressed run lengths: of background, object, background, ... down the columns."""
    flat = np.asarray(mask.T).ravel()
    ends = np.flatnonzero(np.diff(flat, append=~flat[-1:])) + 1
    counts = np.diff(ends, prepend=0).tolist()
    return [0, *counts] if flat[0] else counts
