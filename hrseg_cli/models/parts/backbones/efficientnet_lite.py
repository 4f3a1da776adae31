"""EfficientNet-Lite. Batch normalisation is folded into the convolutions when ImageNet weights are loaded.

Tan and Le, "EfficientNet" (ICML 2019). The Lite variants (Google, 2020) use ReLU6, have no squeeze-and-excitation, keep
the stem at 32 channels and do not scale the depth of their first and last stages.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrseg_cli.errors import HrsegError
from hrseg_cli.models.parts.backbones.interface import Backbone
from hrseg_cli.models.parts.click_maps import is_exporting

# variant -> width factor, depth factor
VARIANTS = {"lite0": (1.0, 1.0), "lite1": (1.0, 1.1), "lite2": (1.1, 1.2)}
# repeats, kernel size, stride, expansion, channels of each stage
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
LEVEL_ENDS = (0, 1, 2, 4, 6)  # last stage at each stride: 2, 4, 8, 16, 32
FROZEN_LEVELS = 2  # up to stride 4: generic edges and colours, which need no fine-tuning
BN_EPS = 1e-3


class Pointwise(nn.Conv2d):
    """A 1x1 convolution, computed as a matrix product over channels-last pixels."""

    def __init__(self, channels: int, out: int, bias: bool = True) -> None:
        super().__init__(channels, out, 1, bias=bias)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if is_exporting():  # runtimes optimise convolutions, and `hrseg export --int8` quantises them
            return F.conv2d(input, weight, bias)
        return F.linear(input.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


class Depthwise(nn.Conv2d):
    """A convolution of each channel on its own, padded to the same size divided by the stride.

    A CPU computes its gradients in fp32, also where the rest is in bf16: they take ten times as long in bf16.
    """

    def __init__(self, channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__(channels, channels, kernel, stride, kernel // 2, groups=channels)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not (torch.is_grad_enabled() and input.device.type == "cpu" and torch.is_autocast_enabled("cpu")):
            return cast(Tensor, super()._conv_forward(input, weight, bias))
        with torch.autocast("cpu", enabled=False):
            exact = cast(Tensor, super()._conv_forward(input.float(), weight, bias))
        return exact.to(torch.get_autocast_dtype("cpu"))


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, 1x1 projection; with a residual if input and output shapes agree."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = channels * expansion
        self.residual = stride == 1 and channels == out
        self.expand = Pointwise(channels, inner) if expansion != 1 else None
        self.depthwise = Depthwise(inner, kernel, stride)
        self.project = Pointwise(inner, out)

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x), inplace=True)
        y = cast(Tensor, self.project(F.relu6(self.depthwise(y), inplace=True)))
        return x + y if self.residual else y


class EfficientNetLite(Backbone):
    """Image features at strides 2, 4, 8, 16 and 32.

    forward: (B, 3, H, W) RGB in [0, 1], H and W multiples of 32 -> five tensors (B, channels[i], H / 2^(i+1),
    W / 2^(i+1)). Raises HrsegError for an unknown variant.
    """

    image_layer = "stem"
    stem_channels = 32

    def __init__(self, variant: str = "lite0") -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise HrsegError(f"unknown EfficientNet-Lite variant {variant!r}; use one of {', '.join(VARIANTS)}")
        width, depth = VARIANTS[variant]
        self.variant = variant
        self.stem = nn.Conv2d(3, 32, 3, 2, 1)
        blocks: list[InvertedResidual] = []
        ends, channels = [], 32
        self.channels = []
        for stage, (repeats, kernel, stride, expansion, wanted) in enumerate(STAGES):
            out = scaled_channels(wanted, width)
            inner_stage = 0 < stage < len(STAGES) - 1
            for turn in range(math.ceil(depth * repeats) if inner_stage else repeats):
                blocks.append(InvertedResidual(channels, out, kernel, stride if turn == 0 else 1, expansion))
                channels = out
            if stage in LEVEL_ENDS:
                ends.append(len(blocks))
                self.channels.append(out)
        self.blocks = nn.ModuleList(blocks)
        self.ends = tuple(ends)
        self.detached = False  # no gradient through the levels

    def forward(self, image: Tensor) -> list[Tensor]:
        return self.pyramid(self.stem_features(normalised(image)))

    def normalised(self, image: Tensor) -> Tensor:
        return normalised(image)

    def pyramid(self, x: Tensor) -> list[Tensor]:
        features = self.levels_of(x)
        for number in range(FROZEN_LEVELS, len(self.ends)):
            features.append(self.level(number, features[-1]))
        return features

    def strided(self) -> list[list[nn.Module]]:
        return [list(self.blocks[self.ends[level - 1] : self.ends[level]]) for level in (3, 4)]

    def first_levels(self, x: Tensor) -> list[Tensor]:
        """Features at strides 2 and 4 of a :func:`normalised` image."""
        return self.levels_of(self.stem_features(x))

    def stem_features(self, x: Tensor) -> Tensor:
        """The first convolution's features of a :func:`normalised` image, at stride 2."""
        return F.relu6(self.stem(x.contiguous(memory_format=torch.channels_last)), inplace=True)

    def levels_of(self, x: Tensor) -> list[Tensor]:
        """Features at strides 2 and 4 of the stem's."""
        features: list[Tensor] = []
        for number in range(FROZEN_LEVELS):
            x = self.level(number, x)
            features.append(x)
        return features

    def level(self, number: int, x: Tensor) -> Tensor:
        """Features of level ``number`` (0: stride 2, 1: stride 4, ...) from those of the previous level, or of the stem
        for level 0."""
        if self.detached:
            with torch.no_grad():
                return self._level(number, x)
        return self._level(number, x)

    def _level(self, number: int, x: Tensor) -> Tensor:
        for block in self.blocks[self.ends[number - 1] if number else 0 : self.ends[number]]:
            x = block(x)
        return x

    def frozen(self) -> list[nn.Module]:
        """The modules that keep their ImageNet weights in training: the first levels, and the depthwise convolutions of
        the others, whose gradients would take a fifth of a step and help little."""
        first, others = self.blocks[: self.ends[FROZEN_LEVELS - 1]], self.blocks[self.ends[FROZEN_LEVELS - 1] :]
        return [self.stem, *first, *(block.depthwise for block in cast(Sequence[InvertedResidual], others))]

    @torch.no_grad()
    def load_imagenet(self, state: Mapping[str, Tensor]) -> None:
        """Load ImageNet weights from a public state dict, folding batch normalisation into the convolutions.

        state: in the layout of `efficientnet-lite-pytorch`, head included. Raises HrsegError for missing, unexpected or
        misshapen tensors.
        """
        left = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}

        def fold(conv: nn.Conv2d, name: str, norm: str) -> None:
            try:
                weight = left.pop(f"{name}.weight")
                gain, shift, mean, variance = (
                    left.pop(f"{norm}.{part}") for part in ("weight", "bias", "running_mean", "running_var")
                )
            except KeyError as error:
                raise HrsegError(
                    f"weights of EfficientNet-{self.variant}: {error.args[0]} is missing; give weights of this variant"
                ) from None
            if weight.shape != conv.weight.shape:
                raise HrsegError(
                    f"weights of EfficientNet-{self.variant}: {name}.weight has shape {tuple(weight.shape)}, "
                    f"not {tuple(conv.weight.shape)}; give weights of this variant"
                )
            assert conv.bias is not None
            factor = gain / (variance + BN_EPS).sqrt()
            conv.weight.copy_(weight * factor[:, None, None, None])
            conv.bias.copy_(shift - mean * factor)

        fold(self.stem, "_conv_stem", "_bn0")
        for number, block in enumerate(cast(Sequence[InvertedResidual], self.blocks)):
            name = f"_blocks.{number}"
            if block.expand is not None:
                fold(block.expand, f"{name}._expand_conv", f"{name}._bn0")
            fold(block.depthwise, f"{name}._depthwise_conv", f"{name}._bn1")
            fold(block.project, f"{name}._project_conv", f"{name}._bn2")
        unexpected = [name for name in left if not name.startswith(("_conv_head.", "_bn1.", "_fc."))]
        if unexpected:
            raise HrsegError(
                f"weights of EfficientNet-{self.variant}: unexpected {unexpected[0]}; give weights of this variant"
            )


def normalised(image: Tensor) -> Tensor:
    """An image in [0, 1], normalised as these networks expect: (x - 127) / 128 for x in [0, 255]."""
    return (image - 127 / 255) * (255 / 128)


def scaled_channels(wanted: int, factor: float) -> int:
    """``wanted * factor`` channels, rounded to a multiple of 8, but not down by more than 10 %."""
    exact = wanted * factor
    rounded = max(8, int(exact + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * exact else rounded
