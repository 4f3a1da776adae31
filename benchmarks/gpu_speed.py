"""Objects in flight on one GPU against one at a time and against RITM's way: all in one run, on the same objects.

    PYTHONPATH=. python benchmarks/gpu_speed.py --out found.json                  on a GPU, within --budget seconds
    PYTHONPATH=. python benchmarks/gpu_speed.py --data FOLDER --out found.json    on your own objects
    PYTHONPATH=. python benchmarks/gpu_speed.py --device cpu --precision fp32 --small 3 --large 1 --shrink 8

It begins with "kernels or launches": the network alone, warm, on crops of 400x400; see :func:`kernels`.

Objects lie decoded in memory. One at a time and the yardstick work on the first few of a set only (--alone, --plain),
objects in flight on four times their number, so that ratios are of clicks per second. Every row names the objects it
took, its clicks, clicks and objects a second, the ratio to one at a time and to the same once more ("alone, warm": no
size of crop is new), how many objects have the clicks of one at a time, and the peak of the GPU's memory. "processes"
are one at a time in each of --processes, with a model each on the same GPU. Of the protocols, "fixed" has looks of one
size only, and padded ones of few. A row of parts comes from a run of its own, in which every pass of the network is
waited for: ms per click in the network, in choosing the next click, in scores, and in the rest (crops, pasting, masks
from the GPU), the latter three summed over threads. "plain" is RITM's way (:mod:`yardstick`) in single precision,
"plain, TF32" with PyTorch's own settings, to which rows in flight are compared too (to_plain); it stops on IoU alone,
so that only clicks per second compare. The first passes of every new size of batch are in the numbers, as they are in
an evaluation. Rows that no longer fit the budget are left out and named.
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

from hrseg_cli.checkpoints.resolve import load_model
from hrseg_cli.data.datasets import open_dataset
from hrseg_cli.data.procedural import draw
from hrseg_cli.data.samples import load
from hrseg_cli.engine import in_flight, simulate, views
from hrseg_cli.engine.devices import reproducible
from hrseg_cli.engine.fast import open_fast
from hrseg_cli.engine.in_flight import batched
from hrseg_cli.engine.simulate import Plan, clicking
from hrseg_cli.interaction import Sample
from hrseg_cli.recipe import Protocol, load_protocol

STARTED = time.perf_counter()
Alone = dict[tuple[str, str, str], tuple[list[Any], float, float]]  # by case: traces, clicks per second cold and warm
SIZES = {"small": (512, 768), "large": (1024, 1024)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--data", help="a dataset folder in place of drawn objects")
    parser.add_argument("--small", type=int, help="drawn objects of 512x768 [4 x the most in flight]")
    parser.add_argument("--large", type=int, help="drawn objects of 1024x1024 [likewise]")
    parser.add_argument("--shrink", type=int, default=1, help="divides both sizes and the crops: for trying this out")
    parser.add_argument("--alone", type=int, default=8, help="objects of a set that are done one at a time too")
    parser.add_argument("--plain", type=int, default=5, help="objects of a set that the yardstick does")
    parser.add_argument("--in-flight", type=int, nargs="+", default=[32, 64, 8], help="the first gets parts")
    parser.add_argument("--pad", type=int, nargs="+", default=[400, 200], help="zoom.pad of the padded protocols")
    parser.add_argument("--processes", type=int, default=min(8, len(os.sched_getaffinity(0))))
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--max-clicks", type=int, default=10)
    parser.add_argument("--until", type=float, default=0.95)
    parser.add_argument("--model", default="h18s")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--budget", type=float, default=300, help="seconds after which no row is begun")
    parser.add_argument("--out", type=Path, help="JSON, rewritten after every row")
    options = parser.parse_args()
    for name in SIZES:
        if getattr(options, name) is None:
            setattr(options, name, 4 * max(options.in_flight))
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
    if options.device != "cpu":
        kernels(options, report)
    with reproducible():
        models = {precision: open_fast(options.model, options.device, precision)[0] for precision in options.precision}
        until = {"iou": options.until, "biou": options.until}
        cases = [
            ((name, precision, protocol), Plan(chosen, until, options.max_clicks))
            for protocol, chosen in protocols(options).items()
            for precision in options.precision
            for name in sets
        ]
        for some, model in product(sets.values(), models.values()):  # kernels are loaded before a clock runs
            together(options, model, some[:2], Plan(load_protocol("ritm"), until, 2), 2)
        alone: Alone = {}
        plain: dict[str, float] = {}
        first, *others = options.in_flight
        for key, plan in cases:
            name, precision, protocol = key
            model, samples = models[precision], sets[name]
            if not report.begin(*key):
                continue
            few = samples[: options.alone]
            rates = []
            for way in ("alone", "alone, warm"):
                traces, row = timed(options, lambda: [simulate.simulate(one, model, plan)[0] for one in few])  # noqa: B023
                rates.append(row["clicks"] / row["seconds"])
                report.add(set=name, precision=precision, protocol=protocol, way=way, **row)
            alone[key] = traces, rates[0], rates[1]
            if (precision, protocol) == ("fp32", "ritm"):
                plain[name] = yardstick(options, report, name, samples, traces, rates[0])
            work = partial(together, options, model, samples[: 4 * first], plan, first)
            compared(report, key, f"in flight {first}", *timed(options, work), alone, plain)
        if report.begin("processes"):
            apart(options, report, [(key, plan) for key, plan in cases if key in alone], sets, alone, plain)
        for key, plan in cases:
            name, precision, protocol = key
            if key not in alone or not report.begin(*key, "parts"):
                continue
            model, samples = models[precision], sets[name]
            for way, some in (("alone", samples[: options.alone // 2]), (f"in flight {first}", samples[: 2 * first])):
                with watched(options.device) as parts:
                    if way == "alone":
                        done = [simulate.simulate(one, model, plan)[0] for one in some]
                    else:
                        done = together(options, model, some, plan, first)
                report.add(set=name, precision=precision, protocol=protocol, parts=way, **parts.per_click(done))
        for number, (key, plan) in product(others, cases):
            name, precision, _ = key
            # More in flight than two thirds of a set's objects would be the same again.
            if key in alone and number < 1.5 * len(sets[name]) and report.begin(*key, number):
                work = partial(together, options, models[precision], sets[name][: 4 * number], plan, number)
                compared(report, key, f"in flight {number}", *timed(options, work), alone, plain)
    report.write()
    if report.found["left_out"]:
        print("left out:", *report.found["left_out"], sep="\n  ")


def protocols(options: argparse.Namespace) -> dict[str, Protocol]:
    """By name in the rows: what is compared with RITM's way first, then what fills batches best."""
    target = 400 // options.shrink
    crops = [f"zoom.target={target}"] if options.shrink > 1 else []
    return {
        "ritm": load_protocol("ritm", crops),
        "fixed": load_protocol("fixed", [f"zoom.target=[{target},{target}]"] if crops else []),
        **{
            f"photo, pad {pad}": load_protocol("photo", [*crops, f"zoom.pad={max(1, pad // options.shrink)}"])
            for pad in options.pad
        },
        "photo": load_protocol("photo", crops),
    }


def kernels(options: argparse.Namespace, report: Report) -> None:
    """Whether the GPU's kernels or their launches decide: ms of a warm pass among many on the GPU's clock (CUDA
    events), and ms until Python has launched one. Where both are alike launches decide, and a larger batch costs
    nothing.
    """
    forms = {
        "fp32, channels last": ("fp32", torch.channels_last, False),
        "fp32, contiguous": ("fp32", torch.contiguous_format, False),
        "TF32, channels last": ("fp32", torch.channels_last, True),
        "bf16, channels last": ("bf16", torch.channels_last, False),
    }
    side = 400 // options.shrink
    for form, (precision, layout, tf32) in forms.items():
        model = open_fast(options.model, options.device, precision)[0].to(memory_format=layout)
        flags = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=tf32)
        with reproducible(), flags, torch.inference_mode():
            for batch in (2, 8, 32):
                x = torch.rand(batch, 4, side, side, device=options.device).to(memory_format=layout)
                points = torch.full((batch, 2, 3), -1.0, device=options.device)
                points[:, 0] = torch.tensor([side / 2, side / 2, 0.0])
                launches = []
                for _ in range(8):  # from an empty queue: a full one would make Python wait for the kernels
                    torch.cuda.synchronize(options.device)
                    began = time.perf_counter()
                    model(x, points)
                    launches.append(time.perf_counter() - began)
                before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                before.record()
                for _ in range(20):
                    model(x, points)
                after.record()
                after.synchronize()
                gpu = before.elapsed_time(after) / 20
                report.add(
                    kernels=form,
                    batch=batch,
                    gpu_ms=round(gpu, 3),
                    launch_ms=round(1000 * min(launches), 3),
                    gpu_ms_an_image=round(gpu / batch, 3),
                )


def apart(
    options: argparse.Namespace,
    report: Report,
    cases: list[tuple[tuple[str, str, str], Plan]],
    sets: dict[str, list[Sample]],
    alone: Alone,
    plain: dict[str, float],
) -> None:
    """Rows of one at a time in each of several processes; every one has answered before the clock runs."""
    count, spawn = options.processes, get_context("spawn")
    with ProcessPoolExecutor(count, spawn, start_process, (options.model, options.device, options.precision)) as pool:
        for key, plan in cases:
            name, precision, _ = key
            if report.begin(*key, f"{count} processes"):
                work = partial(pool.map, partial(in_process, precision, plan))
                list(work([sets[name][0]] * 2 * count))
                samples = sets[name][: 4 * count]
                traces, row = timed(options, lambda: list(work(samples)))  # noqa: B023
                row["gpu_mib"] = None  # this process's says nothing
                compared(report, key, f"{count} processes", traces, row, alone, plain)


def start_process(model: str, device: str, precisions: list[str]) -> None:
    global opened
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    opened = {precision: open_fast(model, device, precision)[0] for precision in precisions}


def in_process(precision: str, plan: Plan, sample: Sample) -> Any:
    with reproducible():
        return simulate.simulate(sample, opened[precision], plan)[0]


def compared(
    report: Report,
    key: tuple[str, str, str],
    way: str,
    traces: list[Any],
    row: dict[str, Any],
    alone: Alone,
    plain: dict[str, float],
) -> None:
    one_by_one, cold, warm = alone[key]
    same = sum(a.clicks == b.clicks for a, b in zip(one_by_one, traces, strict=False))
    name, precision, protocol = key
    rate = row["clicks"] / row["seconds"]
    report.add(
        set=name,
        precision=precision,
        protocol=protocol,
        way=way,
        **row,
        ratio=round(rate / cold, 2),
        to_warm=round(rate / warm, 2),
        to_plain=round(rate / plain[name], 2) if name in plain else None,
        identical=f"{same} of {min(len(one_by_one), len(traces))}",
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
