"""Object-contextual representations: a head for networks with one object class.

Yuan et al. 2020, "Object-Contextual Representations for Semantic Segmentation".
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ObjectContext(nn.Module):
    """OCR with a single object class: concatenates the mean object feature, weighted by the auxiliary map, to each
    pixel.

    With one class the attention over classes is 1 everywhere, so its queries and keys (``f_pixel``, ``f_object``) do
    not affect the output. Their weights exist for compatibility with checkpoints. In training only ``f_object``, the
    cheaper one, runs, to update its BatchNorm statistics as in the reference.
    """

    def __init__(self, channels: int, key: int) -> None:
        super().__init__()
        self.object_context_block = nn.ModuleDict(
            {
                "f_pixel": _projections(channels, key, 2),
                "f_object": _projections(channels, key, 2),
                "f_down": _projections(channels, key, 1),
                "f_up": _projections(key, channels, 1),
            }
        )
        self.conv_bn_dropout = nn.Sequential(
            nn.Conv2d(2 * channels, channels, 1, bias=False), _bn_relu(channels), nn.Dropout2d(0.05)
        )

    def forward(self, features: Tensor, aux: Tensor) -> Tensor:
        weights = aux.flatten(2).softmax(dim=2)  # (B, 1, HW)
        gathered = (weights @ features.flatten(2).transpose(1, 2)).transpose(1, 2).unsqueeze(3)  # (B, C, 1, 1)
        context = self.object_context_block["f_down"](gathered)
        if self.training:
            with torch.no_grad():
                self.object_context_block["f_object"](gathered)
            # Expanded so that batch statistics count every pixel, as in the reference.
            context = context.expand(-1, -1, *features.shape[-2:])
        context = self.object_context_block["f_up"](context).expand_as(features)
        out: Tensor = self.conv_bn_dropout(torch.cat([context, features], 1))
        return out


def _projections(inputs: int, outputs: int, count: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index in range(count):
        layers += [nn.Conv2d(outputs if index else inputs, outputs, 1, bias=False), _bn_relu(outputs)]
    return nn.Sequential(*layers)


def _bn_relu(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
