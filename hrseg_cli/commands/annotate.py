"""hrseg annotate: a page to click on, for a folder of one's own images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hrseg_cli.commands import options
from hrseg_cli.errors import Interrupted


def annotate(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A folder of images, or one that holds images/ and perhaps masks/.")
    ],
    model: options.Model = "h18s",
    protocol: Annotated[
        str, typer.Option("--protocol", metavar="PROTOCOL", help="fast, photo, another protocol, or a YAML file.")
    ] = "fast",
    set_: options.Changes = [],  # noqa: B006 - Typer copies it
    range_: options.Range = None,
    device: options.Device = "cpu",
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision",
            metavar="PRECISION",
            help="Network precision, fp32 or bf16 [the faster one on this machine].",
        ),
    ] = None,
    runtime: options.Runtime = None,
    port: Annotated[
        int, typer.Option("--port", metavar="N", min=0, max=65535, help="Where the page is served; 0: any free one.")
    ] = 8017,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page.")] = True,
) -> None:
    """Segment your own images by clicking on them in the browser.

    The page's address is printed; it works on this machine only. Every click is saved: masks as a dataset that
    evaluate and train read, clicks as traces, everything as COCO. Ctrl-C ends it.
    """
    from hrseg_cli.data.pixels import parse_span
    from hrseg_cli.recipe import load_protocol

    span = parse_span(range_) if range_ else None
    chosen = load_protocol(protocol, set_)
    options.device_of(device)

    from hrseg_cli.annotate.desk import Desk
    from hrseg_cli.annotate.folder import NOTES, Folder, images_of
    from hrseg_cli.annotate.server import serve
    from hrseg_cli.engine.devices import reproducible
    from hrseg_cli.engine.runtimes import open_model
    from hrseg_cli.writing import only_one_in

    images_of(folder)  # complains before anything is written there
    with only_one_in(folder / NOTES, str(folder)):  # before the folder is read: what is read is what is there
        # The faster precision by itself: a person who waits gains more than the last bits of the answers are worth.
        loaded, provenance = open_model(model, runtime, device, precision)
        opened = Folder(folder, chosen.threshold)
        try:
            with reproducible():
                serve(Desk(opened, loaded, provenance, chosen, name=model, span=span), port, browser, options.note)
        except Interrupted:
            options.note(f"stopped; everything is saved in {folder}")
