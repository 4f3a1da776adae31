"""What a person waits for a click under each protocol, at several sizes of image, and how many clicks each takes.

    python benchmarks/fast_protocol.py h18s --dataset FOLDER [--dataset FOLDER] [--limit N] [--out FOLDER]
    python benchmarks/fast_protocol.py h18s --protocol ritm --protocol fast --protocol "fast zoom.target=320"

A protocol is a name with changes behind it. The first one named is what the others are compared with. Seconds are those
of the answer only (no simulated annotator, no metrics), with --threads threads, beside them CPU time of all threads;
protocols and runtimes take turns at every click, so that a noisy machine slows all of them; the first object warms up.
Clicks are counted on the same objects for all, evenly spread over each dataset, with 95 % bootstrap intervals over
objects, of the difference too. Without --dataset only seconds are measured; --sizes '' leaves them out.
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
from hrseg_cli.commands.options import open_datasets
from hrseg_cli.data import procedural
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
    parser.add_argument("--precision", default="fp32", help="of the network on runtime torch: fp32 or bf16")
    parser.add_argument("--sizes", default="1024x1024,2048x3072,4000x6000", help="of images, HEIGHTxWIDTH")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--objects", type=int, default=3)
    parser.add_argument("--clicks", type=int, default=6)
    parser.add_argument("--slow-first", action="store_true", help="also time protocols that see whole large images")
    parser.add_argument("--dataset", action="append", default=[])
    parser.add_argument("--root", type=Path)
    parser.add_argument("--limit", type=int, help="only so many objects of each dataset, evenly spread")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/fast_protocol"))
    asked = parser.parse_args()
    protocols = [
        load_protocol(name, changes) for name, *changes in map(str.split, asked.protocol or ["ritm", "photo", "fast"])
    ]
    asked.out.mkdir(parents=True, exist_ok=True)
    if asked.sizes:
        sizes = [(int(h), int(w)) for h, w in (size.split("x") for size in asked.sizes.split(","))]
        table = seconds(asked, protocols, asked.runtime or ["torch"], sizes)
        (asked.out / "seconds.md").write_text(table)
    if asked.dataset:
        refs: list[Ref] = []
        for dataset in asked.dataset:
            found = open_datasets([dataset], asked.root, False, "auto", None).refs
            count = min(asked.limit or len(found), len(found))
            refs += [found[number * len(found) // count] for number in range(count)]
        table = clicks(asked, protocols, refs)
        (asked.out / "clicks.md").write_text(table)


def seconds(
    asked: argparse.Namespace, protocols: list[Protocol], runtimes: list[str], sizes: list[tuple[int, int]]
) -> str:
    torch.set_num_threads(asked.threads)
    cv2.setNumThreads(asked.threads)
    models = {runtime: open_model(asked.model, runtime, precision=asked.precision)[0] for runtime in runtimes}
    text = (
        "| image | protocol | runtime | first click: ms, CPU ms (least) | later clicks: ms, CPU ms (least) |\n"
        "|---|---|---|---|---|\n"
    )
    print(text, end="", flush=True)
    for size in sizes:
        spent: dict[tuple[str, str], list[list[tuple[float, float]]]] = {}
        for number in range(asked.objects + 1):
            image, truth = drawn(number, size)
            sessions = {
                (protocol.name, runtime): Session(model, image, protocol, undo=0)
                for protocol in protocols
                for runtime, model in models.items()
                if asked.slow_first or size[0] * size[1] < 2e6 or bounded(protocol)
            }
            given: dict[tuple[str, str], list[Click]] = {key: [] for key in sessions}
            laps: dict[tuple[str, str], list[tuple[float, float]]] = {key: [] for key in sessions}
            for _ in range(asked.clicks):
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
    """Whether the first look, too, costs the same on any image."""
    return protocol.zoom is not None and protocol.zoom.skip_clicks < 0


def drawn(number: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """An image, uint8 (H, W, 3), and the truth, int8 (H, W); drawn smaller and enlarged, for drawing takes long."""
    image, coverage = procedural.draw(0, number, min(1024, max(size)))
    image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_CUBIC)
    return image, (cv2.resize(coverage, size[::-1]) > 127).astype(np.int8)


def clicks(asked: argparse.Namespace, protocols: list[Protocol], refs: list[Ref]) -> str:
    """NoC of every protocol, and its difference to the first one's on the same objects."""
    text = (
        f"| protocol | NoC@90, IoU, n={len(refs)} | beside {protocols[0].name} | not reached | IoU after click 1, 3 "
        "| CPU s a click |\n"
        "|---|---|---|---|---|---|\n"
    )
    print(text, end="", flush=True)
    base = np.empty(0)
    for protocol in protocols:
        file = asked.out / f"{protocol.name.replace('/', '-').replace(' ', '-')}.jsonl"
        plan = Plan(protocol, {"iou": TARGET}, MAX_CLICKS)
        chosen = ModelChoice(asked.model, precision=asked.precision)
        started = time.process_time()
        found = [outcome for _, outcome in sorted(run(plan, chosen, refs, asked.workers), key=lambda one: one[0])]
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
            f"| {spent if asked.workers == 1 else float('nan'):.3f} |\n"
        )
        print(line, end="", flush=True)
        text += line
    return text


if __name__ == "__main__":
    main()
