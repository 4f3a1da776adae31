"""LoRA for linear and convolution layers: a frozen weight plus a trained product of two small matrices.

    W' = W + alpha / rank * (B A reshaped to W), B = 0 at the start

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", section 4; Aleem et al. 2024, "ConvLoRA and AdaBN
based Domain Adaptation via Self-Training". Shapes: W (out, in) or (out, in / groups, k, k), r the rank.
"""

from __future__ import annotations

import logging
import math
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrseg_cli.adapters.controls import BatchNorm, freeze, hold, is_still, layers_called
from hrseg_cli.errors import HrsegError, UnknownName
from hrseg_cli.models.base import InteractiveModel
from hrseg_cli.models.parts.vit import JointLinear

log = logging.getLogger(__name__)

KINDS = ("loralib", "conv")
# Modules that read the weights of their layers directly instead of calling the layers, so LoRA inside them would have
# no effect. The second one does this only in evaluation, so LoRA would have an effect only in training.
OPAQUE = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
# Layers whose weight LoRA could change in principle; `adaptable` finds those that it supports.
WEIGHTED = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *OPAQUE,
)


class LoRA(nn.Module):
    """A layer with a low-rank update of its weight. Only the class of the layer is changed, and changed back, so the
    names of its tensors stay those of the base. It still computes one convolution or one matrix product."""

    weight: Tensor
    lora_A: nn.Parameter
    lora_B: nn.Parameter
    lora_scale: float
    lora_parts: tuple[str, ...]  # of a JointLinear, those with an update

    def change(self) -> Tensor:
        """The update, in the shape of the weight."""
        # kind "conv": (r, in / groups, k, k) and (out, r, 1, 1). Both kinds multiply plain matrices. The reshape of
        # "loralib" mixes input channels and kernel columns, as the original code does.
        product = self.lora_B.flatten(1) @ self.lora_A.flatten(1)
        return product.view_as(self.weight) * self.lora_scale


class LoRAConv2d(LoRA, nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        out: Tensor = self._conv_forward(input, self.weight + self.change(), self.bias)
        return out


class LoRALinear(LoRA, nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight + self.change(), self.bias)


class LoRAJoint(LoRA, JointLinear):
    """With an update of its own for each of :attr:`lora_parts`: A (parts * r, in), B (parts * out / 3, r)."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight + self.change(), self.bias)

    def change(self) -> Tensor:
        count = len(self.lora_parts)
        a = self.lora_A.view(count, -1, self.in_features)
        b = self.lora_B.view(count, -1, a.shape[1])
        updates = dict(zip(self.lora_parts, b @ a, strict=True))
        none = torch.zeros_like(next(iter(updates.values())))
        return torch.cat([updates.get(part, none) for part in self.parts]) * self.lora_scale


class Apart(NamedTuple):
    """What :func:`merge` folded into one weight: the original weight and its update."""

    weight: Tensor
    lora_A: nn.Parameter
    lora_B: nn.Parameter
    lora_scale: float
    lora_parts: tuple[str, ...]


def attach_lora(
    model: nn.Module,
    *,
    kind: Literal["loralib", "conv"] = "conv",
    rank: int = 4,
    alpha: float | None = None,
    layers: tuple[str, ...] | list[str] = (),
    adabn: bool = False,
) -> nn.Module:
    """LoRA: a low-rank update, zero at first, to each linear and convolution layer of the frozen model, in place.

    kind: ``conv``: a k x k convolution to ``rank`` channels and a 1 x 1 back, as in PEFT: r (in k^2 + out) parameters;
        the update, as an (out, in k^2) matrix, has rank r. ``loralib``: the original code, also used by ConvLoRA:
        r k^2 (in + out) parameters; the product is reshaped to the weight, so that matrix may have full rank. For
        linear layers both are the same.
    alpha: the update is scaled by alpha / rank; None: by 1.
    layers: which layers to adapt: groups of the model (``layer_groups``), or parts of layer names, such as ``qkv``;
        empty: all. The queries, keys and values of attention are layers ``q``, ``k`` and ``v``, each with its own
        update, even if one layer computes them. Layers that are never trained (:meth:`InteractiveModel.untrained`) are
        not adapted. A log line counts layers that LoRA does not support, such as those inside
        ``nn.MultiheadAttention``.
    adabn: re-estimate the statistics of all normalisations while training (AdaBN, Li et al. 2016); their scale and
        shift stay frozen.
    Raises HrsegError for options that do not suit the model, UnknownName for an unknown kind.
    """
    if kind not in KINDS:
        raise UnknownName("kind of LoRA", kind, KINDS)
    if rank < 1:
        raise HrsegError(f"LoRA rank {rank}: must be at least 1")
    if isinstance(layers, str):  # its single letters would match every name
        raise HrsegError(f"LoRA layers: must be a list; write adapter.options.layers=[{layers}]")
    if has_lora(model):
        raise HrsegError("LoRA is already attached to this model; merge it first, or start from the base")
    untrained = model.untrained() if isinstance(model, InteractiveModel) else set()
    alive = {name: module for name, module in model.named_modules() if not is_still(module, untrained)}
    found = adaptable(model)
    fitting = {name: layer for name, layer in found.items() if layer in set(alive.values())}
    if not fitting:
        raise HrsegError("LoRA: the model has no linear or convolution layer to adapt; choose another adapter")
    patterns = {part: layers_called(part, model) for part in layers}
    for part, pattern in patterns.items():
        if not any(map(pattern.search, fitting)):
            names = {word for name in fitting for word in name.split(".") if not word.isdigit()}
            names |= getattr(model, "layer_groups", {}).keys()
            raise HrsegError(
                f"LoRA layers: no adaptable layer has '{part}' in its name; known: {', '.join(sorted(names))}"
            )

    def is_chosen(name: str) -> bool:
        return not patterns or any(pattern.search(name) for pattern in patterns.values())

    left = [
        name
        for name, module in alive.items()
        if isinstance(module, WEIGHTED)
        and module not in set(found.values())
        and is_chosen(name)
        and not _within(name, alive)
    ]
    if left:
        more = f" and {len(left) - 3} more" if len(left) > 3 else ""
        log.warning(
            "LoRA does not support %d of the layers; they stay frozen: %s%s", len(left), ", ".join(left[:3]), more
        )
    freeze(model)
    for module in alive.values():
        if adabn and isinstance(module, BatchNorm):
            hold(module, still=False)
    chosen: dict[nn.Module, list[str]] = {}
    for name, layer in fitting.items():
        if is_chosen(name):
            chosen.setdefault(layer, []).append(name.rpartition(".")[2])
    for layer, names_of in chosen.items():
        parts = tuple(names_of) if isinstance(layer, JointLinear) else ()
        a, b = _start(layer, kind, rank, len(parts))
        _put(layer, a, b, 1.0 if alpha is None else alpha / rank, parts)
    return model


def adaptable(model: nn.Module) -> dict[str, nn.Module]:
    """The layers, by name, that LoRA supports: linear layers and convolutions that use PyTorch's own ``forward`` (a
    subclass may override ``_conv_forward``) and whose weight is a parameter, except inside :data:`OPAQUE` modules. A
    JointLinear is listed once for each of its parts, as NAME.PART."""
    modules = dict(model.named_modules())
    found: dict[str, nn.Module] = {}
    for name, module in modules.items():
        if (
            type(module).forward in (nn.Conv2d.forward, nn.Linear.forward)
            and isinstance(module._parameters.get("weight"), nn.Parameter)
            and not _within(name, modules)
        ):
            names = [f"{name}.{part}" for part in module.parts] if isinstance(module, JointLinear) else [name]
            found |= dict.fromkeys(names, module)
    return found


def _within(name: str, modules: dict[str, nn.Module]) -> bool:
    return isinstance(modules.get(name.rpartition(".")[0]), OPAQUE)


def has_lora(model: nn.Module) -> bool:
    """Whether the model has LoRA updates that are not merged yet."""
    return any(isinstance(module, LoRA) for module in model.modules())


def merge(model: nn.Module) -> dict[str, Apart]:
    """Fold every update into its weight, in place. The result is a plain model with the layer names of the base.

    Returns what :func:`unmerge` needs to restore the original weights exactly.
    """
    apart = {}
    for name, layer in model.named_modules():
        if isinstance(layer, LoRA):
            apart[name] = Apart(layer.weight.data, layer.lora_A, layer.lora_B, layer.lora_scale, layer.lora_parts)
            with torch.no_grad():
                layer.weight.data = layer.weight + layer.change()
            del layer.lora_A, layer.lora_B, layer.lora_scale, layer.lora_parts
            layer.__class__ = type(layer).__bases__[1]  # the class it was made from
    return apart


def unmerge(model: nn.Module, apart: dict[str, Apart]) -> None:
    """Undo :func:`merge`, bit-identically."""
    for name, kept in apart.items():
        layer: Any = model.get_submodule(name)
        layer.weight.data = kept.weight
        _put(layer, kept.lora_A, kept.lora_B, kept.lora_scale, kept.lora_parts)


def _start(layer: nn.Module, kind: str, rank: int, parts: int) -> tuple[nn.Parameter, nn.Parameter]:
    """A uniform in +-1 / sqrt(fan in), B zero. parts: of a JointLinear, else 0."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    outputs, inputs, *kernel = weight.shape
    if isinstance(layer, JointLinear):
        a = weight.new_empty(parts * rank, inputs)
        b = weight.new_zeros(parts * (outputs // len(layer.parts)), rank)
    elif kind == "conv" or not isinstance(layer, nn.Conv2d):
        a, b = weight.new_empty(rank, inputs, *kernel), weight.new_zeros(outputs, rank, *(1 for _ in kernel))
    else:  # with groups, the shapes of ConvLoRA: B is that of one group
        rows, cols = kernel
        a = weight.new_empty(rank * rows, layer.in_channels * cols)
        b = weight.new_zeros(outputs // layer.groups * rows, rank * rows)
    nn.init.kaiming_uniform_(a, a=math.sqrt(5))
    return nn.Parameter(a), nn.Parameter(b)


def _put(layer: nn.Module, a: nn.Parameter, b: nn.Parameter, scale: float, parts: tuple[str, ...]) -> None:
    kind: Any = type(layer)
    layer.__class__ = _with_lora(kind)
    assert isinstance(layer, LoRA)
    layer.lora_A, layer.lora_B, layer.lora_scale, layer.lora_parts = a, b, scale, parts


@cache
def _with_lora(kind: type[nn.Module]) -> type[LoRA]:
    bases = ((nn.Conv2d, LoRAConv2d), (JointLinear, LoRAJoint), (nn.Linear, LoRALinear))
    own: type[LoRA] = next(own for base, own in bases if issubclass(kind, base))
    return own if kind in own.__bases__ else type(f"LoRA{kind.__name__}", (own, kind), {})
