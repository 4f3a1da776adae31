"""Locks: one at a time, free again however the holder ends, and no obstacle where there can be none."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hrseg_cli.data import lock
from hrseg_cli.data.lock import only_one
from hrseg_cli.errors import HrsegError

HOLD = """
import sys
from pathlib import Path
from hrseg_cli.data.lock import only_one
with only_one(Path(sys.argv[1]), "set"):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until its input ends or it is killed."""
    words = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        try:
            yield child
        finally:
            child.kill()


def free(path: Path) -> bool:
    try:
        with only_one(path, "the set"):
            return True
    except HrsegError:
        return False


@pytest.mark.parametrize("end", ["ends", "killed"])
def test_another_process_keeps_us_out_until_it_ends(tmp_path: Path, end: str) -> None:
    path = tmp_path / "new" / ".set.lock"
    with held(path) as child:
        assert not free(path)
        with (
            pytest.raises(HrsegError, match=r"^the set: another hrseg is at work there; wait for it"),
            only_one(path, "the set"),
        ):
            pass
        assert free(path.with_name(".other.lock"))
        if end == "killed":
            child.kill()
        else:
            assert child.stdin is not None
            child.stdin.close()
        child.wait(10)
        assert free(path)
    assert path.exists()


def test_it_is_free_after_an_error_and_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), only_one(tmp_path / ".lock", "set"):
        print(1 / free(tmp_path / ".lock"))  # 0 while it is held
    assert free(tmp_path / ".lock")


def test_a_forked_worker_does_not_keep_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers inherit what is open, as a duplicate does, and some outlive the work for a moment."""
    handle = os.open(tmp_path / ".lock", os.O_RDWR | os.O_CREAT)
    copy = os.dup(handle)
    monkeypatch.setattr(lock, "_open", lambda _: handle)
    with only_one(tmp_path / ".lock", "set"):
        pass
    monkeypatch.undo()
    try:
        assert free(tmp_path / ".lock")
    finally:
        os.close(copy)


def test_no_lock_where_no_file_can_be(tmp_path: Path) -> None:
    """A folder that cannot be written, or, as root may write anywhere, a file in the place of a folder."""
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir(mode=0o500)
    for path in (tmp_path / "file" / ".lock", tmp_path / "folder" / ".lock"):
        with only_one(path, "set"):
            assert os.geteuid() == 0 or not path.exists()
    assert not (tmp_path / "file" / ".lock").exists()


def test_a_lock_of_another_user_that_is_read_only_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real = tmp_path / ".lock", os.open

    def read_only(name: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_RDWR:
            raise PermissionError(13, "Permission denied")
        return real(name, flags, mode)

    with held(path):
        monkeypatch.setattr(os, "open", read_only)
        assert not free(path)


def test_no_lock_on_systems_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "fcntl", None)
    with only_one(tmp_path / ".lock", "set"):
        assert free(tmp_path / ".lock")
