"""CVAT's interactor as a nuclio function: points in, the object's mask out.

Asked: {"image": base64, "pos_points": [[x, y], ...], "neg_points": the same, "obj_bbox": [[x, y], [x, y]] or null}.
Answered: {"mask": rows of 0 and 1, "points": [[x, y], ...]}: the mask, and its largest piece as a polygon.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from typing import Any

from hrseg_cli.catalog import DEFAULT_MODEL
from hrseg_cli.data.masks_out import polygons
from hrseg_cli.engine.remote import Remote, decode_image
from hrseg_cli.engine.runtimes import open_model
from hrseg_cli.errors import HrsegError
from hrseg_cli.interaction import Click
from hrseg_cli.recipe import load_protocol


def init_context(context: Any) -> None:
    """Called once a worker: the model of HRSEG_MODEL, computed by HRSEG_RUNTIME."""
    model, provenance = open_model(os.environ.get("HRSEG_MODEL", DEFAULT_MODEL), os.environ.get("HRSEG_RUNTIME"))
    context.user_data.remote = Remote(model, load_protocol("photo"))
    context.logger.info(f"hrseg is ready: {provenance['name']}")


def handler(context: Any, event: Any) -> Any:
    """Called once a request."""
    try:
        body, status = answer(context.user_data.remote, event.body), 200
    except HrsegError as error:
        body, status = {"error": str(error)}, 400
    except (KeyError, ValueError, TypeError, IndexError) as error:
        body, status = {"error": f"the request cannot be read ({type(error).__name__}: {error})"}, 400
    return context.Response(body=json.dumps(body), headers={}, content_type="application/json", status_code=status)


def answer(remote: Remote, body: Any) -> dict[str, Any]:
    """What a request's body, a dict or its JSON, is answered with."""
    data = body if isinstance(body, dict) else json.loads(body)
    blob = base64.b64decode(data["image"])
    clicks = [
        Click(float(y), float(x), side)
        for side, name in ((True, "pos_points"), (False, "neg_points"))
        for x, y in data.get(name) or ()
    ]
    box = None
    if data.get("obj_bbox"):
        (left, top), (right, bottom) = data["obj_bbox"]
        box = float(top), float(left), float(bottom), float(right)
    if box is None and not any(click.positive for click in clicks):
        raise HrsegError("click on the object first, or draw a box around it")
    mask = remote.mask(hashlib.sha256(blob).hexdigest(), lambda: decode_image(blob), clicks, box)
    outline = next(iter(polygons(mask)), [])
    points = [[x, y] for x, y in zip(outline[::2], outline[1::2], strict=True)]
    return {"mask": mask.astype(int).tolist(), "points": points}
