"""What each runtime and precision costs and gives: seconds beside PyTorch's, and the clicks it takes, in one table.

    python benchmarks/runtime_noc.py MODEL --dataset DATASET --calibrate DATASET [--limit N] [--out FOLDER]

Seconds are CPU seconds of one answer at 400 x 400 with one thread, medians of answers that take turns, so that a noisy
machine slows all of them. NoC@90 is counted on the same objects, with 95 % bootstrap intervals over them. The objects
that the 8-bit scales are calibrated on must not be among those that are counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch

from hrseg_cli.commands.options import open_datasets
from hrseg_cli.engine.checkpoint import load_model
from hrseg_cli.engine.quantize import quantize
from hrseg_cli.engine.runtimes import open_model
from hrseg_cli.engine.simulate import Plan, run
from hrseg_cli.metrics.noc import summarise
from hrseg_cli.models.base import InteractiveModel
from hrseg_cli.recipe import load_protocol

ROUNDS, MAX_CLICKS = 9, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--dataset", action="append", required=True)
    parser.add_argument("--calibrate", action="append", required=True)
    parser.add_argument("--calibrate-count", type=int, default=24)
    parser.add_argument("--limit", type=int, help="only so many objects of each dataset, evenly spread")
    parser.add_argument("--root", type=Path)
    parser.add_argument("--protocol", default="photo")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/runtime_noc"))
    asked = parser.parse_args()
    torch.set_num_threads(1)

    asked.out.mkdir(parents=True, exist_ok=True)
    int8 = asked.out / "int8.onnx"
    if not int8.is_file():
        loaded, provenance = load_model(asked.model)
        refs = open_datasets(asked.calibrate, asked.root, False, "auto", None).refs
        print(json.dumps(quantize(loaded, int8, provenance, refs, asked.calibrate_count)["int8"]))
    ways = {
        "torch": (asked.model, "torch"),
        "onnxruntime": (asked.model, "onnxruntime"),
        "openvino": (asked.model, "openvino"),
        "openvino bf16": (asked.model, "openvino-bf16"),
        "onnxruntime int8": (str(int8), "onnxruntime"),
        "openvino int8": (str(int8), "openvino"),
    }
    seconds = speed({name: open_model(*way)[0] for name, way in ways.items()})
    refs = []
    for dataset in asked.dataset:
        found = open_datasets([dataset], asked.root, False, "auto", None).refs
        count = min(asked.limit or len(found), len(found))
        refs += [found[number * len(found) // count] for number in range(count)]
    lines = [
        f"| runtime | CPU s beside torch | NoC@90, IoU, n={len(refs)} | NoC@90, Boundary IoU |",
        "|---|---|---|---|",
    ]
    for name, (spec, runtime) in ways.items():
        protocol = load_protocol(asked.protocol)
        targets = {"iou": 0.9, "biou": 0.9}
        plan = Plan(spec, protocol, targets, MAX_CLICKS, runtime=runtime)
        found = sorted(run(plan, refs, asked.workers), key=lambda one: one[0])
        traces = [replace(outcome.trace, dataset="all") for _, outcome in found]
        (asked.out / f"{name.replace(' ', '-')}.jsonl").write_text("".join(trace.to_json() + "\n" for trace in traces))
        cells = []
        for metric in targets:
            row = next(r for r in summarise(traces, metric, [0.9], MAX_CLICKS, seed=0) if r.measure == "NoC@90")
            cells.append(f"{row.value:.2f} ({row.low:.2f}, {row.high:.2f})")
        lines.append(f"| {name} | {seconds[name] / seconds['torch']:.2f} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    (asked.out / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def speed(models: dict[str, InteractiveModel]) -> dict[str, float]:
    """Median CPU seconds of an answer, all models in turn."""
    random = torch.Generator().manual_seed(0)
    image = torch.rand(1, 4, 400, 400, generator=random)
    points = torch.tensor([[[200.0, 180, 0], [150, 220, 1], [10, 20, 2], [-1, -1, -1]]]).double()
    spent: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for number in range(ROUNDS + 1):
            for name, model in models.items():
                started = time.process_time()
                model(image, points)
                if number:  # the first one prepares itself
                    spent[name].append(time.process_time() - started)
    return {name: statistics.median(values) for name, values in spent.items()}


if __name__ == "__main__":
    main()
