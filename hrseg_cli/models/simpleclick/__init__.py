"""SimpleClick, a plain Vision Transformer that clicks, in its published sizes. The catalog's names resolve to the
builders below."""

from __future__ import annotations

from typing import Any

from hrseg_cli.models.simpleclick.network import SimpleClick


def xtiny(**options: Any) -> SimpleClick:
    """ViT with 8 blocks, 160 channels wide: 4.1 M parameters."""
    size: dict[str, Any] = {"width": 160, "depth": 8, "heads": 4, "levels": (96, 192, 288, 384), "channels": 128}
    return SimpleClick(**{**size, **options})


def base(**options: Any) -> SimpleClick:
    """ViT-B: 98 M parameters."""
    return SimpleClick(**options)


def large(**options: Any) -> SimpleClick:
    """ViT-L: 324 M parameters."""
    size: dict[str, Any] = {"width": 1024, "depth": 24, "heads": 16, "levels": (192, 384, 768, 1536)}
    return SimpleClick(**{**size, **options})


def huge(**options: Any) -> SimpleClick:
    """ViT-H with patches of 14 pixels: 662 M parameters."""
    size: dict[str, Any] = {"patch": 14, "width": 1280, "depth": 32, "heads": 16, "levels": (240, 480, 960, 1920)}
    return SimpleClick(**{**size, **options})
