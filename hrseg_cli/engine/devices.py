"""Settings of the processor or GPU: precision, threads, reproducibility."""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, cast, get_args

import cv2
import torch
import torch.nn.functional as F

from hrseg_cli.data.paths import cache_folder
from hrseg_cli.errors import HrsegError, nearest
from hrseg_cli.parsing import read_json
from hrseg_cli.writing import write_atomically

Precision = Literal["bf16", "fp32"]

WORTHWHILE = 0.87  # share of fp32's time that bf16 may take: a smaller gain does not justify its rounding


def best_precision(device: str) -> Precision:
    """The faster of bf16 and fp32 for a convolution on ``device``.

    A CPU is benchmarked for a tenth of a second and the result cached per processor (:func:`cache_folder`). CPU flags
    are not enough: processors with bf16 instructions but no matrix units run bf16 convolutions at half the speed.
    """
    if device != "cpu":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "fp32"
    path, machine = cache_folder() / "precision.json", f"{processor()}, PyTorch {torch.__version__}"
    try:
        known = dict(read_json(path))
    except (OSError, ValueError, TypeError):  # missing or damaged
        known = {}
    if known.get(machine) in get_args(Precision):
        return cast(Precision, known[machine])
    seconds = _seconds_of_a_convolution()
    known[machine] = "bf16" if seconds["bf16"] < WORTHWHILE * seconds["fp32"] else "fp32"
    with suppress(OSError):  # read-only home: measure again next time
        write_atomically(path, json.dumps(known, indent=1).encode())
    return cast(Precision, known[machine])


def available(device: str) -> str:
    """The device itself, if this machine has it: "cpu", "cuda" or "cuda:N". Raises HrsegError."""
    if device == "cpu":
        return device
    guess = "cuda" if device.lower() in ("gpu", "nvidia") else nearest(device, ("cpu", "cuda"))
    wrong = HrsegError(f"`device` {device}: write cpu, cuda or cuda:N{f' (did you mean {guess}?)' if guess else ''}")
    try:
        found = torch.device(device)
    except RuntimeError:
        raise wrong from None
    if found.type != "cuda":
        raise wrong
    if not torch.cuda.is_available():
        raise HrsegError(f"`device` {device}: this PyTorch sees no GPU; use `device` cpu")
    if (found.index or 0) >= (count := torch.cuda.device_count()):
        raise HrsegError(f"`device` {device}: this machine has {count} GPUs, numbered from 0; choose one of them")
    return device


def processor() -> str:
    """The processor's model name, or what the ``platform`` module reports."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@torch.inference_mode()
def _seconds_of_a_convolution() -> dict[Precision, float]:
    """The fastest of a few runs in each precision, alternating, so that load affects both alike."""
    x = torch.rand(1, 64, 104, 104).contiguous(memory_format=torch.channels_last)
    weight = torch.rand(64, 64, 3, 3)
    kinds: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
    best: dict[Precision, float] = {"fp32": math.inf, "bf16": math.inf}
    for _ in range(6):  # the first is a warm-up
        for precision, kind in kinds.items():
            inputs = x.to(kind), weight.to(kind)
            started = time.perf_counter()
            F.conv2d(*inputs, padding=1)
            best[precision] = min(best[precision], time.perf_counter() - started)
    return best


@contextmanager
def reproducible() -> Iterator[None]:
    """Full single precision (no TF32) and deterministic cuDNN kernels on a GPU."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def one_thread() -> None:
    """Limit PyTorch and OpenCV to one thread."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


@contextmanager
def one_thread_for_now() -> Iterator[None]:
    """:func:`one_thread` for the duration of a ``with`` block."""
    threads = torch.get_num_threads(), cv2.getNumThreads()
    one_thread()
    try:
        yield
    finally:
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])
