"""Building a model for its shapes alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

FILLS = ("normal_", "uniform_", "fill_", "zero_")


@contextmanager
def shapes_only() -> Iterator[None]:
    """Build models on the meta device: without memory for weights, however large, and without initialising them.

    On that device PyTorch initialises in Python, for which it imports its compiler: 120 MB of memory, and seconds.
    """
    with torch.device("meta"), _Unfilled():
        yield


class _Unfilled(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        filled = args[0] if args else kwargs.get("tensor")  # of Tensor's methods and of the functions of torch.nn.init
        if getattr(func, "__name__", "") in FILLS and isinstance(filled, Tensor) and filled.is_meta:
            return filled
        return func(*args, **kwargs)
