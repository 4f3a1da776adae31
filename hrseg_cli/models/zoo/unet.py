"""U-Net and its descendants: each step up joins the encoder's features of that size.

U-Net: Ronneberger et al., MICCAI 2015. TernausNet: Iglovikov and Shvets, arXiv 1801.05746. UNet++: Zhou et al., DLMIA
2018.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrseg_cli.models.parts.backbones import build
from hrseg_cli.models.parts.backbones.interface import Backbone
from hrseg_cli.models.parts.backbones.vgg import Stage
from hrseg_cli.models.zoo.layers import upsampled
from hrseg_cli.models.zoo.network import Decoder, Outputs, Parts, click_model
from hrseg_cli.models.zoo.unpooling import vgg

SPARE = 2  # rows and columns that a network without padding has left over at each side, see Contracting


def unit(inputs: int, outputs: int, norm: bool, padding: int = 1) -> nn.Sequential:
    """3x3 convolution, batch normalisation if ``norm``, ReLU."""
    conv = nn.Conv2d(inputs, outputs, 3, padding=padding, bias=not norm)
    return nn.Sequential(conv, *([nn.BatchNorm2d(outputs)] if norm else []), nn.ReLU(inplace=True))


def double(inputs: int, outputs: int, norm: bool, padding: int = 1) -> nn.Sequential:
    return nn.Sequential(unit(inputs, outputs, norm, padding), unit(outputs, outputs, norm, padding))


class Contracting(Backbone):
    """U-Net's own encoder: two convolutions at each of five sizes, at strides 1, 2, 4, 8 and 16.

    width: at stride 1, doubled at each further one. norm: batch normalisation, which the paper does not have.
    valid: no padding, as in the paper, except in the first convolution. The image is mirrored by 93 pixels instead, and
    the last map has :data:`SPARE` rows and columns too many.
    """

    stem_stride = 1
    image_layer = "first.0"

    def __init__(self, width: int = 64, norm: bool = True, valid: bool = False) -> None:
        super().__init__()
        padding = 0 if valid else 1
        self.margin = 93 if valid else 0
        self.channels, self.stem_channels = [width << level for level in range(5)], width
        self.first, self.second = unit(3, width, norm), unit(width, width, norm, padding)
        pairs = zip(self.channels, self.channels[1:], strict=False)
        self.down = nn.ModuleList(double(*pair, norm, padding) for pair in pairs)

    def stem_features(self, x: Tensor) -> Tensor:
        first: Tensor = self.first(x)
        return first

    def pyramid(self, x: Tensor) -> list[Tensor]:
        maps = [self.second(x)]
        for layers in self.down:
            maps.append(layers(F.max_pool2d(maps[-1], 2)))
        return maps


class UNet(Decoder):
    """Up-convolution to the channels of the next finer map, that map joined, two convolutions; four times."""

    def __init__(
        self,
        channels: Sequence[int],
        classes: int,
        norm: bool = True,
        valid: bool = False,
        upsampling: str = "transposed",
    ) -> None:
        super().__init__()
        self.spare = SPARE if valid else 0
        pairs = [(channels[level + 1], channels[level]) for level in (3, 2, 1, 0)]
        self.up = nn.ModuleList(upsampled(*pair, 2, upsampling) for pair in pairs)
        self.merge = nn.ModuleList(double(2 * finer, finer, norm, 0 if valid else 1) for _, finer in pairs)
        self.classify = nn.Conv2d(channels[0], classes, 1)

    def forward(self, maps: list[Tensor]) -> Outputs:
        x = maps[4]
        for up, merge, finer in zip(self.up, self.merge, maps[3::-1], strict=True):
            x = up(x)
            x = merge(torch.cat([cropped(finer, (finer.shape[-1] - x.shape[-1]) // 2), x], 1))
        return {"logits": cropped(self.classify(x), self.spare)}


def cropped(x: Tensor, by: int) -> Tensor:
    """Without ``by`` rows and columns at each side."""
    return x[..., by : x.shape[-2] - by, by : x.shape[-1] - by]


class TernausNet(Decoder):
    """VGG-11's features before each pooling; blocks of a convolution and a transposed convolution."""

    reads = "stages"

    def __init__(self, classes: int, width: int = 32, upsampling: str = "transposed") -> None:
        super().__init__()

        def block(inputs: int, inside: int, outputs: int) -> nn.Sequential:
            up = upsampled(inside, outputs, 3, upsampling)
            return nn.Sequential(nn.Conv2d(inputs, inside, 3, padding=1), nn.ReLU(), up, nn.ReLU())

        w = width
        self.centre = block(512, 16 * w, 8 * w)
        self.blocks = nn.ModuleList(
            [
                block(512 + 8 * w, 16 * w, 8 * w),
                block(512 + 8 * w, 16 * w, 4 * w),
                block(256 + 4 * w, 8 * w, 2 * w),
                block(128 + 2 * w, 4 * w, w),
                nn.Sequential(nn.Conv2d(64 + w, w, 3, padding=1), nn.ReLU()),
            ]
        )
        self.classify = nn.Conv2d(w, classes, 1)

    def forward(self, stages: list[Stage]) -> Outputs:
        x = self.centre(stages[-1].pooled)
        for block, stage in zip(self.blocks, reversed(stages), strict=True):
            x = block(torch.cat([stage.features, x], 1))
        return {"logits": self.classify(x)}


class UNetPlusPlus(Decoder):
    """Node (i, j) at level i joins all earlier nodes of its level and the enlarged node (i + 1, j - 1).

    The nodes (0, 1) to (0, 4) each have a classifier, and all are trained. "logits" is their mean; with ``level`` from
    1 to 4 it is that node's, and inference leaves out the nodes that it does not need ("pruning").
    """

    def __init__(
        self,
        channels: Sequence[int],
        classes: int,
        norm: bool = True,
        level: int | None = None,
        upsampling: str = "transposed",
    ) -> None:
        super().__init__()
        if level not in (None, 1, 2, 3, 4):
            raise ValueError(f"level is {level}; it must be 1 to 4, or null for the mean")
        self.level = level
        places = [(i, j) for j in range(1, 5) for i in range(5 - j)]
        self.up = nn.ModuleDict({f"{i}{j}": upsampled(channels[i + 1], channels[i], 2, upsampling) for i, j in places})
        self.merge = nn.ModuleDict({f"{i}{j}": double((j + 1) * channels[i], channels[i], norm) for i, j in places})
        self.classify = nn.ModuleList(nn.Conv2d(channels[0], classes, 1) for _ in range(4))

    def forward(self, maps: list[Tensor]) -> Outputs:
        depth = 4 if self.with_aux or not self.level else self.level
        nodes = {(i, 0): x for i, x in enumerate(maps[: depth + 1])}
        for j in range(1, depth + 1):
            for i in range(depth + 1 - j):
                coarser = self.up[f"{i}{j}"](nodes[i + 1, j - 1])
                nodes[i, j] = self.merge[f"{i}{j}"](torch.cat([*(nodes[i, k] for k in range(j)), coarser], 1))
        if self.level and not self.with_aux:
            return {"logits": self.classify[self.level - 1](nodes[0, self.level])}
        each = [classify(nodes[0, j]) for j, classify in enumerate(self.classify, 1)]
        outputs = {"logits": each[self.level - 1] if self.level else torch.stack(each).mean(0)}
        if self.with_aux:
            outputs |= {f"aux{j}": one for j, one in enumerate(each, 1)}
        return outputs


@click_model
def unet(
    backbone: str = "plain", width: int = 64, norm: bool = True, valid: bool = False, upsampling: str = "transposed"
) -> Parts:
    """U-Net: each step up joins the encoder's features (Ronneberger et al. 2015)."""
    if valid and backbone != "plain":
        raise ValueError("valid needs the plain backbone")
    base = Contracting(width, norm, valid) if backbone == "plain" else build(backbone)
    return base, UNet(base.channels, 1, norm, valid, upsampling)


@click_model
def ternausnet(width: int = 32, upsampling: str = "transposed") -> Parts:
    """TernausNet: a U-Net on VGG-11 (Iglovikov and Shvets 2018)."""
    return vgg("vgg11"), TernausNet(1, width, upsampling)


@click_model
def unet_plusplus(
    backbone: str = "efficientnet_lite0",
    width: int = 32,
    norm: bool = True,
    level: int | None = None,
    upsampling: str = "transposed",
) -> Parts:
    """UNet++: nested skip connections with deep supervision, which can be pruned (Zhou et al. 2018)."""
    base = Contracting(width, norm) if backbone == "plain" else build(backbone)
    return base, UNetPlusPlus(base.channels, 1, norm, level, upsampling)
