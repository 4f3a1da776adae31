"""A zip of what was annotated, for other programs."""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Collection, Iterator
from typing import IO

import numpy as np
from PIL import Image

from hrseg_cli.annotate.folder import Folder, state_of
from hrseg_cli.annotate.records import Object, Picture, category_of
from hrseg_cli.annotate.regions import Region
from hrseg_cli.data import exports
from hrseg_cli.data.masks_out import encode_png, run_lengths
from hrseg_cli.errors import HrsegError

KINDS = ("masks", "instances", *exports.KINDS)


def zipped(folder: Folder, kinds: Collection[str], only_done: bool) -> IO[bytes]:
    """A temporary file with the zip, at its start. It goes when it is closed.

    masks: ``masks/KEY.png``, one object each, 255 and 0. instances: ``instances/STEM.png``, 0 for the background, then
    1, 2, ... in the order of the objects' list; where objects overlap, the first one of the list is in front. 16 bits
    above 255 objects. coco, yolo, yolo_boxes, labelme: see :mod:`hrseg_cli.data.exports`.

    Raises HrsegError for a mask that cannot be read.
    """
    pictures = list(folder.pictures)  # records are replaced, never changed: clicks may come in meanwhile
    chosen = [number for number, one in enumerate(pictures) if one.finished or not only_done]
    for number in chosen:
        pictures[number] = folder.separated(number, pictures[number])
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    try:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as into:  # a PNG does not get smaller
            for number in chosen:
                picture, stem = pictures[number], folder.stems[number]
                there = [one for one in picture.objects if one.file]
                if "masks" in kinds:
                    for one in there:
                        if one.value:
                            mask = folder.mask(one, _size(folder, picture))
                            into.writestr(f"masks/{one.key}.png", Region.of(mask).png())
                        else:
                            into.writestr(f"masks/{one.file}", (folder.masks / one.file).read_bytes())
                if "instances" in kinds and there:
                    into.writestr(f"instances/{stem}.png", _instances(folder, picture))
            for kind in exports.KINDS:
                if kind in kinds:
                    # An image that is done and has no object is an example of the background; others are not.
                    shown = [_exported(folder, n, pictures[n], kind) for n in chosen if _is_told(pictures[n], kind)]
                    for path, text in exports.files([kind], shown, folder.fixed).items():
                        into.writestr(path, text(), zipfile.ZIP_DEFLATED)
    except FileNotFoundError as error:
        file.close()
        raise HrsegError(f"{error.filename}: deleted or changed just now; export again") from None
    except BaseException:
        file.close()
        raise
    file.seek(0)
    return file


def _is_told(picture: Picture, kind: str) -> bool:
    return any(one.file for one in picture.objects) or (picture.finished and kind != "coco")


def _exported(folder: Folder, number: int, picture: Picture, kind: str) -> exports.Exported:
    path, size = folder.path(number), _size(folder, picture)
    name = folder.title(number) if kind == "coco" else f"{folder.stems[number]}{path.suffix}"
    shapes = [exports.Shape(category_of(one.name), _counts(folder, one, size)) for one in picture.objects if one.file]
    return exports.Exported(name, path, size, tuple(shapes))


def _counts(folder: Folder, one: Object, size: tuple[int, int]) -> str:
    """The mask as COCO's run lengths: those of the record, unless the file was made elsewhere."""
    if one.counts and one.stamp == state_of(folder.masks / one.file):
        return one.counts
    return str(run_lengths(folder.mask(one, size))["counts"])


def _size(folder: Folder, picture: Picture) -> tuple[int, int]:
    """(H, W); from a mask if nobody has clicked on the image yet. (0, 0) if it has no mask either."""
    file = next((one.file for one in picture.objects if one.file), "")
    if any(picture.size) or not file:
        return picture.size
    with Image.open(folder.masks / file) as mask:
        return mask.height, mask.width


def _instances(folder: Folder, picture: Picture) -> bytes:
    size = _size(folder, picture)
    values = np.zeros(size, np.uint8 if len(picture.objects) < 256 else np.uint16)
    for value in range(len(picture.objects), 0, -1):
        one = picture.objects[value - 1]
        if one.file:
            values[folder.mask(one, size)] = value
    png = io.BytesIO()
    encode_png(png, values)
    return png.getvalue()


def pieces(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        while piece := file.read(1 << 20):
            yield piece
