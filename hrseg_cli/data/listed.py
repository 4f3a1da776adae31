"""Sets that list their own images: SBD, PASCAL VOC, COCO+LVIS as RITM combines them, and the embedded one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hrseg_cli.data.folders import by_stem
from hrseg_cli.data.packed import load_pickle
from hrseg_cli.data.refs import Ref, Rule, layout
from hrseg_cli.errors import HrsegError
from hrseg_cli.recipe import BinarizeRule


@layout(("img/", "inst/"))
def list_sbd(folder: Path, name: str, *, instances: bool, binarize: BinarizeRule, split: str = "val") -> list[Ref]:
    """SBD: img/, inst/*.mat (GTinst.Segmentation) and <split>.txt. One object per id > 0, nothing is ignored.

    split: "val" counts every object, as RITM evaluates; "train" leaves out those that fill under 8 % of their box, as
        RITM trains. Masks are ids in any case, so ``instances`` and ``binarize`` change nothing.
    """
    rule: Rule = "solid" if split == "train" else "instance"
    return _list_named(folder, name, folder, split, ("img", "inst"), (".mat",), rule)


@layout(("JPEGImages/", "SegmentationObject/"))
def list_pascalvoc(
    folder: Path, name: str, *, instances: bool, binarize: BinarizeRule, split: str = "val"
) -> list[Ref]:
    """PASCAL VOC: JPEGImages/, SegmentationObject/ and ImageSets/Segmentation/<split>.txt. One object per palette
    index, 255 is ignored; ``instances`` and ``binarize`` change nothing.

    RITM reads grey values of the palette's colours, in which some pairs of objects collide.
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
        raise HrsegError(f"{path}: no such list; the splits there are: {others}")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise HrsegError(f"{path}: not a text of names; replace it") from None
    images, masks = by_stem(folder / parts[0])[0], by_stem(folder / parts[1], suffixes)[0]
    refs: dict[str, Ref] = {}
    for number, line in enumerate(lines, 1):
        stem = line.strip()
        if not stem:
            continue
        for part, files in zip(parts, (images, masks), strict=True):
            if stem not in files:
                raise HrsegError(f"{path}, line {number}: no file '{stem}' in {folder / part}; add it or the line goes")
        if stem in refs:
            raise HrsegError(f"{path}, line {number}: '{stem}' is there twice; remove one line")
        refs[stem] = Ref(stem, name, images[stem], masks[stem], rule)
    return list(refs.values())


@layout(("*/hannotation.pickle",))
def list_coco_lvis(
    folder: Path, name: str, *, instances: bool, binarize: BinarizeRule, split: str = "val", stuff: str = "0"
) -> list[Ref]:
    """COCO+LVIS (RITM, section 4.1): <split>/images/, masks/*.pickle and hannotation.pickle.

    One object per mask, parts of objects included: ``Ref.parent`` tells whose part it is. Nothing is ignored.
    Images of "val" may lie in train/images/: LVIS took some of them from COCO's train2017.
    stuff: "1" adds regions of stuff (sky, grass) behind the objects of an image; ``Ref.stuff`` marks them.
    """
    if stuff not in ("0", "1"):
        raise HrsegError(f"dataset {name}: stuff={stuff} is not known; write stuff=0 or stuff=1")
    path = folder / split / "hannotation.pickle"
    if not path.is_file():
        others = ", ".join(sorted(p.parent.name for p in folder.glob("[!.]*/hannotation.pickle"))) or "none"
        raise HrsegError(f"{path}: no such file; the splits there are: {others}")
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
    except (AttributeError, KeyError, TypeError, ValueError):
        raise HrsegError(f"{path}: not the annotation of COCO+LVIS; replace the file") from None
    return refs


def _objects(image: dict[str, Any]) -> tuple[int, dict[int, int]]:
    """(number of objects, part -> the object it belongs to) of one image."""
    hierarchy = image["hierarchy"].items()
    parents = {int(k): int(node["parent"]) for k, node in hierarchy if node and node["parent"] is not None}
    return int(image["num_instance_masks"]), parents


def list_procedural(
    folder: Path,
    name: str,
    *,
    instances: bool,
    binarize: BinarizeRule,
    count: str = "20",
    size: str = "1024",
    seed: str = "0",
) -> list[Ref]:
    """Drawn on demand, without a folder (:count=20,size=1024,seed=0). One object an image; ``instances`` is ignored."""
    from hrseg_cli.data import procedural

    for key, value, usual in (("count", count, 20), ("size", size, 1024), ("seed", seed, 0)):
        if not re.fullmatch("[0-9]{1,9}", value) or (key != "seed" and int(value) == 0):
            raise HrsegError(f"dataset {folder}: {key} wants a whole number, for example {key}={usual}")
    rule: Rule = "gt128" if binarize == "auto" else binarize
    draws = [(int(seed), index, int(size)) for index in range(int(count))]
    return [
        Ref(f"{index:05d}_{procedural.kind(start, index)}", name, folder, folder, rule, draw=(start, index, side))
        for start, index, side in draws
    ]
