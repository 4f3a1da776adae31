"""The form of a model that only answers: the same clicks, sooner and in less memory. Made after loading, never saved."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import Tensor

from hrseg_cli.adapters import lora
from hrseg_cli.adapters.resample import Resampled
from hrseg_cli.models import hrnet_fast
from hrseg_cli.models.base import InteractiveModel
from hrseg_cli.models.hrnet_ocr import ClickHRNet

Precision = Literal["fp32", "bf16"]


def fast(model: InteractiveModel, precision: Precision = "fp32") -> InteractiveModel:
    """A model that gives the logits of ``model`` and nothing else; ``model`` itself stays as it is.

    LoRA is folded. precision: of the click network inside (of a resampling adapter: of its base). A model of another
    kind comes back as it is, whatever the precision.
    """
    if isinstance(model, Resampled):
        around = copy.copy(model)
        around._modules = dict(model._modules)
        # Design c reads features from inside its base, so that one keeps its form.
        around.base = _plain(model.base, precision) if model.design == "c" else fast(model.base, precision)
        return around
    if not isinstance(model, ClickHRNet):
        return model
    if model._mean.device.type != "cpu" or not hrnet_fast.is_possible():
        return _plain(model, precision)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return hrnet_fast.FastClickHRNet(_without_lora(model), dtype)


def _plain(model: ClickHRNet, precision: Precision) -> ClickHRNet:
    """For accelerators, and where something reads its features: folded and channels last, else as it was."""
    answering: Any = hrnet_fast.folded(_without_lora(model)).to(memory_format=torch.channels_last)
    if precision == "bf16":
        forward = answering.forward

        def in_bf16(image: Tensor, points: Tensor) -> dict[str, Tensor]:
            with torch.autocast(image.device.type, torch.bfloat16):
                return {name: value.float() for name, value in forward(image, points).items()}

        answering.forward = in_bf16
    assert isinstance(answering, ClickHRNet)
    return answering


def _without_lora(model: ClickHRNet) -> ClickHRNet:
    if any(isinstance(module, lora.LoRAConv2d) for module in model.modules()):
        model = copy.deepcopy(model)
        lora.merge(model)
    return model
