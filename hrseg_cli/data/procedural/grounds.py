"""Backgrounds: stone, wood, fabric, bricks, haze, and litter of many pieces."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.random import Generator

from hrseg_cli.data.procedural.filters import blur, noise, step
from hrseg_cli.data.procedural.grown import blade
from hrseg_cli.data.procedural.parts import TAU, Array, ShapePart, blob, stroke, turned, wander
from hrseg_cli.data.procedural.raster import surface_of

GROUNDS = {
    "stone": "slate stone, stone concrete, soil sand, moss stone",
    "wood": "soil bark, bark straw, slate pale_bark, rust straw",
    "fabric": "slate steel, bark linen, dry_red rose, blue sky, stone linen, moss straw",
    "leaves": "green pale_green, soil autumn, dry_red straw, moss green",
    "gravel": "slate stone, soil sand, stone linen, bark concrete",
    "twigs": "soil straw, soil pale_bark, moss straw, green straw",
    "bricks": "dry_red rose, rust stone, concrete stone, slate stone",
    "haze": "sky concrete, blue_green pale_green, slate sky, moss sand, soil bark",
}


def ground_of(rng: Generator, name: str, shape: tuple[int, int]) -> tuple[Array, Array]:
    """Tone in [0, 1] and height in pixels of a background surface, both float32, (H, W)."""
    side = max(shape)
    y, x = (axis.astype(np.float32) / side for axis in np.mgrid[: shape[0], : shape[1]])
    if name == "haze":  # so far away that only light is left
        return np.clip(0.5 + 0.3 * noise(rng, shape, side / 2, 0.6, side / 40), 0, 1), np.zeros(shape, np.float32)
    if name in ("leaves", "gravel", "twigs"):
        tone, height = surface_of(_litter(rng, name, shape), shape, 1)
        grit = noise(rng, shape, side / 60, 0.7)
        return np.clip(tone + 0.1 * grit, 0, 1), blur(height, side / 600) + 0.0007 * side * grit
    fine = noise(rng, shape, side / rng.uniform(30, 90), 0.7)
    coarse = noise(rng, shape, side / rng.uniform(2, 5), 0.5)
    if name == "stone":
        crack = step(-np.abs(noise(rng, shape, side / rng.uniform(2, 6), 0.55)), -0.05, 0.0)
        veins = step(-np.abs(coarse), -0.25, 0.0) * 0.25
        tone = 0.5 + 0.13 * fine + 0.14 * coarse + veins - 0.5 * crack
        return np.clip(tone, 0, 1), side * (0.0013 * fine + 0.004 * coarse - 0.004 * crack)
    if name == "wood":
        grain = noise(rng, shape, (side / 200, side / 6), 0.6)
        board = y * rng.uniform(2, 7)
        shift = np.floor(board)
        rings = (y + 0.02 * coarse + 0.01 * np.sin(9 * x + 2.7 * shift) + 0.31 * shift) * rng.uniform(40, 120)
        band = np.abs(rings % 1 - 0.5) * 2
        gap = step(-np.abs(board % 1 - 0.5), -0.02, 0.0)
        tone = 0.3 + 0.35 * band + 0.12 * grain + 0.07 * np.sin(51 * shift) - gap
        return np.clip(tone, 0, 1), side * (0.0008 * grain + 0.0006 * band + 0.0006 * fine - 0.01 * gap)
    if name == "fabric":
        pitch = rng.uniform(70, 240)
        sway = 0.3 * coarse
        u, v = x * pitch + sway, y * pitch + 0.3 * noise(rng, shape, side / 3, 0.4)
        warp, weft = np.abs(np.sin(math.pi * u)), np.abs(np.sin(math.pi * v))
        over = ((np.floor(u) + np.floor(v)) % 2).astype(np.float32)
        thread = over * warp + (1 - over) * weft
        thick = noise(rng, shape, (side / 5, side / pitch), 0.7) * over + noise(
            rng, shape, (side / pitch, side / 5), 0.7
        ) * (1 - over)
        stripe = step(np.sin(x * rng.uniform(8, 60)) + np.sin(y * rng.uniform(8, 60)), 0.2, 0.5) * rng.choice(
            [0, 0.3, 0.5]
        )
        folds = noise(rng, shape, (side / 2, side / 4), 0.35)
        return np.clip(0.15 + 0.35 * thread + 0.1 * thick + stripe, 0, 1), side * (
            0.7 / pitch * 0.35 * thread + 0.02 * folds
        )
    rows = rng.uniform(8, 18)  # bricks
    row = y * rows + 0.02 * coarse
    column = x * rows / 2.6 + 0.5 * (np.floor(row) % 2) + 0.02 * fine
    u, v = np.abs(column % 1 - 0.5) * 2.6, np.abs(row % 1 - 0.5)
    mortar = np.maximum(step(u, 1.3 - 0.1, 1.3 - 0.04), step(v, 0.5 - 0.09, 0.5 - 0.03))
    own = np.sin(np.floor(row) * 12.9898 + np.floor(column) * 78.233) * 43758.547
    tone = (0.25 + 0.4 * (own % 1) + 0.1 * fine + 0.08 * coarse) * (1 - mortar) + mortar * (0.8 + 0.08 * fine)
    return np.clip(tone, 0, 1).astype(np.float32), (side * (0.0012 * fine - 0.006 * mortar)).astype(np.float32)


def _litter(rng: Generator, name: str, shape: tuple[int, int]) -> list[ShapePart]:
    """Litter on the ground, in pixels; many sizes, later pieces on top."""
    side = max(shape)
    scale = {"leaves": 0.06, "gravel": 0.03, "twigs": 0.16}[name] * rng.uniform(0.6, 1.7) * side
    count = min(int({"leaves": 6, "gravel": 5, "twigs": 9}[name] * shape[0] * shape[1] / scale**2) + 30, 1800)
    parts: list[ShapePart] = []
    for _ in range(count):
        at = rng.uniform(-0.05, 1.05, 2) * shape[::-1]
        size = scale * rng.uniform(0.25, 1) ** 1.5 * 1.6
        tone, lift, angle = rng.uniform(0, 1), rng.uniform(0, 0.02) * side, rng.uniform(0, TAU)
        if name == "twigs":
            path = wander(rng, at, angle, 2 * size, 0.1, 9)
            parts.append(stroke(path, np.linspace(1, 0.4, 9) * size * rng.uniform(0.01, 0.05), tone, lift=0.5 * lift))
        elif name == "leaves":
            leaf, rib = blade(rng, at, angle, size, tone)
            fold = np.concatenate([rib.rings[0], rib.rings[0][::-1]])
            tilt = rng.uniform(0.02, 0.2) * size
            parts += [
                replace(leaf, rings=(fold + (leaf.rings[0] - fold) * part,), bevel=0.0, lift=lift + tilt * (1 - part))
                for part in (1, 0.8, 0.6, 0.4, 0.2)
            ]
            parts.append(replace(rib, lift=0.004 * side))
        else:
            stone = turned(blob(rng, 0.5 * size, 0.12, 18) * (1, rng.uniform(0.6, 1)), angle)
            parts += [
                ShapePart((at + stone * part,), None, tone, lift=0.3 * (lift + size * math.sqrt(1.02 - part**2)))
                for part in (1, 0.95, 0.87, 0.75, 0.57, 0.33)
            ]
    return parts
