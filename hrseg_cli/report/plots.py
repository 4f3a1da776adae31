"""Plots of runs: score-by-click curves, and a page of masks click by click.

Every function returns a matplotlib ``Figure`` that needs no display and changes no global state.
"""

from __future__ import annotations

import io
import operator
from collections.abc import Callable, Sequence
from itertools import cycle, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hrseg_cli.errors import HrsegError
from hrseg_cli.interaction import Box, Click, Prompt, Trace
from hrseg_cli.metrics.noc import auc, mean_at, noc, reached
from hrseg_cli.report.masks import decode, mask_records
from hrseg_cli.report.table import Evaluation, datasets, label_of, summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".pdf", ".svg", ".jpg")
DPI = 200
LEVEL = 0.9
SHOWN_CLICKS = (1, 3, 5, 10)
LABEL = 24  # maximum characters of a run's name next to its line

# Okabe and Ito's colours, which colour-blind readers can distinguish, without the pale yellow.
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
INK, QUIET = "#222222", "#777777"
POSITIVE, NEGATIVE = "#12B312", "#E8201C"
MASK, TRUTH = (64, 140, 255), (255, 190, 40)


def drawn(figure: Figure, path: Path) -> bytes:
    """The content of the file, in the format given by the suffix of ``path``."""
    blob = io.BytesIO()
    figure.savefig(blob, format=path.suffix[1:].lower(), dpi=DPI)
    return blob.getvalue()


def check_suffix(path: Path, option: str) -> None:
    """Raises HrsegError unless the suffix is one of :data:`SUFFIXES`."""
    if path.suffix.lower() not in SUFFIXES:
        raise HrsegError(f"{option} {path}: unknown image format; the name must end in {', '.join(SUFFIXES)}")


# --- score by click -------------------------------------------------------------------------------------------------


def curves(runs: Sequence[Evaluation], metrics: Sequence[str]) -> Figure:
    """Mean score after each click: panels by dataset (rows) and metric (columns), a line per run with its 95 % band.

    A trace that stopped early keeps its last value.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    names = datasets(runs)
    left, right, top, bottom = 0.6, 0.25 + 0.065 * max(len(_shortened(run.label, LABEL)) for run in runs), 0.3, 0.8
    width, height = left + 2.9 * len(metrics) + right, top + 2.0 * len(names) + bottom
    with rc_context({"font.size": 8, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": QUIET}):
        figure = Figure(figsize=(width, height), facecolor="white")
        panels = figure.subplots(len(names), len(metrics), squeeze=False, sharex=True, sharey=True)
        figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height, 0.1, 0.3)
        _frame(panels, max(run.max_clicks for run in runs))
        ends = {
            axes: _draw_lines(axes, runs, name, metric)
            for line, name in zip(panels, names, strict=True)
            for axes, metric in zip(line, metrics, strict=True)
        }
        floor = min(axes.dataLim.y0 for axes in ends)
        panels[0, 0].set_ylim(max(0.0, np.floor(floor * 10) / 10), 1.0)
        for line in panels:
            named: set[str] = set()
            for axes in line[::-1]:  # label each line once, in the last panel that has it
                _name_lines(axes, [end for end in ends[axes] if end.label not in named])
                named |= {end.label for end in ends[axes]}
        text = (
            f"Mean over objects with its 95 % bootstrap band; dashed: {LEVEL:g}.\n"
            "An object that ended early keeps its last value."
        )
        figure.text(left / width, 0.1 / height, text, fontsize=6.5, color=QUIET)
    return figure


class LineEnd(NamedTuple):
    """The end of a line, for its label."""

    score: float
    label: str
    colour: str


def _draw_lines(axes: Axes, runs: Sequence[Evaluation], dataset: str, metric: str) -> list[LineEnd]:
    ends, counts = [], []
    for run, colour in zip(runs, cycle(LINES), strict=False):
        clicks = range(1, run.max_clicks + 1)
        rows = [row for row in summary(run, metric, clicks=clicks, dataset=dataset) if row.measure.startswith("mean@")]
        if not rows:
            continue
        axes.fill_between(
            clicks, [row.low for row in rows], [row.high for row in rows], color=colour, alpha=0.16, linewidth=0
        )
        axes.plot(clicks, [row.value for row in rows], color=colour, linewidth=1.4, marker="o", markersize=2.2)
        ends.append(LineEnd(rows[-1].value, run.label, colour))
        counts.append(str(rows[0].n))
    count = f"n = {' / '.join(dict.fromkeys(counts))}" if counts else "not measured"
    title = f"{_shortened(dataset, 28)} · {label_of(metric)}  ({count})"
    axes.set_title(title, loc="left", fontsize=8.5, parse_math=False)
    return ends


def _frame(panels: np.ndarray, max_clicks: int) -> None:
    """Format the axes of all panels: spines where there are ticks, axis labels only on the outer panels."""
    for axes in panels.flat:
        axes.set_facecolor("none")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(color=QUIET, labelcolor=INK, length=2.5)
        axes.axhline(LEVEL, color=QUIET, linewidth=0.7, linestyle=(0, (4, 3)), zorder=0)
    panels[0, 0].set_xlim(1 - max_clicks / 40, max_clicks * 41 / 40)
    panels[0, 0].set_xticks([1, *range(5, max_clicks + 1, 5)] if max_clicks >= 5 else range(1, max_clicks + 1))
    for axes in panels[:, 0]:
        axes.set_ylabel("mean score")
    for axes in panels[-1]:
        axes.set_xlabel("clicks")


def _name_lines(axes: Axes, ends: Sequence[LineEnd]) -> None:
    """Label lines to the right of their ends, spread so that labels do not overlap."""
    low, high = axes.get_ylim()
    places = spread([end.score for end in ends], 0.065 * (high - low))
    for end, place in zip(ends, places, strict=True):
        axes.annotate(
            _shortened(end.label, LABEL),
            (1.0, place),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color=end.colour,
            fontsize=7.5,
            parse_math=False,
        )


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Positions near ``values``, in the same order, at least ``gap`` apart; closer neighbours push each other away."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    places = list(values)
    for _ in range(200):
        for below, above in pairwise(order):
            push = max(0.0, gap - (places[above] - places[below])) / 2
            places[below] -= push
            places[above] += push
    return places


# --- masks click by click -------------------------------------------------------------------------------------------

# Layout in pixels: longer side of a panel, gap between panels, above the first row, below a row, page margin.
CELL, GAP, HEAD, CAPTION, MARGIN = 400, 14, 80, 62, 40


class Panel(NamedTuple):
    """One panel of the page: pixels, uint8 (h, w, 3), of an image of ``size`` (height, width), and text below it.

    clicks: in pixels of the full image.
    """

    pixels: np.ndarray
    size: tuple[int, int]
    clicks: Sequence[Prompt]
    lines: tuple[str, ...]


def pictures(runs: Sequence[Evaluation], metrics: Sequence[str], count: int, complain: Callable[[str], None]) -> Figure:
    """A page with a row per object and run: image, ground truth, and mask with clicks after 1, 3, 5 and 10 clicks.

    metrics: printed below each mask; the first one ranks the objects. count: number of objects, evenly spaced from
    those that needed most clicks to those that needed fewest. complain: called with one line for each image that cannot
    be read. Raises HrsegError if a run has no masks.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    traces = [{_key_of(t): t for t in run.traces if metrics[0] in t.scores} for run in runs]
    kept = [{_key(record) for record in mask_records(run)} for run in runs]
    for run, of_run, its in zip(runs, traces, kept, strict=True):
        if without := len(of_run.keys() - its):
            complain(f"{run.folder}: {without} of {len(of_run)} objects have no saved masks and are not shown")
    keys = set(traces[0]).intersection(*traces, *kept)
    if not keys:
        raise HrsegError(
            "`pictures`: no object has saved masks in every run; rerun evaluate on one dataset with `keep_masks`"
        )
    order = [_key_of(t) for t in _ranked([traces[0][key] for key in keys], metrics[0], runs[0].max_clicks, count)]
    records = [{_key(record): record for record in mask_records(run) if _key(record) in order} for run in runs]

    clicks = [k for k in SHOWN_CLICKS if k <= max(run.max_clicks for run in runs)]
    rows = []
    for key in order:
        image = _read_small(records[0][key], complain)
        for run, of_run, masks in zip(runs, traces, records, strict=True):
            name = f"{run.label}: {key[1]}" if len(runs) > 1 else key[1]
            rows.append(_panels(name, of_run[key], masks[key], image, run.max_clicks, clicks, metrics))

    width = 2 * MARGIN + len(rows[0]) * (CELL + GAP) - GAP
    height = HEAD + sum(len(row[0].pixels) + CAPTION for row in rows) + MARGIN + 20
    with rc_context({"font.size": 6.5, "text.color": INK}):
        figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
        heads = ["image", "ground truth", *(f"{k} click{'s' if k > 1 else ''}" for k in clicks)]
        for i, head in enumerate(heads):
            x = MARGIN + i * (CELL + GAP) + CELL / 2
            figure.text(x / width, 1 - (HEAD - 16) / height, head, ha="center", fontsize=8)
        top = HEAD
        for row in rows:
            for i, panel in enumerate(row):
                _place(figure, panel, MARGIN + i * (CELL + GAP), top)
            top += len(row[0].pixels) + CAPTION
        whose = f" of {runs[0].label}" if len(runs) > 1 else ""
        text = (
            f"From most to fewest clicks by {_noc_name(metrics[0])}{whose}.\nClicks are numbered: "
            "green marks the object, red the background. Hatched pixels do not count."
        )
        figure.text(MARGIN / width, 24 / height, text, color=QUIET, parse_math=False)
    return figure


def _panels(
    name: str,
    trace: Trace,
    record: dict[str, Any],
    image: np.ndarray,
    max_clicks: int,
    clicks: Sequence[int],
    metrics: Sequence[str],
) -> list[Panel]:
    """The panels of one row; ``image`` has the size of a panel."""
    truth, void = decode(record, record["truth"]), decode(record, record.get("void"))
    values = trace.scores[metrics[0]]
    needed = str(noc(values, LEVEL, max_clicks)) if reached(values, LEVEL) else "not reached"
    row = [
        Panel(image, trace.size, (), (_shortened(name, 40), f"{trace.size[1]} × {trace.size[0]}")),
        Panel(overlay(image, truth, void, TRUTH), trace.size, (), (f"{_noc_name(metrics[0])}: {needed}",)),
    ]
    for k in clicks:
        shown = min(k, len(trace.clicks))
        mask = decode(record, record["masks"].get(str(shown)))
        scores = (f"{label_of(m)} {mean_at(trace.scores[m], k):.3f}" for m in metrics if m in trace.scores)
        ended = (f"done at {shown}",) if shown < k else ()
        pixels = overlay(image, mask, void, MASK)
        row.append(Panel(pixels, trace.size, trace.clicks[:shown], ("   ".join(scores), *ended)))
    return row


def _place(figure: Figure, panel: Panel, left: int, top: int) -> None:
    """Draw a panel at its pixel resolution into the cell with the upper left corner (``left``, ``top``) on the page."""
    across, down = figure.get_size_inches() * DPI
    height, width = panel.pixels.shape[:2]
    bottom = top + height
    axes = figure.add_axes(
        ((left + (CELL - width) // 2) / across, 1 - bottom / down, width / across, height / down), frame_on=False
    )
    axes.set_axis_off()
    extent = (-0.5, panel.size[1] - 0.5, panel.size[0] - 0.5, -0.5)
    axes.imshow(panel.pixels, extent=extent, interpolation="nearest", aspect="auto")
    _draw_clicks(axes, panel.clicks)
    for number, line in enumerate(panel.lines):
        y = 1 - (bottom + 22 + 20 * number) / down
        figure.text((left + CELL / 2) / across, y, line, ha="center", va="baseline", parse_math=False)


def _draw_clicks(axes: Axes, clicks: Sequence[Prompt]) -> None:
    for number, click in enumerate(clicks, 1):
        if isinstance(click, Box):  # numbered at its upper left corner
            cols, rows = (click.left, click.right), (click.top, click.bottom)
            axes.plot(
                [cols[k] for k in (0, 1, 1, 0, 0)], [rows[k] for k in (0, 0, 1, 1, 0)], color=POSITIVE, linewidth=1
            )
            click = Click(click.top, click.left, True)
        colour = POSITIVE if click.positive else NEGATIVE
        axes.plot(
            click.col,
            click.row,
            marker="o",
            markersize=5.6,
            markerfacecolor=colour,
            markeredgecolor="white",
            markeredgewidth=0.5,
            clip_on=False,
            zorder=2 + number,
        )
        axes.annotate(
            str(number),
            (click.col, click.row),
            ha="center",
            va="center_baseline",
            fontsize=3.8,
            color="white",
            fontweight="bold",
            zorder=2.5 + number,
        )


def overlay(
    image: np.ndarray, mask: np.ndarray | None, void: np.ndarray | None, colour: tuple[int, int, int]
) -> np.ndarray:
    """``image`` (h, w, 3) uint8 with a translucent mask and its contour; ignored pixels are hatched grey.

    mask, void: bool, (H, W) of any size, resized to (h, w) by area averaging; None draws nothing.
    """
    import cv2

    height, width = image.shape[:2]
    out: np.ndarray = image.astype(np.float32)
    if void is not None:
        row, col = np.indices((height, width))
        stripes = np.where((row + col) // 5 % 2, 90.0, 190.0)[..., None]
        share = 0.75 * _resized(void.astype(np.float32), (height, width))[..., None]
        out = out * (1 - share) + stripes * share
    if mask is None:
        return out.round().astype(np.uint8)
    cover = _resized(mask.astype(np.float32), (height, width))
    share = 0.42 * cover[..., None]
    blended = (out * (1 - share) + np.array(colour, np.float32) * share).round().astype(np.uint8)
    # Below one half, so that structures thinner than a pixel of the page keep their contour.
    outline, _ = cv2.findContours((cover > 0.3).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(blended, outline, -1, colour, 1, cv2.LINE_AA)


def _ranked(traces: Sequence[Trace], metric: str, max_clicks: int, count: int) -> list[Trace]:
    """``count`` traces, evenly spaced from most to fewest clicks needed; ties are ordered by area under the curve."""

    def key(trace: Trace) -> tuple[float, float, str, str]:
        values = trace.scores[metric]
        return (-noc(values, LEVEL, max_clicks), auc(values, max_clicks), trace.dataset, trace.id)

    order = sorted(traces, key=key)
    places = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)
    return [order[i] for i in dict.fromkeys(places.tolist())]


def _key(record: dict[str, Any]) -> tuple[str, str]:
    return (record["dataset"], record["id"])


def _key_of(trace: Trace) -> tuple[str, str]:
    return (trace.dataset, trace.id)


def _read_small(record: dict[str, Any], complain: Callable[[str], None]) -> np.ndarray:
    """The image at panel size; plain grey if the file is missing or has another size now."""
    from hrseg_cli.data.pixels import parse_span, read_image

    path, size = Path(record["image"]), tuple(record["size"])
    scale = CELL / max(size)
    small = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    problem = "no such file"
    if record.get("draw"):  # procedural set: no files
        from hrseg_cli.data import procedural

        try:
            seed, index, side = map(operator.index, record["draw"])
            return _resized(procedural.draw(seed, index, side)[0], small)
        except (TypeError, ValueError, HrsegError):
            problem = "damaged: 'draw' is not a seed, a number and a size"
    elif path.is_file():
        try:
            image = read_image(path, span=parse_span(record["range"]) if record.get("range") else None)
            if image.shape[:2] == size:
                return _resized(image, small)
            problem = f"its size is now {image.shape[1]} x {image.shape[0]}"
        except HrsegError as error:
            problem = str(error)
    complain(f"{path}: image of {record['id']} not shown ({problem})")
    return np.full((*small, 3), 200, np.uint8)


def _resized(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    import cv2

    shrinks = array.shape[0] >= size[0]
    return cv2.resize(array, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _noc_name(metric: str) -> str:
    return f"{label_of(metric)} NoC@{100 * LEVEL:g}"


def _shortened(text: str, length: int) -> str:
    half = (length - 1) // 2
    return text if len(text) <= length else f"{text[:half]}…{text[-half:]}"
