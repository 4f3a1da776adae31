"""Objects in flight on one GPU against one at a time and against RITM's way: all in one run, on the same objects.

    PYTHONPATH=. python benchmarks/gpu_speed.py --out found.json                  on a GPU, within --budget seconds
    PYTHONPATH=. python benchmarks/gpu_speed.py --data FOLDER --out found.json    on your own objects
    PYTHONPATH=. python benchmarks/gpu_speed.py --device cpu --precision fp32 --small 3 --large 1 --shrink 8

Objects lie decoded in memory. One at a time and the yardstick work on the first few of a set only (--alone, --plain),
so that ratios are of clicks per second. Every row names the objects it took, its clicks, clicks and objects a second,
the ratio to one at a time, how many objects have the clicks of one at a time, and the peak of the GPU's memory. A row
of parts comes from a run of its own, in which every pass of the network is waited for: ms per click in the network, in
choosing the next click, in scores, and in the rest (crops, pasting, masks from the GPU), the latter three summed over
threads. "plain" is RITM's way (:mod:`yardstick`) in single precision, "plain, TF32" with PyTorch's own settings, to
which rows in flight are compared too (to_plain); it stops on IoU alone, so that only clicks per second compare. The
first passes of every new size of batch are in the numbers, as they are in an evaluation. Rows that no longer fit the
budget are left out and named.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

sys.path.append(str(Path(__file__).parent))

import yardstick as ritm

from hrseg_cli.data.procedural import draw
from hrseg_cli.data.samples import load, open_dataset
from hrseg_cli.engine import in_flight, simulate, views
from hrseg_cli.engine.checkpoint import load_model
from hrseg_cli.engine.devices import reproducible
from hrseg_cli.engine.fast import open_fast
from hrseg_cli.engine.in_flight import batched
from hrseg_cli.engine.simulate import Plan, clicking
from hrseg_cli.interaction import Sample
from hrseg_cli.recipe import load_protocol

STARTED = time.perf_counter()
Alone = dict[tuple[str, str, str], tuple[list[Any], float]]  # set, precision, protocol: traces, clicks per second
SIZES = {"small": (512, 768), "large": (1024, 1024)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--data", help="a dataset folder in place of drawn objects")
    parser.add_argument("--small", type=int, default=64, help="drawn objects of 512x768")
    parser.add_argument("--large", type=int, default=24, help="drawn objects of 1024x1024")
    parser.add_argument("--shrink", type=int, default=1, help="divides both sizes and the crops: for trying this out")
    parser.add_argument("--alone", type=int, default=8, help="objects of a set that are done one at a time too")
    parser.add_argument("--plain", type=int, default=5, help="objects of a set that the yardstick does")
    parser.add_argument("--in-flight", type=int, nargs="+", default=[32, 64, 8], help="the first gets parts")
    parser.add_argument("--pad", type=int, default=200, help="zoom.pad of the padded protocol")
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--max-clicks", type=int, default=10)
    parser.add_argument("--until", type=float, default=0.95)
    parser.add_argument("--model", default="h18s")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--budget", type=float, default=75, help="seconds after which no row is begun")
    parser.add_argument("--out", type=Path, help="JSON, rewritten after every row")
    options = parser.parse_args()
    sets = objects(options)
    measure(options, sets)


def objects(options: argparse.Namespace) -> dict[str, list[Sample]]:
    if options.data:
        return {"data": [load(ref) for ref in open_dataset(options.data)]}
    wanted = {"small": options.small, "large": options.large}
    jobs = [
        (name, number, tuple(side // options.shrink for side in SIZES[name]))
        for name in ("large", "small")
        for number in range(wanted[name])
    ]
    # Forked before there is a CUDA context: nothing is imported again.
    with ProcessPoolExecutor(options.threads, get_context("fork"), cv2.setNumThreads, (1,)) as pool:
        drawn = list(pool.map(picture, jobs))
    return {name: [sample for sample in drawn if sample.dataset == name] for name in wanted if wanted[name]}


def picture(job: tuple[str, int, tuple[int, int]]) -> Sample:
    """A drawn object, resized to exactly the asked size."""
    name, number, (rows, cols) = job
    image, coverage = draw(1, number, max(rows, cols))
    image = cv2.resize(image, (cols, rows), interpolation=cv2.INTER_AREA)
    truth = cv2.resize(coverage, (cols, rows), interpolation=cv2.INTER_AREA) > 127
    return Sample(str(number), name, image, truth.astype(np.int8))


class Report:
    """Rows as they come, on the screen and in the file."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        cuda = options.device != "cpu"
        self.found: dict[str, Any] = {
            "asked": {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()},
            "gpu": torch.cuda.get_device_name(options.device) if cuda else None,
            "versions": {"torch": torch.__version__, "numpy": np.__version__, "opencv": cv2.__version__},
            "rows": [],
            "left_out": [],
        }
        print(f"{self.found['gpu'] or 'cpu'}, {options.threads} threads, {self.found['versions']}", flush=True)

    def begin(self, *name: object) -> bool:
        """Whether there is time for one more row."""
        if time.perf_counter() - STARTED <= self.options.budget:
            return True
        self.found["left_out"].append(" ".join(map(str, name)))
        return False

    def add(self, **row: Any) -> None:
        self.found["rows"].append(row)
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        self.write()

    def write(self) -> None:
        self.found["seconds"] = round(time.perf_counter() - STARTED, 1)
        if self.options.out:
            self.options.out.write_text(json.dumps(self.found, indent=1))


def measure(options: argparse.Namespace, sets: dict[str, list[Sample]]) -> None:
    report = Report(options)
    print(f"{ {name: len(some) for name, some in sets.items()} } drawn after {time.perf_counter() - STARTED:.1f} s")
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    target = [f"zoom.target={400 // options.shrink}"] if options.shrink > 1 else []
    protocols = {
        "ritm": load_protocol("ritm", target),
        "photo": load_protocol("photo", target),
        f"photo, pad {options.pad}": load_protocol("photo", [*target, f"zoom.pad={options.pad}"]),
    }
    with reproducible():
        models = {precision: open_fast(options.model, options.device, precision)[0] for precision in options.precision}
        until = {"iou": options.until, "biou": options.until}
        cases = [
            (name, precision, protocol, Plan("", chosen, until, options.max_clicks, device=options.device))
            for precision in options.precision
            for protocol, chosen in protocols.items()
            for name in sets
        ]
        for some, model in product(sets.values(), models.values()):  # kernels are loaded before a clock runs
            together(options, model, some[:2], Plan("", protocols["ritm"], until, 2), 2)
        alone: Alone = {}
        plain: dict[str, float] = {}
        first, *others = options.in_flight
        for name, precision, protocol, plan in cases:
            model, samples = models[precision], sets[name]
            key = (name, precision, protocol)
            if not report.begin(*key):
                continue
            few = samples[: options.alone]
            traces, row = timed(options, lambda: [simulate.simulate(one, model, plan)[0] for one in few])  # noqa: B023
            alone[key] = traces, row["clicks"] / row["seconds"]
            report.add(set=name, precision=precision, protocol=protocol, way="alone", **row)
            if (precision, protocol) == ("fp32", "ritm"):
                plain[name] = yardstick(options, report, name, samples, traces, alone[key][1])
            flown(options, report, key, model, samples, plan, first, alone, plain)
            for way, numbers in (
                ("alone", few[: len(few) // 2]),
                (f"in flight {first}", samples[: 2 * first]),
            ):
                with watched(options.device) as parts:
                    if way == "alone":
                        done = [simulate.simulate(one, model, plan)[0] for one in numbers]
                    else:
                        done = together(options, model, numbers, plan, first)
                report.add(set=name, precision=precision, protocol=protocol, parts=way, **parts.per_click(done))
        for number in others:
            for name, precision, protocol, plan in cases:
                # More in flight than two thirds of a set's objects would be the same again.
                key = (name, precision, protocol)
                if key in alone and number < 1.5 * len(sets[name]) and report.begin(*key, number):
                    flown(options, report, key, models[precision], sets[name], plan, number, alone, plain)
    report.write()
    if report.found["left_out"]:
        print("left out:", *report.found["left_out"], sep="\n  ")


def flown(
    options: argparse.Namespace,
    report: Report,
    key: tuple[str, str, str],
    model: Any,
    samples: list[Sample],
    plan: Plan,
    number: int,
    alone: Alone,
    plain: dict[str, float],
) -> None:
    traces, row = timed(options, partial(together, options, model, samples, plan, number))
    one_by_one, rate = alone[key]
    same = sum(a.clicks == b.clicks for a, b in zip(one_by_one, traces, strict=False))
    name, precision, protocol = key
    report.add(
        set=name,
        precision=precision,
        protocol=protocol,
        way=f"in flight {number}",
        **row,
        ratio=round(row["clicks"] / row["seconds"] / rate, 2),
        to_plain=round(row["clicks"] / row["seconds"] / plain[name], 2) if name in plain else None,
        identical=f"{same} of {len(one_by_one)}",
    )


def together(options: argparse.Namespace, model: Any, samples: list[Sample], plan: Plan, number: int) -> list[Any]:
    """Traces in the order of the objects."""
    courses = (clicking(sample, model, plan) for sample in samples)
    landed = dict(batched(model, courses, number, options.threads))
    return [landed[index][0] for index in range(len(samples))]


def timed(options: argparse.Namespace, work: Callable[[], list[Any]]) -> tuple[list[Any], dict[str, Any]]:
    """What came of it, and the row: traces or lists of clicks."""
    cuda = options.device != "cpu"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(options.device)
        torch.cuda.synchronize(options.device)
    started = time.perf_counter()
    done = work()
    if cuda:
        torch.cuda.synchronize(options.device)
    seconds = time.perf_counter() - started
    clicks = sum(len(getattr(one, "clicks", one)) for one in done)
    row = {
        "objects": len(done),
        "clicks": clicks,
        "seconds": round(seconds, 3),
        "objects/s": round(len(done) / seconds, 2),
        "clicks/s": round(clicks / seconds, 1),
        "gpu_mib": torch.cuda.max_memory_allocated(options.device) >> 20 if cuda else None,
    }
    return done, row


class Parts:
    """Seconds by part, summed over threads."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.passes = 0
        self._lock = threading.Lock()
        self._started = time.perf_counter()

    def timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed_call(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                with self._lock:
                    self.seconds[part] += time.perf_counter() - started
                    self.passes += part == "network"

        return timed_call

    def end(self) -> None:
        self.seconds["wall"] = time.perf_counter() - self._started

    def per_click(self, traces: list[Any]) -> dict[str, Any]:
        clicks = sum(len(trace.clicks) for trace in traces)
        within = self.seconds["course"] or self.seconds["wall"] - self.seconds["network"]
        found = {part: self.seconds[part] for part in ("wall", "network", "next_click", "scores")}
        found["rest"] = within - found["next_click"] - found["scores"]
        row: dict[str, Any] = {f"{part}_ms": round(1000 * value / clicks, 3) for part, value in found.items()}
        work = sum(value for part, value in found.items() if part != "wall")
        row["shares"] = {part: round(value / work, 3) for part, value in found.items() if part != "wall"}
        return {**row, "clicks": clicks, "passes": self.passes}


@contextmanager
def watched(device: str) -> Iterator[Parts]:
    """The parts of what runs inside: the functions of the house are timed where they are called."""
    parts = Parts()
    ask, next_click, metric, advance = views.ask, simulate.next_click, simulate._metric, in_flight._Group.advance

    def ask_and_wait(*args: Any) -> Any:
        if device != "cpu":
            torch.cuda.current_stream().synchronize()  # crops, pastes and masks are the rest's
        return parts.timed("network", answered)(*args)

    def answered(*args: Any) -> Any:
        answer = ask(*args)
        if device != "cpu":
            torch.cuda.current_stream().synchronize()
        return answer

    views.ask = ask_and_wait
    simulate.next_click = parts.timed("next_click", next_click)
    simulate._metric = lambda *args: parts.timed("scores", metric(*args))
    in_flight._Group.advance = parts.timed("course", advance)
    try:
        yield parts
    finally:
        parts.end()
        views.ask, simulate.next_click, simulate._metric, in_flight._Group.advance = ask, next_click, metric, advance


def yardstick(
    options: argparse.Namespace,
    report: Report,
    name: str,
    samples: list[Sample],
    alone: list[Any],
    rate: float,
) -> float:
    """Rows of RITM's way, with all threads; its clicks per second with PyTorch's own settings, TF32 among them."""
    ritm.TARGET = 400 // options.shrink
    loaded, _ = load_model(options.model)
    network = ritm.PlainNetwork(**loaded.config).eval().requires_grad_(False)
    network.load_state_dict(loaded.state_dict())
    network.to(options.device)
    few = samples[: options.plain]

    def count() -> list[Any]:
        return [ritm.count_clicks(network, one, options.max_clicks, options.until)[0] for one in few]

    threads = options.threads
    cv2.setNumThreads(threads)
    torch.set_num_threads(threads)
    ritm.count_clicks(network, few[0], 2, options.until)
    # Its loop ends on IoU: of clicks that were made under both metrics, as many as that takes.
    ends = [next((i for i, v in enumerate(one.scores["iou"], 1) if v >= options.until), None) for one in alone]
    ours = [list(one.clicks[:end]) for one, end in zip(alone, ends, strict=True)]
    clicks, row = timed(options, count)
    same = sum(a == b for a, b in zip(clicks, ours, strict=False))
    known = {"set": name, "precision": "fp32", "protocol": "ritm"}
    identical = f"{same} of {min(len(few), len(ours))}"
    report.add(**known, way="plain", **row, ratio=round(row["clicks"] / row["seconds"] / rate, 2), identical=identical)
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=False, allow_tf32=True):
        _, row = timed(options, count)
    report.add(**known, way="plain, TF32", **row, ratio=round(row["clicks"] / row["seconds"] / rate, 2))
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    return float(row["clicks"] / row["seconds"])


if __name__ == "__main__":
    main()
