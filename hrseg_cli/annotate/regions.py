"""A mask as its box and the runs along its rows: what the files and the page are made of.

A mask of twelve megapixels takes ten milliseconds each time that something looks at all of its pixels. So a click looks
at them once, here, and the PNG, the run lengths and the answer to the page are made from what was found.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any, NamedTuple

import numpy as np

from hrseg_cli.data.masks_out import box_run_lengths, cropped


class Region(NamedTuple):
    """size: (H, W) of the mask. top, left: of its box. inside: bool (h, w), the box's pixels; (0, 0) if the mask is
    empty. rows, starts, stops: (N,) int, its runs in the box: the row of each, its first column, and the one after its
    last."""

    size: tuple[int, int]
    top: int
    left: int
    inside: np.ndarray
    rows: np.ndarray
    starts: np.ndarray
    stops: np.ndarray

    @classmethod
    def of(cls, mask: np.ndarray) -> Region:
        """mask: bool (H, W)."""
        inside, top, left = cropped(mask)
        height, width = inside.shape
        padded = np.zeros(height * (width + 1) + 1, bool)  # each row behind a pixel of background
        padded[1:].reshape(height, width + 1)[:, :width] = inside
        rows, cols = np.divmod(np.flatnonzero(padded[1:] != padded[:-1]), width + 1)
        return cls((mask.shape[0], mask.shape[1]), top, left, inside, rows[::2], cols[::2], cols[1::2])

    @property
    def area(self) -> int:
        return int((self.stops - self.starts).sum())

    @property
    def bbox(self) -> list[int]:
        """COCO's [x, y, width, height]."""
        return [self.left, self.top, self.inside.shape[1], self.inside.shape[0]]

    @property
    def counts(self) -> str:
        """COCO's compressed run lengths."""
        return str(box_run_lengths(self.inside, self.top, self.left, self.size)["counts"])

    def runs(self) -> dict[str, Any]:
        """``{"box": [top, left, height, width], "runs": [...]}`` for the page: run lengths inside the box, row by row,
        alternating background, object, background, ..."""
        if not len(self.rows):
            return {"box": [0, 0, 0, 0], "runs": []}
        changes = np.stack([self.starts, self.stops], axis=1) + self.rows[:, None] * self.inside.shape[1]
        lengths = np.diff(changes.ravel(), prepend=0)
        return {"box": [self.top, self.left, *self.inside.shape], "runs": lengths.tolist()}

    def png(self) -> bytes:
        """The mask as a grey PNG, 255 and 0."""
        height, width = self.size
        parts = {
            b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0),
            b"IDAT": self._packed(),
            b"IEND": b"",
        }
        chunks = (struct.pack(">I", len(data)) + kind + data + _check(kind + data) for kind, data in parts.items())
        return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)

    def _packed(self) -> bytes:
        """The rows of the PNG, each after its filter (none). Packing run lengths only takes as long as zlib's usual
        search, for a third of the bytes."""
        height, width = self.size
        rows = np.zeros((height, width + 1), np.uint8)
        bottom, right = self.top + self.inside.shape[0], self.left + self.inside.shape[1]
        np.multiply(self.inside, np.uint8(255), out=rows[self.top : bottom, 1 + self.left : 1 + right])
        packer = zlib.compressobj(1, strategy=zlib.Z_RLE)
        return packer.compress(rows.data) + packer.flush()


def _check(data: bytes) -> bytes:
    return struct.pack(">I", zlib.crc32(data))
