"""Dataset layouts defined by file names: masks matched to images by stem, by pattern, or by a table of pairs."""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

from hrseg_cli.data.manifest import match_files
from hrseg_cli.data.paths import below, inner
from hrseg_cli.data.pixels import SUFFIXES
from hrseg_cli.data.refs import PAIRS, Ref, Rule, layout
from hrseg_cli.errors import HrsegError, UnknownName
from hrseg_cli.parsing import Malformed, read_table, reason
from hrseg_cli.recipe import BinarizeRule

log = logging.getLogger(__name__)


@layout(("images/", "masks/"), (PAIRS,))
def list_folder(folder: Path, name: str, *, instances: bool, binarize: BinarizeRule, table: str = PAIRS) -> list[Ref]:
    """images/ and masks/ matched by stem, several masks as STEM_0, STEM_1; or a pairs.csv (image,mask[,kind]).

    table: another table in the folder, instead of pairs.csv.
    """
    path = below(folder, table, f"dataset {folder}: table={table}")
    if path.is_file():
        return _list_table(folder, path, name, instances, binarize)
    if table != PAIRS:
        others = ", ".join(sorted(one.name for one in folder.glob("[!.]*.csv"))) or "none"
        raise HrsegError(f"{path}: no such table; available tables: {others}")
    return _list_matched(folder, name, ("images", "masks"), "instance" if instances else binarize)


@layout(("data_GT/", "boundary_GT/"))
def list_grabcut(folder: Path, name: str, *, instances: bool, binarize: BinarizeRule) -> list[Ref]:
    """GrabCut as RITM packs it: data_GT/, boundary_GT/, label rule "grabcut"."""
    return _list_matched(folder, name, ("data_GT", "boundary_GT"), _rule(instances, binarize, "grabcut"))


@layout(("images/", "masks/"), guess=False)  # the same folders as "folder"
def list_berkeley(folder: Path, name: str, *, instances: bool, binarize: BinarizeRule) -> list[Ref]:
    """Berkeley as RITM packs it: images/, masks/, label rule "grabcut"."""
    return _list_matched(folder, name, ("images", "masks"), _rule(instances, binarize, "grabcut"))


@layout(("img/", "gt/"))
def list_davis(folder: Path, name: str, *, instances: bool, binarize: BinarizeRule) -> list[Ref]:
    """The 345 DAVIS frames (and COCO_MVal) as RITM packs them: img/, gt/, label rule "nonzero"."""
    return _list_matched(folder, name, ("img", "gt"), _rule(instances, binarize, "nonzero"))


@layout(("*/object*_*.png",))
def list_davis585(folder: Path, name: str, *, instances: bool, binarize: BinarizeRule, init: str = "none") -> list[Ref]:
    """DAVIS-585 (FocalClick, section 4): a folder per sequence with images, object masks and initial masks.

    00009.jpg, object1_00009.png, init_stm_object1_00009.png and init_sp_object1_00009.png. Label rule "gt128".

    init: "stm" (from video segmentation), "sp" (from super-pixels) or "none".
    """
    if init not in ("none", "stm", "sp"):
        raise UnknownName("initial mask", init, ("none", "stm", "sp"))
    files, _ = by_stem(folder, (".png",))
    images, _ = by_stem(folder, (".jpg", ".jpeg"))
    rule = _rule(instances, binarize, "gt128")
    refs = []
    for stem, mask in sorted(files.items(), key=lambda item: _natural(item[0])):
        if mask.name.startswith("init_"):
            continue
        image = images.get(str(Path(stem).with_name(Path(stem).name.rpartition("_")[2])))
        if image is None:
            raise HrsegError(f"{mask}: no image {mask.stem.rpartition('_')[2]}.jpg next to it; add it")
        start = None
        if init != "none":
            start = files.get(str(Path(stem).with_name(f"init_{init}_{Path(stem).name}")))
            if start is None:
                raise HrsegError(f"{mask}: no init_{init}_{mask.name} next to it; add it or omit init={init}")
        refs.append(Ref(stem, name, image, mask, rule, initial=start))
    return refs


def list_pairs(
    folder: Path, name: str, *, instances: bool, binarize: BinarizeRule, images: str, masks: str
) -> list[Ref]:
    """Two patterns, :images=im/*.jpg,masks=gt/*.png: files with the same text for the stars are a pair.

    Files without a partner are skipped with a warning. "im" is short for "im/*.*".

    HQSeg-44K: ``images="im/*.jpg", masks="gt/*.png"``, or ``images="*.jpg", masks="*.png"`` for both in one folder.
    BIG: ``*_im.jpg`` and ``*_gt.png``.
    """
    found, targets = (
        {_text(stem, path): path for stem, path in match_files(folder, pattern).items()}
        for pattern in (text if "*" in text else f"{text}/*.*" for text in (images, masks))
    )
    alone = [path for stem, path in (found | targets).items() if not (stem in found and stem in targets)]
    if alone:
        log.warning("%s: skipped files without a partner: %s", folder, _some(alone))
    rule: Rule = "instance" if instances else binarize
    return [Ref(stem, name, found[stem], targets[stem], rule) for stem in sorted(found.keys() & targets.keys())]


def _rule(instances: bool, asked: BinarizeRule, own: BinarizeRule) -> Rule:
    if instances:
        return "instance"
    return own if asked == "auto" else asked


def _list_matched(folder: Path, name: str, parts: tuple[str, str], rule: Rule) -> list[Ref]:
    """Masks of one folder matched to the images of another, see :func:`owner_of`."""
    images_in, masks_in = (folder / part for part in parts)
    images, not_images = by_stem(images_in)
    masks, not_masks = by_stem(masks_in)
    found: dict[str, list[tuple[str, Path, Rule]]] = defaultdict(list)
    orphans = []
    for stem, mask in masks.items():
        owner = owner_of(stem, images)
        if owner is None:
            orphans.append(mask)
        else:
            found[owner].append((stem, mask, rule))
    if orphans:
        ignored = not_images + not_masks
        note = f" (ignored files that are not images: {_some(ignored)})" if ignored else ""
        raise HrsegError(
            f"{masks_in}: no image with the same stem in {images_in.name}/ for {_some(orphans)}{note}; "
            "add the images or remove the masks"
        )
    if others := not_images + not_masks:
        log.warning("%s: skipped %d files that are not images: %s", images_in.parent, len(others), _some(others))
    bare = [path for stem, path in images.items() if stem not in found]
    if bare:
        log.warning("%s: skipped images without a mask in %s/: %s", images_in, masks_in.name, _some(bare))
    return _refs(name, images, found)


def owner_of(stem: str, images: Collection[str]) -> str | None:
    """The image that a mask of this stem belongs to: STEM first, then STEM_<digits>, then the names that other programs
    give: STEM_mask, STEM.jpg (of a file STEM.jpg.png)."""
    spelt = (stem, re.sub("_[0-9]+$", "", stem), re.sub("_mask(_[0-9]+)?$", "", stem), _without_suffix(stem))
    return next((one for one in spelt if one in images), None)


def _without_suffix(stem: str) -> str:
    """The stem without the suffix of an image: "a" for "a.jpg", which is the stem of a.jpg.png."""
    head, dot, suffix = stem.rpartition(".")
    return head if f"{dot}{suffix}".lower() in SUFFIXES else stem


def by_stem(
    folder: Path, suffixes: Collection[str] = SUFFIXES, without: Collection[str] = ()
) -> tuple[dict[str, Path], list[Path]]:
    """(relative path without suffix -> file of each image below ``folder``, the files with other suffixes). without:
    names of folders directly in it to leave out."""
    files: dict[str, Path] = {}
    ignored = []
    for path in _walk(folder, without):
        if path.suffix.lower() not in suffixes:
            ignored.append(path)
            continue
        stem = _text(path.relative_to(folder).with_suffix("").as_posix(), path)
        if stem in files:
            raise _same_stem(files[stem], path)
        files[stem] = path
    return files, ignored


def _walk(folder: Path, without: Collection[str] = ()) -> list[Path]:
    """All files below ``folder`` except hidden files and folders (.ipynb_checkpoints); links are followed. Raises
    OSError if a folder cannot be listed."""

    def complain(error: OSError) -> None:
        raise error

    files: list[Path] = []
    seen: set[str] = set()
    for place, inside, names in os.walk(folder, followlinks=True, onerror=complain):
        left_out = without if Path(place) == folder else ()
        inside[:] = [name for name in inside if not name.startswith(".") and name not in left_out]
        real = os.path.realpath(place)
        if real in seen:
            raise HrsegError(f"{place}: a link to a folder that is already read; remove the link")
        seen.add(real)
        files += [Path(place, name) for name in names if not name.startswith(".")]
    return files


def _text(stem: str, path: Path) -> str:
    """A stem in NFC, so that stems compare equal: macOS may store the accents of image and mask differently."""
    if not stem.isascii() and stem.encode(errors="replace").decode() != stem:
        raise HrsegError(f"{str(path)!a}: file name is not UTF-8; rename the file")
    return unicodedata.normalize("NFC", stem)


def _same_stem(one: Path, other: Path) -> HrsegError:
    first, second = sorted((one, other))
    return HrsegError(f"{first} and {second}: duplicate name; rename or remove one of them")


def _some(paths: list[Path]) -> str:
    names = ", ".join(sorted(path.name for path in paths)[:3])
    return names if len(paths) <= 3 else f"{names} and {len(paths) - 3} more"


def _list_table(folder: Path, table: Path, name: str, instances: bool, binarize: BinarizeRule) -> list[Ref]:
    """Rows of pairs.csv; a ``kind`` of "instance" or "binary" applies to its row, an empty one uses the defaults. Files
    in a column ``regions`` instead of ``mask`` hold ids."""
    rules: dict[str, Rule] = {"": "instance" if instances else binarize, "binary": binarize, "instance": "instance"}
    images: dict[str, Path] = {}
    found: dict[str, list[tuple[str, Path, Rule]]] = defaultdict(list)
    try:
        rows = list(read_table(table, ("image", "mask|regions")))
    except (OSError, Malformed) as error:
        raise HrsegError(
            f"{table}: cannot be read ({reason(error)}); write UTF-8 text with the columns image,mask[,kind]"
        ) from None
    for line, row in rows:
        file = row["regions"] if "regions" in row else row["mask"]
        image, mask = folder / row["image"], folder / file
        kind = row.get("kind") or ("instance" if "regions" in row else "")
        for path in (image, mask):
            if not path.is_file():
                raise HrsegError(f"{table}, line {line}: no file {path}; correct the line or add the file")
        if kind not in rules:
            raise HrsegError(f"{table}, line {line}: unknown kind '{kind}'; write binary, instance or nothing")
        stem, mask_stem = _pair_stem(image, folder, "images"), _pair_stem(mask, folder, "masks")
        if images.setdefault(stem, image) != image:
            raise _same_stem(images[stem], image)
        if mask in (earlier for _, earlier, _ in found[stem]):
            raise HrsegError(f"{table}, line {line}: duplicate mask {file} for its image; remove one line")
        found[stem].append((mask_stem if stem in mask_stem else f"{stem}:{mask_stem}", mask, rules[kind]))
    return _refs(name, images, found)


def _pair_stem(path: Path, folder: Path, usual: str) -> str:
    base = folder / usual if path.is_relative_to(folder / usual) else folder
    relative = path.relative_to(base) if path.is_relative_to(base) else Path(path.name)
    return _text(inner(relative.with_suffix("").as_posix()), path)


def _refs(name: str, images: dict[str, Path], found: dict[str, list[tuple[str, Path, Rule]]]) -> list[Ref]:
    """Sorted by image, then by mask, with STEM_2 before STEM_10."""
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
