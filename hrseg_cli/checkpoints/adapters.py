"""Files of adapters, which hold only what an adapter changes and the hash of the weights that it was trained on."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from hrseg_cli import catalog
from hrseg_cli.adapters import adapter_state, load_adapter_state
from hrseg_cli.adapters.controls import StillBatchNorm, hold
from hrseg_cli.adapters.lora import merge as fold
from hrseg_cli.checkpoints.formats import FORMAT
from hrseg_cli.checkpoints.provenance import weights_hash
from hrseg_cli.errors import HrsegError
from hrseg_cli.models.base import InteractiveModel
from hrseg_cli.writing import write_atomically


class AdapterFile(NamedTuple):
    """An adapter as it lies on disk; ``base`` is the hash of the weights it was trained on."""

    path: Path
    name: str
    options: dict[str, Any]
    base: str
    base_name: str
    tensors: dict[str, Tensor]
    provenance: dict[str, Any]


def attach(model: InteractiveModel, name: str, options: dict[str, Any]) -> InteractiveModel:
    """The model with an adapter of the catalog, ready to be trained; what is frozen is frozen. Raises HrsegError."""
    if next(model.parameters(), None) is None:
        raise HrsegError(f"'{model.name}' has no weights; an adapter needs a network")
    try:
        adapted: InteractiveModel = catalog.resolve("adapter", name)(model, **options)
    except (TypeError, ValueError, AttributeError) as error:
        raise HrsegError(f"adapter '{name}': {error}; correct adapter.options") from None
    return adapted


def save_adapter(
    model: InteractiveModel, path: Path, name: str, options: dict[str, Any], base: str, provenance: dict[str, Any]
) -> None:
    """Write only what the adapter changes, beside the hash of its ``base`` (:func:`weights_hash`)."""
    header = {"format": FORMAT, "kind": "adapter", "name": name, "options": options, "base": base}
    tensors = {key: value.detach().cpu().contiguous() for key, value in adapter_state(model).items()}
    text = json.dumps({**header, "provenance": provenance}, sort_keys=True)
    write_atomically(path, save_safetensors(tensors, {"hrseg": text}))


def merged(model: InteractiveModel) -> InteractiveModel:
    """The same answers without an adapter, in place. Raises HrsegError for one that cannot be folded."""
    if model.name == "resample":
        raise HrsegError(
            "a resampling adapter stays a part of the network; use it as `model` BASE+ADAPTER, or take the base alone"
        )
    fold(model)
    for module in model.modules():
        if isinstance(module, StillBatchNorm):
            hold(module, still=False)
    return model


def attached(
    base: tuple[InteractiveModel, dict[str, Any]], adapter: AdapterFile
) -> tuple[InteractiveModel, dict[str, Any]]:
    model, provenance = base
    if weights_hash(model) != adapter.base:
        raise HrsegError(
            f"{adapter.path}: was trained on other weights ({adapter.base_name}, {adapter.base[:12]}); give that base"
        )
    try:
        with torch.device("meta"):  # without memory first: options may ask for any rank or width
            load_adapter_state(attach(_shapes_of(model), adapter.name, adapter.options), adapter.tensors)
        model = attach(model, adapter.name, adapter.options)
        load_adapter_state(model, adapter.tensors)
    except (HrsegError, RuntimeError) as error:
        raise HrsegError(f"{adapter.path}: {error}") from None
    return model, {
        **provenance,
        "adapter": {
            "name": adapter.name,
            "options": adapter.options,
            "file": adapter.path.name,
            "sha256": hashlib.sha256(adapter.path.read_bytes()).hexdigest(),
            **adapter.provenance,
        },
    }


def _shapes_of(model: InteractiveModel) -> InteractiveModel:
    """A copy of a model that has shapes, and no memory for them."""
    memo: dict[int, Tensor] = {id(one): torch.empty_like(one, device="meta") for one in model.buffers()}
    for one in model.parameters():
        memo[id(one)] = nn.Parameter(torch.empty_like(one, device="meta"), one.requires_grad)
    return copy.deepcopy(model, memo)


def read_adapter(path: Path) -> AdapterFile | None:
    """None for a file that is no adapter; then :func:`read_checkpoint` says what it is."""
    blob = path.read_bytes()
    try:
        size = int.from_bytes(blob[:8], "little")
        header = json.loads(json.loads(blob[8 : 8 + size]).get("__metadata__", {})["hrseg"])
        if header["kind"] != "adapter":
            return None
        tensors = load_safetensors(blob)
        found = dict(header["options"]), str(header["base"]), dict(header["provenance"])
    except (SafetensorError, ValueError, KeyError, TypeError):
        return None
    if header["format"] > FORMAT:
        raise HrsegError(f"{path}: was written by a newer hrseg (format {header['format']}); update hrseg")
    bad = next((k for k, v in tensors.items() if v.is_floating_point() and not bool(torch.isfinite(v).all())), None)
    if bad:
        raise HrsegError(f"{path}: {bad} holds NaN or infinite numbers; the training that wrote it had diverged")
    options, base, provenance = found
    return AdapterFile(path, str(header["name"]), options, base, str(provenance.get("base")), tensors, provenance)
