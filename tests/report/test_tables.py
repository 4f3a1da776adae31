"""The adapters' tables: the paper's numbers to the letter, ours from run folders only."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hrseg_cli.errors import HrsegError
from hrseg_cli.interaction import Click, Trace
from hrseg_cli.metrics.noc import summarise
from hrseg_cli.recipe import load_tables, recipe_names
from hrseg_cli.report import tables
from hrseg_cli.runs import Run

# As the paper prints them; trailing zeros are left out there, too.
PRINTED = """
RITM 5.83 6.17 8.82 16.97
+ LoRA 5.82 6.17 8.78 17.12
+ LoRA + HQSeg-44K 5.94 6.25 8.23 13.67
+ LoRA + HQSeg-44K + boundary loss 5.98 6.02 8.17 13.44
RITM 5.83 6.17 8.82 16.97
+ conv 5.857 5.98 9.41 15.81
+ conv + HQSeg-44K 5.84 5.98 8.01 12.9
+ conv + HQSeg-44K + skip 5.83 5.97 7.92 12.73
+ conv + HQSeg-44K + skip + boundary loss + Sobel 5.828 5.95 7.68 12.32
+ conv + HQSeg-44K + skip + boundary loss 5.825 5.9 7.65 12.25
"""
PAPER = load_tables("adapters")
BASE = {"name": "hrnet_ocr", "file": "base.safetensors", "sha256": "0123456789abcdef"}


def evaluation(folder: Path, clicks: list[int], model: dict[str, Any] = BASE, fail: bool = False) -> None:
    """A run in which object k needs ``clicks[k]`` clicks by IoU, and one more by Boundary IoU; 9 s, then 0.5 s each."""
    traces = {}
    for k, needed in enumerate(clicks):
        iou, biou = ((0.3,) * (n - 1) + (0.95,) * (needed + 2 - n) for n in (needed, needed + 1))
        seconds = (9.0,) + (0.5,) * (len(biou) - 1)
        places = (Click(1, 2, True),) * len(biou)
        traces[str(k)] = Trace(str(k), "pets", places, {"iou": iou, "biou": biou}, seconds, {}, (9, 9), 5)
    settings = {
        "model": model,
        "metrics": ["iou", "biou"],
        "until": {"iou": 0.9, "biou": 0.9},
        "max_clicks": 20,
        "band": {"ratio": 0.02},
        "protocol": {"name": "plain", "version": 1},
        "seed": 0,
    }
    with suppress(KeyboardInterrupt), Run(folder, "evaluate", settings) as run:
        if fail:
            raise KeyboardInterrupt
        run.finish(list(traces), traces, keep_masks=False)


def training(folder: Path, dataset: str = "hqseg44k:split=train", **summary: float) -> None:
    with Run(folder, "adapt", {"recipe": {"data": {"crop": [320, 480], "parts": [{"dataset": dataset}]}}}) as run:
        run.summary = summary


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The base, and LoRA with two seeds."""
    adapted = {**BASE, "adapter": {"name": "lora"}}
    for part, clicks in (("regular", [3, 5, 7]), ("high", [8, 10, 12])):
        evaluation(tmp_path / "base" / "0" / part, clicks)
        evaluation(tmp_path / "t3_lora" / "0" / part, [k - 1 for k in clicks], adapted)
        evaluation(tmp_path / "t3_lora" / "1" / part, [k + 2 for k in clicks], adapted)
    for seed in "01":
        training(tmp_path / "t3_lora" / seed / "train", trained=123456, gmac=14.4, base_gmac=7.2)
    return tmp_path


def cells(text: str, label: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {label} "))
    return [cell.strip() for cell in line.split("|")[2:-1]]


def test_the_papers_numbers_to_the_letter(folder: Path) -> None:
    found = tables.read(folder, PAPER)
    for text, comma in ((tables.markdown(found), "|"), (tables.latex(found).replace(" \\\\", ""), "&")):
        lines = [[cell.strip() for cell in line.strip("| ").split(comma)] for line in text.splitlines()]
        shown = [" ".join([line[0], *line[6::2]]) for line in lines if len(line) == 13 and line[0].strip("-")]
        assert shown == PRINTED.strip().splitlines()


def test_every_row_has_its_recipe() -> None:
    rows = {*PAPER.rows, *load_tables("transformers").rows} - {"base", "adapt_conv"}
    assert {f"paper/{row}" for row in rows} == {name for name in recipe_names() if name.startswith("paper/")}


def test_numbers_by_hand(folder: Path) -> None:
    text = tables.markdown(tables.read(folder, PAPER))
    base, lora = cells(text, "RITM"), cells(text, "+ LoRA")
    assert base[:4] == ["0", "–", "7.20", "0.50"]
    assert lora[:4] == ["123,456", "320 × 480", "14.40", "0.50"]
    assert [cell.split(" ")[0] for cell in base[4::2]] == ["**5.00**", "**6.00**", "**10.00**", "**11.00**"]
    assert [cell.split(" ")[0] for cell in lora[4::2]] == ["5.50", "6.50", "10.50", "11.50"]  # mean of 4 and 7, ...
    assert cells(text, "+ LoRA + HQSeg-44K")[4::2] == ["–"] * 4
    assert "Seeds of one row differ by up to 3.00 clicks" in text
    assert "base base.safetensors (0123456789ab, fp32); commit" in text
    assert "seeds per row: 2" in text


def test_differences_from_the_base_are_of_pairs(folder: Path) -> None:
    """Objects differ by far more than rows: every object needs half a click more here, without any doubt."""
    text = tables.markdown(tables.read(folder, PAPER))
    pairs = text[text.index(f"## {tables.PAIRS}") :]
    assert cells(pairs, "+ LoRA") == ["+0.50 [+0.50, +0.50]"] * 4
    # After ten clicks the base has 0.95, 0.625 and 0.625 of the three, mean of both parts; LoRA 0.7875 twice and 0.625.
    scores = text[text.index(f"## {PAPER.scores.title}") :]
    assert cells(scores, "+ LoRA") == ["+0.00 [-16.25, +16.25]"]
    assert "| RITM" not in pairs
    assert tables.PAIRS in tables.latex(tables.read(folder, PAPER))


def test_with_one_seed_the_interval_is_that_of_every_other_report(tmp_path: Path) -> None:
    clicks = np.random.default_rng(3).integers(1, 19, 40).tolist()
    for part in PAPER.sets:
        evaluation(tmp_path / "base" / "0" / part, clicks)
    found = tables.read(tmp_path, PAPER).rows["base"].clicks["high", "biou"]
    run = tables.read_evaluations([str(tmp_path / "base" / "0" / "high")])[0]
    row = next(row for row in summarise(run.traces, "biou") if row.measure == "NoC@90")
    assert found[:3] == pytest.approx((row.value, row.low, row.high))


def test_what_is_not_finished_is_left_out_and_named(folder: Path) -> None:
    evaluation(folder / "t4_conv" / "0" / "regular", [1, 1, 1])
    evaluation(folder / "t4_conv" / "0" / "high", [1, 1, 1], fail=True)
    text = tables.markdown(tables.read(folder, PAPER))
    assert cells(text, "+ conv")[4::2] == ["–"] * 4
    assert "Not finished, omitted: t4_conv/0." in text
    with pytest.raises(HrsegError, match="no finished evaluation of tables 'adapters' found; create them"):
        tables.read(folder / "nowhere", PAPER)


def test_seeds_on_other_objects_are_refused(folder: Path) -> None:
    path = folder / "t3_lora" / "1" / "high" / "traces.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(HrsegError, match="t3_lora/0, t3_lora/1: objects differ"):
        tables.read(folder, PAPER)


def test_other_settings_are_told(folder: Path) -> None:
    path = folder / "base" / "0" / "high" / "run.json"
    record = json.loads(path.read_text())
    record["asked"]["settings"]["protocol"]["flip"] = True
    path.write_text(json.dumps(record))
    assert "numbers on high resolution are not comparable: protocols differ in flip" in tables.latex(
        tables.read(folder, PAPER)
    )


def test_rows_of_other_datasets_are_told(folder: Path) -> None:
    """Objects of one dataset that differ are told already; a dataset that a row lacks altogether was not."""
    for seed in "01":
        path = folder / "t3_lora" / seed / "high" / "traces.jsonl"
        path.write_text(path.read_text().replace('"pets"', '"cars"'))
    text = tables.markdown(tables.read(folder, PAPER))
    assert (
        "The numbers on high resolution are not comparable: "
        "datasets differ: pets (base/0), cars (t3_lora/0, t3_lora/1)."
    ) in text


def test_what_made_the_numbers_is_told(folder: Path) -> None:
    """Precision of any row, code that had been changed, and data that is not the paper's."""
    assert "Trained on" not in tables.markdown(tables.read(folder, PAPER))
    for part in PAPER.sets:
        path = folder / "t3_lora" / "0" / part / "run.json"
        record = json.loads(path.read_text())
        record["asked"]["settings"]["model"]["precision"] = "bf16"
        record["where"] = {"commit": "a" * 40, "dirty": True}
        record["where_later"] = [{"commit": "b" * 40, "dirty": False}]
        path.write_text(json.dumps(record))
        evaluation(folder / "t4_conv" / "0" / part, [3, 5, 7], {**BASE, "adapter": {"name": "conv"}})
    training(folder / "t4_conv" / "0" / "train", "leaves/leaf:kept=0.1", trained=277)
    text = tables.markdown(tables.read(folder, PAPER))
    assert "base base.safetensors (0123456789ab, fp32), base.safetensors (0123456789ab, bf16); commit" in text
    assert "aaaaaaaaaa+, bbbbbbbbbb" in text
    assert "Trained on hqseg44k (t3_lora), leaf (t4_conv); HQSeg-44K in a label stands for the data of that" in text


def test_a_plan_of_ones_own(hrseg: Callable[..., Any], folder: Path, tmp_path: Path) -> None:
    """One set, one metric, no trainings, no published numbers: nothing of the paper is left in the mechanism."""
    plan = tmp_path / "mine.yaml"
    plan.write_text(
        "name: mine\nsets: {shots: my shots}\nmetrics: [biou]\nlevel: 0.6\nbase: old\n"
        "tables: [{title: Ours, rows: [{row: old, label: before}, {row: new, label: after}]}]\n"
    )
    for row, clicks in (("old", [4, 6]), ("new", [3, 4])):
        evaluation(tmp_path / "runs" / row / "0" / "shots", clicks)
    done = hrseg("report", "--tables", plan, tmp_path / "runs")
    assert done.code == 0, done.err
    assert [cell.split(" ")[0] for cell in cells(done.out, "after")] == ["0.50", "**4.50**"]
    assert done.out.splitlines()[2].split("|")[1:-1][-1].strip() == "my shots bIoU"
    assert "NoC@60 over all objects" in done.out
    assert not {"paper", "published", "trained", "gmac"} & set(done.out.lower().split())
    assert "-1.50 [" in done.out
    with pytest.raises(HrsegError, match=f"create them with {load_tables(str(plan)).made_by}"):
        tables.read(folder / "nowhere", load_tables(str(plan)))


def test_several_levels_and_a_base_that_was_trained(folder: Path, tmp_path: Path) -> None:
    """A table of networks that all have a training: none is what the others start from."""
    plan = tmp_path / "nets.yaml"
    plan.write_text(
        "name: nets\nsets: {high: photographs}\nmetrics: [iou@20, iou, biou]\nbase: t3_lora\n"
        "tables: [{title: Nets, rows: [{row: t3_lora, label: one}, {row: other, label: two}]}]\n"
    )
    evaluation(folder / "other" / "0" / "high", [4, 4, 4], {"name": "linknet", "sha256": "f" * 64})
    text = tables.markdown(tables.read(folder, load_tables(str(plan))))
    one = cells(text, "one")
    assert one[:3] == ["123,456", "320 × 480", "14.40"]
    assert [cell.split(" ")[0] for cell in one[4:]] == ["**1.00**", "10.50", "11.50"]  # the first click has 0.3
    head = [cell.strip() for cell in text.splitlines()[2].split("|")[-4:-1]]
    assert head == ["photographs IoU@20", "photographs IoU", "photographs bIoU"]
    assert "NoC@90, or to the score after @, over all objects" in text
    assert "inside an adapter" not in text
    assert "Measured: models base.safetensors (0123456789ab, fp32), linknet (ffffffffffff, fp32); commit" in text


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("metrics: [iou@0]", "metrics"),
        ("metrics: [iou@80, iou@80]", "a column is named twice"),
        ("metrics: [dice]", "unknown metric 'dice'"),
        ("sets: {../x: x}", "sets"),
        ("sets: {train: x}", "'train' is the folder of a row's training"),
        ("timed: shot", "'shot' is not among the sets"),
        ("tables: [{title: A, rows: [{row: a, label: a, numbers: ['1', '2']}]}]", "2 numbers for 1 columns"),
        ("tables: [{title: A, rows: [{row: ../a, label: a}]}]", "tables.0.rows.0.row"),
        ("colums: 1", "unknown key 'colums'"),
    ],
)
def test_wrong_plans_are_one_line(hrseg: Callable[..., Any], tmp_path: Path, change: str, told: str) -> None:
    plan = {"name": "name: x", "sets": "sets: {shots: x}", "metrics": "metrics: [iou]"}
    plan |= {"tables": "tables: [{title: A, rows: [{row: a, label: a}]}]", change.partition(":")[0]: change}
    (tmp_path / "x.yaml").write_text("\n".join(plan.values()))
    done = hrseg("report", "--tables", tmp_path / "x.yaml", tmp_path)
    assert done.code in (1, 2), done.out
    assert told in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("format_", ["md", "tex"])
def test_a_committed_copy_is_checked(hrseg: Callable[..., Any], folder: Path, tmp_path: Path, format_: str) -> None:
    copy = tmp_path / f"tables.{format_}"
    words = ["report", "--paper", folder, "--format", format_]
    assert hrseg(*words, "--out", copy).code == 0
    assert hrseg(*words, "--check", copy).code == 0
    copy.write_text(copy.read_text().replace("5.50", "5.49"))
    done = hrseg(*words, "--check", copy)
    assert done.code == 1
    assert "+" in done.err
    assert "5.49" in done.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "give run folders, or one folder with --tables PLAN"),
        (["--tables", "adapters"], "take one folder"),
        (["--paper", "x", "run"], "--tables and --paper take one folder"),
        (["--paper", "x", "--partial"], "--tables and --paper take one folder"),
        (["--paper", "x", "--format", "csv"], "--tables and --paper write md or tex"),
    ],
)
def test_wrong_usage(hrseg: Callable[..., Any], words: list[str], told: str) -> None:
    done = hrseg("report", *words)
    assert done.code == 2
    assert told in done.err.replace("\n", " ")
