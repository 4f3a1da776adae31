"""Refiners: from an image and a mask to a better mask.

All take an image, RGB uint8 (H, W, 3), and a mask or probability (H, W), and return a probability, float32 (H, W); they
change nothing that is handed in. Who answers in between sets them apart:

- nobody: ``refine(image, probability, **options)``, as in :mod:`.baselines`;
- a network of their own: SegRefiner, ``refine_objects`` and ``refine_large`` with the network first;
- the click model: FocusCut is a generator that yields what the model is to see and is sent its answer, as a click's
  course in :mod:`hrseg_cli.engine.session` is, so that several objects can share a model;
- a head on the click model's features: PointRend, tensors in and out.
"""

from __future__ import annotations

import numpy as np

from hrseg_cli.errors import HrsegError


def check_sizes(image: np.ndarray, mask: np.ndarray) -> None:
    """Raises HrsegError where a mask (H, W) is not of its image's size: resizing both would hide it."""
    if image.ndim != 3 or image.shape[2] != 3 or image.shape[:2] != mask.shape:
        raise HrsegError(f"an image of shape {image.shape} and a mask of shape {mask.shape}: give (H, W, 3) and (H, W)")
