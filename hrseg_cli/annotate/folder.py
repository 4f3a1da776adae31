"""The files that annotation writes into a folder.

    masks/STEM_N.png                one object each, 255 and 0: the layout "folder"
    pairs.csv                       only if the images are in FOLDER itself: which mask belongs to which image
    annotations/coco.json           all annotated objects, as COCO run lengths
    annotations/traces.jsonl        their clicks, in the format of ``simulate-clicks --replay``
    annotations/images/STEM.json    names, colours, clicks and strokes of an image, including undone ones
    annotations/start/              copies of existing masks from before their first click
    labels.txt                      only read: the labels to choose from, one a line

Every file is written atomically: first the new mask, to a temporary file; then the image's record; then the mask is
renamed into place and replaced files are deleted. If a kill interrupts these steps, the next start completes them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter, ValidationError

from hrseg_cli.annotate import tables
from hrseg_cli.annotate.records import COLOURS, Clicked, Name, Object, Picture, Scribble, check_names, is_label
from hrseg_cli.annotate.regions import Region
from hrseg_cli.data.folders import by_stem, owner_of
from hrseg_cli.data.labels import check_size, read_object, truth_of_mask
from hrseg_cli.data.paths import below
from hrseg_cli.data.photos import warn_of_others
from hrseg_cli.data.pixels import read_mask
from hrseg_cli.data.refs import PAIRS
from hrseg_cli.data.samples import ids_of, relative, size_and_time, void_id
from hrseg_cli.errors import HrsegError
from hrseg_cli.limits import TEXT
from hrseg_cli.parsing import Malformed, read_bytes, read_table, reason
from hrseg_cli.writing import rename, sweep, temporaries, write_atomically, write_pending

NOTES = "annotations"
LABELS = "labels.txt"
RENAMED = -1  # instead of an id: a mask of one object that gets hrseg's name
SEPARATE = 256  # objects of a mask at the most; with more values it is more likely a picture


class Folder:
    """The images of a folder, numbered from 0, and their records. threshold: of objects with existing masks.

    Raises HrsegError for a folder that cannot be annotated.
    """

    def __init__(self, place: Path, threshold: float) -> None:
        self.images = images_of(place)
        self.place = place
        self.name = Path(os.path.abspath(place)).name
        self.masks, self.notes = place / "masks", place / NOTES
        self.stems = list(self.images)
        self.pairs = not (place / "images").is_dir() or (place / PAIRS).is_file()
        self._given = _read_pairs(place / PAIRS) if self.pairs else []
        self._separate = {row["mask"].removeprefix("masks/") for row in self._given if row.get("kind") == "instance"}
        self.fixed = _read_labels(place / LABELS)
        self._check_places()
        recorded = [self._recorded(number) for number in range(len(self.stems))]
        for picture in recorded:
            self._settle_files(picture)
        inside = {os.path.dirname(stem) for stem in self.stems}
        kept = (self.masks, self.notes / "images", self.notes / "start")
        sweep(place, self.notes, *(part / folder for part in kept for folder in inside))
        there = self._masks_there()
        self.pictures = [
            self._completed(stem, picture, there.get(stem, []), threshold)
            for picture, stem in zip(recorded, self.stems, strict=True)
        ]
        self._lines = [tables.Line.of(*one, self.name) for one in zip(self.stems, self.pictures, strict=True)]
        self._titles = [self.title(number) for number in range(len(self.stems))]
        self._parts: dict[int, tables.Part] = {}
        self._looked: set[int] = set()
        self._tables: dict[Path, tuple[str, str]] = {}  # what was written: the file's state, and the text
        times = [(path.stat().st_mtime_ns, n) for n in range(len(self.stems)) if (path := self.record(n)).is_file()]
        self.last = max(times)[1] if times else None  # the image changed last
        if any(picture.revision for picture in recorded):
            self.write_tables()

    def _check_places(self) -> None:
        """Check that no link redirects the files of an image to another folder."""
        for stem in {os.path.dirname(stem): stem for stem in self.stems}.values():
            below(self.masks, f"{stem}.png", self.images[stem])
            for part in ("images", "start"):
                below(self.notes, f"{part}/{stem}.json", self.images[stem])

    def path(self, number: int) -> Path:
        return self.images[self.stems[number]]

    def title(self, number: int) -> str:
        """The image's path relative to the folder."""
        return relative(self.path(number), self.place)

    def record(self, number: int) -> Path:
        """The record file of the image."""
        return self.notes / "images" / f"{self.stems[number]}.json"

    def new_key(self, number: int) -> str:
        """A new STEM_N, not used by any mask or image."""
        stem = self.stems[number]
        taken = {one.key for one in self.pictures[number].objects} | self.images.keys()
        return next(
            key
            for n in count()
            if (key := f"{stem}_{n}") not in taken and not any(self.masks.glob(f"{_escaped(key)}.*"))
        )

    def mask(self, one: Object, size: tuple[int, int]) -> np.ndarray:
        """The mask on disk, bool (H, W). Raises HrsegError for a broken file or a wrong size."""
        if one.value > 0:
            path = self.masks / one.file
            pixels = read_mask(path, at_most=size[0] * size[1])
            check_size(path, pixels, size, "its image")
            return np.asarray(ids_of(path, pixels) == one.value)
        return read_object(self.masks / one.file, size, at_most=size[0] * size[1]) if one.file else np.zeros(size, bool)

    def first_mask(self, one: Object, size: tuple[int, int]) -> np.ndarray | None:
        if not one.start:
            return None
        return read_object(self.notes / "start" / one.start, size, at_most=size[0] * size[1])

    def settle(self, one: Object, model: str) -> None:
        """Restart from the mask on disk if the recorded actions did not produce it. A copy is kept in
        annotations/start/."""
        if not self.is_foreign(one, model):
            return
        if not (self.masks / one.file).is_file():  # deleted by the user
            one.file = one.stamp = ""
        one.start = ""
        if one.file:
            file = self.masks / one.file
            one.start = self.keep(one.key, file.read_bytes(), file.suffix)
            one.stamp = size_and_time(file)
        del one.actions[one.done :]
        one.base = one.done

    def is_foreign(self, one: Object, model: str) -> bool:
        """Whether the recorded actions did not produce the mask on disk: it existed before them, another program wrote
        or deleted it, or another model was used."""
        answered = any(isinstance(action, Clicked | Scribble) for action in one.actions[one.base : one.done])
        return (bool(one.file) and one.stamp != state_of(self.masks / one.file)) or (answered and one.model != model)

    def keep(self, key: str, data: bytes, suffix: str = ".png") -> str:
        """The name of a copy of a mask in annotations/start/: an existing or a new one."""
        start = self.notes / "start"
        kept = next(
            path
            for n in count(1)
            if not (path := start / f"{key}-{n}{suffix}").exists()
            or (path.stat().st_size == len(data) and path.read_bytes() == data)
        )
        if not kept.exists():
            write_atomically(kept, data)
        return relative(kept, start)

    def separated(self, number: int, picture: Picture) -> Picture:
        """The picture with an object for each id of the masks that another program made and that have several."""
        fresh = self._fresh(self.stems[number], {one.key for one in picture.objects})
        objects: list[Object] = []
        for one in picture.objects:
            theirs = bool(one.file) and not one.stamp and not one.actions and one.value <= 0
            ids = _ids(self.masks / one.file, one.file in self._separate) if theirs else []
            objects += [one.model_copy(update={"key": next(fresh), "value": value}) for value in ids] or [one]
        if len(objects) == len(picture.objects) and objects == picture.objects:
            return picture
        parted = picture.draft()
        parted.objects = []
        for k, one in enumerate(objects):
            more = {"name": parted.new_name(), "colour": k % COLOURS} if one.value > 0 else {}
            parted.objects.append(one.model_copy(update=more))
        return parted

    def look(self, number: int) -> None:
        """Show the objects of masks with several, before anything is done to them. The files stay as they are."""
        if number not in self._looked:
            self._looked.add(number)
            self.pictures[number] = self.separated(number, self.pictures[number])

    def split(self, number: int, size: tuple[int, int]) -> None:
        """Before the first change of an image, write the objects of a mask with several, or with the name of another
        program, as masks of their own, and move that mask to annotations/start/."""
        if not any(one.value for one in self.pictures[number].objects):
            return
        picture = self.pictures[number].draft()
        whole = {one.file for one in picture.objects if one.value}
        pending: list[Path] = []
        try:
            for one in picture.objects:
                if one.value:
                    region = Region.of(self.mask(one, size))
                    one.file, one.value, one.start = "", 0, self.keep(one.key, region.png())
                    pending += filter(None, [self._write_pending(picture, one, region)])
            for file in whole:
                path = self.masks / file
                self.keep(self.stems[number], path.read_bytes(), path.suffix)
                self.remove(picture, file)
            picture.size = size
            write_atomically(self.record(number), picture.model_dump_json() + "\n")
        except BaseException:
            for path in pending:
                path.unlink(missing_ok=True)
            raise
        self.pictures[number] = picture
        self._lines[number] = tables.Line.of(self.stems[number], picture, self.name)
        self._settle_files(picture)
        self.write_tables()

    def save(self, number: int, picture: Picture, one: Object | None = None, region: Region | None = None) -> None:
        """Save a changed record, with the new mask of one of its objects. On failure (OSError) the old mask and the old
        record are kept."""
        pending = None if one is None or region is None else self._write_pending(picture, one, region)
        try:
            write_atomically(self.record(number), picture.model_dump_json() + "\n")
        except OSError:
            if pending:
                pending.unlink(missing_ok=True)
            raise
        self.pictures[number] = picture
        self._lines[number] = tables.Line.of(self.stems[number], picture, self.name)
        self.last = number
        self._settle_files(picture, pending, one)

    def write_tables(self) -> None:
        """Write the files about all images, if they have changed. They repeat the records, and the next start writes
        them again where they do not: so a click need not wait until they are on the disk."""
        texts = {
            self.notes / "traces.jsonl": "".join(line.traces for line in self._lines),
            self.notes / "coco.json": tables.coco(self._titles, self._lines, self.fixed, self._parts),
        }
        if self.pairs:
            texts[self.place / PAIRS] = tables.pairs(self._titles, self.pictures, self._given)
        for path, text in texts.items():
            stamp = state_of(path)
            # The folder's coco.json may have megabytes: it is read only if somebody else may have written it.
            before = self._tables.get(path, ("", ""))
            if before[0] == stamp != "":
                known = before[1] == text
            else:
                known = bool(stamp) and path.read_bytes() == text.encode()
            if not known:
                write_atomically(path, text, durable=False)
                stamp = state_of(path)
            self._tables[path] = stamp, text

    def remove(self, picture: Picture, file: str) -> None:
        """Delete a mask with the next :meth:`save`."""
        if (self.masks / file).is_file():
            picture.gone[file] = size_and_time(self.masks / file)

    def _write_pending(self, picture: Picture, one: Object, region: Region) -> Path | None:
        """Write the new mask of an object to a temporary file. An empty mask has no file, because datasets do not
        allow empty objects."""
        before, pending = one.file, None
        if region.area:
            one.file = f"{one.key}.png"
            pending = write_pending(self.masks / one.file, region.png())
            one.stamp = size_and_time(pending)
            one.bbox, one.area, one.counts = region.bbox, region.area, region.counts
        else:
            one.file = one.stamp = one.counts = ""
            one.bbox, one.area = [], 0
        if before and before != one.file:
            self.remove(picture, before)
        return pending

    def _settle_files(self, picture: Picture, written: Path | None = None, of: Object | None = None) -> None:
        """Complete what a record says: rename pending masks into place, and delete removed ones. written: the pending
        mask of an object, if it is known; a folder may have thousands of masks to search."""
        if written and of:
            rename(written, self.masks / of.file)
        for one in picture.objects:
            place = self.masks / one.file
            if one.stamp and state_of(place) != one.stamp:
                for pending in temporaries(place.parent, place.name):
                    if state_of(pending) == one.stamp:
                        rename(pending, place)
        for file, stamp in picture.gone.items():
            if state_of(self.masks / file) == stamp:
                (self.masks / file).unlink()

    def _recorded(self, number: int) -> Picture:
        """The record of an image; a new one if there is none."""
        path = self.record(number)
        if not path.is_file():
            return Picture()
        try:
            picture = Picture.model_validate_json(read_bytes(path, TEXT.bytes))
        except (OSError, ValueError) as error:
            why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else reason(error)
            raise HrsegError(f"{path}: not a record written by hrseg annotate ({why}); fix or remove it") from None
        check_names(path, picture, self.stems[number])
        return picture

    def _completed(self, stem: str, picture: Picture, masks: list[tuple[str, str]], threshold: float) -> Picture:
        """Add masks in the folder that the record lacks, and drop objects whose mask the user has deleted."""
        picture.objects = [one for one in picture.objects if not one.file or (self.masks / one.file).is_file()]
        known = {one.key for one in picture.objects}
        fresh = self._fresh(stem, known | {key for key, _ in masks})
        for key, file in masks:
            if key not in known:
                ours = re.fullmatch(rf"{re.escape(stem)}(_[0-9]+)?", key)
                name, colour = picture.new_name(), len(picture.objects) % COLOURS
                key, value = (key, 0) if ours else (next(fresh), RENAMED)
                one = Object(key=key, name=name, colour=colour, threshold=threshold, file=file, value=value)
                picture.objects.append(one)
        return picture

    def _fresh(self, stem: str, taken: Collection[str]) -> Iterator[str]:
        """STEM_0, STEM_1, ... without those of masks or images."""
        return (key for n in count() if (key := f"{stem}_{n}") not in taken and key not in self.images)

    @property
    def labels(self) -> list[str]:
        """The labels to choose from: those of labels.txt, then those used so far."""
        used = (one.name for picture in self.pictures for one in picture.objects)
        return list(dict.fromkeys([*self.fixed, *filter(is_label, used)]))

    def colour_of(self, label: str) -> int | None:
        """The colour of a label: by its place in labels.txt, else that of the objects that have it."""
        if label in self.fixed:
            return self.fixed.index(label) % COLOURS
        having = (one.colour for picture in self.pictures for one in picture.objects if one.name == label)
        return next(having, None) if is_label(label) else None

    def _masks_there(self) -> dict[str, list[tuple[str, str]]]:
        """Image -> (key, file) of its masks, however other programs have named them; see :func:`owner_of`."""
        found: dict[str, list[tuple[str, str]]] = {}
        for key, path in (by_stem(self.masks)[0] if self.masks.is_dir() else {}).items():
            owner = owner_of(key, self.images) or ""
            found.setdefault(owner, []).append((key, relative(path, self.masks)))
        return {stem: sorted(its, key=lambda one: (len(one[0]), one[0])) for stem, its in found.items()}


def images_of(place: Path) -> dict[str, Path]:
    """Stem -> file of each image. Raises HrsegError for a folder without images."""
    if not place.is_dir():
        raise HrsegError(f"{place}: no such folder; give a folder of images, or one with images/ and masks/")
    if (place / "images").is_dir():
        found, _ = by_stem(place / "images")
        if not found:
            raise HrsegError(f"{place / 'images'}: no images; add some")
        return dict(sorted(found.items()))
    found, others = by_stem(place, without=("masks", NOTES))
    warn_of_others(str(place), others)
    if not found:
        raise HrsegError(f"{place}: no images; add some, or give another folder")
    return dict(sorted(found.items()))


def _ids(path: Path, surely: bool) -> list[int]:
    """The ids of the objects in a mask file that has several, or that ``surely`` has ids; none for other files."""
    try:
        pixels = read_mask(path)
        if not surely:
            with suppress(HrsegError):
                truth_of_mask(path, pixels, "auto")
                return []
        ids = ids_of(path, pixels)
    except HrsegError:  # shown with the mask
        return []
    found = [int(value) for value in np.unique(ids) if value not in (0, void_id(ids))]
    return found if (surely or len(found) > 1) and len(found) <= SEPARATE else []


def _read_labels(path: Path) -> list[str]:
    """The labels of a list, one a line; none if there is no such file. Raises HrsegError for what cannot be a label."""
    if not path.is_file():
        return []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        raise HrsegError(f"{path}: cannot be read; save it as UTF-8 text, one label a line") from None
    labels = list(dict.fromkeys(label for line in lines if (label := line.strip())))
    for label in labels:
        try:
            TypeAdapter(Name).validate_python(label)
        except ValidationError:
            raise HrsegError(f"{path}: '{label[:70]}' is no label; use up to 60 characters a line") from None
    return labels


def _read_pairs(path: Path) -> list[dict[str, str]]:
    """The rows of an existing table. Raises HrsegError if it cannot be read, or if its masks are outside masks/."""
    if not path.is_file():
        return []
    try:
        rows = [row for _, row in read_table(path, ("image", "mask"))]
    except (OSError, Malformed) as error:
        raise HrsegError(f"{path}: cannot be read ({reason(error)}); fix or remove it") from None
    for row in rows:
        if not row["image"]:
            raise HrsegError(f"{path}: a row lacks its image; fix or remove it")
        if not row["mask"].startswith("masks/"):
            raise HrsegError(f"{path}: lists masks that annotate cannot edit; move it away, or annotate another folder")
    return rows


def state_of(path: Path) -> str:
    """Size and time of a file, "" if it does not exist."""
    return size_and_time(path) if path.is_file() else ""


def _escaped(text: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", text)
