"""Identifying weights by their content."""

from __future__ import annotations

import hashlib

from torch import nn


def weights_hash(model: nn.Module) -> str:
    """SHA-256 of the names and float32 values of all weights: the same for one model in every file format."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if value.is_floating_point():
            digest.update(name.encode())
            digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()
