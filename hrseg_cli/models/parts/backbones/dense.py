"""DenseNet's blocks, as FC-DenseNet uses them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def dense_layer(inputs: int, growth: int, kernel: int = 3, dropout: float = 0.2) -> nn.Sequential:
    """Batch normalisation, ReLU, convolution, dropout."""
    conv = nn.Conv2d(inputs, growth, kernel, padding=kernel // 2)
    return nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(), conv, nn.Dropout2d(dropout))


class DenseBlock(nn.Module):
    """Layers that each read the input and all maps made before: (B, C, H, W) -> the new maps, (B, layers * growth, H,
    W).

    Huang et al., CVPR 2017; Jégou et al., "The One Hundred Layers Tiramisu" (CVPR Workshops 2017), figure 2.
    """

    def __init__(self, inputs: int, layers: int, growth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(dense_layer(inputs + number * growth, growth) for number in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        made: list[Tensor] = []
        for layer in self.layers:
            made.append(layer(torch.cat([x, *made], 1)))
        return torch.cat(made, 1)
