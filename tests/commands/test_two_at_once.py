"""Every command that writes refuses a place where another hrseg writes, in one line, and leaves it as it is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from reference import deterministic_weights
from tiny_photos import folder_of

from hrseg_cli.checkpoints.formats import save_checkpoint
from hrseg_cli.models.hrnet import h18s
from hrseg_cli.writing import only_one, only_one_in

DRAWN = "procedural:count=2,size=64,seed=7"
CLICKS = ["--model", "grabcut", "--protocol", "plain"]
EVALUATION = ["evaluate", *CLICKS, "-d", DRAWN, "--max-clicks", "1", "--workers", "1", "--out", "o"]
PREDICTION = ["predict", "photos/images", *CLICKS, "--clicks", "clicks.json", "--out", "o"]
TRAINING = [
    "--set", f"data.parts=[{{dataset: '{DRAWN}'}}]", "--set", f"validation.datasets=['{DRAWN}']", "--out", "o",
    "--set", "data.crop=[32,32]",
]  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "base.safetensors"
    model = h18s()
    model.load_state_dict(deterministic_weights(model.state_dict()))
    save_checkpoint(model, path, {})
    return path


@pytest.fixture
def place(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder_of(tmp_path / "photos", "a.png", "b.png")
    (tmp_path / "clicks.json").write_text('{"a.png": [[30, 30, 1]], "b.png": [[30, 30, 1]]}')
    (tmp_path / "base.safetensors").symlink_to(base)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("held", "what", "words"),
    [
        ("o", "--out o", EVALUATION),
        ("o/shard-1-of-2", "--out o/shard-1-of-2", [*EVALUATION, "--shard", "1/2"]),
        ("o.jsonl", "--out o.jsonl", ["simulate-clicks", *CLICKS, "-d", DRAWN, "--out", "o.jsonl"]),
        ("o", "--out o", PREDICTION),
        ("o", "--out o", ["train", "--recipe", "tiny_procedural", *TRAINING]),
        ("o", "--out o", ["adapt", "--from", "base.safetensors", "--adapter", "lora", *TRAINING]),
        ("o.safetensors", "--merge o.safetensors", ["adapt", "--from", "base.safetensors", "--merge", "o.safetensors"]),
        ("o.onnx", "--out o.onnx", ["export", "base.safetensors", "--out", "o.onnx"]),
        ("o", "o", ["prepare-data", "procedural", "--count", "1", "--size", "64", "--out", "o"]),
        ("photos/annotations", "photos", ["annotate", "photos", "--model", "grabcut", "--no-browser"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_the_second_is_told_who_is_first(
    hrseg: Callable[..., Any], place: Path, held: str, what: str, words: list[str]
) -> None:
    kind = only_one if "." in held else only_one_in
    with kind(Path(held), "the first"):
        before = sorted(place.rglob("*"))
        done = hrseg(*words)
        *_, last = done.err.strip().splitlines()
        assert done.code == 1
        assert last.startswith(f"hrseg: {what}: in use by process {os.getpid()} (")
        assert last.endswith("; wait for it to finish")
        assert sorted(place.rglob("*")) == before


def test_copies_that_somebody_makes_are_waited_for_or_refused(hrseg: Callable[..., Any], place: Path) -> None:
    assert hrseg("prepare-data", "procedural", "--count", "1", "--size", "128", "--out", "set").code == 0
    with only_one_in(place / "set-64", "the first"):
        done = hrseg("prepare-data", "set", "--cache-longest", "64")
    assert done.code == 1
    assert "set-64: in use by process" in done.err
    assert hrseg("prepare-data", "set", "--cache-longest", "64").code == 0


def test_a_reader_is_not_kept_out_and_a_shard_has_a_lock_of_its_own(hrseg: Callable[..., Any], place: Path) -> None:
    for shard in ("1/2", "2/2"):
        with only_one_in(place / "o" / f"shard-{3 - int(shard[0])}-of-2", "the other"):
            done = hrseg(*EVALUATION, "--shard", shard)
            assert done.code == 0, done.err
    with only_one_in(place / "o" / "shard-1-of-2", "the first"):
        done = hrseg("report", "o/shard-1-of-2", "o/shard-2-of-2")
    assert done.code == 0, done.err


@pytest.mark.slow
def test_a_killed_command_keeps_nobody_out(hrseg: Callable[..., Any], place: Path) -> None:
    """Nor what it left of the very first file that it wrote."""
    stop = (
        "import os, signal; import hrseg_cli.writing as w; w.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)"
    )
    script = f"{stop}\nfrom hrseg_cli.cli import main\nmain()"
    for words in (PREDICTION, EVALUATION, ["prepare-data", "procedural", "--count", "1", "--size", "64", "--out", "o"]):
        words = [*words[:-1], f"{words[0]}-out"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, "-c", script, *words], env=environment, capture_output=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        left = {path.name for path in (place / words[-1]).iterdir()}
        assert len(left) == 2  # the lock and half a file
        done = hrseg(*words)
        assert done.code == 0, done.err
        assert not [path for path in (place / words[-1]).rglob("*") if path.name.startswith(".")]
