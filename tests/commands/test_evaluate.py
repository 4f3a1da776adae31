"""hrseg evaluate and simulate-clicks, from the command line to the files they leave."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from reference import GOLDEN, case, deterministic_weights

from hrseg_cli import cli
from hrseg_cli.commands import options
from hrseg_cli.models.hrnet import h18s
from hrseg_cli.runs import Run

Command = Callable[..., Any]
STATES = json.loads(gzip.decompress((GOLDEN / "state_dicts.json.gz").read_bytes()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three synthetic objects as a user's folder: images and masks matched by stem, 128 where nothing is known."""
    home = tmp_path_factory.mktemp("photos")
    for part in ("images", "masks"):
        (home / part).mkdir()
    for number in (8, 0, 10):
        image, truth = case(number)
        half = (slice(None, None, 2), slice(None, None, 2))
        cv2.imwrite(str(home / "images" / f"case_{chr(97 + number)}.png"), image[half][..., ::-1])
        grey = np.select([truth == 1, truth == -1], [255, 128], 0).astype(np.uint8)
        cv2.imwrite(str(home / "masks" / f"case_{chr(97 + number)}.png"), grey[half])
    return home


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow h18s in RITM's public format; the bias makes the untrained answers cover something."""
    path = tmp_path_factory.mktemp("weights") / "coco_lvis_h18s_itermask.pth"
    sizes = {"width": 4, "ocr_width": 8}
    state = deterministic_weights(h18s(**sizes).state_dict())
    state["feature_extractor.cls_head.bias"] += 0.5
    config = STATES["h18s"]["config"]
    changes = {key: {"type": "int", "value": value, "specified": True} for key, value in sizes.items()}
    torch.save({"state_dict": state, "config": {**config, "params": {**config["params"], **changes}}}, path)
    return path


def traces(path: Path) -> list[dict[str, Any]]:
    """Lines of a traces file without what differs from run to run."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def test_a_run_folder_and_rows_for_a_pipeline(hrseg: Command, folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = hrseg(
        "evaluate", "--model", "grabcut", "--dataset", f"mine={folder}", "--metric", "iou", "--metric", "biou",
        "--max-clicks", 4, "--workers", 1, "--keep-masks", "--out", run, "--protocol", "plain",
    )  # fmt: skip
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert [(row["dataset"], row["metric"], row["n"]) for row in rows] == [("mine", "iou", 3), ("mine", "biou", 3)]
    assert {"NoC@80", "NoC@90", "NoF@90", "mean@1", "AUC", "SPC"} <= rows[0].keys()
    low, high = rows[0]["95%"]["NoC@90"]
    assert low <= rows[0]["NoC@90"] <= high

    lines = traces(run / "traces.jsonl")
    assert [line["id"] for line in lines] == ["case_a", "case_i", "case_k"]
    for line in lines:
        assert {"id", "dataset", "clicks", "iou", "biou", "until"} <= line.keys()
        assert len(line["clicks"]) == len(line["iou"]) == len(line["biou"]) <= 4
        assert line["until"] == {"iou": 0.9, "biou": 0.9}
        assert line["rule"] == "void128"
    with (run / "mine.csv").open() as file:
        objects = list(csv.DictReader(file))
    assert [row["id"] for row in objects] == ["case_a", "case_i", "case_k"]
    assert float(objects[0]["iou_final"]) == lines[0]["iou"][-1]
    counts = [int(row["iou_noc@90"]) for row in objects]
    assert rows[0]["NoC@90"] == pytest.approx(np.mean(counts), abs=1e-4)
    with (run / "noc.csv").open() as file:
        table = {(row["metric"], row["measure"]): float(row["value"]) for row in csv.DictReader(file)}
    assert table["iou", "NoC@90"] == pytest.approx(np.mean(counts))

    record = json.loads((run / "run.json").read_text())
    assert record["got"]["status"] == "done"
    assert record["got"]["summary"]["binarize"] == {"void128": 3}
    assert record["asked"]["settings"]["protocol"]["name"] == "plain"
    assert {"python", "torch", "opencv-python"} <= record["where"]["versions"].keys()
    masks = [json.loads(line) for line in (run / "masks.jsonl").read_text().splitlines()]
    assert [sorted(one["masks"], key=int)[-1] for one in masks] == [str(len(line["clicks"])) for line in lines]
    assert sorted(path.name for path in run.iterdir()) == [
        "files.json", "masks.jsonl", "mine.csv", "noc.csv", "run.json", "traces.jsonl",
    ]  # fmt: skip


def test_the_number_of_workers_and_the_day_do_not_matter(
    hrseg: Command, folder: Path, checkpoint: Path, tmp_path: Path, quick_workers: None
) -> None:
    """A real network from a RITM file: with one worker and with two, identical traces but for seconds."""
    found = []
    words = ["-m", checkpoint, "-d", f"here={folder}", "-d", f"there={folder}", "--limit", 2, "--max-clicks", 3]
    words += ["--set", "zoom.target=128"]
    for name, workers in (("one", 1), ("two", 2)):
        done = hrseg("evaluate", *words, "--workers", workers, "-o", tmp_path / name)
        assert done.code == 0, done.err
        found.append(traces(tmp_path / name / "traces.jsonl"))
    assert len(found[0]) == 4
    assert found[0] == found[1]
    assert all(np.isfinite(line["iou"]).all() for line in found[0])
    assert {len(line["clicks"]) for line in found[0]} == {3}
    assert any(value > 0 for line in found[0] for value in line["iou"])


def test_how_many_workers_where_none_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Around objects in flight four at most: more threads wait for each other. torchrun's ranks share the cores."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(16), raising=False)
    asked = [(0, "cpu", 1), (0, "cpu", 8), (0, "cuda", 32), (0, "cuda", 1), (7, "cuda", 32)]
    assert [options.workers_of(*one) for one in asked] == [16, 4, 4, 1, 7]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert [options.workers_of(*one) for one in asked] == [2, 2, 2, 1, 7]


def test_systems_without_affinity_count_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS and Windows."""
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    assert [options.workers_of(0, "cpu"), options.workers_of(0, "cuda")] == [6, 1]
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert options.workers_of(0, "cpu") == 1


def test_a_terminal_gets_a_table_and_json_on_request(
    hrseg: Command, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hrseg_cli.commands.evaluate._on_terminal", lambda: True)
    words = ["-m", "grabcut", "-d", folder, "--max-clicks", 1, "--workers", 1, "--out", tmp_path / "run"]
    head, line, note = hrseg("evaluate", *words).out.splitlines()
    assert head.split() == ["dataset", "metric", "n", "NoC@80", "NoC@85", "NoC@90", "NoF@90"]
    assert line.split()[1] == "iou"
    assert str(tmp_path / "run" / "noc.csv") in note
    assert json.loads(hrseg("evaluate", *words, "--json").out)["NoC@80"] == float(line.split()[3])


START = """
import multiprocessing, os, signal, sys
from hrseg_cli.cli import main
from hrseg_cli.engine import simulate
context = multiprocessing.get_context(sys.argv.pop(1))
simulate.get_context = lambda _: context
os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))  # not the command's
if __name__ == "__main__":
    main()
"""
# Each spawned worker, as users have them, takes seconds to import PyTorch; a forked one ends in the same ways.
starts = pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])


def test_until_above_one_never_stops_early(hrseg: Command, folder: Path, tmp_path: Path) -> None:
    words = ["-m", "grabcut", "-d", folder, "--max-clicks", 3, "--workers", 1, "--protocol", "plain"]
    for until, counts in ((1.01, {3}), (0.01, {1})):
        done = hrseg("evaluate", *words, "--until", until, "-o", tmp_path / str(until))
        assert done.code == 0, done.err
        assert {len(line["clicks"]) for line in traces(tmp_path / str(until) / "traces.jsonl")} == counts


@starts
def test_an_interrupted_run_goes_on_to_the_same_traces(
    start: str, folder: Path, tmp_path: Path, hrseg: Command
) -> None:
    """Ctrl-C after the first object: exit 130, one line, what is finished stays; the same command ends the same."""
    words = ["-m", "grabcut", "-d", str(folder), "--max-clicks", "8", "--until", "1.01", "--keep-masks"]
    words += ["--protocol", "plain"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert hrseg("evaluate", *words, "--workers", 1, "-o", whole).code == 0
    process = start_and_wait_for_an_object(words, broken, start)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "hrseg: interrupted; finished work is kept, rerun the same command to resume\n"
    assert json.loads((broken / "run.json").read_text())["got"]["status"] == "interrupted"
    part = broken / "traces.part.jsonl"
    assert part.read_text().count("\n") >= 1
    done = hrseg("evaluate", *words, "--workers", 1, "-o", broken)
    assert done.code == 0, done.err
    assert traces(broken / "traces.jsonl") == traces(whole / "traces.jsonl")
    assert (broken / "masks.jsonl").read_text() == (whole / "masks.jsonl").read_text()
    assert not part.exists()


@pytest.mark.slow
def test_in_flight_ends_interrupted_and_not_with_the_same_traces(folder: Path, tmp_path: Path, hrseg: Command) -> None:
    """The way of a GPU, on a CPU: one process, two objects at once, threads around the network."""
    words = ["-m", "grabcut", "-d", str(folder), "--max-clicks", "8", "--until", "1.01", "--keep-masks"]
    words += ["--protocol", "plain"]
    alone, broken = tmp_path / "alone", tmp_path / "broken"
    assert hrseg("evaluate", *words, "--workers", 1, "-o", alone).code == 0
    process = start_and_wait_for_an_object([*words, "--in-flight", "2"], broken)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "hrseg: interrupted; finished work is kept, rerun the same command to resume\n"
    done = hrseg("evaluate", *words, "--in-flight", 4, "-o", broken)
    assert done.code == 0, done.err
    assert traces(broken / "traces.jsonl") == traces(alone / "traces.jsonl")
    assert (broken / "masks.jsonl").read_text() == (alone / "masks.jsonl").read_text()
    words = ["-m", "grabcut", "-d", folder, "--max-clicks", "2", "--protocol", "plain", "--workers", 1]
    clicks = [hrseg("simulate-clicks", *words, "--in-flight", number) for number in (1, 3)]
    lines = [[json.loads(line) for line in done.out.splitlines()] for done in clicks]
    one, other = ([(line["id"], line["clicks"]) for line in some] for some in lines)
    assert one == other
    assert len(one) == 3


@pytest.mark.parametrize(
    ("whole_traces", "whole_masks"),
    [(2, 1), (1, 2), *(pytest.param(*both, marks=pytest.mark.slow) for both in ((1, 1), (0, 1)))],
)
def test_lines_torn_by_a_kill_are_done_again(
    whole_traces: int, whole_masks: int, folder: Path, tmp_path: Path, hrseg: Command
) -> None:
    """A kill leaves half a line in either file: what comes after must not grow together with it, and an object whose
    masks are lost is clicked again."""
    words = ["evaluate", "-m", "grabcut", "-d", folder, "--max-clicks", 2, "--keep-masks", "--protocol", "plain"]
    words += ["--workers", 1]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert hrseg(*words, "-o", whole).code == 0
    broken.mkdir()
    for name in ("run.json", "files.json"):
        shutil.copy(whole / name, broken)
    for name, kept in (("traces", whole_traces), ("masks", whole_masks)):
        lines = (whole / f"{name}.jsonl").read_text().splitlines(keepends=True)
        (broken / f"{name}.part.jsonl").write_text("".join(lines[:kept]) + lines[kept][:50])
    done = hrseg(*words, "-o", broken)
    assert done.code == 0, done.err
    assert traces(broken / "traces.jsonl") == traces(whole / "traces.jsonl")
    assert (broken / "masks.jsonl").read_text() == (whole / "masks.jsonl").read_text()


def start_and_wait_for_an_object(words: list[str], out: Path, start: str = "spawn") -> subprocess.Popen[str]:
    """An evaluation with two workers in a process of its own, its first object finished."""
    command = [sys.executable, "-c", START, start, "evaluate", *words, "--workers", "2", "-o", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    part = out / "traces.part.jsonl"
    deadline = time.monotonic() + 120
    while not (part.exists() and part.read_text().count("\n")) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    return process


@starts
def test_workers_do_not_outlive_a_killed_parent(start: str, folder: Path, tmp_path: Path) -> None:
    words = ["-m", "grabcut", "-d", str(folder), "--max-clicks", "8", "--until", "1.01", "--protocol", "plain"]
    process = start_and_wait_for_an_object(words, tmp_path / "run", start)
    listing = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
    children = [int(pid) for pid in listing.stdout.split()]
    assert len(children) >= 2
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)


def test_a_folder_of_another_run_is_refused(hrseg: Command, folder: Path, tmp_path: Path) -> None:
    words = ["evaluate", "-m", "grabcut", "-d", folder, "--workers", 1, "--limit", 1, "--protocol", "plain"]
    words += ["-o", tmp_path / "run"]
    assert hrseg(*words, "--max-clicks", 2).code == 0
    before = (tmp_path / "run" / "traces.jsonl").read_bytes()
    done = hrseg(*words, "--max-clicks", 3)
    assert done.code == 1
    assert "max_clicks = 2, not 3" in done.err
    assert (tmp_path / "run" / "traces.jsonl").read_bytes() == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    done = hrseg("evaluate", "-m", "grabcut", "-d", folder, "-o", tmp_path / "full")
    assert (done.code, "not a run folder" in done.err) == (1, True)


def test_simulated_clicks_replay_on_another_model(
    hrseg: Command, folder: Path, checkpoint: Path, tmp_path: Path
) -> None:
    """Traces go to stdout in dataset order; replayed, the clicks are the same and only the answers differ."""
    words = ["-d", f"mine={folder}", "--workers", 1, "--metric", "iou", "--metric", "biou", "--protocol", "plain"]
    first = hrseg("simulate-clicks", "-m", "grabcut", *words, "--max-clicks", 3)
    assert first.code == 0, first.err
    stored = tmp_path / "first.jsonl"
    stored.write_text(first.out)
    again = hrseg("simulate-clicks", "-m", "grabcut", *words, "--replay", stored, "--out", tmp_path / "again.jsonl")
    assert again.code == 0, again.err
    assert again.out == ""
    assert traces(tmp_path / "again.jsonl") == traces(stored)
    other = hrseg("simulate-clicks", "-m", checkpoint, *words, "--replay", stored)
    assert other.code == 0, other.err
    a, b = ([json.loads(line) for line in text.splitlines()] for text in (first.out, other.out))
    assert [line["clicks"] for line in a] == [line["clicks"] for line in b]
    assert [line["iou"] for line in a] != [line["iou"] for line in b]


def test_a_replay_counts_what_has_no_partner(hrseg: Command, folder: Path, tmp_path: Path) -> None:
    """A number over fewer objects than the dataset or the file holds must not pass without a word."""
    words = ["simulate-clicks", "-m", "grabcut", "-d", f"mine={folder}", "--workers", 1, "--protocol", "plain"]
    first = hrseg(*words, "--max-clicks", 1)
    one, two, three = first.out.splitlines(keepends=True)
    stored = tmp_path / "first.jsonl"
    stored.write_text(one + three.replace('"case_', '"no_case_'))
    done = hrseg(*words, "--replay", stored)
    assert len(done.out.splitlines()) == 1
    assert "skipping 2 of 3 objects, which have no trace" in done.err
    assert "ignoring 1 traces of other objects, such as mine/no_case_" in done.err
    for lines, told in ((one + two[:-30], "line 2: incomplete"), (one + two + one, "appears twice")):
        stored.write_text(lines)
        done = hrseg(*words, "--replay", stored)
        assert (done.code, done.out) == (1, "")
        assert told in done.err


def test_what_has_changed_is_clicked_again(hrseg: Command, folder: Path, tmp_path: Path) -> None:
    """A corrected mask, or another folder of the same name: old answers are not passed off as new ones, and what is
    the same (a moved folder too) is not done twice."""
    words = ["evaluate", "-m", "grabcut", "--max-clicks", 1, "--workers", 1, "--protocol", "plain"]
    for place in ("a", "b"):
        shutil.copytree(folder, tmp_path / place / "test")
    mask = tmp_path / "b" / "test" / "masks" / "case_a.png"
    grey = cv2.imread(str(mask), cv2.IMREAD_GRAYSCALE)
    assert grey is not None
    cv2.imwrite(str(mask), np.roll(grey, 20, axis=0))
    assert hrseg(*words, "-d", tmp_path / "b" / "test", "-o", tmp_path / "fresh").code == 0

    assert hrseg(*words, "-d", tmp_path / "a" / "test", "-o", tmp_path / "run").code == 0
    first = (tmp_path / "run" / "traces.jsonl").read_text().splitlines()
    assert hrseg(*words, "-d", tmp_path / "b" / "test", "-o", tmp_path / "run").code == 0
    second = (tmp_path / "run" / "traces.jsonl").read_text().splitlines()
    assert traces(tmp_path / "run" / "traces.jsonl") == traces(tmp_path / "fresh" / "traces.jsonl")
    assert [a == b for a, b in zip(first, second, strict=True)] == [False, True, True]  # seconds and all

    drawn = [*words, "-o", tmp_path / "drawn", "-d"]
    sizes = []
    for size in (64, 96):
        assert hrseg(*drawn, f"procedural:count=1,size={size}").code == 0
        sizes.append(max(traces(tmp_path / "drawn" / "traces.jsonl")[0]["size"]))
    assert sizes == [64, 96]


def test_a_target_of_ones_own_is_in_the_table(hrseg: Command, folder: Path, tmp_path: Path) -> None:
    words = ["-m", "grabcut", "-d", folder, "--until", 0.97, "--max-clicks", 2, "--protocol", "plain", "--workers", 1]
    done = hrseg("evaluate", *words, "-o", tmp_path / "run")
    assert "NoC@97" in json.loads(done.out)
    assert "NoC@97" in (tmp_path / "run" / "noc.csv").read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe\x00", "cannot be read as traces"),
        (b'{"id":"case_a","dataset":"mine","clicks":[["a",1,1]]}\n\n', "line 1: not a trace"),
        (b'{"id":"case_a","dataset":"mine","clicks":[[9999,1,1]]}\n', "mine/case_a: click 9999,1 lies outside"),
        (b'{"id":"other","dataset":"mine","clicks":[[9,1,1]]}\n', "no trace of these datasets"),
    ],
)
def test_a_wrong_replay_file_is_named(
    content: bytes, message: str, hrseg: Command, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "traces.jsonl").write_bytes(content)
    done = hrseg("simulate-clicks", "-m", "grabcut", "-d", f"mine={folder}", "--replay", tmp_path, "--workers", 1)
    assert (done.code, done.out) == (1, "")
    assert message in done.err


def test_where_traces_go_is_checked_first(hrseg: Command, folder: Path, tmp_path: Path) -> None:
    for out in (tmp_path, "/proc/traces.jsonl"):
        done = hrseg("simulate-clicks", "-m", "grabcut", "-d", folder, "--out", out)
        assert (done.code, "--out" in done.err) == (1, True)


def test_a_fixed_width_band_changes_boundary_iou(hrseg: Command, folder: Path) -> None:
    words = ["simulate-clicks", "-m", "grabcut", "-d", folder, "--workers", 1, "--max-clicks", 1, "--metric", "biou"]
    wide, thin = (hrseg(*words, "--band", band).out.splitlines() for band in ("0.02", "1px"))
    assert [json.loads(line)["iou"] for line in wide] == [json.loads(line)["iou"] for line in thin]
    assert [json.loads(line)["biou"] for line in wide] != [json.loads(line)["biou"] for line in thin]


def test_a_broken_file_stops_with_its_name_and_keeps_the_rest(hrseg: Command, folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    last = copy / "images" / "case_k.png"
    last.write_bytes(last.read_bytes()[:-300])
    words = ["evaluate", "-m", "grabcut", "-d", copy, "--max-clicks", 2, "--workers", 1, "--protocol", "plain"]
    words += ["-o", tmp_path / "run"]
    done = hrseg(*words)
    assert done.code == 1
    assert "case_k.png" in done.err
    assert len(traces(tmp_path / "run" / "traces.part.jsonl")) == 2
    shutil.copy(folder / "images" / "case_k.png", last)
    assert hrseg(*words).code == 0
    assert len(traces(tmp_path / "run" / "traces.jsonl")) == 3


WRONG = [
    (["--model", "grabcut", "--dataset", "nowhere"], 2, "nowhere"),
    (["--model", "grabcut", "--dataset", "{folder}", "--metric", "bio"], 2, "Did you mean 'biou'"),
    (["--model", "grabcut", "--dataset", "{folder}", "--protocol", "rtm"], 2, "Did you mean 'ritm'"),
    (["--model", "grabcut", "--dataset", "{folder}", "--set", "zoom.targt=3"], 1, "did you mean 'target'"),
    (["--model", "grabcut", "--dataset", "{folder}", "--set", "flip"], 1, "key=value"),
    (["--model", "grabcut", "--dataset", "{folder}", "--set", "flip=maybe"], 1, "valid boolean"),
    (["--model", "grabcut", "--dataset", "{folder}", "--until", "often"], 1, "0.90"),
    (["--model", "grabcut", "--dataset", "{folder}", "--until", "biou=0.9"], 1, "add --metric biou"),
    (["--model", "grabcut", "--dataset", "{folder}", "--until", "inf"], 1, "0.90"),
    (["--model", "grabcut", "--dataset", "{folder}", "--set", "zoom.target=0"], 1, "zoom.target"),
    (["--model", "grabcut", "--dataset", "{folder}", "--set", "tiles.overlap=900"], 1, "at most half"),
    (["--model", "grabcut", "--dataset", "noc={folder}"], 1, "reserved for the table"),
    (["--model", "{folder}", "--dataset", "{folder}"], 1, "a folder; give the checkpoint"),
    (["--model", "grabcut", "--dataset", "{folder}", "--band", "wide"], 1, "5px"),
    (["--model", "grabcut", "--dataset", "{folder}", "--binarize", "gt12"], 2, "gt128"),
    (["--model", "grabcut", "--dataset", "{folder}", "--device", "gpu"], 1, "(did you mean cuda?)"),
    (["--model", "grabcut", "--dataset", "{folder}", "--max-clicks", "0"], 2, "max-clicks"),
    (["--model", "grabcut", "--dataset", "{folder}", "--dataset", "{folder}"], 1, "used twice"),
    (["--model", "grabcut", "--datset", "{folder}"], 2, "--dataset"),
    (["--model", "grabcut"], 2, "--dataset"),
    (["--model", "missing.pth", "--dataset", "{folder}"], 1, "no such file"),
    (["--model", "h32", "--dataset", "{folder}"], 1, "ships no weights"),
    (["--model", "grabcut", "--dataset", "{folder}", "--out", "/dev/null/run"], 1, "cannot be written"),
]


@pytest.mark.parametrize(("words", "code", "message"), WRONG, ids=[" ".join(words[3:]) for words, _, _ in WRONG])
def test_what_a_user_can_mend_is_one_line(
    words: list[str], code: int, message: str, hrseg: Command, folder: Path, tmp_path: Path
) -> None:
    out = [] if "--out" in words else ["--out", tmp_path / "run"]
    done = hrseg("evaluate", *(word.format(folder=folder) for word in words), *out)
    assert done.code == code, done.err
    assert message in done.err
    assert "Traceback" not in done.err
    if code == 1:
        assert done.err.startswith("hrseg: ")
        assert done.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device", "cuda", "--runtime", "onnxruntime"], "runs on the CPU only"),
        (["--precision", "bf16"], "this processor"),
    ],
)
def test_a_way_to_compute_is_checked_before_there_is_a_run_folder(
    words: list[str], message: str, hrseg: Command, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the folder of the refused command would refuse the corrected one."""
    monkeypatch.setattr(options, "device_of", lambda device: device)  # as if there were a GPU
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    done = hrseg("evaluate", "-m", "h18s", "-d", folder, *words, "-o", tmp_path / "run", "--workers", 1)
    assert (done.code, message in done.err) == (1, True)
    assert not (tmp_path / "run").exists()


def test_a_full_gpu_is_no_defect(hrseg: Command, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr("hrseg_cli.engine.runtimes.open_model", full)
    done = hrseg("simulate-clicks", "-m", "grabcut", "-d", folder, "--workers", 1)
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert done.err.startswith("hrseg: the GPU is out of memory; ")


def test_debug_shows_the_traceback(hrseg: Command, folder: Path) -> None:
    from hrseg_cli.errors import HrsegError

    with pytest.raises(HrsegError, match="no such file"):
        hrseg("evaluate", "--model", "missing.pth", "--dataset", folder, "--debug")


@pytest.mark.parametrize("words", ["list models", pytest.param("simulate-clicks", marks=pytest.mark.slow)])
def test_a_closed_pipe_ends_quietly(words: str, folder: Path) -> None:
    """hrseg ... | head -1"""
    command = [sys.executable, "-m", "hrseg_cli.cli", *words.split()]
    if words == "simulate-clicks":
        command += ["-m", "grabcut", "-d", str(folder), "--max-clicks", "1", "--workers", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    process.wait(timeout=60)


def test_a_dataset_whose_name_makes_no_file_is_told_before_a_click(hrseg: Command, tmp_path: Path) -> None:
    """Its table would fail after hours of clicks."""
    words = ["-d", f"{'n' * 250}=procedural:count=1,size=128", "-m", "grabcut", "-o", tmp_path / "run"]
    done = hrseg("evaluate", *words)
    assert done.code == 1
    assert "more than 240 bytes" in done.err
    assert not (tmp_path / "run").exists()


SHORT = [
    MemoryError(),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    RuntimeError("std::bad_alloc"),
    cv2.error("(-4:Insufficient memory) Failed to allocate 9 bytes in function 'OutOfMemoryError'"),
    RuntimeError("can't start new thread"),
    ImportError("libx.so: failed to map segment from shared object: cannot allocate memory"),
]


@pytest.mark.parametrize("error", SHORT, ids=range(len(SHORT)))
def test_too_little_memory_is_no_defect(
    hrseg: Command, folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def short(*_: Any) -> None:
        raise error

    monkeypatch.setattr("hrseg_cli.engine.runtimes.open_model", short)
    done = hrseg("simulate-clicks", "-m", "grabcut", "-d", folder, "--workers", 1)
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert done.err.startswith("hrseg: out of memory; lower --workers")


def test_a_run_folder_removed_during_the_run_is_told(
    hrseg: Command, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["-m", "grabcut", "-d", folder, "--workers", 1, "--max-clicks", 1, "--keep-masks", "-o", tmp_path / "run"]
    finish = Run.finish

    def removed(run: Run, *rest: Any, **more: Any) -> None:
        shutil.rmtree(run.folder)
        finish(run, *rest, **more)

    monkeypatch.setattr(Run, "finish", removed)
    done = hrseg("evaluate", *words)
    assert done.code == 1
    assert "was the folder changed during the run?" in done.err
    assert "defect" not in done.err


DAMAGED: dict[str, str] = {
    "files.json": '{"case',
    "masks.jsonl": "null\n",
    "run.json": '{"asked": {"command": "evaluate", "settings": {}}, "got": []}',
    "traces.jsonl": "[]\n\n",
}


def test_a_damaged_file_of_a_run_folder_is_named(hrseg: Command, folder: Path, tmp_path: Path) -> None:
    """By the command that resumes, and by report: neither may take it for a defect of its own."""
    words = ["-m", "grabcut", "-d", folder, "--workers", 1, "--max-clicks", 1, "--keep-masks"]
    assert hrseg("evaluate", *words, "-o", tmp_path / "good").code == 0
    for name, text in DAMAGED.items():
        shutil.copytree(tmp_path / "good", tmp_path / "bad")
        (tmp_path / "bad" / name).write_text(text)
        done = hrseg("evaluate", *words, "-o", tmp_path / "bad")
        assert (done.code, name in done.err, "defect" in done.err) == (1, True, False), done.err
        told = hrseg("report", tmp_path / "bad")
        assert (told.code, "defect" in told.err) == (1, False), told.err
        shutil.rmtree(tmp_path / "bad")


def test_rows_are_json_also_where_output_is_ascii() -> None:
    """LC_ALL=C without UTF-8 mode, cron, PYTHONIOENCODING: the row of a finished object ended in a defect."""
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    codecs.register_error("hrseg", cli._escape)
    file.reconfigure(errors="hrseg")
    row = {"image": "é日😀"}
    file.write(json.dumps(row, ensure_ascii=False) + "\udcff")
    file.flush()
    text = file.buffer.getvalue().decode()  # type: ignore[attr-defined]
    assert json.loads(text.removesuffix("\\udcff")) == row


def test_a_message_is_one_line_of_printable_characters(hrseg: Command, tmp_path: Path) -> None:
    done = hrseg("predict", "\x1b[31m" + "x" * 5000, "--click", "1,1", "-o", tmp_path / "o")
    assert done.code == 1
    assert "\x1b" not in done.err
    assert len(done.err) < 2500


def test_broken_files_are_skipped_listed_and_counted(hrseg: Command, folder: Path, tmp_path: Path) -> None:
    place = shutil.copytree(folder, tmp_path / "photos")
    (place / "images" / "case_a.png").write_bytes(b"x")
    words = ["evaluate", "--model", "grabcut", "--dataset", place, "--max-clicks", "1", "--workers", "1"]
    words += ["--out", tmp_path / "out"]
    assert hrseg(*words).code == 1
    shutil.rmtree(tmp_path / "out")
    done = hrseg(*words, "--skip-broken")
    assert done.code == 1
    assert json.loads(done.out)["n"] == 2
    skipped, last = (line for line in done.err.splitlines() if line.startswith("hrseg: "))
    assert skipped.startswith(f"hrseg: skipped: {place / 'images' / 'case_a.png'}: cannot be read as an image")
    assert "skipped 1 broken files" in last
    summary = json.loads((tmp_path / "out" / "run.json").read_text())["got"]["summary"]
    assert (summary["skipped"], len(summary["broken"])) == (1, 1)
    (place / "images" / "case_a.png").unlink()
    (place / "masks" / "case_a.png").unlink()
    assert hrseg(*words, "--skip-broken").code == 0, "the same objects, and nothing is broken now"
