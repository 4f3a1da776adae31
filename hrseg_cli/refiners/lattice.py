"""Gaussian filtering in many dimensions at once, on the permutohedral lattice.

Source: Adams et al., "Fast High-Dimensional Filtering Using the Permutohedral Lattice" (Eurographics 2010). A value is
spread over the corners of the simplex that holds its position, blurred along the lattice's axes, and read off again:
the cost grows with the number of values, not with its square.
"""

from __future__ import annotations

import numpy as np

from hrseg_cli.errors import HrsegError


class Lattice:
    """What spreading values at fixed positions takes; :meth:`blur` filters any values at them.

    positions: (N, D), in standard deviations of the Gaussian. Raises HrsegError where they span so much that corners
    can no longer be numbered.
    """

    def __init__(self, positions: np.ndarray) -> None:
        corners, weights = _simplices(positions)  # (N, D + 1, D), (N, D + 1)
        dimensions = positions.shape[1]
        low = corners.min((0, 1)) - dimensions - 1
        spans = corners.max((0, 1)) + dimensions + 2 - low
        if np.prod(spans.astype(float)) >= 2**62:
            raise HrsegError("dense CRF: sigmas are too small for this image; give larger ones")
        place_values = np.append(1, np.cumprod(spans)[:-1]).astype(np.int64)
        keys, index = np.unique((corners - low) @ place_values, return_inverse=True)
        self._corners = index.reshape(weights.shape)
        self._weights = weights
        self._neighbours = []
        # The last coordinate of a corner is minus the sum of the others, and is not written out.
        for axis in range(dimensions + 1):
            step = np.full(dimensions, -1)
            if axis < dimensions:
                step[axis] = dimensions
            ways = [_find(keys, keys + sign * int(step @ place_values)) for sign in (1, -1)]
            self._neighbours.append(ways)
        self._count = len(keys)

    def blur(self, values: np.ndarray) -> np.ndarray:
        """float32 (N,): sums of values (N,) weighted by the Gaussian, up to a constant factor."""
        spread = np.bincount(self._corners.ravel(), (self._weights * values[:, None]).ravel(), self._count)
        grid = np.append(spread, 0)  # the last is where corners that nobody spread to are found
        for one, other in self._neighbours:
            grid[:-1] = grid[:-1] + 0.5 * (grid[one] + grid[other])
        return np.einsum("nc,nc->n", self._weights, grid[self._corners]).astype(np.float32)


def _find(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where in sorted ``keys`` each wanted one is; their number for one that is not there."""
    place = np.searchsorted(keys, wanted)
    place[place == len(keys)] = 0
    return np.where(keys[place] == wanted, place, len(keys))


def _simplices(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners (N, D + 1, D), int32, of the simplex around each position, and its barycentric weights (N, D + 1)."""
    count, dimensions = positions.shape
    sides = dimensions + 1
    # Onto the plane through the origin whose coordinates sum to 0; the blur's variance is that of a unit Gaussian.
    scaled = positions * (np.sqrt(2 / 3) * sides / np.sqrt(np.arange(1, sides) * np.arange(2, sides + 1)))
    elevated = np.zeros((count, sides), np.float32)
    elevated[:, :-1] = np.cumsum(scaled[:, ::-1], axis=1)[:, ::-1]
    elevated[:, 1:] -= scaled * np.arange(1, sides)
    # The nearest point whose coordinates are all multiples of D + 1, made to sum to 0 too.
    nearest = np.rint(elevated / sides).astype(np.int32)
    excess = nearest.sum(1, keepdims=True)
    order = np.argsort(nearest * sides - elevated, axis=1, kind="stable")  # those rounded down most come first
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(sides)[None].repeat(count, 0), 1)
    rank += excess
    nearest += (rank < 0).astype(np.int32) - (rank > dimensions)
    rank += sides * ((rank < 0).astype(np.int32) - (rank > dimensions))
    base = nearest * sides
    # Sorted by rank, the differences of neighbouring offsets are the weights.
    offsets = np.empty_like(elevated)
    np.put_along_axis(offsets, rank, (elevated - base) / sides, 1)
    weights = np.empty_like(elevated)
    weights[:, 0] = 1 - offsets[:, 0] + offsets[:, -1]
    weights[:, 1:] = (offsets[:, :-1] - offsets[:, 1:])[:, ::-1]
    # Corner k is k further in all coordinates, less D + 1 in the k of highest rank.
    shifts = np.arange(sides)[:, None] - sides * (np.arange(sides)[None] > dimensions - np.arange(sides)[:, None])
    corners = base[:, None, :-1] + shifts[:, rank[:, :-1]].transpose(1, 0, 2)
    return corners.astype(np.int32), weights
