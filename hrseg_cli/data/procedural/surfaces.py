"""Materials and lighting."""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np

from hrseg_cli.data.procedural.filters import blur, over
from hrseg_cli.data.procedural.parts import Array

Light = tuple[float, float, float]

COLOURS = {  # of things out of doors and on workbenches; RGB in [0, 1]
    "bark": (0.33, 0.27, 0.21),
    "pale_bark": (0.58, 0.54, 0.47),
    "soil": (0.24, 0.19, 0.14),
    "straw": (0.66, 0.57, 0.39),
    "moss": (0.34, 0.37, 0.19),
    "green": (0.26, 0.38, 0.15),
    "pale_green": (0.52, 0.60, 0.36),
    "blue_green": (0.30, 0.42, 0.37),
    "autumn": (0.63, 0.40, 0.17),
    "dry_red": (0.50, 0.24, 0.15),
    "stone": (0.50, 0.48, 0.45),
    "slate": (0.30, 0.33, 0.36),
    "concrete": (0.63, 0.62, 0.59),
    "sand": (0.72, 0.63, 0.50),
    "steel": (0.50, 0.52, 0.55),
    "rust": (0.46, 0.26, 0.15),
    "brass": (0.62, 0.50, 0.26),
    "copper": (0.60, 0.37, 0.25),
    "rubber": (0.11, 0.11, 0.12),
    "sky": (0.63, 0.71, 0.79),
    "linen": (0.80, 0.77, 0.70),
    "bone": (0.80, 0.73, 0.60),
    "red": (0.58, 0.16, 0.13),
    "blue": (0.18, 0.29, 0.47),
    "rose": (0.70, 0.45, 0.45),
    "violet": (0.40, 0.30, 0.45),
}


class Material(NamedTuple):
    """A material for objects.

    pairs: pairs of colour names, for tone 0 and tone 1; bump: height of the grain relative to its size; gloss: share of
    mirrored light; grain: size of the largest grain, in units of the longer side; far: how often the object stands in
    front of its background instead of lying on it.
    """

    pairs: str
    bump: float
    gloss: float
    grain: float
    far: float


METAL = "slate steel, rust copper, rubber slate, brass straw, rust stone, steel concrete"
MATERIALS = {
    "branch": Material("bark pale_bark, soil bark, slate stone, bark straw, moss pale_bark", 0.30, 0.0, 0.02, 0.8),
    "wire": Material("rubber slate, red rose, blue steel, stone linen, rust copper", 0.03, 0.35, 0.03, 0.4),
    "lattice": Material(METAL, 0.10, 0.20, 0.02, 0.85),
    "gear": Material(METAL, 0.10, 0.30, 0.03, 0.4),
    "leaf": Material(
        "green pale_green, autumn straw, dry_red autumn, moss straw, blue_green linen", 0.12, 0.12, 0.03, 0.5
    ),
    "strands": Material("soil bark, bark straw, stone linen, slate stone, autumn bone", 0.05, 0.06, 0.08, 0.65),
    "glyph": Material(METAL + ", red rose, linen bone, blue slate", 0.12, 0.15, 0.03, 0.4),
    "wheel": Material("rubber steel, rubber concrete, soil stone", 0.06, 0.25, 0.03, 0.6),
    "feather": Material("slate linen, bark bone, rubber stone, soil straw, stone linen", 0.03, 0.05, 0.06, 0.5),
    "coral": Material("rose bone, dry_red rose, autumn straw, violet rose, stone linen", 0.30, 0.0, 0.012, 0.6),
}


def lit(tone: Array, height: Array, colours: Array, patches: Array, light: Light, gloss: float, side: int) -> Array:
    """Colour of a lit surface: float32, (H, W, 3), about [0, 1].

    colours: (3, 3) RGB for tone 0, tone 1 and patches 1; light: unit vector (x, y, z) towards the lamp; side: longer
    side of the whole picture in pixels. Lambertian and ambient light, darker hollows, and a specular highlight.
    """
    right = cv2.Sobel(height, cv2.CV_32F, 1, 0, ksize=3, scale=1 / 8)
    down = cv2.Sobel(height, cv2.CV_32F, 0, 1, ksize=3, scale=1 / 8)
    shorten = 1 / np.sqrt(right * right + down * down + 1)
    facing = np.maximum((light[2] - right * light[0] - down * light[1]) * shorten, 0)
    reach = side / 150
    hollow = np.clip(1 + (height - blur(height, reach)) * (0.5 / reach), 0.45, 1.15)
    brightness = (0.42 + (0.58 / light[2]) * facing) * hollow
    low, high, patch = colours.astype(np.float32)
    albedo = low + tone[..., None] * (high - low)
    image = over(albedo, patch, patches)
    image *= brightness[..., None]
    if gloss:
        long = math.hypot(light[0], light[1], light[2] + 1)
        half = [value / long for value in (light[0], light[1], light[2] + 1)]
        mirror = np.maximum((half[2] - right * half[0] - down * half[1]) * shorten, 0)
        mirror *= mirror
        mirror *= mirror
        image += (gloss * mirror * mirror * mirror)[..., None]
    return image
