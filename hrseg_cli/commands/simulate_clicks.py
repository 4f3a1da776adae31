"""hrseg simulate-clicks: simulated clicks as JSON lines, for pipelines."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Annotated

import typer

from hrseg_cli import catalog
from hrseg_cli.commands import headings, options, shards
from hrseg_cli.errors import HrsegError, Interrupted

if TYPE_CHECKING:
    from hrseg_cli.data.samples import Ref
    from hrseg_cli.interaction import Prompt


def simulate_clicks(
    dataset: options.Datasets,
    root: options.Root = None,
    limit: options.Limit = None,
    binarize: options.Binarize = None,
    instances: options.Instances = False,
    model: options.Model = catalog.DEFAULT_MODEL,
    replay: Annotated[
        Path | None,
        typer.Option(
            "--replay",
            metavar="FILE",
            rich_help_panel=headings.CLICKS,
            help="Repeat the clicks of a traces file or run folder instead of simulating clicks.",
        ),
    ] = None,
    protocol: options.ProtocolName = None,
    set_: options.Changes = [],  # noqa: B006 - Typer copies it
    refine: options.Refine = None,
    first: options.First = None,
    box_jitter: options.BoxJitter = None,
    max_clicks: options.MaxClicks = None,
    metric: options.Metrics = ["iou"],  # noqa: B006
    until: options.Until = [],  # noqa: B006
    band: options.Band = "0.02",
    out: Annotated[
        Path | None,
        options.out_option(
            "FILE", "Traces file to write (.jsonl). With --shard, the shard is added to its name.", "stdout"
        ),
    ] = None,
    device: options.Device = "cpu",
    precision: options.Precision = "fp32",
    runtime: options.Runtime = None,
    workers: options.Workers = 0,
    in_flight: options.InFlight = 0,
    shard: shards.Option = None,
) -> None:
    """Simulate clicks on every object and write one JSON line per object: clicks, scores and seconds.

    With --replay, two models receive the same clicks; objects without a trace are skipped and counted on stderr.
    Nothing is kept when interrupted: use 'hrseg evaluate' for long runs.
    """
    from hrseg_cli.recipe import load_protocol, with_binarize

    changes = options.with_first(options.with_refiner(set_, refine), first, box_jitter)
    changes = with_binarize(changes, binarize)
    steps = load_protocol(protocol or "ritm", changes)  # report a mistake before torch is imported
    if replay and steps.first == "box":
        raise HrsegError(f"--replay {replay}: repeats the clicks and boxes of that file; leave out --first box")
    targets = options.until_of(until, list(dict.fromkeys(metric)))
    options.device_of(device)
    part = shards.shard_of(shard)
    if out is not None:
        out = part.file(out) if part else out
        _check_writable(out)

    given = _read_clicks(replay) if replay else None

    from hrseg_cli.api.evaluation import prepare
    from hrseg_cli.engine.runtimes import ModelChoice
    from hrseg_cli.engine.simulate import run
    from hrseg_cli.metrics.masks import band_of
    from hrseg_cli.writing import only_one, write_atomically

    prepared = prepare(  # before workers start: a broken model is reported once, and exported once
        ModelChoice(model, runtime, shards.own_device(device), precision),
        dataset,
        targets=targets,
        protocol=protocol,
        changes=changes,
        max_clicks=max_clicks,
        limit=limit,
        band=band_of(band),
        instances=instances,
        root=root,
    )
    options.warn_incomplete(prepared.opened)
    plan, refs = prepared.plan, prepared.opened.refs
    if given is not None:
        plan, refs = replace(plan, replay=given), _with_trace(refs, given, replay)
    if part:
        refs = part.share(refs)
    at_once = options.in_flight_of(in_flight, device)
    workers = options.workers_of(workers, device, at_once)
    lines: dict[int, str] = {}
    printed = 0
    try:
        with only_one(out, f"--out {out}") if out is not None else nullcontext():
            for index, outcome in run(plan, prepared.chosen, refs, workers, at_once):
                lines[index] = outcome.trace.to_json() + "\n"
                while out is None and printed in lines:  # in dataset order, as soon as the order allows
                    typer.echo(lines.pop(printed), nl=False)
                    printed += 1
            if out is not None:
                write_atomically(out, "".join(lines[index] for index in sorted(lines)))
    except Interrupted:
        raise Interrupted("interrupted; nothing was kept, use 'hrseg evaluate' for runs that can be resumed") from None


def _check_writable(out: Path) -> None:
    """Check the output file before clicking for hours."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=out.parent).close()
    except OSError as error:
        raise HrsegError(f"--out {out}: cannot be written ({error.strerror}); choose another file") from None
    if out.is_dir():
        raise HrsegError(f"--out {out}: is a folder; give a file in it")


def _with_trace(refs: list[Ref], given: dict[str, tuple[Prompt, ...]], replay: Path | None) -> list[Ref]:
    """The objects that have a trace; notes on stderr what is left out. Raises HrsegError if there are none."""
    every = {f"{ref.dataset}/{ref.id}" for ref in refs}
    chosen = [ref for ref in refs if f"{ref.dataset}/{ref.id}" in given]
    if not chosen:
        raise HrsegError(
            f"--replay {replay}: no trace of these datasets; use the dataset names of that run (NAME=FOLDER)"
        )
    if left := len(every - given.keys()):
        options.note(f"--replay {replay}: skipping {left} of {len(every)} objects, which have no trace")
    if strangers := given.keys() - every:
        options.note(f"--replay {replay}: ignoring {len(strangers)} traces of other objects, such as {min(strangers)}")
    return chosen


def _read_clicks(path: Path) -> dict[str, tuple[Prompt, ...]]:
    from hrseg_cli.runs import read_traces

    path = path / "traces.jsonl" if path.is_dir() else path
    if not path.is_file():
        raise HrsegError(f"--replay {path}: no such file; give a traces.jsonl or a finished run folder")
    found: dict[str, tuple[Prompt, ...]] = {}
    for trace in read_traces(path):
        key = f"{trace.dataset}/{trace.id}"
        if key in found:
            raise HrsegError(f"--replay {path}: {key} appears twice; remove one of the lines")
        found[key] = trace.clicks
    return found
