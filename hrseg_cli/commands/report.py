"""``hrseg report``: run folders -> a table, curves, a page of pictures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="RUN", help="Run folders; LABEL=FOLDER gives one another name.")
    ] = None,
    format_: Annotated[str, typer.Option("--format", help="md, tex, csv or json.")] = "md",
    metric: Annotated[list[str] | None, typer.Option(help="Only this metric. May be repeated.")] = None,
    measure: Annotated[
        list[str] | None, typer.Option(help="NoC@90, NoF@90, >=20@90, mean@5, AUC or SPC. May be repeated.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw score by click, e.g. to a .png.")] = None,
    pictures: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw masks click by click; needs runs with --keep-masks.")
    ] = None,
    objects: Annotated[int, typer.Option(min=1, help="Objects on the page of pictures.")] = 6,
    check: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Compare with this file; exit 1 with a diff if it differs.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the table there, not to stdout.")] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Take runs that are not finished too.")] = False,
    paper: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="In place of RUN: the adapters' tables from what 'make tables' left there."
        ),
    ] = None,
) -> None:
    """Tables and pictures from run folders.

    Every number is recomputed from the clicks that were stored, with a 95 % bootstrap interval over objects.
    """
    from hrseg_cli import catalog
    from hrseg_cli.report import plots, table

    write = catalog.resolve("format", format_)
    for name in metric or ():
        catalog.resolve("metric", name)
    table.check_measures(measure or ())
    if check is not None and out is not None:
        raise typer.BadParameter("--check compares and --out writes; give one of them")
    if paper is not None:
        if runs or metric or measure or plot or pictures or partial:
            raise typer.BadParameter("--paper goes with --format, --out and --check only")
        _deliver(_paper(paper, format_), check, out)
        return
    if not runs:
        raise typer.BadParameter("name run folders, or --paper FOLDER")
    for option, path in (("--plot", plot), ("--pictures", pictures)):
        if path is not None:
            plots.check_suffix(path, option)

    evaluations = table.read_evaluations(runs, partial)
    metrics = table.measured(evaluations, metric or ())
    built = table.build(evaluations, metrics, measure or ())
    if built.differences:
        _complain(f"warning: the numbers do not compare: {'; '.join(built.differences)}")
    if plot is not None:
        _write("--plot", plot, plots.drawn(plots.curves(evaluations, metrics), plot))
    if pictures is not None:
        page = plots.pictures(evaluations, metrics, objects, _complain)
        _write("--pictures", pictures, plots.drawn(page, pictures))

    _deliver(write(built), check, out)


def _paper(folder: Path, format_: str) -> str:
    from hrseg_cli.report import paper

    if format_ not in ("md", "tex"):
        raise typer.BadParameter(f"--format {format_}: --paper writes md or tex")
    return (paper.markdown if format_ == "md" else paper.latex)(paper.read(folder))


def _deliver(text: str, check: Path | None, out: Path | None) -> None:
    """Compare, write to a file, or print."""
    if check is not None:
        _check(text, check)
    elif out is not None:
        _write("--out", out, text)
    else:
        sys.stdout.write(text)


def _complain(line: str) -> None:
    typer.echo(line, err=True)


def _check(text: str, path: Path) -> None:
    import difflib

    from hrseg_cli.errors import HrsegError

    try:
        stored = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise HrsegError(f"--check {path}: cannot be read ({reason}); write it first with --out {path}") from None
    if stored == text:
        return
    lines = difflib.unified_diff(stored.splitlines(), text.splitlines(), str(path), "these runs", lineterm="")
    _complain("\n".join(lines) or f"{path}: differs in line ends only")
    raise typer.Exit(1)


def _write(option: str, path: Path, data: str | bytes) -> None:
    from hrseg_cli.errors import HrsegError
    from hrseg_cli.writing import write_atomically

    try:
        write_atomically(path, data)
    except OSError as error:
        raise HrsegError(f"{option} {path}: cannot write there ({error.strerror}); name another file") from None
