"""Click networks on EfficientNet-Lite: an encoder pretrained on ImageNet, a light decoder that answers clicks.

Names of the catalog import the builders below; torch comes with them.
"""

from __future__ import annotations

from typing import Any

from hrseg_cli.models.clicknet.network import ClickNet


def clicknet_m(**options: Any) -> ClickNet:
    """EfficientNet-Lite2 with a wide decoder: 5.8 M parameters, made for few clicks."""
    return ClickNet(**{"variant": "lite2", **options})
