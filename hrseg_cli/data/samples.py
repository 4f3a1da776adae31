"""Open datasets: first a list of lightweight references; pixels are loaded only per object.

How files are arranged is a layout of :data:`hrseg_cli.catalog.LAYOUTS`; 'hrseg list layouts' prints them.
``range=0..4095`` behind any folder says what black and white are in its images of more than 8 bits. Grey values become
truth by one of the rules of :mod:`hrseg_cli.data.labels`. Where a file holds several objects:

    instance   each id > 0 is one object, the highest value of the bit depth is void; ids are palette indices if there
               is a palette, or if all colours are VOC's
    solid      like instance, without objects that fill less than 8 % of their box (RITM's SBD reader for training)
    layers     the pickles of COCO+LVIS
    coco       the annotations of a JSON file; crowd annotations are void
    coco_crowd like coco; crowd annotations are objects too
    labelme    the shapes of labelme's JSON file; those of one group are one object
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hrseg_cli import catalog
from hrseg_cli.data.labels import check_size, label_indices, read_object, seen, truth_of_mask
from hrseg_cli.data.manifest import manifest_names
from hrseg_cli.data.paths import data_root
from hrseg_cli.data.pixels import MaskPixels, parse_span, read_mask
from hrseg_cli.data.pixels import read_image as read_image  # report/ knows it from here
from hrseg_cli.data.refs import PAIRS as PAIRS  # these are known from here too
from hrseg_cli.data.refs import Listing as Listing
from hrseg_cli.data.refs import Marks as Marks
from hrseg_cli.data.refs import Ref as Ref
from hrseg_cli.data.refs import Rule as Rule
from hrseg_cli.errors import HrsegError, UnknownName
from hrseg_cli.interaction import Sample
from hrseg_cli.limits import LINE
from hrseg_cli.parsing import parse_json
from hrseg_cli.recipe import BinarizeRule

INDEX = "index.jsonl"
WITHOUT_FOLDER = ("procedural", "samples")  # layouts that are datasets by themselves
SOLID = 0.08

log = logging.getLogger(__name__)


# ---- opening ---------------------------------------------------------------------------------------------------------


def list_masks(
    spec: str,
    *,
    root: Path | None = None,
    instances: bool = False,
    binarize: BinarizeRule = "auto",
    broken: list[str] | None = None,
) -> Listing:
    """The masks of a dataset without a manifest; no mask is opened to read its ids.

    The arguments are those of :func:`hrseg_cli.data.datasets.open_dataset`, which also opens known datasets. Layouts
    whose listing reads a file per image take ``broken`` too, and leave out what they cannot list.
    Raises UnknownName for an unknown name, HrsegError for a folder that cannot be read as a dataset.
    """
    return _list(locate(spec, root), instances, binarize, broken)


def list_split(
    folder: Path,
    name: str,
    layout: str,
    *,
    instances: bool = False,
    binarize: BinarizeRule = "auto",
    broken: list[str] | None = None,
    **options: str,
) -> Listing:
    """Like :func:`list_masks`, for a folder whose layout and options are known, for example from a manifest.

    options: of the layout, e.g. ``images="im/*.jpg", masks="gt/*.png"`` for "pairs", ``split="val"`` for "sbd".
    """
    return _list(_Place(name, folder, layout, options), instances, binarize, broken)


def _list(place: _Place, instances: bool, binarize: BinarizeRule, broken: list[str] | None) -> Listing:
    name, folder, layout, given = place
    options = {key: value for key, value in given.items() if key != "range" or layout == "procedural"}
    span = parse_span(given["range"]) if options.keys() < given.keys() else None
    read = catalog.resolve("layout", layout)
    known = layout_options(layout)
    for key in options:
        if not known:
            raise HrsegError(f"{folder}: layout '{layout}' has no option '{key}'; remove it")
        if key not in known:
            raise UnknownName(f"option of {layout}", key, known)
    missing = [key for key, value in known.items() if value.default is value.empty and key not in options]
    if missing:
        raise HrsegError(f"{folder}: layout '{layout}' also needs '{missing[0]}'; add {missing[0]}=VALUE")
    lenient = {"broken": broken} if "broken" in inspect.signature(read).parameters else {}
    with _readable(str(folder)):
        masks: list[Ref] = read(folder, name, instances=instances, binarize=binarize, **lenient, **options)
    if span:
        masks = [replace(ref, span=span) for ref in masks]
    values = [value if key == "split" else f"{key}-{value}" for key, value in given.items()]
    index = "-".join(["index", *(re.sub(r"\W+", "-", value).strip("-") for value in values)]) + ".jsonl"
    if folder.is_file():
        return Listing(name, folder.parent, masks, folder.with_suffix(f".{index}"))
    return Listing(name, folder, masks, folder / index)


def layout_options(layout: str) -> dict[str, inspect.Parameter]:
    """What may follow after the colon in ``FOLDER:option=value``, by name."""
    usual = {"folder", "name", "instances", "binarize", "broken"}
    parameters = inspect.signature(catalog.resolve("layout", layout)).parameters
    return {key: value for key, value in parameters.items() if key not in usual}


@contextmanager
def _readable(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HrsegError(f"{error.filename or what}: cannot be read ({error.strerror}); fix its permissions") from None


def open_listing(found: Listing, limit: int | None = None) -> list[Ref]:
    """The objects of a listing. Opens masks whose ids are not in an up-to-date index. See :func:`open_dataset`."""
    unread = any(ref.unread for ref in found.masks)
    objects = list(islice(expand(found.masks, _indexed_ids(found) if unread else {}), limit))
    if unread and limit is None:
        empty = {ref.mask for ref in found.masks if ref.unread} - {ref.mask for ref in objects}
        if objects and empty:
            log.warning("%s: %d masks contain no object, such as %s", found.folder, len(empty), min(empty))
    if not objects and limit != 0:
        fix = "no mask has an id other than 0 and void; omit `instances`" if unread else "add images and masks"
        raise HrsegError(f"dataset {found.folder}: no objects; {fix}")
    return objects


def expand(masks: Iterable[Ref], known: dict[Path, list[int]]) -> Iterator[Ref]:
    """One reference per object, lazily: a mask of several objects is opened when reached, unless its ids are
    ``known``."""
    seen: dict[str, Ref] = {}
    for ref in masks:
        if ref.unread:
            ids = known[ref.mask] if ref.mask in known else instance_ids(ref.mask, rule=ref.rule)
            objects = [replace(ref, id=f"{ref.id}#{k}", instance=k) for k in ids if k >= (ref.stuff or 0)]
        else:
            objects = [ref]
        for one in objects:
            if one.id in seen:
                raise HrsegError(
                    f"{seen[one.id].mask} and {one.mask}: both define object '{one.id}'; rename one of them"
                )
            seen[one.id] = one
            yield one


class _Place(NamedTuple):
    name: str
    folder: Path
    layout: str
    options: dict[str, str]


def locate(spec: str, root: Path | None) -> _Place:
    """Name, folder, layout and options of a dataset as typed. Raises UnknownName or HrsegError."""
    with _readable(spec):
        return _locate(spec, root)


def _locate(spec: str, root: Path | None) -> _Place:
    text, options = split_options(spec)
    if text in WITHOUT_FOLDER:
        return _Place(text, Path(text), text, options)
    name, equals, place = text.partition("=")
    if not equals or os.path.isdir(text) or (text.lower().endswith(".json") and os.path.isfile(text)):
        name, place = "", text
    elif not name or not place or {"/", "\\"} & set(name):
        raise HrsegError(f"dataset {spec}: write NAME=FOLDER; NAME must not contain a slash")
    elif place in WITHOUT_FOLDER:
        return _Place(name, Path(place), place, options)
    folder = _find(place, root)
    own_name = name or Path(os.path.abspath(folder)).name
    if folder.is_file():
        return _Place(name or folder.stem, folder, "coco", options)
    if {"images", "masks"} & options.keys():
        return _Place(own_name, folder, "pairs", options)
    if "table" in options:
        return _Place(own_name, folder, "folder", options)
    # A layout name also selects the layout if the folder matches it: data/berkeley is read as Berkeley.
    layout = (name or place).lower()
    marks = _marks(layout) if layout in catalog.LAYOUTS else None
    fits = marks is not None and marks.fit(folder)
    if name and marks and not fits:
        raise HrsegError(f"{folder}: layout '{layout}' wants {marks} there; give another folder or NAME")
    return _Place(own_name, folder, layout if fits else _detect(folder), options)


def split_options(spec: str) -> tuple[str, dict[str, str]]:
    """Separate a dataset from its options: ``sbd:split=train`` -> ("sbd", {"split": "train"}).

    A colon inside a path, or in the name of an existing folder, is left alone. Raises HrsegError for an option without
    a value.
    """
    if os.path.isdir(spec):
        return spec, {}
    text, _, tail = spec.rpartition(":")
    ours = text.rpartition("=")[2] in WITHOUT_FOLDER
    if not text or not (ours or re.match(r"\w+=", tail)):
        return spec, {}
    options: dict[str, str] = {}
    for part in filter(None, tail.split(",")):
        key, equals, value = part.partition("=")
        if not equals or not value:
            raise HrsegError(f"dataset {spec}: write '{key}=VALUE' after the colon")
        options[key] = value
    return text, options


def _find(text: str, root: Path | None) -> Path:
    """The folder or JSON file as typed, else under the root."""
    path = Path(text).expanduser()
    root = data_root(root)
    for place in (path, root / path):
        if os.path.isdir(place) or (place.suffix.lower() == ".json" and os.path.isfile(place)):
            return place
    if os.path.exists(path):
        raise HrsegError(
            f"{path}: a dataset is a folder or a .json file; give the folder that contains the images and masks"
        )
    if path.suffix.lower() == ".json":
        raise HrsegError(f"{path}: no such file; give a JSON file in COCO format")
    if path.name != text:
        raise HrsegError(f"{path}: no such folder; give a dataset folder")
    below = [p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")] if root.is_dir() else []
    hint = f"Looked in {root}; you can also give a path or NAME=FOLDER."
    raise UnknownName("dataset", text, {*WITHOUT_FOLDER, *manifest_names(), *below}, hint)


def _marks(layout: str) -> Marks | None:
    """What a folder of this layout is recognised by; None for a layout that must be typed."""
    marks: Marks | None = getattr(catalog.resolve("layout", layout), "marks", None)
    return marks


def _detect(folder: Path) -> str:
    found = {layout: marks for layout in catalog.LAYOUTS if (marks := _marks(layout)) and marks.guess}
    for layout, marks in found.items():
        if marks.fit(folder):
            return layout
    half = next(filter(None, (marks.half(folder) for marks in found.values())), None)
    what = f"has {half[0]} but not {half[1]}" if half else "put images in images/ and their masks in masks/"
    raise HrsegError(f"{folder}: not a dataset; {what} (looked for {'; '.join(map(str, found.values()))})")


# ---- ground truth ----------------------------------------------------------------------------------------------------


def load(ref: Ref) -> Sample:
    """Image and ground truth of one object. Raises HrsegError naming a file that is broken, empty or of wrong size."""
    return load_with_rule(ref)[0]


def load_with_rule(ref: Ref) -> tuple[Sample, str]:
    """Like :func:`load`, with the label rule used: the one "auto" chose, or how objects were separated."""
    if ref.draw:
        from hrseg_cli.data import procedural

        image, coverage = procedural.draw(*ref.draw)
        truth, used = _label(ref, ref.mask, MaskPixels(coverage), image.shape[:2])
        return Sample(ref.id, ref.dataset, image, truth), used
    image = read_image(ref.image, span=ref.span)
    height, width = image.shape[:2]
    truth, used = truth_of(ref, (height, width))
    initial = read_object(ref.initial, (height, width), owner=ref.image).astype(np.float32) if ref.initial else None
    return Sample(ref.id, ref.dataset, image, truth, initial), used


def truth_of(
    ref: Ref, size: tuple[int, ...], read: Callable[[Path], MaskPixels] | None = None
) -> tuple[np.ndarray, str]:
    """(truth int8 (H, W): 1 object, 0 background, -1 ignored; rule used) for an object in an image of ``size`` (H, W).

    read: replaces :func:`read_mask`, for callers that cache decoded masks.
    """
    if ref.rule in ("coco", "coco_crowd"):
        from hrseg_cli.data import coco

        return coco.truth(ref, (size[0], size[1])), ref.rule
    if ref.rule == "labelme":
        from hrseg_cli.data import labelme

        return labelme.truth(ref, (size[0], size[1])), ref.rule
    read = read or read_mask
    pixels = read(ref.mask)
    truth, used = _label(ref, ref.mask, pixels, size)
    for path in ref.others:
        void, _ = _label(ref, path, read(path), size)
        truth[void == -1] = -1
    if not (truth == 1).any():
        raise _no_object(ref, pixels, used)
    return truth, used


def _label(ref: Ref, path: Path, pixels: MaskPixels, size: tuple[int, ...]) -> tuple[np.ndarray, str]:
    check_size(path, pixels, size, ref.image)
    match ref.rule:
        case "instance" | "solid":
            ids = ids_of(path, pixels)
            truth = (ids == ref.instance).astype(np.int8)
            truth[ids == void_id(ids)] = -1
            return truth, ref.rule
        case "layers" | "coco" | "coco_crowd" | "labelme":
            k = ref.instance or 0
            if k >= len(pixels.objects):
                raise HrsegError(f"{path}: contains {len(pixels.objects)} objects, but no number {k}; replace the file")
            layer, value = pixels.objects[k]
            return (pixels.values[:, :, layer] == value).astype(np.int8), ref.rule
        case rule:
            return truth_of_mask(path, pixels, rule)


def _no_object(ref: Ref, pixels: MaskPixels, used: str) -> HrsegError:
    values = np.unique(pixels.values).astype(int).tolist()
    what = f"rule '{used}'" if ref.instance is None else f"id {ref.instance}"
    if not any(values):
        fix = "the mask is empty, so remove it"
    elif ref.instance is not None:
        fix = "its pixels are missing or ignored, so correct the masks of this image"
    elif len(values) > 2 or 1 < values[-1] <= 64:
        fix = "add `instances` if values are object ids, or `binarize` nonzero for one object"
    else:
        fix = "try `binarize` nonzero"
    return HrsegError(f"{ref.mask}: no object pixel under {what}; {seen(pixels)}; {fix}")


def instance_ids(path: Path, read: Callable[[Path], MaskPixels] | None = None, rule: str = "instance") -> list[int]:
    """Ids of the objects in a mask, ascending. Raises HrsegError for an RGB mask. ``read``: see :func:`truth_of`."""
    pixels = (read or read_mask)(path)
    if rule == "layers":
        return list(range(len(pixels.objects)))
    ids = ids_of(path, pixels)
    found = [int(value) for value in np.unique(ids) if value not in (0, void_id(ids))]
    return [value for value in found if rule != "solid" or _fill(ids == value) >= SOLID]


def _fill(mask: np.ndarray) -> float:
    """Share of its bounding box that a bool mask (H, W) fills."""
    rows, cols = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return float(mask.sum() / ((rows[-1] - rows[0] + 1) * (cols[-1] - cols[0] + 1)))


def ids_of(path: Path, pixels: MaskPixels) -> np.ndarray:
    if pixels.lossy:
        raise HrsegError(f"{path}: a lossy format destroys ids; save the mask as PNG, or omit `instances`")
    grey = pixels.palette is None and pixels.colours is None
    ids = pixels.values if grey else label_indices(pixels)
    if ids is None:
        raise HrsegError(f"{path}: contains colours, not ids; save it as a palette or grey PNG, or omit `instances`")
    return ids


def void_id(ids: np.ndarray) -> int:
    """255 as in VOC, 65535 in a 16-bit mask; none in a 1-bit mask and in SBD."""
    return {"uint8": 255, "uint16": 65535}.get(ids.dtype.name, -1)


# ---- an up-to-date index, if prepare-data wrote one ------------------------------------------------------------------


def fingerprint(folder: Path, masks: Iterable[Ref]) -> str:
    """Hash of the names, sizes and modification times of all listed files."""
    paths = sorted({path for ref in masks for path in _files(ref)})
    digest = hashlib.sha256()
    for path in paths:
        try:
            stat = path.stat()
            state = (stat.st_size, stat.st_mtime_ns)
        except OSError:  # a dead link: reported when it is read
            state = (-1, -1)
        digest.update(f"{relative(path, folder)}\t{state}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def file_state(ref: Ref, stat: Callable[[Path], str] | None = None) -> str:
    """A text that changes whenever a file of the object, or the way it is read, changes: rule, instance, then size in
    bytes and modification time in ns of image, mask and others, and of the initial mask ("None" without one), and the
    range of image values, if given. For a procedural object: rule, instance and ``draw``. Paths are not included.

    stat: replaces reading size and time of a file, for callers that cache them.
    Raises HrsegError naming a missing file.
    """
    parts = [str(ref.rule), str(ref.instance)]
    if ref.draw:
        return ", ".join([*parts, str(ref.draw)])
    for path in _files(ref):
        try:
            parts.append((stat or size_and_time)(path))
        except (FileNotFoundError, NotADirectoryError):
            raise HrsegError(f"{path}: no such file; restore it, or remove its partner") from None
        except OSError as error:
            raise HrsegError(f"{path}: cannot be read ({error.strerror}); fix its permissions") from None
    return ", ".join([*parts, *([] if ref.initial else ["None"]), *([f"range {ref.span}"] if ref.span else [])])


def _files(ref: Ref) -> tuple[Path, ...]:
    """All files of an object; the initial mask is last."""
    return ref.image, ref.mask, *ref.others, *([ref.initial] if ref.initial else [])


def size_and_time(path: Path) -> str:
    """Size in bytes and modification time in ns since the epoch."""
    found = path.stat()
    return f"{found.st_size} {found.st_mtime_ns}"


def relative(path: Path, folder: Path) -> str:
    """``path`` relative to ``folder``, with "/" separators."""
    text, base = str(path), f"{folder}{os.sep}"
    inside = text[len(base) :] if text.startswith(base) else os.path.relpath(path, folder)
    return inside.replace(os.sep, "/")


def _indexed_ids(found: Listing) -> dict[Path, list[int]]:
    """Ids of the masks from an up-to-date index; empty for a stale, foreign or broken one."""
    ids: dict[str, list[int]] = defaultdict(list)
    try:
        with found.index_file.open("rb") as file:
            head = parse_json(file.readline(LINE.bytes), LINE)
            if head["version"] != 1 or head["fingerprint"] != fingerprint(found.folder, found.masks):
                log.warning("%s: out of date, not used; rerun 'hrseg prepare-data' to update it", found.index_file)
                return {}
            for line in file:
                record = parse_json(line, LINE)
                if record["instance"] is not None:
                    ids[record["mask"]].append(int(record["instance"]))
        broken = set(head["incomplete"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {found.folder / mask: sorted(values) for mask, values in ids.items() if mask not in broken}
