"""DeepLab: dilated convolutions with large fields of view, in parallel (ASPP) or in cascade.

v1: Chen et al., ICLR 2015. v2: TPAMI 2017. v3: arXiv 1706.05587. v3+: ECCV 2018. The CRF of v1 and v2 is the refiner
``dense_crf``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hrseg_cli.models.parts.backbones import build
from hrseg_cli.models.parts.backbones.residual import Bottleneck
from hrseg_cli.models.zoo.layers import Head, conv_unit, pooled_to, resized, separable_unit
from hrseg_cli.models.zoo.network import Decoder, Outputs, Parts, click_model

RATES = (6, 12, 18)  # at output stride 16
FARTHEST = 64  # dilation: at stride 8, a convolution that sees 1024 pixels; the papers' largest is 36


class LargeFieldOfView(Decoder):
    """fc6 as a 3x3 convolution with a large dilation, fc7, and scores; several of them in parallel are added (v2)."""

    def __init__(self, inputs: int, classes: int, width: int, rates: Sequence[int]) -> None:
        super().__init__()
        if max(rates) > FARTHEST:  # the shapes of the weights in a file say nothing about them
            raise ValueError(f"dilation rates are at most {FARTHEST}, not {max(rates)}")
        self.branches, self.classify = nn.ModuleList(), nn.ModuleList()
        for rate in rates:
            first, second = nn.Conv2d(inputs, width, 3, padding=rate, dilation=rate), nn.Conv2d(width, width, 1)
            layers = (first, nn.ReLU(inplace=True), nn.Dropout2d(0.5), second, nn.ReLU(inplace=True), nn.Dropout2d(0.5))
            self.branches.append(nn.Sequential(*layers))
            self.classify.append(nn.Conv2d(width, classes, 1))

    def forward(self, maps: list[Tensor]) -> Outputs:
        scores = [last(branch(maps[4])) for branch, last in zip(self.branches, self.classify, strict=True)]
        return {"logits": torch.stack(scores).sum(0)}


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: a 1x1 convolution, 3x3 convolutions at several dilations, and the image's mean,
    joined. (B, C, H, W) -> (B, width, H, W)."""

    def __init__(self, inputs: int, width: int, rates: Sequence[int], separable: bool = False) -> None:
        super().__init__()
        unit = separable_unit if separable else conv_unit
        dilated = (unit(inputs, width, dilation=rate) for rate in rates)
        self.branches = nn.ModuleList([conv_unit(inputs, width, 1), *dilated])
        self.pooled = conv_unit(inputs, width, 1)
        self.project = nn.Sequential(*conv_unit((len(rates) + 2) * width, width, 1), nn.Dropout2d(0.5))

    def forward(self, x: Tensor) -> Tensor:
        mean: Tensor = self.pooled(pooled_to(x, 1))
        everywhere = mean.expand(-1, -1, *x.shape[-2:])
        joined: Tensor = self.project(torch.cat([*(branch(x) for branch in self.branches), everywhere], 1))
        return joined


class DeepLabV3(Decoder):
    """ASPP on the last map, a 3x3 convolution and scores. aux_width: of the auxiliary head at stride 16."""

    def __init__(
        self,
        channels: Sequence[int],
        classes: int,
        width: int = 256,
        rates: Sequence[int] = RATES,
        aux_width: int = 256,
    ) -> None:
        super().__init__()
        self.aspp = ASPP(channels[4], width, rates)
        self.head = Head(width, width, classes, dropout=0)
        self.aux = Head(channels[3], aux_width, classes)

    def forward(self, maps: list[Tensor]) -> Outputs:
        outputs = {"logits": self.head(self.aspp(maps[4]))}
        if self.with_aux:
            outputs["aux"] = self.aux(maps[3])
        return outputs


class Cascade(Decoder):
    """The cascaded form of v3: three further groups of residual blocks, each with twice the dilation of the one before,
    and within a group unit rates of 1, 2 and 1 ("multi-grid")."""

    def __init__(self, channels: Sequence[int], classes: int, width: int = 256, multi_grid: Sequence[int] = (1, 2, 1)):
        super().__init__()
        self.enter = conv_unit(channels[4], 4 * width, 1)
        blocks = []
        for rate in (4, 8, 16):  # block 4 of a network with output stride 16 has 2
            for unit in multi_grid:
                block = Bottleneck(4 * width, width)
                block.conv2.dilation = block.conv2.padding = (rate * unit,) * 2
                blocks.append(block)
        self.blocks = nn.Sequential(*blocks)
        self.classify = nn.Conv2d(4 * width, classes, 1)

    def forward(self, maps: list[Tensor]) -> Outputs:
        return {"logits": self.classify(self.blocks(self.enter(maps[4])))}


class DeepLabV3Plus(Decoder):
    """ASPP, then features at stride 4 are joined and refined by two separable convolutions."""

    def __init__(
        self, channels: Sequence[int], classes: int, width: int = 256, rates: Sequence[int] = RATES, low: int = 48
    ) -> None:
        super().__init__()
        self.aspp = ASPP(channels[4], width, rates, separable=True)
        self.low = conv_unit(channels[1], low, 1)
        self.refine = nn.Sequential(separable_unit(width + low, width), separable_unit(width, width))
        self.classify = nn.Conv2d(width, classes, 1)
        self.fine_channels = width

    def forward(self, maps: list[Tensor]) -> Outputs:
        low = self.low(maps[1])
        fine = self.refine(torch.cat([resized(self.aspp(maps[4]), low), low], 1))
        return {"logits": self.classify(fine), "fine": fine}


def rates_at(output_stride: int) -> list[int]:
    """The dilations of ASPP at an output stride: twice as far at 8 as at 16."""
    return [rate * 16 // output_stride for rate in RATES]


@click_model
def deeplab_v1(backbone: str = "efficientnet_lite0", output_stride: int = 8, width: int = 512, rate: int = 12) -> Parts:
    """DeepLab v1 (LargeFOV): one convolution with a large dilation (Chen et al. 2015)."""
    base = build(backbone, output_stride)
    return base, LargeFieldOfView(base.channels[4], 1, width, [rate])


@click_model
def deeplab_v2(
    backbone: str = "efficientnet_lite0",
    output_stride: int = 8,
    width: int = 256,
    rates: Sequence[int] = (6, 12, 18, 24),
) -> Parts:
    """DeepLab v2: atrous spatial pyramid pooling, added up (Chen et al. 2017)."""
    base = build(backbone, output_stride)
    return base, LargeFieldOfView(base.channels[4], 1, width, rates)


@click_model
def deeplab_v3(
    backbone: str = "efficientnet_lite0", output_stride: int = 16, width: int = 256, smooth: bool = False
) -> Parts:
    """DeepLab v3: ASPP with batch normalisation and the image's mean (Chen et al. 2017)."""
    base = build(backbone, output_stride, smooth)
    return base, DeepLabV3(base.channels, 1, width, rates_at(output_stride))


@click_model
def deeplab_v3_cascade(
    backbone: str = "efficientnet_lite0", output_stride: int = 16, width: int = 64, smooth: bool = False
) -> Parts:
    """DeepLab v3 in its cascaded form: blocks of growing dilation (Chen et al. 2017)."""
    base = build(backbone, output_stride, smooth)
    return base, Cascade(base.channels, 1, width)


@click_model
def deeplab_v3plus(
    backbone: str = "efficientnet_lite0", output_stride: int = 16, width: int = 256, smooth: bool = False
) -> Parts:
    """DeepLab v3+: ASPP, then a decoder with features at stride 4 (Chen et al. 2018)."""
    base = build(backbone, output_stride, smooth)
    return base, DeepLabV3Plus(base.channels, 1, width, rates_at(output_stride))
