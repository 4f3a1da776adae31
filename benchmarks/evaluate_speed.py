"""Speed of evaluation compared with a plain implementation of RITM's evaluator, on the same objects.

    python benchmarks/evaluate_speed.py                               20 drawn objects of 1024 x 1024, fp32
    python benchmarks/evaluate_speed.py --precision fp32 bf16         hrseg in both precisions, one yardstick
    python benchmarks/evaluate_speed.py --size 2048x3072 --count 4 --max-clicks 5 --weights best.safetensors

The yardstick (:mod:`yardstick`) runs in one process with --threads threads, hrseg in --workers processes of one thread
each, like 'hrseg evaluate'. They alternate, so that each has the machine to itself.
Prints one JSON object. For each: noc, the mean number of clicks (--max-clicks for objects that did not reach --until),
wall and CPU seconds, and peak memory of the largest process in MiB (including imports and the image). For hrseg also:
the ratios of wall and CPU time (yardstick over hrseg); identical, the number of objects with identical clicks; and
more_clicks, the mean difference in clicks from the yardstick with its 95 % bootstrap interval over objects.
Without --weights the network uses the untrained weights of tests/reference.py, so that all objects take --max-clicks.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import torch

sys.path += [str(Path(__file__).parent), str(Path(__file__).parent.parent / "tests")]

from reference import deterministic_weights
from yardstick import PlainNetwork, count_clicks

from hrseg_cli import catalog
from hrseg_cli.checkpoints.formats import save_checkpoint
from hrseg_cli.checkpoints.resolve import load_model
from hrseg_cli.data.procedural import draw
from hrseg_cli.engine.benchmark import peak_memory
from hrseg_cli.engine.fast import fast
from hrseg_cli.engine.simulate import Plan, simulate
from hrseg_cli.interaction import Sample
from hrseg_cli.metrics.noc import interval
from hrseg_cli.recipe import load_protocol

YARDSTICK = "yardstick"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="1024x1024", help="rows x columns")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2, help="threads of the yardstick")
    parser.add_argument("--precision", nargs="+", default=["fp32"], choices=["fp32", "bf16"])
    parser.add_argument("--max-clicks", type=int, default=20)
    parser.add_argument("--until", type=float, default=0.9)
    parser.add_argument("--model", default="h18s")
    parser.add_argument("--weights", help="path of a checkpoint")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(options, Path(folder)), indent=1))


def measure(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    weights = options.weights
    if not weights:
        model = catalog.resolve("model", options.model)()
        model.load_state_dict(deterministic_weights(model.state_dict()))
        weights = str(folder / "recorded.safetensors")
        save_checkpoint(model, Path(weights), {})
    rows, cols = (int(side) for side in options.size.split("x"))
    for number in range(options.count):
        paint(folder, number, rows, cols)
    spawn = get_context("spawn")
    pools = {YARDSTICK: (ProcessPoolExecutor(1, spawn, start_yardstick, (weights, options)), 1)}
    for precision in options.precision:
        pool = ProcessPoolExecutor(options.workers, spawn, start_hrseg, (weights, options, precision))
        pools[precision] = (pool, options.workers)
    found: dict[str, Found] = {name: [] for name in pools}
    wall = dict.fromkeys(pools, 0.0)
    for pool, workers in pools.values():  # start all processes before timing
        list(pool.map(time.sleep, [1] * workers))
    group = 5 * options.workers  # large, as hrseg's workers wait for each other at the end of each group
    for first in range(0, options.count, group):
        objects = range(first, min(first + group, options.count))
        for name, (pool, _) in pools.items():
            started = time.perf_counter()
            found[name] += pool.map(partial(work, folder), objects)
            wall[name] += time.perf_counter() - started
    for pool, _ in pools.values():
        pool.shutdown()
    return {
        "asked": vars(options),
        "objects": options.count,
        YARDSTICK: row(found[YARDSTICK], wall[YARDSTICK]),
        **{name: compared(found[name], wall[name], found[YARDSTICK], wall[YARDSTICK]) for name in options.precision},
    }


Found = list[tuple[list[object], float, int]]


def row(found: Found, wall: float) -> dict[str, object]:
    return {
        "noc": round(float(np.mean([len(clicks) for clicks, _, _ in found])), 3),
        "wall_seconds": round(wall, 2),
        "cpu_seconds": round(sum(cpu for _, cpu, _ in found), 2),
        "peak_mib": max(peak for _, _, peak in found),
    }


def compared(found: Found, wall: float, plain: Found, plain_wall: float) -> dict[str, object]:
    pairs = list(zip(found, plain, strict=True))
    more = np.array([float(len(a[0]) - len(b[0])) for a, b in pairs])
    return {
        **row(found, wall),
        "wall_ratio": round(plain_wall / wall, 2),
        "cpu_ratio": round(sum(one[1] for one in plain) / sum(one[1] for one in found), 2),
        "identical": sum(a[0] == b[0] for a, b in pairs),
        "more_clicks": [round(float(value), 3) for value in (more.mean(), *interval(more, np.ones(len(more))))],
    }


def start_yardstick(weights: str, options: argparse.Namespace) -> None:
    global clicks_on
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    loaded, _ = load_model(weights)
    network = PlainNetwork(**loaded.config).eval().requires_grad_(False)
    network.load_state_dict(loaded.state_dict())
    clicks_on = lambda sample: count_clicks(network, sample, options.max_clicks, options.until)[0]  # noqa: E731


def start_hrseg(weights: str, options: argparse.Namespace, precision: str) -> None:
    global clicks_on
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    network = fast(load_model(weights)[0], precision)
    plan = Plan(load_protocol("ritm"), {"iou": options.until}, options.max_clicks)
    clicks_on = lambda sample: list(simulate(sample, network, plan)[0].clicks)  # noqa: E731


def work(folder: Path, number: int) -> tuple[list[object], float, int]:
    """Clicks, CPU seconds, and the process's peak memory so far in MiB."""
    sample = read(folder, number)
    started = time.process_time()
    clicks = clicks_on(sample)
    return clicks, time.process_time() - started, peak_memory() >> 20


def paint(folder: Path, number: int, rows: int, cols: int) -> None:
    """Write a drawn object of exactly this size to files. Drawing needs more memory than clicking, so it is not done
    in the measured processes."""
    image, coverage = draw(1, number, max(rows, cols))
    for name, drawn in (("image", image[:, :, ::-1]), ("truth", coverage)):
        cv2.imwrite(str(folder / f"{number}-{name}.png"), cv2.resize(drawn, (cols, rows), interpolation=cv2.INTER_AREA))


def read(folder: Path, number: int) -> Sample:
    image = cv2.cvtColor(cv2.imread(str(folder / f"{number}-image.png")), cv2.COLOR_BGR2RGB)
    truth = np.asarray(cv2.imread(str(folder / f"{number}-truth.png"), cv2.IMREAD_GRAYSCALE))
    return Sample(str(number), "drawn", image, (truth > 127).astype(np.int8))


if __name__ == "__main__":
    main()
