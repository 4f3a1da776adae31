"""Segmenting one object: the state between clicks, the transition from click to click, and a session with undo."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from hrseg_cli.engine import focusing, views
from hrseg_cli.engine.views import Box, Query, View, ViewCache
from hrseg_cli.errors import HrsegError
from hrseg_cli.interaction import Click
from hrseg_cli.models.base import InteractiveModel
from hrseg_cli.recipe import Protocol
from hrseg_cli.refiners.focuscut import Focus


@dataclass(frozen=True)
class SessionState:
    """Everything that the next click depends on.

    probability: (1, 1, H, W) float32 in [0, 1]. box: the current crop, None for the whole image.
    stale: how often a prediction for the whole image was pasted into an outdated crop (a quirk of RITM's zoom-in that
        ``keep_stale_roi`` reproduces).
    focuses: details that are looked at closely after each click, if the protocol does so.
    """

    probability: Tensor
    clicks: tuple[Click, ...] = ()
    box: Box | None = None
    stale: int = 0
    focuses: tuple[Focus, ...] = ()


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
    after = yield from _whole_object(enlarge, cache, state, click, protocol, around)
    if protocol.focus is None:
        return after
    focuses, probability = yield from focusing.focused(
        enlarge, cache.image, state.probability, after.probability, state.focuses, after.clicks, protocol
    )
    return replace(after, probability=probability, focuses=focuses)


def _whole_object(
    enlarge: int, cache: ViewCache, state: SessionState, click: Click, protocol: Protocol, around: Box | None
) -> Generator[Query, Tensor, SessionState]:
    """:func:`click_queries` without the close-up views of details."""
    clicks = (*state.clicks, click)
    if around is not None and protocol.zoom:
        guide = torch.zeros_like(state.probability)
        guide[..., around.top : around.bottom + 1, around.left : around.right + 1] = 1
        return (yield from _query_view(enlarge, cache, state, guide, clicks, protocol))
    after = yield from _query_view(enlarge, cache, state, state.probability, clicks, protocol)
    zoom = protocol.zoom
    if zoom and zoom.skip_clicks <= 0 and after.box is None:
        # The protocol zooms in from the first click, but there was no mask yet to crop around. If the predicted object
        # fills little of the image, repeat the click on a crop, with the same previous mask.
        found = views.object_box(_above(after.probability, zoom.mask_threshold), (), zoom)
        if found and views.box_iou(found, _whole(cache.image)) < 0.5:
            after = yield from _query_view(enlarge, cache, state, after.probability, clicks, protocol)
    return after


def _query_view(
    enlarge: int,
    cache: ViewCache,
    state: SessionState,
    guide: Tensor,
    clicks: tuple[Click, ...],
    protocol: Protocol,
) -> Generator[Query, Tensor, SessionState]:
    """One prediction, on the whole image or on a crop around the mask ``guide`` (1, 1, H, W)."""
    height, width = cache.image.shape[-2:]
    zoom, previous, box = protocol.zoom, state.probability, state.box
    wanted = None
    if zoom and len(clicks) > zoom.skip_clicks:
        wanted = views.object_box(_above(guide, zoom.mask_threshold), clicks, zoom)
        if wanted is None and zoom.skip_clicks < 0:
            wanted = _whole(cache.image)
    if wanted is None:
        probability = yield from _sigmoid(cache.view(None, (height, width)), previous, clicks, protocol)
        stale = box is not None and protocol.keep_stale_roi
        if not stale:
            return SessionState(probability, clicks, None, state.stale)
        assert box is not None
        return SessionState(views.paste(probability, box, height, width), clicks, box, state.stale + 1)
    assert zoom is not None
    if box is None or not views.holds_positive_clicks(box, clicks) or views.box_iou(wanted, box) < zoom.recompute_iou:
        box = wanted
    size = views.crop_size(box, views.enlarged(zoom.target, enlarge))
    cropped = views.crop(previous, box, size)
    inside = views.crop_clicks(clicks, box, size)
    multiple = zoom.pad and zoom.pad * enlarge
    if multiple:
        cropped = views.padded(cropped, multiple)
        # Clicks outside the crop must not land in the padding.
        inside = [c for c in inside[: protocol.network_clicks] if c.row < size[0] and c.col < size[1]]
    probability = yield from _sigmoid(cache.view(box, size, multiple), cropped, inside, protocol)
    probability = probability[..., : size[0], : size[1]]
    return SessionState(views.paste(probability, box, height, width), clicks, box, state.stale)


def _sigmoid(
    view: View, previous: Tensor, clicks: Sequence[Click], protocol: Protocol
) -> Generator[Query, Tensor, Tensor]:
    return torch.sigmoid((yield from views.crop_queries(view, previous, clicks[: protocol.network_clicks], protocol)))


def _above(probability: Tensor, threshold: float) -> Tensor:
    if probability.device.type == "cpu":  # NumPy compares twice as fast as PyTorch
        return torch.from_numpy(probability[0, 0].numpy() > np.float32(threshold))
    return probability[0, 0] > threshold


def _whole(image: Tensor) -> Box:
    return Box(0, image.shape[-2] - 1, 0, image.shape[-1] - 1)


class Session:
    """An image, a model and the clicks so far.

    image: uint8 (H, W, 3) RGB. initial: optional mask to start from, float (H, W) in [0, 1]. undo: maximum number of
    undo steps (each stores a probability map). Raises HrsegError for an image or a mask of another shape or type.
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
        size = tuple(self._cache.image.shape[-2:])
        if initial is None:
            start = torch.zeros(1, 1, *size, device=self._cache.image.device)
        elif initial.shape == size:
            start = torch.from_numpy(initial.astype(np.float32))[None, None].to(self._cache.image.device).clamp(0, 1)
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
        painted = torch.from_numpy(where).to(self.state.probability.device)[None, None]
        after = self.state.probability.masked_fill(painted, float(positive))
        self._advance(replace(self.state, probability=after))
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
        return np.asarray(_above(self.state.probability, self.protocol.threshold).cpu().numpy())
