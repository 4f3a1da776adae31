"""VGG (Simonyan and Zisserman, ICLR 2015), with the names of torchvision's state dicts."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch.nn.functional as F
from torch import Tensor, nn

from hrseg_cli.models.parts.backbones.interface import Backbone

CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 16: (2, 2, 3, 3, 3)}
WIDTHS = (64, 128, 256, 512, 512)


class Stage(NamedTuple):
    """One of five stages: features before its pooling, after it, and where each maximum was in its map (flat)."""

    features: Tensor
    pooled: Tensor
    indices: Tensor


class VGG(Backbone):
    """VGG-11 or -16 with batch normalisation (torchvision's vgg11_bn, vgg16_bn), without the fully connected layers.

    norm: False leaves batch normalisation out, as in the paper.
    """

    stem_stride = 1
    image_layer = "features.0"
    classifier = ("classifier.",)

    def __init__(self, depth: int, norm: bool = True) -> None:
        super().__init__()
        self.convolutions = CONVOLUTIONS[depth]
        layers: list[nn.Module] = []
        inputs = 3
        for width, count in zip(WIDTHS, self.convolutions, strict=True):
            for _ in range(count):
                layers += [nn.Conv2d(inputs, width, 3, padding=1), *([nn.BatchNorm2d(width)] if norm else [])]
                layers.append(nn.ReLU(inplace=True))
                inputs = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.first = 3 if norm else 2  # layers of the stem
        self.channels, self.stem_channels = list(WIDTHS), WIDTHS[0]

    def stem_features(self, x: Tensor) -> Tensor:
        for layer in list(self.features)[: self.first]:
            x = layer(x)
        return x

    def stages(self, x: Tensor) -> list[Stage]:
        """All five stages, from the features of the stem."""
        found = []
        for layer in list(self.features)[self.first :]:
            if isinstance(layer, nn.MaxPool2d):
                side, step = cast(int, layer.kernel_size), cast(int, layer.stride)
                pooled, indices = F.max_pool2d(x, side, step, cast(int, layer.padding), return_indices=True)
                found.append(Stage(x, pooled, indices))
                x = pooled
            else:
                x = layer(x)
        return found

    def pyramid(self, x: Tensor) -> list[Tensor]:
        return [stage.pooled for stage in self.stages(x)]

    def strided(self) -> list[list[nn.Module]]:
        """From each of the last two poolings on: the stage after it has its dilation."""
        layers = list(self.features)
        pools = [place for place, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
        return [layers[pools[3] : pools[4]], layers[pools[4] :]]
