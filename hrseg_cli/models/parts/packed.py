"""Convolutions with weights prepacked for oneDNN and fused activations, for inference on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

SHAPES = 256  # number of input shapes for which a convolution caches its weights
RELU6 = [0.0, 6.0]


def is_possible() -> bool:
    """Whether this PyTorch has oneDNN's convolutions with prepacked weights and fused post-operations."""
    operators = (
        "_convolution_pointwise",
        "_convolution_pointwise_",
        "_reorder_convolution_weight",
        "_get_mkldnn_serialized_md",
    )
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return available and all(hasattr(torch.ops.mkldnn, name) for name in operators)


class PackedConv:
    """A convolution with weights prepacked for oneDNN, optionally summed into another tensor.

    The best layout of the weights depends on the input size. oneDNN repacks weights in the wrong layout at every call,
    which can take ten times as long as the convolution. So each layout is cached; two or three serve all sizes.
    """

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype = torch.float32, columns: slice = slice(None)) -> None:
        """columns: use only these input channels."""
        self.weight = conv.weight[:, columns].detach().to(dtype)
        self.bias = None if conv.bias is None else conv.bias.detach().to(dtype)
        assert not isinstance(conv.padding, str)
        self.shape = (list(conv.padding), list(conv.stride), [1, 1], conv.groups)  # third: dilation
        self.packed: dict[torch.Size, Tensor] = {}  # by the input's shape
        self.layouts: dict[bytes, Tensor] = {}

    def __call__(
        self,
        x: Tensor,
        relu: bool = False,
        relu6: bool = False,
        onto: Tensor | None = None,
        plus: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Convolve ``x``, add ``plus`` if given, then apply ReLU or ReLU6.

        onto: like ``plus``, and overwritten with the result. bias: replaces the layer's.
        """
        packed = self.packed.get(x.shape)
        if packed is None:
            packed = self._pack(x.shape)
        bias = self.bias if bias is None else bias
        out: Tensor
        if onto is None and plus is None:
            after, limits = ("relu", []) if relu else ("hardtanh", RELU6) if relu6 else ("none", [])
            out = torch.ops.mkldnn._convolution_pointwise(x, packed, bias, *self.shape, after, limits, "")
            return out
        rest: tuple[Any, ...] = (packed, bias, *self.shape, "add", 1.0, "relu" if relu else None, [], "")
        if onto is None:
            out = torch.ops.mkldnn._convolution_pointwise.binary(x, plus, *rest)
        else:
            out = torch.ops.mkldnn._convolution_pointwise_.binary(onto, x, *rest)
        return out.clamp_(*RELU6) if relu6 else out

    def _pack(self, shape: torch.Size) -> Tensor:
        fresh = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *self.shape, shape)
        if len(self.packed) == SHAPES:
            self.packed.clear()
            self.layouts.clear()
        packed = self.packed[shape] = self.layouts.setdefault(_layout(fresh), fresh)
        return packed


def _layout(packed: Tensor) -> bytes:
    """A key for the memory layout of packed weights: oneDNN's descriptor, without dimensions and type, since those are
    followed by undefined bytes."""
    described: bytes = torch.ops.mkldnn._get_mkldnn_serialized_md(packed).numpy().tobytes()
    return described[112:]
