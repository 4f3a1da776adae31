"""The heads of HRNet's three versions: the finest branch, all branches joined, and a pyramid made of these.

Wang et al. 2019, "Deep High-Resolution Representation Learning", section 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from hrseg_cli.errors import HrsegError
from hrseg_cli.models.parts.backbones import build
from hrseg_cli.models.parts.backbones.hrnet import HRNet, joined
from hrseg_cli.models.zoo.fpn import SemanticBranch
from hrseg_cli.models.zoo.layers import conv_unit
from hrseg_cli.models.zoo.network import Decoder, Outputs, Parts, click_model


class HRNetHead(Decoder):
    """A 1x1 convolution and scores at stride 4. everything: on all branches (V2), not on the finest alone (V1)."""

    def __init__(self, channels: Sequence[int], classes: int, everything: bool) -> None:
        super().__init__()
        self.everything = everything
        width = sum(channels[1:]) if everything else channels[1]
        self.unit = conv_unit(width, width, 1)
        self.classify = nn.Conv2d(width, classes, 1)
        self.fine_channels = width

    def forward(self, maps: list[Tensor]) -> Outputs:
        fine = self.unit(joined(maps[1:]) if self.everything else maps[1])
        return {"logits": self.classify(fine), "fine": fine}


class PyramidHead(Decoder):
    """V2p: all branches joined, averaged to strides 4 to 32; then the semantic branch of Panoptic FPN."""

    def __init__(self, channels: Sequence[int], classes: int, width: int = 256, branch: int = 128) -> None:
        super().__init__()
        self.enter = nn.Conv2d(sum(channels[1:]), width, 1)
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(4))
        self.branch = SemanticBranch(width, branch)
        self.classify = nn.Conv2d(branch, classes, 1)

    def forward(self, maps: list[Tensor]) -> Outputs:
        whole = self.enter(joined(maps[1:]))
        levels = [smooth(F.avg_pool2d(whole, 2**k)) for k, smooth in enumerate(self.smooth)]
        return {"logits": self.classify(self.branch(levels))}


@click_model
def hrnet_v1(backbone: str = "hrnet18s") -> Parts:
    """HRNetV1: scores from the finest branch (Wang et al. 2019)."""
    base = build(backbone)
    if not isinstance(base, HRNet):
        raise HrsegError(f"hrnet_v1: backbone {backbone} has no branches; use an HRNet")
    base.keep_finest()
    return base, HRNetHead(base.channels, 1, everything=False)


@click_model
def hrnet_v2(backbone: str = "hrnet18s") -> Parts:
    """HRNetV2: scores from all branches, joined (Wang et al. 2019)."""
    base = build(backbone)
    return base, HRNetHead(base.channels, 1, everything=True)


@click_model
def hrnet_v2p(backbone: str = "hrnet18s", width: int = 128, branch: int = 64) -> Parts:
    """HRNetV2p: a pyramid made of all branches, with a semantic branch (Wang et al. 2019)."""
    base = build(backbone)
    return base, PyramidHead(base.channels, 1, width, branch)
