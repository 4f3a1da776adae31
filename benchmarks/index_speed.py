"""Speed of building and opening an index: ``python benchmarks/index_speed.py [--images 10000] [--lines 1500000]``.

Writes synthetic files to a temporary folder and prints one JSON line: images indexed per second; seconds to open an
index of many lines (cold: without the table of line starts; warm: as prepare-data leaves it); microseconds to read one
object at random; and seconds to draw the order of an epoch.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from hrseg_cli.data.index import Index, build_index
from hrseg_cli.data.views import Images, epoch_order
from hrseg_cli.engine.benchmark import peak_memory

T = TypeVar("T")


def write_images(folder: Path, count: int) -> None:
    """Write ``count`` JPEGs of 128 x 96 pixels, each with a mask of one disc."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    rng = np.random.default_rng(0)
    row, col = np.mgrid[0:96, 0:128]
    for k in range(count):
        centre = rng.integers(20, 76, 2)
        disc = np.hypot(row - centre[0], col - centre[1]) < 15
        picture = np.stack([row + k % 64, col, 90 + 100 * disc], axis=2).astype(np.uint8)
        Image.fromarray(picture).save(folder / f"images/{k:06d}.jpg")
        Image.fromarray(disc.astype(np.uint8) * 255).save(folder / f"masks/{k:06d}.png")


def write_index(path: Path, lines: int, objects: int = 15) -> None:
    """Write an index like that of COCO+LVIS, with ``objects`` lines per image. The images themselves do not exist."""
    with path.open("w", encoding="utf-8") as file:
        file.write(json.dumps({"version": 1, "fingerprint": "", "incomplete": [], "name": "many"}) + "\n")
        for k in range(lines):
            image = f"{k // objects:012d}"
            record: dict[str, object] = {"id": f"{image}#{k % objects}", "image": f"train/images/{image}.jpg"}
            record |= {"mask": f"train/masks/{image}.pickle", "instance": k % objects, "height": 480, "width": 640}
            file.write(json.dumps(record | {"area": 5000 + k % 999, "void": 0, "rule": "layers"}) + "\n")


def timed(call: Callable[[], T]) -> tuple[float, T]:
    """Seconds and result of a call."""
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--lines", type=int, default=1_500_000)
    parser.add_argument("--workers", type=int)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder / "set", options.images)
        build, summary = timed(lambda: build_index(folder / "set", workers=options.workers))
        assert summary.objects == options.images
        path = folder / "index.jsonl"
        write_index(path, options.lines)
        cold, _ = timed(lambda: Index(path))
        before = peak_memory() or 0
        warm, index = timed(lambda: Index(path))
        assert len(index) == options.lines
        grouped, images = timed(lambda: Images(index))
        order, _ = timed(lambda: epoch_order([len(images)], 30_000, seed=0, epoch=0))
        some = np.random.default_rng(0).integers(0, options.lines, 2000)
        read, _ = timed(lambda: [index[int(k)] for k in some])
        after = peak_memory() or 0
        print(
            json.dumps(
                {
                    "images": options.images,
                    "build_seconds": round(build, 2),
                    "images_per_second": round(options.images / build),
                    "lines": options.lines,
                    "index_megabytes": round(path.stat().st_size / 1e6),
                    "open_cold_seconds": round(cold, 2),
                    "open_warm_seconds": round(warm, 4),
                    "group_by_image_seconds": round(grouped, 4),
                    "epoch_order_seconds": round(order, 4),
                    "read_one_microseconds": round(read / len(some) * 1e6, 1),
                    "peak_memory_growth_megabytes": round((after - before) / 2**20, 1),
                }
            )
        )


if __name__ == "__main__":
    main()
