"""Pixels of image and mask files, and how grey values become truth.

    nonzero   > 0 is object (DAVIS; SegNext)
    gt128     > 128 is object (HQ-SAM)
    void128   > 128 is object, 128 is ignored (RITM's folder reader)
    grabcut   as void128, and the value 1 is object too (RITM's GrabCut and Berkeley reader)
    auto      chosen per mask, see :func:`binarize`

The rule is logged with every number, for it moves boundaries by a pixel.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
from PIL import Image, ImageOps

from hrseg_cli.data import packed
from hrseg_cli.errors import HrsegError, UnknownName
from hrseg_cli.recipe import BinarizeRule

SUFFIXES = (".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
MAX_PIXELS = 10**9

Image.MAX_IMAGE_PIXELS = None  # gigapixel images are welcome here; _decode keeps a limit of its own


class MaskPixels(NamedTuple):
    """A mask file as stored.

    values: (H, W), bool, uint8 or a wider integer: grey values, or the palette's indices. Of a pickle of COCO+LVIS
        uint8 (H, W, layers).
    palette: uint8, (n, 3), the colours of the indices; None where the file has no palette.
    colours: (H, W, 3) where the file has colour channels that differ; ``values`` is their maximum.
    objects: where object k is in the layers: (layer, value) each; empty for everything else.
    """

    values: np.ndarray
    palette: np.ndarray | None = None
    colours: np.ndarray | None = None
    objects: tuple[tuple[int, int], ...] = ()


def binarize(grey: np.ndarray, rule: BinarizeRule) -> tuple[np.ndarray, str]:
    """Grey values (H, W), bool, 8 or 16 bit -> (truth int8 (H, W): 1 object, 0 background, -1 ignored; rule used).

    auto: only 0 and 1 -> nonzero; at most 8 distinct values, as drawn labels have -> void128; more, as an
    anti-aliased edge has -> gt128. 16-bit values that exceed 255 are brought to 0..255 first (65535 -> 255).
    """
    if grey.dtype == bool:
        grey = grey.astype(np.uint8)
    elif grey.dtype != np.uint8:
        grey = (grey if grey.max(initial=0) <= 255 else np.rint(grey / 257)).astype(np.uint8)
    used: str = rule
    if rule == "auto":
        counts = np.bincount(grey.ravel(), minlength=256)
        used = "nonzero" if not counts[2:].any() else "void128" if np.count_nonzero(counts) <= 8 else "gt128"
    if used not in get_args(BinarizeRule):
        raise UnknownName("label rule", used, get_args(BinarizeRule))
    truth = (grey > (0 if used == "nonzero" else 128)).astype(np.int8)
    if used in ("void128", "grabcut"):
        truth[grey == 128] = -1
    if used == "grabcut":
        truth[grey == 1] = 1
    return truth, used


def grey_values(pixels: MaskPixels, rule: BinarizeRule) -> tuple[np.ndarray, BinarizeRule]:
    """Values and rule to binarise by. Indices of a palette are labels, so "auto" is "nonzero" there."""
    if pixels.palette is None:
        return pixels.values, rule
    # A grey picture that a PNG optimiser turned into a palette may number white before black.
    grey = (pixels.palette == pixels.palette[:, :1]).all() and pixels.palette[0].any()
    values = pixels.palette[:, 0][pixels.values] if grey else pixels.values
    return values, "nonzero" if rule == "auto" else rule


def read_image(path: Path, at_most: int = MAX_PIXELS) -> np.ndarray:
    """uint8, (H, W, 3), RGB, as OpenCV reads it: EXIF turned, alpha dropped, the upper 8 of 16 bits.

    at_most: pixels; a larger image is refused by its header.
    """
    picture = _decode(path, at_most=at_most)
    if picture.mode == "F":
        raise HrsegError(f"{path}: floating-point pixels; save the image with 8 or 16 bits a channel")
    if picture.mode.startswith("I"):
        grey = (np.asarray(picture) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    return np.array(picture.convert("RGB"))


def read_mask(path: Path, at_most: int = MAX_PIXELS) -> MaskPixels:
    """A mask as stored, turned by its EXIF tag. Of colours the maximum; a cut-out of one colour gives its alpha.

    ``.mat`` is a file of SBD, ``.pickle`` one of COCO+LVIS. at_most: as of :func:`read_image`.
    """
    if path.suffix == ".mat":
        return MaskPixels(packed.read_mat(path))
    if path.suffix == ".pickle":
        return _read_layers(path)
    picture = _decode(path, at_most=at_most)
    if picture.mode in ("P", "PA"):
        colours = np.array(picture.getpalette("RGB"), np.uint8).reshape(-1, 3)
        indices = np.array(picture if picture.mode == "P" else picture.getchannel(0))
        used = int(indices.max(initial=0)) + 1
        return MaskPixels(indices, np.concatenate([colours, np.zeros((256, 3), np.uint8)])[:used])
    if picture.mode not in ("1", "L", "F", "RGB", "RGBA", "LA") and not picture.mode.startswith("I"):
        picture = picture.convert("RGB")
    values = np.array(picture)
    if values.dtype.kind == "f":
        if not np.array_equal(values, np.rint(values)):
            raise HrsegError(f"{path}: floating-point pixels; save the mask as an 8-bit PNG")
        values = values.astype(np.int32)
    if values.dtype.kind in "iu" and values.dtype != np.uint8:
        if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
            raise HrsegError(f"{path}: values outside 0..65535; save the mask as an 8- or 16-bit PNG")
        values = values.astype(np.uint16)
    if values.ndim == 2:
        return MaskPixels(values)
    if values.shape[2] in (2, 4):
        colours, alpha = values[:, :, :-1], values[:, :, -1]
        visible = colours[alpha > 0]
        if alpha.min(initial=255) < alpha.max(initial=0) and (visible == visible[0]).all():
            return MaskPixels(alpha)
        values = colours
    grey = values.max(axis=2)
    return MaskPixels(grey, colours=values if (values != grey[:, :, None]).any() else None)


def voc_indices(colours: np.ndarray) -> np.ndarray | None:
    """uint8 (H, W): the indices in VOC's palette of colours (H, W, 3); None when one of them is not in it.

    Tools that know no palettes save VOC's masks in colours. Bit k of an index is bit 7 - k // 3 of channel k % 3.
    """
    index = np.arange(256)
    known = np.zeros(256, np.int64)
    for k in range(8):
        known |= ((index >> k) & 1) << (8 * (2 - k % 3) + 7 - k // 3)
    order = np.argsort(known)
    codes = colours.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
    found = order[np.searchsorted(known[order], codes).clip(max=255)]
    return found.astype(np.uint8) if np.array_equal(known[found], codes) else None


def _read_layers(path: Path) -> MaskPixels:
    """Layers of small ids, each a PNG, and for object k its (layer, id): what RITM stores for an image of COCO+LVIS."""
    content = packed.load_pickle(path)
    try:
        blobs, objects = content
        places = tuple((int(layer), int(value)) for layer, value in objects)
        layers = [np.asarray(_decode(path, blob if isinstance(blob, bytes) else blob.data)) for blob in blobs]
        values = np.stack(layers, axis=2)
        sound = values.dtype == np.uint8 and all(0 <= k < len(layers) and 0 < v < 256 for k, v in places)
    except (TypeError, ValueError, AttributeError):
        sound = False
    if not sound:
        raise HrsegError(f"{path}: not the (layers, objects) of COCO+LVIS; replace the file")
    return MaskPixels(values, objects=places)


def _decode(path: Path, data: bytes | None = None, at_most: int = MAX_PIXELS) -> Image.Image:
    """A picture with all its pixels, upright. PIL, for it notices truncated files and keeps palettes.

    data: its bytes, where they lie inside of ``path``.
    """
    try:
        with _opened(path, data) as picture:
            if picture.width * picture.height > at_most:
                limit = "1 gigapixel" if at_most == MAX_PIXELS else f"{at_most / 1e6:g} megapixels"
                raise HrsegError(f"{path}: {picture.width}x{picture.height} is more than {limit}; make it smaller")
            if picture.format == "PNG":  # pixels that are damaged inside of the file are decoded without complaint
                picture.verify()
        with _opened(path, data) as picture:
            picture.load()
            ImageOps.exif_transpose(picture, in_place=True)
            return picture
    except (HrsegError, MemoryError):
        raise
    except FileNotFoundError:
        raise HrsegError(f"{path}: no such file; put it back or remove its partner") from None
    except Exception as error:  # a broken file can raise nearly anything inside a decoder
        empty = path.is_file() and path.stat().st_size == 0
        reason = "an empty file" if empty else getattr(error, "strerror", None) or str(error).split("\n")[0]
        reason = reason.replace(repr(str(path)), "it").replace(str(path), "it")
        raise HrsegError(f"{path}: cannot be read as an image ({reason}); replace the file") from None


def _opened(path: Path, data: bytes | None) -> Image.Image:
    return Image.open(path if data is None else io.BytesIO(data))
