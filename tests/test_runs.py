"""What a run folder does about an end that came in the middle of a line, and about being gone on with."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from hrseg_cli import runs
from hrseg_cli.errors import HrsegError
from hrseg_cli.interaction import Click, Trace
from hrseg_cli.runs import Run, _cut_torn_line, read_run, read_traces

MIB = 1 << 20


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"", b""),
        (b"whole\n", b"whole\n"),
        (b"whole\ntorn", b"whole\n"),
        (b"torn", b""),
        (b"x" * (3 * MIB), b""),
        (b"whole\n" + b"x" * (2 * MIB + 5), b"whole\n"),
        (b"y" * (MIB - 1) + b"\n" + b"x" * MIB, b"y" * (MIB - 1) + b"\n"),
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
        ({"file": "x" * 90 + "a"}, {"file": "x" * 90 + "b"}, 'xa", not "xx'),
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
