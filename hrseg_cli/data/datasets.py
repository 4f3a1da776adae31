"""Open datasets by name, manifest or folder, for commands, recipes and the Python API alike."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from hrseg_cli.data.index import Index, check_image, is_fresh
from hrseg_cli.data.known import DEFAULT_SPLIT, Piece, check_folder, find_known, list_parts, pieces_of
from hrseg_cli.data.manifest import load_manifest, manifest_names
from hrseg_cli.data.paths import data_root
from hrseg_cli.data.samples import Listing, Ref, expand, fingerprint, list_masks, locate, open_listing, split_options
from hrseg_cli.errors import HrsegError
from hrseg_cli.recipe import BinarizeRule, Protocol, load_protocol


class Opened(NamedTuple):
    """The objects of several datasets.

    composed: dataset -> names of its parts, where it has several. incomplete: dataset -> "objects found of objects
    published", for known datasets of which some are missing. places: the same datasets as NAME/SPLIT of a manifest.
    """

    refs: list[Ref]
    composed: dict[str, list[str]]
    incomplete: dict[str, str]
    places: dict[str, str]


def open_dataset(
    spec: str,
    *,
    root: Path | None = None,
    split: str = DEFAULT_SPLIT,
    instances: bool = False,
    binarize: BinarizeRule = "auto",
    limit: int | None = None,
    broken: list[str] | None = None,
) -> list[Ref]:
    """The objects of a dataset, in an order that is the same on every machine.

    spec: the name of a known dataset, or a manifest (.yaml); a folder; the name of a folder under ``root``
        [$HRSEG_DATA, or ./data]; a COCO JSON file; ``NAME=FOLDER``, where a layout as NAME also selects the layout;
        ``procedural``. Options follow after a colon: those of the layout, ``split=train``, and ``held=0.1`` or
        ``kept=0.1`` for the held-out tenth or the rest: ``sbd:split=train``, ``procedural:count=20,size=1024,seed=0``.
    split: of a known dataset, if ``spec`` names none.
    instances: masks contain ids rather than one object (``kind`` in pairs.csv and manifests take precedence).
    binarize: label rule; "auto" uses the rule of the layout or manifest, or chooses one per mask.
    limit: only the first ``limit`` objects of each part of the dataset; later masks are not opened.
    broken: with a list, every file is decoded first; objects with a broken or missing file are left out, and a line
        about each such file is added to the list.

    Raises UnknownName for an unknown name, HrsegError for a folder that cannot be read as a dataset.
    """
    found = _find(spec, root, split, instances, binarize, broken)
    return [ref for part in _open(spec, found, limit, broken) for ref in part]


def open_for_training(
    spec: str,
    *,
    root: Path | None = None,
    instances: bool = False,
    binarize: BinarizeRule = "auto",
    broken: list[str] | None = None,
) -> Sequence[Ref]:
    """As :func:`open_dataset` with the split "train"; of a known dataset with a fresh index, objects are read from
    there one by one."""
    found = _find(spec, root, "train", instances, binarize, broken)
    if found.pieces and not found.share and len(found.listings) == 1 and is_fresh(found.listings[0]):
        (listing,) = found.listings
        return Index(listing.index_file, folder=listing.folder, name=listing.name)
    return [ref for part in _open(spec, found, None, broken) for ref in part]


def open_datasets(
    specs: Iterable[str],
    *,
    root: Path | None = None,
    instances: bool = False,
    binarize: BinarizeRule = "auto",
    limit: int | None = None,
    broken: list[str] | None = None,
) -> Opened:
    """The objects of several datasets, each as :func:`open_dataset` opens it.

    Raises HrsegError where two datasets would get the same name, or one a name that its results cannot have.
    """
    opened = Opened([], {}, {}, {})
    seen: set[str] = set()
    for spec in specs:
        found = _find(spec, root, DEFAULT_SPLIT, instances, binarize, broken)
        parts = _open(spec, found, limit, broken)
        for part, piece in zip(parts, found.pieces, strict=bool(found.pieces)):
            published = piece.split.count_objects
            if limit or found.share or not published or piece.split.about or len(part) == published:
                continue
            opened.incomplete[part[0].dataset] = f"{len(part)} of {published}"
            opened.places[part[0].dataset] = piece.place
        names = [part[0].dataset for part in parts]
        if "noc" in names:
            raise HrsegError(f"`datasets` {spec}: the name 'noc' is reserved for the table noc.csv; write OTHER=FOLDER")
        if twice := seen.intersection(names):
            raise HrsegError(f"`datasets` {spec}: the name '{twice.pop()}' is used twice; rename one with NAME=FOLDER")
        seen.update(names)
        if len(names) > 1:
            opened.composed[Path(split_options(spec)[0]).stem] = names
        opened.refs.extend(ref for part in parts for ref in part)
    for ref in opened.refs:
        try:
            ref.id.encode()
        except UnicodeEncodeError:
            raise HrsegError(f"{ref.id!r} of {ref.dataset}: the file name is not UTF-8; rename the file") from None
    return opened


def check_found(spec: str, *, root: Path | None = None, split: str = DEFAULT_SPLIT) -> None:
    """Check that a dataset exists, without listing its files. spec, root, split: as for :func:`open_dataset`.

    Raises UnknownName or HrsegError.
    """
    text, options = split_options(spec)
    if known := find_known(text):
        for piece in pieces_of(known, options.get("split", split)):
            check_folder(piece, data_root(root), known.manifest.name)
    else:
        locate(spec, root)


def moved(spec: str, root: Path | None) -> str:
    """The dataset with the folder or file below ``root`` that ends like the given one, if that no longer exists."""
    text, _ = split_options(spec)
    if root is None or find_known(text):
        return spec
    try:
        check_found(spec, root=root)
    except HrsegError:
        head, equals, place = text.rpartition("=")
        parts = [part for part in Path(place).parts if part != Path(place).anchor]
        for first in range(len(parts)):
            if (there := root.joinpath(*parts[first:])).exists():
                return f"{head}{equals}{there}{spec[len(text) :]}"
    return spec


def own_protocols(
    name: str | None, main: Protocol, datasets: Iterable[str], changes: Iterable[str] = ()
) -> tuple[Protocol, dict[str, Protocol]]:
    """The main protocol, and dataset -> protocol for datasets whose manifest asks for another one.

    Only where the user names none: RITM evaluates DAVIS, and only DAVIS, with larger crops.
    """
    if name is not None:
        return main, {}
    changes = list(changes)
    wishes = {
        dataset: load_manifest(dataset).protocol if dataset in manifest_names() else "ritm" for dataset in datasets
    }
    own = {dataset: load_protocol(wish, changes) for dataset, wish in wishes.items() if wish != "ritm"}
    if own and len(own) == len(wishes) and len(set(wishes.values())) == 1:
        return next(iter(own.values())), {}
    return main, own


def in_held_out(ref: Ref, share: float, group: str | None = None) -> bool:
    """Whether an object belongs to the held-out ``share`` of a dataset; depends only on the file name of its image.

    group: a regular expression whose first group is hashed instead of the name, so that all frames of a video are on
        the same side. It is matched against the image's path below the images folder, without suffix: ``VIDEO/00001``.
    """
    name = str(ref.draw) if ref.draw else ref.image.stem
    found = re.search(group, _path_below_images(ref)) if group else None
    key = found.group(1) if found else name
    return int.from_bytes(hashlib.sha256(key.encode(errors="surrogateescape")).digest()[:8]) < share * 2**64


class _Named(NamedTuple):
    """What a spec names. pieces: of a known dataset, one for each listing; none otherwise. share: the options "held",
    "kept" and "group"."""

    listings: list[Listing]
    pieces: list[Piece]
    share: dict[str, str]


def _find(
    spec: str, root: Path | None, split: str, instances: bool, binarize: BinarizeRule, broken: list[str] | None
) -> _Named:
    text, options = split_options(spec)
    share: dict[str, str] = {key: options.pop(key) for key in ("held", "kept", "group") if key in options}
    if known := find_known(text):
        split = options.pop("split", split)
        return _Named(
            list_parts(text, split=split, root=root, binarize=binarize, broken=broken, **options),
            pieces_of(known, split),
            share,
        )
    rest = ",".join(f"{key}={value}" for key, value in options.items())
    spec = f"{text}:{rest}" if rest else text
    listing = list_masks(spec, root=root, instances=instances, binarize=binarize, broken=broken)
    return _Named([listing], [], share)


def _open(spec: str, found: _Named, limit: int | None, broken: list[str] | None = None) -> list[list[Ref]]:
    if broken is not None:
        parts = []
        for listing in found.listings:
            masks = _share(spec, listing.masks, found.share) if found.share else listing.masks
            good, problems = _sound(tuple(masks), limit, fingerprint(listing.folder, masks))
            if not good:
                raise HrsegError(f"dataset {listing.folder}: no object in sound files; {(*problems, 'add some')[0]}")
            broken += [problem for problem in problems if problem not in broken]
            parts.append(list(good))
        return parts
    if found.share:
        return [_share(spec, open_listing(listing), found.share)[:limit] for listing in found.listings]
    return [open_listing(listing, limit) for listing in found.listings]


@lru_cache(maxsize=16)  # a training opens its data twice, to train and to validate
def _sound(masks: tuple[Ref, ...], limit: int | None, _state: str) -> tuple[tuple[Ref, ...], tuple[str, ...]]:
    """The objects, up to ``limit``, whose files can be decoded, and a line for each file that cannot."""
    images = [list(group) for _, group in groupby(masks, key=lambda ref: ref.draw or ref.image)]
    good: list[Ref] = []
    problems: dict[str, None] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(images), 64):
            if limit is not None and len(good) >= limit:
                break
            for kept, bad in pool.map(_checked, images[start : start + 64]):
                good += kept
                problems |= dict.fromkeys(text for _, text in bad)
    return tuple(expand(good, {}))[:limit], tuple(problems)  # refuses duplicate ids


def _checked(masks: list[Ref]) -> tuple[list[Ref], list[tuple[Path, str]]]:
    return (masks, []) if masks[0].draw else check_image(masks, lambda ref, *_: ref)


def _path_below_images(ref: Ref) -> str:
    """The image's path below the images folder; it has as many parts as the id, which itself may name a mask."""
    if ref.draw:
        return str(ref.draw)
    return "/".join(ref.image.with_suffix("").parts[-1 - ref.id.partition(":")[0].count("/") :])


def _share(spec: str, refs: list[Ref], options: dict[str, str]) -> list[Ref]:
    """The objects selected by ``held=0.1`` (the held-out tenth) or ``kept=0.1`` (all others)."""
    held = "held" in options
    if held == ("kept" in options):
        raise HrsegError(f"dataset {spec}: write either held=SHARE or kept=SHARE")
    group = options.get("group")
    try:
        share = float(options["held" if held else "kept"])
        brackets = re.compile(group or "()").groups
    except (ValueError, re.error):
        share, brackets = -1, 0
    if not 0 < share < 1 or not brackets:
        raise HrsegError(f"dataset {spec}: write a share such as held=0.1, and a group such as group=(.+)_")
    chosen = [ref for ref in refs if in_held_out(ref, share, group) == held]
    if not chosen:
        raise HrsegError(f"dataset {spec}: no object in that share; use a larger one")
    return chosen
