"""The page's server: what it answers to the page, and what it does not answer to anybody else."""

from __future__ import annotations

import asyncio
import io
import json
import re
import socket
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from PIL import Image
from starlette.testclient import TestClient
from tiny_photos import SIZE, SameColour, folder_of, photograph, truth
from uvicorn.server import ServerState

from hrseg_cli.annotate import server
from hrseg_cli.annotate.desk import Desk
from hrseg_cli.annotate.folder import Folder
from hrseg_cli.annotate.server import BODY, PAGE, application
from hrseg_cli.recipe import load_protocol

TOKEN = "a-token"
HOST = "127.0.0.1:8017"
RED, BLUE = {"row": 30, "col": 30}, {"row": 70, "col": 100}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "shop", "a.png", "b.png")


def client_of(place: Path, **headers: str) -> TestClient:
    protocol = load_protocol("plain")
    desk = Desk(Folder(place, protocol.threshold), SameColour(), {}, protocol)
    client = TestClient(application(desk, TOKEN, [HOST]), f"http://{HOST}", raise_server_exceptions=False)
    client.headers.update({"authorization": f"Bearer {TOKEN}", **headers})
    return client


@pytest.fixture
def client(place: Path) -> Iterator[TestClient]:
    with client_of(place) as client:
        yield client


def post(client: TestClient, number: int = 0, **wish: Any) -> Any:
    wish.setdefault("revision", client.get(f"/api/images/{number}/revision").json()["revision"])
    return client.post(f"/api/images/{number}", json=wish)


# What the page needs


def test_the_page_is_whole_and_asks_nobody_else(client: TestClient) -> None:
    """No network, no inline code, nothing but what the server serves; every element that a script names is there."""
    texts = {path: client.get(path).text for path in PAGE}
    assert all(texts.values())
    for path in PAGE.keys() - {"/icon.svg"}:
        assert not re.search(r"https?://|//cdn|eval\(|innerHTML|onclick=\"| style=\"", texts[path]), path
    whole = "".join(texts.values())
    used = set(re.findall(r'(?:src|href)="([^"]+)"|(?:from|import) "\./([^"]+)"', whole))
    assert {f"/{a or b}" for a, b in used} == PAGE.keys() - {"/"}
    assert set(re.findall(r'\$\("([\w-]+)"\)', whole)) <= set(re.findall(r'id="([\w-]+)"', texts["/"]))
    headers = client.get("/").headers
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"


def test_the_list_of_images_and_an_image(client: TestClient) -> None:
    folder = client.get("/api/folder").json()
    assert folder["folder"] == "shop"
    assert folder["images"][1] == {"id": 1, "name": "images/b.png", "state": "todo", "labels": [], "spent": 0}
    answer = client.get("/api/images/1/pixels")
    assert answer.headers["content-type"] == "image/jpeg"
    seen = np.asarray(Image.open(io.BytesIO(answer.content)), int)
    assert np.abs(seen - photograph()).mean() < 2
    shown = client.get("/api/images/1").json()
    assert shown.pop("file")
    assert shown == {"revision": 0, "finished": False, "id": 1, "size": list(SIZE), "objects": []}


def test_a_session_of_clicks(client: TestClient, place: Path) -> None:
    made = post(client, do="click", **RED).json()
    assert made["revision"] == 1
    one = made["object"]
    assert (one["key"], one["clicks"], one["undo"], one["redo"]) == ("a_0", [[30, 30, 1]], 1, 0)
    assert one["mask"] == {"box": [20, 20, 40, 50], "runs": [0, 50] * 40}
    assert one["area"] == truth("red").sum()
    assert one["seconds"] > 0
    assert post(client, do="add").json()["order"] == ["a_0", "a_1"]
    assert post(client, do="rename", object="a_1", name="Stuhl ü").json()["object"]["name"] == "Stuhl ü"
    assert post(client, do="colour", object="a_1", colour=5).json()["object"]["colour"] == 5
    assert post(client, do="stroke", object="a_1", points=[[70, 100]], radius=4).json()["object"]["area"] > 40
    assert post(client, do="undo", object="a_1").json()["object"]["redo"] == 1
    assert post(client, do="redo", object="a_1").json()["object"]["area"] > 40
    assert post(client, do="threshold", object="a_0", threshold=0.7).json()["object"]["area"] == 2000
    assert post(client, do="delete", object="a_1").json()["order"] == ["a_0"]
    assert post(client, do="finish", finished=True).json()["finished"] is True
    assert client.get("/api/folder").json()["images"][0]["state"] == "done"
    with client_of(place) as again:
        shown = again.get("/api/images/0").json()
        assert shown["finished"] is True
        assert shown["objects"][0]["mask"] == one["mask"]
        assert shown["revision"] == client.get("/api/images/0/revision").json()["revision"]


def test_a_tab_that_is_behind_is_told(client: TestClient, place: Path) -> None:
    post(client, do="click", **RED)
    late = post(client, do="click", object="a_0", revision=0, **BLUE)
    assert late.status_code == 409
    assert "another tab" in late.json()["error"]
    assert np.array_equal(np.asarray(Image.open(place / "masks" / "a_0.png")) == 255, truth("red"))


# What others try


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (401, {"authorization": ""}),
        (401, {"authorization": "Bearer "}),
        (401, {"authorization": f"Bearer {TOKEN}x"}),
        (401, {"authorization": f"Bearer {TOKEN[:-1]}"}),
        (401, {"authorization": f"Basic {TOKEN}"}),
        (401, {"authorization": "Bearer \xff"}),
        (401, {"authorization": "", "cookie": f"token={TOKEN}"}),
        (403, {"host": "evil.example"}),
        (403, {"host": "127.0.0.1"}),
        (403, {"host": "127.0.0.1:8018"}),
        (403, {"host": "evil.example:8017"}),
        (403, {"origin": "http://evil.example"}),
        (403, {"origin": "null"}),
        (403, {"origin": "http://127.0.0.1:8018"}),
        (403, {"origin": f"https://{HOST}"}),
        (403, {"sec-fetch-site": "cross-site"}),
        (403, {"sec-fetch-site": "same-site"}),
    ],
)
def test_who_may_not_ask(place: Path, status: int, headers: dict[str, str]) -> None:
    with client_of(place) as client:
        client.headers.update({name: value.encode("latin-1") for name, value in headers.items()})  # type: ignore[dict-item]
        answers = [
            client.get("/api/folder"),
            client.get("/api/images/0"),
            client.get("/api/images/0/pixels"),
            client.get("/api/images/0/revision"),
            client.get("/api/images/0/preview?row=1&col=1&revision=0"),
            client.get("/api/export?kinds=coco"),
            client.post("/api/images/0", json={"do": "click", "revision": 0, **RED}),
            client.post("/api/images/0", content=b"x" * (BODY + 1)),
        ]
    assert {answer.status_code for answer in answers} == {status}
    assert not any("shop" in answer.text or "a.png" in answer.text for answer in answers)
    assert not (place / "masks").exists()


def test_the_own_page_may_ask(place: Path) -> None:
    for origin, site in [(f"http://{HOST}", "same-origin"), (f"http://{HOST}", "none")]:
        with client_of(place, origin=origin) as client:
            client.headers["sec-fetch-site"] = site
            assert client.get("/api/folder").status_code == 200


def test_a_header_sent_twice_counts_as_none(place: Path) -> None:
    with client_of(place) as client:
        twice = [("host", HOST), ("host", "evil.example"), ("authorization", f"Bearer {TOKEN}")]
        assert client.get("/api/folder", headers=twice).status_code == 403  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt", "/%2e%2e/secret.txt", "/..%2fsecret.txt", "/page/../server.py", "/server.py", "/app.js/x",
        "/api/images/../../secret.txt", "/api/images/%2e%2e%2fsecret.txt", "/api/images/..%5csecret.txt",
        "/api/images/0/../../secret.txt", "/api/images/a.png/pixels", "/api/images/-1/pixels", "/api/images/2/pixels",
        "/api/images/0/pixels/../../../secret.txt", "/api/images/99999999999999999999999999/pixels",
        "/api/images/0%00/pixels", "/api/images/٣/pixels", "//api/folder", "/api/folder/..",
    ],
)  # fmt: skip
def test_no_path_leads_out(client: TestClient, place: Path, path: str) -> None:
    (place.parent / "secret.txt").write_text("secret")
    (place / "secret.txt").write_text("secret")
    scope = {**client.headers, "host": HOST}
    answer = client.request("GET", f"http://{HOST}{path}", headers=scope)
    assert answer.status_code in (404, 405)
    assert "secret" not in answer.text


OUT = ["../a", "..", "/etc/passwd", "a_0/../../b", "a_0\x00", "masks/a_0", "~", "C:\\x", "a_0.png", ""]


@pytest.mark.parametrize("do", ["undo", "delete", "click", "rename", "stroke", "threshold", "colour"])
def test_no_name_of_an_object_leads_out(client: TestClient, place: Path, do: str) -> None:
    post(client, do="click", **RED)
    before = sorted(place.parent.rglob("*"))
    more = {
        "click": BLUE,
        "rename": {"name": "x"},
        "stroke": {"points": [[1, 1]], "radius": 2},
        "threshold": {"threshold": 0.3},
        "colour": {"colour": 1},
    }
    for key in OUT:
        assert post(client, do=do, object=key, **more.get(do, {})).status_code == 404, key
    assert sorted(place.parent.rglob("*")) == before


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "..", "<script>", "a" * 60, '"; rm', "\u202e"])
def test_a_name_is_only_a_name(client: TestClient, place: Path, name: str) -> None:
    post(client, do="click", **RED)
    before = sorted(place.parent.rglob("*"))
    assert post(client, do="rename", object="a_0", name=name).json()["object"]["name"] == name
    assert sorted(place.parent.rglob("*")) == before
    assert json.loads((place / "annotations" / "coco.json").read_text())["categories"][0]["name"] == name


CLICK = {"do": "click", "revision": 0, **RED}


MALFORMED = [
        b"", b"{", b"null", b"[]", b"\xff\xfe", b'"click"', b"[" * 100_000, b'{"do":' * 10_000, b"1e999",
        *[
            json.dumps(CLICK | change).encode()
            for change in (
                {"do": "format"}, {"do": None}, {"revision": "0"}, {"revision": 0.5}, {"row": "30"}, {"row": -1},
                {"row": 1.5}, {"row": float("nan")}, {"row": 10**30}, {"col": None}, {"col": True}, {"positive": 1},
                {"box": [1, 2, 3]}, {"box": "all"}, {"box": [1, 2, 3, float("inf")]}, {"more": 1}, {"object": 5},
                {"object": ["a"]},
                {"do": "stroke"},
            )
        ],
        *[
            json.dumps({"do": "stroke", "revision": 0, "points": [[1, 1]], "radius": 2} | change).encode()
            for change in (
                {"points": []}, {"points": [[1]]}, {"points": [[1, float("nan")]]}, {"points": [[1, 1]] * 5001},
                {"radius": 0}, {"radius": 1e9}, {"radius": float("inf")}, {"points": [["1", 1]]},
            )
        ],
        *[
            json.dumps({"revision": 0, "object": "a_0"} | change).encode()
            for change in (
                {"do": "rename", "name": ""}, {"do": "rename", "name": "a" * 61}, {"do": "rename", "name": "a\nb"},
                {"do": "rename", "name": "\x00"}, {"do": "colour", "colour": 8}, {"do": "colour", "colour": -1},
                {"do": "threshold", "threshold": 1}, {"do": "threshold", "threshold": float("nan")},
                {"do": "finish", "finished": "yes"}, {"do": "lock", "locked": 1}, {"do": "move", "to": -1},
                {"do": "shape", "how": "melt"}, {"do": "copy", "image": "0", "source": "a_0"},
                {"do": "outline", "rings": [[]]}, {"do": "outline", "rings": [[[1, float("inf")]]]},
                {"do": "scribble", "points": []}, {"do": "add", "label": "a\nb"}, {"do": "add", "spent": -1},
                {"do": "add", "ident": "a" * 41},
            )
        ],
]  # fmt: skip


def test_malformed_bodies_are_answered_400(client: TestClient, place: Path) -> None:
    for body in MALFORMED:
        answer = client.post("/api/images/0", content=body)
        assert answer.status_code == 400, body[:200]
        assert answer.json()["error"].startswith("invalid request")
        assert len(answer.text) < 500
    assert not (place / "masks").exists()


def test_previews_and_exports_are_asked_for_properly(client: TestClient, place: Path) -> None:
    post(client, do="click", **RED)
    shown = client.get("/api/images/0/preview?row=70&col=100&revision=1&object=a_0&positive=1")
    assert shown.json()["box"] == [20, 20, 80, 130]
    for wish in ("row=70&col=100", "row=x&col=1&revision=1", "row=-1&col=1&revision=1"):
        assert client.get(f"/api/images/0/preview?{wish}").status_code == 400
    assert client.get("/api/images/0/preview?row=120&col=1&revision=1").status_code == 422
    assert client.get("/api/images/0/preview?row=1&col=1&revision=0").status_code == 409
    assert client.get("/api/export?kinds=coco,../x").headers["content-type"] == "application/zip"
    assert client.get("/api/export?kinds=../x").status_code == 400
    assert sorted(path.name for path in place.iterdir()) == ["annotations", "images", "masks"]


def test_a_name_that_is_not_utf8_cannot_be_stored(client: TestClient) -> None:
    post(client, do="click", **RED)
    answer = client.post("/api/images/0", content=b'{"do":"rename","revision":1,"object":"a_0","name":"\\ud800"}')
    assert answer.status_code == 400


def test_large_bodies_are_not_read(client: TestClient) -> None:
    assert client.post("/api/images/0", content=b" " * (BODY + 1)).status_code == 413
    assert client.post("/api/images/0", content=b" " * BODY).status_code == 400

    answer = client.post("/api/images/0", content=b"{}", headers={"content-length": "-1"})
    assert answer.status_code == 413
    assert client.post("/api/images/0", content=b"{}", headers={"content-length": "9" * 5000}).status_code == 413


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
def test_other_methods_do_nothing(client: TestClient, method: str) -> None:
    for path in ("/", "/api/folder", "/api/images/0", "/api/images/0/pixels", "/api/export"):
        assert client.request(method, path).status_code == 405


# Files that are traps


def bomb(rows: int, cols: int) -> bytes:
    """A PNG whose header promises so many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", cols, rows, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def test_bombs_and_broken_images_are_a_line_and_the_rest_goes_on(tmp_path: Path) -> None:
    place = folder_of(tmp_path / "shop", "good.png")
    (place / "images" / "bomb.png").write_bytes(bomb(30000, 30000))
    (place / "images" / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 torn")
    (place / "images" / "page.png").write_bytes(b"<svg onload='alert(1)'/>")
    with client_of(place) as client:
        names = [image["name"] for image in client.get("/api/folder").json()["images"]]
        assert len(names) == 4
        for name in ("images/bomb.png", "images/torn.jpg", "images/page.png"):
            number = names.index(name)
            for answer in (
                client.get(f"/api/images/{number}"),
                client.get(f"/api/images/{number}/pixels"),
                post(client, number, do="click", **RED),
            ):
                assert answer.status_code == 422
                assert name in answer.json()["error"]
        assert "megapixels" in client.get(f"/api/images/{names.index('images/bomb.png')}").json()["error"]
        assert post(client, names.index("images/good.png"), do="click", **RED).status_code == 200


def test_masks_that_are_traps(tmp_path: Path) -> None:
    """Of another size, broken, or a bomb: the object is shown with its error, others are worked on, the files stay."""
    place = folder_of(tmp_path / "shop", "a.png")
    (place / "masks").mkdir()
    (place / "masks" / "a_0.png").write_bytes(bomb(40000, 20000))
    (place / "masks" / "a_1.png").write_bytes(b"torn")
    Image.fromarray(truth("red")[:50]).save(place / "masks" / "a_2.png")
    before = {path: path.read_bytes() for path in (place / "masks").iterdir()}
    with client_of(place) as client:
        objects = client.get("/api/images/0").json()["objects"]
        assert all("masks/a_" in one["error"] for one in objects)
        for one in objects:
            assert post(client, do="click", object=one["key"], **RED).status_code == 422
        assert post(client, do="click", **RED).json()["object"]["key"] == "a_3"
    assert before.items() <= {path: path.read_bytes() for path in (place / "masks").iterdir()}.items()


@pytest.mark.parametrize(
    ("file", "told", "mask"),
    [
        ("images/a.json", "your last change is not saved", truth("red")),
        ("coco.json", "your change is saved, but this file is not updated", truth("red") | truth("blue")),
    ],
)
def test_a_full_disk_is_told_and_what_it_has_cost(
    client: TestClient, place: Path, file: str, told: str, mask: np.ndarray
) -> None:
    """A change is made as a whole or not at all; what only repeats it may be behind."""
    post(client, do="click", **RED)
    full = place / "annotations" / file
    full.unlink()
    full.mkdir()  # as good as a full disk: it cannot be replaced
    answer = post(client, do="click", object="a_0", **BLUE)
    assert answer.status_code == 507
    assert answer.json()["error"].startswith(f"{full}: ")
    assert answer.json()["error"].endswith(told)
    assert np.array_equal(np.asarray(Image.open(place / "masks" / "a_0.png")) == 255, mask)
    full.rmdir()
    assert post(client, do="undo", object="a_0").status_code == 200
    assert full.is_file()


# Many at once


def test_a_hundred_clicks_at_once(place: Path) -> None:
    """One of those with the same revision wins, others are told or turned away; each image's file is whole."""
    with client_of(place) as client, ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(lambda n: client.post(f"/api/images/{n % 2}", json=CLICK), range(100)))
        counts = Counter(answer.status_code for answer in answers)
        assert counts[200] == 2
        assert counts.keys() <= {200, 409, 503}
        for number, name in enumerate("ab"):
            shown = client.get(f"/api/images/{number}").json()
            assert shown["revision"] == 1
            assert len(shown["objects"]) == 1
            assert np.array_equal(np.asarray(Image.open(place / "masks" / f"{name}_0.png")) == 255, truth("red"))
        assert post(client, do="undo", object="a_0").status_code == 200


def test_images_that_nobody_waits_for_are_not_made(place: Path) -> None:
    """Who leafs through large images sees the last one at once."""
    protocol = load_protocol("plain")
    desk = Desk(Folder(place, protocol.threshold), SameColour(), {}, protocol)
    made: list[int] = []
    pixels = desk.pixels

    def slow(number: int) -> bytes:
        made.append(number)
        time.sleep(0.3)
        return pixels(number)

    desk.pixels = slow  # type: ignore[method-assign]
    with socket.create_server(("127.0.0.1", 0)) as ear:
        at = ear.getsockname()
        app = application(desk, TOKEN, [f"127.0.0.1:{at[1]}"])
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off", ws="none"))
        thread = threading.Thread(target=server.run, args=([ear],))
        thread.start()
        head = f"Host: 127.0.0.1:{at[1]}\r\nAuthorization: Bearer {TOKEN}\r\nConnection: close\r\n\r\n"
        for _ in range(20):
            with socket.create_connection(at, timeout=30) as line:
                line.sendall(f"GET /api/images/0/pixels HTTP/1.1\r\n{head}".encode())
        with socket.create_connection(at, timeout=30) as line:
            line.sendall(f"GET /api/images/1/pixels HTTP/1.1\r\n{head}".encode())
            answer = b"".join(iter(lambda: line.recv(65536), b""))
        server.should_exit = True
        thread.join()
    assert answer.startswith(b"HTTP/1.1 200")
    assert made[-1] == 1
    assert len(made) <= 3


# Refining


def test_refine_is_an_action_that_can_be_undone(place: Path) -> None:
    """And is repeated when the folder is opened again."""
    protocol = load_protocol("plain", ["refine.name=guided_filter", "refine.options.radius=9", "refine.when=last"])

    def opened() -> TestClient:
        desk = Desk(Folder(place, protocol.threshold), SameColour(), {}, protocol)
        client = TestClient(application(desk, TOKEN, [HOST]), f"http://{HOST}", raise_server_exceptions=False)
        client.headers.update({"authorization": f"Bearer {TOKEN}"})
        return client

    client = opened()
    assert client.get("/api/folder").json()["refiner"] == "guided_filter"
    key = post(client, do="click", **RED).json()["object"]["key"]
    for _ in range(3):  # beyond the red square
        grown = post(client, object=key, do="shape", how="grow").json()["object"]
    refined = post(client, object=key, do="refine").json()["object"]
    assert refined["mask"] != grown["mask"]
    assert refined["undo"] == 5
    undone = post(client, object=key, do="undo").json()["object"]
    assert (undone["mask"], undone["redo"]) == (grown["mask"], 1)
    client = opened()
    assert post(client, object=key, do="redo").json()["object"]["mask"] == refined["mask"]
    (trace,) = map(json.loads, (place / "annotations" / "traces.jsonl").read_text().splitlines())
    assert trace["notes"]["edits"] == 4


def test_without_a_refiner_nothing_is_refined(client: TestClient) -> None:
    assert client.get("/api/folder").json()["refiner"] == ""
    key = post(client, do="click", **RED).json()["object"]["key"]
    answer = post(client, object=key, do="refine")
    assert (answer.status_code, answer.json()["error"].partition(";")[0]) == (422, "the protocol has no refiner")
    assert client.get("/api/images/0").json()["objects"][0]["undo"] == 1


@pytest.mark.parametrize("number", ["9" * 4300, "9" * 5000, "٣", "1e0", "-1", "%00"])
def test_an_odd_number_of_an_image_is_no_image(client: TestClient, number: str) -> None:
    assert client.get(f"/api/images/{number}").status_code == 404


def test_a_request_that_is_never_finished_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a header and half a body; a hundred of them were kept for ever."""
    monkeypatch.setattr(server, "PATIENCE", 0.2)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass

    async def wait_for_the_end(text: bytes) -> bytes:
        config = uvicorn.Config(app, lifespan="off", log_level="critical")
        config.load()
        loop = asyncio.get_running_loop()
        ear = await loop.create_server(lambda: server._Protocol(config, ServerState(), {}), "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*ear.sockets[0].getsockname())
        writer.write(text)
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        ear.close()
        return answer

    for text in (b"", b"GET / HTTP/1.1\r\nHost: x", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nab"):
        assert asyncio.run(wait_for_the_end(text)) == b""
