"""Pixel filters: noise, blur, defocus, blending."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.random import Generator

from hrseg_cli.data.procedural.parts import Array


def noise(
    rng: Generator, shape: tuple[int, int], cell: float | tuple[float, float], rough: float = 0.55, finest: float = 2.0
) -> Array:
    """Multi-octave noise, float32, (H, W), mean 0 and standard deviation 1.

    cell: (rows, cols) of the largest features in pixels; each octave halves it, and has ``rough`` times the weight.
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


def blur(image: Array, sigma: float) -> Array:
    """Gaussian blur; a wide one is computed on a smaller copy."""
    if sigma < 0.2:
        return image
    shrink = int(sigma // 2)
    if shrink < 2:
        return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma))
    size = image.shape[1::-1]
    small = cv2.resize(image, (max(size[0] // shrink, 1), max(size[1] // shrink, 1)), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(cv2.GaussianBlur(small, (0, 0), sigma / shrink), size, interpolation=cv2.INTER_CUBIC))


def defocus(image: Array, radius: float) -> Array:
    """Lens defocus: every point becomes a disc of ``radius`` pixels."""
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


def step(field: Array, low: float, high: float) -> Array:
    """Smooth step from 0 below ``low`` to 1 above ``high``."""
    t = np.clip((field - low) / (high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t))


def over(below: Array, above: Array, alpha: Array) -> Array:
    return np.asarray(below + (above - below) * alpha[..., None], np.float32)
