"""Fully convolutional networks: classifiers as convolutions, and skips from finer features.

Long et al., "Fully Convolutional Networks for Semantic Segmentation" (CVPR 2015), section 4.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from hrseg_cli.models.parts.backbones import build
from hrseg_cli.models.zoo.layers import BilinearUp
from hrseg_cli.models.zoo.network import Decoder, Outputs, Parts, click_model


class FCN(Decoder):
    """Scores at stride 32, upsampled and added to those of ``skips`` finer levels.

    width, kernel: of the first of two wide convolutions, fc6 and fc7 of VGG.
    """

    def __init__(self, channels: Sequence[int], classes: int, skips: int, width: int = 4096, kernel: int = 7) -> None:
        super().__init__()
        if not kernel % 2:
            raise ValueError(f"kernel is {kernel}; it must be odd")
        self.wide = nn.Sequential(
            nn.Conv2d(channels[4], width, kernel, padding=kernel // 2),
            nn.ReLU(inplace=True),
            nn.Dropout2d(0.5),
            nn.Conv2d(width, width, 1),
            nn.ReLU(inplace=True),
            nn.Dropout2d(0.5),
        )
        self.classify = nn.ModuleList(
            nn.Conv2d(number, classes, 1) for number in (width, channels[3], channels[2])[: skips + 1]
        )
        self.up = nn.ModuleList(BilinearUp(classes) for _ in range(skips))

    def forward(self, maps: list[Tensor]) -> Outputs:
        scores = self.classify[0](self.wide(maps[4]))
        for up, classify, finer in zip(self.up, self.classify[1:], (maps[3], maps[2]), strict=False):
            scores = up(scores) + classify(finer)
        return {"logits": scores}


@click_model
def fcn_32s(backbone: str = "efficientnet_lite0", width: int = 512, kernel: int = 3) -> Parts:
    """FCN-32s: one map of scores, without skips (Long et al. 2015)."""
    base = build(backbone)
    return base, FCN(base.channels, 1, 0, width, kernel)


@click_model
def fcn_16s(backbone: str = "efficientnet_lite0", width: int = 512, kernel: int = 3) -> Parts:
    """FCN-16s: scores at strides 32 and 16 (Long et al. 2015)."""
    base = build(backbone)
    return base, FCN(base.channels, 1, 1, width, kernel)


@click_model
def fcn_8s(backbone: str = "efficientnet_lite0", width: int = 512, kernel: int = 3) -> Parts:
    """FCN-8s: scores at strides 32, 16 and 8 (Long et al. 2015)."""
    base = build(backbone)
    return base, FCN(base.channels, 1, 2, width, kernel)
