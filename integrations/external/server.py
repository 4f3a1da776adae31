"""Serves a Python function as a click model for ``hrseg --model http://127.0.0.1:PORT``, with the standard library,
NumPy and Pillow only, so that it also runs where hrseg is not installed.

    python server.py my_module:my_function --port 8000

my_function(image, previous, clicks) gets uint8 (H, W, 3), float32 (H, W) in [0, 1] (zeros: none) and a list of (row,
col, positive), and returns probabilities (H, W) in [0, 1] or a bool mask.
"""

from __future__ import annotations

import argparse
import base64
import importlib
import io
import json
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

MOST = 1 << 30  # bytes of a request


def handler(answer: Callable[..., Any], name: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(json.dumps({"hrseg": 1, "model": name}).encode(), "application/json")

        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            if length > MOST:
                self.send_error(413)
                return
            asked = json.loads(self.rfile.read(length))
            image = np.asarray(pixels(asked["image"]).convert("RGB"))
            given = asked["previous"]
            previous = np.asarray(pixels(given), np.float32) / 255 if given else np.zeros(image.shape[:2], np.float32)
            clicks = [(row, col, bool(positive)) for row, col, positive in asked["clicks"]]
            mask = np.asarray(answer(image, previous, clicks), np.float32)
            file = io.BytesIO()
            Image.fromarray((mask * 255).round().astype(np.uint8)).save(file, "PNG")
            self.reply(file.getvalue(), "image/png")

        def reply(self, body: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    return Handler


def pixels(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)), formats=["PNG"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("function", metavar="MODULE:FUNCTION")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    sys.path.insert(0, str(Path.cwd()))
    module, _, name = options.function.partition(":")
    server = HTTPServer(
        ("127.0.0.1", options.port), handler(getattr(importlib.import_module(module), name), options.function)
    )
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
