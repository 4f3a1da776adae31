"""One network on an image at several scales, and attention that chooses between its answers at each pixel.

Explicit: Chen et al., "Attention to Scale" (CVPR 2016). Hierarchical: Tao et al., "Hierarchical Multi-Scale Attention
for Semantic Segmentation" (arXiv 2005.10821), on HRNet with an OCR head.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrseg_cli.models.parts.backbones import build
from hrseg_cli.models.parts.backbones.hrnet import joined
from hrseg_cli.models.parts.backbones.interface import Backbone
from hrseg_cli.models.parts.ocr import ObjectContext
from hrseg_cli.models.parts.stem import pad_to_stride
from hrseg_cli.models.zoo.layers import Head, conv_unit
from hrseg_cli.models.zoo.network import Decoder, Outputs, Parts, ZooNet, click_model


class OCR(Decoder):
    """Object-contextual representations at stride 4. "attention": the raw weight of this scale, (B, 1, h, w).

    bias: of that weight; where a softmax over scales follows, it would cancel.
    """

    def __init__(self, channels: Sequence[int], classes: int, width: int, bias: bool) -> None:
        super().__init__()
        inputs = sum(channels[1:])
        self.aux = Head(inputs, inputs, classes, dropout=0)
        self.enter = nn.Sequential(
            nn.Conv2d(inputs, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU(inplace=True)
        )
        self.context = ObjectContext(2 * width, width)
        self.classify = nn.Conv2d(2 * width, classes, 1)
        weight = nn.Conv2d(width, 1, 1, bias=bias)
        self.attend = nn.Sequential(conv_unit(2 * width, width), conv_unit(width, width), weight)

    def forward(self, maps: list[Tensor]) -> Outputs:
        everything = joined(maps[1:])
        aux = self.aux(everything)
        found = self.context(self.enter(everything), aux)
        return {"logits": self.classify(found), "aux": aux, "attention": self.attend(found)}


class MultiScaleNet(ZooNet):
    """Options ``scales`` of training and ``chain`` of inference, ascending, with 1 among them.

    Hierarchical attention is trained on a pair of scales and works for any chain: the answer of each scale is
    mixed with that of all larger ones, by the attention of the smaller. Explicit attention (``explicit``) weighs
    its scales together, by a softmax.
    """

    def __init__(self, name: str, config: dict[str, Any], encoder: Backbone, decoder: Decoder) -> None:
        super().__init__(name, config, encoder, decoder)
        self.scales, self.explicit = config["scales"], name == "attention_to_scale"
        self.chain = config.get("chain", self.scales)

    def forward(self, image: Tensor, points: Tensor) -> Outputs:
        height, width = image.shape[-2:]
        image = pad_to_stride(image)
        scales = self.scales if self.training else self.chain
        answers = [self._answers_at(scale, image, points) for scale in scales]
        if self.explicit:
            weights = torch.cat([one["attention"] for one in answers], 1).softmax(1)
            logits = (torch.cat([one["logits"] for one in answers], 1) * weights).sum(1, keepdim=True)
        else:
            logits = answers[-1]["logits"]
            for coarser in answers[-2::-1]:
                share = coarser["attention"].sigmoid()
                logits = share * coarser["logits"] + (1 - share) * logits
        outputs = {"logits": logits}
        if self.decoder is not None and self.decoder.with_aux:
            outputs["aux"] = answers[list(scales).index(1)]["aux"]
        return {name: value[..., :height, :width] for name, value in outputs.items()}

    def _answers_at(self, scale: float, image: Tensor, points: Tensor) -> Outputs:
        """What the network finds in the image at a scale, at the image's own size."""
        rows, cols = image.shape[-2:]
        if scale != 1:
            image = F.interpolate(image, scale_factor=scale, mode="bilinear", align_corners=False)
            # Coordinates are those of pixel centres; a click in the first row must not become "no click" below 0.
            placed = ((points[..., :2] + 0.5) * scale - 0.5).clamp(min=0)
            moved = torch.cat([placed, points[..., 2:]], -1)
            points = torch.where(points[..., :2].amax(-1, keepdim=True) < 0, points, moved)
        outputs, _ = self.answers(image, points)
        return {
            name: F.interpolate(value, size=(rows, cols), mode="bilinear", align_corners=False)
            for name, value in outputs.items()
        }


multi_scale = partial(click_model, kind=MultiScaleNet)


def check_scales(*options: Sequence[float]) -> None:
    """Raises ValueError unless each is a few ascending numbers with 1 among them."""
    for scales in options:
        ascending = list(scales) == sorted(set(scales)) and scales[0] >= 0.25 and scales[-1] <= 2
        if not (2 <= len(scales) <= 5 and 1 in scales and ascending):
            raise ValueError(f"{list(scales)}: give 2 to 5 ascending scales from 0.25 to 2, with 1 among them")


@multi_scale
def attention_to_scale(backbone: str = "hrnet18s", width: int = 48, scales: Sequence[float] = (0.5, 1.0)) -> Parts:
    """Explicit attention to scale: answers at fixed scales, weighed at each pixel (Chen et al. 2016)."""
    base = build(backbone)
    check_scales(scales)
    return base, OCR(base.channels, 1, width, bias=False)


@multi_scale
def hierarchical_attention(
    backbone: str = "hrnet18s",
    width: int = 48,
    scales: Sequence[float] = (0.5, 1.0),
    chain: Sequence[float] = (0.5, 1.0, 2.0),
) -> Parts:
    """Hierarchical multi-scale attention on HRNet and OCR: trained on two scales, used on more (Tao et al. 2020)."""
    base = build(backbone)
    check_scales(scales, chain)
    return base, OCR(base.channels, 1, width, bias=True)
