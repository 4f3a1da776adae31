"""Create the pictures in docs/pictures/ from runs of the network shipped with hrseg.

python docs/make_pictures.py    needs Playwright (pip install 'hrseg[dev]') and Chromium; takes minutes on two cores

The images in them are drawn by hrseg, or free photographs from scikit-image (demo), so they may be published anywhere.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from hrseg_cli.catalog import DEFAULT_MODEL
from hrseg_cli.data.bundled import PHOTOGRAPHS, sample_photographs

FOLDER = Path(__file__).resolve().parent / "pictures"
DRAWN = ["--count", "8", "--size", "400", "--seed", "11"]
WIDTH = 1100  # pixels of a picture
MODELS = {DEFAULT_MODEL: DEFAULT_MODEL, "graph cut": "grabcut"}
SHOWN = ("astronaut_patch", "astronaut")  # object and image on the screenshot


def main() -> None:
    with TemporaryDirectory() as folder:
        work = Path(folder)
        hrseg("prepare-data", "procedural", *DRAWN, "--out", work / "drawn")
        runs = []
        for label, model in MODELS.items():
            hrseg(
                "evaluate", "--model", model, "--dataset", work / "drawn", "--metric", "iou", "--metric", "biou",
                "--max-clicks", "10", "--keep-masks", "--out", work / model,
            )  # fmt: skip
            runs.append(f"{label}={work / model}")
        hrseg("report", *runs, "--plot", work / "curves.png")
        hrseg("report", runs[0], "--pictures", work / "clicks.png", "--objects", "4")
        samples = [
            "--dataset", "samples", "--metric", "iou", "--protocol", "fast", "--max-clicks", "10", "--keep-masks",
        ]  # fmt: skip
        hrseg("evaluate", *samples, "--out", work / "samples")  # as in make demo
        hrseg("report", work / "samples", "--pictures", work / "demo.png", "--objects", "4")
        screenshot(work)
        FOLDER.mkdir(exist_ok=True)
        for name in ("curves", "clicks", "annotate", "demo"):
            small(work / f"{name}.png", FOLDER / f"{name}.webp")


def hrseg(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "hrseg_cli.cli", *map(str, words)], check=True, stdout=sys.stderr)


def screenshot(work: Path) -> None:
    """The page after the clicks that the simulated annotator made on one of the samples, under the same protocol."""
    wanted, image = SHOWN
    (work / "photos" / "images").mkdir(parents=True)
    place = sample_photographs()
    if place is None:
        sys.exit("needs scikit-image: pip install 'hrseg[samples]'")
    for file in PHOTOGRAPHS.values():
        shutil.copy(place / file, work / "photos" / "images")
    lines = (work / "samples" / "traces.jsonl").read_text(encoding="utf-8").splitlines()
    clicks = next(trace["clicks"] for trace in map(json.loads, lines) if trace["id"] == wanted)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        sys.exit("needs Chromium: apt-get install chromium")
    with annotate(work / "photos") as address, sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 640})
        page.set_default_timeout(120_000)
        page.goto(address)
        idle(page)
        page.click(f"#images button[title*='{image}']")
        page.wait_for_selector(f"#title:has-text('{image}')")
        idle(page)
        for row, col, positive in clicks:
            scale, left, top = page.evaluate(
                "() => { const o = document.getElementById('overlay'), q = o.getBoundingClientRect();"
                " return [+o.dataset.scale, q.x + +o.dataset.x, q.y + +o.dataset.y]; }"
            )
            at = left + (col + 0.5) * scale, top + (row + 0.5) * scale
            page.mouse.click(*at, button="left" if positive else "right")
            idle(page)
        page.screenshot(path=work / "annotate.png")
        browser.close()


def idle(page: Any) -> None:
    """Wait until the page has shown the answer."""
    page.wait_for_selector("#empty", state="hidden")
    page.wait_for_selector('body[data-busy="0"]')
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


@contextmanager
def annotate(photos: Path) -> Iterator[str]:
    """Serve the page and yield its address."""
    words = [sys.executable, "-m", "hrseg_cli.cli", "annotate", str(photos), "--port", "0", "--no-browser"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=os.environ) as job:
        assert job.stderr is not None
        try:
            yield job.stderr.readline().strip()
        finally:
            job.send_signal(signal.SIGINT)
            job.communicate()


def small(source: Path, target: Path) -> None:
    picture = Image.open(source).convert("RGB")
    picture.thumbnail((WIDTH, WIDTH), Image.Resampling.LANCZOS)
    picture.save(target, quality=82)
    print(f"{target}: {target.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
