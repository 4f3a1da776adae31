"""Every command of the README, the tutorial and the tour, run as written and in order."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from reference import GOLDEN
from tiny_photos import photograph, truth
from tiny_sets import write_all

from hrseg_cli.checkpoints.resolve import load_model

ROOT = Path(__file__).resolve().parent.parent
ELSEWHERE = {  # command -> where it is run instead
    "hrseg prepare-data hqseg44k --split val --root data": "downloads; tests/commands/test_known_datasets.py",
    "hrseg prepare-data procedural --count 50 --size 2048 --seed 1 --out data/drawn": "minutes; test_prepare_data.py",
    "make test": "this is it",
    "make demo": ".ci/run",
    "make demo DATA=my_photos": ".ci/run",
    "make tables DATA=photos": "hours; tests/test_paper_tables.py",
}

COUNTED = "print([int(mask.sum()) for mask in masks])"  # what the notebook's second cell shows


def commands_of(text: str) -> Iterator[str]:
    """The command lines in a document's blocks, indented or fenced, without their comments."""
    fenced = False
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            command = re.sub(r"\s+# .*$", "", line).strip()
            if command.startswith(("hrseg ", "make ")):
                yield re.sub(r" {2,}", " ", command)


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder with what the documents take for granted: photographs with masks, a public checkpoint, some clicks. The
    photographs are easy and the checkpoint is small, for it is the commands that are tried."""
    here = tmp_path / "a desk"
    here.mkdir()
    for folder, pixels in (("images", photograph()), ("masks", truth("red").astype(np.uint8) * 255)):
        (here / "my_photos" / folder).mkdir(parents=True)
        for name in ("a.png", "b.png", "c.png"):
            Image.fromarray(pixels).resize((320, 240), Image.Resampling.NEAREST).save(
                here / "my_photos" / folder / name
            )
    Image.open(here / "my_photos" / "images" / "a.png").save(here / "cat.jpg")
    (here / "clicks.json").write_text(json.dumps({"a.png": [[80, 80, 1], [10, 10, 0]]}))
    config = json.loads(gzip.decompress((GOLDEN / "state_dicts.json.gz").read_bytes()))["h18s"]["config"]
    weights = {"state_dict": load_model("h18s")[0].state_dict(), "config": config}
    torch.save(weights, here / "coco_lvis_h18_itermask.pth")
    write_all(here / "data")
    return here


def run(command: str, folder: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "HRSEG_DATA"}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}:{environment['PATH']}",
        "OMP_NUM_THREADS": "1",
        "BROWSER": "true",
    }
    done = subprocess.Popen(
        ["bash", "-o", "pipefail", "-c", command], cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    if command.startswith("hrseg annotate"):  # stays until it is told to stop
        assert done.stderr is not None
        assert "http://127.0.0.1" in done.stderr.readline()
        os.killpg(done.pid, signal.SIGINT)
    try:
        out, err = done.communicate(timeout=600)
    except subprocess.TimeoutExpired:
        os.killpg(done.pid, signal.SIGKILL)  # with its workers
        pytest.fail(f"{command}\nstill runs after 10 minutes; it said {done.communicate()}")
    wanted = (0, 130) if command.startswith("hrseg annotate") else (0,)
    assert done.returncode in wanted, f"{command}\n{out[-2000:]}\n{err[-4000:]}"


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("document", ["README.md", "docs/tutorial.md", "docs/tour.md"])
def test_the_commands_of_a_document_work_as_written(document: str, desk: Path) -> None:
    commands = [c for c in commands_of((ROOT / document).read_text(encoding="utf-8")) if c not in ELSEWHERE]
    assert len(commands) >= 5, "the commands are not found any more"
    for command in commands:
        run(command, desk)


def run_python(code: str, folder: Path) -> str:
    """What a program prints; warnings are errors, as they are here."""
    (folder / "program.py").write_text(code, encoding="utf-8")
    environment = {key: value for key, value in os.environ.items() if key != "HRSEG_DATA"}
    environment |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    done = subprocess.run(
        [sys.executable, "-W", "error:::__main__", "program.py"],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_python_of_the_documents_works_as_written(desk: Path) -> None:
    """All blocks as one program; what a comment says is printed is printed."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/python.md").read_text(encoding="utf-8"), re.S | re.M)
    code = "\n".join(blocks)
    said = re.findall(r"^ *print\(.*\)  # (.+)$", code, re.M)
    assert len(blocks) > 5, "the blocks are not found any more"
    assert len(said) >= 2, "the comments are not found any more"
    out = run_python(code, desk)
    assert not [text for text in said if text not in out]


@pytest.mark.slow
def test_the_notebook_runs_as_written(tmp_path: Path) -> None:
    """Its outputs too are there, small, and of the cells that stand above them.

    Made again by: pip install nbclient ipykernel; jupyter execute --inplace docs/notebooks/quickstart.ipynb
    """
    path = ROOT / "docs" / "notebooks" / "quickstart.ipynb"
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert path.stat().st_size < 300_000
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell["outputs"])
    out = run_python("\n".join(["".join(cell["source"]) for cell in cells] + [COUNTED]), tmp_path)
    (shown,) = (
        "".join(output["data"]["text/plain"])
        for cell in cells
        for output in cell["outputs"]
        if "".join(cell["source"]).endswith("for mask in masks]")
    )
    assert json.loads(out) == pytest.approx(json.loads(shown), rel=0.01)
