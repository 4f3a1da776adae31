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

from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field

from hrseg_cli.errors import HrsegError
from hrseg_cli.interaction import Click

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


def check_sizes(image: np.ndarray, mask: np.ndarray) -> None:
    """Raise HrsegError unless image and mask have the same size; resizing them would hide the difference."""
    if image.ndim != 3 or image.shape[2] != 3 or image.shape[:2] != mask.shape:
        raise HrsegError(f"an image of shape {image.shape} and a mask of shape {mask.shape}: give (H, W, 3) and (H, W)")
