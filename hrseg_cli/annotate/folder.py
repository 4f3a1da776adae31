"""The files that annotation writes into a folder.

    masks/STEM_N.png                one object each, 255 and 0: the layout "folder"
    pairs.csv                       only if the images are in FOLDER itself: which mask belongs to which image
    annotations/coco.json           all annotated objects, as COCO run lengths
    annotations/traces.jsonl        their clicks, in the format of ``simulate-clicks --replay``
    annotations/images/STEM.json    names, colours, clicks and strokes of an image, including undone ones
    annotations/start/              copies of existing masks from before their first click

Every file is written atomically: first the new mask, to a temporary file; then the image's record; then the mask is
renamed into place and replaced files are deleted. If a kill interrupts these steps, the next start completes them.
"""

from __future__ import annotations

import csv
import filecmp
import io
import json
import os
import re
from itertools import count
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hrseg_cli.data.folders import by_stem
from hrseg_cli.data.labels import read_object
from hrseg_cli.data.masks_out import encode_png, run_lengths
from hrseg_cli.data.paths import below
from hrseg_cli.data.photos import find_images
from hrseg_cli.data.refs import PAIRS
from hrseg_cli.data.samples import relative, size_and_time
from hrseg_cli.errors import HrsegError
from hrseg_cli.interaction import Click, Trace
from hrseg_cli.limits import TEXT
from hrseg_cli.parsing import Malformed, read_bytes, read_table, reason
from hrseg_cli.writing import rename, sweep, temporaries, write_atomically, write_pending

COLOURS = 8
NOTES = "annotations"


class Strict(BaseModel):
    """Strict parsing: no unknown keys, no strings for numbers, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Clicked(Strict):
    """A click, row and col in pixels. box: [top, bottom, left, right], inclusive, if a box was dragged."""

    kind: Literal["click"] = "click"
    row: int = Field(ge=0)
    col: int = Field(ge=0)
    positive: bool
    box: tuple[int, int, int, int] | None = None
    seconds: float = Field(0.0, ge=0)


class Stroke(Strict):
    """A brush stroke along points (row, col), in pixels."""

    kind: Literal["stroke"] = "stroke"
    points: list[tuple[float, float]] = Field(min_length=1, max_length=5000)
    radius: float = Field(ge=0.5, le=2000)
    positive: bool


class Refined(Strict):
    """The mask was refined as the protocol says."""

    kind: Literal["refine"] = "refine"


Action = Annotated[Clicked | Stroke | Refined, Field(discriminator="kind")]
Name = Annotated[str, Field(min_length=1, max_length=60, pattern=r"^[^\x00-\x1f\x7f]+$")]


class Object(Strict):
    """One object of an image.

    key: stem of its mask file in masks/. file: the existing mask file, "" for none.
    actions: all actions; only the first ``done`` are in effect, later ones are undone. The first ``base`` are already
        included in ``start``.
    start: the initial mask, in annotations/start/. stamp: size and time of ``file`` when it was written.
    model: the model used for the clicks. shape: [top, left, bottom, right, pixels] and COCO run lengths of the mask.
    """

    key: str
    name: Name
    colour: int = Field(ge=0, lt=COLOURS)
    threshold: float = Field(gt=0, lt=1)
    file: str = ""
    actions: list[Action] = []
    done: int = 0
    base: int = 0
    start: str = ""
    stamp: str = ""
    model: str = ""
    bbox: list[int] = []
    area: int = 0
    counts: str = ""

    @property
    def clicks(self) -> list[Clicked]:
        return [action for action in self.actions[: self.done] if isinstance(action, Clicked)]


class Picture(Strict):
    """The record of one image. revision: increases with every change, so that two tabs do not overwrite each other.
    gone: files in masks/ deleted by the last change, with their size and time before.
    """

    version: Literal[1] = 1
    revision: int = 0
    finished: bool = False
    size: tuple[int, int] = (0, 0)
    objects: list[Object] = []
    gone: dict[str, str] = {}

    def find(self, key: str) -> Object | None:
        return next((one for one in self.objects if one.key == key), None)

    def new_name(self) -> str:
        """The first unused name of "object", "object 2", ..."""
        taken = {one.name for one in self.objects}
        return next(name for n in count(1) if (name := f"object {n}" if n > 1 else "object") not in taken)


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
        self._check_places()
        recorded = [self._recorded(number) for number in range(len(self.stems))]
        for picture in recorded:
            self._settle_files(picture)
        inside = {os.path.dirname(stem) for stem in self.stems}
        kept = (self.masks, self.notes / "images", self.notes / "start")
        sweep(place, self.notes, *(part / folder for part in kept for folder in inside))
        there = self._masks_there()
        self.pictures = [
            self._completed(picture, there.get(stem, []), threshold)
            for picture, stem in zip(recorded, self.stems, strict=True)
        ]
        self._lines = [self._describe(number) for number in range(len(self.stems))]
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
        return read_object(self.masks / one.file, size, at_most=size[0] * size[1]) if one.file else np.zeros(size, bool)

    def first_mask(self, one: Object, size: tuple[int, int]) -> np.ndarray | None:
        if not one.start:
            return None
        return read_object(self.notes / "start" / one.start, size, at_most=size[0] * size[1])

    def settle(self, one: Object, model: str) -> None:
        """Restart from the mask on disk if the recorded actions did not produce it: it existed before them, another
        program wrote it, or another model was used. A copy is kept in annotations/start/."""
        file = self.masks / one.file
        if one.file and not file.is_file():  # deleted by the user
            one.file = one.stamp = ""
            changed = True
        else:
            changed = bool(one.file) and one.stamp != size_and_time(file)
        answered = any(isinstance(action, Clicked) for action in one.actions[one.base : one.done])
        if not changed and not (answered and one.model != model):
            return
        one.start = ""
        if one.file:
            one.start = self._keep(one.key, file)
            one.stamp = size_and_time(file)
        del one.actions[one.done :]
        one.base = one.done

    def _keep(self, key: str, file: Path) -> str:
        """The name of a copy of a mask in annotations/start/: an existing or a new one."""
        start = self.notes / "start"
        for n in count(1):
            kept = start / f"{key}-{n}{file.suffix}"
            if not kept.exists():
                break
            if filecmp.cmp(file, kept, shallow=False):
                return relative(kept, start)
        write_atomically(kept, file.read_bytes())
        return relative(kept, start)

    def save(self, number: int, picture: Picture, one: Object | None = None, mask: np.ndarray | None = None) -> None:
        """Save a changed record, with the new mask of one of its objects. On failure (OSError) the old mask and the old
        record are kept."""
        pending = None if one is None or mask is None else self._write_pending(picture, one, mask)
        try:
            write_atomically(self.record(number), picture.model_dump_json() + "\n")
        except OSError:
            if pending:
                pending.unlink(missing_ok=True)
            raise
        self.pictures[number] = picture
        self._lines[number] = self._describe(number)
        self._settle_files(picture)

    def write_tables(self) -> None:
        """Write the files about all images, if they have changed."""
        texts = {
            self.notes / "traces.jsonl": "".join(lines for lines, _ in self._lines),
            self.notes / "coco.json": json.dumps(self._coco(), ensure_ascii=False) + "\n",
        }
        if self.pairs:
            texts[self.place / PAIRS] = self._table()
        for path, text in texts.items():
            if not path.is_file() or path.read_bytes() != text.encode():
                write_atomically(path, text)

    def remove(self, picture: Picture, file: str) -> None:
        """Delete a mask with the next :meth:`save`."""
        if (self.masks / file).is_file():
            picture.gone[file] = size_and_time(self.masks / file)

    def _write_pending(self, picture: Picture, one: Object, mask: np.ndarray) -> Path | None:
        """Write the new mask of an object to a temporary file. An empty mask has no file, because datasets do not
        allow empty objects."""
        before, pending = one.file, None
        rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if rows.size:
            one.file = f"{one.key}.png"
            png = io.BytesIO()
            encode_png(png, mask.astype(np.uint8) * 255)
            pending = write_pending(self.masks / one.file, png.getvalue())
            one.stamp = size_and_time(pending)
            one.bbox = [int(cols[0]), int(rows[0]), int(np.ptp(cols)) + 1, int(np.ptp(rows)) + 1]
            one.area, one.counts = int(np.count_nonzero(mask)), run_lengths(mask)["counts"]
        else:
            one.file = one.stamp = one.counts = ""
            one.bbox, one.area = [], 0
        if before and before != one.file:
            self.remove(picture, before)
        return pending

    def _settle_files(self, picture: Picture) -> None:
        """Complete what a record says: rename pending masks into place, and delete removed ones."""
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
        _check_names(path, picture, self.stems[number])
        return picture

    def _completed(self, picture: Picture, masks: list[tuple[str, str]], threshold: float) -> Picture:
        """Add masks in the folder that the record lacks, and drop objects whose mask the user has deleted."""
        picture.objects = [one for one in picture.objects if not one.file or (self.masks / one.file).is_file()]
        known = {one.key for one in picture.objects}
        for key, file in masks:
            if key not in known:
                colour = len(picture.objects) % COLOURS
                one = Object(key=key, name=picture.new_name(), colour=colour, threshold=threshold, file=file)
                picture.objects.append(one)
        return picture

    def _masks_there(self) -> dict[str, list[tuple[str, str]]]:
        """Image -> (key, file) of its masks: STEM, or STEM_<digits> unless that is an image itself."""
        found: dict[str, list[tuple[str, str]]] = {}
        for key, path in (by_stem(self.masks)[0] if self.masks.is_dir() else {}).items():
            owner = key if key in self.images else re.sub("_[0-9]+$", "", key)
            found.setdefault(owner, []).append((key, relative(path, self.masks)))
        return {stem: sorted(its, key=lambda one: (len(one[0]), one[0])) for stem, its in found.items()}

    def _describe(self, number: int) -> tuple[str, list[tuple[str, dict[str, Any]]]]:
        """An image's contribution to the files about all images: trace lines, and COCO annotations by name."""
        picture, stem = self.pictures[number], self.stems[number]
        there = [one for one in picture.objects if one.file]
        lines = ""
        for one in there:
            if one.clicks:
                notes = {
                    "boxes": sum(click.box is not None for click in one.clicks),
                    "strokes": sum(isinstance(action, Stroke) for action in one.actions[: one.done]),
                    "restarts": int(bool(one.base or one.start)),
                }
                trace = Trace(
                    id=stem if len(there) == 1 else one.key,
                    dataset=self.name,
                    clicks=tuple(Click(click.row, click.col, click.positive) for click in one.clicks),
                    scores={},
                    seconds=tuple(click.seconds for click in one.clicks),
                    until={},
                    size=picture.size,
                    area=one.area,
                    notes={name: number for name, number in notes.items() if number},
                )
                lines += trace.to_json() + "\n"
        height, width = picture.size
        annotations = [
            (
                one.name,
                {
                    "segmentation": {"size": [height, width], "counts": one.counts},
                    "area": one.area,
                    "bbox": one.bbox,
                    "iscrowd": 0,
                },
            )
            for one in there
            if one.counts
        ]
        return lines, annotations

    def _coco(self) -> dict[str, Any]:
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        known: dict[str, int] = {}  # renumbered each time: the same annotations give the same file, restarts or not
        for number, (_, its) in enumerate(self._lines):
            if its:
                height, width = self.pictures[number].size
                file = {"file_name": self.title(number), "height": height, "width": width}
                images.append({"id": number + 1, **file})
            for name, one in its:
                which = {"image_id": number + 1, "category_id": known.setdefault(name, len(known) + 1)}
                annotations.append({"id": len(annotations) + 1, **which, **one})
        categories = [{"id": number, "name": name} for name, number in known.items()]
        return {"images": images, "annotations": annotations, "categories": categories}

    def _table(self) -> str:
        """pairs.csv with the masks of all images; keeps other columns and rows of other images in an existing table."""
        titles = [self.title(number) for number in range(len(self.stems))]
        known = {(row["image"], row["mask"]): row for row in self._given}
        rows = [
            known.get((title, f"masks/{one.file}"), {"image": title, "mask": f"masks/{one.file}"})
            for title, picture in zip(titles, self.pictures, strict=True)
            for one in picture.objects
            if one.file
        ]
        rows += [row for row in self._given if row["image"] not in set(titles)]
        text = io.StringIO()
        columns = dict.fromkeys(["image", "mask", *(column for row in self._given for column in row)])
        table = csv.DictWriter(text, list(columns), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        return text.getvalue()


def images_of(place: Path) -> dict[str, Path]:
    """Stem -> file of each image. Raises HrsegError for a folder without images."""
    if not place.is_dir():
        raise HrsegError(f"{place}: no such folder; give a folder of images, or one with images/ and masks/")
    if (place / "images").is_dir():
        found, _ = by_stem(place / "images")
        if not found:
            raise HrsegError(f"{place / 'images'}: no images; add some")
        return dict(sorted(found.items()))
    images: dict[str, Path] = {}
    for path in find_images([str(place)]):
        if path.stem in images:
            raise HrsegError(f"{images[path.stem]} and {path}: duplicate name; rename or remove one of them")
        images[path.stem] = path
    return images


def _read_pairs(path: Path) -> list[dict[str, str]]:
    """The rows of an existing table. Raises HrsegError if it cannot be read, or if its masks are outside masks/ or
    contain several objects."""
    if not path.is_file():
        return []
    try:
        rows = [row for _, row in read_table(path, ("image", "mask"))]
    except (OSError, Malformed) as error:
        raise HrsegError(f"{path}: cannot be read ({reason(error)}); fix or remove it") from None
    for row in rows:
        if not row["image"]:
            raise HrsegError(f"{path}: a row lacks its image; fix or remove it")
        if not row["mask"].startswith("masks/") or row.get("kind") == "instance":
            raise HrsegError(f"{path}: lists masks that annotate cannot edit; move it away, or annotate another folder")
    return rows


def _check_names(path: Path, picture: Picture, stem: str) -> None:
    """Check that the file names in a record, whoever wrote it, stay inside their folders."""
    for file in picture.gone:
        if not re.fullmatch(rf"{re.escape(stem)}(_\d+)?\.\w+", file):
            raise HrsegError(f"{path}: invalid name '{file}', not written by hrseg annotate; fix or remove the file")
    for one in picture.objects:
        suffix = rf"{re.escape(one.key)}(-\d+)?\.\w+"
        own = re.fullmatch(rf"{re.escape(stem)}(_\d+)?", one.key)
        files = all(not name or re.fullmatch(suffix, name) for name in (one.file, one.start))
        if not (own and files and 0 <= one.base <= one.done <= len(one.actions)):
            raise HrsegError(
                f"{path}: invalid object '{one.key}', not written by hrseg annotate; fix or remove the file"
            )


def state_of(path: Path) -> str:
    """Size and time of a file, "" if it does not exist."""
    return size_and_time(path) if path.is_file() else ""


def _escaped(text: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", text)
