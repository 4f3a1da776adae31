"""hrseg predict into a folder of an earlier run: its record decides what is done again, replaced and left alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from two_disks import DISKS, iou, mask_of, rows, save_clicks

from hrseg_cli.checkpoints.resolve import load_model
from hrseg_cli.interaction import Click
from hrseg_cli.recipe import load_protocol

# pycocotools 2.0.11 decodes by way of NumPy 1's array protocol.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

Command = Callable[..., Any]


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../../written"},
        {"name": "{photos}/written"},
        {"name": "sub/written"},
        {"name": "link/written"},
        {"name": "", "files": [".png"]},
        {"name": 5, "files": []},
        {"name": "x\0", "files": []},
        {"name": "n" * 300, "files": []},
        {"files": ["../victim.txt"]},
        {"files": ["{photos}/victim.txt"]},
        {"files": ["predict.jsonl"]},
        {"files": ["dog.png"]},
        {"files": "cat.png"},
    ],
    ids=str,
)
def test_a_record_decides_about_files_of_its_object_only(change: dict[str, Any], hrseg: Command, photos: Path) -> None:
    """Whoever wrote it: nothing else is written or deleted."""
    out = photos / "out"
    out.mkdir()
    (out / "link").symlink_to(photos)
    for victim in (photos / "victim.txt", out / "dog.png"):
        victim.write_text("precious")
    image = photos / "a" / "cat.png"
    record = {"image": str(image), "object": "", "name": "cat", "files": ["cat.png"], "asked": ""}
    text = json.dumps(record | change).replace("{photos}", str(photos)) + "\n"
    (out / "predict.jsonl").write_text(text)
    before = {path for path in photos.rglob("*") if path.is_file()}
    done = hrseg("predict", image, "-m", "grabcut", "--click", "60,60", "-o", out)
    assert done.code == 1
    assert "predict.jsonl" in done.err
    assert done.err.count("\n") == 1
    assert {path for path in photos.rglob("*") if path.is_file()} == before
    assert (photos / "victim.txt").read_text() == (out / "dog.png").read_text() == "precious"
    assert (out / "predict.jsonl").read_text() == text


@pytest.mark.parametrize("files", [["../victim.txt"], ["dog.png"]], ids=str)
def test_a_last_line_without_its_end_decides_about_nothing(files: list[str], hrseg: Command, photos: Path) -> None:
    """It is taken for a torn one and dropped, with the files that it names."""
    out = photos / "out"
    out.mkdir()
    for victim in (photos / "victim.txt", out / "dog.png"):
        victim.write_text("precious")
    image = photos / "a" / "cat.png"
    record = {"image": str(image), "object": "", "name": "cat", "files": files, "asked": ""}
    (out / "predict.jsonl").write_text(json.dumps(record))
    hrseg("predict", image, "-m", "grabcut", "--click", "60,60", "-o", out)
    assert (photos / "victim.txt").read_text() == (out / "dog.png").read_text() == "precious"


def test_records_of_two_objects_do_not_share_files(hrseg: Command, photos: Path) -> None:
    """Two runs at once may have left them so: the next would replace one mask by the other."""
    words = ["predict", photos / "a", "-m", "grabcut", "-o", photos / "out"]
    clicks = save_clicks(photos / "c.json", cat=[[60, 60]], dog=[[60, 60]])
    rows(hrseg(*words, "--clicks", clicks))
    records = photos / "out" / "predict.jsonl"
    records.write_text(records.read_text().replace('"dog"', '"CAT"').replace('dog.png"]', 'CAT.png"]'))
    done = hrseg(*words, "--clicks", clicks)
    assert done.code == 1
    assert "line 2: names files of another object" in done.err


def test_what_is_there_is_not_done_again(hrseg: Command, photos: Path) -> None:
    """Only what was asked otherwise, or is missing, or was torn by a kill; rows are printed all the same."""
    out = photos / "out"

    def run(col: int = 60, *more: object) -> tuple[list[dict[str, Any]], str, dict[str, int]]:
        clicks = save_clicks(photos / "c.json", cat=[[60, col]], dog=[[60, 60]])
        done = hrseg("predict", photos / "a", "-m", "grabcut", "--clicks", clicks, "-o", out, *more)
        return rows(done), done.err, {path.name: path.stat().st_mtime_ns for path in out.glob("*.*")}

    first, told, before = run()
    assert told == ""
    again, told, after = run()
    assert again == first
    assert told == "2 of 2 objects were already done\n"
    assert {name for name in after if after[name] != before[name]} <= {"predict.jsonl"}
    (out / "dog.png").unlink()
    assert "1 of 2" in run()[1]
    changed, told, later = run(62)
    assert "1 of 2" in told
    assert changed[0]["clicks"] == [[60, 62, 1]]
    assert later["cat.png"] != before["cat.png"]
    assert "1 of 2" not in run(62, "--set", "threshold=0.6")[1]
    records = out / "predict.jsonl"
    records.write_text(records.read_text()[:-40])
    assert "1 of 2" in run(62, "--set", "threshold=0.6")[1]
    run(62, "--format", "rle")
    assert sorted(path.name for path in out.iterdir()) == ["cat_rle.json", "dog_rle.json", "predict.jsonl"]


def predict_until_killed(photos: Path, protocol: str, click: Click) -> None:
    from hrseg_cli.engine import predict

    asked = predict.PredictOptions(*load_model("grabcut"), load_protocol(protocol), ("png",), 1.0)
    job = predict.Job(photos / "a" / "cat.png", "", (click,))
    with pytest.raises(KeyboardInterrupt):
        list(predict.predict([job], asked, photos / "out"))


def test_a_kill_between_files_and_record_leaves_no_old_answer(
    hrseg: Command, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New clicks, killed after the mask was replaced: the old clicks do not find their old record beside it."""
    from hrseg_cli.engine import predict

    words = ["predict", photos / "a" / "cat.png", "-m", "grabcut", "-o", photos / "out", "--click"]
    rows(hrseg(*words, "60,60"))
    real = predict.write_mask

    def killed(*args: Any, **options: Any) -> list[str]:
        real(*args, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(predict, "write_mask", killed)
    predict_until_killed(photos, "photo", Click(90, 170, True))
    monkeypatch.undo()
    assert iou(mask_of(photos / "out" / "cat.png"), DISKS["right"]) > 0.9
    done = hrseg(*words, "60,60")
    assert done.err == ""
    assert iou(mask_of(photos / "out" / "cat.png"), DISKS["left"]) > 0.9


def test_files_of_before_go_once_the_new_record_is_there(
    hrseg: Command, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in between, the next run removes them; the record of each object stands there once."""
    from hrseg_cli.engine import predict

    words = ["predict", photos / "a" / "cat.png", "-m", "grabcut", "-o", photos / "out", "--click", "60,60"]
    rows(hrseg(*words, "--format", "soft"))

    def killed(out: Path, replaced: list[str], records: dict[Any, dict[str, Any]]) -> None:
        if replaced:
            lines = (out / "predict.jsonl").read_text().splitlines()
            assert json.loads(lines[-1])["files"] == ["cat.png"]
            raise KeyboardInterrupt

    monkeypatch.setattr(predict, "_remove", killed)
    predict_until_killed(photos, "fast", Click(60, 60, True))
    monkeypatch.undo()
    assert (photos / "out" / "cat_soft.png").exists()
    rows(hrseg(*words))
    assert sorted(path.name for path in (photos / "out").iterdir()) == ["cat.png", "predict.jsonl"]
    assert len((photos / "out" / "predict.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"counts": 3},
        {"counts": "\x7f"},
        {"size": [1]},
        {"size": [-150, -240]},
        {"size": [10**9, 10**9]},
        {"formats": ["x"]},
        {"formats": 1},
        {"tolerance": "x"},
        {"tolerance": 1e300},
    ],
)
def test_a_broken_record_of_an_export_is_named(change: dict[str, Any], hrseg: Command, photos: Path) -> None:
    words = ["predict", photos / "a/cat.png", "--click", "60,60", "--model", "grabcut", "--protocol", "plain"]
    words += ["--out", photos / "out", "--format", "coco"]
    assert hrseg(*words).code == 0
    records = photos / "out" / "predict.jsonl"
    record = json.loads(records.read_text())
    record["export"] |= change
    records.write_text(json.dumps(record) + "\n")
    done = hrseg(*words)
    assert done.code == 1
    assert "line 1: not a record" in done.err
