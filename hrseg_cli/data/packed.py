"""Masks that are not images: the MATLAB files of SBD and the pickles of RITM's COCO+LVIS.

A pickle is a program. The loader here never runs it: it maps the names of numpy arrays to three placeholder classes
that hold the array's bytes, and refuses every other name.
"""

from __future__ import annotations

import io
import pickle
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from hrseg_cli.errors import HrsegError
from hrseg_cli.limits import MATLAB, PICKLE
from hrseg_cli.parsing import Malformed, read_bytes

warnings.filterwarnings("ignore", module=r"scipy\.io")  # about odd variables, in lines that name no file


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
    from scipy.io import loadmat

    try:
        data = io.BytesIO(_unpacked(read_bytes(path, MATLAB)))
        found = loadmat(data, variable_names=["GTinst"])["GTinst"]["Segmentation"][0, 0]
    except FileNotFoundError:
        raise HrsegError(f"{path}: no such file; put it back or remove its partner") from None
    except Exception as error:  # as above
        raise HrsegError(f"{path}: cannot be read as an SBD mask ({_why(path, error)}); replace it") from None
    if not isinstance(found, np.ndarray) or found.ndim != 2 or found.dtype.kind not in "iu":
        raise HrsegError(f"{path}: GTinst.Segmentation is not a 2-D array of integers; replace it")
    return found.astype(np.int32)


def _unpacked(blob: bytes) -> bytes:
    """A MATLAB file without compression: scipy would unpack without an end. Raises Malformed or zlib.error."""
    order = "<" if blob[126:128] == b"IM" else ">"
    parts, place, left = [blob[:128]], 128, MATLAB
    while place + 8 <= len(blob):
        kind, size = struct.unpack_from(f"{order}II", blob, place)
        end = place + 8 + size
        if kind == 15:  # zlib
            unpack = zlib.decompressobj()
            parts.append(unpack.decompress(blob[place + 8 : end], left))
            if unpack.unconsumed_tail:
                raise Malformed(f"more than {MATLAB / 1e6:.0f} MB")
            left -= len(parts[-1])
        else:
            parts.append(blob[place:end])
        place = end
    return b"".join([*parts, blob[place:]])


def _why(path: Path, error: Exception) -> str:
    if path.is_file() and path.stat().st_size == 0:
        return "an empty file"
    return " ".join(str(error).replace(str(path), "it").split()) or type(error).__name__
