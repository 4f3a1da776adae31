"""A new layout is a line in the catalog and a function, a new metric a line and an object. Nothing else changes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hrseg_cli import catalog
from hrseg_cli.data.datasets import open_dataset
from hrseg_cli.errors import HrsegError

TOYS = '''
from hrseg_cli.data.refs import Ref, layout


@layout(("*/photo.png", "*/alpha.png"))
def list_shots(folder, name, *, instances, binarize, only=""):
    """A folder per shot with photo.png and alpha.png."""
    rule = "gt128" if binarize == "auto" else binarize
    shots = sorted(path for path in folder.iterdir() if path.is_dir() and only in path.name)
    return [Ref(shot.name, name, shot / "photo.png", shot / "alpha.png", rule) for shot in shots]


class Dice:
    """Dice coefficient of the object."""

    label = "Dice (toy)"
    takes_band = True  # and so --band reaches it

    def __init__(self, truth, ratio=0.0, width=0):
        self.truth, self.width = truth == 1, width

    def __call__(self, mask):
        return float(2 * (mask & self.truth).sum() / (mask.sum() + self.truth.sum())) - self.width / 1000
'''
HELP = """
import sys
from hrseg_cli import catalog
catalog.METRICS["dice"] = "toys:Dice"
from hrseg_cli.cli import main
sys.argv = ["hrseg", "evaluate", "--help"]
main()
"""


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    (tmp_path / "toys.py").write_text(TOYS)
    rng = np.random.default_rng(0)
    for k in range(2):
        shot = tmp_path / "mine" / f"shot{k}"
        shot.mkdir(parents=True)
        mask = np.zeros((48, 64), np.uint8)
        mask[10:35, 20 : 45 + k] = 255
        image = rng.integers(0, 60, (48, 64, 3), dtype=np.uint8)
        image[mask > 0] += 150
        Image.fromarray(image).save(shot / "photo.png")
        Image.fromarray(mask).save(shot / "alpha.png")
    return tmp_path


def test_a_line_in_the_catalog_and_an_object_are_enough(
    desk: Path, hrseg: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(desk)
    monkeypatch.syspath_prepend(desk)
    monkeypatch.setitem(catalog.LAYOUTS, "shots", "toys:list_shots")
    monkeypatch.setitem(catalog.METRICS, "dice", "toys:Dice")

    def printed(*words: str) -> str:
        done = hrseg(*words)
        assert done.code == 0, done.err
        out: str = done.out
        return out

    # Help takes its names when the commands are imported.
    usage = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=True).stdout
    assert "pa, mpa, dice" in " ".join(usage.split())
    assert "Dice coefficient of the object" in printed("list", "metrics")
    assert "A folder per shot with photo.png and alpha.png" in printed("list", "layouts")

    evaluate = ["evaluate", "--model", "grabcut", "--max-clicks", "2", "--workers", "1"]
    of_all = printed(*evaluate, "-d", "mine", "--metric", "dice", "--until", "dice=2", "--out", "all")
    assert [json.loads(row)["metric"] for row in of_all.splitlines()] == ["dice"]
    one = ["-d", "shots=mine:only=shot1", "--metric", "dice", "--metric", "iou", "--band", "5px"]
    of_one = printed(*evaluate, *one, "--until", "2", "--out", "one")
    assert [json.loads(row)["n"] for row in of_one.splitlines()] == [1, 1]

    traces = [json.loads(line) for line in (desk / "all" / "traces.jsonl").read_text().splitlines()]
    assert [trace["id"] for trace in traces] == ["shot0", "shot1"]
    iou, dice = traces[0]["iou"], traces[0]["dice"]
    assert dice == pytest.approx([2 * value / (1 + value) for value in iou])
    (banded,) = [json.loads(line) for line in (desk / "one" / "traces.jsonl").read_text().splitlines()]
    assert banded["dice"] == pytest.approx([2 * value / (1 + value) - 0.005 for value in banded["iou"]])

    assert "Dice (toy) mean@2 (%)" in printed("report", "all", "--measure", "mean@2", "--plot", "curves.png")
    assert (desk / "curves.png").stat().st_size > 1000
    (desk / "plan.yaml").write_text(
        "name: mine\nsets: {mine: mine}\nmetrics: [dice]\nbase: a\ntables: [{title: A, rows: [{row: a, label: a}]}]\n"
    )
    (desk / "runs" / "a" / "0").mkdir(parents=True)
    (desk / "all").rename(desk / "runs" / "a" / "0" / "mine")
    assert "mine Dice (toy)" in printed("report", "--tables", "plan.yaml", "runs")


def test_a_folder_that_does_not_fit_a_typed_layout_is_refused(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(desk)
    monkeypatch.setitem(catalog.LAYOUTS, "shots", "toys:list_shots")
    for mask in desk.glob("mine/*/alpha.png"):
        mask.unlink()
    with pytest.raises(HrsegError, match=r"layout 'shots' wants \*/photo\.png and \*/alpha\.png there"):
        open_dataset(f"shots={desk}/mine")
    with pytest.raises(HrsegError, match=r"looked for .*\*/photo\.png and \*/alpha\.png"):
        open_dataset(f"{desk}/mine")
