"""Open refiners and run them: on any mask, and on the masks of a session. See :mod:`hrseg_cli.refiners`."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, cast, get_type_hints

import cv2
import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from hrseg_cli import catalog
from hrseg_cli.checkpoints.refiners import read_refiner
from hrseg_cli.engine import views
from hrseg_cli.engine.views import Query
from hrseg_cli.errors import HrsegError, UnknownName
from hrseg_cli.interaction import Click
from hrseg_cli.models.base import InteractiveModel
from hrseg_cli.parsing import Malformed, parse_yaml
from hrseg_cli.recipe import Protocol, Refine, weights_of

BLANK = 0.05  # less probable pixels do not belong to the surroundings that are refined
MARGIN = 32  # pixels, at least, of the surroundings


class Refiner:
    """A refiner that is ready to run. It keeps no state, so one refiner serves many sessions.

    settings: as recorded with results. needs_model: whether it runs the click model.
    takes_clicks: whether clicks make a difference to it.
    """

    def __init__(self, settings: Refine, device: str = "cpu") -> None:
        self.settings = settings
        target: Any = catalog.resolve("refiner", settings.name)
        has_network = hasattr(target, "network")
        described = target.__call__ if has_network else target
        known = dict(inspect.signature(described).parameters)
        self.takes_clicks = "clicks" in known
        self._takes_enlarge = "enlarge" in known
        self._options = _checked(
            settings, {key for key, one in known.items() if one.kind == one.KEYWORD_ONLY}, described
        )
        self.needs_model = inspect.isgeneratorfunction(described)
        self._call: Callable[..., Any] = target
        file = weights_of(settings)
        if not has_network:
            if settings.weights is not None:
                raise HrsegError(f"refiner {settings.name}: has no network of its own; give no weights")
        elif file is None:
            raise HrsegError(
                f"refiner {settings.name}: needs weights; give their file: `weights`, or `changes` refine.weights=FILE"
            )
        else:
            network, _ = read_refiner(file, settings.name)
            self._call = target(network.to(device))

    def __call__(
        self,
        image: np.ndarray,
        probability: np.ndarray,
        clicks: Sequence[Click] = (),
        model: InteractiveModel | None = None,
    ) -> np.ndarray:
        """The refined probability, float32 (H, W).

        image: uint8 (H, W, 3), RGB. probability: float32 (H, W) in [0, 1]. clicks: on the object, if there are any.
        model: the click model, for refiners that need it.
        """
        if self.needs_model and model is None:
            raise HrsegError(f"refiner {self.settings.name}: runs the click model; give `model`")
        device = next(iter(model.parameters()), torch.empty(0)).device if model is not None else torch.device("cpu")
        enlarge = model.enlarge if model is not None else 1
        queries = self.queries(image, probability, clicks, device, enlarge)
        return views.drive(cast(InteractiveModel, model), queries)  # without a model, there are no queries

    def queries(
        self,
        image: np.ndarray,
        probability: np.ndarray,
        clicks: Sequence[Click] = (),
        device: torch.device | str = "cpu",
        enlarge: int = 1,
    ) -> Generator[Query, Tensor, np.ndarray]:
        """The same as a generator, for callers that run the click model themselves: yields queries, receives logits.

        enlarge: of the click model, see :class:`InteractiveModel`.

        Only the object and its surroundings are refined, so that the cost depends on them and not on the image.
        """
        result = np.array(probability, np.float32)
        place = _surroundings(result)
        if place is None:  # nothing to refine
            return result
        options = dict(self._options)
        if self.takes_clicks:
            options["clicks"] = tuple(Click(c.row - place[0].start, c.col - place[1].start, c.positive) for c in clicks)
        if self._takes_enlarge:
            options["enlarge"] = enlarge
        refined = self._call(np.ascontiguousarray(image[place]), result[place].copy(), **options)
        if self.needs_model:
            refined = yield from views.look_queries(refined, device, flip=False)
        result[place] = np.clip(refined, 0, 1)
        return result


def open_refiner(settings: Refine, device: str = "cpu") -> Refiner:
    """A refiner; the same one for the same settings. Raises HrsegError, or UnknownName for its name or an option."""
    return _opened(json.dumps(settings.model_dump(), sort_keys=True, default=str), device)


@lru_cache(maxsize=4)
def _opened(settings: str, device: str) -> Refiner:
    return Refiner(Refine.model_validate_json(settings), device)


def prepare_refiner(protocol: Protocol, device: str = "cpu") -> None:
    """Open the refiner of a protocol, if it has one, to report a mistake before any work. Raises as
    :func:`open_refiner`."""
    if protocol.refine:
        open_refiner(protocol.refine, device)


def options_of(changes: Iterable[str] | Mapping[str, Any]) -> dict[str, Any]:
    """Options from a mapping, or from ``key=value`` texts. Raises HrsegError."""
    if isinstance(changes, Mapping):
        return {str(key): value for key, value in changes.items()}
    found: dict[str, Any] = {}
    for change in changes:
        key, equals, text = change.partition("=")
        try:
            found[key.strip()] = parse_yaml(text)
        except Malformed:
            equals = ""
        if not equals or not key.strip():
            raise HrsegError(f"`options` {change}: write an option of the refiner as key=value, such as radius=8")
    return found


def _checked(settings: Refine, known: set[str], described: Callable[..., Any]) -> dict[str, Any]:
    """The options of a refiner, with the values that their annotations allow."""
    known = known - {"clicks", "enlarge"}  # given by the session
    hints = get_type_hints(described, include_extras=True)
    options = {}
    for key, value in settings.options.items():
        if key not in known:
            raise UnknownName(f"option of {settings.name}", key, sorted(known))
        try:
            options[key] = TypeAdapter(hints[key]).validate_python(value)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise HrsegError(
                f"refiner {settings.name}: option {key}: {reason[0].lower()}{reason[1:]} (got {value!r})"
            ) from None
    return options


def _surroundings(probability: np.ndarray) -> tuple[slice, slice] | None:
    """The box of the object with a margin, clipped to the image; None for an empty mask."""
    if not (probability > 0.5).any():
        return None
    left, top, cols, rows = cv2.boundingRect((probability > BLANK).astype(np.uint8))
    margin = max(MARGIN, max(rows, cols) // 4)
    return (
        slice(max(0, top - margin), min(probability.shape[0], top + rows + margin)),
        slice(max(0, left - margin), min(probability.shape[1], left + cols + margin)),
    )
