"""Tables of many runs, laid out by a plan, with published numbers next to the measured ones.

The folder holds ``ROW/SEED/SET`` for the sets of the plan, run folders of evaluations, and ``ROW/SEED/train``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hrseg_cli import catalog
from hrseg_cli.data.samples import split_options
from hrseg_cli.errors import HrsegError
from hrseg_cli.metrics.noc import interval, known, mean_at, noc
from hrseg_cli.recipe import TablePlan, TableRow, TablesPlan
from hrseg_cli.report.table import Evaluation, build, by_value, label_of, read_evaluations
from hrseg_cli.report.write import ABSENT, escape, pipes
from hrseg_cli.runs import read_run

PAIRS = "Additional clicks compared with the base, per object"


class MeanClicks(NamedTuple):
    """Mean NoC over objects, averaged over seeds, with its 95 % bootstrap interval.

    seeds: mean per seed. objects: NoC per object, by (dataset, id).
    """

    value: float
    low: float
    high: float
    seeds: tuple[float, ...]
    objects: dict[tuple[str, str], float]


@dataclass(frozen=True)
class RowResult:
    """The measurements of one row; None and missing keys for what was not measured.

    clicks: by column of the plan. seconds: median time of a click on the timed set. trained: number of trained
    parameters. gmac: of one forward pass at ``crop`` (height, width), the training crop. data: names of the training
    datasets. scores: per object, by (dataset, id): the score named in the plan, mean over seeds.
    """

    clicks: dict[tuple[str, str], MeanClicks]
    seconds: float | None = None
    trained: int | None = None
    gmac: float | None = None
    crop: tuple[int, int] | None = None
    data: tuple[str, ...] = ()
    scores: dict[tuple[str, str], float] = field(default_factory=dict)


@dataclass(frozen=True)
class TablesResult:
    """A plan and its measurements. rows: by name. notes: apply to all tables."""

    plan: TablesPlan
    rows: dict[str, RowResult]
    notes: tuple[str, ...]


def read(folder: Path, plan: TablesPlan) -> TablesResult:
    """Read the finished runs in a folder. Raises HrsegError if there are none, UnknownName for an unknown metric."""
    for metric in plan.metrics:
        catalog.resolve("metric", plan.target(metric)[0])
    runs: dict[str, dict[str, list[Evaluation]]] = {part: {} for part in plan.sets}
    unfinished = []
    for row in plan.rows:
        seeds = (path for path in (folder / row).glob("*") if path.is_dir() and not path.name.startswith("."))
        for seed in sorted(seeds):
            label = f"{row}/{seed.name}"
            # A seed counts only if all of its sets are done; otherwise columns would compare different trainings.
            if not all(_is_done(seed / part) for part in plan.sets):
                unfinished.append(label)
                continue
            for part in plan.sets:
                runs[part].setdefault(row, []).extend(read_evaluations([f"{label}={seed / part}"]))
    if not any(runs.values()):
        raise HrsegError(
            f"{folder}: no finished evaluation of tables '{plan.name}' found; create them with {plan.made_by}"
        )
    first = next(iter(runs.values()))
    trainings = {row: _training(evaluations[0]) for row, evaluations in first.items()}
    rows = {
        row: _row(plan, {part: runs[part].get(row, []) for part in plan.sets}, trainings.get(row, {}))
        for row in plan.rows
    }
    if not trainings.get(plan.base):  # what adapters start from
        own = next((done["base_gmac"] for done in trainings.values() if "base_gmac" in done), None)
        rows[plan.base] = replace(rows[plan.base], trained=0, gmac=own)
    return TablesResult(plan, rows, tuple(_notes(plan, runs, rows, unfinished)))


def _is_done(folder: Path) -> bool:
    return (folder / "run.json").is_file() and read_run(folder).get("got", {}).get("status") == "done"


def _training(run: Evaluation) -> dict[str, Any]:
    """Costs, crop and datasets from the record of an evaluated model's training; empty without a record."""
    if not (run.folder.parent / "train").is_dir():
        return {}
    record = read_run(run.folder.parent / "train")
    try:
        data = record["asked"]["settings"]["recipe"]["data"]
        names = [Path(split_options(part["dataset"])[0]).name for part in data["parts"]]
        return {**(record["got"].get("summary") or {}), "crop": data["crop"], "data": names}
    except (KeyError, TypeError, AttributeError) as error:
        raise HrsegError(
            f"{run.folder.parent / 'train' / 'run.json'}: cannot be read as a training run ({error}); rerun its command"
        ) from None


def _row(plan: TablesPlan, runs: dict[str, list[Evaluation]], training: dict[str, Any]) -> RowResult:
    clicks = {
        (part, metric): found
        for part, metric in plan.columns
        if runs[part] and (found := _clicks(runs[part], *plan.target(metric))) is not None
    }
    scores: dict[tuple[str, str], list[float]] = {}
    for trace in (trace for part in plan.sets for run in runs[part] for trace in run.traces):
        if plan.scores and plan.scores.metric in trace.scores:
            score = mean_at(trace.scores[plan.scores.metric], plan.scores.after)
            scores.setdefault((trace.dataset, trace.id), []).append(score)
    seconds = [second for run in runs[_timed(plan)] for trace in run.traces for second in trace.seconds]
    return RowResult(
        clicks=clicks,
        seconds=float(np.median(seconds)) if seconds else None,
        trained=training.get("trained"),
        gmac=training.get("gmac"),
        crop=tuple(training["crop"]) if training else None,
        data=tuple(training.get("data", ())),
        scores={one: float(np.mean(each)) for one, each in scores.items()},
    )


def _timed(plan: TablesPlan) -> str:
    return plan.timed or list(plan.sets)[-1]


def _clicks(runs: Sequence[Evaluation], metric: str, level: float) -> MeanClicks | None:
    """NoC over all objects of a set; None if clicking stopped below ``level``.

    The bootstrap resamples objects, the same as in the other tables of a run (:func:`summarise`).
    """
    needed: dict[tuple[str, str], list[int]] = {}
    for run in runs:
        for trace in run.traces:
            values = trace.scores.get(metric, ())
            if not known(values, level, run.max_clicks):
                return None
            needed.setdefault((trace.dataset, trace.id), []).append(noc(values, level, run.max_clicks))
    if any(len(each) != len(runs) for each in needed.values()):
        names = ", ".join(run.label for run in runs)
        raise HrsegError(f"{names}: objects differ; delete one of them and rerun it")
    table = np.array(list(needed.values()), float)
    means = table.mean(1)
    low, high = interval(means, np.ones(len(means)), runs[0].settings["seed"])
    each = dict(zip(needed, map(float, means), strict=True))
    return MeanClicks(float(means.mean()), float(low), float(high), tuple(map(float, table.mean(0))), each)


def _notes(
    plan: TablesPlan,
    runs: dict[str, dict[str, list[Evaluation]]],
    rows: dict[str, RowResult],
    unfinished: Sequence[str],
) -> Iterator[str]:
    measure = f"NoC@{100 * plan.level:g}"
    others = ", or to the score after @," if any("@" in metric for metric in plan.metrics) else ""
    yield (
        f"{measure}{others} over all objects of a set, [95 % bootstrap interval over objects, taken as independent]; "
        f"bold: the fewest clicks measured. {plan.published_note}"
    ).rstrip()
    inside = "" if rows[plan.base].crop else "; for the base at its input size inside an adapter"
    costs = f"Trained: parameters. GMAC: multiply-adds in one forward pass at the training crop{inside}. "
    yield (
        f"{costs if _has_trainings(rows) else ''}s/click: median wall time on the "
        f"{plan.sets[_timed(plan)].replace(' ', '-')} set."
    )
    for part, title in plan.sets.items():
        evaluations = [run for row in runs[part].values() for run in row]
        built = build(evaluations, list(dict.fromkeys(plan.target(metric)[0] for metric in plan.metrics)), [measure])
        yield f"{title[0].upper()}{title[1:]}: {built.notes[0]}"
        found = list(built.differences)
        names = {run.label: " + ".join(sorted({trace.dataset for trace in run.traces})) for run in evaluations}
        if len(set(names.values())) > 1:
            found.append(f"datasets differ: {by_value(names)}")
        if found:
            yield f"The numbers on {title} are not comparable: {'; '.join(found)}."
    data = {row: " + ".join(result.data) for row, result in rows.items() if result.data}
    if any(set(result.data) - set(plan.published_data) for result in rows.values()):
        yield f"Trained on {by_value(data)}" + (f"; {plan.other_data_note}" if plan.other_data_note else ".")
    everything = [run for part in runs.values() for row in part.values() for run in row]
    models = [run.settings["model"] for run in everything]
    bases = []
    for model in models:
        kept = (str(model.get("sha256", ""))[:12], model.get("precision", "fp32"))
        bases.append(f"{model.get('file', model['name'])} ({', '.join(filter(None, kept))})")
    commits = dict.fromkeys(one[:10] + "+" * one.endswith("+") for run in everything for one in run.commits)
    counts = dict.fromkeys(len(row) for name, row in runs[_timed(plan)].items() if name != plan.base)
    seeds = f"; seeds per row: {', '.join(map(str, counts))}" if counts else ""
    kind = "base" if len({model.get("sha256", model["name"]) for model in models}) == 1 else "models"
    yield f"Measured: {kind} {', '.join(dict.fromkeys(bases))}; commit {', '.join(commits)}{seeds}."
    spread = [
        (max(found.seeds) - min(found.seeds), row, part, metric)
        for row, result in rows.items()
        for (part, metric), found in result.clicks.items()
        if len(found.seeds) > 1
    ]
    if spread:
        most, row, part, metric = max(spread)
        where = f"{row}, {plan.sets[part]}, {label_of(metric)}"
        yield f"Seeds of one row differ by up to {most:.2f} clicks ({where})."
    absent = [row.label for table in plan.tables for row in table.rows if not _has_numbers(row, rows)]
    if absent:
        yield f"Not measured, omitted: {', '.join(dict.fromkeys(absent))}."
    if unfinished:
        yield f"Not finished, omitted: {', '.join(unfinished)}."


def _has_trainings(rows: Mapping[str, RowResult]) -> bool:
    return any(row.crop for row in rows.values())


# ---- as text ---------------------------------------------------------------------------------------------------------


def markdown(result: TablesResult) -> str:
    """The tables, each under a heading, and the notes."""
    grids = _grids(result, "**{}**")
    out = [f"## {title}\n\n{pipes(lines)}\n" for title, lines in {**grids, **_pairs(result)}.items()]
    return "".join(out) + "\n".join(f"{note}\n" for note in result.notes)


def latex(result: TablesResult) -> str:
    """A ``tabular`` with booktabs under each title, and the notes in small type."""
    out = ["% needs \\usepackage{booktabs}"]
    grids = _grids(result, "\\textbf{{{}}}")
    for title, (head, *texts) in {**grids, **_pairs(result)}.items():
        out += [f"\n\\smallskip\\noindent {title}\\par", f"\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", "\\toprule"]
        out += [" & ".join(map(escape, head)) + " \\\\", "\\midrule"]
        out += [" & ".join([escape(label), *map(_typeset, cells)]) + " \\\\" for label, *cells in texts]
        out += ["\\bottomrule", "\\end{tabular}"]
    out += [f"\n\\smallskip\\noindent{{\\footnotesize {escape(note)}\\par}}" for note in result.notes]
    return "\n".join(out) + "\n"


def _heading(plan: TablesPlan, part: str, metric: str) -> str:
    name, at, percent = metric.partition("@")
    return f"{plan.sets[part]} {label_of(name)}{at}{percent}"


def _typeset(cell: str) -> str:
    value, space, interval = cell.partition(" [")
    text = value.replace(ABSENT, "--").replace(" × ", "$\\times$")
    return text + (f" {{\\scriptsize [{interval}}}" if space else "")


def _grids(result: TablesResult, bold: str) -> dict[str, list[list[str]]]:
    """Title -> header and rows, for each table with at least one row."""
    return {table.title: _grid(result, table, bold) for table in result.plan.tables if _shown(result, table)}


def _grid(result: TablesResult, table: TablePlan, bold: str) -> list[list[str]]:
    """Header and rows of one table as text; ``bold`` is the format of the best value in a column."""
    plan = result.plan
    head = [""]
    shown = _shown(result, table)
    columns = [[row.label for row in shown]]
    found = [result.rows[row.row] for row in shown]
    if _has_trainings(result.rows):
        head += ["trained", "crop", "GMAC"]
        columns.append([ABSENT if one.trained is None else f"{one.trained:,}" for one in found])
        columns.append([ABSENT if one.crop is None else f"{one.crop[0]} × {one.crop[1]}" for one in found])
        columns.append([ABSENT if one.gmac is None else f"{one.gmac:.2f}" for one in found])
    head.append("s/click")
    columns.append([ABSENT if one.seconds is None else f"{one.seconds:.2f}" for one in found])
    for place, (part, metric) in enumerate(plan.columns):
        head.append(_heading(plan, part, metric))
        columns.append(_noc_texts([one.clicks.get((part, metric)) for one in found], bold))
        if any(row.numbers for row in shown):
            head.append(plan.published)
            columns.append([row.numbers[place] if row.numbers else ABSENT for row in shown])
    return [head, *(list(texts) for texts in zip(*columns, strict=True))]


def _has_numbers(row: TableRow, rows: Mapping[str, RowResult]) -> bool:
    """Whether there are published or measured ones."""
    return bool(row.numbers or rows[row.row].clicks)


def _shown(result: TablesResult, table: TablePlan) -> list[TableRow]:
    return [row for row in table.rows if _has_numbers(row, result.rows)]


def _pairs(result: TablesResult) -> dict[str, list[list[str]]]:
    """Title -> header and rows of per-object differences from the base; tables without rows are omitted.

    NoC depends on a threshold that few objects cross; the mean score does not.
    """
    plan, base = result.plan, result.rows[result.plan.base]
    columns = {PAIRS: {_heading(plan, part, metric): _needed(part, metric) for part, metric in plan.columns}}
    if plan.scores:
        columns[plan.scores.title] = {name: _points(name) for name in dict.fromkeys(name for name, _ in base.scores)}
    labels = {row.row: row.label for table in plan.tables for row in table.rows if row.row != plan.base}
    found = {}
    for title, read in columns.items():
        lines = [
            [label, *(_more(one(result.rows[row]), one(base)) for one in read.values())]
            for row, label in labels.items()
        ]
        if measured := [line for line in lines if set(line[1:]) - {ABSENT}]:
            found[title] = [["", *read], *measured]
    return found


Numbers = Mapping[tuple[str, str], float]  # per object, by (dataset, id)


def _needed(part: str, metric: str) -> Callable[[RowResult], Numbers]:
    """Clicks needed per object, for one column of a row."""
    return lambda row: row.clicks[part, metric].objects if (part, metric) in row.clicks else {}


def _points(dataset: str) -> Callable[[RowResult], Numbers]:
    """Scores in points for the objects of one dataset."""
    return lambda row: {one: 100 * score for one, score in row.scores.items() if one[0] == dataset}


def _more(objects: Numbers, base: Numbers) -> str:
    if objects.keys() != base.keys() or not base:
        return ABSENT
    more = np.array([objects[one] - base[one] for one in base])
    low, high = interval(more, np.ones(len(more)))
    return "{:+.2f} [{:+.2f}, {:+.2f}]".format(*(round(float(one), 2) + 0.0 for one in (more.mean(), low, high)))


def _noc_texts(column: Sequence[MeanClicks | None], bold: str) -> list[str]:
    """Bold is decided by the printed text, so that equal-looking values are equally good."""
    texts = [f"{clicks.value:.2f}" if clicks else ABSENT for clicks in column]
    numbers = [float(text) for text in texts if text != ABSENT]
    best = f"{min(numbers):.2f}" if len(numbers) > 1 else ""
    return [
        f"{bold.format(text) if text == best else text} [{clicks.low:.2f}, {clicks.high:.2f}]" if clicks else ABSENT
        for text, clicks in zip(texts, column, strict=True)
    ]
