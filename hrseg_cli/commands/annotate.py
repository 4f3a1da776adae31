"""hrseg annotate: segment a folder of images by clicking in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hrseg_cli import catalog
from hrseg_cli.commands import headings, options
from hrseg_cli.errors import Interrupted


def annotate(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder of images, or a dataset with images/ and masks/.")
    ],
    range_: options.Range = None,
    model: options.Model = catalog.DEFAULT_MODEL,
    protocol: options.FastProtocol = "fast",
    set_: options.Changes = [],  # noqa: B006 - Typer copies it
    refine: options.Refine = None,
    device: Annotated[str, options.device_option(auto=True)] = "auto",
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision",
            metavar="PRECISION",
            rich_help_panel=headings.MACHINE,
            show_default="the faster one on this machine",
            help="Network precision: fp32 or bf16.",
        ),
    ] = None,
    runtime: options.Runtime = None,
    port: Annotated[
        int,
        typer.Option(
            "--port",
            metavar="N",
            min=0,
            max=65535,
            rich_help_panel=headings.MACHINE,
            help="Port of the page; 0 takes any free one.",
        ),
    ] = 8017,
    browser: Annotated[
        bool,
        typer.Option(
            "--browser/--no-browser", rich_help_panel=headings.MACHINE, help="Open the page in the default browser."
        ),
    ] = True,
) -> None:
    """Segment your own images by clicking on them in the browser.

    Prints the address of the page, which only this machine can open. Every click is saved: masks as a dataset for
    evaluate and train, clicks as traces, and both as COCO. Press Ctrl-C to stop.
    """
    from hrseg_cli.data.pixels import parse_span
    from hrseg_cli.recipe import load_protocol

    span = parse_span(range_) if range_ else None
    chosen = load_protocol(protocol, options.with_refiner(set_, refine))
    if device != "auto":
        options.device_of(device)

    from hrseg_cli.annotate.desk import Desk
    from hrseg_cli.annotate.folder import NOTES, Folder, images_of
    from hrseg_cli.annotate.server import serve
    from hrseg_cli.engine.devices import reproducible
    from hrseg_cli.engine.refining import prepare_refiner
    from hrseg_cli.engine.runtimes import automatic_device, open_model
    from hrseg_cli.writing import only_one_in

    images_of(folder)  # fails before anything is written there
    with only_one_in(folder / NOTES, str(folder)):  # locked before it is read, so that nothing changes in between
        # The faster device and precision by default: in interactive use, speed matters more than the last bits.
        device = automatic_device(model, runtime) if device == "auto" else device
        loaded, provenance = open_model(model, runtime, device, precision)
        prepare_refiner(chosen, device)
        opened = Folder(folder, chosen.threshold)
        try:
            with reproducible():
                serve(Desk(opened, loaded, provenance, chosen, name=model, span=span), port, browser, options.note)
        except Interrupted:
            options.note(f"stopped; all work is saved in {folder}")
