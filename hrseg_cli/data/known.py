"""Datasets with a manifest: which folders and layouts they are made of."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from hrseg_cli.data.manifest import Manifest, Split, load_manifest, manifest_names, resolve_parts
from hrseg_cli.data.paths import data_root
from hrseg_cli.data.samples import Listing, layout_options, list_split
from hrseg_cli.errors import HrsegError
from hrseg_cli.recipe import BinarizeRule

DEFAULT_SPLIT = "val"


class Known(NamedTuple):
    """A known dataset: its manifest, and the folder of manifests if it is the user's own."""

    manifest: Manifest
    manifests: Path | None


class Piece(NamedTuple):
    """One part of a known dataset. ``place``: ``name/split`` in its manifest."""

    place: str
    manifest: Manifest
    split: Split


def find_known(text: str) -> Known | None:
    """The known dataset for a name or the path of a manifest (.yaml); None for anything else.

    The bare name of a known dataset always means the one under the data root; write ``./name`` for a local folder.
    """
    if text in manifest_names():
        return Known(load_manifest(text), None)
    if text.endswith((".yaml", ".yml")):
        path = Path(text)
        if not path.is_file():
            raise HrsegError(f"{path}: no such file; give a manifest or the name of a known dataset")
        return Known(load_manifest(path.stem, path.parent), path.parent)
    return None


def pieces_of(known: Known, split: str = DEFAULT_SPLIT) -> list[Piece]:
    """The pieces of a split in order; just one unless it is composed. Raises UnknownName for an unknown split."""
    resolved = resolve_parts(known.manifest, split, known.manifests)
    return [Piece(f"{manifest.name}/{name}", manifest, manifest.splits[name]) for manifest, name in resolved]


def list_piece(
    piece: Piece,
    root: Path,
    *,
    name: str | None = None,
    whole: str | None = None,
    binarize: BinarizeRule = "auto",
    broken: list[str] | None = None,
    **options: str,
) -> Listing:
    """The files of a piece under the data root; no mask is opened.

    name: dataset name [the manifest's]. whole: the composed dataset that the piece was requested for.
    binarize: "auto" uses the rule of the manifest. broken: see :func:`hrseg_cli.data.samples.list_masks`. options: of
    its layout.
    Raises HrsegError if its folder does not exist.
    """
    split = piece.split
    folder = check_folder(piece, root, whole)
    rule: BinarizeRule = "auto" if split.binarize == "instance" else split.binarize
    told = {"split": piece.place.rpartition("/")[2], "images": split.images, "masks": split.masks}
    known = layout_options(split.layout)
    options = {**{key: value for key, value in told.items() if key in known}, **options}
    return list_split(
        folder,
        name or piece.manifest.name,
        split.layout,
        instances=split.binarize == "instance",
        binarize=rule if binarize == "auto" else binarize,
        broken=broken,
        **options,
    )


def check_folder(piece: Piece, root: Path, whole: str | None = None) -> Path:
    """The folder of a piece. whole: the composed dataset it was requested for. Raises HrsegError if it is missing."""
    folder = root / piece.split.folder
    if not folder.is_dir():
        own = whole or piece.manifest.name
        raise HrsegError(
            f"{folder}: not found; run 'hrseg prepare-data {own}', set `root` to your data folder, or write ./{own} "
            "for a local folder"
        )
    return folder


def list_parts(
    name: str,
    *,
    split: str = DEFAULT_SPLIT,
    root: Path | None = None,
    binarize: BinarizeRule = "auto",
    broken: list[str] | None = None,
    **options: str,
) -> list[Listing]:
    """The pieces of a split of a known dataset (a name or a manifest's path), each as from :func:`list_piece`.

    root: the data root [$HRSEG_DATA, or ./data]. The names of pieces of splits other than val include the split.
    Raises UnknownName for a name or split without a manifest, HrsegError for a piece that does not exist.
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
            broken=broken,
            **options,
        )
        for piece in pieces
    ]
