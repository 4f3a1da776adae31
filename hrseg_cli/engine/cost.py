"""The cost of a forward pass, counted without computing it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hrseg_cli.adapters.lora import merge
from hrseg_cli.models.base import InteractiveModel

FREE = (nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Dropout)  # count as 0, and take most of the time


def gmac(model: InteractiveModel, size: tuple[int, int]) -> float:
    """10^9 multiply-adds of convolutions, matrix products and attention in one forward pass.

    size: height and width of the input. Nothing is computed, and the model is unchanged. LoRA counts as 0, because it
    can be merged. A model without a network has 0. For a model that remembers, this is a click after the first.
    """
    if next(model.parameters(), None) is None:
        return 0.0
    shapes = copy.deepcopy(model).to("meta").eval()
    merge(shapes)
    for module in shapes.modules():
        if isinstance(module, FREE):
            module.forward = _unchanged  # type: ignore[assignment,method-assign]
    channels = 4 if model.with_prev_mask else 3
    counter = FlopCounterMode(display=False)
    image, points = torch.empty(1, channels, *size, device="meta"), torch.empty(1, 2, 3, device="meta")
    with torch.no_grad():
        if not model.remembers:
            with counter:
                shapes(image, points)
        else:
            _, memory = shapes.recall(shapes.encode(image[:, :3]), image[:, 3:], points, None)
            with counter:
                shapes.recall(shapes.encode(image[:, :3]), image[:, 3:], points, memory)
    return counter.get_total_flops() / 2e9


def _unchanged(x: Tensor) -> Tensor:
    return x


def costs(model: InteractiveModel, crop: tuple[int, int]) -> dict[str, float]:
    """The costs of a model to be trained on crops of (height, width), for tables of adapters.

    trained: number of trained parameters. gmac: of one forward pass at the crop. base_gmac: of the base alone, at its
    input size inside the adapter.
    """
    base = getattr(model, "base", model)
    inner = crop[0] // model.enlarge, crop[1] // model.enlarge
    whole = round(gmac(model, crop), 3)
    return {
        "trained": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        "gmac": whole,
        "base_gmac": whole if base is model else round(gmac(base, inner), 3),
    }
