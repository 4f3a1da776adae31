"""Deformable convolution by bilinear sampling.

Dai et al., "Deformable Convolutional Networks" (ICCV 2017), section 2.1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def deformable_conv2d(x: Tensor, offsets: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A convolution of the same size whose taps are moved.

    x: (B, C, H, W). offsets: (B, 2 k k, H, W): down and right in pixels for each tap in raster order, added to the
    place where an ordinary convolution reads. weight: (out, C, k, k), k odd. Beyond the image are zeros.
    """
    height, width = x.shape[-2:]
    side = weight.shape[-1]
    taps = torch.arange(side, device=x.device) - side // 2
    rows = torch.arange(height, device=x.device)[:, None] + taps.repeat_interleave(side)[:, None, None]
    cols = torch.arange(width, device=x.device) + taps.repeat(side)[:, None, None]
    places = torch.stack([cols + offsets[:, 1::2], rows + offsets[:, ::2]], -1)  # (B, k k, H, W, 2), x first
    grid = (2 * places + 1) / torch.tensor([width, height], device=x.device) - 1
    read = F.grid_sample(x, grid.flatten(1, 2), padding_mode="zeros", align_corners=False)
    each = read.reshape(x.shape[0], -1, height, width)  # channels times taps
    return F.conv2d(each, weight.flatten(1)[:, :, None, None], bias)


class DeformableConv(nn.Module):
    """A 3x3 convolution, without bias, with offsets from another convolution that starts with zeros."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, 3, 3))
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        self.offsets = Offsets(inputs, 18, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return deformable_conv2d(x, self.offsets(x), self.weight)


class Offsets(nn.Conv2d):
    """A convolution that starts with zeros."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)  # type: ignore[arg-type]
