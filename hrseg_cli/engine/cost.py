"""What an answer of a network costs, counted on shapes alone."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from hrseg_cli.models.base import InteractiveModel


def gmac(model: InteractiveModel, size: tuple[int, int]) -> float:
    """10^9 multiply-adds of all convolutions, transposed ones too, for one answer at ``size`` (height, width).

    Nothing is computed, and the model stays as it is. LoRA costs nothing here: its weights can be merged.
    """
    shapes = copy.deepcopy(model).to("meta").eval()
    total = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        places = inputs[0] if isinstance(module, nn.ConvTranspose2d) else output
        weight: Any = module.weight
        total += places.shape[1:].numel() * weight[0].numel()

    for module in shapes.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.register_forward_hook(count)
    channels = 4 if model.with_prev_mask else 3
    with torch.no_grad():
        shapes(torch.empty(1, channels, *size, device="meta"), torch.empty(1, 2, 3, device="meta"))
    return total / 1e9


def costs(model: InteractiveModel, crop: tuple[int, int]) -> dict[str, float]:
    """What a table of adapters tells of a model that is about to be trained on crops of (height, width).

    trained: parameters that training may change. gmac: of one answer at the crop. base_gmac: of the base's by itself,
    at the size at which it is asked within.
    """
    base = getattr(model, "base", model)
    inner = crop[0] // model.enlarge, crop[1] // model.enlarge
    return {
        "trained": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        "gmac": round(gmac(model, crop), 3),
        "base_gmac": round(gmac(base, inner), 3),
    }
