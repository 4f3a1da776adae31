"""Click networks on EfficientNet-Lite: an encoder pretrained on ImageNet and a light decoder that receives the clicks.

The catalog's names resolve to the builders below.
"""

from __future__ import annotations

from typing import Any

from hrseg_cli.models.clicknet.network import ClickNet


def clicknet_s(**options: Any) -> ClickNet:
    """EfficientNet-Lite0, which clicks enter late, with a narrow decoder: optimised for speed."""
    small: dict[str, Any] = {"variant": "lite0", "widths": (16, 40, 64, 96, 128), "entry": 16}
    return ClickNet(**{**small, **options})


def clicknet_m(**options: Any) -> ClickNet:
    """EfficientNet-Lite2 with a wide decoder: 5.6 M parameters, optimised for few clicks."""
    return ClickNet(**{"variant": "lite2", **options})
