"""Read the pixels of image and mask files. For label rules see :mod:`hrseg_cli.data.labels`."""

from __future__ import annotations

import importlib
import io
import math
import struct
import warnings
import zlib
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageFile, ImageOps, PngImagePlugin, UnidentifiedImageError

from hrseg_cli.data import packed
from hrseg_cli.errors import HrsegError
from hrseg_cli.limits import DENSITY, IMAGE_BYTES, LIGHT_PIXELS, OBJECTS, PIXELS, PNG_TEXT
from hrseg_cli.parsing import read_bytes

PLUGIN, HEIF = "pillow_heif", (".heic", ".heif")  # what iPhones write; needs hrseg[heif]
SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm"),
    *(".tif", ".tiff", ".webp"),
    *(HEIF if find_spec(PLUGIN) else ()),
)
# Pillow knows more formats, and starts Ghostscript for one of them, whatever the file is called.
FORMATS = ("PNG", "JPEG", "MPO", "TIFF", "WEBP", "BMP", "DIB", "GIF", "PPM", "JPEG2000", "AVIF", "HEIF")
PNG_START = b"\x89PNG\r\n\x1a\n"
DIM = 1 << 14  # 16-bit images that stay below this have fewer significant bits, or are nearly black
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # EXIF orientation -> operation
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}

Image.MAX_IMAGE_PIXELS = None  # _decode has its own limit
PngImagePlugin.MAX_TEXT_CHUNK = PNG_TEXT  # cameras and editors store profiles and histories of several MB
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # errors are raised, and reported with the file
warnings.filterwarnings("ignore", module=r"PIL\.")  # about odd metadata, in lines that name no file


class Span(NamedTuple):
    """The values that become black and white in images of more than 8 bits; values in between are scaled."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:.10g}..{self.high:.10g}"


class MaskPixels(NamedTuple):
    """A mask file as stored.

    values: (H, W), bool, uint8 or a wider integer: grey values or palette indices. For a COCO+LVIS pickle uint8
        (H, W, layers).
    palette: uint8, (n, 3), the colours of the indices; None if the file has no palette.
    colours: (H, W, 3) if the file has colour channels that differ; ``values`` is then their maximum.
    objects: (layer, value) of each object k in the layers of a pickle; empty for all other files.
    alpha: uint8 (H, W) unless it is constant. Grey values and colours of transparent pixels are 0.
    lossy: whether the file format may have changed values.
    """

    values: np.ndarray
    palette: np.ndarray | None = None
    colours: np.ndarray | None = None
    objects: tuple[tuple[int, int], ...] = ()
    alpha: np.ndarray | None = None
    lossy: bool = False


def read_image(path: Path, at_most: int = PIXELS, span: Span | None = None, data: bytes | None = None) -> np.ndarray:
    """uint8, (H, W, 3), RGB, as read by OpenCV: EXIF orientation applied, alpha dropped, the upper 8 of 16 bits.

    at_most: pixels; a larger image is refused by its header. data: the bytes of the file; ``path`` is then only a name.
    span: the values of black and white in an image of more than 8 bits per channel. Without it such an image must reach
    a quarter of the 16-bit range; otherwise it would be nearly black, and is refused.
    """
    found = _decode(path, data, at_most)
    mode = found.picture.mode
    if mode != "F" and not mode.startswith("I"):
        colours = _array(found.picture, "RGB")
        if not found.deep or (span is None and colours.max(initial=0) >= DIM >> 8):
            return colours
        return _to_8_bits(path, _deep_colours(found, path, data), span)
    grey = _to_8_bits(path, _numbers(found), span)
    return np.repeat(grey[:, :, None], 3, axis=2)


def read_mask(path: Path, at_most: int = PIXELS) -> MaskPixels:
    """A mask as stored, with its EXIF orientation applied. RGB is reduced to the largest channel.

    ``.mat`` is an SBD file, ``.pickle`` a COCO+LVIS file. at_most: as for :func:`read_image`.
    """
    if path.suffix == ".mat":
        return MaskPixels(packed.read_mat(path))
    if path.suffix == ".pickle":
        return _read_layers(path)
    found = _decode(path, at_most=at_most)
    picture, alpha = found.picture, _alpha(found.picture)
    if picture.mode in ("P", "PA"):
        colours = np.array(picture.getpalette("RGB"), np.uint8).reshape(-1, 3)
        indices = _array(picture if picture.mode == "P" else picture.getchannel(0))
        used = int(indices.max(initial=0)) + 1
        palette = np.concatenate([colours, np.zeros((256, 3), np.uint8)])[:used]
        return MaskPixels(indices, palette, alpha=alpha, lossy=found.lossy)
    if found.deep:
        values = _deep_colours(found, path, None)
    elif picture.mode in ("1", "L", "F") or picture.mode.startswith("I"):
        values = _numbers(found)
    elif picture.mode == "LA":
        values = _array(picture.getchannel("L"))
    else:
        values = _array(picture, "RGB")
    if values.dtype.kind == "f":
        if not np.isfinite(values).all() or not np.array_equal(values, np.rint(values)):
            raise HrsegError(f"{path}: floating-point pixels; save the mask as an 8-bit PNG")
        values = values.astype(np.int64)
    if values.dtype.kind in "iu" and values.dtype != np.uint8:
        if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
            raise HrsegError(f"{path}: values outside 0..65535; save the mask as an 8- or 16-bit PNG")
        values = values.astype(np.uint16)
    if alpha is not None:
        values[alpha == 0] = 0
    if values.ndim == 2:
        return MaskPixels(values, alpha=alpha, lossy=found.lossy)
    grey = values.max(axis=2)
    differ = (values != grey[:, :, None]).any()
    return MaskPixels(grey, colours=values if differ else None, alpha=alpha, lossy=found.lossy)


def parse_span(text: str) -> Span:
    """Parse ``0..4095``. Raises HrsegError."""
    low, dots, high = text.partition("..")
    try:
        span = Span(float(low), float(high))
    except ValueError:
        dots = ""
    if not dots or not -math.inf < span.low < span.high < math.inf:
        raise HrsegError(f"range {text}: write the values of black and white as LOW..HIGH, such as 0..4095")
    return span


# ---- more than 8 bits ------------------------------------------------------------------------------------------------


def _to_8_bits(path: Path, values: np.ndarray, span: Span | None) -> np.ndarray:
    """uint8 from integer or floating-point ``values``, as documented in :func:`read_image`."""
    if span is not None:
        scaled = (values.astype(np.float32).clip(*span) - span.low) * (255 / (span.high - span.low))
        return np.asarray(np.rint(np.nan_to_num(scaled)).clip(0, 255).astype(np.uint8))
    low, high = values.min(initial=0), values.max(initial=0)
    if values.dtype.kind != "f" and low >= 0 and (high == 0 or DIM <= high <= 65535):
        return np.asarray((values // 256).astype(np.uint8))
    if not (np.isfinite(low) and np.isfinite(high)):
        low, high = 0, 1
    whites = [1] if values.dtype.kind == "f" else [2**bits - 1 for bits in (8, 10, 12, 14, 16)]
    white = next((white for white in whites if high <= white), float(high))
    guess = Span(0, white) if low >= 0 else Span(float(low), float(high))
    raise HrsegError(
        f"{path}: values from {low:.10g} to {high:.10g}, not 8 or 16 bits; give the values of black and white as "
        f"`span` {guess} (for a dataset DATASET:range={guess}), or save it with 8 bits"
    )


def _numbers(found: _Found) -> np.ndarray:
    """(H, W) for one channel: bool, uint8, uint16, int32, uint32 or float32."""
    values = _array(found.picture)
    # Pillow stores unsigned 32-bit values as signed.
    return values.view(np.uint32) if found.layout.startswith("I;32") and "S" not in found.layout else values


def _deep_colours(found: _Found, path: Path, data: bytes | None) -> np.ndarray:
    """uint16 (H, W, 3), RGB, for 16 bits per channel, of which Pillow returns only the upper 8. Raises HrsegError."""
    shown = _array(found.picture, "RGB")
    blob = data or read_bytes(path, IMAGE_BYTES)
    # OpenCV's libraries print about profiles and texts that they would not use.
    blob = _png(blob, lambda name, _: name == b"tRNS" or not name[:1].islower()) or blob
    pixels = cv2.imdecode(np.frombuffer(blob, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is not None and pixels.dtype == np.uint16:
        colours = pixels[:, :, 2::-1] if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)
        for turned in (TURNS.get(found.turn, np.asarray)(colours), colours):
            # Compare with and without rotation, since decoders differ; Pillow rounds PPM files to 8 bits.
            if turned.shape == shown.shape and cv2.absdiff((turned // 256).astype(np.uint8), shown).max() <= 1:
                return np.ascontiguousarray(turned)
    raise HrsegError(f"{path}: unsupported kind of 16 bits per channel; save it with 8 bits, or as a 16-bit PNG")


def _read_layers(path: Path) -> MaskPixels:
    """RITM's format for a COCO+LVIS image: layers of ids, each a PNG, and the (layer, id) of each object k."""
    content = packed.load_pickle(path)
    try:
        blobs, objects = list(content[0]), list(content[1])
        places = tuple((int(layer), int(value)) for layer, value in objects[:OBJECTS])
        most = PIXELS // max(1, len(blobs))
        layers = [_array(_decode(path, one if isinstance(one, bytes) else one.data, most).picture) for one in blobs]
        values = np.stack(layers, axis=2)
        sound = values.dtype == np.uint8 and all(0 <= k < len(layers) and 0 < v < 256 for k, v in places)
        sound = sound and len(content) == 2 and len(objects) <= OBJECTS
    except (TypeError, ValueError, AttributeError, LookupError, OverflowError):
        sound = False
    if not sound:
        raise HrsegError(f"{path}: not the (layers, objects) of COCO+LVIS; replace the file")
    return MaskPixels(values, objects=places)


class _Found(NamedTuple):
    """A decoded picture, upright, and facts about its file: the layout in Pillow's terms; whether its colours have 16
    bits per channel, of which the picture has the upper 8; the EXIF orientation; whether its format is lossy."""

    picture: Image.Image
    layout: str
    deep: bool
    turn: int
    lossy: bool


def _decode(path: Path, data: bytes | None = None, at_most: int = PIXELS) -> _Found:
    """Decode a picture completely, upright. With PIL, because it detects truncated files and keeps palettes.

    data: its bytes, if they are embedded in ``path``.
    """
    try:
        try:
            return _decoded(path, data, at_most)
        except (SyntaxError, OSError):
            if (repaired := _without_broken_extras(path, data)) is None:
                raise
            return _decoded(path, repaired, at_most)
    except (HrsegError, MemoryError):
        raise
    except FileNotFoundError:
        raise HrsegError(f"{path}: no such file; restore it or remove its partner") from None
    except Exception as error:  # a broken file can raise nearly anything inside a decoder
        empty = path.is_file() and path.stat().st_size == 0
        reason = "an empty file" if empty else getattr(error, "strerror", None) or str(error).split("\n")[0]
        if isinstance(error, UnidentifiedImageError) and not empty:
            reason = f"not {', '.join(_formats()[:-1])} or {_formats()[-1]}"
        reason = reason.replace(repr(str(path)), "it").replace(str(path), "it")
        raise HrsegError(f"{path}: cannot be read as an image ({reason}); replace the file") from None


def _decoded(path: Path, data: bytes | None, at_most: int) -> _Found:
    with _opened(path, data) as picture:
        _check_pixels(path, picture.size, len(data) if data else path.stat().st_size, at_most)
        if picture.format == "PNG":  # Pillow decodes corrupt PNG data without an error
            picture.verify()
    with _opened(path, data) as picture:
        if (pages := _pages(picture)) > 1:
            raise HrsegError(f"{path}: contains {pages} pages; save each one as a separate file")
        layout, deep = _layout(picture)
        lossy = _is_lossy(picture)
        turn = picture.getexif().get(0x0112, 1) if deep else 1
        picture.load()
        ImageOps.exif_transpose(picture, in_place=True)
        return _Found(picture, layout, deep, turn, lossy)


def _check_pixels(path: Path, size: tuple[int, int], its_bytes: int, at_most: int) -> None:
    """Raises HrsegError for a picture that is too large, or far larger than its file can honestly contain."""
    pixels = size[0] * size[1]
    if pixels > at_most:
        raise HrsegError(
            f"{path}: {size[0]}x{size[1]} exceeds the limit of {at_most / 1e6:g} megapixels; make it smaller"
        )
    if pixels > max(LIGHT_PIXELS, DENSITY * its_bytes):
        raise HrsegError(f"{path}: {size[0]}x{size[1]} pixels in {its_bytes} bytes is no photograph; replace the file")


def _without_broken_extras(path: Path, data: bytes | None) -> bytes | None:
    """A PNG without those ancillary chunks whose checksum is wrong, as other programs read it; None for other files.
    Transparency is ancillary too, but changes a mask, so it stays."""
    blob = data or read_bytes(path, IMAGE_BYTES)
    repaired = _png(blob, lambda name, sound: sound or name == b"tRNS" or not name[:1].islower())
    return repaired if repaired and len(repaired) < len(blob) else None


def _png(blob: bytes, keep: Callable[[bytes, bool], bool]) -> bytes | None:
    """A PNG with the chunks for which ``keep`` is true, called with the chunk's name and whether its checksum is right;
    None for other files."""
    if not blob.startswith(PNG_START):
        return None
    kept, place = [PNG_START], len(PNG_START)
    while place + 12 <= len(blob):
        (length,) = struct.unpack_from(">I", blob, place)
        chunk = blob[place : place + 12 + length]
        name, body, sum_ = chunk[4:8], chunk[4:-4], chunk[-4:]
        if keep(name, len(chunk) == 12 + length and struct.pack(">I", zlib.crc32(body)) == sum_):
            kept.append(chunk)
        place += 12 + length
    return b"".join([*kept, blob[place:]])


def _array(picture: Image.Image, mode: str | None = None) -> np.ndarray:
    """The pixels, converted to ``mode``, band by band: Pillow's own conversion needs three times the memory."""
    rows = max(1, (1 << 22) // max(1, picture.width))
    if rows >= picture.height:
        return np.array(picture if mode is None else picture.convert(mode))
    found: np.ndarray | None = None
    for top in range(0, picture.height, rows):
        band = picture.crop((0, top, picture.width, min(top + rows, picture.height)))
        part = np.asarray(band if mode is None else band.convert(mode))
        if found is None:
            found = np.empty((picture.height, *part.shape[1:]), part.dtype)
        found[top : top + len(part)] = part
    assert found is not None
    return found


def _opened(path: Path, data: bytes | None) -> ImageFile.ImageFile:
    return Image.open(path if data is None else io.BytesIO(data), formats=_formats())


@cache
def _formats() -> tuple[str, ...]:
    """Those of :data:`FORMATS` that this Pillow can read, with its plugin for HEIC if that is installed."""
    Image.init()
    if find_spec(PLUGIN):
        importlib.import_module(PLUGIN).register_heif_opener(thumbnails=False)
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _pages(picture: Image.Image) -> int:
    """Number of pictures in the file. Thumbnails and transparency masks in a TIFF do not count, nor do the extra frames
    that phones add to a JPEG."""
    frames = getattr(picture, "n_frames", 1)
    if frames == 1 or picture.format in ("MPO", "HEIF"):  # the first is the photograph
        return 1
    if picture.format != "TIFF":
        return int(frames)
    whole = 0
    for number in range(frames):
        picture.seek(number)
        tags = picture.tag_v2  # type: ignore[attr-defined]
        whole += not tags.get(254, 0) & 0b101 and tags.get(255, 1) != 2
    picture.seek(0)
    return whole


def _layout(picture: ImageFile.ImageFile) -> tuple[str, bool]:
    """Sample layout of the file, such as "I;16B", and whether it has 16-bit colours. Call before decoding."""
    arguments = picture.tile[0][3] if picture.tile else ""
    first, *rest = arguments if isinstance(arguments, tuple) else (arguments,)
    deep_ppm = picture.format == "PPM" and rest[:1] == [65535]
    colours = picture.mode not in ("1", "L", "P", "F") and not picture.mode.startswith("I")
    return str(first), colours and (";16" in str(first) or deep_ppm)


def _is_lossy(picture: ImageFile.ImageFile) -> bool:
    """Whether saving may have changed the values of a mask. Call before decoding."""
    if picture.format == "WEBP":
        return not _has_chunk(picture, b"VP8L")
    return picture.format in ("JPEG", "MPO", "JPEG2000", "HEIF") or picture.info.get("compression") in (
        "jpeg",
        "tiff_jpeg",
        "webp",
    )


def _has_chunk(picture: ImageFile.ImageFile, name: bytes) -> bool:
    """Whether a RIFF file has a chunk of that name."""
    file = picture.fp
    assert file is not None
    file.seek(12)
    while len(head := file.read(8)) == 8:
        if head[:4] == name:
            return True
        size = int.from_bytes(head[4:], "little")
        file.seek(size + size % 2, io.SEEK_CUR)
    return False


def _alpha(picture: Image.Image) -> np.ndarray | None:
    """uint8 (H, W), also from a colour declared transparent; None if it is constant."""
    if picture.mode in ("L", "P", "RGB") and "transparency" in picture.info:
        picture = picture.convert("RGBA")
    if picture.mode not in ("LA", "PA", "RGBA", "La", "RGBa"):
        return None
    alpha = np.array(picture.getchannel(len(picture.getbands()) - 1))
    return alpha if alpha.min(initial=255) < alpha.max(initial=0) else None
