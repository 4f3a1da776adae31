"""Speed of many objects in flight on one GPU, compared with one at a time and with a plain implementation of RITM.

    PYTHONPATH=. python benchmarks/gpu_speed.py --out found.json                  on a GPU, within --budget seconds
    PYTHONPATH=. python benchmarks/gpu_speed.py --data FOLDER --out found.json    on your own objects
    PYTHONPATH=. python benchmarks/gpu_speed.py --device cpu --precision fp32 --small 3 --large 1 --shrink 8

Everything runs on the same decoded objects in memory. First the network alone is timed on crops of 400x400, see
:func:`kernels`. Then each protocol, precision and set of objects gets rows of several kinds ("way"):

alone         one object at a time, on the first --alone objects
alone, warm   the same again, so that no crop size is new
in flight N   N objects at a time, on 4 N objects
N processes   one object at a time in each of --processes processes, each with its own model on the same GPU
plain         RITM's evaluator (:mod:`yardstick`) in fp32 on the first --plain objects; it stops on IoU alone
plain, TF32   the same with PyTorch's default settings

A row reports its objects and clicks, both per second, peak GPU memory, the ratios of clicks per second to "alone"
(ratio), "alone, warm" (to_warm) and "plain, TF32" (to_plain), and how many objects have the same clicks as "alone".
The first passes at every new batch size are included, as in an evaluation. The protocol "fixed" has a single crop size,
the padded protocols a few. Rows with parts come from separate runs that synchronise after every forward pass: ms per
click in the network, in choosing the next click, in scores, and in the rest (crops, pasting, copying masks), the latter
three summed over threads. Rows that exceed the budget are skipped and listed.
"""

from __future__ import annotations

import argparse
import json
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
from hrseg_cli.commands.options import available_cores
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
Alone = dict[tuple[str, str, str], tuple[list[Any], float, float]]  # per case: traces, clicks per second cold and warm
SIZES = {"small": (512, 768), "large": (1024, 1024)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--data", help="a dataset folder instead of drawn objects")
    parser.add_argument("--small", type=int, help="number of drawn 512x768 objects [4 x largest --in-flight]")
    parser.add_argument("--large", type=int, help="number of drawn 1024x1024 objects [likewise]")
    parser.add_argument("--shrink", type=int, default=1, help="divide image and crop sizes by this, for a quick try")
    parser.add_argument("--alone", type=int, default=8, help="objects per set for one at a time")
    parser.add_argument("--plain", type=int, default=5, help="objects per set for the yardstick")
    parser.add_argument("--in-flight", type=int, nargs="+", default=[32, 64, 8], help="the first one is timed by part")
    parser.add_argument("--pad", type=int, nargs="+", default=[400, 200], help="zoom.pad of the padded protocols")
    parser.add_argument("--processes", type=int, default=min(8, available_cores()))
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--max-clicks", type=int, default=10)
    parser.add_argument("--until", type=float, default=0.95)
    parser.add_argument("--model", default="h18s")
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--budget", type=float, default=300, help="seconds after which no new row is started")
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
    # Fork before a CUDA context exists: saves importing everything again.
    with ProcessPoolExecutor(options.threads, get_context("fork"), cv2.setNumThreads, (1,)) as pool:
        drawn = list(pool.map(drawn_sample, jobs))
    return {name: [sample for sample in drawn if sample.dataset == name] for name in wanted if wanted[name]}


def drawn_sample(job: tuple[str, int, tuple[int, int]]) -> Sample:
    """A drawn object, resized to exactly the given size."""
    name, number, (rows, cols) = job
    image, coverage = draw(1, number, max(rows, cols))
    image = cv2.resize(image, (cols, rows), interpolation=cv2.INTER_AREA)
    truth = cv2.resize(coverage, (cols, rows), interpolation=cv2.INTER_AREA) > 127
    return Sample(str(number), name, image, truth.astype(np.int8))


class Report:
    """Prints rows as they come and writes them to the JSON file."""

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
        """Whether the budget allows one more row; otherwise the row is listed as left out."""
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
        for some, model in product(sets.values(), models.values()):  # load kernels before timing
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
            # With far more in flight than there are objects, the row would be the same.
            if key in alone and number < 1.5 * len(sets[name]) and report.begin(*key, number):
                work = partial(together, options, models[precision], sets[name][: 4 * number], plan, number)
                compared(report, key, f"in flight {number}", *timed(options, work), alone, plain)
    report.write()
    if report.found["left_out"]:
        print("skipped:", *report.found["left_out"], sep="\n  ")


def protocols(options: argparse.Namespace) -> dict[str, Protocol]:
    """Protocols by the name used in rows, the one compared with the yardstick first."""
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
    """Rows that tell whether kernels or launches limit the speed of a warm forward pass.

    gpu_ms: time per pass on the GPU's clock (CUDA events). launch_ms: time until Python has launched one pass. If both
    are equal, launches are the limit, and larger batches are free.
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
                for _ in range(8):  # with an empty queue: a full one would make Python wait for kernels
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
    """Rows of several processes, each with one object at a time. All processes are warm before timing starts."""
    count, spawn = options.processes, get_context("spawn")
    with ProcessPoolExecutor(count, spawn, start_process, (options.model, options.device, options.precision)) as pool:
        for key, plan in cases:
            name, precision, _ = key
            if report.begin(*key, f"{count} processes"):
                work = partial(pool.map, partial(in_process, precision, plan))
                list(work([sets[name][0]] * 2 * count))
                samples = sets[name][: 4 * count]
                traces, row = timed(options, lambda: list(work(samples)))  # noqa: B023
                row["gpu_mib"] = None  # only this process's memory is known
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
    """Traces of objects in flight, in the order of ``samples``."""
    tasks = (clicking(sample, model, plan) for sample in samples)
    finished = dict(batched(model, tasks, number, options.threads))
    return [finished[index][0] for index in range(len(samples))]


def timed(options: argparse.Namespace, work: Callable[[], list[Any]]) -> tuple[list[Any], dict[str, Any]]:
    """The results of ``work`` (traces or lists of clicks), and the row of its timing."""
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
        within = self.seconds["task"] or self.seconds["wall"] - self.seconds["network"]
        found = {part: self.seconds[part] for part in ("wall", "network", "next_click", "scores")}
        found["rest"] = within - found["next_click"] - found["scores"]
        row: dict[str, Any] = {f"{part}_ms": round(1000 * value / clicks, 3) for part, value in found.items()}
        work = sum(value for part, value in found.items() if part != "wall")
        row["shares"] = {part: round(value / work, 3) for part, value in found.items() if part != "wall"}
        return {**row, "clicks": clicks, "passes": self.passes}


@contextmanager
def watched(device: str) -> Iterator[Parts]:
    """Time the parts of everything that runs in the ``with`` block, by patching hrseg's functions."""
    parts = Parts()
    infer, next_click, metric, advance = views.infer, simulate.next_click, simulate._metric, in_flight._Group.advance

    def infer_and_wait(*args: Any) -> Any:
        if device != "cpu":
            torch.cuda.current_stream().synchronize()  # count crops, pasting and masks as the rest
        return parts.timed("network", waited)(*args)

    def waited(*args: Any) -> Any:
        logits = infer(*args)
        if device != "cpu":
            torch.cuda.current_stream().synchronize()
        return logits

    views.infer = infer_and_wait
    simulate.next_click = parts.timed("next_click", next_click)
    simulate._metric = lambda *args: parts.timed("scores", metric(*args))
    in_flight._Group.advance = parts.timed("task", advance)
    try:
        yield parts
    finally:
        parts.end()
        views.infer, simulate.next_click = infer, next_click
        simulate._metric, in_flight._Group.advance = metric, advance


def yardstick(
    options: argparse.Namespace,
    report: Report,
    name: str,
    samples: list[Sample],
    alone: list[Any],
    rate: float,
) -> float:
    """Add the yardstick's rows, with all threads. Returns its clicks per second with PyTorch's default settings."""
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
    # The yardstick stops on IoU alone: compare clicks up to the one where hrseg's IoU reached the target.
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
