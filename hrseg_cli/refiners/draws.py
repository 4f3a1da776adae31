"""Random numbers with a seed chosen by the caller.

A ``Draw`` returns numbers of a shape, uniform in [0, 1). Tests pass recorded ones. :func:`half` is deterministic: the
likelier alternative always happens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Draw = Callable[[tuple[int, ...]], Tensor]  # shape -> float32


def uniform(seed: int, device: torch.device | str = "cpu") -> Draw:
    """Random numbers from a new generator with this seed."""
    generator = torch.Generator(device).manual_seed(seed)
    return lambda shape: torch.rand(shape, generator=generator, device=device)


def half(shape: tuple[int, ...]) -> Tensor:
    """A constant instead of random numbers: whatever is likelier than not happens."""
    return torch.full(shape, 0.5)
