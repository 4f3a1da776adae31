"""Refiners: improve the mask of an object in an image.

All take an image, RGB uint8 (H, W, 3), and a mask or probability (H, W), and return a probability, float32 (H, W);
inputs are not modified. They differ in the network they need:

- none: ``refine(image, probability, **options)``, in :mod:`.baselines`;
- their own: SegRefiner, with the network as the first argument of ``refine_objects`` and ``refine_large``;
- the click model: FocusCut, a generator that yields views and is sent the model's probabilities, like the queries of
  :mod:`hrseg_cli.engine.session`, so that several objects can share a model;
- a head on features of the click model: PointRend, with tensors as inputs and outputs.
"""

from __future__ import annotations

import numpy as np

from hrseg_cli.errors import HrsegError


def check_sizes(image: np.ndarray, mask: np.ndarray) -> None:
    """Raise HrsegError unless image and mask have the same size; resizing them would hide the difference."""
    if image.ndim != 3 or image.shape[2] != 3 or image.shape[:2] != mask.shape:
        raise HrsegError(f"an image of shape {image.shape} and a mask of shape {mask.shape}: give (H, W, 3) and (H, W)")
