"""SegRefiner's network as training sees it: a prediction to compare with the truth, and a mask to judge it by.

Source: SegRefiner (Wang et al., NeurIPS 2023, arXiv 2312.12425), section 3.2.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from hrseg_cli.refiners.draws import Draw
from hrseg_cli.refiners.segrefiner.diffusion import mixed, steps_to_train
from hrseg_cli.refiners.segrefiner.inference import MEAN, STD, refine_large
from hrseg_cli.refiners.segrefiner.unet import Denoiser


class TrainedDenoiser(Denoiser):
    """SegRefiner (Wang et al. 2023): a denoiser for the discrete diffusion from a coarse mask to the fine one."""

    name = "segrefiner"

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """As of a click model: all layers are new."""
        return {"new": list(self.parameters())}

    def untrained(self) -> set[nn.Parameter]:
        return set()

    def predicted(self, image: Tensor, coarse: Tensor, truth: Tensor, draw: Draw) -> dict[str, Tensor]:
        """ "logits" (B, 1, H, W) of the fine mask, from a random step between the truth and the coarse mask.

        image: (B, 3, H, W), RGB in [0, 1]. coarse: (B, 1, H, W), 0 or 1. truth: (B, 1, H, W), 1, 0 or -1 (ignored).
        """
        mean, std = (torch.tensor(three, device=image.device).view(3, 1, 1) / 255 for three in (MEAN, STD))
        coarse = coarse.to(image.dtype)
        fine = torch.where(truth < 0, coarse, truth.to(image.dtype))  # what is unknown looks like any coarse mask
        step = steps_to_train(len(image), draw).to(image.device)
        return {"logits": self(torch.cat([(image - mean) / std, mixed(fine, coarse, step, draw)], 1), step)}

    def refined(self, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """bool (H, W): the mask refined without random numbers, in at most 16 patches."""
        return np.asarray(refine_large(self.eval(), image, mask, most=16) >= 0.5)
