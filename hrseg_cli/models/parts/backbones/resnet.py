"""ResNet (He et al., CVPR 2016), with the names of torchvision's state dicts."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from hrseg_cli.models.parts.backbones.interface import Backbone
from hrseg_cli.models.parts.backbones.residual import BasicBlock, Bottleneck

BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class ResNet(Backbone):
    """ResNet-18, -50 or -101. Its features at stride 2 are those of the first convolution."""

    image_layer = "conv1"
    classifier = ("fc.",)
    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module
    layer4: nn.Module

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        self.stem_channels, self.channels = 64, [64]
        for level, (count, inside) in enumerate(zip(BLOCKS[depth], (64, 128, 256, 512), strict=True)):
            blocks: list[nn.Module] = []
            for number in range(count):
                stride = 2 if level and not number else 1
                inputs, outputs = self.channels[-1], inside if depth == 18 else 4 * inside
                blocks.append(BasicBlock(inputs, inside, stride) if depth == 18 else Bottleneck(inputs, inside, stride))
                if number:
                    continue
                self.channels.append(outputs)
            self.add_module(f"layer{level + 1}", nn.Sequential(*blocks))

    def stem_features(self, x: Tensor) -> Tensor:
        return F.relu_(self.bn1(self.conv1(x)))

    def pyramid(self, x: Tensor) -> list[Tensor]:
        maps = [x, self.layer1(F.max_pool2d(x, 3, 2, 1))]
        for layer in (self.layer2, self.layer3, self.layer4):
            maps.append(layer(maps[-1]))
        return maps

    def strided(self) -> list[list[nn.Module]]:
        return [[self.layer3], [self.layer4]]
