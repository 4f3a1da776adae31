"""Training losses, one value per sample.

Every loss takes ``logits`` (B, 1, H, W) of any float type, computed in float32, and ``target`` (B, 1, H, W): 1 object,
0 background, -1 ignored, values between 0 and 1 soft labels. It returns a float32 tensor (B,), which the trainer
averages. Ignored pixels get no gradient and change no value. :func:`boundary` takes a distance map instead of a target.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hrseg_cli.distances import distance_to_zero

Schedule = Literal["constant", "increase", "rebalance"]

PIXELS = (1, 2, 3)  # dimensions summed over: all but the batch
TINY = torch.finfo(torch.float32).tiny  # for divisors, which may be 0 where the dividend is 0 too


def feature_mse(logits: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference of features, for distillation; not for masks.

    logits, target: (B, C, h, w), any values; no place is ignored.
    """
    return (logits.float() - target.float()).square().mean(PIXELS)


def normalized_focal(
    logits: Tensor,
    target: Tensor,
    *,
    alpha: float = 0.5,
    gamma: float = 2.0,
    max_mult: float | None = None,
    detach: bool = True,
) -> Tensor:
    """Focal loss with pixel weights scaled to a mean of 1, so that it does not vanish as the network learns.

    alpha, gamma: as in :func:`focal`. max_mult: upper limit of a pixel's scaled weight. detach: no gradient through
    the scale. A sample without a valid pixel scores 0.

    Source: Sofiiuk et al., "AdaptIS" (ICCV 2019, arXiv 1909.07829), and RITM (arXiv 2102.06583), whose training uses
    the defaults. RITM's code takes log(p + 1e-12) of a rounded p: in float32 its gradient is thousands of times too
    large for an object pixel with logit -18, and 0 for a background pixel with logit 18. Here both are correct.
    """
    z, y, valid = _masked(logits, target)
    log_pt, weight = _focal_parts(z, y, gamma)
    weight = weight * valid
    scale = valid.sum(PIXELS, keepdim=True) / (weight.sum(PIXELS, keepdim=True) + 1e-12)
    weight = weight * (scale.detach() if detach else scale)
    if max_mult is not None:
        weight = weight.clamp(max=max_mult)
    return _mean(-_class_weight(y, alpha) * weight * log_pt, valid)


def focal(logits: Tensor, target: Tensor, *, alpha: float = 0.5, gamma: float = 2.0) -> Tensor:
    """Cross entropy with each pixel weighted by its error; the mean over valid pixels, in [0, inf).

    alpha: weight of object pixels (target above 0.5); background pixels weigh ``1 - alpha``.
    gamma: power of the error |target - probability| used as the weight; 0 weights all pixels equally.
    A sample without a valid pixel scores 0. Source: Lin et al., ICCV 2017, arXiv 1708.02002.
    """
    z, y, valid = _masked(logits, target)
    log_pt, weight = _focal_parts(z, y, gamma)
    return _mean(-_class_weight(y, alpha) * weight * log_pt, valid)


def bce(logits: Tensor, target: Tensor, *, over: Literal["all", "valid"] = "all") -> Tensor:
    """Binary cross entropy in [0, inf).

    over: the divisor of the sum over valid pixels: the number of "all" pixels (RITM's auxiliary loss, in which a sample
    with many ignored pixels counts less) or of "valid" pixels. Both give 0 for a sample without a valid pixel.
    """
    z, y, valid = _masked(logits, target)
    values = F.binary_cross_entropy_with_logits(z, y, reduction="none") * valid
    return values.mean(PIXELS) if over == "all" else _mean(values, valid)


def boundary_bce(logits: Tensor, target: Tensor, *, radius: int = 2) -> Tensor:
    """Mean binary cross entropy over the pixels near the object's boundary, in [0, inf).

    radius: chessboard distance in pixels within which there is both an object pixel (target above 0.5) and a background
    pixel. Ignored pixels are neither. A sample without a boundary scores 0.
    """
    z, y, valid = _masked(logits, target)
    inside, outside = (F.max_pool2d((part & valid).float(), 2 * radius + 1, 1, radius) for part in (y > 0.5, y <= 0.5))
    values = F.binary_cross_entropy_with_logits(z, y, reduction="none")
    return _mean(values, inside * outside * valid)


def weighted_bce(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross entropy balanced within each sample, in [0, inf): object and background contribute half each.

    A small object weighs as much as a large background. A class that is absent adds 0; a soft label counts for both
    classes in proportion. The weights are those of HED (Xie and Tu, ICCV 2015, arXiv 1504.06375) up to one factor per
    sample, without which an unbalanced sample would count less.
    """
    z, y, valid = _masked(logits, target)
    return 0.5 * _mean(F.softplus(-z), y * valid) + 0.5 * _mean(F.softplus(z), (1 - y) * valid)


def dice(logits: Tensor, target: Tensor, *, smooth: float = 1.0, squared: bool = False) -> Tensor:
    """1 - (2 sum(q y) + smooth) / (sum(q) + sum(y) + smooth) with probabilities q and target y, in [0, 1).

    squared: V-Net's form, with the sums of q^2 and y^2 in the denominator.
    smooth: pixels added to both terms, which softens the loss of small objects and gives 0 for an empty mask of an
    empty target. A sample without a valid pixel scores 0 for any ``smooth`` above 0.
    Source: Milletari et al., 3DV 2016, arXiv 1606.04797; with plain sums as in MaskFormer and HQ-SAM.
    """
    z, y, valid = _masked(logits, target)
    q, y = z.sigmoid() * valid, y * valid
    sizes = (q.square() + y.square() if squared else q + y).sum(PIXELS)
    return 1 - (2 * (q * y).sum(PIXELS) + smooth) / (sizes + smooth)


def soft_iou(logits: Tensor, target: Tensor) -> Tensor:
    """1 - sum(q y) / sum(max(q, y)) with probabilities q and target y, in [0, 1], as in RITM's code.

    An empty target and a sample without a valid pixel score 1 and give no gradient.
    """
    z, y, valid = _masked(logits, target)
    q = z.sigmoid()
    overlap = (q * y * valid).sum(PIXELS)
    union = (torch.maximum(q, y) * valid).sum(PIXELS)
    return 1 - overlap / union.clamp(min=TINY)


def l1_l2(logits: Tensor, target: Tensor) -> Tensor:
    """Mean absolute plus mean squared difference of probability and target over valid pixels, in [0, 2].

    A sample without a valid pixel scores 0. Source: Cheng et al., "CascadePSP" (CVPR 2020, arXiv 2005.02551), 3.3.
    """
    z, y, valid = _masked(logits, target)
    error = z.sigmoid() - y
    return _mean(error.abs() + error.square(), valid)


def lovasz_hinge(logits: Tensor, target: Tensor) -> Tensor:
    """Convex surrogate of 1 - IoU on hinge errors, in [0, inf); 0 once every pixel is correct by a margin of 1.

    A target above 0.5 is object. A sample without a valid pixel scores 0.
    Source: Berman et al., CVPR 2018, arXiv 1705.08790, per image.
    """
    z, y, valid = _masked(logits, target)
    truth = (y > 0.5).flatten(1)
    errors = torch.where(truth, 1 - z.flatten(1), 1 + z.flatten(1))
    errors, order = errors.masked_fill(~valid.flatten(1), -torch.inf).sort(dim=1, descending=True)  # ignored last
    return (errors.relu() * _growth(truth.gather(1, order))).sum(1)


def lovasz_softmax(logits: Tensor, target: Tensor) -> Tensor:
    """Surrogate of 1 - mean IoU of object and background on errors of the probability, in [0, 1].

    The mean is over those of the two that are present. A target above 0.5 is object. A sample without a valid pixel
    scores 0. Source: Berman et al., CVPR 2018, arXiv 1705.08790, section 3.2, per image.
    """
    z, y, valid = _masked(logits, target)
    seen = valid.flatten(1)
    truth = (y > 0.5).flatten(1) & seen
    # The probability of the object is wrong by as much as that of the background, so one order serves both.
    errors = torch.where(truth, (-z).sigmoid().flatten(1), z.sigmoid().flatten(1))
    errors, order = errors.masked_fill(~seen, -torch.inf).sort(dim=1, descending=True)  # ignored last
    total, present = errors.new_zeros(len(errors)), errors.new_zeros(len(errors))
    for members in (truth, ~truth & seen):
        there = members.any(1)
        total = total + there * (errors.relu() * _growth(members.gather(1, order))).sum(1)
        present = present + there
    return total / present.clamp(min=1)


def _growth(is_object: Tensor) -> Tensor:
    """How much 1 - IoU grows with each further wrong pixel, for pixels (B, N) in the order of their errors."""
    # Differences of consecutive IoUs would be rounding noise in a large image; the closed form is exact: a missed
    # object pixel lowers the intersection, a false positive raises the union. The first false positive of an empty
    # target takes the IoU from 1 to 0.
    objects = is_object.sum(1, keepdim=True)
    intersection = objects - is_object.cumsum(1)
    union = objects + (~is_object).cumsum(1)
    growth = torch.where(is_object, 1 / union, intersection / (union * (union - 1)))
    return torch.where((objects == 0) & (union == 1), 1.0, growth)


def boundary(logits: Tensor, distance: Tensor) -> Tensor:
    """Mean over all pixels of probability times signed distance to the true outline; minimal for the true mask.

    distance: (B, 1, H, W), from :func:`signed_distance`: positive outside, negative inside, 0 at ignored pixels.
    The value may be negative. As the only loss it loses small objects (an empty mask scores 0), so combine it with
    another; see :func:`scheduled`. Source: Kervadec et al., MIDL 2019, arXiv 1812.07032.
    """
    _check_shapes(logits, distance)
    return (logits.float().sigmoid() * distance.float()).mean(PIXELS)


def signed_distance(
    truth: np.ndarray,
    *,
    inner: Literal["reference", "half"] = "half",
    normalize: Literal["none", "diagonal", "max"] = "none",
    truncate: bool = False,
) -> np.ndarray:
    """Exact Euclidean distance to the outline: float32, (H, W), positive outside the object and negative inside.

    truth: int8, (H, W): 1 object, 0 background, -1 ignored. The distance of a pixel is that to the nearest pixel of
    the other class; ignored pixels belong to neither class and get 0. With one class only there is no outline: all 0.

    inner: where the outline runs. "half": between pixels, .. 1.5, 0.5 | -0.5, -1.5 .., so that a structure one pixel
    wide still attracts the mask. "reference": on the object's outermost pixels, .. 2, 1 | 0, -1 .., as in the authors'
    code, where structures up to two pixels wide have no negative value and are erased.
    normalize: "none" for pixels; "diagonal" divides by the image diagonal, "max" by the largest absolute distance.
    Otherwise the magnitude of :func:`boundary` grows with the image.
    truncate: round to whole pixels towards 0, as the authors' data loader does by oversight; their published numbers
    include it.
    """
    if inner not in ("half", "reference") or normalize not in ("none", "diagonal", "max"):
        raise ValueError(
            f"inner={inner}, normalize={normalize}: inner must be half or reference, normalize none, diagonal or max"
        )
    is_object, is_background = truth == 1, truth == 0
    if not (is_object.any() and is_background.any()):
        return np.zeros(truth.shape, np.float32)
    outside, inside = (0.5, 0.5) if inner == "half" else (0, 1)
    distance = np.zeros(truth.shape, np.float32)
    distance[is_background] = (distance_to_zero(~is_object) - outside)[is_background]
    distance[is_object] = (inside - distance_to_zero(~is_background))[is_object]
    if truncate:
        distance = np.trunc(distance)
    if normalize == "diagonal":
        distance /= np.hypot(*truth.shape)
    elif normalize == "max" and distance.any():
        distance /= np.abs(distance).max()
    return distance


def scheduled(kind: Schedule, epoch: int, weights: tuple[float, float], *, step: float = 0.01) -> tuple[float, float]:
    """Weights of the main and the boundary loss in an epoch; they are ``weights`` in epoch 0.

    constant: ``weights`` throughout. increase: add ``step`` to the boundary loss each epoch. rebalance: also subtract
    ``step`` from the main loss, down to 0.1. The authors of the boundary loss use "rebalance" with weights (1, 0.01).
    """
    main, edge = weights
    if kind == "constant":
        return main, edge
    if kind == "increase":
        return main, edge + step * epoch
    return max(min(main, 0.1), main - step * epoch), edge + step * epoch


def _check_shapes(logits: Tensor, other: Tensor) -> None:
    if logits.shape != other.shape:  # they might broadcast silently
        raise ValueError(
            f"logits of shape {tuple(logits.shape)} and target of shape {tuple(other.shape)}; both must be (B, 1, H, W)"
        )


def _masked(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits and target in float32, both 0 at ignored pixels, and the bool mask of valid pixels."""
    _check_shapes(logits, target)
    valid = target >= 0
    return torch.where(valid, logits.float(), 0.0), target.float().clamp(min=0), valid


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean over the pixels of each sample; 0 where nothing has weight."""
    return (values * weight).sum(PIXELS) / weight.sum(PIXELS).clamp(min=TINY)


def _class_weight(y: Tensor, alpha: float) -> Tensor:
    return torch.where(y > 0.5, alpha, 1 - alpha)


def _focal_parts(z: Tensor, y: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """log(pt) and (1 - pt) ** gamma with pt = 1 - |y - sigmoid(z)|, without rounding 1 - y + q to 0 or 1.

    pt is sigmoid(z) + 1 - y where the probability is below y, and sigmoid(-z) + y where it is above. For hard labels
    the second term is 0, its logarithm -inf, and the sum in log space is logsigmoid of z or -z.
    """
    above = z.sigmoid() > y
    rest = torch.where(above, y, 1 - y)
    log_pt = torch.logaddexp(F.logsigmoid(torch.where(above, -z, z)), rest.log())
    miss = (-torch.expm1(log_pt)).clamp(min=TINY)  # at 0, a gamma below 1 has no gradient
    return log_pt, miss**gamma
