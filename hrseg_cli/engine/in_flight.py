"""Many objects on one model at once: what they ask is answered in batches, all else is done in threads.

An object is a course of looks (:func:`hrseg_cli.engine.views.follow` answers one of them alone): it yields what the
network is to see and is sent the logits. Here many courses advance in turns. In a turn the looks of one size go through
the network together; then each course goes on in a thread of its own to its next look: it pastes its answer, scores the
mask and chooses the next click, work of the CPU in OpenCV and NumPy that runs beside that of others.
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
from hrseg_cli.engine.views import Look
from hrseg_cli.errors import HrsegError
from hrseg_cli.models.base import InteractiveModel

T = TypeVar("T")
Course = Generator[Look, Tensor, T]

# Pixels of a batch, mirror images included: 52 pairs of 400x400, 8 of 1024x1024. It bounds the memory of a pass.
BATCH_PIXELS = 2**24


@dataclass(frozen=True)
class _Ended(Generic[T]):
    result: T


@dataclass(eq=False)
class _Group(Generic[T]):
    """Courses that advance together, in the order in which they began; their tensors are on a CUDA stream of their
    own."""

    stream: torch.cuda.Stream | None
    under_way: list[tuple[int, Course[T], Future[Look | _Ended[T]]]] = field(default_factory=list)

    def on_stream(self) -> AbstractContextManager[object]:
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    def advance(self, course: Course[T], answer: Tensor | None) -> Look | _Ended[T]:
        with self.on_stream(), torch.inference_mode():
            try:
                return next(course) if answer is None else course.send(answer)
            except StopIteration as end:
                return _Ended(end.value)


def batched(
    model: InteractiveModel,
    courses: Iterator[Course[T]],
    in_flight: int,
    threads: int,
    groups: int | None = None,
) -> Generator[tuple[int, T], None, None]:
    """(number of the course, what came of it) as courses end, at most ``in_flight`` of them under way at a time.

    They form ``groups`` that take turns, two on a GPU unless told otherwise: while the network answers one, threads
    work on the other. Who is in a batch depends on the courses alone, never on who was quicker, so the same call
    computes the same on the same machine.
    An HrsegError of one course, or of the iterator, is raised when those under way have ended; none is begun after it.
    """
    device = next(iter(model.parameters()), torch.empty(0)).device
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)  # the weights were made on another stream
    turns = range(min(groups or (2 if cuda else 1), in_flight))
    # How many each may hold
    sizes = {
        _Group[T](torch.cuda.Stream(device) if cuda else None): len(range(turn, in_flight, len(turns)))  # type: ignore[no-untyped-call]
        for turn in turns
    }
    waiting = enumerate(courses)
    failed: list[HrsegError] = []
    with ThreadPoolExecutor(threads) as pool:
        try:
            while True:
                for group, size in sizes.items():
                    asking: list[tuple[int, Course[T]]] = []
                    looks: list[Look] = []
                    for number, course, future in group.under_way:
                        try:
                            ahead = future.result()
                        except HrsegError as error:
                            failed.append(error)
                            continue
                        if isinstance(ahead, _Ended):
                            yield number, ahead.result
                        else:
                            asking.append((number, course))
                            looks.append(ahead)
                    with group.on_stream():
                        answers = _answers(model, looks)
                    group.under_way = [
                        (number, course, pool.submit(group.advance, course, answer))
                        for (number, course), answer in zip(asking, answers, strict=True)
                    ]
                    try:
                        for number, course in islice(waiting if not failed else (), size - len(group.under_way)):
                            group.under_way.append((number, course, pool.submit(group.advance, course, None)))
                    except HrsegError as error:
                        failed.append(error)
                if not any(group.under_way for group in sizes):
                    break
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    if failed:
        raise failed[0]


@torch.inference_mode()
def _answers(model: InteractiveModel, looks: Sequence[Look]) -> list[Tensor]:
    """Logits (1, 1, H, W) for each look; those of one size in as few passes of the network as :data:`BATCH_PIXELS`
    allows."""
    alike: dict[tuple[torch.Size, bool], list[int]] = {}
    for number, look in enumerate(looks):
        alike.setdefault((look.previous.shape, look.flip), []).append(number)
    answers: dict[int, Tensor] = {}
    for (shape, flip), numbers in alike.items():
        most = max(1, BATCH_PIXELS // (shape[-2] * shape[-1] * (1 + flip)))
        for first in range(0, len(numbers), most):
            batch = numbers[first : first + most]
            logits = views.ask(model, [looks[number] for number in batch])
            answers.update((number, logits[i : i + 1]) for i, number in enumerate(batch))
    return [answers[number] for number in range(len(looks))]
