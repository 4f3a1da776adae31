"""Where the CPU time of a click goes, and how near the network is to what this processor can compute.

    python benchmarks/click_profile.py                          h18s, protocol ritm, 480x640, one thread, JSON on stdout
    python benchmarks/click_profile.py --model h18 --protocol fast --size 1024x1024

CPU seconds of one thread. Clicks alternate with the processor's limit: products of matrices, and 3x3 convolutions, in
fp32 and in cache, for a third of a click's arithmetic each; the better rate is the limit. Reported are the quickest
click and the best rates, because other load on the machine slows all of them; compare only numbers of one call.
``of_limit`` is the time that the network's multiply-adds would take at the limit, as a share of its time. For models
that see the clicks from the first layer on: others encode a crop once, and are credited with more than they do.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hrseg_cli.checkpoints.resolve import load_model
from hrseg_cli.clicks.annotator import next_click
from hrseg_cli.data import procedural
from hrseg_cli.engine.cost import gmac
from hrseg_cli.engine.devices import reproducible
from hrseg_cli.engine.runtimes import open_model
from hrseg_cli.engine.session import Session
from hrseg_cli.interaction import Click
from hrseg_cli.recipe import load_protocol


@reproducible()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="h18s")
    parser.add_argument("--protocol", default="ritm")
    parser.add_argument("--size", default="480x640")
    parser.add_argument("--clicks", type=int, default=8)
    asked = parser.parse_args()
    height, width = map(int, asked.size.split("x"))
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    model, _ = open_model(asked.model, None, "cpu", "fp32")
    whole, _ = load_model(asked.model)
    inputs: list[tuple[int, int]] = []
    spent: dict[str, float] = {}
    for name in ("encode", "decode"):
        setattr(model, name, timed(getattr(model, name), name, spent, inputs))
    image, coverage = procedural.draw(0, 0, max(height, width))
    image, truth = (cv2.resize(one, (width, height), interpolation=cv2.INTER_AREA) for one in (image, coverage))
    truth = (truth > 127).astype(np.int8)
    session = Session(model, image, load_protocol(asked.protocol), None, undo=0)
    clicks: list[Click] = []
    seen: list[dict[str, float]] = []
    limits: list[dict[str, float]] = []
    costs: dict[tuple[int, int], float] = {}
    mask = session.mask
    for number in range(asked.clicks + 1):
        click = next_click(truth, mask, clicks) or Click(0, 0, False)
        spent.clear()
        inputs.clear()
        start = time.thread_time()
        mask = session.click(click)
        total = time.thread_time() - start
        clicks.append(click)
        for size in inputs:
            costs[size] = costs.get(size) or gmac(whole, size)
        limits.append({"matrices": matrices(), "convolution": convolution()})
        if number:  # the first click warms up
            network = sum(spent.values())
            work = 2 * sum(costs[size] for size in inputs)
            seen.append({"total": total, "network": network, "rest": total - network, "gflop": work})
    best = max(max(one.values()) for one in limits)
    row = {key: round(value, 4) for key, value in min(seen, key=lambda one: one["network"] / one["gflop"]).items()}
    rate = row["gflop"] / row["network"]
    print(
        json.dumps(
            {
                "processor": processor(),
                "torch": torch.__version__,
                "capability": torch.backends.cpu.get_cpu_capability(),
                "model": asked.model,
                "protocol": asked.protocol,
                "size": asked.size,
                "clicks": asked.clicks,
                "inputs": sorted({"x".join(map(str, size)) for size in costs}),
                **{f"{key}_s" if key != "gflop" else key: value for key, value in row.items()},
                "network_gflops": round(rate, 1),
                "limit_gflops": {name: round(max(one[name] for one in limits), 1) for name in limits[0]},
                "of_limit": round(rate / best, 3),
                "operators": operators(session, truth, mask, clicks),
            },
            indent=1,
        )
    )


def timed(
    call: Callable[..., Any], name: str, spent: dict[str, float], inputs: list[tuple[int, int]]
) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        start = time.thread_time()
        result = call(*arguments)
        spent[name] = spent.get(name, 0.0) + time.thread_time() - start
        if name == "decode":
            inputs.extend([tuple(arguments[1].shape[-2:])] * len(arguments[1]))
        return result

    return run


def matrices(side: int = 512, rounds: int = 45) -> float:
    """GFLOP/s of products of square matrices."""
    one, other = torch.rand(2, side, side)
    return rounds * 2e-9 * side**3 / cpu(lambda: [one @ other for _ in range(rounds)])


def convolution(channels: int = 64, side: int = 80, rounds: int = 25) -> float:
    """GFLOP/s of 3x3 convolutions."""
    layer = torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
    image = torch.rand(1, channels, side, side).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        layer(image)
        return rounds * 2e-9 * 9 * channels**2 * side**2 / cpu(lambda: [layer(image) for _ in range(rounds)])


def cpu(call: Callable[[], object]) -> float:
    start = time.thread_time()
    call()
    return time.thread_time() - start


def operators(session: Session, truth: np.ndarray, mask: np.ndarray, clicks: list[Click]) -> dict[str, float]:
    """Share of a click's time in PyTorch's operators, the largest ones."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        session.click(next_click(truth, mask, clicks) or Click(0, 0, False))
    found = {one.key: one.self_cpu_time_total for one in profile.key_averages()}
    total = sum(found.values())
    largest = sorted(found, key=lambda key: -found[key])[:8]
    return {key: round(found[key] / total, 3) for key in largest}


def processor() -> str:
    """Its name, as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        name = fields["model name"]
        return f"{name}, family {fields['cpu family']} model {fields['model']}" if "cpu family" in fields else name
    except (OSError, KeyError):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
