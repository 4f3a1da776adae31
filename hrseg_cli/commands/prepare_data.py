"""hrseg prepare-data: datasets drawn, fetched, counted and checked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hrseg_cli.commands import options
from hrseg_cli.errors import HrsegError

if TYPE_CHECKING:
    from collections.abc import Callable

    from hrseg_cli.data.manifest import ArchiveFile, Manifest, Split
    from hrseg_cli.data.samples import Listing
    from hrseg_cli.recipe import BinarizeRule


def prepare_data(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="[DATASET]", help="A known dataset, a manifest (.yaml), a folder, a COCO .json, or 'procedural'."
        ),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Print the known datasets and what of them is there.")] = False,
    split: Annotated[
        list[str], typer.Option("--split", metavar="SPLIT", help="Only this split of a known dataset. Repeatable.")
    ] = [],  # noqa: B006 - Typer copies it
    from_: Annotated[
        Path | None,
        typer.Option("--from", metavar="PATH", help="Take the archives from this file or folder, download nothing."),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Decode every file again, though an index says that all was well.")
    ] = False,
    cache_longest: Annotated[
        int | None,
        typer.Option("--cache-longest", metavar="PIXELS", min=64, help="Also write copies with sides up to this."),
    ] = None,
    count: Annotated[int, typer.Option("--count", metavar="N", min=1, help="procedural: how many objects.")] = 20,
    size: Annotated[
        int, typer.Option("--size", metavar="PIXELS", min=64, max=4096, help="procedural: longer side in pixels.")
    ] = 1024,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="procedural: same seed, same pictures.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="PATH", help="procedural: the folder. A folder: the index file."),
    ] = None,
    binarize: options.Binarize = None,
    instances: options.Instances = False,
    root: options.Root = None,
) -> None:
    """Fetch a known dataset, or draw the procedural set, or check a folder; then count, decode and index everything.

    A known dataset lands below the data root: archives are fetched (an interrupted download goes on), verified,
    unpacked, counted and indexed. A folder: every image and mask is decoded, sizes and pairs are compared, and
    index.jsonl is written with one line per object. One JSON row per part goes to stdout, problems to stderr.
    """
    from hrseg_cli.data.manifest import load_manifest, manifest_names

    place = options.data_root(root)
    if list_:
        _list(place)
    elif what is None:
        raise typer.BadParameter("name a dataset, a folder or 'procedural'; --list prints the known datasets")
    elif what == "procedural":
        _draw(out or place / what, count, size, seed)
    elif what in manifest_names() or what.endswith((".yaml", ".yml")):
        manifests = Path(what).parent if what not in manifest_names() else None
        _prepare(load_manifest(Path(what).stem, manifests), manifests, split, place, from_, verify, cache_longest)
    elif split or from_:
        raise HrsegError(f"{what}: --split and --from go with a known dataset; --list prints them")
    else:
        _check(what, out, instances, options.binarize_of(binarize), place, cache_longest)


def _list(root: Path) -> None:
    from hrseg_cli.data.manifest import overview
    from hrseg_cli.data.unpack import size_text

    rows = [("dataset", "objects", "archives", "there", "licence")]
    for one in overview(root):
        about = "~" if one["about"] else ""
        counts = ", ".join(f"{name} {about}{number or '?'}" for name, number in one["splits"].items())
        size = "unknown" if one["bytes"] is None else size_text(one["bytes"])
        rows.append((one["name"], counts, size + (", by hand" if one["manual"] else ""), one["state"], one["licence"]))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        cells = [text.ljust(width) for text, width in zip(row, widths, strict=False)]
        typer.echo("  ".join([*cells, row[4]]).rstrip())
    typer.echo(f"'there' is below {root}; 'by hand': hrseg says where a person gets it.", err=True)


def _draw(folder: Path, count: int, size: int, seed: int) -> None:
    from hrseg_cli.data import procedural

    with options.progress() as bar:
        task = bar.add_task("drawing", total=count)
        procedural.write(folder, count, size, seed, lambda done: bar.update(task, completed=done))
    _row(dataset="procedural", folder=str(folder), objects=count, size=size, seed=seed)


def _prepare(
    manifest: Manifest,
    manifests: Path | None,
    splits: list[str],
    root: Path,
    from_: Path | None,
    verify: bool,
    longest: int | None,
) -> None:
    """A known dataset: fetch and unpack what is missing, then count and index every piece."""
    from hrseg_cli.data.index import is_fresh
    from hrseg_cli.data.manifest import files_for, present, resolve_parts
    from hrseg_cli.data.parts import list_parts

    wanted = splits or list(manifest.split_names())
    pieces = [(split, *piece) for split in wanted for piece in resolve_parts(manifest, split, manifests)]
    typer.echo(f"{manifest.name}: {manifest.licence}. {manifest.terms}", err=True)
    found = present(manifest, root, manifests).splits
    if any(found[f"{piece.name}/{name}"].state != "ready" for _, piece, name in pieces):
        _fetch(manifest.name, files_for(manifest, wanted, manifests), root, from_)
    problems = 0
    for split in wanted:
        parts = [(piece, name) for of, piece, name in pieces if of == split]
        listings = list_parts(manifest.name, split=split, root=root, manifests=manifests)
        for listing, (piece, name) in zip(listings, parts, strict=True):
            if verify or not is_fresh(listing):
                problems += _index(listing, listing.name)
            problems += _count(listing, f"{piece.name}/{name}", piece.splits[name])
            if longest:
                _shrink(listing, root / f"{listing.name}-{name}-{longest}", longest)
    if problems:
        raise HrsegError(f"{manifest.name}: {problems} problems, named above; what is good is indexed")


def _fetch(name: str, archives: list[ArchiveFile], root: Path, from_: Path | None) -> None:
    from hrseg_cli.data.fetch import fetch
    from hrseg_cli.data.unpack import is_unpacked, unpack

    files = [file for file in archives if not is_unpacked(file.name, root / file.into)]
    if from_ and from_.is_file() and len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise HrsegError(f"--from {from_}: {name} needs {names}; give the folder that holds them")
    for file in files:
        with _bytes(f"fetching {file.name}") as progress:
            got = fetch(file, root, progress=progress, from_path=from_)
        if got.pinned:
            typer.echo(f"{file.name}: no sum is published; pinned as SHA-256 {got.sha256}", err=True)
        with _bytes(f"unpacking {file.name}") as progress:
            unpack(got.path, root / file.into, kind=file.unpack, inside=file.inside, name=file.name, progress=progress)


def _count(listing: Listing, name: str, split: Split) -> int:
    """Print what the index holds against what the manifest says; 1 where they disagree."""
    from hrseg_cli.data.index import Index

    index = Index(listing.index_file)
    objects, images = len(index), len(index.image_starts()) - 1
    expected = split.count_objects
    _row(dataset=name, objects=objects, expected=expected, images=images, index=str(listing.index_file))
    if expected is None or objects == expected or (split.about and abs(objects - expected) <= 0.01 * expected):
        return 0
    typer.echo(
        f"hrseg: {listing.folder}: {objects} good objects, {name} has {expected}; complete the folder or remove it and "
        "fetch it again",
        err=True,
    )
    return 1


def _check(
    spec: str, out: Path | None, instances: bool, binarize: BinarizeRule, root: Path, longest: int | None
) -> None:
    """A folder of the user's own."""
    from hrseg_cli.data.samples import list_masks

    listing = list_masks(spec, root=root, instances=instances, binarize=binarize)
    problems = _index(listing, spec, out, instances, binarize)
    if longest:
        _shrink(listing, listing.folder.with_name(f"{listing.folder.name}-{longest}"), longest)
    if problems:
        raise HrsegError(f"{spec}: {problems} problems, named above; what is good is indexed")


def _index(listing: Listing, name: str, out: Path | None = None, *rule: Any) -> int:
    """Decode everything of a listing and write its index; the number of problems, each of which is told."""
    from hrseg_cli.data.index import build_index

    instances, binarize = rule or (False, "auto")
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
        typer.echo(f"hrseg: {problem}", err=True)
    _row(
        dataset=name,
        index=str(found.path),
        images=found.images,
        objects=found.objects,
        rules=found.rules,
        problems=len(found.problems),
    )
    return len(found.problems)


def _shrink(listing: Listing, folder: Path, longest: int) -> None:
    from hrseg_cli.data.samples import open_listing
    from hrseg_cli.data.views import cache_longest

    refs = open_listing(listing)
    with options.progress() as bar:
        task = bar.add_task(f"shrinking {listing.name}", total=None)
        cache_longest(refs, folder, longest, progress=lambda done, total: bar.update(task, completed=done, total=total))
    _row(dataset=listing.name, cache=str(folder), longest=longest, objects=len(refs))


@contextmanager
def _bytes(text: str) -> Iterator[Callable[[int, int | None], None]]:
    with options.progress(of_bytes=True) as bar:
        task = bar.add_task(text, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _row(**record: Any) -> None:
    typer.echo(json.dumps(record, ensure_ascii=False))
