"""Label Studio's run lengths for brush masks.

A stream of bits, most significant first: 32 for the number of values, 5 for the bits of a value less one, 4 times 4 for
the four possible lengths of a count less one; then pieces: 1 bit whether it is a run, 2 bits which of the four lengths
its count has, the count less one, and the value (once in a run, else count times). The values are those of an RGBA
image row by row: a mask's pixel is four times 0 or 255.
"""

from __future__ import annotations

import numpy as np

VALUE_BITS = 8
COUNT_BITS = (3, 4, 8, 16)


def encode(mask: np.ndarray) -> list[int]:
    """Bytes, 0..255 each, of a bool mask (H, W)."""
    flat = mask.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=~flat[:1]))
    lengths = 4 * np.diff(starts, append=flat.size)
    bits = [f"{4 * flat.size:032b}", f"{VALUE_BITS - 1:05b}", *(f"{count - 1:04b}" for count in COUNT_BITS)]
    longest = 2 ** COUNT_BITS[-1]
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        value = "1" * VALUE_BITS if flat[start] else "0" * VALUE_BITS
        while length:
            part = min(length, longest)
            which = next(number for number, count in enumerate(COUNT_BITS) if part <= 2**count)
            bits.append(f"1{which:02b}{part - 1:0{COUNT_BITS[which]}b}{value}")
            length -= part
    text = np.frombuffer("".join(bits).encode(), np.uint8) - ord("0")
    return np.packbits(text).tolist()


def decode(rle: list[int], height: int, width: int) -> np.ndarray:
    """bool (height, width) of run lengths, of :func:`encode` or of Label Studio itself: where a pixel is not clear."""
    bits = "".join(f"{byte:08b}" for byte in rle)
    at = 0

    def read(count: int) -> int:
        nonlocal at
        at += count
        return int(bits[at - count : at], 2)

    values = np.zeros(read(32), np.uint8)
    value_bits = read(5) + 1
    count_bits = [read(4) + 1 for _ in range(4)]
    done = 0
    while done < len(values):
        run = read(1)
        count = read(count_bits[read(2)]) + 1
        if run:
            values[done : done + count] = read(value_bits)
        else:
            values[done : done + count] = [read(value_bits) for _ in range(count)]
        done += count
    return values.reshape(height, width, 4)[..., 3] > 0
