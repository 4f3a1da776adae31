"""Count the clicks a model needs: in memory, or in a run folder, which makes an interrupted evaluation resumable."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from hashlib import sha256
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hrseg_cli import __version__, catalog
from hrseg_cli.api.arguments import changes_of, checked_count, listed, name_of, path_of, target_of
from hrseg_cli.api.clicking import Model, choice_of
from hrseg_cli.data.datasets import Opened, open_datasets, own_protocols
from hrseg_cli.data.paths import below
from hrseg_cli.data.samples import Ref, file_state, size_and_time
from hrseg_cli.engine.refining import prepare_refiner
from hrseg_cli.engine.runtimes import ModelChoice
from hrseg_cli.engine.simulate import Outcome, Plan
from hrseg_cli.engine.simulate import run as run_plan
from hrseg_cli.errors import HrsegError
from hrseg_cli.interaction import Trace
from hrseg_cli.metrics import noc
from hrseg_cli.metrics.masks import band_of
from hrseg_cli.metrics.noc import THRESHOLDS, Row, per_object_rows, summarise
from hrseg_cli.recipe import load_protocol, with_binarize
from hrseg_cli.runs import Run
from hrseg_cli.writing import write_atomically

if TYPE_CHECKING:
    import pandas as pd

KEPT_CLICKS = (1, 3, 5, 10)
Progress = Callable[[int, int], None]

log = logging.getLogger(__name__)


class Result(NamedTuple):
    """The result of an evaluation.

    table: one row per number: ``dataset``, ``metric``, ``measure`` (such as "NoC@90"), ``value``, ``low`` and ``high``
        (its 95 % bootstrap interval over objects), ``n`` (objects). Shares are in 0..1, times in seconds. The numbers
        are those of ``noc.csv`` in a run folder.
    traces: one :class:`hrseg_cli.Trace` per object, in dataset order: its clicks and the scores after each.
    skipped: with ``skip_broken``, a line about each broken file.
    """

    table: pd.DataFrame
    traces: tuple[Trace, ...]
    skipped: tuple[str, ...] = ()


def evaluate(
    model: str | PathLike[str] | Model,
    datasets: str | PathLike[str] | Sequence[str | PathLike[str]],
    *,
    metrics: str | Sequence[str] = ("iou",),
    until: float | Mapping[str, float] = 0.9,
    protocol: str | PathLike[str] | None = None,
    changes: Mapping[str, Any] | Sequence[str] = (),
    max_clicks: int | None = None,
    limit: int | None = None,
    band: float | str = 0.02,
    binarize: str | None = None,
    instances: bool = False,
    root: str | PathLike[str] | None = None,
    out: str | PathLike[str] | None = None,
    keep_masks: bool = False,
    submission: bool = False,
    workers: int = 1,
    in_flight: int = 1,
    device: str | None = None,
    precision: str | None = None,
    runtime: str | None = None,
    seed: int = 0,
    skip_broken: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Simulate clicks on every object of some datasets and count how many the model needs (NoC).

    The numbers are those of ``hrseg evaluate`` with the same settings.

    model: a name or a file, as for :func:`hrseg_cli.load`, or a loaded model.
    datasets: one or several; each a known name ("davis"), a folder (for example with images/ and masks/), NAME=FOLDER,
        a COCO JSON file, "procedural" or "samples"; options follow a colon, as in "sbd:split=train".
    metrics: any of "iou", "biou" and "mba".
    until: target score in (0, 1]; clicking on an object stops once every metric reaches it. Above 1, every object gets
        all clicks. A mapping sets a target per metric.
    protocol: how clicks become a mask: a name ("ritm", "photo", ...) or a YAML file. None: the dataset's own, or
        "ritm". changes: to the protocol, as ``{"zoom.target": 600}`` or ``["zoom.target=600"]``.
    max_clicks: maximum number of clicks per object; None: that of the protocol.
    limit: use only the first objects of each dataset, up to this number; None: all.
    band: width of Boundary IoU's band: a share of the image's diagonal, or pixels, as in "5px".
    binarize: which grey values of a mask are object; None: the rule of the protocol. instances: masks contain object
        ids.
    root: folder of the known datasets; None: $HRSEG_DATA, or ./data.
    out: run folder to write, for ``hrseg report`` and :func:`hrseg_cli.tables`. The same call resumes an interrupted
        evaluation. None: nothing is written. keep_masks: also write masks, after 1, 3, 5, 10 and the last click.
    submission: also write the masks after all clicks and hashes of the images, for :func:`hrseg_cli.verify`.
    workers: number of processes, one thread each; numbers do not depend on it. With more than one, a script must guard
        its top level with ``if __name__ == "__main__":``. in_flight: number of objects that share batches, faster on a
        GPU; ``workers`` is then the number of threads, and numbers may differ by rounding.
    device, precision, runtime: as for :func:`hrseg_cli.load`; a loaded model has its own.
    seed: of the bootstrap intervals; nothing else is random.
    skip_broken: first decode every file, and leave out objects with a broken or missing one instead of raising.
    progress: called with (finished objects, all objects).

    Raises HrsegError for errors that the caller can fix, UnknownName for an unknown name.
    """
    for name, wanted in (("keep_masks", keep_masks), ("submission", submission)):
        if wanted and out is None:
            raise HrsegError(f"`{name}`: masks are written to a run folder; give `out` too")
    for name, number in (("max_clicks", max_clicks), ("limit", limit), ("workers", workers), ("in_flight", in_flight)):
        if number is not None:
            checked_count(name, number)
    prepared = prepare(
        choice_of(model, device, precision, runtime),
        listed("datasets", datasets),
        targets=_targets(listed("metrics", metrics), until),
        protocol=None if protocol is None else name_of("protocol", protocol),
        changes=with_binarize(changes_of(changes), binarize),
        max_clicks=max_clicks,
        limit=limit,
        band=band_of(str(band)),
        instances=instances,
        root=path_of(root),
        keep_masks=keep_masks,
        submission=submission,
        seed=checked_count("seed", seed, 0),
        skip_broken=skip_broken,
    )
    for line in prepared.broken:
        log.warning("skipped: %s", line)
    for name, counts in prepared.opened.incomplete.items():
        log.warning("%s: %s objects found; numbers on the whole dataset may differ", name, counts)
    if out is None:
        traces = _in_memory(prepared, workers, in_flight, progress)
        numbers = summed_up(prepared, traces)
    else:
        traces, numbers = run_in(Path(out), prepared, workers, in_flight, progress)
    import pandas as pd

    return Result(pd.DataFrame([asdict(row) for row in numbers]), tuple(traces), prepared.broken)


def over_groups(results: Sequence[Result]) -> pd.DataFrame:
    """Mean and standard deviation of the numbers of several evaluations that differ in their clicks.

    results: of :func:`evaluate` on the same objects, with ``protocol="off_centre"`` and ``changes={"click_group": 0}``,
        ``{"click_group": 1}``, ...

    Columns: ``dataset``, ``metric``, ``measure``, ``mean``, ``std`` (of a sample), ``groups``, ``n`` (objects). The
    numbers are those of ``hrseg evaluate --groups``. Raises HrsegError for fewer than two results, or other objects.
    """
    import pandas as pd

    rows = [[Row(**record) for record in result.table.to_dict("records")] for result in results]
    return pd.DataFrame([asdict(one) for one in noc.over_groups(rows)])


@dataclass(frozen=True)
class Prepared:
    """An evaluation that is ready to run.

    opened: the datasets and the objects to click on. settings: everything that determines the numbers, as stored in
    ``run.json``. shard: such as "1/4" for a part of an evaluation. broken: a line about each file that was skipped.
    """

    chosen: ModelChoice
    plan: Plan
    opened: Opened
    settings: dict[str, Any]
    shard: str | None = None
    broken: tuple[str, ...] = ()

    def share(self, shard: str, refs: list[Ref]) -> Prepared:
        """One part of the evaluation, such as "1/4", with these objects."""
        settings = {**self.settings, "shard": shard}
        return replace(self, opened=self.opened._replace(refs=refs), settings=settings, shard=shard)

    @property
    def names(self) -> list[str]:
        """Names of the datasets, in order."""
        return list(self.settings["datasets"])


def prepare(
    chosen: ModelChoice,
    datasets: Sequence[str],
    *,
    targets: dict[str, float],
    protocol: str | None = None,
    changes: Sequence[str] = (),
    max_clicks: int | None = None,
    limit: int | None = None,
    band: dict[str, float] | None = None,
    instances: bool = False,
    root: Path | None = None,
    keep_masks: bool = False,
    submission: bool = False,
    seed: int = 0,
    device: str | None = None,
    skip_broken: bool = False,
) -> Prepared:
    """Check the model and open the datasets. The arguments are those of :func:`evaluate`.

    targets: metric -> target score. submission: keep the masks after all clicks, and hashes of the images, for
    ``report --verify``. changes: to the protocol and to the datasets' own ones. device: the device to
    record, if it differs from that of ``chosen``. Raises HrsegError or UnknownName.
    """
    main = load_protocol(protocol or "ritm", changes)
    loaded, provenance = chosen.open()
    mirror = loaded.mirror
    del loaded  # it is opened again for clicking; do not keep it twice on a GPU
    broken: list[str] | None = [] if skip_broken else None
    opened = open_datasets(datasets, root=root, instances=instances, binarize=main.binarize, limit=limit, broken=broken)
    names = list(dict.fromkeys(ref.dataset for ref in opened.refs))
    main, own = own_protocols(protocol, main, names, changes)
    for one in (main, *own.values()):
        prepare_refiner(one, chosen.device)
    most = max_clicks or main.max_clicks
    plan = Plan(
        protocol=main,
        protocols=own,
        until=targets,
        max_clicks=most,
        band=band or {"ratio": 0.02},
        keep_masks=tuple(range(1, most + 1)) if submission else KEPT_CLICKS if keep_masks else (),
        hashes=submission,
    )
    keys = "\n".join(f"{ref.dataset}/{ref.id}" for ref in opened.refs)
    settings = {
        "model": provenance,
        "datasets": names,
        "composed": opened.composed,
        "incomplete": opened.incomplete,
        "objects": len(opened.refs),
        "objects_sha256": sha256(keys.encode()).hexdigest(),
        "metrics": list(targets),
        "until": targets,
        "max_clicks": plan.max_clicks,
        "band": plan.band,
        "protocol": main.model_dump(),
        "protocols": {name: one.model_dump() for name, one in own.items()},
        "flipped": main.flip and mirror,
        "hrseg": __version__,
        "instances": instances,
        "keep_masks": keep_masks or submission,
        **({"submission": True} if submission else {}),
        "device": device or chosen.device,
        "seed": seed,
    }
    return Prepared(chosen, plan, opened, settings, broken=tuple(broken or ()))


def run_in(
    folder: Path, prepared: Prepared, workers: int = 1, in_flight: int = 1, progress: Progress | None = None
) -> tuple[list[Trace], list[Row]]:
    """Evaluate in a new run folder, or resume an interrupted evaluation; return traces and numbers.

    Raises HrsegError if the folder contains anything else.
    """
    for name in prepared.names:
        below(folder, f"{name}.csv", "`datasets`")
    with Run(folder, "evaluate", prepared.settings) as run:
        traces = _resumed(prepared, run, workers, in_flight, progress)
        numbers = summed_up(prepared, traces)
        _write_tables(run.folder, prepared, traces, numbers)
        run.summary = {
            "rows": records(prepared, traces, numbers),
            "binarize": dict(Counter(trace.rule for trace in traces)),
            "notes": dict(sum((Counter(trace.notes) for trace in traces), Counter())),
            **({"skipped": len(prepared.broken), "broken": prepared.broken} if prepared.broken else {}),
        }
    return traces, numbers


def summed_up(prepared: Prepared, traces: Sequence[Trace]) -> list[Row]:
    """All numbers of an evaluation, by dataset and metric. A composed dataset also has numbers over the objects of all
    its parts, after those of the parts."""
    plan = prepared.plan
    thresholds = _thresholds(plan)
    return [
        row
        for name, parts in _grouped(prepared).items()
        for metric in plan.until
        for row in summarise(
            [replace(trace, dataset=name) for trace in traces if trace.dataset in parts],
            metric,
            thresholds,
            plan.max_clicks,
            seed=prepared.settings["seed"],
        )
    ]


def records(prepared: Prepared, traces: Sequence[Trace], numbers: Iterable[Row]) -> list[dict[str, Any]]:
    """One JSON record per dataset and metric: rounded numbers, and their intervals under "95%"."""
    shard = {"shard": prepared.shard} if prepared.shard else {}
    first = _first(prepared)
    found: dict[tuple[str, str], dict[str, Any]] = {}
    intervals: dict[tuple[str, str], dict[str, list[float]]] = {}
    for name, parts in _grouped(prepared).items():
        n = sum(trace.dataset in parts for trace in traces)
        for metric in prepared.plan.until:
            found[name, metric] = {"dataset": name, "metric": metric, "n": n, **shard}
            if first:
                found[name, metric]["first"] = first[name]
            intervals[name, metric] = {}
    for row in numbers:
        found[row.dataset, row.metric][row.measure] = round(row.value, 4)
        intervals[row.dataset, row.metric][row.measure] = [round(row.low, 4), round(row.high, 4)]
    return [{**record, "95%": intervals[key]} for key, record in found.items()]


def _grouped(prepared: Prepared) -> dict[str, list[str]]:
    return {**{name: [name] for name in prepared.names}, **prepared.opened.composed}


def _first(prepared: Prepared) -> dict[str, str]:
    """Dataset -> the first prompt of its objects; empty if that is a click in all datasets."""
    plan = prepared.plan
    found: dict[str, str] = {
        name: plan.protocols.get(parts[0], plan.protocol).first for name, parts in _grouped(prepared).items()
    }
    return found if "box" in found.values() else {}


def _thresholds(plan: Plan) -> list[float]:
    return sorted({*THRESHOLDS, *(value for value in plan.until.values() if value <= 1)})


def _in_memory(prepared: Prepared, workers: int, in_flight: int, progress: Progress | None) -> list[Trace]:
    refs = prepared.opened.refs
    found: dict[int, Outcome] = {}
    for index, outcome in run_plan(prepared.plan, prepared.chosen, refs, workers, in_flight):
        found[index] = outcome
        if progress:
            progress(len(found), len(refs))
    return [found[index].trace for index in range(len(refs))]


def _resumed(prepared: Prepared, run: Run, workers: int, in_flight: int, progress: Progress | None) -> list[Trace]:
    """All traces in dataset order; traces already in the run folder are reused."""
    plan, refs = prepared.plan, prepared.opened.refs
    stat = cache(size_and_time)  # objects may share a file
    files = {f"{ref.dataset}/{ref.id}": file_state(ref, stat) for ref in refs}
    done = run.finished_traces(files, bool(plan.keep_masks))
    left = [ref for ref in refs if f"{ref.dataset}/{ref.id}" not in done]
    finished = len(refs) - len(left)
    if progress:
        progress(finished, len(refs))
    with (
        run.part.open("a", encoding="utf-8") as part,
        run.part_masks.open("a", encoding="utf-8") as masks,
    ):
        for _, outcome in run_plan(plan, prepared.chosen, left, workers, in_flight):
            trace = outcome.trace
            if outcome.masks is not None:
                masks.write(json.dumps(outcome.masks, separators=(",", ":")) + "\n")
                masks.flush()
            part.write(trace.to_json() + "\n")
            part.flush()
            done[f"{trace.dataset}/{trace.id}"] = trace
            finished += 1
            if progress:
                progress(finished, len(refs))
    keys = [f"{ref.dataset}/{ref.id}" for ref in refs]
    run.finish(keys, done, keep_masks=bool(plan.keep_masks))
    return [done[key] for key in keys]


def _write_tables(folder: Path, prepared: Prepared, traces: Sequence[Trace], numbers: Sequence[Row]) -> None:
    """A CSV per dataset with a row per object, and noc.csv with a row per number."""

    def write(name: str, rows: Iterable[Sequence[Any]]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        write_atomically(folder / name, text.getvalue())

    plan = prepared.plan
    for name in prepared.names:
        own = [trace for trace in traces if trace.dataset == name]
        header, rows = per_object_rows(own, _thresholds(plan), plan.max_clicks)
        write(f"{name}.csv", [header, *rows])
    head, first = ["dataset", "metric", "measure", "value", "low", "high", "n"], _first(prepared)
    values = ([*(getattr(row, column) for column in head), *([first[row.dataset]] if first else [])] for row in numbers)
    write("noc.csv", [[*head, *(["first"] if first else [])], *values])


def _targets(metrics: Sequence[str], until: float | Mapping[str, float]) -> dict[str, float]:
    """Metric -> the score at which clicking stops. Raises HrsegError or UnknownName."""
    for metric in metrics:
        catalog.resolve("metric", metric)
    if not isinstance(until, Mapping):
        return dict.fromkeys(metrics, target_of(until))
    for name in until:
        if name not in metrics:
            raise HrsegError(f"`until`: '{name}' is not measured; add it to `metrics`")
    targets = {**dict.fromkeys(metrics, 0.9), **until}
    return {name: target_of(value) for name, value in targets.items()}
