"""Options that several commands share, and what their texts mean."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from hrseg_cli import catalog
from hrseg_cli.errors import HrsegError, UnknownName

if TYPE_CHECKING:  # pydantic and rich take longer to import than the help to print
    from rich.progress import Progress

    from hrseg_cli.recipe import BinarizeRule, Protocol

Model = Annotated[
    str,
    typer.Option(
        "--model", "-m", metavar="MODEL", help="A checkpoint (.pth of RITM, .safetensors of hrseg), or 'grabcut'."
    ),
]
Datasets = Annotated[
    list[str],
    typer.Option(
        "--dataset",
        "-d",
        metavar="DATASET",
        help="A folder, NAME=FOLDER (a layout's name forces that layout), a name under the data root, or 'procedural'. "
        "Repeatable.",
    ),
]
Metrics = Annotated[list[str], typer.Option("--metric", metavar="METRIC", help="iou, biou or mba; repeatable.")]
ProtocolName = Annotated[
    str,
    typer.Option("--protocol", metavar="PROTOCOL", help="ritm, ritm-davis, fixed, plain, or the path of a YAML file."),
]
Changes = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Change the protocol, e.g. zoom.target=600. Repeatable.")
]
Until = Annotated[
    list[str],
    typer.Option(
        "--until",
        metavar="VALUE",
        help="Stop an object when every metric has reached this: 0.90, or METRIC=VALUE, repeatable. Above 1: never.",
    ),
]
MaxClicks = Annotated[
    int | None, typer.Option("--max-clicks", metavar="N", min=1, help="Clicks per object [protocol's].")
]
Limit = Annotated[
    int | None, typer.Option("--limit", metavar="N", min=1, help="Only the first N objects of each dataset.")
]
Workers = Annotated[
    int,
    typer.Option(
        "--workers",
        metavar="N",
        min=0,
        help="Processes, one thread each; 0: one per core. Results do not depend on it.",
    ),
]
Root = Annotated[
    Path | None, typer.Option("--root", metavar="FOLDER", help="Where named datasets lie [$HRSEG_DATA or ./data].")
]
Instances = Annotated[bool, typer.Option("--instances", help="Masks hold one object per grey value or palette index.")]
Binarize = Annotated[
    str | None,
    typer.Option(
        "--binarize",
        metavar="RULE",
        help="How grey values become truth: auto, nonzero, gt128, void128, grabcut [protocol's].",
    ),
]
Device = Annotated[str, typer.Option("--device", metavar="DEVICE", help="cpu or cuda[:N].")]
Band = Annotated[
    str,
    typer.Option("--band", metavar="WIDTH", help="Width of Boundary IoU's band: 0.02 of the diagonal, or e.g. 5px."),
]


def protocol_of(name: str, changes: list[str], binarize: str | None) -> Protocol:
    """The protocol with all that was changed on the command line, in its name too."""
    from hrseg_cli.recipe import load_protocol

    binarize_of(binarize)
    return load_protocol(name, [*changes, *([f"binarize={binarize}"] if binarize else [])])


def binarize_of(text: str | None) -> BinarizeRule:
    from hrseg_cli.recipe import BinarizeRule

    rules = get_args(BinarizeRule)
    if text is not None and text not in rules:
        raise UnknownName("label rule", text, rules)
    return cast(BinarizeRule, text or "auto")


def until_of(texts: list[str], metrics: list[str]) -> dict[str, float]:
    """Asked metric -> target. Raises HrsegError or UnknownName."""
    if not metrics:
        raise HrsegError("--metric: ask for at least one of iou, biou, mba")
    for metric in metrics:
        if metric not in catalog.METRICS:
            raise UnknownName("metric", metric, catalog.METRICS)
    targets = dict.fromkeys(metrics, 0.90)
    for text in texts:
        name, equals, value = text.rpartition("=")
        if equals and name not in targets:
            raise HrsegError(f"--until {text}: '{name}' is not asked for; add --metric {name}")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not number > 0:
            raise HrsegError(f"--until {text}: write a number above 0 such as 0.90, or biou=0.85")
        targets.update(dict.fromkeys([name] if equals else metrics, number))
    return targets


def band_of(text: str) -> dict[str, float]:
    """Keyword arguments of Boundary IoU: ``ratio`` of the diagonal or ``width`` in pixels."""
    if pixels := re.fullmatch(r"([1-9]\d*)px", text):
        return {"width": int(pixels.group(1))}
    try:
        ratio = float(text)
    except ValueError:
        ratio = 0.0
    if not 0 < ratio < 1:
        raise HrsegError(f"--band {text}: write a share of the diagonal such as 0.02, or pixels such as 5px")
    return {"ratio": ratio}


def workers_of(number: int, device: str) -> int:
    """0 means one per core this process may use, and one on an accelerator."""
    if number:
        return number
    return len(os.sched_getaffinity(0)) if device == "cpu" and hasattr(os, "sched_getaffinity") else 1


def device_of(text: str) -> str:
    """Checked here so that a missing accelerator is one line. Imports torch for anything but ``cpu``."""
    if text == "cpu":
        return text
    import torch

    try:
        device = torch.device(text)
    except RuntimeError:
        raise HrsegError(f"--device {text}: write cpu or cuda") from None
    if device.type != "cuda":
        raise HrsegError(f"--device {text}: write cpu or cuda")
    if not torch.cuda.is_available():
        raise HrsegError(f"--device {text}: this PyTorch sees no GPU; use --device cpu")
    return text


def progress() -> Progress:
    """A progress bar with the time left, on stderr; gone when finished."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=Console(stderr=True), transient=True)
