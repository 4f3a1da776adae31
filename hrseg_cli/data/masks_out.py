"""Masks as files for other programs: PNG, soft PNG, COCO run lengths and polygons, cutouts.

    png       NAME.png            8 bits: 255 object, 0 background
    soft      NAME_soft.png       16 bits: probability times 65535
    rle       NAME_rle.json       a COCO file with one annotation, as compressed run lengths
    polygon   NAME_polygon.json   the same with polygons
    cutout    NAME_cutout.png     the image with the mask as its alpha channel, black where alpha is 0

All have the full size of the image. An empty mask gives a COCO file without annotations.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as pycoco

from hrseg_cli.data.paths import below
from hrseg_cli.errors import HrsegError
from hrseg_cli.writing import write_atomically, writing_atomically

TOLERANCE = 10_000.0  # pixels that a polygon may be from the outline, at most
ENDINGS = {
    "png": ".png",
    "soft": "_soft.png",
    "rle": "_rle.json",
    "polygon": "_polygon.json",
    "cutout": "_cutout.png",
}


def checked_tolerance(value: object) -> float:
    """A tolerance of polygons in pixels. Raises HrsegError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= TOLERANCE:
        raise HrsegError(f"`tolerance` {value}: give pixels, 0 to {TOLERANCE:g}")
    return float(value)


def write_mask(
    folder: Path,
    name: str,
    formats: Iterable[str],
    image: np.ndarray,
    probability: np.ndarray,
    threshold: float,
    *,
    source: str,
    category: str = "object",
    tolerance: float = 1.0,
) -> list[str]:
    """Write one object's mask in each of ``formats`` (keys of :data:`ENDINGS`), atomically; returns the file names.

    image: uint8 (H, W, 3) RGB. probability: float32 (H, W) in [0, 1]; pixels above ``threshold`` are object.
    source, category: names of the image and the object in COCO files. tolerance: see :func:`polygons`.

    Raises HrsegError for a ``name`` outside the folder.
    """
    mask = probability > threshold
    written = []
    for kind in formats:
        path = below(folder, f"{name}{ENDINGS[kind]}", source)
        if kind == "png":
            save_png(path, mask.view(np.uint8) * np.uint8(255))
        elif kind == "soft":
            save_png(path, soft_values(probability))
        elif kind == "cutout":
            save_png(path, np.dstack([image * mask[:, :, None], mask.view(np.uint8) * np.uint8(255)]))
        else:
            shape = run_lengths(mask) if kind == "rle" else polygons(mask, tolerance)
            write_atomically(path, json.dumps(coco_file(mask, shape, source, category), ensure_ascii=False) + "\n")
        written.append(path.name)
    return written


def soft_values(probability: np.ndarray) -> np.ndarray:
    """uint16 (H, W): probabilities in [0, 1] times 65535."""
    scaled = probability * np.float32(65535)
    return np.rint(scaled, out=scaled).astype(np.uint16)


def cropped(mask: np.ndarray) -> tuple[np.ndarray, int, int]:
    """The box of a bool mask (H, W): its pixels, first row and first column. An empty mask has no pixels, at 0, 0."""
    rows = np.flatnonzero(mask.any(axis=1))
    if not rows.size:
        return mask[:0, :0], 0, 0
    part = mask[rows[0] : rows[-1] + 1]
    cols = np.flatnonzero(part.any(axis=0))
    return part[:, cols[0] : cols[-1] + 1], int(rows[0]), int(cols[0])


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """COCO's compressed run lengths, ``{"size": [H, W], "counts": text}``, for a bool mask (H, W), as pycocotools would
    encode it."""
    return box_run_lengths(*cropped(mask), (mask.shape[0], mask.shape[1]))


def box_run_lengths(inside: np.ndarray, top: int, left: int, size: tuple[int, int]) -> dict[str, Any]:
    """:func:`run_lengths` of a mask by its box, as :func:`cropped` gives it.

    COCO's order goes down the columns. Only the places where the object begins or ends are brought into it: many times
    faster for an object in a large image.
    """
    height, width = size
    padded = np.zeros((inside.shape[0] + 2, inside.shape[1]), bool)
    padded[1:-1] = inside
    rows, cols = np.divmod(np.flatnonzero(padded[1:] != padded[:-1]), max(1, inside.shape[1]))  # nonzero is slower
    changes = np.sort((cols + left) * height + rows + top)
    apart = np.diff(changes, prepend=-1, append=-1) != 0  # not at the end of a column, and at the start of the next one
    changes = changes[apart[1:] & apart[:-1]]
    counts = np.diff(changes, prepend=0, append=height * width)
    if counts.size > 1 and not counts[-1]:
        counts = counts[:-1]
    encoded = pycoco.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
    return {"size": [height, width], "counts": encoded["counts"].decode()}


def polygons(mask: np.ndarray, tolerance: float = 1.0) -> list[list[float]]:
    """COCO polygons ``[x0, y0, x1, y1, ...]`` for a bool mask (H, W), one per connected component, largest first.

    x points right, y down, in pixels; the corner pixel covers 0..1. An outline runs a quarter of a pixel inside the
    outermost pixels, so that COCO's rasteriser restores the mask exactly if ``tolerance`` is 0.
    tolerance: outlines are simplified by at most this many pixels; a hole that vanishes this way is filled.

    COCO polygons have no holes: the outline of a hole is joined to the outer one by a line there and back. Programs
    that fill by the even-odd or the winding rule leave the hole open.
    """
    inside, top, left = cropped(mask)
    if not inside.size:
        return []
    # OpenCV's outlines run through pixel centres. Upscaled by two, even a thin line has an area.
    large = inside.astype(np.uint8).repeat(2, 0).repeat(2, 1)
    found, tree = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    outer: dict[int, np.ndarray] = {}
    holes: dict[int, list[np.ndarray]] = {}
    for index, (contour, (_, _, _, parent)) in enumerate(zip(found, tree[0], strict=True)):
        simple = cv2.approxPolyDP(contour, 2 * tolerance, closed=True) if tolerance else contour
        if parent < 0:
            outer[index] = (simple if len(simple) > 2 else contour)[:, 0]
        elif len(simple) > 2:
            holes.setdefault(int(parent), []).append(simple[:, 0])
    rings = [joined(ring, holes.get(index, [])) for index, ring in outer.items()]
    rings.sort(key=lambda ring: -cv2.contourArea(ring))
    return [((ring + 0.5) / 2 + (left, top)).ravel().tolist() for ring in rings]


def joined(ring: np.ndarray, holes: list[np.ndarray]) -> np.ndarray:
    """One closed line (N, 2) through an outline and its holes or other parts, each joined by its shortest connection to
    one point."""
    for hole in holes:
        there = int(((ring - hole[0]) ** 2).sum(axis=1).argmin())
        ring = np.concatenate([ring[: there + 1], hole, hole[:1], ring[there:]])
    return ring


def coco_file(mask: np.ndarray, shape: Any, source: str, category: str) -> dict[str, Any]:
    """A COCO file with one image and, if the bool mask (H, W) has pixels, one annotation with this segmentation."""
    height, width = mask.shape
    ids = {"id": 1, "image_id": 1, "category_id": 1}
    annotations = [ids | annotation_of(mask, shape)] if mask.any() else []
    return {
        "images": [{"id": 1, "file_name": source, "height": height, "width": width}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": category}],
    }


def annotation_of(mask: np.ndarray, shape: Any) -> dict[str, Any]:
    """What COCO says about an object, without ids: a bool mask (H, W) with pixels, and its segmentation."""
    inside, top, left = cropped(mask)
    box = [left, top, inside.shape[1], inside.shape[0]]
    return {"segmentation": shape, "area": int(np.count_nonzero(inside)), "bbox": box, "iscrowd": 0}


def save_png(path: Path, pixels: np.ndarray) -> None:
    """Write atomically; uint8 or uint16 (H, W), or uint8 (H, W, 3 or 4)."""
    with writing_atomically(path) as file:
        encode_png(file, pixels)


def encode_png(file: BinaryIO, pixels: np.ndarray) -> None:
    """Write pixels, uint8 (H, W) or (H, W, 3 or 4), as a PNG. The compression is light, because masks compress well."""
    Image.fromarray(pixels).save(file, "PNG", compress_level=3)
