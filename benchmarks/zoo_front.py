"""Clicks against milliseconds, from the runs of make zoo and the costs of zoo_cost.py.

    python benchmarks/zoo_front.py RUNS.zip COSTS.csv FRONT.png

A point per model: mean NoC@90 by IoU, and median milliseconds of a click. The line joins the models that no other one
beats in both.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from matplotlib.figure import Figure

from hrseg_cli.recipe import load_tables
from hrseg_cli.report import plots, tables
from hrseg_cli.report.packing import opened


def front(points: dict[str, tuple[float, float]]) -> list[str]:
    """Names of the points (milliseconds, clicks) that none is at least as good as in both, from fast to slow."""
    best, kept = float("inf"), []
    for name in sorted(points, key=points.__getitem__):
        if points[name][1] < best:
            best = points[name][1]
            kept.append(name)
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("runs", "costs", "out"):
        parser.add_argument(name, type=Path)
    options = parser.parse_args()
    plan = load_tables("zoo")
    with opened(options.runs) as folder:
        rows = tables.read(folder, plan).rows
    with options.costs.open(newline="") as file:
        costs = {row["model"]: float(row["ms a click"]) for row in csv.DictReader(file)}
    labels = {row.row: row.label.partition(",")[0] for table in plan.tables for row in table.rows}
    held = {name: row.clicks["held", "iou"] for name, row in rows.items() if row.clicks and name in costs}
    points = {name: (costs[name], clicks.value) for name, clicks in held.items()}

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    best = front(points)
    axes.plot(*zip(*(points[name] for name in best), strict=True), color=plots.LINES[0], linewidth=1, zorder=1)
    for name, (x, y) in points.items():
        colour = plots.LINES[0] if name in best else plots.QUIET
        clicks = held[name]
        axes.errorbar(x, y, [[y - clicks.low], [clicks.high - y]], fmt="o", color=colour, ecolor="#dddddd", zorder=2)
        axes.annotate(labels[name], (x, y), (4, 4), textcoords="offset points", fontsize=8, color=plots.INK)
    axes.set_xscale("log")
    axes.set_xlabel("ms a click, 480x640, two threads")
    axes.set_ylabel("NoC@90 by IoU, with 95 % interval")
    axes.spines[["top", "right"]].set_visible(False)
    options.out.write_bytes(plots.drawn(figure, options.out))


if __name__ == "__main__":
    main()
