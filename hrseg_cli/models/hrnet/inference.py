"""Inference form of the click network: computes the same function as :mod:`hrseg_cli.models.hrnet.network`, faster.

The optimisations are exact up to rounding:

- BatchNorm is folded into the preceding convolution; ReLU and residual sums are fused into the convolutions.
- The head's convolutions read the four branches at their own resolutions. Bilinear upsampling and a sum over channels
  commute. So a coarse branch is first multiplied by the weights of each kernel tap, and the products are upsampled,
  shifted and summed by small matrices. This takes a third of the multiplications of the network's largest convolution.
- The object context is a single vector, so it is added to the bias of the last convolution.
- The stem and the head process bands of rows, which limits the memory of their many channels on large images.

Shapes: H, W are those of the input; all maps are (1, C, rows, cols), channels last.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrseg_cli.errors import HrsegError
from hrseg_cli.models.base import InteractiveModel
from hrseg_cli.models.hrnet.network import ClickHRNet
from hrseg_cli.models.parts.backbones.hrnet import resize
from hrseg_cli.models.parts.folding import folded, in_bf16
from hrseg_cli.models.parts.packed import PackedConv, is_possible

STEM_BAND = 2**16  # pixels of a band of the stem, at 1/4 resolution with 256 channels
HEAD_BAND = 34  # rows of a band of the head, at 1/4 resolution: keeps the upsampling matrices small
HEAD_COLUMNS = 48  # columns, for the same reason


def for_inference(model: ClickHRNet, precision: str, keep_layers: bool) -> InteractiveModel:
    """See :meth:`InteractiveModel.for_inference`. On accelerators, and for adapters that read inner layers, the network
    is only folded and set to channels last."""
    if not keep_layers and model._mean.device.type == "cpu" and is_possible():
        return FastClickHRNet(model, torch.bfloat16 if precision == "bf16" else torch.float32)
    plain: ClickHRNet = folded(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return in_bf16(plain) if precision == "bf16" else plain


class FastClickHRNet(InteractiveModel):
    """A :class:`ClickHRNet` for inference on a CPU: faster, with less memory. It cannot be trained or saved.

    Returns logits only, in float32. dtype: of the inner computation. Raises HrsegError for bfloat16 on a processor
    without support for it.
    """

    def __init__(self, model: ClickHRNet, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            raise HrsegError("`precision` bf16: this processor does not support bf16; omit the option")
        self.name, self.config, self.dtype = model.name, model.config, dtype
        self.with_prev_mask, self.binary_prev_mask = model.with_prev_mask, model.binary_prev_mask
        self.use_disks, self.norm_radius = model.use_disks, model.norm_radius
        self._mean, self._std = model._mean.cpu(), model._std.cpu()
        plain: Any = folded(model)
        self.mix_first: PackedConv | None = None
        self.mix_last: PackedConv | None = None
        self.clicks: PackedConv | None = None
        if model.use_rgb_conv:
            first, _, activation, last = plain.rgb_conv
            self.mix_first, self.slope, self.mix_last = (
                PackedConv(first, dtype),
                _slope(activation),
                PackedConv(last, dtype),
            )
        elif isinstance(plain.maps_transform, nn.Conv2d):
            self.clicks = PackedConv(plain.maps_transform, dtype)
        else:
            first, activation, last, scale = plain.maps_transform
            for parameter in (last.weight, last.bias):
                parameter.data = (parameter.double() * scale.scale.double().abs()).to(parameter.dtype)
            self.mix_first, self.slope, self.clicks = (
                PackedConv(first, dtype),
                _slope(activation),
                PackedConv(last, dtype),
            )
        self.stem, self.stages = Stem(plain.feature_extractor, dtype), Stages(plain.feature_extractor, dtype)
        self.head = Head(plain.feature_extractor, dtype)

    # Draws clicks with the plain network's method, which reads attributes of the same names.
    click_features: Any = ClickHRNet.click_features
    click_maps: Any = ClickHRNet.click_maps

    @torch.inference_mode()
    def forward(self, image: Tensor, points: Tensor) -> dict[str, Tensor]:
        # On a CPU, single images are as fast as a batch and need less memory.
        return {"logits": torch.cat([self._one(image[i : i + 1], points[i : i + 1]) for i in range(len(image))])}

    def _one(self, image: Tensor, points: Tensor) -> Tensor:
        maps = self.click_features(image, points)
        height, width = image.shape[-2:]
        rows, cols = -(-height // 4), -(-width // 4)
        # A band starts at a multiple of all strides and is computed with a halo of rows, so that zero padding at its
        # ends does not affect the rows that are kept.
        halo, band = self.stem.halo, max(32, STEM_BAND // cols // 8 * 8)
        if rows <= band + halo:
            band = rows
        fine, coarse = [], []
        for top in range(0, rows, band):
            bottom = min(top + band, rows)
            low, high = max(0, top - halo), min(bottom + halo, rows)
            with_halo = slice(4 * low, 4 * high)
            pair = self.stem(*self._joined(image[:, :3, with_halo], maps[:, :, with_halo]), self.clicks)
            fine.append(pair[0][:, :, top - low : bottom - low])
            coarse.append(pair[1][:, :, (top - low) // 2 : (bottom - low + 1) // 2])
        del maps, pair
        branches = [parts[0] if len(parts) == 1 else torch.cat(parts, 2) for parts in (fine, coarse)]
        del fine, coarse
        return resize(self.head(self.stages(branches)), (height, width))

    def _joined(self, rgb: Tensor, maps: Tensor) -> tuple[Tensor, Tensor | None]:
        """Input of the stem, and input of its click convolution if it has one."""
        rgb = (rgb - self._mean) / self._std
        if self.mix_last is not None:
            maps = torch.cat([rgb, maps], 1)
        maps = _channels_last(maps, self.dtype)
        if self.mix_first is not None:
            maps = F.leaky_relu_(self.mix_first(maps), self.slope)
        if self.mix_last is not None:
            return self.mix_last(maps), None
        return _channels_last(rgb, self.dtype), maps


class Stem:
    """From the image to the first two branches: (1, 3, H, W) -> (1, w, H/4, W/4) and (1, 2w, H/8, W/8)."""

    def __init__(self, net: Any, dtype: torch.dtype) -> None:
        self.conv1, self.conv2 = PackedConv(net.conv1, dtype), PackedConv(net.conv2, dtype)
        self.layer1: list[tuple[PackedConv, PackedConv, PackedConv, PackedConv | None]] = [
            (
                PackedConv(block.conv1, dtype),
                PackedConv(block.conv2, dtype),
                PackedConv(block.conv3, dtype),
                PackedConv(block.downsample[0], dtype) if block.downsample else None,
            )
            for block in net.layer1
        ]
        self.fine, self.coarse = PackedConv(net.transition1[0][0], dtype), PackedConv(net.transition1[1][0][0], dtype)
        self.halo = (len(self.layer1) + 3) // 2 * 2  # rows at H/4 affected by a border, rounded up to even

    def __call__(self, rgb: Tensor, maps: Tensor | None, clicks: PackedConv | None) -> tuple[Tensor, Tensor]:
        x = self.conv1(rgb, relu=True)
        if clicks is not None and maps is not None:
            x = clicks(maps, onto=x)
        x = self.conv2(x, relu=True)
        for into, across, out, down in self.layer1:
            y = across(into(x, relu=True), relu=True)
            x = out(y, relu=True, onto=x if down is None else down(x))
        return self.fine(x, relu=True), self.coarse(x, relu=True)


class Stages:
    """From the first two branches to all four, in place."""

    def __init__(self, net: Any, dtype: torch.dtype) -> None:
        self.modules = [[_Exchange(module, dtype) for module in part] for part in (net.stage2, net.stage3, net.stage4)]
        self.added = [PackedConv(net.transition2[-1][0][0], dtype), PackedConv(net.transition3[-1][0][0], dtype)]

    def __call__(self, branches: list[Tensor]) -> list[Tensor]:
        for count, modules in enumerate(self.modules):
            if count:
                branches = [*branches, self.added[count - 1](branches[-1], relu=True)]
            for module in modules:
                branches = module(branches)
        return branches


class _Exchange:
    """:class:`hrseg_cli.models.hrnet.network.Exchange`; overwrites its inputs."""

    def __init__(self, module: Any, dtype: torch.dtype) -> None:
        self.branches: list[list[tuple[PackedConv, PackedConv]]] = [
            [(PackedConv(block.conv1, dtype), PackedConv(block.conv2, dtype)) for block in branch]
            for branch in module.branches
        ]
        self.bridges = [
            [
                [PackedConv(layer, dtype) for layer in bridge.modules() if isinstance(layer, nn.Conv2d)]
                if bridge
                else []
                for bridge in row
            ]
            for row in module.fuse_layers
        ]

    def __call__(self, xs: list[Tensor]) -> list[Tensor]:
        for i, blocks in enumerate(self.branches):
            for first, second in blocks:
                xs[i] = second(first(xs[i], relu=True), relu=True, onto=xs[i])
        return [self._received(i, xs) for i in range(len(xs))]

    def _received(self, i: int, xs: list[Tensor]) -> Tensor:
        total = xs[i].clone()
        for j, x in enumerate(xs):
            if j > i:
                total += resize(self.bridges[i][j][0](x), total.shape[-2:])
            elif j < i:
                *steps, last = self.bridges[i][j]
                for step in steps:
                    x = step(x, relu=True)
                last(x, onto=total)
        return total.relu_()


class Head:
    """From the branches to (1, 1, H/4, W/4) float32 logits."""

    def __init__(self, net: Any, dtype: torch.dtype) -> None:
        widths = [branch[0].conv1.in_channels for branch in net.stage4[0].branches]
        self.dtype, self.has_ocr = dtype, net.has_ocr
        if not net.has_ocr:
            self.pixels, self.classify = JoinedConv(net.cls_head[0], widths, dtype), _linear(net.cls_head[3], dtype)
            return
        self.pixels, self.classify = JoinedConv(net.conv3x3_ocr[0], widths, dtype), _linear(net.cls_head, dtype)
        self.spread, self.find = JoinedConv(net.aux_head[0], widths, dtype), _linear(net.aux_head[3], dtype)
        block, mix = net.ocr_distri_head.object_context_block, net.ocr_distri_head.conv_bn_dropout[0]
        self.down, self.up = (_linear(block[name][0], torch.float32) for name in ("f_down", "f_up"))
        middle = mix.out_channels
        self.of_context, self.bias = mix.weight[:, :middle, 0, 0].T.float(), mix.bias
        self.mix = PackedConv(mix, dtype, slice(middle, None))

    def __call__(self, branches: list[Tensor]) -> Tensor:
        finest = branches[0]
        rows, cols = finest.shape[-2:]
        bands = [slice(top, min(top + HEAD_BAND, rows)) for top in range(0, rows, HEAD_BAND)]
        features = finest.new_empty(rows, cols, self.pixels.outputs)
        aux = torch.empty(rows, cols)
        for band in bands:
            self.pixels.coarse(branches, band, features[band])
            if self.has_ocr:
                found = self.spread.coarse(branches, band, finest.new_empty(len(aux[band]), cols, self.spread.outputs))
                self.spread.fine(finest[:, :, band], relu=True, onto=_as_maps(found))
                aux[band] = found @ self.find[0][:, 0]  # without the bias, which does not change a softmax
        self.pixels.fine(finest, relu=True, onto=_as_maps(features))
        logits = torch.empty(rows, cols)
        if self.has_ocr:
            share = aux.flatten().softmax(0).to(self.dtype)
            context = (share @ features.flatten(0, 1)).float()
            for weight, bias in (self.down, self.up):
                context = F.relu(context @ weight + bias)
            mixed_bias = (self.bias + context @ self.of_context).to(self.dtype)
        weight, bias = self.classify
        for band in bands:
            part = features[band]
            if self.has_ocr:
                part = self.mix(_as_maps(part), relu=True, bias=mixed_bias)[0].permute(1, 2, 0)
            logits[band] = (part @ weight)[..., 0] + bias
        return logits[None, None]


class JoinedConv:
    """A k x k convolution of all branches upsampled to the finest one and concatenated, computed without upsampling.

    ``fine``: the finest branch's contribution, with the bias. ``coarse``: the contribution of the others.
    """

    def __init__(self, conv: nn.Conv2d, widths: list[int], dtype: torch.dtype) -> None:
        self.outputs, self.taps = conv.out_channels, conv.kernel_size[0]
        self.fine = PackedConv(conv, dtype, slice(0, widths[0]))
        parts = torch.split(conv.weight.to(dtype), widths, 1)[1:]
        # Per branch and row of taps: (inputs, tap columns x outputs)
        self.weights = [part.permute(2, 1, 3, 0).flatten(2).contiguous() for part in parts]

    def coarse(self, branches: list[Tensor], band: slice, out: Tensor) -> Tensor:
        """Write the coarser branches' contribution to a band of rows into ``out`` (rows, W, outputs)."""
        rows, cols = branches[0].shape[-2:]
        matrices, products = [], []
        for x, weights in zip(branches[1:], self.weights, strict=True):
            matrix, low, high = _row_matrix(x.shape[-2], rows, self.taps, band.start, band.stop, x.dtype)
            matrices.append(matrix)
            part = x[0, :, low:high].permute(1, 2, 0)  # (rows, cols, inputs)
            products += [(part @ weight).view(high - low, -1, self.outputs) for weight in weights]
        wide = out.new_empty(sum(len(product) for product in products), cols, self.outputs)
        start = 0
        for x, group in zip(branches[1:], range(0, len(products), self.taps), strict=True):
            for product in products[group : group + self.taps]:
                place = wide[start : start + len(product)]
                for matrix, left, right, low, high in _column_matrices(x.shape[-1], cols, self.taps, x.dtype):
                    torch.bmm(matrix.expand(len(product), -1, -1), product[:, low:high], out=place[:, left:right])
                start += len(product)
        torch.mm(torch.cat(matrices, 1), wide.flatten(1), out=out.flatten(1))
        return out


@lru_cache(maxsize=64)
def _upsampling(size: int, to: int, taps: int) -> Tensor:
    """(taps, to, size) float32: bilinear upsampling with aligned corners, with :func:`resize`'s weights, followed by a
    shift of tap - taps // 2 pixels with zero padding."""
    matrix = resize(torch.eye(size)[None, :, :, None], (to, 1))[0, :, :, 0].T
    reach = taps // 2
    padded = F.pad(matrix, (0, 0, reach, reach))
    return torch.stack([padded[tap : tap + to] for tap in range(taps)])


@lru_cache(maxsize=4096)
def _row_matrix(size: int, to: int, taps: int, top: int, bottom: int, dtype: torch.dtype) -> tuple[Tensor, int, int]:
    """For rows top to bottom of the upsampled map: the matrix (rows, taps x (high - low)), and low and high, the range
    of rows of the small map that it reads."""
    band = _upsampling(size, to, taps)[:, top:bottom]
    low, high = _reach(band)
    return band[..., low:high].permute(1, 0, 2).flatten(1).to(dtype), low, high


@lru_cache(maxsize=512)
def _column_matrices(size: int, to: int, taps: int, dtype: torch.dtype) -> list[tuple[Tensor, int, int, int, int]]:
    """For each block of columns left to right of the upsampled map: the matrix (columns, high - low), left, right, and
    low and high, the range of the small map's columns x taps that it reads."""
    made = []
    for left in range(0, to, HEAD_COLUMNS):
        block = _upsampling(size, to, taps)[:, left : left + HEAD_COLUMNS]
        low, high = _reach(block)
        matrix = block[..., low:high].permute(1, 2, 0).flatten(1).to(dtype)
        made.append((matrix, left, left + block.shape[1], low * taps, high * taps))
    return made


def _reach(matrix: Tensor) -> tuple[int, int]:
    """The range of indices along the last axis that hold nonzero values: first, and last + 1."""
    used = matrix.flatten(0, 1).any(0).nonzero()[:, 0]
    return int(used[0]), int(used[-1]) + 1


def _channels_last(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype, memory_format=torch.channels_last)


def _as_maps(x: Tensor) -> Tensor:
    """(rows, cols, C) viewed as (1, C, rows, cols), channels last."""
    return x.permute(2, 0, 1)[None]


def _linear(conv: nn.Conv2d, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A 1 x 1 convolution as a matrix (inputs, outputs) and a float32 bias."""
    assert conv.bias is not None
    return conv.weight[:, :, 0, 0].T.to(dtype), conv.bias.float()


def _slope(activation: nn.Module) -> float:
    """The negative slope of a LeakyReLU; 0 for ReLU."""
    return float(getattr(activation, "negative_slope", 0))
