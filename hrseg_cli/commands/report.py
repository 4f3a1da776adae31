"""hrseg report: tables, curves and pages of pictures from run folders."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from hrseg_cli import catalog
from hrseg_cli.commands import headings, options


def report(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN", help="Run folders of 'hrseg evaluate'; write LABEL=FOLDER to rename one."),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            metavar="METRIC",
            autocompletion=options.starting(lambda: catalog.METRICS),
            rich_help_panel=headings.METRICS,
            show_default="those of the runs",
            help=f"Metric to report: {options.METRICS}. Repeatable.",
        ),
    ] = None,
    measure: Annotated[
        list[str] | None,
        typer.Option(
            "--measure",
            metavar="MEASURE",
            rich_help_panel=headings.METRICS,
            show_default="NoC@80, NoC@85, NoC@90, NoF@90",
            help="Column: NoC@90 (clicks to reach 0.90), NoF@90 (share of failures), >=20@90 (RITM's failures), mean@5 "
            "(score after 5 clicks), AUC, or SPC (seconds per click). Other numbers work too. Repeatable.",
        ),
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", rich_help_panel=headings.DATA, help="Accept unfinished runs.")
    ] = False,
    tables: Annotated[
        str | None,
        typer.Option(
            "--tables",
            metavar="PLAN",
            rich_help_panel=headings.DATA,
            help="Lay out the runs of one folder (ROW/SEED/SET), or of a file of --pack, as the tables of a plan: a "
            "YAML file, or 'adapters'. Example: hrseg report --tables adapters runs/tables/paper.",
        ),
    ] = None,
    paper: Annotated[
        Path | None,
        typer.Option(
            "--paper",
            metavar="FOLDER",
            rich_help_panel=headings.DATA,
            help="Tables of the adapter paper, from the folder of 'make tables'; same as --tables adapters FOLDER.",
        ),
    ] = None,
    pack: Annotated[
        Path | None,
        typer.Option(
            "--pack",
            metavar="FILE",
            rich_help_panel=headings.OUTPUT,
            help="With --tables or --paper: write what the tables are made from to one small file (.zip), which these "
            "options take instead of the folder.",
        ),
    ] = None,
    format_: Annotated[str, options.format_option(f"Format of the table: {', '.join(catalog.FORMATS)}.")] = "md",
    out: Annotated[
        Path | None,
        options.out_option("FILE", "File for the table.", "stdout"),
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(
            "--check",
            metavar="FILE",
            rich_help_panel=headings.OUTPUT,
            help="Compare the table with this file; print a diff and exit with 1 if they differ.",
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            rich_help_panel=headings.DATA,
            help="Check runs of 'hrseg evaluate --submission' without model or dataset: scores from their masks, "
            "clicks by repeating the annotator, numbers from the scores. Exit with 1 if anything differs.",
        ),
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE",
            rich_help_panel=headings.OUTPUT,
            help="Plot the mean score after each click (.png, .pdf, .svg or .jpg).",
        ),
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(
            "--pictures",
            metavar="FILE",
            rich_help_panel=headings.OUTPUT,
            help="Draw masks click by click; needs runs with --keep-masks.",
        ),
    ] = None,
    objects: Annotated[
        int,
        typer.Option(
            "--objects", metavar="N", min=1, rich_help_panel=headings.OUTPUT, help="Number of objects in --pictures."
        ),
    ] = 6,
) -> None:
    """Make tables, curves and pictures from run folders of 'hrseg evaluate'.

    All numbers are recomputed from the stored traces, with 95 % bootstrap intervals over objects.
    """
    from hrseg_cli.report import plots, table

    write = catalog.resolve("format", format_)
    for name in metric or ():
        catalog.resolve("metric", name)
    table.check_measures(measure or ())
    if check is not None and out is not None:
        raise typer.BadParameter("--check compares and --out writes; give only one of them")
    if paper is not None or tables is not None:
        folders = [*(runs or ()), *([str(paper)] if paper else [])]
        if len(folders) != 1 or metric or measure or plot or pictures or partial:
            raise typer.BadParameter(
                "--tables and --paper take one folder and no option but --format, --out and --check"
            )
        text = _laid_out(tables or "adapters", Path(folders[0]), format_)
        if pack is not None:
            from hrseg_cli.report.packing import packed

            _write("--pack", pack, packed(Path(folders[0])))
        _deliver(text, check, out)
        return
    if pack is not None:
        raise typer.BadParameter("--pack goes with --tables or --paper")
    if not runs:
        raise typer.BadParameter("give run folders, or one folder with --tables PLAN")
    if verify:
        if metric or measure or plot or pictures or partial or out or check:
            raise typer.BadParameter("--verify takes run folders and no other option")
        _verify(runs)
        return
    for option, path in (("--plot", plot), ("--pictures", pictures)):
        if path is not None:
            plots.check_suffix(path, option)

    evaluations = table.read_evaluations(runs, partial)
    metrics = table.measured(evaluations, metric or ())
    built = table.build(evaluations, metrics, measure or ())
    if built.differences:
        _complain(f"warning: the numbers are not comparable: {'; '.join(built.differences)}")
    if plot is not None:
        _write("--plot", plot, plots.drawn(plots.curves(evaluations, metrics), plot))
    if pictures is not None:
        page = plots.pictures(evaluations, metrics, objects, _complain)
        _write("--pictures", pictures, plots.drawn(page, pictures))

    _deliver(write(built), check, out)


def _verify(folders: list[str]) -> None:
    """Print a JSON row per run; exit with 1 if one has problems."""
    import json

    from hrseg_cli.report.table import read_evaluations
    from hrseg_cli.report.verify import verify

    found = [verify(run, _complain) for run in read_evaluations(folders)]
    for row in found:
        typer.echo(json.dumps(row, ensure_ascii=False))
    if any(row["problems"] for row in found):
        raise typer.Exit(1)


def _laid_out(plan: str, folder: Path, format_: str) -> str:
    from hrseg_cli.recipe import load_tables
    from hrseg_cli.report import packing, tables

    if format_ not in ("md", "tex"):
        raise typer.BadParameter(f"--format {format_}: --tables and --paper write md or tex")
    with packing.opened(folder) as runs:
        return (tables.markdown if format_ == "md" else tables.latex)(tables.read(runs, load_tables(plan)))


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
    _complain("\n".join(lines) or f"{path}: differs in line endings only")
    raise typer.Exit(1)


def _write(option: str, path: Path, data: str | bytes) -> None:
    from hrseg_cli.errors import HrsegError
    from hrseg_cli.writing import write_atomically

    try:
        write_atomically(path, data)
    except OSError as error:
        raise HrsegError(f"{option} {path}: cannot be written ({error.strerror}); choose another file") from None
