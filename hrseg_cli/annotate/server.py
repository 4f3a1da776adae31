"""The page over HTTP, for one person on this machine.

What the browser shows first is no secret. All else is under /api/ and wants the token, which the page has from the
part of its address that browsers keep to themselves (after the #) and sends as a header: no other site can make a
browser send it, and it reaches neither a log nor another program's cookies.
"""

from __future__ import annotations

import asyncio
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
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hrseg_cli.annotate.desk import Asked, Desk, Refused
from hrseg_cli.errors import HrsegError

HOST = "127.0.0.1"
BODY = 512 * 1024  # bytes; 5000 points of a stroke take 200 KB
WAITING = 64  # requests in a line; more are turned away

PAGE = {
    "/": ("index.html", "text/html"),
    "/style.css": ("style.css", "text/css"),
    "/app.js": ("app.js", "text/javascript"),
    "/view.js": ("view.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
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


class Line:
    """One task after another, in a thread of its own. Answers that nobody waits for any more are not made: a person
    who leafs through large images leaves many behind."""

    def __init__(self, name: str) -> None:
        self.worker, self.turn, self.waiting = ThreadPoolExecutor(1, name), asyncio.Lock(), 0

    async def do(self, request: Request, task: Callable[..., Result], *arguments: Any) -> Result:
        await request.body()  # what comes after it is that the asker has gone
        if self.waiting >= WAITING:
            raise Refused(503, "too much at once; wait a moment")
        self.waiting += 1
        try:
            async with self.turn:
                if request.method == "GET" and await request.is_disconnected():
                    raise Refused(499, "nobody waits for this any more")
                return await asyncio.get_running_loop().run_in_executor(self.worker, task, *arguments)
        finally:
            self.waiting -= 1


def application(desk: Desk, token: str, hosts: Iterable[str]) -> ASGIApp:
    """The server as an ASGI application. hosts: what may stand in a request's Host, such as ``127.0.0.1:8017``."""
    asked: TypeAdapter[Asked] = TypeAdapter(Asked)
    work, read = Line("desk").do, Line("images").do

    def number(request: Request) -> int:
        found = request.path_params["number"]
        if not 0 <= found < len(desk.folder.stems):
            raise Refused(404, "no such image")
        return int(found)

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
            raise Refused(400, f"not understood: {place + ': ' if place else ''}{first['msg']}") from None
        return JSONResponse(await work(request, desk.act, which, wish))

    def page(path: str) -> Route:
        content, kind = page_file(path), PAGE[path][1]

        async def send(_: Request) -> Response:
            return Response(content, media_type=kind)

        return Route(path, send)

    inner = Starlette(
        routes=[
            *map(page, PAGE),
            Route("/api/folder", overview),
            Route("/api/images/{number:int}", picture),
            Route("/api/images/{number:int}", act, methods=["POST"]),
            Route("/api/images/{number:int}/revision", revision),
            Route("/api/images/{number:int}/pixels", pixels),
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


def _say(status: int, text: str) -> Response:
    return JSONResponse({"error": text}, status)


async def _refused(_: Request, error: Exception) -> Response:
    return _say(error.status if isinstance(error, Refused) else 400, str(error))


async def _mendable(_: Request, error: Exception) -> Response:
    return _say(422, str(error))


async def _no_room(_: Request, error: Exception) -> Response:
    name, reason = getattr(error, "filename", None), getattr(error, "strerror", None)
    return _say(507, f"{name or 'a file'}: {reason or error}; the last change is not saved")


async def _too_large(_: Request, __: Exception) -> Response:
    return _say(507, "not enough memory for this image; the last change is not saved")


async def _defect(_: Request, error: Exception) -> Response:
    return _say(500, f"a defect of hrseg: {type(error).__name__}; the terminal shows more")


def guarded(inner: ASGIApp, token: str, hosts: frozenset[str]) -> ASGIApp:
    """Asks who asks: the names of this server, no other site, the token for /api/, and bodies of a decent size."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await inner(scope, receive, send)
        if scope["type"] != "http":  # a websocket is not answered
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", ()), *own]}
            await send(message)

        refusal = _refusal(scope, token, hosts)
        body = b"" if refusal else await _body(receive)
        if body is None:
            refusal = _say(413, f"more than {BODY} bytes")
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
        return _say(403, "not the name of this server")
    if origin is not None and origin != f"http://{host}":
        return _say(403, "another site may not ask")
    if one(b"sec-fetch-site") not in (None, "same-origin", "none"):
        return _say(403, "another site may not ask")
    if scope["path"].startswith("/api/"):
        given = (one(b"authorization") or "").encode("latin-1")
        if not secrets.compare_digest(given, f"Bearer {token}".encode()):
            return _say(401, "open the address that hrseg has printed last; this one is of an earlier start")
    length = one(b"content-length")
    if length is not None and not (length.isdecimal() and len(length) < 12 and int(length) <= BODY):
        return _say(413, f"more than {BODY} bytes")
    return None


async def _body(receive: Receive) -> bytes | None:
    """None where it is too long."""
    body: bytes = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > BODY:
            return None
        if message["type"] != "http.request" or not message.get("more_body"):
            return body


def serve(desk: Desk, port: int, browser: bool, say: Callable[[str], None]) -> None:
    """Until Ctrl-C. port: 0 for any. Raises HrsegError where the port is taken."""
    token = secrets.token_urlsafe(24)
    with _listen(port) as ear:
        port = ear.getsockname()[1]
        address = f"http://{HOST}:{port}/#{token}"
        app = application(desk, token, [f"{HOST}:{port}", f"localhost:{port}"])
        config = uvicorn.Config(
            app,
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
        if sys.platform != "win32":  # there it would let a second server listen too
            ear.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        ear.bind((HOST, port))
        ear.listen()
    except OSError as error:
        ear.close()
        raise HrsegError(f"`port` {port}: cannot be had ({error.strerror}); name another one, or 0 for any") from None
    return ear
