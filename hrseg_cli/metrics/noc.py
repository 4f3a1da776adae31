"""Number of clicks (NoC) and related measures, from the scores after each click.

``values`` are the scores of one object after click 1, 2, ...; they are compared with a threshold as float64, ``>=``.

Clicking stops early once every metric has reached its target, so later scores are not measured. Whether the object
would have reached a higher threshold is unknown: such a threshold is omitted rather than guessed. Averages after a
fixed number of clicks repeat the last value instead, so they are lower bounds unless all clicks were made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

import numpy as np

from hrseg_cli.errors import HrsegError
from hrseg_cli.interaction import Trace

THRESHOLDS = (0.80, 0.85, 0.90, 0.95)
KS = (1, 3, 5, 10, 20)


@dataclass(frozen=True)
class Row:
    """One number of a summary: ``value`` with its 95 % interval from ``low`` to ``high``, over ``n`` objects."""

    dataset: str
    metric: str
    measure: str
    value: float
    low: float
    high: float
    n: int


def noc(values: Sequence[float], threshold: float, max_clicks: int) -> int:
    """Number of clicks: the first click, counted from 1, to reach the threshold; ``max_clicks`` if none does."""
    return next((click for click, v in enumerate(values[:max_clicks], 1) if v >= threshold), max_clicks)


def reached(values: Sequence[float], threshold: float) -> bool:
    """Whether any click reaches the threshold. NoF (number of failures) is the fraction of objects where none does."""
    return any(v >= threshold for v in values)


def ge_max(values: Sequence[float], threshold: float, max_clicks: int) -> bool:
    """RITM's ">=20": whether NoC has its maximum value. Success at the last click counts, too."""
    return noc(values, threshold, max_clicks) == max_clicks


def known(values: Sequence[float], threshold: float, max_clicks: int) -> bool:
    """Whether the values determine if and when the threshold is reached within ``max_clicks`` clicks."""
    return len(values) >= max_clicks or reached(values, threshold)


def mean_at(values: Sequence[float], k: int) -> float:
    """The score after click ``k``, counted from 1; the last score if clicking stopped earlier."""
    return values[min(k, len(values)) - 1]


def auc(values: Sequence[float], max_clicks: int) -> float:
    """Area under the score-by-click curve, 0 to 1: each score counts for one click, the last until ``max_clicks``."""
    return sum(mean_at(values, k) for k in range(1, max_clicks + 1)) / max_clicks


def summarise(
    traces: Sequence[Trace],
    metric: str,
    thresholds: Sequence[float] = THRESHOLDS,
    max_clicks: int = 20,
    ks: Sequence[int] = KS,
    seed: int = 0,
    resamples: int = 1000,
) -> list[Row]:
    """The measures of one metric, dataset by dataset in order of appearance.

    NoC@90     clicks to reach 0.90, mean over objects; one row per threshold, also for the next two
    NoF@90     fraction of objects that never reach it, 0 to 1
    >=20@90    number of objects that RITM counts as failures (:func:`ge_max`); 20 is ``max_clicks``
    mean@5     score after 5 clicks, mean over objects; one row per k up to ``max_clicks``
    AUC        area under the score-by-click curve, mean over objects
    SPC        seconds per click: total seconds divided by total clicks, where measured

    A threshold that is unknown for some object (:func:`known`) has no rows. Intervals are percentile bootstrap
    intervals over objects; with the same seed, the same objects are resampled for every metric and run of a dataset.
    Raises HrsegError if an object was not scored by this metric.
    """
    datasets: dict[str, list[Trace]] = {}
    for trace in traces:
        if not trace.scores.get(metric):
            raise HrsegError(
                f"{trace.dataset}/{trace.id}: no '{metric}' scores; rerun evaluate with `metrics` {metric}"
            )
        datasets.setdefault(trace.dataset, []).append(trace)
    rows = []
    for dataset, members in datasets.items():
        measures = _measures(members, metric, thresholds, max_clicks, ks)
        over, under = (np.array(part, dtype=float).T for part in zip(*measures.values(), strict=True))
        low, high = interval(over, under, seed, resamples)
        value = over.sum(axis=0) / under.sum(axis=0)
        rows += [
            Row(dataset, metric, measure, float(value[i]), float(low[i]), float(high[i]), len(members))
            for i, measure in enumerate(measures)
        ]
    return rows


@dataclass(frozen=True)
class Spread:
    """A number over several groups of clicks on the same ``n`` objects: its mean, and the sample standard deviation
    over the ``groups``."""

    dataset: str
    metric: str
    measure: str
    mean: float
    std: float
    groups: int
    n: int


def over_groups(groups: Sequence[Sequence[Row]]) -> list[Spread]:
    """Each number that is known in every group, in the first group's order; seconds per click are left out.

    groups: the rows of one evaluation per group, at least two. Raises HrsegError for fewer, and for other objects.
    """
    if len(groups) < 2:
        raise HrsegError("a standard deviation over groups takes two or more; evaluate other values of click_group too")
    by_name = [{(row.dataset, row.metric, row.measure): row for row in rows} for rows in groups]
    if any(
        {(row.dataset, row.metric, row.n) for row in rows} != {(row.dataset, row.metric, row.n) for row in groups[0]}
        for rows in groups
    ):
        raise HrsegError("the groups have other datasets, metrics or numbers of objects; evaluate all of them alike")
    found = []
    for key, first in by_name[0].items():
        values = [rows[key].value for rows in by_name if key in rows]
        if len(values) == len(groups) and first.measure != "SPC":
            found.append(Spread(*key, mean(values), stdev(values), len(groups), first.n))
    return found


def per_object_rows(
    traces: Sequence[Trace], thresholds: Sequence[float] = THRESHOLDS, max_clicks: int = 20
) -> tuple[list[str], list[list[str | int | float]]]:
    """Header and one row per object, for a CSV file. Unknown and unmeasured values are empty.

    Columns: id, height, width, area (pixels), clicks, seconds (all clicks), first (box or click; only if any object
    starts with a box, which counts as a click), then for each metric, here iou: iou_final, iou_best, iou_noc@80 ... and
    iou_reached@80 ... (1 or 0).
    """
    metrics = list(dict.fromkeys(metric for trace in traces for metric in trace.scores))
    boxed = any(trace.first == "box" for trace in traces)
    header = ["id", "height", "width", "area", "clicks", "seconds", *(["first"] if boxed else [])]
    for metric in metrics:
        header += [f"{metric}_final", f"{metric}_best"]
        header += [f"{metric}_{what}@{_percent(t)}" for what in ("noc", "reached") for t in thresholds]
    rows = []
    for trace in traces:
        row: list[str | int | float] = [
            trace.id,
            *trace.size,
            trace.area,
            len(trace.clicks),
            round(sum(trace.seconds), 4),
            *([trace.first] if boxed else []),
        ]
        for metric in metrics:
            values = trace.scores.get(metric, ())
            asked = values[:max_clicks]
            answered = [known(asked, t, max_clicks) for t in thresholds]
            row += [values[-1], max(values)] if values else ["", ""]
            row += [noc(asked, t, max_clicks) if ok else "" for t, ok in zip(thresholds, answered, strict=True)]
            row += [int(reached(asked, t)) if ok else "" for t, ok in zip(thresholds, answered, strict=True)]
        rows.append(row)
    return header, rows


def _measures(
    traces: Sequence[Trace], metric: str, thresholds: Sequence[float], max_clicks: int, ks: Sequence[int]
) -> dict[str, tuple[list[float], list[float]]]:
    """Measure -> numerators and denominators per object; the measure is the ratio of their sums."""
    objects = [trace.scores[metric][:max_clicks] for trace in traces]
    n = len(objects)
    answered = [t for t in thresholds if all(known(values, t, max_clicks) for values in objects)]
    means: dict[str, list[float]] = {}
    for t in answered:
        means[f"NoC@{_percent(t)}"] = [noc(values, t, max_clicks) for values in objects]
    for t in answered:
        means[f"NoF@{_percent(t)}"] = [not reached(values, t) for values in objects]
    for t in answered:
        means[f">={max_clicks}@{_percent(t)}"] = [n * ge_max(values, t, max_clicks) for values in objects]
    for k in ks:
        if k <= max_clicks:
            means[f"mean@{k}"] = [mean_at(values, k) for values in objects]
    means["AUC"] = [auc(values, max_clicks) for values in objects]
    measures = {measure: (column, [1.0] * n) for measure, column in means.items()}
    if all(trace.seconds for trace in traces):
        measures["SPC"] = ([sum(trace.seconds) for trace in traces], [float(len(trace.seconds)) for trace in traces])
    return measures


def interval(
    over: np.ndarray, under: np.ndarray, seed: int = 0, resamples: int = 1000
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap, 95 %, of ``over.sum(0) / under.sum(0)``; both (objects,) or (objects, measures)."""
    rng = np.random.default_rng(seed)
    n = len(over)
    drawn = []
    for _ in range(resamples):
        times = np.bincount(rng.integers(n, size=n), minlength=n).astype(float)
        drawn.append((times @ over) / (times @ under))
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    return low, high


def _percent(threshold: float) -> str:
    """0.9 -> '90', 0.925 -> '92.5'."""
    return f"{100 * threshold:g}"
