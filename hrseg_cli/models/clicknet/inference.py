"""Inference form of the click network: computes the same function as :mod:`hrseg_cli.models.clicknet.network`, faster.

The optimisations are exact up to rounding:

- BatchNorm is folded into the preceding convolution; ReLU6 and residual sums are fused into the convolutions.
- A convolution of concatenated maps is the sum of its parts. Those that depend on the image alone are computed once per
  crop: the guide's first convolution, and the laterals up to the stride where the guide enters the backbone.
- Attention is two matrix products per pixel. Its projections are multiplied into the few tokens instead of being
  applied to every pixel.
- Outputs that only training uses are omitted.

Shapes: maps are (1, C, rows, cols), channels last; matrices of pixels (rows * cols, C).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrseg_cli.models.base import Features, InteractiveModel
from hrseg_cli.models.clicknet.network import ClickNet, box_maps
from hrseg_cli.models.parts.backbones.efficientnet_lite import normalised
from hrseg_cli.models.parts.click_maps import disk_pixels, valid_slots
from hrseg_cli.models.parts.folding import folded
from hrseg_cli.models.parts.packed import PackedConv, is_possible
from hrseg_cli.models.parts.stem import pad_to_stride

Layers = Sequence[Any]


def for_inference(model: ClickNet, keep_layers: bool) -> InteractiveModel:
    """See :meth:`InteractiveModel.for_inference`. On accelerators, and for adapters that read inner layers, the network
    is only folded and set to channels last."""
    if not keep_layers and model.head.weight.device.type == "cpu" and is_possible():
        return FastClickNet(model)
    plain: ClickNet = folded(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return plain


class FastClickNet(InteractiveModel):
    """A :class:`ClickNet` for inference on a CPU, in single precision. It cannot be trained or saved, and returns
    logits only. Batches are processed one image at a time, which is as fast and needs less memory."""

    has_encoder = True

    def __init__(self, model: ClickNet) -> None:
        super().__init__()
        self.name, self.config = model.name, model.config
        self.radius, self.entry = model.radius, model.entry
        plain: Any = folded(model)
        encoder, guide, enter, lateral = plain.encoder, plain.guide, plain.enter, plain.lateral
        first = guide[0][0]
        self.stem = PackedConv(encoder.stem)
        self.levels = [
            [Block(block) for block in encoder.blocks[start:end]]
            for start, end in zip((0, *encoder.ends), encoder.ends, strict=False)
        ]
        self.guide_photo = PackedConv(first, columns=slice(0, 3))
        self.guide_prompt = PackedConv(_without_bias(first), columns=slice(3, None))
        self.guide = [PackedConv(layer[0]) for layer in guide[1:]]
        self.enter = {k: PackedConv(enter[str(k - 1)]) for k in range(self.entry, 4)}
        own = list(encoder.channels)
        convs = [lateral[0], *(layer[0] for layer in lateral[1:])]
        self.sides = [PackedConv(conv, columns=slice(0, own[k])) for k, conv in enumerate(convs)]
        by_guide = [PackedConv(_without_bias(conv), columns=slice(own[k], None)) for k, conv in enumerate(convs[:4])]
        # Where the guide enters, it also reaches the lateral through the level's own maps.
        k = self.entry
        by_maps = convs[k].weight[:, : own[k], 0, 0] @ enter[str(k - 1)].weight[:, :, 0, 0]
        by_guide[k] = PackedConv(_pointwise(convs[k].weight[:, own[k] :, 0, 0] + by_maps))
        self.by_guide = by_guide
        self.down = [PackedConv(plain.down[0]), *(PackedConv(layer[0]) for layer in plain.down[1:])]
        self.context = [Separable(layer) for layer in plain.context]
        self.attend = {int(stride): Attention(layer) for stride, layer in plain.attend.items()}
        self.blocks: list[Layers] = [[Separable(layer) for layer in plain.blocks[k]] for k in (1, 2, 3)]
        self.mixers = [Mixer(layer) for layer in plain.mixers]
        self.finest, self.head = PackedConv(plain.blocks[0][1]), PackedConv(plain.head)
        self.coarse = plain.coarse.weight.flatten(1), plain.coarse.bias

    @torch.inference_mode()
    def encode(self, image: Tensor) -> Features:
        """image: (B, 3, H, W), RGB in [0, 1] -> the part of the guide's first features, of the laterals at strides 2, 4
        and so on up to the guide's entry, and of the features there, that depends on the image alone."""
        rows = [self._encode(image[i : i + 1]) for i in range(len(image))]
        return rows[0] if len(rows) == 1 else tuple(torch.cat(same) for same in zip(*rows, strict=True))

    def _encode(self, image: Tensor) -> Features:
        photo = normalised(pad_to_stride(image)).contiguous(memory_format=torch.channels_last)
        x, sides = self.stem(photo, relu6=True), []
        for k in range(self.entry + 1):
            x = _through(self.levels[k], x)
            sides.append(self.sides[k](x))
        return self.guide_photo(photo), *sides, x

    @torch.inference_mode()
    def decode(
        self, features: Features, previous: Tensor, points: Tensor, boxes: Tensor | None = None
    ) -> dict[str, Tensor]:
        """See :meth:`ClickNet.decode`."""
        logits = [
            self._decode(
                tuple(part[i : i + 1] for part in features),
                previous[i : i + 1],
                points[i : i + 1],
                None if boxes is None else boxes[i : i + 1],
            )
            for i in range(len(previous))
        ]
        return {"logits": logits[0] if len(logits) == 1 else torch.cat(logits)}

    def _decode(self, features: Features, previous: Tensor, points: Tensor, boxes: Tensor | None) -> Tensor:
        photo, *sides, x = features
        height, width = previous.shape[-2:]
        previous = pad_to_stride(previous)
        prompt = self._prompt(previous, points, boxes)
        guides = [self.guide_prompt(prompt, onto=photo.clone(), relu6=True)]
        for layer in self.guide:
            guides.append(layer(guides[-1], relu6=True))

        x = self.enter[self.entry](guides[self.entry], plus=x)
        for k in range(self.entry + 1, 4):
            x = self.enter[k](guides[k], onto=_through(self.levels[k], x))
            sides.append(self.sides[k](x))
        x = _through(self.levels[4], x)

        pooled = F.avg_pool2d(previous, 8)
        y = _through(self.context, self.sides[4](x, relu6=True))
        y = self._joined(3, y, sides[3], guides)
        y = self.attend[16](y, points, F.avg_pool2d(pooled, 2), 16)
        y = _through(self.mixers, _through(self.blocks[2], y))
        y = self._joined(2, y, sides[2], guides)
        y = self.attend[8](y, points, pooled, 8)
        y = _through(self.blocks[1], y)
        y = _through(self.blocks[0], self._joined(1, y, sides[1], guides))
        rough = F.linear(_pixels(y), *self.coarse).view(1, 1, *y.shape[-2:])
        y = self.by_guide[0](guides[0], onto=_doubled(self.down[0](y)).add_(sides[0]), relu6=True)
        y = self.head(self.finest(y, relu6=True))
        rows, cols = y.shape[-2:]
        fine = y.permute(0, 2, 3, 1).reshape(rows, cols, 2, 2).permute(0, 2, 1, 3).reshape(1, 1, 2 * rows, 2 * cols)
        logits = F.interpolate(rough, scale_factor=4, mode="bilinear", align_corners=False).add_(fine)
        return logits[..., :height, :width]

    def _prompt(self, previous: Tensor, points: Tensor, boxes: Tensor | None) -> Tensor:
        """(1, 4, H, W), channels last: positive clicks, negative clicks, previous mask, box."""
        rows, cols = previous.shape[-2:]
        prompt = torch.zeros(rows, cols, 4)
        prompt[..., 2] = previous[0, 0]
        if boxes is not None:
            prompt[..., 3] = box_maps(boxes, rows, cols)[0, 0]
        (_, plane, down, across), inside = disk_pixels(points, rows, cols, self.radius)
        prompt[down[inside], across[inside], plane[inside]] = 1
        return prompt.permute(2, 0, 1)[None]

    def _joined(self, k: int, y: Tensor, side: Tensor, guides: Sequence[Tensor]) -> Tensor:
        """Decoder features at level ``k``: those of the next coarser level, upsampled, plus the lateral's."""
        side = self.by_guide[k](guides[k], plus=side, relu6=True)
        return _doubled(self.down[k](y, relu6=True)).add_(side)


class Block:
    """EfficientNet-Lite's ``InvertedResidual``; overwrites its input if it adds to it."""

    def __init__(self, block: Any) -> None:
        self.residual = block.residual
        self.expand = None if block.expand is None else PackedConv(block.expand)
        self.depthwise, self.project = PackedConv(block.depthwise), PackedConv(block.project)

    def __call__(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else self.expand(x, relu6=True)
        return self.project(self.depthwise(y, relu6=True), onto=x if self.residual else None)


class Separable:
    """:class:`hrseg_cli.models.clicknet.network.Separable`."""

    def __init__(self, layer: Any) -> None:
        self.depthwise, self.pointwise = PackedConv(layer.depthwise), PackedConv(layer.pointwise)

    def __call__(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x), relu6=True).add_(x)


class Mixer:
    """:class:`hrseg_cli.models.clicknet.network.Mixer`; overwrites its input."""

    def __init__(self, layer: Any) -> None:
        self.depthwise, self.expand = PackedConv(layer.depthwise), PackedConv(layer.expand)
        self.project = PackedConv(layer.project)

    def __call__(self, x: Tensor) -> Tensor:
        return self.project(self.expand(self.depthwise(x), relu6=True), onto=x)


class Attention:
    """:class:`hrseg_cli.models.clicknet.network.ClickAttention`; overwrites its input.

    The score of a token is linear in the pixel, and the update is linear in the shares of attention, so each is one
    matrix product: with (C, heads * tokens) and (heads * tokens, C). Only tokens that are present take part.
    """

    def __init__(self, layer: Any) -> None:
        self.heads, self.width = layer.heads, layer.width
        self.query, self.query_bias = layer.query.weight.flatten(1), layer.query.bias
        self.key, self.value = layer.key, layer.value
        self.kind_key, self.kind_value = layer.kind_key, layer.kind_value
        out = layer.out.weight.flatten(1).T
        self.out, self.by_share = out[: self.width], out[self.width :]
        self.bias = layer.out.bias

    def __call__(self, x: Tensor, points: Tensor, previous: Tensor, stride: int) -> Tensor:
        height, width = x.shape[-2:]
        pixels, heads, per_head = _pixels(x), self.heads, self.width // self.heads
        clicks = points[0, valid_slots(points)[0]]
        rows = (clicks[:, 0] / stride).floor().long().clamp(0, height - 1)
        cols = (clicks[:, 1] / stride).floor().long().clamp(0, width - 1)
        positive = int(valid_slots(points)[0, : points.shape[1] // 2].sum())
        weight = previous.flatten()
        areas = torch.stack([weight.sum(), (1 - weight).sum()])
        sums = torch.stack([weight, 1 - weight]) @ pixels
        present = (areas > 0.5).tolist()
        means = (sums / (areas + 0.5)[:, None])[present]
        kinds = [0] * positive + [1] * (len(clicks) - positive) + [k + 2 for k in (0, 1) if present[k]] + [4]
        tokens = torch.cat([pixels[rows * width + cols], means, pixels.mean(0, keepdim=True)])

        count = len(tokens)
        key = (self.key(tokens) + self.kind_key[kinds]).view(count, heads, per_head).permute(1, 0, 2)
        value = (self.value(tokens) + self.kind_value[kinds]).view(count, heads, per_head).permute(1, 0, 2)
        # (heads, tokens, C): what a pixel is multiplied by to give its score
        by_pixel = key @ self.query.view(heads, per_head, -1) / math.sqrt(per_head)
        bias = (key @ self.query_bias.view(heads, per_head, 1)).flatten() / math.sqrt(per_head)
        score = torch.addmm(bias[:, None], by_pixel.flatten(0, 1), pixels.T)  # (heads * tokens, rows * cols)
        share = score.view(heads, count, -1).softmax(1).flatten(0, 1)
        update = value @ self.out.view(heads, per_head, -1)  # (heads, tokens, C)
        by_share = self.by_share.view(heads, 4, -1)
        for number, kind in enumerate(kinds):
            if kind < 4:
                update[:, number] += by_share[:, kind]
        pixels.add_(self.bias).addmm_(share.T, update.flatten(0, 1))
        return x


def _through(layers: Layers, x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def _pixels(x: Tensor) -> Tensor:
    """(rows * cols, C): a view of (1, C, rows, cols), channels last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _without_bias(conv: nn.Conv2d) -> nn.Conv2d:
    bare = copy.copy(conv)  # its parameters lie in a dictionary of its own
    bare._parameters = {"weight": nn.Parameter(conv.weight, requires_grad=False), "bias": None}
    return bare


def _pointwise(weight: Tensor) -> nn.Conv2d:
    """A 1x1 convolution without bias. weight: (outputs, inputs)."""
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=False)
    conv.weight = nn.Parameter(weight[:, :, None, None], requires_grad=False)
    return conv
