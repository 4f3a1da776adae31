"""hrseg prepare-data: what it draws can be evaluated, what it checks is named."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

Command = Callable[..., Any]


def test_drawn_set_is_a_dataset(hrseg: Command, tmp_path: Path) -> None:
    done = hrseg("prepare-data", "procedural", "--count", 2, "--size", 128, "--seed", 3, "--out", tmp_path / "set")
    assert done.code == 0, done.err
    assert json.loads(done.out)["objects"] == 2
    done = hrseg(
        "evaluate", "-m", "grabcut", "-d", f"drawn={tmp_path / 'set'}", "--max-clicks", 1, "--workers", 1,
        "-o", tmp_path / "run",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert json.loads(done.out)["n"] == 2


def test_drawn_sets_are_found_by_name_below_the_root(hrseg: Command, tmp_path: Path) -> None:
    assert hrseg("prepare-data", "procedural", "--count", 1, "--size", 128, "--root", tmp_path).code == 0
    assert (tmp_path / "procedural" / "pairs.csv").exists()


def test_a_folder_without_objects_is_no_success(hrseg: Command, tmp_path: Path) -> None:
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    done = hrseg("prepare-data", tmp_path)
    assert (done.code, "no objects; add images and masks" in done.err) == (1, True)
    for part, value in (("images", 90), ("masks", 0)):
        cv2.imwrite(str(tmp_path / part / "blank.png"), np.full((20, 30), value, np.uint8))
    done = hrseg("prepare-data", tmp_path, "--instances")
    assert (done.code, "1 masks have no object" in done.err, "remove --instances" in done.err) == (1, True, True)


def test_copies_count_the_objects_that_are_in_them(hrseg: Command, tmp_path: Path) -> None:
    """An object of one pixel has none left in a copy of an eighth of the size."""
    for part in ("images", "masks"):
        (tmp_path / "set" / part).mkdir(parents=True)
    for name, side in (("large", 200), ("small", 1)):
        mask = np.zeros((512, 512), np.uint8)
        mask[97 : 97 + side, 97 : 97 + side] = 255
        cv2.imwrite(str(tmp_path / "set" / "images" / f"{name}.png"), np.full((512, 512, 3), 90, np.uint8))
        cv2.imwrite(str(tmp_path / "set" / "masks" / f"{name}.png"), mask)
    for _ in range(2):  # the copies are there already the second time
        done = hrseg("prepare-data", tmp_path / "set", "--cache-longest", 64)
        assert done.code == 0, done.err
        assert json.loads(done.out.splitlines()[-1])["objects"] == 1
        assert "skipped 1 of 2 objects, which have no pixel left at 64 pixels" in done.err


def test_a_folder_is_checked_and_indexed(hrseg: Command, tmp_path: Path) -> None:
    """Good objects are written down, each broken file is one line, and the exit code tells."""
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    for name in ("good", "torn", "small"):
        cv2.imwrite(str(tmp_path / "images" / f"{name}.png"), np.full((20, 30, 3), 90, np.uint8))
        mask = np.zeros((20, 30) if name != "small" else (10, 30), np.uint8)
        mask[4:8, 5:9] = 1
        cv2.imwrite(str(tmp_path / "masks" / f"{name}.png"), mask)
    torn = tmp_path / "masks" / "torn.png"
    torn.write_bytes(torn.read_bytes()[:40])
    done = hrseg("prepare-data", tmp_path)
    assert done.code == 1
    for name in ("torn.png", "small.png"):
        assert sum(name in line for line in done.err.splitlines()) == 1
    assert json.loads(done.out) | {"index": ""} == {
        "dataset": str(tmp_path), "index": "", "images": 1, "objects": 1, "rules": {"nonzero": 1}, "problems": 2,
    }  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "index.jsonl").read_text().splitlines()]
    assert lines[1]["id"] == "good"
    assert lines[1]["area"] == 16


FULL_DISK = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit then fails as one to a full disk does
resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
from hrseg_cli.cli import main
main()
"""


def test_a_full_disk_is_one_line_and_leaves_what_was_good(hrseg: Command, tmp_path: Path) -> None:
    """No file is half written, and with room again the same command ends as if nothing had been."""
    words = ["prepare-data", "procedural", "--count", "1", "--size", "128", "--out", str(tmp_path / "set")]
    done = subprocess.run([sys.executable, "-c", FULL_DISK, *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.startswith(f"hrseg: {tmp_path / 'set'}")
    assert done.stderr.count("\n") == 1
    assert not list((tmp_path / "set" / "images").iterdir())
    assert hrseg(*words).code == 0
    whole = [*words[:-1], tmp_path / "whole"]
    assert hrseg(*whole).code == 0
    for part in ("images", "masks"):
        for path in (tmp_path / "whole" / part).iterdir():
            assert (tmp_path / "set" / part / path.name).read_bytes() == path.read_bytes()


def test_problems_name_flags_and_hide_control_characters(hrseg: Command, tmp_path: Path) -> None:
    for part in ("images", "masks"):
        (tmp_path / "d" / part).mkdir(parents=True)
    ids = np.zeros((30, 40), np.uint8)
    for value in (1, 2, 3):
        ids[8 * value : 8 * value + 6, 5:30] = value
    cv2.imwrite(str(tmp_path / "d" / "masks" / "a.png"), ids)
    cv2.imwrite(str(tmp_path / "d" / "images" / "a.png"), ids)
    for part in ("images", "masks"):
        (tmp_path / "d" / part / "b\x1b[31m.png").write_bytes(b"x")
    done = hrseg("prepare-data", tmp_path / "d")
    assert done.code == 1
    assert "add --instances if each value is an object, or --binarize nonzero" in done.err
    assert "b\\x1b[31m.png: cannot be read as an image" in done.err
    assert "\x1b" not in done.err
    assert "`" not in done.err
