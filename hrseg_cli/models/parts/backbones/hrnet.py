"""HRNet: branches at strides 4, 8, 16 and 32 that exchange features throughout.

Wang et al. 2019, "Deep High-Resolution Representation Learning". Module names follow the public checkpoints.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrseg_cli.models.parts.backbones.interface import Backbone
from hrseg_cli.models.parts.backbones.residual import BasicBlock, Bottleneck, conv3x3


def resize(x: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Bilinear resampling with aligned corners, used throughout the network."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


class HRNet(Backbone):
    """The network without a head. width: of the finest branch. small: fewer blocks, "HRNet-W18-Small-v2" in width 18.

    Its features at stride 2 are those of the first convolution.
    """

    image_layer = "conv1"
    classifier: tuple[str, ...] = ("incre_modules.", "downsamp_modules.", "final_layer.", "classifier.")
    can_dilate = False

    def __init__(self, width: int, small: bool = False) -> None:
        super().__init__()
        blocks = 2 if small else 4
        widths = [width * 2**branch for branch in range(4)]
        self.channels, self.stem_channels = [64, *widths], 64
        self.conv1, self.bn1 = conv3x3(3, 64, 2), nn.BatchNorm2d(64)
        self.conv2, self.bn2 = conv3x3(64, 64, 2), nn.BatchNorm2d(64)
        self.layer1 = nn.Sequential(Bottleneck(64, 64), *(Bottleneck(256, 64) for _ in range(blocks - 1)))
        self.transition1 = nn.ModuleList(
            [conv_bn_relu(256, widths[0]), nn.Sequential(conv_bn_relu(256, widths[1], stride=2))]
        )
        self.stage2 = stage(1, widths[:2], blocks)
        self.transition2 = new_branch(widths[:3])
        self.stage3 = stage(3 if small else 4, widths[:3], blocks)
        self.transition3 = new_branch(widths)
        self.stage4 = stage(2 if small else 3, widths, blocks)

    def stem_features(self, x: Tensor) -> Tensor:
        return F.relu_(self.bn1(self.conv1(x)))

    def pyramid(self, x: Tensor) -> list[Tensor]:
        return [x, *self.branches(x)]

    def branches(self, x: Tensor) -> list[Tensor]:
        """The four branches, from the features of the stem."""
        x = F.relu_(self.bn2(self.conv2(x)))
        x = self.layer1(x)
        branches = [transition(x) for transition in self.transition1]
        branches = self.stage2(branches)
        branches = self.stage3([*branches, self.transition2[-1](branches[-1])])
        found: list[Tensor] = self.stage4([*branches, self.transition3[-1](branches[-1])])
        return found

    def keep_finest(self) -> None:
        """Remove what only the coarser outputs of the last exchange need; the pyramid then ends at stride 4."""
        last: Any = self.stage4[-1]
        last.fuse_layers = last.fuse_layers[:1]
        place = f"stage4.{len(self.stage4) - 1}.fuse_layers."
        self.classifier = (*self.classifier, *(f"{place}{row}." for row in (1, 2, 3)))


def joined(branches: list[Tensor]) -> Tensor:
    """(B, C, H/4, W/4): all branches at the resolution of the finest."""
    size = branches[0].shape[-2:]
    return torch.cat([branches[0], *(resize(branch, size) for branch in branches[1:])], 1)


def conv_bn_relu(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(conv3x3(inputs, outputs, stride), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def new_branch(widths: list[int]) -> nn.ModuleList:
    """The coarser branch that a stage adds. Empty entries keep the numbering of the public checkpoints."""
    added = nn.Sequential(conv_bn_relu(widths[-2], widths[-1], stride=2))
    gaps: list[nn.Module] = [None] * (len(widths) - 1)  # type: ignore[list-item]  # torch allows None
    return nn.ModuleList([*gaps, added])


def stage(modules: int, widths: list[int], blocks: int) -> nn.Sequential:
    return nn.Sequential(*(Exchange(widths, blocks) for _ in range(modules)))


class Exchange(nn.Module):
    """One HRNet module: blocks on each branch, then each branch adds all others, resampled to its resolution."""

    def __init__(self, widths: list[int], blocks: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*(BasicBlock(width, width) for _ in range(blocks))) for width in widths
        )
        count = range(len(widths))
        bridges = [[bridge(widths, j, i) for j in count] for i in count]
        self.fuse_layers = nn.ModuleList(nn.ModuleList(row) for row in bridges)  # type: ignore[arg-type]  # with gaps

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        xs = [branch(x) for branch, x in zip(self.branches, inputs, strict=True)]
        outputs = []
        for i, bridges in enumerate(self.fuse_layers):
            assert isinstance(bridges, nn.ModuleList)
            total: Tensor | None = None
            for j, x in enumerate(xs):
                if j != i:
                    x = bridges[j](x)
                if j > i:
                    x = resize(x, xs[i].shape[-2:])
                total = x if total is None else total + x
            assert total is not None
            outputs.append(F.relu(total))
        return outputs


def bridge(widths: list[int], source: int, target: int) -> nn.Module | None:
    """From one branch to another: a 1x1 convolution to a finer one (upsampled later), strided 3x3 ones to a coarser."""
    if source == target:
        return None
    if source > target:
        return nn.Sequential(nn.Conv2d(widths[source], widths[target], 1, bias=False), nn.BatchNorm2d(widths[target]))
    steps = [conv_bn_relu(widths[source], widths[source], stride=2) for _ in range(target - source - 1)]
    last = nn.Sequential(conv3x3(widths[source], widths[target], 2), nn.BatchNorm2d(widths[target]))
    return nn.Sequential(*steps, last)
