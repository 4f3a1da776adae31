"""Read run folders, and compute tables from their traces.

Numbers are recomputed from ``traces.jsonl``, so measures added later are available for old runs too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from hashlib import sha256
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hrseg_cli import catalog
from hrseg_cli.errors import HrsegError, UnknownName
from hrseg_cli.interaction import Trace
from hrseg_cli.metrics.noc import Row, summarise
from hrseg_cli.runs import read_run, read_traces

DEFAULT_MEASURES = ("NoC@80", "NoC@85", "NoC@90", "NoF@90")

_MEASURE = re.compile(r"(?:NoC|NoF|>=\d+)@(?P<percent>\d+(?:\.\d+)?)|mean@(?P<click>\d+)|AUC|SPC")
_SHARD = re.compile(r"shard-\d+-of-\d+")
_AGAIN = "copy the folder again, or rerun its command"


class _Lenient(BaseModel):
    """Checks types, ignores unknown keys."""

    model_config = ConfigDict(extra="allow", strict=True)


class _Model(_Lenient):
    name: str
    file: str = ""


class _Settings(_Lenient):
    """The settings of a run that reports need; validated, because the file may have been edited."""

    model: _Model
    metrics: list[str]
    until: dict[str, float]
    max_clicks: int = Field(ge=1, le=100_000)
    protocol: dict[str, Any]
    seed: int = Field(ge=0)
    protocols: dict[str, dict[str, Any]] = {}
    composed: dict[str, list[str]] = {}
    objects: int | None = Field(None, ge=0)
    objects_sha256: str | None = None
    shard: Annotated[str, Field(pattern=r"^[1-9]\d{0,4}/[1-9]\d{0,4}$")] = "1/1"


@dataclass(frozen=True)
class Evaluation:
    """One run folder.

    label: the user's name for it. settings: as in ``run.json``. commits: of the code, with a ``+`` for uncommitted
    changes; several if the run was resumed with another commit. max_clicks: clicks per object before its target counts
    as not reached. traces: in dataset order; incomplete if the run is not done. shards: the folders of its shards, if
    it was sharded. objects: number of objects requested, None if the folder does not record it.
    """

    label: str
    folder: Path
    status: str
    settings: dict[str, Any]
    commits: tuple[str, ...]
    max_clicks: int
    traces: tuple[Trace, ...]
    shards: tuple[Path, ...] = ()
    objects: int | None = None

    @property
    def whole(self) -> bool:
        """Whether the run is done and has a trace of every object."""
        return self.status == "done" and self.objects in (None, len(self.traces))

    def counted(self) -> list[Trace]:
        """All traces; those of composed datasets (HQSeg-44K has four parts) also under the name of the whole."""
        composed: dict[str, list[str]] = self.settings.get("composed", {})
        once_more = [
            replace(t, dataset=name) for name, parts in composed.items() for t in self.traces if t.dataset in parts
        ]
        return [*self.traces, *once_more]


@dataclass(frozen=True)
class Entry:
    """One number with its 95 % bootstrap interval over ``n`` objects, and its run."""

    run: str
    model: str
    protocol: str
    commit: str
    dataset: str
    metric: str
    measure: str
    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Table:
    """The numbers of several runs.

    runs: labels, in row order. rows: sorted by dataset, metric, measure, then run; unknown numbers are omitted.
    notes: footnotes. differences: why the numbers of these runs are not comparable; empty if they are.
    """

    runs: tuple[str, ...]
    rows: tuple[Entry, ...]
    notes: tuple[str, ...] = ()
    differences: tuple[str, ...] = ()


def read_evaluations(arguments: Iterable[str], partial: bool = False) -> list[Evaluation]:
    """Read runs given as ``FOLDER`` or ``LABEL=FOLDER``, in this order; shards of one evaluation are merged.

    A folder of shards stands for all of them. Shards given one by one are grouped by label, by default the name of
    their parent folder. Raises HrsegError if one is not a run with traces, is unfinished or lacks a shard (unless
    ``partial``), repeats a label, or has shards with different settings.
    """
    folders: dict[str, list[Path]] = {}
    for argument in arguments:
        label, folder = _label_and_folder(argument)
        single = _SHARD.fullmatch(folder.resolve().name)
        if label in folders and not (single and _SHARD.fullmatch(folders[label][0].resolve().name)):
            raise HrsegError(
                f"{argument}: another run is already called '{label}'; give this one a label, as in OTHER={folder}"
            )
        below = [path for path in folder.glob("shard-*-of-*") if _SHARD.fullmatch(path.name)]
        whole = (folder / "run.json").exists() or not below
        folders.setdefault(label, []).extend([folder] if whole else below)
    return [
        _merge(label, [_read_evaluation(label, folder, partial) for folder in those], partial)
        for label, those in folders.items()
    ]


def _label_and_folder(argument: str) -> tuple[str, Path]:
    label, equals, path = argument.partition("=")
    if not equals or Path(argument).is_dir():
        folder = Path(argument).resolve()
        return (folder.parent if _SHARD.fullmatch(folder.name) else folder).name, Path(argument)
    if not label or not path:
        raise HrsegError(f"{argument}: write FOLDER or LABEL=FOLDER")
    return label, Path(path)


def _merge(label: str, runs: list[Evaluation], partial: bool) -> Evaluation:
    """Merge shards into one evaluation; an unsharded run is returned unchanged."""
    first = runs[0]
    if "shard" not in first.settings and len(runs) == 1:
        return first
    of_first = str(first.settings.get("shard", "1/1"))
    numbers: dict[int, Evaluation] = {}
    for run in runs:
        shard = str(run.settings.get("shard", "1/1"))
        number, of = (int(part) for part in shard.split("/"))
        keys = run.settings.keys() | first.settings.keys()
        other = [key for key in sorted(keys - {"shard"}) if run.settings.get(key) != first.settings.get(key)]
        if other or not of_first.endswith(f"/{of}"):
            what = f"differs in {', '.join(other)} from" if other else "does not belong with"
            raise HrsegError(
                f"{run.folder}: shard {shard} {what} {of_first} in {first.folder}; "
                "give shards of one evaluation, or use LABEL=FOLDER for the others"
            )
        if number in numbers:
            raise HrsegError(f"{run.folder}: shard {shard} of '{label}' is given twice; remove one")
        numbers[number] = run
    missing = [f"{number}/{of}" for number in range(1, of + 1) if number not in numbers]
    if missing and not partial:
        raise HrsegError(
            f"{first.folder.parent}: shard {', '.join(missing)} of '{label}' is missing; run its command "
            f"with `shard` {missing[0]}, or add `partial`"
        )
    # Every N-th object is in the same shard, so taking one trace from each shard in turn restores the dataset order.
    ordered = [numbers[number] for number in sorted(numbers)]
    dealt = zip_longest(*(run.traces for run in ordered))
    traces = tuple(trace for deal in dealt for trace in deal if trace is not None)
    if not traces:
        raise HrsegError(f"{first.folder.parent}: the shards of '{label}' contain no traces; rerun their command")
    if not partial:
        _check_objects(first.folder.parent, first.settings, traces)
    states = {run.status for run in ordered} - {"done"} or ({"incomplete"} if missing else {"done"})
    return replace(
        first,
        folder=first.folder.parent,
        status=", ".join(sorted(states)),
        settings={key: value for key, value in first.settings.items() if key != "shard"},
        commits=tuple(sorted({commit for run in ordered for commit in run.commits})),
        traces=traces,
        shards=tuple(run.folder for run in ordered),
        objects=first.settings.get("objects"),
    )


def _read_evaluation(label: str, folder: Path, partial: bool) -> Evaluation:
    record = read_run(folder)
    settings = record["asked"]["settings"]
    asked = _checked(folder, settings)
    status = str(record["got"].get("status", "unknown"))
    if status != "done" and not partial:
        raise HrsegError(f"{folder}: the run is '{status}', not done; rerun its command to finish it, or add `partial`")
    # An unfinished run has only the second file; a resumed one may have both.
    paths = [folder / name for name in ("traces.jsonl", "traces.part.jsonl") if partial or name == "traces.jsonl"]
    traces = [trace for path in paths if path.is_file() for trace in read_traces(path, torn=partial)]
    if not traces and "shard" not in settings:  # with more shards than objects, some are empty
        raise HrsegError(f"{folder}: no traces; give a folder written by 'hrseg evaluate --out'")
    number, of = map(int, asked.shard.split("/"))
    places = [record.get("where", {}), *record.get("where_later", [])]
    run = Evaluation(
        label=label,
        folder=folder,
        status=status,
        settings=settings,
        commits=tuple(dict.fromkeys(_commit_text(where) for where in places)),
        max_clicks=asked.max_clicks,
        traces=tuple({(t.dataset, t.id): t for t in traces}.values()),
        objects=None if asked.objects is None else len(range(number - 1, asked.objects, of)),
    )
    if not partial:
        if len(run.traces) != len(traces):
            raise HrsegError(f"{folder / 'traces.jsonl'}: duplicate object; {_AGAIN}")
        if run.objects not in (None, len(traces)):
            raise HrsegError(
                f"{folder / 'traces.jsonl'}: contains {len(traces)} of the run's {run.objects} objects; {_AGAIN}, "
                "or add `partial`"
            )
        if of == 1:
            _check_objects(folder, settings, run.traces)
        _check_numbers(run, record["got"].get("summary"))
    return run


def _checked(folder: Path, settings: dict[str, Any]) -> _Settings:
    needed = {name for name, one in _Settings.model_fields.items() if one.is_required()}
    if missing := needed - settings.keys():
        raise HrsegError(
            f"{folder}: its run.json lacks {', '.join(sorted(missing))}; "
            "give a folder written by 'hrseg evaluate --out'"
        )
    try:
        return _Settings.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        place, message = ".".join(map(str, first["loc"])), first["msg"].partition(" or instance of")[0]
        raise HrsegError(
            f"{folder / 'run.json'}: {place}: {message[0].lower()}{message[1:]}; restore the file that evaluate wrote"
        ) from None


def _check_objects(folder: Path, settings: dict[str, Any], traces: Sequence[Trace]) -> None:
    """Check that the traces match the objects of the run, in order. Raises HrsegError."""
    names = "\n".join(f"{trace.dataset}/{trace.id}" for trace in traces)
    if settings.get("objects_sha256") not in (None, sha256(names.encode()).hexdigest()):
        raise HrsegError(f"{folder}: its traces do not match the objects of its run.json; {_AGAIN}")


def _check_numbers(run: Evaluation, recorded: Any) -> None:
    """Check that the traces reproduce the summary that the run wrote. Raises HrsegError if they do not."""
    try:
        rows = [(str(row["dataset"]), str(row["metric"]), dict(row)) for row in (recorded or {}).get("rows", ())]
    except (AttributeError, KeyError, TypeError, ValueError):
        raise HrsegError(
            f"{run.folder / 'run.json'}: its summary cannot be read; restore the file that evaluate wrote"
        ) from None
    for dataset, metric, row in rows:
        n = sum(trace.dataset == dataset and metric in trace.scores for trace in run.counted())
        if n != row.get("n", n):
            raise HrsegError(
                f"{run.folder}: has {metric} for {n} objects of {dataset}, its summary for {row['n']}; {_AGAIN}"
            )
        # Seconds were summed with more digits than are stored.
        names = [name for name in row if _MEASURE.fullmatch(name) and name != "SPC"]
        found = {entry.measure: entry.value for entry in _entries(run, metric, names, dataset, resamples=1)}
        for name in found:
            then = row[name]
            if not isinstance(then, int | float) or abs(found[name] - then) > 1e-4:
                raise HrsegError(
                    f"{run.folder}: its traces give {name} = {found[name]:.4f} by {metric} on {dataset}, its summary "
                    f"{then}; {_AGAIN}"
                )


def measured(runs: Sequence[Evaluation], asked: Sequence[str] = ()) -> list[str]:
    """The requested metrics, or by default those of the runs. Raises HrsegError for one that no run measured."""
    present = {name for run in runs for trace in run.traces for name in trace.scores}
    for name in asked:
        if name not in present:
            raise HrsegError(f"`metrics` {name}: none of the runs measured it; rerun evaluate with `metrics` {name}")
    wanted = present & {name for run in runs for name in run.settings["metrics"]}
    found = list(dict.fromkeys(asked)) or [name for name in catalog.METRICS if name in (wanted or present)]
    if not found:
        raise HrsegError(f"{runs[0].folder}: its traces contain no scores; give a folder written by 'hrseg evaluate'")
    return found


def label_of(metric: str) -> str:
    """What a metric is called in tables: its ``label``, else its name."""
    return str(_own(metric, "label", metric))


def _own(metric: str, attribute: str, default: object) -> object:
    """An attribute of a metric; the default for one without it, and for one that an old run knows and we do not."""
    return getattr(catalog.resolve("metric", metric), attribute, default) if metric in catalog.METRICS else default


def datasets(runs: Iterable[Evaluation]) -> list[str]:
    """Names of the datasets in order of appearance; composed ones follow their parts."""
    return list(dict.fromkeys(trace.dataset for run in runs for trace in run.counted()))


def check_measures(names: Iterable[str]) -> None:
    """Raises UnknownName for a name that is not a measure."""
    for name in names:
        if not _MEASURE.fullmatch(name):
            known = [*DEFAULT_MEASURES, ">=20@90", "mean@5", "AUC", "SPC"]
            raise UnknownName("measure", name, known, "Other numbers after the @ are allowed too, such as NoC@92.5.")


def build(runs: Sequence[Evaluation], metrics: Sequence[str] = (), measures: Sequence[str] = ()) -> Table:
    """The table of ``runs``. metrics: by default those of the runs. measures: by default NoC and NoF.

    Thresholds above the target at which a run stopped clicking are unknown for it. Raises HrsegError if a requested
    metric or measure is unknown in every run, UnknownName for an unknown measure.
    """
    check_measures(measures)
    asked = list(dict.fromkeys(measures)) or list(DEFAULT_MEASURES)
    found: dict[tuple[str, str, str, str], Entry] = {}
    metrics = measured(runs, metrics)
    for run in runs:
        for metric in metrics:
            for entry in _entries(run, metric, asked):
                found[entry.dataset, metric, entry.measure, run.label] = entry
    for name in measures:
        if not any(key[2] == name for key in found):
            until = by_value({run.label: _until_text(run) for run in runs})
            most = by_value({run.label: str(run.max_clicks) for run in runs})
            raise HrsegError(
                f"`measures` {name}: unknown in every run (clicked until {until}, at most {most} clicks); "
                "rerun evaluate with a higher `until`, or choose another measure"
            )
    order = [(d, m, a, run.label) for d in datasets(runs) for m in metrics for a in asked for run in runs]
    return Table(
        runs=tuple(run.label for run in runs),
        rows=tuple(found[key] for key in order if key in found),
        notes=tuple(_notes(runs)),
        differences=tuple(differences(runs, metrics, asked)),
    )


def summary(
    run: Evaluation,
    metric: str,
    thresholds: Iterable[float] = (),
    clicks: Iterable[int] = (),
    dataset: str | None = None,
    resamples: int = 1000,
) -> list[Row]:
    """:func:`hrseg_cli.metrics.noc.summarise` with the run's own seed, so that intervals are reproducible."""
    return summarise(
        [t for t in run.counted() if metric in t.scores and dataset in (None, t.dataset)],
        metric,
        thresholds=sorted(thresholds),
        max_clicks=run.max_clicks,
        ks=sorted(clicks),
        seed=run.settings["seed"],
        resamples=resamples,
    )


def _entries(
    run: Evaluation, metric: str, measures: Sequence[str], dataset: str | None = None, resamples: int = 1000
) -> list[Entry]:
    matches = [match for name in measures if (match := _MEASURE.fullmatch(name))]
    thresholds = {float(Decimal(m["percent"]) / 100) for m in matches if m["percent"]}  # exact, so that 92.5 is 0.925
    clicks = {int(m["click"]) for m in matches if m["click"]}
    model, protocol = _model_text(run), _protocol_text(run)
    return [
        Entry(run.label, model, protocol, ", ".join(run.commits), **vars(row))
        for row in summary(run, metric, thresholds, clicks, dataset, resamples)
        if row.measure in measures
    ]


def differences(runs: Sequence[Evaluation], metrics: Iterable[str], measures: Iterable[str]) -> list[str]:
    """Why these metrics and measures of these runs are not comparable, one reason each; empty where they are.

    Reasons: protocol, most clicks, objects, the band of metrics that take one, and, for averages, where clicking ended.
    """
    found = []
    protocols = [{**run.settings["protocol"], **run.settings.get("protocols", {})} for run in runs]
    differing = sorted(
        key
        for key in set().union(*protocols) - {"name", "version", "max_clicks"}
        if any(protocol.get(key) != protocols[0].get(key) for protocol in protocols)
    )
    if differing:
        names = by_value({run.label: _protocol_text(run) for run in runs})
        found.append(f"protocols differ in {', '.join(differing)}: {names}")
    if len({run.max_clicks for run in runs}) > 1:
        found.append(f"maximum clicks differ: {by_value({run.label: str(run.max_clicks) for run in runs})}")
    bands = {run.label: json.dumps(run.settings.get("band")) for run in runs}
    banded = [label_of(name) for name in metrics if _own(name, "takes_band", False)]
    if banded and len(set(bands.values())) > 1:
        found.append(f"bands of {' and '.join(banded)} differ: {by_value(bands)}")
    for name in datasets(runs):
        # The area distinguishes objects of the same name whose ground truth was read or drawn differently.
        objects = {r.label: frozenset((t.id, t.area) for t in r.traces if t.dataset == name) for r in runs}
        having = {label: ids for label, ids in objects.items() if ids}
        if len(set(having.values())) > 1:
            shared = len(frozenset.intersection(*having.values()))
            counts = by_value({label: f"{len(ids)}" for label, ids in having.items()})
            found.append(f"objects of {name} differ: {counts}, {shared} in common")
    if any(name == "AUC" or name.startswith(("mean@", "SPC")) for name in measures):
        untils = {run.label: _until_text(run) for run in runs}
        if len(set(untils.values())) > 1:
            found.append(f"stopping targets differ, which affects mean, AUC and SPC: {by_value(untils)}")
    return found


def _notes(runs: Sequence[Evaluation]) -> list[str]:
    counts = []
    for name in datasets(runs):
        sizes = {run.label: sum(t.dataset == name for t in run.counted()) for run in runs}
        counts.append(f"{name} n = {by_value({label: str(n) for label, n in sizes.items() if n})}")
    notes = [
        f"{', '.join(counts)}; protocol {by_value({run.label: _protocol_text(run) for run in runs})}; "
        f"until {by_value({run.label: _until_text(run) for run in runs})}; "
        f"at most {by_value({run.label: str(run.max_clicks) for run in runs})} clicks{_first_text(runs)}; "
        "[95 % bootstrap interval over objects]."
    ]
    unfinished = [
        f"{run.label} ({run.status}" + (f", {len(run.traces)} of {run.objects} objects)" if run.objects else ")")
        for run in runs
        if not run.whole
    ]
    if unfinished:
        notes.append(f"Not finished: {', '.join(unfinished)}.")
    return notes


def _commit_text(where: dict[str, Any]) -> str:
    """The commit, with a ``+`` if there were uncommitted changes."""
    return f"{where.get('commit') or 'unknown'}{'+' if where.get('dirty') else ''}"


def _model_text(run: Evaluation) -> str:
    """``h18 (weights.pth)``, or just the name if there are no weights."""
    model = run.settings["model"]
    return f"{model['name']} ({model['file']})" if "file" in model else str(model["name"])


def _protocol_text(run: Evaluation) -> str:
    def text(protocol: dict[str, Any]) -> str:
        return f"{protocol.get('name', 'unnamed')} v{protocol.get('version', 1)}"

    own = [f"{dataset}: {text(protocol)}" for dataset, protocol in run.settings.get("protocols", {}).items()]
    return text(run.settings["protocol"]) + (f" ({', '.join(own)})" if own else "")


def _first_text(runs: Sequence[Evaluation]) -> str:
    """ ", the first of them a box" if the annotator drew one in any run."""
    first = {run.label: "box" if any(trace.first == "box" for trace in run.traces) else "click" for run in runs}
    return f", the first of them a {by_value(first)}" if "box" in first.values() else ""


def _until_text(run: Evaluation) -> str:
    until = run.settings["until"]
    if not until or max(until.values()) > 1:  # no score exceeds 1: every object got all its clicks
        return "the last click"
    return " and ".join(f"{label_of(name)} {value:g}" for name, value in until.items())


def by_value(values: Mapping[str, str]) -> str:
    """The value that all runs share, or each value with its runs: ``20 (a, c), 10 (b)``."""
    labels: dict[str, list[str]] = {}
    for label, value in values.items():
        labels.setdefault(value, []).append(label)
    if len(labels) == 1:
        return next(iter(labels))
    return ", ".join(f"{value} ({', '.join(those)})" for value, those in labels.items())
