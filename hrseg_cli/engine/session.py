"""Segmenting one object: the state between clicks, the transition from click to click, and a session with undo."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from hrseg_cli.engine import focusing, views
from hrseg_cli.engine.answers import Answer, blank
from hrseg_cli.engine.refining import Refiner, open_refiner
from hrseg_cli.engine.views import Memory, Query, View, ViewCache
from hrseg_cli.errors import HrsegError
from hrseg_cli.interaction import Box, Click, Prompt
from hrseg_cli.models.base import InteractiveModel
from hrseg_cli.recipe import Protocol, ZoomIn
from hrseg_cli.refiners.focuscut import Focus


@dataclass(frozen=True)
class SessionState:
    """Everything that the next click depends on.

    answer: the object's probabilities. box: the current crop, None for the whole image.
    stale: how often a prediction for the whole image was pasted into an outdated crop (a quirk of RITM's zoom-in that
        ``keep_stale_roi`` reproduces).
    drawn: the box around the object that the network is given, None if there is none.
    focuses: details that are looked at closely after each click, if the protocol does so.
    memory: what a model that remembers keeps of the last click, and the view of which it does.
    """

    answer: Answer
    clicks: tuple[Click, ...] = ()
    box: Box | None = None
    stale: int = 0
    drawn: Box | None = None
    focuses: tuple[Focus, ...] = ()
    memory: tuple[object, dict[bool, Tensor]] = (None, {})

    @property
    def probability(self) -> Tensor:
        """(1, 1, H, W) float32 in [0, 1], resized at each access."""
        return self.answer.whole

    def with_probability(self, probability: Tensor) -> SessionState:
        """The same with other probabilities, (1, 1, H, W) float32 in [0, 1]."""
        return replace(self, answer=Answer(probability, None, self.answer.size))


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

    A box that was drawn before (:func:`box_queries`) stays part of the prompt, and of what is cropped.

    cache: the image and its cached views. enlarge: see :class:`InteractiveModel`. around: a box known to contain the
    object; a protocol with zoom-in crops there instead of relying on the previous mask.
    """
    after = yield from _whole_object(enlarge, cache, state, click, protocol, around)
    if protocol.focus is None:
        return after
    focuses, probability = yield from focusing.focused(
        enlarge, cache.image, state.probability, after.probability, state.focuses, after.clicks, protocol
    )
    return replace(after.with_probability(probability), focuses=focuses)


def _whole_object(
    enlarge: int, cache: ViewCache, state: SessionState, click: Click, protocol: Protocol, around: Box | None
) -> Generator[Query, Tensor, SessionState]:
    """:func:`click_queries` without the close-up views of details."""
    clicks = (*state.clicks, click)
    if around is not None and protocol.zoom:
        return (yield from _query_view(enlarge, cache, state, around, clicks, protocol))
    after = yield from _query_view(enlarge, cache, state, state.answer, clicks, protocol)
    zoom = protocol.zoom
    if zoom and zoom.skip_clicks <= 0 and after.box is None and state.drawn is None:
        # The protocol zooms in from the first click, but there was no mask yet to crop around. If the predicted object
        # fills little of the image, repeat the click on a crop, with the same previous mask.
        wanted = _wanted(after.answer, (), zoom, after.answer.size)
        if wanted and views.box_iou(wanted, _whole(cache.image)) < 0.5:
            after = yield from _query_view(enlarge, cache, state, after.answer, clicks, protocol)
    return after


def box_queries(
    enlarge: int, cache: ViewCache, state: SessionState, box: Box, protocol: Protocol
) -> Generator[Query, Tensor, SessionState]:
    """Yield the query of a box drawn around the object, for a model that takes boxes. Returns the new state.

    A protocol with zoom-in crops around the box and the positive clicks, whatever the mask so far. A second box
    replaces the first. box: inside the image. Other arguments as for :func:`click_queries`.
    """
    drawn = replace(state, drawn=box)
    return (yield from _query_view(enlarge, cache, drawn, None, state.clicks, protocol))


def _query_view(
    enlarge: int,
    cache: ViewCache,
    state: SessionState,
    guide: Answer | Box | None,
    clicks: tuple[Click, ...],
    protocol: Protocol,
) -> Generator[Query, Tensor, SessionState]:
    """One prediction, on the whole image or on a crop around the object of ``guide``, if any."""
    height, width = cache.image.shape[-2:]
    zoom, box, drawn = protocol.zoom, state.box, state.drawn
    wanted = None
    if zoom and (drawn or len(clicks) > zoom.skip_clicks):
        wanted = _wanted(guide, clicks, zoom, (height, width), drawn)
        if wanted is None and zoom.skip_clicks < 0:
            wanted = _whole(cache.image)
    if wanted is None:
        view = cache.view(None, (height, width))
        memory = _memory(state, None)
        probability = yield from _sigmoid(view, state.probability, clicks, protocol, drawn, memory)
        state = replace(state, memory=(None, memory.after))
        stale = box is not None and protocol.keep_stale_roi
        if not stale:
            return replace(state, answer=Answer(probability, None, (height, width)), clicks=clicks, box=None)
        assert box is not None
        pasted = Answer(probability, box, (height, width))
        return replace(state, answer=pasted, clicks=clicks, stale=state.stale + 1)
    assert zoom is not None
    if (
        box is None
        or not views.holds_positive_clicks(box, clicks)
        or (drawn and not box.covers(drawn))
        or views.box_iou(wanted, box) < zoom.recompute_iou
    ):
        box = wanted
    size = views.crop_size(box, views.enlarged(zoom.target, enlarge))
    cropped = state.answer.crop(box, size)
    inside = views.crop_clicks(clicks, box, size)
    multiple = zoom.pad and zoom.pad * enlarge
    if multiple:
        cropped = views.padded(cropped, multiple)
        # Clicks outside the crop must not land in the padding.
        inside = [c for c in inside[: protocol.network_clicks] if c.row < size[0] and c.col < size[1]]
    prompt = drawn and views.crop_box(drawn, box, size)
    memory = _memory(state, box)
    view = cache.view(box, size, multiple)
    probability = yield from _sigmoid(view, cropped, inside, protocol, prompt, memory)
    probability = probability[..., : size[0], : size[1]]
    state = replace(state, memory=(box, memory.after))
    return replace(state, answer=Answer(probability, box, (height, width)), clicks=clicks, box=box)


def _sigmoid(
    view: View, previous: Tensor, clicks: Sequence[Click], protocol: Protocol, drawn: Box | None, memory: Memory
) -> Generator[Query, Tensor, Tensor]:
    shown = clicks[: protocol.network_clicks]
    return torch.sigmoid((yield from views.crop_queries(view, previous, shown, protocol, drawn, memory)))


def _memory(state: SessionState, place: Box | None) -> Memory:
    """For a query of this part of the image: what the state remembers of it, if anything."""
    known, before = state.memory
    return Memory(before if known == place else {})


def _wanted(
    guide: Answer | Box | None, clicks: Sequence[Click], zoom: ZoomIn, size: tuple[int, int], drawn: Box | None = None
) -> Box | None:
    """The crop around an object, the clicks and the drawn box; None if there is neither object nor box."""
    found = guide.extent(zoom.mask_threshold) if isinstance(guide, Answer) else guide and views.clamp(guide, *size)
    parts = [one for one in (found, drawn) if one]
    return views.object_box(views.around(parts), clicks, zoom, size) if parts else None


def _whole(image: Tensor) -> Box:
    return Box(0, image.shape[-2] - 1, 0, image.shape[-1] - 1)


class Session:
    """An image, a model, and the clicks and box so far.

    image: uint8 (H, W, 3) RGB. initial: optional mask to start from, float (H, W) in [0, 1]. undo: maximum number of
    undo steps. The protocol's refiner runs after every click, or only in :meth:`refine` and :meth:`final_queries`, as
    the protocol says. Raises HrsegError for an image or a mask of another shape or type.
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
        device = next((weight.device for weight in model.parameters()), torch.device("cpu"))
        self.model, self.protocol = model, protocol
        self._image = image  # for refiners
        self._refiner = open_refiner(protocol.refine, str(device)) if protocol.refine else None
        pixels = torch.from_numpy(image).to(device).permute(2, 0, 1)[None]
        if device.type != "cpu":  # on a CPU uint8 saves memory, and time whenever a large image is cropped
            pixels = views.unit(pixels)
        self._cache = ViewCache(pixels, model.fixed_input)
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
        views.drive(self.model, self._clicked(click, around))
        return self.mask

    def queries(self, prompt: Prompt) -> Generator[Query, Tensor, np.ndarray]:
        """:meth:`prompt` as a generator, for callers that run the network themselves: yields queries, receives logits,
        returns the new mask."""
        yield from self._prompted_with(prompt)
        return self.mask

    def _prompted_with(self, prompt: Prompt) -> Generator[Query, Tensor, None]:
        yield from self._boxed(prompt) if isinstance(prompt, Box) else self._clicked(prompt)

    def _clicked(self, click: Click, around: Box | None = None) -> Generator[Query, Tensor, None]:
        height, width = self._cache.image.shape[-2:]
        if not click.lies_in(height, width):
            raise HrsegError(f"click {click.row},{click.col} lies outside the image ({height} rows, {width} columns)")
        model, state = self.model, self.state
        queries = click_queries(model.enlarge, self._cache, state, click, self.protocol, around)
        self._advance((yield from self._answer(queries)))

    def box(self, box: Box) -> np.ndarray:
        """Draw a box around the object and return the new mask, bool (H, W). A model that takes boxes is given it
        together with all clicks; a later box replaces it. For other models it is a click on its centre, answered from
        the box and a margin around it.

        box: clipped to the image. Raises HrsegError for a box that is empty or outside the image.
        """
        return self.prompt(box)

    def _boxed(self, box: Box) -> Generator[Query, Tensor, None]:
        height, width = self._cache.image.shape[-2:]
        inside = box.inside(height, width)
        if inside is None:
            top, bottom, left, right = box
            raise HrsegError(
                f"box {top},{left},{bottom},{right} (top, left, bottom, right) covers no pixel of the image ({height} "
                f"rows, {width} columns)"
            )
        if not self.model.takes_boxes:
            yield from self._clicked(inside.centre, inside)
            return
        queries = box_queries(self.model.enlarge, self._cache, self.state, inside, self.protocol)
        self._advance((yield from self._answer(queries)))

    def prompt(self, prompt: Prompt) -> np.ndarray:
        """:meth:`click` or :meth:`box`."""
        self.apply(prompt)
        return self.mask

    def apply(self, prompt: Prompt) -> None:
        """:meth:`prompt` for a caller who does not need the mask, which takes its time in a large image."""
        views.drive(self.model, self._prompted_with(prompt))

    def refine(self, refiner: Refiner | None = None) -> np.ndarray:
        """Refine the current mask, by default as the protocol says, and return the new one; :meth:`undo` undoes it.

        Raises HrsegError if neither names a refiner.
        """
        chosen = refiner or self._refiner
        if chosen is None:
            raise HrsegError("no refiner; name one in the protocol, such as `changes` refine.name=guided_filter")
        self._advance(views.drive(self.model, self._refined(chosen, self.state)))
        return self.mask

    def final_queries(self) -> Generator[Query, Tensor, np.ndarray]:
        """The mask if the last click was the last one: refined, if the protocol refines last. The state, from which
        the next click continues, is not refined."""
        if not (self._refiner and self._refiner.settings.when == "last" and self._prompted):
            return self.mask
        after = yield from self._refined(self._refiner, self.state)
        return after.answer.above(self.protocol.threshold)

    def finish(self) -> np.ndarray:
        """Call it after the last click: refines the mask if the protocol refines last. Returns the mask."""
        if self._refiner and self._refiner.settings.when == "last" and self._prompted:
            return self.refine()
        return self.mask

    @property
    def _prompted(self) -> bool:
        return bool(self.state.clicks or self.state.drawn)

    def _answer(self, queries: Generator[Query, Tensor, SessionState]) -> Generator[Query, Tensor, SessionState]:
        """The state after a prompt, refined if the protocol refines each answer."""
        after = yield from queries
        if self._refiner and self._refiner.settings.when == "each":
            after = yield from self._refined(self._refiner, after)
        return after

    def _refined(self, refiner: Refiner, state: SessionState) -> Generator[Query, Tensor, SessionState]:
        device = state.probability.device
        before = np.asarray(state.probability[0, 0].cpu().numpy())
        after = yield from refiner.queries(self._image, before, state.clicks, device, self.model.enlarge)
        return state.with_probability(torch.from_numpy(after)[None, None].to(device))

    def paint(self, where: np.ndarray, positive: bool) -> None:
        """Set the pixels of a bool mask (H, W) to object or background. Later clicks may change them again."""
        before = self.state.probability
        after = before.masked_fill(torch.from_numpy(where).to(before.device)[None, None], float(positive))
        self._advance(self.state.with_probability(after))

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
