"""V-Net's residual stages in two dimensions. Its three-dimensional form is beyond a tool for pictures.

Milletari et al., 3DV 2016, section 2; its Dice loss is ``dice`` with ``squared: true``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hrseg_cli.models.zoo.layers import upsampled
from hrseg_cli.models.zoo.network import Outputs, Whole, click_model

DEPTHS = (1, 2, 3, 3, 3)  # convolutions of the stages at strides 1 to 16; on the way up the same, reversed


class Stage(nn.Module):
    """5x5 convolutions, each with a PReLU; the input is added before the last of them."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 5, padding=2) for _ in range(count))
        self.activations = nn.ModuleList(nn.PReLU(width) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for number, (conv, activation) in enumerate(zip(self.convs, self.activations, strict=True), 1):
            y = conv(y)
            y = activation(y + x if number == len(self.convs) else y)
        return y


class VNet(Whole):
    """Residual stages; strided convolutions instead of pooling."""

    stem_stride = 1
    image_layer = "first"

    def __init__(self, classes: int, width: int = 16, upsampling: str = "transposed") -> None:
        super().__init__()
        self.stem_channels = width
        widths = [width << level for level in range(5)]
        self.first = nn.Conv2d(3, width, 5, padding=2)
        self.stages = nn.ModuleList(Stage(*pair) for pair in zip(widths, DEPTHS, strict=True))
        self.down = nn.ModuleList(
            nn.Sequential(nn.Conv2d(finer, 2 * finer, 2, 2), nn.PReLU(2 * finer)) for finer in widths[:4]
        )
        self.up, self.after = nn.ModuleList(), nn.ModuleList()
        inputs = widths[4]
        for level in (3, 2, 1, 0):
            half = widths[level]
            self.up.append(nn.Sequential(upsampled(inputs, half, 2, upsampling), nn.PReLU(half)))
            self.after.append(Stage(2 * half, DEPTHS[level]))
            inputs = 2 * half
        self.classify = nn.Conv2d(inputs, classes, 1)

    def stem_features(self, x: Tensor) -> Tensor:
        first: Tensor = self.first(x)
        return first

    def outputs(self, x: Tensor) -> Outputs:
        skips = [self.stages[0](x)]
        for down, stage in zip(self.down, self.stages[1:], strict=True):
            skips.append(stage(down(skips[-1])))
        x = skips.pop()
        for up, stage in zip(self.up, self.after, strict=True):
            x = stage(torch.cat([up(x), skips.pop()], 1))
        return {"logits": self.classify(x)}


@click_model
def vnet(width: int = 16, upsampling: str = "transposed") -> Whole:
    """V-Net's residual stages in two dimensions (Milletari et al. 2016)."""
    return VNet(1, width, upsampling)
