"""Masks for other annotation tools, which send the image's address and all clicks with every request."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock

import numpy as np

from hrseg_cli.data.pixels import read_image
from hrseg_cli.engine.session import Session
from hrseg_cli.interaction import Box, Click
from hrseg_cli.models.base import InteractiveModel
from hrseg_cli.recipe import Protocol

MAX_PIXELS = 10**8


class Remote:
    """Predicts masks from complete lists of clicks. Sessions are cached, so that one more click costs one prediction.

    keep: number of cached sessions; each holds its image and up to five probability maps. Requests are processed one at
    a time.
    """

    def __init__(self, model: InteractiveModel, protocol: Protocol, keep: int = 4) -> None:
        self.model, self.protocol, self.keep = model, protocol, keep
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._lock = Lock()

    def mask(
        self,
        key: str,
        read: Callable[[], np.ndarray],
        clicks: Sequence[Click],
        box: tuple[float, float, float, float] | None = None,
    ) -> np.ndarray:
        """The mask, bool (H, W). Raises HrsegError, or whatever ``read`` raises.

        key: identifies the image and the object. read: loads the image, uint8 (H, W, 3), if its session is not cached.
        clicks: all clicks on the object. Those outside the image are moved to its border. Cached clicks may come in any
            order.
        box: (top, left, bottom, right) in pixels, the last two inclusive. The mask is clipped to it. A model that takes
            boxes is given it; for others, without a positive click, its centre is clicked first.
        """
        drawn = Box(*(round(box[end]) for end in (0, 2, 1, 3))) if box and self.model.takes_boxes else None
        with self._lock:
            session = self._sessions.pop(key, None)
            height, width = session.mask.shape if session else (0, 0)
            if session is None or session.state.drawn != (drawn and drawn.inside(height, width)):
                session = self._start(read(), drawn)
                height, width = session.mask.shape
            wanted = list(clicks)
            if box and not drawn and not any(click.positive for click in wanted):
                wanted.insert(0, Click((box[0] + box[2]) / 2, (box[1] + box[3]) / 2, True))
            wanted = [_inside(click, height, width) for click in wanted]
            while not set(session.state.clicks) <= set(wanted):
                if not session.undo():  # beyond the undo limit
                    session = self._start(read(), drawn)
            for click in dict.fromkeys(wanted):
                if click not in session.state.clicks:
                    session.click(click)
            self._sessions[key] = session
            while len(self._sessions) > self.keep:
                self._sessions.popitem(last=False)
            mask = session.mask
        if box:
            within = np.zeros_like(mask)
            top, left, bottom, right = (max(0, round(end)) for end in box)
            within[top : bottom + 1, left : right + 1] = True
            mask = mask & within
        return mask

    def _start(self, image: np.ndarray, drawn: Box | None) -> Session:
        session = Session(self.model, image, self.protocol, undo=4)
        if drawn:
            session.box(drawn)
        return session


def decode_image(blob: bytes) -> np.ndarray:
    """uint8 (H, W, 3) from the bytes of an image file, with EXIF orientation applied.

    Raises HrsegError for anything but an image, and for more than 100 megapixels.
    """
    return read_image(Path("the image"), at_most=MAX_PIXELS, data=blob)


def _inside(click: Click, height: int, width: int) -> Click:
    return Click(min(max(click.row, 0), height - 1), min(max(click.col, 0), width - 1), click.positive)
