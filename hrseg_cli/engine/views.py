"""Views of an image that the network runs on: crops around the object (zoom-in), mirrored copies and tiles.

Boxes are (top, bottom, left, right) in pixels, both ends inclusive. Tensors are (B, C, H, W). Images are RGB in [0, 1],
previous masks probabilities in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hrseg_cli.interaction import Box, Click
from hrseg_cli.models.base import Features, InteractiveModel
from hrseg_cli.models.parts.stem import mirrored
from hrseg_cli.recipe import Protocol, Tiles, ZoomIn
from hrseg_cli.refiners import Look

T = TypeVar("T")


class View:
    """Network input (1, 3, H, W), float32 in [0, 1], with its encoder features once they have been computed.

    image: the input, or a function that makes it, for one that is too large to keep.
    """

    def __init__(self, image: Tensor | Callable[[], Tensor]) -> None:
        self._image = image
        self.features: dict[bool, tuple[object, Features]] = {}  # key: whether the image was mirrored

    @property
    def image(self) -> Tensor:
        return self._image if isinstance(self._image, Tensor) else self._image()


class Memory:
    """What a model remembers from one click to the next on a view; key: whether the view was mirrored.

    before: of the previous click; empty: nothing. after: of this click, set by :func:`infer`.
    """

    def __init__(self, before: dict[bool, Tensor]) -> None:
        self.before = before
        self.after: dict[bool, Tensor] = {}


class Query(NamedTuple):
    """The input of one forward pass: a view, the previous mask (1, 1, H, W), clicks and box in the view's pixels.

    flip: average the logits with those of the mirrored view, if the model supports mirroring. box: may exceed the view;
    None unless the model takes boxes. memory: for a model that remembers; None: nothing is remembered.
    """

    view: View
    previous: Tensor
    clicks: Sequence[Click]
    flip: bool
    box: Box | None = None
    memory: Memory | None = None


@torch.inference_mode()
def drive(model: InteractiveModel, queries: Generator[Query, Tensor, T]) -> T:
    """Run a generator of queries, sending it the model's logits (1, 1, H, W) for each, and return its result."""
    try:
        query = next(queries)
        while True:
            query = queries.send(infer(model, [query]))
    except StopIteration as end:
        result: T = end.value
        return result


def look_queries(
    looks: Generator[Look, np.ndarray, T], device: torch.device | str, flip: bool
) -> Generator[Query, Tensor, T]:
    """Queries for the views of a refiner, which is sent the probability (h, w) of each; returns what it returns."""
    try:
        look = next(looks)
        while True:
            image = unit(torch.from_numpy(look.image).to(device).permute(2, 0, 1)[None])
            previous = torch.from_numpy(look.previous.astype(np.float32)).to(device)[None, None]
            logits = yield Query(View(image), previous, look.clicks, flip)
            look = looks.send(torch.sigmoid(logits)[0, 0].float().cpu().numpy())
    except StopIteration as end:
        result: T = end.value
        return result


def infer(model: InteractiveModel, queries: Sequence[Query]) -> Tensor:
    """Logits (B, 1, H, W) of one forward pass over B queries, which share one size and one ``flip``.

    Encoder features are cached in the views.
    """
    previous = torch.cat([query.previous for query in queries])
    clicks = [query.clicks for query in queries]
    boxes = [query.box for query in queries]
    width = previous.shape[-1]

    def decode(
        features: Features,
        previous: Tensor,
        clicks: Sequence[Sequence[Click]],
        boxes: Sequence[Box | None],
        sides: Sequence[bool],
    ) -> Tensor:
        prompt = [points_tensor(*clicks, device=previous.device)]
        if any(boxes):
            prompt.append(boxes_tensor(boxes, previous.device))
        if model.remembers:
            return _recalled(model, features, previous, prompt[0], queries, sides)
        return model.decode(features, previous, *prompt)["logits"]

    straight = encode_views(model, [query.view for query in queries])
    if not (queries[0].flip and model.mirror):
        return decode(straight, previous, clicks, boxes, [False])
    mirror = encode_views(model, [query.view for query in queries], mirrored=True)
    mirrored = [[Click(c.row, width - c.col - 1, c.positive) for c in some] for some in clicks]
    turned = [box and box._replace(left=width - box.right - 1, right=width - box.left - 1) for box in boxes]
    if previous.is_cuda:
        both = tuple(torch.cat(pair) for pair in zip(straight, mirror, strict=True))
        twice = torch.cat([previous, previous.flip(3)])
        logits, flipped = decode(both, twice, [*clicks, *mirrored], [*boxes, *turned], [False, True]).chunk(2)
    else:
        # On a CPU two passes are as fast as one batch of two and need half the memory; the results are bit-identical.
        logits = decode(straight, previous, clicks, boxes, [False])
        flipped = decode(mirror, previous.flip(3), mirrored, turned, [True])
    return 0.5 * (logits + flipped.flip(3))


def _recalled(
    model: InteractiveModel,
    features: Features,
    previous: Tensor,
    points: Tensor,
    queries: Sequence[Query],
    sides: Sequence[bool],
) -> Tensor:
    """Logits of a model that remembers, whose memory of each query and side is read and written."""
    slots = [(query.memory, side) for side in sides for query in queries]
    known = [memory.before.get(side) if memory else None for memory, side in slots]
    example = next((one for one in known if one is not None), None)
    before = None
    if example is not None:
        before = torch.cat([torch.zeros_like(example) if one is None else one for one in known])
    outputs, after = model.recall(features, previous, points, before)
    for number, (memory, side) in enumerate(slots):
        if memory:
            memory.after[side] = after[number : number + 1]
    return outputs["logits"]


def encode_views(model: InteractiveModel, views: Sequence[View], mirrored: bool = False) -> Features:
    """Batched encoder features of views of one size. Views without cached features of these weights are encoded in
    one pass."""

    def encode(some: Sequence[View]) -> Features:
        images = [view.image.flip(3) if mirrored else view.image for view in some]
        return model.encode(images[0] if len(images) == 1 else torch.cat(images))

    if not model.has_encoder:
        return encode(views)
    weights = _weights(model)
    outdated = (view for view in views if view.features.get(mirrored, (None,))[0] != weights)
    if new := list(dict.fromkeys(outdated)):
        features = encode(new)
        for number, view in enumerate(new):
            view.features[mirrored] = weights, tuple(part[number : number + 1] for part in features)
    cached = [view.features[mirrored][1] for view in views]
    return cached[0] if len(cached) == 1 else tuple(torch.cat(same) for same in zip(*cached, strict=True))


def _weights(model: InteractiveModel) -> tuple[object, ...]:
    """Changes when the model is another one, and when its weights are changed in place."""
    return (model, *(weight._version for weight in model.parameters() if not weight.is_inference()))


def points_tensor(*clicks: Sequence[Click], device: torch.device | str = "cpu") -> Tensor:
    """(B, 2N, 3) float64 rows (row, col, order) for B lists of clicks: N positive slots, then N negative ones, where N
    fits the longest list. Unused slots hold -1."""
    sides = [
        [[(c.row, c.col, i) for i, c in enumerate(some) if c.positive is side] for side in (True, False)]
        for some in clicks
    ]
    slots = max(1, *(len(side) for both in sides for side in both))
    rows = [[row for side in both for row in [*side, *[(-1, -1, -1)] * (slots - len(side))]] for both in sides]
    return torch.tensor(rows, dtype=torch.float64).to(device, non_blocking=True)  # do not wait for running kernels


def boxes_tensor(boxes: Sequence[Box | None], device: torch.device | str = "cpu") -> Tensor:
    """(B, 4) float32 rows (top, left, bottom, right); -1 where there is no box."""
    rows = [(box.top, box.left, box.bottom, box.right) if box else (-1, -1, -1, -1) for box in boxes]
    return torch.tensor(rows, dtype=torch.float32).to(device, non_blocking=True)


def crop_queries(
    view: View,
    previous: Tensor,
    clicks: Sequence[Click],
    protocol: Protocol,
    box: Box | None = None,
    memory: Memory | None = None,
) -> Generator[Query, Tensor, Tensor]:
    """Yield the queries for a view and its previous mask (1, 1, H, W): one, or one per tile. Returns logits
    (1, 1, H, W). box, memory: see :class:`Query`; tiles are not remembered."""
    tiles = protocol.tiles
    if tiles and (by := tiles.border):
        inner = protocol.model_copy(update={"tiles": tiles.model_copy(update={"border": 0})})
        moved = [Click(c.row + by, c.col + by, c.positive) for c in clicks]
        shifted = box and Box(box.top + by, box.bottom + by, box.left + by, box.right + by)
        wide = yield from crop_queries(View(mirrored(view.image, by)), mirrored(previous, by), moved, inner, shifted)
        return wide[..., by:-by, by:-by]
    if not tiles or max(previous.shape[-2:]) <= tiles.size:
        return (yield Query(view, previous, clicks, protocol.flip, box, memory))
    # Overlapping tiles, blended with weights that fall off linearly in the overlap. A tile gets the clicks inside it,
    # and its part of the box.
    height, width = previous.shape[-2:]
    total, weight = torch.zeros_like(previous), torch.zeros_like(previous)
    rows, cols = min(tiles.size, height), min(tiles.size, width)
    for top in _starts(height, tiles):
        for left in _starts(width, tiles):
            place = (..., slice(top, top + rows), slice(left, left + cols))
            inside = [
                Click(c.row - top, c.col - left, c.positive)
                for c in clicks
                if top <= c.row < top + rows and left <= c.col < left + cols
            ]
            ramp = _ramp(rows, tiles.overlap, previous)[:, None] * _ramp(cols, tiles.overlap, previous)[None, :]
            tile = View(view.image[place])
            part = box and Box(box.top - top, box.bottom - top, box.left - left, box.right - left)
            total[place] += (yield Query(tile, previous[place], inside, protocol.flip, part)) * ramp
            weight[place] += ramp
    return total / weight


def _starts(side: int, tiles: Tiles) -> list[int]:
    """Start of each tile along a side: evenly spaced, overlapping by at least ``tiles.overlap``."""
    if side <= tiles.size:
        return [0]
    count = 1 + -(-(side - tiles.size) // (tiles.size - tiles.overlap))
    return [round(i * (side - tiles.size) / (count - 1)) for i in range(count)]


def _ramp(length: int, overlap: int, like: Tensor) -> Tensor:
    position = torch.arange(length, dtype=like.dtype, device=like.device)
    edge = torch.minimum(position, length - 1 - position) + 1
    return (edge / (overlap + 1)).clamp(max=1)


# Zoom-in


def above(probability: Tensor, threshold: float) -> Tensor:
    """Bool (H, W): pixels of a map (1, 1, H, W) above ``threshold``."""
    if probability.is_cuda:
        return probability[0, 0] > threshold
    return torch.from_numpy(probability[0, 0].numpy() > np.float32(threshold))  # twice as fast as PyTorch


def mask_box(mask: Tensor) -> Box | None:
    """The bounding box of a bool mask (H, W); None if it is empty."""
    if mask.is_cuda:  # copy two vectors to the CPU, not the mask
        occupied = torch.cat([mask.any(1), mask.any(0)]).cpu().numpy()
        rows, cols = np.flatnonzero(occupied[: mask.shape[0]]), np.flatnonzero(occupied[mask.shape[0] :])
    else:
        pixels = mask.numpy()
        rows = np.flatnonzero(pixels.any(axis=1))
        cols = np.flatnonzero(pixels[rows.min() : rows.max() + 1].any(axis=0)) if rows.size else rows
    return Box(int(rows[0]), int(rows[-1]), int(cols[0]), int(cols[-1])) if rows.size else None


def around(boxes: Sequence[Box]) -> Box:
    """The smallest box that contains all of at least one."""
    tops, bottoms, lefts, rights = zip(*boxes, strict=True)
    return Box(min(tops), max(bottoms), min(lefts), max(rights))


def object_box(found: Box, clicks: Sequence[Click], zoom: ZoomIn, size: tuple[int, int]) -> Box:
    """The crop for an object's bounding box and the positive clicks: expanded and clamped to the image's ``size``."""
    down = [found.top, found.bottom, *(int(c.row) for c in clicks if c.positive)]
    across = [found.left, found.right, *(int(c.col) for c in clicks if c.positive)]
    box = Box(min(down), max(down), min(across), max(across))
    return clamp(expand(box, zoom.expansion, zoom.min_crop), *size)


def expand(box: Box, ratio: float, min_side: int | None = None) -> Box:
    """The box scaled about its centre by ``ratio``, each side at least ``min_side`` pixels; may exceed the image."""
    ends = []
    for low, high in ((box.top, box.bottom), (box.left, box.right)):
        centre, side = 0.5 * (low + high), ratio * (high - low + 1)
        if min_side is not None:
            side = max(side, min_side)
        ends += [round(centre - 0.5 * side), round(centre + 0.5 * side)]
    return Box(*ends)


def clamp(box: Box, height: int, width: int) -> Box:
    """The box clipped to an image."""
    return Box(max(0, box.top), min(height - 1, box.bottom), max(0, box.left), min(width - 1, box.right))


def box_iou(a: Box, b: Box) -> float:
    """IoU of the row ranges times IoU of the column ranges (RITM's definition)."""
    iou = 1.0
    for i in (0, 2):
        shared = max(0, min(a[i + 1], b[i + 1]) - max(a[i], b[i]) + 1)
        union = max(a[i + 1], b[i + 1]) - min(a[i], b[i]) + 1
        iou *= shared / union
    return iou


def holds_positive_clicks(box: Box, clicks: Sequence[Click]) -> bool:
    """Whether every positive click lies in the box, excluding its last row and column (RITM's definition)."""
    return all(box.top <= c.row < box.bottom and box.left <= c.col < box.right for c in clicks if c.positive)


def enlarged(target: int | tuple[int, int], factor: int) -> int | tuple[int, int]:
    """A protocol's zoom-in target for a model that downsamples its input by ``factor``."""
    return target * factor if isinstance(target, int) else (target[0] * factor, target[1] * factor)


def crop_size(box: Box, target: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the resized crop: ``target`` if it is a pair, otherwise ``target`` is the longer side."""
    if not isinstance(target, int):
        return target
    scale = target / max(box.size)
    return max(1, round(box.size[0] * scale)), max(1, round(box.size[1] * scale))


def unit(image: Tensor) -> Tensor:
    """An image as float32 in [0, 1]; uint8 is divided by 255."""
    return image if image.is_floating_point() else image.float().div_(255)


def crop(x: Tensor, box: Box, size: tuple[int, int]) -> Tensor:
    """The box of ``x`` (1, C, H, W), float in [0, 1] or uint8, bilinearly resized with aligned corners: (1, C, *size)
    float32."""
    window = x[:, :, box.top : box.bottom + 1, box.left : box.right + 1]
    if x.is_cuda:
        return F.interpolate(unit(window), size=size, mode="bilinear", align_corners=True)
    # F.interpolate would copy the whole window first. Interpolating by hand reads only the rows and columns it needs:
    # a twentieth of a 24-megapixel image. NumPy copies the pixels of an image several times as fast as PyTorch.
    array = window[0].permute(1, 2, 0).numpy()

    def pixels(rows: Tensor, cols: Tensor) -> Tensor:
        return unit(torch.from_numpy(array.take(rows.numpy(), 0).take(cols.numpy(), 1, mode="clip")))

    return resized(pixels, box.size, size)


def resized(pixels: Callable[[Tensor, Tensor], Tensor], window: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """A window, bilinearly resized with aligned corners: (1, C, *size).

    pixels: rows and columns of the window -> the pixels at their crossings, float32 (rows, columns, C).
    """
    (top, bottom, down), (left, right, across) = (neighbours(*sides) for sides in zip(window, size, strict=True))
    near = pixels(torch.cat([top, bottom]), torch.cat([left, right]))
    channels = near.shape[2]
    near, across = near.flatten(1), across.repeat_interleave(channels)
    middle = size[1] * channels
    rows = near[:, :middle].lerp(near[:, middle:], across)
    found = rows[: size[0]].lerp(rows[size[0] :], down[:, None])
    return found.view(1, *size, channels).permute(0, 3, 1, 2)


def neighbours(size: int, to: int) -> tuple[Tensor, Tensor, Tensor]:
    """Interpolation of ``size`` pixels at ``to`` positions: indices of the pixel before and after each position, and
    the weight in [0, 1) of the one after. All positions with the same pixel before have the same one after."""
    place = torch.arange(to, dtype=torch.float32) * ((size - 1) / max(1, to - 1))
    place.clamp_(max=size - 1)  # the last product may be rounded up
    before = place.floor()
    return before.long(), (before + 1).clamp_(max=size - 1).long(), place - before


def padded(x: Tensor, multiple: int) -> Tensor:
    """``x`` padded to multiples of ``multiple`` by repeating its last row and column."""
    height, width = x.shape[-2:]
    return F.pad(x, (0, -width % multiple, 0, -height % multiple), mode="replicate")


class ViewCache:
    """An image with its most recent views: the whole image, which every new object starts from, and one crop.

    A cached view is neither resized nor encoded again. image: (1, 3, H, W) float32 in [0, 1], or uint8. fixed_input:
    see :class:`InteractiveModel`.
    """

    MAX_PIXELS = 2**21  # larger views are not cached; of those with small features, all but the pixels

    def __init__(self, image: Tensor, fixed_input: bool = False) -> None:
        self.image, self.fixed_input = image, fixed_input
        self._views: dict[bool, tuple[object, View]] = {}  # key: whether the view covers the whole image

    def view(self, box: Box | None, size: tuple[int, int], multiple: int | None = None) -> View:
        """The box of the image resized to ``size`` and padded to ``multiple``; None: the whole image, not resized."""
        whole = box is None or box.size == tuple(self.image.shape[-2:])
        wanted = box, size, multiple
        cached, view = self._views.get(whole, (None, None))
        if view is None or cached != wanted:

            def pixels() -> Tensor:
                found = unit(self.image) if box is None else crop(self.image, box, size)
                return padded(found, multiple) if multiple else found

            small = size[0] * size[1] <= self.MAX_PIXELS
            view = View(pixels if self.fixed_input and not small else pixels())
            if small or self.fixed_input:
                self._views[whole] = wanted, view
        return view


def crop_clicks(clicks: Sequence[Click], box: Box, size: tuple[int, int]) -> list[Click]:
    """Clicks in the coordinates of the resized crop; clicks outside the box stay outside the crop."""
    (height, width), (rows, cols) = size, box.size
    return [Click(height * (c.row - box.top) / rows, width * (c.col - box.left) / cols, c.positive) for c in clicks]


def crop_box(drawn: Box, box: Box, size: tuple[int, int]) -> Box:
    """A box in the coordinates of the resized crop ``box``, whose corner pixels coincide with those of the crop."""
    down, across = ((to - 1) / max(1, side - 1) for side, to in zip(box.size, size, strict=True))
    return Box(
        round((drawn.top - box.top) * down),
        round((drawn.bottom - box.top) * down),
        round((drawn.left - box.left) * across),
        round((drawn.right - box.left) * across),
    )


def paste(probability: Tensor, box: Box, height: int, width: int) -> Tensor:
    """(1, 1, H, W): a crop's probabilities resized into its box, 0 outside."""
    if probability.is_cuda:
        whole = probability.new_zeros(1, 1, height, width)
    else:
        whole = torch.from_numpy(np.zeros((1, 1, height, width), np.float32))  # NumPy allocates zeros lazily
    inside = whole[:, :, box.top : box.bottom + 1, box.left : box.right + 1]
    torch.ops.aten.upsample_bilinear2d.out(probability, list(box.size), True, None, None, out=inside)
    return whole
