"""A folder of drawn photographs, and a model that knows their colours: for what is done with clicks, not how well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hrseg_cli.models.base import InteractiveModel

SIZE = (120, 160)
SQUARES = {"red": (slice(20, 60), slice(20, 70)), "blue": (slice(50, 100), slice(90, 150))}
COLOURS = {"red": (200, 60, 50), "blue": (60, 80, 190)}


class SameColour(InteractiveModel):
    """The object is what was object before and what has a positively clicked colour, without what has a negatively
    clicked one."""

    name = "same-colour"
    config: dict[str, Any] = {}  # noqa: RUF012
    mirror = False

    def forward(self, image: Tensor, points: Tensor) -> dict[str, Tensor]:
        found = image[0, 3] > 0.5
        half = points.shape[1] // 2
        for index, (row, col, _) in enumerate(points[0].tolist()):
            if row >= 0:
                colour = image[0, :3, int(row), int(col)]
                alike = ((image[0, :3] - colour[:, None, None]).abs() < 0.15).all(0)
                found = found | alike if index < half else found & ~alike
        return {"logits": torch.where(found, 8.0, -8.0)[None, None]}


def discs(image: np.ndarray, previous: np.ndarray, clicks: list[tuple[float, float, bool]]) -> np.ndarray:
    """A click model that looks at nothing but the clicks; for ``--model python:tiny_photos:discs``."""
    rows, cols = np.indices(previous.shape)
    found = np.full(previous.shape, 0.1, np.float32)
    for row, col, positive in clicks:
        found[np.hypot(rows - row, cols - col) < (12 if positive else 5)] = 0.9 if positive else 0.0
    return found


def photograph() -> np.ndarray:
    image = np.full((*SIZE, 3), 225, np.uint8)
    for name, place in SQUARES.items():
        image[place] = COLOURS[name]
    return image


def truth(name: str) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[SQUARES[name]] = True
    return mask


def boxes(folder: Path) -> Path:
    """A dataset of eight photographs of a bright box on noise, and their masks, 56 x 72 pixels."""
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for k in range(8):
        mask = np.zeros((56, 72), np.uint8)
        mask[10 + k : 40, 20 : 50 + k] = 255
        image = rng.integers(0, 90, (56, 72, 3), dtype=np.uint8)
        image[mask > 0] += 140
        Image.fromarray(image).save(folder / "images" / f"{k}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{k}.png")
    return folder


def folder_of(place: Path, *names: str, flat: bool = False) -> Path:
    """Photographs, in images/ or not; all alike."""
    inside = place if flat else place / "images"
    inside.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.fromarray(photograph()).save(inside / name)
    return place
