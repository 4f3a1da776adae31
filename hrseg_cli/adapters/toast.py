"""A frozen Vision Transformer that looks a second time, with top-down attention to what matters: TOAST and TOAST-Lite.

The tokens of a first pass are weighted by a signal of the task, and fed back into the values of every block of a second
pass. Shi et al. 2023, "TOAST: Transfer Learning via Attention Steering", sections 3 and 4.
Shapes: B batch, h and w rows and columns of the grid, C channels of a token, L blocks.

    m = clamp(cos(x, prompt), 0, 1),  x_L = P (m x),  x_l = W1_l x_(l+1),  values_l += Wv_l W2_l x_l

The public code adds the bias of the values a second time, so that no feedback still changes the answer. Here it is
added once, and W2 = 0 at the start: the adapted model then answers as its base.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrseg_cli.adapters.controls import freeze
from hrseg_cli.adapters.lora import attach_lora, has_lora, merge
from hrseg_cli.errors import HrsegError
from hrseg_cli.models.base import Features, InteractiveModel, ViTModel
from hrseg_cli.models.parts.click_maps import is_exporting, valid_slots
from hrseg_cli.models.parts.vit import EPS, pad_to_patches

Select = Literal["prompt", "clicks", "previous"]
SELECTS = ("prompt", "clicks", "previous")


class Decoder(nn.Module):
    """One step of the feedback path. forward: (..., C) -> what the block below gets, and what this block is fed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear, self.linear2 = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        nn.init.eye_(self.linear.weight)
        nn.init.zeros_(self.linear2.weight)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.linear(x)
        return x, self.linear2(x)


class TopDown(nn.Module):
    """The feedback path. Tensors are named as in the public code. prompt: None until it is needed, so that a path
    without one depends on its training alone."""

    prompt: nn.Parameter | None

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.register_parameter("prompt", None)
        self.top_down_transform = nn.Parameter(torch.eye(width))
        self.decoders = nn.ModuleList(Decoder(width) for _ in range(depth))

    def forward(self, x: Tensor, mask: Tensor) -> list[Tensor]:
        """Feedback (..., C) for each block, the first one first. x: (..., C), tokens after the last block. mask:
        (..., 1), in [0, 1]."""
        x = (x * mask) @ self.top_down_transform
        found = []
        for decoder in reversed(self.decoders):
            x, back = decoder(x)
            found.append(back)
        return found[::-1]


def alike(x: Tensor, wanted: Tensor) -> Tensor:
    """(..., 1) in [0, 1]: cosine similarity of tokens (..., C) with the wanted one, negative ones as 0."""
    return F.cosine_similarity(x, wanted.expand_as(x), dim=-1).clamp(0, 1).unsqueeze(-1)


class Toast(InteractiveModel):
    """A frozen ViTModel with a feedback path.

    passes: 2: tokens of a first pass without feedback are fed back into a second one. 1: those of the previous click on
        the same view are, so that a click costs one pass; without a previous click nothing is fed back.
    """

    name = "toast"

    def __init__(self, base: ViTModel, select: Select, passes: int) -> None:
        super().__init__()
        self.base = base
        freeze(base)
        if has_lora(base):  # the feedback reads weights of layers, not only what the layers answer
            merge(base)
        self.path = TopDown(base.width, base.depth)
        self.with_prev_mask, self.mirror, self.unused = base.with_prev_mask, base.mirror, base.unused
        self.takes_boxes, self.enlarge = base.takes_boxes, base.enlarge
        self.single_precision, self.has_encoder = base.single_precision, base.has_encoder
        self.choose(select, passes)

    def choose(self, select: Select, passes: int) -> None:
        """Set what is fed back, and train nothing. Raises HrsegError for values out of range."""
        if select not in SELECTS:
            raise HrsegError(f"toast: select is {select}; use one of {', '.join(SELECTS)}")
        if passes not in (1, 2):
            raise HrsegError(f"toast: passes is {passes}; it must be 1 or 2")
        self.select, self.passes = select, passes
        self.config: dict[str, Any] = {"select": select, "passes": passes}
        self.remembers = passes == 1
        self.precisions = self.base.precisions if passes == 2 else ("fp32",)  # what is remembered would be in bf16
        if select == "prompt" and self.path.prompt is None:
            self.path.prompt = nn.Parameter(torch.randn(self.base.width, device=self.path.top_down_transform.device))
        self.path.requires_grad_(False)

    def train(self, mode: bool = True) -> Toast:
        super().train(mode)
        self.base.eval()  # no dropout: the function that is being adapted must not change
        return self

    def encode(self, image: Tensor) -> Features:
        with torch.no_grad():  # frozen
            return self.base.encode(image)

    def decode(
        self, features: Features, previous: Tensor, points: Tensor, boxes: Tensor | None = None
    ) -> dict[str, Tensor]:
        if self.passes == 1:
            if is_exporting():
                raise HrsegError("toast: a graph has no previous click to feed back; export an adapter with passes=2")
            return self.recall(features, previous, points, None)[0]
        with torch.no_grad():
            tokens = self.base.embed(features, previous, points)
            top = self.base.attend(tokens)
        return self._answer(tokens, self._normalised(top), previous, points)[0]

    def recall(
        self, features: Features, previous: Tensor, points: Tensor, memory: Tensor | None
    ) -> tuple[dict[str, Tensor], Tensor]:
        with torch.no_grad():
            tokens = self.base.embed(features, previous, points)
        if memory is None and self.training:
            memory = torch.zeros_like(tokens)  # feeds back nothing, but lets a loss reach the parameters
        outputs, top = self._answer(tokens, memory, previous, points)
        return outputs, self._normalised(top)

    def _answer(
        self, tokens: Tensor, seen: Tensor | None, previous: Tensor, points: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Outputs, and tokens after the last block, with ``seen`` fed back, (B, h, w, C); None: without feedback."""
        feedback = None if seen is None else self.path(seen, self.selected(seen, previous, points))
        top = self.base.attend(tokens, feedback)
        return self.base.answer(top, previous.shape[-2], previous.shape[-1]), top

    def selected(self, seen: Tensor, previous: Tensor, points: Tensor) -> Tensor:
        """(B, h, w, 1) in [0, 1]: how much of each token is fed back. seen: (B, h, w, C)."""
        patch = self.base.patch
        if self.select == "prompt":
            assert self.path.prompt is not None
            return alike(seen, self.path.prompt)
        if self.select == "previous":
            return F.avg_pool2d(pad_to_patches(previous, patch), patch).permute(0, 2, 3, 1)
        height, width = seen.shape[1:3]
        positive = points[:, : points.shape[1] // 2]
        rows = (positive[..., 0] / patch).long().clamp(min=0).clamp(max=height - 1)
        cols = (positive[..., 1] / patch).long().clamp(min=0).clamp(max=width - 1)
        index = (rows * width + cols).unsqueeze(-1).expand(-1, -1, seen.shape[-1])
        held = valid_slots(positive).unsqueeze(-1).to(seen.dtype)
        clicked = (seen.flatten(1, 2).gather(1, index) * held).sum(1) / held.sum(1).clamp(min=1)
        return alike(seen, clicked[:, None, None])  # 0 without a click

    def _normalised(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (self.base.width,), eps=EPS)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"new": list(self.path.parameters()), "heads": [], "backbone": list(self.base.parameters())}

    def click_maps(self, points: Tensor, height: int, width: int) -> Tensor:
        return self.base.click_maps(points, height, width)


def toast(model: InteractiveModel, *, select: Select = "clicks", passes: int = 2) -> Toast:
    """TOAST: a second pass of the frozen Vision Transformer, with feedback on what the first one found.

    select: which tokens are fed back. ``clicks``: those similar to the mean of the tokens with positive clicks;
        ``previous``: those of the previous mask; ``prompt``: those similar to a learned one, as in the paper, where one
        task has one kind of object.
    passes: per click, see :class:`Toast`.
    A model with such a feedback path keeps it, and trains it further. Raises HrsegError for other models.
    """
    adapted = _with_path(model, select, passes)
    adapted.path.decoders.requires_grad_(True)
    return adapted


def toast_lite(model: InteractiveModel, *, select: Select = "clicks", passes: int = 2, rank: int = 4) -> Toast:
    """TOAST-Lite: LoRA on a feedback path that is frozen, or that starts as TOAST's does, and its first layer P.

    rank: of LoRA. Others as in :func:`toast`. Raises HrsegError.
    """
    adapted = _with_path(model, select, passes)
    attach_lora(adapted.path.decoders, rank=rank)
    adapted.path.top_down_transform.requires_grad_(True)
    return adapted


def _with_path(model: InteractiveModel, select: Select, passes: int) -> Toast:
    if isinstance(model, Toast):
        freeze(model)  # training starts from a base with all gradients on
        merge(model.path)
        adapted = model
        adapted.choose(select, passes)
    elif isinstance(model, ViTModel):
        adapted = Toast(model, select, passes)
    else:
        raise HrsegError(f"toast needs a Vision Transformer, and {model.name} is not one; use another adapter or model")
    if adapted.path.prompt is not None:
        adapted.path.prompt.requires_grad_(select == "prompt")
    return adapted
