"""One object being segmented: what a click leaves behind, the step from click to click, and a holder with undo."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from hrseg_cli.engine import views
from hrseg_cli.engine.views import Box, Look, Pictures, Shown
from hrseg_cli.errors import HrsegError
from hrseg_cli.interaction import Click
from hrseg_cli.models.base import InteractiveModel
from hrseg_cli.recipe import Protocol


@dataclass(frozen=True)
class State:
    """All that the next click depends on.

    probability: (1, 1, H, W) float32 in [0, 1]. box: the crop in use, None while the whole image is seen.
    stale: how often an answer for the whole image was squeezed into an old crop (a kept quirk of RITM's zoom-in).
    """

    probability: Tensor
    clicks: tuple[Click, ...] = ()
    box: Box | None = None
    stale: int = 0


def step(
    model: InteractiveModel,
    image: Tensor,
    state: State,
    click: Click,
    protocol: Protocol,
    around: Box | None = None,
) -> State:
    """The state after one more click: :func:`looks` answered by ``model``. Pure: nothing of model, image or state
    changes."""
    return views.follow(model, looks(model.enlarge, Pictures(image), state, click, protocol, around))


def looks(
    enlarge: int,
    pictures: Pictures,
    state: State,
    click: Click,
    protocol: Protocol,
    around: Box | None = None,
) -> Generator[Look, Tensor, State]:
    """The course to the state after one more click: yields what the network is to see, is sent its logits.

    pictures: the image, and crops of it that earlier clicks left. enlarge: see :class:`InteractiveModel`. around: where
    the object is known to lie; a protocol with zoom-in crops there instead of guessing from the previous answer.
    """
    clicks = (*state.clicks, click)
    if around is not None and protocol.zoom:
        guide = torch.zeros_like(state.probability)
        guide[..., around.top : around.bottom + 1, around.left : around.right + 1] = 1
        return (yield from _look(enlarge, pictures, state, guide, clicks, protocol))
    answer = yield from _look(enlarge, pictures, state, state.probability, clicks, protocol)
    zoom = protocol.zoom
    if zoom and zoom.skip_clicks <= 0 and answer.box is None:
        # The whole image was seen although crops are wanted from the first click on: a found object that fills little
        # of the image is looked at once more, closer, with the same previous mask.
        found = views.object_box(_above(answer.probability, zoom.mask_threshold), (), zoom)
        if found and views.box_iou(found, _whole(pictures.image)) < 0.5:
            answer = yield from _look(enlarge, pictures, state, answer.probability, clicks, protocol)
    return answer


def _look(
    enlarge: int,
    pictures: Pictures,
    state: State,
    guide: Tensor,
    clicks: tuple[Click, ...],
    protocol: Protocol,
) -> Generator[Look, Tensor, State]:
    """One look; ``guide`` (1, 1, H, W) says where the object is, ``state`` what was answered before."""
    height, width = pictures.image.shape[-2:]
    zoom, previous, box = protocol.zoom, state.probability, state.box
    wish = None
    if zoom and len(clicks) > zoom.skip_clicks:
        wish = views.object_box(_above(guide, zoom.mask_threshold), clicks, zoom)
        if wish is None and zoom.skip_clicks < 0:
            wish = _whole(pictures.image)
    if wish is None:
        answer = yield from _sigmoid(pictures.show(None, (height, width)), previous, clicks, protocol)
        stale = box is not None and protocol.keep_stale_roi
        if not stale:
            return State(answer, clicks, None, state.stale)
        assert box is not None
        return State(views.paste(answer, box, height, width), clicks, box, state.stale + 1)
    assert zoom is not None
    if box is None or not views.holds_positive_clicks(box, clicks) or views.box_iou(wish, box) < zoom.recompute_iou:
        box = wish
    size = views.crop_size(box, views.enlarged(zoom.target, enlarge))
    before = views.crop(previous, box, size)
    inside = views.crop_clicks(clicks, box, size)
    multiple = zoom.pad and zoom.pad * enlarge
    if multiple:
        before = views.padded(before, multiple)
        # Clicks beyond the crop would lie in the padding.
        inside = [c for c in inside[: protocol.network_clicks] if c.row < size[0] and c.col < size[1]]
    answer = yield from _sigmoid(pictures.show(box, size, multiple), before, inside, protocol)
    answer = answer[..., : size[0], : size[1]]
    return State(views.paste(answer, box, height, width), clicks, box, state.stale)


def _sigmoid(
    shown: Shown, previous: Tensor, clicks: Sequence[Click], protocol: Protocol
) -> Generator[Look, Tensor, Tensor]:
    return torch.sigmoid((yield from views.looks(shown, previous, clicks[: protocol.network_clicks], protocol)))


def _above(probability: Tensor, threshold: float) -> Tensor:
    if probability.device.type == "cpu":  # NumPy's comparison takes half as long as PyTorch's
        return torch.from_numpy(probability[0, 0].numpy() > np.float32(threshold))
    return probability[0, 0] > threshold


def _whole(image: Tensor) -> Box:
    return Box(0, image.shape[-2] - 1, 0, image.shape[-1] - 1)


class Session:
    """An image, a model and the clicks so far.

    image: uint8 (H, W, 3) RGB. initial: optional mask to start from, float (H, W) in [0, 1]. undo: how many clicks can
    be taken back (each keeps a probability map).
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
        if device.type != "cpu":  # there bytes save memory, and time at each crop of a large image
            pixels = views.unit(pixels)
        self._pictures = Pictures(pixels)
        self._past: deque[State] = deque(maxlen=undo)
        self._future: list[State] = []
        self.begin(initial)

    def begin(self, initial: np.ndarray | None = None) -> None:
        """Turn to another object of the image: no clicks, and the mask to start from, if any."""
        size = tuple(self._pictures.image.shape[-2:])
        if initial is None:
            start = torch.zeros(1, 1, *size, device=self._pictures.image.device)
        elif initial.shape == size:
            start = torch.from_numpy(initial.astype(np.float32))[None, None].to(self._pictures.image.device).clamp(0, 1)
        else:
            raise HrsegError(f"the mask to start from is {initial.shape}, its image {size}")
        self.state = State(start)
        self._past.clear()
        self._future.clear()

    def click(self, click: Click, around: Box | None = None) -> np.ndarray:
        """Answer one more click; the new mask, bool (H, W). Raises HrsegError for a click outside the image.

        around: see :func:`looks`.
        """
        return views.follow(self.model, self.looks(click, around))

    def looks(self, click: Click, around: Box | None = None) -> Generator[Look, Tensor, np.ndarray]:
        """The course of :meth:`click`, for whoever asks the network in its place."""
        height, width = self._pictures.image.shape[-2:]
        if not click.lies_in(height, width):
            raise HrsegError(f"click {click.row},{click.col} lies outside the image ({height} rows, {width} columns)")
        self._follow((yield from looks(self.model.enlarge, self._pictures, self.state, click, self.protocol, around)))
        return self.mask

    def paint(self, where: np.ndarray, positive: bool) -> np.ndarray:
        """Make the pixels of a bool mask (H, W) object, or background, by hand; the new mask. Later clicks start from
        it, and may change it again."""
        painted = torch.from_numpy(where).to(self.state.probability.device)[None, None]
        after = self.state.probability.masked_fill(painted, float(positive))
        self._follow(replace(self.state, probability=after))
        return self.mask

    def _follow(self, after: State) -> None:
        self._past.append(self.state)
        self._future.clear()
        self.state = after

    def undo(self) -> bool:
        """Take the last click back; False when there is none left to take back."""
        if not self._past:
            return False
        self._future.append(self.state)
        self.state = self._past.pop()
        return True

    def redo(self) -> bool:
        """Do again what :meth:`undo` took back; False when there is nothing."""
        if not self._future:
            return False
        self._past.append(self.state)
        self.state = self._future.pop()
        return True

    @property
    def probability(self) -> np.ndarray:
        """float32 (H, W) in [0, 1]."""
        return np.asarray(self.state.probability[0, 0].cpu().numpy())

    @property
    def mask(self) -> np.ndarray:
        """bool (H, W): where the probability is above the protocol's threshold."""
        return np.asarray(_above(self.state.probability, self.protocol.threshold).cpu().numpy())
