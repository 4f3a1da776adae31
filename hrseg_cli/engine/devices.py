"""What a processor or a GPU is told before it computes: precision, threads, reproducibility."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import cv2
import torch


def best_precision(device: str) -> Literal["bf16", "fp32"]:
    """bf16 where ``device`` has units for it, else fp32: without them a CPU is eight times slower in bf16."""
    if device == "cpu":
        try:
            flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
        except OSError:
            flags = []
        return "bf16" if {"avx512_bf16", "amx_bf16"}.intersection(flags) else "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


@contextmanager
def reproducible() -> Iterator[None]:
    """On a GPU: single precision is single precision (no TF32), and the same call computes the same bits."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def one_thread() -> None:
    """PyTorch and OpenCV compute with one thread from now on."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


@contextmanager
def one_thread_for_now() -> Iterator[None]:
    """:func:`one_thread`, until the block ends."""
    threads = torch.get_num_threads(), cv2.getNumThreads()
    one_thread()
    try:
        yield
    finally:
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])
