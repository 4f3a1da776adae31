"""Many objects at once on one model: forward passes are batched, all other work runs in threads.

An object is a task: a generator that yields queries for the network and receives their logits
(:func:`hrseg_cli.engine.views.drive` runs a single task). Tasks advance in turns. In each turn, queries of the same
size share forward passes. Then each task continues to its next query in a thread: it pastes the prediction, scores the
mask and chooses the next click, which is CPU work in OpenCV and NumPy.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, TypeVar

import torch
from torch import Tensor

from hrseg_cli.engine import views
from hrseg_cli.engine.views import Query
from hrseg_cli.errors import HrsegError
from hrseg_cli.models.base import InteractiveModel

T = TypeVar("T")
Task = Generator[Query, Tensor, T]

# Pixels of a batch, mirrored views included: 52 pairs of 400x400, 8 of 1024x1024. Limits the memory of a forward pass.
BATCH_PIXELS = 2**24


@dataclass(frozen=True)
class _Finished(Generic[T]):
    result: T


@dataclass(eq=False)
class _Group(Generic[T]):
    """Tasks that advance together, in the order in which they started, on their own CUDA stream."""

    stream: torch.cuda.Stream | None
    running: list[tuple[int, Task[T], Future[Query | _Finished[T]]]] = field(default_factory=list)

    def on_stream(self) -> AbstractContextManager[object]:
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    def advance(self, task: Task[T], logits: Tensor | None) -> Query | _Finished[T]:
        with self.on_stream(), torch.inference_mode():
            try:
                return next(task) if logits is None else task.send(logits)
            except StopIteration as end:
                return _Finished(end.value)


def batched(
    model: InteractiveModel,
    tasks: Iterator[Task[T]],
    in_flight: int,
    threads: int,
    groups: int | None = None,
) -> Generator[tuple[int, T], None, None]:
    """Run tasks, at most ``in_flight`` at a time; yields (task number, result) as they finish.

    Tasks form ``groups`` that take turns, by default two on a GPU: while the network runs for one group, threads work
    on the other. Which tasks share a batch depends on the tasks alone, not on their timing, so results are reproducible
    on one machine. After an HrsegError in a task or in the iterator no new task is started; it is raised once the
    running tasks have finished.
    """
    device = next(iter(model.parameters()), torch.empty(0)).device
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)  # the weights were copied on another stream
    turns = range(min(groups or (2 if cuda else 1), in_flight))
    capacity = {
        _Group[T](torch.cuda.Stream(device) if cuda else None): len(range(turn, in_flight, len(turns)))  # type: ignore[no-untyped-call]
        for turn in turns
    }
    waiting = enumerate(tasks)
    failed: list[HrsegError] = []
    with ThreadPoolExecutor(threads) as pool:
        try:
            while True:
                for group, size in capacity.items():
                    paused: list[tuple[int, Task[T]]] = []
                    queries: list[Query] = []
                    for number, task, future in group.running:
                        try:
                            step = future.result()
                        except HrsegError as error:
                            failed.append(error)
                            continue
                        if isinstance(step, _Finished):
                            yield number, step.result
                        else:
                            paused.append((number, task))
                            queries.append(step)
                    with group.on_stream():
                        outputs = _infer_all(model, queries)
                    group.running = [
                        (number, task, pool.submit(group.advance, task, logits))
                        for (number, task), logits in zip(paused, outputs, strict=True)
                    ]
                    try:
                        for number, task in islice(waiting if not failed else (), size - len(group.running)):
                            group.running.append((number, task, pool.submit(group.advance, task, None)))
                    except HrsegError as error:
                        failed.append(error)
                if not any(group.running for group in capacity):
                    break
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    if failed:
        raise failed[0]


@torch.inference_mode()
def _infer_all(model: InteractiveModel, queries: Sequence[Query]) -> list[Tensor]:
    """Logits (1, 1, H, W) of each query. Queries of one size are batched, up to :data:`BATCH_PIXELS` a batch."""
    by_size: dict[tuple[torch.Size, bool], list[int]] = {}
    for number, query in enumerate(queries):
        by_size.setdefault((query.previous.shape, query.flip), []).append(number)
    found: dict[int, Tensor] = {}
    for (shape, flip), numbers in by_size.items():
        most = max(1, BATCH_PIXELS // (shape[-2] * shape[-1] * (1 + flip)))
        for first in range(0, len(numbers), most):
            batch = numbers[first : first + most]
            logits = views.infer(model, [queries[number] for number in batch])
            found.update((number, logits[i : i + 1]) for i, number in enumerate(batch))
    return [found[number] for number in range(len(queries))]
