"""The annotation page under the real server, and what a hand does on it in the system's Chromium."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from PIL import Image
from tiny_photos import SameColour

from hrseg_cli.annotate.desk import Desk
from hrseg_cli.annotate.folder import Folder
from hrseg_cli.annotate.server import application
from hrseg_cli.recipe import load_protocol

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


class Served:
    """A folder under the real server; start() again is what a restart is. delay: seconds that each answer and each
    image takes longer."""

    def __init__(self, place: Path) -> None:
        self.place, self.delay, self.port = place, 0.0, 0
        self.free = threading.Event()
        self.free.set()
        self.start()

    def late(self, answer: Callable[..., Any]) -> Callable[..., Any]:
        def wait(*arguments: Any) -> Any:
            time.sleep(self.delay)
            self.free.wait(30)
            return answer(*arguments)

        return wait

    def hold(self) -> None:
        """Answer nothing until release()."""
        self.free.clear()

    def release(self) -> None:
        self.free.set()

    def start(self, again: bool = False, token: str = "a-token") -> None:
        """again: at the same address."""
        protocol = load_protocol("plain")
        desk = Desk(Folder(self.place, protocol.threshold), SameColour(), {}, protocol)
        desk.act, desk.pixels = self.late(desk.act), self.late(desk.pixels)  # type: ignore[method-assign]
        ear = socket.socket()
        ear.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        ear.bind(("127.0.0.1", self.port if again else 0))
        ear.listen()
        self.port = ear.getsockname()[1]
        app = application(desk, token, [f"127.0.0.1:{self.port}"])
        self.server = uvicorn.Server(
            uvicorn.Config(app, log_level="warning", lifespan="off", ws="none", timeout_graceful_shutdown=1)
        )
        self.thread = threading.Thread(target=self.server.run, args=([ear],))
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.port}/#{token}"

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join()

    def record(self, stem: str = "a") -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.place / "annotations" / "images" / f"{stem}.json").read_text())
        return found

    def mask(self, key: str) -> np.ndarray:
        return np.asarray(Image.open(self.place / "masks" / f"{key}.png")) == 255


class Tab:
    """A page and what a hand does on it, in pixels of the image."""

    def __init__(self, context: Any, url: str) -> None:
        self.page = context.new_page()
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda line: line.type == "error" and self.errors.append(line.text))
        self.page.goto(url)
        self.ready()

    def ready(self) -> None:
        self.page.wait_for_selector("#overlay[data-scale]")
        self.page.wait_for_selector("#empty", state="hidden")
        self.idle()

    def idle(self) -> None:
        """Answered, and drawn."""
        self.page.wait_for_selector('body[data-busy="0"]')
        self.drawn()

    def drawn(self) -> None:
        self.page.evaluate(
            "() => new Promise(done => { setTimeout(done, 500);"
            " requestAnimationFrame(() => requestAnimationFrame(done)); })"
        )

    def at(self, place: tuple[float, float]) -> tuple[float, float]:
        scale, x, y = self.page.evaluate(
            "() => { const o = document.getElementById('overlay'), q = o.getBoundingClientRect();"
            " return [+o.dataset.scale, q.x + +o.dataset.x, q.y + +o.dataset.y]; }"
        )
        return x + (place[1] + 0.5) * scale, y + (place[0] + 0.5) * scale

    def click(self, place: tuple[float, float], button: str = "left") -> None:
        self.page.mouse.click(*self.at(place), button=button)
        self.idle()

    def drag(self, *places: tuple[float, float], button: str = "left") -> None:
        self.page.mouse.move(*self.at(places[0]))
        self.page.mouse.down(button=button)
        for place in places[1:]:
            self.page.mouse.move(*self.at(place), steps=3)
        self.page.mouse.up(button=button)
        self.idle()

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)
            self.idle()

    def colour(self, place: tuple[float, float]) -> list[int]:
        """Red, green, blue and alpha of the glass over the picture."""
        x, y = self.at(place)
        found: list[int] = self.page.evaluate(
            "([x, y]) => { const o = document.getElementById('overlay'), q = o.getBoundingClientRect();"
            " const d = o.width / q.width;"
            " return [...o.getContext('2d').getImageData((x - q.x) * d, (y - q.y) * d, 1, 1).data]; }",
            [x, y],
        )
        return found

    def text(self, selector: str) -> str:
        return str(self.page.inner_text(selector))
