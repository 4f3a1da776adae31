"""A frozen click network whose most uncertain pixels are recomputed by a small network: PointRend.

Kirillov et al., CVPR 2020, arXiv 1912.08193; see :mod:`hrseg_cli.refiners.pointrend`. Shapes: B batch, H and W the
image, P points.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrseg_cli.adapters.controls import freeze
from hrseg_cli.errors import HrsegError
from hrseg_cli.models.base import InteractiveModel
from hrseg_cli.refiners.pointrend import (
    PointHead,
    most_uncertain,
    points_within,
    sample,
    training_points,
    uncertainty,
)

STRIDES = {"fine": 4, "stem": 2}  # of the taps


class PointRendered(InteractiveModel):
    """A point head on the frozen model, which corrects the logits of the most uncertain pixels.

    forward(image, points) -> {"logits": the base's plus the corrections, and other outputs of the base}

    The head reads two inner features of the base and its logits at a point. In evaluation, corrections are computed at
    the pixels whose logits are nearest to 0. In training they are computed at random pixels, most of them uncertain;
    the loss of all other pixels is constant, so any loss trains the head at these points. The last layer of the head
    starts with zeros: before training, "logits" is bit-identical to the base.

    hidden, layers: of the head. points: pixels per training sample. share: of the pixels of an image, the most that
    evaluation recomputes. steps: 1, all of them at full size; 2 as in the paper, half of them at half the size, whose
    corrections are interpolated where the second step computes none. That reaches four times as far, but the base's
    logits, unlike the paper's, already have full size, and an interpolated correction may be worse than none.
    Raises HrsegError for options out of range and for a base without inner features.
    """

    name = "pointrend"
    precisions = ("fp32",)  # the base's inner features would be in bf16
    single_precision = ("/head/",)

    def __init__(
        self,
        base: InteractiveModel,
        *,
        hidden: int = 64,
        layers: int = 3,
        points: int = 1024,
        share: float = 0.02,
        steps: int = 1,
    ) -> None:
        super().__init__()
        if not STRIDES.keys() <= base.taps.keys():
            raise HrsegError(f"pointrend needs inner features, which '{base.name}' does not provide; use another model")
        for option, value in (("hidden", hidden), ("layers", layers), ("points", points)):
            if value < 1:
                raise HrsegError(f"pointrend: {option} is {value}; it must be at least 1")
        if not 0 < share <= 1:
            raise HrsegError(f"pointrend: share is {share}; it must be above 0 and at most 1")
        if steps not in (1, 2):
            raise HrsegError(f"pointrend: steps is {steps}; it must be 1 or 2")
        self.config: dict[str, Any] = {
            "hidden": hidden,
            "layers": layers,
            "points": points,
            "share": share,
            "steps": steps,
        }
        self.points, self.share, self.steps = points, share, steps
        self.base = base
        freeze(base)
        self.with_prev_mask, self.mirror, self.unused = base.with_prev_mask, base.mirror, base.unused
        self.enlarge = base.enlarge
        self.head = PointHead(sum(base.taps[tap] for tap in STRIDES), hidden=hidden, layers=layers)
        nn.init.zeros_(self.head.predictor.weight)

    def train(self, mode: bool = True) -> PointRendered:
        super().train(mode)
        self.base.eval()  # no dropout: the function that is being adapted must not change
        return self

    def forward(self, image: Tensor, points: Tensor) -> dict[str, Tensor]:
        if torch.onnx.is_in_onnx_export():
            raise HrsegError("the pixels that PointRend recomputes depend on the image")
        height, width = image.shape[-2:]
        with torch.no_grad():
            outputs = self.base.tapped(image, points)
        taps = {tap: outputs.pop(tap) for tap in STRIDES}
        rows, cols = (STRIDES["fine"] * side for side in taps["fine"].shape[-2:])
        # All maps cover this padded area, so that one point means the same place in each of them.
        features = [_grown(taps[tap], rows // stride, cols // stride) for tap, stride in STRIDES.items()]
        logits = _grown(outputs["logits"], rows, cols)
        if self.training:
            correction = self._at_random(features, logits)
        else:
            correction = self._subdivided(features, logits, points_within(height, width, self.steps, self.share))
        return {**outputs, "logits": (logits + correction)[..., :height, :width]}

    def _at_random(self, features: list[Tensor], logits: Tensor) -> Tensor:
        """(B, 1, H, W): corrections at ``points`` pixels each, 0 elsewhere."""
        rows, cols = logits.shape[-2:]
        # Between pixels there is no exact truth.
        places = (training_points(logits, self.points, torch.rand) * logits.new_tensor([cols, rows])).long()
        index = places[..., 1].clamp(max=rows - 1) * cols + places[..., 0].clamp(max=cols - 1)
        where = (places + 0.5) / logits.new_tensor([cols, rows])
        return self._written(torch.zeros_like(logits), index, self._correction(features, logits, where))

    def _subdivided(self, features: list[Tensor], logits: Tensor, count: int) -> Tensor:
        """(B, 1, H, W): corrections, computed at ``count`` pixels in each step."""
        correction = F.avg_pool2d(torch.zeros_like(logits), 2**self.steps)
        for step in reversed(range(self.steps)):
            correction = F.interpolate(correction, scale_factor=2, mode="bilinear", align_corners=False)
            if count:
                plain = F.avg_pool2d(logits, 2**step)
                # A pixel that an interpolated correction made certain is still a candidate.
                unsure = torch.maximum(uncertainty(plain), uncertainty(plain + correction))
                index, where = most_uncertain(unsure, count)
                correction = self._written(correction, index, self._correction(features, logits, where))
        return correction

    def _correction(self, features: list[Tensor], logits: Tensor, where: Tensor) -> Tensor:
        """(B, 1, P), at points (B, P, 2)."""
        fine = torch.cat([sample(tap, where) for tap in features], 1)
        correction: Tensor = self.head(fine, sample(logits, where))
        return correction

    @staticmethod
    def _written(into: Tensor, index: Tensor, values: Tensor) -> Tensor:
        return into.flatten(2).scatter(2, index[:, None], values.to(into.dtype)).view_as(into)

    def _for_inference(self, precision: str, keep_layers: bool) -> PointRendered:
        around = copy.copy(self)
        around._modules = dict(self._modules)
        around.base = self.base.for_inference(precision, keep_layers=True)
        return around

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"new": list(self.head.parameters()), "heads": [], "backbone": list(self.base.parameters())}

    def click_maps(self, points: Tensor, height: int, width: int) -> Tensor:
        return self.base.click_maps(points, height, width)


def _grown(x: Tensor, rows: int, cols: int) -> Tensor:
    """Padded to ``rows`` x ``cols`` by repeating the last row and column."""
    return F.pad(x, (0, cols - x.shape[-1], 0, rows - x.shape[-2]), mode="replicate")
