"""Seconds per click by part (choosing the click, cropping, network, pasting, metrics) and peak memory.

Each case runs in its own process, because peak memory is counted per process. Absolute times depend on the machine and
its load: compare only rows printed by one call, on an idle machine.
"""

from __future__ import annotations

import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import torch

from hrseg_cli import catalog
from hrseg_cli.clicks.annotator import next_prompt
from hrseg_cli.data import procedural
from hrseg_cli.data.datasets import open_dataset
from hrseg_cli.data.samples import load
from hrseg_cli.engine.devices import reproducible
from hrseg_cli.engine.runtimes import open_model
from hrseg_cli.engine.session import Session
from hrseg_cli.engine.views import drive
from hrseg_cli.errors import HrsegError
from hrseg_cli.interaction import Click, Prompt
from hrseg_cli.models.base import InteractiveModel
from hrseg_cli.recipe import Protocol

PARTS = ("next_click", "view", "encode", "network", "paste", "metrics")  # paste includes refining


@dataclass(frozen=True)
class Case:
    """The settings of one row of the table; sent to the process that measures it.

    size: (height, width) in pixels. objects, clicks: number of objects, and of clicks on each; one more object serves
    as warm-up. threads: of PyTorch and OpenCV. runtime, precision: see :func:`open_model`.
    """

    model: str
    protocol: Protocol
    size: tuple[int, int]
    device: str
    metrics: tuple[str, ...]
    objects: int
    clicks: int
    threads: int
    runtime: str | None = None
    precision: str = "fp32"


def measure_apart(case: Case) -> dict[str, Any]:
    """:func:`measure` in its own process. Raises HrsegError if that process dies."""
    # The default handler ends the process on Ctrl-C without a second traceback.
    with ProcessPoolExecutor(1, get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_DFL)) as pool:
        try:
            return pool.submit(measure, case).result()
        except BrokenProcessPool:
            height, width = case.size
            raise HrsegError(
                f"{case.model} at {height}x{width}: the process died, most likely because it ran out of memory; "
                "use a smaller `size` or another `protocol`"
            ) from None


@reproducible()
def measure(case: Case) -> dict[str, Any]:
    """One row: median seconds over objects and clicks, and peak memory in MB.

    decode: reading an object's files. start: creating the session and the metrics. first, later: the parts of the first
    click and of later ones, each with a total. Their parts include view: preparing the network's input; encode: the
    image encoder, if the network has one; paste: everything from the logits to the mask.
    """
    torch.set_num_threads(case.threads)
    cv2.setNumThreads(case.threads)
    model, provenance = open_model(case.model, case.runtime, case.device, case.precision)
    laps = _Laps(model, case.device)
    seen: dict[str, list[dict[str, float]]] = {"object": [], "first": [], "later": []}
    with TemporaryDirectory() as name:
        _draw(Path(name), case.objects + 1, case.size)
        for number, ref in enumerate(open_dataset(name)):
            laps.begin()
            sample = load(ref)
            laps.lap("decode")
            session = Session(model, sample.image, case.protocol, sample.initial, undo=0)
            metrics = [catalog.resolve("metric", metric)(sample.truth) for metric in case.metrics]
            laps.lap("start")
            if number:
                seen["object"].append(laps.seconds)
            clicks: list[Prompt] = []
            mask = session.mask
            for count in range(case.clicks):
                laps.begin()
                click = next_prompt(case.protocol, sample.truth, mask, clicks, sample.id) or Click(0, 0, False)
                laps.lap("next_click")
                mask = session.prompt(click)
                shown = drive(model, session.final_queries())
                laps.lap("paste")
                for metric in metrics:
                    metric(shown)
                laps.lap("metrics")
                clicks.append(click)
                if number:
                    seen["later" if count else "first"].append(laps.seconds)
    row: dict[str, Any] = {
        "model": case.model,
        "protocol": case.protocol.name,
        "size": f"{case.size[0]}x{case.size[1]}",
        "device": case.device,
        "runtime": provenance.get("runtime", {"name": "torch"})["name"],
        "precision": case.precision,
        "threads": case.threads,
        "metrics": list(case.metrics),
        "objects": case.objects,
        "clicks": case.clicks,
        **{part: _median(one[part] for one in seen["object"]) for part in ("decode", "start")},
    }
    for which in ("first", "later"):
        if seen[which]:
            row[which] = {part: _median(one[part] for one in seen[which]) for part in PARTS}
            row[which]["total"] = _median(sum(one.values()) for one in seen[which])
    peak = peak_memory()
    row["memory_mb"] = None if peak is None else round(peak / 1e6)
    if case.device != "cpu":
        row["gpu_memory_mb"] = round(torch.cuda.max_memory_allocated(case.device) / 1e6)
    return row


class _Laps:
    """Seconds by part since :meth:`begin`. Wraps the model's encode and decode methods to time them separately."""

    def __init__(self, model: InteractiveModel, device: str) -> None:
        self._device = device
        for name, part in (("encode", "encode"), ("decode", "network")):
            setattr(model, name, self._timed(getattr(model, name), part))
        self.begin()

    def begin(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._then = time.perf_counter()

    def _timed(self, call: Callable[..., Any], part: str) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            self.lap("view")
            result = call(*arguments)
            self.lap(part)
            return result

        return timed

    def lap(self, part: str) -> None:
        if self._device != "cpu":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self.seconds[part] += now - self._then
        self._then = now


def _draw(folder: Path, count: int, size: tuple[int, int]) -> None:
    """Write procedural objects of this size as JPEG and PNG files. Large ones are upscaled, as drawing them is slow."""
    for part in ("images", "masks"):
        (folder / part).mkdir()
    for index in range(count):
        image, coverage = procedural.draw(0, index, min(1024, max(size)))
        image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_CUBIC)
        mask = cv2.resize(coverage, size[::-1], interpolation=cv2.INTER_LINEAR)
        cv2.imwrite(str(folder / "images" / f"{index}.jpg"), image[..., ::-1])
        cv2.imwrite(str(folder / "masks" / f"{index}.png"), np.where(mask > 127, 255, 0).astype(np.uint8))


def _median(values: Any) -> float:
    return round(float(median(values)), 5)


def peak_memory() -> int | None:
    """Peak resident memory of this process in bytes; None where the system does not tell. Linux's ``ru_maxrss`` would
    include the parent's before the fork."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
