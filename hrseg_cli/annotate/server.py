"""The HTTP server of the annotation page, for one user on this machine.

The page itself is not secret. Everything else is under /api/ and requires a token. The page takes it from the fragment
of its URL (after the #), which browsers do not send, and passes it as a header. So no other site can make a browser
send it, and it does not appear in logs or cookies.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import socket
import sys
import webbrowser
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.resources import files
from typing import Any, TypeVar

import torch
import uvicorn
from pydantic import TypeAdapter, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from hrseg_cli.annotate.acts import AnyAct, Refused
from hrseg_cli.annotate.desk import Desk
from hrseg_cli.annotate.export import KINDS, pieces, zipped
from hrseg_cli.annotate.records import Clicked
from hrseg_cli.errors import HrsegError

HOST = "127.0.0.1"
BODY = 512 * 1024  # bytes; a stroke of 5000 points takes 200 KB
WAITING = 64  # queued requests; more are refused
PATIENCE = 20.0  # seconds that a client may take to send a request

SCRIPTS = (
    "app", "state", "server", "view", "draw", "pointer", "touch", "keys", "images", "objects", "labels", "outline",
    "preview", "export",
)  # fmt: skip
PAGE = {
    "/": ("index.html", "text/html"),
    "/style.css": ("style.css", "text/css"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    **{f"/{name}.js": (f"{name}.js", "text/javascript") for name in SCRIPTS},
}
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}

Result = TypeVar("Result")


class TaskQueue:
    """Runs one task at a time, in a thread of its own. Skips reads whose client has disconnected: a user who pages
    through large images leaves many behind."""

    def __init__(self, name: str) -> None:
        self.worker, self.turn, self.waiting = ThreadPoolExecutor(1, name), asyncio.Lock(), 0

    async def do(self, request: Request, task: Callable[..., Result], *arguments: Any) -> Result:
        await request.body()  # after the body, a further message means that the client has disconnected
        if self.waiting >= WAITING:
            raise Refused(503, "too many requests at once; wait a moment")
        self.waiting += 1
        try:
            async with self.turn:
                if request.method == "GET" and await request.is_disconnected():
                    raise Refused(499, "the client has disconnected")
                return await asyncio.get_running_loop().run_in_executor(self.worker, task, *arguments)
        finally:
            self.waiting -= 1


def application(desk: Desk, token: str, hosts: Iterable[str]) -> ASGIApp:
    """The server as an ASGI application. hosts: allowed values of the Host header, such as ``127.0.0.1:8017``."""
    asked: TypeAdapter[AnyAct] = TypeAdapter(AnyAct)
    work, read, pack = (TaskQueue(name).do for name in ("desk", "images", "export"))

    def number(request: Request) -> int:
        text = request.path_params["number"]
        if not re.fullmatch("[0-9]{1,9}", text) or int(text) >= len(desk.folder.stems):
            raise Refused(404, "no such image")
        return int(text)

    async def overview(request: Request) -> Response:
        return JSONResponse(await work(request, desk.overview))

    async def picture(request: Request) -> Response:
        return JSONResponse(await work(request, desk.picture, number(request)))

    async def revision(request: Request) -> Response:
        return JSONResponse({"revision": desk.folder.pictures[number(request)].revision})

    async def pixels(request: Request) -> Response:
        return Response(await read(request, desk.pixels, number(request)), media_type="image/jpeg")

    async def act(request: Request) -> Response:
        which = number(request)
        try:
            wish = asked.validate_json(await request.body())
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise Refused(400, f"invalid request: {place + ': ' if place else ''}{first['msg']}") from None
        return JSONResponse(await work(request, desk.act, which, wish))

    async def preview(request: Request) -> Response:
        which, given = number(request), request.query_params
        try:
            revision = int(given["revision"])
            click = Clicked(row=int(given["row"]), col=int(given["col"]), positive=given.get("positive") == "1")
        except (KeyError, ValueError):
            raise Refused(400, "invalid request: revision, row and col must be numbers") from None
        return JSONResponse(await work(request, desk.preview, which, revision, given.get("object"), click))

    async def export(request: Request) -> Response:
        given = request.query_params
        kinds = [kind for kind in given.get("kinds", "").split(",") if kind in KINDS]
        if not kinds:
            raise Refused(400, f"choose what to export: {', '.join(KINDS)}")
        file = await pack(request, zipped, desk.folder, kinds, given.get("done") == "1")
        return StreamingResponse(pieces(file), media_type="application/zip")

    def page(path: str) -> Route:
        content, kind = page_file(path), PAGE[path][1]

        async def send(_: Request) -> Response:
            return Response(content, media_type=kind)

        return Route(path, send)

    inner = Starlette(
        routes=[
            *map(page, PAGE),
            Route("/api/folder", overview),
            Route("/api/images/{number}", picture),
            Route("/api/images/{number}", act, methods=["POST"]),
            Route("/api/images/{number}/revision", revision),
            Route("/api/images/{number}/pixels", pixels),
            Route("/api/images/{number}/preview", preview),
            Route("/api/export", export),
        ],
        exception_handlers={
            Refused: _refused,
            HrsegError: _mendable,
            OSError: _no_room,
            MemoryError: _too_large,
            torch.OutOfMemoryError: _too_large,
            Exception: _defect,
        },
    )
    return guarded(inner, token, frozenset(hosts))


def page_file(path: str) -> bytes:
    return files("hrseg_cli.annotate").joinpath("page", PAGE[path][0]).read_bytes()


def _say(status: int, text: str, saved: bool = False) -> Response:
    return JSONResponse({"error": text, **({"saved": True} if saved else {})}, status)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return _say(error.status, str(error), saved=error.saved)


async def _mendable(_: Request, error: Exception) -> Response:
    return _say(422, str(error))


async def _no_room(_: Request, error: Exception) -> Response:
    name, reason = getattr(error, "filename", None), getattr(error, "strerror", None)
    return _say(507, f"{name or 'a file'}: {reason or error}; your last change is not saved")


async def _too_large(_: Request, __: Exception) -> Response:
    return _say(507, "not enough memory for this image; your last change is not saved")


async def _defect(_: Request, error: Exception) -> Response:
    return _say(500, f"a bug in hrseg: {type(error).__name__}; see the terminal for details")


def guarded(inner: ASGIApp, token: str, hosts: frozenset[str]) -> ASGIApp:
    """Access control: the Host header, no other sites, the token for /api/, and a limit on the body size."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await inner(scope, receive, send)
        if scope["type"] != "http":  # no websockets
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", ()), *own]}
            await send(message)

        refusal = _refusal(scope, token, hosts)
        body = b"" if refusal else await _body(receive)
        if body is None:
            refusal = _say(413, f"the request exceeds {BODY} bytes")
        if refusal:
            await refusal(scope, receive, send_guarded)
            return
        sent = False

        async def receive_read() -> Message:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        await inner(scope, receive_read, send_guarded)

    return app


def _refusal(scope: Scope, token: str, hosts: frozenset[str]) -> Response | None:
    headers: dict[bytes, list[bytes]] = {}
    for name, value in scope["headers"]:
        headers.setdefault(name.lower(), []).append(value)

    def one(name: bytes) -> str | None:
        values = headers.get(name)
        return values[0].decode("latin-1") if values and len(values) == 1 else "" if values else None

    host, origin = one(b"host"), one(b"origin")
    if host not in hosts:
        return _say(403, "wrong Host header")
    if origin is not None and origin != f"http://{host}":
        return _say(403, "requests from other sites are refused")
    if one(b"sec-fetch-site") not in (None, "same-origin", "none"):
        return _say(403, "requests from other sites are refused")
    if scope["path"].startswith("/api/"):
        given = (one(b"authorization") or "").encode("latin-1")
        if not secrets.compare_digest(given, f"Bearer {token}".encode()):
            return _say(401, "this address is from an earlier start; open the one that hrseg printed last")
    length = one(b"content-length")
    if length is not None and not (length.isdecimal() and len(length) < 12 and int(length) <= BODY):
        return _say(413, f"the request exceeds {BODY} bytes")
    return None


async def _body(receive: Receive) -> bytes | None:
    """The body, or None if it is too long."""
    body: bytes = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > BODY:
            return None
        if message["type"] != "http.request" or not message.get("more_body"):
            return body


class _Protocol(H11Protocol):
    """HTTP that closes the connection of a client who does not finish a request; uvicorn waits for it for ever."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._timer:
            self._timer.cancel()

    def _wait(self) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = self.loop.call_later(PATIENCE, self._give_up)

    def _give_up(self) -> None:
        if self.cycle and not self.cycle.more_body and not self.cycle.response_complete:
            self._wait()  # the whole request is here, and being answered
        else:
            self.transport.close()


def serve(desk: Desk, port: int, browser: bool, say: Callable[[str], None]) -> None:
    """Serve until Ctrl-C. port: 0 for any free one. Raises HrsegError if the port is in use."""
    token = secrets.token_urlsafe(24)
    with _listen(port) as ear:
        port = ear.getsockname()[1]
        address = f"http://{HOST}:{port}/#{token}"
        app = application(desk, token, [f"{HOST}:{port}", f"localhost:{port}"])
        config = uvicorn.Config(
            app,
            http=_Protocol,
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="off",
            ws="none",
            proxy_headers=False,
            timeout_graceful_shutdown=10,
        )
        say(address)
        if browser:
            with suppress(webbrowser.Error):
                webbrowser.open(address)
        uvicorn.Server(config).run([ear])


def _listen(port: int) -> socket.socket:
    ear = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        if sys.platform != "win32":  # on Windows it would let a second server use the same port
            ear.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        ear.bind((HOST, port))
        ear.listen()
    except OSError as error:
        ear.close()
        raise HrsegError(f"`port` {port}: not available ({error.strerror}); choose another one, or 0 for any") from None
    return ear
