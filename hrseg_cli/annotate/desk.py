"""Apply the annotator's actions, run the model, and cache its answers.

Everything here runs in one thread, which the server ensures, so changes from several tabs never interleave. A revision
number shows whether a tab has seen the latest change.
"""

from __future__ import annotations

import io
import json
import time
from collections import OrderedDict
from collections.abc import Iterator
from hashlib import sha256
from typing import Annotated, Any, Literal

import cv2
import numpy as np
from PIL import Image
from pydantic import Field

from hrseg_cli.annotate.folder import COLOURS, Clicked, Folder, Name, Object, Picture, Strict, Stroke, state_of
from hrseg_cli.data.pixels import Span, read_image
from hrseg_cli.engine.session import Session, SessionState
from hrseg_cli.engine.views import Box
from hrseg_cli.errors import HrsegError
from hrseg_cli.interaction import Click
from hrseg_cli.models.base import InteractiveModel
from hrseg_cli.recipe import Protocol

LARGEST = 120_000_000  # pixels of an image: twelve bytes each for the model, four for each cached answer
REPLACED = "the image file was replaced; the new one is shown now; repeat your last action"
MEMORY = 1_500_000_000  # bytes for cached images and answers; evicted answers are recomputed from their clicks


class Act(Strict):
    """A request from a tab. revision: of the picture it shows. object: a key, None for a new object."""

    revision: int
    object: str | None = None


class DoClick(Act):
    do: Literal["click"]
    row: int = Field(ge=0, le=LARGEST)
    col: int = Field(ge=0, le=LARGEST)
    positive: bool = True
    box: tuple[int, int, int, int] | None = None


class DoStroke(Act):
    do: Literal["stroke"]
    points: list[tuple[float, float]] = Field(min_length=1, max_length=5000)
    radius: float = Field(ge=0.5, le=2000)
    positive: bool = True


class DoPlain(Act):
    do: Literal["undo", "redo", "add", "delete"]


class DoName(Act):
    do: Literal["rename"]
    name: Name


class DoColour(Act):
    do: Literal["colour"]
    colour: int = Field(ge=0, lt=COLOURS)


class DoThreshold(Act):
    do: Literal["threshold"]
    threshold: float = Field(ge=0.01, le=0.99)


class DoFinish(Act):
    do: Literal["finish"]
    finished: bool


AnyAct = Annotated[DoClick | DoStroke | DoPlain | DoName | DoColour | DoThreshold | DoFinish, Field(discriminator="do")]


class Refused(Exception):
    """A rejected action: status 404 for a missing object, 409 for a picture that has changed since, 422 for a position
    outside the image. The message is shown to the annotator."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Memory:
    """An LRU cache of images and answers, up to ``limit`` bytes (more only for the current image and answer)."""

    def __init__(self, limit: int) -> None:
        self.limit, self.size = limit, 0
        self._kept: OrderedDict[Any, tuple[Any, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Any) -> Any:
        """The value, or None if it was evicted."""
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key][0]

    def put(self, key: Any, value: Any, size: int) -> None:
        """Add a value. key: must not exist yet."""
        self._kept[key] = value, size
        self.size += size
        while self.size > self.limit and len(self._kept) > 2:
            _, (_, freed) = self._kept.popitem(last=False)
            self.size -= freed

    def drop(self, number: int) -> None:
        """Drop everything of one image: its session, keyed by its number, and answers, whose keys start with it."""
        for key in [key for key in self._kept if key == number or (isinstance(key, tuple) and key[0] == number)]:
            self.size -= self._kept.pop(key)[1]


class Desk:
    """A folder, a model and a protocol. provenance: of the model, from ``load_model``. name: the model name shown on
    the page. span: values of black and white in images of more than 8 bits."""

    def __init__(
        self,
        folder: Folder,
        model: InteractiveModel,
        provenance: dict[str, Any],
        protocol: Protocol,
        memory: int = MEMORY,
        name: str | None = None,
        span: Span | None = None,
    ) -> None:
        self.folder, self.model, self.protocol, self.span = folder, model, protocol, span
        self.name = name or model.name
        asked = json.dumps([provenance, protocol.model_dump(), *([span] if span else [])], sort_keys=True, default=str)
        self.digest = sha256(asked.encode()).hexdigest()[:16]
        self.memory = Memory(memory)
        self._seen: dict[int, tuple[str, tuple[int, int]]] = {}  # state of the image file, and image size

    # Reading

    def overview(self) -> dict[str, Any]:
        """The list of images, for the page."""
        images = []
        for number, picture in enumerate(self.folder.pictures):
            worked = "work" if picture.objects else "todo"
            state = "done" if picture.finished else worked
            images.append({"id": number, "name": self.folder.title(number), "state": state})
        return {
            "folder": self.folder.name,
            "model": self.name,
            "protocol": self.protocol.name,
            "threshold": self.protocol.threshold,
            "images": images,
        }

    def pixels(self, number: int) -> bytes:
        """The image as a JPEG, upright and at full size, because browsers rotate and colour-manage originals in their
        own ways. May run in any thread."""
        image = self._read(number)
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=95, subsampling=0)
        return file.getvalue()

    def picture(self, number: int) -> dict[str, Any]:
        """An image and its objects with masks, for the page. An unreadable mask becomes an object with an error."""
        size = self._size(number)
        picture = self.folder.pictures[number]
        objects = []
        for one in picture.objects:
            try:
                objects.append(_shown(one, self.folder.mask(one, size)))
            except HrsegError as error:
                objects.append(_shown(one, np.zeros((1, 1), bool)) | {"error": str(error)})
        return {**_about(picture), "id": number, "size": size, "file": self._seen[number][0], "objects": objects}

    # Acting

    def act(self, number: int, asked: AnyAct) -> dict[str, Any]:
        """Apply an action, save it, return the changes. If it raises Refused or HrsegError, nothing has changed."""
        known = self._seen.get(number)
        size = self._size(number)
        if known and known != self._seen[number]:
            raise Refused(409, REPLACED)
        picture = self.folder.pictures[number].model_copy(deep=True)
        if asked.revision != picture.revision:
            raise Refused(409, "this image was changed in another tab; its new state is shown; repeat your last action")
        picture.gone.clear()
        if isinstance(asked, DoFinish):
            picture.finished = asked.finished
            return self._save(number, picture, size)
        one = picture.find(asked.object) if asked.object is not None else None
        if asked.object is not None and one is None:
            raise Refused(404, "this object no longer exists")
        if one is None:
            if not isinstance(asked, DoClick | DoStroke) and asked.do != "add":
                raise Refused(422, f"select an object to {asked.do}")
            one = self._new(number, picture)
        if asked.do == "add":
            return self._save(number, picture, size, one, np.zeros(size, bool))
        if asked.do == "delete":
            picture.objects.remove(one)
            self.folder.settle(one, self.digest)  # keeps a copy of a mask from elsewhere
            if one.file:
                self.folder.remove(picture, one.file)
            return self._save(number, picture, size)
        if isinstance(asked, DoName):
            one.name = asked.name
        elif isinstance(asked, DoColour):
            one.colour = asked.colour
        else:
            return self._save(number, picture, size, one, self._change(number, size, one, asked))
        return self._save(number, picture, size, one)

    def _change(self, number: int, size: tuple[int, int], one: Object, asked: AnyAct) -> np.ndarray:
        """The object's new mask, bool (H, W)."""
        self.folder.settle(one, self.digest)
        if isinstance(asked, DoThreshold):
            one.threshold = asked.threshold
        elif asked.do == "undo":
            one.done = max(one.base, one.done - 1)
        elif asked.do == "redo":
            one.done = min(len(one.actions), one.done + 1)
        else:
            del one.actions[one.done :]
            if isinstance(asked, DoClick):
                if not Click(asked.row, asked.col, asked.positive).lies_in(*size):
                    raise Refused(422, "the click is outside the image")
                box = _inside(asked.box, size) if asked.box else None
                one.actions.append(Clicked(row=asked.row, col=asked.col, positive=asked.positive, box=box))
            elif isinstance(asked, DoStroke):
                if not all(0 <= row <= size[0] and 0 <= col <= size[1] for row, col in asked.points):
                    raise Refused(422, "the stroke is outside the image")
                one.actions.append(Stroke(points=asked.points, radius=asked.radius, positive=asked.positive))
            one.done += 1
        one.model = self.digest
        state = self._state(number, size, one)
        return state.answer.above(one.threshold)

    def _state(self, number: int, size: tuple[int, int], one: Object) -> SessionState:
        """The state after all actions that are not undone: cached, or recomputed from the longest cached prefix."""
        session = self._session(number)
        keys = list(_beginnings(number, one))
        known = len(keys) - 1
        state: SessionState | None = self.memory.get(keys[known])
        while state is None and known:
            known -= 1
            state = self.memory.get(keys[known])
        if state is None:
            session.begin(self.folder.first_mask(one, size))
            self.memory.put(keys[0], session.state, 4 * size[0] * size[1])
        else:
            session.state = state
        for index in range(known, len(keys) - 1):
            action = one.actions[one.base + index]
            started = time.perf_counter()
            if isinstance(action, Clicked):
                session.click(Click(action.row, action.col, action.positive), Box(*action.box) if action.box else None)
                action.seconds = action.seconds or round(time.perf_counter() - started, 4)
            else:
                session.paint(drawn(action, size), action.positive)
            self.memory.put(keys[index + 1], session.state, 4 * size[0] * size[1])
        return session.state

    def _read(self, number: int) -> np.ndarray:
        return read_image(self.folder.path(number), at_most=LARGEST, span=self.span)

    def _session(self, number: int) -> Session:
        session: Session | None = self.memory.get(number)
        if session is None:
            image = self._read(number)
            state, size = self._seen[number]
            if state_of(self.folder.path(number)) != state or image.shape[:2] != size:  # replaced just now
                self._size(number)
                raise Refused(409, REPLACED)
            session = Session(self.model, image, self.protocol, undo=0)
            self.memory.put(number, session, 12 * image.shape[0] * image.shape[1])
        return session

    def _size(self, number: int) -> tuple[int, int]:
        """(rows, columns) of the image file, which may differ from the record if the file was replaced. If it was
        replaced while shown, the old image is evicted, and tabs that show it are out of date."""
        path, picture = self.folder.path(number), self.folder.pictures[number]
        state = state_of(path)
        if number in self._seen and self._seen[number][0] == state:
            return self._seen[number][1]
        if self._seen.pop(number, None):
            self.memory.drop(number)
            picture.revision += 1
        rows, cols = self._read(number).shape[:2]
        if picture.objects and picture.size not in ((0, 0), (rows, cols)):
            raise HrsegError(
                f"{path}: has {rows} rows and {cols} columns, but its clicks were made on {picture.size[0]} rows and "
                f"{picture.size[1]} columns; restore that image, or remove {self.folder.record(number)}"
            )
        self._seen[number] = state, (rows, cols)
        return rows, cols

    def _new(self, number: int, picture: Picture) -> Object:
        colours = [one.colour for one in picture.objects]
        one = Object(
            key=self.folder.new_key(number),
            name=picture.new_name(),
            colour=min(range(COLOURS), key=lambda colour: (colours.count(colour), colour)),
            threshold=self.protocol.threshold,
        )
        picture.objects.append(one)
        return one

    def _save(
        self,
        number: int,
        picture: Picture,
        size: tuple[int, int],
        one: Object | None = None,
        mask: np.ndarray | None = None,
    ) -> dict[str, Any]:
        """mask: of the object, if it has changed."""
        picture.revision += 1
        picture.size = size
        self.folder.save(number, picture, one, mask)
        try:
            self.folder.write_tables()
        except OSError as error:
            raise Refused(
                507, f"{error.filename}: {error.strerror}; your change is saved, but this file is not updated"
            ) from None
        answer = {**_about(picture), "id": number, "order": [other.key for other in picture.objects]}
        if one is not None:
            answer["object"] = _shown(one, mask)
        return answer


def _about(picture: Picture) -> dict[str, Any]:
    return {"revision": picture.revision, "finished": picture.finished}


def _shown(one: Object, mask: np.ndarray | None) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "key": one.key,
        "name": one.name,
        "colour": one.colour,
        "threshold": one.threshold,
        "clicks": [[click.row, click.col, int(click.positive)] for click in one.clicks],
        "undo": one.done - one.base,
        "redo": len(one.actions) - one.done,
        "seconds": one.clicks[-1].seconds if one.clicks else 0,
    }
    if mask is not None:
        shown["area"] = int(np.count_nonzero(mask))
        shown["mask"] = runs(mask)
    return shown


def runs(mask: np.ndarray) -> dict[str, Any]:
    """A bool mask (H, W) as ``{"box": [top, left, height, width], "runs": [...]}``: run lengths inside the box, row by
    row, alternating background, object, background, ..."""
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return {"box": [0, 0, 0, 0], "runs": []}
    top, left = int(rows[0]), int(cols[0])
    inside = mask[top : int(rows[-1]) + 1, left : int(cols[-1]) + 1]
    flat = np.concatenate([[False], inside.ravel(), [not inside[-1, -1]]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    return {"box": [top, left, *inside.shape], "runs": np.diff(edges, prepend=0).tolist()}


def drawn(stroke: Stroke, size: tuple[int, int]) -> np.ndarray:
    """bool (H, W): the pixels under a round brush."""
    canvas = np.zeros(size, np.uint8)
    # A brush on the bottom or right edge of the image paints the last pixel.
    points = np.minimum(np.floor(stroke.points), np.subtract(size, 1))[:, ::-1].astype(np.int32)
    width = max(1, round(2 * stroke.radius))
    if len(points) == 1:
        cv2.circle(canvas, points[0].tolist(), width // 2, 1, cv2.FILLED)
    else:
        cv2.polylines(canvas, [points.reshape(-1, 1, 2)], isClosed=False, color=1, thickness=width)
    return canvas > 0


def _inside(box: tuple[int, int, int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    top, bottom, left, right = box
    if not (0 <= top <= bottom < size[0] and 0 <= left <= right < size[1]):
        raise Refused(422, "the box is outside the image")
    return box


def _beginnings(number: int, one: Object) -> Iterator[tuple[Any, ...]]:
    """Cache keys: of the initial state, and of the state after each action that is not undone."""
    digest = sha256(f"{one.start} {one.base}".encode())
    yield number, one.key, digest.hexdigest()
    for action in one.actions[one.base : one.done]:
        digest.update(action.model_dump_json(exclude={"seconds"}).encode())
        yield number, one.key, digest.hexdigest()
