"""Latency of a click and number of clicks under several protocols, at several image sizes.

    python benchmarks/fast_protocol.py h18s --dataset FOLDER [--dataset FOLDER] [--limit N] [--out FOLDER]
    python benchmarks/fast_protocol.py h18s --protocol ritm --protocol fast --protocol "fast zoom.target=320"

A protocol is a name, optionally followed by changes. The first one is the baseline of the comparison. Latency is the
wall time of the prediction alone (no simulated annotator, no metrics) with --threads threads, reported with the CPU
time of all threads. Protocols and runtimes alternate at every click, so that load on the machine affects all alike; the
first object is a warm-up. Clicks are counted on the same objects for all protocols, evenly spread over each dataset.
Counts and their differences come with 95 % bootstrap intervals over objects. Without --dataset only latency is
measured; --sizes '' skips it.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median

import cv2
import numpy as np
import torch

from hrseg_cli.clicks.annotator import next_click
from hrseg_cli.data import procedural
from hrseg_cli.data.datasets import open_datasets
from hrseg_cli.data.samples import Ref
from hrseg_cli.engine.runtimes import ModelChoice, open_model
from hrseg_cli.engine.session import Session
from hrseg_cli.engine.simulate import Plan, run
from hrseg_cli.interaction import Click
from hrseg_cli.metrics.noc import interval, mean_at, noc
from hrseg_cli.recipe import Protocol, load_protocol

MAX_CLICKS, TARGET = 20, 0.9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--protocol", action="append")
    parser.add_argument("--runtime", action="append")
    parser.add_argument("--precision", default="fp32", help="network precision on runtime torch: fp32 or bf16")
    parser.add_argument("--sizes", default="1024x1024,2048x3072,4000x6000", help="image sizes, HEIGHTxWIDTH")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--objects", type=int, default=3)
    parser.add_argument("--clicks", type=int, default=6)
    parser.add_argument("--slow-first", action="store_true", help="also time protocols that run on whole large images")
    parser.add_argument("--dataset", action="append", default=[])
    parser.add_argument("--root", type=Path)
    parser.add_argument("--limit", type=int, help="number of objects per dataset, evenly spread [all]")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/fast_protocol"))
    options = parser.parse_args()
    protocols = [
        load_protocol(name, changes) for name, *changes in map(str.split, options.protocol or ["ritm", "photo", "fast"])
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    if options.sizes:
        sizes = [(int(h), int(w)) for h, w in (size.split("x") for size in options.sizes.split(","))]
        table = seconds(options, protocols, options.runtime or ["torch"], sizes)
        (options.out / "seconds.md").write_text(table)
    if options.dataset:
        refs: list[Ref] = []
        for dataset in options.dataset:
            found = open_datasets([dataset], root=options.root).refs
            count = min(options.limit or len(found), len(found))
            refs += [found[number * len(found) // count] for number in range(count)]
        table = clicks(options, protocols, refs)
        (options.out / "clicks.md").write_text(table)


def seconds(
    options: argparse.Namespace, protocols: list[Protocol], runtimes: list[str], sizes: list[tuple[int, int]]
) -> str:
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    models = {runtime: open_model(options.model, runtime, precision=options.precision)[0] for runtime in runtimes}
    text = (
        "| image | protocol | runtime | first click: ms, CPU ms (least) | later clicks: ms, CPU ms (least) |\n"
        "|---|---|---|---|---|\n"
    )
    print(text, end="", flush=True)
    for size in sizes:
        spent: dict[tuple[str, str], list[list[tuple[float, float]]]] = {}
        for number in range(options.objects + 1):
            image, truth = drawn(number, size)
            sessions = {
                (protocol.name, runtime): Session(model, image, protocol, undo=0)
                for protocol in protocols
                for runtime, model in models.items()
                if options.slow_first or size[0] * size[1] < 2e6 or bounded(protocol)
            }
            given: dict[tuple[str, str], list[Click]] = {key: [] for key in sessions}
            laps: dict[tuple[str, str], list[tuple[float, float]]] = {key: [] for key in sessions}
            for _ in range(options.clicks):
                for key, session in sessions.items():
                    click = next_click(truth, session.mask, given[key]) or Click(0, 0, False)
                    given[key].append(click)
                    started = time.perf_counter(), time.process_time()
                    session.click(click)
                    laps[key].append((time.perf_counter() - started[0], time.process_time() - started[1]))
            if number:
                for key, values in laps.items():
                    spent.setdefault(key, []).append(values)
        for (protocol_name, runtime), found in spent.items():
            first, later = [values[0] for values in found], [value for values in found for value in values[1:]]
            cells = []
            for laps_of in (first, later):
                wall, cpu = (sorted(1000 * value for value in column) for column in zip(*laps_of, strict=True))
                cells.append(f"{median(wall):.0f}, {median(cpu):.0f} ({cpu[0]:.0f})")
            line = f"| {size[0]}x{size[1]} | {protocol_name} | {runtime} | {' | '.join(cells)} |\n"
            print(line, end="", flush=True)
            text += line
    return text


def bounded(protocol: Protocol) -> bool:
    """Whether the first click costs the same on images of any size."""
    return protocol.zoom is not None and protocol.zoom.skip_clicks < 0


def drawn(number: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """An image, uint8 (H, W, 3), and its ground truth, int8 (H, W). Large ones are upscaled: drawing them is slow."""
    image, coverage = procedural.draw(0, number, min(1024, max(size)))
    image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_CUBIC)
    return image, (cv2.resize(coverage, size[::-1]) > 127).astype(np.int8)


def clicks(options: argparse.Namespace, protocols: list[Protocol], refs: list[Ref]) -> str:
    """Table of NoC of each protocol, and its difference from the first one on the same objects."""
    text = (
        f"| protocol | NoC@90, IoU, n={len(refs)} | compared with {protocols[0].name} | not reached "
        "| IoU after click 1, 3 | CPU s per click |\n"
        "|---|---|---|---|---|---|\n"
    )
    print(text, end="", flush=True)
    base = np.empty(0)
    for protocol in protocols:
        file = options.out / f"{protocol.name.replace('/', '-').replace(' ', '-')}.jsonl"
        plan = Plan(protocol, {"iou": TARGET}, MAX_CLICKS)
        chosen = ModelChoice(options.model, precision=options.precision)
        started = time.process_time()
        found = [outcome for _, outcome in sorted(run(plan, chosen, refs, options.workers), key=lambda one: one[0])]
        spent = (time.process_time() - started) / sum(len(outcome.trace.clicks) for outcome in found)
        file.write_text("".join(outcome.trace.to_json() + "\n" for outcome in found))
        scores = [outcome.trace.scores["iou"] for outcome in found]
        counts = np.array([noc(values, TARGET, MAX_CLICKS) for values in scores], float)
        base = base if base.size else counts
        low, high = interval(counts, np.ones(len(counts)))
        least, most = interval(100 * (counts - base), base)
        early = [np.mean([mean_at(values, number) for values in scores]) for number in (1, 3)]
        line = (
            f"| {protocol.name} | {counts.mean():.2f} [{low:.2f}, {high:.2f}] "
            f"| {100 * (counts.mean() / base.mean() - 1):+.1f} % [{least:+.1f}, {most:+.1f}] "
            f"| {sum(max(values) < TARGET for values in scores)} | {early[0]:.2f}, {early[1]:.2f} "
            f"| {spent if options.workers == 1 else float('nan'):.3f} |\n"
        )
        print(line, end="", flush=True)
        text += line
    return text


if __name__ == "__main__":
    main()
