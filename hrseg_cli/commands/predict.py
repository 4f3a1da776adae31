"""hrseg predict: masks for your own images."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hrseg_cli import catalog
from hrseg_cli.commands import headings, options
from hrseg_cli.errors import HrsegError, UnknownName

if TYPE_CHECKING:
    from hrseg_cli.clicks.files import Objects
    from hrseg_cli.engine.predict import Job


def predict(
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE", help="Images, folders of images, or quoted patterns ('*.jpg').")
    ],
    range_: options.Range = None,
    model: options.Model = catalog.DEFAULT_MODEL,
    click: Annotated[
        list[str],
        typer.Option(
            "--click",
            metavar="ROW,COL[,neg]",
            rich_help_panel=headings.CLICKS,
            help="Click at ROW,COL in pixels; append ,neg for background. Repeatable.",
        ),
    ] = [],  # noqa: B006 - Typer copies it
    box: Annotated[
        str | None,
        typer.Option(
            "--box",
            metavar="TOP,LEFT,BOTTOM,RIGHT",
            rich_help_panel=headings.CLICKS,
            help="Box around the object in pixels, alone or before the clicks of --click.",
        ),
    ] = None,
    clicks: Annotated[
        Path | None,
        typer.Option(
            "--clicks",
            metavar="FILE",
            rich_help_panel=headings.CLICKS,
            help="Clicks and boxes for many images: JSON, CSV or traces (.jsonl).",
        ),
    ] = None,
    init_mask: Annotated[
        Path | None,
        typer.Option(
            "--init-mask",
            metavar="PATH",
            rich_help_panel=headings.CLICKS,
            help="Mask to correct: a file, a folder with STEM.png for each image, or the --out of an earlier call.",
        ),
    ] = None,
    binarize: Annotated[
        str | None,
        typer.Option(
            "--binarize",
            metavar="RULE",
            rich_help_panel=headings.CLICKS,
            show_default="auto",
            help=f"Which grey values of --init-mask are object: {options.RULES}.",
        ),
    ] = None,
    protocol: options.FastProtocol = "fast",
    set_: options.Changes = [],  # noqa: B006
    refine: options.Refine = None,
    out: Annotated[
        Path,
        options.out_option("FOLDER", "Folder for the masks."),
    ] = Path("runs/predict"),
    format_: Annotated[
        list[str],
        options.format_option(
            "png (mask), soft (probability), rle (COCO run lengths), polygon, or cutout (transparent background); "
            "or, about all images, coco (one JSON file with categories), yolo (polygons), yolo_boxes or labelme. "
            "Repeatable."
        ),
    ] = ["png"],  # noqa: B006
    tolerance: Annotated[
        float,
        typer.Option(
            "--tolerance",
            metavar="PX",
            rich_help_panel=headings.OUTPUT,
            help="Of polygons (--format polygon, yolo or labelme): maximum distance in pixels from the mask's outline.",
        ),
    ] = 1.0,
    device: options.Device = "cpu",
    precision: options.Precision = "fp32",
    runtime: options.Runtime = None,
) -> None:
    """Segment your own images from clicks and write masks at full resolution.

    Prints one JSON row per object. Rerun the same command to resume; existing results are kept.
    """
    from hrseg_cli.data.exports import KINDS, PLACES
    from hrseg_cli.data.masks_out import ENDINGS, checked_tolerance
    from hrseg_cli.data.photos import find_images
    from hrseg_cli.data.pixels import parse_span
    from hrseg_cli.recipe import binarize_rule, load_protocol

    for name in format_:
        if name not in (*ENDINGS, *KINDS):
            raise UnknownName("format", name, (*ENDINGS, *KINDS))
    checked_tolerance(tolerance)
    rule, span = binarize_rule(binarize), parse_span(range_) if range_ else None
    chosen = load_protocol(protocol, options.with_refiner(set_, refine))
    options.device_of(device)
    found = find_images(images)
    for image in found:
        if image.parent.resolve() == out.resolve():
            raise HrsegError(
                f"--out {out}: contains the input {image.name}, which a mask could overwrite; choose another folder"
            )
    objects = _clicks_of(found, click, box, clicks)

    from hrseg_cli.engine import predict as engine
    from hrseg_cli.engine.devices import reproducible
    from hrseg_cli.engine.refining import prepare_refiner
    from hrseg_cli.engine.runtimes import open_model

    jobs = [engine.Job(image, name, its) for image, inside in objects.items() for name, its in inside.items()]
    if init_mask:
        jobs = _with_masks(jobs, init_mask, out)
    loaded, provenance = open_model(model, runtime, device, precision)
    prepare_refiner(chosen, device)
    asked = engine.PredictOptions(loaded, provenance, chosen, tuple(dict.fromkeys(format_)), tolerance, rule, span)
    errors: dict[str, None] = {}
    kept = 0
    rows = sys.stdout  # while the bar is shown, print() writes to the bar's stderr
    with reproducible(), options.progress() as bar:
        for outcome in bar.track(engine.predict(jobs, asked, out), len(jobs), description="objects"):
            kept += outcome.kept
            if outcome.row is None:
                errors[outcome.error] = None
            else:
                print(
                    json.dumps(outcome.row, ensure_ascii=False), file=sys.stdout if rows.isatty() else rows, flush=True
                )
    if places := [str(out / PLACES[kind]) for kind in dict.fromkeys(format_) if kind in PLACES]:
        options.note(f"all objects together: {', '.join(places)}")
    if kept:
        options.note(f"{kept} of {len(jobs)} objects were already done")
    if errors:
        *others, last = errors
        for line in others:
            options.note(f"hrseg: {line}")
        raise HrsegError(last)


def _clicks_of(images: list[Path], typed: list[str], box: str | None, path: Path | None) -> dict[Path, Objects]:
    """Image -> object name -> clicks and boxes, from --click and --box, or from --clicks. Raises HrsegError."""
    from hrseg_cli.clicks.files import for_images, parse_box, parse_click, read_clicks
    from hrseg_cli.data.pixels import SUFFIXES

    given = "--click" if typed else "--box"
    if (typed or box) and path:
        raise HrsegError(f"{given} and --clicks: give only one of them")
    if typed or box:
        if len(images) > 1:
            raise HrsegError(f"{given} works on one image, not on {len(images)}; use --clicks FILE")
        drawn = [parse_box(box)] if box else []
        return {images[0]: {"": (*drawn, *(parse_click(text) for text in typed))}}
    if path is None:
        raise HrsegError(
            "no clicks; give --click ROW,COL or --box TOP,LEFT,BOTTOM,RIGHT, or --clicks FILE for several images"
        )
    found, strangers = for_images(read_clicks(path), images, SUFFIXES, ids=path.suffix.lower() == ".jsonl")
    if not found:
        raise HrsegError(
            f'--clicks {path}: no clicks for these images; write for example {{"{images[0].name}": [[row, col, 1]]}}'
        )
    if strangers:
        options.note(f"{path}: ignoring clicks for {len(strangers)} other images, such as {strangers[0]}")
    if len(found) < len(images):
        options.note(f"skipping {len(images) - len(found)} of {len(images)} images, which have no clicks")
    return found


def _with_masks(jobs: list[Job], path: Path, out: Path) -> list[Job]:
    """The jobs with their initial masks: a file for one job; in a folder the mask that ``predict`` recorded for the
    object, else STEM.png or STEM_OBJECT.png. Raises HrsegError if one file would serve two objects."""
    from dataclasses import replace

    if not path.exists():
        raise HrsegError(f"--init-mask {path}: no such file or folder")
    if path.is_file() and len(jobs) > 1:
        raise HrsegError(
            f"--init-mask {path}: one file for {len(jobs)} objects; give a folder with STEM.png for each image"
        )
    if (path if path.is_dir() else path.parent).resolve() == out.resolve():
        raise HrsegError(f"--init-mask {path}: is in --out and would be overwritten; choose another --out")
    masks = _masks_in(path, jobs) if path.is_dir() else [path]
    return [replace(job, initial=mask) for job, mask in zip(jobs, masks, strict=True)]


def _masks_in(folder: Path, jobs: list[Job]) -> list[Path]:
    """The mask of each job in a folder. Raises HrsegError if one is missing, belongs to another object, or to two."""
    from functools import cache

    from hrseg_cli.data.photos import masks_by_stem
    from hrseg_cli.engine.predict import RECORDS, read_records

    records = read_records(folder) if (folder / RECORDS).exists() else {}
    owners = {folder / file: key for key, record in records.items() for file in record["files"]}
    pictures = cache(masks_by_stem)  # of a folder, by stem
    masks: dict[Path, Job] = {}
    missing = []
    for job in jobs:
        recorded = job.key in records
        mask = folder / f"{records[job.key]['name']}.png" if recorded else pictures(folder).get(job.stem)
        if mask is None or (recorded and not mask.is_file()):
            missing.append(mask.name if mask else f"{job.stem}.png")
            continue
        if job.object and not recorded and (picture := pictures(job.image.parent).get(job.stem)):
            raise HrsegError(
                f"--init-mask {folder}: {mask.name} may be the mask of {picture} or of {_label(*job.key)}; process the "
                "images in separate calls, each with its mask file"
            )
        if (owner := owners.get(mask, job.key)) != job.key:
            raise HrsegError(
                f"--init-mask {folder}: {mask.name} is the mask of {_label(*owner)} according to {RECORDS}, and "
                f"{_label(*job.key)} has none; give it its own mask file"
            )
        if (other := masks.setdefault(mask, job)) is not job:
            raise HrsegError(
                f"--init-mask {folder}: {mask.name} matches both {_label(*other.key)} and {_label(*job.key)}; process "
                "them in separate calls, each with its mask file"
            )
    if missing:
        raise HrsegError(f"--init-mask {folder}: {missing[0]} is missing ({len(missing)} in all); add it")
    return list(masks)


def _label(image: str, name: str) -> str:
    return f"{image}, object '{name}'" if name else image
