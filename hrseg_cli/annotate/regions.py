"""A mask as its box and the runs along its rows: what the files and the page are made of.

A mask of twelve megapixels takes ten milliseconds each time that something looks at all of its pixels. So a click looks
at them once, here, and the PNG, the run lengths and the answer to the page are made from what was found.
"""

from __future__ import annotations

import struct
import zlib
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from hrseg_cli.data.masks_out import box_run_lengths, cropped

NOISE = 64  # pixels a run on average, below which zlib is as fast
LONGEST = 258  # bytes that one code of deflate repeats


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
        start = self.rows * self.inside.shape[1]
        lengths = np.diff(_alternating(start + self.starts, start + self.stops), prepend=0)
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
        """The rows of the PNG, each behind its filter (none), packed by deflate (RFC 1951).

        They are two bytes in long runs, so that the codes follow from the runs, without the bytes themselves: a
        tenth of zlib's time, for a file of the same size.
        """
        height, width = self.size
        if len(self.rows) > height * width // NOISE:
            return self._zipped()
        end = height * (width + 1)
        start = (self.top + self.rows) * (width + 1) + 1 + self.left
        first, after = start + self.starts, start + self.stops
        # Adler's sum (RFC 1950): of the bytes, and of each byte as often as it is followed by another one, or ends.
        length = after - first
        total = int(length.sum())
        later = int((length * (end - first) - length * (length - 1) // 2).sum())
        checked = (end + 255 * later) % 65521 << 16 | (1 + 255 * total) % 65521
        return b"\x78\x01" + _deflated(_alternating(first, after), end) + struct.pack(">I", checked)

    def _zipped(self) -> bytes:
        height, width = self.size
        rows = np.zeros((height, width + 1), np.uint8)
        bottom, right = self.top + self.inside.shape[0], self.left + self.inside.shape[1]
        np.multiply(self.inside, np.uint8(255), out=rows[self.top : bottom, 1 + self.left : 1 + right])
        return zlib.compress(rows.data, 1)


def _check(data: bytes) -> bytes:
    return struct.pack(">I", zlib.crc32(data))


def _alternating(starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    return np.stack([starts, stops], axis=1).ravel()


def _deflated(changes: np.ndarray, end: int) -> bytes:
    """Bytes 0 and 255 in turns, changing at these places, as one block of deflate with its fixed codes: of each run its
    byte, then repetitions of it."""
    if not changes.size or changes[-1] < end:
        changes = np.append(changes, end)
    whole, rest = np.divmod(np.diff(changes, prepend=0) - 1, LONGEST)
    first = np.arange(len(whole)) % 2 * (LONGEST + 1)  # of the codes of its byte
    one = np.ones_like(whole)
    kinds = np.stack([first + 1, first + LONGEST, first + rest], axis=1).ravel()
    kinds = np.repeat(kinds, np.stack([one, whole, one], axis=1).ravel())
    bits, sizes = _codes()
    kinds = np.concatenate([[len(bits) - 2], kinds, [len(bits) - 1]])
    places = np.cumsum(sizes[kinds])
    stop = int(places[-1])
    places -= sizes[kinds]
    # No code has more than 32 bits: one starts in each word of 32, and reaches into the next one at most.
    begins = np.flatnonzero(np.diff(places >> 5, prepend=-1))
    joined = np.bitwise_or.reduceat(bits[kinds] << (places & 31).astype(np.uint64), begins)
    packed = np.zeros(len(joined) + 1, np.uint64)
    packed[:-1] = joined & np.uint64(0xFFFFFFFF)
    packed[1:] |= joined >> np.uint64(32)
    return packed.astype("<u4").tobytes()[: (stop + 7) // 8]


@cache
def _codes() -> tuple[np.ndarray, np.ndarray]:
    """The codes as numbers, whose lowest bit comes first, and how many bits they have: 0 to 258 repetitions of byte 0,
    the same of byte 255, the header of a last block, its end."""
    found = []
    for literal, size in ((0b00110000, 8), (0b111111111, 9)):
        one = _turned(literal, size)
        found += [(0, 0), (one, size), (one | one << size, 2 * size)]
        for more in range(LONGEST - 2):  # repetitions beyond the least number of them, which is 3
            extra = max(0, more.bit_length() - 3)
            code = 285 if more == LONGEST - 3 else 257 + 4 * extra + (more >> extra)
            size_of = 7 if code < 280 else 8
            turned = _turned(code - 256 if code < 280 else code - 280 + 0b11000000, size_of)
            more = 0 if code == 285 else more & ((1 << extra) - 1)
            extra = 0 if code == 285 else extra
            found.append((turned | more << size_of, size_of + extra + 5))  # 5 zeros: repeat what is one byte back
    found += [(0b011, 3), (0, 7)]
    return np.array([bits for bits, _ in found], np.uint64), np.array([size for _, size in found])


def _turned(code: int, size: int) -> int:
    """Huffman codes start with their highest bit, all else with its lowest."""
    return int(f"{code:0{size}b}"[::-1], 2)
