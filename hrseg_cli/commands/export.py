"""hrseg export: write a model as an ONNX file for other programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from hrseg_cli.commands import headings, options
from hrseg_cli.errors import HrsegError


def export(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Model: a name with weights, a checkpoint, or BASE+ADAPTER.")
    ],
    out: Annotated[
        Path,
        options.out_option("FILE.onnx", "ONNX file to write."),
    ],
    int8: Annotated[
        bool,
        typer.Option(
            "--int8",
            rich_help_panel=headings.OUTPUT,
            help="Quantise weights and activations to 8 bits; needs --calibrate.",
        ),
    ] = False,
    calibrate: Annotated[
        list[str],
        typer.Option(
            "--calibrate",
            metavar="DATASET",
            rich_help_panel=headings.DATA,
            help="Dataset for the calibration of --int8, written like evaluate's --dataset. Repeatable.",
        ),
    ] = [],  # noqa: B006 - Typer copies it
    calibrate_count: Annotated[
        int,
        typer.Option(
            "--calibrate-count",
            metavar="N",
            min=2,
            rich_help_panel=headings.DATA,
            help="Number of calibration objects, spread over the dataset.",
        ),
    ] = 24,
    root: options.Root = None,
) -> None:
    """Export a model as one ONNX file: image, previous mask and clicks in, probability out, for any image size.

    The file is checked against PyTorch at three sizes before it is written; the JSON row reports the differences. With
    --int8 it also reports how much predictions changed; 'hrseg evaluate --model FILE.onnx' counts clicks.
    """
    if out.suffix != ".onnx":
        raise HrsegError(f"--out {out}: give a file name that ends in .onnx")
    if int8 != bool(calibrate):
        raise HrsegError("--int8 needs --calibrate DATASET, and --calibrate needs --int8; give both or none")

    from hrseg_cli.checkpoints.resolve import load_model
    from hrseg_cli.engine import export as engine
    from hrseg_cli.writing import only_one

    engine.need("onnx")
    loaded, provenance = load_model(model)
    with only_one(out, f"--out {out}"):
        if not int8:
            header = engine.export(loaded, out, provenance)
        else:
            from hrseg_cli.data.datasets import open_datasets
            from hrseg_cli.engine.quantize import quantize

            opened = open_datasets(calibrate, root=root)
            options.warn_incomplete(opened)
            header = quantize(loaded, out, provenance, opened.refs, calibrate_count)
    row = {key: header[key] for key in ("opset", "precision", "checked", "int8") if key in header}
    typer.echo(json.dumps({"written": str(out), "bytes": out.stat().st_size, **row}))
