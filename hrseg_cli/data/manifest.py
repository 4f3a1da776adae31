"""Manifests: the source of a dataset, its licence, its archives and its object counts.

One YAML file per dataset in ``data_manifests``. A dataset either has ``splits`` of its own, or is composed of ``parts``
of others, written ``name/split``. All paths are relative to the data root. Archives shared by several datasets are
listed identically in each manifest and downloaded once.

``images`` and ``masks`` of a split are patterns: ``*`` matches a part of a name, and the text matched by the stars is
the stem that an image shares with its mask. A pattern that ends in ``.*`` matches any image format.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from hrseg_cli import catalog
from hrseg_cli.errors import HrsegError, UnknownName, nearest
from hrseg_cli.parsing import Malformed, read_yaml, reason
from hrseg_cli.recipe import BinarizeRule, data_folder

Readiness = Literal["absent", "partial", "ready"]

ABOUT = 0.01  # a published "99k" may be so far off
PICTURE = r"\.(?:bmp|gif|jpe?g|png|tiff?|webp)"


def _inside(path: str) -> str:
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts or "\\" in path:
        raise ValueError("must be a relative path without '..'")
    return path


def _known_layout(name: str) -> str:
    if name not in catalog.LAYOUTS:
        raise ValueError(str(UnknownName("layout", name, catalog.LAYOUTS)))
    return name


Relative = Annotated[str, AfterValidator(_inside)]
Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ArchiveFile(_Frozen):
    """One file to download.

    urls: mirrors of the same bytes, best first; empty if the user has to download it manually.
    size: bytes; None if not published. sha256: None means pinned at the first verified download.
    unpack: what it is; "weights" of a model are not unpacked.
    into: folder below the data root. Single top-level folders in the archive are stripped, repeatedly.
    inside: folder of the archive to extract instead of the whole.
    splits: the splits that need it; empty means all.
    how: one line for the user, if there is no stable link.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.+-]*$")]
    urls: tuple[Annotated[str, Field(pattern="^https?://")], ...] = ()
    size: Count | None = None
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    unpack: Literal["zip", "tar", "weights"]
    into: Relative
    inside: Relative = ""
    splits: tuple[str, ...] = ()
    how: str | None = None

    @model_validator(mode="after")
    def _reachable(self) -> ArchiveFile:
        if not self.urls and not self.how:
            raise ValueError("needs urls, or 'how' to get it manually")
        return self


class Split(_Frozen):
    """Images and masks of one part of a dataset.

    folder: below the data root. images, masks: patterns below it. listing: text file below it, one stem per line, if
        the folders contain more than the split.
    count_images: minimum number of image files. count_objects: exact number of objects. None: not published.
    about: the published counts are rounded, or differ between readers.
    binarize: label rule of the mask files; "instance" for ids. ignore: the stored value of ignored pixels.
    """

    folder: Relative
    layout: Annotated[str, AfterValidator(_known_layout)]
    images: Relative
    masks: Relative
    listing: Relative | None = None
    count_images: Count | None
    count_objects: Count | None
    about: bool = False
    binarize: BinarizeRule | Literal["instance"]
    ignore: int | None = None


class Manifest(_Frozen):
    """A dataset. ``totals``: per split, the number of objects that the parts of a composed dataset must add up to."""

    name: Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")]
    version: Count
    title: Text
    licence: Text
    terms: Text
    citation: Text
    sources: Annotated[tuple[str, ...], Field(min_length=1)]
    files: tuple[ArchiveFile, ...] = ()
    splits: dict[str, Split] = {}
    parts: dict[str, tuple[str, ...]] = {}
    totals: dict[str, Count] = {}
    protocol: Text = "ritm"
    notes: str = ""

    @model_validator(mode="after")
    def _one_kind(self) -> Manifest:
        if bool(self.splits) == bool(self.parts):
            raise ValueError("needs either splits or parts, not both")
        if self.parts.keys() != self.totals.keys():
            raise ValueError("totals must name the same splits as parts")
        if self.splits and not self.files:
            raise ValueError("splits need files")
        for file in self.files:
            unknown = set(file.splits) - self.splits.keys()
            if unknown:
                raise ValueError(f"file {file.name} names unknown splits: {', '.join(sorted(unknown))}")
        return self

    def split_names(self) -> tuple[str, ...]:
        """In the order of the file."""
        return tuple(self.splits or self.parts)


@dataclass(frozen=True)
class Found:
    """The files of one split on disk, counted by name."""

    images: int
    masks: int
    state: Readiness


@dataclass(frozen=True)
class Status:
    """``splits``: ``name/split`` -> the files found."""

    state: Readiness
    splits: dict[str, Found]


# ---- loading ---------------------------------------------------------------------------------------------------------


def manifest_names(folder: Path | None = None) -> list[str]:
    """Names of the known datasets. ``folder``: additional manifests."""
    found = (folder or data_folder("data_manifests")).glob("[!.]*.yaml")
    return sorted(path.stem for path in found)


def load_manifest(name: str, folder: Path | None = None) -> Manifest:
    """A manifest by name, ``.yaml`` or ``.yml``: from ``folder``, else from those shipped with hrseg.

    Raises UnknownName, or HrsegError naming the file, the key and the problem.
    """
    files: dict[str, Path] = {}
    for place in (folder, data_folder("data_manifests")):
        for suffix in (".yaml", ".yml"):
            for path in place.glob(f"[!.]*{suffix}") if place else ():
                files.setdefault(path.stem, path)
    if name not in files:
        raise UnknownName("dataset", name, files)
    return _read(files[name], files[name].stat().st_mtime_ns)


@cache
def _read(path: Path, _changed: int) -> Manifest:
    try:
        content = read_yaml(path)
    except (OSError, Malformed) as error:
        raise HrsegError(f"{path}: cannot be read as YAML ({reason(error)}); correct the file") from None
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        raise HrsegError(f"{path}: {_explain(error)}") from None
    if manifest.name != path.stem:
        raise HrsegError(f"{path}: name is '{manifest.name}'; it must match the file name")
    return manifest


def resolve_parts(manifest: Manifest, split: str, folder: Path | None = None) -> list[tuple[Manifest, str]]:
    """(manifest, split) of every piece of a split, in order; the split itself if it is not composed.

    Raises UnknownName for an unknown split or part, HrsegError if parts form a cycle or do not add up to the manifest's
    total.
    """
    return list(_resolve(manifest, split, folder, ()))


def _resolve(
    manifest: Manifest, split: str, folder: Path | None, above: tuple[str, ...]
) -> Iterator[tuple[Manifest, str]]:
    here = f"{manifest.name}/{split}"
    if here in above:
        raise HrsegError(f"manifest {manifest.name}: parts form a cycle ({' > '.join((*above, here))}); remove one")
    if split not in manifest.split_names():
        raise UnknownName(f"split of {manifest.name}", split, manifest.split_names())
    if manifest.splits:
        yield manifest, split
        return
    pieces: list[tuple[Manifest, str]] = []
    for part in manifest.parts[split]:
        name, _, part_split = part.partition("/")
        pieces += _resolve(load_manifest(name, folder), part_split, folder, (*above, here))
    added = sum(piece.splits[name].count_objects or 0 for piece, name in pieces)
    if added != manifest.totals[split]:
        raise HrsegError(
            f"manifest {manifest.name}: parts of '{split}' add up to {added}, but totals is {manifest.totals[split]}; "
            "correct one of them"
        )
    yield from pieces


def files_for(manifest: Manifest, splits: Iterable[str] = (), folder: Path | None = None) -> list[ArchiveFile]:
    """The archives that the splits need (none given: all splits), each once even if several parts are in it."""
    needed: dict[tuple[str, str], ArchiveFile] = {}
    for split in tuple(splits) or manifest.split_names():
        for piece, name in resolve_parts(manifest, split, folder):
            for file in piece.files:
                if not file.splits or name in file.splits:
                    needed.setdefault((file.into, file.name), file)
    return list(needed.values())


def _explain(error: ValidationError) -> str:
    """Pydantic's first error in one line, with the closest known key for a misspelt one."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = {*Manifest.model_fields, *ArchiveFile.model_fields, *Split.model_fields}
        guess = nearest(str(first["loc"][-1]), known)
        return f"unknown key '{place}'; " + (f"did you mean '{guess}'?" if guess else "remove it")
    message = first["msg"].removeprefix("Value error, ")
    return f"{place + ': ' if place else ''}{message[0].lower()}{message[1:]}"


# ---- files on disk ---------------------------------------------------------------------------------------------------


def match_files(folder: Path, pattern: str) -> dict[str, Path]:
    """Stem -> file, sorted by stem, for the matches of a pattern such as ``im/*.jpg`` or ``*_gt.png`` below a folder.

    Several stars give a stem with slashes. Suffixes match in upper or lower case; hidden files are skipped. A missing
    folder has no matches. Raises HrsegError if a folder cannot be read, or two files have the same stem.
    """
    places = [("", folder)]
    *steps, last = pattern.split("/")
    for step in steps:
        if "*" not in step:
            places = [(stem, place / step) for stem, place in places]
            continue
        places = [
            (f"{stem}{found}/", entry)
            for stem, place in places
            for found, entry in _matches(place, step)
            if entry.is_dir()
        ]
    files: dict[str, Path] = {}
    for stem, place in places:
        for found, entry in _matches(place, last):
            other = files.setdefault(stem + found, entry)
            if other != entry:
                raise HrsegError(f"{min(other, entry)} and {max(other, entry)}: duplicate name; remove one of them")
    return dict(sorted(files.items()))


def _matches(place: Path, step: str) -> Iterator[tuple[str, Path]]:
    body, any_picture = (step[:-2], PICTURE) if step.endswith(".*") else (step, "")
    name = re.compile("(.+)".join(map(re.escape, body.split("*"))) + any_picture, re.IGNORECASE)
    try:
        entries = [entry.name for entry in os.scandir(place) if not entry.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise HrsegError(f"{place}: cannot be read ({error.strerror}); fix its permissions") from None
    for entry in entries:
        if match := name.fullmatch(entry):
            yield "/".join(match.groups()), place / entry


def read_listing(path: Path) -> list[str]:
    """Stems of a listing: the first column of each line. Raises HrsegError if it cannot be read."""
    try:
        return [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise HrsegError(f"{path}: cannot be read ({reason}); unpack the dataset again") from None


def present(manifest: Manifest, root: Path, folder: Path | None = None) -> Status:
    """Counts of images and masks under the data root, by file name; nothing is opened."""
    found: dict[str, Found] = {}
    for split in manifest.split_names():
        for piece, name in resolve_parts(manifest, split, folder):
            found[f"{piece.name}/{name}"] = find_split(piece.splits[name], root)
    states = {one.state for one in found.values()}
    return Status(states.pop() if len(states) == 1 else "partial", found)


def find_split(split: Split, root: Path) -> Found:
    """Like :func:`present`, for one split."""
    here = root / split.folder
    images, masks = set(match_files(here, split.images)), set(match_files(here, split.masks))
    some = bool(images or masks)
    if split.listing is not None and some:
        listed = set(read_listing(here / split.listing)) if (here / split.listing).is_file() else set()
        images, masks = images & listed, masks & listed
    # A file of ids may hold several objects, so masks are counted against images there.
    want_masks = split.count_images if split.binarize == "instance" else split.count_objects
    enough = all(
        count >= (1 if want is None else want * (1 - ABOUT if split.about else 1))
        for count, want in ((len(images), split.count_images), (len(masks), want_masks))
    )
    return Found(len(images), len(masks), "ready" if enough else "partial" if some else "absent")


def overview(root: Path, folder: Path | None = None) -> list[dict[str, Any]]:
    """One record per dataset for a table: its description and what is present under ``root``.

    Keys: name, title, splits (name -> objects, or None if unknown), about (splits with rounded counts), bytes (of all
    archives; None if one is unknown), licence, state (also "damaged": cannot be counted; then found is empty), found
    (name/split -> images on disk), manual (archives without a link).
    """
    records = []
    for name in manifest_names(folder):
        manifest = load_manifest(name, folder)
        state, found = "damaged", {}
        with suppress(HrsegError):  # one damaged dataset must not hide the others
            status = present(manifest, root, folder)
            state, found = str(status.state), {key: one.images for key, one in status.splits.items()}
        files = files_for(manifest, folder=folder)
        sizes = [file.size for file in files]
        records.append(
            {
                "name": name,
                "title": manifest.title,
                "splits": {key: split.count_objects for key, split in manifest.splits.items()} or dict(manifest.totals),
                "about": [key for key, split in manifest.splits.items() if split.about],
                "bytes": None if None in sizes else sum(size for size in sizes if size),
                "licence": manifest.licence,
                "state": state,
                "found": found,
                "manual": [file.name for file in files if not file.urls],
            }
        )
    return records
