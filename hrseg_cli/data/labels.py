"""Label rules: how the values of a mask become ground truth. A test checks the table in docs/data.md against this file.

The rule is recorded with every number, because it moves boundaries by a pixel. An ambiguous mask is refused, with the
options that resolve the ambiguity.
"""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import cv2
import numpy as np

from hrseg_cli.data.pixels import MaskPixels, read_mask
from hrseg_cli.errors import HrsegError, UnknownName
from hrseg_cli.limits import PIXELS
from hrseg_cli.recipe import BinarizeRule

# Rule -> (values that are object, values that are ignored), of 0..255.
RULES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "nonzero": (tuple(range(1, 256)), ()),  # DAVIS; SegNext
    "gt128": (tuple(range(129, 256)), ()),  # HQ-SAM
    "void128": (tuple(range(129, 256)), (128,)),  # RITM's folder reader
    "void255": (tuple(range(1, 255)), (255,)),  # VOC, mmsegmentation
    "grabcut": ((1, *range(129, 256)), (128,)),  # RITM's GrabCut and Berkeley reader
}
# What "auto" chooses for a mask with all or some of these values. The first match wins.
AUTO: tuple[tuple[set[int], BinarizeRule], ...] = (
    ({0, 1}, "nonzero"),
    ({0, 128, 255}, "void128"),
    ({0, 1, 255}, "void255"),
)
STEP = 8  # levels; where values change faster, no two rows or columns of a soft edge are equal
CLIFF = 32  # levels; more than a lossy format adds inside an area

FOR_DATASETS = "add `instances` if each value is an object, or `binarize` "
CHOICES = "nonzero (object above 0), gt128 (object above 128), void128 or void255 (that value is ignored)"


class _Unclear(ValueError):
    """An ambiguous mask. The message lists its values."""


def binarize(grey: np.ndarray, rule: BinarizeRule, lossy: bool = False) -> tuple[np.ndarray, str]:
    """Grey values (H, W), bool, 8 or 16 bit -> (truth int8 (H, W): 1 object, 0 background, -1 ignored; rule used).

    1 bit is black and white. 16-bit values are scaled to 0..255 if one exceeds 255 (only 0 becomes 0, and only 65535
    becomes 255). lossy: a lossy format has changed the values a little.

    Raises UnknownName for an unknown rule, and ValueError if "auto" cannot choose.
    """
    levels = _levels(grey)
    used = _choose(grey, levels, lossy) if rule == "auto" else rule
    if used not in RULES:
        raise UnknownName("label rule", used, get_args(BinarizeRule))
    table = np.zeros(256, np.int8)
    for value, its in zip((1, -1), RULES[used], strict=True):
        table[list(its)] = value
    return table[levels], used


def truth_of_mask(
    path: Path, pixels: MaskPixels, rule: BinarizeRule, fix: str = FOR_DATASETS + CHOICES
) -> tuple[np.ndarray, str]:
    """Like :func:`binarize`, for a mask as stored in ``path``; independent of the file format.

    Reads the alpha channel if it varies; the greys of a grey palette; the indices, which are labels, of other palettes
    and of VOC's colours; the largest channel of other colours.
    fix: what to type if "auto" cannot choose, for the HrsegError raised then.
    """
    try:
        return _truth(pixels, rule)
    except _Unclear as unclear:
        lossy = ", blurred by a lossy format (save masks as PNG)" if pixels.lossy else ""
        raise HrsegError(f"{path}: {unclear}{lossy}; {fix}") from None


def read_object(
    path: Path,
    size: tuple[int, int],
    rule: BinarizeRule | None = None,
    owner: Path | str = "its image",
    at_most: int = PIXELS,
) -> np.ndarray:
    """bool (H, W): an initial mask for the image ``owner`` of ``size`` (H, W); ignored pixels are background.

    An empty mask is valid. rule: None means "auto" and that the command has no --binarize. at_most: pixels.

    Raises HrsegError for a wrong size, and for values that are ambiguous or all background under the rule.
    """
    pixels = read_mask(path, at_most)
    check_size(path, pixels, size, owner)
    fix = f"add `binarize` {CHOICES}" if rule else "save it as 0 and 255"
    truth, used = truth_of_mask(path, pixels, rule or "auto", fix)
    found: np.ndarray = truth == 1
    if pixels.values.any() and not found.any():
        raise HrsegError(f"{path}: no object pixel under rule '{used}'; {seen(pixels)}; {fix}")
    return found


def check_size(path: Path, pixels: MaskPixels, size: tuple[int, ...], owner: Path | str) -> None:
    """Raises HrsegError unless the mask in ``path`` has the ``size`` (H, W) of its image ``owner``."""
    height, width = pixels.values.shape[:2]
    if (height, width) != size:
        turned = " (rotated by its EXIF tag?)" if (width, height) == size else ""
        raise HrsegError(
            f"{path}: {width}x{height} pixels, but {owner} has {size[1]}x{size[0]}{turned}; save both at the same size"
        )


def seen(pixels: MaskPixels) -> str:
    """The values of a mask, for error messages."""
    return _some(np.unique(pixels.values).astype(int).tolist())


def voc_indices(colours: np.ndarray) -> np.ndarray | None:
    """uint8 (H, W): the indices of colours (H, W, 3) in VOC's palette; None if a colour is not in it.

    Tools without palette support save VOC's masks as RGB. Bit k of an index is bit 7 - k // 3 of channel k % 3.
    """
    index = np.arange(256)
    known = np.zeros(256, np.int64)
    for k in range(8):
        known |= ((index >> k) & 1) << (16 * (2 - k % 3) + 7 - k // 3)
    order = np.argsort(known)
    for some in (_sample(colours), colours):  # for a photograph the sample is enough
        codes = _codes(some)
        found = order[np.searchsorted(known[order], codes).clip(max=255)]
        if not np.array_equal(known[found], codes):
            return None
    return np.asarray(found.astype(np.uint8))


def label_indices(pixels: MaskPixels) -> np.ndarray | None:
    """(H, W): labels of a palette or RGB mask; None for RGB colours that are not VOC's.

    The palette's indices, unless a program has renumbered them: then VOC's indices if all colours are VOC's, otherwise
    renumbered so that black, the background, is 0.
    """
    if pixels.palette is None:
        return voc_indices(pixels.colours) if pixels.colours is not None else None
    palette, indices = pixels.palette, pixels.values
    used = np.flatnonzero(np.bincount(indices.ravel(), minlength=len(palette)))
    table = np.arange(len(palette), dtype=np.uint8)
    black = used[~palette[used].any(axis=1)]
    known = voc_indices(palette[used][None])
    moved = len(black) == 1 and black[0] > 0 and bool(palette[0].any())
    if known is not None and (moved or bool((used[known[0] == 255] != 255).any())):
        table[used] = known[0]
    elif moved:
        table[[0, black[0]]] = black[0], 0
    return np.asarray(table[indices])


# ---- what a file shows -----------------------------------------------------------------------------------------------


def _truth(pixels: MaskPixels, rule: BinarizeRule) -> tuple[np.ndarray, str]:
    if pixels.alpha is not None:
        visible = np.unique(pixels.values[pixels.alpha > 0])
        if rule == "auto" and pixels.palette is None and visible[0] == 0 and 1 < len(visible) <= 3:
            raise _Unclear(f"{_some(visible.tolist())} where it is not transparent; a mask or a cutout?")
        return binarize(pixels.alpha, "gt128" if rule == "auto" else rule)
    values = pixels.values
    if pixels.palette is not None:
        if (greys := _greys(pixels.palette, values)) is not None:
            return binarize(greys, rule, pixels.lossy)
        values = pixels.palette.max(axis=1)[values]
    labels = label_indices(pixels)
    if labels is None and pixels.colours is not None and _two_with_black(pixels.colours):
        labels = (values > 0).astype(np.uint8)
    if labels is not None and rule in ("auto", "nonzero", "void255"):
        return binarize(labels, _choose_for_labels(labels) if rule == "auto" else rule)
    if pixels.colours is not None and rule == "auto" and not _one_hue(pixels.colours, values):
        raise _Unclear("several colours, not one object")
    return binarize(values, rule, pixels.lossy)


def _greys(palette: np.ndarray, indices: np.ndarray) -> np.ndarray | None:
    """uint8 (H, W): the grey values of a grey picture saved with a palette; None for labels.

    A palette of labels contains colours even if a mask uses only its blacks and greys, and index 0 is background. A
    palette that shows different indices in the same grey is not a picture.
    """
    used = np.flatnonzero(np.bincount(indices.ravel(), minlength=len(palette)))
    plain = (palette == palette[:, :1]).all(axis=1)
    blind = len(used) > 1 and (palette[used] == palette[used[0]]).all()
    if blind or not plain[used].all() or not (plain.all() or used[0] > 0):
        return None
    return np.asarray(palette[:, 0][indices])


def _codes(colours: np.ndarray) -> np.ndarray:
    """int64 (...): one number for each colour (..., 3) of 8 or 16 bits."""
    return np.asarray(colours.astype(np.int64) @ np.array([1 << 32, 1 << 16, 1]))


def _sample(pixels: np.ndarray) -> np.ndarray:
    """About 64x64 of the pixels (H, W, ...), evenly spaced."""
    return pixels[:: pixels.shape[0] // 64 + 1, :: pixels.shape[1] // 64 + 1]


def _two_with_black(colours: np.ndarray) -> bool:
    if len(np.unique(_codes(_sample(colours)))) > 2:
        return False
    found = np.unique(_codes(colours))
    return len(found) == 2 and found[0] == 0


def _one_hue(colours: np.ndarray, brightest: np.ndarray) -> bool:
    """Whether the bright pixels, those of the object, have one colour, up to JPEG artefacts."""
    bright = np.flatnonzero(brightest > brightest.max() // 2)
    bright = bright[:: len(bright) // 100_000 + 1]
    hues = colours.reshape(-1, 3)[bright] / brightest.reshape(-1, 1)[bright].astype(np.float32)
    strange = np.abs(hues - np.median(hues, axis=0)).max(axis=1) > 0.25
    return bool(strange.mean() < 0.05)


# ---- what "auto" chooses ---------------------------------------------------------------------------------------------


def _levels(grey: np.ndarray) -> np.ndarray:
    """uint8 (H, W). 1 bit becomes 0 and 255; 16-bit values above 255 are divided by 257."""
    if grey.dtype == bool:
        return grey.astype(np.uint8) * 255
    if grey.dtype == np.uint8 or grey.max(initial=0) <= 255:
        return grey.astype(np.uint8)
    table = np.rint(np.arange(65536) / 257).clip(1, 254).astype(np.uint8)
    table[0], table[65535] = 0, 255
    return np.asarray(table[grey])


def _choose(grey: np.ndarray, levels: np.ndarray, lossy: bool) -> BinarizeRule:
    """The rule for grey values (H, W); ``levels`` are the same in 8 bits. Raises _Unclear."""
    if grey.dtype == bool:
        return "nonzero"
    values = np.flatnonzero(np.bincount(grey.ravel())).tolist()
    present = _levels(np.array(values, grey.dtype)).tolist()
    if len(set(present)) == len(values):
        # A label of 1 fills areas; compression noise around 0 does not.
        noise = lossy or (1 in present and not _mostly_areas(levels, levels == 1))
        for known, rule in AUTO:
            if known.issuperset(present) and not (rule == "void255" and noise):
                return rule
    if len(values) <= 2:
        return "void128"
    if present[-1] <= 128 or (
        _areas_in_lossy(levels) if lossy else len(values) == 3 or present[-2] < 128 or _areas_between(grey, levels)
    ):
        raise _Unclear(f"{_some(values)}, each in an area of its own: object ids, or grey levels of one object?")
    return "gt128"


def _choose_for_labels(labels: np.ndarray) -> BinarizeRule:
    """The rule for palette indices (H, W): one label, with or without VOC's void of 255. Raises _Unclear."""
    values = np.unique(labels).tolist()
    objects = [value for value in values if value not in (0, 255)]
    if len(objects) > 1:
        raise _Unclear(f"{_some(values)} in a palette: several labels")
    return "void255" if objects and 255 in values else "nonzero"


def _areas_between(grey: np.ndarray, levels: np.ndarray) -> bool:
    """Whether levels between the darkest and the brightest fill areas, as ids do, rather than soften an edge.

    Only pixels where values change by more than STEP levels are counted.
    """
    between = (_range(levels, 3) > STEP) & (grey > grey.min()) & (grey < grey.max())
    return _mostly_areas(grey, between)


def _mostly_areas(grey: np.ndarray, chosen: np.ndarray) -> bool:
    """Whether more than half of the chosen pixels (bool (H, W)) are in a 2x2 square of equal values."""
    same = (grey[:-1, :-1] == grey[1:, 1:]) & (grey[:-1, :-1] == grey[1:, :-1]) & (grey[:-1, :-1] == grey[:-1, 1:])
    area = np.zeros(grey.shape, bool)
    for rows in (slice(None, -1), slice(1, None)):
        for cols in (slice(None, -1), slice(1, None)):
            area[rows, cols] |= same
    return bool(2 * np.count_nonzero(chosen & area) > np.count_nonzero(chosen))


def _areas_in_lossy(levels: np.ndarray) -> bool:
    """The same for lossy values: areas in the middle of the range with sharp borders, or dark areas. The bounds were
    found with disks, lines and noise at every quality from 10 up, and with ids of 1 to 255.
    """
    step, top = _range(levels, 3), int(levels.max())
    middle = (levels >= CLIFF) & (levels <= top - CLIFF)
    calm = np.count_nonzero(middle & (step <= CLIFF // 2))
    dark = np.count_nonzero((levels > 0) & (levels < CLIFF) & (_range(levels, 5) == 0))
    ends = np.count_nonzero(step > CLIFF)
    return bool(
        (5 * calm > np.count_nonzero(middle) and calm < 50 * ends) or 5 * dark > np.count_nonzero(levels > top // 2)
    )


def _range(levels: np.ndarray, side: int) -> np.ndarray:
    """uint8 (H, W): maximum minus minimum in the square around each pixel."""
    square = np.ones((side, side), np.uint8)
    return np.asarray(cv2.subtract(cv2.dilate(levels, square), cv2.erode(levels, square)))


def _some(values: list[int]) -> str:
    return "values seen: " + ", ".join(map(str, values[:8])) + (" ..." if len(values) > 8 else "")
