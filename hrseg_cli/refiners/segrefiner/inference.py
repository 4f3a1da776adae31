"""Refine masks with SegRefiner: several objects, or one object that fills a large image.

Source: SegRefiner (Wang et al., NeurIPS 2023, arXiv 2312.12425), section 3.3 and its public code.

Images are RGB, uint8 (H, W, 3); float32 images must already be normalised. ``network`` is a ``Denoiser`` or any
callable with the same interface. ``draw`` makes random draws repeatable (:mod:`hrseg_cli.refiners.draws`); by default
there are none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrseg_cli.refiners import check_sizes
from hrseg_cli.refiners.draws import Draw, half
from hrseg_cli.refiners.segrefiner.diffusion import STEPS, Denoise, Refined, denoise

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
SIDE = 256  # input size of the published networks, in pixels

Box = tuple[slice, slice]  # rows and columns


@torch.inference_mode()
def refine_objects(
    network: Denoise,
    image: np.ndarray,
    masks: Sequence[np.ndarray],
    draw: Draw = half,
    *,
    side: int | None = None,
    margin: int = 20,
    smallest: int = 512,
    batch: int = 32,
    reference: bool = False,
) -> Iterator[np.ndarray]:
    """Yield the probabilities, float32 (H, W), of the refined objects, in order. Each object is cropped with a margin
    around its box, refined at ``side`` x ``side`` pixels in all six steps, and pasted back; 0 outside its crop.

    side: by default that of the network's training images.
    masks: bool or uint8 (H, W), non-zero is object. smallest: objects with fewer pixels are returned unchanged, in
    order (the public code moves them to the end). batch: objects refined at once; random draws depend on it.
    reference: reproduce the public code, which downscales large crops by interpolation instead of averaging, and pads
    results with 0, which reduces the probability along the image border by up to half.
    """
    side = side or _side(network)
    for mask in masks:
        check_sizes(image, mask)
    for start in range(0, len(masks), batch):
        some = masks[start : start + batch]
        large = [mask for mask in some if np.count_nonzero(mask) >= max(1, smallest)]
        boxes = [_box(mask, margin) for mask in large]
        results: Iterator[Tensor] = iter(())
        if large:
            pictures = torch.cat([_resized(_picture(image[box]), side, not reference) for box in boxes])
            planes = (_plane(mask, box) for mask, box in zip(large, boxes, strict=True))
            coarse = torch.cat([_resized(plane, side, not reference) for plane in planes])
            results = iter(_denoised(network, pictures, (coarse >= 0.5).float(), range(STEPS)[::-1], draw).probability)
        places = iter(boxes)
        for mask in some:
            probability = (mask > 0).astype(np.float32)
            if np.count_nonzero(mask) >= max(1, smallest):
                box = next(places)
                probability[:] = 0
                probability[box] = _fitted(next(results)[None], probability[box].shape, reference)
            yield probability


@torch.inference_mode()
def refine_large(
    network: Denoise,
    image: np.ndarray,
    mask: np.ndarray,
    draw: Draw = half,
    *,
    side: int | None = None,
    most: int | None = None,
    unsure: float = 0.9,
    overlap: float = 0.3,
    batch: int = 8,
    reference: bool = False,
) -> np.ndarray:
    """Probability, float32 (H, W), of the refined object in a large image; mask: bool or uint8 (H, W), non-zero is
    object.

    The object and its surroundings are refined at ``side`` x ``side`` pixels in five steps. In the sixth step, patches
    of this size at full resolution cover the pixels that are not certainly fine. Overlapping results are averaged.

    side: by default that of the network's training images.
    most: maximum number of patches; the least certain ones come first. unsure: a pixel gets a patch if its probability
    of being fine is below this share of the highest one. overlap: if the IoU of two patches is above it, the more
    certain one is dropped.
    reference: reproduce the public code, which always uses the whole image, takes single pixels instead of averaging
    and interpolating, and clears masks of up to 128 pixels. Its loss of parts of images smaller than ``side`` is not
    reproduced.
    """
    side = side or _side(network)
    check_sizes(image, mask)
    result = np.zeros(mask.shape, np.float32)
    if np.count_nonzero(mask) <= (128 if reference else 0):
        return result
    box = np.s_[:, :] if reference else _box(mask, max(20, max(cv2.boundingRect(mask.astype(np.uint8))[2:]) // 4))
    image, mask = image[box], mask[box]
    height, width = mask.shape
    if min(height, width) < side:  # smaller than a patch: pad on the right and at the bottom
        beyond = (0, max(0, side - height)), (0, max(0, side - width))
        image, mask = np.pad(image, (*beyond, (0, 0)), mode="edge"), np.pad(mask, beyond)
    share = _shrunk((mask > 0).astype(np.float32), side, reference)
    coarse = share >= (0.5 if reference else min(0.5, share.max() / 2))  # a thin object may fill no pixel by half
    picture = _picture(_shrunk(image, side, reference))
    seen = _denoised(network, picture, _plane(coarse), range(1, STEPS)[::-1], draw)
    mode = "nearest" if reference else "bilinear"
    probability: np.ndarray = F.interpolate(seen.probability, mask.shape, mode=mode)[0, 0].numpy()
    found = probability >= 0.5
    corners = _patches(seen.fine[0, 0].numpy(), found, side, unsure, overlap)[:most]
    total, count = np.zeros(mask.shape, np.float32), np.zeros(mask.shape, np.uint16)
    for start in range(0, len(corners), batch):
        patches = [np.s_[top : top + side, left : left + side] for top, left in corners[start : start + batch]]
        pictures = torch.cat([_picture(image[patch]) for patch in patches])
        masks = torch.cat([_plane(found, patch) for patch in patches])
        refined = _denoised(network, pictures, masks, (0,), draw).probability
        for patch, one in zip(patches, refined, strict=True):
            total[patch] += one[0].numpy()
            count[patch] += 1
    np.divide(total, count, out=probability, where=count > 0)
    result[box] = probability[:height, :width]
    return result


def _side(network: Denoise) -> int:
    return int(getattr(network, "side", SIDE))


def _denoised(network: Denoise, picture: Tensor, coarse: Tensor, steps: Sequence[int], draw: Draw) -> Refined:
    """:func:`denoise` on the device of the network; the result is on the CPU."""
    weight = next(network.parameters(), None) if isinstance(network, nn.Module) else None
    if weight is None or not weight.is_cuda:
        return denoise(network, picture, coarse, steps, draw)
    refined = denoise(network, picture.to(weight.device), coarse.to(weight.device), steps, draw)
    return Refined(refined.probability.cpu(), refined.fine.cpu())


def _patches(fine: np.ndarray, found: np.ndarray, side: int, unsure: float, overlap: float) -> np.ndarray:
    """int (N, 2): top left corners of the patches to refine, the least certain first, ties in raster order.

    fine: (h, w), probability that a pixel of the small image is fine. found: bool (H, W), the current mask; patches
    with only object or only background are skipped.
    """
    rows, cols = np.nonzero(fine < unsure * fine.max())
    order = np.argsort(fine[rows, cols], kind="stable")
    corners = np.empty((len(rows), 2), int)
    for axis, index in enumerate((rows[order], cols[order])):
        centres = (index * (found.shape[axis] / fine.shape[axis])).astype(int)
        corners[:, axis] = (centres - side // 2).clip(0, found.shape[axis] - side)
    kept = []
    while len(corners):
        top, left = corners[0]
        inside = found[top : top + side, left : left + side]
        if inside.any() and not inside.all():
            kept.append(corners[0])
        shared = (side - np.abs(corners - corners[0])).clip(0).prod(1)
        corners = corners[shared <= overlap * (2 * side * side - shared)]
    return np.array(kept, int).reshape(-1, 2)


def _box(mask: np.ndarray, margin: int) -> Box:
    """Rows and columns of the object's bounding box with a margin, clipped to the image."""
    rows, cols = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    down, across = (slice(max(0, int(some[0]) - margin), int(some[-1]) + 1 + margin) for some in (rows, cols))
    return down, across


def _picture(image: np.ndarray) -> Tensor:
    """(1, 3, h, w) float32, normalised."""
    if image.dtype == np.uint8:
        image = (image - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return torch.from_numpy(image).permute(2, 0, 1)[None]


def _plane(mask: np.ndarray, box: Box = np.s_[:, :]) -> Tensor:
    """(1, 1, h, w) float32."""
    return torch.from_numpy((mask[box] > 0).astype(np.float32))[None, None]


def _resized(x: Tensor, side: int, mean: bool) -> Tensor:
    return F.interpolate(x, (side, side), mode="bilinear", align_corners=False, antialias=mean)


def _shrunk(picture: np.ndarray, side: int, nearest: bool) -> np.ndarray:
    """An image (H, W, ...) downscaled to ``side`` x ``side``, by averaging or, with ``nearest``, by subsampling."""
    if nearest:
        rows, cols = (np.arange(side) * length // side for length in picture.shape[:2])
        return np.asarray(picture[rows[:, None], cols])
    return np.asarray(cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA))


def _fitted(x: Tensor, size: tuple[int, ...], zeros: bool) -> np.ndarray:
    """(1, 1, h, w) resized to (H, W), with its border pixels repeated or, with ``zeros``, padded with 0."""
    rows, cols = ((2 * torch.arange(length) + 1) / length - 1 for length in size)
    grid = torch.stack([cols.expand(len(rows), -1), rows[:, None].expand(-1, len(cols))], -1)[None]
    padding = "zeros" if zeros else "border"
    return np.asarray(F.grid_sample(x, grid, padding_mode=padding, align_corners=False)[0, 0].numpy())
