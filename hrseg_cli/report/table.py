"""Run folders read back, and the table of numbers made from their traces.

Numbers are recomputed from ``traces.jsonl``, so that an old run answers for a measure that did not exist when it ran.
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

from hrseg_cli.catalog import METRICS
from hrseg_cli.errors import HrsegError, UnknownName
from hrseg_cli.interaction import Trace
from hrseg_cli.metrics.noc import Row, summarise
from hrseg_cli.runs import read_run, read_traces

DEFAULT_MEASURES = ("NoC@80", "NoC@85", "NoC@90", "NoF@90")
METRIC_LABELS = {"iou": "IoU", "biou": "bIoU", "mba": "mBA"}

_MEASURE = re.compile(r"(?:NoC|NoF|>=\d+)@(?P<percent>\d+(?:\.\d+)?)|mean@(?P<click>\d+)|AUC|SPC")
_SHARD = re.compile(r"shard-\d+-of-\d+")
_AGAIN = "copy the folder again, or rerun its command"


class _Lenient(BaseModel):
    """Types are checked, further keys are left alone."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class _Model(_Lenient):
    name: str
    file: str = ""


class _Settings(_Lenient):
    """What a report reads of a run's settings; the file may have been edited since."""

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
    """One run folder, read back.

    label: what the user calls it. settings: what was asked, as ``run.json`` holds it. commits: of the code that made
    it, each with a ``+`` where that was changed since; several where it was gone on with. max_clicks: clicks an object
    got before it counted as not reached. traces: in dataset order; those there are, when the run is not done. shards:
    the folders that hold its parts, where several machines made it. objects: how many it was asked about, None where
    its folder does not say.
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
        """The run is done and all of its objects are there."""
        return self.status == "done" and self.objects in (None, len(self.traces))

    def counted(self) -> list[Trace]:
        """All traces, and those of composed datasets (HQSeg-44K has four parts) once more under the whole's name."""
        composed: dict[str, list[str]] = self.settings.get("composed", {})
        once_more = [
            replace(t, dataset=name) for name, parts in composed.items() for t in self.traces if t.dataset in parts
        ]
        return [*self.traces, *once_more]


@dataclass(frozen=True)
class Entry:
    """One number with its 95 % bootstrap interval over ``n`` objects, and the run it comes from."""

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
    """Numbers of some runs.

    runs: labels, in the order of the lines. rows: sorted by dataset, metric, measure, then run; a number that a run
    cannot answer is left out. notes: lines to be read with the numbers. differences: why the numbers of these runs do
    not compare; empty where they do.
    """

    runs: tuple[str, ...]
    rows: tuple[Entry, ...]
    notes: tuple[str, ...] = ()
    differences: tuple[str, ...] = ()


def read_evaluations(arguments: Iterable[str], partial: bool = False) -> list[Evaluation]:
    """Runs named as ``FOLDER`` or ``LABEL=FOLDER``, in the given order; shards of one evaluation become one.

    A folder of shards stands for all of them; shards named one by one belong together by label, which is the name of
    the folder around them. Raises HrsegError when one is not a run with traces, is not finished or lacks a shard
    (unless ``partial``), repeats a label, or has shards that differ in their settings.
    """
    folders: dict[str, list[Path]] = {}
    for argument in arguments:
        label, folder = _label_and_folder(argument)
        single = _SHARD.fullmatch(folder.resolve().name)
        if label in folders and not (single and _SHARD.fullmatch(folders[label][0].resolve().name)):
            raise HrsegError(
                f"{argument}: a run called '{label}' is already there; name this one, as in OTHER={folder}"
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
    """The one evaluation whose shards these are; a run that is none stays as it is."""
    first = runs[0]
    if "shard" not in first.settings and len(runs) == 1:
        return first
    told = str(first.settings.get("shard", "1/1"))
    numbers: dict[int, Evaluation] = {}
    for run in runs:
        shard = str(run.settings.get("shard", "1/1"))
        number, of = (int(part) for part in shard.split("/"))
        keys = run.settings.keys() | first.settings.keys()
        other = [key for key in sorted(keys - {"shard"}) if run.settings.get(key) != first.settings.get(key)]
        if other or not told.endswith(f"/{of}"):
            what = f"differs in {', '.join(other)} from" if other else "does not go with"
            raise HrsegError(
                f"{run.folder}: shard {shard} {what} {told} in {first.folder}; "
                "report shards of one evaluation, or give others a LABEL= of their own"
            )
        if number in numbers:
            raise HrsegError(f"{run.folder}: shard {shard} of '{label}' is there twice; name it once")
        numbers[number] = run
    missing = [f"{number}/{of}" for number in range(1, of + 1) if number not in numbers]
    if missing and not partial:
        raise HrsegError(
            f"{first.folder.parent}: shard {', '.join(missing)} of '{label}' is missing; run its command "
            f"with `shard` {missing[0]}, or add `partial`"
        )
    # Every N-th object is in the same shard: dealing the traces out one by one restores the order of the dataset.
    ordered = [numbers[number] for number in sorted(numbers)]
    dealt = zip_longest(*(run.traces for run in ordered))
    traces = tuple(trace for deal in dealt for trace in deal if trace is not None)
    if not traces:
        raise HrsegError(f"{first.folder.parent}: the shards of '{label}' hold no traces; rerun their command")
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
    status = str(record.get("got", {}).get("status", "unknown"))
    if status != "done" and not partial:
        raise HrsegError(
            f"{folder}: the run is '{status}', not done; repeat its command to finish it, or add `partial`"
        )
    # An unfinished run has only the second file; one that was resumed may have both.
    paths = [folder / name for name in ("traces.jsonl", "traces.part.jsonl") if partial or name == "traces.jsonl"]
    traces = [trace for path in paths if path.is_file() for trace in read_traces(path, torn=partial)]
    if not traces and "shard" not in settings:  # of more shards than objects some are empty
        raise HrsegError(f"{folder}: no traces in it; give a folder written by 'hrseg evaluate --out'")
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
            raise HrsegError(f"{folder / 'traces.jsonl'}: an object is there twice; {_AGAIN}")
        if run.objects not in (None, len(traces)):
            raise HrsegError(
                f"{folder / 'traces.jsonl'}: holds {len(traces)} of the run's {run.objects} objects; {_AGAIN}, "
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
            f"{folder}: its run.json does not say {', '.join(sorted(missing))}; "
            "give a folder written by 'hrseg evaluate --out'"
        )
    try:
        return _Settings.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        place, message = ".".join(map(str, first["loc"])), first["msg"].partition(" or instance of")[0]
        raise HrsegError(
            f"{folder / 'run.json'}: {place}: {message[0].lower()}{message[1:]}; put back what evaluate wrote"
        ) from None


def _check_objects(folder: Path, settings: dict[str, Any], traces: Sequence[Trace]) -> None:
    """The traces are of the objects of the run, in its order. Raises HrsegError."""
    names = "\n".join(f"{trace.dataset}/{trace.id}" for trace in traces)
    if settings.get("objects_sha256") not in (None, sha256(names.encode()).hexdigest()):
        raise HrsegError(f"{folder}: its traces are not of the objects that its run.json is about; {_AGAIN}")


def _check_numbers(run: Evaluation, recorded: Any) -> None:
    """The traces give what the run wrote into its summary when it ended. Raises HrsegError where they do not."""
    try:
        rows = [(str(row["dataset"]), str(row["metric"]), dict(row)) for row in (recorded or {}).get("rows", ())]
    except (AttributeError, KeyError, TypeError, ValueError):
        raise HrsegError(
            f"{run.folder / 'run.json'}: its summary cannot be read; put back what evaluate wrote"
        ) from None
    for dataset, metric, row in rows:
        n = sum(trace.dataset == dataset and metric in trace.scores for trace in run.counted())
        if n != row.get("n", n):
            raise HrsegError(f"{run.folder}: {metric} of {n} objects of {dataset}, the run wrote {row['n']}; {_AGAIN}")
        # Seconds are stored with fewer digits than they were added up with.
        names = [name for name in row if _MEASURE.fullmatch(name) and name != "SPC"]
        found = {entry.measure: entry.value for entry in _entries(run, metric, names, dataset, resamples=1)}
        for name in found:
            then = row[name]
            if not isinstance(then, int | float) or abs(found[name] - then) > 1e-4:
                raise HrsegError(
                    f"{run.folder}: its traces give {name} = {found[name]:.4f} by {metric} on {dataset}, the run wrote "
                    f"{then}; {_AGAIN}"
                )


def measured(runs: Sequence[Evaluation], asked: Sequence[str] = ()) -> list[str]:
    """The asked metrics, or those that the runs were asked for. Raises HrsegError for one that no run measured."""
    present = {name for run in runs for trace in run.traces for name in trace.scores}
    for name in asked:
        if name not in present:
            raise HrsegError(f"`metrics` {name}: none of the runs measured it; evaluate with `metrics` {name}")
    wanted = present & {name for run in runs for name in run.settings["metrics"]}
    found = list(dict.fromkeys(asked)) or [name for name in METRICS if name in (wanted or present)]
    if not found:
        raise HrsegError(f"{runs[0].folder}: its traces hold no scores; give a folder written by 'hrseg evaluate'")
    return found


def datasets(runs: Iterable[Evaluation]) -> list[str]:
    """Names of the datasets in order of appearance, composed ones after their parts."""
    return list(dict.fromkeys(trace.dataset for run in runs for trace in run.counted()))


def check_measures(names: Iterable[str]) -> None:
    """Raises UnknownName for a name that is not a measure."""
    for name in names:
        if not _MEASURE.fullmatch(name):
            known = [*DEFAULT_MEASURES, ">=20@90", "mean@5", "AUC", "SPC"]
            raise UnknownName("measure", name, known, "Other numbers after the @ work too, such as NoC@92.5.")


def build(runs: Sequence[Evaluation], metrics: Sequence[str] = (), measures: Sequence[str] = ()) -> Table:
    """The table of ``runs``; without ``metrics`` those the runs were asked for; NoC and NoF by default.

    A threshold above the one at which a run stopped clicking is unknown there. Raises HrsegError when a metric or
    measure that was asked for is known in no run, UnknownName for a measure nobody knows.
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
            until = told({run.label: _until_text(run) for run in runs})
            most = told({run.label: str(run.max_clicks) for run in runs})
            raise HrsegError(
                f"`measures` {name}: unknown in every run (clicked until {until}, at most {most} clicks); "
                "evaluate with a higher `until`, or ask for another measure"
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
    """What :func:`hrseg_cli.metrics.noc.summarise` says of a run, with the run's own seed, so that intervals repeat."""
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
    thresholds = {float(Decimal(m["percent"]) / 100) for m in matches if m["percent"]}  # exact, as 0.925 is typed
    clicks = {int(m["click"]) for m in matches if m["click"]}
    model, protocol = _model_text(run), _protocol_text(run)
    return [
        Entry(run.label, model, protocol, ", ".join(run.commits), **vars(row))
        for row in summary(run, metric, thresholds, clicks, dataset, resamples)
        if row.measure in measures
    ]


def differences(runs: Sequence[Evaluation], metrics: Iterable[str], measures: Iterable[str]) -> list[str]:
    """Why these metrics and measures of these runs do not compare, a reason each; empty where they do.

    Reasons: protocol, most clicks, objects, the band of Boundary IoU, and, for averages, where clicking ended.
    """
    found = []
    protocols = [{**run.settings["protocol"], **run.settings.get("protocols", {})} for run in runs]
    differing = sorted(
        key
        for key in set().union(*protocols) - {"name", "version", "max_clicks"}
        if any(protocol.get(key) != protocols[0].get(key) for protocol in protocols)
    )
    if differing:
        names = told({run.label: _protocol_text(run) for run in runs})
        found.append(f"protocols differ in {', '.join(differing)}: {names}")
    if len({run.max_clicks for run in runs}) > 1:
        found.append(f"most clicks differ: {told({run.label: str(run.max_clicks) for run in runs})}")
    bands = {run.label: json.dumps(run.settings.get("band")) for run in runs}
    if "biou" in metrics and len(set(bands.values())) > 1:
        found.append(f"bands of Boundary IoU differ: {told(bands)}")
    for name in datasets(runs):
        # The area tells apart objects of one name whose truth was read or drawn otherwise.
        objects = {r.label: frozenset((t.id, t.area) for t in r.traces if t.dataset == name) for r in runs}
        having = {label: ids for label, ids in objects.items() if ids}
        if len(set(having.values())) > 1:
            shared = len(frozenset.intersection(*having.values()))
            counts = told({label: f"{len(ids)}" for label, ids in having.items()})
            found.append(f"objects of {name} differ: {counts}, {shared} in common")
    if any(name == "AUC" or name.startswith(("mean@", "SPC")) for name in measures):
        untils = {run.label: _until_text(run) for run in runs}
        if len(set(untils.values())) > 1:
            found.append(f"clicking ended at other values, which moves mean, AUC and SPC: {told(untils)}")
    return found


def _notes(runs: Sequence[Evaluation]) -> list[str]:
    counts = []
    for name in datasets(runs):
        sizes = {run.label: sum(t.dataset == name for t in run.counted()) for run in runs}
        counts.append(f"{name} n = {told({label: str(n) for label, n in sizes.items() if n})}")
    notes = [
        f"{', '.join(counts)}; protocol {told({run.label: _protocol_text(run) for run in runs})}; "
        f"until {told({run.label: _until_text(run) for run in runs})}; "
        f"at most {told({run.label: str(run.max_clicks) for run in runs})} clicks; "
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
    """A ``+`` behind it where the code had been changed since."""
    return f"{where.get('commit') or 'unknown'}{'+' if where.get('dirty') else ''}"


def _model_text(run: Evaluation) -> str:
    """``h18 (weights.pth)``, or the name alone where there are no weights."""
    model = run.settings["model"]
    return f"{model['name']} ({model['file']})" if "file" in model else str(model["name"])


def _protocol_text(run: Evaluation) -> str:
    def text(protocol: dict[str, Any]) -> str:
        return f"{protocol.get('name', 'unnamed')} v{protocol.get('version', 1)}"

    own = [f"{dataset}: {text(protocol)}" for dataset, protocol in run.settings.get("protocols", {}).items()]
    return text(run.settings["protocol"]) + (f" ({', '.join(own)})" if own else "")


def _until_text(run: Evaluation) -> str:
    until = run.settings["until"]
    if not until or max(until.values()) > 1:  # nothing scores above 1: every object got all its clicks
        return "the last click"
    return " and ".join(f"{METRIC_LABELS.get(name, name)} {value:g}" for name, value in until.items())


def told(values: Mapping[str, str]) -> str:
    """The one value that all runs share, or each with its runs: ``20 (a, c), 10 (b)``."""
    labels: dict[str, list[str]] = {}
    for label, value in values.items():
        labels.setdefault(value, []).append(label)
    if len(labels) == 1:
        return next(iter(labels))
    return ", ".join(f"{value} ({', '.join(those)})" for value, those in labels.items())
