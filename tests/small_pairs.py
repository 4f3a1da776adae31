"""Small images and masks, in the folder layout or anywhere."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def picture(height: int = 12, width: int = 20) -> np.ndarray:
    """Smooth colours, different in every channel and at every pixel."""
    row, col = np.mgrid[0:height, 0:width]
    return np.stack([40 + 3 * row, 60 + 2 * col, 200 - row - col], axis=2).astype(np.uint8)


def disc(height: int = 12, width: int = 20) -> np.ndarray:
    return np.where(np.hypot(*(np.mgrid[0:height, 0:width] - np.array([[[4]], [[7]]]))) < 3.3, 255, 0).astype(np.uint8)


def put(path: Path, values: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **options)
    return path


def put_pair(folder: Path, stem: str, mask: np.ndarray | None = None) -> None:
    put(folder / f"images/{stem}.jpg", picture())
    put(folder / f"masks/{stem}.png", disc() if mask is None else mask)
