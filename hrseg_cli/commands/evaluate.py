"""hrseg evaluate: count the clicks a model needs."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hrseg_cli import __version__
from hrseg_cli.commands import headings, options, shards

if TYPE_CHECKING:
    from hrseg_cli.data.samples import Ref
    from hrseg_cli.engine.simulate import Plan
    from hrseg_cli.interaction import Trace
    from hrseg_cli.runs import Run

KEPT_CLICKS = (1, 3, 5, 10)


def evaluate(
    dataset: options.Datasets,
    root: options.Root = None,
    limit: options.Limit = None,
    binarize: options.Binarize = None,
    instances: options.Instances = False,
    model: options.Model = "h18s",
    protocol: options.ProtocolName = None,
    set_: options.Changes = [],  # noqa: B006 - Typer copies it
    max_clicks: options.MaxClicks = None,
    metric: options.Metrics = ["iou"],  # noqa: B006
    until: options.Until = [],  # noqa: B006
    band: options.Band = "0.02",
    seed: Annotated[
        int,
        typer.Option(
            "--seed", metavar="N", rich_help_panel=headings.METRICS, help="Random seed of the bootstrap intervals."
        ),
    ] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FOLDER",
            rich_help_panel=headings.OUTPUT,
            show_default="runs/evaluate-MODEL-DATASETS-PROTOCOL",
            help="Run folder to write.",
        ),
    ] = None,
    keep_masks: Annotated[
        bool,
        typer.Option(
            "--keep-masks",
            rich_help_panel=headings.OUTPUT,
            help="Also save the masks after 1, 3, 5, 10 and the last click.",
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

    Writes a run folder (traces, one CSV per dataset, noc.csv) and prints one JSON row per dataset and metric. Rerun the
    same command to resume an interrupted run; 'hrseg report' makes tables and plots of run folders.
    """
    chosen = options.protocol_of(protocol, set_, binarize)
    targets = options.until_of(until, list(dict.fromkeys(metric)))
    width = options.band_of(band)
    options.device_of(device)
    part = shards.shard_of(shard)

    from hrseg_cli.data.paths import below
    from hrseg_cli.engine.runtimes import open_model
    from hrseg_cli.engine.simulate import Plan
    from hrseg_cli.runs import Run

    own_device = shards.own_device(device)
    loaded, provenance = open_model(model, runtime, own_device, precision)
    refs, composed, incomplete = options.open_datasets(dataset, root, instances, chosen.binarize, limit)
    names = list(dict.fromkeys(ref.dataset for ref in refs))
    chosen, own = options.own_protocols(protocol, chosen, names, set_)
    plan = Plan(
        model=model,
        protocol=chosen,
        protocols=own,
        until=targets,
        max_clicks=max_clicks or chosen.max_clicks,
        device=own_device,
        precision=precision,
        runtime=runtime,
        band=width,
        keep_masks=KEPT_CLICKS if keep_masks else (),
    )
    settings = {
        "model": provenance,
        "datasets": names,
        "composed": composed,
        "incomplete": incomplete,
        "objects": len(refs),
        "objects_sha256": sha256("\n".join(f"{ref.dataset}/{ref.id}" for ref in refs).encode()).hexdigest(),
        "metrics": list(targets),
        "until": targets,
        "max_clicks": plan.max_clicks,
        "band": width,
        "protocol": chosen.model_dump(),
        "protocols": {name: one.model_dump() for name, one in own.items()},
        "flipped": chosen.flip and loaded.mirror,
        "hrseg": __version__,
        "instances": instances,
        "keep_masks": keep_masks,
        "device": device,
        "seed": seed,
    }
    del loaded  # opened again to click, and a GPU need not hold it twice
    folder = out or _default_folder(model, names, chosen.name)
    if part:
        settings["shard"], folder, refs = str(part), part.folder(folder), part.share(refs)
    for name in names:
        below(folder, f"{name}.csv", "--dataset")
    with Run(folder, "evaluate", settings) as run:
        at_once = options.in_flight_of(in_flight, device)
        traces = _simulate(plan, refs, run, options.workers_of(workers, device, at_once), at_once)
        run.summary = _write_results(run, plan, traces, names, composed, seed, {"shard": str(part)} if part else {})
        run.summary["binarize"] = dict(Counter(trace.rule for trace in traces))
        run.summary["notes"] = dict(sum((Counter(trace.notes) for trace in traces), Counter()))


def _files_of(refs: list[Ref]) -> dict[str, str]:
    """``dataset/id`` -> sizes and times of the object's files, or how it is drawn. Paths are ignored."""
    from hrseg_cli.data.samples import file_state, size_and_time

    stat = cache(size_and_time)  # objects may share a file
    return {f"{ref.dataset}/{ref.id}": file_state(ref, stat) for ref in refs}


def _default_folder(model: str, datasets: list[str], protocol: str) -> Path:
    folder = options.run_folder("-".join(["evaluate", Path(model).stem, *datasets, protocol]))
    typer.echo(f"writing to {folder}", err=True)
    return folder


def _simulate(plan: Plan, refs: list[Ref], run: Run, workers: int, in_flight: int) -> list[Trace]:
    """All traces in dataset order; traces already in the run folder are reused."""
    from hrseg_cli.engine.simulate import run as run_plan

    done = run.finished_traces(_files_of(refs), bool(plan.keep_masks))
    left = [ref for ref in refs if f"{ref.dataset}/{ref.id}" not in done]
    with (
        run.part.open("a", encoding="utf-8") as part,
        run.part_masks.open("a", encoding="utf-8") as masks,
        options.progress() as bar,
    ):
        task = bar.add_task("objects", total=len(refs), completed=len(refs) - len(left))
        for _, outcome in run_plan(plan, left, workers, in_flight):
            trace = outcome.trace
            if outcome.masks is not None:
                masks.write(json.dumps(outcome.masks, separators=(",", ":")) + "\n")
                masks.flush()
            part.write(trace.to_json() + "\n")
            part.flush()
            done[f"{trace.dataset}/{trace.id}"] = trace
            bar.advance(task)
    keys = [f"{ref.dataset}/{ref.id}" for ref in refs]
    run.finish(keys, done, keep_masks=bool(plan.keep_masks))
    return [done[key] for key in keys]


def _write_results(
    run: Run,
    plan: Plan,
    traces: list[Trace],
    datasets: list[str],
    composed: dict[str, list[str]],
    seed: int,
    shard: dict[str, str],
) -> dict[str, Any]:
    """Write the CSVs, print one JSON row per (dataset, metric), return the summary for ``run.json``.

    A composed dataset has rows of its own, over the objects of all its parts, after those of the parts.
    """
    import csv
    import io

    from hrseg_cli.metrics.noc import THRESHOLDS, per_object_rows, summarise
    from hrseg_cli.writing import write_atomically

    def write_csv(name: str, rows: list[list[Any]]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        write_atomically(run.folder / name, text.getvalue())

    thresholds = sorted({*THRESHOLDS, *(value for value in plan.until.values() if value <= 1)})
    table: list[list[Any]] = [["dataset", "metric", "measure", "value", "low", "high", "n"]]
    summary: dict[str, Any] = {"rows": []}
    for name in datasets:
        header, rows = per_object_rows(
            [trace for trace in traces if trace.dataset == name], thresholds, plan.max_clicks
        )
        write_csv(f"{name}.csv", [header, *rows])
    for name, parts in {**{name: [name] for name in datasets}, **composed}.items():
        own = [replace(trace, dataset=name) for trace in traces if trace.dataset in parts]
        for metric in plan.until:
            intervals: dict[str, list[float]] = {}
            record: dict[str, Any] = {"dataset": name, "metric": metric, "n": len(own), **shard}
            for row in summarise(own, metric, thresholds, plan.max_clicks, seed=seed):
                table.append([row.dataset, row.metric, row.measure, row.value, row.low, row.high, row.n])
                record[row.measure] = round(row.value, 4)
                intervals[row.measure] = [round(row.low, 4), round(row.high, 4)]
            record["95%"] = intervals
            typer.echo(json.dumps(record, ensure_ascii=False))
            summary["rows"].append(record)
    write_csv("noc.csv", table)
    return summary
