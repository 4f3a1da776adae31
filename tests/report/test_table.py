"""Run folders -> Table, and the command around it."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from hrseg_cli.commands.report import report
from hrseg_cli.errors import HrsegError, UnknownName
from hrseg_cli.interaction import Click, Trace
from hrseg_cli.metrics.noc import summarise
from hrseg_cli.report.table import build, check_measures, measured, read_evaluations, summary
from hrseg_cli.runs import Run


def trace(name: str, *iou: float, until: float = 0.9, area: int = 100, **more: tuple[float, ...]) -> Trace:
    return Trace(
        id=name,
        dataset="pets",
        clicks=tuple(Click(1, 2, True) for _ in iou),
        scores={"iou": iou, **more},
        seconds=tuple(0.5 for _ in iou),
        until={"iou": until},
        size=(20, 30),
        area=area,
    )


# With at most 4 clicks, 0.9 comes after 1, 3 and never: NoC@90 = (1 + 3 + 4) / 3, NoF@90 = 1 / 3.
THREE = (trace("cat", 0.95), trace("dog", 0.5, 0.85, 0.9), trace("hen", 0.1, 0.2, 0.3, 0.4))


def run_folder(folder: Path, traces: tuple[Trace, ...] = THREE, **settings: Any) -> Path:
    asked = {
        "model": {"name": "grabcut"},
        "metrics": ["iou"],
        "until": {"iou": 0.9},
        "max_clicks": 4,
        "band": {"ratio": 0.02},
        "protocol": {"name": "plain", "version": 1, "flip": False, "max_clicks": 20},
        "seed": 0,
    }
    with Run(folder, "evaluate", asked | settings) as run:
        run.finish([t.id for t in traces], {t.id: t for t in traces}, keep_masks=False)
    return folder


def stopped_folder(folder: Path) -> Path:
    """A run that was interrupted while it wrote its third trace."""
    with suppress(KeyboardInterrupt), Run(run_folder(folder), "evaluate", settings_of(folder)) as run:
        (folder / "traces.jsonl").unlink()
        run.part.write_text(THREE[0].to_json() + "\n" + THREE[1].to_json() + "\n" + THREE[2].to_json()[:40])
        raise KeyboardInterrupt
    return folder


def settings_of(folder: Path) -> dict[str, Any]:
    return read_evaluations([str(folder)])[0].settings


def recorded_folder(folder: Path, seed: int = 0, traces: tuple[Trace, ...] = THREE) -> Path:
    """A run as evaluate leaves it: with the number and the hash of its objects, and what it printed in its summary."""
    names = "\n".join(f"pets/{t.id}" for t in traces)
    objects = len(traces)
    asked = {"objects": objects, "objects_sha256": hashlib.sha256(names.encode()).hexdigest(), "seed": seed}
    run_folder(folder, traces, **asked)
    rows = summarise(traces, "iou", max_clicks=4, seed=seed)
    row = {"dataset": "pets", "metric": "iou", "n": objects, **{row.measure: round(row.value, 4) for row in rows}}
    edit(folder, lambda record: record["got"].update(summary={"rows": [row]}))
    return folder


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    record = json.loads((folder / "run.json").read_text())
    change(record)
    (folder / "run.json").write_text(json.dumps(record))


def invoke(*arguments: object) -> Result:
    app = typer.Typer()
    app.command()(report)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_numbers_by_hand(tmp_path: Path) -> None:
    table = build(
        read_evaluations([str(run_folder(tmp_path / "a"))]), measures=["NoC@90", "NoF@90", ">=4@90", "mean@2"]
    )
    assert [(e.measure, e.n) for e in table.rows] == [("NoC@90", 3), ("NoF@90", 3), (">=4@90", 3), ("mean@2", 3)]
    assert [e.value for e in table.rows] == pytest.approx([8 / 3, 1 / 3, 1, (0.95 + 0.85 + 0.2) / 3])
    first = table.rows[0]
    assert (first.run, first.model, first.protocol, first.dataset) == ("a", "grabcut", "plain v1", "pets")
    assert first.low < first.value < first.high


def test_intervals_are_those_that_evaluate_wrote(tmp_path: Path) -> None:
    """Same objects, same seed: a report never disagrees with the run's own noc.csv."""
    many = tuple(trace(f"{i}", 0.03 * i, 0.031 * i, 0.032 * i, 0.033 * i) for i in range(31))
    folder = run_folder(tmp_path / "a", many, seed=7)
    written = {row.measure: (row.low, row.high) for row in summarise(many, "iou", max_clicks=4, seed=7)}
    (run,) = read_evaluations([str(folder)])
    for entry in [*build([run], measures=["NoC@90", "mean@3", "AUC"]).rows, *summary(run, "iou", [0.9], [3])]:
        assert (entry.low, entry.high) == pytest.approx(written[entry.measure])


def test_default_measures_leave_out_what_the_run_cannot_answer(tmp_path: Path) -> None:
    """Clicking ended at 0.82: nobody knows when 0.9 would have come."""
    folder = run_folder(tmp_path / "a", (trace("cat", 0.7, 0.82, until=0.82),), until={"iou": 0.82})
    assert [e.measure for e in build(read_evaluations([str(folder)])).rows] == ["NoC@80"]


def test_asked_measure_nobody_can_answer_is_an_error_with_the_fix(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "a")
    with pytest.raises(HrsegError, match=r"`measures` NoC@95: .*IoU 0\.9.*higher `until`"):
        build(read_evaluations([str(folder)]), measures=["NoC@95"])


def test_thresholds_between_whole_percents(tmp_path: Path) -> None:
    """0.925 from its text: the score 0.925 reaches NoC@92.5."""
    folder = run_folder(tmp_path / "a", (trace("cat", 0.5, 0.925),))
    assert [e.value for e in build(read_evaluations([str(folder)]), measures=["NoC@92.5"]).rows] == [2]


def test_misspelt_measure_gets_the_nearest_name() -> None:
    with pytest.raises(UnknownName, match=r"Did you mean 'NoC@90'"):
        check_measures(["NoC90"])


def test_labels(tmp_path: Path) -> None:
    """LABEL=FOLDER renames; a folder whose own name holds a '=' is still found."""
    plain, odd = run_folder(tmp_path / "a"), run_folder(tmp_path / "lr=3")
    runs = read_evaluations([f"base={plain}", str(odd)])
    assert [(run.label, run.folder, run.shards) for run in runs] == [("base", plain, ()), ("lr=3", odd, ())]
    (shard, _) = shard_folders(tmp_path / "run", 2)
    for first, second in ((plain, odd), (plain, shard), (shard, plain)):
        with pytest.raises(HrsegError, match="another run is already called 'a'"):
            read_evaluations([f"a={first}", f"a={second}"])
    for wrong in (f"={plain}", "base="):
        with pytest.raises(HrsegError, match="write FOLDER or LABEL=FOLDER"):
            read_evaluations([wrong])


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(HrsegError, match=r"no run\.json"):
        read_evaluations([str(tmp_path)])
    with Run(tmp_path / "fit", "train", {"steps": 5}):
        pass
    with pytest.raises(HrsegError, match=r"its run.json lacks max_clicks, .*'hrseg evaluate --out'"):
        read_evaluations([str(tmp_path / "fit")])


def shard_folders(out: Path, of: int, **settings: Any) -> list[Path]:
    """The three traces, dealt out to ``of`` shards."""
    return [
        run_folder(out / f"shard-{k + 1}-of-{of}", THREE[k::of], shard=f"{k + 1}/{of}", objects=3, **settings)
        for k in range(of)
    ]


@pytest.mark.parametrize("of", [2, 3, 5])
def test_shards_are_one_run(tmp_path: Path, of: int) -> None:
    """By the folder around them or one by one; in the order of the dataset, so that intervals are the same too."""
    folders = shard_folders(tmp_path / "a" / "run", of)
    whole = build(read_evaluations([str(run_folder(tmp_path / "b" / "run"))]))
    for arguments in ([tmp_path / "a" / "run"], folders[::-1]):
        (run,) = read_evaluations([str(one) for one in arguments])
        assert run.traces == THREE
        assert build([run]).rows == whole.rows


def test_shards_that_do_not_make_a_run_are_refused(tmp_path: Path) -> None:
    one, two, three = shard_folders(tmp_path / "run", 3)
    for arguments, reason in (
        ([one], "shard 2/3, 3/3 of 'run' is missing"),
        ([one, three], "shard 2/3 of 'run' is missing"),
        ([two, three], "shard 1/3 of 'run' is missing"),
        ([one, two, two], "twice"),
        ([one, two, shard_folders(tmp_path / "far" / "run", 3, max_clicks=9)[2]], "differs in max_clicks"),
        ([one, shard_folders(tmp_path / "five" / "run", 5)[1]], "does not belong with"),
    ):
        with pytest.raises(HrsegError, match=reason):
            read_evaluations([str(argument) for argument in arguments])
    (run,) = read_evaluations([str(one), str(three)], partial=True)
    assert (run.status, len(run.traces)) == ("incomplete", 2)


LINES = [t.to_json() for t in THREE]


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (LINES[:2], "contains 2 of the run's 3 objects"),
        ([LINES[0], LINES[1], LINES[2][:50]], "line 3: incomplete"),
        ([*LINES, LINES[0]], "duplicate object"),
        ([LINES[1], LINES[1], LINES[2]], "duplicate object"),
        ([LINES[1], LINES[0], LINES[2]], "do not match the objects of its run.json"),
        ([LINES[0], LINES[1], LINES[2].replace("hen", "hex")], "do not match the objects"),
        ([LINES[0].replace("0.95", "0.85"), *LINES[1:]], r"its traces give .* by iou on pets, its summary"),
        ([LINES[0].replace('"iou":[0.95]', '"iou":[]'), *LINES[1:]], "iou for 2 objects of pets, its summary for 3"),
        ([LINES[0].replace("0.95", '"0.95"'), *LINES[1:]], "line 1: not a trace .'0.95' is not a number"),
        ([LINES[0].replace("0.95", "NaN"), *LINES[1:]], "line 1: not a trace .NaN is not a number"),
        (
            [LINES[0], LINES[1].replace("0.5,0.85,", ""), LINES[2]],
            "line 2: not a trace .1 values of 'iou' for 3 clicks",
        ),
        ([LINES[0], LINES[1].replace('"id":"dog"', '"id":3'), LINES[2]], "line 2: not a trace"),
    ],
)
def test_traces_that_are_not_the_runs_are_refused(lines: list[str], told: str, tmp_path: Path) -> None:
    """A copy that was cut short, or lines that somebody has edited: the numbers would be of something else."""
    folder = recorded_folder(tmp_path / "a")
    assert read_evaluations([str(folder)])[0].whole
    cut = "\n" if lines[-1].endswith("}") else ""
    (folder / "traces.jsonl").write_text("\n".join(lines) + cut)
    with pytest.raises(HrsegError, match=rf"traces\.jsonl|{folder}") as caught:
        read_evaluations([str(folder)])
    assert re.search(told, str(caught.value))


def test_a_part_of_a_finished_run_is_counted_under_partial(tmp_path: Path) -> None:
    folder = recorded_folder(tmp_path / "a")
    (folder / "traces.jsonl").write_text("\n".join([*LINES[:2], LINES[2][:40]]))
    table = build(read_evaluations([str(folder)], partial=True), measures=["NoC@90"])
    assert [entry.n for entry in table.rows] == [2]
    assert "Not finished: a (done, 2 of 3 objects)." in table.notes


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda r: r["asked"]["settings"].update(max_clicks="4"), "max_clicks: input should be a valid integer"),
        (lambda r: r["asked"]["settings"].update(max_clicks=10**9), "max_clicks: input should be less"),
        (lambda r: r["asked"]["settings"].update(max_clicks=True), "max_clicks: input"),
        (lambda r: r["asked"]["settings"].update(model=None), "model: input should be a valid dictionary;"),
        (lambda r: r["asked"]["settings"].update(model={"file": "x"}), "model.name: field required"),
        (lambda r: r["asked"]["settings"].update(until=3), "until: input should be a valid dictionary"),
        (lambda r: r["asked"]["settings"].update(until={"iou": "0.9"}), "until.iou: input should be a valid number"),
        (lambda r: r["asked"]["settings"].update(protocol=[]), "protocol: input should be a valid dictionary"),
        (lambda r: r["asked"]["settings"].update(protocols={"pets": 1}), "protocols.pets: input"),
        (
            lambda r: r["asked"]["settings"].update(composed={"all": "pets"}),
            "composed.all: input should be a valid list",
        ),
        (lambda r: r["asked"]["settings"].update(metrics="iou"), "metrics: input should be a valid list"),
        (lambda r: r["asked"]["settings"].update(seed=-1), "seed: input should be greater"),
        (lambda r: r["asked"]["settings"].update(shard="1/999999999"), "shard: string should match"),
        (lambda r: r["asked"]["settings"].update(objects="3"), "objects: input should be a valid integer"),
        (lambda r: r["asked"].update(settings=[]), "cannot be read as a run"),
        (lambda r: r["asked"].pop("command"), "cannot be read as a run .no 'command'"),
        (lambda r: r.update(got=None), "cannot be read as a run"),
        (lambda r: r.update(where="here"), "cannot be read as a run"),
        (lambda r: r.update(where_later=["here"]), "cannot be read as a run"),
        (lambda r: r["got"].update(summary=["rows"]), "its summary cannot be read"),
        (lambda r: r["got"]["summary"].update(rows=[1]), "its summary cannot be read"),
        (lambda r: r["got"]["summary"]["rows"][0].update({"NoC@90": "1"}), "its traces give NoC@90 = 2.6667"),
    ],
)
def test_an_edited_record_is_named(change: Callable[[dict[str, Any]], Any], told: str, tmp_path: Path) -> None:
    folder = recorded_folder(tmp_path / "a")
    edit(folder, change)
    with pytest.raises(HrsegError) as caught:
        build(read_evaluations([str(folder)]))
    assert re.search(told, str(caught.value))
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(("value", "sound"), [(0.0, True), (0.0001, True), (0.0002, False)])
def test_the_summary_may_differ_by_its_last_digit(value: float, sound: bool, tmp_path: Path) -> None:
    """It has four, rounded on another machine. Seconds are not compared: the traces have fewer digits of them."""
    folder = recorded_folder(tmp_path / "a", traces=(trace("cat", 0.95),))

    def change(record: dict[str, Any]) -> None:
        row = record["got"]["summary"]["rows"][0]
        assert (row["NoF@80"], row["SPC"]) == (0, 0.5)
        row.update({"NoF@80": value, "SPC": 0.6})

    edit(folder, change)
    if sound:
        assert read_evaluations([str(folder)])[0].whole
    else:
        with pytest.raises(HrsegError, match=r"NoF@80 = 0\.0000 by iou on pets, its summary 0\.0002"):
            read_evaluations([str(folder)])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"max_clicks": 1}, ""),
        ({"max_clicks": 100_000}, ""),
        ({"max_clicks": 0}, "max_clicks: input should be greater"),
        ({"max_clicks": 100_001}, "max_clicks: input should be less"),
        ({"objects": -1}, "objects: input should be greater"),
        ({"objects": 0, "traces": ()}, "no traces"),
    ],
)
def test_numbers_of_settings_have_bounds(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "a", **changes)
    if not told:
        assert read_evaluations([str(folder)])[0].max_clicks == changes["max_clicks"]
    else:
        with pytest.raises(HrsegError, match=told):
            read_evaluations([str(folder)])


def test_unfinished_run_needs_partial(tmp_path: Path) -> None:
    folder = stopped_folder(tmp_path / "a")
    with pytest.raises(HrsegError, match=r"'interrupted', not done; .*`partial`"):
        read_evaluations([str(folder)])
    table = build(read_evaluations([str(folder)], partial=True), measures=["NoC@90"])
    assert [(e.value, e.n) for e in table.rows] == [(2.0, 2)]
    assert "Not finished: a (interrupted)." in table.notes


def test_metrics_are_those_asked_for(tmp_path: Path) -> None:
    """IoU is measured along with everything; a run asked for Boundary IoU reports that."""
    folder = run_folder(tmp_path / "a", (trace("cat", 0.95, biou=(0.9,)),), metrics=["biou"], until={"biou": 0.9})
    runs = read_evaluations([str(folder)])
    assert measured(runs) == ["biou"]
    assert measured(runs, ["iou"]) == ["iou"]
    with pytest.raises(HrsegError, match="`metrics` mba: none of the runs measured it"):
        measured(runs, ["mba"])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"protocol": {"name": "ritm", "version": 1, "flip": True}},
            "protocols differ in flip: plain v1 (a), ritm v1 (b)",
        ),
        ({"max_clicks": 3}, "maximum clicks differ: 4 (a), 3 (b)"),
        ({"traces": THREE[:2]}, "objects of pets differ: 3 (a), 2 (b), 2 in common"),
        ({"traces": (*THREE[:2], trace("hen", 0.1, 0.2, 0.3, 0.4, area=99))}, "objects of pets differ: 3, 2 in common"),
    ],
)
def test_runs_that_do_not_compare(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    runs = read_evaluations([str(run_folder(tmp_path / "a")), str(run_folder(tmp_path / "b", **change))])
    assert list(build(runs).differences) == [reason]


def test_runs_that_compare(tmp_path: Path) -> None:
    """Another model, seed or band without Boundary IoU changes nothing about what IoU means."""
    other = run_folder(tmp_path / "b", model={"name": "h18", "file": "w.pth"}, seed=1, band={"width": 5})
    runs = read_evaluations([str(run_folder(tmp_path / "a")), str(other)])
    assert build(runs).differences == ()
    assert {e.model for e in build(runs).rows} == {"grabcut", "h18 (w.pth)"}


def test_bands_matter_for_boundary_iou(tmp_path: Path) -> None:
    traces = (trace("cat", 0.95, biou=(0.9,)),)
    asked: dict[str, Any] = {"traces": traces, "metrics": ["iou", "biou"], "until": {"iou": 0.9, "biou": 0.9}}
    folders = [run_folder(tmp_path / str(width), band={"width": width}, **asked) for width in (5, 6)]
    (reason,) = build(read_evaluations([str(folder) for folder in folders])).differences
    assert reason.startswith("bands of bIoU differ: ")


def test_a_summary_of_a_dataset_counts_its_objects_only(tmp_path: Path) -> None:
    """And those alone that have the metric."""
    bird = replace(trace("owl", 0.1, 0.95, biou=(0.1, 0.9)), dataset="birds")
    (run,) = read_evaluations([str(run_folder(tmp_path / "a", (*THREE, bird)))])
    rows = summary(run, "iou", [0.9], dataset="birds")
    assert {row.n for row in rows if row.dataset == "birds"} == {1}
    assert {row.dataset for row in rows} == {"birds"}
    assert {row.dataset for row in summary(run, "biou", [0.9])} == {"birds"}


def test_a_composed_dataset_counts_the_objects_of_its_parts(tmp_path: Path) -> None:
    bird = replace(trace("owl", 0.95), dataset="birds")
    fish = replace(trace("eel", 0.95), dataset="fish")
    settings = {"composed": {"land": ["pets", "birds"]}}
    (run,) = read_evaluations([str(run_folder(tmp_path / "a", (*THREE, bird, fish), **settings))])
    counts = {entry.dataset: entry.n for entry in build([run], measures=["mean@1"]).rows}
    assert counts == {"pets": 3, "birds": 1, "fish": 1, "land": 4}


def test_what_was_read_cannot_be_changed(tmp_path: Path) -> None:
    """Several tables and plots are made of it."""
    (run,) = read_evaluations([str(run_folder(tmp_path / "a"))])
    table = build([run])
    for one, name in ((run, "label"), (table, "notes"), (table.rows[0], "n")):
        with pytest.raises(FrozenInstanceError):
            setattr(one, name, None)


@pytest.mark.parametrize(
    ("until", "text"), [({}, "the last click"), ({"iou": 1.0}, "IoU 1"), ({"iou": 1.5}, "the last click")]
)
def test_a_target_that_no_score_exceeds_is_the_last_click(until: dict[str, float], text: str, tmp_path: Path) -> None:
    """1 can be reached, if only by a perfect mask."""
    (run,) = read_evaluations([str(run_folder(tmp_path / "a", until=until))])
    assert f"until {text};" in build([run], measures=["mean@1"]).notes[0]


def test_where_clicking_ended_matters_for_means_only(tmp_path: Path) -> None:
    runs = read_evaluations([str(run_folder(tmp_path / "a")), str(run_folder(tmp_path / "b", until={"iou": 2}))])
    assert build(runs, measures=["NoC@90"]).differences == ()
    (reason,) = build(runs, measures=["mean@1"]).differences
    assert reason.endswith("IoU 0.9 (a), the last click (b)")


def test_command_prints_data_to_stdout_and_complaints_to_stderr(tmp_path: Path) -> None:
    result = invoke(run_folder(tmp_path / "a"), run_folder(tmp_path / "b", max_clicks=3), "--format", "csv")
    assert result.exit_code == 0
    assert result.stdout.startswith("run,model,protocol,commit,dataset,metric,measure,value,low,high,n\n")
    assert result.stderr == "warning: the numbers are not comparable: maximum clicks differ: 4 (a), 3 (b)\n"


def test_check_against_a_written_table(tmp_path: Path) -> None:
    """Equal: silent, 0. Different: a diff on stderr, 1. Missing: one line that says how to make it."""
    folder, file = run_folder(tmp_path / "a"), tmp_path / "table.md"
    with pytest.raises(HrsegError, match=r"--check .*write it first with --out"):
        raise_of(invoke(folder, "--check", file))
    assert invoke(folder, "--out", file).stdout == ""
    same = invoke(folder, "--check", file)
    assert (same.exit_code, same.output) == (0, "")
    file.write_text(file.read_text().replace("2.67", "2.66"))
    other = invoke(folder, "--check", file)
    assert (other.exit_code, other.stdout) == (1, "")
    minus, plus = [line for line in other.stderr.splitlines() if line.startswith(("-|", "+|"))]
    assert "2.66" in minus
    assert "2.67" in plus


def test_seconds_stay_out_of_a_table_unless_asked_for(tmp_path: Path) -> None:
    """They differ from run to run, so a checked table would never be equal."""
    folder = run_folder(tmp_path / "a")
    assert "SPC" not in invoke(folder, "--format", "csv").stdout
    assert ",SPC,0.5,0.5,0.5,3" in invoke(folder, "--format", "csv", "--measure", "SPC").stdout


def test_check_and_out_exclude_each_other(tmp_path: Path) -> None:
    result = invoke(run_folder(tmp_path / "a"), "--check", tmp_path / "x", "--out", tmp_path / "x")
    assert result.exit_code == 2


@pytest.mark.parametrize("option", ["--format", "--metric", "--measure"])
def test_unknown_names(tmp_path: Path, option: str) -> None:
    with pytest.raises(UnknownName):
        raise_of(invoke(run_folder(tmp_path / "a"), option, "nonsense"))


def raise_of(result: Result) -> None:
    """The error that ``hrseg_cli.cli.main`` would turn into one line."""
    assert result.exception is not None
    raise result.exception


def test_reports_never_import_torch() -> None:
    """A report must not take the seconds that torch takes to load."""
    modules = "hrseg_cli.report.plots, hrseg_cli.report.table, hrseg_cli.report.write, hrseg_cli.commands.report"
    code = f"import sys, {modules}; assert not {{'torch', 'matplotlib', 'pandas'}} & sys.modules.keys()"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
