"""Refiners: improve the mask of an object in an image.

All take an image, RGB uint8 (H, W, 3), and a mask or probability (H, W), and return a probability, float32 (H, W);
inputs are not modified. A refiner of the catalog is called as ``refine(image, probability, **options)``; its options
are the keyword arguments, whose annotations say which values are allowed. The option ``clicks`` is not for users: it
receives the clicks on the object, if there are any. Refiners differ in the network they need:

- none: a function, in :mod:`.baselines`;
- their own: a class whose attribute ``network`` builds the network from the options in a file of weights, and whose
  constructor takes it; ``public`` renames the tensors of a public checkpoint;
- the click model: a generator function that yields views (:class:`Look`) and is sent the model's probabilities, like
  the queries of :mod:`hrseg_cli.engine.session`, so that several objects can share a model.

:mod:`hrseg_cli.engine.refining` opens and runs all of them. PointRend is a head of the click model: an adapter.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Protocol

import numpy as np
from pydantic import Field

from hrseg_cli.errors import HrsegError
from hrseg_cli.interaction import Click

if TYPE_CHECKING:  # 'hrseg list refiners' needs no torch
    from torch import Tensor, nn

    from hrseg_cli.refiners.draws import Draw

# Types of options.
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


class Look(NamedTuple):
    """The input of the click model: a part of the image, uint8 (h, w, 3), the previous mask or probability (h, w), and
    the clicks, in pixels of this part."""

    image: np.ndarray
    previous: np.ndarray
    clicks: tuple[Click, ...]


class TrainedRefiner(Protocol):
    """The network of a refiner as training sees it, a torch module in ``catalog.TRAINED_REFINERS``.

    name, config: of the refiner, and the keyword arguments of its network. side: of the crops it is trained on, in
    pixels.
    """

    name: str
    config: dict[str, Any]
    side: int

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """As of a click model: the parameters, under "new", "heads", "backbone" or "fixed"."""

    def untrained(self) -> set[nn.Parameter]:
        """Parameters that no training changes, as of a click model."""

    def predicted(self, image: Tensor, coarse: Tensor, truth: Tensor, draw: Draw) -> dict[str, Tensor]:
        """Logits (B, 1, H, W) to compare with the truth: "logits" of the fine mask, and whatever else is trained.

        image: (B, 3, H, W), RGB in [0, 1]. coarse: (B, 1, H, W), 0 or 1. truth: (B, 1, H, W), 1, 0 or -1 (ignored).
        draw: random numbers in [0, 1) of a shape.
        """

    def refined(self, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """bool (H, W): the mask, bool (H, W), refined without random numbers, to judge the network by."""


def check_sizes(image: np.ndarray, mask: np.ndarray) -> None:
    """Raise HrsegError unless image and mask have the same size; resizing them would hide the difference."""
    if image.ndim != 3 or image.shape[2] != 3 or image.shape[:2] != mask.shape:
        raise HrsegError(f"an image of shape {image.shape} and a mask of shape {mask.shape}: give (H, W, 3) and (H, W)")
