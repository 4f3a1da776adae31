"""Write a Table as text, one function per format: ``(table) -> text ending in a newline``, deterministic.

``markdown`` and ``latex`` are for people: one row per run, the best value of each column in bold. ``csv`` and
``json_lines`` are for programs: one line per number, unrounded (fractions in 0..1, seconds).
"""

from __future__ import annotations

import csv as csv_module
import io
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any, NamedTuple

from hrseg_cli.report.table import Entry, Table, label_of

ABSENT = "–"


class Column(NamedTuple):
    """One column of a table for people."""

    dataset: str
    metric: str
    measure: str


class Cell(NamedTuple):
    """Rounded texts: ``value`` such as ``5.83``, ``interval`` such as ``[5.60, 6.05]``, empty where unknown."""

    value: str
    interval: str
    best: bool


def markdown(table: Table) -> str:
    """A Markdown table, padded so that it is readable as plain text."""
    columns, lines = _grid(table)
    several = len({column.dataset for column in columns}) > 1
    head = [" ".join([*([c.dataset] if several else []), label_of(c.metric), _with_unit(c.measure)]) for c in columns]
    texts = [["run", *head]]
    for label, cells in zip(table.runs, lines, strict=True):
        texts.append([label, *(" ".join(filter(None, [_strong(cell), cell.interval])) for cell in cells)])
    return pipes(texts) + "".join(f"\n{line}\n" for line in _footnotes(table))


def pipes(texts: Sequence[Sequence[str]]) -> str:
    """A padded Markdown table from rows of cells, header first; the first column is left-aligned, others right."""
    texts = [[text.replace("|", "\\|").replace("\n", " ") for text in line] for line in texts]
    widths = [max(2, *(len(line[i]) for line in texts)) for i in range(len(texts[0]))]  # "-:" has two characters
    rows = [
        [t.ljust(w) if i == 0 else t.rjust(w) for i, (t, w) in enumerate(zip(r, widths, strict=True))] for r in texts
    ]
    rule = ["-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "".join(f"| {' | '.join(line)} |\n" for line in [rows[0], rule, *rows[1:]])


def _strong(cell: Cell) -> str:
    return f"**{cell.value}**" if cell.best else cell.value


def latex(table: Table) -> str:
    """A ``tabular`` with booktabs, headers grouped by dataset and metric, the notes below in small type."""
    columns, lines = _grid(table)
    out = ["% needs \\usepackage{booktabs}", f"\\begin{{tabular}}{{l{'r' * len(columns)}}}", "\\toprule"]
    datasets = [column.dataset for column in columns]
    metrics = [(column.dataset, label_of(column.metric)) for column in columns]
    for keys in (datasets, metrics):
        cells, rules, start = [""], [], 2
        for key, group in itertools.groupby(keys):
            width = len(list(group))
            name = key if isinstance(key, str) else key[1]
            cells.append(f"\\multicolumn{{{width}}}{{c}}{{{escape(name)}}}")
            rules.append(f"\\cmidrule(lr){{{start}-{start + width - 1}}}")
            start += width
        out += [" & ".join(cells) + " \\\\", " ".join(rules)]
    out += [" & ".join(["run", *(escape(_with_unit(c.measure)) for c in columns)]) + " \\\\", "\\midrule"]
    for label, values in zip(table.runs, lines, strict=True):
        texts = [escape(label)]
        for cell in values:
            value = f"\\textbf{{{cell.value}}}" if cell.best else cell.value.replace(ABSENT, "--")
            texts.append(value + (f" {{\\scriptsize {cell.interval}}}" if cell.interval else ""))
        out.append(" & ".join(texts) + " \\\\")
    out += ["\\bottomrule", "\\end{tabular}"]
    out += [f"\n\\smallskip\\noindent{{\\footnotesize {escape(line)}\\par}}" for line in _footnotes(table)]
    return "\n".join(out) + "\n"


def csv(table: Table) -> str:
    """Long form with a header: run, model, protocol, commit, dataset, metric, measure, value, low, high, n."""
    text = io.StringIO()
    names = [field.name for field in fields(Entry)]
    writer = csv_module.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_record(entry) for entry in table.rows)
    return text.getvalue()


def json_lines(table: Table) -> str:
    """Long form, one JSON object per line, with the columns of :func:`csv` as keys; ``null`` for unknown values."""
    return "".join(json.dumps(_record(entry), ensure_ascii=False) + "\n" for entry in table.rows)


def _record(entry: Entry) -> dict[str, Any]:
    record = asdict(entry)
    for name in ("value", "low", "high"):
        record[name] = round(record[name], 6) if math.isfinite(record[name]) else None
    return record


def _grid(table: Table) -> tuple[list[Column], list[list[Cell]]]:
    """The columns, and the cells of each run in column order."""
    entries = {(Column(e.dataset, e.metric, e.measure), e.run): e for e in table.rows}
    columns = list(dict.fromkeys(column for column, _ in entries))
    by_column = [_cells([entries.get((c, run)) for run in table.runs], not table.differences) for c in columns]
    return columns, [[cells[i] for cells in by_column] for i in range(len(table.runs))]


def _cells(entries: Sequence[Entry | None], comparable: bool) -> list[Cell]:
    """The cells of one column. Bold is decided by the printed text, so that equal-looking values are equally good."""
    texts = [None if e is None or math.isnan(e.value) else _number(e, e.value) for e in entries]
    numbers = [float(text) for text in texts if text is not None]
    measure = next(e.measure for e in entries if e is not None)
    best = (max if _higher_is_better(measure) else min)(numbers) if comparable and len(numbers) > 1 else None
    return [
        Cell(ABSENT, "", False)
        if entry is None or text is None
        else Cell(text, f"[{_number(entry, entry.low)}, {_number(entry, entry.high)}]", float(text) == best)
        for entry, text in zip(entries, texts, strict=True)
    ]


def _higher_is_better(measure: str) -> bool:
    return measure == "AUC" or measure.startswith("mean@")


def _number(entry: Entry, number: float) -> str:
    if entry.measure.startswith(">="):  # RITM's count of objects
        return f"{number:.0f}"
    if entry.measure.startswith("NoF"):
        return f"{100 * number:.1f}"
    if entry.measure.startswith("mean@"):
        return f"{100 * number:.2f}"
    return f"{number:.3f}" if entry.measure in ("AUC", "SPC") else f"{number:.2f}"


def _with_unit(measure: str) -> str:
    """The measure with its unit. Fractions are printed in percent, as is usual in this field."""
    if measure.startswith(("NoF", "mean@")):
        return f"{measure} (%)"
    return f"{measure} (s)" if measure == "SPC" else measure


def _footnotes(table: Table) -> list[str]:
    warning = [f"The numbers are not comparable: {'; '.join(table.differences)}."] if table.differences else []
    return [*table.notes, *warning]


_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "[": "{[}",  # after a line end, a bare bracket would be read as an argument
    "]": "{]}",
    "*": "{*}",
    "\n": " ",
} | {letter: f"\\{letter}" for letter in "&%$#_"}


def escape(text: str) -> str:
    """Escape text for LaTeX, on one line."""
    return "".join(_LATEX.get(letter, letter) for letter in text).replace("$>$=", r"$\geq$")
