"""The form of a model that only answers: the same clicks, sooner, in less memory. Made after loading, never saved."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from hrseg_cli.adapters import lora
from hrseg_cli.adapters.resample import Resampled
from hrseg_cli.engine.checkpoint import load_model
from hrseg_cli.errors import UnknownName
from hrseg_cli.models import hrnet_fast
from hrseg_cli.models.base import InteractiveModel
from hrseg_cli.models.hrnet_ocr import ClickHRNet

PRECISIONS = ("fp32", "bf16")


def open_fast(spec: str, device: str = "cpu", precision: str = "fp32") -> tuple[InteractiveModel, dict[str, Any]]:
    """:func:`hrseg_cli.engine.checkpoint.load_model` for commands that only ask: the fast form, and its provenance,
    which tells of a precision below single. Raises HrsegError or UnknownName.
    """
    if precision not in PRECISIONS:
        raise UnknownName("precision", precision, PRECISIONS)
    model, provenance = load_model(spec, device)
    if (used := _used(model, precision)) != "fp32":
        provenance = {**provenance, "precision": used}
    return fast(model, precision), provenance


def fast(model: InteractiveModel, precision: str = "fp32") -> InteractiveModel:
    """A model that gives the logits of ``model`` and nothing else; ``model`` itself stays as it is.

    LoRA is folded. precision: of the click network inside; of a resampling adapter, of its base, which stays in single
    precision in design c. A model of another kind comes back as it is, whatever the precision.
    """
    precision = _used(model, precision)
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


def _used(model: InteractiveModel, precision: str) -> str:
    """In what the network inside computes, where ``precision`` is asked for."""
    lowers = model.design != "c" if isinstance(model, Resampled) else isinstance(model, ClickHRNet)
    return precision if lowers else "fp32"


def _plain(model: ClickHRNet, precision: str) -> ClickHRNet:
    """For accelerators, and where something reads its features: folded and channels last, else as it was."""
    answering: Any = hrnet_fast.folded(_without_lora(model))
    answering.to(memory_format=torch.channels_last)
    if precision == "bf16":
        for module in answering.modules():  # once, where autocast would do it in every pass
            if isinstance(module, nn.Conv2d):
                module.to(torch.bfloat16)
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
