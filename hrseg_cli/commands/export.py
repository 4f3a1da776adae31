"""hrseg export: the click step for other programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from hrseg_cli.commands import options
from hrseg_cli.errors import HrsegError


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A checkpoint, a model's name, or BASE+ADAPTER.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE.onnx", help="The file to write.")],
    int8: Annotated[
        bool, typer.Option("--int8", help="Weights and activations in 8 bits, calibrated on --calibrate.")
    ] = False,
    calibrate: Annotated[
        list[str],
        typer.Option(
            "--calibrate", metavar="DATASET", help="Objects to click on, as --dataset takes them. Repeatable."
        ),
    ] = [],  # noqa: B006 - Typer copies it
    calibrate_count: Annotated[
        int, typer.Option("--calibrate-count", metavar="N", min=2, help="How many objects, spread over the dataset.")
    ] = 24,
    root: options.Root = None,
) -> None:
    """Write the whole click step (image, previous mask, clicks -> probability) as one ONNX file of any input size.

    It is checked against PyTorch at three sizes before it is written; the JSON row tells the differences. With --int8
    the row tells how much the answers to some of the clicks changed; 'hrseg evaluate --model FILE.onnx' counts them.
    """
    if out.suffix != ".onnx":
        raise HrsegError(f"--out {out}: name a file that ends in .onnx")
    if int8 != bool(calibrate):
        raise HrsegError("--int8 and --calibrate DATASET: give both, or none")

    from hrseg_cli.checkpoints.resolve import load_model
    from hrseg_cli.engine import export as engine
    from hrseg_cli.writing import only_one

    engine.need("onnx")
    loaded, provenance = load_model(model)
    with only_one(out, f"--out {out}"):
        if not int8:
            header = engine.export(loaded, out, provenance)
        else:
            from hrseg_cli.engine.quantize import quantize

            opened = options.open_datasets(calibrate, root, False, "auto", None)
            header = quantize(loaded, out, provenance, opened.refs, calibrate_count)
    row = {key: header[key] for key in ("opset", "precision", "checked", "int8") if key in header}
    typer.echo(json.dumps({"written": str(out), "bytes": out.stat().st_size, **row}))
