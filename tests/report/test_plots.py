"""Curves and the page of pictures, looked at pixel by pixel where it matters."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image
from pycocotools import mask as coco

from hrseg_cli.errors import HrsegError
from hrseg_cli.interaction import Box, Click, Trace
from hrseg_cli.report.plots import MASK, check_suffix, curves, drawn, overlay, pictures, spread
from hrseg_cli.report.table import Evaluation

SIZE = (40, 80)
TRUTH = np.zeros(SIZE, bool)
TRUTH[10:30, 30:60] = True
GREEN, RED = (0x12, 0xB3, 0x12), (0xE8, 0x20, 0x1C)


def trace(name: str, *iou: float, dataset: str = "pets", clicks: Sequence[Click] = ()) -> Trace:
    clicks = tuple(clicks) or tuple(Click(20, 40, True) for _ in iou)
    return Trace(name, dataset, clicks, {"iou": iou}, (), {"iou": 0.9}, SIZE, int(TRUTH.sum()))


def evaluation(folder: Path, *traces: Trace, label: str = "ours", max_clicks: int = 10) -> Evaluation:
    settings = {"seed": 0, "max_clicks": max_clicks}
    return Evaluation(label, folder, "done", settings, ("c0ffee",), max_clicks, traces)


def encode(mask: np.ndarray) -> str:
    counts: bytes = coco.encode(np.asfortranarray(mask, np.uint8))["counts"]
    return counts.decode()


def keep_masks(run: Evaluation, image: Path, void: np.ndarray | None = None) -> Evaluation:
    """Write masks.jsonl: the mask after each shown click is the truth."""
    records = []
    for item in run.traces:
        kept = [k for k in (1, 3, 5, 10) if k < len(item.clicks)] + [len(item.clicks)]
        record: dict[str, Any] = {"id": item.id, "dataset": item.dataset, "image": str(image), "size": list(SIZE)}
        record |= {"truth": encode(TRUTH), "void": None if void is None else encode(void)}
        records.append(record | {"masks": {str(k): encode(TRUTH) for k in kept}})
    run.folder.mkdir(exist_ok=True)
    (run.folder / "masks.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return run


def save_image(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def texts(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.texts]


def no_complaint(line: str) -> None:
    raise AssertionError(line)


def test_curves_have_a_panel_per_dataset_and_metric_and_a_line_per_run(tmp_path: Path) -> None:
    first = evaluation(tmp_path, trace("a", 0.5, 0.9), trace("b", 0.3, 0.6, dataset="cars"))
    second = evaluation(tmp_path, trace("a", 0.4), label="other")
    figure = curves([first, second], ["iou", "biou"])
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "pets · IoU  (n = 1)",
        "pets · bIoU  (not measured)",
        "cars · IoU  (n = 1)",
        "cars · bIoU  (not measured)",
    ]
    assert [len(axes.collections) for axes in figure.axes] == [2, 0, 1, 0]
    assert [text.get_text() for text in figure.axes[0].texts] == ["ours", "other"]


def test_curve_is_the_mean_and_an_ended_object_keeps_its_last_value(tmp_path: Path) -> None:
    figure = curves([evaluation(tmp_path, trace("a", 0.5, 0.9), trace("b", 0.1, 0.2, 0.3, 0.5), max_clicks=4)], ["iou"])
    (line,) = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 4]
    assert list(line.get_xdata()) == [1, 2, 3, 4]
    assert list(line.get_ydata()) == pytest.approx([0.3, 0.55, 0.6, 0.7])
    assert "keeps its last value" in texts(figure)[0]


def test_drawn_files_open(tmp_path: Path) -> None:
    figure = curves([evaluation(tmp_path, trace("a", 0.5))], ["iou"])
    assert Image.open(io.BytesIO(drawn(figure, Path("x.png")))).format == "PNG"
    assert drawn(figure, Path("x.SVG")).startswith(b"<?xml")
    with pytest.raises(HrsegError, match=r"--plot x\.doc: .*\.png"):
        check_suffix(Path("x.doc"), "--plot")


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_labels_keep_their_order_and_their_distance(values: list[float]) -> None:
    places = spread(values, 0.05)
    order = sorted(range(len(values)), key=lambda i: values[i])
    assert all(places[b] - places[a] > 0.049 for a, b in pairwise(order))
    assert sum(places) == pytest.approx(sum(values))


def test_labels_with_room_stay() -> None:
    assert spread([0.9, 0.5, 0.7], 0.05) == [0.9, 0.5, 0.7]


def test_page_has_a_row_per_object_and_run(tmp_path: Path) -> None:
    """Columns: image, truth, 1, 3, 5 and 10 clicks."""
    image = save_image(tmp_path / "x.png", np.zeros((*SIZE, 3), np.uint8))
    traces = [trace(f"{i:02}", *[0.1] * i, 0.95) for i in range(5)]
    runs = [keep_masks(evaluation(tmp_path / label, *traces, label=label), image) for label in ("a", "b")]
    figure = pictures(runs, ["iou"], 3, no_complaint)
    assert len(figure.axes) == 3 * 2 * 6
    names = [text for text in texts(figure) if text.startswith(("a: ", "b: "))]
    assert names == ["a: 04", "b: 04", "a: 02", "b: 02", "a: 00", "b: 00"]  # from most clicks to fewest


def test_clicks_are_drawn_where_they_were_made(tmp_path: Path) -> None:
    """White squares in the image under two clicks: the dots must lie in their middle, in the right colour."""
    pixels = np.zeros((*SIZE, 3), np.uint8)
    pixels[4:17, 4:17] = 255
    pixels[24:37, 64:77] = 255
    clicks = [Click(10, 10, True), Click(30, 70, False), Click(30, 70, False)]
    run = evaluation(tmp_path / "run", trace("cat", 0.1, 0.2, 0.3, clicks=clicks), max_clicks=3)
    keep_masks(run, save_image(tmp_path / "x.png", pixels))
    figure = pictures([run], ["iou"], 1, no_complaint)
    page = np.asarray(Image.open(io.BytesIO(drawn(figure, Path("x.png")))).convert("RGB")).astype(int)

    top, left, scale = last_panel(figure, page)
    for colour, row, col in ((GREEN, 10, 10), (RED, 30, 70)):
        dots = np.argwhere(np.abs(page - colour).max(2) < 30)
        dots = dots[dots[:, 1] > left]
        middle = (dots.min(0) + dots.max(0)) / 2
        assert middle == pytest.approx([top + (row + 0.5) * scale, left + (col + 0.5) * scale], abs=2)
        around = page[int(middle[0]) - 20, int(middle[1]) - 20]
        assert around.min() > 240, "the dot lies inside its white square of the image"


def test_a_box_is_drawn_around_its_pixels(tmp_path: Path) -> None:
    run = evaluation(tmp_path / "run", trace("cat", 0.1, clicks=[Box(8, 31, 20, 69)]), max_clicks=1)
    keep_masks(run, save_image(tmp_path / "x.png", np.zeros((*SIZE, 3), np.uint8)))
    figure = pictures([run], ["iou"], 1, no_complaint)
    page = np.asarray(Image.open(io.BytesIO(drawn(figure, Path("x.png")))).convert("RGB")).astype(int)
    top, left, scale = last_panel(figure, page)
    green = np.abs(page - GREEN).max(2) < 30
    for row, col in ((8, 45), (31, 45), (20, 20), (20, 69)):  # the middle of each side
        down, across = round(top + (row + 0.5) * scale), round(left + (col + 0.5) * scale)
        assert green[down - 2 : down + 3, across - 2 : across + 3].any(), (row, col)
    assert not green[round(top + 24 * scale), round(left + 45 * scale)]


def last_panel(figure: Figure, page: np.ndarray) -> tuple[float, float, float]:
    """Top and left of the last panel in a drawn page, and its pixels per pixel of the image."""
    last = figure.axes[-1].get_window_extent()
    return len(page) - last.y1, last.x0, last.width / SIZE[1]


def test_an_object_that_ended_early_repeats_its_last_mask(tmp_path: Path) -> None:
    image = save_image(tmp_path / "x.png", np.zeros((*SIZE, 3), np.uint8))
    run = keep_masks(evaluation(tmp_path / "run", trace("cat", 0.3, 0.8, 0.85, 0.93)), image)
    figure = pictures([run], ["iou"], 1, no_complaint)
    assert texts(figure).count("done at 4") == 2  # below 5 and 10 clicks
    assert "IoU NoC@90: 4" in texts(figure)
    assert texts(figure).count("IoU 0.930") == 2
    numbers = [[text.get_text() for text in axes.texts] for axes in figure.axes[2:]]
    assert numbers == [["1"], ["1", "2", "3"], ["1", "2", "3", "4"], ["1", "2", "3", "4"]]
    three, five, ten = (np.asarray(axes.images[0].get_array()) for axes in figure.axes[-3:])
    assert (three == five).all()
    assert (five == ten).all()
    assert five[100, 225, 2] > five[10, 10, 2]  # blue where the mask is


def test_missing_or_changed_image_is_one_line_and_grey(tmp_path: Path) -> None:
    run = keep_masks(evaluation(tmp_path / "run", trace("cat", 0.95)), tmp_path / "gone.png")
    lines: list[str] = []
    figure = pictures([run], ["iou"], 1, lines.append)
    assert lines == [f"{tmp_path / 'gone.png'}: image of cat not shown (no such file)"]
    assert np.unique(figure.axes[0].images[0].get_array()).tolist() == [200]

    keep_masks(run, save_image(tmp_path / "small.png", np.zeros((4, 4, 3), np.uint8)))
    pictures([run], ["iou"], 1, lines.append)
    assert lines[1].endswith("(its size is now 4 x 4)")

    file = tmp_path / "run" / "masks.jsonl"
    for wrong in (3.5, [1, 2], [0, 0, 10**9], ["a", 0, 96]):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"draw": wrong}) + "\n")
        pictures([run], ["iou"], 1, lines.append)
        assert lines[-1].endswith("(damaged: 'draw' is not a seed, a number and a size)")


def test_runs_without_masks_are_an_error_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(HrsegError, match=r"masks\.jsonl; rerun evaluate with `keep_masks`"):
        pictures([evaluation(tmp_path, trace("cat", 0.95))], ["iou"], 1, no_complaint)


def test_torn_last_mask_of_a_stopped_run_is_left_out(tmp_path: Path) -> None:
    """And counted. A run that is done had all of its masks: there a torn line is damage."""
    done = keep_masks(evaluation(tmp_path / "run", trace("a", 0.95), trace("b", 0.95)), tmp_path / "gone.png")
    whole = (done.folder / "masks.jsonl").read_text()
    (done.folder / "masks.jsonl").write_text(whole[:-20])
    run, lines = replace(done, status="interrupted"), list[str]()
    assert len(pictures([run], ["iou"], 9, lines.append).axes) == 6
    assert f"{run.folder}: 1 of 2 objects have no saved masks and are not shown" in lines
    with pytest.raises(HrsegError, match=r"masks\.jsonl, line 2"):
        pictures([done], ["iou"], 9, no_complaint)
    (run.folder / "masks.jsonl").write_text(whole[:-20] + "\n")
    with pytest.raises(HrsegError, match=r"masks\.jsonl, line 2"):
        pictures([run], ["iou"], 9, no_complaint)


def test_overlay_tints_the_mask_only() -> None:
    image = np.full((*SIZE, 3), 100, np.uint8)
    out = overlay(image, TRUTH, None, MASK)
    inner, border = TRUTH.copy(), np.zeros(SIZE, bool)
    border[8:32, 28:62] = True
    inner[[10, 11, 28, 29]] = inner[:, [30, 31, 58, 59]] = False
    assert (out[~border] == 100).all()
    assert (out[inner] == np.round(100 * 0.58 + np.array(MASK) * 0.42)).all()
    assert (image == 100).all()


def test_overlay_hatches_ignored_pixels() -> None:
    image = np.full((*SIZE, 3), 100, np.uint8)
    out = overlay(image, None, TRUTH, MASK)
    assert (out[~TRUTH] == 100).all()
    assert len(np.unique(out[TRUTH])) == 2
    assert (out[..., 0] == out[..., 2]).all()


def test_overlay_keeps_what_is_thinner_than_a_pixel_of_the_page() -> None:
    mask = np.zeros((400, 800), bool)
    mask[:, 400:404] = True
    out = overlay(np.zeros((40, 80, 3), np.uint8), mask, None, MASK)
    assert (out[:, 40] > 0.8 * np.array(MASK)).all()
