"""Masks of many images from given clicks: in memory, or as files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hrseg_cli.api.arguments import as_clicks, as_image, as_initial, as_prompt, changes_of, listed, name_of, span_of
from hrseg_cli.api.clicking import ImageLike, Model, choice_of
from hrseg_cli.clicks.files import Objects, for_images, read_clicks
from hrseg_cli.data.masks_out import checked_tolerance
from hrseg_cli.data.photos import find_images
from hrseg_cli.data.pixels import SUFFIXES
from hrseg_cli.engine import predict as engine
from hrseg_cli.engine.devices import reproducible
from hrseg_cli.engine.session import Session
from hrseg_cli.errors import HrsegError, UnknownName
from hrseg_cli.interaction import Prompt
from hrseg_cli.models.base import InteractiveModel
from hrseg_cli.recipe import BinarizeRule, Protocol, binarize_rule, load_protocol

Clicks = Sequence[
    Prompt | Sequence[float]
]  # each (row, col), (row, col, positive), (top, left, bottom, right), a Click or a Box


class Prediction(NamedTuple):
    """The mask of one object.

    image: the path of its image; None for an image in memory. object: its name; "" for the only object of an image.
    clicks: and boxes, in the order in which they were given. mask: bool (H, W); None if it was written to ``files``.
    files: the files written, one per format of its own; empty for a mask in memory.
    """

    image: Path | None
    object: str
    clicks: tuple[Prompt, ...]
    mask: np.ndarray | None
    files: tuple[Path, ...] = ()


def predict(
    model: str | PathLike[str] | Model,
    images: ImageLike | Sequence[ImageLike],
    clicks: str | PathLike[str] | Clicks | Mapping[str, Clicks] | Sequence[Clicks | Mapping[str, Clicks]],
    *,
    initial: ImageLike | Sequence[ImageLike | None] | None = None,
    protocol: str | PathLike[str] = "fast",
    changes: Mapping[str, Any] | Sequence[str] = (),
    span: str | tuple[float, float] | None = None,
    binarize: str | None = None,
    out: str | PathLike[str] | None = None,
    formats: str | Sequence[str] = ("png",),
    tolerance: float = 1.0,
    device: str | None = None,
    precision: str | None = None,
    runtime: str | None = None,
) -> list[Prediction]:
    """Predict masks of images from given clicks, like ``hrseg predict``; one :class:`Prediction` per object.

    model: a name or a file, as for :func:`hrseg_cli.load`, or a loaded model.
    images: one image, or a list of images, each as for :meth:`Model.session`. A path may also be a folder of images or
        a pattern such as "photos/*.jpg".
    clicks: for one image a list of clicks, each (row, col) or (row, col, positive) in pixels, and boxes, each (top,
        left, bottom, right), see :meth:`Session.box`; or a mapping from object names to such lists. For a list of
        images, a list with one of these per image. Or the path of a click file (JSON, CSV or traces), if images are
        files; images without clicks are then skipped.
    initial: a mask to correct, as for :meth:`Model.session`; for a list of images, a list with a mask or None for each.
        Each image then has one object.
    protocol, changes, span: as for :meth:`Model.session`. binarize: label rule for an ``initial`` file, such as
        "gt128"; None: chosen by its values.
    out: folder to write masks to; masks are then not returned. The same call again skips files that are up to date.
        None: masks are returned, and nothing is written.
    formats: of the files: "png", "soft", "rle", "polygon" or "cutout"; or, about all images together, "coco", "yolo",
        "yolo_boxes" or "labelme". tolerance: maximum distance of a polygon from the outline, in pixels.
    device, precision, runtime: as for :func:`hrseg_cli.load`; a loaded model has its own.

    Raises HrsegError for errors that the caller can fix. With ``out``, all other images are processed first.
    """
    steps = load_protocol(name_of("protocol", protocol), changes_of(changes))
    kinds = listed("formats", formats)
    for kind in kinds:
        if kind not in engine.FORMATS:
            raise UnknownName("format", kind, engine.FORMATS)
    checked_tolerance(tolerance)
    rule = binarize_rule(binarize)
    jobs = _jobs(images, clicks, initial)
    loaded, chosen = model if isinstance(model, Model) else None, choice_of(model, device, precision, runtime)
    network, provenance = (loaded._network, loaded.provenance) if loaded else chosen.open()
    with reproducible():
        if out is None:
            return [_in_memory(job, network, steps, span, rule) for job in jobs]
        options = engine.PredictOptions(network, provenance, steps, tuple(kinds), tolerance, rule, span_of(span))
        return _into(Path(out), jobs, options)


class _Task(NamedTuple):
    image: Any
    object: str
    clicks: tuple[Prompt, ...]
    initial: Any


def _jobs(images: Any, clicks: Any, initial: Any) -> list[_Task]:
    """One per object, images in their order."""
    several = isinstance(images, list | tuple)
    if isinstance(clicks, str | PathLike):
        files = find_images(listed("images", images))
        path = Path(clicks)
        found, strangers = for_images(read_clicks(path), files, SUFFIXES, ids=path.suffix.lower() == ".jsonl")
        if strangers or not found:
            what = f"'{strangers[0]}' is not among `images`" if strangers else "none of its images is among `images`"
            raise HrsegError(f"`clicks` {path}: {what}; correct the names, or add the images")
        per_image: list[tuple[Any, Objects]] = list(found.items())
    else:
        pictures = _pictures(images) if several else _pictures([images])
        its = [clicks] if not several else list(clicks) if np.iterable(clicks) else [clicks]
        if len(its) != len(pictures):
            raise HrsegError(f"`clicks`: {len(its)} lists of clicks for {len(pictures)} images; give one per image")
        per_image = [(image, _objects(one)) for image, one in zip(pictures, its, strict=True)]
    masks = list(initial) if isinstance(initial, list | tuple) and several else [initial] * len(per_image)
    if initial is not None:
        if not several and len(per_image) > 1:
            raise HrsegError(f"`initial`: one mask for {len(per_image)} images; give a list with one per image")
        if len(masks) != len(per_image) or (several and not isinstance(initial, list | tuple)):
            raise HrsegError(f"`initial`: give a list with a mask, or None, for each of {len(per_image)} images")
        if any(len(objects) > 1 for _, objects in per_image):
            raise HrsegError("`initial`: an image has several objects; predict them in separate calls")
    return [
        _Task(image, name, its_clicks, mask)
        for (image, objects), mask in zip(per_image, masks, strict=True)
        for name, its_clicks in objects.items()
    ]


def _pictures(images: Sequence[Any]) -> list[Any]:
    """Images in memory, and paths of files; a folder or pattern gives all its images."""
    found: list[Any] = []
    for image in images:
        found += find_images([os.fspath(image)]) if isinstance(image, str | PathLike) else [image]
    return found


def _objects(clicks: Any) -> Objects:
    if isinstance(clicks, Mapping):
        if not clicks:
            raise HrsegError("`clicks`: no objects; give at least one")
        return {str(name): as_clicks(its) for name, its in clicks.items()}
    return {"": as_clicks(clicks)}


def _in_memory(
    job: _Task, network: InteractiveModel, steps: Protocol, span: str | tuple[float, float] | None, rule: BinarizeRule
) -> Prediction:
    path = job.image if isinstance(job.image, Path) else None
    pixels = as_image(job.image, span)
    size = (pixels.shape[0], pixels.shape[1])
    try:
        inside = [as_prompt(prompt, size) for prompt in job.clicks]
        session = Session(network, pixels, steps, as_initial(job.initial, size, rule), undo=0)
    except HrsegError as error:
        raise HrsegError(f"{path}: {error}" if path else str(error)) from None
    for prompt in inside:
        session.prompt(prompt)
    return Prediction(path, job.object, job.clicks, session.finish())


def _into(out: Path, jobs: list[_Task], options: engine.PredictOptions) -> list[Prediction]:
    for job in jobs:
        if not isinstance(job.image, Path):
            raise HrsegError("`out`: masks are named after image files; give paths as `images`, or omit it")
        if not isinstance(job.initial, str | PathLike | None):
            raise HrsegError("`initial`: with `out`, the mask must be a file; give its path")
        for path in (job.image, *([Path(job.initial)] if job.initial else [])):
            if path.parent.resolve() == out.resolve():
                raise HrsegError(f"`out` {out}: contains the input {path.name}; choose another folder")
    files = [engine.Job(job.image, job.object, job.clicks, job.initial and Path(job.initial)) for job in jobs]
    found, errors = [], []
    for job, outcome in zip(jobs, engine.predict(files, options, out), strict=True):
        if outcome.row is None:
            errors.append(outcome.error)
        else:
            found.append(Prediction(job.image, job.object, job.clicks, None, tuple(map(Path, outcome.row["files"]))))
    if errors:
        more = f" ({len(errors) - 1} more failed)" if len(errors) > 1 else ""
        raise HrsegError(f"{errors[0]}{more}")
    return found
