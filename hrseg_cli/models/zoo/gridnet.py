"""Networks of several streams of full and lower resolution that exchange features on the way.

GridNet: Fourure et al., BMVC 2017, which contains U-Net and FRRN as special cases (figure 2). FRRN: Pohlen et al., CVPR
2017, table 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrseg_cli.models.zoo.layers import conv_unit, upsampled
from hrseg_cli.models.zoo.network import Outputs, Whole, click_model


def pre_unit(inputs: int, conv: nn.Module) -> nn.Sequential:
    """Batch normalisation, ReLU, a layer."""
    return nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(), conv)


def pair(inputs: int, outputs: int, first: nn.Module | None = None) -> nn.Sequential:
    """Two convolutions, each after a normalisation; ``first`` replaces the first of them."""
    first = first or nn.Conv2d(inputs, outputs, 3, padding=1)
    return nn.Sequential(pre_unit(inputs, first), pre_unit(outputs, nn.Conv2d(outputs, outputs, 3, padding=1)))


class GridNet(Whole):
    """Rows are streams at strides 1, 2, 4, ...; in the first half of the columns each adds what comes from the finer
    stream, in the second half what comes from the coarser one.

    dropped: probability that a stream's sideways connection is cut, for one sample in one column of training, so that
    the other streams learn too. It stays where no other connection arrives.
    """

    stem_stride = 1
    image_layer = "first"

    def __init__(
        self,
        classes: int,
        widths: Sequence[int] = (16, 32, 64, 128, 256),
        columns: int = 6,
        dropped: float = 0.1,
        upsampling: str = "transposed",
    ) -> None:
        super().__init__()
        self.stem_channels, self.columns, self.dropped = widths[0], columns, dropped
        self.rows = rows = range(len(widths))
        self.enter = pair(widths[0], widths[0])
        # The first column has no sideways connection but that of the first row.
        self.across = nn.ModuleDict(
            {f"{i}_{j}": pair(widths[i], widths[i]) for j in range(columns) for i in rows if j or not i}
        )
        self.vertical = nn.ModuleDict()
        for j in range(columns):
            for i in rows[1:] if j < columns // 2 else rows[:-1]:
                inputs, outputs = widths[i - 1 if j < columns // 2 else i + 1], widths[i]
                move = (
                    nn.Conv2d(inputs, outputs, 3, 2, 1)
                    if j < columns // 2
                    else upsampled(inputs, outputs, 3, upsampling)
                )
                self.vertical[f"{i}_{j}"] = pair(inputs, outputs, move)
        self.leave = pre_unit(widths[0], nn.Conv2d(widths[0], widths[0], 3, padding=1))
        self.classify = pre_unit(widths[0], nn.Conv2d(widths[0], classes, 3, padding=1))
        self.first = nn.Conv2d(3, widths[0], 3, padding=1)  # last: normalisations here precede their convolutions

    def stem_features(self, x: Tensor) -> Tensor:
        first: Tensor = self.first(x)
        return first

    def outputs(self, x: Tensor) -> Outputs:
        rows = self.rows
        streams: list[Tensor | None] = [self.enter(x), *(None for _ in rows[1:])]
        for j in range(self.columns):
            down = j < self.columns // 2
            for i in rows if down else reversed(rows):
                before, parts = streams[i], []
                neighbour = streams[i - 1] if down and i else streams[i + 1] if not down and i < rows[-1] else None
                if neighbour is not None:
                    parts.append(self.vertical[f"{i}_{j}"](neighbour))
                if before is not None:
                    along = before + self.across[f"{i}_{j}"](before)
                    parts.append(self._cut(along) if parts else along)
                streams[i] = torch.stack(parts).sum(0)
        assert streams[0] is not None
        return {"logits": self.classify(self.leave(streams[0]))}

    def _cut(self, x: Tensor) -> Tensor:
        if not self.training or not self.dropped:
            return x
        return x * (torch.rand(len(x), 1, 1, 1, device=x.device) >= self.dropped)


class FRRU(nn.Module):
    """A full-resolution residual unit: the pooling stream reads both streams; what it finds is added to the residual
    stream, enlarged."""

    def __init__(self, inputs: int, outputs: int, stride: int, residual: int = 32) -> None:
        super().__init__()
        self.stride = stride
        self.units = nn.Sequential(conv_unit(inputs + residual, outputs), conv_unit(outputs, outputs))
        self.back = nn.Conv2d(outputs, residual, 1)

    def forward(self, pooling: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        pooling = self.units(torch.cat([pooling, F.max_pool2d(residual, self.stride)], 1))
        return pooling, residual + F.interpolate(self.back(pooling), scale_factor=self.stride, mode="nearest")


class ResidualUnit(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        last = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        self.units = nn.Sequential(conv_unit(width, width), last)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.units(x)
        return x + added


class FRRN(Whole):
    """A residual stream at full resolution, and a pooling stream that goes down and up again.

    steps: stride, width (times ``width``) and number of units of each stretch of the pooling stream.
    """

    stem_stride = 1
    image_layer = "first.0"

    def __init__(self, classes: int, steps: Sequence[tuple[int, int, int]], width: int = 48) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, width, 5, padding=2, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.stem_channels = width
        self.before = nn.Sequential(*(ResidualUnit(width) for _ in range(3)))
        self.split = nn.Conv2d(width, 32, 1)
        self.units, inputs = nn.ModuleList(), width
        for stride, factor, count in steps:
            for _ in range(count):
                self.units.append(FRRU(inputs, factor * width, stride))
                inputs = factor * width
        self.merge = nn.Conv2d(inputs + 32, width, 1)
        self.after = nn.Sequential(*(ResidualUnit(width) for _ in range(3)))
        self.classify = nn.Conv2d(width, classes, 1)

    def stem_features(self, x: Tensor) -> Tensor:
        first: Tensor = self.first(x)
        return first

    def outputs(self, x: Tensor) -> Outputs:
        x = self.before(x)
        pooling, residual, stride = x, self.split(x), 1
        for unit in cast(Sequence[FRRU], self.units):
            if unit.stride > stride:
                pooling = F.max_pool2d(pooling, 2)
            elif unit.stride < stride:
                pooling = F.interpolate(pooling, scale_factor=2, mode="bilinear", align_corners=False)
            stride = unit.stride
            pooling, residual = unit(pooling, residual)
        pooling = F.interpolate(pooling, scale_factor=2, mode="bilinear", align_corners=False)
        return {"logits": self.classify(self.after(self.merge(torch.cat([pooling, residual], 1))))}


FRRN_A = ((2, 2, 3), (4, 4, 4), (8, 8, 2), (16, 8, 2), (8, 4, 2), (4, 4, 2), (2, 2, 2))


@click_model
def gridnet(
    widths: Sequence[int] = (16, 32, 64, 128, 256),
    columns: int = 6,
    dropped: float = 0.1,
    upsampling: str = "transposed",
) -> Whole:
    """GridNet: a grid of streams, with dropped connections in training (Fourure et al. 2017)."""
    if len(widths) not in range(2, 7) or columns % 2 or not 2 <= columns <= 16:
        raise ValueError("widths takes 2 to 6 numbers, columns an even number from 2 to 16")
    return GridNet(1, widths, columns, dropped, upsampling)


@click_model
def frrn_a(width: int = 48) -> Whole:
    """FRRN A: a residual stream at full resolution and a pooling stream (Pohlen et al. 2017)."""
    return FRRN(1, FRRN_A, width)
