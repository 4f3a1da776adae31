"""Submissions: what an honest run passes, and what a changed one does not; clicks off the centre."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_photos import boxes

from hrseg_cli.clicks.annotator import drawn_click, next_click
from hrseg_cli.commands.evaluate import spread_records
from hrseg_cli.errors import HrsegError
from hrseg_cli.interaction import Click
from hrseg_cli.metrics.noc import Row, over_groups

Command = Callable[..., Any]


def evaluate(hrseg: Command, data: object, out: Path, *more: object) -> Any:
    words = [
        "-m",
        "python:tiny_photos:discs",
        "-d",
        data,
        "--protocol",
        "plain",
        "--max-clicks",
        3,
        "--workers",
        1,
        "--limit",
        2,
    ]
    done = hrseg("evaluate", *words, "--metric", "iou", "--metric", "biou", *more, "--out", out)
    assert done.code == 0, done.err
    return [json.loads(line) for line in done.out.splitlines()]


@pytest.fixture
def run(hrseg: Command, tmp_path: Path) -> Path:
    evaluate(hrseg, boxes(tmp_path / "data"), tmp_path / "run", "--submission", "--set", "click_group=4")
    return tmp_path / "run"


def verified(hrseg: Command, run: Path) -> tuple[int, str]:
    done = hrseg("report", "--verify", run)
    return done.code, done.out + done.err


def rewrite(path: Path, change: Callable[[list[dict[str, Any]]], object]) -> None:
    records = [json.loads(line) for line in path.read_text().splitlines()]
    change(records)
    path.write_text("".join(json.dumps(record, separators=(",", ":")) + "\n" for record in records))


def test_a_changed_submission_does_not_pass(run: Path, hrseg: Command, tmp_path: Path) -> None:
    code, text = verified(hrseg, run)
    assert code == 0, text
    row = json.loads(text)
    assert (row["objects"], row["images"], row["problems"]) == (2, 2, 0)
    assert row["scores"] == 2 * row["clicks"] > 0
    traces, masks = run / "traces.jsonl", run / "masks.jsonl"
    kept = {path: path.read_bytes() for path in (traces, masks)}
    first = json.loads(kept[masks].splitlines()[0])

    def refused(path: Path, change: Callable[[list[dict[str, Any]]], object], line: str) -> None:
        rewrite(path, change)
        code, text = verified(hrseg, run)
        assert (code, line in text) == (1, True), text
        path.write_bytes(kept[path])

    # The rest of a record is compared with the run's summary anyway.
    refused(traces, lambda all_: all_[0].update(clicks=[[0, 0, 1], *all_[0]["clicks"][1:]]), "the protocol clicks on")
    refused(traces, lambda all_: all_[0]["iou"].__setitem__(0, all_[0]["iou"][0] + 1e-6), "the trace says")
    refused(masks, lambda all_: all_[0]["masks"].update({"1": first["truth"]}), "iou after click 1 is 1.000000")
    refused(masks, lambda all_: all_[0]["masks"].pop("1"), "no mask after click 1")
    refused(masks, lambda all_: all_.pop(), "no masks")
    refused(masks, lambda all_: all_[0].update(truth=first["masks"]["1"]), "the trace says")
    refused(masks, lambda all_: all_[0].update(image_sha256="0"), "another image")
    Image.new("RGB", (72, 56)).save(first["image"])
    assert "another image" in verified(hrseg, run)[1]


def test_the_first_click_is_checked_on_the_mask_to_start_from(hrseg: Command, tmp_path: Path) -> None:
    """A run keeps that mask: a record cannot exempt its first click by saying that there was one."""
    source, folder = boxes(tmp_path / "data"), tmp_path / "davis585"
    for k in range(2):
        (folder / f"{k}").mkdir(parents=True)
        Image.open(source / f"images/{k}.png").save(folder / f"{k}/00000.jpg")
        mask = np.array(Image.open(source / f"masks/{k}.png"))
        Image.fromarray(mask).save(folder / f"{k}/object1_00000.png")
        mask[:, :30] = 0
        Image.fromarray(mask).save(folder / f"{k}/init_stm_object1_00000.png")
    run, masks = tmp_path / "run", tmp_path / "run" / "masks.jsonl"
    evaluate(hrseg, f"{folder}:init=stm", run, "--submission")
    code, text = verified(hrseg, run)
    assert code == 0, text
    assert json.loads(text)["initial_masks"] == 2
    kept = masks.read_bytes()
    for instead, line in [
        (None, "click 1 is"),
        (json.loads(kept.splitlines()[0])["truth"], "click 1 is"),
        (True, "not a mask record"),
        ("0", "rerun evaluate"),
    ]:
        rewrite(masks, lambda all_, new=instead: all_[0].update(initial=new))
        code, text = verified(hrseg, run)
        assert (code, line in text) == (1, True), (instead, text)
        masks.write_bytes(kept)


def test_a_run_that_starts_with_boxes(hrseg: Command, tmp_path: Path) -> None:
    """It says so wherever its numbers are, is checked like any other, and never goes on as a run of clicks."""
    data, run = boxes(tmp_path / "data"), tmp_path / "run"
    rows = evaluate(hrseg, data, run, "--submission", "--first", "box", "--box-jitter", 0.1)
    assert {row["first"] for row in rows} == {"box"}
    for name in ("noc.csv", "data.csv"):
        with (run / name).open() as file:
            assert {row["first"] for row in csv.DictReader(file)} == {"box"}
    code, text = verified(hrseg, run)
    assert (code, json.loads(text)["problems"]) == (0, 0)
    traces = run / "traces.jsonl"
    kept = traces.read_bytes()
    drawn = [json.loads(line)["clicks"] for line in kept.splitlines()]
    assert [[len(prompt) for prompt in clicks] for clicks in drawn] == [[4, 3, 3]] * 2
    rewrite(traces, lambda all_: all_[0]["clicks"].__setitem__(0, [0, 0, 50, 60]))
    code, text = verified(hrseg, run)
    assert (code, "click 1 is Box" in text) == (1, True)
    traces.write_bytes(kept)

    words = ["-m", "python:tiny_photos:discs", "-d", data, "--protocol", "plain", "--max-clicks", 3, "--limit", 2]
    words += ["--workers", 1]
    done = hrseg("evaluate", *words, "--out", run)
    assert (done.code, "use another folder" in done.err) == (1, True)
    again = hrseg("simulate-clicks", *words, "--replay", run, "--until", 2)
    assert [json.loads(line)["clicks"] for line in again.out.splitlines()] == drawn
    done = hrseg("simulate-clicks", *words, "--replay", run, "--first", "box")
    assert (done.code, "leave out --first box" in done.err) == (1, True)
    done = hrseg("simulate-clicks", *words, "--box-jitter", 0.1)
    assert (done.code, "--box-jitter needs --first box" in done.err) == (1, True)

    evaluate(hrseg, data, tmp_path / "clicks")
    done = hrseg("report", run, tmp_path / "clicks")
    assert (done.code, "protocols differ in box_jitter, first" in done.err) == (0, True), done.err
    assert "the first of them a box (run), click (clicks)" in done.out


@pytest.mark.slow
def test_other_runs_are_no_submissions(hrseg: Command, tmp_path: Path) -> None:
    evaluate(hrseg, boxes(tmp_path / "data"), tmp_path / "run", "--keep-masks")
    code, text = verified(hrseg, tmp_path / "run")
    assert (code, "rerun evaluate with --submission" in text) == (1, True)
    assert hrseg("report", "--verify", "--metric", "iou", tmp_path / "run").code == 2


@pytest.mark.slow
def test_groups_are_runs_and_their_mean(hrseg: Command, tmp_path: Path) -> None:
    (row, other) = evaluate(hrseg, boxes(tmp_path / "data"), tmp_path / "run", "--groups", 3)
    assert (row["groups"], row["n"], other["metric"]) == (3, 2, "biou")
    for number in range(3):
        asked = json.loads((tmp_path / "run" / f"group-{number}" / "run.json").read_text())["asked"]["settings"]
        assert asked["protocol"]["click_group"] == number
    clicks = [(tmp_path / "run" / f"group-{number}" / "traces.jsonl").read_text() for number in range(3)]
    assert len(set(clicks)) == 3


def test_mean_and_deviation_over_groups() -> None:
    def group(**values: float) -> list[Row]:
        return [Row("a", "iou", name, value, 0.0, 9.0, 2) for name, value in {**values, "SPC": 0.1}.items()]

    first, second, third = (group(**{"NoC@90": value}) for value in (2.0, 3.0, 7.0))
    (found,) = over_groups([first, [*second, Row("a", "iou", "NoC@95", 4.0, 0.0, 9.0, 2)], third])
    assert (found.measure, found.mean, round(found.std, 4), found.groups) == ("NoC@90", 4.0, 2.6458, 3)
    assert spread_records([found]) == [
        {"dataset": "a", "metric": "iou", "n": 2, "groups": 3, "NoC@90": 4.0, "std": {"NoC@90": 2.6458}}
    ]
    with pytest.raises(HrsegError, match="two or more"):
        over_groups([first])
    with pytest.raises(HrsegError, match="other datasets, metrics or numbers of objects"):
        over_groups([first, [replace(row, n=3) for row in second]])


def test_drawn_clicks() -> None:
    """In the error that the centre lies in, of its sign, deeper pixels more often, the same for the same seed only."""
    truth = np.zeros((60, 80), np.int8)
    truth[10:40, 10:50] = 1
    truth[50:58, 60:78] = 1
    nothing = np.zeros(truth.shape, bool)
    found = [drawn_click(truth, nothing, [], group, "a/b") for group in range(60)]
    assert found == [drawn_click(truth, nothing, [], group, "a/b") for group in range(60)]
    assert all(click is not None and click.positive for click in found)
    places = np.array([(click.row, click.col) for click in found if click])
    assert len(np.unique(places, axis=0)) > 50
    assert (places >= 10).all()
    assert (places < (40, 50)).all()  # not in the smaller error
    edge = np.minimum(np.minimum(places[:, 0] - 9, 40 - places[:, 0]), np.minimum(places[:, 1] - 9, 50 - places[:, 1]))
    uniform = np.minimum(np.arange(1, 16), 15).mean()
    assert edge.mean() > 0.9 * uniform
    assert found != [drawn_click(truth, nothing, [], group, "a/c") for group in range(60)]
    added = truth == 1
    added[:5] = True
    negative = drawn_click(truth, added, [], 3, "a/b")
    assert negative is not None
    assert (negative.positive, negative.row < 5) == (False, True)
    assert drawn_click(truth, truth == 1, [], 3, "a/b") is None
    one = np.zeros((4, 4), np.int8)
    one[1, 1:3] = 1
    used = [Click(1, 1, True)]
    assert {drawn_click(one, one > 1, used, group, "x") for group in range(20)} == {Click(1, 2, True)}
    assert next_click(one, one > 1, used) == Click(1, 2, True)
