"""LoRA for convolutions: a frozen weight plus a trained product of two small matrices.

    W' = W + alpha / rank * (B A reshaped to W), B = 0 at the start

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models"; Aleem et al. 2024, "ConvLoRA and AdaBN based
Domain Adaptation via Self-Training". Shapes: W (out, in / groups, k, k), r the rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from hrseg_cli.adapters.controls import freeze, hold, is_dead
from hrseg_cli.errors import HrsegError, UnknownName

KINDS = ("loralib", "conv")


class LoRAConv2d(nn.Conv2d):
    """A convolution with a low-rank addition to its weight; a Conv2d is turned into it and back by its class, so the
    names of its own tensors stay those of the base. It stays one convolution."""

    lora_A: nn.Parameter
    lora_B: nn.Parameter
    lora_scale: float

    def change(self) -> Tensor:
        """What is added to the weight, in its shape."""
        # kind "conv": (r, in / groups, k, k) and (out, r, 1, 1). Either kind multiplies as plain matrices; the
        # reshape of "loralib" mixes input channels and kernel columns, as its code does.
        product = self.lora_B.flatten(1) @ self.lora_A.flatten(1)
        return product.view_as(self.weight) * self.lora_scale

    def forward(self, input: Tensor) -> Tensor:
        out: Tensor = self._conv_forward(input, self.weight + self.change(), self.bias)
        return out


class Apart(NamedTuple):
    """What :func:`merge` folded into one weight: the weight as it was, and the addition to it."""

    weight: Tensor
    lora_A: nn.Parameter
    lora_B: nn.Parameter
    lora_scale: float


def attach_lora(
    model: nn.Module,
    *,
    kind: Literal["loralib", "conv"] = "conv",
    rank: int = 4,
    alpha: float | None = None,
    layers: tuple[str, ...] | list[str] = (),
    adabn: bool = False,
) -> nn.Module:
    """LoRA: a low-rank addition to the weight of every convolution of the frozen model, in place, zero at first.

    kind: ``conv`` is a k x k convolution to ``rank`` channels and a 1 x 1 back, as PEFT has it: r (in k^2 + out)
        parameters, and the change of the weight as an (out, in k^2) matrix has rank r. ``loralib`` is the original
        code's, which ConvLoRA uses: r k^2 (in + out) parameters; its product is only reshaped to the weight, so that
        matrix may have full rank.
    alpha: the addition is scaled by alpha / rank; None: by 1.
    layers: which convolutions to adapt: groups that the model names (``layer_groups``), or parts of their own names,
        such as ``stage4`` in an HRNet; none: all. Dead ones never are.
    adabn: re-estimate the statistics of all normalisations while training (AdaBN, Li et al. 2016); their scale and
        shift stay frozen.
    Raises HrsegError for options that do not fit the model, UnknownName for an unknown kind.
    """
    if kind not in KINDS:
        raise UnknownName("kind of LoRA", kind, KINDS)
    if rank < 1:
        raise HrsegError(f"LoRA rank {rank}: must be at least 1")
    if isinstance(layers, str):  # whose letters are parts of every name
        raise HrsegError(f"LoRA layers: must be a list; write adapter.options.layers=[{layers}]")
    if any(isinstance(module, LoRAConv2d) for module in model.modules()):
        raise HrsegError("LoRA is attached to this model already; merge it first, or start from the base")
    alive = {name: module for name, module in model.named_modules() if not is_dead(model, name)}
    convs = {name: module for name, module in alive.items() if type(module) is nn.Conv2d}
    groups: Mapping[str, tuple[str, ...]] = getattr(model, "layer_groups", {})
    asked = {part: groups.get(part, (part,)) for part in layers}
    for part, words in asked.items():
        if not any(word in name for word in words for name in convs):
            known = {word for name in convs for word in name.split(".") if not word.isdigit()} | groups.keys()
            raise HrsegError(f"LoRA layers: no convolution has '{part}' in its name; known: {', '.join(sorted(known))}")
    freeze(model)
    for module in alive.values():
        if adabn and isinstance(module, nn.BatchNorm2d):
            hold(module, still=False)
    for name, conv in convs.items():
        if not asked or any(word in name for words in asked.values() for word in words):
            a, b = _start(conv, kind, rank)
            _put(conv, a, b, 1.0 if alpha is None else alpha / rank)
    return model


def merge(model: nn.Module) -> dict[str, Apart]:
    """Fold every addition into its weight, in place: what is left is a plain model with the base's names.

    Gives back what :func:`unmerge` needs; nothing is ever subtracted.
    """
    apart = {}
    for name, conv in model.named_modules():
        if isinstance(conv, LoRAConv2d):
            apart[name] = Apart(conv.weight.data, conv.lora_A, conv.lora_B, conv.lora_scale)
            with torch.no_grad():
                conv.weight.data = conv.weight + conv.change()
            del conv.lora_A, conv.lora_B, conv.lora_scale
            conv.__class__ = nn.Conv2d  # type: ignore[assignment]  # the class it was made from
    return apart


def unmerge(model: nn.Module, apart: dict[str, Apart]) -> None:
    """The reverse of :func:`merge`, to the bit."""
    for name, kept in apart.items():
        conv = model.get_submodule(name)
        assert isinstance(conv, nn.Conv2d)
        conv.weight.data = kept.weight
        _put(conv, kept.lora_A, kept.lora_B, kept.lora_scale)


def _start(conv: nn.Conv2d, kind: str, rank: int) -> tuple[nn.Parameter, nn.Parameter]:
    """A uniform in +-1 / sqrt(fan in), B zero."""
    outputs, inputs, rows, cols = conv.weight.shape
    if kind == "conv":
        a, b = conv.weight.new_empty(rank, inputs, rows, cols), conv.weight.new_zeros(outputs, rank, 1, 1)
    else:  # with groups, the shapes of ConvLoRA: B is that of one group
        a = conv.weight.new_empty(rank * rows, conv.in_channels * cols)
        b = conv.weight.new_zeros(outputs // conv.groups * rows, rank * rows)
    nn.init.kaiming_uniform_(a, a=math.sqrt(5))
    return nn.Parameter(a), nn.Parameter(b)


def _put(conv: nn.Conv2d, a: nn.Parameter, b: nn.Parameter, scale: float) -> None:
    conv.__class__ = LoRAConv2d
    assert isinstance(conv, LoRAConv2d)
    conv.lora_A, conv.lora_B, conv.lora_scale = a, b, scale
