"""Small additions to a trained click network: attach one, train it, keep what it changed.

Every adapter is one call, ``attach(model, **options) -> model``: it freezes what it does not train and gives back the
model to be used from then on, changed in place or wrapped.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hrseg_cli.adapters.controls import BatchNorm, StillBatchNorm
from hrseg_cli.errors import HrsegError


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """The tensors, by name, in which an adapted model may differ from its base: those that are trained, and the
    statistics that are re-estimated. They are the model's own, not copies."""
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, module in model.named_modules():
        if isinstance(module, BatchNorm) and not isinstance(module, StillBatchNorm):
            names |= {f"{name}.{buffer}" for buffer, _ in module.named_buffers()}
    return {name: tensor for name, tensor in model.state_dict().items() if name in names}


def load_adapter_state(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put into an adapted model what :func:`adapter_state` gave of another one, attached with the same options.

    Raises HrsegError where names or shapes differ; then nothing has been changed.
    """
    wanted = adapter_state(model)
    missing = [name for name in wanted if name not in tensors]
    extra = [name for name in tensors if name not in wanted]
    if missing or extra:
        first = f"missing {missing[0]}" if missing else f"unexpected {extra[0]}"
        raise HrsegError(
            f"the adapter does not fit this model: {len(missing)} tensors missing, {len(extra)} unexpected ({first}); "
            "give the base and the options that it was trained with"
        )
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            raise HrsegError(
                f"the adapter does not fit this model: {name} is {tuple(tensor.shape)}, the model asks for "
                f"{tuple(wanted[name].shape)}; give the base and the options that it was trained with"
            )
    with torch.no_grad():
        for name, tensor in tensors.items():
            wanted[name].copy_(tensor)
