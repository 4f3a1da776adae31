"""Turn untrusted names, from ids, lists and stored records, into paths inside a folder, never outside it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from hrseg_cli.errors import HrsegError

WINDOWS = os.name == "nt"
LONGEST = 240  # bytes; file systems allow 255, but the temporary file has a longer name
_NOT_ON_WINDOWS = re.compile(r'(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?|.*[<>:"|?*\\\x00-\x1f].*|.*[. ]', re.DOTALL)


def data_root(root: Path | None = None) -> Path:
    """The folder of the named datasets: ``root``, else $HRSEG_DATA, else ``data`` in the current folder."""
    return root or Path(os.environ.get("HRSEG_DATA") or "data")


def cache_folder() -> Path:
    """Folder of results cached per machine: ``$XDG_CACHE_HOME/hrseg``, or ``~/.cache/hrseg``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hrseg"


def inner(path: str) -> str:
    """``path``, with "/" separators, made relative: without root, drive, "." and any leading ".."."""
    parts: list[str] = []
    for part in re.sub("^[A-Za-z]:/", "", path).split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def fault(name: object) -> str:
    """Why ``name``, with "/" separators, cannot name a file inside a folder; "" if it can."""
    if not isinstance(name, str) or not name:
        return "is empty or not a string"
    parts = name.split("/")
    if not {"", ".", ".."}.isdisjoint(parts):
        return "points outside its folder"
    if re.search("[\0\ud800-\udfff]", name):
        return "contains a character that is not allowed in file names"
    if WINDOWS and any(_NOT_ON_WINDOWS.fullmatch(part) for part in parts):
        return "is not a valid file name on Windows"
    return ""


def checked(name: Any, source: object) -> str:
    """Return ``name``. Raises HrsegError, which names ``source``, if it cannot name a file inside a folder."""
    why = fault(name)
    if not why and any(len(part.encode()) > LONGEST for part in name.split("/")):
        why = f"has a part of more than {LONGEST} bytes"
    if why:
        raise HrsegError(f"{source}: the name {_short(name)} {why}; correct it")
    return str(name)


def below(folder: Path, name: str, source: object) -> Path:
    """The path of ``name``, with "/" separators, inside ``folder``; neither needs to exist.

    Raises HrsegError, which names ``source``, for a name that points elsewhere (by "..", an absolute path, or a link
    inside ``folder``) or cannot name a file. The last part may be a link: renaming a file onto it replaces the link.
    """
    path = folder / checked(name, source)
    real = Path(os.path.realpath(path.parent))
    if not real.is_relative_to(os.path.realpath(folder)):
        raise HrsegError(f"{path}: is behind a link that points outside {folder}; remove the link")
    return path


def _short(name: object) -> str:
    text = ascii(name)
    return text if len(text) <= 80 else f"{text[:40]}...{text[-37:]}"
