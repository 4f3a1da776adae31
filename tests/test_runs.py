"""What a run folder does about an end that came in the middle of a line, and about being gone on with."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from io import DEFAULT_BUFFER_SIZE as PIECE
from pathlib import Path
from typing import Any

import pytest

from hrseg_cli import runs
from hrseg_cli.errors import HrsegError
from hrseg_cli.interaction import Click, Trace
from hrseg_cli.runs import Run, _cut_torn_line, read_run, read_traces


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"", b""),
        (b"whole\n", b"whole\n"),
        (b"whole\ntorn", b"whole\n"),
        (b"torn", b""),
        (b"x" * (3 * PIECE), b""),
        (b"whole\n" + b"x" * (2 * PIECE + 5), b"whole\n"),
        (b"y" * (PIECE - 1) + b"\n" + b"x" * PIECE, b"y" * (PIECE - 1) + b"\n"),
        (b"y" * PIECE + b"\n" + b"x" * (PIECE - 1), b"y" * PIECE + b"\n"),  # the first byte of a piece
    ],
    ids=lambda text: f"{len(text)} bytes",
)
def test_a_torn_line_is_cut_however_long(before: bytes, after: bytes, tmp_path: Path) -> None:
    """Masks make lines longer than the pieces the file is read in."""
    path = tmp_path / "part.jsonl"
    path.write_bytes(before)
    _cut_torn_line(path)
    assert path.read_bytes() == after


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ({"precision": None}, {"precision": "bf16"}, 'model.precision = null, not "bf16"'),
        ({}, {"precision": "bf16"}, 'model.precision = null, not "bf16"'),
        ({"parts": [{"n": 1}, {"n": 2}]}, {"parts": [{"n": 1}, {"n": 3}]}, "model.parts.1.n = 2, not 3"),
        ({"parts": [1]}, {"parts": [1, 2]}, "model.parts.1 = null, not 2"),
        ({"parts": {"n": 1}}, {"parts": 1}, 'model.parts = {"n": 1}, not 1'),
        ({"parts": 1}, {"parts": [1]}, "model.parts = 1, not [1]"),
        ({"file": "x" * 58}, {"file": "x" * 59}, f'= "{"x" * 58}", not "{"x" * 27}...{"x" * 28}";'),
    ],
)
def test_what_differs_in_settings_is_named(old: dict[str, Any], new: dict[str, Any], told: str, tmp_path: Path) -> None:
    long = {"a": "what both have and what is longer than a line can show of it, by far"}
    with Run(tmp_path, "evaluate", {"model": long | old}):
        pass
    with pytest.raises(HrsegError) as caught, Run(tmp_path, "evaluate", {"model": long | new}):
        pass
    assert told in str(caught.value)


def test_a_run_says_where_it_began_and_who_went_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first traces stem from the first commit, however often the command is given again."""
    trace = Trace("cat", "pets", (Click(1, 2, True),), {"iou": (0.95,)}, (0.5,), {}, (9, 9), 5)

    def go(commit: str, seconds: float, state: str = "1", stop: bool = False) -> dict[str, Any]:
        clock = iter([100.0, 100 + seconds])
        monkeypatch.setattr(runs.time, "monotonic", lambda: next(clock))
        monkeypatch.setattr(runs, "environment", lambda: {"commit": commit})
        with suppress(KeyboardInterrupt), Run(tmp_path, "evaluate", {}) as run:
            done = run.finished_traces({"pets/cat": state}, keep_masks=False)
            if stop:
                raise KeyboardInterrupt
            run.finish(["pets/cat"], done or {"pets/cat": trace}, keep_masks=False)
        record = read_run(tmp_path)
        return {"by": [record["where"], *record.get("where_later", [])], "seconds": record["got"]["seconds"]}

    assert go("one", 10, stop=True) == {"by": [{"commit": "one"}], "seconds": 10}
    assert go("one", 20, stop=True) == {"by": [{"commit": "one"}], "seconds": 30}
    assert go("two", 5) == {"by": [{"commit": "one"}, {"commit": "two"}], "seconds": 35}
    assert go("three", 2) == {"by": [{"commit": "one"}, {"commit": "two"}], "seconds": 35}  # nothing was left to do
    assert go("two", 4, state="2")["seconds"] == 39  # on another image
    assert go("four", 4, state="3")["by"][2:] == [{"commit": "four"}]


LINE = Trace("a", "d", (Click(1, 2, True),), {"iou": (0.5,)}, (0.1,), {"iou": 0.9}).to_json()


@pytest.mark.parametrize("torn", [False, True])
def test_only_the_last_line_of_traces_may_be_torn(torn: bool, tmp_path: Path) -> None:
    """And only in a run that is not done; anything damaged before it is never skipped."""
    path = tmp_path / "traces.jsonl"
    path.write_text(f"{LINE}\n{LINE[:30]}")
    if torn:
        assert len(list(read_traces(path, torn=True))) == 1
    else:
        with pytest.raises(HrsegError, match="line 2: incomplete"):
            list(read_traces(path))
    path.write_text(f"{LINE}\n{LINE[:30]}\n{LINE}")
    with pytest.raises(HrsegError, match="line 2: not a trace"):
        list(read_traces(path, torn=torn))
    path.write_text(f"{LINE}\n{LINE[:30]}\n")
    with pytest.raises(HrsegError, match="line 2: not a trace"):
        list(read_traces(path, torn=torn))


# What a run folder records


def test_a_record_is_a_file_that_people_can_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One setting a line, accents as they are, and the words of the command, with which it can be repeated."""
    monkeypatch.setattr(sys, "argv", ["hrseg", "evaluate", "Bäume"])
    with Run(tmp_path / "a", "evaluate", {"seed": 0}):
        pass
    text = (tmp_path / "a" / "run.json").read_text(encoding="utf-8")
    assert text.startswith('{\n  "asked": {\n    "command": "evaluate",\n    "argv": [\n')
    assert '"Bäume"' in text
    assert text.endswith("}\n")
    assert read_run(tmp_path / "a")["asked"] == {
        "command": "evaluate",
        "argv": ["evaluate", "Bäume"],
        "settings": {"seed": 0},
    }
    with Run(tmp_path / "b", "evaluate", {}, machine={"device": "cpu"}):
        pass
    assert read_run(tmp_path / "b")["asked"]["machine"] == {"device": "cpu"}


def test_seconds_have_one_decimal_and_are_none_in_an_old_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([10.0, 10.46, 20.0, 21.26])
    monkeypatch.setattr(runs.time, "monotonic", lambda: next(clock))

    def interrupted() -> float:
        with suppress(KeyboardInterrupt), Run(tmp_path, "evaluate", {}):
            raise KeyboardInterrupt
        return float(read_run(tmp_path)["got"]["seconds"])

    assert interrupted() == 0.5
    record = json.loads((tmp_path / "run.json").read_text())
    del record["got"]["seconds"]
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert interrupted() == 1.3
    (tmp_path / "run.json").write_text(json.dumps({"asked": record["asked"]}))
    assert read_run(tmp_path)["got"] == {"seconds": 0}


@pytest.mark.parametrize(
    "wrong",
    [
        {"asked": {"command": 5, "settings": {}}},
        {"got": {"seconds": True}},
        {"got": {"seconds": "1"}},
        {"got": []},
        {"where_later": {}},
        {"where_later": [1]},
    ],
)
def test_a_record_of_other_types_is_named(wrong: dict[str, Any], tmp_path: Path) -> None:
    record = {"asked": {"command": "evaluate", "settings": {}}, "got": {"seconds": 1}}
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert read_run(tmp_path)["got"]["seconds"] == 1
    (tmp_path / "run.json").write_text(json.dumps(record | wrong))
    with pytest.raises(HrsegError, match=r"run\.json: cannot be read as a run"):
        read_run(tmp_path)


def test_the_commit_of_a_checkout_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text; None where git fails, as for a name that it does not know, and outside a checkout."""
    monkeypatch.setattr(runs, "__file__", str(tmp_path / "hrseg_cli" / "runs.py"))
    assert runs._git("rev-parse", "--git-dir") is None
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    assert runs._git("rev-parse", "--git-dir") == ".git"
    assert runs._git("rev-parse", "nothing") is None


def test_objects_whose_files_have_changed_are_dropped_and_masks_keep_their_order(tmp_path: Path) -> None:
    """What is kept is written again, and the masks of an object are found wherever in the two files they are."""
    traces = {f"d/{name}": Trace(name, "d", (), {}, (), {}) for name in ("ä", "b", "c")}

    def line(name: str, mask: str) -> str:
        return json.dumps({"dataset": "d", "id": name, "mask": mask}) + "\n"

    with Run(tmp_path, "evaluate", {}) as run:
        assert run.finished_traces(dict.fromkeys(traces, "1"), keep_masks=True) == {}
        run.part.write_text("".join(one.to_json() + "\n" for one in traces.values()))
        run.part_masks.write_text(line("b", "bb") + line("ä", "a"))
        assert list(run.finished_traces(dict.fromkeys(traces, "1"), keep_masks=True)) == ["d/ä", "d/b"]
        assert list(run.finished_traces(dict.fromkeys(traces, "1"), keep_masks=False)) == list(traces)
        kept = run.finished_traces({"d/ä": "1", "d/b": "1", "d/c": "2"}, keep_masks=False)
        assert list(kept) == ["d/ä", "d/b"]
        assert list(read_traces(run.part)) == list(kept.values())
        assert (tmp_path / "files.json").read_text(encoding="utf-8") == '{\n"d/ä": "1",\n"d/b": "1",\n"d/c": "2"\n}\n'
        run.finish(["d/ä", "d/b"], kept, keep_masks=True)
        assert (tmp_path / "masks.jsonl").read_text() == line("ä", "a") + line("b", "bb")
        run.finish(["d/b"], kept, keep_masks=True)  # without the partial files
        assert (tmp_path / "masks.jsonl").read_text() == line("b", "bb")
        run.part_masks.write_text(line("c", "c") + "[]\n")
        with pytest.raises(HrsegError, match=r"masks\.part\.jsonl, line 2: not a mask record"):
            run.finished_traces({}, keep_masks=True)
