"""The probabilities of an image: of a large one stored at the network's resolution, and resized only where needed.

After a click on a 24-megapixel image, a mask needs its object's pixels and the next crop a grid of 800 by 800 of them.
All values are bit-identical to PyTorch's interpolation of the whole map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hrseg_cli.engine import views
from hrseg_cli.interaction import Box

PASTED = 2**21  # pixels of an image up to which resizing everything at once is faster
SMALL = 128  # height + width up to which PyTorch resizes with another kernel, whose values differ in their last bits
BAND = 2**15  # values of a band: fits into the processor's cache
ROUNDING = 1e-6  # a resized value exceeds its neighbours by less


class Answer:
    """Object probabilities of an image of ``size`` (height, width): those of a crop resized into ``box``, 0 outside.

    patch: (1, 1, h, w) float32 in [0, 1]. box: None if the patch is the whole image.
    """

    def __init__(self, patch: Tensor, box: Box | None, size: tuple[int, int]) -> None:
        self.box, self.size = box, size
        if box is not None and (patch.is_cuda or size[0] * size[1] <= PASTED):
            patch, self.box = views.paste(patch, box, *size), None
        elif box is not None and sum(box.size) <= SMALL:
            patch = F.interpolate(patch, size=box.size, mode="bilinear", align_corners=True)
        self.patch = patch

    @property
    def whole(self) -> Tensor:
        """(1, 1, H, W) float32."""
        if self.box is None:
            return self.patch
        whole = np.zeros(self.size, np.float32)
        rows, cols = (slice(0, side) for side in self.box.size)
        inside = whole[self.box.top : self.box.bottom + 1, self.box.left : self.box.right + 1]
        for band, values in _Resized(self.patch[0, 0], self.box.size).bands(rows, cols):
            inside[band] = values
        return torch.from_numpy(whole)[None, None]

    def above(self, threshold: float) -> np.ndarray:
        """Bool (H, W): pixels above ``threshold``."""
        if self.box is None:
            return np.asarray(views.above(self.patch, threshold).cpu().numpy())
        mask = np.zeros(self.size, bool)
        resized = _Resized(self.patch[0, 0], self.box.size)
        rows, cols = resized.reach(threshold)
        left, right = self.box.left + cols.start, self.box.left + cols.stop
        for band, values in resized.bands(rows, cols):
            top, bottom = self.box.top + band.start, self.box.top + band.stop
            np.greater(values, np.float32(threshold), out=mask[top:bottom, left:right])
        return mask

    def extent(self, threshold: float) -> Box | None:
        """The bounding box of the pixels above ``threshold``; None if there are none."""
        if self.box is None:
            return views.mask_box(views.above(self.patch, threshold))
        found = _Resized(self.patch[0, 0], self.box.size).extent(threshold)
        if found is None:
            return None
        down, across = self.box.top, self.box.left
        return Box(found.top + down, found.bottom + down, found.left + across, found.right + across)

    def crop(self, box: Box, size: tuple[int, int]) -> Tensor:
        """:func:`hrseg_cli.engine.views.crop` of the whole."""
        if self.box is None:
            return views.crop(self.patch, box, size)
        resized, own = _Resized(self.patch[0, 0], self.box.size), self.box

        def pixels(rows: Tensor, cols: Tensor) -> Tensor:
            down, across = rows + (box.top - own.top), cols + (box.left - own.left)
            row_in, col_in = _inside(down, own.size[0]), _inside(across, own.size[1])
            values = resized.at(down[row_in], across[col_in])
            if row_in.all() and col_in.all():
                return values[..., None]
            found = torch.zeros(len(rows), len(cols))
            found[row_in.nonzero(), col_in.nonzero().T] = values
            return found[..., None]

        return views.resized(pixels, box.size, size)


def blank(size: tuple[int, int], device: torch.device) -> Answer:
    """An answer of zeros."""
    if device.type == "cpu":
        return Answer(torch.zeros(1, 1, 1, 1), Box(0, 0, 0, 0), size)
    return Answer(torch.zeros(1, 1, *size, device=device), None, size)


class _Resized:
    """A map (h, w), bilinearly resized to ``size`` with aligned corners, but only where asked.

    PyTorch interpolates along rows, then along columns, as a * (1 - t) + b * t; where the processor has fused
    multiply-adds, the first product is not rounded. ``addcmul`` computes the same.
    """

    def __init__(self, x: Tensor, size: tuple[int, int]) -> None:
        self.x = x
        self.above, self.below, self.down = views.neighbours(x.shape[0], size[0])
        self.before, self.after, self.across = views.neighbours(x.shape[1], size[1])

    def at(self, rows: Tensor, cols: Tensor) -> Tensor:
        """(len(rows), len(cols)): the values at the crossings of rows and columns."""
        if not (len(rows) and len(cols)):
            return torch.zeros(len(rows), len(cols))
        above, below, down = (part.index_select(0, rows) for part in (self.above, self.below, self.down))
        first, last = int(above.min()), int(below.max())
        wide, down = self._wide(self.x[first : last + 1], cols), down[:, None]
        return wide.index_select(0, below - first).mul_(down).addcmul_(wide.index_select(0, above - first), 1 - down)

    def bands(self, rows: slice, cols: slice) -> Iterator[tuple[slice, np.ndarray]]:
        """The values of a rectangle in bands of rows, each valid until the next."""
        wide, down = self._wide(self.x, torch.arange(cols.start, cols.stop)), self.down[:, None]
        up, width = 1 - down, max(1, wide.shape[1])
        above, below = self.above.tolist(), self.below.tolist()
        buffer, place = torch.empty(0), rows.start
        for cell in _cells(self.above, rows):
            if (cell.stop - place) * width < BAND and cell.stop < rows.stop:
                continue
            band, place = slice(place, cell.stop), cell.stop
            if len(buffer) < band.stop - band.start:
                buffer = torch.empty(band.stop - band.start, wide.shape[1])
            values = buffer[: band.stop - band.start]
            if band == cell:  # all between the same two rows
                torch.mul(wide[below[band.start]], down[band], out=values)
                values.addcmul_(wide[above[band.start]], up[band])
            else:
                torch.mul(wide.index_select(0, self.below[band]), down[band], out=values)
                values.addcmul_(wide.index_select(0, self.above[band]), up[band])
            yield band, values.numpy()

    def reach(self, threshold: float) -> tuple[slice, slice]:
        """Ranges of rows and columns that contain all values above ``threshold``."""
        near = self.x.numpy() > np.float32(threshold - ROUNDING)
        return (
            _range(near.any(1), self.above, self.below),
            _range(near.any(0), self.before, self.after),
        )

    def extent(self, threshold: float) -> Box | None:
        """The bounding box of the values above ``threshold``, from the outside inwards."""
        rows, cols = self.reach(threshold)
        limit = np.float32(threshold)

        def first(bands: list[slice], values: Callable[[slice], np.ndarray], axis: int, end: int) -> int | None:
            for band in bands:
                hit = np.flatnonzero((values(band) > limit).any(axis))
                if hit.size:
                    return int(band.start) + int(hit[end])
            return None

        bands = _cells(self.above, rows)
        top = first(bands, lambda band: self._block(band, cols), 1, 0)
        if top is None:
            return None
        bottom = first(bands[::-1], lambda band: self._block(band, cols), 1, -1)
        assert bottom is not None
        rows, bands = slice(top, bottom + 1), _cells(self.before, cols)
        left = first(bands, lambda band: self._block(rows, band), 0, 0)
        right = first(bands[::-1], lambda band: self._block(rows, band), 0, -1)
        assert left is not None
        assert right is not None
        return Box(top, bottom, left, right)

    def _block(self, rows: slice, cols: slice) -> np.ndarray:
        return np.asarray(self.at(torch.arange(rows.start, rows.stop), torch.arange(cols.start, cols.stop)).numpy())

    def _wide(self, x: Tensor, cols: Tensor) -> Tensor:
        """``x`` resized along its rows, at these columns."""
        before, after, across = (part.index_select(0, cols) for part in (self.before, self.after, self.across))
        return x.index_select(1, after).mul_(across).addcmul_(x.index_select(1, before), 1 - across)


def _cells(low: Tensor, part: slice) -> list[slice]:
    """The pieces of a range of rows or columns that lie between the same two of the map. low: the one before each."""
    ends = (np.flatnonzero(np.diff(low[part].numpy())) + 1 + part.start).tolist()
    return [slice(a, b) for a, b in pairwise([part.start, *ends, part.stop])]


def _range(near: Any, before: Tensor, after: Tensor) -> slice:
    """The rows or columns next to one of the map's that is ``near``."""
    found = np.flatnonzero(near[before.numpy()] | near[after.numpy()])
    return slice(int(found[0]), int(found[-1]) + 1) if found.size else slice(0, 0)


def _inside(places: Tensor, count: int) -> Tensor:
    return (places >= 0) & (places < count)
