"""What the click loop asks of a model."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hrseg_cli.errors import HrsegError
from hrseg_cli.models.parts.click_maps import disk_maps
from hrseg_cli.models.parts.folding import in_bf16

Features = tuple[Tensor, ...]  # each with the batch as its first axis


class InteractiveModel(nn.Module):
    """A model that turns an image, the previous answer and clicks into logits.

    A family overrides ``forward`` alone where clicks enter at the input, as in RITM, and ``encode`` and ``decode``
    where it has an encoder that sees only the image: a session then encodes a crop once, whatever the number of clicks.
    Any height and width. Nothing of a session is kept between calls: one model serves many sessions. A model can be
    built without memory for its weights, under ``torch.device("meta")``: its shapes are compared with a file's first.

    name, config: what rebuilds the model: a name of the catalog and keyword arguments.
    with_prev_mask: whether the previous answer is part of the input.
    mirror: whether it is asked about the mirrored image too where a protocol wants that.
    weightless: whether it works without weights.
    unused: parts of the names of parameters that never reach the output.
    pooled_norms: parts of the names of normalisations that see one value a channel: with one sample a batch they keep
        their statistics in training.
    single_precision: patterns of layers' names, as an exported graph has them, that 8 bits would harm: those that read
        the image and the clicks, and those that decide.
    image_layer: name of the first convolution of the image, "" where there is none.
    taps: inner features that :meth:`tapped` gives, name -> channels. An adapter that decodes needs two: "stem", the
        first features of the image, at half the size, and "fine", what the answer is read from, at a quarter.
    layer_groups: name of a group of layers -> patterns of their names; each layer that may be trained is in one group.
        "heads" are the classifiers.
    precisions: in which it can be asked, see :meth:`for_inference`.
    has_encoder: whether ``encode`` computes something that is worth keeping.
    enlarge: factor on a protocol's zoom-in target, for a model that looks at a smaller copy of its input.
    """

    name: str
    config: dict[str, Any]
    with_prev_mask: bool = True
    mirror: bool = True
    precisions: tuple[str, ...] = ("fp32",)
    has_encoder: bool = False
    weightless: bool = False
    unused: tuple[str, ...] = ()
    pooled_norms: tuple[str, ...] = ()
    single_precision: tuple[str, ...] = ()
    image_layer: str = ""
    taps: Mapping[str, int] = {}
    layer_groups: Mapping[str, tuple[str, ...]] = {}
    enlarge: int = 1

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Groups that training treats differently: layers that start from nothing ("new"), classifiers ("heads"),
        "backbone", and what it leaves as it is ("fixed"). Every parameter is in exactly one group; a model may lack
        groups."""
        return {"new": list(self.parameters())}

    def untrained(self) -> set[nn.Parameter]:
        """What neither a training nor an adapter changes: the group "fixed", and what never reaches the output."""
        unused = {p for name, p in self.named_parameters() if any(part in name for part in self.unused)}
        return unused | set(self.parameter_groups().get("fixed", ()))

    def initialise(self, backbone: Mapping[str, Tensor] | None, coverage: float) -> float:
        """Set all weights for a training that starts from nothing but, perhaps, a pretrained backbone.

        backbone: its public state dict. Returns the share of this model's backbone that it covers, 0 without one.
        Raises HrsegError where that is less than ``coverage``, or the model takes no such weights.
        """
        if backbone is not None:
            raise HrsegError(f"'{self.name}' takes no pretrained backbone; leave model.backbone out")
        return 0.0

    def for_inference(self, precision: str = "fp32", keep_layers: bool = False) -> InteractiveModel:
        """A form that gives the same logits faster and cannot be trained or saved; the model itself stays as it is.

        precision: fp32, or bf16, whose answers differ a little. keep_layers: layers keep their names, for an adapter
        that reads features inside. Raises HrsegError for a precision that it does not compute in.
        """
        if precision not in self.precisions:
            known = " or ".join(self.precisions)
            raise HrsegError(f"`precision` {precision}: '{self.name}' computes in {known}; leave the option out")
        return self._for_inference(precision, keep_layers)

    def _for_inference(self, precision: str, keep_layers: bool) -> InteractiveModel:
        return in_bf16(copy.deepcopy(self).eval()) if precision == "bf16" else self

    def encode(self, image: Tensor) -> Features:
        """What depends on the image alone: (B, 3, H, W), RGB in [0, 1]."""
        return (image,)

    def decode(self, features: Features, previous: Tensor, points: Tensor) -> dict[str, Tensor]:
        """The answer to clicks on an encoded image: {"logits": (B, 1, H, W)}, and in training perhaps more outputs.

        previous: (B, 1, H, W), the previous answer, probabilities. points: (B, 2N, 3), see
        :mod:`hrseg_cli.models.parts.click_maps`.
        """
        (image,) = features
        answer: dict[str, Tensor] = self(torch.cat([image, previous], 1) if self.with_prev_mask else image, points)
        return answer

    def click_maps(self, points: Tensor, height: int, width: int) -> Tensor:
        """(B, 2, height, width): positive and negative clicks as this model draws them, for an adapter that reads
        them too."""
        return disk_maps(points, height, width, 5)

    def tapped(self, image: Tensor, points: Tensor, inject: Tensor | None = None) -> dict[str, Tensor]:
        """``forward`` with all :attr:`taps` among its outputs.

        inject: added to the features of the tap "stem", in their shape.
        """
        raise TypeError(f"{type(self).__name__} has no taps")

    def forward(self, image: Tensor, points: Tensor) -> dict[str, Tensor]:
        """``decode`` after ``encode``. image: (B, 4, H, W) float32, RGB and the previous answer; (B, 3, H, W) where
        ``with_prev_mask`` is False."""
        if not self.has_encoder:
            raise TypeError(f"{type(self).__name__} has no forward")
        return self.decode(self.encode(image[:, :3]), image[:, 3:], points)
