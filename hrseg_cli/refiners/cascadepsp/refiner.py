"""CascadePSP as a refiner of the catalog: a global step on the whole object, then local steps at full resolution.

Source: CascadePSP (Cheng et al., CVPR 2020, arXiv 2005.02551), sections 3.2 and 3.3, and its public code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from hrseg_cli.refiners import check_sizes
from hrseg_cli.refiners.cascadepsp.network import RefinementModule

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE = 900  # pixels: the longest side of the global step, and the side of the local crops
EDGE = 16  # width in pixels of the margin of a local crop that is ignored, except along the border of the image
LEAST = 0.1  # share of object and of background in a crop that is refined locally


class CascadePSP:
    """CascadePSP's global and local steps (Cheng et al., CVPR 2020); needs weights."""

    network = RefinementModule

    def __init__(self, network: RefinementModule) -> None:
        self._network = network

    @staticmethod
    def public(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a public checkpoint, named like those of ``network()``."""
        return {key.removeprefix("module."): value for key, value in tensors.items()}

    def __call__(
        self,
        image: np.ndarray,
        probability: np.ndarray,
        *,
        side: Annotated[int, Field(ge=64)] = SIDE,
        local: bool = True,
    ) -> np.ndarray:
        """side: longest side of the global step and of the local crops, in pixels; smaller needs less memory. local:
        whether the local steps follow; without them, details of large objects are lost.
        """
        check_sizes(image, probability)
        return refined(self._network, image, probability > 0.5, side, local)


@torch.inference_mode()
def refined(network: Any, image: np.ndarray, mask: np.ndarray, side: int = SIDE, local: bool = True) -> np.ndarray:
    """Probability of the refined object, float32 (H, W).

    image: uint8 (H, W, 3), RGB. mask: bool or uint8 (H, W), non-zero is object.
    network: a ``RefinementModule`` or any callable with its interface.
    """
    picture, coarse = as_input(image, mask)
    weight = next(network.parameters(), None) if isinstance(network, torch.nn.Module) else None
    if weight is not None:
        picture, coarse = picture.to(weight.device), coarse.to(weight.device)
    height, width = mask.shape
    seen, found = (resized(x, side, large) for x, large in ((picture, "bicubic"), (coarse, "bilinear")))
    stride4, fine = run(network, seen, found)
    if not local:
        if max(height, width) < side:
            fine = F.interpolate(fine, (height, width), mode="area")
        elif max(height, width) > side:
            fine = F.interpolate(fine, (height, width), mode="bilinear", align_corners=True)
        return np.asarray(fine[0, 0].cpu().numpy())
    stride4, fine = (F.interpolate(x, (height, width), mode="bilinear", align_corners=False) for x in (stride4, fine))
    found = (fine > 0.5).float()
    total, count = torch.zeros_like(found), torch.zeros_like(found)
    for rows, cols in crops(height, width, side):
        crop = (..., rows, cols)
        if not LEAST <= found[crop].mean() <= 1 - LEAST:
            continue
        _, again = run(network, picture[crop], 2 * found[crop] - 1, 2 * stride4[crop] - 1)
        down, across = _inside(rows, height), _inside(cols, width)
        total[..., down, across] += again[..., _shifted(down, rows), _shifted(across, cols)]
        count[..., down, across] += 1
    result = torch.where(count > 0, total / count.clamp(min=1), found)
    return np.asarray(result[0, 0].cpu().numpy())


def as_input(image: np.ndarray, mask: np.ndarray) -> tuple[Tensor, Tensor]:
    """The network's inputs: (1, 3, H, W), normalised, and (1, 1, H, W), -1 or 1."""
    mean, std = (torch.tensor(three).view(3, 1, 1) for three in (MEAN, STD))
    picture = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1).div_(255)
    return ((picture - mean) / std)[None], torch.from_numpy(mask > 0).float().mul_(2).sub_(1)[None, None]


def resized(x: Tensor, side: int, larger: str) -> Tensor:
    """With a longest side of ``side`` pixels: averaged if that is smaller, else interpolated by the mode ``larger``."""
    longest = max(x.shape[2:])
    if longest == side:
        return x
    if longest > side:
        return F.interpolate(x, scale_factor=side / longest, mode="area")
    return F.interpolate(x, scale_factor=side / longest, mode=larger, align_corners=False)


def run(network: Any, picture: Tensor, mask: Tensor, found: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Probabilities at stride 4 and at full resolution, (1, 1, H, W) each. found: a mask in
    [-1, 1], in place of the first pass. The input is padded to multiples of 8 with the mean colour and background."""
    height, width = mask.shape[2:]
    beyond = (0, -width % 8, 0, -height % 8)
    padded = F.pad(mask, beyond, value=-1.0)
    before = None if found is None else F.pad(found, beyond, value=-1.0)
    last = network(F.pad(picture, beyond), padded, before)[-1]
    stride4, fine = (logits[..., :height, :width].sigmoid() for logits in (last.stride4, last.fine))
    return stride4, fine


def crops(height: int, width: int, side: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of the local crops: they overlap by half and a little more, and stay inside the image."""
    step = side // 2 - 2 * EDGE
    for rows in _spans(height, side, step):
        for cols in _spans(width, side, step):
            yield rows, cols


def _spans(length: int, side: int, step: int) -> list[slice]:
    starts = dict.fromkeys(max(0, min(start, length - side)) for start in range(0, length + 1, max(1, step)))
    return [slice(start, min(start + side, length)) for start in starts]


def _inside(span: slice, length: int) -> slice:
    """Without the margins that do not lie along the border of the image."""
    return slice(span.start + EDGE * (span.start > 0), span.stop - EDGE * (span.stop < length))


def _shifted(span: slice, by: slice) -> slice:
    return slice(span.start - by.start, span.stop - by.start)
