"""Layers that many networks here use. Shapes: B batch, C channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrseg_cli.models.parts.click_maps import is_exporting


def conv_unit(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """Convolution, batch normalisation, ReLU; the size stays, or is halved by a stride of 2."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, dilation * (kernel // 2), dilation, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def separable_unit(inputs: int, outputs: int, dilation: int = 1) -> nn.Sequential:
    """A depthwise 3x3 convolution and a 1x1 convolution, each with batch normalisation and ReLU."""
    depthwise = nn.Conv2d(inputs, inputs, 3, 1, dilation, dilation, inputs, bias=False)
    return nn.Sequential(depthwise, nn.BatchNorm2d(inputs), nn.ReLU(inplace=True), *conv_unit(inputs, outputs, 1))


class Head(nn.Module):
    """A convolution unit, dropout and a classifier: the head of FCN on ResNet, and of auxiliary losses."""

    def __init__(self, inputs: int, width: int, classes: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.unit, self.dropout = conv_unit(inputs, width), nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.classify(self.dropout(self.unit(x)))
        return scores


class BilinearUp(nn.ConvTranspose2d):
    """A transposed convolution that doubles the size of each channel and starts as bilinear interpolation (FCN)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 4, 2, 1, bias=False)

    def reset_parameters(self) -> None:
        slope = torch.tensor([0.25, 0.75, 0.75, 0.25])
        nn.init.zeros_(self.weight)
        with torch.no_grad():
            for channel in range(self.in_channels):
                self.weight[channel, channel] = slope[:, None] * slope


def resized(x: Tensor, like: Tensor) -> Tensor:
    """``x`` at the height and width of another map."""
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


def upsampled(inputs: int, outputs: int, kernel: int = 2, how: str = "transposed", bias: bool = True) -> nn.Module:
    """A layer that doubles the size.

    how: "transposed", a transposed convolution, whose outputs get unequal numbers of inputs where the kernel is odd; or
    "resize", a convolution of the enlarged map, which has no such checkerboard (Odena et al., Distill 2016).
    """
    if how == "resize":
        conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)
        return nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), conv)
    if how != "transposed":
        raise ValueError(f"upsampling is {how!r}; it must be 'transposed' or 'resize'")
    return nn.ConvTranspose2d(inputs, outputs, kernel, 2, (kernel - 1) // 2, kernel % 2, bias=bias)


def pooled_to(x: Tensor, bins: int) -> Tensor:
    """(B, C, bins, bins): means over a grid; cell i of n covers rows floor(i H / n) to ceil((i + 1) H / n)."""
    if not is_exporting():
        return F.adaptive_avg_pool2d(x, bins)
    rows, cols = (_cells(side, bins, x.device) for side in x.shape[-2:])  # ONNX supports it for fixed sizes only
    return rows @ x @ cols.transpose(0, 1)


def _cells(side: int, bins: int, device: torch.device) -> Tensor:
    """(bins, side): weights of the mean over each cell."""
    cell, place = torch.arange(bins, device=device)[:, None], torch.arange(side, device=device)
    inside = (place >= cell * side // bins) & (place * bins < (cell + 1) * side)
    return inside.float() / inside.float().sum(1, keepdim=True)
