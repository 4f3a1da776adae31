"""Models in their inference form: faster, with less memory, same results up to rounding. Never saved."""

from __future__ import annotations

import copy
from typing import Any

from hrseg_cli.adapters import lora
from hrseg_cli.checkpoints.resolve import load_model
from hrseg_cli.engine.devices import best_precision
from hrseg_cli.errors import HrsegError, UnknownName
from hrseg_cli.models.base import InteractiveModel

PRECISIONS = ("fp32", "bf16")


def open_fast(
    spec: str, device: str = "cpu", precision: str | None = "fp32"
) -> tuple[InteractiveModel, dict[str, Any]]:
    """:func:`hrseg_cli.checkpoints.resolve.load_model` for inference commands: the inference form and its provenance,
    which names the precision unless it is fp32.

    precision: fp32 or bf16; None: the faster one that the model supports. Raises HrsegError or UnknownName.
    """
    if precision not in (None, *PRECISIONS):
        raise UnknownName("precision", precision, PRECISIONS)
    model, provenance = load_model(spec, device)
    if precision is None:
        best = best_precision(device)
        precision = best if best in model.precisions else "fp32"
    elif precision not in model.precisions:  # for_inference knows its architecture's name, not the one typed
        known = " or ".join(model.precisions)
        raise HrsegError(f"`precision` {precision}: '{spec}' supports only {known}; omit the option")
    if precision != "fp32":
        provenance = {**provenance, "precision": precision}
    return fast(model, precision), provenance


def fast(model: InteractiveModel, precision: str = "fp32") -> InteractiveModel:
    """:meth:`InteractiveModel.for_inference`, after merging LoRA layers into the weights if there are any."""
    return _without_lora(model).for_inference(precision)


def _without_lora(model: InteractiveModel) -> InteractiveModel:
    if lora.has_lora(model):
        model = copy.deepcopy(model)
        lora.merge(model)
    return model
