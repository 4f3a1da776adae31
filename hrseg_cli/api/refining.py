"""Refine existing masks: in memory, or folders of files and COCO files."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from hrseg_cli import catalog
from hrseg_cli.api.arguments import as_image, as_initial, listed, name_of, path_of, span_of
from hrseg_cli.api.clicking import Model, choice_of
from hrseg_cli.clicks.files import for_images, read_clicks
from hrseg_cli.data.coco_masks import CocoMasks, is_coco
from hrseg_cli.data.mask_files import Kind, MaskFiles
from hrseg_cli.data.masks_out import checked_tolerance
from hrseg_cli.data.photos import find_images
from hrseg_cli.data.pixels import SUFFIXES
from hrseg_cli.engine import refine as engine
from hrseg_cli.engine.devices import reproducible
from hrseg_cli.engine.refining import Refiner, open_refiner, options_of
from hrseg_cli.engine.runtimes import ModelChoice
from hrseg_cli.errors import HrsegError
from hrseg_cli.interaction import Box, Click
from hrseg_cli.metrics.masks import band_of
from hrseg_cli.recipe import BinarizeRule, Refine, binarize_rule, with_hash

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]


class Refined(NamedTuple):
    """The result of :func:`refine`.

    probability: float32, (H, W) or (N, H, W) as the masks; None if they were written to files.
    files: the written files. table: scores before and after, if ground truth was given: ``set``, ``metric``, ``n``,
        ``before``, ``after``, ``change``, and their 95 % bootstrap intervals as ``before_low``, ``before_high``, ...;
        for COCO results with scores also average precision, without intervals.
    """

    probability: np.ndarray | None = None
    files: tuple[Path, ...] = ()
    table: pd.DataFrame | None = None


def refine(
    images: Any,
    masks: Any,
    refiner: str = "guided_filter",
    *,
    weights: str | PathLike[str] | None = None,
    options: Mapping[str, Any] | Sequence[str] = (),
    model: str | PathLike[str] | Model = catalog.DEFAULT_MODEL,
    instances: bool = False,
    soft: bool = False,
    binarize: str | None = None,
    image_list: str | PathLike[str] | None = None,
    truth: str | PathLike[str] | None = None,
    clicks: str | PathLike[str] | None = None,
    band: float | str = 0.02,
    threshold: float = 0.5,
    tolerance: float = 0.0,
    span: str | tuple[float, float] | None = None,
    out: str | PathLike[str] | None = None,
    device: str | None = None,
    precision: str | None = None,
    runtime: str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Refined:
    """Improve masks that exist already, like ``hrseg refine``: of other models, COCO results, drawn by hand.

    images: an image as for :meth:`Model.session`; with ``out``, paths of images, folders or patterns, one or several.
    masks: an array (H, W) or (N, H, W) of bool, probabilities, or 0 and 255; with ``out``, a mask file, a folder of
        mask files named like the images, or a COCO file (annotations or results).
    refiner: a name of 'hrseg list refiners'. weights: file of its network, if it has one. options: of the refiner, as
        ``{"radius": 8}`` or ``["radius=8"]``.
    model: the click model, for refiners that run it: a name or a file, as for :func:`hrseg_cli.load`, or a loaded
        model.
    instances: mask files contain object ids. soft: they contain probabilities. binarize: which grey values are object,
        otherwise; None: chosen by the values. image_list: a COCO file that lists the images of COCO results.
    clicks: with ``out``, a file with the clicks on each object, as for ``hrseg predict``, for refiners that take them
        (``zoom_in``). An object is named as in its mask file STEM_NAME.png, by its id in an instance mask, or by the id
        of its COCO annotation.
    truth: ground truth in the form of ``masks``, for the table. band: of Boundary IoU, as for
        :func:`hrseg_cli.evaluate`. seed: of the intervals.
    threshold: more probable pixels are object. tolerance: maximum distance of a COCO polygon from the outline, in
        pixels. span: as for :meth:`Model.session`.
    out: folder to write to, in the format of ``masks``. The same call again skips what is up to date.
    device, precision, runtime: as for :func:`hrseg_cli.load`; a loaded model has its own.
    progress: called with (finished units, all units); a unit is a mask file, or an image of a COCO file.

    Raises HrsegError for errors that the caller can fix. With ``out``, all other masks are refined first, and masks
    that fail are kept as they are.
    """
    opened = opened_refiner(refiner, weights, options, str(device or "cpu"))
    checked_numbers(threshold, tolerance)
    chosen = choice_of(model, device, precision, runtime) if opened.needs_model else None
    if out is None:
        if truth is not None:
            raise HrsegError("`truth`: scores are for files; give `out` too")
        if clicks is not None:
            raise HrsegError("`clicks`: they belong to mask files; give `out` too")
        return Refined(_in_memory(opened, model, chosen, as_image(images, span), masks))
    if not isinstance(masks, str | PathLike):
        raise HrsegError("`masks`: with `out`, give the path of a mask file, a folder of masks or a COCO file")
    prepared = prepare(
        opened,
        [os.fspath(image) for image in listed("images", images)],
        Path(masks),
        kind_of(instances, soft),
        binarize_rule(binarize),
        Path(out),
        image_list=path_of(image_list),
        truth=path_of(truth),
        tolerance=float(tolerance),
    )
    network, provenance = (None, None)
    if chosen:
        network, provenance = (model._network, model.provenance) if isinstance(model, Model) else chosen.open()
    settings = engine.RefineOptions(
        opened,
        network,
        provenance,
        float(threshold),
        prepared.truths,
        band_of(str(band)),
        span_of(span),
        clicks_for(opened, prepared.masks, path_of(clicks)),
    )
    errors = list(prepared.problems)
    with reproducible():
        for number, result in enumerate(engine.refine(prepared.masks, settings, Path(out)), 1):
            errors += result.errors
            if progress:
                progress(number, len(prepared.masks.units))
    if errors:
        more = f" ({len(errors) - 1} more failed)" if len(errors) > 1 else ""
        raise HrsegError(f"{errors[0]}{more}")
    table = None
    if truth is not None:
        table = _frame(
            engine.table(Path(out), seed)
            + engine.precision_rows(prepared.masks, prepared.truths, Path(out), settings.band or {})
        )
    return Refined(None, tuple(prepared.masks.files(Path(out))), table)


class Prepared(NamedTuple):
    """Masks and ground truth that were found. problems: a line for each mask that cannot be refined."""

    masks: engine.MaskSet
    truths: engine.MaskSet | None
    problems: list[str]


def opened_refiner(name: Any, weights: Any, options: Any, device: str) -> Refiner:
    """A refiner by name, ready to run. Raises HrsegError or UnknownName."""
    file = path_of(weights)
    settings = Refine(name=name_of("refiner", name), weights=str(file) if file else None, options=options_of(options))
    return open_refiner(with_hash(settings), device)


def checked_numbers(threshold: float, tolerance: float) -> None:
    """Raises HrsegError for numbers out of range."""
    if not isinstance(threshold, int | float) or not 0 < threshold < 1:
        raise HrsegError(f"`threshold` {threshold}: give a probability between 0 and 1")
    checked_tolerance(tolerance)


def kind_of(instances: bool, soft: bool) -> Kind:
    """Raises HrsegError for both."""
    if instances and soft:
        raise HrsegError("`instances` and `soft`: give only one of them")
    return "instances" if instances else "soft" if soft else "binary"


def prepare(
    refiner: Refiner,
    images: Sequence[str],
    masks: Path,
    kind: Kind,
    rule: BinarizeRule,
    out: Path,
    *,
    image_list: Path | None,
    truth: Path | None,
    tolerance: float,
) -> Prepared:
    """Find masks, their images and their ground truth. Raises HrsegError if there are none."""
    coco = is_coco(masks)
    found = find_images(_deep(images) if coco else images)
    for place in (masks if masks.is_dir() else masks.parent, *(image.parent for image in found)):
        if place.resolve() == out.resolve():
            raise HrsegError(f"`out` {out}: contains the masks or images to refine; choose another folder")
    opened = _opened(masks, found, kind, rule, image_list or (truth if coco else None), tolerance)
    if not opened.units:
        why = opened.problems[0] if opened.problems else f"{masks}: no masks"
        more = f" ({len(opened.problems) - 1} more)" if len(opened.problems) > 1 else ""
        raise HrsegError(f"{why}{more}")
    truths = None
    if truth is not None:
        if is_coco(truth) != coco:
            raise HrsegError(f"`truth` {truth}: give ground truth in the form of `masks`, COCO files or mask files")
        truths = _opened(truth, found, "binary" if kind == "soft" else kind, rule, image_list, 0.0)
    return Prepared(opened, truths, opened.problems)


def clicks_for(refiner: Refiner, masks: engine.MaskSet, path: Path | None) -> dict[Path, dict[str, tuple[Click, ...]]]:
    """Image -> object -> clicks of a click file. Logs what is ignored. Raises HrsegError for boxes, for a file without
    clicks on these masks, and for a refiner that takes none."""
    if path is None:
        return {}
    if not refiner.takes_clicks:
        raise HrsegError(f"`clicks`: refiner {refiner.settings.name} takes none; omit them, or use refiner zoom_in")
    known: dict[Path, set[str] | None] = {}  # None: any name may exist
    for unit in masks.units:
        names, others = masks.names(unit), known.get(unit.image, set())
        known[unit.image] = None if names is None or others is None else others | names
    found, strangers = for_images(read_clicks(path), known, SUFFIXES, ids=path.suffix.lower() == ".jsonl")
    clicks: dict[Path, dict[str, tuple[Click, ...]]] = {}
    for image, objects in found.items():
        names = known[image]
        for name, prompts in objects.items():
            if names is not None and name not in names:
                strangers.append(f"{image.name}, object '{name}'")
                continue
            if any(isinstance(prompt, Box) for prompt in prompts):
                raise HrsegError(f"`clicks` {path}: a box for {image.name}; a mask is refined with clicks only")
            clicks.setdefault(image, {})[name] = cast(tuple[Click, ...], prompts)
    if not clicks:
        raise HrsegError(
            f"`clicks` {path}: no clicks on these masks; name images as in {next(iter(known)).name}, and objects as in "
            "their mask files STEM_NAME.png, or by their ids"
        )
    if strangers:
        log.warning("%s: clicks without a mask are ignored: %d, such as %s", path, len(strangers), strangers[0])
    return clicks


def _opened(
    place: Path, images: list[Path], kind: Kind, rule: BinarizeRule, image_list: Path | None, tolerance: float
) -> engine.MaskSet:
    if is_coco(place):
        return CocoMasks(place, images, image_list, tolerance)
    if not place.exists():
        raise HrsegError(f"`masks` {place}: no such file or folder")
    return MaskFiles(place, images, kind, rule)


def _deep(words: Sequence[str]) -> list[str]:
    """Folders as patterns that match all images below them, because COCO files name images with folders."""
    return [os.path.join(glob.escape(word), "**", "*") if os.path.isdir(word) else word for word in words]


def _in_memory(refiner: Refiner, model: Any, chosen: ModelChoice | None, image: np.ndarray, masks: Any) -> np.ndarray:
    network = None
    if chosen:
        network = model._network if isinstance(model, Model) else chosen.open()[0]
    several = not isinstance(masks, str | PathLike) and np.ndim(masks) == 3
    refined = []
    with reproducible():
        for mask in masks if several else [masks]:
            given = as_initial(mask, (image.shape[0], image.shape[1]), "auto", "masks")
            if given is None:
                raise HrsegError("`masks`: None; give an array (H, W) or (N, H, W)")
            refined.append(refiner(image, given, (), network))
    if not several:
        return refined[0]
    return np.stack(refined) if refined else np.zeros(np.shape(masks), np.float32)


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    for row in rows:
        for key, (low, high) in row.pop("95%", {}).items():
            row |= {f"{key}_low": low, f"{key}_high": high}
    return pd.DataFrame(rows)
