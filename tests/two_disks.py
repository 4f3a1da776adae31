"""A photograph of two disks, and what tests of hrseg predict look at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CENTRES = {"left": (60, 60), "right": (90, 170)}


def photograph() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Two bright disks of different colours on a dark ground, uint8 (150, 240, 3), and the truth of each, bool."""
    rng = np.random.default_rng(3)
    image = rng.integers(0, 60, (150, 240, 3)).astype(np.uint8)
    row, col = np.mgrid[:150, :240]
    disks = {name: np.hypot(row - r, col - c) < 35 for name, (r, c) in CENTRES.items()}
    image[disks["left"]] += np.array([180, 150, 0], np.uint8)
    image[disks["right"]] += np.array([0, 60, 190], np.uint8)
    return image, disks


IMAGE, DISKS = photograph()


def rows(done: Any) -> list[dict[str, Any]]:
    assert done.code == 0, done.err
    return [json.loads(line) for line in done.out.splitlines()]


def mask_of(path: str | Path) -> np.ndarray:
    return np.asarray(Image.open(path)) > 0


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def save_clicks(path: Path, **clicks: Any) -> Path:
    path.write_text(json.dumps(clicks))
    return path
