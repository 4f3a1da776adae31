"""PointRend: refine a mask by running a small network only at its most uncertain points.

Source: PointRend (Kirillov et al., CVPR 2020, arXiv 1912.08193), sections 3 and 4, and its public code.

Shapes: N masks or images, C channels, P points. Points are (N, P, 2), x then y, in [0, 1] of the width and the height;
the centre of pixel i of W is at (i + 0.5) / W. Logits are (N, C, H, W): one channel for a mask, or one per class.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrseg_cli.refiners.draws import Draw

Ask = Callable[[Tensor], Tensor]  # points -> logits (N, C, P)


def sample(features: Tensor, points: Tensor, mode: Literal["bilinear", "nearest"] = "bilinear") -> Tensor:
    """(N, C, P): values of (N, C, H, W) at points (N, P, 2), or (N, C, A, B) at a grid (N, A, B, 2); 0 beyond the
    image."""
    grid = points if points.dim() == 4 else points[:, :, None]
    values = F.grid_sample(features, 2 * grid - 1, mode=mode, padding_mode="zeros", align_corners=False)
    return values if points.dim() == 4 else values[..., 0]


def in_image(points: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Convert points of boxes (N, 4), x0 y0 x1 y1 in pixels, to points of their image of ``size`` (height, width)."""
    height, width = size
    corners, extents = boxes[:, None, :2], (boxes[:, 2:] - boxes[:, :2])[:, None]
    return (points * extents + corners) / torch.tensor([width, height], dtype=points.dtype, device=points.device)


def uncertainty(logits: Tensor) -> Tensor:
    """(N, 1, ...), at most 0, highest at the most uncertain points: -|z| for one channel; for several, the second best
    class minus the best."""
    if logits.shape[1] == 1:
        return -logits.abs()
    best = logits.topk(2, dim=1).values
    return best[:, 1:] - best[:, :1]


def of_class(logits: Tensor, classes: Tensor) -> Tensor:
    """(N, 1, ...): for each of N masks, the channel of its class (N,)."""
    return logits[torch.arange(len(logits), device=logits.device), classes][:, None]


def training_points(logits: Tensor, count: int, draw: Draw, k: float = 3, beta: float = 0.75) -> Tensor:
    """(N, count, 2): a share ``beta`` are the most uncertain of ``k * count`` uniform points; the rest are uniform.

    The uncertainty is computed from the interpolated logits, not interpolated itself: between neighbours 1 and -1 the
    middle is the most uncertain point.
    """
    many, chosen = int(count * k), int(count * beta)
    points = draw((len(logits), many, 2)).to(logits.device)
    unsure = uncertainty(sample(logits, points))[:, 0].topk(chosen, dim=1).indices
    points = points.gather(1, unsure[..., None].expand(-1, -1, 2))
    return torch.cat([points, draw((len(logits), count - chosen, 2)).to(logits.device)], 1)


def grid(height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """(1, H * W, 2): the centres of all pixels, in raster order."""
    return _centres(torch.arange(height * width, device=device)[None], height, width)


def most_uncertain(unsure: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Raster index (N, P) and centre (N, P, 2) of the ``count`` pixels highest in (N, 1, H, W), or of all."""
    height, width = unsure.shape[-2:]
    index = unsure.flatten(1).topk(min(count, height * width), dim=1).indices
    return index, _centres(index, height, width)


def _centres(index: Tensor, height: int, width: int) -> Tensor:
    return torch.stack([(index % width + 0.5) / width, (index // width + 0.5) / height], -1)


class PointHead(nn.Module):
    """Logits of points from their fine features and coarse logits: the same few layers for every point.

    fine, classes: channels of the features, and of the coarse and the refined logits. hidden: channels of the
    ``layers`` in between. coarse_each_layer: whether each layer receives the coarse logits, as in the published mask
    heads; in the published semantic heads, only the first one does. The public mask head of COCO: ``PointHead(256,
    80)``.
    """

    def __init__(
        self, fine: int, classes: int = 1, hidden: int = 256, layers: int = 3, coarse_each_layer: bool = True
    ) -> None:
        super().__init__()
        self.layers, self.coarse_each_layer = layers, coarse_each_layer
        again = classes if coarse_each_layer else 0
        for number in range(layers):
            before = hidden + again if number else fine + classes
            self.add_module(f"fc{number + 1}", nn.Conv1d(before, hidden, 1))
        self.predictor = nn.Conv1d(hidden + again, classes, 1)
        for layer in self.children():
            assert isinstance(layer, nn.Conv1d)
            assert layer.bias is not None
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.predictor.weight, std=0.001)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """(N, classes, P). fine: (N, C, P). coarse: (N, classes, P)."""
        x = torch.cat([fine, coarse], 1)
        for number in range(self.layers):
            x = self.get_submodule(f"fc{number + 1}")(x).relu()
            if self.coarse_each_layer:
                x = torch.cat([x, coarse], 1)
        logits: Tensor = self.predictor(x)
        return logits


class Rendered(NamedTuple):
    """logits: (N, C, H, W). points: number of points computed for each mask."""

    logits: Tensor
    points: int


def subdivide(coarse: Tensor, ask: Ask, steps: int, count: int) -> Rendered:
    """Double the resolution in each step and recompute the logits at the ``count`` most uncertain pixels.

    ``ask`` computes logits at points (N, P, 2) of the mask from features and coarse logits interpolated there
    (:func:`at_points`). At most ``steps * count`` points of each mask are computed.
    """
    logits, points = coarse, 0
    for _ in range(steps):
        logits = F.interpolate(logits, scale_factor=2, mode="bilinear", align_corners=False)
        index, where = most_uncertain(uncertainty(logits), count)
        flat = logits.flatten(2).scatter(2, index[:, None].expand(-1, logits.shape[1], -1), ask(where))
        logits = flat.view_as(logits)
        points += index.shape[1]
    return Rendered(logits, points)


def render_mask(ask: Ask, masks: int, side: int = 7, steps: int = 5, count: int = 28**2) -> Rendered:
    """Square masks, computed on a coarse grid first: by default 7 x 7, doubled five times to 224 x 224.

    It starts from the finest grid with no more than ``count`` pixels: with the defaults at 28 x 28, followed by three
    steps. ``ask`` returns (``masks``, 1, P): the logits of the class of each mask.
    """
    while steps and 4 * side**2 <= count:
        side, steps = 2 * side, steps - 1
    first = ask(grid(side, side).expand(masks, -1, -1))
    rendered = subdivide(first.reshape(*first.shape[:2], side, side), ask, steps, count)
    return Rendered(rendered.logits, side**2 + rendered.points)


def at_points(head: PointHead, features: Tensor, coarse: Tensor) -> Ask:
    """``ask`` for masks of whole images: ``head`` on features (N, C, h, w) and coarse logits of the same extent."""
    return lambda points: head(sample(features, points), sample(coarse, points))


def at_box_points(head: PointHead, features: Tensor, boxes: Tensor, size: tuple[int, int], coarse: Tensor) -> Ask:
    """``ask`` for masks of boxes (N, 4) in one image of ``size``: ``head`` on features (1, C, h, w) of the whole image
    and coarse logits (N, classes, s, s) of each box."""

    def ask(points: Tensor) -> Tensor:
        fine = sample(features, in_image(points, boxes, size).flatten(0, 1)[None])[0]
        fine = fine.view(len(fine), *points.shape[:2]).transpose(0, 1)
        logits: Tensor = head(fine, sample(coarse, points))
        return logits

    return ask


def points_within(height: int, width: int, steps: int, share: float = 0.02) -> int:
    """The number of points per step for which all steps together stay within a share of the pixels of the result."""
    return int(share * height * width) // steps


def point_loss(logits: Tensor, labels: Tensor, over: Literal["all", "valid"] = "valid") -> Tensor:
    """(N,): cross entropy at points. logits: (N, 1, P). labels: (N, P) in [0, 1], interpolated ones may be fractional;
    -1 is ignored.

    over: the sum is divided by the number of these points. The public code divides by "all", so a mask with many
    ignored points counts less.
    """
    valid = labels >= 0
    values = F.binary_cross_entropy_with_logits(logits[:, 0], labels.clamp(min=0), reduction="none") * valid
    return values.mean(1) if over == "all" else values.sum(1) / valid.sum(1).clamp(min=1)
