"""Sets of existing masks that are to be improved: image files with masks. For COCO files see :mod:`.coco_masks`.

A set consists of units: masks that are stored together. It yields the masks of a unit one by one, and takes the
improved ones in the same order, so that large images with many objects fit into memory.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from hrseg_cli.data.labels import CHOICES, check_size, seen, truth_of_mask
from hrseg_cli.data.masks_out import encode_png, soft_values
from hrseg_cli.data.paths import below
from hrseg_cli.data.photos import find_images
from hrseg_cli.data.pixels import MaskPixels, read_mask
from hrseg_cli.data.samples import ids_of, size_and_time, void_id
from hrseg_cli.errors import HrsegError
from hrseg_cli.recipe import BinarizeRule
from hrseg_cli.writing import writing_atomically

Kind = Literal["binary", "instances", "soft"]
Size = tuple[int, int]  # height, width

SOFT = "_soft"  # 'hrseg predict' ends the names of soft masks with it
CUTOUT = "_cutout"  # and those of cut-out images, which are not masks, with this


class Unit(NamedTuple):
    """Masks that are stored together. name: unique in its set, as shown to the user. state: changes with its files."""

    name: str
    image: Path
    state: str


class Item(NamedTuple):
    """One object of a unit. probability: float32 (H, W) in [0, 1], or 0 and 1. entry: of a COCO file."""

    key: str
    probability: np.ndarray
    entry: dict[str, Any] | None = None


Improved = Iterable[tuple[Item, np.ndarray]]  # with the new probability of each object


class MaskFiles:
    """A folder of mask files, or one file. A file STEM.png, STEM_soft.png or STEM_NAME.png belongs to the image STEM.

    kind: "binary": one object per file; "instances": an id per object; "soft": grey values are probabilities, which
    files named ``..._soft`` always are. rule: label rule of binary masks. problems: a line for each file that cannot be
    used.
    """

    def __init__(self, place: Path, images: Sequence[Path], kind: Kind = "binary", rule: BinarizeRule = "auto") -> None:
        self.kind, self.rule = kind, rule
        self.settings: dict[str, Any] = {"kind": kind, "rule": rule}
        self.units: list[Unit] = []
        self.problems: list[str] = []
        self._files: dict[str, Path] = {}
        self._of_image: dict[Path, list[Unit]] = {}
        by_stem: dict[str, list[Path]] = {}
        for image in images:
            by_stem.setdefault(image.stem, []).append(image)
        files = find_images([str(place)])
        for file in files:
            stem = file.stem.removesuffix(SOFT)
            owner = stem if stem in by_stem else _owner(stem, by_stem)
            if len(files) == len(images) == 1 and place.is_file():
                owner = images[0].stem
            if owner is None:
                self.problems.append(f"{file}: no image {stem}; add the image, or remove the mask")
            elif stem.endswith(CUTOUT):
                continue
            elif len(by_stem[owner]) > 1:
                two = " and ".join(map(str, by_stem[owner][:2]))
                self.problems.append(f"{file}: may belong to {two}; refine their masks in separate calls")
            elif (name := f"{file.stem}.png") in self._files:
                self.problems.append(f"{file}: {self._files[name]} has the same stem; rename one of them")
            else:
                self._files[name] = file
                image = by_stem[owner][0]
                self.units.append(Unit(name, image, f"{file.name} {size_and_time(file)}"))
                self._of_image.setdefault(image, []).append(self.units[-1])

    def file(self, unit: Unit) -> Path:
        return self._files[unit.name]

    def items(self, unit: Unit, size: Size, errors: list[str]) -> Iterator[Item]:
        """The objects of a unit, whose image has this size. Raises HrsegError for an unreadable file."""
        pixels = self._read(unit, size)
        if self._is_soft(unit):
            yield Item("", _probabilities(self.file(unit), pixels))
        elif self.kind == "instances":
            ids = ids_of(self.file(unit), pixels)
            for value in _objects(ids):
                yield Item(str(value), (ids == value).astype(np.float32))
        else:
            yield Item("", (self._truth(unit, pixels) == 1).astype(np.float32))

    def name_of(self, unit: Unit, key: str) -> str:
        """The name in a click file of the object with this key: its id, or NAME of STEM_NAME.png; "" for STEM.png."""
        stem = self.file(unit).stem.removesuffix(SOFT)
        return key or stem.removeprefix(unit.image.stem).removeprefix("_")

    def names(self, unit: Unit) -> set[str] | None:
        """Names of the unit's objects in a click file; None if only its pixels tell."""
        return None if self.kind == "instances" and not self._is_soft(unit) else {self.name_of(unit, "")}

    def store(self, out: Path, unit: Unit, size: Size, improved: Improved, threshold: float) -> dict[str, Any]:
        """Write the unit's file, in the format it was read in; returns what a record needs to know."""
        path = below(out, unit.name, self.file(unit))
        pixels = self._read(unit, size)
        if self._is_soft(unit):
            ((_, probability),) = improved
            deep = pixels.values.dtype == np.uint16
            values = soft_values(probability) if deep else np.rint(probability * 255).astype(np.uint8)
            pixels = pixels._replace(palette=None)
        elif self.kind == "instances":
            ids = ids_of(self.file(unit), pixels)
            values = _merged(ids, improved, threshold)
            if ids is not pixels.values and not np.array_equal(ids, pixels.values):
                pixels = pixels._replace(palette=None)  # renumbered: its palette does not fit
        else:
            truth = self._truth(unit, pixels)
            ((_, probability),) = improved
            values = _like(pixels, truth, probability > threshold)
        with writing_atomically(path) as file:
            if pixels.palette is None or values.dtype != np.uint8:
                encode_png(file, values)
            else:
                picture = Image.fromarray(values)
                picture.putpalette(pixels.palette.tobytes())
                picture.save(file, "PNG", compress_level=3)
        return {"file": unit.name}

    def is_stored(self, out: Path, stored: dict[str, Any]) -> bool:
        """Whether what a record describes exists."""
        return (out / str(stored["file"])).is_file()

    def finish(self, out: Path, stored: Iterable[dict[str, Any]]) -> None:
        """Called after all units, with what :meth:`store` returned."""

    def files(self, out: Path) -> list[Path]:
        """The files of the refined masks."""
        return [out / unit.name for unit in self.units]

    def truth(self, unit: Unit, item: Item, size: Size) -> np.ndarray | None:
        """The ground truth of an object of another set, int8 (H, W); None if this set has none for it."""
        names = dict.fromkeys((unit.name, f"{Path(unit.name).stem.removesuffix(SOFT)}.png", f"{unit.image.stem}.png"))
        for own in self._of_image.get(unit.image, ()):
            if own.name in names:
                pixels = self._read(own, size)
                if not item.key:
                    return self._truth(own, pixels)
                ids = ids_of(self.file(own), pixels)
                found = (ids == int(item.key)).astype(np.int8)
                found[ids == void_id(ids)] = -1
                return found if (found == 1).any() else None
        return None

    def state(self, unit: Unit) -> str:
        """State of the ground truth for a unit of another set."""
        return ", ".join(own.state for own in self._of_image.get(unit.image, ()))

    def _is_soft(self, unit: Unit) -> bool:
        return self.kind == "soft" or Path(unit.name).stem.endswith(SOFT)

    def _read(self, unit: Unit, size: Size) -> MaskPixels:
        pixels = read_mask(self.file(unit))
        check_size(self.file(unit), pixels, size, unit.image)
        return pixels

    def _truth(self, unit: Unit, pixels: MaskPixels) -> np.ndarray:
        file = self.file(unit)
        fix = f"add `instances` if each value is an object, `soft` if values are probabilities, or `binarize` {CHOICES}"
        truth, used = truth_of_mask(file, pixels, self.rule, fix)
        if pixels.values.any() and not (truth == 1).any():
            raise HrsegError(f"{file}: no object pixel under rule '{used}'; {seen(pixels)}; {fix}")
        return truth


def _owner(stem: str, images: Container[str]) -> str | None:
    """The image that a mask named IMAGE_OBJECT belongs to: the longest that fits."""
    ends = [at for at, character in enumerate(stem) if character == "_"]
    return next((stem[:end] for end in reversed(ends) if stem[:end] in images), None)


def _probabilities(file: Path, pixels: MaskPixels) -> np.ndarray:
    if pixels.colours is not None or pixels.palette is not None or pixels.values.ndim != 2:
        raise HrsegError(f"{file}: has colours; save a soft mask as a grey PNG of 8 or 16 bits")
    highest = {"bool": 1, "uint8": 255}.get(pixels.values.dtype.name, 65535)
    return np.asarray(pixels.values.astype(np.float32) / np.float32(highest))


def _objects(ids: np.ndarray) -> list[int]:
    return [int(value) for value in np.unique(ids) if value not in (0, void_id(ids))]


def _merged(ids: np.ndarray, improved: Improved, threshold: float) -> np.ndarray:
    """An id for each pixel: of the object that is most probable there. Ignored pixels stay ignored."""
    merged = np.zeros(ids.shape, ids.dtype if ids.dtype != bool else np.uint8)
    best = np.full(ids.shape, threshold, np.float32)
    for item, probability in improved:
        wins = probability > best
        # Where two objects are equally probable, as they are after a refiner that returns 0 and 1, nothing changes.
        wins |= (probability == best) & (probability > threshold) & (ids == int(item.key))
        merged[wins] = int(item.key)
        best[wins] = probability[wins]
    ignored = ids == void_id(ids)
    merged[ignored] = ids[ignored]
    return merged


def _like(pixels: MaskPixels, truth: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A binary mask in the values of the file that it replaces; ignored pixels keep theirs."""
    before = truth == 1
    plain = pixels.colours is None and pixels.alpha is None and not pixels.lossy and pixels.values.dtype.kind == "u"
    value = int(pixels.values[before].max()) if plain and before.any() else 255
    values = np.where(mask, value, 0).astype(np.uint8 if value < 256 else np.uint16)
    ignored = truth == -1
    if plain:
        values[ignored] = pixels.values[ignored]
    return values
