"""What the click loop asks of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class InteractiveModel(nn.Module):
    """A model that turns an image, the previous answer and clicks into logits.

    forward(image, points) -> {"logits": (B, 1, H, W), "aux": the same or absent, "features": tensors or absent}
        image: (B, 4, H, W) float32: RGB in [0, 1] and the previous probability in [0, 1];
               (B, 3, H, W) where ``with_prev_mask`` is False.
        points: (B, 2N, 3): see :mod:`hrseg_cli.models.click_maps`.
    Any height and width. Nothing of a session is kept between calls: one model serves many sessions.

    name, config: what rebuilds the model: a name of the catalog and keyword arguments.
    with_prev_mask: whether the previous answer is part of the input.
    mirror: whether it is asked about the mirrored image too where a protocol wants that.
    unused: parts of the names of parameters that never reach the output.
    layer_groups: name of a group of layers -> parts of the names of what is in it; together all that is not unused.
    enlarge: factor on a protocol's zoom-in target, for a model that looks at a smaller copy of its input.
    """

    name: str
    config: dict[str, Any]
    with_prev_mask: bool = True
    mirror: bool = True
    unused: tuple[str, ...] = ()
    layer_groups: Mapping[str, tuple[str, ...]] = {}
    enlarge: int = 1

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """What training tells apart: layers that start from nothing ("new"), classifiers ("heads"), "backbone"."""
        return {"new": list(self.parameters())}

    def forward(self, image: Tensor, points: Tensor) -> dict[str, Tensor]:
        raise TypeError(f"{type(self).__name__} has no forward")
