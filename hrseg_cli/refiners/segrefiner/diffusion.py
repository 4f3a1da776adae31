"""SegRefiner's discrete diffusion: each pixel of a mask is in its fine or in its coarse state.

Training mixes the true mask with a coarse one, pixel by pixel. Refining starts from the coarse mask and lets pixels
turn fine where the network is sure. Step 5 of 0..5 is all coarse. Source: SegRefiner (Wang et al., NeurIPS 2023, arXiv
2312.12425), section 3, with the constants of its public configuration.

Masks and probabilities are (B, 1, H, W) float32. Chance enters through a ``draw`` (:mod:`hrseg_cli.refiners.draws`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hrseg_cli.refiners.draws import Draw

Denoise = Callable[[Tensor, Tensor], Tensor]  # (B, 4, H, W) picture and mask, (B,) steps -> (B, 1, H, W) logits

# Share of pixels still fine after steps 0 to 5, and before them.
FINE_AFTER = (0.8, 0.64, 0.48, 0.32, 0.16, 0.0)
FINE_BEFORE = (1.0, *FINE_AFTER[:-1])
STEPS = len(FINE_AFTER)


def mixed(fine: Tensor, coarse: Tensor, step: Tensor, draw: Draw) -> Tensor:
    """What is left of a fine mask after ``step`` (B,) int64 of 0..5: a pixel stays fine with probability
    FINE_AFTER[step] and is coarse otherwise."""
    # In double precision, or a random number between the rounded and the exact threshold falls on the wrong side.
    share = torch.tensor(FINE_AFTER, dtype=torch.float64, device=fine.device)[step].view(-1, 1, 1, 1)
    return torch.where(draw(tuple(fine.shape)).to(fine.device) < share, fine, coarse)


def steps_to_train(count: int, draw: Draw) -> Tensor:
    """(count,) int64, each step equally likely."""
    return (draw((count,)) * STEPS).long()


class Refined(NamedTuple):
    """probability: of the object, after the last step. fine: probability that a pixel has turned fine, in [0, 1]; a
    network sure of everything brings it to FINE_BEFORE of the last step."""

    probability: Tensor
    fine: Tensor


def denoise(network: Denoise, picture: Tensor, coarse: Tensor, steps: Sequence[int], draw: Draw) -> Refined:
    """Refine a coarse mask in the given steps, descending, one pass of the network each.

    picture: (B, 3, H, W), normalised. coarse: 0 or 1. ``draw`` is asked for (B, 1, H, W) after each step but the last.

    After a step a pixel is fine with the probability that has added up so far; it then takes the network's answer of
    this step, and the coarse mask's otherwise, so that it may turn back. That is how the published numbers were made.
    """
    mask, fine = coarse, torch.zeros_like(coarse)
    for number, step in enumerate(steps):
        logits = network(torch.cat([picture, mask], 1), torch.full((len(mask),), step, device=mask.device))
        fine = finer(fine, logits, step)
        if number < len(steps) - 1:
            turned = draw(tuple(mask.shape)).to(mask.device) < fine
            mask = torch.where(turned, (logits >= 0).to(mask.dtype), coarse)
    return Refined(logits.sigmoid(), fine)


def finer(fine: Tensor, logits: Tensor, step: int) -> Tensor:
    """Probability of being fine before ``step``, from that after it and the network's answer.

    A pixel that is coarse turns fine with the probability that the posterior gives, the more so the surer the network:
    certainty 1 - 2 * min(p, 1 - p) takes the place of "the fine state is known".
    """
    sure = (logits.sigmoid() - 0.5).abs() * 2
    after, before = FINE_AFTER[step], FINE_BEFORE[step]
    return fine + (1 - fine) * sure * (before - after) / (1 - sure * after)


def loss(logits: Tensor, truth: Tensor, texture_weight: float = 5.0) -> Tensor:
    """(B,): cross entropy plus ``texture_weight`` times the mean absolute difference of :func:`texture`.

    truth: 0 or 1. The published trainings use the default weight.
    """
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean((1, 2, 3))
    outlines = (texture(logits.sigmoid()) - texture(truth)).abs().mean((1, 2, 3))
    return entropy + texture_weight * outlines


def texture(mask: Tensor) -> Tensor:
    """(B, 1, H, W): Sobel's gradient magnitude of the mask after a 3 x 3 mean; 0.01 where nothing changes, for the root
    needs a slope there. Beyond the image all is 0."""
    smooth = F.avg_pool2d(mask, 3, stride=1, padding=1)
    across = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]], device=mask.device) / 4
    kernels = torch.stack([across, across.T])[:, None]
    down_and_across = F.conv2d(smooth, kernels.to(mask.dtype), padding=1)
    return (down_and_across.square().sum(1, keepdim=True) + 1e-4).sqrt()
