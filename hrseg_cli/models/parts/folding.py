"""Forms of a network for inference: batch normalisation folded into convolutions, layers in bfloat16."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def folded(model: Network) -> Network:
    """A copy with each BatchNorm (in eval mode) folded into the preceding convolution and replaced by an identity.

    A BatchNorm is folded if it, or a Sequential that starts with it, is registered directly after a convolution.
    Weights are multiplied in double precision.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    for parent in list(model.modules()):
        for (_, conv), (name, after) in pairwise(list(parent.named_children())):
            holder, place = (after, "0") if isinstance(after, nn.Sequential) and len(after) else (parent, name)
            norm = getattr(holder, place)
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                _fold(conv, norm)
                setattr(holder, place, nn.Identity())
    return model


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    assert norm.running_var is not None
    assert norm.running_mean is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    bias: Tensor | int = 0 if conv.bias is None else conv.bias.double()
    shift = norm.bias.double() + (bias - norm.running_mean.double()) * scale
    dtype = conv.weight.dtype
    conv.weight = nn.Parameter((conv.weight.double() * scale.view(-1, 1, 1, 1)).to(dtype), requires_grad=False)
    conv.bias = nn.Parameter(shift.to(dtype), requires_grad=False)


def in_bf16(model: Network) -> Network:
    """Make a folded network compute convolutions and matrix products in bfloat16 and return float32.

    Casts its weights in place.
    """
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            module.to(torch.bfloat16)

    def lowered(call: Callable[..., Any]) -> Callable[..., Any]:
        def answer(image: Tensor | tuple[Tensor, ...], *rest: Tensor) -> Any:
            first = image if isinstance(image, Tensor) else image[0]
            with torch.autocast(first.device.type, torch.bfloat16):
                made = call(image, *rest)
            if isinstance(made, dict):
                return {name: value.float() for name, value in made.items()}
            return made

        return answer

    for name in ("encode", "decode") if getattr(model, "has_encoder", False) else ("forward",):
        setattr(model, name, lowered(getattr(model, name)))
    return model
