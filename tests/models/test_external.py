"""Click models of others: functions, and servers that are not trusted."""

from __future__ import annotations

import importlib.util
import io
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import contract
import pytest
import torch
from PIL import Image
from tiny_photos import boxes

from hrseg_cli.checkpoints.resolve import load_model
from hrseg_cli.engine.export import export
from hrseg_cli.errors import HrsegError
from hrseg_cli.models.external import External

MODULE = '''
import os
import tempfile

import numpy as np

os.chdir(tempfile.gettempdir())  # as careless modules do

calls = []

def bright(image, previous, clicks):
    """What is as bright as the positive clicks, and what was object before, without the last negative click."""
    assert image.dtype == np.uint8 and image.ndim == 3 and previous.dtype == np.float32
    calls.append(clicks)
    grey = image.mean(2)
    mask = 0.1 + 0.3 * previous
    for row, col, positive in clicks:
        row, col = (min(max(int(v), 0), s - 1) for v, s in zip((row, col), grey.shape))
        near = abs(grey - grey[row, col]) < 40
        mask = np.where(near, 0.9 if positive else 0.0, mask)
    return mask

def odd(image, previous, clicks): return previous[1:]
def logits(image, previous, clicks): return previous - 5
def broken(image, previous, clicks): return 1 / 0
def leaves(image, previous, clicks): raise SystemExit(3)
def ragged(image, previous, clicks): return [[1.0], [1.0, 0.0]]
number = 3
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """The name of a module in the current folder, another one for every test: modules are imported once."""
    name = f"click_models_{abs(hash(request.node.nodeid))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    return name


@pytest.mark.parametrize("size", [(64, 48), (9, 7), (1, 20)])
def test_a_function_keeps_the_contract(module: str, size: tuple[int, int], tmp_path: Path) -> None:
    model, provenance = load_model(f"python:{module}:bright")
    contract.test_answers_at_any_size(model, size)
    assert provenance["file"] == f"python:{module}:bright"
    assert len(provenance["sha256"]) == 64
    model.stub = torch.nn.Linear(1, 1)  # a model without weights is refused for that
    with pytest.raises(HrsegError, match="cannot be exported"):
        export(model, tmp_path / "a.onnx", {})


def test_clicks_come_in_their_order(module: str) -> None:
    model, _ = load_model(f"python:{module}:bright")
    points = torch.tensor([[[3.0, 4.5, 1], [5, 6, 2], [7, 8, 0], [-1, -1, -1]]]).double()
    model(torch.rand(1, 4, 20, 30), points)
    assert importlib.import_module(module).calls == [[(7, 8, False), (3, 4.5, True), (5, 6, True)]]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("odd", r"returned float32 \(19, 30\) for an image of \(20, 30\)"),
        ("logits", "outside 0..1"),
        ("broken", "ZeroDivisionError: division by zero"),
        ("leaves", "SystemExit"),
        ("ragged", "returned a list that cannot be read as an array"),
    ],
)
def test_a_wrong_answer_is_one_line(module: str, name: str, line: str) -> None:
    model, _ = load_model(f"python:{module}:{name}")
    with pytest.raises(HrsegError, match=line) as caught:
        model(torch.rand(1, 4, 20, 30), torch.full((1, 2, 3), 3.0))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("place", ["", "x", "no_such_module:f", "os:no_such", "../x:f", "a b:f", "math:pi"])
def test_functions_that_are_none(place: str) -> None:
    with pytest.raises(HrsegError, match="python:"):
        load_model(f"python:{place}")


# Servers


def _example() -> Any:
    path = Path(__file__).resolve().parents[2] / "integrations" / "external" / "server.py"
    spec = importlib.util.spec_from_file_location("external_server", path)
    assert spec
    assert spec.loader
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture
def serve() -> Iterator[Callable[[type[BaseHTTPRequestHandler]], str]]:
    started: list[HTTPServer] = []

    def start(handler: type[BaseHTTPRequestHandler]) -> str:
        started.append(HTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=started[-1].serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return f"http://127.0.0.1:{started[-1].server_address[1]}"

    yield start
    for one in started:
        one.shutdown()
        one.server_close()


def test_a_server_answers_as_its_function(module: str, serve: Callable[..., str]) -> None:
    """Up to the 8 bits of a PNG; the example server is the one that is published."""
    function, _ = load_model(f"python:{module}:bright")
    assert isinstance(function, External)
    url = serve(_example().handler(importlib.import_module(module).bright, "bright"))
    model, provenance = load_model(url)
    assert (provenance["file"], provenance["options"]) == (url, {"model": "bright"})
    image, points = contract.question(model, 40, 56, 2)
    found, wanted = (torch.sigmoid(one(image, points)["logits"]) for one in (model, function))
    torch.testing.assert_close(found, wanted, atol=2 / 255, rtol=0)


@pytest.mark.slow
def test_a_server_is_evaluated(
    module: str, serve: Callable[..., str], hrseg: Callable[..., Any], tmp_path: Path
) -> None:
    load_model(f"python:{module}:bright")  # which imports it from the current folder
    url = serve(_example().handler(importlib.import_module(module).bright, "bright"))
    boxes(tmp_path / "data")
    words = ["-d", tmp_path / "data", "--max-clicks", 2, "--workers", 1, "--limit", 2, "--out", tmp_path / "run"]
    done = hrseg("evaluate", "-m", url, *words)
    assert done.code == 0, done.err
    asked = json.loads((tmp_path / "run" / "run.json").read_text())["asked"]
    assert asked["settings"]["model"]["file"] == url


def answering(about: bytes = b'{"hrseg": 1}', mask: bytes = b"", status: int = 200) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(200, about)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.reply(status, mask)

        def reply(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Location", "http://127.0.0.1:9/")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    return Handler


def png(size: tuple[int, int], mode: str = "L") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("mask", "status", "line"),
    [
        (b"", 200, "not a grey PNG"),
        (b"<html>", 200, "not a grey PNG"),
        (png((20, 30)), 200, "not a grey PNG"),
        (png((30, 20), "RGB"), 200, "not a grey PNG"),
        (png((20000, 20000)), 200, "bytes|not a grey PNG"),
        (bytes(200_000), 200, "more than"),
        (b"went wrong\n\n here", 500, "HTTP 500 went wrong here"),
        (b"", 302, "HTTP 302"),
    ],
    ids=["empty", "html", "turned", "colour", "huge", "long", "error", "redirect"],
)
def test_a_wrong_answer_of_a_server_is_one_line(mask: bytes, status: int, line: str, serve: Callable[..., str]) -> None:
    model, _ = load_model(serve(answering(mask=mask, status=status)))
    with pytest.raises(HrsegError, match=line) as caught:
        model(torch.rand(1, 4, 20, 30), torch.full((1, 2, 3), 3.0))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("about", [b"", b"[]", b"{}", b'{"hrseg": 2}', b"<html>", b'{"a":' * 3000, bytes(10**6)])
def test_other_servers_are_no_models(about: bytes, serve: Callable[..., str]) -> None:
    with pytest.raises(HrsegError, match=r"not a server of a click model|more than"):
        load_model(serve(answering(about)))


def test_only_this_machine_and_named_hosts_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for spec in ("http://", "http:127.0.0.1:80", "http://127.0.0.1", "http://127.0.0.1:x/", "http://a@127.0.0.1:9/"):
        with pytest.raises(HrsegError, match="give http://127"):
            load_model(spec)
    for spec in ("http://127.0.0.1:9/\u00e9", "http://127.0.0.1:9/a b", "http://127.0.0.1:9/\udce9"):
        with pytest.raises(HrsegError, match="percent-encode them"):
            load_model(spec)
    for host in ("example.org", "127.0.0.1.example.org", "10.0.0.1", "0.0.0.0"):
        with pytest.raises(HrsegError, match=f"HRSEG_MODEL_HOSTS={host}"):
            load_model(f"http://{host}:8000")
    monkeypatch.setenv("HRSEG_MODEL_HOSTS", "no-such-host.invalid")
    with pytest.raises(HrsegError, match="no answer"):
        load_model("http://no-such-host.invalid:8000")
    with pytest.raises(HrsegError, match="no answer"):
        load_model("http://127.0.0.1:9")


def test_a_mask_is_given_only_where_there_is_one(serve: Callable[..., str]) -> None:
    seen: list[dict[str, Any]] = []

    class Handler(answering(mask=png((30, 20)))):  # type: ignore[misc]
        def do_POST(self) -> None:
            seen.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.reply(200, png((30, 20)))

    model, _ = load_model(serve(Handler))
    image = torch.zeros(1, 4, 20, 30)
    model(image, torch.tensor([[[3.0, 4, 0], [-1, -1, -1]]]))
    image[:, 3] = 0.5
    model(image, torch.tensor([[[3.0, 4, 0], [5, 6, 1]]]))
    assert [one["previous"] is None for one in seen] == [True, False]
    assert [one["clicks"] for one in seen] == [[[3.0, 4.0, 1]], [[3.0, 4.0, 1], [5.0, 6.0, 0]]]
