"""SegRefiner's discrete diffusion: each pixel of a mask is in the fine or in the coarse state.

Training mixes the ground truth with a coarse mask, pixel by pixel. Refinement starts from the coarse mask; pixels
become fine where the network is certain. Of the steps 0 to 5, step 5 is all coarse. Source: SegRefiner (Wang et al.,
NeurIPS 2023, arXiv 2312.12425), section 3, with the constants of its public configuration.

Masks and probabilities are (B, 1, H, W) float32. Random numbers come from ``draw`` (:mod:`hrseg_cli.refiners.draws`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hrseg_cli.refiners.draws import Draw

Denoise = Callable[[Tensor, Tensor], Tensor]  # (B, 4, H, W) image and mask, (B,) steps -> (B, 1, H, W) logits

# Share of pixels still fine after steps 0 to 5, and before them.
FINE_AFTER = (0.8, 0.64, 0.48, 0.32, 0.16, 0.0)
FINE_BEFORE = (1.0, *FINE_AFTER[:-1])
STEPS = len(FINE_AFTER)


def mixed(fine: Tensor, coarse: Tensor, step: Tensor, draw: Draw) -> Tensor:
    """A fine mask after ``step``, (B,) int64 in 0..5: each pixel stays fine with probability FINE_AFTER[step] and is
    coarse otherwise."""
    # In double precision: otherwise a random number between the rounded and the exact threshold is misclassified.
    share = torch.tensor(FINE_AFTER, dtype=torch.float64, device=fine.device)[step].view(-1, 1, 1, 1)
    return torch.where(draw(tuple(fine.shape)).to(fine.device) < share, fine, coarse)


def steps_to_train(count: int, draw: Draw) -> Tensor:
    """(count,) int64, each step equally likely."""
    return (draw((count,)) * STEPS).long()


class Refined(NamedTuple):
    """probability: of the object, after the last step. fine: probability that a pixel is fine, in [0, 1]; with a
    network that is certain everywhere, it reaches FINE_BEFORE of the last step."""

    probability: Tensor
    fine: Tensor


def denoise(network: Denoise, picture: Tensor, coarse: Tensor, steps: Sequence[int], draw: Draw) -> Refined:
    """Refine a coarse mask in the given steps, in descending order, with one forward pass each.

    picture: (B, 3, H, W), normalised. coarse: 0 or 1. ``draw`` is called for (B, 1, H, W) after each step but the last.

    After a step, a pixel is fine with the probability accumulated so far. A fine pixel takes the prediction of this
    step, any other the value of the coarse mask, so it may change back. The published numbers were computed this way.
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
    """Probability of being fine before ``step``, from the one after it and the network's logits.

    A coarse pixel becomes fine with the probability of the posterior, weighted by the certainty of the network:
    1 - 2 * min(p, 1 - p) replaces the condition that the fine state is known.
    """
    sure = (logits.sigmoid() - 0.5).abs() * 2
    after, before = FINE_AFTER[step], FINE_BEFORE[step]
    return fine + (1 - fine) * sure * (before - after) / (1 - sure * after)


def loss(logits: Tensor, truth: Tensor, texture_weight: float = 5.0) -> Tensor:
    """(B,): cross entropy plus ``texture_weight`` times the mean absolute difference of :func:`texture`.

    truth: 0 or 1. The default weight is the published one.
    """
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean((1, 2, 3))
    return entropy + texture_weight * texture_loss(logits, truth)


def texture_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of the outlines of prediction and target (SegRefiner's texture loss).

    Like the losses of :mod:`hrseg_cli.losses`, -1 is ignored: there both count as background.
    """
    valid = target >= 0
    return (texture(logits.float().sigmoid() * valid) - texture(target.float() * valid)).abs().mean((1, 2, 3))


def texture(mask: Tensor) -> Tensor:
    """(B, 1, H, W): Sobel gradient magnitude of the mask after a 3 x 3 mean. It is 0.01 on flat areas, because the
    square root needs a finite slope. Padded with zeros."""
    smooth = F.avg_pool2d(mask, 3, stride=1, padding=1)
    across = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]], device=mask.device) / 4
    kernels = torch.stack([across, across.T])[:, None]
    down_and_across = F.conv2d(smooth, kernels.to(mask.dtype), padding=1)
    return (down_and_across.square().sum(1, keepdim=True) + 1e-4).sqrt()
