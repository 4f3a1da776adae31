"""High-dimensional Gaussian filtering on the permutohedral lattice.

Source: Adams et al., "Fast High-Dimensional Filtering Using the Permutohedral Lattice" (Eurographics 2010). Each value
is distributed over the corners of the simplex around its position, the corners are blurred along the axes of the
lattice, and values are interpolated from them again. The cost is linear in the number of values.
"""

from __future__ import annotations

import math

import numpy as np

from hrseg_cli.errors import HrsegError


class Lattice:
    """The lattice for fixed positions; :meth:`blur` filters any values at them.

    positions: (N, D), in standard deviations of the Gaussian. Raises HrsegError if they span too much to number the
    corners.
    """

    def __init__(self, positions: np.ndarray) -> None:
        keys, self._weights, steps = _simplices(positions)
        found, index = np.unique(keys, return_inverse=True)
        self._corners = index.reshape(keys.shape)
        self._count = len(found)
        self._neighbours = [[_find(found, found + sign * step) for sign in (1, -1)] for step in steps]

    def blur(self, values: np.ndarray) -> np.ndarray:
        """float32 (N,): sums of values (N,) weighted by the Gaussian, up to a constant factor."""
        spread = np.bincount(self._corners.ravel(), (self._weights * values).ravel(), self._count)
        grid = np.append(spread, 0)  # missing neighbours point to the last entry
        for one, other in self._neighbours:
            grid[:-1] = grid[:-1] + 0.5 * (grid[one] + grid[other])
        read: np.ndarray = np.einsum("cn,cn->n", self._weights, grid[self._corners])
        return read.astype(np.float32)


def _find(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The index of each wanted key in sorted ``keys``; ``len(keys)`` for missing ones."""
    place = np.searchsorted(keys, wanted)
    place[place == len(keys)] = 0
    return np.where(keys[place] == wanted, place, len(keys))


def _simplices(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Numbers (D + 1, N) of the corners of the simplex around each position, its barycentric weights, and the step of
    the number along each of the D + 1 axes of the lattice."""
    dimensions, count = positions.shape[1], len(positions)
    sides = dimensions + 1
    # Project onto the plane whose coordinates sum to 0, scaled so that the blur has unit variance.
    elevated = np.zeros((sides, count), np.float32)
    for i in range(dimensions, 0, -1):
        scaled = positions[:, i - 1] * (np.sqrt(2 / 3) * sides / np.sqrt(i * (i + 1)))
        elevated[i] -= i * scaled
        elevated[:i] += scaled
    # The nearest point whose coordinates are all multiples of D + 1. If they do not sum to 0, the coordinates with the
    # largest rounding are rounded the other way.
    nearest = np.rint(elevated / sides)
    offsets = elevated / sides - nearest
    rank = np.broadcast_to(nearest.sum(0), nearest.shape).astype(np.int32)
    for i in range(sides):
        for j in range(i + 1, sides):
            behind = offsets[i] < offsets[j]
            rank[i] += behind
            rank[j] += ~behind
    turned = (rank < 0).astype(np.int32) - (rank > dimensions)
    nearest, offsets, rank = nearest + turned, offsets - turned, rank + sides * turned
    # The weights are the differences of neighbouring offsets, sorted by rank.
    falling = np.empty_like(offsets)
    np.put_along_axis(falling, rank, offsets, 0)
    weights = np.vstack([1 - falling[:1] + falling[-1:], (falling[:-1] - falling[1:])[::-1]])
    # The digits of a corner's number are its coordinates, except the last, which is minus the sum of the others.
    spans = [int(row.max() - row.min()) * sides + 4 * sides + 1 for row in nearest[:-1]]
    values = [math.prod(spans[:i]) for i in range(dimensions)]
    if math.prod(spans) >= 2**62:
        raise HrsegError("dense CRF: distance and colour are too small for an image of this size; increase them")
    digits = np.array([*values, 0], np.int64)
    numbers = np.empty((sides, count), np.int64)
    numbers[0] = digits[:-1] @ (nearest[:-1].astype(np.int64) * sides)
    # From one corner to the next, all coordinates grow by 1, except that the one of the highest remaining rank first
    # falls by D + 1.
    highest = np.empty_like(rank)
    np.put_along_axis(highest, rank, np.arange(sides, dtype=np.int32)[:, None], 0)
    for k in range(1, sides):
        numbers[k] = numbers[k - 1] + digits.sum() - sides * digits[highest[sides - k]]
    return numbers, weights, [int(sides * digit - digits.sum()) for digit in digits]
