"""A picture set that is drawn, not downloaded: thin and intricate objects with exact anti-aliased masks.

Every sample is a small scene made of the three arguments ``(seed, index, size)`` alone: a textured background, things
of the same kind behind the object, the object with its cast shadow, at times something in front of it. Geometry lives
in units of the longer side, so the same scene can be drawn at any size. Object and background are blended linearly
with the stored coverage; lens blur and sensor noise come after that.

Points of shapes are (x, y), as OpenCV takes them; arrays are (row, col).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
from numpy.random import Generator

from hrseg_cli.errors import HrsegError
from hrseg_cli.runs import write_atomically

Array = np.ndarray
Light = tuple[float, float, float]

TAU = 2 * math.pi
MIN_RADIUS = 0.75 / 1024  # the thinnest line is 1.5 px wide at 1024
SHIFT = 4  # OpenCV draws at sixteenths of a pixel
VERSION = 1  # raise when the same arguments begin to give other pixels
ASPECTS = (1.0, 4 / 3, 3 / 2, 3 / 4, 2 / 3)  # width over height


# --- Shapes -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """One piece of a shape, painted over the pieces before it.

    rings: (N, 2) arrays of (x, y). A stroke has one, its centre line; an area has an outline and holes (even-odd).
    radius: (N,) half width of a stroke along its centre line; None for an area.
    tone: where between the two colours of its material it lies, in [0, 1].
    role: "solid" belongs to the object, "paint" only marks its surface, "cut" takes away what lies below it.
    bevel: width of the rounded rim of an area, in units of the shape; 0 is flat.
    lift: height above the ground, in units of the shape.
    """

    rings: tuple[Array, ...]
    radius: Array | None = None
    tone: float = 0.5
    role: Literal["solid", "paint", "cut"] = "solid"
    bevel: float = 0.0
    lift: float = 0.0


def _stroke(path: Array, radius: float | Array, tone: float = 0.5, **options: object) -> Part:
    path = np.asarray(path, float)
    return Part((path,), np.broadcast_to(np.asarray(radius, float), (len(path),)), tone, **options)  # type: ignore[arg-type]


def _curve(points: Array, count: int) -> Array:
    """Catmull-Rom spline through points (N, 2), sampled at ``count`` places."""
    p = np.vstack([2 * points[0] - points[1], points, 2 * points[-1] - points[-2]])
    t = np.linspace(0, len(points) - 1 - 1e-9, count)
    k = t.astype(int)
    u = (t - k)[:, None]
    a, b, c, d = p[k], p[k + 1], p[k + 2], p[k + 3]
    curve: Array = 0.5 * (2 * b + (c - a) * u + (2 * a - 5 * b + 4 * c - d) * u**2 + (3 * b - a - 3 * c + d) * u**3)
    return curve


def _polar(angle: Array, radius: float | Array) -> Array:
    return np.stack([np.cos(angle) * radius, np.sin(angle) * radius], axis=-1)


def _circle(radius: float, centre: tuple[float, float] = (0.0, 0.0), count: int = 120) -> Array:
    return np.asarray(_polar(np.linspace(0, TAU, count), radius) + centre)


def _blob(rng: Generator, radius: float, rough: float = 0.2, count: int = 40) -> Array:
    """A closed wobbly outline around the origin."""
    angle = np.linspace(0, TAU, count, endpoint=False)
    wobble = sum(rng.normal(0, rough / k) * np.cos(k * angle + rng.uniform(0, TAU)) for k in (1, 2, 3, 5))
    return _polar(angle, radius * np.maximum(1 + wobble, 0.3))


def _wander(rng: Generator, start: Array, angle: float, length: float, bend: float, count: int) -> Array:
    """A path that sets out at ``angle`` and changes its mind by ``bend`` radians at each of ``count`` points."""
    heading = angle + np.cumsum(rng.normal(0, bend, count - 1))
    steps = _polar(heading, length / (count - 1))
    return np.vstack([start, start + np.cumsum(steps, axis=0)])


def _points(parts: list[Part]) -> Array:
    return np.concatenate([ring for part in parts for ring in part.rings])


def _moved(parts: list[Part], points: Array, scale: float | Array = 1.0) -> list[Part]:
    """The parts with their points, in order, at new places, and their widths times ``scale``, one or per point."""
    factor = np.broadcast_to(scale, len(points))
    moved, start = [], 0
    for part in parts:
        stops = start + np.cumsum([len(ring) for ring in part.rings])
        rings = (
            tuple(np.split(points[start : stops[-1]], stops[:-1] - start))
            if len(stops) > 1
            else (points[start : stops[0]],)
        )
        radius = None if part.radius is None else part.radius * factor[start : stops[-1]]
        size = float(factor[start])
        moved.append(Part(rings, radius, part.tone, part.role, part.bevel * size, part.lift * size))
        start = int(stops[-1])
    return moved


def _turned(points: Array, angle: float) -> Array:
    cos, sin = math.cos(angle), math.sin(angle)
    return np.stack([points[:, 0] * cos - points[:, 1] * sin, points[:, 0] * sin + points[:, 1] * cos], axis=1)


def _tilted(rng: Generator, parts: list[Part], strength: float) -> list[Part]:
    """A flat shape within [-1, 1] seen at a slant: foreshortened along one direction, and in perspective."""
    squeeze = rng.uniform(1 - 0.6 * strength, 1)
    turn = rng.uniform(0, TAU)
    points = _points(parts)
    kx, ky = rng.uniform(-0.3, 0.3, 2) * strength
    depth = 1 + kx * points[:, 0] + ky * points[:, 1]
    slanted = _turned(_turned(points, -turn) * (1, squeeze), turn) / depth[:, None]
    return _moved(parts, slanted, math.sqrt(squeeze) / depth)


def _blade(rng: Generator, root: Array, angle: float, length: float, tone: float) -> list[Part]:
    """One small leaf with its midrib."""
    t = np.linspace(0, 1, 16)
    half = length * rng.uniform(0.16, 0.3) * np.sin(math.pi * t**0.8)
    bend = rng.normal(0, 0.12) * length * np.sin(math.pi * t)
    outline = np.vstack([np.stack([t * length, bend + half], 1), np.stack([t * length, bend - half], 1)[::-1]])
    rib = root + _turned(np.stack([t * length, bend], 1), angle)
    return [
        Part((root + _turned(outline, angle),), None, tone, bevel=0.5 * length, lift=rng.uniform(0.0, 0.02)),
        _stroke(rib, MIN_RADIUS, min(tone + 0.25, 1), role="paint", lift=0.004),
    ]


def _branch(rng: Generator) -> list[Part]:
    leafy = rng.random() < 0.55
    limbs: list[Part] = []
    leaves: list[Part] = []
    todo = [(np.zeros(2), -math.pi / 2 + rng.normal(0, 0.3), rng.uniform(0.5, 0.75), rng.uniform(0.025, 0.045), 0)]
    while todo and len(limbs) < 320:
        start, angle, length, radius, depth = todo.pop(0)
        count = 12
        path = _wander(rng, start, angle, length, 0.11 + 0.02 * depth, count)
        knots = 1 + 0.08 * rng.normal(size=count) * (depth < 3)
        tip = radius * rng.uniform(0.6, 0.8)
        limbs.append(_stroke(path, np.linspace(radius, tip, count) * knots, rng.uniform(0.2, 0.8), lift=0.01 * depth))
        if depth >= 6 or radius < 0.0022:
            if leafy:
                for k in rng.integers(4, count, rng.integers(1, 4)):
                    direction = angle + rng.normal(0, 0.8)
                    leaves += _blade(rng, path[k], direction, rng.uniform(0.05, 0.1), rng.uniform(0.1, 0.9))
            continue
        for side in (-1, 1):
            turn = side * rng.uniform(0.15, 0.75)
            todo.append(
                (path[-1], angle + turn, length * rng.uniform(0.6, 0.85), tip * rng.uniform(0.65, 0.95), depth + 1)
            )
        if rng.random() < 0.7:
            k = int(rng.integers(3, count - 2))
            turn = rng.choice([-1, 1]) * rng.uniform(0.5, 1.1)
            todo.append((path[k], angle + turn, length * rng.uniform(0.4, 0.7), tip * rng.uniform(0.3, 0.6), depth + 2))
    return limbs + leaves


def _cable(rng: Generator) -> list[Part]:
    """One long cable in loops, with a plug."""
    points = rng.uniform(-1, 1, (int(rng.integers(8, 13)), 2))
    radius = rng.uniform(0.007, 0.016)
    path = _curve(points, 420)
    jacket = [_stroke(path[k : k + 22], radius, 0.5, lift=0.02 * math.sin(k / 31)) for k in range(0, 399, 21)]
    end, before = path[-1], path[-8]
    heading = math.atan2(end[1] - before[1], end[0] - before[0])
    body = np.array([[0, -2], [1, -2.6], [7, -2.6], [8, -2], [8, 2], [7, 2.6], [1, 2.6], [0, 2]]) * radius
    pins = [np.array([[7.0, y], [12.0, y]]) * radius for y in (-1.2, 1.2)]
    plug = [_stroke(end + _turned(pin, heading), 0.5 * radius, 0.95) for pin in pins]
    sleeve = end + _turned(np.array([[-5.0, 0], [1, 0]]) * radius, heading)
    plug.append(_stroke(sleeve, np.array([1.1, 1.9]) * radius, 0.4))
    return [*jacket, *plug, Part((end + _turned(body, heading),), None, 0.35, bevel=radius, lift=0.03)]


def _harness(rng: Generator) -> list[Part]:
    """Wires tied together that fan out at both ends."""
    spine = rng.uniform(-1, 1, (5, 2)) * (0.6, 1)
    spine = spine[np.argsort(spine[:, 1])] * (1, 1.3)
    count, thick = int(rng.integers(5, 11)), rng.uniform(0.006, 0.011)
    offsets = np.linspace(-1, 1, count) * thick * count * 0.8
    tie = sorted(rng.integers(70, 230, 3))
    t = np.arange(300)
    apart = np.clip(np.abs(t - 150) / 150 - 0.45, 0, 1)[:, None]
    wires = []
    for offset in rng.permutation(offsets):
        wave = rng.normal(0, 0.9 * thick, (9, 2))
        loose = rng.normal(0, 0.9, (7, 2))
        path = _curve(spine, 300) + _curve(wave, 300) + apart * _curve(loose, 300)
        path[:, 0] += offset
        wires.append(_stroke(path, thick, rng.random(), lift=rng.uniform(0, 0.02)))
    middle = _curve(spine, 300)
    half = thick * count * 1.05
    ties = [_stroke(middle[k] + np.array([[-half, 0.004], [half, -0.004]]), 0.009, 0.05, lift=0.05) for k in tie]
    return wires + ties


def _coil(rng: Generator) -> list[Part]:
    """A coiled cord: near halves painted over far halves."""
    turns = int(rng.integers(9, 22))
    spine = _curve(np.array([[-1.2, 0], [-0.4, rng.normal(0, 0.4)], [0.4, rng.normal(0, 0.4)], [1.2, 0]]), 40 * turns)
    phase = np.linspace(0, TAU * turns, 40 * turns)
    inside = np.sin(math.pi * np.linspace(0, 1, 40 * turns)) ** 0.25
    coil = spine + np.stack([0.05 * np.cos(phase), rng.uniform(0.1, 0.2) * np.sin(phase)], 1) * inside[:, None]
    radius = rng.uniform(0.008, 0.014)
    halves = [
        (k, _stroke(coil[k : k + 21], radius, 0.5, lift=0.04 * (k // 20 % 2))) for k in range(0, 40 * turns - 20, 20)
    ]
    return [half for k, half in sorted(halves, key=lambda item: item[0] // 20 % 2)]


def _spiral(radius: float, turns: float, hand: int) -> Array:
    angle = np.linspace(0, TAU * turns, int(26 * turns) + 8)
    return _polar(hand * angle, radius * np.linspace(1, 0.12, len(angle)))


def _fence(rng: Generator) -> list[Part]:
    """Wrought iron: bars, rails, scrolls."""
    count, height = int(rng.integers(7, 14)), rng.uniform(0.55, 0.8)
    x = np.linspace(-1, 1, count)
    bar = rng.uniform(0.008, 0.014)
    parts = [_stroke(np.array([[-1, y], [1, y]]), bar * 1.3, 0.4) for y in (-0.75 * height, 0.8 * height)]
    for k, left in enumerate(x):
        parts.append(_stroke(np.array([[left, -height], [left, height]]), bar, 0.5, lift=0.01))
        tip = np.array([[-1.7, 0], [-2.4, -2.5], [0, -8], [2.4, -2.5], [1.7, 0]]) * bar + (left, -height)
        parts.append(Part((tip,), None, 0.6, bevel=bar))
        if k + 1 < count:
            gap, centre = x[1] - x[0], left + 0.5 * (x[1] - x[0])
            for y, hand in ((-0.35 * height, 1), (0.35 * height, -1)):
                scroll = _spiral(0.46 * gap, 1.8, hand) + np.array([centre, y])
                parts.append(_stroke(scroll, bar * 0.6, 0.55, lift=0.005))
            parts.append(_stroke(_circle(0.2 * gap, (centre, -0.88 * height), 40), bar * 0.55, 0.5))
    return _tilted(rng, parts, 0.7)


def _mesh(rng: Generator) -> list[Part]:
    """Chain link in a frame: zigzags, each hooked into the one before."""
    count = int(rng.integers(9, 17))
    wire, frame = rng.uniform(0.0035, 0.006), rng.uniform(0.018, 0.03)
    cell = 2 / count
    parts = []
    for k in range(count):
        y = np.linspace(-1, 1, 2 * count + 1)
        x = -1 + cell * (k + 0.5) + 0.55 * cell * np.where((np.arange(2 * count + 1) + k) % 2, 1, -1)
        zigzag = np.stack([np.clip(x, -1, 1), y], 1) + rng.normal(0, 0.04 * cell, (2 * count + 1, 2))
        parts.append(_stroke(_curve(zigzag, 10 * count), wire, rng.uniform(0.3, 0.8), lift=0.004 * (k % 2)))
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]], float)
    parts += [_stroke(corners[k : k + 2], frame, 0.45, lift=0.02) for k in range(4)]
    return _tilted(rng, parts, 1.0)


def _web(rng: Generator) -> list[Part]:
    """A spider's: spokes, and threads that sag between them."""
    count = int(rng.integers(13, 22))
    angle = np.sort(np.linspace(0, TAU, count, endpoint=False) + rng.normal(0, 0.06, count))
    reach = rng.uniform(0.75, 1.1, count)
    thread = rng.uniform(0.0022, 0.0034)
    parts = [
        _stroke(_polar(np.full(2, a), np.array([0, 1.25 * r])), thread * 1.4, 0.6)
        for a, r in zip(angle, reach, strict=True)
    ]
    for ring in np.linspace(0.07, 1, int(rng.integers(17, 28))) ** 0.9:
        for k in range(count):
            a, b = angle[k], angle[(k + 1) % count] + (TAU if k + 1 == count else 0)
            t = np.linspace(0, 1, 7)
            bow = ring * (reach[k] * (1 - t) + reach[(k + 1) % count] * t) * (1 - 0.45 * (b - a) * t * (1 - t) * 2)
            if rng.random() > 0.04:
                parts.append(_stroke(_polar(a + (b - a) * t, bow), thread, 0.7))
    return _tilted(rng, parts, 0.7)


def _gear(rng: Generator) -> list[Part]:
    teeth = int(rng.integers(14, 44))
    depth = min(3.4 / teeth, 0.16)
    tooth = np.array([[-0.5, 0], [-0.27, 0], [-0.16, 0.75], [-0.12, 1], [0.12, 1], [0.16, 0.75], [0.27, 0]])
    angle = (np.arange(teeth)[:, None] + tooth[None, :, 0]).ravel() * TAU / teeth
    outline = _polar(angle, (1 - depth + depth * tooth[None, :, 1] + np.zeros((teeth, 1))).ravel())
    hub, rim = rng.uniform(0.16, 0.26), 1 - depth - rng.uniform(0.1, 0.2)
    spokes = int(rng.integers(3, 9))
    holes = [_circle(hub * rng.uniform(0.35, 0.6))]
    half, lean = rng.uniform(0.05, 0.11), rng.uniform(-0.35, 0.35) * (rng.random() < 0.5)
    for k in range(spokes):
        base = k * TAU / spokes
        outer = np.linspace(base + half / rim, base + TAU / spokes - half / rim, 24) + lean
        inner = np.linspace(base + half / hub / 1.5, base + TAU / spokes - half / hub / 1.5, 14)[::-1]
        if inner[0] > inner[-1]:
            holes.append(np.vstack([_polar(outer, rim), _polar(inner, hub * 1.5)]))
    bolts = [_circle(0.02, tuple(_polar(np.array(k * TAU / 6), hub * 1.05)), 24) for k in range(6)]
    parts = [Part((outline, *holes, *bolts), None, 0.5, bevel=0.03)]
    parts += [_stroke(_circle(r), 0.006, 0.25, role="paint", lift=-0.004) for r in (rim + 0.03, hub * 1.4)]
    for _ in range(int(rng.integers(6, 20))):  # scratches and oil
        mark = _wander(rng, rng.uniform(-0.8, 0.8, 2), rng.uniform(0, TAU), rng.uniform(0.1, 0.5), 0.05, 8)
        parts.append(_stroke(mark, rng.uniform(0.001, 0.004), rng.choice([0.1, 0.9]), role="paint"))
    return _tilted(rng, parts, 0.8)


def _fern(rng: Generator) -> list[Part]:
    """Leaflets along leaflets."""
    parts: list[Part] = []
    spine = _wander(rng, np.zeros(2), -math.pi / 2, 2.0, 0.03, 60)
    parts.append(_stroke(spine, np.linspace(0.012, 0.003, 60), 0.3, lift=0.02))
    for k in range(6, 59, 2):
        t = k / 59
        heading = math.atan2(*(spine[k] - spine[k - 1])[::-1])
        reach = 0.75 * math.sin(math.pi * min(t * 0.8 + 0.22, 1)) ** 1.2 + 0.03
        for side in (-1, 1):
            if rng.random() < 0.04:
                continue
            rib = _wander(rng, spine[k], heading + side * (1.25 - 0.4 * t), reach * rng.uniform(0.85, 1), 0.05, 14)
            tone = rng.uniform(0.15, 0.85)
            parts.append(_stroke(rib, np.linspace(0.004, 0.0015, 14), tone))
            ahead = np.arctan2(*np.diff(rib, axis=0).T[::-1])
            size = 0.085 * reach * (1 - 0.75 * np.arange(1, 14) / 14) + 0.006
            width = np.array([0.8, 1, 0.15]) * 0.013 * (0.4 + 0.6 * reach)
            for hand in (-1, 1):
                reachings = _polar(ahead + hand, size)
                leaflets = rib[1:, None] + reachings[:, None] * np.array([0, 0.5, 1])[:, None]
                parts += [Part((leaflet,), width, tone) for leaflet in leaflets]
    return parts


def _leaf(rng: Generator) -> list[Part]:
    """One leaf, long or lobed, with a sawn margin, veins, blotches and holes."""
    lobes = int(rng.choice([0, 5, 7]))
    teeth = int(rng.integers(60, 110))
    u = np.linspace(0, 1, 721)
    saw = (u * teeth) % 1
    fine = (u * teeth * 3) % 1
    if lobes:  # maple-like: long lobes around the stalk
        angle = math.pi / 2 + 0.12 + u * (TAU - 0.24)
        wave = np.abs(np.cos(0.5 * lobes * (u - 0.5) * TAU * 0.86))
        far = (0.3 + 0.7 * wave**1.3) * (0.62 + 0.38 * np.sin(math.pi * u) ** 0.5)
        outline = _polar(angle, far * (1 + 0.06 * saw + 0.03 * fine))
        tips = [(p, outline[p]) for p in range(5, 716) if wave[p] >= wave[p - 5 : p + 6].max()]
        ribs = [np.stack([np.zeros(2), 0.5 * tip + rng.normal(0, 0.015, 2), 0.96 * tip]) for _, tip in tips]
        ribs = [_curve(rib, 24) for rib in ribs]
    else:  # elm-like: one long blade
        wide = rng.uniform(0.3, 0.5)
        bend = rng.uniform(-0.25, 0.25)
        t = 1 - np.abs(2 * u - 1)
        hands = np.where(u < 0.5, 1, -1)
        widths = wide * np.sin(math.pi * t ** rng.uniform(0.7, 1.0)) ** 0.8 * (1 + 0.09 * saw + 0.035 * fine)
        outline = np.stack([hands * widths + bend * np.sin(math.pi * t), 1 - 2 * t], 1)
        s = np.linspace(0, 0.98, 40)
        middle = np.stack([bend * np.sin(math.pi * s), 1 - 2 * s], 1)
        ribs = [middle]
        for k in range(3, 36, 2):
            long = wide * math.sin(math.pi * s[k] ** 0.85) ** 0.8 * 0.93
            for hand in (-1, 1):
                end = middle[k] + np.array([hand * long, -0.55 * long])
                sag = 0.5 * (middle[k] + end) + (0, 0.06 * long)
                ribs.append(_curve(np.stack([middle[k], sag, end]), 12))
    base = np.zeros(2) if lobes else outline[0]
    stalk = _wander(rng, base, math.pi / 2 + rng.normal(0, 0.2), rng.uniform(0.4, 0.7) + 0.4 * bool(lobes), 0.04, 12)
    parts = [_stroke(stalk, np.linspace(0.016, 0.02, 12), 0.7), Part((outline,), None, 0.45, bevel=0.5)]
    for rib in ribs:
        parts.append(_stroke(rib, np.linspace(0.009, 0.002, len(rib)), 0.85, role="paint", lift=0.006))
    for _ in range(int(rng.integers(5, 40))):  # blotches
        spot = _blob(rng, rng.uniform(0.008, 0.04)) + rng.uniform(-0.6, 0.6, 2)
        parts.append(Part((spot,), None, rng.choice([0.05, 1.0]), role="paint"))
    for _ in range(int(rng.integers(3, 26))):  # eaten by insects, from the margin and inside
        depth = 1.0 if rng.random() < 0.45 else rng.uniform(0.2, 0.9)
        at = outline[rng.integers(len(outline))] * depth
        if math.dist(at, base) > 0.15:  # the stalk must hold
            parts.append(Part((_blob(rng, rng.uniform(0.012, 0.075), 0.45) + at,), None, role="cut"))
    return parts


def _tuft(rng: Generator) -> list[Part]:
    """Hair bound at its neck: brush, broom, lock."""
    thin = rng.uniform(0.0022, 0.0034)
    parts: list[Part] = []
    neck, spread = rng.uniform(0.05, 0.12), rng.uniform(0.25, 0.8)
    handle = _wander(rng, np.array([0.0, 0.1]), math.pi / 2, 0.8, 0.02, 10)
    parts.append(_stroke(handle, np.linspace(neck * 0.9, neck * 0.6, 10), 0.25))
    for _ in range(int(rng.integers(220, 380))):
        off = rng.normal(0, 0.42)
        root = np.array([np.clip(off, -1, 1) * neck, 0.12])
        hair = _wander(rng, root, -math.pi / 2 + off * spread, rng.uniform(0.8, 1.35), 0.05, 16)
        parts.append(_stroke(hair, np.linspace(2.2 * thin, 0.6 * thin, 16), rng.random(), lift=rng.uniform(0, 0.03)))
    parts += [_stroke(np.array([[-neck, y], [neck, y]]), 0.014, 0.9, lift=0.06) for y in (0.1, 0.14, 0.2)]
    return parts


def _thistle(rng: Generator) -> list[Part]:
    """Bristles all round a body on a stem."""
    thin = rng.uniform(0.0022, 0.0034)
    parts: list[Part] = []
    body = rng.uniform(0.1, 0.28)
    stem = _wander(rng, np.array([0.0, 0.0]), math.pi / 2, 1.3, 0.03, 14)
    parts.append(_stroke(stem, np.linspace(0.022, 0.018, 14), 0.3))
    for _ in range(int(rng.integers(160, 280))):
        angle = rng.uniform(0, TAU)
        hair = _wander(rng, _polar(np.array(angle), 0.8 * body), angle, rng.uniform(0.35, 0.75), 0.03, 9)
        parts.append(_stroke(hair, np.linspace(1.6 * thin, 0.8 * thin, 9), rng.random(), lift=rng.uniform(0, 0.03)))
        if body < 0.18:
            for turn in rng.uniform(-1.1, 1.1, 4):
                plume = _wander(rng, hair[-1], angle + turn, 0.07, 0.1, 4)
                parts.append(_stroke(plume, 0.6 * thin, 0.9))
    return [*parts, Part((_blob(rng, body, 0.05),), None, 0.3, bevel=body)]


def _fur(rng: Generator) -> list[Part]:
    """A furry body."""
    thin = rng.uniform(0.0022, 0.0034)
    parts: list[Part] = []
    spine = _curve(np.array([[-0.9, 0.2], [-0.3, rng.normal(0, 0.2)], [0.4, rng.normal(0, 0.2)], [0.95, -0.1]]), 60)
    girth = 0.2 * np.sin(math.pi * np.linspace(0.08, 0.97, 60)) ** 0.6
    parts.append(_stroke(spine, girth, 0.3))
    for _ in range(int(rng.integers(500, 750))):
        k = int(rng.integers(1, 60))
        along = spine[k] - spine[k - 1]
        heading = math.atan2(along[1], along[0])
        across = rng.uniform(-1, 1)
        root = spine[k] + girth[k] * across * _polar(np.array(heading + math.pi / 2), 1.0)
        lean = heading + across * rng.uniform(0.4, 1.3)
        hair = _wander(rng, root, lean, rng.uniform(0.12, 0.34), 0.1, 9)
        parts.append(
            _stroke(hair, np.linspace(1.9 * thin, 0.5 * thin, 9), rng.random(), lift=girth[k] * (1 - across**2))
        )
    return parts


LETTERS = {  # skeletons: points x,y in hundredths of half the height, strokes apart by a slash
    "S": "50,-70 25,-95 -20,-95 -50,-65 -40,-25 0,0 42,28 50,65 20,95 -25,95 -55,70",
    "R": "-40,-100 -42,0 -40,100 / -40,-95 15,-95 50,-70 50,-30 15,-2 -40,0 / -5,0 30,50 65,100",
    "K": "-40,-100 -38,0 -40,100 / 60,-100 10,-35 -40,10 / -10,-15 30,45 70,100",
    "&": "65,95 10,25 -35,-35 -35,-75 0,-98 30,-72 10,-30 -40,10 -60,50 -35,90 10,95 50,55 65,10",
    "3": "-40,-65 -10,-95 30,-90 40,-50 10,-12 -10,-8 / -10,-8 30,5 50,45 30,88 -15,97 -50,70",
    "B": "-40,-100 -42,0 -40,100 / -40,-97 20,-95 45,-65 30,-20 -40,-5 / -40,-5 30,0 58,45 35,90 -40,97",
    "W": "-90,-95 -60,10 -45,95 / -45,95 -15,10 0,-70 / 0,-70 15,10 45,95 / 45,95 65,10 90,-95",
    "G": "50,-60 20,-95 -25,-92 -60,-40 -60,35 -25,92 25,92 50,60 50,15 / 10,15 40,13 70,15",
    "g": "40,-35 10,-60 -30,-50 -45,-10 -25,25 15,25 40,-10 / 42,-60 42,40 25,85 -15,95 -45,70",
}


def _glyph(rng: Generator) -> list[Part]:
    """Letters of a sign, written with a broad pen, spirals at loose ends; full or only an outline; several on rails."""
    pen, nib = rng.uniform(-1.0, -0.3), rng.uniform(0.06, 0.14)
    hollow, count = bool(rng.random() < 0.4), int(rng.choice([1, 2, 3]))
    paths = []
    for k in range(count):
        slant, across = rng.normal(0, 0.12), 1.75 * (k - 0.5 * (count - 1))
        for stroke in LETTERS[str(rng.choice(list(LETTERS)))].split(" / "):
            points = np.array([point.split(",") for point in stroke.split()], float) / 100
            points = (points + rng.normal(0, 0.03, points.shape)) @ np.array([[1, 0], [-slant, 1]])
            path = _curve(points + np.array([across, 0]), 22 * len(points))
            paths.append(path)
            for end, inner in ((path[-1], path[-5]), (path[0], path[4])):
                if rng.random() < 0.45:
                    hand, size = int(rng.choice([-1, 1])), rng.uniform(0.12, 0.3)
                    heading = math.atan2(end[1] - inner[1], end[0] - inner[0])
                    curl = _spiral(size, rng.uniform(0.6, 1.5), hand) - (size, 0)
                    paths.append(end + _turned(curl, heading - hand * math.pi / 2))
    wide = []
    for path in paths:
        step = np.gradient(path, axis=0)
        wide.append(nib * (0.2 + 0.8 * np.abs(np.sin(np.arctan2(step[:, 1], step[:, 0]) - pen))))
    parts = [
        _stroke(p, w, rng.uniform(0.4, 0.6), lift=0.02 * k) for k, (p, w) in enumerate(zip(paths, wide, strict=True))
    ]
    if hollow:
        rim = rng.uniform(0.014, 0.024)
        parts += [_stroke(p, np.maximum(w - rim, 0), role="cut") for p, w in zip(paths, wide, strict=True)]
        parts += [_stroke(p, 0.5 * rim, 0.6) for p in paths]  # holds the outline together
    if count > 1:
        reach = 0.95 * count
        parts += [_stroke(np.array([[-reach, y], [reach, y]]), rng.uniform(0.02, 0.035), 0.3) for y in (-0.8, 0.85)]
    return parts


def _wheel(rng: Generator) -> list[Part]:
    spokes = int(rng.choice([20, 24, 28, 32, 36]))
    tyre, wire = rng.uniform(0.03, 0.055), rng.uniform(0.003, 0.0045)
    cross = rng.uniform(0.4, 1.3)
    parts: list[Part] = []
    for k in range(spokes):
        if rng.random() < 0.03:
            continue
        rim_angle = k * TAU / spokes
        hub_angle = rim_angle + cross * (1 if k % 2 else -1)
        ends = np.stack([_polar(np.array(hub_angle), 0.085), _polar(np.array(rim_angle), 0.93)])
        parts.append(_stroke(ends, wire, 0.85, lift=0.01 * (k % 2)))
        nipple = np.stack([0.95 * ends[1] + 0.05 * ends[0], ends[1]])
        parts.append(_stroke(nipple, 1.8 * wire, 0.95))
    ring = 1 - tyre
    parts.append(_stroke(_circle(ring - tyre * 0.9), 0.4 * tyre, 0.75))
    parts.append(_stroke(_circle(ring), tyre, 0.08, lift=0.01))
    for k in range(90):  # tread
        a = k * TAU / 90
        knob = np.stack([_polar(np.array(a), ring + 0.55 * tyre), _polar(np.array(a + 0.02), ring + 1.12 * tyre)])
        parts.append(_stroke(knob, 0.009, 0.16, lift=0.02))
    if rng.random() < 0.5:
        slots = [_circle(0.012, tuple(_polar(np.array(a), 0.24)), 16) for a in np.linspace(0, TAU, 24, endpoint=False)]
        inner = [_polar(np.linspace(a + 0.12, a + 0.8, 14), 0.19) for a in np.linspace(0, TAU, 6, endpoint=False)]
        windows = [np.vstack([arc, 0.6 * arc[::-1]]) for arc in inner]
        parts.append(Part((_circle(0.28), *slots, *windows), None, 0.7, bevel=0.006, lift=0.02))
    parts.append(Part((_circle(0.105), _circle(0.03)), None, 0.6, bevel=0.04, lift=0.04))
    valve = rng.uniform(0, TAU)
    parts.append(_stroke(_polar(np.full(2, valve), np.array([0.78, 0.93])), 0.007, 0.2))
    return _tilted(rng, parts, 1.0)


def _feather(rng: Generator) -> list[Part]:
    curve = rng.uniform(-0.35, 0.35)
    shaft = _curve(np.array([[0, 1.15], [0.3 * curve, 0.5], [curve, -0.3], [0.6 * curve, -1.0]]), 240)
    parts: list[Part] = []
    bands = rng.random() < 0.6
    for side in (-1, 1):
        wide = rng.uniform(0.2, 0.42)
        clump = 0.0
        for k in range(30, 240):
            t = (k - 30) / 209
            if rng.random() < 0.09:  # barbs hold together until the vane is split
                clump = rng.normal(0, 0.16)
            downy = t < 0.16
            heading = math.atan2(*(shaft[k] - shaft[k - 1])[::-1])
            reach = wide * (math.sin(math.pi * min(0.12 + 0.8 * t, 1)) ** 0.7) * rng.uniform(0.93, 1.0)
            lean = heading + side * (1.0 - 0.45 * t + clump + (rng.normal(0, 0.5) if downy else 0))
            barb = _wander(rng, shaft[k], lean, reach, 0.16 if downy else 0.012, 10)
            barb[:, :] += np.linspace(0, 1, 10)[:, None] ** 2 * 0.25 * reach * (shaft[k] - shaft[k - 1]) / 0.009
            tone = 0.5 + 0.4 * math.sin(34 * t + 2.0 * side) * bands + rng.normal(0, 0.07)
            width = (0.004 if downy else 0.0072) * np.linspace(1, 0.42, 10)
            parts.append(_stroke(barb, width, float(np.clip(tone, 0, 1)), lift=0.002 * (k % 2)))
    return [*parts, _stroke(shaft, np.linspace(0.017, 0.004, 240), 0.95, lift=0.02)]


def _coral(rng: Generator) -> list[Part]:
    """A sea fan: tips grow where there is room; a limb is as thick as what it carries."""
    gap, limit = rng.uniform(0.035, 0.055), 1100
    place = np.zeros((limit, 2))
    parent, heading, tips, count = [-1], [-math.pi / 2], [0], 1
    while tips and count < limit - 1:
        tip = tips.pop(int(rng.integers(len(tips))))
        for turn in (rng.normal(0, 0.25), rng.choice([-1, 1]) * rng.uniform(0.5, 0.9)):
            angle = heading[tip] + turn
            new = place[tip] + _polar(np.array(angle), gap)
            apart = np.sum((place[:count] - new) ** 2, axis=1)
            apart[tip] = 1.0
            if apart.min() < (0.82 * gap) ** 2 or new[1] > 0.25:
                continue
            place[count] = new
            parent.append(tip)
            heading.append(0.9 * angle + 0.1 * math.atan2(new[1], new[0]))
            tips.append(count)
            count += 1
    load = np.ones(count)
    for k in range(count - 1, 0, -1):
        load[parent[k]] += load[k]
    radius = rng.uniform(0.0045, 0.007) * load**0.33
    parts = []
    for k in range(1, count):
        ends = np.stack(
            [place[parent[k]], 0.5 * (place[parent[k]] + place[k]) + rng.normal(0, 0.06 * gap, 2), place[k]]
        )
        parts.append(
            _stroke(ends, np.linspace(min(radius[parent[k]], 1.3 * radius[k]), radius[k], 3), rng.uniform(0.3, 0.7))
        )
    return [*parts, _stroke(np.array([[0, 0], [0.0, 0.14]]), np.array([1.0, 1.6]) * radius[0], 0.4)]


SHAPES: dict[str, tuple[Callable[[Generator], list[Part]], ...]] = {
    "branch": (_branch,),
    "wire": (_cable, _harness, _coil),
    "lattice": (_fence, _mesh, _web),
    "gear": (_gear,),
    "leaf": (_leaf, _leaf, _fern),
    "strands": (_tuft, _thistle, _fur),
    "glyph": (_glyph,),
    "wheel": (_wheel,),
    "feather": (_feather,),
    "coral": (_coral,),
}
KINDS = tuple(SHAPES)
UPRIGHT = ("branch", "lattice", "coral", "glyph")


def _shape(rng: Generator, name: str) -> list[Part]:
    styles = SHAPES[name]
    return styles[rng.integers(len(styles))](rng)


# --- From shapes to pixels --------------------------------------------------------------------------------------------


def _place(parts: list[Part], shape: tuple[int, int], centre: Array, span: float, angle: float) -> list[Part]:
    """The shape in pixels: turned, its box ``span`` times as large as fits the picture, centred on ``centre``.

    centre: (x, y) in shares of width and height.
    """
    points = _turned(_points(parts), angle)
    solid = np.concatenate([np.full(sum(map(len, part.rings)), part.role == "solid") for part in parts])
    low, high = points[solid].min(axis=0), points[solid].max(axis=0)
    frame = np.array([shape[1], shape[0]])
    scale = span * float((frame / (high - low)).min())
    placed = _moved(parts, (points - 0.5 * (low + high)) * scale + centre * frame, scale)
    thin = MIN_RADIUS * max(shape)
    return [
        replace(part, radius=np.maximum(part.radius, thin))
        if part.radius is not None and part.role == "solid"
        else part
        for part in placed
    ]


def _boxes(parts: list[Part]) -> Array:
    """(N, 4) int: left, top, right, bottom of what each part can touch, two pixels of margin included."""
    points = _points(parts)
    starts = np.cumsum([0, *(sum(map(len, part.rings)) for part in parts[:-1])])
    wide = np.array([2.0 if part.radius is None else 2.0 + float(part.radius.max()) for part in parts])[:, None]
    low, high = np.minimum.reduceat(points, starts), np.maximum.reduceat(points, starts)
    return np.concatenate([np.floor(low - wide), np.ceil(high + wide)], axis=1).astype(int)


def _filler(parts: list[Part], fine: int) -> Callable[..., None]:
    """A function that paints part ``k`` onto a canvas ``fine`` times as large as the picture.

    fill(canvas, k, value, share, origin): of a stroke only the inner ``share`` of its width; the canvas starts at pixel
    ``origin`` (x, y). Outlines of all strokes are computed together, since a shape may have thousands.
    """
    lines = [part for part in parts if part.radius is not None]
    owners = [k for k, part in enumerate(parts) if part.radius is not None]
    lengths = [len(part.rings[0]) for part in lines]
    first = np.cumsum([0, *lengths])
    spans = dict(zip(owners, zip(first[:-1].tolist(), first[1:].tolist(), strict=True), strict=True))
    path = _points(lines) if lines else np.zeros((0, 2))
    half = np.concatenate([part.radius for part in lines if part.radius is not None]) if lines else np.zeros(0)
    step = np.diff(path, axis=0, append=np.zeros((min(len(path), 1), 2)))
    step[first[1:] - 1] = 0
    along = step + np.roll(step, 1, axis=0)
    along /= np.maximum(np.hypot(along[:, :1], along[:, 1:]), 1e-9)
    across = np.stack([-along[:, 1], along[:, 0]], axis=1)
    cosine = np.sum(step * np.roll(step, 1, axis=0), axis=1)
    sharp = cosine < 0.95 * np.hypot(*step.T) * np.hypot(*np.roll(step, 1, axis=0).T)
    sharp[first[:-1]] = sharp[first[1:] - 1] = True  # both ends are round
    corners = {k: (start + np.flatnonzero(sharp[start:stop])).tolist() for k, (start, stop) in spans.items()}
    drawn: dict[float, tuple[Array, Array]] = {}

    def fixed(points: Array) -> Array:
        return np.asarray(np.rint((points * fine - 0.5) * (1 << SHIFT)), np.int32)

    def outlines(share: float) -> tuple[Array, Array]:
        if share not in drawn:
            wide = np.maximum(half * share - 0.5 / fine, 0.0)  # OpenCV fills half a pixel beyond an outline
            left, right = fixed(path + across * wide[:, None]), fixed(path - across * wide[:, None])
            quads = np.stack([left[:-1], left[1:], right[1:], right[:-1]], axis=1)
            drawn[share] = quads, np.rint(wide * fine * (1 << SHIFT)).astype(int)
        return drawn[share]

    middle = fixed(path)

    def fill(
        canvas: Array, k: int, value: tuple[float, ...], share: float = 1.0, origin: tuple[int, int] = (0, 0)
    ) -> None:
        move = np.array(origin, np.int32) * (fine << SHIFT)
        if k not in spans:
            cv2.fillPoly(canvas, [fixed(ring) - move for ring in parts[k].rings], value, cv2.LINE_8, SHIFT)
            return
        start, stop = spans[k]
        quads, wide = outlines(share)
        for quad in quads[start : stop - 1] - move:
            cv2.fillConvexPoly(canvas, quad, value, cv2.LINE_8, SHIFT)
        for corner in corners[k]:
            cv2.circle(canvas, (middle[corner] - move).tolist(), int(wide[corner]), value, -1, cv2.LINE_8, SHIFT)

    return fill


def _coverage(parts: list[Part], shape: tuple[int, int]) -> Array:
    """Share of each pixel that the parts cover: uint8, (H, W), 255 = all; sixteen samples a pixel.

    OpenCV counts the samples under an outline too: areas come out an eighth of a pixel fuller. The picture is blended
    with the same numbers, so mask and picture agree.
    """
    canvas = np.zeros((shape[0] * 4, shape[1] * 4), np.uint8)
    fill = _filler(parts, 4)
    for k, part in enumerate(parts):
        if part.role != "paint":
            fill(canvas, k, (255.0 if part.role == "solid" else 0.0,))
    return np.asarray(cv2.resize(canvas, shape[::-1], interpolation=cv2.INTER_AREA))


def _surface(parts: list[Part], shape: tuple[int, int], fine: int = 2) -> tuple[Array, Array]:
    """Tone in [0, 1] and height in pixels of what one sees from above, both float32, (H, W); continued past the rim."""
    canvas = np.zeros((shape[0] * fine, shape[1] * fine, 2), np.int16)  # height in eighths, 1 + tone * 1000
    fill = _filler(parts, fine)
    boxes = np.clip(_boxes(parts), 0, [shape[1], shape[0], shape[1], shape[0]]).tolist()
    for k, (part, (left, top, right, bottom)) in enumerate(zip(parts, boxes, strict=True)):
        if part.role == "cut" or left == right or top == bottom:
            continue
        tone = 1 + round(part.tone * 1000)
        if part.role == "solid" and part.radius is not None:
            radius = float(part.radius.max())
            shares = (1.0,) if radius * fine < 1.5 else (1.0, 0.6) if radius * fine < 5 else (1.0, 0.88, 0.7, 0.45, 0.2)
            for share in shares:
                fill(canvas, k, ((part.lift + radius * math.sqrt(1.04 - share**2)) * 8, tone), share)
            continue
        if part.role == "solid" and part.bevel * fine <= 1:
            fill(canvas, k, (part.lift * 8, tone))
            continue
        window = canvas[top * fine : bottom * fine, left * fine : right * fine]
        mask = np.zeros(window.shape[:2], np.uint8)
        fill(mask, k, (1.0,), 1.0, (left, top))
        if part.role == "paint":
            marked = (mask > 0) & (window[..., 1] > 0)
            window[..., 1][marked] = tone
            window[..., 0][marked] += np.int16(part.lift * 8)
            continue
        inwards = np.minimum(cv2.distanceTransform(mask, cv2.DIST_L2, 3) / (fine * part.bevel), 1)
        rise = 8 * (part.lift + 0.6 * part.bevel * inwards * (1 - 0.5 * inwards))
        both = np.stack([rise, np.full_like(rise, tone)], axis=2).astype(np.int16)
        np.copyto(window, both, where=mask[..., None] > 0)
    seen = (canvas[..., 1] > 0).view(np.uint8) * 255
    cover = np.asarray(cv2.resize(seen, shape[::-1], interpolation=cv2.INTER_AREA), np.float32) / 255
    mean = np.asarray(cv2.resize(canvas, shape[::-1], interpolation=cv2.INTER_AREA), np.float32)
    if fine > 1:
        cover, mean = np.asarray(cv2.blur(cover, (3, 3))), np.asarray(cv2.blur(mean, (3, 3)))
    cover += 1e-6
    return np.clip((mean[..., 1] / cover - 1) / 1000, 0, 1), mean[..., 0] / cover / 8


def _noise(
    rng: Generator, shape: tuple[int, int], cell: float | tuple[float, float], rough: float = 0.55, finest: float = 2.0
) -> Array:
    """Noise of many octaves, float32, (H, W), mean 0 and deviation 1.

    cell: (rows, cols) in pixels of the largest features; each octave halves it and weighs ``rough`` of the one before.
    """
    rows, cols = cell if isinstance(cell, tuple) else (cell, cell)
    grid = [math.ceil(shape[0] / rows) + 2, math.ceil(shape[1] / cols) + 2]
    field: Array = rng.standard_normal(grid, np.float32)
    weight = 1.0
    while min(rows, cols) > finest and max(rows, cols) > 2 * finest:
        rows, cols, weight = max(rows / 2, 1.0), max(cols / 2, 1.0), weight * rough
        grid = [math.ceil(shape[0] / rows) + 2, math.ceil(shape[1] / cols) + 2]
        grown: Array = cv2.resize(field, grid[::-1], interpolation=cv2.INTER_CUBIC)
        field = grown + weight * rng.standard_normal(grid, np.float32)
    if tuple(grid) != shape:
        field = cv2.resize(field, shape[::-1], interpolation=cv2.INTER_CUBIC)
    return np.asarray((field - field.mean()) / (field.std() + 1e-6), np.float32)


def _blur(image: Array, sigma: float) -> Array:
    """Gaussian blur; a wide one works on a smaller copy."""
    if sigma < 0.2:
        return image
    shrink = int(sigma // 2)
    if shrink < 2:
        return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma))
    size = image.shape[1::-1]
    small = cv2.resize(image, (max(size[0] // shrink, 1), max(size[1] // shrink, 1)), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(cv2.GaussianBlur(small, (0, 0), sigma / shrink), size, interpolation=cv2.INTER_CUBIC))


def _defocus(image: Array, radius: float) -> Array:
    """What a lens does to things out of focus: every point becomes a disc of ``radius`` pixels."""
    if radius < 0.4:
        return image
    shrink = max(int(radius / 3), 1)
    size = image.shape[1::-1]
    small = image
    if shrink > 1:
        small = cv2.resize(image, (max(size[0] // shrink, 1), max(size[1] // shrink, 1)), interpolation=cv2.INTER_AREA)
    reach = math.ceil(radius / shrink)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disc = np.clip(radius / shrink + 0.5 - np.hypot(x, y), 0, 1).astype(np.float32)
    small = cv2.filter2D(small, -1, disc / disc.sum(), borderType=cv2.BORDER_REFLECT)
    return np.asarray(cv2.resize(small, size, interpolation=cv2.INTER_LINEAR) if shrink > 1 else small)


# --- Materials and light ----------------------------------------------------------------------------------------------

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


class Look(NamedTuple):
    """What an object may be made of.

    pairs: names of colours for tone 0 and tone 1; bump: height of its grain over the grain's size; gloss: share of
    mirrored light; grain: size of the largest grain, in units of the longer side; far: how often it stands before its
    background rather than lies on it.
    """

    pairs: str
    bump: float
    gloss: float
    grain: float
    far: float


METAL = "slate steel, rust copper, rubber slate, brass straw, rust stone, steel concrete"
LOOKS = {
    "branch": Look("bark pale_bark, soil bark, slate stone, bark straw, moss pale_bark", 0.30, 0.0, 0.02, 0.8),
    "wire": Look("rubber slate, red rose, blue steel, stone linen, rust copper", 0.03, 0.35, 0.03, 0.4),
    "lattice": Look(METAL, 0.10, 0.20, 0.02, 0.85),
    "gear": Look(METAL, 0.10, 0.30, 0.03, 0.4),
    "leaf": Look("green pale_green, autumn straw, dry_red autumn, moss straw, blue_green linen", 0.12, 0.12, 0.03, 0.5),
    "strands": Look("soil bark, bark straw, stone linen, slate stone, autumn bone", 0.05, 0.06, 0.08, 0.65),
    "glyph": Look(METAL + ", red rose, linen bone, blue slate", 0.12, 0.15, 0.03, 0.4),
    "wheel": Look("rubber steel, rubber concrete, soil stone", 0.06, 0.25, 0.03, 0.6),
    "feather": Look("slate linen, bark bone, rubber stone, soil straw, stone linen", 0.03, 0.05, 0.06, 0.5),
    "coral": Look("rose bone, dry_red rose, autumn straw, violet rose, stone linen", 0.30, 0.0, 0.012, 0.6),
}
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


def _shade(tone: Array, height: Array, colours: Array, patches: Array, light: Light, gloss: float, side: int) -> Array:
    """Colour of a lit surface: float32, (H, W, 3), about [0, 1].

    colours: (3, 3) RGB for tone 0, tone 1 and patches 1; light: unit vector (x, y, z) towards the lamp; side: of the
    whole picture in pixels. Lambert's law, a little light from everywhere, darkness in hollows, and a mirrored lamp.
    """
    right = cv2.Sobel(height, cv2.CV_32F, 1, 0, ksize=3, scale=1 / 8)
    down = cv2.Sobel(height, cv2.CV_32F, 0, 1, ksize=3, scale=1 / 8)
    shorten = 1 / np.sqrt(right * right + down * down + 1)
    facing = np.maximum((light[2] - right * light[0] - down * light[1]) * shorten, 0)
    reach = side / 150
    hollow = np.clip(1 + (height - _blur(height, reach)) * (0.5 / reach), 0.45, 1.15)
    brightness = (0.42 + (0.58 / light[2]) * facing) * hollow
    low, high, patch = colours.astype(np.float32)
    albedo = low + tone[..., None] * (high - low)
    image = _over(albedo, patch, patches)
    image *= brightness[..., None]
    if gloss:
        long = math.hypot(light[0], light[1], light[2] + 1)
        half = [value / long for value in (light[0], light[1], light[2] + 1)]
        mirror = np.maximum((half[2] - right * half[0] - down * half[1]) * shorten, 0)
        mirror *= mirror
        mirror *= mirror
        image += (gloss * mirror * mirror * mirror)[..., None]
    return image


def _step(field: Array, low: float, high: float) -> Array:
    """Smooth step from 0 below ``low`` to 1 above ``high``."""
    t = np.clip((field - low) / (high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t))


def _ground(rng: Generator, name: str, shape: tuple[int, int]) -> tuple[Array, Array]:
    """Tone in [0, 1] and height in pixels of a background surface, both float32, (H, W)."""
    side = max(shape)
    y, x = (axis.astype(np.float32) / side for axis in np.mgrid[: shape[0], : shape[1]])
    if name == "haze":  # so far away that nothing but light is left
        return np.clip(0.5 + 0.3 * _noise(rng, shape, side / 2, 0.6, side / 40), 0, 1), np.zeros(shape, np.float32)
    if name in ("leaves", "gravel", "twigs"):
        tone, height = _surface(_litter(rng, name, shape), shape, 1)
        grit = _noise(rng, shape, side / 60, 0.7)
        return np.clip(tone + 0.1 * grit, 0, 1), _blur(height, side / 600) + 0.0007 * side * grit
    fine = _noise(rng, shape, side / rng.uniform(30, 90), 0.7)
    coarse = _noise(rng, shape, side / rng.uniform(2, 5), 0.5)
    if name == "stone":
        crack = _step(-np.abs(_noise(rng, shape, side / rng.uniform(2, 6), 0.55)), -0.05, 0.0)
        veins = _step(-np.abs(coarse), -0.25, 0.0) * 0.25
        tone = 0.5 + 0.13 * fine + 0.14 * coarse + veins - 0.5 * crack
        return np.clip(tone, 0, 1), side * (0.0013 * fine + 0.004 * coarse - 0.004 * crack)
    if name == "wood":
        grain = _noise(rng, shape, (side / 200, side / 6), 0.6)
        board = y * rng.uniform(2, 7)
        shift = np.floor(board)
        rings = (y + 0.02 * coarse + 0.01 * np.sin(9 * x + 2.7 * shift) + 0.31 * shift) * rng.uniform(40, 120)
        band = np.abs(rings % 1 - 0.5) * 2
        gap = _step(-np.abs(board % 1 - 0.5), -0.02, 0.0)
        tone = 0.3 + 0.35 * band + 0.12 * grain + 0.07 * np.sin(51 * shift) - gap
        return np.clip(tone, 0, 1), side * (0.0008 * grain + 0.0006 * band + 0.0006 * fine - 0.01 * gap)
    if name == "fabric":
        pitch = rng.uniform(70, 240)
        sway = 0.3 * coarse
        u, v = x * pitch + sway, y * pitch + 0.3 * _noise(rng, shape, side / 3, 0.4)
        warp, weft = np.abs(np.sin(math.pi * u)), np.abs(np.sin(math.pi * v))
        over = ((np.floor(u) + np.floor(v)) % 2).astype(np.float32)
        thread = over * warp + (1 - over) * weft
        thick = _noise(rng, shape, (side / 5, side / pitch), 0.7) * over + _noise(
            rng, shape, (side / pitch, side / 5), 0.7
        ) * (1 - over)
        stripe = _step(np.sin(x * rng.uniform(8, 60)) + np.sin(y * rng.uniform(8, 60)), 0.2, 0.5) * rng.choice(
            [0, 0.3, 0.5]
        )
        folds = _noise(rng, shape, (side / 2, side / 4), 0.35)
        return np.clip(0.15 + 0.35 * thread + 0.1 * thick + stripe, 0, 1), side * (
            0.7 / pitch * 0.35 * thread + 0.02 * folds
        )
    rows = rng.uniform(8, 18)  # bricks
    row = y * rows + 0.02 * coarse
    column = x * rows / 2.6 + 0.5 * (np.floor(row) % 2) + 0.02 * fine
    u, v = np.abs(column % 1 - 0.5) * 2.6, np.abs(row % 1 - 0.5)
    mortar = np.maximum(_step(u, 1.3 - 0.1, 1.3 - 0.04), _step(v, 0.5 - 0.09, 0.5 - 0.03))
    own = np.sin(np.floor(row) * 12.9898 + np.floor(column) * 78.233) * 43758.547
    tone = (0.25 + 0.4 * (own % 1) + 0.1 * fine + 0.08 * coarse) * (1 - mortar) + mortar * (0.8 + 0.08 * fine)
    return np.clip(tone, 0, 1).astype(np.float32), (side * (0.0012 * fine - 0.006 * mortar)).astype(np.float32)


def _litter(rng: Generator, name: str, shape: tuple[int, int]) -> list[Part]:
    """What lies about on the ground, in pixels; many sizes, the later ones on top."""
    side = max(shape)
    scale = {"leaves": 0.06, "gravel": 0.03, "twigs": 0.16}[name] * rng.uniform(0.6, 1.7) * side
    count = min(int({"leaves": 6, "gravel": 5, "twigs": 9}[name] * shape[0] * shape[1] / scale**2) + 30, 1800)
    parts: list[Part] = []
    for _ in range(count):
        at = rng.uniform(-0.05, 1.05, 2) * shape[::-1]
        size = scale * rng.uniform(0.25, 1) ** 1.5 * 1.6
        tone, lift, angle = rng.uniform(0, 1), rng.uniform(0, 0.02) * side, rng.uniform(0, TAU)
        if name == "twigs":
            path = _wander(rng, at, angle, 2 * size, 0.1, 9)
            parts.append(_stroke(path, np.linspace(1, 0.4, 9) * size * rng.uniform(0.01, 0.05), tone, lift=0.5 * lift))
        elif name == "leaves":
            leaf, rib = _blade(rng, at, angle, size, tone)
            fold = np.concatenate([rib.rings[0], rib.rings[0][::-1]])
            tilt = rng.uniform(0.02, 0.2) * size
            parts += [
                replace(leaf, rings=(fold + (leaf.rings[0] - fold) * part,), bevel=0.0, lift=lift + tilt * (1 - part))
                for part in (1, 0.8, 0.6, 0.4, 0.2)
            ]
            parts.append(replace(rib, lift=0.004 * side))
        else:
            stone = _turned(_blob(rng, 0.5 * size, 0.12, 18) * (1, rng.uniform(0.6, 1)), angle)
            parts += [
                Part((at + stone * part,), None, tone, lift=0.3 * (lift + size * math.sqrt(1.02 - part**2)))
                for part in (1, 0.95, 0.87, 0.75, 0.57, 0.33)
            ]
    return parts


# --- The scene --------------------------------------------------------------------------------------------------------


class Layers(NamedTuple):
    """A scene before the lens: ``light = share * thing + (1 - share) * rest`` with ``share = coverage / 255``.

    thing, rest: float32, (H, W, 3), RGB, about [0, 1]; coverage: uint8, (H, W).
    """

    thing: Array
    rest: Array
    coverage: Array


def kind(seed: int, index: int) -> str:
    """Kind of object of a sample; each run of ``len(KINDS)`` samples shows every kind once."""
    _check(seed, index)
    order = np.random.default_rng((seed, index // len(KINDS), 0)).permutation(len(KINDS))
    return KINDS[int(order[index % len(KINDS)])]


def _check(seed: int, index: int, size: int = 1024) -> None:
    if seed < 0 or index < 0:
        raise HrsegError(f"procedural set: seed {seed}, index {index}: both must be 0 or more")
    if not 64 <= size <= 4096:
        raise HrsegError(f"procedural set: size {size}: the longer side must have 64 to 4096 pixels")


def _frame(aspect: float, size: int) -> tuple[int, int]:
    return round(size / max(aspect, 1)), round(size * min(aspect, 1))


def _object(seed: int, index: int, aspect: float, size: int) -> list[Part]:
    """The object, in pixels. Drawn again until it fills a fair share of the picture, judged on a small copy."""
    name = kind(seed, index)
    small = _frame(aspect, 160)
    tries = []
    for attempt in range(6):
        rng = np.random.default_rng((seed, index, 1, attempt))
        parts = _shape(rng, name)
        angle = rng.normal(0, 0.25) if name in UPRIGHT else rng.uniform(0, TAU)
        pose = 0.5 + rng.normal(0, 0.03, 2), rng.uniform(0.78, 1.05), angle
        share = float(_coverage(_place(parts, small, *pose), small).mean()) / 255
        tries.append((max(0.04 - share, share - 0.35, 0), attempt, parts, pose))
        if tries[-1][0] == 0:
            break
    _, _, parts, pose = min(tries, key=lambda one: one[:2])
    return _place(parts, _frame(aspect, size), *pose)


def _palette(rng: Generator, pairs: str) -> Array:
    """(3, 3) colours: one of the named pairs, a little off, and room for a third."""
    pair = str(rng.choice(pairs.split(", "))).split()
    return np.clip(np.array([COLOURS[name] for name in (*pair, pair[0])]) + rng.normal(0, 0.025, (3, 3)), 0.03, 0.95)


def _over(below: Array, above: Array, alpha: Array) -> Array:
    return np.asarray(below + (above - below) * alpha[..., None], np.float32)


class Sprite(NamedTuple):
    """A lit shape in its window of the picture: colour float32, (h, w, 3); cover uint8, (h, w), 255 = all."""

    window: tuple[slice, slice]
    colour: Array
    cover: Array


def _sprite(
    rng: Generator,
    parts: list[Part],
    shape: tuple[int, int],
    look: Look,
    colours: Array,
    light: Light,
    margin: float = 0,
) -> Sprite:
    """The shape in a material. margin: room in pixels around it, for a blur."""
    side = max(shape)
    boxes = _boxes(parts)
    left, top = np.maximum(boxes[:, :2].min(axis=0) - math.ceil(margin), 0).tolist()
    right, bottom = np.minimum(boxes[:, 2:].max(axis=0) + math.ceil(margin), shape[::-1]).tolist()
    shape = (bottom - top, right - left)
    parts = _moved(parts, _points(parts) - (left, top))
    tone, height = _surface(parts, shape)
    grain = _noise(rng, shape, look.grain * side, 0.7)
    stain = _noise(rng, shape, side / 4, 0.6)
    tone = np.clip(tone + 0.14 * grain + 0.12 * stain, 0, 1)
    height = _blur(height, 0.6) + grain * (0.12 * look.bump * look.grain * side)
    colour = _shade(tone, height, colours, 0.5 * _step(stain, 0.2, 1.8), light, look.gloss, side)
    return Sprite((slice(top, bottom), slice(left, right)), colour, _coverage(parts, shape))


def layers(seed: int, index: int, size: int) -> Layers:
    """The scene of :func:`draw` before lens and sensor. Raises what that raises."""
    _check(seed, index, size)

    def dice(stage: int) -> Generator:
        return np.random.default_rng((seed, index, stage))

    rng = dice(2)
    aspect = float(rng.choice(ASPECTS))
    shape = _frame(aspect, size)
    name = kind(seed, index)
    look, ground = LOOKS[name], str(rng.choice(list(GROUNDS)))
    azimuth, elevation = rng.uniform(0, TAU), rng.uniform(0.5, 1.1)
    light = (math.cos(azimuth) * math.cos(elevation), math.sin(azimuth) * math.cos(elevation), math.sin(elevation))
    far = bool(rng.random() < look.far)  # the object stands before its background, or lies on it
    own, below = _palette(rng, look.pairs), _palette(rng, GROUNDS[ground])
    own[2], below[2] = below[rng.integers(2)], own[rng.integers(2)]  # each has patches in a colour of the other
    drop = size * (rng.uniform(0.02, 0.08) if far else rng.uniform(0.004, 0.015))
    shade = rng.uniform(0.1, 0.35) if far else rng.uniform(0.35, 0.65)

    window, colour, cover = _sprite(dice(3), _object(seed, index, aspect, size), shape, look, own, light)
    whole = np.zeros(shape, np.uint8)
    whole[window] = cover
    alpha = whole.astype(np.float32) / 255

    rest = _backdrop(dice(4), ground, shape, below, light, far)
    _add_distractors(dice(5), name, rest, own, light, far)
    move = np.array([[1, 0, -light[0] * drop], [0, 1, -light[1] * drop]], np.float32)
    rest *= 1 - shade * _blur(cv2.warpAffine(alpha, move, shape[::-1]), 0.35 * drop)[..., None]
    thing = np.zeros_like(rest)
    thing[window] = colour * _gain(dice(6), colour, rest[window], alpha[window])
    lamp = _lamp(dice(7), shape)
    thing *= lamp
    rest *= lamp

    front = _occluder(dice(8), shape, below, light, whole)
    if front is not None:
        window, colour, cover = front
        share = cover.astype(np.float32) / 255
        seen, hidden = alpha[window], rest[window]
        outside = share + (1 - share) * (1 - seen)
        mixed = colour * share[..., None] + hidden * ((1 - share) * (1 - seen))[..., None]
        np.copyto(hidden, mixed / np.maximum(outside, 1e-3)[..., None], where=outside[..., None] > 1e-3)
        whole[window] = np.rint(whole[window] * (1 - share))
    return Layers(thing, rest, whole)


def _backdrop(rng: Generator, ground: str, full: tuple[int, int], colours: Array, light: Light, far: bool) -> Array:
    """What is behind everything: float32, (H, W, 3)."""
    shape = (-(-full[0] // 2), -(-full[1] // 2)) if far else full  # half the pixels hold all that a blur leaves
    side = max(shape)
    tone, height = _ground(rng, ground, shape)
    patches = 0.6 * _step(_noise(rng, shape, side / rng.uniform(3, 10), 0.6), 0.0, 2.0)
    if ground == "haze":
        patches = _blur(patches, side / 50)
    image = _shade(tone, height, colours, patches, light, 0.0, side)
    if ground not in ("haze", "leaves") and rng.random() < 0.4:  # seen at a slant
        h, w = shape
        pinch = rng.uniform(0.2, 0.6) * w
        corners = np.array([[0, 0], [w, 0], [w, h], [0, h]], np.float32)
        towards = np.array([[0, 0], [w, 0], [w + pinch, h], [-pinch, h]], np.float32)
        slant = cv2.getPerspectiveTransform(corners, towards)
        image = cv2.warpPerspective(image, slant, (w, h), borderMode=cv2.BORDER_REFLECT)
    if not far:
        return image
    near, away = sorted(rng.uniform(1.5, 11, 2) * side / 1024)
    fade = np.repeat(np.linspace(1, 0, shape[0], dtype=np.float32)[:, None], shape[1], axis=1)
    image = _over(_defocus(image, near), _defocus(image, away), fade)
    image = _over(image, image.mean(axis=(0, 1)), 0.12 * fade)  # the air between
    return np.asarray(cv2.resize(image, full[::-1], interpolation=cv2.INTER_LINEAR))


def _add_distractors(rng: Generator, name: str, rest: Array, colours: Array, light: Light, far: bool) -> None:
    """Up to three more of the same kind behind the object, none of it to be segmented, painted onto ``rest``."""
    shape = (rest.shape[0], rest.shape[1])
    side = max(shape)
    for _ in range(int(rng.integers(0, 4))):
        parts = _place(_shape(rng, name), shape, rng.uniform(0, 1, 2), rng.uniform(0.35, 0.9), rng.uniform(0, TAU))
        other = np.clip((colours + rng.normal(0, 0.05, 3)) * rng.uniform(0.75, 1.2), 0.02, 0.95)
        soft = (rng.uniform(0.8, 5) if far else rng.uniform(0, 1)) * side / 1024
        shade = rng.uniform(0.2, 0.5)
        window, colour, cover = _sprite(rng, parts, shape, LOOKS[name], other, light, soft + 0.02 * side)
        share = cover.astype(np.float32) / 255
        colour, share = _defocus(colour * share[..., None], soft), _defocus(share, soft)
        dark = 1 - shade * _blur(share, 0.006 * side)
        rest[window] = rest[window] * (dark * (1 - share))[..., None] + colour


def _gain(rng: Generator, colour: Array, rest: Array, alpha: Array) -> float:
    """Brightness factor that sets the object off from its surroundings by a drawn, mostly small amount.

    The amount grows with the unrest of the surroundings, or the eye would not find the object either.
    """
    inside = float((colour.mean(axis=2) * alpha).sum() / max(float(alpha.sum()), 1))
    around = np.clip(4 * _blur(alpha, max(alpha.shape) / 60), 0, 1) * (1 - alpha)
    weight = max(float(around.sum()), 1)
    grey = rest.mean(axis=2)
    outside = float((grey * around).sum()) / weight
    unrest = math.sqrt(float(((grey - outside) ** 2 * around).sum()) / weight)
    gap = rng.uniform(0.08, 0.2) + 0.8 * unrest
    levels = [level for level in (outside - gap, outside + gap) if 0.08 < level < 0.75]
    wanted = min(levels or [outside + gap], key=lambda level: abs(level - inside))
    if abs(inside - outside) > gap:
        wanted = 0.5 * (wanted + inside)
    return wanted / max(inside, 0.02)


def _lamp(rng: Generator, shape: tuple[int, int]) -> Array:
    """Uneven light over the whole picture: float32, (H, W, 1). At times sun through leaves."""
    side = max(shape)
    lamp = 1 + 0.08 * _noise(rng, shape, side / 2, 0.4, side / 16)
    if rng.random() < 0.25:
        spots = _step(_noise(rng, shape, side / rng.uniform(3, 8), 0.35, side / 30), -0.9, 1.1)
        lamp *= 0.65 + 0.5 * spots
    y = np.linspace(-1, 1, shape[0], dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, shape[1], dtype=np.float32)
    return (lamp * (1 - 0.12 * (x * x + y * y)))[..., None]


def _occluder(rng: Generator, shape: tuple[int, int], colours: Array, light: Light, whole: Array) -> Sprite | None:
    """At times something before the object, a little out of focus; never over more than a quarter of it."""
    if rng.random() < 0.6:
        return None
    side = max(shape)
    parts: list[Part] = []
    if rng.random() < 0.5:  # blades of grass
        for _ in range(int(rng.integers(2, 8))):
            root = np.array([rng.uniform(0, 1) * shape[1], shape[0] * 1.05])
            path = _wander(rng, root, -math.pi / 2 + rng.normal(0, 0.35), rng.uniform(0.4, 1.1) * side, 0.06, 24)
            parts.append(_stroke(path, np.linspace(1, 0.15, 24) * rng.uniform(0.004, 0.012) * side, rng.random()))
    else:  # a twig with leaves that reaches in from one edge
        at = rng.uniform(0, TAU)
        start = (0.5 + 0.6 * _polar(np.array(at), 1.0)) * shape[::-1]
        path = _wander(rng, start, at + math.pi + rng.normal(0, 0.3), rng.uniform(0.5, 0.9) * side, 0.12, 16)
        parts.append(_stroke(path, np.linspace(0.008, 0.003, 16) * side, 0.2))
        for k in range(3, 16):
            angle = at + math.pi + float(rng.choice([-1, 1])) * rng.uniform(0.3, 1.1)
            parts += _blade(rng, path[k], angle, rng.uniform(0.05, 0.14) * side, rng.random())
    soft = rng.uniform(0, 2.5) * side / 1024
    window, colour, cover = _sprite(rng, parts, shape, Look("", 0.05, 0.1, 0.03, 0), colours, light, 3 * soft)
    cover = _defocus(cover, soft)
    hidden = float((cover.astype(np.float32) * whole[window]).sum()) / 255
    return Sprite(window, colour, cover) if hidden < 0.25 * float(whole.sum(dtype=np.float64)) else None


def _develop(rng: Generator, light: Array) -> Array:
    """Lens softness and sensor noise, then eight bits: uint8, (H, W, 3)."""
    height, width = light.shape[:2]
    strength = rng.uniform(0.004, 0.02)
    image = np.clip(light, 0, 1.2)
    colour = rng.standard_normal(((height + 1) // 2, (width + 1) // 2, 3), np.float32)
    noise: Array = cv2.resize(0.6 * strength * colour, (width, height), interpolation=cv2.INTER_LINEAR)
    noise += strength * rng.standard_normal((height, width, 1), np.float32)
    noise *= np.sqrt(image + 0.05)
    image = _blur(image + noise, rng.uniform(0.4, 0.65))
    image *= 1.12 * 255 / (1 + 0.18 * image * image)  # bright parts roll off as on film
    return np.asarray(np.rint(np.clip(image, 0, 255)), np.uint8)


def draw(seed: int, index: int, size: int) -> tuple[Array, Array]:
    """One sample: image uint8, (H, W, 3), RGB, and coverage uint8, (H, W): share of a pixel covered, 255 = all.

    size: pixels of the longer side. Raises HrsegError on a negative seed or index, or a size outside 64 to 4096.
    """
    thing, rest, coverage = layers(seed, index, size)
    light = _over(rest, thing, coverage.astype(np.float32) / 255)
    return _develop(np.random.default_rng((seed, index, 9)), light), coverage


def write(folder: Path, count: int, size: int, seed: int, progress: Callable[[int], object] | None = None) -> None:
    """Write ``images/<id>.jpg``, ``masks/<id>.png`` and ``pairs.csv``; samples that are there already are kept.

    progress: called with the number of finished samples after each. Raises HrsegError when the folder holds a set
    drawn with another seed or size.
    """
    _check(seed, 0, size)
    settings = {"seed": seed, "size": size, "version": VERSION}
    note = folder / "procedural.json"
    if note.exists() and (old := json.loads(note.read_text(encoding="utf-8"))) != settings:
        raise HrsegError(f"{folder}: holds a procedural set with {old}, now asked with {settings}; name another folder")
    write_atomically(note, json.dumps(settings) + "\n")
    rows = ["image,mask"]
    for index in range(count):
        stem = f"{index:05d}_{kind(seed, index)}"
        image_path, mask_path = folder / "images" / f"{stem}.jpg", folder / "masks" / f"{stem}.png"
        if not (image_path.exists() and mask_path.exists()):
            image, coverage = draw(seed, index, size)
            jpeg = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
            write_atomically(image_path, jpeg.tobytes())
            write_atomically(mask_path, cv2.imencode(".png", coverage)[1].tobytes())
        rows.append(f"images/{stem}.jpg,masks/{stem}.png")
        if progress:
            progress(index + 1)
    write_atomically(folder / "pairs.csv", "\n".join(rows) + "\n")
