"""Building blocks of shapes: parts with points (x, y), and geometry to create and move them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.random import Generator

Array = np.ndarray
TAU = 2 * math.pi
MIN_RADIUS = 0.75 / 1024  # the thinnest line is 1.5 px wide at 1024


@dataclass(frozen=True)
class ShapePart:
    """One part of a shape, painted over the parts before it.

    rings: (N, 2) arrays of (x, y). A stroke has one, its centre line; an area has an outline and holes (even-odd).
    radius: (N,) half width of a stroke along its centre line; None for an area.
    tone: position between the two colours of its material, in [0, 1].
    role: "solid" belongs to the object, "paint" only colours its surface, "cut" removes what is below it.
    bevel: width of the rounded rim of an area, in units of the shape; 0 is flat.
    lift: height above the ground, in units of the shape.
    """

    rings: tuple[Array, ...]
    radius: Array | None = None
    tone: float = 0.5
    role: Literal["solid", "paint", "cut"] = "solid"
    bevel: float = 0.0
    lift: float = 0.0


def stroke(path: Array, radius: float | Array, tone: float = 0.5, **options: object) -> ShapePart:
    path = np.asarray(path, float)
    return ShapePart((path,), np.broadcast_to(np.asarray(radius, float), (len(path),)), tone, **options)  # type: ignore[arg-type]


def curve(points: Array, count: int) -> Array:
    """Catmull-Rom spline through points (N, 2), sampled at ``count`` places."""
    p = np.vstack([2 * points[0] - points[1], points, 2 * points[-1] - points[-2]])
    t = np.linspace(0, len(points) - 1 - 1e-9, count)
    k = t.astype(int)
    u = (t - k)[:, None]
    a, b, c, d = p[k], p[k + 1], p[k + 2], p[k + 3]
    spline: Array = 0.5 * (2 * b + (c - a) * u + (2 * a - 5 * b + 4 * c - d) * u**2 + (3 * b - a - 3 * c + d) * u**3)
    return spline


def polar(angle: Array, radius: float | Array) -> Array:
    return np.stack([np.cos(angle) * radius, np.sin(angle) * radius], axis=-1)


def circle(radius: float, centre: tuple[float, float] = (0.0, 0.0), count: int = 120) -> Array:
    return np.asarray(polar(np.linspace(0, TAU, count), radius) + centre)


def blob(rng: Generator, radius: float, rough: float = 0.2, count: int = 40) -> Array:
    """A closed wobbly outline around the origin."""
    angle = np.linspace(0, TAU, count, endpoint=False)
    wobble = sum(rng.normal(0, rough / k) * np.cos(k * angle + rng.uniform(0, TAU)) for k in (1, 2, 3, 5))
    return polar(angle, radius * np.maximum(1 + wobble, 0.3))


def wander(rng: Generator, start: Array, angle: float, length: float, bend: float, count: int) -> Array:
    """A path that starts at ``angle`` and turns randomly by about ``bend`` radians at each of ``count`` points."""
    heading = angle + np.cumsum(rng.normal(0, bend, count - 1))
    steps = polar(heading, length / (count - 1))
    return np.vstack([start, start + np.cumsum(steps, axis=0)])


def points_of(parts: list[ShapePart]) -> Array:
    return np.concatenate([ring for part in parts for ring in part.rings])


def moved(parts: list[ShapePart], points: Array, scale: float | Array = 1.0) -> list[ShapePart]:
    """The parts with their points, in order, moved to ``points`` and their widths times ``scale``, one or per point."""
    factor = np.broadcast_to(scale, len(points))
    placed, start = [], 0
    for part in parts:
        stops = start + np.cumsum([len(ring) for ring in part.rings])
        rings = (
            tuple(np.split(points[start : stops[-1]], stops[:-1] - start))
            if len(stops) > 1
            else (points[start : stops[0]],)
        )
        radius = None if part.radius is None else part.radius * factor[start : stops[-1]]
        size = float(factor[start])
        placed.append(ShapePart(rings, radius, part.tone, part.role, part.bevel * size, part.lift * size))
        start = int(stops[-1])
    return placed


def turned(points: Array, angle: float) -> Array:
    cos, sin = math.cos(angle), math.sin(angle)
    return np.stack([points[:, 0] * cos - points[:, 1] * sin, points[:, 0] * sin + points[:, 1] * cos], axis=1)


def tilted(rng: Generator, parts: list[ShapePart], strength: float) -> list[ShapePart]:
    """A flat shape within [-1, 1] viewed at an angle: foreshortened along one direction, and in perspective."""
    squeeze = rng.uniform(1 - 0.6 * strength, 1)
    turn = rng.uniform(0, TAU)
    points = points_of(parts)
    kx, ky = rng.uniform(-0.3, 0.3, 2) * strength
    depth = 1 + kx * points[:, 0] + ky * points[:, 1]
    slanted = turned(turned(points, -turn) * (1, squeeze), turn) / depth[:, None]
    return moved(parts, slanted, math.sqrt(squeeze) / depth)
