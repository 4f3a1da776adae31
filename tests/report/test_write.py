"""Table -> text, against texts written by hand."""

from __future__ import annotations

import csv
import io
import json
import re

import pytest

from hrseg_cli import catalog
from hrseg_cli.report.table import Entry, Table
from hrseg_cli.report.write import csv as as_csv
from hrseg_cli.report.write import json_lines, latex, markdown, pipes


def entry(
    run: str, measure: str, value: float, low: float, high: float, metric: str = "iou", data: str = "pets"
) -> Entry:
    return Entry(run, "h18", "ritm v1", "c0ffee", data, metric, measure, value, low, high, 40)


TABLE = Table(
    runs=("base", "ours"),
    rows=(
        entry("base", "NoC@90", 5.834, 5.6, 6.047),
        entry("ours", "NoC@90", 4.1, 3.95, 4.25),
        entry("base", "NoF@90", 0.05, 0.0, 0.125),
        entry("ours", "NoF@90", 0.05, 0.0, 0.1),
        entry("ours", "mean@5", 0.91234, 0.9, 0.92, "biou"),
    ),
    notes=("pets n = 40; at most 20 clicks.",),
)

MARKDOWN = """\
| run  |            IoU NoC@90 |      IoU NoF@90 (%) |      bIoU mean@5 (%) |
| ---- | --------------------: | ------------------: | -------------------: |
| base |     5.83 [5.60, 6.05] | **5.0** [0.0, 12.5] |                    – |
| ours | **4.10** [3.95, 4.25] | **5.0** [0.0, 10.0] | 91.23 [90.00, 92.00] |

pets n = 40; at most 20 clicks.
"""

LATEX = r"""% needs \usepackage{booktabs}
\begin{tabular}{lrrr}
\toprule
 & \multicolumn{3}{c}{pets} \\
\cmidrule(lr){2-4}
 & \multicolumn{2}{c}{IoU} & \multicolumn{1}{c}{bIoU} \\
\cmidrule(lr){2-3} \cmidrule(lr){4-4}
run & NoC@90 & NoF@90 (\%) & mean@5 (\%) \\
\midrule
base & 5.83 {\scriptsize [5.60, 6.05]} & \textbf{5.0} {\scriptsize [0.0, 12.5]} & -- \\
ours & \textbf{4.10} {\scriptsize [3.95, 4.25]} & \textbf{5.0} {\scriptsize [0.0, 10.0]} & 91.23 {\scriptsize [90.00, 92.00]} \\
\bottomrule
\end{tabular}

\smallskip\noindent{\footnotesize pets n = 40; at most 20 clicks.\par}
"""  # noqa: E501 - as LaTeX has it


def test_markdown_by_hand() -> None:
    """Fewer clicks are better, equal texts are equally good, and nothing is best in a column of one."""
    assert markdown(TABLE) == MARKDOWN


def test_a_narrow_column_and_a_table_without_rows() -> None:
    """A rule without a hyphen is none, and the lines would not be a table."""
    assert pipes([["set", "n"], ["a", "1"]]) == "| set |  n |\n| --- | -: |\n| a   |  1 |\n"
    assert pipes([["set", "n"]]) == "| set |  n |\n| --- | -: |\n"


def test_latex_by_hand() -> None:
    assert latex(TABLE) == LATEX


def test_every_format_of_the_catalog_ends_its_last_line() -> None:
    for name in catalog.FORMATS:
        text = catalog.resolve("format", name)(TABLE)
        assert text.endswith("\n")
        assert not text.endswith("\n\n")


@pytest.mark.parametrize(
    ("measure", "best"), [("AUC", "ours"), ("mean@5", "ours"), ("SPC", "base"), (">=20@90", "base")]
)
def test_what_is_better_depends_on_the_measure(measure: str, best: str) -> None:
    table = Table(("base", "ours"), (entry("base", measure, 1, 1, 1), entry("ours", measure, 2, 2, 2)))
    (line,) = [line for line in markdown(table).splitlines() if "**" in line]
    assert line.startswith(f"| {best}")


def test_nothing_is_best_where_numbers_do_not_compare() -> None:
    """The reason stands under the table, for the table outlives the terminal it was made in."""
    table = Table(TABLE.runs, TABLE.rows, TABLE.notes, ("maximum clicks differ",))
    for text in (markdown(table), latex(table)):
        assert "**" not in text
        assert "textbf" not in text
        assert "are not comparable: maximum clicks differ." in text


def test_datasets_are_named_where_there_are_several() -> None:
    table = Table(("a",), tuple(entry("a", "NoC@90", 1, 1, 1, data=name) for name in ("pets", "cars")))
    assert markdown(table).startswith("| run |   pets IoU NoC@90 |   cars IoU NoC@90 |\n")
    assert r" & \multicolumn{1}{c}{pets} & \multicolumn{1}{c}{cars} \\" in latex(table)


def test_names_cannot_break_the_table() -> None:
    name = r"a|b & c_1 50% {x} [y] \z ~ ^ #$"
    table = Table((name,), (entry(name, ">=20@90", 3, 1, 5, data=name),))
    lines = markdown(table).splitlines()
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    text = latex(table)
    escaped = r"a|b \& c\_1 50\% \{x\} {[}y{]} \textbackslash{}z \textasciitilde{} \textasciicircum{} \#\$"
    assert f"{escaped} & 3 {{\\scriptsize [1, 5]}} \\\\" in text
    assert r"run & $\geq$20@90 \\" in text


def test_names_stay_readable_in_json() -> None:
    """Names of files and runs, which people look for."""
    (line,) = json_lines(Table(("Bäume",), (entry("Bäume", "NoC@90", 1, 1, 1),), ())).splitlines()
    assert '"Bäume"' in line


def test_long_forms_hold_every_number_with_its_origin() -> None:
    """One record a number, the same in both formats, in plain units."""
    records = [json.loads(line) for line in json_lines(TABLE).splitlines()]
    assert records[0] == {
        "run": "base",
        "model": "h18",
        "protocol": "ritm v1",
        "commit": "c0ffee",
        "dataset": "pets",
        "metric": "iou",
        "measure": "NoC@90",
        "value": 5.834,
        "low": 5.6,
        "high": 6.047,
        "n": 40,
    }
    (third,) = json_lines(Table(("a",), (entry("a", "AUC", 1 / 3, 2 / 3, float("nan")),))).splitlines()
    assert [json.loads(third)[key] for key in ("value", "low", "high")] == [0.333333, 0.666667, None]
    rows = list(csv.DictReader(io.StringIO(as_csv(TABLE))))
    assert rows == [{key: str(value) for key, value in record.items()} for record in records]
