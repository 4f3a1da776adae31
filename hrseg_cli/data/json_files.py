"""JSON files that define datasets, each parsed once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hrseg_cli.errors import HrsegError
from hrseg_cli.limits import TextLimits
from hrseg_cli.parsing import read_json


def state_of(path: Path) -> tuple[int, int]:
    """Modification time in ns and size in bytes: with the path, a cache key that notices changes. Raises HrsegError."""
    try:
        stat = path.stat()
    except OSError:
        raise HrsegError(f"{path}: no such file; restore it") from None
    return stat.st_mtime_ns, stat.st_size


def content_of(path: Path, limits: TextLimits) -> Any:
    """The content of a JSON file within these limits. Raises HrsegError."""
    try:
        return read_json(path, limits, finite=False)
    except OSError as error:
        raise HrsegError(f"{path}: cannot be read ({error.strerror}); fix its permissions") from None
    except ValueError as error:
        raise HrsegError(f"{path}: cannot be read as JSON ({error}); export it again") from None
