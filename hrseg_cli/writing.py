"""How hrseg writes: whole files or none, one writer at a time, and nothing left of a writer that was killed.

Every writer makes new data durable first, then the record that names it, and removes what was replaced last: killed
between two steps, it leaves files that the next run puts in order, and never a record of something that is lost.

    .NAME.1a2b3c4d.hrseg-tmp    NAME while it is written
    .hrseg-lock                 in a folder that somebody writes to; it says who
    .NAME.hrseg-lock            next to a single file that somebody writes
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from hrseg_cli.errors import HrsegError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".hrseg-lock"
# The second kind is what earlier versions left of a record that was never finished.
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.hrseg-tmp|\.(run\.json|predict\.jsonl)\.[a-z0-9_]{8}", re.DOTALL)

log = logging.getLogger(__name__)


# ---- whole files -----------------------------------------------------------------------------------------------------


def write_atomically(path: Path, data: str | bytes) -> None:
    """Write beside ``path``, then rename: a reader sees the old file or the new one, never half of one."""
    with writing_atomically(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


@contextmanager
def writing_atomically(path: Path) -> Iterator[BinaryIO]:
    """As :func:`write_atomically`, piece by piece. Nothing is renamed when the block raises."""
    temporary = None
    try:
        with _temporary(path) as file:
            temporary = Path(file.name)
            yield file
            file.flush()
            os.fsync(file.fileno())
            if fcntl is not None:  # Windows renames only what is closed
                rename(temporary, path)
        if fcntl is None:
            rename(temporary, path)
    except BaseException as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            error.filename = str(path)  # a full disk does not say what it is full of
        raise


def write_beside(path: Path, data: bytes) -> Path:
    """A durable temporary file that only waits for :func:`rename` to become ``path``."""
    with _temporary(path) as file:
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        except OSError as error:
            Path(file.name).unlink(missing_ok=True)
            error.filename = str(path)
            raise
    return Path(file.name)


def rename(temporary: Path, path: Path) -> None:
    """Put a finished file in its place, durably."""
    os.replace(temporary, path)
    with suppress(OSError):  # Windows opens no folders
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def temporaries(folder: Path, name: str = "") -> list[Path]:
    """Files in ``folder`` that a writer has not finished; of those that are to be called ``name`` only."""
    begin = f".{_short(name)}." if name else "."
    try:
        with os.scandir(folder) as entries:
            return [
                Path(entry.path)
                for entry in entries
                if entry.name.startswith(begin)
                and _TEMPORARY.fullmatch(entry.name)
                and entry.is_file(follow_symlinks=False)
            ]
    except OSError:
        return []


def sweep(*folders: Path) -> None:
    """Remove what killed writers left in these folders, not below them. What a living one writes stays."""
    for path in (path for folder in folders for path in temporaries(folder)):
        with suppress(OSError):
            handle = os.open(path, os.O_RDWR)
            try:
                if fcntl is not None:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(handle)


def is_empty(folder: Path) -> bool:
    """Whether a folder is missing or holds hidden files only, such as a killed writer's."""
    return not folder.is_dir() or all(path.name.startswith(".") for path in folder.iterdir())


def _temporary(path: Path) -> BinaryIO:
    """A new file next to ``path``, locked for as long as it is open, so that :func:`sweep` leaves it alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{_short(path.name)}.{secrets.token_hex(4)}.hrseg-tmp")
    file = open(temporary, "xb")  # noqa: SIM115 - the caller closes it
    if fcntl is not None:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file


def _short(name: str) -> str:
    """Leaves room in a name, of which a file system takes 255 bytes, for what is added."""
    return name.encode(errors="surrogateescape")[:200].decode(errors="surrogateescape")


# ---- one writer at a time --------------------------------------------------------------------------------------------


@contextmanager
def only_one_in(folder: Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """Be the only hrseg that writes to ``folder``; what a killed one left there is removed.

    The system lets go of the lock with the process that holds it, however that ends. Where there can be no lock,
    one line says so; a folder that cannot be written needs none.
    wait: for a holder to finish, with a line that names it. Otherwise raises HrsegError, which begins with ``what``.
    """
    with _locked(folder / LOCK, what, wait):
        sweep(folder)
        yield


@contextmanager
def only_one(path: Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """As :func:`only_one_in`, for a single file, or a folder that comes to its place as a whole."""
    with _locked(path.with_name(f".{path.name}{LOCK}"), what, wait):
        sweep(path.parent)
        yield


_held: set[int] = set()


def _forget() -> None:
    """In a forked worker, which would keep the lock of a parent that was killed."""
    for handle in _held:
        os.close(handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


@contextmanager
def _locked(path: Path, what: str, wait: bool) -> Iterator[None]:
    handle = _acquire(path, what, wait)
    if handle is None:
        yield
        return
    _held.add(handle)
    try:
        yield
    finally:
        if handle in _held:
            _held.remove(handle)
            with suppress(OSError):
                path.unlink()  # while it is held: see _acquire
            os.close(handle)


def _acquire(path: Path, what: str, wait: bool) -> int | None:
    """An open file that is locked, and that ``path`` names; None where there can be no lock."""
    while (handle := _open(path)) is not None:
        try:
            _flock(handle, path, what, wait)
            # Whoever held it may have removed this very file in between: then it keeps nobody out.
            if os.path.exists(path) and os.path.samestat(os.fstat(handle), os.stat(path)):
                _sign(handle)
                return handle
        except OSError as error:
            log.warning("%s: cannot be locked (%s); let no second hrseg write there", what, error.strerror)
            path.unlink(missing_ok=True)
            os.close(handle)
            return None
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
    if fcntl is None:
        log.warning("%s: this system has no locks; let no second hrseg write there", what)
    return None


def _open(path: Path) -> int | None:
    if fcntl is None:
        return None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # NFS locks nothing that is open for reading only
    except OSError:
        pass
    try:
        return os.open(path, os.O_RDONLY)  # made by another user
    except OSError:
        return None


def _flock(handle: int, path: Path, what: str, wait: bool) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = _holder(path)
        if not wait:
            raise HrsegError(f"{what}: in use by {holder}; wait for it to finish") from None
        log.warning("%s: waiting for %s", what, holder)
        fcntl.flock(handle, fcntl.LOCK_EX)


def _sign(handle: int) -> None:
    """Say in the lock who holds it."""
    name = Path(sys.argv[0]).name if sys.argv else ""
    command = shlex.join([name, *sys.argv[1:]])
    told = {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "command": command if len(command) <= 120 else f"{command[:117]}...",
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    with suppress(OSError):  # another user's, open for reading only
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(told).encode(), 0)


def _holder(path: Path) -> str:
    """The process that holds a lock, as it has signed it."""
    for _ in range(20):  # between locking and signing
        with suppress(OSError, ValueError, KeyError, TypeError):
            told = json.loads(path.read_bytes())
            host = "" if told["host"] == socket.gethostname() else f" on {told['host']}"
            return f"process {told['process']}{host} ({told['command']}) since {told['since']}"
        time.sleep(0.01)
    return "another hrseg"
