"""Top-down refinement: coarse features are doubled in size step by step and joined with finer ones.

LinkNet: Chaurasia and Culurciello, VCIP 2017. SharpMask: Pinheiro et al., ECCV 2016. RefineNet: Lin et al., CVPR 2017.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrseg_cli.models.parts.backbones import build
from hrseg_cli.models.zoo.layers import resized, upsampled
from hrseg_cli.models.zoo.network import Decoder, Outputs, Parts, click_model


class LinkNet(Decoder):
    """1x1 convolution to a quarter of the channels, upsampling, 1x1 convolution; finer features are added."""

    def __init__(self, channels: Sequence[int], classes: int, upsampling: str = "transposed") -> None:
        super().__init__()

        def norm(number: int) -> tuple[nn.Module, ...]:
            return nn.BatchNorm2d(number), nn.ReLU(inplace=True)

        def block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
            inner = max(8, inputs // 4)
            middle = (
                upsampled(inner, inner, 3, upsampling, bias=False)
                if stride == 2
                else nn.ConvTranspose2d(inner, inner, 3, padding=1, bias=False)
            )
            first, last = nn.Conv2d(inputs, inner, 1, bias=False), nn.Conv2d(inner, outputs, 1, bias=False)
            return nn.Sequential(first, *norm(inner), middle, *norm(inner), last, *norm(outputs))

        width = max(8, channels[0] // 2)
        self.blocks = nn.ModuleList(block(channels[k], channels[k - 1], 2) for k in (4, 3, 2))
        self.last_block = block(channels[1], channels[0], 1)
        self.enlarge = nn.Sequential(upsampled(channels[0], width, 3, upsampling, bias=False), *norm(width))
        self.smooth = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), *norm(width))
        self.classify = upsampled(width, classes, 2, upsampling)

    def forward(self, maps: list[Tensor]) -> Outputs:
        x = maps[4]
        for block, finer in zip(self.blocks, (maps[3], maps[2], maps[1]), strict=True):
            x = block(x) + finer
        return {"logits": self.classify(self.smooth(self.enlarge(self.last_block(x))))}


class SharpMask(Decoder):
    """A coarse encoding of the mask is joined with skip features and doubled in size; channels halve at each step.

    width: channels at stride 32.
    """

    def __init__(self, channels: Sequence[int], classes: int, width: int = 128) -> None:
        super().__init__()
        widths = [max(8, width >> (4 - level)) for level in range(5)]
        self.enter = nn.Conv2d(channels[4], widths[4], 1)
        self.skip = nn.ModuleList(nn.Conv2d(channels[k], widths[k], 3, padding=1) for k in (3, 2, 1, 0))
        self.merge = nn.ModuleList(nn.Conv2d(widths[k] + widths[k + 1], widths[k], 3, padding=1) for k in (3, 2, 1, 0))
        self.classify = nn.Conv2d(widths[0], classes, 3, padding=1)

    def forward(self, maps: list[Tensor]) -> Outputs:
        mask = F.relu(self.enter(maps[4]))
        for skip, merge, finer in zip(self.skip, self.merge, maps[3::-1], strict=True):
            mask = F.relu(merge(torch.cat([resized(mask, finer), F.relu(skip(finer))], 1)))
        return {"logits": self.classify(mask)}


class ResidualUnits(nn.Sequential):
    """``count`` residual units of two 3x3 convolutions, each after a ReLU."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__(*(ResidualUnit(width) for _ in range(count)))


class ResidualUnit(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.second(F.relu(self.first(F.relu(x))))
        return x + added


class ChainedPooling(nn.Module):
    """Background context: x plus a chain of 5x5 poolings and convolutions, each added."""

    def __init__(self, width: int, steps: int = 4) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(steps))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        path = x
        for conv in self.convs:
            path = conv(F.max_pool2d(path, 5, 1, 2))
            x = x + path
        return x


class RefineNet(Decoder):
    """Four blocks, from stride 32 to 4: residual units, fusion with the block before, chained pooling, residual units.

    width: of the three finer blocks; the coarsest has twice as many channels.
    """

    def __init__(self, channels: Sequence[int], classes: int, width: int = 256) -> None:
        super().__init__()
        widths = (2 * width, width, width, width)  # coarsest first

        def conv(inputs: int, outputs: int) -> nn.Conv2d:
            return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)

        self.enter = nn.ModuleList(
            nn.Sequential(nn.Dropout2d(0.5) if k > 2 else nn.Identity(), conv(channels[k], own), ResidualUnits(own, 2))
            for k, own in zip((4, 3, 2, 1), widths, strict=True)
        )
        self.fuse = nn.ModuleList(conv(width, width) for _ in widths[1:])
        self.leave = nn.ModuleList(nn.Sequential(ChainedPooling(own), ResidualUnits(own, 3)) for own in widths)
        self.down = nn.ModuleList(conv(own, width) for own in widths[:-1])
        self.classify = nn.Sequential(nn.Dropout2d(0.5), nn.Conv2d(width, classes, 3, padding=1))
        self.fine_channels = width

    def forward(self, maps: list[Tensor]) -> Outputs:
        x = self.leave[0](self.enter[0](maps[4]))
        for k, finer in enumerate((maps[3], maps[2], maps[1]), 1):
            side = self.fuse[k - 1](self.enter[k](finer))
            x = self.leave[k](side + resized(self.down[k - 1](x), side))
        return {"logits": self.classify(x), "fine": x}


@click_model
def linknet(backbone: str = "efficientnet_lite0", upsampling: str = "transposed") -> Parts:
    """LinkNet: a light decoder that adds the encoder's features (Chaurasia and Culurciello 2017)."""
    base = build(backbone)
    return base, LinkNet(base.channels, 1, upsampling)


@click_model
def sharpmask(backbone: str = "efficientnet_lite0", width: int = 128) -> Parts:
    """SharpMask: top-down refinement with channels that halve at each step (Pinheiro et al. 2016)."""
    base = build(backbone)
    return base, SharpMask(base.channels, 1, width)


@click_model
def refinenet(backbone: str = "efficientnet_lite0", width: int = 64) -> Parts:
    """RefineNet: multi-path refinement with chained residual pooling (Lin et al. 2017)."""
    base = build(backbone)
    return base, RefineNet(base.channels, 1, width)
