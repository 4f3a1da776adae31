"""Click models that hrseg does not contain: a Python function, or a server on this machine.

Both are asked for one mask at a time: image, previous mask and clicks in, probabilities out (docs/external_models.md).
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hrseg_cli.errors import HrsegError
from hrseg_cli.models.base import InteractiveModel
from hrseg_cli.models.external.client import Client
from hrseg_cli.parsing import reason

Clicks = Sequence[tuple[float, float, bool]]
Answer = Callable[[np.ndarray, np.ndarray, Clicks], Any]


class External(InteractiveModel):
    """A click model behind a function. It cannot be trained, saved or exported by hrseg.

    answer: image uint8 (H, W, 3), RGB; previous mask float32 (H, W) in [0, 1], zeros for none; clicks (row, col,
        positive) in the order in which they were made -> probabilities (H, W) in [0, 1], or a bool mask. label: of the
        model, for messages.
    """

    name = "external"
    exportable = False

    def __init__(self, answer: Answer, label: str) -> None:
        super().__init__()
        self.config: dict[str, Any] = {}
        self.answer, self.label = answer, label

    def forward(self, image: Tensor, points: Tensor) -> dict[str, Tensor]:
        pixels = (image[:, :3].clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        previous = image[:, 3].float().cpu().numpy()
        found = [self._probability(*one) for one in zip(pixels, previous, points.cpu().numpy(), strict=True)]
        logits = torch.logit(torch.from_numpy(np.stack(found))[:, None], eps=1e-6)
        return {"logits": logits.to(image.device)}

    def _probability(self, image: np.ndarray, previous: np.ndarray, points: np.ndarray) -> np.ndarray:
        half = len(points) // 2
        rows = [(order, float(row), float(col), k < half) for k, (row, col, order) in enumerate(points.tolist())]
        clicks = [click[1:] for click in sorted(rows) if max(click[1:3]) >= 0]
        answer = self.answer(np.ascontiguousarray(image), previous.copy(), clicks)
        try:
            found = np.asarray(answer)
        except Exception as error:  # such as a tensor on a GPU, or a ragged list
            raise HrsegError(
                f"`model` {self.label}: returned a {type(answer).__name__} that cannot be read as an array "
                f"({reason(error)}); return a NumPy array"
            ) from error
        if found.shape != previous.shape or found.dtype.kind not in "bf":
            raise HrsegError(
                f"`model` {self.label}: returned {found.dtype} {found.shape} for an image of {previous.shape}; return "
                "probabilities or a bool mask of that shape"
            )
        found = found.astype(np.float32)
        if not ((found >= 0) & (found <= 1)).all():  # NaN neither
            raise HrsegError(f"`model` {self.label}: returned values outside 0..1; return probabilities, not logits")
        return found


def open_python(place: str) -> tuple[External, dict[str, Any]]:
    """A Python function as a click model: ``module:function``, from the current folder or an installed package."""
    module, _, name = place.partition(":")
    label = f"python:{place}"
    if not all(part.isidentifier() for part in (*module.split("."), name)):
        raise HrsegError(f"`model` {label}: give python:MODULE:FUNCTION")
    here = str(Path.cwd())
    sys.path.insert(0, here)  # a console command does not look there by itself
    try:
        found = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:  # whatever their module raises
        raise HrsegError(f"`model` {label}: {type(error).__name__}: {reason(error)}; fix the module") from error
    finally:
        with contextlib.suppress(ValueError):  # their module may have changed the list
            sys.path.remove(here)
    if not callable(found):
        raise HrsegError(f"`model` {label}: not a function; give python:MODULE:FUNCTION")

    def answer(image: np.ndarray, previous: np.ndarray, clicks: Clicks) -> Any:
        try:
            return found(image, previous, clicks)
        except (Exception, SystemExit) as error:
            raise HrsegError(f"`model` {label}: {type(error).__name__}: {reason(error)}; fix the function") from error

    source = Path(str(getattr(sys.modules[module], "__file__", "")))
    digest = hashlib.sha256(source.read_bytes()).hexdigest() if source.is_file() else None
    return External(answer, label), {"name": "external", "options": {}, "file": label, "sha256": digest}


def open_http(place: str) -> tuple[External, dict[str, Any]]:
    """A server on this machine as a click model, such as ``http://127.0.0.1:8000``; see docs/external_models.md."""
    client = Client(f"http:{place}")
    about = client.about()
    return External(client.mask, client.url), {"name": "external", "options": about, "file": client.url}
