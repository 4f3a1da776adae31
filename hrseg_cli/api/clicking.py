"""Load models, and segment images with clicks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL.Image import Image

from hrseg_cli import catalog
from hrseg_cli.api.arguments import as_click, as_image, as_initial, changes_of, checked_box, checked_count, name_of
from hrseg_cli.engine import session as engine
from hrseg_cli.engine.devices import available, reproducible
from hrseg_cli.engine.runtimes import ModelChoice
from hrseg_cli.errors import HrsegError
from hrseg_cli.interaction import Click
from hrseg_cli.recipe import load_protocol

if TYPE_CHECKING:
    from hrseg_cli.models.base import InteractiveModel

ImageLike = str | PathLike[str] | Image | np.ndarray


def load(
    model: str | PathLike[str] = catalog.DEFAULT_MODEL,
    *,
    device: str = "cpu",
    precision: str | None = "fp32",
    runtime: str | None = None,
) -> Model:
    """Load a trained model.

    model: a name with weights ("clicknet_m", "h18s", "grabcut"), the path of a checkpoint (.safetensors, RITM's .pth)
        or of an exported .onnx file, or "BASE+ADAPTER".
    device: "cpu", "cuda" or "cuda:N".
    precision: "fp32", "bf16" (faster where the processor supports it; results differ slightly), or None for the faster
        of the two on this machine.
    runtime: "torch", "onnxruntime", "openvino" or "openvino-bf16"; None: ONNX Runtime for an .onnx file, otherwise
        torch.

    Raises HrsegError if the model cannot be loaded, UnknownName for an unknown name.
    """
    chosen = ModelChoice(name_of("model", model), runtime, available(str(device)), precision)
    network, provenance = chosen.open()
    return Model(chosen, network, provenance)


class Model:
    """A loaded model, returned by :func:`load`. It keeps no state between calls, so one model serves many sessions.

    name: of its architecture. provenance: source of its weights (name, options, file, sha256). device: the device it
    runs on.
    """

    def __init__(self, chosen: ModelChoice, network: InteractiveModel, provenance: dict[str, Any]) -> None:
        self.name = str(provenance["name"])
        self.provenance = provenance
        self.device = chosen.device
        self._chosen, self._network = chosen, network

    def __repr__(self) -> str:
        return f"<hrseg model '{self.name}' on {self.device}>"

    def session(
        self,
        image: ImageLike,
        *,
        protocol: str | PathLike[str] = "fast",
        changes: Mapping[str, Any] | Sequence[str] = (),
        initial: ImageLike | None = None,
        span: str | tuple[float, float] | None = None,
        max_undo: int = 20,
    ) -> Session:
        """Start to segment one object of an image.

        image: the path of an image file, a PIL image, or a uint8 array: grey (H, W), RGB (H, W, 3) or RGBA (H, W, 4),
            whose alpha channel is dropped. It is copied. Files are rotated according to their EXIF tag, PIL images are
            not.
        protocol: how clicks become a mask: the name of a protocol or a YAML file. "fast" and "photo" are for
            interactive use, "ritm" and others for comparisons. changes: to the protocol, as ``{"zoom.target": 600}`` or
            ``["zoom.target=600"]``.
        initial: a mask to correct: the path of a mask file, or an array (H, W) of the image's size: bool, probabilities
            in [0, 1], or integers, 0 and 1 or 0 and 255.
        span: the values of black and white in a file with more than 8 bits, as (0, 4095).
        max_undo: number of clicks that can be undone; each takes a float32 (H, W) of memory.

        Raises HrsegError for an unsupported image or mask, UnknownName for an unknown protocol.
        """
        steps = load_protocol(name_of("protocol", protocol), changes_of(changes))
        pixels = as_image(image, span)
        start = as_initial(initial, (pixels.shape[0], pixels.shape[1]))
        undo = checked_count("max_undo", max_undo, 0)
        return Session(engine.Session(self._network, pixels, steps, start, undo))


class Session:
    """One object of an image, segmented click by click; returned by :meth:`Model.session`.

    Axis order is (row, column), in pixels of the full image, with row 0 at the top. Every mask is a new bool array
    (H, W): True on the object.
    """

    def __init__(self, session: engine.Session) -> None:
        self._session = session

    def __repr__(self) -> str:
        height, width = self.size
        return f"<hrseg session on {height} x {width} pixels, clicks: {len(self.clicks)}>"

    def click(self, row: float, col: float, positive: bool = True) -> np.ndarray:
        """Add a click and return the new mask, bool (H, W).

        row, col: pixels, 0 <= row < H and 0 <= col < W; fractions are allowed. positive: True on the object, False on
        the background. Raises HrsegError for a click outside the image; the session is then unchanged.
        """
        click = as_click(row, col, positive, self.size)
        with reproducible():
            return self._session.click(click)

    def box(self, top: float, left: float, bottom: float, right: float) -> np.ndarray:
        """Draw a box around the object and return the new mask, bool (H, W).

        A model that takes boxes ("clicknet_m") sees the box and all clicks, also those that follow; a second box
        replaces the first. For other models the box is a click on its centre, answered from the box and a margin around
        it. top, left, bottom, right: pixels, the last two inclusive; rounded, and clipped to the image. Raises
        HrsegError for a box outside the image; the session is then unchanged.
        """
        box = checked_box((top, left, bottom, right), self.size)
        with reproducible():
            return self._session.box(box)

    def undo(self) -> bool:
        """Undo the last click or box; False if there is none, or if it can no longer be undone."""
        return self._session.undo()

    def reset(self, initial: ImageLike | None = None) -> None:
        """Start over on the same image, for example for another object: without clicks, and with the mask ``initial``
        (see :meth:`Model.session`), or none. Raises HrsegError for an unsupported mask."""
        self._session.begin(as_initial(initial, self.size))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image."""
        height, width = self._session.state.answer.size
        return int(height), int(width)

    @property
    def clicks(self) -> tuple[Click, ...]:
        """The clicks so far."""
        return self._session.state.clicks

    @property
    def mask(self) -> np.ndarray:
        """The current mask, bool (H, W). Before the first click it is the initial mask, or empty."""
        return self._session.mask

    @property
    def probability(self) -> np.ndarray:
        """The probability of each pixel to belong to the object: float32 (H, W) in [0, 1], a copy."""
        return self._session.probability.copy()


def choice_of(
    model: str | PathLike[str] | Model, device: str | None, precision: str | None, runtime: str | None
) -> ModelChoice:
    """The chosen model and how to run it; None: the default. Raises HrsegError for settings of a loaded model, which
    has its own."""
    given = {"device": device, "precision": precision, "runtime": runtime}
    if isinstance(model, Model):
        if names := [name for name, value in given.items() if value is not None]:
            raise HrsegError(f"`{names[0]}`: the loaded model has its own; pass it to load() instead")
        return model._chosen
    return ModelChoice(name_of("model", model), runtime, available(str(device or "cpu")), precision or "fp32")
