"""RITM's HRNet with an OCR head, in the published sizes. The catalog's names resolve to the builders below."""

from __future__ import annotations

from typing import Any

from hrseg_cli.models.hrnet.network import ClickHRNet


def h18s(**options: Any) -> ClickHRNet:
    """HRNet-18 small with OCR 48: 4.2 M parameters."""
    return ClickHRNet(**{"width": 18, "ocr_width": 48, "small": True, **options})


def h18(**options: Any) -> ClickHRNet:
    """HRNet-18 with OCR 64: 10.0 M parameters. The base of the paper's adapters."""
    return ClickHRNet(**{"width": 18, "ocr_width": 64, **options})


def h32(**options: Any) -> ClickHRNet:
    """HRNet-32 with OCR 128: 31.0 M parameters."""
    return ClickHRNet(**{"width": 32, "ocr_width": 128, **options})


def h18_baseline(**options: Any) -> ClickHRNet:
    """HRNet-18 with OCR 64, without the previous mask as input."""
    return ClickHRNet(**{"width": 18, "ocr_width": 64, "with_prev_mask": False, **options})
