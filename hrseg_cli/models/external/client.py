"""Asks a server for masks. The server need not be trusted: its answers are bounded, and parsed as JSON and PNG only."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import re
from collections.abc import Sequence
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from hrseg_cli import __version__
from hrseg_cli.errors import HrsegError
from hrseg_cli.limits import SETTINGS
from hrseg_cli.parsing import parse_json, reason

HERE = ("127.0.0.1", "localhost", "::1")
HOSTS = "HRSEG_MODEL_HOSTS"  # environment variable: other hosts that may be asked, separated by commas
VERSION = 1  # of the requests
SECONDS = 600.0  # to wait for an answer


class Client:
    """A server at a URL. Only this machine and hosts named in :data:`HOSTS` are asked; redirects are not followed."""

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            host, port = "", None
        if not host or port is None or parts.query or parts.fragment or parts.username:
            raise HrsegError(f"`model` {url[:100]}: give http://127.0.0.1:PORT")
        if not re.fullmatch("[!-~]+", url):
            raise HrsegError(
                f"`model` {url[:100]}: contains spaces or non-ASCII characters; percent-encode them, such as %20"
            )
        if host not in (*HERE, *filter(None, os.environ.get(HOSTS, "").split(","))):
            raise HrsegError(
                f"`model` {url}: {host} is not this machine; to send your images there, set {HOSTS}={host}"
            )
        self.host, self.port, self.path = host, port, parts.path or "/"

    def about(self) -> dict[str, str]:
        """What the server says about itself: "model", and possibly "version". Raises HrsegError."""
        try:
            found = parse_json(self._ask("GET", None, SETTINGS.bytes), SETTINGS)
            if found["hrseg"] != VERSION:
                raise ValueError(f"requests of version {found['hrseg']}, not {VERSION}")
            return {key: str(found[key])[:200] for key in ("model", "version") if key in found}
        except (ValueError, KeyError, TypeError) as error:
            raise HrsegError(
                f"`model` {self.url}: not a server of a click model ({reason(error)}); see docs/external_models.md"
            ) from None

    def mask(self, image: np.ndarray, previous: np.ndarray, clicks: Sequence[tuple[float, float, bool]]) -> np.ndarray:
        """The probabilities of a mask, float32 (H, W); arguments as for ``External``. Raises HrsegError."""
        height, width = previous.shape
        asked = {
            "hrseg": VERSION,
            "image": _png(image),
            "previous": _png((previous * 255).round().astype(np.uint8)) if previous.any() else None,
            "clicks": [[row, col, int(positive)] for row, col, positive in clicks],
        }
        answer = self._ask("POST", json.dumps(asked).encode(), 2 * height * width + (1 << 16))
        try:
            with Image.open(io.BytesIO(answer), formats=["PNG"]) as picture:
                if picture.size != (width, height) or picture.mode not in ("L", "1"):
                    raise ValueError(f"{picture.mode} {picture.size}, not L {(width, height)}")
                return np.asarray(picture.convert("L"), np.float32) / 255
        except Exception as error:  # Pillow raises nearly anything
            raise HrsegError(
                f"`model` {self.url}: its answer is not a grey PNG of the image's size ({reason(error)[:100]}); see "
                "docs/external_models.md"
            ) from None

    def _ask(self, method: str, body: bytes | None, most: int) -> bytes:
        headers = {"User-Agent": f"hrseg/{__version__}", **({"Content-Type": "application/json"} if body else {})}
        connection = http.client.HTTPConnection(self.host, self.port, timeout=SECONDS)
        try:
            connection.request(method, self.path, body, headers)
            with connection.getresponse() as response:
                answer = response.read(most + 1)
        except (OSError, http.client.HTTPException) as error:
            raise HrsegError(f"`model` {self.url}: no answer ({reason(error)}); start the server first") from None
        finally:
            connection.close()
        if response.status != 200:
            text = " ".join(answer[:200].decode("utf-8", "replace").split())
            raise HrsegError(f"`model` {self.url}: HTTP {response.status} {text}; look at the server's output")
        if len(answer) > most:
            raise HrsegError(f"`model` {self.url}: an answer of more than {most:,} bytes; send an 8-bit PNG")
        return answer


def _png(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return base64.b64encode(file.getvalue()).decode()
