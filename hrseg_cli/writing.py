"""Atomic writes, one writer at a time, and cleanup after writers that were killed.

Every writer first makes new data durable, then writes the record that refers to it, and deletes replaced files last.
A writer killed between two steps leaves files that the next run cleans up, but never a record of lost data.

    .NAME.1a2b3c4d.hrseg-tmp    NAME while it is being written
    .hrseg-lock                 in a folder that is being written to; names the process that holds it
    .NAME.hrseg-lock            next to a single file that is being written
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
# The second pattern matches unfinished records left by earlier versions.
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.hrseg-tmp|\.(run\.json|predict\.jsonl)\.[a-z0-9_]{8}", re.DOTALL)

log = logging.getLogger(__name__)


# ---- whole files -----------------------------------------------------------------------------------------------------


def write_atomically(path: Path, data: str | bytes, durable: bool = True) -> None:
    """Write to a temporary file, then rename it to ``path``: readers see the old file or the new one, never a part.

    durable: wait until it is on the disk. Without, a power failure may lose the file: only for what can be made again.
    """
    with writing_atomically(path, durable) as file:
        file.write(data.encode() if isinstance(data, str) else data)


@contextmanager
def writing_atomically(path: Path, durable: bool = True) -> Iterator[BinaryIO]:
    """Like :func:`write_atomically`, but yields the open file. Nothing is renamed when the block raises."""
    temporary = None
    try:
        with _temporary(path) as file:
            temporary = Path(file.name)
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
            if fcntl is not None:  # Windows can rename closed files only
                rename(temporary, path, durable)
        if fcntl is None:
            rename(temporary, path, durable)
    except BaseException as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            error.filename = str(path)  # a disk-full error does not name the file
        raise


def write_pending(path: Path, data: bytes) -> Path:
    """Write a durable temporary file next to ``path``; :func:`rename` then moves it there."""
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


def rename(temporary: Path, path: Path, durable: bool = True) -> None:
    """Move a finished file to its final path, durably."""
    os.replace(temporary, path)
    if not durable:
        return
    with suppress(OSError):  # Windows cannot open folders
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def temporaries(folder: Path, name: str = "") -> list[Path]:
    """Unfinished temporary files in ``folder``; with ``name``, only those that will become ``name``."""
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
    """Delete temporary files that killed writers left directly in these folders. Files of running writers stay."""
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
    """Whether a folder is missing or contains only hidden files, such as those of a killed writer."""
    return not folder.is_dir() or all(path.name.startswith(".") for path in folder.iterdir())


def _temporary(path: Path) -> BinaryIO:
    """A new file next to ``path``, locked while it is open so that :func:`sweep` leaves it alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{_short(path.name)}.{secrets.token_hex(4)}.hrseg-tmp")
    file = open(temporary, "xb")  # noqa: SIM115 - the caller closes it
    if fcntl is not None:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file


def _short(name: str) -> str:
    """Shorten a name so that prefix and suffix still fit into the 255 bytes a file system allows."""
    return name.encode(errors="surrogateescape")[:200].decode(errors="surrogateescape")


# ---- one writer at a time --------------------------------------------------------------------------------------------


def make_folder(folder: Path, what: str) -> None:
    """Create the folder if there is none. Raises HrsegError, which begins with ``what``, if that is impossible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HrsegError(f"{what}: cannot be written ({error.strerror}); use another folder") from None


@contextmanager
def only_one_in(folder: Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """Hold the exclusive lock for writing to ``folder``, and delete what killed processes left there.

    The operating system releases the lock when the process ends, however it ends. Where locking is not supported, a
    warning says so; a folder that cannot be written to needs no lock.
    wait: wait for the current holder, with a warning that names it, instead of raising HrsegError. Messages begin
        with ``what``.
    """
    with _locked(folder / LOCK, what, wait):
        sweep(folder)
        yield


@contextmanager
def only_one(path: Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """Like :func:`only_one_in`, for a single file or a folder that is renamed into place as a whole."""
    with _locked(path.with_name(f".{path.name}{LOCK}"), what, wait):
        sweep(path.parent)
        yield


_held: set[int] = set()


def _forget() -> None:
    """Close inherited locks in a forked worker, which would otherwise keep the lock of a killed parent."""
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
                path.unlink()  # while still locked: see _acquire
            os.close(handle)


def _acquire(path: Path, what: str, wait: bool) -> int | None:
    """Open and lock the file at ``path``; None where locking is not possible."""
    while (handle := _open(path)) is not None:
        try:
            _flock(handle, path, what, wait)
            # The previous holder may have deleted this file in between; a lock on it would then keep nobody out.
            if os.path.exists(path) and os.path.samestat(os.fstat(handle), os.stat(path)):
                _sign(handle)
                return handle
        except OSError as error:
            log.warning("%s: cannot be locked (%s); do not run a second hrseg on it", what, error.strerror)
            path.unlink(missing_ok=True)
            os.close(handle)
            return None
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
    if fcntl is None:
        log.warning("%s: this system does not support locks; do not run a second hrseg on it", what)
    return None


def _open(path: Path) -> int | None:
    if fcntl is None:
        return None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # NFS cannot lock files opened read-only
    except OSError:
        pass
    try:
        return os.open(path, os.O_RDONLY)  # created by another user
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
    """Write into the lock file who holds it."""
    name = Path(sys.argv[0]).name if sys.argv else ""
    command = shlex.join([name, *sys.argv[1:]])
    holder = {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "command": command if len(command) <= 120 else f"{command[:117]}...",
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    with suppress(OSError):  # created by another user, so opened read-only
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(holder).encode(), 0)


def _holder(path: Path) -> str:
    """The process that holds a lock, as written into the lock file."""
    for _ in range(20):  # the holder may have locked the file but not yet written to it
        with suppress(OSError, ValueError, KeyError, TypeError):
            holder = json.loads(path.read_bytes())
            host = "" if holder["host"] == socket.gethostname() else f" on {holder['host']}"
            return f"process {holder['process']}{host} ({holder['command']}) since {holder['since']}"
        time.sleep(0.01)
    return "another hrseg"
