"""Backbones: features of an image at strides 2 to 32, and one place where clicks enter. Known by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from hrseg_cli.errors import UnknownName
from hrseg_cli.models.parts.backbones.dilation import dilate
from hrseg_cli.models.parts.backbones.efficientnet_lite import EfficientNetLite
from hrseg_cli.models.parts.backbones.hrnet import HRNet
from hrseg_cli.models.parts.backbones.interface import Backbone
from hrseg_cli.models.parts.backbones.resnet import ResNet
from hrseg_cli.models.parts.backbones.vgg import VGG

BUILDERS: dict[str, Callable[[], Backbone]] = {
    "efficientnet_lite0": partial(EfficientNetLite, "lite0"),
    "efficientnet_lite1": partial(EfficientNetLite, "lite1"),
    "efficientnet_lite2": partial(EfficientNetLite, "lite2"),
    "hrnet18s": partial(HRNet, 18, small=True),
    "hrnet18": partial(HRNet, 18),
    "hrnet32": partial(HRNet, 32),
    "resnet18": partial(ResNet, 18),
    "resnet50": partial(ResNet, 50),
    "vgg11": partial(VGG, 11),
    "vgg16": partial(VGG, 16),
}


def build(name: str, output_stride: int = 32, smooth: bool = False) -> Backbone:
    """The backbone of that name, without weights. Raises UnknownName.

    output_stride: 8 or 16 dilates what follows that stride; the last maps of the pyramid then have that stride.
    smooth: smooth dilated convolutions, see :class:`~hrseg_cli.models.parts.backbones.dilation.SmoothedConv`.
    """
    if name not in BUILDERS:
        raise UnknownName("backbone", name, BUILDERS)
    backbone = BUILDERS[name]()
    dilate(backbone, output_stride, smooth)
    return backbone
