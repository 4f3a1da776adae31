"""Peak memory on a photograph of 24 megapixels, in a new process, imports included."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

PREDICT = """
import sys
from hrseg_cli.cli import main
from hrseg_cli.engine.benchmark import peak_memory
try:
    main()
finally:
    print(peak_memory(), file=sys.stderr)
"""

CLICKS = """
import sys
import numpy as np
from hrseg_cli.engine.benchmark import peak_memory
from hrseg_cli.engine.devices import one_thread
from hrseg_cli.engine.fast import open_fast
from hrseg_cli.engine.session import Session
from hrseg_cli.interaction import Click
from hrseg_cli.recipe import load_protocol
one_thread()
image = np.random.default_rng(0).integers(0, 256, (4000, 6000, 3), np.uint8)
session = Session(open_fast("clicknet_m")[0], image, load_protocol("fast"))
for number in range(8):
    session.click(Click(2000, 2500 + 100 * number, number % 3 > 0))
print(peak_memory(), file=sys.stderr)
"""


def peak(code: str, *arguments: object) -> float:
    """In MB."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stderr.split()[-1]) / 1e6


@pytest.mark.slow
@pytest.mark.timeout(1200)  # on a busy machine
def test_memory_of_predict_on_24_megapixels(tmp_path: Path) -> None:
    coarse = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "a.jpg"), cv2.resize(coarse, (6000, 4000), interpolation=cv2.INTER_CUBIC))
    clicks = ("--click", "2000,3000", "--click", "900,3000,neg")
    assert peak(PREDICT, "predict", tmp_path / "a.jpg", *clicks, "--out", tmp_path / "out") < 700
    assert (tmp_path / "out" / "a.png").is_file()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_memory_of_a_session_on_24_megapixels() -> None:
    """Eight clicks that can all be undone."""
    assert peak(CLICKS) < 700
