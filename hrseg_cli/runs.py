"""The run folder: the request, the results, and the code and machine that produced them.

run.json        asked (settings that affect the numbers, argv), got (status, seconds, summary), where (commit, versions,
                machine), where_later (the same for resumed commands that ran with another commit or machine)
traces.jsonl    one line per object, in dataset order; ``traces.part.jsonl`` while the run is in progress
<dataset>.csv   one row per object
noc.csv         the summary, one row per (dataset, metric, measure)
masks.jsonl     optional: ground truth and masks after some clicks, run-length encoded
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from importlib import metadata
from io import DEFAULT_BUFFER_SIZE
from itertools import zip_longest
from pathlib import Path
from types import TracebackType
from typing import Any

from hrseg_cli.errors import HrsegError
from hrseg_cli.interaction import Trace
from hrseg_cli.limits import DATASET, LINE
from hrseg_cli.parsing import parse_json, read_json, read_text, reason
from hrseg_cli.writing import is_empty, only_one_in, write_atomically, writing_atomically

RECORD = "run.json"


def read_traces(path: Path, torn: bool = False) -> Iterator[Trace]:
    """Traces of a ``.jsonl`` file. Raises HrsegError for a line that is not a trace.

    torn: ignore an incomplete last line, which an interrupted run leaves.
    """
    try:
        lines = read_text(path, DATASET).split("\n")
    except (OSError, ValueError) as error:
        raise HrsegError(
            f"{path}: cannot be read as traces ({reason(error)}); give a traces.jsonl file written by hrseg"
        ) from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield Trace.from_json(line)
        except ValueError as error:
            if number < len(lines):
                raise HrsegError(f"{path}, line {number}: not a trace ({error}); delete the line or the file") from None
            if torn:
                return
            raise HrsegError(
                f"{path}, line {number}: incomplete; copy the file again, or rerun the command that wrote it"
            ) from None


def environment() -> dict[str, Any]:
    """Commit, package versions and machine, without importing heavy packages."""
    versions = {"python": platform.python_version()}
    for package in ("hrseg", "torch", "numpy", "opencv-python", "pillow"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "absent"
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "versions": versions,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }


def _git(*arguments: str) -> str | None:
    """Output of git in a source checkout; None for an installed package."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


class Run:
    """A run folder being written, as a context manager: it holds the folder's lock, and writes the status on exit,
    whatever happens.

    settings: everything that affects the numbers. A folder with the same settings is resumed: the record keeps where
    the run started and adds up the seconds. A folder with other settings is refused. machine: what the command runs on,
    which does not affect the numbers; a resumed run may use another machine. completed: adds the defaults of newer
    settings to the recorded ones of an earlier version.
    """

    def __init__(
        self,
        folder: Path,
        command: str,
        settings: dict[str, Any],
        machine: dict[str, Any] | None = None,
        completed: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    ) -> None:
        self.folder, self._completed = folder, completed
        self.summary: Any = None
        self._held = ExitStack()
        self._here = environment()
        self._adds = True
        kept = {} if machine is None else {"machine": machine}
        self._record: dict[str, Any] = {
            "asked": {"command": command, "argv": sys.argv[1:], "settings": settings, **kept},
            "got": {"status": "running", "seconds": 0.0},
            "where": self._here,
        }

    def __enter__(self) -> Run:
        with ExitStack() as held:
            held.enter_context(only_one_in(self.folder, f"`out` {self.folder}"))
            self._resume()
            self._started = time.monotonic()
            try:
                self._save()
            except OSError as error:
                raise HrsegError(
                    f"`out` {self.folder}: cannot be written ({error.strerror}); use another folder"
                ) from None
            self._held = held.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._held:
            got = self._record["got"]
            if self._adds:
                got["seconds"] = round(got["seconds"] + time.monotonic() - self._started, 1)
            got["summary"] = self.summary
            if kind is None:
                got["status"] = "done"
            else:
                got["status"] = "failed" if issubclass(kind, Exception) else "interrupted"
                got["error"] = str(error)
            self._save()

    def _save(self) -> None:
        write_atomically(self.folder / RECORD, json.dumps(self._record, indent=2, ensure_ascii=False) + "\n")

    def _resume(self) -> None:
        """Resume from the record of an earlier command, if any. Raises HrsegError if its settings differ."""
        path = self.folder / RECORD
        if not path.exists():
            if not is_empty(self.folder):
                raise HrsegError(f"`out` {self.folder}: not empty and not a run folder; use another folder")
            return
        before = read_run(self.folder)
        asked = before["asked"]
        if asked["command"] != self._record["asked"]["command"]:
            raise HrsegError(f"`out` {self.folder}: contains a run of '{asked['command']}'; use another folder")
        settings = json.loads(json.dumps(self._record["asked"]["settings"]))
        differing = _difference(self._completed(asked["settings"]), settings)
        if differing:
            key, old, new = differing
            raise HrsegError(
                f"`out` {self.folder}: contains a run with {key} = {_short(old)}, not {_short(new)}; "
                "use another folder, or delete this one"
            )
        self._record |= {key: before[key] for key in ("where", "where_later") if key in before}
        self._record["got"]["seconds"] = before["got"]["seconds"]
        self._adds = False
        if before["got"].get("status") != "done":
            self._will_add()

    def _will_add(self) -> None:
        """Record that this command adds results to those of earlier commands."""
        self._adds = True
        later = self._record.get("where_later", [])
        if self._here not in (self._record["where"], *later):
            self._record["where_later"] = [*later, self._here]

    @property
    def part(self) -> Path:
        """Traces so far, in order of completion."""
        return self.folder / "traces.part.jsonl"

    @property
    def part_masks(self) -> Path:
        """Masks so far; the line of an object is written before its trace."""
        return self.folder / "masks.part.jsonl"

    def finished_traces(self, files: dict[str, str], keep_masks: bool) -> dict[str, Trace]:
        """``dataset/id`` -> trace of every finished object; call before anything is appended.

        files: ``dataset/id`` -> state of the object's files, for all objects. Traces of files that have changed since
        are dropped. So is an incomplete last line, because the next line would be appended to it.
        """
        done: dict[str, Trace] = {}
        for path in (self.folder / "traces.jsonl", self.part):
            _cut_torn_line(path)
            if path.exists():
                done.update({f"{t.dataset}/{t.id}": t for t in read_traces(path)})
        if keep_masks:
            _cut_torn_line(self.part_masks)
            kept = self._mask_lines()
            done = {key: trace for key, trace in done.items() if key in kept}
        record = self.folder / "files.json"
        then = _file_states(record)
        current = {key: trace for key, trace in done.items() if then.get(key) == files.get(key)}
        if len(current) < len(done):
            self._will_add()
        if then != files:  # in this order: an old trace must never meet the new state
            write_atomically(self.part, "".join(trace.to_json() + "\n" for trace in current.values()))
            (self.folder / "traces.jsonl").unlink(missing_ok=True)
            write_atomically(record, json.dumps(files, ensure_ascii=False, indent=0) + "\n")
        return current

    def finish(self, keys: Sequence[str], traces: dict[str, Trace], keep_masks: bool) -> None:
        """Write all traces (and masks) in the order of ``keys``, then delete the partial files."""
        if keep_masks:
            lines = self._mask_lines()
            with writing_atomically(self.folder / "masks.jsonl") as file:
                for key in keys:
                    if key not in lines:
                        raise HrsegError(
                            f"{self.part_masks}: the masks of {key} are gone; was the folder changed during the run? "
                            "Rerun the same command"
                        )
                    path, start, length = lines[key]
                    with path.open("rb") as part:
                        part.seek(start)
                        file.write(part.read(length))
        with writing_atomically(self.folder / "traces.jsonl") as file:
            for key in keys:
                file.write(traces[key].to_json().encode() + b"\n")
        self.part.unlink(missing_ok=True)
        self.part_masks.unlink(missing_ok=True)

    def _mask_lines(self) -> dict[str, tuple[Path, int, int]]:
        """``dataset/id`` -> (file, offset, bytes) of its masks, which may not fit in memory."""
        found: dict[str, tuple[Path, int, int]] = {}
        for path in (self.folder / "masks.jsonl", self.part_masks):
            if path.exists():
                with path.open("rb") as file:
                    start = 0
                    for number, line in enumerate(iter(lambda: file.readline(LINE.bytes), b""), 1):
                        try:
                            record = parse_json(line, LINE)
                            found[f"{record['dataset']}/{record['id']}"] = (path, start, len(line))
                        except (ValueError, KeyError, TypeError) as error:
                            raise HrsegError(
                                f"{path}, line {number}: not a mask record ({reason(error)}); delete the file, and "
                                "its objects are evaluated again"
                            ) from None
                        start += len(line)
        return found


def _file_states(path: Path) -> dict[str, str]:
    """``dataset/id`` -> state of the object's files when it was clicked on."""
    try:
        found = read_json(path, DATASET)
        if not isinstance(found, dict):
            raise ValueError("not a table")
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise HrsegError(
            f"{path}: cannot be read ({error}); delete it, and finished objects are evaluated again"
        ) from None
    return found


def _cut_torn_line(path: Path) -> None:
    """Truncate a file after its last line break, reading from the end: the masks may not fit in memory."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        end = path.stat().st_size
        while end:
            start = max(0, end - DEFAULT_BUFFER_SIZE)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                file.truncate(start + found + 1)
                return
            end = start
        file.truncate(0)


def read_run(folder: Path) -> dict[str, Any]:
    """``run.json`` of a run folder, with ``got`` and its seconds. Raises HrsegError if the folder is not a run."""
    path = folder / RECORD
    try:
        record = read_json(path)
        asked, got, later = record["asked"], record.setdefault("got", {}), record.get("where_later", [])
        if not isinstance(later, list):
            raise ValueError("'where_later' is not a list")
        if not all(isinstance(one, dict) for one in (asked["settings"], got, record.get("where", {}), *later)):
            raise ValueError("'settings', 'got' or 'where' is not a table")
        seconds = got.setdefault("seconds", 0.0)
        if not isinstance(asked["command"], str) or isinstance(seconds, bool) or not isinstance(seconds, int | float):
            raise ValueError("'command' is not a string or 'seconds' not a number")
    except FileNotFoundError:
        raise HrsegError(f"{folder}: no run.json; give a folder written by 'hrseg train' or 'hrseg evaluate'") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise HrsegError(
            f"{path}: cannot be read as a run ({reason(error)}); rerun the command that wrote it"
        ) from None
    return dict(record)


def _difference(old: Any, new: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """Dotted key and both values of the first setting that differs; a missing setting equals null."""
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = [(name, old.get(name), new.get(name)) for name in sorted(old.keys() | new.keys())]
    elif isinstance(old, list) and isinstance(new, list):
        pairs = [(str(place), *both) for place, both in enumerate(zip_longest(old, new))]
    else:
        return None if old == new else (key, old, new)
    found = (_difference(one, other, f"{key}.{name}" if key else name) for name, one, other in pairs)
    return next(filter(None, found), None)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:28]}...{text[-29:]}"
