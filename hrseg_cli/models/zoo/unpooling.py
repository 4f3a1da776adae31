"""Upsampling by the indices of the encoder's poolings: DeconvNet and SegNet.

Noh et al., ICCV 2015; Badrinarayanan et al., TPAMI 2017. Both take VGG.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from hrseg_cli.errors import HrsegError
from hrseg_cli.models.parts.backbones import build
from hrseg_cli.models.parts.backbones.vgg import VGG, WIDTHS, Stage
from hrseg_cli.models.zoo.layers import conv_unit
from hrseg_cli.models.zoo.network import Decoder, Outputs, Parts, click_model


def unpooled(x: Tensor, stage: Stage) -> Tensor:
    """Each value at the place of its maximum before the pooling of ``stage``; 0 elsewhere."""
    empty = torch.zeros_like(stage.features)
    return empty.flatten(2).scatter(2, stage.indices.flatten(2), x.flatten(2).to(empty.dtype)).view_as(empty)


class SegNet(Decoder):
    """A mirror of VGG: from each pooling an unpooling, and as many layers as the encoder's stage has.

    layer: from numbers of channels to a layer; a convolution by default.
    """

    reads = "stages"

    def __init__(
        self, convolutions: Sequence[int], classes: int, layer: Callable[[int, int], nn.Module] = conv_unit
    ) -> None:
        super().__init__()
        self.middle: nn.Module = nn.Identity()
        self.stages = nn.ModuleList()
        for number in (4, 3, 2, 1, 0):
            inside, outside = WIDTHS[number], WIDTHS[max(0, number - 1)]
            layers = [layer(inside, inside) for _ in range(convolutions[number] - 1)]
            self.stages.append(nn.Sequential(*layers, *([layer(inside, outside)] if number else [])))
        self.classify = nn.Conv2d(WIDTHS[0], classes, 3, padding=1)  # the last layer of the mirror

    def forward(self, stages: list[Stage]) -> Outputs:
        x = self.middle(stages[-1].pooled)
        for layers, stage in zip(self.stages, reversed(stages), strict=True):
            x = layers(unpooled(x, stage))
        return {"logits": self.classify(x)}


class DeconvNet(SegNet):
    """With transposed convolutions, and between encoder and mirror the fully connected layers of VGG as convolutions.

    Padded, so that any size of image works; the paper's maps have one pixel there.
    """

    def __init__(self, convolutions: Sequence[int], classes: int, width: int = 4096) -> None:
        super().__init__(convolutions, classes, deconv_unit)
        self.middle = nn.Sequential(
            *conv_unit(WIDTHS[4], width, 7), *conv_unit(width, width, 1), deconv_unit(width, WIDTHS[4], 7)
        )
        self.stages[-1].append(deconv_unit(WIDTHS[0], WIDTHS[0]))  # type: ignore[operator]
        self.classify = nn.Conv2d(WIDTHS[0], classes, 1)


def deconv_unit(inputs: int, outputs: int, kernel: int = 3) -> nn.Sequential:
    """Transposed convolution, batch normalisation, ReLU; the size stays."""
    conv = nn.ConvTranspose2d(inputs, outputs, kernel, padding=kernel // 2)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def vgg(backbone: str) -> VGG:
    """Raises HrsegError for a backbone without pooling indices."""
    base = build(backbone)
    if not isinstance(base, VGG):
        raise HrsegError(f"backbone {backbone} has no pooling indices; use vgg11 or vgg16")
    return base


@click_model
def segnet(backbone: str = "vgg16") -> Parts:
    """SegNet: unpooling by indices, then convolutions (Badrinarayanan et al. 2017)."""
    base = vgg(backbone)
    return base, SegNet(base.convolutions, 1)


@click_model
def deconvnet(backbone: str = "vgg16", width: int = 4096) -> Parts:
    """DeconvNet: a mirrored VGG-16 of unpooling and transposed convolutions (Noh et al. 2015)."""
    base = vgg(backbone)
    return base, DeconvNet(base.convolutions, 1, width)
