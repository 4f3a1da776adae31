"""Which tensors of a model training may change: the part of every adapter that adds nothing, and the plain controls."""

from __future__ import annotations

from functools import partial

from torch import nn

from hrseg_cli.errors import HrsegError, UnknownName
from hrseg_cli.models.base import InteractiveModel

PARTS = ("full", "head", "bn", "bitfit")


class StillBatchNorm(nn.BatchNorm2d):
    """A BatchNorm2d that uses its stored statistics and never changes them, whatever mode its model is put in.

    A model's normalisations are turned into this class and back (:func:`hold`), so no trainer has to know of it.
    """

    def train(self, mode: bool = True) -> StillBatchNorm:
        return super().train(False)


def hold(norm: nn.BatchNorm2d, still: bool = True) -> None:
    """Keep the statistics of a normalisation as they are, or let them follow the training again."""
    norm.__class__ = StillBatchNorm if still else nn.BatchNorm2d
    if still:
        norm.eval()


def freeze(model: nn.Module) -> None:
    """No parameter of ``model`` is trained and all statistics stand still."""
    model.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            hold(module)


def is_dead(model: nn.Module, name: str) -> bool:
    """Whether what is called ``name`` never reaches the model's output."""
    return any(part in name for part in getattr(model, "unused", ()))


def freeze_for(model: InteractiveModel, part: str) -> InteractiveModel:
    """Let training change one part of ``model`` only, in place; the controls that an adapter is measured against.

    part: ``full`` everything; ``head`` the classifiers; ``bn`` scale and shift of the normalisations; ``bitfit`` all
        biases (Ben Zaken et al. 2022, "BitFit").
    Statistics are re-estimated where a normalisation's scale is trained too. Dead parameters stay frozen. Raises
    UnknownName, and HrsegError where the model has no such part.
    """
    if part not in PARTS:
        raise UnknownName("part", part, PARTS)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    chosen: set[nn.Parameter] = set(model.parameters())
    if part == "head":
        chosen = set(model.parameter_groups().get("heads", ()))
    elif part == "bn":
        chosen = {parameter for norm in norms for parameter in norm.parameters()}
    freeze(model)
    for name, parameter in model.named_parameters():
        wanted = name.endswith("bias") if part == "bitfit" else parameter in chosen
        parameter.requires_grad_(wanted and not is_dead(model, name))
    for norm in norms:
        hold(norm, still=not (norm.affine and norm.weight.requires_grad))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise HrsegError(f"'{model.name}' has no part of that kind to train; choose another adapter")
    return model


full = partial(freeze_for, part="full")
"""Control: train every weight."""
head = partial(freeze_for, part="head")
"""Control: train the classifiers only."""
bn = partial(freeze_for, part="bn")
"""Control: train scale and shift of the normalisations only, and re-estimate their statistics."""
bitfit = partial(freeze_for, part="bitfit")
"""Control: train the biases only (BitFit)."""
