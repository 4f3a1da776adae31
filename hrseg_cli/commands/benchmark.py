"""hrseg benchmark: where a click's time goes on this machine."""

from __future__ import annotations

import json
import re
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hrseg_cli.commands import options
from hrseg_cli.errors import HrsegError

if TYPE_CHECKING:
    from rich.table import Table

# What tells rows apart; a new axis of the product goes here too.
COLUMNS = ("model", "protocol", "size", "device", "runtime", "precision")


def benchmark(
    model: Annotated[list[str], typer.Option("--model", "-m", metavar="MODEL", help="As evaluate's; repeatable.")] = [  # noqa: B006
        "h18s"
    ],
    size: Annotated[
        list[str], typer.Option("--size", metavar="HEIGHTxWIDTH", help="Of the images, in pixels; repeatable.")
    ] = ["1024x1024"],  # noqa: B006 - Typer copies it
    protocol: Annotated[
        list[str], typer.Option("--protocol", metavar="PROTOCOL", help="As evaluate's; repeatable.")
    ] = ["ritm"],  # noqa: B006
    metric: options.Metrics = ["iou", "biou"],  # noqa: B006
    objects: Annotated[int, typer.Option("--objects", metavar="N", min=1, help="Drawn objects that count.")] = 3,
    clicks: Annotated[int, typer.Option("--clicks", metavar="N", min=1, help="On each object.")] = 4,
    threads: Annotated[int, typer.Option("--threads", metavar="N", min=1, help="evaluate's workers have one.")] = 1,
    device: options.Device = "cpu",
    precision: Annotated[
        list[str],
        typer.Option("--precision", metavar="PRECISION", help="fp32, or bf16, which is torch's; repeatable."),
    ] = ["fp32"],  # noqa: B006
    runtime: Annotated[
        list[str], typer.Option("--runtime", metavar="RUNTIME", help="As evaluate's [torch]; repeatable.")
    ] = [],  # noqa: B006
) -> None:
    """Seconds per click split by part, and peak memory, for every model, protocol, size, runtime and precision.

    One JSON row each on stdout, a table on stderr. Medians, after an object that warms up. Only rows of one call on
    an idle machine compare.
    """
    sizes = [_size_of(text) for text in size]
    protocols = [options.protocol_of(name, [], None) for name in protocol]
    metrics = tuple(options.until_of([], list(dict.fromkeys(metric))))
    options.device_of(device)

    from hrseg_cli.engine.benchmark import Case, measure_apart

    rows = []
    ways = [
        (by, bits)
        for by, bits in product(dict.fromkeys(runtime) or [None], dict.fromkeys(precision))
        if bits == "fp32" or by in (None, "torch") or "fp32" not in precision  # bf16 is torch's; others have one row
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
    """Milliseconds; a line for the first click of a case and one for those after it."""
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
                once = [_ms(row["decode"]), str(row["memory_mb"])] if which == "first" else ["", ""]
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
