"""Natural shapes: each function draws a new random one per call, in units of its own."""

from __future__ import annotations

import math

import numpy as np
from numpy.random import Generator

from hrseg_cli.data.procedural.parts import (
    MIN_RADIUS,
    TAU,
    Array,
    ShapePart,
    blob,
    curve,
    polar,
    stroke,
    tilted,
    turned,
    wander,
)


def blade(rng: Generator, root: Array, angle: float, length: float, tone: float) -> list[ShapePart]:
    """One small leaf with its midrib."""
    t = np.linspace(0, 1, 16)
    half = length * rng.uniform(0.16, 0.3) * np.sin(math.pi * t**0.8)
    bend = rng.normal(0, 0.12) * length * np.sin(math.pi * t)
    outline = np.vstack([np.stack([t * length, bend + half], 1), np.stack([t * length, bend - half], 1)[::-1]])
    rib = root + turned(np.stack([t * length, bend], 1), angle)
    return [
        ShapePart((root + turned(outline, angle),), None, tone, bevel=0.5 * length, lift=rng.uniform(0.0, 0.02)),
        stroke(rib, MIN_RADIUS, min(tone + 0.25, 1), role="paint", lift=0.004),
    ]


def branch(rng: Generator) -> list[ShapePart]:
    leafy = rng.random() < 0.55
    limbs: list[ShapePart] = []
    leaves: list[ShapePart] = []
    todo = [(np.zeros(2), -math.pi / 2 + rng.normal(0, 0.3), rng.uniform(0.5, 0.75), rng.uniform(0.025, 0.045), 0)]
    while todo and len(limbs) < 320:
        start, angle, length, radius, depth = todo.pop(0)
        count = 12
        path = wander(rng, start, angle, length, 0.11 + 0.02 * depth, count)
        knots = 1 + 0.08 * rng.normal(size=count) * (depth < 3)
        tip = radius * rng.uniform(0.6, 0.8)
        limbs.append(stroke(path, np.linspace(radius, tip, count) * knots, rng.uniform(0.2, 0.8), lift=0.01 * depth))
        if depth >= 6 or radius < 0.0022:
            if leafy:
                for k in rng.integers(4, count, rng.integers(1, 4)):
                    direction = angle + rng.normal(0, 0.8)
                    leaves += blade(rng, path[k], direction, rng.uniform(0.05, 0.1), rng.uniform(0.1, 0.9))
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


def leaf(rng: Generator) -> list[ShapePart]:
    """One leaf, long or lobed, with a serrated margin, veins, blotches and holes."""
    lobes = int(rng.choice([0, 5, 7]))
    teeth = int(rng.integers(60, 110))
    u = np.linspace(0, 1, 721)
    saw = (u * teeth) % 1
    fine = (u * teeth * 3) % 1
    if lobes:  # maple-like: long lobes around the stalk
        angle = math.pi / 2 + 0.12 + u * (TAU - 0.24)
        wave = np.abs(np.cos(0.5 * lobes * (u - 0.5) * TAU * 0.86))
        far = (0.3 + 0.7 * wave**1.3) * (0.62 + 0.38 * np.sin(math.pi * u) ** 0.5)
        outline = polar(angle, far * (1 + 0.06 * saw + 0.03 * fine))
        tips = [(p, outline[p]) for p in range(5, 716) if wave[p] >= wave[p - 5 : p + 6].max()]
        ribs = [np.stack([np.zeros(2), 0.5 * tip + rng.normal(0, 0.015, 2), 0.96 * tip]) for _, tip in tips]
        ribs = [curve(rib, 24) for rib in ribs]
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
                ribs.append(curve(np.stack([middle[k], sag, end]), 12))
    base = np.zeros(2) if lobes else outline[0]
    stalk = wander(rng, base, math.pi / 2 + rng.normal(0, 0.2), rng.uniform(0.4, 0.7) + 0.4 * bool(lobes), 0.04, 12)
    parts = [stroke(stalk, np.linspace(0.016, 0.02, 12), 0.7), ShapePart((outline,), None, 0.45, bevel=0.5)]
    for rib in ribs:
        parts.append(stroke(rib, np.linspace(0.009, 0.002, len(rib)), 0.85, role="paint", lift=0.006))
    for _ in range(int(rng.integers(5, 40))):  # blotches
        spot = blob(rng, rng.uniform(0.008, 0.04)) + rng.uniform(-0.6, 0.6, 2)
        parts.append(ShapePart((spot,), None, rng.choice([0.05, 1.0]), role="paint"))
    for _ in range(int(rng.integers(3, 26))):  # eaten by insects, from the margin and inside
        depth = 1.0 if rng.random() < 0.45 else rng.uniform(0.2, 0.9)
        at = outline[rng.integers(len(outline))] * depth
        if math.dist(at, base) > 0.15:  # keep the leaf attached to its stalk
            parts.append(ShapePart((blob(rng, rng.uniform(0.012, 0.075), 0.45) + at,), None, role="cut"))
    return parts


def fern(rng: Generator) -> list[ShapePart]:
    """A frond: leaflets along leaflets."""
    parts: list[ShapePart] = []
    spine = wander(rng, np.zeros(2), -math.pi / 2, 2.0, 0.03, 60)
    parts.append(stroke(spine, np.linspace(0.012, 0.003, 60), 0.3, lift=0.02))
    for k in range(6, 59, 2):
        t = k / 59
        heading = math.atan2(*(spine[k] - spine[k - 1])[::-1])
        reach = 0.75 * math.sin(math.pi * min(t * 0.8 + 0.22, 1)) ** 1.2 + 0.03
        for side in (-1, 1):
            if rng.random() < 0.04:
                continue
            rib = wander(rng, spine[k], heading + side * (1.25 - 0.4 * t), reach * rng.uniform(0.85, 1), 0.05, 14)
            tone = rng.uniform(0.15, 0.85)
            parts.append(stroke(rib, np.linspace(0.004, 0.0015, 14), tone))
            ahead = np.arctan2(*np.diff(rib, axis=0).T[::-1])
            size = 0.085 * reach * (1 - 0.75 * np.arange(1, 14) / 14) + 0.006
            width = np.array([0.8, 1, 0.15]) * 0.013 * (0.4 + 0.6 * reach)
            for hand in (-1, 1):
                reachings = polar(ahead + hand, size)
                leaflets = rib[1:, None] + reachings[:, None] * np.array([0, 0.5, 1])[:, None]
                parts += [ShapePart((leaflet,), width, tone) for leaflet in leaflets]
    return parts


def tuft(rng: Generator) -> list[ShapePart]:
    """Hair bound at one end: brush, broom, lock."""
    thin = rng.uniform(0.0022, 0.0034)
    parts: list[ShapePart] = []
    neck, spread = rng.uniform(0.05, 0.12), rng.uniform(0.25, 0.8)
    handle = wander(rng, np.array([0.0, 0.1]), math.pi / 2, 0.8, 0.02, 10)
    parts.append(stroke(handle, np.linspace(neck * 0.9, neck * 0.6, 10), 0.25))
    for _ in range(int(rng.integers(220, 380))):
        off = rng.normal(0, 0.42)
        root = np.array([np.clip(off, -1, 1) * neck, 0.12])
        hair = wander(rng, root, -math.pi / 2 + off * spread, rng.uniform(0.8, 1.35), 0.05, 16)
        parts.append(stroke(hair, np.linspace(2.2 * thin, 0.6 * thin, 16), rng.random(), lift=rng.uniform(0, 0.03)))
    parts += [stroke(np.array([[-neck, y], [neck, y]]), 0.014, 0.9, lift=0.06) for y in (0.1, 0.14, 0.2)]
    return parts


def thistle(rng: Generator) -> list[ShapePart]:
    """Bristles all round a body on a stem."""
    thin = rng.uniform(0.0022, 0.0034)
    parts: list[ShapePart] = []
    body = rng.uniform(0.1, 0.28)
    stem = wander(rng, np.array([0.0, 0.0]), math.pi / 2, 1.3, 0.03, 14)
    parts.append(stroke(stem, np.linspace(0.022, 0.018, 14), 0.3))
    for _ in range(int(rng.integers(160, 280))):
        angle = rng.uniform(0, TAU)
        hair = wander(rng, polar(np.array(angle), 0.8 * body), angle, rng.uniform(0.35, 0.75), 0.03, 9)
        parts.append(stroke(hair, np.linspace(1.6 * thin, 0.8 * thin, 9), rng.random(), lift=rng.uniform(0, 0.03)))
        if body < 0.18:
            for turn in rng.uniform(-1.1, 1.1, 4):
                plume = wander(rng, hair[-1], angle + turn, 0.07, 0.1, 4)
                parts.append(stroke(plume, 0.6 * thin, 0.9))
    return [*parts, ShapePart((blob(rng, body, 0.05),), None, 0.3, bevel=body)]


def fur(rng: Generator) -> list[ShapePart]:
    """A furry body."""
    thin = rng.uniform(0.0022, 0.0034)
    parts: list[ShapePart] = []
    spine = curve(np.array([[-0.9, 0.2], [-0.3, rng.normal(0, 0.2)], [0.4, rng.normal(0, 0.2)], [0.95, -0.1]]), 60)
    girth = 0.2 * np.sin(math.pi * np.linspace(0.08, 0.97, 60)) ** 0.6
    parts.append(stroke(spine, girth, 0.3))
    for _ in range(int(rng.integers(500, 750))):
        k = int(rng.integers(1, 60))
        along = spine[k] - spine[k - 1]
        heading = math.atan2(along[1], along[0])
        across = rng.uniform(-1, 1)
        root = spine[k] + girth[k] * across * polar(np.array(heading + math.pi / 2), 1.0)
        lean = heading + across * rng.uniform(0.4, 1.3)
        hair = wander(rng, root, lean, rng.uniform(0.12, 0.34), 0.1, 9)
        parts.append(
            stroke(hair, np.linspace(1.9 * thin, 0.5 * thin, 9), rng.random(), lift=girth[k] * (1 - across**2))
        )
    return parts


def feather(rng: Generator) -> list[ShapePart]:
    bow = rng.uniform(-0.35, 0.35)
    shaft = curve(np.array([[0, 1.15], [0.3 * bow, 0.5], [bow, -0.3], [0.6 * bow, -1.0]]), 240)
    parts: list[ShapePart] = []
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
            barb = wander(rng, shaft[k], lean, reach, 0.16 if downy else 0.012, 10)
            barb[:, :] += np.linspace(0, 1, 10)[:, None] ** 2 * 0.25 * reach * (shaft[k] - shaft[k - 1]) / 0.009
            tone = 0.5 + 0.4 * math.sin(34 * t + 2.0 * side) * bands + rng.normal(0, 0.07)
            width = (0.004 if downy else 0.0072) * np.linspace(1, 0.42, 10)
            parts.append(stroke(barb, width, float(np.clip(tone, 0, 1)), lift=0.002 * (k % 2)))
    return [*parts, stroke(shaft, np.linspace(0.017, 0.004, 240), 0.95, lift=0.02)]


def coral(rng: Generator) -> list[ShapePart]:
    """A sea fan: tips grow into free space; the thickness of a limb depends on the branches it carries."""
    gap, limit = rng.uniform(0.035, 0.055), 1100
    place = np.zeros((limit, 2))
    parent, heading, tips, count = [-1], [-math.pi / 2], [0], 1
    while tips and count < limit - 1:
        tip = tips.pop(int(rng.integers(len(tips))))
        for turn in (rng.normal(0, 0.25), rng.choice([-1, 1]) * rng.uniform(0.5, 0.9)):
            angle = heading[tip] + turn
            new = place[tip] + polar(np.array(angle), gap)
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
            stroke(ends, np.linspace(min(radius[parent[k]], 1.3 * radius[k]), radius[k], 3), rng.uniform(0.3, 0.7))
        )
    return [*parts, stroke(np.array([[0, 0], [0.0, 0.14]]), np.array([1.0, 1.6]) * radius[0], 0.4)]


def web(rng: Generator) -> list[ShapePart]:
    """A spider's web: spokes, and threads that sag between them."""
    count = int(rng.integers(13, 22))
    angle = np.sort(np.linspace(0, TAU, count, endpoint=False) + rng.normal(0, 0.06, count))
    reach = rng.uniform(0.75, 1.1, count)
    thread = rng.uniform(0.0022, 0.0034)
    parts = [
        stroke(polar(np.full(2, a), np.array([0, 1.25 * r])), thread * 1.4, 0.6)
        for a, r in zip(angle, reach, strict=True)
    ]
    for ring in np.linspace(0.07, 1, int(rng.integers(17, 28))) ** 0.9:
        for k in range(count):
            a, b = angle[k], angle[(k + 1) % count] + (TAU if k + 1 == count else 0)
            t = np.linspace(0, 1, 7)
            bow = ring * (reach[k] * (1 - t) + reach[(k + 1) % count] * t) * (1 - 0.45 * (b - a) * t * (1 - t) * 2)
            if rng.random() > 0.04:
                parts.append(stroke(polar(a + (b - a) * t, bow), thread, 0.7))
    return tilted(rng, parts, 0.7)
