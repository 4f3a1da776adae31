"""hrseg predict: masks of one's own images."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hrseg_cli.commands import options
from hrseg_cli.errors import HrsegError, UnknownName

if TYPE_CHECKING:
    from hrseg_cli.clicks.files import Objects
    from hrseg_cli.engine.predict import Job


def predict(
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE", help="Images, folders of images, or patterns in quotes.")
    ],
    model: options.Model = "h18s",
    click: Annotated[
        list[str],
        typer.Option("--click", metavar="ROW,COL[,neg]", help="A click on the object; neg: beside it. Repeatable."),
    ] = [],  # noqa: B006 - Typer copies it
    clicks: Annotated[
        Path | None, typer.Option("--clicks", metavar="FILE", help="Clicks by image: JSON, CSV or traces (.jsonl).")
    ] = None,
    init_mask: Annotated[
        Path | None,
        typer.Option(
            "--init-mask",
            metavar="FILE|FOLDER",
            help="A mask to correct, or a folder: an earlier --out, or STEM.png of each image.",
        ),
    ] = None,
    format_: Annotated[
        list[str], typer.Option("--format", metavar="FORMAT", help="png, soft, rle, polygon or cutout; repeatable.")
    ] = ["png"],  # noqa: B006
    binarize: Annotated[
        str | None,
        typer.Option("--binarize", metavar="RULE", help="How values of --init-mask are read, as for datasets [auto]."),
    ] = None,
    range_: options.Range = None,
    tolerance: Annotated[
        float, typer.Option("--tolerance", metavar="PX", help="How far a polygon may lie beside the outline.")
    ] = 1.0,
    protocol: Annotated[
        str, typer.Option("--protocol", metavar="PROTOCOL", help="fast, photo, another protocol, or a YAML file.")
    ] = "fast",
    set_: options.Changes = [],  # noqa: B006
    device: options.Device = "cpu",
    precision: options.Precision = "fp32",
    runtime: options.Runtime = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where the masks go.")] = Path(
        "runs/predict"
    ),
) -> None:
    """Segment your own images by clicks and write the masks at full size.

    Prints one JSON row per object. The same command goes on where an interrupted one stopped, and does not do again
    what is there already.
    """
    from hrseg_cli.data.masks_out import ENDINGS
    from hrseg_cli.data.photos import find_images
    from hrseg_cli.data.pixels import parse_span
    from hrseg_cli.recipe import load_protocol

    for name in format_:
        if name not in ENDINGS:
            raise UnknownName("format", name, ENDINGS)
    if not 0 <= tolerance < math.inf:
        raise HrsegError(f"--tolerance {tolerance}: write pixels, 0 or more")
    rule, span = options.binarize_of(binarize), parse_span(range_) if range_ else None
    chosen = load_protocol(protocol, set_)
    options.device_of(device)
    found = find_images(images)
    for image in found:
        if image.parent.resolve() == out.resolve():
            raise HrsegError(f"--out {out}: holds {image.name} itself; name another folder, masks are called alike")
    objects = _clicks_of(found, click, clicks)

    from hrseg_cli.engine import predict as engine
    from hrseg_cli.engine.devices import reproducible
    from hrseg_cli.engine.runtimes import open_model

    jobs = [engine.Job(image, name, its) for image, inside in objects.items() for name, its in inside.items()]
    if init_mask:
        jobs = _with_masks(jobs, init_mask, out)
    loaded, provenance = open_model(model, runtime, device, precision)
    asked = engine.PredictOptions(loaded, provenance, chosen, tuple(dict.fromkeys(format_)), tolerance, rule, span)
    errors: dict[str, None] = {}
    kept = 0
    rows = sys.stdout  # the bar would redirect what is printed below it to where it stands, on stderr
    with reproducible(), options.progress() as bar:
        for outcome in bar.track(engine.predict(jobs, asked, out), len(jobs), description="objects"):
            kept += outcome.kept
            if outcome.row is None:
                errors[outcome.error] = None
            else:
                print(
                    json.dumps(outcome.row, ensure_ascii=False), file=sys.stdout if rows.isatty() else rows, flush=True
                )
    if kept:
        options.note(f"{kept} of {len(jobs)} objects were there already")
    if errors:
        *others, last = errors
        for line in others:
            options.note(f"hrseg: {line}")
        raise HrsegError(last)


def _clicks_of(images: list[Path], typed: list[str], path: Path | None) -> dict[Path, Objects]:
    """Image -> name of an object -> its clicks, from --click or --clicks."""
    from hrseg_cli.clicks.files import for_images, parse_click, read_clicks
    from hrseg_cli.data.pixels import SUFFIXES

    if typed and path:
        raise HrsegError("--click and --clicks: give one of them")
    if typed:
        if len(images) > 1:
            raise HrsegError(f"--click is for one image, and these are {len(images)}; write --clicks FILE for several")
        return {images[0]: {"": tuple(parse_click(text) for text in typed)}}
    if path is None:
        raise HrsegError("nothing is clicked; give --click ROW,COL, or --clicks FILE for several images")
    found, strangers = for_images(read_clicks(path), images, SUFFIXES, ids=path.suffix.lower() == ".jsonl")
    if not found:
        raise HrsegError(f'--clicks {path}: names none of these images; write {{"{images[0].name}": [[row, col, 1]]}}')
    if strangers:
        options.note(f"{path}: clicks for {len(strangers)} images that are not among these, such as {strangers[0]}")
    if len(found) < len(images):
        options.note(f"{len(images) - len(found)} of {len(images)} images have no clicks and are left out")
    return found


def _with_masks(jobs: list[Job], path: Path, out: Path) -> list[Job]:
    """The jobs with the masks they start from: a file for one; in a folder what ``predict`` recorded there for the
    object, else STEM.png or STEM_OBJECT.png. Raises HrsegError where one file would serve two objects."""
    from dataclasses import replace

    if not path.exists():
        raise HrsegError(f"--init-mask {path}: no such file or folder")
    if path.is_file() and len(jobs) > 1:
        raise HrsegError(f"--init-mask {path}: one file for {len(jobs)} objects; give a folder of STEM.png")
    if (path if path.is_dir() else path.parent).resolve() == out.resolve():
        raise HrsegError(f"--init-mask {path}: lies in --out, where it would be overwritten; name another --out")
    masks = _masks_in(path, jobs) if path.is_dir() else [path]
    return [replace(job, initial=mask) for job, mask in zip(jobs, masks, strict=True)]


def _masks_in(folder: Path, jobs: list[Job]) -> list[Path]:
    """The mask of each job in a folder. Raises HrsegError where it is missing, another object's, or of two jobs."""
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
                f"--init-mask {folder}: {mask.name} may be the mask of {picture} or of {_told(*job.key)}; run them one "
                "by one, each with the file of its mask"
            )
        if (owner := owners.get(mask, job.key)) != job.key:
            raise HrsegError(
                f"--init-mask {folder}: {mask.name} is the mask of {_told(*owner)} by its {RECORDS}, which has none of "
                f"{_told(*job.key)}; give that one a mask file of its own"
            )
        if (other := masks.setdefault(mask, job)) is not job:
            raise HrsegError(
                f"--init-mask {folder}: {mask.name} would be the mask of {_told(*other.key)} and of {_told(*job.key)}; "
                "run them one by one, each with the file of its mask"
            )
    if missing:
        raise HrsegError(f"--init-mask {folder}: has no {missing[0]} ({len(missing)} missing); add it")
    return list(masks)


def _told(image: str, name: str) -> str:
    return f"{image}, object '{name}'" if name else image
