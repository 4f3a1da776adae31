"""Rows of texts in every format: aligned for a terminal, Markdown, LaTeX, CSV, JSON lines."""

from __future__ import annotations

import json
from collections.abc import Callable

from hrseg_cli.errors import UnknownName

Rows = list[dict[str, str]]  # all with the same keys, which are the head


def written(rows: Rows, format_: str = "text") -> str:
    """The rows as text that ends in a newline. Raises UnknownName for an unknown format."""
    if format_ not in FORMATS:
        raise UnknownName("format", format_, FORMATS)
    return FORMATS[format_](rows)


def _lines(rows: Rows) -> list[list[str]]:
    return [list(rows[0]), *(list(row.values()) for row in rows)]


def _padded(lines: list[list[str]]) -> list[list[str]]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]


def _text(rows: Rows) -> str:
    return "".join("  ".join(line).rstrip() + "\n" for line in _padded(_lines(rows)))


def _markdown(rows: Rows) -> str:
    head, *lines = _padded([[cell.replace("|", "\\|") for cell in line] for line in _lines(rows)])
    rule = ["-" * len(cell) for cell in head]
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, rule, *lines))


def _latex(rows: Rows) -> str:
    from hrseg_cli.report.write import escape

    head, *lines = [" & ".join(map(escape, line)) + " \\\\" for line in _lines(rows)]
    columns = f"\\begin{{tabular}}{{{'l' * len(rows[0])}}}"
    out = ["% needs \\usepackage{booktabs}", columns, "\\toprule", head, "\\midrule", *lines]
    return "\n".join([*out, "\\bottomrule", "\\end{tabular}", ""])


def _csv(rows: Rows) -> str:
    import csv
    import io

    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(_lines(rows))
    return text.getvalue()


def _json_lines(rows: Rows) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


FORMATS: dict[str, Callable[[Rows], str]] = {
    "text": _text,
    "md": _markdown,
    "tex": _latex,
    "csv": _csv,
    "json": _json_lines,
}
