"""Files: whole or not there. Locks: one at a time, free again however the holder ends, and no obstacle where there can
be none."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from hrseg_cli import writing
from hrseg_cli.errors import HrsegError
from hrseg_cli.writing import (
    is_empty,
    only_one,
    only_one_in,
    sweep,
    write_atomically,
    write_pending,
    writing_atomically,
)

HOLD = """
import os, sys, time
from pathlib import Path
from hrseg_cli.writing import only_one
with only_one(Path(sys.argv[1]), "set"):
    if sys.argv[2:] and not os.fork():
        time.sleep(600)
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held(path: Path, *more: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until its input ends or it is killed."""
    words = [sys.executable, "-c", HOLD, str(path), *more]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        try:
            yield child
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)


def free(path: Path) -> bool:
    try:
        with only_one(path, "the set"):
            return True
    except HrsegError:
        return False


# ---- locks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["ends", "killed"])
def test_another_process_keeps_us_out_until_it_ends(tmp_path: Path, end: str) -> None:
    path = tmp_path / "new" / "set"
    with held(path) as child:
        assert not free(path)
        told = rf"^the set: in use by process {child.pid} \(-c {path}\) since 20\d\d-\S+ \S+; wait for it to finish$"
        with pytest.raises(HrsegError, match=told), only_one(path, "the set"):
            pass
        assert free(path.with_name("other"))
        if end == "killed":
            child.kill()
        else:
            assert child.stdin is not None
            child.stdin.close()
        child.wait(10)
        assert list(path.parent.iterdir()) == ([path.with_name(".set.hrseg-lock")] if end == "killed" else [])
        assert free(path)
    assert not list(path.parent.iterdir())


def test_a_killed_holder_s_worker_does_not_keep_it(tmp_path: Path) -> None:
    """Loaders of samples are forked, inherit what is open, and outlive a killed training by seconds."""
    with held(tmp_path / "set", "fork") as child:
        assert not free(tmp_path / "set")
        child.kill()
        child.wait(10)
        until = time.monotonic() + 60
        while not free(tmp_path / "set"):  # its worker may not have come to run yet
            assert time.monotonic() < until
            time.sleep(0.01)


def test_who_waits_gets_it_next(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Also though the file that was waited on is no longer the one that the path names."""
    order = []

    def second() -> None:
        with only_one_in(tmp_path, "copies", wait=True):
            order.append("second" if not _free_in(tmp_path) else "nobody")

    with only_one_in(tmp_path, "copies"):
        waiting = threading.Thread(target=second)
        waiting.start()
        while not caplog.records:
            time.sleep(0.01)
        order.append("first")
    waiting.join(10)
    assert order == ["first", "second"]
    assert caplog.messages[0].startswith(f"copies: waiting for process {os.getpid()} (")
    assert not list(tmp_path.iterdir())


def _free_in(folder: Path) -> bool:
    try:
        with only_one_in(folder, "copies"):
            return True
    except HrsegError:
        return False


def test_the_holder_on_another_machine_is_told_with_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with held(tmp_path / "set") as child:
        monkeypatch.setattr(writing.socket, "gethostname", lambda: "elsewhere")
        with (
            pytest.raises(HrsegError, match=rf"process {child.pid} on \S+ \("),
            only_one(tmp_path / "set", "set"),
        ):
            pass


def test_it_is_free_after_an_error_and_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), only_one(tmp_path / "set", "set"):
        print(1 / free(tmp_path / "set"))  # 0 while it is held
    assert free(tmp_path / "set")


def test_no_lock_where_no_file_can_be(tmp_path: Path) -> None:
    """A folder that cannot be written, or, as root may write anywhere, a file in the place of a folder."""
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir(mode=0o500)
    for path in (tmp_path / "file" / "set", tmp_path / "folder" / "set"):
        with only_one(path, "set"):
            assert os.geteuid() == 0 or not list((tmp_path / "folder").iterdir())
    assert (tmp_path / "file").read_text() == ""


def test_a_lock_of_another_user_that_is_read_only_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real = tmp_path / "set", os.open

    def read_only(name: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_RDWR:
            raise PermissionError(13, "Permission denied")
        return real(name, flags, mode)

    with held(path):
        monkeypatch.setattr(os, "open", read_only)
        assert not free(path)


def test_systems_and_file_systems_without_locks_are_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(writing.fcntl, "flock", refuse)
    with only_one_in(tmp_path, "--out x"):
        assert not list(tmp_path.iterdir())
        write_atomically(tmp_path / "file", "whole")
    monkeypatch.setattr(writing, "fcntl", None)
    with only_one_in(tmp_path, "--out x"):
        write_atomically(tmp_path / "file", "whole again")
    assert caplog.messages == [
        "--out x: cannot be locked (No locks available); do not run a second hrseg on it",
        "--out x: this system does not support locks; do not run a second hrseg on it",
    ]
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "whole again")]


# ---- whole files -----------------------------------------------------------------------------------------------------


def test_what_killed_writers_left_goes_and_nothing_else(tmp_path: Path) -> None:
    """A user's file stays, whatever it is called, and so does what somebody writes now."""
    own = [".vimrc.disabled", ".run.json.original.bak", ".notes.json.original", "a.hrseg-tmp", ".x.hrseg-tmp"]
    for name in own:
        (tmp_path / name).touch()
    left = [write_pending(tmp_path / name, b"half") for name in ("run.json", "ä" * 120)]
    (tmp_path / ".run.json.k1ll3d_0").touch()  # as earlier versions called them
    (tmp_path / ".folder.01234567.hrseg-tmp").mkdir()
    with writing_atomically(tmp_path / "living") as file:
        sweep(tmp_path)
        assert not any(path.exists() for path in left)
        assert {path.name for path in tmp_path.iterdir()} == {*own, Path(file.name).name, ".folder.01234567.hrseg-tmp"}
    assert (tmp_path / "living").exists()


def test_a_failure_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="No space") as caught, writing_atomically(path):
        raise full
    assert caught.value.filename == str(path)
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("file", "old")]


def test_a_folder_with_leftovers_counts_as_empty(tmp_path: Path) -> None:
    assert is_empty(tmp_path / "none")
    write_pending(tmp_path / "predict.jsonl", b"")
    (tmp_path / ".DS_Store").touch()
    assert is_empty(tmp_path)
    (tmp_path / "file").touch()
    assert not is_empty(tmp_path)
