"""Layers of a plain Vision Transformer on a grid of tokens, with attention over the whole grid or within windows.

Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words"; Li et al. 2022, "Exploring Plain Vision Transformer Backbones
for Object Detection" (windows). Module names follow timm's, which public checkpoints use.
Shapes: B batch, h and w rows and columns of the grid, C channels of a token; tokens are (B, h, w, C).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrseg_cli.models.parts.click_maps import is_exporting

EPS = 1e-6  # of layer normalisations


class JointLinear(nn.Linear):
    """Several linear layers of one input, computed as one: their weights, by :attr:`parts`, below each other."""

    parts: tuple[str, ...] = ("q", "k", "v")

    def __init__(self, width: int) -> None:
        super().__init__(width, len(self.parts) * width)

    def rows(self, part: str) -> slice:
        """The rows of the weight, and the channels of the output, that are this part."""
        size, number = self.out_features // len(self.parts), self.parts.index(part)
        return slice(number * size, (number + 1) * size)


class Windows(NamedTuple):
    """A grid of h x w tokens, cut into down x across windows of rows x cols tokens.

    padded: whether the last windows may reach beyond the grid.
    """

    height: int
    width: int
    rows: int
    cols: int
    down: int
    across: int
    padded: bool

    def split(self, x: Tensor) -> Tensor:
        """(B, h, w, C) -> (B * down * across, rows * cols, C). Tokens beyond the grid are 0."""
        batch, channels = x.shape[0], x.shape[-1]
        if self.padded:
            below, beside = self.down * self.rows - self.height, self.across * self.cols - self.width
            x = F.pad(x, (0, 0, 0, beside, 0, below))
        x = x.reshape(batch, self.down, self.rows, self.across, self.cols, channels).transpose(2, 3)
        return x.reshape(batch * self.down * self.across, self.rows * self.cols, channels)

    def join(self, x: Tensor, batch: int) -> Tensor:
        """The reverse of :meth:`split`."""
        channels = x.shape[-1]
        x = x.reshape(batch, self.down, self.across, self.rows, self.cols, channels).transpose(2, 3)
        x = x.reshape(batch, self.down * self.rows, self.across * self.cols, channels)
        return x[:, : self.height, : self.width] if self.padded else x

    def inside(self, batch: int, device: torch.device) -> Tensor | None:
        """Bool (B * down * across, 1, 1, rows * cols): tokens of the grid, to which attention is limited; None: all."""
        if not self.padded:
            return None
        row = torch.arange(self.down * self.rows, device=device) < self.height
        col = torch.arange(self.across * self.cols, device=device) < self.width
        real = (row[:, None] & col[None, :]).view(self.down, self.rows, self.across, self.cols).transpose(1, 2)
        return real.reshape(self.down * self.across, 1, 1, self.rows * self.cols).repeat(batch, 1, 1, 1)


def whole_grid(height: int, width: int) -> Windows:
    """A single window."""
    return Windows(height, width, height, width, 1, 1, False)


def windows_of(height: int, width: int, side: int) -> Windows:
    """Windows of at least ``side`` x ``side`` tokens, as equal as possible: 28 rows make two of 14, 29 make two of 15,
    of which the last is padded. A grid smaller than ``side`` is one window."""
    rows, down = _cut(height, side)
    cols, across = _cut(width, side)
    padded = is_exporting() or rows * down != height or cols * across != width  # a graph is for all sizes
    return Windows(height, width, rows, cols, down, across, padded)


def _cut(length: int, side: int) -> tuple[int, int]:
    count = length // side + (length < side)
    size = (length + count - 1) // count
    return size, (length + size - 1) // size


class Attention(nn.Module):
    """Multi-head self-attention. forward: (B, h, w, C) -> (B, h, w, C).

    windows: each token attends to those of its window. feedback: (B, h, w, C), added to the tokens that the values, not
    the queries and keys, are computed from.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = JointLinear(width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, windows: Windows, feedback: Tensor | None = None) -> Tensor:
        batch = x.shape[0]
        joint = self.qkv(x)
        if feedback is not None:
            rows = self.qkv.rows("v")
            values = joint[..., rows] + F.linear(feedback, self.qkv.weight[rows])  # no second bias: 0 changes nothing
            joint = torch.cat([joint[..., : rows.start], values], -1)
        parts = windows.split(joint)
        heads = (parts.shape[0], parts.shape[1], 3, self.heads, x.shape[-1] // self.heads)
        query, key, value = parts.reshape(heads).permute(2, 0, 3, 1, 4)
        mask = windows.inside(batch, x.device)
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)
        out: Tensor = self.proj(windows.join(found, batch))
        return out


class Perceptron(nn.Module):
    """Two linear layers with a GELU between them; the hidden one is four times as wide."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """Attention and a perceptron, each after a normalisation and with a residual. Arguments as for :class:`Attention`.

    drop: probability, in training, of leaving out a branch for a sample (stochastic depth, Huang et al. 2016).
    """

    def __init__(self, width: int, heads: int, drop: float = 0.0) -> None:
        super().__init__()
        self.drop = drop
        self.norm1, self.attn = nn.LayerNorm(width, eps=EPS), Attention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width, eps=EPS), Perceptron(width)

    def forward(self, x: Tensor, windows: Windows, feedback: Tensor | None = None) -> Tensor:
        x = x + self._kept(self.attn(self.norm1(x), windows, feedback))
        return x + self._kept(self.mlp(self.norm2(x)))

    def _kept(self, x: Tensor) -> Tensor:
        if not (self.training and self.drop):
            return x
        kept = torch.rand(len(x), 1, 1, 1, device=x.device) >= self.drop
        return x * kept / (1 - self.drop)


class PatchEmbedding(nn.Module):
    """(B, channels, h * patch, w * patch) -> (B, h, w, C)."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj(x).permute(0, 2, 3, 1)
        return out


def positions(table: Tensor, grid: tuple[int, int], height: int, width: int) -> Tensor:
    """(1, height, width, C): embeddings of positions, (1, rows * columns, C), of a grid, resized bicubically."""
    maps = table.reshape(len(table), *grid, table.shape[-1])
    if grid == (height, width) and not is_exporting():
        return maps
    resized = F.interpolate(maps.permute(0, 3, 1, 2), size=(height, width), mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1)


def pad_to_patches(x: Tensor, patch: int) -> Tensor:
    """``x``, (B, C, H, W), padded to multiples of ``patch``, and at least two patches, by repeating the last row and
    column."""
    height, width = x.shape[-2:]
    below, beside = (-side % patch + patch * (side <= patch) for side in (height, width))
    if not (below or beside or is_exporting()):
        return x
    return F.pad(x, (0, beside, 0, below), mode="replicate")
