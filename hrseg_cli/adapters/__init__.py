"""Adapters: attach a few trainable weights to a trained click network, train them, and save only those.

Every adapter is one call, ``attach(model, **options) -> model``. It freezes all weights that it does not train and
returns the model to use from then on: the same one, changed in place, or a wrapper around it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hrseg_cli.adapters.controls import BatchNorm, StillBatchNorm
from hrseg_cli.errors import HrsegError


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """The tensors, by name, in which an adapted model may differ from its base: trained parameters and re-estimated
    statistics. They are not copied."""
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, module in model.named_modules():
        if isinstance(module, BatchNorm) and not isinstance(module, StillBatchNorm):
            names |= {f"{name}.{buffer}" for buffer, _ in module.named_buffers()}
    return {name: tensor for name, tensor in model.state_dict().items() if name in names}


def load_adapter_state(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load the result of :func:`adapter_state` into a model with the same adapter and options.

    Raises HrsegError if names or shapes differ; the model is then unchanged.
    """
    wanted = adapter_state(model)
    missing = [name for name in wanted if name not in tensors]
    extra = [name for name in tensors if name not in wanted]
    if missing or extra:
        first = f"missing {missing[0]}" if missing else f"unexpected {extra[0]}"
        raise HrsegError(
            f"the adapter does not fit this model: {len(missing)} tensors missing, {len(extra)} unexpected ({first}); "
            "use the base and the options that it was trained with"
        )
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            raise HrsegError(
                f"the adapter does not fit this model: {name} has shape {tuple(tensor.shape)}, the model expects "
                f"{tuple(wanted[name].shape)}; use the base and the options that it was trained with"
            )
    with torch.no_grad():
        for name, tensor in tensors.items():
            wanted[name].copy_(tensor)
