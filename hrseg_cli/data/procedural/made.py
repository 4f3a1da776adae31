"""Man-made shapes: each function draws a new random one per call, in units of its own."""

from __future__ import annotations

import math

import numpy as np
from numpy.random import Generator

from hrseg_cli.data.procedural.parts import TAU, Array, ShapePart, circle, curve, polar, stroke, tilted, turned, wander


def cable(rng: Generator) -> list[ShapePart]:
    """One long cable in loops, with a plug."""
    points = rng.uniform(-1, 1, (int(rng.integers(8, 13)), 2))
    radius = rng.uniform(0.007, 0.016)
    path = curve(points, 420)
    jacket = [stroke(path[k : k + 22], radius, 0.5, lift=0.02 * math.sin(k / 31)) for k in range(0, 399, 21)]
    end, before = path[-1], path[-8]
    heading = math.atan2(end[1] - before[1], end[0] - before[0])
    body = np.array([[0, -2], [1, -2.6], [7, -2.6], [8, -2], [8, 2], [7, 2.6], [1, 2.6], [0, 2]]) * radius
    pins = [np.array([[7.0, y], [12.0, y]]) * radius for y in (-1.2, 1.2)]
    plug = [stroke(end + turned(pin, heading), 0.5 * radius, 0.95) for pin in pins]
    sleeve = end + turned(np.array([[-5.0, 0], [1, 0]]) * radius, heading)
    plug.append(stroke(sleeve, np.array([1.1, 1.9]) * radius, 0.4))
    return [*jacket, *plug, ShapePart((end + turned(body, heading),), None, 0.35, bevel=radius, lift=0.03)]


def harness(rng: Generator) -> list[ShapePart]:
    """Bundled wires that fan out at both ends."""
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
        path = curve(spine, 300) + curve(wave, 300) + apart * curve(loose, 300)
        path[:, 0] += offset
        wires.append(stroke(path, thick, rng.random(), lift=rng.uniform(0, 0.02)))
    middle = curve(spine, 300)
    half = thick * count * 1.05
    ties = [stroke(middle[k] + np.array([[-half, 0.004], [half, -0.004]]), 0.009, 0.05, lift=0.05) for k in tie]
    return wires + ties


def coil(rng: Generator) -> list[ShapePart]:
    """A coiled cord: near halves painted over far halves."""
    turns = int(rng.integers(9, 22))
    spine = curve(np.array([[-1.2, 0], [-0.4, rng.normal(0, 0.4)], [0.4, rng.normal(0, 0.4)], [1.2, 0]]), 40 * turns)
    phase = np.linspace(0, TAU * turns, 40 * turns)
    inside = np.sin(math.pi * np.linspace(0, 1, 40 * turns)) ** 0.25
    cord = spine + np.stack([0.05 * np.cos(phase), rng.uniform(0.1, 0.2) * np.sin(phase)], 1) * inside[:, None]
    radius = rng.uniform(0.008, 0.014)
    halves = [
        (k, stroke(cord[k : k + 21], radius, 0.5, lift=0.04 * (k // 20 % 2))) for k in range(0, 40 * turns - 20, 20)
    ]
    return [half for k, half in sorted(halves, key=lambda item: item[0] // 20 % 2)]


def _spiral(radius: float, turns: float, hand: int) -> Array:
    angle = np.linspace(0, TAU * turns, int(26 * turns) + 8)
    return polar(hand * angle, radius * np.linspace(1, 0.12, len(angle)))


def fence(rng: Generator) -> list[ShapePart]:
    """Wrought iron: bars, rails, scrolls."""
    count, height = int(rng.integers(7, 14)), rng.uniform(0.55, 0.8)
    x = np.linspace(-1, 1, count)
    bar = rng.uniform(0.008, 0.014)
    parts = [stroke(np.array([[-1, y], [1, y]]), bar * 1.3, 0.4) for y in (-0.75 * height, 0.8 * height)]
    for k, left in enumerate(x):
        parts.append(stroke(np.array([[left, -height], [left, height]]), bar, 0.5, lift=0.01))
        tip = np.array([[-1.7, 0], [-2.4, -2.5], [0, -8], [2.4, -2.5], [1.7, 0]]) * bar + (left, -height)
        parts.append(ShapePart((tip,), None, 0.6, bevel=bar))
        if k + 1 < count:
            gap, centre = x[1] - x[0], left + 0.5 * (x[1] - x[0])
            for y, hand in ((-0.35 * height, 1), (0.35 * height, -1)):
                scroll = _spiral(0.46 * gap, 1.8, hand) + np.array([centre, y])
                parts.append(stroke(scroll, bar * 0.6, 0.55, lift=0.005))
            parts.append(stroke(circle(0.2 * gap, (centre, -0.88 * height), 40), bar * 0.55, 0.5))
    return tilted(rng, parts, 0.7)


def mesh(rng: Generator) -> list[ShapePart]:
    """Chain-link fence in a frame: zigzags, each hooked into the previous one."""
    count = int(rng.integers(9, 17))
    wire, frame = rng.uniform(0.0035, 0.006), rng.uniform(0.018, 0.03)
    cell = 2 / count
    parts = []
    for k in range(count):
        y = np.linspace(-1, 1, 2 * count + 1)
        x = -1 + cell * (k + 0.5) + 0.55 * cell * np.where((np.arange(2 * count + 1) + k) % 2, 1, -1)
        zigzag = np.stack([np.clip(x, -1, 1), y], 1) + rng.normal(0, 0.04 * cell, (2 * count + 1, 2))
        parts.append(stroke(curve(zigzag, 10 * count), wire, rng.uniform(0.3, 0.8), lift=0.004 * (k % 2)))
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]], float)
    parts += [stroke(corners[k : k + 2], frame, 0.45, lift=0.02) for k in range(4)]
    return tilted(rng, parts, 1.0)


def gear(rng: Generator) -> list[ShapePart]:
    teeth = int(rng.integers(14, 44))
    depth = min(3.4 / teeth, 0.16)
    tooth = np.array([[-0.5, 0], [-0.27, 0], [-0.16, 0.75], [-0.12, 1], [0.12, 1], [0.16, 0.75], [0.27, 0]])
    angle = (np.arange(teeth)[:, None] + tooth[None, :, 0]).ravel() * TAU / teeth
    outline = polar(angle, (1 - depth + depth * tooth[None, :, 1] + np.zeros((teeth, 1))).ravel())
    hub, rim = rng.uniform(0.16, 0.26), 1 - depth - rng.uniform(0.1, 0.2)
    spokes = int(rng.integers(3, 9))
    holes = [circle(hub * rng.uniform(0.35, 0.6))]
    half, lean = rng.uniform(0.05, 0.11), rng.uniform(-0.35, 0.35) * (rng.random() < 0.5)
    for k in range(spokes):
        base = k * TAU / spokes
        outer = np.linspace(base + half / rim, base + TAU / spokes - half / rim, 24) + lean
        inner = np.linspace(base + half / hub / 1.5, base + TAU / spokes - half / hub / 1.5, 14)[::-1]
        if inner[0] > inner[-1]:
            holes.append(np.vstack([polar(outer, rim), polar(inner, hub * 1.5)]))
    bolts = [circle(0.02, tuple(polar(np.array(k * TAU / 6), hub * 1.05)), 24) for k in range(6)]
    parts = [ShapePart((outline, *holes, *bolts), None, 0.5, bevel=0.03)]
    parts += [stroke(circle(r), 0.006, 0.25, role="paint", lift=-0.004) for r in (rim + 0.03, hub * 1.4)]
    for _ in range(int(rng.integers(6, 20))):  # scratches and oil
        mark = wander(rng, rng.uniform(-0.8, 0.8, 2), rng.uniform(0, TAU), rng.uniform(0.1, 0.5), 0.05, 8)
        parts.append(stroke(mark, rng.uniform(0.001, 0.004), rng.choice([0.1, 0.9]), role="paint"))
    return tilted(rng, parts, 0.8)


def wheel(rng: Generator) -> list[ShapePart]:
    spokes = int(rng.choice([20, 24, 28, 32, 36]))
    tyre, wire = rng.uniform(0.03, 0.055), rng.uniform(0.003, 0.0045)
    cross = rng.uniform(0.4, 1.3)
    parts: list[ShapePart] = []
    for k in range(spokes):
        if rng.random() < 0.03:
            continue
        rim_angle = k * TAU / spokes
        hub_angle = rim_angle + cross * (1 if k % 2 else -1)
        ends = np.stack([polar(np.array(hub_angle), 0.085), polar(np.array(rim_angle), 0.93)])
        parts.append(stroke(ends, wire, 0.85, lift=0.01 * (k % 2)))
        nipple = np.stack([0.95 * ends[1] + 0.05 * ends[0], ends[1]])
        parts.append(stroke(nipple, 1.8 * wire, 0.95))
    ring = 1 - tyre
    parts.append(stroke(circle(ring - tyre * 0.9), 0.4 * tyre, 0.75))
    parts.append(stroke(circle(ring), tyre, 0.08, lift=0.01))
    for k in range(90):  # tread
        a = k * TAU / 90
        knob = np.stack([polar(np.array(a), ring + 0.55 * tyre), polar(np.array(a + 0.02), ring + 1.12 * tyre)])
        parts.append(stroke(knob, 0.009, 0.16, lift=0.02))
    if rng.random() < 0.5:
        slots = [circle(0.012, tuple(polar(np.array(a), 0.24)), 16) for a in np.linspace(0, TAU, 24, endpoint=False)]
        inner = [polar(np.linspace(a + 0.12, a + 0.8, 14), 0.19) for a in np.linspace(0, TAU, 6, endpoint=False)]
        windows = [np.vstack([arc, 0.6 * arc[::-1]]) for arc in inner]
        parts.append(ShapePart((circle(0.28), *slots, *windows), None, 0.7, bevel=0.006, lift=0.02))
    parts.append(ShapePart((circle(0.105), circle(0.03)), None, 0.6, bevel=0.04, lift=0.04))
    valve = rng.uniform(0, TAU)
    parts.append(stroke(polar(np.full(2, valve), np.array([0.78, 0.93])), 0.007, 0.2))
    return tilted(rng, parts, 1.0)


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


def glyph(rng: Generator) -> list[ShapePart]:
    """Letters of a sign, drawn with a broad pen, with spirals at loose ends; filled or outlined; several on rails."""
    pen, nib = rng.uniform(-1.0, -0.3), rng.uniform(0.06, 0.14)
    hollow, count = bool(rng.random() < 0.4), int(rng.choice([1, 2, 3]))
    paths = []
    for k in range(count):
        slant, across = rng.normal(0, 0.12), 1.75 * (k - 0.5 * (count - 1))
        for line in LETTERS[str(rng.choice(list(LETTERS)))].split(" / "):
            points = np.array([point.split(",") for point in line.split()], float) / 100
            points = (points + rng.normal(0, 0.03, points.shape)) @ np.array([[1, 0], [-slant, 1]])
            path = curve(points + np.array([across, 0]), 22 * len(points))
            paths.append(path)
            for end, inner in ((path[-1], path[-5]), (path[0], path[4])):
                if rng.random() < 0.45:
                    hand, size = int(rng.choice([-1, 1])), rng.uniform(0.12, 0.3)
                    heading = math.atan2(end[1] - inner[1], end[0] - inner[0])
                    curl = _spiral(size, rng.uniform(0.6, 1.5), hand) - (size, 0)
                    paths.append(end + turned(curl, heading - hand * math.pi / 2))
    wide = []
    for path in paths:
        step = np.gradient(path, axis=0)
        wide.append(nib * (0.2 + 0.8 * np.abs(np.sin(np.arctan2(step[:, 1], step[:, 0]) - pen))))
    parts = [
        stroke(p, w, rng.uniform(0.4, 0.6), lift=0.02 * k) for k, (p, w) in enumerate(zip(paths, wide, strict=True))
    ]
    if hollow:
        rim = rng.uniform(0.014, 0.024)
        parts += [stroke(p, np.maximum(w - rim, 0), role="cut") for p, w in zip(paths, wide, strict=True)]
        parts += [stroke(p, 0.5 * rim, 0.6) for p in paths]  # holds the outline together
    if count > 1:
        reach = 0.95 * count
        parts += [stroke(np.array([[-reach, y], [reach, y]]), rng.uniform(0.02, 0.035), 0.3) for y in (-0.8, 0.85)]
    return parts
