"""The command hrseg annotate: where it listens, when it starts, and how it ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_photos import folder_of

from hrseg_cli.writing import only_one_in


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "shop", "a.png", "b.png")


def command(place: Path, *more: str) -> list[str]:
    program = "from hrseg_cli.cli import main; main()"
    return [sys.executable, "-c", program, "annotate", str(place), "--model", "grabcut", "--no-browser", *more]


def test_it_starts_on_loopback_and_ends_on_ctrl_c(place: Path) -> None:
    job = subprocess.Popen(command(place, "--port", "0"), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert job.stderr is not None
        found = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/#([\w-]{32})\n", job.stderr.readline())
        assert found
        port = int(found[1])
        with socket.create_connection(("127.0.0.1", port), timeout=30) as line:
            line.sendall(f"GET /api/folder HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n".encode())
            line.sendall(f"Authorization: Bearer {found[2]}\r\nConnection: close\r\n\r\n".encode())
            answer = b"".join(iter(lambda: line.recv(65536), b""))
        assert b'"images/a.png"' in answer
        assert b"uvicorn" not in answer
        with socket.create_connection(("127.0.0.1", port), timeout=30) as line:
            line.sendall(f"GET /../../../../etc/passwd HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
            assert line.recv(65536).startswith(b"HTTP/1.1 404")
        with socket.create_connection(("127.0.0.1", port), timeout=30) as line:
            line.sendall(f"POST /api/images/0 HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n".encode())
            line.sendall(f"Authorization: Bearer {found[2]}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
            sender = threading.Thread(target=flood, args=(line,), daemon=True)
            sender.start()
            assert line.recv(65536).startswith(b"HTTP/1.1 413")
        second = subprocess.run(command(place, "--port", str(port)), capture_output=True, text=True, timeout=120)
        assert second.returncode == 1
        assert second.stderr.count("\n") == 1
        assert f"in use by process {job.pid} (" in second.stderr
        job.send_signal(signal.SIGINT)
        out, err = job.communicate(timeout=60)
        assert (job.returncode, out, err) == (0, "", f"stopped; all work is saved in {place}\n")
    finally:
        job.kill()
        job.communicate()


def flood(line: socket.socket) -> None:
    """Chunks of spaces until the server has had enough."""
    try:
        for _ in range(1000):
            line.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
    except OSError:
        pass


def test_a_folder_is_read_only_when_nobody_else_writes_there(hrseg: Callable[..., Any], place: Path) -> None:
    """Else what the first one still does would be overwritten by what the second has read before."""
    notes = place / "annotations"
    with only_one_in(notes, str(place)):
        (notes / "images").mkdir()
        (notes / "images" / "a.json").write_text("{")
        done = hrseg("annotate", place, "--model", "grabcut", "--no-browser")
        assert (done.code, f"{place}: in use by process {os.getpid()} " in done.err) == (1, True)
    assert "a.json: not a record written by hrseg annotate" in hrseg("annotate", place, "--model", "grabcut").err


def test_a_taken_port_is_one_line(hrseg: Callable[..., Any], place: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = hrseg("annotate", place, "--model", "grabcut", "--no-browser", "--port", port)
    assert done.code == 1
    assert done.err.count("\n") == 1
    assert f"--port {port}" in done.err
    assert "0 for any" in done.err


def test_what_is_wrong_is_one_line(hrseg: Callable[..., Any], tmp_path: Path) -> None:
    for words, code, text in [
        ([tmp_path / "none", "--model", "grabcut"], 1, "no such folder"),
        ([tmp_path, "--model", "grabcut"], 1, "no image"),
        ([tmp_path, "--model", "grabcat"], 1, "no image"),
        ([tmp_path, "--model", "grabcut", "--protocol", "foto"], 2, "Did you mean 'photo'"),
        ([tmp_path, "--port", "70000"], 2, "--port"),
    ]:
        done = hrseg("annotate", *words, "--no-browser")
        assert done.code == code
        assert text in done.err
