"""Names from data as paths below a folder: whatever a list or a stored record says, nothing is written elsewhere."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from hrseg_cli.errors import HrsegError

WINDOWS = os.name == "nt"
LONGEST = 240  # bytes; file systems take 255, but while a file is written its name is longer
_NOT_ON_WINDOWS = re.compile(r'(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?|.*[<>:"|?*\\\x00-\x1f].*|.*[. ]', re.DOTALL)


def data_root(root: Path | None = None) -> Path:
    """The folder of the named datasets: ``root``, else $HRSEG_DATA, else ``data`` in the current folder."""
    return root or Path(os.environ.get("HRSEG_DATA") or "data")


def inner(path: str) -> str:
    """``path``, with "/", as it would be below a folder: without root, drive, ".", and ".." that leads out of it."""
    parts: list[str] = []
    for part in re.sub("^[A-Za-z]:/", "", path).split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def fault(name: object) -> str:
    """What keeps ``name``, with "/" between its parts, from naming a file below a folder; "" where nothing does."""
    if not isinstance(name, str) or not name:
        return "is empty or no text"
    parts = name.split("/")
    if not {"", ".", ".."}.isdisjoint(parts):
        return "leads out of its folder"
    if re.search("[\0\ud800-\udfff]", name):
        return "holds a character that no file name can hold"
    if WINDOWS and any(_NOT_ON_WINDOWS.fullmatch(part) for part in parts):
        return "cannot name a file on Windows"
    return ""


def checked(name: Any, source: object) -> str:
    """``name`` itself. Raises HrsegError, which names ``source``, where it cannot name a file below a folder."""
    why = fault(name)
    if not why and any(len(part.encode()) > LONGEST for part in name.split("/")):
        why = f"has a part of more than {LONGEST} bytes"
    if why:
        raise HrsegError(f"{source}: the name {_short(name)} {why}; correct it")
    return str(name)


def below(folder: Path, name: str, source: object) -> Path:
    """The path of ``name``, with "/" between its parts, below ``folder``; neither needs to exist.

    Raises HrsegError, which names ``source``, for a name that leads elsewhere (by "..", as an absolute path, through a
    link inside of ``folder``) or cannot name a file. The last part may be a link: what is renamed onto it replaces it.
    """
    path = folder / checked(name, source)
    real = Path(os.path.realpath(path.parent))
    if not real.is_relative_to(os.path.realpath(folder)):
        raise HrsegError(f"{path}: lies behind a link that leads out of {folder}; remove the link")
    return path


def _short(name: object) -> str:
    text = ascii(name)
    return text if len(text) <= 80 else f"{text[:40]}...{text[-37:]}"
