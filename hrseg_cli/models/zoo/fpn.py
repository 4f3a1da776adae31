"""Feature pyramid networks with a semantic branch.

Lin et al., "Feature Pyramid Networks" (CVPR 2017); Kirillov et al., "Panoptic Feature Pyramid Networks" (CVPR 2019);
Xiong et al., "UPSNet" (CVPR 2019).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrseg_cli.models.parts.backbones import build
from hrseg_cli.models.parts.deformable import DeformableConv
from hrseg_cli.models.zoo.layers import conv_unit, resized
from hrseg_cli.models.zoo.network import Decoder, Outputs, Parts, click_model


class FPN(nn.Module):
    """Maps of strides 4 to 32, all with ``width`` channels; coarse ones are added to finer ones."""

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(number, width, 1) for number in channels[1:])
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in channels[1:])

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        sides = [lateral(one) for lateral, one in zip(self.lateral, maps[1:], strict=True)]
        for level in (2, 1, 0):
            sides[level] = sides[level] + F.interpolate(sides[level + 1], size=sides[level].shape[-2:], mode="nearest")
        return [smooth(side) for smooth, side in zip(self.smooth, sides, strict=True)]


class SemanticBranch(nn.Module):
    """Maps of strides 4 to 32 are doubled in size until stride 4, a convolution before each time; then all are added.

    Batch instead of group normalisation: it costs nothing in inference.
    """

    def __init__(self, width: int, branch: int) -> None:
        super().__init__()
        self.scales = nn.ModuleList(
            nn.ModuleList(conv_unit(branch if turn else width, branch) for turn in range(max(1, level)))
            for level in range(4)
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        scaled = []
        for level, (x, units) in enumerate(zip(maps, self.scales, strict=True)):
            for unit in units:  # type: ignore[attr-defined]
                x = unit(x)
                if level:
                    x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            scaled.append(x)
        return torch.stack(scaled).sum(0)


class SemanticFPN(Decoder):
    """A feature pyramid, its semantic branch, and scores at stride 4."""

    def __init__(self, channels: Sequence[int], classes: int, width: int = 256, branch: int = 128) -> None:
        super().__init__()
        self.fpn = FPN(channels, width)
        self.branch = SemanticBranch(width, branch)
        self.classify = nn.Conv2d(branch, classes, 1)
        self.fine_channels = branch

    def forward(self, maps: list[Tensor]) -> Outputs:
        fine = self.branch(self.fpn(maps))
        return {"logits": self.classify(fine), "fine": fine}


class UPSNetHead(Decoder):
    """The same deformable convolutions on all maps of a pyramid, joined at stride 4."""

    def __init__(self, channels: Sequence[int], classes: int, width: int = 256, branch: int = 128) -> None:
        super().__init__()
        self.fpn = FPN(channels, width)
        sizes = ((width, branch), (branch, branch), (branch, branch))
        self.shared = nn.Sequential(
            *(nn.Sequential(DeformableConv(*pair), nn.BatchNorm2d(pair[1]), nn.ReLU(inplace=True)) for pair in sizes)
        )
        self.classify = nn.Conv2d(4 * branch, classes, 1)

    def forward(self, maps: list[Tensor]) -> Outputs:
        found = [self.shared(one) for one in self.fpn(maps)]
        return {"logits": self.classify(torch.cat([resized(one, found[0]) for one in found], 1))}


@click_model
def semantic_fpn(backbone: str = "efficientnet_lite0", width: int = 256, branch: int = 128) -> Parts:
    """Panoptic FPN's semantic branch on a feature pyramid (Kirillov et al. 2019)."""
    base = build(backbone)
    return base, SemanticFPN(base.channels, 1, width, branch)


@click_model
def upsnet(backbone: str = "efficientnet_lite0", width: int = 128, branch: int = 64) -> Parts:
    """UPSNet's semantic head: deformable convolutions on a feature pyramid (Xiong et al. 2019)."""
    base = build(backbone)
    return base, UPSNetHead(base.channels, 1, width, branch)
