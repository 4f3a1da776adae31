"""hrseg benchmark: time and memory per click on this machine."""

from __future__ import annotations

import json
import re
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hrseg_cli import catalog
from hrseg_cli.commands import headings, options
from hrseg_cli.errors import HrsegError

if TYPE_CHECKING:
    from rich.table import Table

# The keys that distinguish rows; a new axis of the product must be added here too.
COLUMNS = ("model", "protocol", "size", "device", "runtime", "precision")


def benchmark(
    model: Annotated[
        list[str],
        typer.Option(
            "--model", "-m", metavar="MODEL", rich_help_panel=headings.MODEL, help="Model, as for evaluate. Repeatable."
        ),
    ] = [catalog.DEFAULT_MODEL],  # noqa: B006 - Typer copies it
    size: Annotated[
        list[str],
        typer.Option(
            "--size",
            metavar="HEIGHTxWIDTH",
            rich_help_panel=headings.DATA,
            help="Size of the images in pixels. Repeatable.",
        ),
    ] = ["1024x1024"],  # noqa: B006
    objects: Annotated[
        int,
        typer.Option("--objects", metavar="N", min=1, rich_help_panel=headings.DATA, help="Number of objects to time."),
    ] = 3,
    clicks: Annotated[
        int,
        typer.Option("--clicks", metavar="N", min=1, rich_help_panel=headings.DATA, help="Clicks on each object."),
    ] = 4,
    protocol: Annotated[
        list[str],
        options.protocol_option(". Repeatable"),
    ] = ["ritm"],  # noqa: B006
    set_: options.Changes = [],  # noqa: B006
    refine: options.Refine = None,
    metric: options.Metrics = ["iou", "biou"],  # noqa: B006
    device: options.Device = "cpu",
    threads: Annotated[
        int,
        typer.Option(
            "--threads",
            metavar="N",
            min=1,
            rich_help_panel=headings.MACHINE,
            help="CPU threads; each worker of evaluate has one.",
        ),
    ] = 1,
    precision: Annotated[
        list[str],
        typer.Option(
            "--precision",
            metavar="PRECISION",
            rich_help_panel=headings.MACHINE,
            help="Network precision: fp32, or bf16 (with torch only). Repeatable.",
        ),
    ] = ["fp32"],  # noqa: B006
    runtime: Annotated[
        list[str],
        options.runtime_option(" Repeatable."),
    ] = [],  # noqa: B006
) -> None:
    """Measure time and memory per click, for every combination of the repeatable options.

    Draws images and times each step of a click: medians, after a warm-up object. Prints one JSON row per combination on
    stdout and a table on stderr. Compare only rows of one call, on an idle machine.
    """
    from hrseg_cli.recipe import load_protocol

    sizes = [_size_of(text) for text in size]
    changes = options.with_refiner(set_, refine)
    protocols = [load_protocol(name, changes) for name in protocol]
    metrics = tuple(options.until_of([], list(dict.fromkeys(metric))))
    options.device_of(device)

    from hrseg_cli.engine.benchmark import Case, measure_apart

    rows = []
    ways = [
        (by, bits)
        for by, bits in product(dict.fromkeys(runtime) or [None], dict.fromkeys(precision))
        if bits == "fp32" or by in (None, "torch") or "fp32" not in precision  # only torch has bf16
    ]
    cases = list(product(dict.fromkeys(model), protocols, sizes, ways))
    with options.progress() as bar:
        task = bar.add_task("cases", total=len(cases))
        for name, one, of_size, way in cases:
            rows.append(measure_apart(Case(name, one, of_size, device, metrics, objects, clicks, threads, *way)))
            typer.echo(json.dumps(rows[-1], ensure_ascii=False))
            bar.advance(task)
    _print(_table(rows))


def _size_of(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if not found or not all(64 <= int(side) <= 20_000 for side in found.groups()):
        raise HrsegError(f"--size {text}: write HEIGHTxWIDTH in pixels, each from 64 to 20000, such as 2048x3072")
    return int(found[1]), int(found[2])


def _table(rows: list[dict[str, Any]]) -> Table:
    """Milliseconds; one line for the first click of a case and one for later clicks."""
    from rich.table import Table

    parts = list(rows[0]["first"])
    table = Table(box=None, pad_edge=False)
    for column in (*COLUMNS, "click"):
        table.add_column(column)
    for column in ("decode", *parts, "MB"):
        table.add_column(column, justify="right")
    for row in rows:
        for which, label in (("first", "1"), ("later", "2+")):
            if which in row:
                once = [_ms(row["decode"]), str(row["memory_mb"] or "–")] if which == "first" else ["", ""]
                cells = [row[column] for column in COLUMNS] if which == "first" else [""] * len(COLUMNS)
                table.add_row(*cells, label, once[0], *(_ms(row[which][part]) for part in parts), once[1])
    return table


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f}"


def _print(table: Table) -> None:
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        console.width = 160  # a file has room for all columns
    console.print("milliseconds, medians", highlight=False)
    console.print(table, highlight=False)
