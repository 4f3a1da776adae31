"""hrseg refine: better masks from existing ones."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from hrseg_cli import catalog
from hrseg_cli.commands import headings, options
from hrseg_cli.errors import HrsegError


def refine(
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE", help="Images, folders of images, or quoted patterns ('*.jpg').")
    ],
    masks: Annotated[
        Path,
        typer.Option(
            "--masks",
            metavar="PATH",
            rich_help_panel=headings.DATA,
            help="Masks to refine: a mask file, a folder of files STEM.png, STEM_NAME.png or STEM_soft.png, or a COCO "
            "file (annotations or results).",
        ),
    ],
    instances: options.Instances = False,
    soft: Annotated[
        bool,
        typer.Option(
            "--soft", rich_help_panel=headings.DATA, help="Grey values of masks are probabilities, not labels."
        ),
    ] = False,
    binarize: options.BinarizeAuto = None,
    image_list: Annotated[
        Path | None,
        typer.Option(
            "--image-list",
            metavar="FILE",
            rich_help_panel=headings.DATA,
            show_default="--truth, or files named by image id",
            help="COCO file that lists the images of COCO results.",
        ),
    ] = None,
    range_: options.Range = None,
    refiner: Annotated[
        str,
        typer.Option(
            "--refiner",
            metavar="REFINER",
            rich_help_panel=headings.REFINER,
            help=f"Refiner: {', '.join(catalog.REFINERS)} ('hrseg list refiners').",
        ),
    ] = "guided_filter",
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights", metavar="FILE", rich_help_panel=headings.REFINER, help="Weights of the refiner's network."
        ),
    ] = None,
    set_: Annotated[list[str], options.changes_option(headings.REFINER, "refiner's options", "radius=8")] = [],  # noqa: B006
    model: options.Model = catalog.DEFAULT_MODEL,
    clicks: Annotated[
        Path | None,
        typer.Option(
            "--clicks",
            metavar="FILE",
            rich_help_panel=headings.REFINER,
            help="Clicks on the objects, for refiners that take them (zoom_in): JSON, CSV or traces (.jsonl).",
        ),
    ] = None,
    truth: Annotated[
        Path | None,
        typer.Option(
            "--truth",
            metavar="PATH",
            rich_help_panel=headings.METRICS,
            help="Ground truth in the form of --masks; adds a table of scores before and after.",
        ),
    ] = None,
    band: options.Band = "0.02",
    out: Annotated[Path, options.out_option("FOLDER", "Folder for the refined masks.")] = Path("runs/refine"),
    threshold: Annotated[
        float,
        typer.Option(
            "--threshold",
            metavar="P",
            rich_help_panel=headings.OUTPUT,
            help="Pixels with a higher probability are object.",
        ),
    ] = 0.5,
    tolerance: Annotated[
        float,
        typer.Option(
            "--tolerance",
            metavar="PX",
            rich_help_panel=headings.OUTPUT,
            help="Maximum distance in pixels between a COCO polygon and the mask's outline.",
        ),
    ] = 0.0,
    device: options.Device = "cpu",
    precision: options.Precision = "fp32",
    runtime: options.Runtime = None,
) -> None:
    """Improve existing masks: of other models, COCO results, or drawn by hand.

    Writes masks in the format in which they were read; ids, categories and scores are kept, areas and boxes recomputed.
    Prints one JSON row per mask file, or per image of a COCO file; with --truth, a row of scores per set and metric.
    Rerun the same command to resume; existing results are kept.
    """
    from hrseg_cli.data.pixels import parse_span
    from hrseg_cli.recipe import binarize_rule

    catalog.check("refiner", refiner)
    rule, span = binarize_rule(binarize), parse_span(range_) if range_ else None
    options.device_of(device)

    from hrseg_cli.api import refining as api
    from hrseg_cli.engine import refine as engine
    from hrseg_cli.engine.devices import reproducible
    from hrseg_cli.engine.runtimes import open_model
    from hrseg_cli.metrics.masks import band_of

    api.checked_numbers(threshold, tolerance)
    width = band_of(band)
    opened = api.opened_refiner(refiner, weights, set_, device)
    kind = api.kind_of(instances, soft)
    prepared = api.prepare(
        opened, images, masks, kind, rule, out, image_list=image_list, truth=truth, tolerance=tolerance
    )
    network, provenance = open_model(model, runtime, device, precision) if opened.needs_model else (None, None)
    given = api.clicks_for(opened, prepared.masks, clicks)
    asked = engine.RefineOptions(opened, network, provenance, threshold, prepared.truths, width, span, given)
    errors = list(prepared.problems)
    kept, units = 0, prepared.masks.units
    rows = sys.stdout  # while the bar is shown, print() writes to the bar's stderr
    with reproducible(), options.progress() as bar:
        for result in bar.track(engine.refine(prepared.masks, asked, out), len(units), description="masks"):
            kept += result.kept
            errors += result.errors
            if result.row is not None and truth is None:
                line = json.dumps(result.row, ensure_ascii=False)
                print(line, file=sys.stdout if rows.isatty() else rows, flush=True)
    if truth is not None:
        for row in engine.table(out) + engine.precision_rows(prepared.masks, prepared.truths, out, width):
            typer.echo(json.dumps(row, ensure_ascii=False))
    if kept:
        options.note(f"{kept} of {len(units)} were already done")
    if errors:
        *others, last = errors
        for line in others:
            options.note(f"hrseg: {line}")
        raise HrsegError(last)
