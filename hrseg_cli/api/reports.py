"""Tables of the numbers in run folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from os import PathLike
from typing import TYPE_CHECKING

from hrseg_cli import catalog
from hrseg_cli.api.arguments import listed
from hrseg_cli.report import table
from hrseg_cli.report.verify import verify as verify_run

if TYPE_CHECKING:
    import pandas as pd


def tables(
    runs: str | PathLike[str] | Sequence[str | PathLike[str]],
    *,
    metrics: str | Sequence[str] = (),
    measures: str | Sequence[str] = (),
    partial: bool = False,
) -> pd.DataFrame:
    """The numbers of evaluations in run folders, as ``hrseg report`` prints them, with one row per number.

    runs: one or several folders; LABEL=FOLDER renames a run. metrics: only these; by default all that were measured.
    measures: "NoC@90", "NoF@90", ">=20@90", "mean@5", "AUC", "SPC", ...; by default NoC at 80, 85 and 90, and NoF@90.
    partial: include unfinished runs.

    Columns: ``run``, ``model``, ``protocol``, ``commit``, ``dataset``, ``metric``, ``measure``, ``value``, ``low`` and
    ``high`` (the 95 % bootstrap interval over objects), ``n`` (objects). Shares are in 0..1, times in seconds.
    ``.attrs["notes"]`` are notes on the numbers, ``.attrs["differences"]`` reasons why runs are not comparable.
    For a table of runs by measures: ``tables(runs).pivot(index="run", columns=["dataset", "metric", "measure"],
    values="value")``.

    Raises HrsegError for a folder without a finished evaluation, or a measure that no run has.
    """
    import pandas as pd

    wanted = listed("metrics", metrics) if metrics else []
    for name in wanted:
        catalog.resolve("metric", name)
    asked = listed("measures", measures) if measures else []
    built = table.build(table.read_evaluations(listed("runs", runs), partial), wanted, asked)
    columns = [field.name for field in fields(table.Entry)]
    found = pd.DataFrame([asdict(row) for row in built.rows], columns=columns)
    found.attrs = {"notes": list(built.notes), "differences": list(built.differences)}
    return found


def verify(runs: str | PathLike[str] | Sequence[str | PathLike[str]]) -> pd.DataFrame:
    """Check evaluations with ``submission``, as ``hrseg report --verify``: scores from their masks, clicks by repeating
    the annotator, numbers from the scores. Neither model nor dataset is needed.

    runs: one or several run folders.

    Columns, a row per run: ``run``, how many ``objects``, ``scores``, ``clicks``, ``initial_masks`` (masks that objects
    start from) and ``images`` were checked, and how many ``problems`` were found. ``.attrs["problems"]`` has a line for
    each.
    Raises HrsegError for a folder without a finished evaluation with all masks, or whose numbers are not its traces'.
    """
    import pandas as pd

    lines: list[str] = []
    checked = [verify_run(run, lines.append) for run in table.read_evaluations(listed("runs", runs))]
    found = pd.DataFrame(checked)
    found.attrs = {"problems": lines}
    return found
