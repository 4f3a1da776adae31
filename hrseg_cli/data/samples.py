"""Datasets as folders: a list of light references first, pixels only when one object is asked for.

    folder      images/ + masks/ matched by stem, several masks as STEM_0, STEM_1; or a pairs.csv (image,mask[,kind])
    grabcut     data_GT/ + boundary_GT/          berkeley   images/ + masks/          davis   img/ + gt/
    procedural  drawn on demand, nothing on disk

Grey values become truth by one of these rules, logged with every number, for they move boundaries by a pixel:

    nonzero   > 0 is object (DAVIS; SegNext)
    gt128     > 128 is object (HQ-SAM)
    void128   > 128 is object, 128 is ignored (RITM's folder reader)
    grabcut   as void128, and the value 1 is object too (RITM's GrabCut and Berkeley reader)
    auto      chosen per mask, see :func:`binarize`

Beside them stands ``instance``: the mask holds ids, each id > 0 is one object, the highest value of the depth is void.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
from PIL import Image, ImageOps

from hrseg_cli import catalog
from hrseg_cli.errors import HrsegError, UnknownName
from hrseg_cli.interaction import Sample
from hrseg_cli.recipe import BinarizeRule

Rule = BinarizeRule | Literal["instance"]

INDEX = "index.jsonl"
PAIRS = "pairs.csv"
PARTS = {
    "grabcut": ("data_GT", "boundary_GT"),
    "davis": ("img", "gt"),
    "berkeley": ("images", "masks"),
    "folder": ("images", "masks"),
}
SUFFIXES = (".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
MAX_PIXELS = 10**9

Image.MAX_IMAGE_PIXELS = None  # gigapixel images are welcome here; _decode keeps a limit of its own

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ref:
    """One object of one image; nothing is loaded. An index mask whose ids are not read yet has ``instance`` None.

    id: unique in the dataset, holds the image's stem (with its sub-folders, separated by "/").
    instance: the id of the object where ``rule`` is "instance".
    others: further masks of the image, read by the same rule; their ignored pixels are ignored for this object too.
    draw: (seed, index, size) of a procedural object, which has no files.
    """

    id: str
    dataset: str
    image: Path
    mask: Path
    rule: Rule
    instance: int | None = None
    others: tuple[Path, ...] = ()
    draw: tuple[int, int, int] | None = None


class MaskPixels(NamedTuple):
    """A mask file as stored.

    values: (H, W), bool, uint8 or a wider integer: grey values, or the palette's indices.
    palette: uint8, (n, 3), the colours of the indices; None where the file has no palette.
    coloured: the file has colour channels that differ; ``values`` is their maximum.
    """

    values: np.ndarray
    palette: np.ndarray | None = None
    coloured: bool = False


# ---- opening ---------------------------------------------------------------------------------------------------------


def open_dataset(
    spec: str,
    *,
    root: Path | None = None,
    instances: bool = False,
    binarize: BinarizeRule = "auto",
    limit: int | None = None,
) -> list[Ref]:
    """The objects of a dataset, in an order that is the same on every machine.

    spec: a folder; the name of a folder below ``root`` (else $HRSEG_DATA, else ./data); ``NAME=FOLDER``, where a layout
        as NAME also decides the layout; ``procedural`` or ``procedural:count=20,size=1024,seed=0``.
    instances: masks hold ids rather than one object (a ``kind`` in pairs.csv is stronger).
    binarize: label rule; "auto" leaves the choice to the layout, then to each mask.
    limit: the first so many objects; masks behind them are not opened.

    Raises UnknownName for a name nobody knows, HrsegError for a folder that cannot be read as a dataset.
    """
    folder, masks = list_masks(spec, root=root, instances=instances, binarize=binarize)
    unread = any(ref.rule == "instance" for ref in masks)
    known = _indexed_ids(folder, masks) if unread else {}
    found = list(islice(expand(masks, known), limit))
    if not found and limit != 0:
        fix = "no mask holds an id besides 0 and void; leave --instances off" if unread else "put images and masks in"
        raise HrsegError(f"dataset {spec}: no objects; {fix}")
    return found


def list_masks(
    spec: str, *, root: Path | None = None, instances: bool = False, binarize: BinarizeRule = "auto"
) -> tuple[Path, list[Ref]]:
    """(folder, one reference per mask): as :func:`open_dataset`, but index masks are not opened for their ids."""
    name, folder, layout = _locate(spec, root)
    masks: list[Ref] = catalog.resolve("layout", layout)(folder, name, instances=instances, binarize=binarize)
    return folder, masks


def expand(masks: Iterable[Ref], known: dict[Path, list[int]]) -> Iterator[Ref]:
    """One reference per object, lazily: opens each index mask when its turn comes, unless its ids are ``known``."""
    seen: dict[str, Ref] = {}
    for ref in masks:
        if ref.rule == "instance":
            ids = known[ref.mask] if ref.mask in known else instance_ids(ref.mask)
            objects = [replace(ref, id=f"{ref.id}#{value}", instance=value) for value in ids]
        else:
            objects = [ref]
        for one in objects:
            if one.id in seen:
                raise HrsegError(f"{seen[one.id].mask} and {one.mask}: both are object '{one.id}'; rename one of them")
            seen[one.id] = one
            yield one


def _locate(spec: str, root: Path | None) -> tuple[str, Path, str]:
    """(name, folder, layout) behind a typed dataset."""
    if _is_procedural(spec):
        return "procedural", Path(spec), "procedural"
    name, equals, place = spec.partition("=")
    if not equals or Path(spec).is_dir():
        folder = _find_folder(spec, root)
        # A layout typed as a name decides where its folders are there: data/berkeley is read as Berkeley is.
        layout = spec.lower() if _fits(folder, spec.lower()) else _detect(folder)
        return Path(os.path.abspath(folder)).name, folder, layout
    if not name or not place or {"/", "\\"} & set(name):
        raise HrsegError(f"dataset {spec}: write NAME=FOLDER, where NAME has no slash")
    if _is_procedural(place):
        return name, Path(place), "procedural"
    folder = _find_folder(place, root)
    layout = name.lower()
    if layout not in PARTS:
        return name, folder, _detect(folder)
    if not _fits(folder, layout):
        raise HrsegError(f"{folder}: layout '{layout}' wants {_wanted(layout)} there; give another folder or NAME")
    return name, folder, layout


def _is_procedural(text: str) -> bool:
    return text.partition(":")[0] == "procedural"


def _find_folder(text: str, root: Path | None) -> Path:
    path = Path(text).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise HrsegError(f"{path}: a dataset is a folder; give the folder that holds the images and masks")
    root = root or Path(os.environ.get("HRSEG_DATA") or "data")
    if (root / path).is_dir():
        return root / path
    if path.name != text:
        raise HrsegError(f"{path}: no such folder; give the folder of a dataset")
    below = [p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")] if root.is_dir() else []
    hint = f"Looked in {root}; a path or NAME=FOLDER works too."
    raise UnknownName("dataset", text, {*catalog.LAYOUTS, *below}, hint)


def _fits(folder: Path, layout: str) -> bool:
    if layout == "folder" and (folder / PAIRS).is_file():
        return True
    return layout in PARTS and all((folder / part).is_dir() for part in PARTS[layout])


def _wanted(layout: str) -> str:
    return " and ".join(f"{part}/" for part in PARTS[layout]) + (f", or {PAIRS}" if layout == "folder" else "")


def _detect(folder: Path) -> str:
    for layout in ("grabcut", "davis", "folder"):
        if _fits(folder, layout):
            return layout
    looked = "; ".join(_wanted(layout) for layout in ("folder", "grabcut", "davis"))
    raise HrsegError(f"{folder}: not a dataset; looked for {looked}")


# ---- layouts ---------------------------------------------------------------------------------------------------------


def list_folder(folder: Path, name: str, *, instances: bool, binarize: BinarizeRule) -> list[Ref]:
    """``pairs.csv`` where there is one, otherwise images/ and masks/."""
    if (folder / PAIRS).is_file():
        return _list_pairs(folder, name, instances, binarize)
    return _list_matched(folder, name, "folder", "instance" if instances else binarize)


def list_grabcut(folder: Path, name: str, *, instances: bool, binarize: BinarizeRule) -> list[Ref]:
    """GrabCut as RITM packs it: data_GT/, boundary_GT/, label rule "grabcut"."""
    return _list_matched(folder, name, "grabcut", _rule(instances, binarize, "grabcut"))


def list_berkeley(folder: Path, name: str, *, instances: bool, binarize: BinarizeRule) -> list[Ref]:
    """Berkeley as RITM packs it: images/, masks/, label rule "grabcut"."""
    return _list_matched(folder, name, "berkeley", _rule(instances, binarize, "grabcut"))


def list_davis(folder: Path, name: str, *, instances: bool, binarize: BinarizeRule) -> list[Ref]:
    """The 345 DAVIS frames (and COCO_MVal) as RITM packs them: img/, gt/, label rule "nonzero"."""
    return _list_matched(folder, name, "davis", _rule(instances, binarize, "nonzero"))


def list_procedural(folder: Path, name: str, *, instances: bool, binarize: BinarizeRule) -> list[Ref]:
    """The embedded set. ``folder`` is no folder but the typed text, e.g. ``procedural:count=40,size=2048,seed=3``.

    One object an image, so ``instances`` changes nothing.
    """
    from hrseg_cli.data import procedural

    options = {"count": 20, "size": 1024, "seed": 0}
    for part in filter(None, str(folder).partition(":")[2].split(",")):
        key, _, value = part.partition("=")
        if key not in options:
            raise UnknownName("option of procedural", key, options)
        if not re.fullmatch("[0-9]{1,9}", value) or (key != "seed" and int(value) == 0):
            raise HrsegError(f"dataset {folder}: {key} wants a whole number, for example {key}={options[key]}")
        options[key] = int(value)
    seed, size = options["seed"], options["size"]
    rule: Rule = "gt128" if binarize == "auto" else binarize
    nowhere = Path("procedural")
    return [
        Ref(f"{i:05d}_{procedural.kind(seed, i)}", name, nowhere, nowhere, rule, draw=(seed, i, size))
        for i in range(options["count"])
    ]


def _rule(instances: bool, asked: BinarizeRule, own: BinarizeRule) -> Rule:
    if instances:
        return "instance"
    return own if asked == "auto" else asked


def _list_matched(folder: Path, name: str, layout: str, rule: Rule) -> list[Ref]:
    """Masks of one folder matched to the images of another: STEM first, then STEM_<digits>."""
    images_in, masks_in = (folder / part for part in PARTS[layout])
    images, not_images = _by_stem(images_in)
    masks, not_masks = _by_stem(masks_in)
    found: dict[str, list[tuple[str, Path, Rule]]] = defaultdict(list)
    orphans = []
    for stem, mask in masks.items():
        base = re.sub("_[0-9]+$", "", stem)
        owner = stem if stem in images else base if base in images else None
        if owner is None:
            orphans.append(mask)
        else:
            found[owner].append((stem, mask, rule))
    if orphans:
        ignored = not_images + not_masks
        note = f" (files that are no images were ignored: {_some(ignored)})" if ignored else ""
        raise HrsegError(
            f"{masks_in}: no image of that stem in {images_in.name}/ for {_some(orphans)}{note}; "
            "add the images or remove the masks"
        )
    bare = [path for stem, path in images.items() if stem not in found]
    if bare:
        log.warning("%s: skipped what has no mask in %s/: %s", images_in, masks_in.name, _some(bare))
    return _refs(name, images, found)


def _by_stem(folder: Path) -> tuple[dict[str, Path], list[Path]]:
    """(relative path without suffix -> file of each image below ``folder``, the files that are no images)."""
    files: dict[str, Path] = {}
    ignored = []
    for place, _, names in os.walk(folder, followlinks=True):
        for path in (Path(place, name) for name in names if not name.startswith(".")):
            if path.suffix.lower() not in SUFFIXES:
                ignored.append(path)
                continue
            stem = _stem(path.relative_to(folder))
            if stem in files:
                raise _same_stem(files[stem], path)
            files[stem] = path
    return files, ignored


def _stem(relative: Path) -> str:
    # NFC: a Mac may store the accents of an image and of its mask in different ways.
    return unicodedata.normalize("NFC", relative.with_suffix("").as_posix())


def _same_stem(one: Path, other: Path) -> HrsegError:
    first, second = sorted((one, other))
    return HrsegError(f"{first} and {second}: the same name twice; rename or remove one of them")


def _some(paths: list[Path]) -> str:
    names = ", ".join(sorted(path.name for path in paths)[:3])
    return names if len(paths) <= 3 else f"{names} and {len(paths) - 3} more"


def _list_pairs(folder: Path, name: str, instances: bool, binarize: BinarizeRule) -> list[Ref]:
    """Rows of pairs.csv; a ``kind`` of "instance" or "binary" decides for its row, an empty one leaves it open."""
    table = folder / PAIRS
    rules: dict[str, Rule] = {"": "instance" if instances else binarize, "binary": binarize, "instance": "instance"}
    images: dict[str, Path] = {}
    found: dict[str, list[tuple[str, Path, Rule]]] = defaultdict(list)
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if not {"image", "mask"} <= set(reader.fieldnames or ()):
                raise HrsegError(f"{table}: the first line must name the columns image,mask (and kind, if any)")
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise HrsegError(f"{table}: cannot be read ({error}); save it as UTF-8 text with commas") from None
    for line, row in rows:
        image, mask = folder / (row["image"] or ""), folder / (row["mask"] or "")
        kind = (row.get("kind") or "").strip()
        for path in (image, mask):
            if not path.is_file():
                raise HrsegError(f"{table}, line {line}: no file {path}; correct the line or add the file")
        if kind not in rules:
            raise HrsegError(f"{table}, line {line}: kind '{kind}' is not known; write binary, instance or nothing")
        stem, mask_stem = _pair_stem(image, folder, "images"), _pair_stem(mask, folder, "masks")
        if images.setdefault(stem, image) != image:
            raise _same_stem(images[stem], image)
        if mask in (earlier for _, earlier, _ in found[stem]):
            raise HrsegError(f"{table}, line {line}: {row['mask']} is listed twice for its image; remove one line")
        found[stem].append((mask_stem if stem in mask_stem else f"{stem}:{mask_stem}", mask, rules[kind]))
    return _refs(name, images, found)


def _pair_stem(path: Path, folder: Path, usual: str) -> str:
    base = folder / usual if path.is_relative_to(folder / usual) else folder
    return _stem(path.relative_to(base) if path.is_relative_to(base) else Path(path.name))


def _refs(name: str, images: dict[str, Path], found: dict[str, list[tuple[str, Path, Rule]]]) -> list[Ref]:
    """Sorted by image, then by mask with STEM_2 before STEM_10."""
    refs = []
    for stem in sorted(found):
        masks = sorted(found[stem], key=lambda mask: (_natural(mask[0]), mask[0]))
        for mask_stem, path, rule in masks:
            own_id = stem if len(masks) == 1 else mask_stem
            others = [p for _, p, r in masks if p != path and r == rule and r not in ("nonzero", "gt128")]
            refs.append(Ref(own_id, name, images[stem], path, rule, others=tuple(others)))
    return refs


def _natural(text: str) -> list[str | int]:
    return [int(part) if i % 2 else part for i, part in enumerate(re.split("([0-9]+)", text))]


# ---- pixels ----------------------------------------------------------------------------------------------------------


def load(ref: Ref) -> Sample:
    """Image and truth of one object. Raises HrsegError naming the file that is broken, of the wrong size or empty."""
    return load_with_rule(ref)[0]


def load_with_rule(ref: Ref) -> tuple[Sample, str]:
    """As :func:`load`, with the label rule that was used: what "auto" came to, or "instance"."""
    if ref.draw:
        from hrseg_cli.data import procedural

        image, coverage = procedural.draw(*ref.draw)
        truth, used = _label(ref, ref.mask, MaskPixels(coverage), image.shape[:2])
    else:
        image = read_image(ref.image)
        truth, used = truth_of(ref, image.shape[:2])
    return Sample(ref.id, ref.dataset, image, truth), used


def truth_of(
    ref: Ref, size: tuple[int, ...], read: Callable[[Path], MaskPixels] | None = None
) -> tuple[np.ndarray, str]:
    """(truth int8 (H, W): 1 object, 0 background, -1 ignored; rule used) of an object on an image of ``size`` (H, W).

    read: stands in for :func:`read_mask`, for callers that keep decoded masks.
    """
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
    height, width = pixels.values.shape
    if (height, width) != size:
        turned = " (turned by its EXIF tag?)" if (width, height) == size else ""
        raise HrsegError(
            f"{path}: {width}x{height} pixels, but {ref.image} has {size[1]}x{size[0]}{turned}; save both at one size"
        )
    if ref.rule != "instance":
        return binarize(*_grey(pixels, ref.rule))
    ids = _ids(path, pixels)
    truth = (ids == ref.instance).astype(np.int8)
    truth[ids == _void(ids)] = -1
    return truth, "instance"


def _no_object(ref: Ref, pixels: MaskPixels, used: str) -> HrsegError:
    values = np.unique(pixels.values).astype(int).tolist()
    seen = ", ".join(map(str, values[:8])) + (" ..." if len(values) > 8 else "")
    what = f"rule '{used}'" if ref.instance is None else f"id {ref.instance}"
    if not any(values):
        fix = "the mask is empty, so remove it"
    elif ref.instance is not None:
        fix = "its pixels are gone or ignored, so correct the masks of this image"
    elif 1 < values[-1] <= 64:
        fix = "for ids of objects add --instances, for one object --binarize nonzero"
    else:
        fix = "try --binarize nonzero"
    return HrsegError(f"{ref.mask}: no object pixel by {what}; values seen: {seen}; {fix}")


def binarize(grey: np.ndarray, rule: BinarizeRule) -> tuple[np.ndarray, str]:
    """Grey values (H, W), bool, 8 or 16 bit -> (truth int8 (H, W): 1 object, 0 background, -1 ignored; rule used).

    auto: only 0 and 1 -> nonzero; at most 8 distinct values, as drawn labels have -> void128; more, as an
    anti-aliased edge has -> gt128. 16-bit values that exceed 255 are brought to 0..255 first (65535 -> 255).
    """
    if grey.dtype == bool:
        grey = grey.astype(np.uint8)
    elif grey.dtype != np.uint8:
        grey = (grey if grey.max(initial=0) <= 255 else np.rint(grey / 257)).astype(np.uint8)
    used: str = rule
    if rule == "auto":
        counts = np.bincount(grey.ravel(), minlength=256)
        used = "nonzero" if not counts[2:].any() else "void128" if np.count_nonzero(counts) <= 8 else "gt128"
    if used not in get_args(BinarizeRule):
        raise UnknownName("label rule", used, get_args(BinarizeRule))
    truth = (grey > (0 if used == "nonzero" else 128)).astype(np.int8)
    if used in ("void128", "grabcut"):
        truth[grey == 128] = -1
    if used == "grabcut":
        truth[grey == 1] = 1
    return truth, used


def _grey(pixels: MaskPixels, rule: BinarizeRule) -> tuple[np.ndarray, BinarizeRule]:
    """Values and rule to binarise by. Indices of a palette are labels, so "auto" is "nonzero" there."""
    if pixels.palette is None:
        return pixels.values, rule
    # A grey picture that a PNG optimiser turned into a palette may number white before black.
    grey = (pixels.palette == pixels.palette[:, :1]).all() and pixels.palette[0].any()
    values = pixels.palette[:, 0][pixels.values] if grey else pixels.values
    return values, "nonzero" if rule == "auto" else rule


def instance_ids(path: Path, read: Callable[[Path], MaskPixels] | None = None) -> list[int]:
    """Ids of the objects of an index mask, ascending. Raises HrsegError for a mask of colours. ``read``: as above."""
    ids = _ids(path, (read or read_mask)(path))
    return [int(value) for value in np.unique(ids) if value not in (0, _void(ids))]


def _ids(path: Path, pixels: MaskPixels) -> np.ndarray:
    if pixels.coloured:
        raise HrsegError(f"{path}: colours, not ids; save it as a palette or grey PNG, or leave --instances off")
    return pixels.values


def _void(ids: np.ndarray) -> int:
    """255 as in VOC, 65535 in a 16-bit mask; nothing in a 1-bit mask."""
    return -1 if ids.dtype == bool else 255 if ids.dtype == np.uint8 else 65535


def read_image(path: Path) -> np.ndarray:
    """uint8, (H, W, 3), RGB, as OpenCV reads it: EXIF turned, alpha dropped, the upper 8 of 16 bits."""
    picture = _decode(path)
    if picture.mode == "F":
        raise HrsegError(f"{path}: floating-point pixels; save the image with 8 or 16 bits a channel")
    if picture.mode.startswith("I"):
        grey = (np.asarray(picture) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    return np.array(picture.convert("RGB"))


def read_mask(path: Path) -> MaskPixels:
    """A mask as stored, turned by its EXIF tag. Of colours the maximum; a cut-out of one colour gives its alpha."""
    picture = _decode(path)
    if picture.mode in ("P", "PA"):
        colours = np.array(picture.getpalette("RGB"), np.uint8).reshape(-1, 3)
        indices = np.array(picture if picture.mode == "P" else picture.getchannel(0))
        used = int(indices.max(initial=0)) + 1
        return MaskPixels(indices, np.concatenate([colours, np.zeros((256, 3), np.uint8)])[:used])
    if picture.mode not in ("1", "L", "F", "RGB", "RGBA", "LA") and not picture.mode.startswith("I"):
        picture = picture.convert("RGB")
    values = np.array(picture)
    if values.dtype.kind == "f":
        if not np.array_equal(values, np.rint(values)):
            raise HrsegError(f"{path}: floating-point pixels; save the mask as an 8-bit PNG")
        values = values.astype(np.int32)
    if values.dtype.kind in "iu" and values.dtype != np.uint8:
        if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
            raise HrsegError(f"{path}: values outside 0..65535; save the mask as an 8- or 16-bit PNG")
        values = values.astype(np.uint16)
    if values.ndim == 2:
        return MaskPixels(values)
    if values.shape[2] in (2, 4):
        colours, alpha = values[:, :, :-1], values[:, :, -1]
        visible = colours[alpha > 0]
        if alpha.min(initial=255) < alpha.max(initial=0) and (visible == visible[0]).all():
            return MaskPixels(alpha)
        values = colours
    grey = values.max(axis=2)
    return MaskPixels(grey, coloured=bool((values != grey[:, :, None]).any()))


def _decode(path: Path) -> Image.Image:
    """A picture with all its pixels, upright. PIL, for it notices truncated files and keeps palettes."""
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise HrsegError(f"{path}: {picture.width}x{picture.height} is more than 1 gigapixel; make it smaller")
            picture.load()
            ImageOps.exif_transpose(picture, in_place=True)
            return picture
    except (HrsegError, MemoryError):
        raise
    except FileNotFoundError:
        raise HrsegError(f"{path}: no such file; put it back or remove its partner") from None
    except Exception as error:  # a broken file can raise nearly anything inside a decoder
        reason = "an empty file" if path.is_file() and path.stat().st_size == 0 else str(error).split("\n")[0]
        reason = reason.replace(repr(str(path)), "it").replace(str(path), "it")
        raise HrsegError(f"{path}: cannot be read as an image ({reason}); replace the file") from None


# ---- the index, where prepare-data left a fresh one ------------------------------------------------------------------


def fingerprint(folder: Path, masks: Iterable[Ref]) -> str:
    """Hash of the names, sizes and times of all listed files."""
    paths = sorted({path for ref in masks for path in (ref.image, ref.mask)})
    digest = hashlib.sha256()
    for path in paths:
        try:
            stat = path.stat()
            state = (stat.st_size, stat.st_mtime_ns)
        except OSError:  # a dead link: whoever reads it says so
            state = (-1, -1)
        digest.update(f"{relative(path, folder)}\t{state}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def relative(path: Path, folder: Path) -> str:
    """``path`` as seen from ``folder``, with "/"."""
    return Path(os.path.relpath(path, folder)).as_posix()


def _indexed_ids(folder: Path, masks: list[Ref]) -> dict[Path, list[int]]:
    """Ids of the index masks that a fresh index lists; nothing from a stale, foreign or broken one."""
    ids: dict[str, list[int]] = defaultdict(list)
    try:
        with (folder / INDEX).open(encoding="utf-8") as file:
            head = json.loads(next(file))
            if head["version"] != 1 or head["fingerprint"] != fingerprint(folder, masks):
                log.warning("%s: not of the files beside it, unused; 'hrseg prepare-data' renews it", folder / INDEX)
                return {}
            for line in file:
                record = json.loads(line)
                if record["instance"] is not None:
                    ids[record["mask"]].append(int(record["instance"]))
    except (OSError, StopIteration, ValueError, KeyError, TypeError):
        return {}
    return {folder / mask: sorted(values) for mask, values in ids.items() if mask not in head["incomplete"]}
