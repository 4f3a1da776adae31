"""Datasets with their own image lists: SBD, PASCAL VOC, COCO+LVIS as combined by RITM, the procedural set, and the
samples."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hrseg_cli.data.bundled import MISSING, sample_masks, sample_photographs
from hrseg_cli.data.folders import by_stem
from hrseg_cli.data.packed import load_pickle
from hrseg_cli.data.refs import Ref, Rule, layout
from hrseg_cli.errors import HrsegError
from hrseg_cli.limits import OBJECTS
from hrseg_cli.parsing import read_text, reason
from hrseg_cli.recipe import BinarizeRule


@layout(("img/", "inst/"))
def list_sbd(folder: Path, name: str, *, instances: bool, binarize: BinarizeRule, split: str = "val") -> list[Ref]:
    """SBD: img/, inst/*.mat (GTinst.Segmentation) and <split>.txt. One object per id > 0; no pixels are ignored.

    split: "val" has every object, as in RITM's evaluation; "train" omits those that fill less than 8 % of their box, as
        in RITM's training. Masks always contain ids, so ``instances`` and ``binarize`` have no effect.
    """
    rule: Rule = "solid" if split == "train" else "instance"
    return _list_named(folder, name, folder, split, ("img", "inst"), (".mat",), rule)


@layout(("JPEGImages/", "SegmentationObject/"))
def list_pascalvoc(
    folder: Path, name: str, *, instances: bool, binarize: BinarizeRule, split: str = "val"
) -> list[Ref]:
    """PASCAL VOC: JPEGImages/, SegmentationObject/ and ImageSets/Segmentation/<split>.txt. One object per palette
    index, 255 is ignored; ``instances`` and ``binarize`` have no effect.

    RITM reads the grey values of the palette's colours, which merges some pairs of objects.
    """
    lists = folder / "ImageSets" / "Segmentation"
    return _list_named(folder, name, lists, split, ("JPEGImages", "SegmentationObject"), (".png",), "instance")


def _list_named(
    folder: Path, name: str, lists: Path, split: str, parts: tuple[str, str], suffixes: tuple[str, ...], rule: Rule
) -> list[Ref]:
    """One reference per line of ``<split>.txt``."""
    path = lists / f"{split}.txt"
    if not path.is_file():
        others = ", ".join(sorted(p.stem for p in lists.glob("[!.]*.txt"))) or "none"
        raise HrsegError(f"{path}: no such list; available splits: {others}")
    try:
        lines = read_text(path).splitlines()
    except (OSError, ValueError) as error:
        raise HrsegError(f"{path}: cannot be read ({reason(error)}); replace it") from None
    images, masks = by_stem(folder / parts[0])[0], by_stem(folder / parts[1], suffixes)[0]
    refs: dict[str, Ref] = {}
    for number, line in enumerate(lines, 1):
        stem = line.strip()
        if not stem:
            continue
        for part, files in zip(parts, (images, masks), strict=True):
            if stem not in files:
                raise HrsegError(
                    f"{path}, line {number}: no file '{stem}' in {folder / part}; add it or remove the line"
                )
        if stem in refs:
            raise HrsegError(f"{path}, line {number}: duplicate '{stem}'; remove one line")
        refs[stem] = Ref(stem, name, images[stem], masks[stem], rule)
    return list(refs.values())


@layout(("*/hannotation.pickle",))
def list_coco_lvis(
    folder: Path, name: str, *, instances: bool, binarize: BinarizeRule, split: str = "val", stuff: str = "0"
) -> list[Ref]:
    """COCO+LVIS (RITM, section 4.1): <split>/images/, masks/*.pickle and hannotation.pickle.

    One object per mask, including parts of objects: ``Ref.parent`` is the object a part belongs to. No pixels are
    ignored. Images of "val" may be in train/images/: LVIS took some of them from COCO's train2017.
    stuff: "1" adds stuff regions (sky, grass) after the objects of an image; ``Ref.stuff`` marks them.
    """
    if stuff not in ("0", "1"):
        raise HrsegError(f"dataset {name}: unknown stuff={stuff}; write stuff=0 or stuff=1")
    path = folder / split / "hannotation.pickle"
    if not path.is_file():
        others = ", ".join(sorted(p.parent.name for p in folder.glob("[!.]*/hannotation.pickle"))) or "none"
        raise HrsegError(f"{path}: no such file; available splits: {others}")
    refs = []
    content = load_pickle(path)
    try:
        for stem, count, parents in sorted((stem, *_objects(image)) for stem, image in content.items()):
            image, mask = folder / split / "images" / f"{stem}.jpg", folder / split / "masks" / f"{stem}.pickle"
            other = folder / "train" / "images" / image.name
            if split == "val" and not image.is_file() and other.is_file():
                image = other
            for k in range(count):
                refs.append(Ref(f"{stem}#{k}", name, image, mask, "layers", k, parent=parents.get(k)))
            if stuff == "1":
                refs.append(Ref(stem, name, image, mask, "layers", stuff=count))
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError):
        raise HrsegError(f"{path}: not a COCO+LVIS annotation; replace the file") from None
    return refs


def _objects(image: dict[str, Any]) -> tuple[int, dict[int, int]]:
    """(number of objects, part -> the object it belongs to) of one image."""
    hierarchy = image["hierarchy"].items()
    parents = {int(k): int(node["parent"]) for k, node in hierarchy if node and node["parent"] is not None}
    count = int(image["num_instance_masks"])
    if not 0 <= count <= OBJECTS:
        raise ValueError
    return count, parents


def list_procedural(
    folder: Path,
    name: str,
    *,
    instances: bool,
    binarize: BinarizeRule,
    count: str = "20",
    size: str = "1024",
    seed: str = "0",
    kinds: str = "",
) -> list[Ref]:
    """Drawn on demand, without a folder (:count=20,size=1024,seed=0,kinds=gear+leaf). One object an image;
    ``instances`` is ignored."""
    from hrseg_cli.data import procedural

    for key, value, usual in (("count", count, 20), ("size", size, 1024), ("seed", seed, 0)):
        if not re.fullmatch("[0-9]{1,9}", value) or (key != "seed" and int(value) == 0):
            raise HrsegError(f"dataset {folder}: {key} must be an integer, for example {key}={usual}")
    rule: Rule = "gt128" if binarize == "auto" else binarize
    draws = [(int(seed), index, int(size)) for index in procedural.numbers(int(seed), int(count), kinds)]
    return [
        Ref(f"{index:05d}_{procedural.kind(start, index)}", name, folder, folder, rule, draw=(start, index, side))
        for start, index, side in draws
    ]


def list_samples(folder: Path, name: str, *, instances: bool, binarize: BinarizeRule) -> list[Ref]:
    """Seven objects in the four free photographs that scikit-image contains; without a folder (hrseg[samples]).

    Their masks were drawn by hand. Label rule "void128": pixels without a visible outline are ignored.
    """
    images = sample_photographs()
    if images is None:
        raise HrsegError(f"dataset {folder}: {MISSING}")
    rule: Rule = "void128" if binarize == "auto" else binarize
    masks = sample_masks()
    refs = []
    for mask, photograph in masks.items():
        others = tuple(other for other in masks if other != mask and masks[other] == photograph)
        refs.append(Ref(mask.stem, name, images / photograph, mask, rule, others=others))
    return refs
