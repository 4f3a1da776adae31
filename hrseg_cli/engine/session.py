"""Segmenting one object: the state between clicks, the transition from click to click, and a session with undo."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from hrseg_cli.engine import views
from hrseg_cli.engine.answers import Answer, blank
from hrseg_cli.engine.views import Box, Query, View, ViewCache
from hrseg_cli.errors import HrsegError
from hrseg_cli.interaction import Click
from hrseg_cli.models.base import InteractiveModel
from hrseg_cli.recipe import Protocol, ZoomIn


@dataclass(frozen=True)
class SessionState:
    """Everything that the next click depends on.

    answer: the object's probabilities. box: the current crop, None for the whole image.
    stale: how often a prediction for the whole image was pasted into an outdated crop (a quirk of RITM's zoom-in that
        ``keep_stale_roi`` reproduces).
    """

    answer: Answer
    clicks: tuple[Click, ...] = ()
    box: Box | None = None
    stale: int = 0

    @property
    def probability(self) -> Tensor:
        """(1, 1, H, W) float32 in [0, 1], resized at each access."""
        return self.answer.whole


def step(
    model: InteractiveModel,
    image: Tensor,
    state: SessionState,
    click: Click,
    protocol: Protocol,
    around: Box | None = None,
) -> SessionState:
    """The state after one more click. A pure function: model, image and state are not modified.

    Arguments as for :func:`click_queries`.
    """
    return views.drive(model, click_queries(model.enlarge, ViewCache(image), state, click, protocol, around))


def click_queries(
    enlarge: int,
    cache: ViewCache,
    state: SessionState,
    click: Click,
    protocol: Protocol,
    around: Box | None = None,
) -> Generator[Query, Tensor, SessionState]:
    """Yield the queries of one more click, receiving the logits of each. Returns the new state.

    cache: the image and its cached views. enlarge: see :class:`InteractiveModel`. around: a box known to contain the
    object; a protocol with zoom-in crops there instead of relying on the previous mask.
    """
    clicks = (*state.clicks, click)
    if around is not None and protocol.zoom:
        return (yield from _query_view(enlarge, cache, state, around, clicks, protocol))
    after = yield from _query_view(enlarge, cache, state, state.answer, clicks, protocol)
    zoom = protocol.zoom
    if zoom and zoom.skip_clicks <= 0 and after.box is None:
        # The protocol zooms in from the first click, but there was no mask yet to crop around. If the predicted object
        # fills little of the image, repeat the click on a crop, with the same previous mask.
        wanted = _wanted(after.answer, (), zoom, after.answer.size)
        if wanted and views.box_iou(wanted, _whole(cache.image)) < 0.5:
            after = yield from _query_view(enlarge, cache, state, after.answer, clicks, protocol)
    return after


def _query_view(
    enlarge: int,
    cache: ViewCache,
    state: SessionState,
    guide: Answer | Box,
    clicks: tuple[Click, ...],
    protocol: Protocol,
) -> Generator[Query, Tensor, SessionState]:
    """One prediction, on the whole image or on a crop around the object of ``guide``."""
    height, width = cache.image.shape[-2:]
    zoom, box = protocol.zoom, state.box
    wanted = None
    if zoom and len(clicks) > zoom.skip_clicks:
        wanted = _wanted(guide, clicks, zoom, (height, width))
        if wanted is None and zoom.skip_clicks < 0:
            wanted = _whole(cache.image)
    if wanted is None:
        view = cache.view(None, (height, width))
        probability = yield from _sigmoid(view, state.probability, clicks, protocol)
        stale = box is not None and protocol.keep_stale_roi
        if not stale:
            return SessionState(Answer(probability, None, (height, width)), clicks, None, state.stale)
        assert box is not None
        return SessionState(Answer(probability, box, (height, width)), clicks, box, state.stale + 1)
    assert zoom is not None
    if box is None or not views.holds_positive_clicks(box, clicks) or views.box_iou(wanted, box) < zoom.recompute_iou:
        box = wanted
    size = views.crop_size(box, views.enlarged(zoom.target, enlarge))
    cropped = state.answer.crop(box, size)
    inside = views.crop_clicks(clicks, box, size)
    multiple = zoom.pad and zoom.pad * enlarge
    if multiple:
        cropped = views.padded(cropped, multiple)
        # Clicks outside the crop must not land in the padding.
        inside = [c for c in inside[: protocol.network_clicks] if c.row < size[0] and c.col < size[1]]
    probability = yield from _sigmoid(cache.view(box, size, multiple), cropped, inside, protocol)
    probability = probability[..., : size[0], : size[1]]
    return SessionState(Answer(probability, box, (height, width)), clicks, box, state.stale)


def _sigmoid(
    view: View, previous: Tensor, clicks: Sequence[Click], protocol: Protocol
) -> Generator[Query, Tensor, Tensor]:
    return torch.sigmoid((yield from views.crop_queries(view, previous, clicks[: protocol.network_clicks], protocol)))


def _wanted(guide: Answer | Box, clicks: Sequence[Click], zoom: ZoomIn, size: tuple[int, int]) -> Box | None:
    """The crop around an object and the clicks; None if there is no object."""
    found = guide.extent(zoom.mask_threshold) if isinstance(guide, Answer) else views.clamp(guide, *size)
    return found and views.object_box(found, clicks, zoom, size)


def _whole(image: Tensor) -> Box:
    return Box(0, image.shape[-2] - 1, 0, image.shape[-1] - 1)


class Session:
    """An image, a model and the clicks so far.

    image: uint8 (H, W, 3) RGB. initial: optional mask to start from, float (H, W) in [0, 1]. undo: maximum number of
    undo steps. Raises HrsegError for an image or a mask of another shape or type.
    """

    def __init__(
        self,
        model: InteractiveModel,
        image: np.ndarray,
        protocol: Protocol,
        initial: np.ndarray | None = None,
        undo: int = 20,
    ) -> None:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise HrsegError(f"an image must be uint8 (height, width, 3), not {image.dtype} {image.shape}")
        device = next(iter(model.parameters()), torch.empty(0)).device
        self.model, self.protocol = model, protocol
        pixels = torch.from_numpy(image).to(device).permute(2, 0, 1)[None]
        if device.type != "cpu":  # on a CPU uint8 saves memory, and time whenever a large image is cropped
            pixels = views.unit(pixels)
        self._cache = ViewCache(pixels)
        self._past: deque[SessionState] = deque(maxlen=undo)
        self._future: list[SessionState] = []
        self.begin(initial)

    def begin(self, initial: np.ndarray | None = None) -> None:
        """Start a new object on the same image, without clicks, optionally from an initial mask."""
        size = (self._cache.image.shape[-2], self._cache.image.shape[-1])
        if initial is None:
            start = blank(size, self._cache.image.device)
        elif initial.shape == size:
            whole = torch.from_numpy(initial.astype(np.float32))[None, None].to(self._cache.image.device).clamp(0, 1)
            start = Answer(whole, None, size)
        else:
            raise HrsegError(f"the initial mask has shape {initial.shape}, the image {size}; they must be equal")
        self.state = SessionState(start)
        self._past.clear()
        self._future.clear()

    def click(self, click: Click, around: Box | None = None) -> np.ndarray:
        """Apply one more click and return the new mask, bool (H, W). Raises HrsegError for a click outside the image.

        around: see :func:`click_queries`.
        """
        return views.drive(self.model, self.queries(click, around))

    def queries(self, click: Click, around: Box | None = None) -> Generator[Query, Tensor, np.ndarray]:
        """:meth:`click` as a generator, for callers that run the network themselves: yields queries, receives logits,
        returns the new mask."""
        height, width = self._cache.image.shape[-2:]
        if not click.lies_in(height, width):
            raise HrsegError(f"click {click.row},{click.col} lies outside the image ({height} rows, {width} columns)")
        model, state = self.model, self.state
        self._advance((yield from click_queries(model.enlarge, self._cache, state, click, self.protocol, around)))
        return self.mask

    def paint(self, where: np.ndarray, positive: bool) -> np.ndarray:
        """Set the pixels of a bool mask (H, W) to object or background and return the new mask. Later clicks may change
        them again."""
        before = self.state.probability
        after = before.masked_fill(torch.from_numpy(where).to(before.device)[None, None], float(positive))
        self._advance(replace(self.state, answer=Answer(after, None, self.state.answer.size)))
        return self.mask

    def _advance(self, after: SessionState) -> None:
        self._past.append(self.state)
        self._future.clear()
        self.state = after

    def undo(self) -> bool:
        """Undo the last change. Returns False when there is nothing to undo."""
        if not self._past:
            return False
        self._future.append(self.state)
        self.state = self._past.pop()
        return True

    def redo(self) -> bool:
        """Redo the last undone change. Returns False when there is nothing to redo."""
        if not self._future:
            return False
        self._past.append(self.state)
        self.state = self._future.pop()
        return True

    @property
    def probability(self) -> np.ndarray:
        """Object probability, float32 (H, W) in [0, 1]."""
        return np.asarray(self.state.probability[0, 0].cpu().numpy())

    @property
    def mask(self) -> np.ndarray:
        """bool (H, W): probability above the protocol's threshold."""
        return self.state.answer.above(self.protocol.threshold)
