"""OpenCV's graph cut in a process of its own, which ends itself when a picture keeps it computing for too long.

A cut of a photograph takes a few seconds at most. One of a picture of very few colours (a checkerboard, two grey levels
of noise) may take many minutes, and nothing tells them apart beforehand. It runs in C++, where neither Ctrl-C nor
SIGTERM is heard; whoever waits for a process hears them. The limit is one of computing time, so that a busy machine
gives the same answers as an idle one.

Run as a script, this file is that process. It reads requests from stdin and writes answers to stdout: three int32
(rows, columns, rounds) and a float64 (seconds), the picture's bytes and the labels' bytes; the new labels' bytes.
"""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import struct
import subprocess
import sys
import time
from threading import Lock, Thread
from typing import BinaryIO

import cv2
import numpy as np

TOO_LONG = 75  # exit code
HEAD = struct.Struct("<3id")

_lock = Lock()
_process: subprocess.Popen[bytes] | None = None


def limit(pixels: int) -> float:
    """Seconds of computing that a round may take; photographs take a tenth to a quarter of it."""
    return max(5.0, pixels / 10_000)


def cut(picture: np.ndarray, labels: np.ndarray, iterations: int) -> np.ndarray | None:
    """The labels after ``iterations`` rounds of graph cut; None where that takes longer than :func:`limit`.

    picture: uint8 (H, W, 3). labels: OpenCV's four, uint8 (H, W), object and background both among them.
    Raises HrsegError where the process was ended from outside.
    """
    global _process
    with _lock:
        if _process is None:
            command = [sys.executable, "-P", __file__]
            # In a session of its own Ctrl-C does not reach it: ending it is up to whoever waits.
            _process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        asked, answers = _process.stdin, _process.stdout
        assert asked
        assert answers
        try:
            asked.write(HEAD.pack(*labels.shape, iterations, limit(labels.size)) + picture.tobytes() + labels.tobytes())
            asked.flush()
            answer = answers.read(labels.size)
        except BrokenPipeError:
            answer = b""
        except BaseException:  # an interrupt
            end()
            raise
        if len(answer) == labels.size:
            return np.frombuffer(answer, np.uint8).reshape(labels.shape)
        code = _process.wait()
        end()
    if code != TOO_LONG:
        from hrseg_cli.errors import HrsegError  # not above: the script needs none of the package

        raise HrsegError(
            f"the process of the graph cut was ended ({code}), most likely for want of memory; run it again"
        )
    return None


def end() -> None:
    """End the process, if there is one."""
    global _process
    if _process is not None:
        _process.kill()
        _process.communicate()
        _process = None


atexit.register(end)


def serve(asked: BinaryIO, answers: BinaryIO) -> None:
    """Answer until ``asked`` ends; exit with TOO_LONG when a request takes more computing than it may."""
    ends = math.inf

    def watch() -> None:
        while True:
            time.sleep(0.1)
            if time.process_time() > ends:
                os._exit(TOO_LONG)

    Thread(target=watch, daemon=True).start()
    cv2.setNumThreads(1)
    while head := asked.read(HEAD.size):
        rows, cols, iterations, seconds = HEAD.unpack(head)
        picture = np.frombuffer(asked.read(rows * cols * 3), np.uint8).reshape(rows, cols, 3)
        labels = np.frombuffer(asked.read(rows * cols), np.uint8).reshape(rows, cols).copy()
        ends = time.process_time() + seconds
        cv2.setRNGSeed(0)  # the colour models start from k-means
        models = np.zeros((1, 65)), np.zeros((1, 65))
        # The labels are updated in place. OpenCV reads no rectangle when it starts from a mask.
        cv2.grabCut(picture, labels, (0, 0, 1, 1), *models, iterations, cv2.GC_INIT_WITH_MASK)
        ends = math.inf
        answers.write(labels.tobytes())
        answers.flush()


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):  # nobody is there to be answered
        serve(sys.stdin.buffer, sys.stdout.buffer)
