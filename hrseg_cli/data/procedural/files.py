"""Write the procedural dataset as a folder of images and masks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2

from hrseg_cli.data.procedural.scene import check, draw, kind, numbers
from hrseg_cli.errors import HrsegError
from hrseg_cli.parsing import read_json, shown
from hrseg_cli.writing import is_empty, only_one_in, sweep, write_atomically

VERSION = 1  # increase when the same arguments give different pixels


def write(
    folder: Path,
    count: int,
    size: int,
    seed: int,
    progress: Callable[[int], object] | None = None,
    kinds: str = "",
) -> None:
    """Write ``images/<id>.jpg``, ``masks/<id>.png`` and ``pairs.csv``; existing samples are kept.

    progress: called with the number of finished samples after each. kinds: see :func:`numbers`. Raises HrsegError if
    the folder contains a set with another seed, size or kinds, or anything else, and while another process writes
    there.
    """
    check(seed, 0, size)
    chosen = numbers(seed, count, kinds)
    settings = {"seed": seed, "size": size, "version": VERSION} | ({"kinds": kinds} if kinds else {})
    with only_one_in(folder, str(folder)):
        sweep(folder / "images", folder / "masks")
        _write(folder, chosen, settings, progress)


def _write(folder: Path, chosen: list[int], settings: dict[str, Any], progress: Callable[[int], object] | None) -> None:
    seed, size = settings["seed"], settings["size"]
    note = folder / "procedural.json"
    if not note.exists() and not is_empty(folder):
        raise HrsegError(f"{folder}: not empty and not a procedural set; use another folder")
    try:
        old = read_json(note) if note.exists() else settings
    except ValueError as error:
        raise HrsegError(f"{note}: cannot be read ({error}); use another folder") from None
    if old != settings:
        raise HrsegError(f"{folder}: contains a procedural set with {shown(old)}, not {settings}; use another folder")
    write_atomically(note, json.dumps(settings) + "\n")
    rows = ["image,mask"]
    for done, index in enumerate(chosen, 1):
        stem = f"{index:05d}_{kind(seed, index)}"
        image_path, mask_path = folder / "images" / f"{stem}.jpg", folder / "masks" / f"{stem}.png"
        if not (image_path.exists() and mask_path.exists()):
            image, coverage = draw(seed, index, size)
            jpeg = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
            write_atomically(image_path, jpeg.tobytes())
            write_atomically(mask_path, cv2.imencode(".png", coverage)[1].tobytes())
        rows.append(f"images/{stem}.jpg,masks/{stem}.png")
        if progress:
            progress(done)
    write_atomically(folder / "pairs.csv", "\n".join(rows) + "\n")
