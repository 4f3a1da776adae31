"""OpenCV's graph cut in a separate process with a limit on its CPU time.

Cutting a photograph takes a few seconds at most. An image of very few colours (a checkerboard, noise of two grey
levels) may take many minutes, which cannot be predicted. The cut runs in C++ and ignores Ctrl-C and SIGTERM, while
waiting for a process can be interrupted. The limit counts CPU time, so that results do not depend on the machine's
load.

Run as a script, this file is that process. It reads requests from stdin: three int32 (rows, columns, iterations), a
float64 (limit in seconds), the bytes of the image and of the labels. It writes the bytes of the new labels to stdout.
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
    """CPU seconds that a cut may take. Photographs take a tenth to a quarter of it."""
    return max(5.0, pixels / 10_000)


def cut(image: np.ndarray, labels: np.ndarray, iterations: int) -> np.ndarray | None:
    """The labels after ``iterations`` rounds of graph cut; None if that takes longer than :func:`limit`.

    image: uint8 (H, W, 3). labels: OpenCV's four labels, uint8 (H, W), with both object and background present.
    Raises HrsegError if the process died.
    """
    global _process
    with _lock:
        if _process is None:
            command = [sys.executable, "-P", __file__]
            # In a new session, Ctrl-C does not reach it; the waiting process ends it.
            _process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        requests, responses = _process.stdin, _process.stdout
        assert requests
        assert responses
        try:
            requests.write(
                HEAD.pack(*labels.shape, iterations, limit(labels.size)) + image.tobytes() + labels.tobytes()
            )
            requests.flush()
            response = responses.read(labels.size)
        except BrokenPipeError:
            response = b""
        except BaseException:  # for example KeyboardInterrupt
            end()
            raise
        if len(response) == labels.size:
            return np.frombuffer(response, np.uint8).reshape(labels.shape)
        code = _process.wait()
        end()
    if code != TOO_LONG:
        from hrseg_cli.errors import HrsegError  # not at the top: the script runs without the package

        raise HrsegError(
            f"grabcut: the graph cut process died (exit code {code}), most likely because it ran out of memory; rerun "
            "the command"
        )
    return None


def end() -> None:
    """Kill the process if it is running."""
    global _process
    if _process is not None:
        _process.kill()
        _process.communicate()
        _process = None


atexit.register(end)


def serve(requests: BinaryIO, responses: BinaryIO) -> None:
    """Process requests until the stream ends. Exits with TOO_LONG if a request exceeds its CPU time limit."""
    ends = math.inf

    def watch() -> None:
        while True:
            time.sleep(0.1)
            if time.process_time() > ends:
                os._exit(TOO_LONG)

    Thread(target=watch, daemon=True).start()
    cv2.setNumThreads(1)
    while len(head := requests.read(HEAD.size)) == HEAD.size:
        rows, cols, iterations, seconds = HEAD.unpack(head)
        pixels, given = requests.read(rows * cols * 3), requests.read(rows * cols)
        if len(given) < rows * cols:  # the parent process was interrupted in the middle of a request
            return
        image = np.frombuffer(pixels, np.uint8).reshape(rows, cols, 3)
        labels = np.frombuffer(given, np.uint8).reshape(rows, cols).copy()
        ends = time.process_time() + seconds
        cv2.setRNGSeed(0)  # colour models are initialised by k-means
        models = np.zeros((1, 65)), np.zeros((1, 65))
        # Updates the labels in place. The rectangle is ignored in this mode.
        cv2.grabCut(image, labels, (0, 0, 1, 1), *models, iterations, cv2.GC_INIT_WITH_MASK)
        ends = math.inf
        responses.write(labels.tobytes())
        responses.flush()


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):  # the parent process has gone
        serve(sys.stdin.buffer, sys.stdout.buffer)
