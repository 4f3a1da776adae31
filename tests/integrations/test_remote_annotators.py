"""Label Studio and CVAT as they call: requests built by hand from their documentation, through the servers."""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import io
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from PIL import Image
from reference import FakeNetwork, case

from hrseg_cli.engine.remote import Remote, decode_image
from hrseg_cli.engine.session import Session
from hrseg_cli.errors import HrsegError
from hrseg_cli.interaction import Click
from hrseg_cli.recipe import load_protocol

HERE = Path(__file__).resolve().parents[2] / "integrations"
IMAGE, TRUTH = case(0)
HEIGHT, WIDTH = TRUTH.shape


def load(path: Path) -> ModuleType:
    """A file outside of the package, found as its program finds it: beside its neighbours."""
    sys.path.insert(0, str(path.parent))
    try:
        spec = importlib.util.spec_from_file_location(f"integration_{path.stem}", path)
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(path.parent))


BRUSH = load(HERE / "label_studio" / "brush.py")
BACKEND = load(HERE / "label_studio" / "backend.py")
CVAT = load(HERE / "cvat" / "main.py")
CONFIG = (HERE / "label_studio" / "labels.xml").read_text()


@pytest.fixture
def remote() -> Remote:
    return Remote(FakeNetwork(), load_protocol("photo"))


@pytest.fixture(scope="module")
def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(IMAGE).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def images(tmp_path: Path, png: bytes) -> Path:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(png)
    (tmp_path / "secret.png").write_bytes(png)
    return tmp_path / "in"


def straight(*clicks: Click) -> np.ndarray:
    session = Session(FakeNetwork(), IMAGE, load_protocol("photo"))
    for click in clicks:
        session.click(click)
    return session.mask


# Label Studio


class Client:
    """Requests to a server that runs in this process, without a socket."""

    def __init__(self, app: Any) -> None:
        self.app = app

    def ask(self, method: str, path: str, **body: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://hrseg") as client:
                return await client.request(method, path, **body)

        return asyncio.run(send())


def point(row: int, col: int, label: str = "Object", **more: Any) -> dict[str, Any]:
    """A smart key point as Label Studio sends it; the middle of the pixel, in percent."""
    value = {"x": 100 * (col + 0.5) / WIDTH, "y": 100 * (row + 0.5) / HEIGHT, "width": 0.3, "keypointlabels": [label]}
    return {
        "id": "Wm7xQ",
        "from_name": "point",
        "to_name": "image",
        "type": "keypointlabels",
        "original_width": WIDTH,
        "original_height": HEIGHT,
        "image_rotation": 0,
        "value": value,
        **more,
    }


def request(*hints: dict[str, Any], url: str = "/data/local-files/?d=a.png") -> dict[str, Any]:
    return {
        "tasks": [{"id": 17, "data": {"image": url}, "annotations": [], "predictions": []}],
        "project": "3.1700000000",
        "label_config": CONFIG,
        "params": {"login": None, "password": None, "context": {"result": list(hints)} if hints else None},
    }


@pytest.mark.parametrize("seed", range(4))
def test_brush_lengths_round_trip(seed: int) -> None:
    random = np.random.default_rng(seed)
    shape = [(1, 1), (7, 5), (61, 83), (300, 401)][seed]  # the last has runs that are longer than a count can be
    mask = random.random(shape) < (0.5 if seed < 3 else 0.0001)
    assert (BRUSH.decode(BRUSH.encode(mask), *shape) == mask).all()
    for whole in (np.zeros(shape, bool), np.ones(shape, bool)):
        assert (BRUSH.decode(BRUSH.encode(whole), *shape) == whole).all()


def test_brush_lengths_to_the_bit() -> None:
    """Two pixels, clear and set, put together by hand from the format's description."""
    header = f"{8:032b}" + f"{7:05b}" + "".join(f"{n:04b}" for n in (2, 3, 7, 15))
    bits = header + "1" + "00" + "011" + "00000000" + "1" + "00" + "011" + "11111111"
    bits += "0" * (-len(bits) % 8)
    wanted = [int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)]
    assert BRUSH.encode(np.array([[False, True]])) == wanted
    literal = header + "0" + "00" + "111" + "00000000" * 4 + "11111111" * 4  # Label Studio may write values one by one
    literal += "0" * (-len(literal) % 8)
    packed = [int(literal[at : at + 8], 2) for at in range(0, len(literal), 8)]
    assert BRUSH.decode(packed, 1, 2).tolist() == [[False, True]]


def test_label_studio_gets_a_brush_for_its_points(remote: Remote, images: Path) -> None:
    client = Client(BACKEND.app_of(remote, "hrseg test", images))
    assert client.ask("GET", "/health").json()["status"] == "UP"
    asked = {"project": "3.17", "schema": CONFIG, "hostname": "http://localhost:8080", "access_token": "t"}
    assert client.ask("POST", "/setup", json=asked).json() == {"model_version": "hrseg test"}
    assert client.ask("POST", "/predict", json=request()).json()["results"] == [
        {"result": [], "score": 0.0, "model_version": "hrseg test"}
    ]

    clicks = [Click(120, 160, True), Click(60, 280, False)]
    body = client.ask("POST", "/predict", json=request(point(120, 160), point(60, 280, "Background"))).json()
    (region,) = body["results"][0]["result"]
    assert (region["type"], region["from_name"], region["to_name"]) == ("brushlabels", "brush", "image")
    assert (region["original_width"], region["original_height"]) == (WIDTH, HEIGHT)
    assert region["value"]["brushlabels"] == ["Object"]
    assert region["value"]["format"] == "rle"
    mask = BRUSH.decode(region["value"]["rle"], HEIGHT, WIDTH)
    assert (mask == straight(*clicks)).all()
    assert mask.any()

    alt = client.ask("POST", "/predict", json=request(point(120, 160), point(60, 280, is_positive=False))).json()
    assert alt["results"][0]["result"][0]["value"]["rle"] == region["value"]["rle"]


def test_label_studios_box_holds_the_mask(remote: Remote, images: Path) -> None:
    box = point(0, 0)
    box.update(type="rectanglelabels", from_name="box")
    box["value"] = {"x": 25, "y": 25, "width": 25, "height": 50, "rotation": 0, "rectanglelabels": ["Object"]}
    client = Client(BACKEND.app_of(remote, "", images))
    (region,) = client.ask("POST", "/predict", json=request(box)).json()["results"][0]["result"]
    mask = BRUSH.decode(region["value"]["rle"], HEIGHT, WIDTH)
    rows, cols = np.nonzero(mask)
    assert len(rows)
    assert HEIGHT // 4 <= rows.min() <= rows.max() <= 3 * HEIGHT // 4
    assert WIDTH // 4 <= cols.min() <= cols.max() <= WIDTH // 2


@pytest.mark.parametrize(
    "url",
    [
        "/data/local-files/?d=../secret.png",
        "/data/local-files/?d=/etc/hostname",
        "/data/local-files/?d=absent.png",
        "/data/local-files/",
        "file:///etc/hostname",
        "http://127.0.0.1:1/latest/meta-data",
        "//127.0.0.1:1/a.png",
        "/data/upload/1/a.png",
        "data:image/png;base64,AAAA",
        "data:image/png;base64,?",
    ],
)
def test_a_task_opens_nothing_else(url: str, remote: Remote, images: Path) -> None:
    """Who may write tasks must not read this machine's files or talk to its neighbours."""
    client = Client(BACKEND.app_of(remote, "", images, "http://studio.invalid:8080" if "upload" not in url else ""))
    found = client.ask("POST", "/predict", json=request(point(5, 5), url=url))
    assert found.status_code == 400
    assert "\n" not in found.json()["error"]


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"{}", b'{"tasks": 3, "label_config": ""}',
        json.dumps({**request(point(1, 1)), "label_config": "<View/>"}).encode(),
        json.dumps({**request(point(1, 1)), "label_config": "<View"}).encode(),
        json.dumps({**request(point(1, 1)), "tasks": [{"id": 1}]}).encode(),
        json.dumps(request({**point(1, 1), "value": {"x": "far"}})).encode(),
    ],
)  # fmt: skip
def test_label_studios_bad_requests_are_told_apart(body: bytes, remote: Remote, images: Path) -> None:
    client = Client(BACKEND.app_of(remote, "", images))
    assert client.ask("POST", "/predict", content=body).status_code == 400


def test_one_more_point_costs_one_more_answer(png: bytes) -> None:
    """They send all points every time; the session behind them goes on, and back, with undo."""

    class Counting(FakeNetwork):
        asked = 0

        def forward(self, image: Any, points: Any) -> Any:
            self.asked += 1
            return super().forward(image, points)

    network = Counting()
    remote = Remote(network, load_protocol("photo", ["flip=false"]), keep=1)
    a, b, c = Click(120, 160, True), Click(60, 280, False), Click(60, 150, True)
    reads: list[int] = []

    def read() -> np.ndarray:
        reads.append(1)
        return decode_image(png)

    first = remote.mask("k", read, [a, b])
    assert network.asked == 2
    remote.mask("k", read, [a, b, c])
    assert network.asked == 3
    assert (remote.mask("k", read, [a, b]) == first).all()
    assert network.asked == 3
    assert len(reads) == 1
    remote.mask("other", read, [a])
    remote.mask("k", read, [a])
    assert len(reads) == 3  # one image is kept, as asked


def test_an_image_bomb_is_not_unpacked(monkeypatch: pytest.MonkeyPatch, png: bytes) -> None:
    monkeypatch.setattr("hrseg_cli.engine.remote.MAX_PIXELS", HEIGHT * WIDTH - 1)
    with pytest.raises(HrsegError, match=r"the image: 320x240 exceeds the limit of .* make it smaller"):
        decode_image(png)


# CVAT


def call(remote: Remote, body: Any) -> tuple[int, Any]:
    context = SimpleNamespace(
        user_data=SimpleNamespace(remote=remote),
        Response=lambda body, headers, content_type, status_code: (status_code, json.loads(body)),
    )
    return CVAT.handler(context, SimpleNamespace(body=body))


def test_cvat_gets_a_mask_and_an_outline(remote: Remote, png: bytes) -> None:
    body = {
        "image": base64.b64encode(png).decode(),
        "pos_points": [[160, 120]],
        "neg_points": [[280, 60]],
        "obj_bbox": None,
    }
    status, found = call(remote, body)
    assert status == 200
    mask = np.array(found["mask"])
    assert mask.shape == (HEIGHT, WIDTH)
    assert (mask == straight(Click(120, 160, True), Click(60, 280, False))).all()
    assert set(np.unique(mask)) == {0, 1}
    assert len(found["points"]) > 2
    xs, ys = np.array(found["points"]).T
    assert 0 <= xs.min() <= xs.max() <= WIDTH
    assert 0 <= ys.min() <= ys.max() <= HEIGHT
    assert call(remote, json.dumps(body).encode()) == (status, found)


def test_cvat_may_start_with_a_box(remote: Remote, png: bytes) -> None:
    body = {
        "image": base64.b64encode(png).decode(),
        "pos_points": [],
        "neg_points": [],
        "obj_bbox": [[90, 50], [230, 190]],
    }
    status, found = call(remote, body)
    assert status == 200
    rows, cols = np.nonzero(found["mask"])
    assert 50 <= rows.min() <= rows.max() <= 190
    assert 90 <= cols.min() <= cols.max() <= 230


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"image": "AAAA", "pos_points": [[1, 1]]},
        {"image": "AAAA"},
        "no json",
        {"image": "AAAA", "pos_points": [[1]]},
    ],
)
def test_cvats_bad_requests_are_answered(body: Any, remote: Remote) -> None:
    status, found = call(remote, body)
    assert status == 400
    assert found["error"]


def test_cvats_function_is_what_its_file_says() -> None:
    function = yaml.safe_load((HERE / "cvat" / "function.yaml").read_text())
    annotations = function["metadata"]["annotations"]
    assert annotations["type"] == "interactor"
    assert {"name", "version", "spec", "min_pos_points", "min_neg_points", "help_message"} <= annotations.keys()
    module, name = function["spec"]["handler"].split(":")
    assert (HERE / "cvat" / f"{module}.py").is_file()
    assert callable(getattr(CVAT, name))
    assert callable(CVAT.init_context)
