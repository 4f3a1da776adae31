"""An evaluation by Python is the command's: numbers, run folders, and the other way round."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny_photos

import hrseg_cli as hrseg
from hrseg_cli.engine.runtimes import ModelChoice
from hrseg_cli.runs import read_traces

Command = Callable[..., Any]
DATA = "procedural:count=2,size=96"


def without_seconds(traces: Any) -> list[hrseg.Trace]:
    return [replace(trace, seconds=()) for trace in traces]


def test_the_numbers_are_those_of_the_command(
    hrseg_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network that comes with hrseg, two metrics: in memory, into a run folder, and by the command; the two folders
    hold the same settings, so that each way resumes the other's."""
    monkeypatch.setattr(ModelChoice, "open", cache(ModelChoice.open))  # which takes longer than the clicks
    settings: dict[str, Any] = {"metrics": ["iou", "biou"], "max_clicks": 2, "until": {"biou": 0.8}, "band": "4px"}
    settings["changes"] = {"zoom.target": 64}
    words = [
        "evaluate", "-m", "h18s", "-d", DATA, "--metric", "iou", "--metric", "biou", "--max-clicks", 2, "--until",
        "biou=0.8", "--band", "4px", "--workers", 1, "--set", "zoom.target=64",
    ]  # fmt: skip
    seen: list[tuple[int, int]] = []
    result = hrseg.evaluate("h18s", DATA, **settings, progress=lambda *counts: seen.append(counts))
    assert seen[-1] == (2, 2)
    done = hrseg_command(*words, "-o", tmp_path / "run")
    assert done.code == 0, done.err
    assert without_seconds(result.traces) == without_seconds(read_traces(tmp_path / "run" / "traces.jsonl"))
    expected = pd.read_csv(tmp_path / "run" / "noc.csv")
    same = ~expected["measure"].str.startswith("SPC")  # seconds
    pd.testing.assert_frame_equal(result.table[same.tolist()], expected[same.tolist()])

    again = hrseg.evaluate("h18s", DATA, **settings, out=tmp_path / "run")  # nothing is left to do
    assert again.traces == tuple(read_traces(tmp_path / "run" / "traces.jsonl"))
    hrseg.evaluate("h18s", DATA, **settings, out=tmp_path / "other")
    records = [json.loads((tmp_path / name / "run.json").read_text())["asked"]["settings"] for name in ("run", "other")]
    assert records[0] == records[1]
    resumed = hrseg_command(*words, "-o", tmp_path / "other")
    assert resumed.code == 0, resumed.err


def test_tables_are_what_the_report_prints(hrseg_command: Command, tmp_path: Path) -> None:
    for name, clicks in (("few", 1), ("many", 2)):
        hrseg.evaluate(
            "grabcut", DATA, max_clicks=clicks, until=1.01, protocol="plain", out=tmp_path / name, keep_masks=True
        )
    assert (tmp_path / "few" / "masks.jsonl").is_file()
    runs = [tmp_path / "few", f"more={tmp_path / 'many'}"]
    found = hrseg.tables(runs, measures=["mean@1", "NoC@90"])
    printed = hrseg_command("report", *runs, "--measure", "mean@1", "--measure", "NoC@90", "--format", "json")
    lines = [json.loads(line) for line in printed.out.splitlines()]
    pd.testing.assert_frame_equal(found, pd.DataFrame(lines), rtol=1e-4)  # which are rounded
    assert found["run"].unique().tolist() == ["few", "more"]
    assert any("clicks differ" in reason for reason in found.attrs["differences"])
    assert "procedural n = 2" in found.attrs["notes"][0]
    wide = found.pivot(index="run", columns=["dataset", "metric", "measure"], values="value")
    assert wide.shape == (2, 2)
    with pytest.raises(hrseg.HrsegError, match="`metrics` biou: none of the runs measured it"):
        hrseg.tables(tmp_path / "few", metrics="biou")
    with pytest.raises(hrseg.HrsegError, match=r"no run\.json"):
        hrseg.tables(tmp_path)


def test_submissions_and_groups_are_those_of_the_command(hrseg_command: Command, tmp_path: Path) -> None:
    data = tiny_photos.boxes(tmp_path / "set")
    settings: dict[str, Any] = {"protocol": "off_centre", "max_clicks": 2, "limit": 2}
    with pytest.raises(hrseg.HrsegError, match="`submission`: masks are written to a run folder; give `out` too"):
        hrseg.evaluate("python:tiny_photos:discs", data, submission=True)
    found = [
        hrseg.evaluate(
            "python:tiny_photos:discs",
            data,
            **settings,
            changes={"click_group": group},
            submission=True,
            out=tmp_path / f"group-{group}",
        )
        for group in range(2)
    ]
    checked = hrseg.verify([tmp_path / "group-0", tmp_path / "group-1"])
    assert checked["problems"].tolist() == [0, 0]
    assert (checked["clicks"] > 0).all()
    assert checked.attrs == {"problems": []}

    words = ["-m", "python:tiny_photos:discs", "-d", data, "--protocol", "off_centre", "--max-clicks", 2, "--limit", 2]
    done = hrseg_command("evaluate", *words, "--groups", 2, "--workers", 1, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    table, record = hrseg.over_groups(found).set_index("measure"), json.loads(done.out)
    assert table.loc["mean@1", ["groups", "n"]].tolist() == [2, 2]
    for name, std in record["std"].items():
        assert (record[name], std) == pytest.approx(table.loc[name, ["mean", "std"]].tolist(), abs=1e-4), name

    masks = tmp_path / "group-1" / "masks.jsonl"
    masks.write_text("".join(masks.read_text().splitlines(keepends=True)[:1]))
    checked = hrseg.verify(tmp_path / "group-1")
    assert (checked["problems"].tolist(), checked.attrs["problems"]) == ([1], ["set/1: no masks"])


def test_broken_files_are_skipped_if_asked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tiny_photos.boxes(tmp_path / "set")
    (folder / "images" / "0.png").write_bytes(b"x")
    few: dict[str, Any] = {"max_clicks": 1, "protocol": "plain", "limit": 2}
    with pytest.raises(hrseg.HrsegError, match=r"0\.png: cannot be read"):
        hrseg.evaluate("grabcut", folder, **few)
    result = hrseg.evaluate("grabcut", folder, **few, skip_broken=True)
    assert [trace.id for trace in result.traces] == ["1", "2"]
    assert len(result.skipped) == 1
    assert f"skipped: {result.skipped[0]}" in caplog.text


def test_a_loaded_model_is_evaluated_as_it_was_loaded(tmp_path: Path) -> None:
    loaded = hrseg.load("grabcut")
    result = hrseg.evaluate(loaded, [DATA, f"other={DATA}"], max_clicks=1, limit=1, protocol="plain")
    assert result.table["dataset"].unique().tolist() == ["procedural", "other"]
    assert [trace.clicks for trace in result.traces[:1]] == [trace.clicks for trace in result.traces[1:]]
    with pytest.raises(hrseg.HrsegError, match=r"`device`: the loaded model has its own; pass it to load\(\)"):
        hrseg.evaluate(loaded, DATA, device="cpu")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"metrics": []}, "`metrics`: empty"),
        ({"metrics": "uio"}, "unknown metric 'uio'"),
        ({"until": {"biou": 0.9}}, r"`until`: 'biou' is not measured; add it to `metrics`"),
        ({"until": "0.9"}, "`until` '0.9': give a number"),
        ({"until": -1}, "`until` -1: give a number"),
        ({"max_clicks": 0}, "`max_clicks` 0: give an integer, 1 or more"),
        ({"workers": True}, "`workers` True"),
        ({"seed": -1}, "`seed` -1: give an integer, 0 or more"),
        ({"band": "wide"}, "`band` wide"),
        ({"binarize": "gt12"}, "unknown label rule 'gt12'.*gt128"),
        ({"changes": {"zoom.target": "large"}}, "zoom.target"),
        ({"protocol": "rimt"}, "Did you mean 'ritm'"),
        ({"keep_masks": True}, "`keep_masks`: .* give `out` too"),
        ({"datasets": "nowhere"}, "unknown dataset 'nowhere'"),
        ({"datasets": 3}, "`datasets`: a int"),
        ({"model": "h18z"}, "unknown model"),
        ({"root": "nowhere", "datasets": "davis"}, "prepare-data davis"),
    ],
)
def test_what_is_wrong_is_named(changed: dict[str, Any], said: str) -> None:
    arguments: dict[str, Any] = {"model": "grabcut", "datasets": DATA, "max_clicks": 1, **changed}
    with pytest.raises(hrseg.HrsegError, match=said) as caught:
        hrseg.evaluate(**arguments)
    assert "--" not in str(caught.value)
