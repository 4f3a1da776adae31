"""Datasets that hrseg has a manifest of: what lies where, piece by piece."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from hrseg_cli.data.manifest import Manifest, Split, load_manifest, manifest_names, resolve_parts
from hrseg_cli.data.paths import data_root
from hrseg_cli.data.samples import Listing, list_split
from hrseg_cli.errors import HrsegError
from hrseg_cli.recipe import BinarizeRule

DEFAULT_SPLIT = "val"


class Known(NamedTuple):
    """A known dataset as it is typed: its manifest, and the folder of manifests where it is a user's own."""

    manifest: Manifest
    manifests: Path | None


class Piece(NamedTuple):
    """One part of a known dataset. ``place``: ``name/split`` of the manifest it is in."""

    place: str
    manifest: Manifest
    split: Split


def find_known(text: str) -> Known | None:
    """The known dataset that a name, or the path of a manifest (.yaml), means; None for anything else.

    A bare name of a known dataset always means that dataset below the data root; a folder here is ``./name``.
    """
    if text in manifest_names():
        return Known(load_manifest(text), None)
    if text.endswith((".yaml", ".yml")):
        path = Path(text)
        if not path.is_file():
            raise HrsegError(f"{path}: no such file; give a manifest, or the name of a known dataset")
        return Known(load_manifest(path.stem, path.parent), path.parent)
    return None


def pieces_of(known: Known, split: str = DEFAULT_SPLIT) -> list[Piece]:
    """The pieces of a split in order, one where it is composed of nothing. Raises UnknownName for an unknown split."""
    resolved = resolve_parts(known.manifest, split, known.manifests)
    return [Piece(f"{manifest.name}/{name}", manifest, manifest.splits[name]) for manifest, name in resolved]


def list_piece(
    piece: Piece,
    root: Path,
    *,
    name: str | None = None,
    whole: str | None = None,
    binarize: BinarizeRule = "auto",
    **options: str,
) -> Listing:
    """The files of a piece below the data root; no mask is opened.

    name: of the dataset [the manifest's]. whole: the dataset the piece was asked for as a part of.
    binarize: "auto" takes the rule of the manifest. options: of its layout.
    Raises HrsegError when its folder is not there.
    """
    split = piece.split
    folder = root / split.folder
    if not folder.is_dir():
        own = whole or piece.manifest.name
        raise HrsegError(
            f"{folder}: not there; 'hrseg prepare-data {own}' gets it, `root` says where data lie, ./{own} is a folder "
            "of your own"
        )
    rule: BinarizeRule = "auto" if split.binarize == "instance" else split.binarize
    if split.listing or split.layout == "coco_lvis":
        options = {"split": piece.place.rpartition("/")[2], **options}
    if split.layout == "pairs":
        options = {"images": split.images, "masks": split.masks, **options}
    return list_split(
        folder,
        name or piece.manifest.name,
        split.layout,
        instances=split.binarize == "instance",
        binarize=rule if binarize == "auto" else binarize,
        **options,
    )


def list_parts(
    name: str, *, split: str = DEFAULT_SPLIT, root: Path | None = None, binarize: BinarizeRule = "auto", **options: str
) -> list[Listing]:
    """The pieces of a split of a known dataset (a name, or a manifest's path), as :func:`list_piece` lists each.

    root: the data root (else $HRSEG_DATA, else ./data). Pieces of another split than val carry it in their names.
    Raises UnknownName for a name or split without a manifest, HrsegError for a piece that is not there.
    """
    root = data_root(root)
    known = find_known(name) or Known(load_manifest(name), None)
    pieces = pieces_of(known, split)
    plain = split == DEFAULT_SPLIT and len({piece.manifest.name for piece in pieces}) == len(pieces)
    return [
        list_piece(
            piece,
            root,
            name=piece.manifest.name if plain else piece.place.replace("/", "-"),
            whole=known.manifest.name,
            binarize=binarize,
            **options,
        )
        for piece in pieces
    ]
