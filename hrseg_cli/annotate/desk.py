"""Apply the annotator's actions, run the model, and cache its answers.

Everything here runs in one thread, which the server ensures, so changes from several tabs never interleave. A revision
number shows whether a tab has seen the latest change.
"""

from __future__ import annotations

import io
import json
from hashlib import sha256
from typing import Any

import numpy as np
from PIL import Image

from hrseg_cli.annotate.acts import (
    LARGEST,
    AnyAct,
    DoClick,
    DoColour,
    DoCopy,
    DoFinish,
    DoLock,
    DoMove,
    DoName,
    DoOutline,
    DoRefine,
    DoScribble,
    DoShape,
    DoStroke,
    DoThreshold,
    Refused,
)
from hrseg_cli.annotate.answers import Memory, Outcome, after, beginnings, first_pins
from hrseg_cli.annotate.folder import Folder, state_of
from hrseg_cli.annotate.records import (
    COLOURS,
    POINTS,
    Action,
    Clicked,
    Object,
    Outline,
    Picture,
    Refined,
    Reshaped,
    Scribble,
    Stroke,
    is_label,
)
from hrseg_cli.annotate.regions import Region
from hrseg_cli.annotate.shapes import sampled
from hrseg_cli.data.pixels import Span, read_image
from hrseg_cli.engine.session import Session
from hrseg_cli.errors import HrsegError
from hrseg_cli.interaction import Click
from hrseg_cli.models.base import InteractiveModel
from hrseg_cli.recipe import Protocol

REPLACED = "the image file was replaced; the new one is shown now; repeat your last action"
MEMORY = 1_500_000_000  # bytes for cached images and answers; evicted answers are recomputed from their clicks


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
        """The list of images and labels, for the page."""
        folder = self.folder
        images = []
        for number, picture in enumerate(folder.pictures):
            names = [one.name for one in picture.objects]
            image = {"id": number, "name": folder.title(number), "state": picture.state, "labels": names}
            images.append(image | {"spent": round(sum(one.spent for one in picture.objects), 1)})
        return {
            "folder": folder.name,
            "place": sha256(str(folder.place.resolve()).encode()).hexdigest()[:16],
            "files": "masks/ and annotations/" if not folder.pairs else "masks/, pairs.csv and annotations/",
            "model": self.name,
            "protocol": self.protocol.name,
            "threshold": self.protocol.threshold,
            "refiner": self.protocol.refine.name if self.protocol.refine else "",
            "images": images,
            "last": folder.last,
            "labels": folder.labels,
            "fixed": bool(folder.fixed),
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
        self.folder.look(number)
        picture = self.folder.pictures[number]
        objects = []
        for one in picture.objects:
            try:
                objects.append(_shown(one, Region.of(self.folder.mask(one, size))))
            except HrsegError as error:
                objects.append(_shown(one, Region.of(np.zeros((1, 1), bool))) | {"error": str(error)})
        return {**_about(picture), "id": number, "size": size, "file": self._seen[number][0], "objects": objects}

    # Acting

    def act(self, number: int, asked: AnyAct) -> dict[str, Any]:
        """Apply an action, save it, return the changes. If it raises Refused or HrsegError, nothing has changed, unless
        it says so."""
        size = self._shown_size(number)
        self.folder.look(number)
        self.folder.split(number, size)
        picture = self.folder.pictures[number].draft()
        if asked.ident and asked.ident == picture.last[0]:  # applied, but its answer was lost on the way
            one = picture.find(picture.last[1])
            return self._told(number, picture, one, Region.of(self.folder.mask(one, size)) if one else None)
        if asked.revision != picture.revision:
            raise Refused(409, "this image was changed in another tab; its new state is shown; repeat your last action")
        picture.gone.clear()
        picture.last = asked.ident, ""
        if isinstance(asked, DoFinish):
            picture.finished = asked.finished
            return self._save(number, picture, size)
        one = self._object(number, picture, asked)
        picture.last = asked.ident, one.key
        one.spent = round(one.spent + asked.spent, 1)
        if isinstance(asked, DoLock):
            one.locked = asked.locked
        elif isinstance(asked, DoMove):
            picture.objects.remove(one)
            picture.objects.insert(asked.to, one)
        elif one.locked:
            raise Refused(423, f"'{one.name}' is locked; unlock it to change it")
        elif isinstance(asked, DoName):
            one.name = asked.name
            colour = self.folder.colour_of(asked.name)
            one.colour = one.colour if colour is None else colour
        elif isinstance(asked, DoColour):
            one.colour = asked.colour
        elif asked.do == "delete":
            picture.objects.remove(one)
            self.folder.settle(one, self.digest)  # keeps a copy of a mask from elsewhere
            if one.file:
                self.folder.remove(picture, one.file)
            return self._save(number, picture, size)
        elif asked.do == "add":
            return self._save(number, picture, size, one, np.zeros(size, bool))
        else:
            mask, note = self._change(number, size, one, asked)
            if asked.apart:
                mask = mask & ~self._others(number, picture, one, size)
            return self._save(number, picture, size, one, mask, note)
        return self._save(number, picture, size, one)

    def preview(self, number: int, revision: int, key: str | None, click: Clicked) -> dict[str, Any]:
        """The mask that a click would give. Nothing is saved; the click itself is then answered from the cache."""
        size = self._shown_size(number)
        picture = self.folder.pictures[number].draft()
        one = self._new(number, picture, None) if key is None else picture.find(key)
        if revision != picture.revision or one is None or one.locked or self.folder.is_foreign(one, self.digest):
            raise Refused(409, "no preview")
        del one.actions[one.done :]
        _add(one, click, size)
        one.done += 1
        return Region.of(self._mask(one, self._answer(number, size, one))).runs()

    def _object(self, number: int, picture: Picture, asked: AnyAct) -> Object:
        if asked.object is not None:
            one = picture.find(asked.object)
            if one is None:
                raise Refused(404, "this object no longer exists")
            return one
        if isinstance(asked, DoClick | DoScribble | DoStroke | DoOutline | DoCopy) or asked.do == "add":
            return self._new(number, picture, asked.label)
        raise Refused(422, f"select an object to {asked.do}")

    def _change(self, number: int, size: tuple[int, int], one: Object, asked: AnyAct) -> tuple[np.ndarray, str]:
        """The object's new mask, bool (H, W), and a note for the annotator."""
        if isinstance(asked, DoCopy):
            self._copy(number, size, one, asked)
        self.folder.settle(one, self.digest)
        if isinstance(asked, DoThreshold):
            one.threshold = asked.threshold
        elif asked.do == "undo":
            one.done = max(one.base, one.done - 1)
        elif asked.do == "redo":
            one.done = min(len(one.actions), one.done + 1)
        elif isinstance(asked, DoRefine) and self.protocol.refine is None:
            raise Refused(422, "the protocol has no refiner; start hrseg annotate with one")
        elif (action := _recorded(asked, one, size)) is not None:
            del one.actions[one.done :]
            _add(one, action, size)
            one.done += 1
        one.model = self.digest
        answer = self._answer(number, size, one)
        mask = self._mask(one, answer)
        note = ""
        if isinstance(asked, DoClick) and answer.pins is not None and mask[asked.row, asked.col] != asked.positive:
            by = answer.pins[asked.row, asked.col]
            if by:
                done, to_do = ("painted", "erase it to change it") if by == 1 else ("erased", "paint it to change it")
                note = f"this pixel was {done} by hand and stays; {to_do}"
        return mask, note

    def _copy(self, number: int, size: tuple[int, int], one: Object, asked: DoCopy) -> None:
        """Make the mask of another image's object the start of a new one."""
        pictures = self.folder.pictures
        if asked.image < len(pictures):
            self.folder.look(asked.image)
        source = pictures[asked.image].find(asked.source) if asked.image < len(pictures) else None
        if source is None or not source.file:
            raise Refused(404, "the object to copy no longer exists, or has no pixels")
        if self._size(asked.image) != size:
            raise Refused(
                422, "the images have different sizes; a mask can be copied only to an image of the same size"
            )
        mask = self.folder.mask(source, size)  # a broken one is refused
        one.name, one.colour, one.threshold = source.name, source.colour, source.threshold
        if not is_label(source.name):
            one.name = pictures[number].new_name()
        file = self.folder.masks / source.file
        data, suffix = (Region.of(mask).png(), ".png") if source.value else (file.read_bytes(), file.suffix)
        one.start = self.folder.keep(one.key, data, suffix)

    def _mask(self, one: Object, answer: Outcome) -> np.ndarray:
        return answer.state.answer.above(one.threshold)

    def _others(self, number: int, picture: Picture, one: Object, size: tuple[int, int]) -> np.ndarray:
        """bool (H, W): the pixels of the image's other objects."""
        taken = np.zeros(size, bool)
        for other in picture.objects:
            if other is one or not other.file:
                continue
            key = number, other.key, "mask", state_of(self.folder.masks / other.file)
            mask = self.memory.get(key)
            if mask is None:
                mask = self.folder.mask(other, size)
                self.memory.put(key, mask, size[0] * size[1])
            taken |= mask
        return taken

    def _answer(self, number: int, size: tuple[int, int], one: Object) -> Outcome:
        """The state after all actions that are not undone: cached, or recomputed from the longest cached prefix."""
        session = self._session(number)
        keys = list(beginnings(number, one))
        known = len(keys) - 1
        answer: Outcome | None = self.memory.get(keys[known])
        while answer is None and known:
            known -= 1
            answer = self.memory.get(keys[known])
        if answer is None:
            first = self.folder.first_mask(one, size)
            session.begin(first)
            answer = Outcome(session.state, first_pins(one, first, size))
            self.memory.put(keys[0], answer, answer.size)
        for index in range(known, len(keys) - 1):
            answer = after(session, answer, one.actions[one.base + index], size)
            self.memory.put(keys[index + 1], answer, answer.size)
        last = one.actions[one.done - 1] if one.done > one.base else None
        if isinstance(last, Clicked | Scribble) and not last.seconds:  # a new one, or one that had a preview
            last.seconds = answer.seconds
        return answer

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

    def _shown_size(self, number: int) -> tuple[int, int]:
        """The image's size. Raises Refused if its file is not the one that tabs show."""
        known = self._seen.get(number)
        size = self._size(number)
        if known and known != self._seen[number]:
            raise Refused(409, REPLACED)
        return size

    def _new(self, number: int, picture: Picture, label: str | None) -> Object:
        colours = [one.colour for one in picture.objects]
        colour = self.folder.colour_of(label) if label else None
        one = Object(
            key=self.folder.new_key(number),
            name=label or picture.new_name(),
            colour=min(range(COLOURS), key=lambda colour: (colours.count(colour), colour))
            if colour is None
            else colour,
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
        note: str = "",
    ) -> dict[str, Any]:
        """mask: of the object, if it has changed."""
        picture.revision += 1
        picture.size = size
        region = None if mask is None else Region.of(mask)
        self.folder.save(number, picture, one, region)
        try:
            self.folder.write_tables()
        except OSError as error:
            told = f"{error.filename}: {error.strerror}; your change is saved, but this file is not updated"
            raise Refused(507, told, saved=True) from None
        return self._told(number, picture, one, region) | ({"note": note} if note else {})

    def _told(self, number: int, picture: Picture, one: Object | None, region: Region | None) -> dict[str, Any]:
        answer = {**_about(picture), "id": number, "order": [other.key for other in picture.objects]}
        return answer if one is None else answer | {"object": _shown(one, region)}


def _about(picture: Picture) -> dict[str, Any]:
    return {"revision": picture.revision, "finished": picture.finished}


def _shown(one: Object, region: Region | None) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "key": one.key,
        "name": one.name,
        "colour": one.colour,
        "threshold": one.threshold,
        "locked": one.locked,
        "spent": one.spent,
        "clicks": [[click.row, click.col, int(click.positive)] for click in one.clicks],
        "undo": one.done - one.base,
        "redo": len(one.actions) - one.done,
        "seconds": one.clicks[-1].seconds if one.clicks else 0,
    }
    if region is not None:
        shown["area"] = region.area
        shown["mask"] = region.runs()
    return shown


def _recorded(asked: AnyAct, one: Object, size: tuple[int, int]) -> Action | None:
    """The action to record for a request, None for one that changes no pixel."""
    if isinstance(asked, DoClick):
        if asked.box and not (
            0 <= asked.box[0] <= asked.box[1] < size[0] and 0 <= asked.box[2] <= asked.box[3] < size[1]
        ):
            raise Refused(422, "the box is outside the image")
        clip = asked.box is not None
        return Clicked(row=asked.row, col=asked.col, positive=asked.positive, box=asked.box, clip=clip)
    if isinstance(asked, DoStroke | DoScribble):
        if not all(0 <= row <= size[0] and 0 <= col <= size[1] for row, col in asked.points):
            raise Refused(422, "the stroke is outside the image")
        if isinstance(asked, DoScribble):
            return Scribble(points=sampled(asked.points, size), positive=asked.positive)
        return Stroke(points=asked.points, radius=asked.radius, positive=asked.positive, pinned=True)
    if isinstance(asked, DoShape):
        return Reshaped(how=asked.how, threshold=one.threshold)
    if isinstance(asked, DoOutline):
        corners = [corner for ring in asked.rings for corner in ring]
        if len(corners) > POINTS or not all(0 <= row <= size[0] and 0 <= col <= size[1] for row, col in corners):
            raise Refused(422, f"the outline is outside the image, or has more than {POINTS} corners")
        return Outline(rings=asked.rings, threshold=one.threshold)
    return Refined() if isinstance(asked, DoRefine) else None


def _add(one: Object, action: Action, size: tuple[int, int]) -> None:
    if isinstance(action, Clicked) and not Click(action.row, action.col, action.positive).lies_in(*size):
        raise Refused(422, "the click is outside the image")
    one.actions.append(action)
