"""Cost of a training step with each adapter, compared with full fine-tuning. Prints a JSON line and a Markdown table.

    python benchmarks/adapter_cost.py --size 640x960 --steps 3 --rounds 2

Random weights, one sample per step, one thread. Each variant runs in its own process, and each round runs all variants,
so that load on the machine affects all alike. Time is CPU time of the process: median over steps and rounds, without
each process's first step. Memory is the process's peak resident size, including Python and libraries.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

Variants = dict[str, tuple[str, dict[str, object]]]
CONVOLUTIONAL: Variants = {
    "full": ("full", {}),
    "lora, rank 4": ("lora", {"kind": "conv", "rank": 4}),
    "conv a": ("conv", {"design": "a"}),
    "conv a, skip": ("conv", {"design": "a", "skip": True}),
    "conv b_lite": ("conv", {"design": "b_lite"}),
    "conv b": ("conv", {"design": "b"}),
    "conv c": ("conv", {"design": "c"}),
    "bn": ("bn", {}),
    "head": ("head", {}),
    "bitfit": ("bitfit", {}),
}
TRANSFORMER: Variants = {
    "full": ("full", {}),
    "lora, rank 4": ("lora", {"kind": "conv", "rank": 4, "layers": ["q", "k", "v", "projection", "mlp"]}),
    "toast": ("toast", {"select": "clicks"}),
    "toast, passes: 1": ("toast", {"select": "clicks", "passes": 1}),
    "toast_lite": ("toast_lite", {"select": "clicks", "rank": 4}),
    "head": ("head", {}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="h18s")
    parser.add_argument("--size", default="640x960")
    parser.add_argument("--steps", type=int, default=3, help="timed steps per process")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--variant", help=argparse.SUPPRESS)  # for the child processes
    options = parser.parse_args()
    variants = TRANSFORMER if options.model.startswith("simpleclick") else CONVOLUTIONAL
    if options.variant:
        print(json.dumps(measure(options, *variants[options.variant])))
        return
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    for _ in range(options.rounds):
        for name, found in seen.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--variant", name]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
            found.append(json.loads(done.stdout))
    rows = {name: summary(found) for name, found in seen.items()}
    print(json.dumps({"asked": vars(options), "rows": rows}))
    print()
    print("| adapter | ms per step | relative to full | peak MB | parameters | file, bytes |")
    print("|---|---|---|---|---|---|")
    for name, row in rows.items():
        ratio = row["ms"] / rows["full"]["ms"]
        numbers = f"{row['ms']:,.0f} | {ratio:.2f} | {row['mb']:,.0f} | {row['trained']:,.0f} | {row['bytes']:,.0f}"
        print(f"| {name} | {numbers} |")


def summary(found: list[dict[str, float]]) -> dict[str, float]:
    """Medians over rounds."""
    return {key: statistics.median(one[key] for one in found) for key in found[0]}


def measure(options: argparse.Namespace, name: str, settings: dict[str, object]) -> dict[str, float]:
    """Median CPU ms per step, peak MB, number of trained parameters, and size of the saved file of one adapter."""
    import torch

    from hrseg_cli import catalog
    from hrseg_cli.checkpoints.adapters import attach, save_adapter
    from hrseg_cli.engine.benchmark import peak_memory
    from hrseg_cli.losses import bce, normalized_focal
    from hrseg_cli.recipe import Optim
    from hrseg_cli.training import step

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = attach(catalog.resolve("model", options.model)(), name, dict(settings))
    height, width = (int(side) for side in options.size.split("x"))
    image = torch.rand(1, 4, height, width).contiguous(memory_format=torch.channels_last)
    model.to(memory_format=torch.channels_last)
    points = torch.full((1, 48, 3), -1.0)
    points[0, 0] = torch.tensor([height / 2, width / 2, 0])
    truth = torch.zeros(1, 1, height, width)
    truth[..., height // 4 : -height // 4, width // 4 : -width // 4] = 1
    optimizer = step.make_optimizer(model, Optim(name="adamw"))
    times = []
    for _ in range(options.steps + 1):
        started = time.process_time()
        step.train_mode(model, 1)
        out = model(image, points)
        loss = normalized_focal(out["logits"], truth).mean()
        if "aux" in out:
            loss = loss + 0.4 * bce(out["aux"], truth).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.process_time() - started)
    peak = peak_memory() / 2**20
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapter.safetensors"
        save_adapter(model, path, name, dict(settings), "", {})
        size = path.stat().st_size
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return {"ms": 1000 * statistics.median(times[1:]), "mb": peak, "trained": trained, "bytes": size}


if __name__ == "__main__":
    main()
