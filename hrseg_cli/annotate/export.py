"""A zip of what was annotated, for other programs."""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Collection, Iterator
from typing import IO

import numpy as np
from PIL import Image

from hrseg_cli.annotate import tables
from hrseg_cli.annotate.folder import Folder
from hrseg_cli.annotate.records import Picture
from hrseg_cli.data.masks_out import encode_png
from hrseg_cli.errors import HrsegError

KINDS = ("masks", "instances", "coco")


def zipped(folder: Folder, kinds: Collection[str], only_done: bool) -> IO[bytes]:
    """A temporary file with the zip, at its start. It goes when it is closed.

    masks: ``masks/KEY.png``, one object each, 255 and 0. instances: ``instances/STEM.png``, 0 for the background, then
    1, 2, ... in the order of the objects' list; where objects overlap, the first one of the list is in front. 16 bits
    above 255 objects. coco: ``coco.json``.

    Raises HrsegError for a mask that cannot be read.
    """
    pictures = list(folder.pictures)  # records are replaced, never changed: clicks may come in meanwhile
    chosen = [number for number, one in enumerate(pictures) if one.finished or not only_done]
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    try:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as into:  # a PNG does not get smaller
            for number in chosen:
                picture, stem = pictures[number], folder.stems[number]
                there = [one for one in picture.objects if one.file]
                if "masks" in kinds:
                    for one in there:
                        png = (folder.masks / one.file).read_bytes()
                        into.writestr(f"masks/{one.file}", png)
                if "instances" in kinds and there:
                    into.writestr(f"instances/{stem}.png", _instances(folder, picture))
            if "coco" in kinds:
                lines = [tables.Line.of(folder.stems[number], pictures[number], folder.name) for number in chosen]
                text = tables.coco([folder.title(number) for number in chosen], lines, folder.fixed, {})
                into.writestr("coco.json", text, zipfile.ZIP_DEFLATED)
    except FileNotFoundError as error:
        file.close()
        raise HrsegError(f"{error.filename}: deleted or changed just now; export again") from None
    except BaseException:
        file.close()
        raise
    file.seek(0)
    return file


def _instances(folder: Folder, picture: Picture) -> bytes:
    size = picture.size
    if not any(size):  # its masks were made elsewhere, and nobody has clicked yet
        with Image.open(folder.masks / next(one.file for one in picture.objects if one.file)) as mask:
            size = mask.height, mask.width
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
