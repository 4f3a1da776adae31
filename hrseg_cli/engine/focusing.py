"""FocusCut's close-up views in the click loop, run by the click model; see :mod:`hrseg_cli.refiners.focuscut`."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np
import torch
from torch import Tensor

from hrseg_cli.engine.views import Query, look_queries
from hrseg_cli.interaction import Click
from hrseg_cli.recipe import Protocol
from hrseg_cli.refiners import focuscut
from hrseg_cli.refiners.focuscut import Focus


def focused(
    enlarge: int,
    image: Tensor,
    before: Tensor,
    after: Tensor,
    focuses: tuple[Focus, ...],
    clicks: Sequence[Click],
    protocol: Protocol,
) -> Generator[Query, Tensor, tuple[tuple[Focus, ...], Tensor]]:
    """The details to look at after the last of ``clicks``, and the probability with them refined.

    image: (1, 3, H, W), float32 in [0, 1] or uint8. before, after: (1, 1, H, W), probability before and after that
    click. focuses: those of earlier clicks. The first click of an object corrects nothing.
    """
    settings, device = protocol.focus, after.device
    assert settings is not None
    probability = np.asarray(after[0, 0].cpu().numpy())
    if len(clicks) > 1:
        masks = (np.asarray(one[0, 0].cpu().numpy()) > np.float32(protocol.threshold) for one in (before, after))
        found = focuscut.focus(clicks[-1], *masks)
        focuses = (*focuses, found) if found else focuses
    if not focuses:
        return focuses, after
    pixels = image if image.dtype == torch.uint8 else (255 * image).round().to(torch.uint8)
    looks = focuscut.views(
        pixels[0].permute(1, 2, 0).cpu().numpy(),
        probability,
        focuses,
        clicks[: protocol.network_clicks],
        side=settings.side * enlarge,
        turns=settings.turns,
        scale=settings.scale,
        ratio=settings.ratio,
    )
    refined = yield from look_queries(looks, device, protocol.flip)
    return focuses, torch.from_numpy(refined).to(device)[None, None]
