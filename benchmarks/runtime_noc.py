"""Speed and NoC of each runtime and precision, compared with PyTorch in fp32.

    python benchmarks/runtime_noc.py MODEL --dataset DATASET ... --calibrate DATASET ... [--limit N] [--out FOLDER]

Times are of one forward pass at 400 x 400, relative to PyTorch: CPU time with one thread, wall time with two. They are
medians of passes that alternate between runtimes, so that load on the machine affects all alike. NoC@90 is the mean
over the same objects of all datasets, --limit of each. "vs torch" is the mean difference per object, with its 95 %
bootstrap interval. The calibration objects of the 8-bit model must not be among the evaluated ones.

Clicks of each runtime are saved to --out and reused.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from hrseg_cli.checkpoints.resolve import load_model
from hrseg_cli.data.datasets import open_datasets
from hrseg_cli.engine.quantize import quantize
from hrseg_cli.engine.runtimes import ModelChoice, open_model
from hrseg_cli.engine.simulate import Plan, run
from hrseg_cli.interaction import Trace
from hrseg_cli.metrics.noc import interval, noc
from hrseg_cli.models.base import InteractiveModel
from hrseg_cli.recipe import load_protocol
from hrseg_cli.runs import read_traces, write_atomically

ROUNDS, MAX_CLICKS = 9, 20
TARGETS = {"iou": 0.9, "biou": 0.9}
LABELS = {"iou": "IoU", "biou": "Boundary IoU"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--dataset", action="append", required=True)
    parser.add_argument("--calibrate", action="append", required=True)
    parser.add_argument("--calibrate-count", type=int, default=24)
    parser.add_argument("--limit", type=int, help="number of objects per dataset, evenly spread [all]")
    parser.add_argument("--root", type=Path)
    parser.add_argument("--protocol", default="fast")
    parser.add_argument("--runtime", action="append", help="rows of the table, torch first [all]")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/runtime_noc"))
    options = parser.parse_args()

    options.out.mkdir(parents=True, exist_ok=True)
    int8 = options.out / "int8.onnx"
    loaded, provenance = load_model(options.model)
    if not int8.is_file():
        refs = open_datasets(options.calibrate, root=options.root).refs
        print(json.dumps(quantize(loaded, int8, provenance, refs, options.calibrate_count)["int8"]))
    ways = {
        "torch": (options.model, "torch", "fp32"),
        "torch bf16": (options.model, "torch", "bf16"),
        "onnxruntime": (options.model, "onnxruntime", "fp32"),
        "openvino": (options.model, "openvino", "fp32"),
        "openvino bf16": (options.model, "openvino-bf16", "fp32"),
        "onnxruntime int8": (str(int8), "onnxruntime", "fp32"),
        "openvino int8": (str(int8), "openvino", "fp32"),
    }
    if "bf16" not in loaded.precisions or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        del ways["torch bf16"]
    ways = {name: way for name, way in ways.items() if name in (options.runtime or ways)}
    one = speed(ways, 1, time.process_time)
    two = speed(ways, 2, time.perf_counter)
    print(
        f"torch: {1000 * one['torch']:.0f} ms CPU time with 1 thread, {1000 * two['torch']:.0f} ms with 2 threads",
        flush=True,
    )
    refs = []
    for dataset in options.dataset:
        found = open_datasets([dataset], root=options.root).refs
        count = min(options.limit or len(found), len(found))
        refs += [found[number * len(found) // count] for number in range(count)]
    heads = [f"NoC@90, {LABELS[metric]} | vs torch" for metric in TARGETS]
    lines = [
        f"| runtime | relative CPU time, 1 thread | relative time, 2 threads | {' | '.join(heads)} |",
        "|" + "---|" * (3 + 2 * len(heads)),
    ]
    base: list[Trace] = []
    for name, (spec, runtime, precision) in ways.items():
        kept = options.out / f"{name.replace(' ', '-')}.jsonl"
        if not kept.is_file():
            plan = Plan(load_protocol(options.protocol), TARGETS, MAX_CLICKS)
            outcomes = dict(run(plan, ModelChoice(spec, runtime, precision=precision), refs, options.workers))
            write_atomically(kept, "".join(outcomes[index].trace.to_json() + "\n" for index in range(len(refs))))
        traces = list(read_traces(kept))
        if [(trace.dataset, trace.id) for trace in traces] != [(ref.dataset, ref.id) for ref in refs]:
            parser.error(f"{kept}: clicks on other objects; choose another --out")
        base = base or traces
        cells = [f"{one[name] / one['torch']:.2f}", f"{two[name] / two['torch']:.2f}"]
        for metric in TARGETS:
            clicks = counted(traces, metric)
            cells += [f"{clicks.mean():.2f}", gap(clicks - counted(base, metric))]
        lines.append(f"| {name} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    table = "\n".join(
        [*lines, "", f"{len(refs)} objects of {', '.join(options.dataset)}; at most {MAX_CLICKS} clicks."]
    )
    write_atomically(options.out / "table.md", table + "\n")
    print(f"\n{table}")


def counted(traces: list[Trace], metric: str) -> np.ndarray:
    return np.array([noc(trace.scores[metric], TARGETS[metric], MAX_CLICKS) for trace in traces])


def gap(differences: np.ndarray) -> str:
    """Mean and its 95 % bootstrap interval."""
    low, high = interval(differences, np.ones(len(differences)))
    return f"{differences.mean():+.2f} ({low:+.2f}, {high:+.2f})"


def speed(ways: dict[str, tuple[str, str, str]], threads: int, clock: Callable[[], float]) -> dict[str, float]:
    """Median seconds of a forward pass by ``clock``, alternating between models."""
    torch.set_num_threads(threads)
    models: dict[str, InteractiveModel] = {
        name: open_model(spec, runtime, precision=precision)[0] for name, (spec, runtime, precision) in ways.items()
    }
    random = torch.Generator().manual_seed(0)
    image = torch.rand(1, 4, 400, 400, generator=random)
    points = torch.tensor([[[200.0, 180, 0], [150, 220, 1], [10, 20, 2], [-1, -1, -1]]]).double()
    spent: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for number in range(ROUNDS + 1):
            for name, model in models.items():
                started = clock()
                model(image, points)
                if number:  # the first pass is a warm-up
                    spent[name].append(clock() - started)
    return {name: statistics.median(values) for name, values in spent.items()}


if __name__ == "__main__":
    main()
