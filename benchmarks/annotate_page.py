"""Where the time between a click on the annotation page and its mask goes. Prints Markdown tables.

    python benchmarks/annotate_page.py photo.jpg
    python benchmarks/annotate_page.py photo.jpg --model h18s --sizes 640x480 4000x3000 --clicks 8 --folder 300x20

The photograph is resized to each size (columns x rows) and clicked on in Chromium, over the server as `hrseg annotate`
runs it. The first click loads and encodes the image and is not counted; medians of the others, in milliseconds: by the
wall clock, and of the processor, which says more on a busy machine. Then the time of writing, in a folder of 300 images
with 20 objects each: a stroke's mask, the image's record, and the files about all images. Needs Chromium. Takes about
a minute.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import uvicorn
from PIL import Image

from hrseg_cli import catalog
from hrseg_cli.annotate.acts import AnyAct, DoStroke
from hrseg_cli.annotate.desk import Desk
from hrseg_cli.annotate.folder import Folder
from hrseg_cli.annotate.records import Object, Picture
from hrseg_cli.annotate.server import application
from hrseg_cli.data.masks_out import run_lengths
from hrseg_cli.engine.answers import Answer
from hrseg_cli.engine.devices import processor
from hrseg_cli.engine.runtimes import open_model
from hrseg_cli.engine.session import Session
from hrseg_cli.recipe import load_protocol

WATCH = """
() => {
  window.clicks = [];
  let start = 0, busy = false;
  const overlay = document.getElementById("overlay");
  overlay.addEventListener("pointerup", () => { start = performance.now(); busy = true; }, true);
  new MutationObserver(() => {
    if (!busy || document.body.dataset.busy !== "0") return;
    busy = false;
    const sent = performance.getEntriesByType("resource").filter((one) => /images\\/0$/.test(one.name)).at(-1);
    window.clicks.push({ shown: performance.now() - start, request: sent.responseEnd - sent.startTime });
    performance.clearResourceTimings();
  }).observe(overlay, { attributes: true, attributeFilter: ["data-scale"] });
}
"""


class Clock:
    """Milliseconds spent in wrapped functions, per call: by the wall clock, and of the processor."""

    def __init__(self) -> None:
        self.times: dict[str, list[tuple[float, float]]] = {}

    def wrap(self, owner: Any, name: str, label: str) -> None:
        does: Callable[..., Any] = getattr(owner, name)

        def timed(*arguments: Any) -> Any:
            wall, work = time.perf_counter(), time.thread_time()
            try:
                return does(*arguments)
            finally:
                spent = 1000 * (time.perf_counter() - wall), 1000 * (time.thread_time() - work)
                self.times.setdefault(label, []).append(spent)

        setattr(owner, name, timed)

    def medians(self, which: int) -> dict[str, float]:
        """Without the first call. which: 0 for the wall clock, 1 for the processor."""
        return {name: statistics.median(time[which] for time in times[1:]) for name, times in self.times.items()}


def clicks(photo: Image.Image, size: tuple[int, int], number: int, model: str) -> list[dict[str, float]]:
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        photo.resize(size).save(place / "photo.png", compress_level=1)
        protocol = load_protocol("fast")
        loaded, provenance = open_model(model, None, "cpu", None)
        desk, clock = Desk(Folder(place, protocol.threshold), loaded, provenance, protocol), Clock()
        clock.wrap(desk, "act", "act")
        clock.wrap(desk.folder, "save", "save")
        clock.wrap(desk.folder, "write_tables", "tables")
        clock.wrap(Session, "apply", "model")
        clock.wrap(Answer, "above", "above")
        ear = socket.create_server(("127.0.0.1", 0))
        port = ear.getsockname()[1]
        app = application(desk, "token", [f"127.0.0.1:{port}"])
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off", ws="none"))
        thread = threading.Thread(target=server.run, args=([ear],))
        thread.start()
        try:
            with sync_playwright() as play:
                browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
                page = browser.new_page(viewport={"width": 1280, "height": 800})
                page.set_default_timeout(300_000)
                page.goto(f"http://127.0.0.1:{port}/#token")
                page.wait_for_selector("#empty", state="hidden")
                page.evaluate("document.getElementById('preview').checked = false")
                page.evaluate(WATCH)
                box = page.locator("#overlay").bounding_box()
                for count in range(number + 1):
                    x, y = np.random.default_rng(count).uniform(0.35, 0.65, 2)
                    page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])
                    page.wait_for_function("count => window.clicks.length > count", arg=count)
                seen = page.evaluate("window.clicks")[1:]
                browser.close()
        finally:
            server.should_exit = True
            thread.join()
    shown, request = (statistics.median(one[name] for one in seen) for name in ("shown", "request"))
    columns = []
    for which in (0, 1):
        part = clock.medians(which)
        labels = {"model": "model", "above": "mask at full size", "save": "mask and record", "tables": "tables"}
        named = {label: part[name] for name, label in labels.items()}
        columns.append({**named, "rest of the server": part["act"] - sum(named.values())})
    wall = {"transport": request - clock.medians(0)["act"], "page": shown - request, "click to mask": shown}
    return [columns[0] | wall, columns[1]]


def writing(images: int, objects: int) -> list[dict[str, float]]:
    """A stroke in a large folder."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for name in ("images", "masks", "annotations/images"):
            (place / name).mkdir(parents=True)
        rows, cols = np.indices((480, 640))
        mask = (rows - 200) ** 2 + (cols - 300) ** 2 + 900 * np.sin(cols / 5) < 130**2
        counts = run_lengths(mask)["counts"]
        Image.fromarray(mask.astype(np.uint8) * 255).save(place / "mask.png")
        Image.fromarray(np.zeros((480, 640, 3), np.uint8)).save(place / "image.png")
        for number in range(images):
            stem = f"{number:04}"
            os.link(place / "image.png", place / "images" / f"{stem}.png")
            picture = Picture(revision=1, size=(480, 640))
            for k in range(objects):
                key = f"{stem}_{k}"
                os.link(place / "mask.png", place / "masks" / f"{key}.png")
                found = (place / "masks" / f"{key}.png").stat()
                one = Object(key=key, name=f"thing {k}", colour=0, threshold=0.5, file=f"{key}.png", counts=counts)
                one.stamp, one.area = f"{found.st_size} {found.st_mtime_ns}", int(mask.sum())
                one.bbox = [170, 70, 260, 260]
                picture.objects.append(one)
            (place / "annotations" / "images" / f"{stem}.json").write_text(picture.model_dump_json())
        protocol = load_protocol("fast")
        loaded, provenance = open_model("grabcut", None, "cpu", None)
        desk, clock = Desk(Folder(place, protocol.threshold), loaded, provenance, protocol), Clock()
        clock.wrap(desk, "act", "act")
        clock.wrap(desk.folder, "save", "mask and record")
        clock.wrap(desk.folder, "write_tables", "tables")
        which = images // 2
        for count in range(11):
            points = [(100.0 + count, 100.0), (200.0, 300.0)]
            key = f"{which:04}_{objects // 2}"
            wish: AnyAct = DoStroke(do="stroke", revision=1 + count, object=key, points=points, radius=9.0)
            desk.act(which, wish)
    return [clock.medians(0), clock.medians(1)]


def pair(text: str) -> tuple[int, int]:
    first, _, second = text.partition("x")
    if not (first.isdecimal() and second.isdecimal() and int(first) and int(second)):
        raise argparse.ArgumentTypeError(f"'{text}': give two numbers from 1, such as 640x480")
    return int(first), int(second)


def table(columns: dict[str, dict[str, float]]) -> str:
    names = list(next(iter(columns.values())))
    lines = ["| ms | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    lines += [
        f"| {name} | " + " | ".join(f"{one[name]:.0f}" if name in one else "" for one in columns.values()) + " |"
        for name in names
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", type=Path)
    parser.add_argument("--sizes", nargs="*", type=pair, default=[(640, 480), (4000, 3000)], help="columns x rows")
    parser.add_argument("--clicks", type=int, default=8)
    parser.add_argument("--model", default=catalog.DEFAULT_MODEL)
    parser.add_argument(
        "--folder", type=pair, default=(300, 20), help="images x objects of the folder that is written to"
    )
    asked = parser.parse_args()
    with Image.open(asked.photo) as file:
        photo = file.convert("RGB")
    found = {}
    for size in asked.sizes:
        name = "x".join(map(str, size))
        found[name], found[f"{name}, processor"] = clicks(photo, size, asked.clicks, asked.model)
    if found:
        print(table(found), "\n")
    images, objects = asked.folder
    wall, work = writing(images, objects)
    print(table({f"{images} images of {objects} objects": wall, "processor": work}))
    threads, load = torch.get_num_threads(), os.getloadavg()[0]
    print(f"\n{asked.model}, {threads} threads of PyTorch, {processor()}, {os.cpu_count()} cores, load {load:.1f}")


if __name__ == "__main__":
    main()
