"""Tables 3 and 4 of the adapters' paper, measured again and printed beside its own numbers.

Ofitserov and Konushin 2024, "High resolution image segmentation with deep learning models". The folder is the one that
``recipes/paper/tables.sh`` fills: ``ROW/SEED/{train,regular,high}`` are run folders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hrseg_cli.data.samples import split_options
from hrseg_cli.errors import HrsegError
from hrseg_cli.metrics.noc import interval, known, mean_at, noc
from hrseg_cli.report.table import METRIC_LABELS, Evaluation, build, read_evaluations, told
from hrseg_cli.report.write import ABSENT, escape, pipes
from hrseg_cli.runs import read_run

SETS = {"regular": "regular", "high": "high resolution"}
METRICS = ("iou", "biou")
COLUMNS = tuple((part, metric) for part in SETS for metric in METRICS)
PAPERS_DATA = {"coco_lvis", "hqseg44k"}
LEVEL = 0.9
PAIRS = "Clicks more than the base, object by object"
AFTER = 10
SCORES = f"Boundary IoU after {AFTER} clicks, points more than the base, object by object"


class Row(NamedTuple):
    """A row as the paper prints it: NoC@90 in the order of :data:`COLUMNS`; no numbers for rows it does not have."""

    row: str
    label: str
    numbers: tuple[str, str, str, str] | tuple[()] = ()


TABLES = {
    "Table 3": (
        Row("base", "RITM", ("5.83", "6.17", "8.82", "16.97")),
        Row("t3_lora", "+ LoRA", ("5.82", "6.17", "8.78", "17.12")),
        Row("t3_lora_hq", "+ LoRA + HQSeg-44K", ("5.94", "6.25", "8.23", "13.67")),
        Row("t3_lora_hq_boundary", "+ LoRA + HQSeg-44K + boundary loss", ("5.98", "6.02", "8.17", "13.44")),
    ),
    "Table 4": (
        Row("base", "RITM", ("5.83", "6.17", "8.82", "16.97")),
        Row("t4_conv", "+ conv", ("5.857", "5.98", "9.41", "15.81")),
        Row("t4_conv_hq", "+ conv + HQSeg-44K", ("5.84", "5.98", "8.01", "12.9")),
        Row("t4_conv_hq_skip", "+ conv + HQSeg-44K + skip", ("5.83", "5.97", "7.92", "12.73")),
        Row(
            "t4_conv_hq_skip_boundary_sobel",
            "+ conv + HQSeg-44K + skip + boundary loss + Sobel",
            ("5.828", "5.95", "7.68", "12.32"),
        ),
        Row("t4_conv_hq_skip_boundary", "+ conv + HQSeg-44K + skip + boundary loss", ("5.825", "5.9", "7.65", "12.25")),
    ),
    "Controls": (
        Row("base", "base"),
        Row("control_full", "everything trained"),
        Row("control_head", "classifiers"),
        Row("control_bn", "normalisations"),
        Row("control_bitfit", "biases"),
        Row("adapt_conv", "conv, design b_lite"),
    ),
}


class Clicks(NamedTuple):
    """Mean NoC@90 over objects, each the mean of its seeds, with the 95 % bootstrap interval.

    seeds: the mean of each. objects: of each, by (dataset, id).
    """

    value: float
    low: float
    high: float
    seeds: tuple[float, ...]
    objects: dict[tuple[str, str], float]


@dataclass(frozen=True)
class Line:
    """What was measured of one row; None and missing keys where nothing was.

    clicks: by :data:`COLUMNS`. seconds: of a click on the high-resolution set, the median. trained: parameters.
    gmac: of one answer at ``crop`` (height, width), that of the training. data: names of the datasets trained on.
    scores: of each object, by (dataset, id): Boundary IoU after :data:`AFTER` clicks, mean over seeds.
    """

    clicks: dict[tuple[str, str], Clicks]
    seconds: float | None = None
    trained: int | None = None
    gmac: float | None = None
    crop: tuple[int, int] | None = None
    data: tuple[str, ...] = ()
    scores: dict[tuple[str, str], float] = field(default_factory=dict)


@dataclass(frozen=True)
class Tables:
    """lines: by row. notes: to be read with all tables."""

    lines: dict[str, Line]
    notes: tuple[str, ...]


def read(folder: Path) -> Tables:
    """What is finished in a folder of tables. Raises HrsegError when nothing is."""
    rows = list(dict.fromkeys(row.row for table in TABLES.values() for row in table))
    runs: dict[str, dict[str, list[Evaluation]]] = {part: {} for part in SETS}
    unfinished = []
    for row in rows:
        seeds = (path for path in (folder / row).glob("*") if path.is_dir() and not path.name.startswith("."))
        for seed in sorted(seeds):
            label = f"{row}/{seed.name}"
            # A seed counts when both of its sets are done, or the columns would be about different trainings.
            if not all(_is_done(seed / part) for part in SETS):
                unfinished.append(label)
                continue
            for part in SETS:
                runs[part].setdefault(row, []).extend(read_evaluations([f"{label}={seed / part}"]))
    if not any(runs.values()):
        raise HrsegError(f"`paper` {folder}: no finished evaluation there; fill it with recipes/paper/tables.sh")
    trainings = {row: _training(runs["high"][row][0]) for row in runs["high"] if row != "base"}
    lines = {row: _line({part: runs[part].get(row, []) for part in SETS}, trainings.get(row, {})) for row in rows}
    own = next((done["base_gmac"] for done in trainings.values() if "base_gmac" in done), None)
    lines["base"] = replace(lines["base"], trained=0, gmac=own)
    return Tables(lines, tuple(_notes(runs, lines, unfinished)))


def _is_done(folder: Path) -> bool:
    return (folder / "run.json").is_file() and read_run(folder).get("got", {}).get("status") == "done"


def _training(run: Evaluation) -> dict[str, Any]:
    """What the training of an evaluated adapter said of its costs, its crop, and what it was trained on."""
    record = read_run(run.folder.parent / "train")
    try:
        data = record["asked"]["settings"]["recipe"]["data"]
        names = [Path(split_options(part["dataset"])[0]).name for part in data["parts"]]
        return {**(record["got"].get("summary") or {}), "crop": data["crop"], "data": names}
    except (KeyError, TypeError, AttributeError) as error:
        raise HrsegError(
            f"{run.folder.parent / 'train' / 'run.json'}: cannot be read as a training ({error}); rerun its command"
        ) from None


def _line(runs: dict[str, list[Evaluation]], training: dict[str, Any]) -> Line:
    clicks = {
        (part, metric): found
        for part, metric in COLUMNS
        if runs[part] and (found := _clicks(runs[part], metric)) is not None
    }
    scores: dict[tuple[str, str], list[float]] = {}
    for trace in (trace for part in SETS for run in runs[part] for trace in run.traces):
        if "biou" in trace.scores:
            scores.setdefault((trace.dataset, trace.id), []).append(mean_at(trace.scores["biou"], AFTER))
    seconds = [second for run in runs["high"] for trace in run.traces for second in trace.seconds]
    return Line(
        clicks=clicks,
        seconds=float(np.median(seconds)) if seconds else None,
        trained=training.get("trained"),
        gmac=training.get("gmac"),
        crop=tuple(training["crop"]) if training else None,
        data=tuple(training.get("data", ())),
        scores={one: float(np.mean(each)) for one, each in scores.items()},
    )


def _clicks(runs: Sequence[Evaluation], metric: str) -> Clicks | None:
    """NoC@90 over all objects of a set, as the paper counts its regular one; None where clicking ended below 0.9.

    The bootstrap draws objects, the same ones as in the other tables of a run (:func:`summarise`).
    """
    needed: dict[tuple[str, str], list[int]] = {}
    for run in runs:
        for trace in run.traces:
            values = trace.scores.get(metric, ())
            if not known(values, LEVEL, run.max_clicks):
                return None
            needed.setdefault((trace.dataset, trace.id), []).append(noc(values, LEVEL, run.max_clicks))
    if any(len(each) != len(runs) for each in needed.values()):
        names = ", ".join(run.label for run in runs)
        raise HrsegError(f"`paper`: {names}: not the same objects; delete one of them and run tables.sh again")
    table = np.array(list(needed.values()), float)
    means = table.mean(1)
    low, high = interval(means, np.ones(len(means)), runs[0].settings["seed"])
    each = dict(zip(needed, map(float, means), strict=True))
    return Clicks(float(means.mean()), float(low), float(high), tuple(map(float, table.mean(0))), each)


def _notes(
    runs: dict[str, dict[str, list[Evaluation]]], lines: dict[str, Line], unfinished: Sequence[str]
) -> Iterator[str]:
    yield (
        "NoC@90 over all objects of a set, [95 % bootstrap interval over objects, taken as independent]; bold: the "
        "fewest clicks measured. Paper: its numbers with HRNet-18, its regular sets and HQSeg-44K."
    )
    yield (
        "Trained: parameters. GMAC: multiply-adds of convolutions in one answer at the crop of training; the base's at "
        "the size at which it is asked within. s/click: median wall time on the high-resolution set."
    )
    for part, title in SETS.items():
        evaluations = [run for row in runs[part].values() for run in row]
        built = build(evaluations, METRICS, [f"NoC@{100 * LEVEL:g}"])
        yield f"{title[0].upper()}{title[1:]}: {built.notes[0]}"
        found = list(built.differences)
        names = {run.label: " + ".join(sorted({trace.dataset for trace in run.traces})) for run in evaluations}
        if len(set(names.values())) > 1:
            found.append(f"datasets differ: {told(names)}")
        if found:
            yield f"The numbers on {title} do not compare: {'; '.join(found)}."
    data = {row: " + ".join(line.data) for row, line in lines.items() if line.data}
    if any(set(line.data) - PAPERS_DATA for line in lines.values()):
        yield f"Trained on {told(data)}; HQSeg-44K in a label stands for its row's."
    everything = [run for part in runs.values() for row in part.values() for run in row]
    models = [run.settings["model"] for run in everything]
    bases = [
        f"{model.get('file', model['name'])} ({str(model.get('sha256', ''))[:12]}, {model.get('precision', 'fp32')})"
        for model in models
    ]
    commits = dict.fromkeys(one[:10] + "+" * one.endswith("+") for run in everything for one in run.commits)
    counts = dict.fromkeys(len(row) for name, row in runs["high"].items() if name != "base")
    seeds = f"; seeds a row: {', '.join(map(str, counts))}" if counts else ""
    yield f"Measured: base {', '.join(dict.fromkeys(bases))}; commit {', '.join(commits)}{seeds}."
    spread = [
        (max(found.seeds) - min(found.seeds), row, part, metric)
        for row, line in lines.items()
        for (part, metric), found in line.clicks.items()
        if len(found.seeds) > 1
    ]
    if spread:
        most, row, part, metric = max(spread)
        where = f"{row}, {SETS[part]}, {METRIC_LABELS[metric]}"
        yield f"Seeds of one row differ by up to {most:.2f} clicks ({where})."
    if unfinished:
        yield f"Not finished, so left out: {', '.join(unfinished)}."


# ---- as text ---------------------------------------------------------------------------------------------------------


def markdown(tables: Tables) -> str:
    """The tables under headings of their own, and the notes."""
    out = []
    for title in TABLES:
        head, *texts = _grid(tables, title, "**{}**")
        out.append(f"## {title}\n\n{pipes([head, *texts])}\n")
    for title, lines in _pairs(tables).items():
        out.append(f"## {title}\n\n{pipes(lines)}\n")
    return "".join(out) + "\n".join(f"{note}\n" for note in tables.notes)


def latex(tables: Tables) -> str:
    """A ``tabular`` for the booktabs package under each title, and the notes in small type."""
    out = ["% needs \\usepackage{booktabs}"]
    grids = {title: _grid(tables, title, "\\textbf{{{}}}") for title in TABLES}
    for title, (head, *texts) in {**grids, **_pairs(tables)}.items():
        out += [f"\n\\smallskip\\noindent {title}\\par", f"\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", "\\toprule"]
        out += [" & ".join(map(escape, head)) + " \\\\", "\\midrule"]
        out += [" & ".join([escape(label), *map(_typeset, cells)]) + " \\\\" for label, *cells in texts]
        out += ["\\bottomrule", "\\end{tabular}"]
    out += [f"\n\\smallskip\\noindent{{\\footnotesize {escape(note)}\\par}}" for note in tables.notes]
    return "\n".join(out) + "\n"


def _typeset(cell: str) -> str:
    value, space, interval = cell.partition(" [")
    text = value.replace(ABSENT, "--").replace(" × ", "$\\times$")
    return text + (f" {{\\scriptsize [{interval}}}" if space else "")


def _grid(tables: Tables, title: str, bold: str) -> list[list[str]]:
    """Head and lines of one table as texts; ``bold`` is a format for the best of a column."""
    rows = TABLES[title]
    head = ["", "trained", "crop", "GMAC", "s/click"]
    columns = [[row.label for row in rows]]
    lines = [tables.lines[row.row] for row in rows]
    columns.append([ABSENT if line.trained is None else f"{line.trained:,}" for line in lines])
    columns.append([ABSENT if line.crop is None else f"{line.crop[0]} × {line.crop[1]}" for line in lines])
    columns.append([ABSENT if line.gmac is None else f"{line.gmac:.2f}" for line in lines])
    columns.append([ABSENT if line.seconds is None else f"{line.seconds:.2f}" for line in lines])
    for place, (part, metric) in enumerate(COLUMNS):
        head.append(f"{SETS[part]} {METRIC_LABELS[metric]}")
        columns.append(_noc_texts([line.clicks.get((part, metric)) for line in lines], bold))
        if any(row.numbers for row in rows):
            head.append("paper")
            columns.append([row.numbers[place] if row.numbers else ABSENT for row in rows])
    return [head, *(list(texts) for texts in zip(*columns, strict=True))]


def _pairs(tables: Tables) -> dict[str, list[list[str]]]:
    """Title -> head and lines of differences from the base, object by object; no title without lines.

    NoC hangs on a threshold that a few objects cross; the mean score does not.
    """
    columns = {
        PAIRS: {f"{SETS[part]} {METRIC_LABELS[metric]}": _needed(part, metric) for part, metric in COLUMNS},
        SCORES: {name: _points(name) for name in dict.fromkeys(name for name, _ in tables.lines["base"].scores)},
    }
    base = tables.lines["base"]
    rows = {row.row: row.label for table in TABLES.values() for row in table if row.row != "base"}
    found = {}
    for title, read in columns.items():
        lines = [
            [label, *(_more(one(tables.lines[row]), one(base)) for one in read.values())] for row, label in rows.items()
        ]
        if measured := [line for line in lines if set(line[1:]) != {ABSENT}]:
            found[title] = [["", *read], *measured]
    return found


Numbers = Mapping[tuple[str, str], float]  # of objects, by (dataset, id)


def _needed(part: str, metric: str) -> Callable[[Line], Numbers]:
    """Clicks to 0.9, one column of a line."""
    return lambda line: line.clicks[part, metric].objects if (part, metric) in line.clicks else {}


def _points(dataset: str) -> Callable[[Line], Numbers]:
    """Score in points, of the objects of one dataset."""
    return lambda line: {one: 100 * score for one, score in line.scores.items() if one[0] == dataset}


def _more(objects: Numbers, base: Numbers) -> str:
    if objects.keys() != base.keys() or not base:
        return ABSENT
    more = np.array([objects[one] - base[one] for one in base])
    low, high = interval(more, np.ones(len(more)))
    return "{:+.2f} [{:+.2f}, {:+.2f}]".format(*(round(float(one), 2) + 0.0 for one in (more.mean(), low, high)))


def _noc_texts(column: Sequence[Clicks | None], bold: str) -> list[str]:
    """Bold goes by the printed text: what looks equal is equally good."""
    texts = [f"{clicks.value:.2f}" if clicks else ABSENT for clicks in column]
    numbers = [float(text) for text in texts if text != ABSENT]
    best = f"{min(numbers):.2f}" if len(numbers) > 1 else ""
    return [
        f"{bold.format(text) if text == best else text} [{clicks.low:.2f}, {clicks.high:.2f}]" if clicks else ABSENT
        for text, clicks in zip(texts, column, strict=True)
    ]
