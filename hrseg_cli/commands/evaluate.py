"""hrseg evaluate: count the clicks a model needs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hrseg_cli import catalog
from hrseg_cli.commands import headings, options, shards
from hrseg_cli.commands.rows import written

if TYPE_CHECKING:
    from hrseg_cli.api.evaluation import Prepared
    from hrseg_cli.interaction import Trace
    from hrseg_cli.metrics.noc import Row, Spread


def evaluate(
    dataset: options.Datasets,
    root: options.Root = None,
    limit: options.Limit = None,
    binarize: options.Binarize = None,
    instances: options.Instances = False,
    skip_broken: options.SkipBroken = False,
    model: options.Model = catalog.DEFAULT_MODEL,
    protocol: options.ProtocolName = None,
    set_: options.Changes = [],  # noqa: B006 - Typer copies it
    refine: options.Refine = None,
    first: options.First = None,
    box_jitter: options.BoxJitter = None,
    max_clicks: options.MaxClicks = None,
    metric: options.Metrics = ["iou"],  # noqa: B006
    until: options.Until = [],  # noqa: B006
    band: options.Band = "0.02",
    seed: Annotated[
        int,
        typer.Option(
            "--seed",
            metavar="N",
            min=0,
            rich_help_panel=headings.METRICS,
            help="Random seed of the bootstrap intervals.",
        ),
    ] = 0,
    out: Annotated[
        Path | None,
        options.out_option("FOLDER", "Run folder to write.", "runs/evaluate-MODEL-DATASETS-PROTOCOL"),
    ] = None,
    keep_masks: Annotated[
        bool,
        typer.Option(
            "--keep-masks",
            rich_help_panel=headings.OUTPUT,
            help="Also save the masks after 1, 3, 5, 10 and the last click.",
        ),
    ] = False,
    submission: Annotated[
        bool,
        typer.Option(
            "--submission",
            rich_help_panel=headings.OUTPUT,
            help="Also save the masks after all clicks and hashes of the images, so that others can check the run with "
            "'hrseg report --verify FOLDER'.",
        ),
    ] = False,
    groups: Annotated[
        int | None,
        typer.Option(
            "--groups",
            metavar="N",
            min=2,
            max=1000,
            rich_help_panel=headings.METRICS,
            help="Evaluate with N groups of clicks off the centre (click_group 0 to N-1), each in a run folder of its "
            "own, and print mean and standard deviation over the groups.",
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            rich_help_panel=headings.OUTPUT,
            help="Print JSON rows on a terminal too, instead of a table.",
        ),
    ] = False,
    device: options.Device = "cpu",
    precision: options.Precision = "fp32",
    runtime: options.Runtime = None,
    workers: options.Workers = 0,
    in_flight: options.InFlight = 0,
    shard: shards.Option = None,
) -> None:
    """Simulate clicks on every object of a dataset and count how many a model needs (NoC, number of clicks).

    Writes a run folder (traces, one CSV per dataset, noc.csv). Prints a row per dataset and metric: a short table on a
    terminal, otherwise JSON with all numbers. Rerun the same command to resume an interrupted run; 'hrseg report' makes
    tables and plots of run folders.
    """
    from hrseg_cli.recipe import load_protocol, with_binarize

    changes = options.with_first(options.with_refiner(set_, refine), first, box_jitter)
    changes = with_binarize(changes, binarize)
    load_protocol(protocol or "ritm", changes)  # report a mistake before torch is imported
    targets = options.until_of(until, list(dict.fromkeys(metric)))
    options.device_of(device)
    part = shards.shard_of(shard)
    if groups and part:
        raise typer.BadParameter("--groups and --shard cannot be combined; shard the groups one by one, with --set")

    from hrseg_cli.api import evaluation
    from hrseg_cli.engine.runtimes import ModelChoice
    from hrseg_cli.metrics.masks import band_of
    from hrseg_cli.metrics.noc import over_groups

    def prepared_with(more: list[str]) -> Prepared:
        return evaluation.prepare(
            ModelChoice(model, runtime, shards.own_device(device), precision),
            dataset,
            targets=targets,
            protocol=protocol,
            changes=[*changes, *more],
            max_clicks=max_clicks,
            limit=limit,
            band=band_of(band),
            instances=instances,
            root=root,
            keep_masks=keep_masks,
            submission=submission,
            seed=seed,
            device=device,
            skip_broken=skip_broken,
        )

    if skip_broken:
        options.note("decoding every file first")
    prepared = prepared_with(["click_group=0"] if groups else [])
    options.warn_incomplete(prepared.opened)
    folder = out or _default_folder(model, prepared)
    if groups:
        found = []
        for number in range(groups):
            asked = prepared_with([f"click_group={number}"]) if number else prepared
            place = folder / f"group-{number}"
            found.append(_run(place, asked, f"group {number + 1} of {groups}", in_flight, workers, device)[1])
        for record in spread_records(over_groups(found)):
            typer.echo(json.dumps(record, ensure_ascii=False))
        options.complain_of(prepared.broken)
        return
    if part:
        folder, prepared = part.folder(folder), prepared.share(str(part), part.share(prepared.opened.refs))
    records = evaluation.records(prepared, *_run(folder, prepared, "objects", in_flight, workers, device))
    if _on_terminal() and not as_json:
        typer.echo(written([_shown(record) for record in records]), nl=False)
        typer.echo(f"Mean clicks to 80, 85 and 90 % (NoC), share of failures (NoF). All numbers: {folder / 'noc.csv'}")
    else:
        for record in records:
            typer.echo(json.dumps(record, ensure_ascii=False))
    options.complain_of(prepared.broken)


def _run(
    folder: Path, prepared: Prepared, what: str, in_flight: int, workers: int, device: str
) -> tuple[list[Trace], list[Row]]:
    """Evaluate into a run folder; its traces and numbers. what: text of the progress bar."""
    from hrseg_cli.api import evaluation

    at_once = options.in_flight_of(in_flight, device)
    with options.progress() as bar:
        task = bar.add_task(what, total=len(prepared.opened.refs))
        return evaluation.run_in(
            folder,
            prepared,
            options.workers_of(workers, device, at_once),
            at_once,
            lambda done, total: bar.update(task, completed=done),
        )


def spread_records(spreads: Sequence[Spread]) -> list[dict[str, Any]]:
    """One JSON record per dataset and metric: rounded means over the groups, and their deviations under "std"."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for one in spreads:
        head = {"dataset": one.dataset, "metric": one.metric, "n": one.n, "groups": one.groups}
        record = found.setdefault((one.dataset, one.metric), {**head, "std": {}})
        record[one.measure], record["std"][one.measure] = round(one.mean, 4), round(one.std, 4)
    return list(found.values())


def _on_terminal() -> bool:
    return sys.stdout.isatty()


def _shown(record: dict[str, Any]) -> dict[str, str]:
    """The numbers for a terminal: NoC at three scores, and the share of objects that never reach 90 %."""
    keys: list[str] = ["dataset", "metric", "n", *(key for key in ("shard", "first") if key in record)]
    shown = {key: str(record[key]) for key in keys}
    shown |= {f"NoC@{score}": f"{record[f'NoC@{score}']:.2f}" for score in (80, 85, 90)}
    return {**shown, "NoF@90": f"{100 * record['NoF@90']:.0f} %"}


def _default_folder(model: str, prepared: Prepared) -> Path:
    names = [*prepared.names, prepared.plan.protocol.name]
    folder = options.run_folder("-".join(["evaluate", Path(model).stem, *names]))
    typer.echo(f"writing to {folder}", err=True)
    return folder
