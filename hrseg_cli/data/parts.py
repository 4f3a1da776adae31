"""Datasets that hrseg has a manifest of: what lies where, piece by piece."""

from __future__ import annotations

import os
from pathlib import Path

from hrseg_cli.data.manifest import load_manifest, resolve_parts
from hrseg_cli.data.samples import Listing, list_split
from hrseg_cli.errors import HrsegError
from hrseg_cli.recipe import BinarizeRule


def list_parts(
    name: str,
    *,
    split: str = "val",
    root: Path | None = None,
    binarize: BinarizeRule = "auto",
    manifests: Path | None = None,
) -> list[Listing]:
    """The pieces of a split of a dataset by its manifest, one where it is composed of nothing; no mask is opened.

    root: the data root (else $HRSEG_DATA, else ./data). binarize: "auto" takes the rule of the manifest.
    manifests: a folder of other manifests than those that come with hrseg.
    Raises UnknownName for a name or split without a manifest, HrsegError for a piece that is not there.
    """
    root = root or Path(os.environ.get("HRSEG_DATA") or "data")
    pieces = resolve_parts(load_manifest(name, manifests), split, manifests)
    names = [piece.name for piece, _ in pieces]
    listings = []
    for piece, own_split in pieces:
        part = piece.splits[own_split]
        folder = root / part.folder
        if not folder.is_dir():
            raise HrsegError(f"{folder}: not there; 'hrseg prepare-data {name}' gets it, or name its place with --root")
        instances = part.binarize == "instance"
        own: BinarizeRule = "auto" if part.binarize == "instance" else part.binarize
        options = {"split": own_split} if part.listing or part.layout == "coco_lvis" else {}
        if part.layout == "pairs":
            options = {"images": part.images, "masks": part.masks}
        rule = own if binarize == "auto" else binarize
        own_name = piece.name if names.count(piece.name) == 1 else f"{piece.name}-{own_split}"
        listings.append(list_split(folder, own_name, part.layout, instances=instances, binarize=rule, **options))
    return listings
