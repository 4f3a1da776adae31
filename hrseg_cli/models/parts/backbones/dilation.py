"""Dilation in the place of strides (Yu and Koltun, ICLR 2016; Chen et al., DeepLab), and its smoothing."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrseg_cli.errors import HrsegError
from hrseg_cli.models.parts.backbones.interface import Backbone


def dilate(backbone: Backbone, output_stride: int, smooth: bool = False) -> None:
    """Keep the resolution from ``output_stride`` (8 or 16) on, in place: each later layer is dilated instead.

    Weights keep their meaning. smooth: smooth the input of each dilated convolution. Raises HrsegError for a backbone
    that cannot be dilated.
    """
    if output_stride not in (8, 16, 32):
        raise ValueError(f"output_stride is {output_stride}; it must be 8, 16 or 32")
    if output_stride == 32:
        return
    if not backbone.can_dilate:
        raise HrsegError(f"{type(backbone).__name__} keeps high resolution anyway; set output_stride to 32")
    rate = 1
    for level in backbone.strided()[-1 if output_stride == 16 else 0 :]:
        ahead = 2 * rate  # of what follows the layer that had the stride
        for layer in (part for module in level for part in module.modules()):
            if isinstance(layer, nn.MaxPool2d):
                layer.kernel_size, layer.stride, layer.padding = 3, 1, 1
                rate = ahead
            elif isinstance(layer, nn.Conv2d):
                strided, layer.stride = layer.stride != (1, 1), (1, 1)
                if layer.kernel_size != (1, 1):
                    layer.dilation = (rate, rate)
                    layer.padding = (rate * (layer.kernel_size[0] // 2),) * 2
                    rate = ahead if strided else rate
    if smooth:
        for module in list(backbone.modules()):
            for name, layer in list(module.named_children()):
                if isinstance(layer, nn.Conv2d) and layer.dilation != (1, 1):
                    setattr(module, name, SmoothedConv(layer))


class SmoothedConv(nn.Module):
    """A dilated convolution of rate r after a convolution with one kernel of 2r - 1 pixels for all channels.

    Without it, neighbouring outputs of a dilated convolution share no input ("gridding"). The kernel starts as the
    identity. Wang and Ji, "Smoothed Dilated Convolutions for Improved Dense Prediction" (KDD 2018), section 3.4.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.rate, self.reach, self.groups = conv.dilation[0], cast(int, conv.padding[0]), conv.groups
        self.weight, self.bias = conv.weight, conv.bias
        side = 2 * self.rate - 1
        identity = torch.zeros(side * side)
        identity[side * side // 2] = 1
        self.smoother = nn.Parameter(identity.view(1, 1, side, side))

    def forward(self, x: Tensor) -> Tensor:
        each = x.reshape(-1, 1, *x.shape[-2:])
        smooth = F.conv2d(each, self.smoother, padding=self.rate - 1).view_as(x)
        return F.conv2d(smooth, self.weight, self.bias, 1, self.reach, self.rate, self.groups)
