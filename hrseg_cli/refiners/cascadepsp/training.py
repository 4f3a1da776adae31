"""CascadePSP's network as training sees it: predictions at three strides, and a mask to judge it by.

Source: CascadePSP (Cheng et al., CVPR 2020, arXiv 2005.02551), section 3.1.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from hrseg_cli.refiners.cascadepsp.network import RefinementModule
from hrseg_cli.refiners.cascadepsp.refiner import MEAN, STD, refined
from hrseg_cli.refiners.draws import Draw


class TrainedCascade(RefinementModule):
    """CascadePSP (Cheng et al. 2020): a network from the coarse mask to the fine one, over strides 8, 4 and 1."""

    name = "cascadepsp"

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """As of a click model: all layers are new."""
        return {"new": list(self.parameters())}

    def untrained(self) -> set[nn.Parameter]:
        return set()

    def predicted(self, image: Tensor, coarse: Tensor, truth: Tensor, draw: Draw) -> dict[str, Tensor]:
        """Logits (B, 1, H, W): "logits" of the fine mask, and "stride8_1" to "stride4_3" of each pass.

        image: (B, 3, H, W), RGB in [0, 1]. coarse: (B, 1, H, W), 0 or 1.
        """
        mean, std = (torch.tensor(three, device=image.device).view(3, 1, 1) for three in (MEAN, STD))
        first, second, last = self((image - mean) / std, 2 * coarse.to(image.dtype) - 1)
        return {
            "logits": last.fine,
            **{f"stride8_{n}": one.stride8 for n, one in enumerate((first, second, last), 1)},
            **{f"stride4_{n}": one.stride4 for n, one in enumerate((second, last), 2)},
        }

    def refined(self, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """bool (H, W): the mask refined by a global step at twice the side of the training images, and local steps."""
        return refined(self.eval(), image, mask, side=2 * self.side) >= 0.5
