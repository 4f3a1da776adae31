"""Masks that are not images: the MATLAB files of SBD and the pickles of RITM's COCO+LVIS.

A pickle is a program. The loader here never runs it: it maps the names of numpy arrays to three placeholder classes
that hold the array's bytes, and refuses every other name.
"""

from __future__ import annotations

import io
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from hrseg_cli.errors import HrsegError
from hrseg_cli.limits import MATLAB, PICKLE
from hrseg_cli.parsing import Malformed, read_bytes


class PackedArray:
    """Placeholder for a numpy array of bytes; ``data`` is its content."""

    def __init__(self, *_: object) -> None:
        self.data = b""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, _, dtype, _, raw = state
        if not isinstance(dtype, _Dtype) or dtype.code != "u1" or not isinstance(raw, bytes):
            raise pickle.UnpicklingError("an array whose dtype is not bytes")
        self.data = raw


class _Dtype:
    """Placeholder for ``numpy.dtype``."""

    def __init__(self, code: object = "", *_: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        """Ignore byte order and alignment, which bytes do not have."""


_STAND_INS = {
    ("numpy.core.multiarray", "_reconstruct"): PackedArray,  # numpy 1
    ("numpy._core.multiarray", "_reconstruct"): PackedArray,  # numpy 2
    ("numpy", "ndarray"): PackedArray,
    ("numpy", "dtype"): _Dtype,
}


class _Unpickler(pickle._Unpickler):
    """In Python, because the memo of the C unpickler is an array as long as the highest number in the file: nine bytes
    take two gigabytes. It takes three times as long."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which no dataset needs")
        return _STAND_INS[module, name]


def load_pickle(path: Path) -> Any:
    """Load lists, tuples, dicts, numbers, strings and :class:`PackedArray` from a pickle. Raises HrsegError.

    Safe for untrusted files: nothing outside this module is looked up or called.
    """
    try:
        return _Unpickler(io.BytesIO(read_bytes(path, PICKLE))).load()
    except FileNotFoundError:
        raise HrsegError(f"{path}: no such file; put it back or remove its partner") from None
    except Exception as error:  # a broken pickle can raise nearly anything
        raise HrsegError(f"{path}: cannot be read as a COCO+LVIS pickle ({_why(path, error)}); replace it") from None


def read_mat(path: Path) -> np.ndarray:
    """int32, (H, W): ``GTinst.Segmentation`` of an SBD MATLAB file: 0 background, 1..n objects. Raises HrsegError."""
    try:
        found = _instances(read_bytes(path, MATLAB))
    except FileNotFoundError:
        raise HrsegError(f"{path}: no such file; put it back or remove its partner") from None
    except Exception as error:  # as above
        raise HrsegError(f"{path}: cannot be read as an SBD mask ({_why(path, error)}); replace it") from None
    if found.ndim != 2 or found.dtype.kind not in "iu":
        raise HrsegError(f"{path}: GTinst.Segmentation is not a 2-D array of integers; replace it")
    return found.astype(np.int32)


# MATLAB's format, version 5, as MathWorks documents it. scipy.io crashes on damaged files.
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_MATRIX, _COMPRESSED = 14, 15  # kinds of elements
_STRUCT = 2  # class of a matrix


def _instances(blob: bytes) -> np.ndarray:
    """The matrix GTinst.Segmentation with the numbers as stored. Raises Malformed, zlib.error or struct.error."""
    order = {b"IM": "<", b"MI": ">"}.get(blob[126:128])
    if order is None:
        raise Malformed("no MATLAB file of version 5 to 7")
    place, left = 128, MATLAB
    while place < len(blob):
        kind, content, place = _element(blob, place, order)
        if kind == _COMPRESSED:
            unpack = zlib.decompressobj()
            inner = unpack.decompress(content, left)
            if unpack.unconsumed_tail:
                raise Malformed(f"more than {MATLAB / 1e6:.0f} MB")
            left -= len(inner)
            kind, content, _ = _element(inner, 0, order)
        if kind == _MATRIX:
            name, of, shape, start = _header(content, order)
            if name == b"GTinst" and of == _STRUCT and shape == (1, 1):
                return _numbers(_field(content, start, order, b"Segmentation"), order)
    raise Malformed("no GTinst with one Segmentation")


def _element(blob: bytes, place: int, order: str) -> tuple[int, bytes, int]:
    """Kind and content of the element at a place, and the place of the next one."""
    kind, size = struct.unpack_from(f"{order}II", blob, place)
    if kind >> 16:  # short: the content is in the second half of the tag
        kind, size, start, following = kind & 0xFFFF, kind >> 16, place + 4, place + 8
    else:
        start = place + 8
        following = start + size + (-size % 8 if kind != _COMPRESSED else 0)
    content = blob[start : start + size]
    if len(content) < size or (following == place + 8 and size > 4):
        raise Malformed("cut short")
    return kind, content, following


def _header(matrix: bytes, order: str) -> tuple[bytes, int, tuple[int, ...], int]:
    """Name, class and shape of a matrix, and the place of its content."""
    _, flags, place = _element(matrix, 0, order)
    _, sizes, place = _element(matrix, place, order)
    _, name, place = _element(matrix, place, order)
    (of,) = struct.unpack_from(f"{order}I", flags)
    return name, of & 0xFF, tuple(int(side) for side in np.frombuffer(sizes, f"{order}i4")), place


def _field(matrix: bytes, place: int, order: str, wanted: bytes) -> bytes:
    """The matrix in a field of a 1 x 1 structure."""
    _, length, place = _element(matrix, place, order)
    _, names, place = _element(matrix, place, order)
    (step,) = struct.unpack(f"{order}i", length)
    if step < 1:
        raise Malformed("field names without letters")
    for start in range(0, len(names), step):
        kind, content, place = _element(matrix, place, order)
        if names[start : start + step].rstrip(b"\0") == wanted and kind == _MATRIX:
            return content
    raise Malformed(f"no field {wanted.decode()}")


def _numbers(matrix: bytes, order: str) -> np.ndarray:
    _, of, shape, place = _header(matrix, order)
    kind, content, _ = _element(matrix, place, order)
    if not 6 <= of <= 15 or kind not in _NUMBERS or min(shape, default=-1) < 0:
        raise Malformed("Segmentation has no numbers")
    return np.frombuffer(content, order + _NUMBERS[kind]).reshape(shape, order="F")


def _why(path: Path, error: Exception) -> str:
    if path.is_file() and path.stat().st_size == 0:
        return "an empty file"
    return " ".join(str(error).replace(str(path), "it").split()) or type(error).__name__
