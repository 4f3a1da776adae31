"""FC-DenseNet, "Tiramisu": a U-Net of densely connected blocks.

Jégou et al., "The One Hundred Layers Tiramisu" (CVPR Workshops 2017), tables 1 and 2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrseg_cli.models.parts.backbones.dense import DenseBlock, dense_layer
from hrseg_cli.models.zoo.layers import upsampled
from hrseg_cli.models.zoo.network import Outputs, Whole, click_model


class FCDenseNet(Whole):
    """Five blocks down, one at stride 32, five up. On the way up only the new maps of a block go on.

    layers: of the blocks on the way down and at the bottom; on the way up the same, reversed. growth: maps per layer.
    """

    stem_stride = 1
    image_layer = "first"

    def __init__(
        self, classes: int, layers: Sequence[int], growth: int, width: int = 48, upsampling: str = "transposed"
    ) -> None:
        super().__init__()
        *down, bottom = layers
        self.stem_channels = number = width
        self.blocks, self.shrink, self.up, self.after = (nn.ModuleList() for _ in range(4))
        skips = []
        for count in down:
            self.blocks.append(DenseBlock(number, count, growth))
            number += count * growth
            skips.append(number)
            self.shrink.append(dense_layer(number, number, kernel=1))
        self.bottom = DenseBlock(number, bottom, growth)
        made = bottom * growth
        for count, skip in zip(reversed(down), reversed(skips), strict=True):
            self.up.append(upsampled(made, made, 3, upsampling))
            self.after.append(DenseBlock(skip + made, count, growth))
            number, made = skip + made, count * growth
        self.classify = nn.Conv2d(number + made, classes, 1)
        self.first = nn.Conv2d(3, width, 3, padding=1)  # last: normalisations here precede their convolutions

    def stem_features(self, x: Tensor) -> Tensor:
        first: Tensor = self.first(x)
        return first

    def outputs(self, x: Tensor) -> Outputs:
        skips = []
        for block, shrink in zip(self.blocks, self.shrink, strict=True):
            x = torch.cat([x, block(x)], 1)
            skips.append(x)
            x = F.max_pool2d(shrink(x), 2)
        made = self.bottom(x)
        for up, block in zip(self.up, self.after, strict=True):
            x = torch.cat([skips.pop(), up(made)], 1)
            made = block(x)
        return {"logits": self.classify(torch.cat([x, made], 1))}


@click_model
def fc_densenet56(width: int = 48, growth: int = 12, upsampling: str = "transposed") -> Whole:
    """FC-DenseNet56: a U-Net of dense blocks, small (Jégou et al. 2017)."""
    return FCDenseNet(1, [4] * 6, growth, width, upsampling)


@click_model
def fc_densenet103(width: int = 48, growth: int = 16, upsampling: str = "transposed") -> Whole:
    """FC-DenseNet103, "the one hundred layers Tiramisu" (Jégou et al. 2017)."""
    return FCDenseNet(1, [4, 5, 7, 10, 12, 15], growth, width, upsampling)
