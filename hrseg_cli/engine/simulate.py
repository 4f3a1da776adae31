"""Simulate clicks on many objects: one after another, in several processes, or many at once on one model.

The same plan gives the same traces, except for seconds, for any number of workers: objects are independent and every
worker computes with one thread. Objects that run at once share batches, which may change the last bits of the logits.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import Any

import numpy as np
from pycocotools import mask as coco
from torch import Tensor

from hrseg_cli import catalog
from hrseg_cli.clicks.annotator import next_prompt
from hrseg_cli.data.samples import Ref, load_with_rule
from hrseg_cli.engine import views
from hrseg_cli.engine.devices import one_thread, one_thread_for_now, reproducible
from hrseg_cli.engine.in_flight import batched
from hrseg_cli.engine.runtimes import ModelChoice
from hrseg_cli.engine.session import Session
from hrseg_cli.engine.views import Query
from hrseg_cli.errors import HrsegError
from hrseg_cli.interaction import Prompt, Sample, Trace
from hrseg_cli.models.base import InteractiveModel
from hrseg_cli.recipe import Protocol

Metric = Callable[[np.ndarray], float]


@dataclass(frozen=True)
class Plan:
    """How to click on each object and what to measure, independent of the model. Sent to worker processes.

    until: metric -> target score (above 1: never reached). An object ends when all metrics have reached their targets.
    max_clicks: maximum number of clicks per object.
    protocols: dataset -> protocol, for datasets with their own. band: options of the metrics that use a band.
    keep_masks: click numbers after which the mask is kept, in addition to the last.
    hashes: keep the SHA-256 of the image and the mask to start from with the masks.
    replay: ``dataset/id`` -> clicks to replay instead of simulating them.
    """

    protocol: Protocol
    until: dict[str, float]
    max_clicks: int
    protocols: dict[str, Protocol] = field(default_factory=dict)
    band: dict[str, Any] = field(default_factory=dict)
    keep_masks: tuple[int, ...] = ()
    hashes: bool = False
    replay: dict[str, tuple[Prompt, ...]] | None = None

    @property
    def metrics(self) -> tuple[str, ...]:
        """Metrics measured after every click: IoU and those of ``until``."""
        return ("iou", *(name for name in self.until if name != "iou"))


@dataclass(frozen=True)
class Outcome:
    """A trace and, if masks are kept, a record of them (one line of ``masks.jsonl``)."""

    trace: Trace
    masks: dict[str, Any] | None = None


def simulate(sample: Sample, model: InteractiveModel, plan: Plan) -> tuple[Trace, dict[int, np.ndarray]]:
    """Click on one object until every metric has reached its target, or for the maximum number of clicks.

    Returns the trace and the kept masks, click number (0: to start from) -> bool (H, W).
    """
    return views.drive(model, clicking(sample, model, plan))


def clicking(
    sample: Sample, model: InteractiveModel, plan: Plan, live: Callable[[], int] = lambda: 1
) -> Generator[Query, Tensor, tuple[Trace, dict[int, np.ndarray]]]:
    """:func:`simulate` as a generator: the caller runs the model for each query and sends its logits.

    live: how many objects currently share the model; the seconds of a click are its wall time divided by this number.
    """
    protocol = plan.protocols.get(sample.dataset, plan.protocol)
    session = Session(model, sample.image, protocol, sample.initial, undo=0)
    metrics = {name: _metric(name, sample.truth, plan.band) for name in plan.metrics}
    scores: dict[str, list[float]] = {name: [] for name in metrics}
    clicks: list[Prompt] = []
    seconds: list[float] = []
    kept: dict[int, np.ndarray] = {}
    key = f"{sample.dataset}/{sample.id}"
    given = plan.replay[key] if plan.replay is not None else None
    mask = shown = session.mask
    if plan.hashes and sample.initial is not None:
        kept[0] = mask
    for number in range(1, (plan.max_clicks if given is None else len(given)) + 1):
        started = time.perf_counter()
        click = given[number - 1] if given is not None else next_prompt(protocol, sample.truth, mask, clicks, key)
        if click is None:
            break
        try:
            mask = yield from session.queries(click)
            shown = yield from session.final_queries()
        except HrsegError as error:
            raise HrsegError(f"{key}: {error}") from None
        seconds.append((time.perf_counter() - started) / live())
        clicks.append(click)
        for name, metric in metrics.items():
            scores[name].append(metric(shown))
        if number in plan.keep_masks:
            kept[number] = shown
        if given is None and all(scores[name][-1] >= value for name, value in plan.until.items()):
            break
    if plan.keep_masks and clicks:
        kept[len(clicks)] = shown
    trace = Trace(
        id=sample.id,
        dataset=sample.dataset,
        clicks=tuple(clicks),
        scores={name: tuple(values) for name, values in scores.items()},
        seconds=tuple(seconds),
        until=dict(plan.until),
        size=(sample.truth.shape[0], sample.truth.shape[1]),
        area=int((sample.truth == 1).sum()),
        notes={"stale_roi": session.state.stale} if session.state.stale else {},
    )
    return trace, kept


def _metric(name: str, truth: np.ndarray, band: dict[str, Any]) -> Metric:
    metric = catalog.resolve("metric", name)
    made: Metric = metric(truth, **(band if getattr(metric, "takes_band", False) else {}))
    return made


def run(
    plan: Plan, chosen: ModelChoice, refs: Sequence[Ref], workers: int, in_flight: int = 1
) -> Iterator[tuple[int, Outcome]]:
    """Yield (index in ``refs``, outcome) as objects finish. Each process opens the chosen model for itself.

    in_flight: number of objects that share one model in this process; ``workers`` is then the number of threads that
    choose clicks, compute scores and decode. With 1, there are ``workers`` processes; a single worker runs in this
    process, in order.
    """
    if in_flight > 1:
        yield from _in_flight(plan, chosen, refs, in_flight, workers)
    elif workers <= 1 or len(refs) <= 1:
        yield from _here(plan, chosen, refs)
    else:
        yield from _in_processes(plan, chosen, refs, min(workers, len(refs)))


def _here(plan: Plan, chosen: ModelChoice, refs: Sequence[Ref]) -> Iterator[tuple[int, Outcome]]:
    with one_thread_for_now(), reproducible():
        model, _ = chosen.open()
        # Decode ahead only on a GPU: on a CPU it would compete for cores and lengthen the seconds of a click.
        with closing(decoded(refs, ahead=int(chosen.device != "cpu"))) as loaded:
            for index, (ref, (sample, rule)) in enumerate(zip(refs, loaded, strict=True)):
                yield index, views.drive(model, _work(plan, model, ref, sample, rule))


def _in_flight(
    plan: Plan, chosen: ModelChoice, refs: Sequence[Ref], in_flight: int, threads: int
) -> Iterator[tuple[int, Outcome]]:
    with one_thread_for_now(), reproducible():
        model, _ = chosen.open()
        left = len(refs)
        with closing(decoded(refs, ahead=threads)) as loaded:
            tasks = (
                _work(plan, model, ref, sample, rule, live=lambda: min(in_flight, left))
                for ref, (sample, rule) in zip(refs, loaded, strict=True)
            )
            with closing(batched(model, tasks, in_flight, threads)) as ended:
                for index, outcome in ended:
                    left -= 1
                    yield index, outcome


def decoded(refs: Sequence[Ref], ahead: int) -> Generator[tuple[Sample, str], None, None]:
    """Samples and their label rules, in order. ``ahead`` threads decode as many samples in advance."""
    if not ahead:
        yield from map(load_with_rule, refs)
        return
    pool = ThreadPoolExecutor(ahead)
    try:
        waiting: deque[Future[tuple[Sample, str]]] = deque()
        for ref in refs:
            waiting.append(pool.submit(load_with_rule, ref))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _in_processes(plan: Plan, chosen: ModelChoice, refs: Sequence[Ref], workers: int) -> Iterator[tuple[int, Outcome]]:
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (plan, chosen))
    left = iter(enumerate(refs))
    tasks: dict[Future[Outcome], int] = {}
    try:
        while True:
            # Submit only a few more than there are workers: waiting for a million futures takes longer than clicking.
            for index, ref in islice(left, 2 * workers - len(tasks)):
                tasks[pool.submit(_in_worker, ref)] = index
            if not tasks:
                return
            done, _ = wait(tasks, return_when="FIRST_COMPLETED")
            for future in sorted(done, key=lambda future: future.exception() is not None):  # results before errors
                yield tasks.pop(future), future.result()
    except BrokenProcessPool:
        raise HrsegError(
            "a worker process died, most likely because it ran out of memory; rerun the same command with fewer "
            "`workers`; finished objects are kept"
        ) from None
    finally:
        for process in list((pool._processes or {}).values()):
            process.terminate()  # do not wait for the current click, which may take a minute
        pool.shutdown(wait=True, cancel_futures=True)


_worker: Callable[[Ref], Outcome]


def _start_worker(plan: Plan, chosen: ModelChoice) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    Thread(target=_follow_parent, daemon=True).start()
    one_thread()
    model, _ = chosen.open()
    _worker = partial(_load_and_work, plan, model)


def _follow_parent() -> None:
    """Exit with the parent process: if it is killed, its workers would otherwise wait forever."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _in_worker(ref: Ref) -> Outcome:
    return _worker(ref)


def _load_and_work(plan: Plan, model: InteractiveModel, ref: Ref) -> Outcome:
    with reproducible():
        return views.drive(model, _work(plan, model, ref, *load_with_rule(ref)))


def _work(
    plan: Plan, model: InteractiveModel, ref: Ref, sample: Sample, rule: str, live: Callable[[], int] = lambda: 1
) -> Generator[Query, Tensor, Outcome]:
    trace, kept = yield from clicking(sample, model, plan, live)
    trace = Trace(**{**trace.__dict__, "rule": rule})
    if not plan.keep_masks:
        return Outcome(trace)
    void, start = sample.truth == -1, kept.pop(0, None)
    record: dict[str, Any] = {
        "id": ref.id,
        "dataset": ref.dataset,
        "image": str(ref.image.absolute()),
        "draw": ref.draw,
        "range": str(ref.span) if ref.span else None,
        "size": list(sample.truth.shape),
        "truth": _encode(sample.truth == 1),
        "void": _encode(void) if void.any() else None,
        "masks": {str(number): _encode(mask) for number, mask in kept.items()},
    }
    if plan.hashes:
        record["image_sha256"] = hashlib.sha256(np.ascontiguousarray(sample.image).tobytes()).hexdigest()
        record["initial"] = None if start is None else _encode(start)
    return Outcome(trace, record)


def _encode(mask: np.ndarray) -> str:
    counts: bytes = coco.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"]
    return counts.decode()
