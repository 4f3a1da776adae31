"""How exactly a dataset can measure: IoU and Boundary IoU of the truth of each object, dilated by one pixel.

    python benchmarks/dilation.py DATASET [DATASET ...] [--limit N] [--root FOLDER]

Where the truth itself, a pixel too large, stays below the IoU that clicks are counted to, its masks are too thin for
that, and clicks count the annotator's taste. Prints a row per dataset: objects, longer sides of the pictures in pixels,
means over objects, and the share of objects below 0.9.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np

from hrseg_cli.data.datasets import open_dataset
from hrseg_cli.data.samples import load
from hrseg_cli.metrics.masks import boundary_iou, iou

HEAD = "set", "objects", "longer side", "IoU", "below .9", "Boundary IoU", "below .9"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", nargs="+")
    parser.add_argument("--limit", type=int, help="first objects of each dataset")
    parser.add_argument("--root", type=Path)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    print(f"| {' | '.join(HEAD)} |")
    print("|" + "---|" * len(HEAD))
    for dataset in options.dataset:
        sides, scores = [], []
        for ref in open_dataset(dataset, root=options.root, limit=options.limit):
            truth = load(ref).truth
            sides.append(max(truth.shape))
            scores.append(dilated(truth))
        means, low = np.mean(scores, 0), 100 * np.mean(np.array(scores) < 0.9, 0)
        numbers = " | ".join(f"{mean:.3f} | {share:.0f} %" for mean, share in zip(means, low, strict=True))
        print(f"| {dataset} | {len(scores)} | {min(sides)} to {max(sides)} | {numbers} |", flush=True)


def dilated(truth: np.ndarray) -> tuple[float, float]:
    """IoU and Boundary IoU of the object, dilated by one pixel in all eight directions. truth: int8, (H, W)."""
    larger = cv2.dilate((truth == 1).astype(np.uint8), np.ones((3, 3), np.uint8))
    return iou(larger, truth), boundary_iou(larger, truth)


if __name__ == "__main__":
    main()
