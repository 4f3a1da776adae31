"""What the models of the zoo cost: parameters, multiply-adds, time and memory.

    python benchmarks/zoo_cost.py [NAME ...] [--backbone NAME] [--threads 2] [--clicks 5] [--training] [--out FILE.csv]

A table in Markdown, one row a model, with its default options: millions of parameters; 10^9 multiply-adds of a
forward pass at 416 x 416; median milliseconds of a click after the first one under the protocol `fast`, of the whole
click and of the network alone; peak memory of the process in MB. --backbone: for the networks that take one.
--training: also the peak memory of a training step on 8 crops of 224 x 224. --out: the table as CSV too. Weights are
random where none come with hrseg: cost does not depend on them. Each number of memory is of a process of its own.
Times on a busy machine mean nothing; compare rows of one call.
"""

from __future__ import annotations

import argparse
import csv
import inspect
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from hrseg_cli import catalog
from hrseg_cli.checkpoints.formats import save_checkpoint
from hrseg_cli.engine.benchmark import Case, measure_apart, peak_memory
from hrseg_cli.engine.cost import gmac
from hrseg_cli.models.base import InteractiveModel
from hrseg_cli.recipe import load_protocol

ZOO = [name for name, target in catalog.MODELS.items() if ".zoo." in target]
CLASSICAL = [name for name, target in catalog.MODELS.items() if ".classical:" in target or ".grabcut:" in target]


def build(name: str, backbone: str | None) -> InteractiveModel:
    """The network of that name, with another backbone where it takes one."""
    make = catalog.resolve("model", name)
    takes = backbone and "backbone" in inspect.signature(make).parameters
    model: InteractiveModel = make(**({"backbone": backbone} if takes else {}))
    return model


def training_memory(name: str, backbone: str | None) -> float:
    """Peak MB of a process that takes one training step."""
    torch.set_num_threads(1)
    model = build(name, backbone).train()
    outputs = model(torch.rand(8, 4, 224, 224), torch.full((8, 2, 3), 50.0))
    torch.stack([value.square().mean() for value in outputs.values()]).sum().backward()
    return (peak_memory() or 0) / 1e6


def row(name: str, options: argparse.Namespace, folder: Path) -> list[str]:
    model = build(name, options.backbone)
    path = name
    if name in ZOO:
        path = str(folder / "model.safetensors")
        save_checkpoint(model, Path(path), {})
    case = Case(path, load_protocol("fast"), (480, 640), "cpu", ("iou",), 2, options.clicks, options.threads)
    found: dict[str, Any] = measure_apart(case)
    later = found["later"]
    cells = [
        name,
        "" if model.weightless else f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.2f}",
        "" if model.weightless else f"{gmac(model, (416, 416)):.2f}",
        f"{1000 * later['total']:.0f}",
        f"{1000 * (later['encode'] + later['network']):.0f}",
        str(found["memory_mb"]),
    ]
    if options.training and name in ZOO:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            cells.append(f"{pool.submit(training_memory, name, options.backbone).result():.0f}")
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="networks; all of the zoo by default")
    parser.add_argument("--backbone")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clicks", type=int, default=5)
    parser.add_argument("--training", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    heads = ["model", "parameters (M)", "GMAC at 416", "ms a click", "ms network", "memory (MB)"]
    heads += ["memory of training (MB)"] if options.training else []
    print("| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|", sep="\n", flush=True)
    rows = [heads]
    for name in options.names or [*ZOO, *CLASSICAL, "clicknet_s", "clicknet_m"]:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(row(name, options, Path(folder)))
        print("| " + " | ".join([*rows[-1], *[""] * (len(heads) - len(rows[-1]))]) + " |", flush=True)
    if options.out:
        with options.out.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)


if __name__ == "__main__":
    main()
