"""Files with the network of a refiner: hrseg's own safetensors, and public PyTorch files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hrseg_cli import catalog
from hrseg_cli.checkpoints.formats import check_finite, check_shapes, read_own, sniff
from hrseg_cli.errors import HrsegError
from hrseg_cli.limits import WEIGHTS
from hrseg_cli.models.parts.meta import shapes_only
from hrseg_cli.parsing import read_bytes


def read_refiner(path: Path, name: str) -> tuple[nn.Module, dict[str, Any]]:
    """The network of refiner ``name``, in eval mode and without gradients, and its provenance. Raises HrsegError."""
    refiner = catalog.resolve("refiner", name)
    kind = sniff(path)
    options: dict[str, Any] = {}
    provenance: dict[str, Any] = {"from": "public checkpoint"}
    if kind == "safetensors":
        try:
            of, options, tensors, provenance = read_own(path, "refiner")
        except HrsegError as error:
            raise HrsegError(f"{path}: {error}") from None
        if of != name:
            raise HrsegError(f"{path}: contains the network of refiner {of}, not of {name}; name that one")
    else:
        tensors = refiner.public(_tensors(path))
    try:
        with shapes_only():  # an untrusted file may specify any width
            shapes = refiner.network(**options).state_dict()
    except Exception as error:  # arbitrary options can raise nearly anything
        raise HrsegError(
            f"{path}: its options describe no network ({str(error)[:200]}); use the original file"
        ) from None
    check_shapes(shapes, tensors, path)
    check_finite(tensors, path)
    network: nn.Module = refiner.network(**options)
    network.load_state_dict(tensors)
    digest = hashlib.sha256(read_bytes(path, WEIGHTS)).hexdigest()
    return network.eval().requires_grad_(False), {"name": name, "file": path.name, "sha256": digest, **provenance}


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        state = content.get("state_dict", content)
        return {str(key): value for key, value in state.items() if isinstance(value, Tensor)}
    except Exception:  # a damaged pickle can raise nearly anything
        raise HrsegError(
            f"{path}: damaged, or contains more than tensors, which hrseg does not load; save its state_dict alone"
        ) from None
