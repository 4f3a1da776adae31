"""The interface of a click model."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hrseg_cli.errors import HrsegError
from hrseg_cli.models.parts.click_maps import disk_maps
from hrseg_cli.models.parts.folding import in_bf16

Features = tuple[Tensor, ...]  # batch first

# What a session asks a model for; another form of the model must not answer differently.
ASKED = ("with_prev_mask", "mirror", "takes_boxes", "remembers", "enlarge", "fixed_input")


class InteractiveModel(nn.Module):
    """A model that turns an image, the previous mask, clicks and possibly a box into logits.

    A family whose clicks enter at the input, as in RITM, overrides only ``forward``. A family with an encoder that sees
    only the image overrides ``encode`` and ``decode``; a session then encodes a crop once for all clicks on it.
    Any height and width is allowed. A model keeps no state between calls, so one model serves many sessions. It can be
    built without memory for its weights, under ``torch.device("meta")``, to compare its shapes with those of a file.

    name, config: name in the catalog and keyword arguments, which rebuild the model.
    with_prev_mask: whether the previous mask is part of the input.
    mirror: whether protocols with mirroring also run it on the mirrored image.
    weightless: whether it works without weights.
    unused: parts of the names of parameters that do not affect the output.
    pooled_norms: parts of the names of normalisations that see one value per channel. When training with one sample per
        batch, they keep their statistics.
    single_precision: patterns of layer names in an exported graph that must not be quantised: the layers that read the
        image and the clicks, and the classifiers.
    image_layer: name of the first convolution of the image, "" if there is none.
    taps: inner features returned by :meth:`tapped`, name -> channels. A decoding adapter needs two: "stem", the first
        features of the image, at half the size, and "fine", the features that the logits are computed from, at a
        quarter.
    image_channels: of :meth:`image_features`; 0: it has none.
    layer_groups: name of a group of layers -> patterns of their names. Each trainable layer is in one group; "heads"
        are the classifiers.
    precisions: those it can compute in, see :meth:`for_inference`.
    has_encoder: whether the result of ``encode`` is worth caching.
    takes_boxes: whether ``decode`` uses a box around the object; otherwise a session clicks on the centre of a box.
    remembers: whether it answers better with its memory of the previous click, see :meth:`recall`.
    enlarge: factor on a protocol's zoom-in target, for a model that downsamples its input.
    fixed_input: whether ``encode`` resizes any image to one size. Features of large images are then small enough to
        keep.
    exportable: whether ``hrseg export`` can turn it into one graph.
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
    image_channels: int = 0
    layer_groups: Mapping[str, tuple[str, ...]] = {}
    takes_boxes: bool = False
    remembers: bool = False
    enlarge: int = 1
    fixed_input: bool = False
    exportable: bool = True

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Groups that training treats differently: untrained layers ("new"), classifiers ("heads"), pretrained layers
        ("backbone") and layers that are not trained ("fixed"). Every parameter is in exactly one group; groups may be
        missing."""
        return {"new": list(self.parameters())}

    def distances(self) -> dict[nn.Parameter, int]:
        """Of the parameters of consecutive pretrained layers, the number of such layers from here to the new ones, 1
        for the last, for layer-wise decay of the learning rate. Empty: the model has no such sequence."""
        return {}

    @contextmanager
    def backbone_fixed(self) -> Iterator[None]:
        """Context in which a prediction trains only the layers outside the group "backbone", for faster steps."""
        learning = [p for p in self.parameter_groups().get("backbone", ()) if p.requires_grad]
        for parameter in learning:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in learning:
                parameter.requires_grad_(True)

    def untrained(self) -> set[nn.Parameter]:
        """Parameters that no training and no adapter changes: the group "fixed", and those that do not affect the
        output."""
        unused = {p for name, p in self.named_parameters() if any(part in name for part in self.unused)}
        return unused | set(self.parameter_groups().get("fixed", ()))

    def initialise(self, backbone: Mapping[str, Tensor] | None, coverage: float) -> float:
        """Initialise all weights for training, from a pretrained backbone if there is one.

        backbone: its public state dict. Returns the share of this model's backbone that it covers, 0 without one.
        Raises HrsegError if that is less than ``coverage``, or if the model does not support such weights.
        """
        if backbone is not None:
            raise HrsegError(f"'{self.name}' does not support a pretrained backbone; omit model.backbone")
        return 0.0

    def for_inference(self, precision: str = "fp32", keep_layers: bool = False) -> InteractiveModel:
        """An optimised copy: the same logits, faster, but it cannot be trained or saved. The model itself is unchanged.

        precision: "fp32", or "bf16", whose results differ slightly. keep_layers: keep layer names, for an adapter that
        reads inner features. Raises HrsegError for an unsupported precision.
        """
        if precision not in self.precisions:
            known = " or ".join(self.precisions)
            raise HrsegError(f"`precision` {precision}: '{self.name}' supports only {known}; omit the option")
        form = self._for_inference(precision, keep_layers)
        for name in ASKED:
            setattr(form, name, getattr(self, name))
        return form

    def _for_inference(self, precision: str, keep_layers: bool) -> InteractiveModel:
        return in_bf16(copy.deepcopy(self).eval()) if precision == "bf16" else self

    def encode(self, image: Tensor) -> Features:
        """Features that depend only on the image, (B, 3, H, W), RGB in [0, 1]."""
        return (image,)

    def decode(
        self, features: Features, previous: Tensor, points: Tensor, boxes: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The outputs for clicks on an encoded image: {"logits": (B, 1, H, W)}, and possibly others for training.

        previous: (B, 1, H, W), the previous mask as probabilities. points: (B, 2N, 3), see
        :mod:`hrseg_cli.models.parts.click_maps`. boxes: (B, 4), rows (top, left, bottom, right) in pixels, the last two
        inclusive; a row of -1, or None: no box. Given only to a model that ``takes_boxes``.
        """
        (image,) = features
        answer: dict[str, Tensor] = self(torch.cat([image, previous], 1) if self.with_prev_mask else image, points)
        return answer

    def recall(
        self, features: Features, previous: Tensor, points: Tensor, memory: Tensor | None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """:meth:`decode` of a model that ``remembers``: the outputs, and the memory for the next click on this image.

        memory: of the previous click, batch first; zeros or None: none. The model itself keeps nothing.
        """
        raise TypeError(f"{type(self).__name__} does not remember")

    def click_maps(self, points: Tensor, height: int, width: int) -> Tensor:
        """(B, 2, height, width): positive and negative clicks as this model draws them, for adapters that need
        them."""
        return disk_maps(points, height, width, 5)

    def image_features(self, image: Tensor) -> Tensor:
        """(B, image_channels, ceil(H / 16), ceil(W / 16)): inner features of an image, (B, 3, H, W), RGB in [0, 1],
        without clicks and previous mask, for distillation."""
        raise TypeError(f"{type(self).__name__} has no features of images")

    def tapped(self, image: Tensor, points: Tensor, inject: Tensor | None = None) -> dict[str, Tensor]:
        """``forward`` with all :attr:`taps` added to its outputs.

        inject: added to the features of the tap "stem"; same shape.
        """
        raise TypeError(f"{type(self).__name__} has no taps")

    def forward(self, image: Tensor, points: Tensor) -> dict[str, Tensor]:
        """``encode``, then ``decode``. image: (B, 4, H, W) float32, RGB and the previous mask; (B, 3, H, W) if
        ``with_prev_mask`` is False."""
        if not self.has_encoder:
            raise TypeError(f"{type(self).__name__} has no forward")
        return self.decode(self.encode(image[:, :3]), image[:, 3:], points)


class ViTModel(InteractiveModel):
    """A click model that is a plain Vision Transformer, in the steps between which an adapter can feed back features.

    width: channels of a token. depth: number of blocks. patch: side of a patch in pixels. Tokens are (B, h, w, C), C =
    width, for a grid of patches, the first of which starts in the top left corner.
    """

    has_encoder = True
    width: int
    depth: int
    patch: int

    def embed(self, features: Features, previous: Tensor, points: Tensor) -> Tensor:
        """(B, h, w, C): tokens of the encoded image and the prompt, before the first block. Arguments as for
        :meth:`decode`."""
        raise NotImplementedError

    def attend(self, tokens: Tensor, feedback: Sequence[Tensor] | None = None) -> Tensor:
        """(B, h, w, C): tokens after the last block. feedback: for each block, (B, h, w, C), which its values, not its
        queries and keys, are also computed from, without the bias; zeros change nothing."""
        raise NotImplementedError

    def answer(self, tokens: Tensor, height: int, width: int) -> dict[str, Tensor]:
        """The outputs for an image of this size, see :meth:`decode`, from the tokens after the last block."""
        raise NotImplementedError

    def decode(
        self, features: Features, previous: Tensor, points: Tensor, boxes: Tensor | None = None
    ) -> dict[str, Tensor]:
        tokens = self.attend(self.embed(features, previous, points))
        return self.answer(tokens, previous.shape[-2], previous.shape[-1])
