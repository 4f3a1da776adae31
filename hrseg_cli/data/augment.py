"""Training augmentation: cut, resize and recolour a window of an image, and paste in an object of another photograph or
copies of one of its own.

All randomness comes from the generator passed in: the same state gives the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

from hrseg_cli.data.views import Window
from hrseg_cli.recipe import Augmentation, Composite

TRIES = 20  # random windows searched for an object before one is placed on an object
ALIASED = 0.6  # below this factor linear interpolation, which reads two pixels per axis, would skip some: use area
ELASTIC_CELLS = 4  # independent displacements per axis
DUPLICATED = 0.004, 0.35  # objects of an area between these fractions of the image can have copies

Cut = tuple[
    tuple[bool, bool], tuple[bool, bool]
]  # whether the photograph's border cuts the object at (top, bottom), (left, right)


# ---- augmentation ----------------------------------------------------------------------------------------------------


def augment(
    image: np.ndarray,
    truths: np.ndarray,
    crop: tuple[int, int],
    settings: Augmentation,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """A training sample of an image: uint8 (h, w, 3) and int8 (N, h, w).

    image: uint8, (H, W, 3), RGB. truths: int8, (N, H, W): 1 object, 0 background, -1 ignored. crop: (h, w) in pixels.

    The augmentations of RITM's training script for COCO+LVIS. The window is cut first and resized once, so the cost
    depends on the crop, not the image. All objects are kept, even those with no pixel left: an object may vanish by
    shrinking (masks use nearest neighbour) or rotation.
    """
    turns = int(rng.integers(4)) if rng.random() < settings.rotate90 else 0
    canvas = crop if turns % 2 == 0 else (crop[1], crop[0])
    window, size = _window(truths, canvas, settings, rng)
    outside = 0 if settings.pad == "background" else -1
    if settings.rotate_degrees or settings.elastic:
        rows, cols = _bent_grid(window, size, canvas, settings, rng)
        image, truths = _sample(image, truths, rows, cols, size[0] / window.height, outside)
    else:
        image, truths = _resize(image, truths, window, size)
    if rng.random() < settings.flip:
        image, truths = cv2.flip(image, 1), truths[:, :, ::-1]
    image, truths = np.rot90(image, turns), np.rot90(truths, turns, axes=(1, 2))
    image, truths = _pad(image, truths, crop, outside)
    return _degrade(_recolour(image, settings, rng), settings, rng), truths


def close_up(
    image: np.ndarray,
    truths: np.ndarray,
    crop: tuple[int, int],
    settings: Augmentation,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray] | None:
    """A view around a point of an object's outline: uint8 (h, w, 3) and int8 (h, w), black and background beyond the
    image. None if no object has an outline inside the image.

    Arguments as for :func:`augment`. The shorter side of the view is 0.4 to 1.6 times the square root of the object's
    area. Source: FocusCut (Lin et al., CVPR 2022) and its training code.
    """
    for number in rng.permutation(len(truths)):
        whole = (truths[number] == 1).view(np.uint8)
        outline = np.flatnonzero(whole - cv2.erode(whole, np.ones((3, 3), np.uint8)))
        if not outline.size:
            continue
        radius = max(int(rng.uniform(0.2, 0.8) * math.sqrt(cv2.countNonZero(whole))), 5)
        place = divmod(int(rng.choice(outline)), whole.shape[1])
        view, truth = image, truths[number]
        for axis, (point, full) in enumerate(zip(place, whole.shape, strict=True)):
            reach = round(radius * crop[axis] / min(crop))
            start = point + int(radius * rng.uniform(-0.3, 0.3)) - reach
            end = start + 2 * reach + 1
            inside = slice(max(0, start), min(full, end))
            beyond = [(0, 0)] * 3
            beyond[axis] = max(0, -start), max(0, end - full)
            view = np.pad(view[inside] if axis == 0 else view[:, inside], beyond)
            truth = np.pad(truth[inside] if axis == 0 else truth[:, inside], beyond[:2])
        view = cv2.resize(view, crop[::-1], interpolation=_kernel(crop[0] / len(view)))
        truth = cv2.resize(truth, crop[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        if rng.random() < settings.flip:
            view, truth = cv2.flip(view, 1), cv2.flip(truth, 1)
        return _degrade(_recolour(view, settings, rng), settings, rng), truth
    return None


def _window(
    truths: np.ndarray, crop: tuple[int, int], settings: Augmentation, rng: np.random.Generator
) -> tuple[Window, tuple[int, int]]:
    """The window, and the (height, width) to resize it to: ``crop``, or less if the image is too small for it."""
    full = truths.shape[1], truths.shape[2]
    if rng.random() < settings.zoom and (truth := _any_object(truths, rng)) is not None:
        left, top, width, height = cv2.boundingRect(truth)
        expansion = rng.uniform(*settings.zoom_expansion)
        fits = [want / min(n, side * expansion) for want, n, side in zip(crop, full, (height, width), strict=True)]
        return _placed(full, crop, min(settings.zoom_limit, *fits), Window(top, left, height, width), rng)
    for _ in range(TRIES):
        factor = rng.uniform(*settings.scale)
        window, size = _placed(full, crop, factor, None, rng)
        if any(cv2.minMaxLoc(truth[window.slices])[1] > 0 for truth in truths):
            return window, size
        if rng.random() < settings.keep_background:
            return window, size
    if (truth := _any_object(truths, rng)) is not None:
        row, col = divmod(int(rng.choice(np.flatnonzero(truth))), full[1])
        return _placed(full, crop, factor, Window(row, col, 1, 1), rng)
    return window, size


def _placed(
    full: tuple[int, int], crop: tuple[int, int], factor: float, box: Window | None, rng: np.random.Generator
) -> tuple[Window, tuple[int, int]]:
    """A random window that fills ``crop`` after a resize by ``factor`` and contains ``box``, and its new size."""
    starts, sides, size = [], [], []
    for axis, (length, wanted) in enumerate(zip(full, crop, strict=True)):
        side = max(1, round(wanted / factor), box[2 + axis] if box else 0)
        if side < length:
            low, high = 0, length - side
            if box:
                low, high = max(low, box[axis] + box[2 + axis] - side), min(high, box[axis])
            starts.append(int(rng.integers(low, high + 1)))
            sides.append(side)
            size.append(wanted)
        else:
            starts.append(0)
            sides.append(length)
            size.append(min(wanted, max(1, round(length * factor))))
    return Window(starts[0], starts[1], sides[0], sides[1]), (size[0], size[1])


def _any_object(truths: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """uint8, (H, W): a random object that has pixels, uniformly; None if there is none."""
    for k in rng.permutation(len(truths)):
        truth: np.ndarray = (truths[k] == 1).view(np.uint8)
        if truth.any():
            return truth
    return None


def _resize(
    image: np.ndarray, truths: np.ndarray, window: Window, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    image, truths = image[window.slices], truths[(slice(None), *window.slices)]
    if size == (window.height, window.width):
        return image, truths
    shrunk = np.zeros((len(truths), *size), np.int8)
    for small, truth in zip(shrunk, truths, strict=True):
        if truth.any():
            cv2.resize(truth, size[::-1], dst=small, interpolation=cv2.INTER_NEAREST_EXACT)
    return cv2.resize(image, size[::-1], interpolation=_kernel(size[0] / window.height)), shrunk


def _kernel(factor: float) -> int:
    return cv2.INTER_AREA if factor < ALIASED else cv2.INTER_LINEAR


def _bent_grid(
    window: Window, size: tuple[int, int], canvas: tuple[int, int], settings: Augmentation, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """float32, (h, w) each: the row and the column of the image that each pixel of the canvas shows."""
    height, width = canvas
    angle = math.radians(rng.uniform(-settings.rotate_degrees, settings.rotate_degrees))
    down = np.arange(height, dtype=np.float32)[:, None] - (height - 1) / 2
    right = np.arange(width, dtype=np.float32)[None, :] - (width - 1) / 2
    rows = math.cos(angle) * down - math.sin(angle) * right + (height - 1) / 2
    cols = math.sin(angle) * down + math.cos(angle) * right + (width - 1) / 2
    if settings.elastic:
        cells = rng.uniform(-1, 1, (2, ELASTIC_CELLS + 1, ELASTIC_CELLS + 1)).astype(np.float32)
        cells *= rng.uniform(0, settings.elastic) * min(canvas)
        rows += cv2.resize(cells[0], (width, height), interpolation=cv2.INTER_CUBIC)
        cols += cv2.resize(cells[1], (width, height), interpolation=cv2.INTER_CUBIC)
    # From the canvas, with the resized window in its centre, to the image; pixel centres are at whole numbers.
    rows = window.top + (rows - (height - size[0]) // 2 + 0.5) * (window.height / size[0]) - 0.5
    cols = window.left + (cols - (width - size[1]) // 2 + 0.5) * (window.width / size[1]) - 0.5
    return rows.astype(np.float32), cols.astype(np.float32)


def _sample(
    image: np.ndarray, truths: np.ndarray, rows: np.ndarray, cols: np.ndarray, factor: float, outside: int
) -> tuple[np.ndarray, np.ndarray]:
    """The image and its masks sampled at the given coordinates; black and ``outside`` beyond the image.

    factor: pixels of the result per pixel of the image.
    """
    top, left = max(0, int(rows.min()) - 1), max(0, int(cols.min()) - 1)
    part = (
        slice(top, int(rows.max()) + 3),
        slice(left, int(cols.max()) + 3),
    )  # everything that is read: two pixels per axis
    rows, cols = rows - top, cols - left
    image, truths = image[part], truths[(slice(None), *part)]

    spots, fractions = cv2.convertMaps(cols, rows, cv2.CV_16SC2, nninterpolation=True)
    bent = np.zeros((len(truths), *rows.shape), np.int8)
    for new, truth in zip(bent, truths, strict=True):
        if outside or truth.any():
            new[:] = cv2.remap(
                truth.view(np.uint8), spots, fractions, cv2.INTER_NEAREST, borderValue=outside % 256
            ).view(np.int8)

    if factor < ALIASED:
        small = max(1, round(image.shape[0] * factor)), max(1, round(image.shape[1] * factor))
        rows = (rows + 0.5) * np.float32(small[0] / image.shape[0]) - 0.5
        cols = (cols + 0.5) * np.float32(small[1] / image.shape[1]) - 0.5
        image = cv2.resize(image, small[::-1], interpolation=cv2.INTER_AREA)
    return cv2.remap(image, cols, rows, cv2.INTER_LINEAR), bent


def _pad(image: np.ndarray, truths: np.ndarray, crop: tuple[int, int], outside: int) -> tuple[np.ndarray, np.ndarray]:
    """Centre in the crop; an odd pixel goes below and to the right. Always returns new arrays."""
    height, width = image.shape[:2]
    top, left = (crop[0] - height) // 2, (crop[1] - width) // 2
    inner = slice(top, top + height), slice(left, left + width)
    canvas = np.zeros((*crop, 3), np.uint8)
    masks = np.full((len(truths), *crop), outside, np.int8)
    canvas[inner] = image
    masks[(slice(None), *inner)] = truths
    return canvas, masks


def _recolour(image: np.ndarray, settings: Augmentation, rng: np.random.Generator) -> np.ndarray:
    """Brightness and contrast, then a shift of each channel, each clipped to whole grey levels; one lookup table."""
    table = np.repeat(np.arange(256, dtype=np.float32)[:, None], 3, axis=1)
    if rng.random() < settings.colour_probability:
        table *= np.float32(1 + rng.uniform(*settings.contrast))
        table += np.float32(255 * rng.uniform(*settings.brightness))
        table = np.trunc(table.clip(0, 255))
    if rng.random() < settings.colour_probability:
        table += rng.uniform(-settings.rgb_shift, settings.rgb_shift, 3).astype(np.float32)
    return cv2.LUT(image, table.clip(0, 255).astype(np.uint8)[None])


def _degrade(image: np.ndarray, settings: Augmentation, rng: np.random.Generator) -> np.ndarray:
    """Effects of optics, sensor and file format, in that order."""
    if rng.random() < settings.blur:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.5))
    if rng.random() < settings.noise:
        grain = rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(2, 12))
        image = np.rint(image + grain).clip(0, 255).astype(np.uint8)
    if rng.random() < settings.jpeg:
        quality = int(rng.integers(40, 96))
        bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
        image = cv2.cvtColor(np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR)), cv2.COLOR_BGR2RGB)
    return image


# ---- composites ------------------------------------------------------------------------------------------------------


def paste(
    image: np.ndarray,
    truths: np.ndarray,
    donor_image: np.ndarray,
    donor_truth: np.ndarray,
    rng: np.random.Generator,
    settings: Composite,
) -> tuple[np.ndarray, np.ndarray]:
    """The image with the donor's object somewhere on top, and int8 (N + 1, H, W), the new object last.

    image, truths: as for :func:`augment`. donor_image: uint8, (h, w, 3), RGB. donor_truth: int8, (h, w); pixels of -1
    are not part of the object. At least half of the object is inside the image, whose border may cut off the rest.

    Covered pixels are removed from the objects below, possibly all of them. A donor without object pixels changes
    nothing. Idea: Simple Copy-Paste (Ghiasi et al. 2021), with soft edges and Reinhard et al.'s colour transfer (2001).
    """
    cutout = _cutout(image.shape[:2], donor_image, donor_truth, rng, settings)
    if cutout is None:
        return image.copy(), truths.copy()
    colours, alpha, cut = cutout
    strength = rng.uniform(*settings.colour)
    colours = cv2.cvtColor(
        cv2.LUT(cv2.cvtColor(colours, cv2.COLOR_RGB2LAB), _look(donor_image, image, strength)), cv2.COLOR_LAB2RGB
    )
    solid = alpha > 127
    top, left = _spot(solid, cut, image.shape[:2], rng)

    rows, cols = (slice(max(0, start), start + side) for start, side in ((top, len(alpha)), (left, alpha.shape[1])))
    there = rows, cols
    here = slice(rows.start - top, image.shape[0] - top), slice(cols.start - left, image.shape[1] - left)
    alpha, colours, solid = alpha[here], colours[here], solid[here]

    made = image.copy()
    weight = alpha[..., None].astype(np.uint16)
    made[there] = (weight * colours + (255 - weight) * made[there] + 127) // 255
    masks = np.zeros((len(truths) + 1, *image.shape[:2]), np.int8)
    masks[:-1] = truths
    masks[(slice(None), *there)] *= ~solid
    masks[-1][there] = solid
    return made, masks


def duplicate(
    image: np.ndarray, truths: np.ndarray, rng: np.random.Generator, settings: Composite
) -> tuple[np.ndarray, np.ndarray]:
    """The image with one or two copies of one of its objects pasted in, similar in size and colour; see :func:`paste`.

    An object that fills too little or too much of the image for a copy next to it changes nothing.
    """
    truth = truths[int(rng.integers(len(truths)))]
    area = float((truth == 1).mean())
    if not DUPLICATED[0] < area < DUPLICATED[1]:
        return image, truths
    similar = settings.model_copy(update={"area": (0.6 * area, 1.5 * area), "colour": (0.0, 0.2)})
    original = image
    for _ in range(int(rng.integers(1, 3))):
        image, truths = paste(image, truths, original, truth, rng, similar)
    return image, truths


def _cutout(
    full: Sequence[int], image: np.ndarray, truth: np.ndarray, rng: np.random.Generator, settings: Composite
) -> tuple[np.ndarray, np.ndarray, Cut] | None:
    """The object at its new size, with a margin for its soft edge: uint8 (h, w, 3), its opacity, uint8 (h, w), and
    where the border of its photograph cuts it."""
    solid = (truth == 1).view(np.uint8)
    left, top, width, height = cv2.boundingRect(solid)
    if not width:
        return None
    box = Window(top, left, height, width).slices
    solid = solid[box]
    cut = (top == 0, top + height == len(truth)), (left == 0, left + width == truth.shape[1])
    share = math.exp(rng.uniform(*np.log(settings.area)))
    factor = math.sqrt(share * full[0] * full[1] / cv2.countNonZero(solid))
    factor = min(factor, settings.enlarge, full[0] / height, full[1] / width)
    # Background pixels are black with weight 0, so that no colour of the old background bleeds in.
    layers = np.dstack([image[box] * solid[..., None], solid * np.uint8(255)])
    size = max(1, round(width * factor)), max(1, round(height * factor))
    layers = cv2.resize(layers, size, interpolation=_kernel(factor))
    if rng.random() < settings.flip:
        layers, cut = cv2.flip(layers, 1), (cut[0], cut[1][::-1])
    sigma = rng.uniform(*settings.feather)
    rim = math.ceil(3 * sigma) + 1
    sharp = cv2.copyMakeBorder(layers, rim, rim, rim, rim, cv2.BORDER_CONSTANT, value=(0, 0, 0, 0))
    soft = cv2.GaussianBlur(sharp, (2 * rim + 1, 2 * rim + 1), max(sigma, 0.01))
    colours, alpha = sharp[..., :3].copy(), soft[..., 3].copy()
    edge = (sharp[..., 3] < 255) & (alpha > 0)
    source = np.where(sharp[edge][:, 3:] > 63, sharp[edge], soft[edge])  # outside the object: the colours just inside
    colours[edge] = np.minimum(source[:, :3] * (255 / np.maximum(source[:, 3:], 1)), 255)
    return colours, alpha, cut


def _look(source: np.ndarray, target: np.ndarray, strength: float) -> np.ndarray:
    """uint8, (1, 256, 3): the lookup table that moves Lab colours towards the statistics of another photograph."""
    statistics = []
    for image in (source, target):
        step = max(1, min(image.shape[:2]) // 64)
        mean, spread = cv2.meanStdDev(cv2.cvtColor(image[::step, ::step].copy(), cv2.COLOR_RGB2LAB))
        statistics.append((mean[:, 0], spread[:, 0]))
    (mean, spread), (mean_wanted, spread_wanted) = statistics
    ratio = ((spread_wanted + 1) / (spread + 1)).clip(0.5, 2)  # + 1: the colours of grey pictures have no spread
    moved = (np.arange(256)[:, None] - mean) * (1 + strength * (ratio - 1)) + mean + strength * (mean_wanted - mean)
    table: np.ndarray = np.rint(moved.clip(0, 255)).astype(np.uint8)
    return table[None]


def _spot(solid: np.ndarray, cut: Cut, full: Sequence[int], rng: np.random.Generator) -> tuple[int, int]:
    """(top, left) of the cutout in the image, possibly negative, so that at least half of the object is visible.

    A side that was cut is placed at the image border: a straight edge in the middle would give the object away.
    """
    left, top, width, height = cv2.boundingRect(solid.view(np.uint8))
    box = (top, height), (left, width)
    for _ in range(TRIES):
        starts = []
        for axis, (length, (start, side), (at_start, at_end)) in enumerate(zip(full, box, cut, strict=True)):
            low = -(solid.shape[axis] // 2)
            high = length + low
            if at_start:
                high = max(low + 1, -start)
            elif at_end:
                low = min(high - 1, length - start - side + 1)
            starts.append(int(rng.integers(low, high)))
        top, left = starts
        visible = solid[max(0, -top) : full[0] - top, max(0, -left) : full[1] - left]
        if 2 * np.count_nonzero(visible) >= np.count_nonzero(solid):
            return top, left
    return (full[0] - solid.shape[0]) // 2, (full[1] - solid.shape[1]) // 2
