"""Pictures of runs: score by click, and a page of masks as they grew click by click.

Every function returns a matplotlib ``Figure`` that draws without a screen; nothing global is touched.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hrseg_cli.errors import HrsegError
from hrseg_cli.interaction import Click, Trace
from hrseg_cli.metrics.noc import auc, mean_at, noc
from hrseg_cli.report.table import METRIC_LABELS, RESAMPLES, Evaluation, datasets
from hrseg_cli.runs import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 200
LEVEL = 0.9
SHOWN_CLICKS = (1, 3, 5, 10)

# Okabe and Ito's colours, which colour-blind readers tell apart; the pale yellow is left out.
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
INK, QUIET = "#222222", "#777777"
POSITIVE, NEGATIVE = "#12B312", "#E8201C"
MASK, TRUTH = (64, 140, 255), (255, 190, 40)


def save(figure: Figure, path: Path, option: str) -> None:
    """Write in the format of the file's suffix. Raises HrsegError naming ``option`` when it cannot be written."""
    blob = io.BytesIO()
    figure.savefig(blob, format=path.suffix[1:].lower(), dpi=DPI)
    try:
        write_atomically(path, blob.getvalue())
    except OSError as error:
        raise HrsegError(f"{option} {path}: cannot write there ({error.strerror}); name another file") from None


def check_suffix(path: Path, option: str) -> None:
    """Raises HrsegError unless matplotlib can write a file of this name."""
    from matplotlib.backend_bases import FigureCanvasBase

    known = sorted(FigureCanvasBase.get_supported_filetypes())
    if path.suffix[1:].lower() not in known:
        raise HrsegError(f"{option} {path}: cannot draw that kind of file; end its name in one of .{', .'.join(known)}")


# --- score by click -------------------------------------------------------------------------------------------------


def curves(runs: Sequence[Evaluation], metrics: Sequence[str], seed: int = 0) -> Figure:
    """Mean score after each click: a panel per dataset (down) and metric (across), a line per run with its 95 % band.

    A trace that ended early keeps its last value.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    names = datasets(runs)
    with rc_context({"font.size": 8, "axes.titlesize": 8.5, "text.color": INK, "axes.edgecolor": QUIET}):
        size = (0.9 + 2.9 * len(metrics) + 1.1, 0.75 + 2.3 * len(names))
        figure = Figure(figsize=size, facecolor="white")
        panels = figure.subplots(len(names), len(metrics), squeeze=False, sharex=True, sharey=True)
        figure.subplots_adjust(
            left=0.6 / size[0],
            right=1 - 1.4 / size[0],
            top=1 - 0.3 / size[1],
            bottom=0.7 / size[1],
            hspace=0.28,
            wspace=0.1,
        )
        floor = 1.0
        ends: dict[Axes, list[tuple[float, str, str]]] = {}
        for row, dataset in enumerate(names):
            for column, metric in enumerate(metrics):
                axes = panels[row, column]
                counts = []
                for number, run in enumerate(runs):
                    traces = [t for t in run.traces if t.dataset == dataset and metric in t.scores]
                    if not traces:
                        continue
                    counts.append(len(traces))
                    values = [[mean_at(t.scores[metric], k) for k in range(1, run.max_clicks + 1)] for t in traces]
                    mean, low, high = _mean_with_band(np.array(values, dtype=float), seed)
                    color = LINES[number % len(LINES)]
                    clicks = np.arange(1, run.max_clicks + 1)
                    axes.fill_between(clicks, low, high, color=color, alpha=0.16, linewidth=0)
                    axes.plot(clicks, mean, color=color, linewidth=1.4, marker="o", markersize=2.2)
                    floor = min(floor, float(low.min()))
                    ends.setdefault(axes, []).append((float(mean[-1]), run.label, color))
                n = " / ".join(dict.fromkeys(str(count) for count in counts)) or "none"
                axes.set_title(f"{dataset} · {METRIC_LABELS.get(metric, metric)}  (n = {n})", loc="left", parse_math=False)
                _frame(axes, max(run.max_clicks for run in runs), column == 0, row == len(names) - 1)
        panels[0, 0].set_ylim(max(0.0, np.floor(floor * 10) / 10), 1.0)
        for axes, labels in ends.items():
            # Lines are named once a row, beside its last panel; where a run lacks that metric, beside an earlier one.
            if axes in panels[:, -1] or len(labels) > len(ends.get(_last_of_row(panels, axes), [])):
                _name_lines(axes, labels)
        figure.text(
            0.6 / size[0],
            0.1 / size[1],
            "Mean over objects with its 95 % bootstrap band. An object that ended early keeps its last value.",
            fontsize=6.5,
            color=QUIET,
        )
    return figure


def _last_of_row(panels: np.ndarray, axes: Axes) -> Axes:
    row = int(np.argwhere(panels == axes)[0][0])
    last: Axes = panels[row, -1]
    return last


def _mean_with_band(values: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, 2.5th and 97.5th percentile of the bootstrap mean of each column of ``values`` (objects, clicks)."""
    n = len(values)
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    low, high = np.percentile(draws @ values / n, [2.5, 97.5], axis=0)
    return values.mean(axis=0), low, high


def _frame(axes: Axes, max_clicks: int, first: bool, bottom: bool) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(color=QUIET, labelcolor=INK, length=2.5)
    axes.axhline(LEVEL, color=QUIET, linewidth=0.7, linestyle=(0, (4, 3)), zorder=0)
    axes.set_xlim(0.5, max_clicks + 0.5)
    axes.set_xticks([1, *range(5, max_clicks + 1, 5)] if max_clicks >= 5 else range(1, max_clicks + 1))
    if first:
        axes.set_ylabel("mean score")
    if bottom:
        axes.set_xlabel("clicks")


def _name_lines(axes: Axes, ends: list[tuple[float, str, str]]) -> None:
    """Labels right of the lines' ends, moved apart where they would touch."""
    low, high = axes.get_ylim()
    gap = 0.065 * (high - low)
    places = spread([value for value, _, _ in ends], gap, low, high)
    for (_, label, color), place in zip(ends, places, strict=True):
        axes.annotate(
            _shortened(label, 24),
            (1.0, place),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color=color,
            fontsize=7.5,
            parse_math=False,
        )


def spread(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places as near to ``values`` as ``gap`` between neighbours allows, in the same order, inside low..high if they fit."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    places = [0.0] * len(values)
    floor = low
    for i in order:
        places[i] = max(values[i], floor)
        floor = places[i] + gap
    ceiling = high
    for i in reversed(order):
        places[i] = min(places[i], ceiling)
        ceiling = places[i] - gap
    return places


# --- masks click by click -------------------------------------------------------------------------------------------

CELL = 400  # pixels, the longer side of a panel
GAP, HEAD, CAPTION, MARGIN = 14, 44, 56, 40


def pictures(
    runs: Sequence[Evaluation], metrics: Sequence[str], count: int, complain: Callable[[str], None]
) -> Figure:
    """A page with a row per object and run: image, truth, and the mask after 1, 3, 5 and 10 clicks with those clicks.

    metrics: printed under each mask; the first one ranks the objects. count: objects, spread evenly from those that
    needed most clicks to those that needed fewest. complain: called with one line about each image that cannot be read.
    Raises HrsegError when a run kept no masks.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    traces = [{(t.dataset, t.id): t for t in run.traces} for run in runs]
    keys = set.intersection(*({_key(record) for record in _mask_records(run.folder)} & t.keys() for run, t in zip(runs, traces, strict=True)))
    if not keys:
        raise HrsegError("--pictures: no object has kept masks in every run; evaluate the same dataset with --keep-masks")
    chosen = _ranked([traces[0][key] for key in keys], metrics[0], runs[0].max_clicks, count)
    order = [_key_of(trace) for trace in chosen]
    records = [{_key(r): r for r in _mask_records(run.folder) if _key(r) in order} for run in runs]
    rows = [(run, traces[i][key], records[i][key]) for key in order for i, run in enumerate(runs)]

    clicks = [k for k in SHOWN_CLICKS if k <= max(run.max_clicks for run in runs)]
    images = {key: _read_image(records[0][key], complain) for key in order}
    boxes = [_fitted(images[_key_of(trace)].shape) for _, trace, _ in rows]
    width = 2 * MARGIN + (2 + len(clicks)) * CELL + (1 + len(clicks)) * GAP
    height = HEAD + MARGIN + sum(box[0] + CAPTION for box in boxes) + MARGIN
    with rc_context({"font.size": 6.5, "text.color": INK}):
        figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
        heads = ["image", "truth", *(f"{k} click{'s' if k > 1 else ''}" for k in clicks)]
        top = HEAD + MARGIN
        for i, head in enumerate(heads):
            x = MARGIN + i * (CELL + GAP) + CELL / 2
            figure.text(x / width, 1 - (top - 18) / height, head, ha="center", fontsize=8, color=INK)
        for (run, trace, record), box in zip(rows, boxes, strict=True):
            _draw_row(figure, run, trace, record, images[_key_of(trace)], box, top, clicks, metrics, len(runs) > 1)
            top += box[0] + CAPTION
        figure.text(
            MARGIN / width,
            MARGIN / 2 / height,
            f"From most to fewest clicks by {_noc_name(metrics[0])}"
            + (f" of {runs[0].label}" if len(runs) > 1 else "")
            + ". Clicks are numbered: green marks the object, red the background. Hatched pixels do not count.",
            fontsize=6.5,
            color=QUIET,
            parse_math=False,
        )
    return figure


def _draw_row(
    figure: Figure,
    run: Evaluation,
    trace: Trace,
    record: dict[str, Any],
    image: np.ndarray,
    box: tuple[int, int],
    top: int,
    clicks: Sequence[int],
    metrics: Sequence[str],
    named: bool,
) -> None:
    truth, void = _decode(record, record["truth"]), _decode(record, record.get("void"))
    needed = noc(trace.scores[metrics[0]], LEVEL, run.max_clicks)
    reached = any(value >= LEVEL for value in trace.scores[metrics[0]])
    name = f"{run.label}: {trace.id}" if named else trace.id
    cells: list[tuple[np.ndarray | None, tuple[int, int, int], Sequence[Click], str]] = [
        (None, TRUTH, (), f"{_shortened(name, 40)}\n{trace.size[1]} × {trace.size[0]}"),
        (truth, TRUTH, (), f"{_noc_name(metrics[0])} {needed if reached else 'not reached'}"),
    ]
    for k in clicks:
        shown = min(k, len(trace.clicks))
        text = "   ".join(f"{METRIC_LABELS.get(m, m)} {mean_at(trace.scores[m], k):.3f}" for m in metrics if m in trace.scores)
        if shown < k:
            text += f"\ndone at {shown}"
        cells.append((_decode(record, record["masks"].get(str(shown))), MASK, trace.clicks[:shown], text))
    small = _resized(image, box)
    across, down = figure.get_size_inches() * figure.dpi
    for i, (mask, colour, placed, text) in enumerate(cells):
        left = MARGIN + i * (CELL + GAP) + (CELL - box[1]) // 2
        axes = figure.add_axes((left / across, 1 - (top + box[0]) / down, box[1] / across, box[0] / down))
        axes.axis("off")
        height, width = trace.size
        axes.imshow(
            small if i == 0 else overlay(small, mask, void, colour),
            extent=(-0.5, width - 0.5, height - 0.5, -0.5),
            interpolation="nearest",
            aspect="auto",
        )
        _draw_clicks(axes, placed)
        x = MARGIN + i * (CELL + GAP) + CELL / 2
        figure.text(x / across, 1 - (top + box[0] + 6) / down, text, ha="center", va="top", linespacing=1.25, parse_math=False)


def _draw_clicks(axes: Axes, clicks: Sequence[Click]) -> None:
    for number, click in enumerate(clicks, 1):
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
    """``image`` (h, w, 3) uint8 under a translucent mask with its contour; ignored pixels hatched grey.

    mask, void: bool, (H, W) of any size, brought to (h, w) by area averaging; None draws nothing.
    """
    import cv2

    height, width = image.shape[:2]
    out = image.astype(np.float32)
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
    # Below one half, so that what is thinner than a pixel of the page keeps its contour.
    outline, _ = cv2.findContours((cover > 0.3).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(blended, outline, -1, colour, 1, cv2.LINE_AA)


def _ranked(traces: Sequence[Trace], metric: str, max_clicks: int, count: int) -> list[Trace]:
    """``count`` traces at even distances in the order of clicks needed, most first; equal clicks by the area under the curve."""

    def key(trace: Trace) -> tuple[float, float, str, str]:
        values = trace.scores.get(metric, ())
        if not values:
            return (0.0, 0.0, trace.dataset, trace.id)
        return (-noc(values, LEVEL, max_clicks), auc(values, max_clicks), trace.dataset, trace.id)

    order = sorted(traces, key=key)
    places = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)
    return [order[i] for i in dict.fromkeys(places.tolist())]


def _mask_records(folder: Path) -> Iterator[dict[str, Any]]:
    """Lines of ``masks.jsonl``, one at a time: the file of a large dataset does not fit in memory twice."""
    path = folder / "masks.jsonl"
    if not path.is_file():
        raise HrsegError(f"--pictures: {folder} holds no masks.jsonl; evaluate with --keep-masks")
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                record = json.loads(line)
                record["dataset"], record["id"], record["size"], record["truth"], record["masks"]
            except (ValueError, KeyError, TypeError) as error:
                raise HrsegError(f"{path}, line {number}: not a record of masks ({error}); evaluate again") from None
            yield record


def _key(record: dict[str, Any]) -> tuple[str, str]:
    return (record["dataset"], record["id"])


def _key_of(trace: Trace) -> tuple[str, str]:
    return (trace.dataset, trace.id)


def _decode(record: dict[str, Any], counts: str | None) -> np.ndarray | None:
    """bool, (H, W), from COCO's compressed run lengths (column by column)."""
    from pycocotools import mask

    if counts is None:
        return None
    return np.asarray(mask.decode({"size": list(record["size"]), "counts": counts.encode()}), dtype=bool)


def _read_image(record: dict[str, Any], complain: Callable[[str], None]) -> np.ndarray:
    """The image, or plain grey of its size when the file is gone or is another one now."""
    from hrseg_cli.data.samples import read_image

    path, size = Path(record["image"]), tuple(record["size"])
    problem = "no such file"
    if path.is_file():
        try:
            image = read_image(path)
            if image.shape[:2] == size:
                return image
            problem = f"its size is now {image.shape[1]} x {image.shape[0]}"
        except HrsegError as error:
            problem = str(error)
    complain(f"{path}: image of {record['id']} not shown ({problem})")
    return np.full((*size, 3), 200, np.uint8)


def _fitted(shape: tuple[int, ...]) -> tuple[int, int]:
    """(height, width) of an image brought to the side of a panel."""
    scale = CELL / max(shape[:2])
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def _resized(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    import cv2

    shrinks = array.shape[0] >= size[0]
    return cv2.resize(array, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _noc_name(metric: str) -> str:
    return f"{METRIC_LABELS.get(metric, metric)} NoC@{100 * LEVEL:g}"


def _shortened(text: str, length: int) -> str:
    half = (length - 1) // 2
    return text if len(text) <= length else f"{text[:half]}…{text[-half:]}"
