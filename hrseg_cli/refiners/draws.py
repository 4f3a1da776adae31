"""Random numbers whose seed the caller holds.

A ``Draw`` gives numbers of a shape, uniform in [0, 1). Tests hand in recorded ones; :func:`half` makes every choice the
likelier one, so that nothing is left to chance.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Draw = Callable[[tuple[int, ...]], Tensor]  # shape -> float32


def uniform(seed: int, device: torch.device | str = "cpu") -> Draw:
    """Random numbers from a generator of their own."""
    generator = torch.Generator(device).manual_seed(seed)
    return lambda shape: torch.rand(shape, generator=generator, device=device)


def half(shape: tuple[int, ...]) -> Tensor:
    """In place of random numbers: what is likelier than not happens."""
    return torch.full(shape, 0.5)
