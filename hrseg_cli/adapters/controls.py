"""Choose which tensors of a model are trained: shared by all adapters, and the plain controls."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import cache, partial
from typing import Any

from torch import nn

from hrseg_cli.errors import HrsegError, UnknownName
from hrseg_cli.models.base import InteractiveModel

BatchNorm = nn.modules.batchnorm._BatchNorm  # base of the 1D, 2D, 3D and synchronised kinds
PARTS = ("full", "head", "bn", "bitfit")
NORMS = (BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
MISSING = {
    "full": "nothing to train",
    "head": "no classifiers",
    "bn": "no normalisations with weights",
    "bitfit": "no biases",
}


class StillBatchNorm(BatchNorm):
    """A batch normalisation that uses its stored statistics and never updates them, even in training mode.

    :func:`hold` changes the class of a model's normalisations to this one and back, so trainers need no special case.
    """

    def train(self, mode: bool = True) -> StillBatchNorm:
        return super().train(False)


@cache
def _still(kind: type[BatchNorm]) -> type[StillBatchNorm]:
    return type(f"Still{kind.__name__}", (StillBatchNorm, kind), {})


def hold(norm: BatchNorm, still: bool = True) -> None:
    """Freeze the statistics of a normalisation, or let training update them again."""
    if still != isinstance(norm, StillBatchNorm):
        kind: Any = type(norm)
        norm.__class__ = _still(kind) if still else kind.__bases__[1]
    if still:
        norm.eval()


def freeze(model: nn.Module) -> None:
    """Freeze all parameters and all batch statistics of ``model``."""
    model.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, BatchNorm):
            hold(module)


def is_still(module: nn.Module, untrained: Collection[nn.Parameter]) -> bool:
    """Whether a layer has parameters of its own that are never trained."""
    return any(parameter in untrained for parameter in module.parameters(recurse=False))


def freeze_for(model: InteractiveModel, part: str) -> InteractiveModel:
    """Train only one part of ``model``, in place. These are the controls that adapters are compared with.

    part: ``full``: all weights; ``head``: the classifiers; ``bn``: scale and shift of all normalisations;
        ``bitfit``: all biases (Ben Zaken et al. 2022, "BitFit").
    The statistics of a batch normalisation are re-estimated if its scale is trained. Parameters that are never trained
    (:meth:`InteractiveModel.untrained`) stay frozen. Raises UnknownName for an unknown part, HrsegError if the model
    does not have the part.
    """
    if part not in PARTS:
        raise UnknownName("part", part, PARTS)
    norms = [module for module in model.modules() if isinstance(module, NORMS)]
    chosen: set[nn.Parameter] = set(model.parameters())
    if part == "head":
        chosen = heads(model)
    elif part == "bn":
        chosen = {parameter for norm in norms for parameter in norm.parameters()}
    elif part == "bitfit":
        chosen = {parameter for name, parameter in model.named_parameters() if name.endswith("bias")}
    chosen -= model.untrained()
    if not chosen:
        raise HrsegError(f"'{model.name}' has {MISSING[part]}; choose another adapter")
    freeze(model)
    for parameter in chosen:
        parameter.requires_grad_(True)
    for norm in norms:
        if isinstance(norm, BatchNorm):
            hold(norm, still=not (norm.affine and norm.weight.requires_grad))
    return model


def heads(model: InteractiveModel) -> set[nn.Parameter]:
    """The classifiers: the layer group "heads" of the model, or else its parameter group "heads"."""
    if "heads" in model.layer_groups:
        pattern = layers_called("heads", model)
        return {parameter for name, parameter in model.named_parameters() if pattern.search(name)}
    return set(model.parameter_groups().get("heads", ()))


def layers_called(part: str, model: nn.Module) -> re.Pattern[str]:
    """A pattern to search layer names for: that of the model's layer group ``part``, or the text ``part`` itself."""
    groups: Mapping[str, tuple[str, ...]] = getattr(model, "layer_groups", {})
    return re.compile("|".join(groups.get(part, (re.escape(part),))))


full = partial(freeze_for, part="full")
"""Control: train all weights, except those that no training changes."""
head = partial(freeze_for, part="head")
"""Control: train the classifiers only."""
bn = partial(freeze_for, part="bn")
"""Control: train scale and shift of the normalisations only, and re-estimate their statistics."""
bitfit = partial(freeze_for, part="bitfit")
"""Control: train the biases only (BitFit)."""
