"""Options that several commands share, and what their texts mean."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hrseg_cli import catalog
from hrseg_cli.commands.shards import share_of_cores
from hrseg_cli.data.paths import data_root as data_root
from hrseg_cli.errors import HrsegError, UnknownName

if TYPE_CHECKING:  # pydantic and rich take longer to import than the help to print
    from rich.progress import Progress

    from hrseg_cli.data.datasets import Opened
    from hrseg_cli.recipe import BinarizeRule, Protocol

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="A checkpoint (.pth of RITM, .safetensors of hrseg), BASE+ADAPTER, or a name: h18s, grabcut.",
    ),
]
Datasets = Annotated[
    list[str],
    typer.Option(
        "--dataset",
        "-d",
        metavar="DATASET",
        help="A folder, NAME=FOLDER (a layout's name forces that layout), a name under the data root, or 'procedural'. "
        "FOLDER:range=LOW..HIGH gives black and white of images with more than 8 bits. Repeatable.",
    ),
]
Metrics = Annotated[list[str], typer.Option("--metric", metavar="METRIC", help="iou, biou or mba; repeatable.")]
ProtocolName = Annotated[
    str | None,
    typer.Option(
        "--protocol",
        metavar="PROTOCOL",
        help="ritm, ritm-davis, fixed, plain, or a YAML file [the known dataset's, else ritm].",
    ),
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
        help="Processes, one thread each; 0: one per core. With --in-flight: threads for clicks, scores and decoding; "
        "0: up to 4. Results do not depend on it.",
    ),
]
InFlight = Annotated[
    int,
    typer.Option(
        "--in-flight",
        metavar="N",
        min=0,
        help="Objects at once on one model, their looks in batches; 0: 1 on a CPU, 32 on a GPU. Numbers depend on "
        "it by rounding only.",
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
        help="How grey values become truth: auto, nonzero, gt128, void128, void255, grabcut [protocol's].",
    ),
]
Range = Annotated[
    str | None,
    typer.Option(
        "--range", metavar="LOW..HIGH", help="Black and white of images with more than 8 bits, such as 0..4095."
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        "--precision", metavar="PRECISION", help="Of the network: fp32, or bf16: quicker, numbers differ a little."
    ),
]
Runtime = Annotated[
    str | None,
    typer.Option(
        "--runtime",
        metavar="RUNTIME",
        help="torch, onnxruntime, openvino or openvino-bf16; an .onnx file of 'hrseg export' works as --model too.",
    ),
]
Device = Annotated[str, typer.Option("--device", metavar="DEVICE", help="cpu or cuda[:N].")]
Band = Annotated[
    str,
    typer.Option("--band", metavar="WIDTH", help="Width of Boundary IoU's band: 0.02 of the diagonal, or e.g. 5px."),
]


def protocol_of(name: str | None, changes: list[str], binarize: str | None) -> Protocol:
    """The protocol (ritm where none is named) with all that was changed on the command line, in its name too."""
    from hrseg_cli.recipe import load_protocol

    binarize_of(binarize)
    return load_protocol(name or "ritm", [*changes, *([f"binarize={binarize}"] if binarize else [])])


def binarize_of(text: str | None) -> BinarizeRule:
    from hrseg_cli.recipe import binarize_rule

    return binarize_rule(text)


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
        if not 0 < number < math.inf:
            raise HrsegError(f"--until {text}: write a number above 0 such as 0.90, or biou=0.85")
        targets.update(dict.fromkeys([name] if equals else metrics, number))
    return targets


def in_flight_of(number: int, device: str) -> int:
    """0 means 1 on a CPU, where a batch is no quicker than its parts, and 32 on an accelerator."""
    return number or (1 if device == "cpu" else 32)


def workers_of(number: int, device: str, in_flight: int = 1) -> int:
    """0 means one per core this process may use, four at most around objects in flight, and one on an accelerator that
    answers one object at a time."""
    if number:
        return number
    if not hasattr(os, "sched_getaffinity"):
        return 1
    cores = share_of_cores(len(os.sched_getaffinity(0)))
    if in_flight > 1:
        # Threads wait for each other: a next click took 1.58 ms with one, 1.03 with two and 1.24 with sixteen.
        return min(4, cores)
    return cores if device == "cpu" else 1


def run_folder(name: str) -> Path:
    """``runs/NAME``, with characters that every file system takes, cut where it grows too long for one."""
    from hashlib import sha256

    plain = "".join(c if c.isalnum() or c in "-_.=+" else "_" for c in name)
    return Path("runs") / (plain if len(plain) <= 120 else f"{plain[:100]}-{sha256(name.encode()).hexdigest()[:8]}")


def device_of(text: str) -> str:
    """Checked here so that a missing accelerator is one line. Imports torch for anything but ``cpu``."""
    if text == "cpu":
        return text
    from hrseg_cli.engine.devices import available

    return available(text)


def note(line: str) -> None:
    """A line for whoever watches, on stderr."""
    typer.echo(with_flags(line), err=True)


FLAGS = {  # parameters whose flags are called otherwise
    "changes": "--set",
    "datasets": "--dataset",
    "formats": "--format",
    "initial": "--init-mask",
    "loggers": "--logger",
    "measures": "--measure",
    "metrics": "--metric",
    "span": "--range",
}


def with_flags(line: str) -> str:
    """A message of the library, in which parameters stand in backticks, as one of the command line."""

    def flag(found: re.Match[str]) -> str:
        return FLAGS.get(found[1], f"--{found[1].replace('_', '-')}")

    return re.sub("`([a-z][a-z_]*)`", flag, line)


def open_datasets(
    specs: list[str], root: Path | None, instances: bool, binarize: BinarizeRule, limit: int | None
) -> Opened:
    """As :func:`hrseg_cli.data.datasets.open_datasets`; warns on stderr about known datasets that are incomplete."""
    from hrseg_cli.data import datasets

    opened = datasets.open_datasets(specs, root=root, instances=instances, binarize=binarize, limit=limit)
    warn_incomplete(opened)
    return opened


def warn_incomplete(opened: Opened) -> None:
    """Say on stderr which known datasets are incomplete."""
    for name, counts in opened.incomplete.items():
        there, _, published = counts.partition(" of ")
        note(f"{opened.places[name]}: {there} objects are there of {published}; not its number")


def progress(of_bytes: bool = False) -> Progress:
    """A progress bar with the time left, on stderr; gone when finished."""
    from rich import progress as rich
    from rich.console import Console

    done = (rich.DownloadColumn(), rich.TransferSpeedColumn()) if of_bytes else (rich.MofNCompleteColumn(),)
    console = Console(stderr=True)
    return rich.Progress(
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        *done,
        rich.TimeElapsedColumn(),
        rich.TextColumn("left"),
        rich.TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
