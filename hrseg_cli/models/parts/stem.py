"""How an image and its clicks enter a network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrseg_cli.models.parts.click_maps import is_exporting

STRIDE = 32  # inputs are padded to multiples of it


def click_stem(maps: int, channels: int, stride: int, activation: nn.Module) -> nn.Sequential:
    """Layers that turn click maps and the previous mask into an addition to the first features of the image.

    RITM, section 3.1: a pretrained network starts almost as if there were no clicks.
    """
    return nn.Sequential(
        nn.Conv2d(maps, 16, 1), activation, nn.Conv2d(16, channels, 3, stride=stride, padding=1), Scale(0.05)
    )


class Scale(nn.Module):
    """Multiplies by the absolute value of a learned scalar."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((1,), start))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale.abs()


def pad_to_stride(x: Tensor) -> Tensor:
    """``x`` padded to multiples of :data:`STRIDE` by repeating its last row and column."""
    height, width = x.shape[-2:]
    right, bottom = -width % STRIDE, -height % STRIDE
    if not (right or bottom or is_exporting()):  # the graph must pad sizes other than the traced one
        return x
    return F.pad(x, (0, right, 0, bottom), mode="replicate")


def mirrored(x: Tensor, margin: int) -> Tensor:
    """``x`` with ``margin`` more rows and columns on each side, mirrored at its borders as often as needed."""
    for dim in (2, 3):
        side = x.shape[dim]
        turn = max(1, 2 * side - 2)
        place = torch.arange(-margin, side + margin, device=x.device).remainder(turn)
        x = x.index_select(dim, torch.minimum(place, turn - place).clamp(max=side - 1))
    return x
