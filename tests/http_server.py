"""A web server for tests that can be told, answer by answer, how to misbehave.

with misbehaving_server({"/a.zip": data}) as server:
    server.script("/a.zip", "truncate", "ok")
    ... urlopen(server.url("/a.zip")) ...
    server.requests  # [("/a.zip", "bytes=100-"), ...]
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answers = dict[str, list[str]]


class Server(ThreadingHTTPServer):
    """Answers of a path are taken from its script in order; the last one stays.

    ok                as a good server does: ranges, If-Range, ETag
    truncate          half of what was asked, under the length of all of it
    stall             half of what was asked, then silence
    corrupt           one byte wrong
    no_ranges         always everything
    no_length         everything, without a length; the end is where the connection ends
    cut_no_length     half of it, likewise
    rude_range        heeds Range but not If-Range
    refuse_range      416 to any range
    html              a friendly page, 200
    redirect:PATH     301
    loop              301 to itself
    404, 503, ...     that status
    """

    daemon_threads = True

    def __init__(self, files: dict[str, bytes], delay: float = 0.0, piece: int = 1 << 20) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files
        self.delay, self.piece = delay, piece
        self.scripts: Answers = defaultdict(lambda: ["ok"])
        self.requests: list[tuple[str, str | None]] = []
        self.statuses: list[int] = []
        self.closing = threading.Event()
        self.lock = threading.Lock()

    def script(self, path: str, *answers: str) -> None:
        self.scripts[path] = list(answers)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"

    def next_answer(self, path: str) -> str:
        with self.lock:
            script = self.scripts[path]
            return script.pop(0) if len(script) > 1 else script[0]

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed is what the tests want."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.close_connection = True
        asked = self.headers.get("Range")
        self.server.requests.append((self.path, asked))
        answer = self.server.next_answer(self.path)
        if answer.startswith("redirect:") or answer == "loop":
            self._say(301, {"Location": self.path if answer == "loop" else answer.partition(":")[2]})
        elif answer == "html":
            self._say(200, {"Content-Type": "text/html"}, b"<html>This file has moved.</html>")
        elif answer.isdigit():
            self._say(int(answer), {"Retry-After": "0"} if answer == "503" else {})
        elif answer == "refuse_range" and asked:
            self._say(416, {})
        elif self.path in self.server.files:
            self._give(self.server.files[self.path], answer, asked)
        else:
            self._say(404, {})

    def _say(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self._head(status, {**headers, "Content-Length": str(len(body))})
        self.wfile.write(body)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.server.statuses.append(status)
        self.send_response(status)
        for key, value in {**headers, "Connection": "close"}.items():
            self.send_header(key, value)
        self.end_headers()

    def _give(self, data: bytes, answer: str, asked: str | None) -> None:
        tag = f'"{hashlib.md5(data).hexdigest()}"'
        headers = {"ETag": tag, "Content-Type": "application/octet-stream"}
        found = re.fullmatch(r"bytes=(\d+)-", asked or "")
        ranges = found and answer not in ("no_ranges", "no_length", "cut_no_length")
        status, start = 200, 0
        if ranges and (answer == "rude_range" or self.headers.get("If-Range", tag) == tag):
            start = int(found[1])
            if start >= len(data):
                self._say(416, {"Content-Range": f"bytes */{len(data)}"})
                return
            status, headers["Content-Range"] = 206, f"bytes {start}-{len(data) - 1}/{len(data)}"
        body = data[start:]
        if not answer.endswith("no_length"):
            headers["Content-Length"] = str(len(body))
        if answer == "corrupt":
            body = body[: len(body) // 2] + bytes([body[len(body) // 2] ^ 1]) + body[len(body) // 2 + 1 :]
        if answer in ("truncate", "stall", "cut_no_length"):
            body = body[: (len(body) + 1) // 2]
        self._head(status, headers)
        with suppress(ConnectionError):
            for offset in range(0, len(body), self.server.piece):
                self.wfile.write(body[offset : offset + self.server.piece])
                if self.server.delay:
                    time.sleep(self.server.delay)
            self.wfile.flush()
            if answer == "stall":
                self.server.closing.wait(20)


@contextmanager
def misbehaving_server(files: dict[str, bytes], delay: float = 0.0, piece: int = 1 << 20) -> Iterator[Server]:
    """A server of these files on a free port of this machine. delay: seconds after each ``piece`` bytes."""
    server = Server(files, delay, piece)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
