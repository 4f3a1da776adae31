"""CascadePSP's network: a PSPNet that sees the image and three masks, and is applied three times.

Source: CascadePSP (Cheng et al., CVPR 2020, arXiv 2005.02551), section 3.1 and its public code, whose names of tensors
are kept: the public checkpoint loads strictly into ``RefinementModule()``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Refined(NamedTuple):
    """Logits at full resolution, each (B, 1, H, W): what the last pass found at strides 8, 4 and 1."""

    stride8: Tensor
    stride4: Tensor
    fine: Tensor


class RefinementModule(nn.Module):
    """Logits of the fine mask, from an image and a coarse mask.

    width: channels of ResNet's stem; the published network has 64. blocks: of ResNet's four stages. side: of the square
    images that it is trained on, in pixels.
    """

    def __init__(self, width: int = 64, blocks: tuple[int, ...] = (3, 4, 6, 3), side: int = 224) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"width": width, "blocks": list(blocks), "side": side}
        self.side = side
        self.feats = ResNet(width, blocks)
        self.psp = PyramidPooling(32 * width, 16 * width)
        half = width // 2
        self.up_1 = Upsampling(16 * width, 4 * width, 8 * width)
        self.up_2 = Upsampling(8 * width, width, 4 * width)
        self.up_3 = Upsampling(4 * width, 3, half)
        self.final_28 = _head(16 * width, half)
        self.final_56 = _head(8 * width, half)
        self.final_11 = nn.Conv2d(half + 3, half, 1)
        self.final_21 = nn.Conv2d(half, 1, 1)

    def forward(self, image: Tensor, mask: Tensor, found: Tensor | None = None) -> list[Refined]:
        """The logits of each pass; the finest that a pass computes stands for those that it does not.

        image: (B, 3, H, W), normalised; H and W are multiples of 8. mask: (B, 1, H, W) in [-1, 1], the coarse mask.
        found: a better mask in [-1, 1], in place of the first pass.
        """
        passes = []
        if found is None:
            coarse, _, _ = self._seen(image, mask, mask, mask)
            stride8 = _enlarged(self.final_28(coarse), 8)
            passes.append(Refined(stride8, stride8, stride8))
            found = stride8.tanh()
        coarse, _, before = self._seen(image, mask, found, found)
        stride8 = _enlarged(self.final_28(coarse), 8)
        stride4 = _enlarged(self.final_56(self.up_1(coarse, before)), 4)
        passes.append(Refined(stride8, stride4, stride4))
        coarse, first, before = self._seen(image, mask, stride8.tanh(), stride4.tanh())
        middle = self.up_1(coarse, before)
        fine = self.up_3(self.up_2(middle, first), image)
        fine = self.final_21(F.relu(self.final_11(torch.cat([fine, image], 1))))
        stride8, stride4 = _enlarged(self.final_28(coarse), 8), _enlarged(self.final_56(middle), 4)
        return [*passes, Refined(stride8, stride4, fine)]

    def _seen(self, image: Tensor, *masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        deep, first, before = self.feats(torch.cat([image, *masks], 1))
        return self.psp(deep), first, before


class ResNet(nn.Module):
    """ResNet with bottlenecks, of stride 8: the last two stages are dilated, except their first blocks."""

    def __init__(self, width: int, blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(6, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        one, two, three, four = blocks
        self.layer1 = _stage(width, width, one)
        self.layer2 = _stage(4 * width, 2 * width, two, stride=2)
        self.layer3 = _stage(8 * width, 4 * width, three, dilation=2)
        self.layer4 = _stage(16 * width, 8 * width, four, dilation=4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features at stride 8, before the first normalisation at stride 2, and at stride 4."""
        first = self.conv1(x)
        before = self.layer1(F.max_pool2d(F.relu(self.bn1(first)), 3, stride=2, padding=1))
        return self.layer4(self.layer3(self.layer2(before))), first, before


def _stage(channels: int, inner: int, blocks: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    first = Bottleneck(channels, inner, stride, 1, True)
    return nn.Sequential(first, *(Bottleneck(4 * inner, inner, 1, dilation, False) for _ in range(blocks - 1)))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut (He et al., CVPR 2016), which has weights in a first block.

    Dilated, unlike the block of the click models' backbones, which refiners do not import.
    """

    def __init__(self, channels: int, inner: int, stride: int, dilation: int, first: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, 4 * inner, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * inner)
        shortcut = nn.Sequential(nn.Conv2d(channels, 4 * inner, 1, stride, bias=False), nn.BatchNorm2d(4 * inner))
        self.downsample = shortcut if first else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class PyramidPooling(nn.Module):
    """Features and their means over grids of 1, 2, 3 and 6 cells (Zhao et al., CVPR 2017)."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        stages = (
            nn.Sequential(nn.AdaptiveAvgPool2d(n), nn.Conv2d(channels, channels, 1, bias=False)) for n in (1, 2, 3, 6)
        )
        self.stages = nn.ModuleList(stages)
        self.bottleneck = nn.Conv2d(5 * channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = [F.interpolate(stage(x), x.shape[2:], mode="bilinear", align_corners=False) for stage in self.stages]
        return F.relu(self.bottleneck(torch.cat([*pooled, x], 1)))


class Upsampling(nn.Module):
    """Doubled resolution, with finer features from an earlier layer, in two residual blocks."""

    def __init__(self, channels: int, finer: int, out: int) -> None:
        super().__init__()
        self.conv = _block(channels + finer, out)
        self.conv2 = _block(out, out)
        self.shortcut = nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor, finer: Tensor) -> Tensor:
        x = _enlarged(x, 2)
        y = self.conv(torch.cat([x, finer], 1)) + self.shortcut(x)
        total: Tensor = y + self.conv2(y)
        return total


def _block(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        *(nn.BatchNorm2d(channels), nn.ReLU(inplace=True), nn.Conv2d(channels, out, 3, padding=1)),
        *(nn.BatchNorm2d(out), nn.ReLU(inplace=True), nn.Conv2d(out, out, 3, padding=1)),
    )


def _head(channels: int, inner: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, inner, 1), nn.ReLU(inplace=True), nn.Conv2d(inner, 1, 1))


def _enlarged(x: Tensor, factor: int) -> Tensor:
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
