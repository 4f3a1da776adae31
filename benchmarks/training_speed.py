"""Training speed in samples per second, and time by part: data, simulated clicks, forward, loss, backward, update.

    python benchmarks/training_speed.py                                     procedural images, crops of 320x480, CPU
    python benchmarks/training_speed.py --dataset FOLDER --batch 32 --precision bf16 --device cuda --workers 16

Parts are timed sequentially in one process. "loop" is the complete training through the Trainer, with data loading in
workers: if loop / (clicks + forward + loss + backward + update) is well above 1, data loading is the bottleneck.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import torch

from hrseg_cli.recipe import recipe_of
from hrseg_cli.training import fit, step
from hrseg_cli.training.feed import Feed, Loader, Order, training_images

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="procedural:count=12,size=640,seed=3")
    parser.add_argument("--model", default="h18s")
    parser.add_argument("--crop", default="320x480")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--precision", default="fp32", choices=PRECISIONS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        print(json.dumps(measure(options, folder), indent=1))
    finally:
        shutil.rmtree(folder)


def measure(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    recipe = recipe_of(
        {
            "name": "speed",
            "model": {"name": options.model},
            "data": {
                "parts": [{"dataset": options.dataset}],
                "crop": [int(side) for side in options.crop.split("x")],
                "epoch": options.steps * options.batch,
                "longest": 1024,
            },
            "batch": options.batch,
            "epochs": 2,
            "precision": options.precision,
            "channels_last": True,
        },
        "benchmark",
    )
    feed = Feed(training_images(recipe.data, None, folder), recipe)
    parts = timed_parts(recipe, feed, options)
    loop = timed_loop(recipe, feed, options, folder)
    model_side = sum(value for name, value in parts.items() if name != "data")
    return {
        "asked": vars(options),
        "threads": torch.get_num_threads(),
        "ms_per_sample": {name: round(1000 * value, 1) for name, value in parts.items()},
        "loop_ms_per_sample": round(1000 * loop, 1),
        "samples_per_second": round(1 / loop, 2),
        "loop_over_model_side": round(loop / model_side, 3),
    }


def timed_parts(recipe, feed, options) -> dict[str, float]:
    """Seconds per sample of each part: medians over batches, or means for the clicks."""
    model, _ = fit.start_model(recipe)
    module = step.ClickTraining(model, recipe).to(options.device)
    module.to(memory_format=torch.channels_last)
    optimizer = step.make_optimizer(model, recipe.optim)
    seen = defaultdict(list)
    order = Order(recipe, 0, 1)
    batches = iter(Loader(feed, order, 0))
    for _ in range(min(len(order), 8)):
        clock = Clock(options.device)
        batch = next(batches)
        seen["data"].append(clock.lap())
        batch = {name: value.to(options.device) for name, value in batch.items()}
        with torch.autocast(options.device, PRECISIONS[options.precision], enabled=options.precision != "fp32"):
            current = step.begun(batch, recipe.channels_last)
            module.interact(current, int(batch["turn"][1]))
            seen["clicks"].append(clock.lap())
            step.train_mode(model, recipe.batch)
            out = module.predict(current)
            seen["forward"].append(clock.lap())
        loss = module.loss(out, batch)[0]
        seen["loss"].append(clock.lap())
        loss.backward()
        seen["backward"].append(clock.lap())
        optimizer.step()
        optimizer.zero_grad()
        seen["update"].append(clock.lap())
    # The number of click rounds varies between batches, so clicks need the mean. The first batch is a warm-up.
    mean = {name: statistics.fmean if name == "clicks" else statistics.median for name in seen}
    return {name: mean[name](values[1:]) / recipe.batch for name, values in seen.items()}


def timed_loop(recipe, feed, options, folder: Path) -> float:
    """Seconds per sample of the second epoch through the Trainer."""
    times: list[float] = []
    keep = fit.Checkpointing.on_train_batch_end

    def stamp(self, trainer, *rest):
        times.append(time.perf_counter())
        keep(self, trainer, *rest)

    fit.Checkpointing.on_train_batch_end = stamp
    model, _ = fit.start_model(recipe)
    machine = fit.Machine(options.device, workers=options.workers, loggers=(), progress=False)
    fit.fit(model, recipe, feed, [], folder, machine, {})
    second = times[options.steps :]
    return (second[-1] - second[0]) / (len(second) - 1) / recipe.batch


class Clock:
    """Seconds since the last lap, including pending work of the GPU."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.then = time.perf_counter()

    def lap(self) -> float:
        if self.device != "cpu":
            torch.cuda.synchronize()
        now = time.perf_counter()
        passed, self.then = now - self.then, now
        return passed


if __name__ == "__main__":
    main()
