"""Label Studio's ML backend over HTTP: smart key points in, brush masks out.

    GET  /health                                         {"status": "UP"}
    POST /setup    {"project", "schema", ...}            {"model_version"}
    POST /predict  {"tasks", "label_config", "params"}   {"results": [{"result", "score", "model_version"}], ...}

Settings come from the environment: HRSEG_MODEL (a checkpoint, a model's name, BASE+ADAPTER or an .onnx file),
HRSEG_RUNTIME, HRSEG_IMAGES (the folder of Label Studio's local files), LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY (for
uploaded images).
"""

from __future__ import annotations

import base64
import json
import os
import uuid
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urljoin, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener
from xml.etree import ElementTree

import brush
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request as Asked
from starlette.responses import JSONResponse
from starlette.routing import Route

from hrseg_cli import __version__
from hrseg_cli.catalog import DEFAULT_MODEL
from hrseg_cli.engine.remote import Remote, decode_image
from hrseg_cli.engine.runtimes import open_model
from hrseg_cli.errors import HrsegError
from hrseg_cli.interaction import Click
from hrseg_cli.recipe import load_protocol

MAX_BYTES = 64 * 2**20
NEGATIVE = ("background", "negative")  # labels whose key points say what is not the object


def create_app() -> Starlette:
    """The server of the environment's settings."""
    model, provenance = open_model(os.environ.get("HRSEG_MODEL", DEFAULT_MODEL), os.environ.get("HRSEG_RUNTIME"))
    version = f"hrseg {__version__} {provenance['name']} {provenance.get('sha256', '')[:12]}".strip()
    images = os.environ.get("HRSEG_IMAGES")
    return app_of(
        Remote(model, load_protocol("photo")),
        version,
        Path(images) if images else None,
        os.environ.get("LABEL_STUDIO_URL", ""),
        os.environ.get("LABEL_STUDIO_API_KEY", ""),
    )


def app_of(remote: Remote, version: str, images: Path | None, host: str = "", token: str = "") -> Starlette:
    """The server. images: where local files are looked for. host, token: the Label Studio that uploads lie on."""

    def health(_: Asked) -> JSONResponse:
        return JSONResponse({"status": "UP", "model_version": version})

    def setup(_: Asked) -> JSONResponse:
        return JSONResponse({"model_version": version})

    async def predict(asked: Asked) -> JSONResponse:
        try:
            body = json.loads(await _read(asked))
            tasks, config = list(body["tasks"]), str(body["label_config"])
            hints = ((body.get("params") or {}).get("context") or {}).get("result") or []
        except (ValueError, KeyError, TypeError, AttributeError):
            return JSONResponse({"error": "not a request of Label Studio: tasks and label_config are needed"}, 400)
        try:
            found = [await run_in_threadpool(answer, task, config, hints) for task in tasks]
        except HrsegError as error:
            return JSONResponse({"error": str(error)}, 400)
        except (KeyError, ValueError, TypeError, IndexError, AttributeError, ElementTree.ParseError) as error:
            return JSONResponse({"error": f"the request cannot be read ({type(error).__name__}: {error})"}, 400)
        results = [{"result": one, "score": 1.0 if one else 0.0, "model_version": version} for one in found]
        return JSONResponse({"results": results, "model_version": version})

    def answer(task: dict[str, Any], config: str, hints: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if not hints:  # Label Studio asks for masks before anything is clicked, too
            return []
        from_name, to_name, field, labels = tags_of(config)
        url = str(task["data"][field])
        height, width = int(hints[0]["original_height"]), int(hints[0]["original_width"])
        clicks, box, label = clicks_of(hints, height, width)
        if not clicks and box is None:
            return []
        mask = remote.mask(f"{url} {label}", lambda: decode_image(fetch(url, images, host, token)), clicks, box)
        if mask.shape != (height, width):
            raise HrsegError(
                f"{url} has {mask.shape[::-1]} pixels, Label Studio shows {(width, height)}; send it upright"
            )
        return [
            {
                "id": uuid.uuid4().hex[:10],
                "from_name": from_name,
                "to_name": to_name,
                "type": "brushlabels",
                "origin": "manual",
                "readonly": False,
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "value": {
                    "format": "rle",
                    "rle": brush.encode(mask),
                    "brushlabels": [label if label in labels else labels[0]],
                },
            }
        ]

    return Starlette(
        routes=[
            Route("/", health),
            Route("/health", health),
            Route("/setup", setup, methods=["POST"]),
            Route("/predict", predict, methods=["POST"]),
        ]
    )


def tags_of(config: str) -> tuple[str, str, str, list[str]]:
    """Of a labelling interface: name of its BrushLabels, of its Image, the image's field in a task, and the labels."""
    root = ElementTree.fromstring(config)
    brushes, image = root.find(".//BrushLabels"), root.find(".//Image")
    if brushes is None or image is None:
        raise HrsegError("the labelling interface has no BrushLabels or no Image; see labels.xml")
    labels = [str(label.get("value")) for label in brushes.iter("Label")]
    if not labels:
        raise HrsegError("the labelling interface's BrushLabels has no Label; see labels.xml")
    return str(brushes.get("name")), str(image.get("name")), str(image.get("value")).lstrip("$"), labels


def clicks_of(
    hints: list[dict[str, Any]], height: int, width: int
) -> tuple[list[Click], tuple[float, float, float, float] | None, str]:
    """Clicks, box (top, left, bottom, right) and label of regions whose places are percentages of the image."""
    clicks: list[Click] = []
    box, label = None, ""
    for hint in hints:
        kind, value = hint["type"], hint["value"]
        if kind not in ("keypointlabels", "rectanglelabels"):
            continue
        row, col = float(value["y"]) / 100 * height, float(value["x"]) / 100 * width
        name = str(value[kind][0])
        if kind == "rectanglelabels":
            box = (row, col, row + float(value["height"]) / 100 * height, col + float(value["width"]) / 100 * width)
        else:
            positive = bool(hint.get("is_positive", True)) and name.lower() not in NEGATIVE
            clicks.append(Click(int(row), int(col), positive))
        if name.lower() not in NEGATIVE:
            label = label or name
    return clicks, box, label


def fetch(url: str, images: Path | None, host: str, token: str) -> bytes:
    """Bytes of a task's image: in the address itself, a local file below ``images``, or an upload on ``host``.

    Nothing else is opened: a task must not make this server read or ask for what its author cannot.
    """
    parts = urlsplit(url)
    if parts.scheme == "data":
        return base64.b64decode(url.partition(",")[2], validate=True)
    if not parts.scheme and parts.path.rstrip("/") == "/data/local-files":
        if images is None:
            raise HrsegError(f"{url}: set HRSEG_IMAGES to Label Studio's folder of local files")
        path = (images / parse_qs(parts.query)["d"][0]).resolve()
        if not path.is_relative_to(images.resolve()) or not path.is_file():
            raise HrsegError(f"{url}: no such file in HRSEG_IMAGES")
        if path.stat().st_size > MAX_BYTES:
            raise HrsegError(f"{url}: has more than {MAX_BYTES:,} bytes")
        return path.read_bytes()
    whole = urlsplit(urljoin(host, url))
    if not host or (whole.scheme, whole.netloc) != urlsplit(host)[:2]:
        raise HrsegError(f"{url}: is not on LABEL_STUDIO_URL; set it, or use local files")
    try:
        asked = Request(whole.geturl(), headers={"Authorization": f"Token {token}"} if token else {})
        with build_opener(_NoRedirect).open(asked, timeout=30) as found:
            blob: bytes = found.read(MAX_BYTES + 1)
    except (OSError, HTTPException) as error:
        raise HrsegError(f"{url}: cannot be fetched ({error}); is LABEL_STUDIO_API_KEY right?") from None
    if len(blob) > MAX_BYTES:
        raise HrsegError(f"{url}: has more than {MAX_BYTES:,} bytes")
    return blob


class _NoRedirect(HTTPRedirectHandler):
    """The token must not follow to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


async def _read(asked: Asked) -> bytes:
    body = bytearray()
    async for chunk in asked.stream():
        body += chunk
        if len(body) > MAX_BYTES:
            raise ValueError("too long")
    return bytes(body)
