"""A click network on a pretrained backbone whose first levels see only the image and keep their ImageNet weights.

The features of those levels are computed once per crop and reused for every click on it. Clicks, box and previous mask
become a small pyramid of maps ("guide"). It enters the backbone after the first levels, through 1x1 convolutions
initialised near zero, and again at each level of the decoder. At the coarse levels of the decoder, pixels attend to the
clicks. The later it enters the backbone, the less a later click costs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrseg_cli.models.base import Features, InteractiveModel
from hrseg_cli.models.parts.backbones.efficientnet_lite import Depthwise, EfficientNetLite, Pointwise, normalised
from hrseg_cli.models.parts.click_maps import disk_maps, no_clicks, valid_slots
from hrseg_cli.models.parts.stem import pad_to_stride

MOST_CHANNELS, MOST_BLOCKS = 1024, 32
ENTRIES = (4, 8, 16)
GUIDE_INPUT = 7  # RGB, positive clicks, negative clicks, previous mask, box


class ConvUnit(nn.Sequential):
    """Convolution, batch normalisation, ReLU6."""

    def __init__(self, channels: int, out: int, kernel: int = 1, stride: int = 1) -> None:
        conv = (
            Pointwise(channels, out, bias=False)
            if kernel == 1
            else nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False)
        )
        super().__init__(conv, nn.BatchNorm2d(out), nn.ReLU6(inplace=True))


class Separable(nn.Module):
    """x + ReLU6(BN(1x1(depthwise 5x5(x))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = Depthwise(channels, 5)
        self.pointwise = Pointwise(channels, channels, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu6(self.norm(self.pointwise(self.depthwise(x))), inplace=True)


class Mixer(nn.Module):
    """x + 1x1(ReLU6(BN(1x1(depthwise 5x5(x))))), with twice the channels inside; the identity at initialisation.

    Liu et al., "A ConvNet for the 2020s" (CVPR 2022), but with batch normalisation, which can be folded.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = Depthwise(channels, 5)
        self.expand = Pointwise(channels, 2 * channels, bias=False)
        self.norm = nn.BatchNorm2d(2 * channels)
        self.project = _zeroed(Pointwise(2 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(F.relu6(self.norm(self.expand(self.depthwise(x))), inplace=True))
        return x + y


class ClickAttention(nn.Module):
    """Pixels attend to the features at each click (with its sign), to their means over the previous object and the
    previous background, and to the mean of all pixels. The result, and the share of attention on each kind of token,
    is added to the pixels.

    This spreads the label of a click to similar pixels at any distance.
    """

    KINDS = 5  # positive click, negative click, previous object, previous background, everything

    def __init__(self, channels: int, width: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.query = Pointwise(channels, width)
        self.key = nn.Linear(channels, width)
        self.value = nn.Linear(channels, width)
        self.kind_key = nn.Parameter(torch.empty(self.KINDS, width).normal_(std=0.02))
        self.kind_value = nn.Parameter(torch.empty(self.KINDS, width).normal_(std=0.02))
        self.out = _zeroed(Pointwise(width + heads * 4, channels))

    def forward(self, x: Tensor, points: Tensor, previous: Tensor, stride: int) -> Tensor:
        """x: (B, C, h, w). points: (B, 2N, 3) in pixels of the image. previous: (B, 1, h, w) in [0, 1]."""
        batch, channels, height, width = x.shape
        n = points.shape[1] // 2
        pixels = x.flatten(2)  # (B, C, hw)
        rows = (points[..., 0] / stride).floor().long().clamp(0, height - 1)
        cols = (points[..., 1] / stride).floor().long().clamp(0, width - 1)
        place = (rows * width + cols).unsqueeze(1).expand(-1, channels, -1)
        clicked = pixels.gather(2, place).transpose(1, 2)  # (B, 2N, C)
        weight = torch.cat([previous, 1 - previous], 1).flatten(2)  # (B, 2, hw)
        area = weight.sum(2)
        means = torch.einsum("bcp,bkp->bkc", pixels, weight) / (area + 0.5)[..., None]
        tokens = torch.cat([clicked, means, pixels.mean(2)[:, None]], 1)
        present = torch.cat([valid_slots(points), area > 0.5, torch.ones_like(area[:, :1], dtype=torch.bool)], 1)

        per_head = self.width // self.heads
        query = self.query(x).flatten(2).view(batch, self.heads, per_head, -1)
        key = (self.key(tokens) + _of_tokens(self.kind_key, n)).view(batch, -1, self.heads, per_head)
        value = (self.value(tokens) + _of_tokens(self.kind_value, n)).view(batch, -1, self.heads, per_head)
        score = torch.einsum("bhdp,bthd->bhtp", query, key) / math.sqrt(per_head)
        score = score.masked_fill(~present[:, None, :, None], -1e4).softmax(2)
        found = torch.einsum("bhtp,bthd->bhdp", score, value).reshape(batch, self.width, height, width)
        to_clicks = score[:, :, : 2 * n].view(batch, self.heads, 2, n, -1).sum(3)
        shares = torch.cat([to_clicks, score[:, :, 2 * n : 2 * n + 2]], 2).reshape(batch, -1, height, width)
        update: Tensor = self.out(torch.cat([found, shares], 1).contiguous(memory_format=torch.channels_last))
        return x + update


def _of_tokens(kinds: Tensor, clicks: int) -> Tensor:
    """(2 clicks + 3, width) from one row per kind: the two rows for clicks are repeated for each click."""
    positive, negative = (kinds[k : k + 1].expand(clicks, -1) for k in (0, 1))
    return torch.cat([positive, negative, kinds[2:]])


class ClickNet(InteractiveModel):
    """Click network on EfficientNet-Lite, of any size (clicknet_m is one of them).

    variant: of EfficientNet-Lite. widths: channels of the decoder at strides 2, 4, 8, 16, 32. guide: channels of the
    guide at strides 2, 4, 8, 16. blocks: separable blocks at strides 4, 8, 16, 32. mixers: wider blocks at stride 16.
    radius: of a click's disk, in pixels. entry: the stride (4, 8 or 16) at which the guide first enters the backbone.
    """

    name = "clicknet"
    has_encoder = True
    takes_boxes = True
    image_layer = "encoder.stem"
    single_precision = ("/stem/", r"/guide\.0/", "/head/", "/coarse/", "/aux16/")
    taps: Mapping[str, int] = {}
    layer_groups: Mapping[str, tuple[str, ...]] = {
        "encoder": (r"^encoder\.",),
        "guide": (r"^(guide|enter)\.",),
        "decoder": (r"^(lateral|down|context|attend|blocks|mixers)\.",),
        "heads": (r"^(head|coarse|aux16)\b",),
    }

    def __init__(
        self,
        variant: str = "lite2",
        widths: Sequence[int] = (24, 64, 112, 192, 224),
        guide: Sequence[int] = (16, 24, 32, 48),
        blocks: Sequence[int] = (2, 3, 4, 4),
        mixers: int = 3,
        radius: float = 5,
        entry: int = 4,
    ) -> None:
        super().__init__()
        if (len(widths), len(guide), len(blocks)) != (5, 4, 4):
            raise ValueError("widths, guide and blocks take 5, 4 and 4 numbers")
        # A file may contain any numbers. The model is built before its weights are compared, so it must stay small.
        if not all(0 < number <= MOST_CHANNELS for number in (*widths, *guide)):
            raise ValueError(f"widths and guide take 1 to {MOST_CHANNELS} channels")
        if not all(0 <= number <= MOST_BLOCKS for number in (*blocks, mixers)) or not 0 < radius <= MOST_CHANNELS:
            raise ValueError(f"blocks and mixers take 0 to {MOST_BLOCKS}, radius up to {MOST_CHANNELS}")
        if entry not in ENTRIES:
            raise ValueError("entry takes 4, 8 or 16")
        self.config: dict[str, Any] = {
            "variant": variant,
            "widths": list(widths),
            "guide": list(guide),
            "blocks": list(blocks),
            "mixers": mixers,
            "radius": radius,
            "entry": entry,
        }
        self.radius, self.entry = radius, ENTRIES.index(entry) + 1
        self.encoder = EfficientNetLite(variant)
        c, w, g = self.encoder.channels, widths, guide
        first = nn.Sequential(nn.Conv2d(GUIDE_INPUT, g[0], 3, 2, 1), nn.ReLU6(inplace=True))
        self.guide = nn.ModuleList([first, *(ConvUnit(g[k], g[k + 1], 3, 2) for k in range(3))])
        # Named by level - 1, as in files of networks that it enters at all three.
        self.enter = nn.ModuleDict({str(k - 1): Pointwise(g[k], c[k], bias=False) for k in range(self.entry, 4)})
        self.lateral = nn.ModuleList(
            [Pointwise(c[0] + g[0], w[0]), *(ConvUnit(c[k] + g[k], w[k]) for k in (1, 2, 3)), ConvUnit(c[4], w[4])]
        )
        self.down = nn.ModuleList([Pointwise(w[1], w[0]), *(ConvUnit(w[k + 1], w[k]) for k in (1, 2, 3))])
        self.context = nn.Sequential(*(Separable(w[4]) for _ in range(blocks[3])))
        self.attend = nn.ModuleDict({"8": ClickAttention(w[2]), "16": ClickAttention(w[3])})
        finest = nn.Sequential(nn.ReLU6(inplace=True), nn.Conv2d(w[0], w[0], 3, padding=1), nn.ReLU6(inplace=True))
        self.blocks = nn.ModuleList(
            [finest, *(nn.Sequential(*(Separable(w[k]) for _ in range(blocks[k - 1]))) for k in (1, 2, 3))]
        )
        self.mixers = nn.Sequential(*(Mixer(w[3]) for _ in range(mixers)))
        self.head = nn.Conv2d(w[0], 4, 3, padding=1)
        self.coarse = Pointwise(w[1], 1)
        self.aux16 = Pointwise(w[3], 1)
        self.image_channels = c[3]
        self.taps = {"stem": self.encoder.stem.out_channels, "fine": w[1]}
        for conv in self.enter.values():
            nn.init.normal_(cast(Pointwise, conv).weight, std=1e-3)
        nn.init.normal_(self.head.weight, std=1e-2)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        encoder = list(self.encoder.parameters())
        fixed = [parameter for part in self.encoder.frozen() for parameter in part.parameters()]
        known = set(encoder)
        return {
            "new": [parameter for parameter in self.parameters() if parameter not in known],
            "backbone": [parameter for parameter in encoder if parameter not in set(fixed)],
            "fixed": fixed,
        }

    @contextmanager
    def backbone_fixed(self) -> Iterator[None]:
        """The decoder alone is trained, on detached features: also without the guide's way through the backbone."""
        self.encoder.detached = True
        try:
            yield
        finally:
            self.encoder.detached = False

    def initialise(self, backbone: Mapping[str, Tensor] | None, coverage: float) -> float:
        if backbone is None:
            return 0.0
        self.encoder.load_imagenet(backbone)  # complete, or an error
        return 1.0

    def _for_inference(self, precision: str, keep_layers: bool) -> InteractiveModel:
        from hrseg_cli.models.clicknet import inference  # not at the top: it imports this module

        return inference.for_inference(self, keep_layers)

    def encode(self, image: Tensor) -> Features:
        """image: (B, 3, H, W), RGB in [0, 1] -> the image, normalised and padded to multiples of 32, and its features
        at strides 2, 4 and so on up to the guide's entry."""
        image = normalised(pad_to_stride(image))
        return (image, *self._image_levels(self.encoder.stem_features(image)))

    def _image_levels(self, stem: Tensor) -> list[Tensor]:
        maps = self.encoder.levels_of(stem)
        for k in range(1, self.entry):
            maps.append(self.encoder.level(k + 1, maps[k]))
        return maps

    def decode(
        self, features: Features, previous: Tensor, points: Tensor, boxes: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The outputs for a prompt: {"logits": (B, 1, H, W)}, and "aux4", "aux16": logits at strides 4 and 16, for
        training.

        previous: (B, 1, H, W), in [0, 1]. points: (B, 2N, 3), see :mod:`hrseg_cli.models.parts.click_maps`.
        boxes: (B, 4), rows (top, left, bottom, right) in pixels, the last two inclusive; a row of -1, or None: no box.
        """
        outputs = self._decoded(features, previous, points, boxes)
        del outputs["fine"]
        return outputs

    def image_features(self, image: Tensor) -> Tensor:
        """See :meth:`InteractiveModel.image_features`: what the decoder receives at stride 16."""
        height, width = image.shape[-2:]
        maps, _ = self._encoded(self.encode(image), image.new_zeros(len(image), 1, height, width), no_clicks(image))
        return maps[3][..., : -(-height // 16), : -(-width // 16)]

    def tapped(self, image: Tensor, points: Tensor, inject: Tensor | None = None) -> dict[str, Tensor]:
        """See :meth:`InteractiveModel.tapped`. "stem": features of the first convolution of the image, at half the
        size. "fine": features of the decoder at a quarter, from which the coarse logits are computed."""
        height, width = image.shape[-2:]
        photo = normalised(pad_to_stride(image[:, :3]))
        stem = self.encoder.stem_features(photo)
        given = stem
        if inject is not None:
            given = stem + F.pad(inject, (0, stem.shape[-1] - inject.shape[-1], 0, stem.shape[-2] - inject.shape[-2]))
        outputs = self._decoded((photo, *self._image_levels(given)), image[:, 3:], points)
        rows, cols = -(-height // 2), -(-width // 2)
        outputs["stem"] = stem[..., :rows, :cols]
        outputs["fine"] = outputs["fine"][..., : -(-rows // 2), : -(-cols // 2)]
        return outputs

    def _decoded(
        self, features: Features, previous: Tensor, points: Tensor, boxes: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Like :meth:`decode`, with "fine" as well, for the padded image."""
        height, width = previous.shape[-2:]
        maps, guides = self._encoded(features, previous, points, boxes)
        previous = pad_to_stride(previous)

        outputs: dict[str, Tensor] = {}
        y = self.context(self.lateral[4](maps[4]))
        for k in (3, 2, 1, 0):
            side: Tensor = self.lateral[k](torch.cat([maps[k], guides[k]], 1))
            y = side + F.interpolate(self.down[k](y), size=side.shape[-2:], mode="bilinear", align_corners=False)
            stride = 2 ** (k + 1)
            if str(stride) in self.attend:
                y = self.attend[str(stride)](y, points, F.avg_pool2d(previous, stride), stride)
            y = self.blocks[k](y)
            if k == 3:
                y = self.mixers(y)
                outputs["aux16"] = self.aux16(y)
            elif k == 1:
                outputs["fine"], outputs["aux4"] = y, self.coarse(y)
        fine = F.pixel_shuffle(self.head(y), 2)
        logits = fine + F.interpolate(outputs["aux4"], scale_factor=4, mode="bilinear", align_corners=False)
        return {"logits": logits[..., :height, :width], **outputs}

    def _encoded(
        self, features: Features, previous: Tensor, points: Tensor, boxes: Tensor | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The features of the padded image at strides 2 to 32, with the prompt in them, and the guide's at strides 2 to
        16."""
        image, *maps = features
        previous = pad_to_stride(previous)
        rows, cols = previous.shape[-2:]
        box = box_maps(boxes, rows, cols) if boxes is not None else torch.zeros_like(previous)
        prompt = torch.cat([image, disk_maps(points, rows, cols, self.radius), previous, box], 1)
        guides = [prompt.contiguous(memory_format=torch.channels_last)]
        for layer in self.guide:
            guides.append(layer(guides[-1]))
        guides = guides[1:]
        for k in range(self.entry, 4):
            maps[k] = maps[k] + self.enter[str(k - 1)](guides[k])
            maps.append(self.encoder.level(k + 1, maps[k]))
        return maps, guides


def box_maps(boxes: Tensor, height: int, width: int) -> Tensor:
    """(B, 1, H, W) float32: 1 inside a box (top, left, bottom, right), inclusive; 0 everywhere for negative numbers."""
    rows = torch.arange(height, device=boxes.device)
    cols = torch.arange(width, device=boxes.device)
    top, left, bottom, right = boxes.unbind(1)
    down = (rows >= top[:, None]) & (rows <= bottom[:, None])
    across = (cols >= left[:, None]) & (cols <= right[:, None])
    return (down[:, None, :, None] & across[:, None, None, :]).float()


def _zeroed(layer: Pointwise) -> Pointwise:
    """The layer, initialised with zeros."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer
