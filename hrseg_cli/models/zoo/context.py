"""Context from the whole map, at output stride 8: pyramid pooling, attention, and cheaper ways to get there.

PSPNet: Zhao et al., CVPR 2017. DANet: Fu et al., CVPR 2019. FastFCN: Wu et al., arXiv 1903.11816, with the encoding
module of Zhang et al., CVPR 2018. LR-ASPP: Howard et al., "Searching for MobileNetV3" (ICCV 2019), section 6.4.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hrseg_cli.models.parts.backbones import build
from hrseg_cli.models.zoo.layers import Head, conv_unit, pooled_to, resized, separable_unit
from hrseg_cli.models.zoo.network import Decoder, Outputs, Parts, click_model

BINS = (1, 2, 3, 6)


class PyramidPooling(nn.Module):
    """(B, C, H, W) -> (B, 2 C, H, W): the map, joined with its means over grids of several sizes."""

    def __init__(self, inputs: int, bins: Sequence[int] = BINS) -> None:
        super().__init__()
        self.bins = bins
        self.pooled = nn.ModuleList(conv_unit(inputs, inputs // len(bins), 1) for _ in bins)

    def forward(self, x: Tensor) -> Tensor:
        means = [unit(pooled_to(x, bins)) for unit, bins in zip(self.pooled, self.bins, strict=True)]
        return torch.cat([x, *(resized(mean, x) for mean in means)], 1)


class PSP(Decoder):
    """Pyramid pooling on the last map; an auxiliary head on the one before."""

    def __init__(self, channels: Sequence[int], classes: int, width: int = 512, aux_width: int = 256) -> None:
        super().__init__()
        inputs = channels[4] // len(BINS) * len(BINS)
        self.pyramid = PyramidPooling(channels[4])
        self.head = Head(channels[4] + inputs, width, classes)
        self.aux = Head(channels[3], aux_width, classes)

    def forward(self, maps: list[Tensor]) -> Outputs:
        outputs = {"logits": self.head(self.pyramid(maps[4]))}
        if self.with_aux:
            outputs["aux"] = self.aux(maps[3])
        return outputs


class PositionAttention(nn.Module):
    """x + gamma * the values at all positions, weighted by the similarity of their keys to the query here."""

    def __init__(self, channels: int, reduction: int = 8) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, channels // reduction, 1)
        self.key = nn.Conv2d(channels, channels // reduction, 1, bias=False)  # the softmax would cancel it
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (layer(x).flatten(2) for layer in (self.query, self.key, self.value))
        attention = (query.transpose(1, 2) @ key).softmax(-1)  # (B, positions, positions)
        found: Tensor = value @ attention.transpose(1, 2)
        return x + self.gamma * found.view_as(x)


class ChannelAttention(nn.Module):
    """x + gamma * all channels, weighted by how little they resemble the channel here."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        energy = flat @ flat.transpose(1, 2)  # (B, C, C)
        attention = (energy.amax(-1, keepdim=True) - energy).softmax(-1)
        return x + self.gamma * (attention @ flat).view_as(x)


class DualAttention(Decoder):
    """Attention over positions and over channels, added; each alone is trained too."""

    def __init__(self, channels: Sequence[int], classes: int, width: int = 512) -> None:
        super().__init__()
        inputs = channels[4]
        self.position = nn.Sequential(conv_unit(inputs, width), PositionAttention(width), conv_unit(width, width))
        self.channel = nn.Sequential(conv_unit(inputs, width), ChannelAttention(), conv_unit(width, width))
        self.dropout = nn.Dropout2d(0.1)
        self.classify = nn.ModuleList(nn.Conv2d(width, classes, 1) for _ in range(3))

    def forward(self, maps: list[Tensor]) -> Outputs:
        position, channel = self.position(maps[4]), self.channel(maps[4])
        both, *each = self.classify
        outputs = {"logits": both(self.dropout(position + channel))}
        if self.with_aux:
            outputs["aux_position"] = each[0](self.dropout(position))
            outputs["aux_channel"] = each[1](self.dropout(channel))
        return outputs


class JPU(nn.Module):
    """Joint pyramid upsampling: a map at stride 8 from those at strides 8, 16 and 32, instead of dilated layers."""

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.enter = nn.ModuleList(conv_unit(number, width) for number in channels)
        self.dilated = nn.ModuleList(separable_unit(3 * width, width, rate) for rate in (1, 2, 4, 8))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        entered = [unit(one) for unit, one in zip(self.enter, maps, strict=True)]
        joined = torch.cat([resized(one, entered[0]) for one in entered], 1)
        return torch.cat([unit(joined) for unit in self.dilated], 1)


class Encoding(nn.Module):
    """Scales channels by what the map contains: its residuals to learned codewords, softly assigned and added up."""

    def __init__(self, channels: int, codewords: int = 32) -> None:
        super().__init__()
        bound = (codewords * channels) ** -0.5
        self.codewords = nn.Parameter(torch.empty(codewords, channels).uniform_(-bound, bound))
        self.scale = nn.Parameter(torch.empty(codewords).uniform_(-1, 0))
        self.pooled = nn.Sequential(nn.BatchNorm2d(codewords), nn.ReLU(inplace=True))
        self.gate = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.Sigmoid())

    def encode(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, codewords, C): sum over pixels of assignment times (pixel - codeword)."""
        pixels = x.flatten(2).transpose(1, 2)  # (B, N, C)
        words = self.codewords
        # |x - c|^2, without a tensor of all differences.
        distance = pixels.square().sum(2, keepdim=True) - 2 * pixels @ words.T + words.square().sum(1)
        assigned = (self.scale * distance).softmax(2).transpose(1, 2)  # (B, codewords, N)
        return assigned @ pixels - assigned.sum(2, keepdim=True) * words

    def forward(self, x: Tensor) -> Tensor:
        code = self.pooled(self.encode(x)[..., None]).mean(1)[..., None]  # (B, C, 1, 1)
        gated: Tensor = x + x * self.gate(code)
        return gated


class FastFCN(Decoder):
    """JPU, then the encoding module."""

    def __init__(self, channels: Sequence[int], classes: int, width: int = 512) -> None:
        super().__init__()
        self.jpu = JPU(channels[2:], width)
        self.enter = conv_unit(4 * width, width, 1)
        self.encoding = Encoding(width)
        self.dropout = nn.Dropout2d(0.1)
        self.classify = nn.Conv2d(width, classes, 1)
        self.aux = Head(channels[3], 256, classes)

    def forward(self, maps: list[Tensor]) -> Outputs:
        outputs = {"logits": self.classify(self.dropout(self.encoding(self.enter(self.jpu(maps[2:])))))}
        if self.with_aux:
            outputs["aux"] = self.aux(maps[3])
        return outputs


class LRASPP(Decoder):
    """A 1x1 convolution at output stride 16, gated by the image's mean, and scores at two strides."""

    def __init__(self, low: int, high: int, classes: int, width: int = 128) -> None:
        super().__init__()
        self.enter = conv_unit(high, width, 1)
        self.gate = nn.Sequential(nn.Conv2d(high, width, 1, bias=False), nn.Sigmoid())
        self.classify = nn.ModuleList(nn.Conv2d(number, classes, 1) for number in (low, width))

    def forward(self, maps: list[Tensor]) -> Outputs:
        low, high = maps[2], maps[4]
        gated = self.enter(high) * self.gate(pooled_to(high, 1))
        of_low, of_high = self.classify
        return {"logits": of_low(low) + of_high(resized(gated, low))}


@click_model
def pspnet(
    backbone: str = "efficientnet_lite0", output_stride: int = 8, width: int = 256, smooth: bool = False
) -> Parts:
    """PSPNet: pyramid pooling (Zhao et al. 2017)."""
    base = build(backbone, output_stride, smooth)
    return base, PSP(base.channels, 1, width)


@click_model
def danet(backbone: str = "efficientnet_lite0", output_stride: int = 8, width: int = 128) -> Parts:
    """DANet: attention over positions and over channels (Fu et al. 2019)."""
    base = build(backbone, output_stride)
    return base, DualAttention(base.channels, 1, width)


@click_model
def fastfcn(backbone: str = "efficientnet_lite0", width: int = 128) -> Parts:
    """FastFCN: joint pyramid upsampling and an encoding head (Wu et al. 2019)."""
    base = build(backbone)
    return base, FastFCN(base.channels, 1, width)


@click_model
def lraspp(backbone: str = "efficientnet_lite0", output_stride: int = 16, width: int = 128) -> Parts:
    """LR-ASPP: the light head of MobileNetV3 (Howard et al. 2019)."""
    base = build(backbone, output_stride)
    return base, LRASPP(base.channels[2], base.channels[4], 1, width)
