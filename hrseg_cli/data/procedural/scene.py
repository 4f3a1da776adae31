"""A whole picture: object, background, distractors, occluder, light, lens and sensor."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator

from hrseg_cli.data.procedural.filters import blur, defocus, noise, over, step
from hrseg_cli.data.procedural.grounds import GROUNDS, ground_of
from hrseg_cli.data.procedural.grown import blade
from hrseg_cli.data.procedural.kinds import KINDS, UPRIGHT, shape_of
from hrseg_cli.data.procedural.parts import TAU, Array, ShapePart, moved, points_of, polar, stroke, wander
from hrseg_cli.data.procedural.raster import boxes_of, coverage_of, place, surface_of
from hrseg_cli.data.procedural.surfaces import COLOURS, MATERIALS, Light, Material, lit
from hrseg_cli.errors import HrsegError, UnknownName

ASPECTS = (1.0, 4 / 3, 3 / 2, 3 / 4, 2 / 3)  # width over height


class Layers(NamedTuple):
    """A scene before the lens: ``light = share * thing + (1 - share) * rest`` with ``share = coverage / 255``.

    thing, rest: float32, (H, W, 3), RGB, about [0, 1]; coverage: uint8, (H, W).
    """

    thing: Array
    rest: Array
    coverage: Array


def kind(seed: int, index: int) -> str:
    """Kind of object of a sample; each block of ``len(KINDS)`` samples contains every kind once."""
    check(seed, index)
    order = np.random.default_rng((seed, index // len(KINDS), 0)).permutation(len(KINDS))
    return KINDS[int(order[index % len(KINDS)])]


def numbers(seed: int, count: int, kinds: str = "") -> list[int]:
    """The first ``count`` indices of a seed whose objects are of ``kinds``, such as "gear+leaf"; "": of any kind.

    Raises UnknownName for an unknown kind.
    """
    wanted = set(kinds.split("+")) if kinds else set(KINDS)
    if unknown := sorted(wanted - set(KINDS)):
        raise UnknownName("kind of drawn object", unknown[0], KINDS)
    return list(itertools.islice((index for index in itertools.count() if kind(seed, index) in wanted), count))


def check(seed: int, index: int, size: int = 1024) -> None:
    if seed < 0 or index < 0:
        raise HrsegError(f"procedural set: seed {seed}, index {index}: both must be 0 or more")
    if not 64 <= size <= 4096:
        raise HrsegError(f"procedural set: size {size}: the longer side must have 64 to 4096 pixels")


def _frame(aspect: float, size: int) -> tuple[int, int]:
    return round(size / max(aspect, 1)), round(size * min(aspect, 1))


def _object(seed: int, index: int, aspect: float, size: int) -> list[ShapePart]:
    """The object, in pixels. Redrawn until it fills enough of the picture, measured on a small copy."""
    name = kind(seed, index)
    small = _frame(aspect, 160)
    tries = []
    for attempt in range(6):
        rng = np.random.default_rng((seed, index, 1, attempt))
        parts = shape_of(rng, name)
        angle = rng.normal(0, 0.25) if name in UPRIGHT else rng.uniform(0, TAU)
        pose = 0.5 + rng.normal(0, 0.03, 2), rng.uniform(0.78, 1.05), angle
        share = float(coverage_of(place(parts, small, *pose), small).mean()) / 255
        tries.append((max(0.04 - share, share - 0.35, 0), attempt, parts, pose))
        if tries[-1][0] == 0:
            break
    _, _, parts, pose = min(tries, key=lambda one: one[:2])
    return place(parts, _frame(aspect, size), *pose)


def _palette(rng: Generator, pairs: str) -> Array:
    """(3, 3) colours: one of the named pairs, slightly varied, and room for a third."""
    pair = str(rng.choice(pairs.split(", "))).split()
    return np.clip(np.array([COLOURS[name] for name in (*pair, pair[0])]) + rng.normal(0, 0.025, (3, 3)), 0.03, 0.95)


class Sprite(NamedTuple):
    """A lit shape in a window of the picture: colour float32, (h, w, 3); cover uint8, (h, w), 255 = all."""

    window: tuple[slice, slice]
    colour: Array
    cover: Array


def _sprite(
    rng: Generator,
    parts: list[ShapePart],
    shape: tuple[int, int],
    material: Material,
    colours: Array,
    light: Light,
    margin: float = 0,
) -> Sprite:
    """Render a shape in a material. margin: free pixels around it, for blurring."""
    side = max(shape)
    boxes = boxes_of(parts)
    left, top = np.maximum(boxes[:, :2].min(axis=0) - math.ceil(margin), 0).tolist()
    right, bottom = np.minimum(boxes[:, 2:].max(axis=0) + math.ceil(margin), shape[::-1]).tolist()
    shape = (bottom - top, right - left)
    parts = moved(parts, points_of(parts) - (left, top))
    tone, height = surface_of(parts, shape)
    grain = noise(rng, shape, material.grain * side, 0.7)
    stain = noise(rng, shape, side / 4, 0.6)
    tone = np.clip(tone + 0.14 * grain + 0.12 * stain, 0, 1)
    height = blur(height, 0.6) + grain * (0.12 * material.bump * material.grain * side)
    colour = lit(tone, height, colours, 0.5 * step(stain, 0.2, 1.8), light, material.gloss, side)
    return Sprite((slice(top, bottom), slice(left, right)), colour, coverage_of(parts, shape))


def layers(seed: int, index: int, size: int) -> Layers:
    """The scene of :func:`draw` before lens and sensor effects. Raises the same errors."""
    check(seed, index, size)

    def dice(stage: int) -> Generator:
        return np.random.default_rng((seed, index, stage))

    rng = dice(2)
    aspect = float(rng.choice(ASPECTS))
    shape = _frame(aspect, size)
    name = kind(seed, index)
    material, ground = MATERIALS[name], str(rng.choice(list(GROUNDS)))
    azimuth, elevation = rng.uniform(0, TAU), rng.uniform(0.5, 1.1)
    light = (math.cos(azimuth) * math.cos(elevation), math.sin(azimuth) * math.cos(elevation), math.sin(elevation))
    far = bool(rng.random() < material.far)  # the object stands in front of its background, or lies on it
    own, below = _palette(rng, material.pairs), _palette(rng, GROUNDS[ground])
    own[2], below[2] = below[rng.integers(2)], own[rng.integers(2)]  # each has patches in a colour of the other
    drop = size * (rng.uniform(0.02, 0.08) if far else rng.uniform(0.004, 0.015))
    shade = rng.uniform(0.1, 0.35) if far else rng.uniform(0.35, 0.65)

    window, colour, cover = _sprite(dice(3), _object(seed, index, aspect, size), shape, material, own, light)
    whole = np.zeros(shape, np.uint8)
    whole[window] = cover
    alpha = whole.astype(np.float32) / 255

    rest = _backdrop(dice(4), ground, shape, below, light, far)
    _add_distractors(dice(5), name, rest, own, light, far)
    move = np.array([[1, 0, -light[0] * drop], [0, 1, -light[1] * drop]], np.float32)
    rest *= 1 - shade * blur(cv2.warpAffine(alpha, move, shape[::-1]), 0.35 * drop)[..., None]
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
    """The background: float32, (H, W, 3)."""
    shape = (-(-full[0] // 2), -(-full[1] // 2)) if far else full  # a blurred background needs only half the resolution
    side = max(shape)
    tone, height = ground_of(rng, ground, shape)
    patches = 0.6 * step(noise(rng, shape, side / rng.uniform(3, 10), 0.6), 0.0, 2.0)
    if ground == "haze":
        patches = blur(patches, side / 50)
    image = lit(tone, height, colours, patches, light, 0.0, side)
    if ground not in ("haze", "leaves") and rng.random() < 0.4:  # viewed at an angle
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
    image = over(defocus(image, near), defocus(image, away), fade)
    image = over(image, image.mean(axis=(0, 1)), 0.12 * fade)  # the air between
    return np.asarray(cv2.resize(image, full[::-1], interpolation=cv2.INTER_LINEAR))


def _add_distractors(rng: Generator, name: str, rest: Array, colours: Array, light: Light, far: bool) -> None:
    """Paint up to three distractors of the same kind, which are not part of the object, onto ``rest``."""
    shape = (rest.shape[0], rest.shape[1])
    side = max(shape)
    for _ in range(int(rng.integers(0, 4))):
        parts = place(shape_of(rng, name), shape, rng.uniform(0, 1, 2), rng.uniform(0.35, 0.9), rng.uniform(0, TAU))
        other = np.clip((colours + rng.normal(0, 0.05, 3)) * rng.uniform(0.75, 1.2), 0.02, 0.95)
        soft = (rng.uniform(0.8, 5) if far else rng.uniform(0, 1)) * side / 1024
        shade = rng.uniform(0.2, 0.5)
        window, colour, cover = _sprite(rng, parts, shape, MATERIALS[name], other, light, soft + 0.02 * side)
        share = cover.astype(np.float32) / 255
        colour, share = defocus(colour * share[..., None], soft), defocus(share, soft)
        dark = 1 - shade * blur(share, 0.006 * side)
        rest[window] = rest[window] * (dark * (1 - share))[..., None] + colour


def _gain(rng: Generator, colour: Array, rest: Array, alpha: Array) -> float:
    """Brightness factor that makes the object differ from its surroundings by a random, mostly small amount.

    The amount grows with the contrast of the surroundings; otherwise a person could not find the object either.
    """
    inside = float((colour.mean(axis=2) * alpha).sum() / max(float(alpha.sum()), 1))
    around = np.clip(4 * blur(alpha, max(alpha.shape) / 60), 0, 1) * (1 - alpha)
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
    """Uneven light over the whole picture: float32, (H, W, 1). Sometimes dappled sunlight."""
    side = max(shape)
    lamp = 1 + 0.08 * noise(rng, shape, side / 2, 0.4, side / 16)
    if rng.random() < 0.25:
        spots = step(noise(rng, shape, side / rng.uniform(3, 8), 0.35, side / 30), -0.9, 1.1)
        lamp *= 0.65 + 0.5 * spots
    y = np.linspace(-1, 1, shape[0], dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, shape[1], dtype=np.float32)
    return (lamp * (1 - 0.12 * (x * x + y * y)))[..., None]


def _occluder(rng: Generator, shape: tuple[int, int], colours: Array, light: Light, whole: Array) -> Sprite | None:
    """Sometimes something in front of the object, slightly out of focus; never over more than a quarter of it."""
    if rng.random() < 0.6:
        return None
    side = max(shape)
    parts: list[ShapePart] = []
    if rng.random() < 0.5:  # blades of grass
        for _ in range(int(rng.integers(2, 8))):
            root = np.array([rng.uniform(0, 1) * shape[1], shape[0] * 1.05])
            path = wander(rng, root, -math.pi / 2 + rng.normal(0, 0.35), rng.uniform(0.4, 1.1) * side, 0.06, 24)
            parts.append(stroke(path, np.linspace(1, 0.15, 24) * rng.uniform(0.004, 0.012) * side, rng.random()))
    else:  # a twig with leaves that reaches in from one edge
        at = rng.uniform(0, TAU)
        start = (0.5 + 0.6 * polar(np.array(at), 1.0)) * shape[::-1]
        path = wander(rng, start, at + math.pi + rng.normal(0, 0.3), rng.uniform(0.5, 0.9) * side, 0.12, 16)
        parts.append(stroke(path, np.linspace(0.008, 0.003, 16) * side, 0.2))
        for k in range(3, 16):
            angle = at + math.pi + float(rng.choice([-1, 1])) * rng.uniform(0.3, 1.1)
            parts += blade(rng, path[k], angle, rng.uniform(0.05, 0.14) * side, rng.random())
    soft = rng.uniform(0, 2.5) * side / 1024
    window, colour, cover = _sprite(rng, parts, shape, Material("", 0.05, 0.1, 0.03, 0), colours, light, 3 * soft)
    cover = defocus(cover, soft)
    hidden = float((cover.astype(np.float32) * whole[window]).sum()) / 255
    return Sprite(window, colour, cover) if hidden < 0.25 * float(whole.sum(dtype=np.float64)) else None


def _develop(rng: Generator, light: Array) -> Array:
    """Add lens softness and sensor noise, then convert to 8 bits: uint8, (H, W, 3)."""
    height, width = light.shape[:2]
    strength = rng.uniform(0.004, 0.02)
    image = np.clip(light, 0, 1.2)
    colour = rng.standard_normal(((height + 1) // 2, (width + 1) // 2, 3), np.float32)
    grain: Array = cv2.resize(0.6 * strength * colour, (width, height), interpolation=cv2.INTER_LINEAR)
    grain += strength * rng.standard_normal((height, width, 1), np.float32)
    grain *= np.sqrt(image + 0.05)
    image = blur(image + grain, rng.uniform(0.4, 0.65))
    image *= 1.12 * 255 / (1 + 0.18 * image * image)  # bright parts roll off as on film
    return np.asarray(np.rint(np.clip(image, 0, 255)), np.uint8)


def draw(seed: int, index: int, size: int) -> tuple[Array, Array]:
    """One sample: image uint8, (H, W, 3), RGB, and coverage uint8, (H, W): fraction of a pixel covered, 255 = all.

    size: longer side in pixels. Raises HrsegError for a negative seed or index, or a size outside 64 to 4096.
    """
    thing, rest, coverage = layers(seed, index, size)
    light = over(rest, thing, coverage.astype(np.float32) / 255)
    return _develop(np.random.default_rng((seed, index, 9)), light), coverage
