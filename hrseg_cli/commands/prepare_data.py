"""hrseg prepare-data: download, check, index or draw datasets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hrseg_cli.commands import headings, options
from hrseg_cli.commands.names import datasets
from hrseg_cli.commands.rows import written
from hrseg_cli.data.paths import data_root
from hrseg_cli.errors import HrsegError
from hrseg_cli.limits import DATASET
from hrseg_cli.parsing import read_table

if TYPE_CHECKING:
    from collections.abc import Callable

    from hrseg_cli.data.index import Summary
    from hrseg_cli.data.known import Known, Piece
    from hrseg_cli.data.manifest import ArchiveFile
    from hrseg_cli.data.samples import Listing
    from hrseg_cli.recipe import BinarizeRule


def prepare_data(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="DATASET",
            autocompletion=options.starting(options.dataset_names),
            help="Known dataset ('hrseg list datasets'), manifest (.yaml), folder, COCO .json, or 'procedural'.",
        ),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Same as 'hrseg list datasets'.")] = False,
    root: options.Root = None,
    binarize: options.BinarizeAuto = None,
    instances: options.Instances = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            rich_help_panel=headings.DATA,
            help="Decode every file of a known dataset again, even if its index is up to date.",
        ),
    ] = False,
    split: Annotated[
        list[str],
        typer.Option(
            "--split",
            metavar="SPLIT",
            rich_help_panel=headings.DOWNLOAD,
            show_default="all",
            help="Split of a known dataset to prepare, such as val. Repeatable.",
        ),
    ] = [],  # noqa: B006 - Typer copies it
    from_: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="PATH",
            rich_help_panel=headings.DOWNLOAD,
            help="Use archives from this file or folder instead of downloading them.",
        ),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(
            "--count",
            metavar="N",
            min=1,
            rich_help_panel=headings.DRAWING,
            show_default="20",
            help="Number of objects to draw.",
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            "--size",
            metavar="PIXELS",
            min=64,
            max=4096,
            rich_help_panel=headings.DRAWING,
            show_default="1024",
            help="Longer side of the drawn images.",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            metavar="N",
            min=0,
            rich_help_panel=headings.DRAWING,
            show_default="0",
            help="Random seed; the same seed gives the same images.",
        ),
    ] = None,
    kinds: Annotated[
        str | None,
        typer.Option(
            "--kinds",
            metavar="KINDS",
            rich_help_panel=headings.DRAWING,
            show_default="all",
            help="Kinds of objects to draw, such as gear+leaf.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        options.out_option(
            "PATH",
            "Folder for drawn images, for a copy of the samples or for the indexes of a known dataset; index file of a "
            "folder.",
        ),
    ] = None,
    cache_longest: Annotated[
        int | None,
        typer.Option(
            "--cache-longest",
            metavar="PIXELS",
            min=64,
            rich_help_panel=headings.OUTPUT,
            help="Also write smaller copies whose longer side is at most this.",
        ),
    ] = None,
) -> None:
    """Download a known dataset, check a folder of your own, draw a synthetic dataset, or copy the samples.

    Known datasets with public links are downloaded (resumably) below the data root, verified, unpacked, counted and
    indexed. In your own folder, every image and mask is decoded and compared, and index.jsonl is written. Prints one
    JSON row per part on stdout, problems on stderr.
    """
    from hrseg_cli.data.known import find_known
    from hrseg_cli.recipe import binarize_rule

    place = data_root(root)
    for_known = {"--split": split, "--from": from_, "--verify": verify}
    for_folders = {"--binarize": binarize, "--instances": instances}
    for_drawing = {"--count": count, "--size": size, "--seed": seed, "--kinds": kinds}
    everywhere_else = {"--cache-longest": cache_longest}
    if list_:
        _list(place)
    elif what is None:
        raise typer.BadParameter(
            "give a dataset, a folder or 'procedural'; 'hrseg list datasets' shows the known datasets"
        )
    elif what == "procedural":
        _refuse(what, for_known | for_folders | everywhere_else)
        _draw(out or place / what, count or 20, size or 1024, seed or 0, kinds or "")
    elif what == "samples":
        _refuse(what, for_known | for_folders | for_drawing | everywhere_else)
        if out is None:
            raise HrsegError("samples: come with hrseg; use them as --dataset samples, or copy them with --out FOLDER")
        _copy_samples(out)
    elif known := find_known(what):
        _refuse(what, for_folders | for_drawing)
        _prepare(known, split, place, from_, verify, cache_longest, out)
    else:
        _refuse(what, for_known | for_drawing)
        _check(what, out, instances, binarize_rule(binarize), place, cache_longest)


def _refuse(what: str, given: dict[str, Any]) -> None:
    for name, value in given.items():
        if value not in (None, False, []):
            raise HrsegError(f"{name} does not apply to {what}; remove it (see --help)")


def _list(root: Path) -> None:
    typer.echo(written(datasets(root)), nl=False)
    options.note(f"'present' is below {root}; 'by hand' means that 'hrseg prepare-data NAME' says where to get it")


def _draw(folder: Path, count: int, size: int, seed: int, kinds: str) -> None:
    from hrseg_cli.data import procedural

    with options.progress() as bar:
        task = bar.add_task("drawing", total=count)
        procedural.write(folder, count, size, seed, lambda done: bar.update(task, completed=done), kinds)
    _row(dataset="procedural", folder=str(folder), objects=count, size=size, seed=seed)


def _copy_samples(folder: Path) -> None:
    from hrseg_cli.data.bundled import copy_samples

    _row(dataset="samples", folder=str(folder), objects=copy_samples(folder))


def _prepare(
    known: Known,
    splits: list[str],
    root: Path,
    from_: Path | None,
    verify: bool,
    longest: int | None,
    out: Path | None,
) -> None:
    """A known dataset: download and unpack what is missing, then count and index every piece present."""
    from hrseg_cli.data.index import is_fresh
    from hrseg_cli.data.known import list_piece, pieces_of
    from hrseg_cli.data.paths import below

    manifest = known.manifest
    pieces = [piece for split in splits or manifest.split_names() for piece in pieces_of(known, split)]
    typer.echo(f"{manifest.name}: {manifest.licence}. {manifest.terms}", err=True)
    failure = None
    if not verify:
        try:
            _fetch(pieces, root, from_)
        except HrsegError as error:
            if not any((root / piece.split.folder).is_dir() for piece in pieces):
                raise
            failure = error
    problems = 0
    for piece in pieces:
        name = piece.place.replace("/", "-")
        try:
            listing = list_piece(piece, root)
        except HrsegError as error:
            options.note(f"hrseg: {error}")
            problems += 1
            continue
        if out is not None:
            listing = listing._replace(index_file=below(out, f"{name}.jsonl", manifest.name))
        if verify or not is_fresh(listing):
            problems += len(_index(listing, name).problems)
        problems += _count(listing, piece)
        if longest:
            _shrink(listing, below(root, f"{name}-{longest}", manifest.name), longest)
    if failure:
        raise failure
    if problems:
        raise HrsegError(f"{manifest.name}: {problems} problems, listed above; everything else is indexed")


def _fetch(pieces: list[Piece], root: Path, from_: Path | None) -> None:
    """Download and unpack the archives of incomplete pieces. Archives without a link must be present already."""
    from hrseg_cli.data.fetch import archive_path, fetch
    from hrseg_cli.data.manifest import find_split
    from hrseg_cli.data.unpack import is_unpacked, unpack

    def needed(file: ArchiveFile) -> bool:
        """Whether a piece is absent, or incomplete and was never unpacked."""
        states = [
            find_split(piece.split, root).state
            for piece in pieces
            if file in piece.manifest.files and (not file.splits or piece.place.rpartition("/")[2] in file.splits)
        ]
        return "absent" in states or ("partial" in states and not is_unpacked(file.name, root / file.into))

    archives = dict.fromkeys(file for piece in pieces for file in piece.manifest.files)
    files = [file for file in archives if needed(file)]
    if from_ and from_.is_file() and len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise HrsegError(f"--from {from_}: several archives are needed ({names}); give the folder that holds them")
    for file in files:
        if not file.urls and from_ is None and not archive_path(file, root).is_file():
            raise HrsegError(f"{file.name} has no public link: {file.how}; then add --from FOLDER")
    # Local archives first: one large archive may contain everything that a smaller one is for.
    files.sort(key=lambda file: from_ is not None and from_.is_dir() and not (from_ / file.name).is_file())
    for file in filter(needed, files):
        with _bytes(f"downloading {file.name}") as progress:
            got = fetch(file, root, progress=progress, from_path=from_)
        if got.pinned:
            typer.echo(
                f"{file.name}: no checksum is published; recorded SHA-256 {got.sha256} for later downloads", err=True
            )
        with _bytes(f"unpacking {file.name}") as progress:
            unpack(got.path, root / file.into, kind=file.unpack, inside=file.inside, name=file.name, progress=progress)


def _count(listing: Listing, piece: Piece) -> int:
    """Print the counts of the index next to those of the manifest; 1 if they disagree."""
    from hrseg_cli.data.index import Index
    from hrseg_cli.data.manifest import ABOUT

    split = piece.split
    index = Index(listing.index_file, folder=listing.folder)
    objects, images = len(index), len(index.image_starts()) - 1
    _row(
        dataset=piece.place,
        objects=objects,
        expected=split.count_objects,
        images=images,
        index=str(listing.index_file),
    )
    share = ABOUT if split.about else 0.0
    wrong_objects = split.count_objects and abs(objects - split.count_objects) > share * split.count_objects
    if not wrong_objects and images >= (1 - share) * (split.count_images or 0):
        return 0
    typer.echo(
        f"hrseg: {listing.folder}: {objects} valid objects in {images} images, {piece.place} has "
        f"{split.count_objects or 'some'} in {split.count_images or 'some'}; complete the folder, or delete it and "
        "prepare it again",
        err=True,
    )
    return 1


def _check(
    spec: str, out: Path | None, instances: bool, binarize: BinarizeRule, root: Path, longest: int | None
) -> None:
    """A folder of the user's own."""
    from hrseg_cli.data.paths import below
    from hrseg_cli.data.samples import list_masks, split_options

    listing = list_masks(spec, root=root, instances=instances, binarize=binarize)
    found = _index(listing, spec, out, instances, binarize)
    if not found.objects and not found.problems:
        fix = (
            "no mask has an id other than 0 and the ignored value; remove --instances"
            if found.empty
            else "add images and masks"
        )
        raise HrsegError(f"{spec}: no objects; {fix}")
    if longest:
        split = listing.index_file.stem.partition("index-")[2]
        name = "-".join(filter(None, (listing.name, split, str(longest))))
        folder = listing.folder.absolute()
        inside = Path(split_options(spec)[0]).is_file()
        _shrink(listing, below(folder if inside else folder.parent, name, spec), longest, out)
    if found.problems:
        raise HrsegError(f"{spec}: {len(found.problems)} problems, listed above; everything else is indexed")


def _index(
    listing: Listing, name: str, out: Path | None = None, instances: bool = False, binarize: BinarizeRule = "auto"
) -> Summary:
    """Decode all files of a listing and write its index; prints every problem."""
    from hrseg_cli.data.index import build_index

    with options.progress() as bar:
        task = bar.add_task(f"checking {name}", total=None)
        found = build_index(
            listing,
            out=out,
            instances=instances,
            binarize=binarize,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    for problem in found.problems:
        options.note(f"hrseg: {problem}")
    if found.empty:
        options.note(f"{name}: {found.empty} masks have no object")
    _row(
        dataset=name,
        index=str(found.path),
        images=found.images,
        objects=found.objects,
        rules=found.rules,
        problems=len(found.problems),
    )
    return found


def _shrink(listing: Listing, folder: Path, longest: int, index: Path | None = None) -> None:
    """Smaller copies of the indexed, hence valid, objects."""

    from hrseg_cli.data.index import Index
    from hrseg_cli.data.refs import PAIRS
    from hrseg_cli.data.views import cache_longest

    refs = Index(index or listing.index_file, folder=listing.folder, name=listing.name)
    with options.progress() as bar:
        task = bar.add_task(f"shrinking {listing.name}", total=None)
        cache_longest(refs, folder, longest, progress=lambda done, total: bar.update(task, completed=done, total=total))
    kept = sum(1 for _ in read_table(folder / PAIRS, ("image", "mask"), DATASET))
    if lost := len(refs) - kept:
        options.note(f"{folder}: skipped {lost} of {len(refs)} objects, which have no pixel left at {longest} pixels")
    _row(dataset=listing.name, cache=str(folder), longest=longest, objects=kept)


@contextmanager
def _bytes(text: str) -> Iterator[Callable[[int, int | None], None]]:
    with options.progress(of_bytes=True) as bar:
        task = bar.add_task(text, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _row(**record: Any) -> None:
    typer.echo(json.dumps(record, ensure_ascii=False))
