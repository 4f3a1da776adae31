"""Many run folders as one small file, which has everything that tables are made from."""

from __future__ import annotations

import io
import json
import re
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hrseg_cli.data.unpack import unpack
from hrseg_cli.errors import HrsegError
from hrseg_cli.limits import DATASET
from hrseg_cli.parsing import read_bytes, reason
from hrseg_cli.runs import RECORD, read_run

INSIDE = "runs"
TRACES = "traces.jsonl"
FOLDERS = re.compile(r"(?<![\w.~:/-])/(?:[^/\s+:,'\"]+/)+")  # of an absolute path within a text


def packed(folder: Path) -> bytes:
    """A zip of the records and traces of all runs below a folder: the same runs give the same bytes. What was typed and
    the machine's settings are left out, and of paths the last name is kept. Raises HrsegError if there is no run."""
    records = sorted(path for path in folder.rglob(RECORD) if not path.parent.name.startswith("."))
    if not records:
        raise HrsegError(f"{folder}: no run folders; give the folder of 'make tables'")
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as into:
        for path in records:
            record = read_run(path.parent)
            asked = record["asked"]
            record["asked"] = {"command": asked["command"], "settings": _without_folders(asked["settings"])}
            place = f"{INSIDE}/{path.parent.relative_to(folder).as_posix()}"
            texts = {RECORD: json.dumps(record, ensure_ascii=False).encode()}
            if (traces := path.parent / TRACES).is_file():
                texts[TRACES] = _read(traces)
            for name, data in texts.items():
                entry = zipfile.ZipInfo(f"{place}/{name}")  # of 1980
                entry.compress_type = zipfile.ZIP_DEFLATED
                into.writestr(entry, data)
    return file.getvalue()


def _without_folders(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_folders(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_folders(one) for one in value]
    return FOLDERS.sub("", value) if isinstance(value, str) else value


def _read(path: Path) -> bytes:
    try:
        return read_bytes(path, DATASET.bytes)
    except (OSError, ValueError) as error:
        raise HrsegError(f"{path}: cannot be read ({reason(error)}); rerun the command that wrote it") from None


@contextmanager
def opened(path: Path) -> Iterator[Path]:
    """The folder of the runs in a file of :func:`packed`; a folder is returned as it is. Raises HrsegError."""
    if path.is_dir() or not path.exists():
        yield path
        return
    with tempfile.TemporaryDirectory() as place:
        runs = Path(place) / INSIDE
        unpack(path, runs, kind="zip", inside=INSIDE)
        yield runs
