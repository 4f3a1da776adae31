"""SegRefiner's denoiser: a U-Net with attention at its coarse levels, conditioned on the diffusion step.

Sources: SegRefiner (Wang et al., NeurIPS 2023, arXiv 2312.12425), section 3 and its public configuration; the U-Net of
"Improved Denoising Diffusion Probabilistic Models" (Nichol and Dhariwal, ICML 2021, arXiv 2102.09672). Names of tensors
are those of the public checkpoints, which load strictly into :func:`full`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Denoiser(nn.Module):
    """Logits of the fine mask from an image and a mask between coarse and fine.

    width: channels at full resolution. multipliers: channels of each level as multiples of ``width``; each level has
    half the resolution of the previous one. blocks: residual blocks per level on the way down; one more on the way up.
    attention_strides: strides of the levels with attention. heads: of the attention. steps: number of diffusion steps,
    with a learned vector each; None for a sinusoidal embedding of any step, followed by two layers. scale_shift: the
    step scales and shifts features instead of being added to them. side: of the square images that it is trained on, in
    pixels.
    """

    def __init__(
        self,
        width: int = 128,
        multipliers: tuple[int, ...] = (1, 1, 2, 2, 4, 4),
        blocks: int = 2,
        attention_strides: tuple[int, ...] = (16, 32),
        heads: int = 4,
        steps: int | None = 6,
        scale_shift: bool = False,
        side: int = 256,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "width": width,
            "multipliers": list(multipliers),
            "blocks": blocks,
            "attention_strides": list(attention_strides),
            "heads": heads,
            "steps": steps,
            "scale_shift": scale_shift,
            "side": side,
        }
        self.width, self.stride, self.side = width, 2 ** (len(multipliers) - 1), side
        embedding = 4 * width
        self.time_embed = (
            nn.Embedding(steps, embedding)
            if steps
            else nn.Sequential(nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        )

        def residual(before: int, after: int) -> ResidualBlock:
            return ResidualBlock(before, after, embedding, scale_shift)

        def attention(channels: int, level: int) -> list[nn.Module]:
            return [Attention(channels, heads)] if 2**level in attention_strides else []

        channels = width
        self.input_blocks = nn.ModuleList([Steps(nn.Conv2d(4, width, 3, padding=1))])
        skips = [width]
        for level, multiplier in enumerate(multipliers):
            for _ in range(blocks):
                self.input_blocks.append(
                    Steps(residual(channels, multiplier * width), *attention(multiplier * width, level))
                )
                channels = multiplier * width
                skips.append(channels)
            if level < len(multipliers) - 1:
                self.input_blocks.append(Steps(Halved(channels)))
                skips.append(channels)
        self.middle_block = Steps(
            residual(channels, channels), Attention(channels, heads), residual(channels, channels)
        )
        self.output_blocks = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for number in range(blocks + 1):
                layers = [residual(channels + skips.pop(), multiplier * width), *attention(multiplier * width, level)]
                channels = multiplier * width
                if level and number == blocks:
                    layers.append(Doubled(channels))
                self.output_blocks.append(Steps(*layers))
        self.out = nn.Sequential(normalisation(channels), nn.SiLU(), nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        """(B, 1, H, W) logits. x: (B, 4, H, W), a normalised RGB image and a mask of 0 and 1; both sides multiples of
        ``stride``. step: (B,) int64, 0 where the mask is finest."""
        if any(side % self.stride for side in x.shape[-2:]):
            height, width = (math.ceil(side / self.stride) * self.stride for side in x.shape[-2:])
            raise ValueError(f"input of {tuple(x.shape[-2:])} pixels; pad it to ({height}, {width})")
        learned = isinstance(self.time_embed, nn.Embedding)
        embedding = self.time_embed(step if learned else sines(step, self.width))
        skips = []
        for block in self.input_blocks:
            x = block(x, embedding)
            skips.append(x)
        x = self.middle_block(x, embedding)
        for block in self.output_blocks:
            x = block(torch.cat([x, skips.pop()], 1), embedding)
        logits: Tensor = self.out(x)
        return logits


def full() -> Denoiser:
    """The published size: 118.6 million parameters, 249 billion multiply-adds for 256 x 256 pixels."""
    return Denoiser()


def small() -> Denoiser:
    """A size for CPUs: a fortieth of the published multiply-adds, 3.1 million parameters (6 MB in fp16)."""
    return Denoiser(width=16, multipliers=(1, 2, 4, 4, 8), blocks=1, attention_strides=(16,))


class Steps(nn.ModuleList):
    """A sequence of layers; the residual blocks among them also receive the step."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(layers)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, embedding) if isinstance(layer, ResidualBlock) else layer(x)
        return x


class ResidualBlock(nn.Module):
    """Two convolutions, with the step added between them, around a skip."""

    def __init__(self, before: int, after: int, embedding: int, scale_shift: bool) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.in_layers = nn.Sequential(normalisation(before), nn.SiLU(), nn.Conv2d(before, after, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * after if scale_shift else after))
        # The identity replaces a dropout of 0, so that layers are numbered as in the public checkpoints.
        self.out_layers = nn.Sequential(
            normalisation(after), nn.SiLU(), nn.Identity(), nn.Conv2d(after, after, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        hidden = self.in_layers(x)
        step = self.emb_layers(embedding)[:, :, None, None]
        if self.scale_shift:
            scale, shift = step.chunk(2, 1)
            hidden = self.out_layers[1:](self.out_layers[0](hidden) * (1 + scale) + shift)
        else:
            hidden = self.out_layers(hidden + step)
        result: Tensor = self.skip_connection(x) + hidden
        return result


class Attention(nn.Module):
    """Self-attention over all pixels. In ``qkv``, queries, keys and values are grouped by head."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = normalisation(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        flat = x.flatten(2)
        parts = self.qkv(self.norm(flat)).view(batch, self.heads, 3, channels // self.heads, height * width)
        query, key, value = parts.transpose(3, 4).unbind(2)
        seen = F.scaled_dot_product_attention(query, key, value).transpose(2, 3).reshape(flat.shape)
        result: Tensor = x + self.proj_out(seen).view(x.shape)
        return result


class Halved(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        halved: Tensor = self.op(x)
        return halved


class Doubled(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        doubled: Tensor = self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
        return doubled


def normalisation(channels: int) -> nn.GroupNorm:
    """Group normalisation with 32 groups, or fewer if the channels are not divisible by 32."""
    return nn.GroupNorm(math.gcd(32, channels), channels)


def sines(step: Tensor, channels: int) -> Tensor:
    """(B, channels): cosines, then sines of the step, at frequencies that fall from 1 towards 1 / 10000."""
    half = channels // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=step.device) / half)
    angles = step[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], 1)
