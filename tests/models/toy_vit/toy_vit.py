"""A small Vision Transformer as a family of its own: all that hrseg needs to know of it is in this file.

Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words". Clicks and previous mask are embedded in patches as the image
is, and added to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrseg_cli.models.base import Features, ViTModel
from hrseg_cli.models.parts.click_maps import disk_maps

GRID = 4  # patches a side that the positions are learned for; other sizes get them resized


class ToyViT(ViTModel):
    """patch: pixels a side. width: of a token. depth: blocks. heads: of the attention."""

    name = "toy_vit"
    precisions = ("fp32", "bf16")
    image_layer = "patches"
    single_precision = ("/patches/", "/clicks/", "/classify/")
    layer_groups = {  # noqa: RUF012
        "patches": (r"^(patches|clicks)\b",),
        "blocks": (r"^blocks\.",),
        "heads": (r"^(grow|classify)\b",),
    }

    def __init__(self, patch: int = 8, width: int = 16, depth: int = 2, heads: int = 2) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"patch": patch, "width": width, "depth": depth, "heads": heads}
        self.patch, self.width, self.depth = patch, width, depth
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.clicks = nn.Conv2d(3, width, patch, stride=patch)
        self.position = nn.Parameter(0.02 * torch.randn(1, width, GRID, GRID))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.grow = nn.ConvTranspose2d(width, width, 2, stride=2)
        self.classify = nn.Conv2d(width, 1, 1)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        groups: dict[str, list[nn.Parameter]] = {"new": [], "heads": [], "backbone": []}
        for name, parameter in self.named_parameters():
            part = name.partition(".")[0]
            groups["new" if part in ("clicks", "grow") else "heads" if part == "classify" else "backbone"].append(
                parameter
            )
        return groups

    def encode(self, image: Tensor) -> Features:
        x = self.patches(self.padded(image))
        return (x + F.interpolate(self.position, size=x.shape[-2:], mode="bilinear", align_corners=False),)

    def embed(self, features: Features, previous: Tensor, points: Tensor) -> Tensor:
        height, width = previous.shape[-2:]
        prompt = torch.cat([disk_maps(points, height, width, 5), previous], 1)
        tokens: Tensor = (features[0] + self.clicks(self.padded(prompt))).permute(0, 2, 3, 1)
        return tokens

    def attend(self, tokens: Tensor, feedback: Sequence[Tensor] | None = None) -> Tensor:
        x = tokens.flatten(1, 2)
        for number, block in enumerate(self.blocks):
            x = block(x, None if feedback is None else feedback[number].flatten(1, 2))
        return x.view_as(tokens)

    def answer(self, tokens: Tensor, height: int, width: int) -> dict[str, Tensor]:
        logits = self.classify(F.gelu(self.grow(self.norm(tokens).permute(0, 3, 1, 2))))
        size = (tokens.shape[1] * self.patch, tokens.shape[2] * self.patch)
        logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        return {"logits": logits[..., :height, :width]}

    def padded(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, -x.shape[-1] % self.patch, 0, -x.shape[-2] % self.patch))


class Block(nn.Module):
    """Attention and a perceptron, each with a residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, feedback: Tensor | None) -> Tensor:
        y = self.before(x)
        value = self.value(y) if feedback is None else self.value(y) + F.linear(feedback, self.value.weight)
        parts = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (self.query(y), self.key(y), value))
        x = x + self.out(F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))
        return x + self.narrow(F.gelu(self.widen(self.between(x))))
