"""One evaluation on several machines: shares, launchers, what is redone, and one row in the report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hrseg_cli.commands.shards import Shard, shard_of, share_of_cores
from hrseg_cli.errors import HrsegError

Command = Callable[..., Any]

QUICK = [
    "-m", "grabcut", "-d", "procedural:count=5,size=96", "--max-clicks", "3", "--until", "1.01", "--workers", "1",
    "--protocol", "plain",
]  # fmt: skip


def traces(path: Path) -> list[dict[str, Any]]:
    """Lines of a traces file without what differs from run to run."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def table(hrseg: Command, *words: object) -> str:
    """The report's rows without the column that names the run's commit and label."""
    done = hrseg("report", *words, "--format", "csv", "--metric", "iou", "--measure", "NoC@90", "--measure", "AUC")
    assert done.code == 0, done.err
    return str(done.out)


@given(st.lists(st.integers()), st.integers(1, 9))
def test_shares_are_a_balanced_partition(objects: list[int], of: int) -> None:
    shares = [Shard(number, of).share(objects) for number in range(1, of + 1)]
    assert sorted(one for share in shares for one in share) == sorted(objects)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("text", ["0/4", "5/4", "2", "1/0", "a/b", "-1/4", "1/4/2"])
def test_a_wrong_shard_is_one_line(text: str) -> None:
    with pytest.raises(HrsegError, match="I from 1 to N"):
        shard_of(text)


def test_launchers_are_heard_and_the_option_is_stronger(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert shard_of(None) is None
    assert share_of_cores(8) == 8
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "4")  # a batch script that does not start its tasks by srun
    assert shard_of(None) is None
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    assert shard_of(None) == Shard(1, 4)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert shard_of(None) == Shard(3, 3)
    assert shard_of("1/2") == Shard(1, 2)
    assert share_of_cores(8) == 2
    assert share_of_cores(2) == 1


def test_shards_become_the_one_run(hrseg: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole, by two shards and by three ranks of a launcher, one of which is lost: the same traces, the same row."""
    assert hrseg("evaluate", *QUICK, "-o", tmp_path / "whole" / "run").code == 0
    whole = traces(tmp_path / "whole" / "run" / "traces.jsonl")
    expected = table(hrseg, f"run={tmp_path / 'whole' / 'run'}")

    for number in (1, 2):
        done = hrseg("evaluate", *QUICK, "-o", tmp_path / "shards" / "run", "--shard", f"{number}/2")
        assert done.code == 0, done.err
        assert json.loads(done.out)["shard"] == f"{number}/2"
        part = tmp_path / "shards" / "run" / f"shard-{number}-of-2"
        assert traces(part / "traces.jsonl") == whole[number - 1 :: 2]
    assert table(hrseg, tmp_path / "shards" / "run") == expected

    ranks = tmp_path / "ranks" / "run"
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in (2, 0):
        monkeypatch.setenv("RANK", str(rank))
        assert hrseg("evaluate", *QUICK, "-o", ranks).code == 0
    lost = hrseg("report", ranks)
    assert lost.code == 1
    assert "shard 2/3 of 'run' is missing" in lost.err
    assert hrseg("report", ranks, "--partial").code == 0
    finished = (ranks / "shard-1-of-3" / "traces.jsonl").read_bytes()
    for rank in range(3):  # the same command again, by all ranks
        monkeypatch.setenv("RANK", str(rank))
        assert hrseg("evaluate", *QUICK, "-o", ranks).code == 0
    assert (ranks / "shard-1-of-3" / "traces.jsonl").read_bytes() == finished  # with its seconds: not done again
    assert table(hrseg, ranks) == expected

    # Brought together from two machines, and a shard that answers another question.
    far = tmp_path / "far" / "run" / "shard-2-of-2"
    shutil.copytree(tmp_path / "shards" / "run" / "shard-2-of-2", far)
    assert table(hrseg, tmp_path / "shards" / "run" / "shard-1-of-2", far) == expected
    record = json.loads((far / "run.json").read_text())
    record["asked"]["settings"]["protocol"]["threshold"] = 0.3
    (far / "run.json").write_text(json.dumps(record))
    wrong = hrseg("report", tmp_path / "shards" / "run" / "shard-1-of-2", far)
    assert wrong.code == 1
    assert "differs in protocol" in wrong.err


def test_more_shards_than_objects(hrseg: Command, tmp_path: Path) -> None:
    """The last machine has nothing to do, which is no reason to fail."""
    words = [*QUICK, "--limit", "1", "-o", tmp_path / "run"]
    for number in (1, 2):
        assert hrseg("evaluate", *words, "--shard", f"{number}/2").code == 0
    assert hrseg("report", tmp_path / "run").code == 0


@pytest.mark.slow
def test_traces_by_shards(hrseg: Command, tmp_path: Path) -> None:
    """simulate-clicks writes beside the named file, so that no two machines write one file."""
    assert hrseg("simulate-clicks", *QUICK, "-o", tmp_path / "clicks.jsonl").code == 0
    for number in (1, 2):
        done = hrseg("simulate-clicks", *QUICK, "-o", tmp_path / "clicks.jsonl", "--shard", f"{number}/2")
        assert done.code == 0, done.err
        part = tmp_path / f"clicks.shard-{number}-of-2.jsonl"
        assert traces(part) == traces(tmp_path / "clicks.jsonl")[number - 1 :: 2]


@pytest.mark.slow
@pytest.mark.timeout(1200)  # some twenty processes, on a busy machine
def test_one_two_and_four_workers_and_shards_of_them(hrseg: Command, tmp_path: Path) -> None:
    """Processes within shards: nothing but the seconds may tell."""
    words = ["-m", "grabcut", "-d", "procedural:count=9,size=96", "--max-clicks", "5", "--until", "1.01"]
    found = []
    for workers in (1, 2, 4):
        assert hrseg("evaluate", *words, "--workers", workers, "-o", tmp_path / str(workers)).code == 0
        found.append(traces(tmp_path / str(workers) / "traces.jsonl"))
    assert found[0] == found[1] == found[2]
    for number in (1, 2, 3):
        assert hrseg("evaluate", *words, "--workers", 2, "-o", tmp_path / "s", "--shard", f"{number}/3").code == 0
        assert traces(tmp_path / "s" / f"shard-{number}-of-3" / "traces.jsonl") == found[0][number - 1 :: 3]
