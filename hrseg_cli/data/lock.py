"""One at a time: two runs that write to one place would mix their bytes."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hrseg_cli.errors import HrsegError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)


@contextmanager
def only_one(path: Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """Hold an exclusive lock on the small file ``path``, made where it is missing and left behind.

    The system lets go of the lock with the process that holds it, however that ends; the file itself means nothing.
    Where there can be no lock (a read-only folder, a file system or a system without locks), there is none.

    Raises HrsegError, which names ``what``, at once where someone else holds it, be it in this process.
    wait: say so and wait instead, for work that is done once for all.
    """
    handle = _open(path)
    try:
        locked = handle is not None and _lock(handle, what, wait)
        try:
            yield
        finally:
            if locked and handle is not None:
                fcntl.flock(handle, fcntl.LOCK_UN)  # closing alone would not, while a forked worker lives
    finally:
        if handle is not None:
            os.close(handle)


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


def _lock(handle: int, what: str, wait: bool) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if wait:
            log.warning("%s: another hrseg is at work there; waiting for it to finish", what)
            fcntl.flock(handle, fcntl.LOCK_EX)
            return True
        raise HrsegError(f"{what}: another hrseg is at work there; wait for it to finish") from None
    except OSError:
        return False
    return True
