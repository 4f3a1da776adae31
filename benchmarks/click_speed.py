"""CPU time of next click, Boundary IoU and decoding, compared with plain implementations on whole images.

    python benchmarks/click_speed.py                           at 1024x1024 and 2048x3072, one thread, JSON on stdout
    python benchmarks/click_speed.py --rounds 9

Both implementations alternate on the same masks in one process and must agree. Reported is the minimum CPU time over
the rounds, since other load on the machine affects both. The plain implementations are in tests/plain.py.

rims         errors along the boundary of a large object, a pixel or two thick, as late in a session
rims, blobs  the same with six round errors of 8 to 40 pixels, as after most clicks
half         half of the object is missing
empty        an empty prediction, as before the first click
full         everything is predicted as object: the worst case, one huge region with a hole
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import plain

from hrseg_cli.clicks.annotator import next_click
from hrseg_cli.metrics.masks import BoundaryIoU

SIZES = ((1024, 1024), (2048, 3072))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    sizes = {f"{height}x{width}": measure(height, width, options.rounds) for height, width in SIZES}
    print(json.dumps({"rounds": options.rounds, "opencv": cv2.__version__, **sizes}, indent=1))


def measure(height: int, width: int, rounds: int) -> dict[str, object]:
    truth, masks = scenes(height, width)
    found: dict[str, object] = {}
    for name, mask in masks.items():
        assert next_click(truth, mask) == plain.next_click(truth, mask)
        found[f"next click, {name}"] = in_turn(
            lambda mask=mask: next_click(truth, mask), lambda mask=mask: plain.next_click(truth, mask), rounds
        )
    after = masks["rims, blobs"]
    for name, before in (("one blob changed", changed(after)), ("all changed", masks["half"])):
        metric = BoundaryIoU(truth)
        assert [metric(before), metric(after)] == [plain.boundary_iou(mask, truth) for mask in (before, after)]
        # Two changes, there and back; steps=2 reports the time of one.
        found[f"Boundary IoU, {name}"] = in_turn(
            lambda before=before, metric=metric: (metric(before), metric(after)),
            lambda before=before: [plain.boundary_iou(mask, truth) for mask in (before, after)],
            rounds,
            steps=2,
        )
    jpeg, png = (
        cv2.imencode(ending, image)[1]
        for ending, image in ((".jpg", photo(height, width)), (".png", 255 * (truth == 1).astype(np.uint8)))
    )
    found["decode JPEG, ms"] = least(lambda: cv2.imdecode(jpeg, cv2.IMREAD_COLOR), rounds)
    found["decode PNG mask, ms"] = least(lambda: cv2.imdecode(png, cv2.IMREAD_GRAYSCALE), rounds)
    return found


def in_turn(quick: Callable[[], object], slow: Callable[[], object], rounds: int, steps: int = 1) -> dict[str, float]:
    times = [(cpu(quick), cpu(slow)) for _ in range(rounds)]
    ours, plainly = (1000 * min(column) / steps for column in zip(*times, strict=True))
    return {"ms": round(ours, 2), "plain_ms": round(plainly, 1), "ratio": round(ours / plainly, 4)}


def least(call: Callable[[], object], rounds: int) -> float:
    return round(1000 * min(cpu(call) for _ in range(rounds)), 1)


def cpu(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def scenes(height: int, width: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The ground truth, a large ellipse, and predictions for it by name."""
    rng = np.random.default_rng(0)
    y, x = np.ogrid[:height, :width]

    def ellipse(row: float, col: float, size: float) -> np.ndarray:
        return ((y - row) / height) ** 2 + ((x - col) / width) ** 2 < size**2

    truth = ellipse(height / 2, width / 2, 0.25).astype(np.int8)
    rims = ellipse(height / 2 + 2, width / 2 - 1, 0.2502)
    blobs = rims.copy()
    for _ in range(6):
        row, col = rng.uniform(0.3, 0.7, 2) * (height, width)
        blobs ^= (y - row) ** 2 + (x - col) ** 2 < rng.uniform(8, 40) ** 2
    half = rims & (x < width / 2)
    nothing = np.zeros(truth.shape, bool)
    return truth, {"rims": rims, "rims, blobs": blobs, "half": half, "empty": nothing, "full": ~nothing}


def changed(mask: np.ndarray) -> np.ndarray:
    """The mask with one more blob inside the object."""
    height, width = mask.shape
    y, x = np.ogrid[:height, :width]
    return mask ^ ((y - height * 0.42) ** 2 + (x - width * 0.55) ** 2 < 40**2)


def photo(height: int, width: int) -> np.ndarray:
    """A smooth image with a little noise, which compresses like a photograph."""
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 255, (height // 64, width // 64, 3), np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(image + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8)


if __name__ == "__main__":
    main()
