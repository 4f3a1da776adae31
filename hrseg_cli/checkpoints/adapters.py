"""Adapter files: the weights that an adapter adds or changes, and the hash of the base weights it was trained on."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
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
from hrseg_cli.limits import WEIGHTS
from hrseg_cli.models.base import InteractiveModel
from hrseg_cli.models.parts.meta import shapes_only
from hrseg_cli.parsing import hrseg_metadata, read_bytes, safetensors_header
from hrseg_cli.writing import write_atomically


class AdapterFile(NamedTuple):
    """The contents of an adapter file. base: hash of the base weights. base_name: file name of the base."""

    path: Path
    name: str
    options: dict[str, Any]
    base: str
    base_name: str
    tensors: dict[str, Tensor]
    provenance: dict[str, Any]


def attach(model: InteractiveModel, name: str, options: dict[str, Any]) -> InteractiveModel:
    """The model with a new adapter of this catalog name, ready for training, with frozen weights frozen. Raises
    HrsegError."""
    if next(model.parameters(), None) is None:
        raise HrsegError(f"'{model.name}' has no weights to adapt; choose another model")
    try:
        adapted: InteractiveModel = catalog.resolve("adapter", name)(model, **options)
    except (TypeError, ValueError, AttributeError) as error:
        raise HrsegError(f"adapter '{name}': {error}; fix adapter.options") from None
    return adapted


def save_adapter(
    model: InteractiveModel, path: Path, name: str, options: dict[str, Any], base: str, provenance: dict[str, Any]
) -> None:
    """Write only the adapter's weights, with the hash of its ``base`` (:func:`weights_hash`)."""
    header = {"format": FORMAT, "kind": "adapter", "name": name, "options": options, "base": base}
    tensors = {key: value.detach().cpu().contiguous() for key, value in adapter_state(model).items()}
    text = json.dumps({**header, "provenance": provenance}, sort_keys=True)
    write_atomically(path, save_safetensors(tensors, {"hrseg": text}))


def merged(model: InteractiveModel) -> InteractiveModel:
    """The same model with its adapter merged into the weights, in place. Raises HrsegError if that is impossible."""
    if hasattr(model, "base"):
        raise HrsegError(
            f"a {model.name} adapter adds layers that cannot be merged into the weights; use `model` BASE+ADAPTER, or "
            "the base alone"
        )
    fold(model)
    for module in model.modules():
        if isinstance(module, StillBatchNorm):
            hold(module, still=False)
    return model


def attached(
    base: tuple[InteractiveModel, dict[str, Any]], adapter: AdapterFile
) -> tuple[InteractiveModel, dict[str, Any]]:
    """A base model, given with its provenance, with the adapter of a file. Raises HrsegError for another base."""
    model, provenance = base
    if weights_hash(model) != adapter.base:
        raise HrsegError(
            f"{adapter.path}: trained on other weights ({adapter.base_name}, {adapter.base[:12]}); give that base"
        )
    try:
        with _quiet():
            with shapes_only():  # an untrusted file may specify any rank or width
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


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the log lines of attaching an adapter, which are meant for its training."""
    notes = logging.getLogger("hrseg_cli.adapters")
    notes.setLevel(logging.ERROR)
    try:
        yield
    finally:
        notes.setLevel(logging.NOTSET)


def _shapes_of(model: InteractiveModel) -> InteractiveModel:
    """A copy of the model on the meta device: shapes without memory."""
    memo: dict[int, Tensor] = {id(one): torch.empty_like(one, device="meta") for one in model.buffers()}
    for one in model.parameters():
        memo[id(one)] = nn.Parameter(torch.empty_like(one, device="meta"), one.requires_grad)
    return copy.deepcopy(model, memo)


def read_adapter(path: Path) -> AdapterFile | None:
    """The contents of an adapter file; None for any other file, which :func:`read_checkpoint` can identify."""
    try:
        blob = read_bytes(path, WEIGHTS)
        header = hrseg_metadata(safetensors_header(blob))
        if header is None or header["kind"] != "adapter":
            return None
        tensors = load_safetensors(blob)
        version, name = int(header["format"]), str(header["name"])
        found = dict(header["options"]), str(header["base"]), dict(header["provenance"])
    except (SafetensorError, ValueError, KeyError, TypeError):
        return None
    if version > FORMAT:
        raise HrsegError(
            f"{path}: written by a newer hrseg (format {version}; this version reads up to {FORMAT}); update hrseg"
        )
    bad = next((k for k, v in tensors.items() if v.is_floating_point() and not bool(torch.isfinite(v).all())), None)
    if bad:
        raise HrsegError(
            f"{path}: {bad} contains NaN or infinite values; its training diverged: use an earlier checkpoint"
        )
    options, base, provenance = found
    return AdapterFile(path, name, options, base, str(provenance.get("base")), tensors, provenance)
