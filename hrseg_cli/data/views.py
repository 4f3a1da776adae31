"""A dataset as training sees it: images with their objects, in an order and in windows that depend only on a seed, not
on the number of workers; and cached smaller copies of large originals."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import math
import os
import shutil
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeVar

import cv2
import numpy as np
from PIL import Image

from hrseg_cli.data.index import Index
from hrseg_cli.data.paths import below, checked
from hrseg_cli.data.pixels import MaskPixels, Span, read_image, read_mask
from hrseg_cli.data.refs import PAIRS, Ref
from hrseg_cli.data.samples import fingerprint, load, relative, truth_of
from hrseg_cli.errors import HrsegError
from hrseg_cli.parsing import read_json
from hrseg_cli.writing import is_empty, only_one_in, sweep, write_atomically

STAMP = "cache.json"
VERSION = 3  # increase when the same originals give different copies or names

Kept = TypeVar("Kept", np.ndarray, MaskPixels)

log = logging.getLogger(__name__)


# ---- images with their objects ---------------------------------------------------------------------------------------


class Images:
    """The images of a dataset by index, each as the references to its objects; nothing is loaded.

    refs: an :class:`Index`, or a list from ``open_dataset``; the objects of an image are adjacent.
    """

    def __init__(self, refs: Sequence[Ref]) -> None:
        self._refs = refs
        if isinstance(refs, Index):
            self._starts = refs.image_starts()
        else:
            new = [k for k, ref in enumerate(refs) if k == 0 or _image(ref) != _image(refs[k - 1])]
            self._starts = np.array([*new, len(refs)], np.int64)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> tuple[Ref, ...]:
        k = range(len(self))[index]
        return tuple(self._refs[int(self._starts[k]) : int(self._starts[k + 1])])


def _image(ref: Ref) -> object:
    return ref.draw or ref.image


@dataclass(frozen=True)
class Scene:
    """An image and its objects.

    image: uint8, (H, W, 3), RGB.
    truths: int8, (objects, H, W): 1 object, 0 background, -1 ignored; in the order of ``refs``.
    """

    refs: tuple[Ref, ...]
    image: np.ndarray
    truths: np.ndarray


class Decoded:
    """Decoded images and masks, kept in memory until they fill a number of bytes.

    Nothing is evicted: where files are read in random order, those kept first are as useful as any others, and the most
    recent ones are not. The arrays are read-only.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0
        self._kept: dict[object, np.ndarray | MaskPixels] = {}

    def image(self, path: Path, span: Span | None) -> np.ndarray:
        """See :func:`read_image`."""
        found = self._kept.get((path, span))
        return found if isinstance(found, np.ndarray) else self._keep((path, span), read_image(path, span=span))

    def mask(self, path: Path) -> MaskPixels:
        """See :func:`read_mask`."""
        found = self._kept.get(path)
        return found if isinstance(found, MaskPixels) else self._keep(path, read_mask(path))

    def _keep(self, key: object, read: Kept) -> Kept:
        arrays = [one for one in (read if isinstance(read, tuple) else (read,)) if isinstance(one, np.ndarray)]
        size = sum(array.nbytes for array in arrays)
        if self.size + size <= self.limit:
            for array in arrays:
                array.flags.writeable = False
            self._kept[key] = read
            self.size += size
        return read


def load_scene(refs: Sequence[Ref], decoded: Decoded | None = None) -> Scene:
    """Load one image and its objects; each file is decoded once. Raises HrsegError naming a broken file."""
    first = refs[0]
    if first.draw:
        sample = load(first)
        return Scene((first,), sample.image, sample.truth[None])
    decoded = decoded or Decoded(0)
    image = decoded.image(first.image, first.span)
    read = cache(decoded.mask)
    return Scene(tuple(refs), image, np.stack([truth_of(ref, image.shape[:2], read)[0] for ref in refs]))


# ---- order and windows -----------------------------------------------------------------------------------------------


def epoch_order(
    sizes: Sequence[int], count: int, *, seed: int, epoch: int, weights: Sequence[float] | None = None
) -> np.ndarray:
    """int64, (count, 2): (part, index of the image in it) for each step of an epoch.

    sizes: number of images in each part. weights: relative frequency of each part; default: its size. Each part gets
    exactly its share, and all its images are used once before one is repeated.

    A pure function: every worker can compute it and take its own rows. Raises HrsegError if nothing can be drawn.
    """
    shares = np.asarray(sizes if weights is None else weights, np.float64)
    if len(shares) != len(sizes) or not np.isfinite(shares).all() or (shares < 0).any() or shares.sum() == 0:
        raise HrsegError(f"weights {list(shares)}: give one number >= 0 per part ({len(sizes)}), not all 0")
    if any(share and not size for share, size in zip(shares, sizes, strict=True)):
        raise HrsegError("a part with a weight above 0 has no images; remove it or set its weight to 0")
    rng = np.random.default_rng((seed, epoch))
    rows = []
    for part, (size, number) in enumerate(zip(sizes, apportion(count, shares), strict=True)):
        passes = [rng.permutation(size) for _ in range(math.ceil(number / size) if number else 0)]
        chosen = np.concatenate([*passes, np.zeros(0, np.int64)])[:number]
        rows.append(np.stack([np.full(number, part), chosen], axis=1))
    return rng.permutation(np.concatenate(rows).astype(np.int64))


def apportion(count: int, shares: Sequence[float] | np.ndarray) -> np.ndarray:
    """int64, (parts): ``count`` distributed in proportion to ``shares``, which are not all 0 (largest remainder
    method)."""
    exact = count * np.asarray(shares, np.float64) / np.sum(shares)
    parts: np.ndarray = np.floor(exact).astype(np.int64)
    parts[np.argsort(parts - exact, kind="stable")[: count - parts.sum()]] += 1
    return parts


class Window(NamedTuple):
    """Rows ``top`` to ``top + height`` and columns ``left`` to ``left + width`` of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index for arrays (H, W, ...)."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


def crop_window(
    seed: int,
    epoch: int,
    step: int,
    size: tuple[int, int],
    crop: tuple[int, int],
    *,
    scale: tuple[float, float] = (1.0, 1.0),
    around: tuple[int, int] | None = None,
) -> Window:
    """The window that step ``step`` of an epoch crops from an image of ``size`` (H, W).

    crop: (height, width) of the training crop; the window is the crop divided by a factor drawn from ``scale``, at most
        the whole image.
    around: (row, col) of a pixel that it must contain.

    A pure function of its arguments, so crops do not depend on the worker.
    """
    rng = np.random.default_rng((seed, epoch, step))
    factor = rng.uniform(*scale)
    spots = rng.random(2)
    sides, starts = [], []
    for axis in (0, 1):
        side = min(size[axis], max(1, round(crop[axis] / factor)))
        low, high = 0, size[axis] - side
        if around is not None:
            low, high = max(low, around[axis] - side + 1), min(high, around[axis])
        sides.append(side)
        starts.append(low + int(spots[axis] * (high - low + 1)))
    return Window(starts[0], starts[1], sides[0], sides[1])


# ---- smaller copies --------------------------------------------------------------------------------------------------


def cache_longest(
    refs: Sequence[Ref],
    folder: Path,
    longest: int,
    *,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    wait: bool = False,
) -> Path:
    """Copy a dataset to ``folder`` with sides of at most ``longest`` pixels, as a dataset with the same ids: images/
    (area average, JPEG 95; small originals unchanged), masks/ (nearest neighbour; 255 object, 128 ignored) and
    pairs.csv, written last. Returns ``folder``.

    Two originals never share a copy: names and ids of originals with the same stem (a.jpg, a.png) get a folder that
    depends only on the original. Resumes after an interruption, and starts over if originals have changed.

    Raises HrsegError naming a broken file, an id that cannot name a file, or a folder that cannot be written or
    contains anything else, including copies of another dataset (other ids or folders) or with another ``longest``.
    While another process writes copies there, it raises, or waits if ``wait``.
    """
    with only_one_in(folder, str(folder), wait=wait):
        sweep(*(Path(place) for place, _, _ in os.walk(folder)))
        return _copy_all(refs, folder, longest, workers, progress)


def _copy_all(
    refs: Sequence[Ref],
    folder: Path,
    longest: int,
    workers: int | None,
    progress: Callable[[int, int], None] | None,
) -> Path:
    objects, folders = identity(refs, folder)
    stamp = {"version": VERSION, "longest": longest, "objects": objects, "folders": folders}
    # Another label rule gives different masks from the same files.
    stamp["rules"] = _hash(f"{ref.id}\t{ref.rule}\n" for ref in refs)
    stamp["fingerprint"] = fingerprint(folder, refs)
    images = Images(refs)
    shared = _shared(images)
    try:
        if _read_stamp(folder, stamp) != stamp:
            _clear(folder)
            write_atomically(folder / STAMP, json.dumps(stamp) + "\n")
        rows: list[tuple[str, str]] = []
        with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
            made = pool.map(lambda k: _shrink(images[k], folder, longest, shared), range(len(images)))
            for done, pairs in enumerate(made, 1):
                rows += pairs
                if progress:
                    progress(done, len(images))
        table = io.StringIO()
        csv.writer(table, lineterminator="\n").writerows([("image", "mask"), *rows])
        write_atomically(folder / PAIRS, table.getvalue())
    except OSError as error:
        raise HrsegError(f"{folder}: cannot be written ({error.strerror or error}); use another folder") from None
    return folder


def identity(refs: Sequence[Ref], folder: Path) -> tuple[str, str]:
    """Two hashes that identify a dataset: of the ids (and parameters of procedural objects), and of the folders of the
    files, relative to ``folder``."""
    lines, places = [], set()
    for ref in refs:
        lines.append(f"{ref.id}\t{ref.draw}{ref.span or ''}\n")
        places |= {ref.image.parent, ref.mask.parent}
    return _hash(lines), _hash(f"{relative(place, folder)}\n" for place in places)


def _hash(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in sorted(lines):
        digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()


def _read_stamp(folder: Path, wanted: dict[str, object]) -> object:
    """What the copies in ``folder`` were made from; None if there are none yet. Raises HrsegError if the folder does
    not match what is ``wanted``."""
    try:
        stamp = read_json(folder / STAMP)
    except FileNotFoundError:
        if not is_empty(folder):
            raise HrsegError(f"{folder}: not empty and not a cache; use another folder") from None
        return None
    except ValueError:
        stamp = None
    fixed = {key: wanted[key] for key in ("longest", "objects", "folders")}
    # Version 1 did not record the folders.
    if not isinstance(stamp, dict) or not fixed.items() <= {"folders": wanted["folders"], **stamp}.items():
        raise HrsegError(f"{folder}: contains a cache of another dataset or size; use another folder")
    return stamp


def _clear(folder: Path) -> None:
    """Delete the files of an earlier call, and nothing else."""
    (folder / PAIRS).unlink(missing_ok=True)
    for name in ("images", "masks"):
        if (folder / name).exists():
            shutil.rmtree(folder / name)


def _names(refs: Sequence[Ref]) -> list[str]:
    """Stems of the copies of an image and its masks; their ids follow from them."""
    # Readers of pairs.csv use the mask's name as the id if it contains the image's, or if the image has one object.
    above, slash, _ = refs[0].id.partition(":")[0].rpartition("/")
    stem = refs[0].id if len(refs) == 1 else f"{above}{slash}{refs[0].image.stem}"
    return [stem, *(ref.id for ref in refs)]


def _shared(images: Images) -> set[str]:
    """Names that would be shared by several images and their masks."""
    counts = Counter(name for k in range(len(images)) for name in set(map(_plain, _names(images[k]))))
    return {name for name, count in counts.items() if count > 1}


def _plain(name: str) -> str:
    """Normalise names that are equal on some disks: ignores letter case and Unicode normalisation form."""
    return unicodedata.normalize("NFC", name).casefold()


def _shrink(refs: tuple[Ref, ...], folder: Path, longest: int, shared: set[str]) -> list[tuple[str, str]]:
    """Write one image and its masks unless they exist; returns (image, mask) of each object as named in pairs.csv."""
    stem, *names = _names(refs)
    if any(_plain(name) in shared for name in (stem, *names)):
        original = f"{relative(refs[0].image, folder)}\t{refs[0].id}"
        own = hashlib.sha256(original.encode(errors="surrogateescape")).hexdigest()[:12]
        stem, *names = ("/".join([*name.split("/")[:-1], own, name.split("/")[-1]]) for name in (stem, *names))
    images = [checked(f"images/{stem}{suffix}", refs[0].image) for suffix in (".jpg", refs[0].image.suffix)]
    masks = [checked(f"masks/{name}.png", ref.mask) for name, ref in zip(names, refs, strict=True)]
    image = next((name for name in images if (folder / name).is_file()), None)  # written last, so the masks exist too
    if image is None:
        image = _write_small(load_scene(refs), longest, folder, images, masks)
    return [(image, mask) for mask in masks if (folder / mask).is_file()]


def _write_small(scene: Scene, longest: int, folder: Path, names: list[str], masks: list[str]) -> str:
    """Write the image and return its name: the first of ``names`` if made smaller, the second if unchanged."""
    source = scene.refs[0].image
    height, width = scene.image.shape[:2]
    factor = min(1.0, longest / max(height, width))
    size = max(1, round(width * factor)), max(1, round(height * factor))
    for mask, ref, truth in zip(masks, scene.refs, scene.truths, strict=True):
        small = cv2.resize(truth, size, interpolation=cv2.INTER_NEAREST_EXACT)
        if not (small == 1).any():
            log.warning("%s: object '%s' vanishes at %d pixels; skipped", ref.mask, ref.id, longest)
            continue
        write_atomically(below(folder, mask, ref.mask), _encoded(np.array([0, 255, 128], np.uint8)[small], "PNG"))
    if factor == 1 and source.is_file() and scene.refs[0].span is None:
        write_atomically(below(folder, names[1], source), source.read_bytes())
        return names[1]
    image = cv2.resize(scene.image, size, interpolation=cv2.INTER_AREA)
    write_atomically(below(folder, names[0], source), _encoded(image, "JPEG", quality=95, subsampling=0))
    return names[0]


def _encoded(pixels: np.ndarray, kind: str, **options: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()
