"""Ways of showing an image to a network: cropped around the object, mirrored, in tiles. Functions around one forward.

Boxes have both ends inside: (top, bottom, left, right) in pixels. Tensors are (B, C, H, W), images RGB in [0, 1],
previous masks probabilities in [0, 1].
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hrseg_cli.interaction import Click
from hrseg_cli.models.base import Features, InteractiveModel
from hrseg_cli.recipe import Protocol, Tiles, ZoomIn

T = TypeVar("T")


class Box(NamedTuple):
    """A rectangle of pixels; ``bottom`` and ``right`` belong to it."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def size(self) -> tuple[int, int]:
        return self.bottom - self.top + 1, self.right - self.left + 1


class Shown:
    """A picture as a network sees it, (1, 3, H, W) float32 in [0, 1], and what its encoder made of it."""

    def __init__(self, image: Tensor) -> None:
        self.image = image
        self.features: dict[bool, Features] = {}  # of the picture itself, and of its mirror image (True)


class Look(NamedTuple):
    """What a network is asked: a picture, the previous answer (1, 1, H, W) and the clicks in its pixels.

    flip: the mirrored image is asked about too, where the model wants that, and the mean of both is the answer.
    """

    shown: Shown
    previous: Tensor
    clicks: Sequence[Click]
    flip: bool


@torch.inference_mode()
def follow(model: InteractiveModel, course: Generator[Look, Tensor, T]) -> T:
    """What comes of a course of looks when ``model`` answers each with its logits (1, 1, H, W)."""
    try:
        look = next(course)
        while True:
            look = course.send(ask(model, [look]))
    except StopIteration as end:
        result: T = end.value
        return result


def ask(model: InteractiveModel, looks: Sequence[Look]) -> Tensor:
    """(B, 1, H, W) logits for B looks of one size and one ``flip``, in one pass of the network. What its encoder makes
    of a picture is kept there for later looks."""
    previous = torch.cat([look.previous for look in looks])
    clicks = [look.clicks for look in looks]
    width = previous.shape[-1]
    straight = encoded(model, [look.shown for look in looks])
    answer: Tensor
    turned: Tensor
    if not (looks[0].flip and model.mirror):
        answer = model.decode(straight, previous, points_tensor(*clicks, device=previous.device))["logits"]
        return answer
    mirror = encoded(model, [look.shown for look in looks], mirrored=True)
    mirrored = [[Click(c.row, width - c.col - 1, c.positive) for c in some] for some in clicks]
    if previous.is_cuda:
        points = points_tensor(*clicks, *mirrored, device=previous.device)
        both = tuple(torch.cat(pair) for pair in zip(straight, mirror, strict=True))
        answer, turned = model.decode(both, torch.cat([previous, previous.flip(3)]), points)["logits"].chunk(2)
    else:
        # On a CPU one after the other is as quick and takes half the memory; the answer is the same to the last bit.
        answer = model.decode(straight, previous, points_tensor(*clicks))["logits"]
        turned = model.decode(mirror, previous.flip(3), points_tensor(*mirrored))["logits"]
    return 0.5 * (answer + turned.flip(3))


def encoded(model: InteractiveModel, shown: Sequence[Shown], mirrored: bool = False) -> Features:
    """The features of pictures of one size, together. Those that no look has asked for yet are encoded in one pass."""

    def encode(some: Sequence[Shown]) -> Features:
        images = [one.image.flip(3) if mirrored else one.image for one in some]
        return model.encode(images[0] if len(images) == 1 else torch.cat(images))

    if not model.has_encoder:
        return encode(shown)
    if new := list(dict.fromkeys(one for one in shown if mirrored not in one.features)):
        made = encode(new)
        for number, one in enumerate(new):
            one.features[mirrored] = tuple(part[number : number + 1] for part in made)
    parts = [one.features[mirrored] for one in shown]
    return parts[0] if len(parts) == 1 else tuple(torch.cat(same) for same in zip(*parts, strict=True))


def points_tensor(*clicks: Sequence[Click], device: torch.device | str = "cpu") -> Tensor:
    """(B, 2N, 3) float64 rows (row, col, order) for B lists of clicks: N positive slots, then N negative, padded with
    -1 to what the longest needs."""
    sides = [
        [[(c.row, c.col, i) for i, c in enumerate(some) if c.positive is side] for side in (True, False)]
        for some in clicks
    ]
    slots = max(1, *(len(side) for both in sides for side in both))
    rows = [[row for side in both for row in [*side, *[(-1, -1, -1)] * (slots - len(side))]] for both in sides]
    return torch.tensor(rows, dtype=torch.float64).to(device, non_blocking=True)  # blocking waits for all that runs


def looks(
    shown: Shown, previous: Tensor, clicks: Sequence[Click], protocol: Protocol
) -> Generator[Look, Tensor, Tensor]:
    """The course to (1, 1, H, W) logits for a picture and a previous answer (1, 1, H, W): one look, or tiles."""
    tiles = protocol.tiles
    if not tiles or max(previous.shape[-2:]) <= tiles.size:
        return (yield Look(shown, previous, clicks, protocol.flip))
    # Overlapping tiles, blended by weights that fall off linearly in the overlap. Each tile gets its own clicks.
    height, width = previous.shape[-2:]
    total, weight = torch.zeros_like(previous), torch.zeros_like(previous)
    for top in _starts(height, tiles):
        for left in _starts(width, tiles):
            rows, cols = min(tiles.size, height - top), min(tiles.size, width - left)
            place = (..., slice(top, top + rows), slice(left, left + cols))
            inside = [
                Click(c.row - top, c.col - left, c.positive)
                for c in clicks
                if top <= c.row < top + rows and left <= c.col < left + cols
            ]
            ramp = _ramp(rows, tiles.overlap, previous)[:, None] * _ramp(cols, tiles.overlap, previous)[None, :]
            tile = Shown(shown.image[place])
            total[place] += (yield Look(tile, previous[place], inside, protocol.flip)) * ramp
            weight[place] += ramp
    return total / weight


def _starts(side: int, tiles: Tiles) -> list[int]:
    """First pixels of tiles that cover a side evenly and overlap by at least ``tiles.overlap``."""
    if side <= tiles.size:
        return [0]
    stride = max(1, tiles.size - tiles.overlap)
    count = 1 + -(-(side - tiles.size) // stride)
    return [round(i * (side - tiles.size) / (count - 1)) for i in range(count)]


def _ramp(length: int, overlap: int, like: Tensor) -> Tensor:
    position = torch.arange(length, dtype=like.dtype, device=like.device)
    edge = torch.minimum(position, length - 1 - position) + 1
    return (edge / (overlap + 1)).clamp(max=1)


# Zoom-in


def object_box(mask: Tensor, clicks: Sequence[Click], zoom: ZoomIn) -> Box | None:
    """The crop for a bool mask (H, W) and the positive clicks: their common box, expanded, clamped; None if empty."""
    if mask.is_cuda:  # one row and one column come over, not the mask
        seen = torch.cat([mask.any(1), mask.any(0)]).cpu().numpy()
        rows, cols = np.flatnonzero(seen[: mask.shape[0]]), np.flatnonzero(seen[mask.shape[0] :])
    else:
        pixels = mask.numpy()
        rows = np.flatnonzero(pixels.any(axis=1))
        cols = np.flatnonzero(pixels[rows[0] : rows[-1] + 1].any(axis=0)) if rows.size else rows
    if rows.size == 0:
        return None
    down = [int(rows[0]), int(rows[-1]), *(int(c.row) for c in clicks if c.positive)]
    across = [int(cols[0]), int(cols[-1]), *(int(c.col) for c in clicks if c.positive)]
    box = Box(min(down), max(down), min(across), max(across))
    return clamp(expand(box, zoom.expansion, zoom.min_crop), *mask.shape)


def expand(box: Box, ratio: float, min_side: int | None = None) -> Box:
    """The box grown about its centre by ``ratio``, each side at least ``min_side`` long; may leave the image."""
    ends = []
    for low, high in ((box.top, box.bottom), (box.left, box.right)):
        centre, side = 0.5 * (low + high), ratio * (high - low + 1)
        if min_side is not None:
            side = max(side, min_side)
        ends += [round(centre - 0.5 * side), round(centre + 0.5 * side)]
    return Box(*ends)


def clamp(box: Box, height: int, width: int) -> Box:
    """The part of a box inside an image."""
    return Box(max(0, box.top), min(height - 1, box.bottom), max(0, box.left), min(width - 1, box.right))


def box_iou(a: Box, b: Box) -> float:
    """Product of the intersections over unions of the row and of the column ranges (as RITM counts it)."""
    iou = 1.0
    for i in (0, 2):
        shared = max(0, min(a[i + 1], b[i + 1]) - max(a[i], b[i]) + 1)
        union = max(1e-6, max(a[i + 1], b[i + 1]) - min(a[i], b[i]) + 1)
        iou *= shared / union
    return iou


def holds_positive_clicks(box: Box, clicks: Sequence[Click]) -> bool:
    """Whether every positive click lies in the box, its last row and column left out (as RITM counts it)."""
    return all(box.top <= c.row < box.bottom and box.left <= c.col < box.right for c in clicks if c.positive)


def enlarged(target: int | tuple[int, int], factor: int) -> int | tuple[int, int]:
    """A protocol's zoom-in target for a model that looks at its input ``factor`` times smaller."""
    return target * factor if isinstance(target, int) else (target[0] * factor, target[1] * factor)


def crop_size(box: Box, target: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the resized crop: ``target`` itself, or its longer side at ``target``."""
    if not isinstance(target, int):
        return target
    scale = target / max(box.size)
    return max(1, round(box.size[0] * scale)), max(1, round(box.size[1] * scale))


def unit(image: Tensor) -> Tensor:
    """An image as float32 in [0, 1]; uint8 counts to 255."""
    return image if image.is_floating_point() else image.float().div_(255)


def crop(x: Tensor, box: Box, size: tuple[int, int]) -> Tensor:
    """(B, C, *size) float32: the box of ``x``, in [0, 1] or uint8, resized bilinearly, corners aligned."""
    window = x[:, :, box.top : box.bottom + 1, box.left : box.right + 1]
    if x.is_cuda:
        return F.interpolate(unit(window), size=size, mode="bilinear", align_corners=True)
    # PyTorch would copy the whole window first. Of 24 megapixels the rows and columns between which the crop's pixels
    # lie are a twentieth.
    (top, bottom, down), (left, right, across) = (
        _between(*sides) for sides in zip(window.shape[-2:], size, strict=True)
    )
    near = unit(window.index_select(2, torch.cat([top, bottom])).index_select(3, torch.cat([left, right])))
    rows = near[..., : size[1]].lerp(near[..., size[1] :], across)
    return rows[:, :, : size[0]].lerp(rows[:, :, size[0] :], down[:, None])


def _between(size: int, to: int) -> tuple[Tensor, Tensor, Tensor]:
    """For each of ``to`` positions spread over ``size`` pixels: those before and behind it, and how far it has got from
    one to the other, in [0, 1]."""
    place = torch.arange(to, dtype=torch.float32) * ((size - 1) / max(1, to - 1))
    before = place.floor().clamp_(max=size - 1)
    return before.long(), (before + 1).clamp_(max=size - 1).long(), (place - before).clamp_(0, 1)


def padded(x: Tensor, multiple: int) -> Tensor:
    """``x`` with its last row and column repeated until both sides are multiples."""
    height, width = x.shape[-2:]
    return F.pad(x, (0, -width % multiple, 0, -height % multiple), mode="replicate")


class Pictures:
    """An image and what networks saw of it last: the whole of it, which every new object starts from, and one crop.
    While a picture stays, it is neither cut nor encoded again.

    image: (1, 3, H, W) float32 in [0, 1], or uint8.
    """

    LARGEST = 2**21  # pixels of a picture that is kept

    def __init__(self, image: Tensor) -> None:
        self.image = image
        self._kept: dict[bool, tuple[object, Shown]] = {}  # by whether it is the whole image

    def show(self, box: Box | None, size: tuple[int, int], multiple: int | None = None) -> Shown:
        """The box of the image at ``size``, padded to multiples; the whole image as it is where ``box`` is None."""
        whole = box is None or box.size == tuple(self.image.shape[-2:])
        place = box, size, multiple
        kept, shown = self._kept.get(whole, (None, None))
        if shown is None or kept != place:
            cut = unit(self.image) if box is None else crop(self.image, box, size)
            shown = Shown(padded(cut, multiple) if multiple else cut)
            if size[0] * size[1] <= self.LARGEST:
                self._kept[whole] = place, shown
        return shown


def crop_clicks(clicks: Sequence[Click], box: Box, size: tuple[int, int]) -> list[Click]:
    """Clicks in the resized crop's coordinates; those outside the box keep coordinates outside the crop."""
    (height, width), (rows, cols) = size, box.size
    return [Click(height * (c.row - box.top) / rows, width * (c.col - box.left) / cols, c.positive) for c in clicks]


def paste(probability: Tensor, box: Box, height: int, width: int) -> Tensor:
    """(1, 1, H, W): a crop's probabilities resized into its box, 0 outside.

    Written once, where it belongs: on a CPU a large image costs what its box costs.
    """
    if probability.device.type == "cpu":
        # Unlike PyTorch's, NumPy's zeros take no time until they are touched.
        whole = torch.from_numpy(np.zeros((1, 1, height, width), np.float32))
    else:
        whole = probability.new_zeros(1, 1, height, width)
    inside = whole[:, :, box.top : box.bottom + 1, box.left : box.right + 1]
    torch.ops.aten.upsample_bilinear2d.out(probability, list(box.size), True, None, None, out=inside)
    return whole
