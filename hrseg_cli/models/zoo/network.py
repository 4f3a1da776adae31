"""A backbone, a decoder and clicks: the click model that all networks here share."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrseg_cli.models.base import InteractiveModel
from hrseg_cli.models.parts.backbones.interface import Backbone
from hrseg_cli.models.parts.click_maps import disk_maps
from hrseg_cli.models.parts.folding import folded
from hrseg_cli.models.parts.stem import Scale, click_stem, mirrored, pad_to_stride

RADIUS = 5  # of a click's disk, in pixels
# Numbers in options. A file may contain any, and the model is built before its weights are compared.
MOST, LARGEST = 16, 8192

Outputs = dict[str, Tensor]


class Decoder(nn.Module):
    """forward: the backbone's maps -> "logits" (B, classes, h, w) at any resolution, and possibly more logits for
    training. Classifiers are called ``classify``; normalisations of pooled features are part of a module ``pooled``.

    reads: method of the backbone that gives the maps. with_aux: False leaves out what only training needs.
    fine_channels: above 0, forward also returns "fine": the features at stride 4 that the logits are computed from.
    """

    reads: str = "pyramid"
    with_aux: bool = True
    fine_channels: int = 0


class Whole(Backbone):
    """A network that cannot be split into a pyramid and a decoder."""

    with_aux: bool = True

    def outputs(self, x: Tensor) -> Outputs:
        """What a :class:`Decoder` returns, from the features of the stem."""
        raise NotImplementedError


class ZooNet(InteractiveModel):
    """A click model: clicks and previous mask are added to the first features of the image, as in RITM.

    encoder: a backbone, with a decoder; or a whole network, without.
    """

    image_layer = ""
    pooled_norms = ("pooled", "object_context_block")
    unused = ("f_pixel", "f_object")
    # A backbone's methods are called, not itself: the scope of its first layer is the exported module.
    single_precision = (r"/clicks/", r"/(model|base)/(stem|conv1|first|features\.0)/", "/classify")
    layer_groups: Mapping[str, tuple[str, ...]] = {
        "clicks": (r"^clicks\.",),
        "encoder": (r"^encoder\.(?!.*\bclassify\b)",),
        "decoder": (r"^decoder\.(?!.*\bclassify\b)",),
        "heads": (r"\bclassify\b",),
    }

    def __init__(self, name: str, config: dict[str, Any], encoder: Backbone, decoder: Decoder | None = None) -> None:
        super().__init__()
        self.name, self.config = name, config
        self.encoder, self.decoder = encoder, decoder
        self.clicks = click_stem(3, encoder.stem_channels, encoder.stem_stride, nn.LeakyReLU(0.2, inplace=True))
        initialise(self)
        self.image_layer = f"encoder.{encoder.image_layer}"
        if decoder is not None and decoder.fine_channels and encoder.stem_stride == 2:
            self.taps = {"stem": encoder.stem_channels, "fine": decoder.fine_channels}

    def forward(self, image: Tensor, points: Tensor) -> Outputs:
        outputs, _ = self.answers(image, points)
        outputs.pop("fine", None)
        return outputs

    def answers(self, image: Tensor, points: Tensor, inject: Tensor | None = None) -> tuple[Outputs, Tensor]:
        """All logits at full size, possibly "fine" for the padded image, and the features of the stem."""
        height, width = image.shape[-2:]
        image = pad_to_stride(image)
        rows, cols = image.shape[-2:]
        seen = torch.cat([image, disk_maps(points, rows, cols, RADIUS)], 1)
        if self.encoder.margin:
            seen = mirrored(seen, self.encoder.margin)
        stem = self.encoder.stem_features(self.encoder.normalised(seen[:, :3]))
        given = stem + self.clicks(seen[:, 3:])
        if inject is not None:
            given = given + F.pad(inject, (0, stem.shape[-1] - inject.shape[-1], 0, stem.shape[-2] - inject.shape[-2]))
        if self.decoder is None:
            outputs = cast(Whole, self.encoder).outputs(given)
        else:
            outputs = self.decoder(getattr(self.encoder, self.decoder.reads)(given))
        for name, value in outputs.items():
            if name != "fine":
                value = F.interpolate(value, size=(rows, cols), mode="bilinear", align_corners=False)
                outputs[name] = value[..., :height, :width]
        return outputs, stem

    def tapped(self, image: Tensor, points: Tensor, inject: Tensor | None = None) -> Outputs:
        if not self.taps:
            return super().tapped(image, points, inject)
        outputs, stem = self.answers(image, points, inject)
        rows, cols = (-(-side // 2) for side in image.shape[-2:])
        outputs["stem"] = stem[..., :rows, :cols]
        outputs["fine"] = outputs["fine"][..., : -(-rows // 2), : -(-cols // 2)]
        return outputs

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        groups: dict[str, list[nn.Parameter]] = {"new": [], "heads": [], "backbone": []}
        for name, parameter in self.named_parameters():
            public = self.decoder is not None and name.startswith("encoder.") and not name.endswith("smoother")
            groups["heads" if "classify" in name else "backbone" if public else "new"].append(parameter)
        return groups

    def initialise(self, backbone: Mapping[str, Tensor] | None, coverage: float) -> float:
        if backbone is not None and self.decoder is None:
            return super().initialise(backbone, coverage)
        if backbone is None:
            for module in self.clicks:
                if isinstance(module, Scale):  # a small scale protects pretrained features, and there are none
                    nn.init.ones_(module.scale)
            return 0.0
        self.encoder.load_imagenet(backbone)  # complete, or an error
        return 1.0

    def _for_inference(self, precision: str, keep_layers: bool) -> InteractiveModel:
        fast = folded(self)
        for part in (fast.encoder, fast.decoder):
            if isinstance(part, Decoder | Whole):
                part.with_aux = False
        return fast.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]

    def click_maps(self, points: Tensor, height: int, width: int) -> Tensor:
        return disk_maps(points, height, width, RADIUS)


def initialise(network: nn.Module) -> None:
    """Start all convolutions with random weights after He et al. 2015, except those that define their own start, and
    classifiers, whose answers would be far too certain."""
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and "reset_parameters" not in vars(type(layer)):
            if "classify" in name:
                nn.init.normal_(layer.weight, std=0.01)
            else:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


Parts = tuple[Backbone, Decoder | None]


def click_model(build: Callable[..., Parts | Whole], kind: type[ZooNet] = ZooNet) -> Callable[..., ZooNet]:
    """Makes a function that builds a backbone and a decoder, or a whole network, one that builds the click model of its
    name, with its keyword arguments as options. Raises ValueError for absurd numbers."""
    signature = inspect.signature(build)

    @functools.wraps(build)
    def make(**options: Any) -> ZooNet:
        bound = signature.bind(**options)
        bound.apply_defaults()
        config = dict(bound.arguments)
        for option, value in config.items():
            numbers = [value] if isinstance(value, int | float) and not isinstance(value, bool) else value
            if isinstance(numbers, list | tuple):
                usual = signature.parameters[option].default
                fractions = isinstance(usual[0] if isinstance(usual, tuple) else usual, float)
                least, sort, allowed = (0, "numbers", int | float) if fractions else (1, "whole numbers", int)
                sound = all(isinstance(number, allowed) and least <= number <= LARGEST for number in numbers)
                if not (sound and 1 <= len(numbers) <= MOST):
                    raise ValueError(f"{option} takes at most {MOST} {sort} from {least} to {LARGEST}, not {value}")
        parts = build(**config)
        return kind(build.__name__, config, *(parts if isinstance(parts, tuple) else (parts,)))

    return make
