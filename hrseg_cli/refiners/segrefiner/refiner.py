"""SegRefiner as a refiner of the catalog: a network from a file, and masks of any size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import cv2
import numpy as np
from pydantic import Field
from torch import Tensor

from hrseg_cli.refiners import Count, check_sizes
from hrseg_cli.refiners.draws import half, uniform
from hrseg_cli.refiners.segrefiner.inference import SIDE, refine_large, refine_objects
from hrseg_cli.refiners.segrefiner.unet import Denoiser

PREFIX = "denoise_model."  # of the network in the public checkpoints


class SegRefiner:
    """SegRefiner's discrete diffusion (Wang et al., NeurIPS 2023); needs weights."""

    network = Denoiser

    def __init__(self, network: Denoiser) -> None:
        self._network = network

    @staticmethod
    def public(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a public checkpoint, named like those of ``network()``."""
        inner = {key.removeprefix(PREFIX): value for key, value in tensors.items() if key.startswith(PREFIX)}
        return inner or dict(tensors)

    def __call__(
        self,
        image: np.ndarray,
        probability: np.ndarray,
        *,
        way: Literal["auto", "object", "large"] = "auto",
        side: Annotated[int, Field(ge=64, multiple_of=32)] = SIDE,
        most: Count | None = None,
        seed: int | None = None,
    ) -> np.ndarray:
        """way: "object": a crop of ``side`` pixels around the object; "large": such a crop, then patches of this size
        at full resolution; "auto": "large" for an object whose box has a side longer than twice that. most: maximum
        number of patches. seed: of the random transitions; without one, the likelier transition happens.

        An object of fewer than 512 pixels is unchanged with "object".
        """
        check_sizes(image, probability)
        mask = probability > 0.5
        draw = half if seed is None else uniform(seed)
        if way == "auto":
            way = "large" if max(cv2.boundingRect(mask.astype(np.uint8))[2:]) > 2 * side else "object"
        if way == "large":
            return refine_large(self._network, image, mask, draw, side=side, most=most)
        return next(refine_objects(self._network, image, [mask], draw, side=side))
