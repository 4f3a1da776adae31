"""How much sooner hrseg counts the same clicks than RITM's way does: both in one run, on the same objects, in turns.

    python benchmarks/evaluate_speed.py                               20 drawn objects of 1024 x 1024, single precision
    python benchmarks/evaluate_speed.py --precision bf16
    python benchmarks/evaluate_speed.py --size 2048x3072 --count 4 --max-clicks 5 --weights best.safetensors

The yardstick (:mod:`yardstick`) works in one process with --threads threads, hrseg in --workers processes of one thread
each, as 'hrseg evaluate' does; each has the machine for itself while it works. Prints one JSON object: wall and CPU
seconds, their ratios (yardstick over hrseg), how many objects got identical clicks, and the peak memory of the largest
process of each in MiB (imports and the picture included). Without --weights the network has the weights of the recorded
answers (tests/reference.py): nothing learnt, so clicks go on to --max-clicks.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import torch

sys.path += [str(Path(__file__).parent), str(Path(__file__).parent.parent / "tests")]

from reference import deterministic_weights
from yardstick import PlainNetwork, count_clicks

from hrseg_cli import catalog
from hrseg_cli.data.procedural import draw
from hrseg_cli.engine.checkpoint import load_model, save_checkpoint
from hrseg_cli.engine.fast import fast
from hrseg_cli.engine.simulate import Plan, simulate
from hrseg_cli.interaction import Sample
from hrseg_cli.recipe import load_protocol


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="1024x1024", help="rows x columns")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2, help="of the yardstick")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--max-clicks", type=int, default=20)
    parser.add_argument("--until", type=float, default=0.9)
    parser.add_argument("--model", default="h18s")
    parser.add_argument("--weights", help="a checkpoint")
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
    spawn = get_context("spawn")
    plain = ProcessPoolExecutor(1, spawn, start_plain, (weights, options))
    quick = ProcessPoolExecutor(options.workers, spawn, start_quick, (weights, options))
    with plain, quick:
        for pool, workers in ((plain, 1), (quick, options.workers)):  # every process is up before the clock runs
            list(pool.map(time.sleep, [1] * workers))
        found = {"yardstick": [], "hrseg": []}
        wall = dict.fromkeys(found, 0.0)
        group = 2 * options.workers  # hrseg's workers must not wait for each other
        for first in range(0, options.count, group):
            objects = range(first, min(first + group, options.count))
            for name, pool in (("yardstick", plain), ("hrseg", quick)):
                started = time.perf_counter()
                found[name] += pool.map(work, objects)
                wall[name] += time.perf_counter() - started
    cpu = {name: sum(one[1] for one in ones) for name, ones in found.items()}
    pairs = list(zip(found["yardstick"], found["hrseg"], strict=True))
    return {
        "asked": vars(options),
        "clicks": sum(len(one[0]) for one in found["yardstick"]),
        "wall_seconds": {name: round(value, 2) for name, value in wall.items()},
        "cpu_seconds": {name: round(value, 2) for name, value in cpu.items()},
        "wall_ratio": round(wall["yardstick"] / wall["hrseg"], 2),
        "cpu_ratio": round(cpu["yardstick"] / cpu["hrseg"], 2),
        "identical": sum(a[0] == b[0] for a, b in pairs),
        "objects": len(pairs),
        "peak_mib": {name: max(one[2] for one in ones) for name, ones in found.items()},
    }


def start_plain(weights: str, options: argparse.Namespace) -> None:
    global answer
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    loaded, _ = load_model(weights)
    network = PlainNetwork(**loaded.config).eval().requires_grad_(False)
    network.load_state_dict(loaded.state_dict())
    answer = lambda sample: count_clicks(network, sample, options.max_clicks, options.until)[0]  # noqa: E731
    picture.size = options.size


def start_quick(weights: str, options: argparse.Namespace) -> None:
    global answer
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    network = fast(load_model(weights)[0], options.precision)
    plan = Plan("", load_protocol("ritm"), {"iou": options.until}, options.max_clicks)
    answer = lambda sample: list(simulate(sample, network, plan)[0].clicks)  # noqa: E731
    picture.size = options.size


def work(number: int) -> tuple[list[object], float, int]:
    """Clicks, CPU seconds, and this process' peak memory so far."""
    sample = picture(number)
    started = time.process_time()
    clicks = answer(sample)
    return clicks, time.process_time() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def picture(number: int) -> Sample:
    """A drawn object, resized to exactly the asked size."""
    rows, cols = (int(side) for side in picture.size.split("x"))
    image, coverage = draw(1, number, max(rows, cols))
    image = cv2.resize(image, (cols, rows), interpolation=cv2.INTER_AREA)
    truth = cv2.resize(coverage, (cols, rows), interpolation=cv2.INTER_AREA) > 127
    return Sample(str(number), "drawn", image, truth.astype(np.int8))


if __name__ == "__main__":
    main()
