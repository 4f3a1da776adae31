"""GrabCut: a mask for every image, and Ctrl-C and SIGTERM work while it computes."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from hrseg_cli import cutting
from hrseg_cli.errors import HrsegError
from hrseg_cli.models.grabcut import GrabCut
from hrseg_cli.models.parts.click_pixels import pixels_under

SIZE = (312, 416)
CHECKS = np.repeat(((np.indices(SIZE).sum(0) % 2) * 200).astype(np.uint8)[:, :, None], 3, 2)  # takes many minutes


def points(row: float, col: float) -> np.ndarray:
    return np.array([[row, col, 0], [-1, -1, -1]], float)


@pytest.fixture
def fresh() -> Iterator[None]:
    cutting.end()
    yield
    cutting.end()


def photograph() -> np.ndarray:
    picture = np.random.default_rng(0).integers(0, 90, (60, 80, 3)).astype(np.uint8)
    picture[20:45, 25:60] += 120
    return picture


def test_the_process_answers_as_the_library_does_here() -> None:
    picture = photograph()
    labels = np.full((60, 80), cv2.GC_PR_BGD, np.uint8)
    labels[25:40, 30:50] = cv2.GC_PR_FGD
    wanted = labels.copy()
    cv2.setRNGSeed(0)
    cv2.grabCut(picture, wanted, (0, 0, 1, 1), np.zeros((1, 65)), np.zeros((1, 65)), 2, cv2.GC_INIT_WITH_MASK)
    for _ in range(2):
        found = cutting.cut(picture, labels, 2)
        assert found is not None
        assert np.array_equal(found, wanted)
    assert (wanted != labels).any()


@pytest.mark.parametrize("noise", [0, 1, 2])
def test_a_blank_picture_is_answered_by_the_clicks(noise: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cutting a blank image would select everything or nothing, or never end."""
    monkeypatch.setattr(cutting, "cut", lambda *_: pytest.fail("a blank picture is not cut"))
    picture = (10 + np.random.default_rng(0).integers(0, noise + 1, (60, 80, 1)).repeat(3, 2)).astype(np.uint8)
    mask = GrabCut(reach=0.2).cut(picture, np.zeros((60, 80), bool), points(30, 40))
    rows, cols = np.nonzero(mask)
    assert np.hypot(rows - 30, cols - 40).max() <= 12
    assert mask.sum() > 400


def test_a_cut_that_takes_too_long_is_ended(
    fresh: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cutting, "limit", lambda pixels: 0.2)
    model = GrabCut()
    mask = model.cut(CHECKS, np.zeros(SIZE, bool), points(150, 200))
    labels = model.seeds(np.zeros(SIZE, bool), np.array([[150, 200], [-1, -1]]))
    assert np.array_equal(mask, np.isin(labels, [cv2.GC_FGD, cv2.GC_PR_FGD]))
    assert "the graph cut of this image took too long" in caplog.text
    monkeypatch.undo()
    assert cutting.cut(photograph(), np.eye(60, 80, dtype=np.uint8) + 2, 1) is not None  # a new process


def test_what_ends_the_process_from_outside_is_told(fresh: None) -> None:
    labels = np.eye(60, 80, dtype=np.uint8) + 2
    cutting.cut(photograph(), labels, 1)
    assert cutting._process
    cutting._process.kill()
    cutting._process.wait()
    with pytest.raises(HrsegError, match=r"exit code -9"):
        cutting.cut(photograph(), labels, 1)
    assert cutting.cut(photograph(), labels, 1) is not None


def test_an_interrupt_is_heard_while_it_cuts(fresh: None) -> None:
    class Stop(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stop

    before = signal.signal(signal.SIGTERM, stop)
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    started = time.monotonic()
    try:
        labels = np.where(np.indices(SIZE)[1] < 60, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
        with pytest.raises(Stop):
            cutting.cut(CHECKS, labels, 1000)
    finally:
        timer.cancel()
        signal.signal(signal.SIGTERM, before)
    assert time.monotonic() - started < 20
    assert cutting._process is None


def test_the_process_ends_with_whoever_started_it() -> None:
    """When the parent is killed, the process ends without a message."""
    process = subprocess.Popen(
        [sys.executable, "-P", str(Path(cutting.__file__))], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    _, complaint = process.communicate(timeout=60)
    assert (process.returncode, complaint) == (0, b"")


@pytest.mark.parametrize(
    "wrong", [{"max_side": 0}, {"iterations": 0}, {"max_side": 1.5}, {"radius": -1}, {"reach": 1e999}]
)
def test_options_of_no_use_are_refused(wrong: dict[str, float]) -> None:
    """A checkpoint may specify them."""
    with pytest.raises(ValueError, match="must be integers"):
        GrabCut(**wrong)  # type: ignore[arg-type]


def test_every_click_of_an_image_lies_on_a_pixel() -> None:
    """Including the last half pixel, for fractional clicks and downsampled crops."""
    size, clicks = (
        (120, 160),
        np.array([[119.7, 159.9], [119.4, 0], [0, 159.5], [-0.3, 5], [120, 5], [5, 160], [-1, -1]]),
    )
    assert pixels_under(clicks, size, 1.0, size).tolist() == [
        [119, 159], [119, 0], [0, 159], [0, 5], [-1, -1], [-1, -1], [-1, -1]
    ]  # fmt: skip
    assert pixels_under(clicks[:1], size, 0.25, (30, 40)).tolist() == [[29, 39]]
    picture, nothing = photograph(), np.zeros((60, 80), bool)
    assert np.array_equal(
        GrabCut().cut(picture, nothing, points(59.7, 79.9)), GrabCut().cut(picture, nothing, points(59, 79))
    )


@pytest.mark.parametrize("kept", [5, 20, 100, 150])
def test_a_request_that_is_cut_off_ends_the_process_quietly(kept: int) -> None:
    """An interrupted command stops in the middle of writing one; nothing is for the user to read then."""
    whole = cutting.HEAD.pack(6, 8, 1, 1.0) + bytes(6 * 8 * 4)
    responses = io.BytesIO()
    cutting.serve(io.BytesIO(whole[:kept]), responses)
    assert responses.getvalue() == b""
