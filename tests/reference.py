"""What the recorded reference answers were made with: weights, a fake network and pictures that need no files.

All three are formulas, so that they are the same on every machine. The answers themselves lie in ``golden/``.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from hrseg_cli.models.base import InteractiveModel

GOLDEN = Path(__file__).parent / "golden"

# Residual and fusion branches are damped, or the activations of an untrained HRNet explode.
DAMPED = re.compile(
    r"\.branches\.\d+\.\d+\.bn2\.weight$|\.layer1\.\d+\.bn3\.weight$|\.fuse_layers\.\d+\.\d+\.(\d+\.)?1\.weight$"
)


def deterministic_weights(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A tensor for every key, drawn from a generator seeded by the key's name."""
    return {key: torch.from_numpy(_draw(key, tuple(value.shape))) for key, value in state.items()}


def _draw(key: str, shape: tuple[int, ...]) -> np.ndarray:
    leaf = key.rpartition(".")[2]
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    noise = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape)
    if len(shape) > 1:
        noise = noise * np.sqrt(2 / np.prod(shape[1:]))
    elif leaf in ("bias", "running_mean"):
        noise = 0.1 * noise
    elif leaf == "weight":
        noise = 1 + 0.1 * noise
    elif leaf == "running_var":
        noise = 1 + 0.1 * abs(noise)
    else:
        noise = 1 + 0.05 * noise
    return np.asarray(noise * (0.2 if DAMPED.search(key) else 1.0), np.float32)


def drawn_weights(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same by another formula, that of the answers of SegRefiner, SimpleClick and TOAST."""
    return {key: torch.from_numpy(_drawn(key, tuple(value.shape))) for key, value in state.items()}


def _drawn(key: str, shape: tuple[int, ...]) -> np.ndarray:
    noise = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape)
    deviation = np.sqrt(2 / np.prod(shape[1:])) * 0.5 if len(shape) > 1 else 0.1
    mean = len(shape) == 1 and key.endswith("weight")
    return np.asarray(mean + deviation * noise, np.float32)


class FakeNetwork(InteractiveModel):
    """Follows clicks by colour and nearness, in rational functions of double precision; not symmetric under a flip.

    Mostly in place, which takes two thirds of the time and gives the same bits.
    """

    name = "fake"

    def __init__(self) -> None:
        super().__init__()
        self.config = {}
        self.with_prev_mask = True

    def forward(self, image: torch.Tensor, points: torch.Tensor) -> dict[str, torch.Tensor]:
        rgb, previous = image[:, :3].double(), image[:, 3].double()
        height, width = image.shape[-2:]
        rows = torch.arange(height, dtype=torch.float64)[:, None]
        cols = torch.arange(width, dtype=torch.float64)[None, :]
        logits = []
        for one, before, slots in zip(rgb, previous, points.double(), strict=True):
            affinity = torch.zeros(2, height, width, dtype=torch.float64)
            bumps = torch.zeros(height, width, dtype=torch.float64)
            for slot, (row, col) in enumerate(slots[:, :2].tolist()):
                if max(row, col) < 0:
                    continue
                negative = slot >= len(slots) // 2
                at = (min(max(int(np.floor(v + 0.5)), 0), side - 1) for v, side in ((row, height), (col, width)))
                r, c = at
                colour = (one - one[:, r, c].view(3, 1, 1)).square_()
                colour2 = colour[0].add_(colour[1]).add_(colour[2])
                away2 = (rows - row) * (rows - row) + (cols - col) * (cols - col)
                near = (away2 / (0.15 * max(height, width)) ** 2).add_(1.0).reciprocal_()
                near.mul_(colour2.div_(0.06).add_(1.0).reciprocal_())
                torch.maximum(affinity[int(negative)], near, out=affinity[int(negative)])
                bump = away2.div_(324.0).square_().add_(1.0).reciprocal_()
                bumps.add_(bump, alpha=-1 if negative else 1)
            pull = 9.0 * (affinity[0] - affinity[1]) + 3.0 * bumps
            logits.append(pull + 2.0 * (before - 0.5) - 3.0 + 0.8 * (cols / width - 0.5))
        return {"logits": torch.stack(logits)[:, None].float()}


def _disk(row: int, col: int, radius: int) -> Callable[..., np.ndarray]:
    return lambda y, x: (y - row) ** 2 + (x - col) ** 2 <= radius * radius


def _ellipse(row: int, col: int, tall: int, wide: int) -> Callable[..., np.ndarray]:
    return lambda y, x: (wide * (y - row)) ** 2 + (tall * (x - col)) ** 2 <= (tall * wide) ** 2


def _cross_and_blob(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return (y == 100) | (x == 50) | _disk(150, 150, 25)(y, x)


def _checker(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return ((y // 60) % 2 == 0) & ((x // 90) % 2 == 0) & (y > 30) & (x > 30)


def _three(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return _disk(70, 80, 45)(y, x) | _disk(190, 210, 30)(y, x) | ((y > 90) & (y < 150) & (x > 300) & (x < 390))


def _wave(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return abs(y - (135 + np.minimum(x % 160, 160 - x % 160))) < 45


# height, width, object, distractor
CASES: list[tuple[int, int, Callable[..., np.ndarray], Callable[..., np.ndarray]]] = [
    (240, 320, _disk(120, 160, 70), _disk(60, 280, 30)),
    (300, 300, lambda y, x: _disk(150, 150, 110)(y, x) & ~_disk(150, 150, 98)(y, x), _disk(150, 150, 40)),
    (260, 401, _three, _disk(60, 250, 35)),
    (333, 251, lambda y, x: _disk(0, 0, 150)(y, x) | ((x < 40) & (y > 100)), _disk(250, 180, 50)),
    (220, 500, lambda y, x: (y < 25) | (y >= 195) | (x < 25) | (x >= 475), _disk(110, 250, 60)),
    (400, 600, _ellipse(200, 300, 90, 180), _disk(330, 80, 45)),
    (350, 480, _wave, _disk(40, 100, 30)),
    (640, 700, _ellipse(430, 520, 22, 35), _disk(200, 200, 60)),
    (201, 207, _cross_and_blob, _disk(40, 160, 20)),
    (360, 540, _checker, _disk(270, 400, 55)),
    (512, 384, lambda y, x: _disk(256, 192, 150)(y, x) & ~_disk(256, 192, 60)(y, x), _disk(60, 60, 40)),
    (280, 690, lambda y, x: (5 * y + 2 * x) > 1500, _disk(90, 120, 50)),
]


def case(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Image uint8 (H, W, 3) and truth int8 (H, W) of one synthetic object."""
    height, width, shape, distractor = CASES[number]
    y, x = np.mgrid[:height, :width].astype(np.int64)
    truth = shape(y, x).astype(np.int8)
    o, d = truth.astype(np.int64), distractor(y, x).astype(np.int64)
    red = 60 + (x * 48) // width + 70 * o + 45 * d + ((x * 7 + y * 13) % 23)
    green = 100 + (y * 48) // height - 30 * o - 10 * d + ((x * 3) ^ (y * 5)) % 16
    blue = 80 + ((x + y) * 32) // (height + width) + 20 * o + 40 * d + ((x * 11 + y * 3) % 19)
    if number == 5:
        truth[_ellipse(200, 300, 100, 190)(y, x) & (truth == 0)] = -1
    if number == 10:
        truth[_disk(256, 192, 60)(y, x) & ~_disk(256, 192, 45)(y, x)] = -1
    return np.stack([red, green, blue], 2).clip(0, 255).astype(np.uint8), truth
