"""The square that a Segment Anything model sees: how images, clicks, boxes and masks get into it and back.

SAM and SAM-HQ scale an image to its longer side and pad it at the bottom and on the right; SAM 2 stretches it.
Kirillov et al. 2023, appendix A; Ravi et al. 2024. Images are resized as by transformers' image
processors: with Pillow, as 8-bit values, with a filter that widens when it downsamples.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

# ImageNet's, which all published models of this family use.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

# Previous masks are given as logits, limited to this: single precision knows no larger ones of a probability.
LIMIT = 16.0


class Frame(NamedTuple):
    """side: of the square, in pixels. stretched: whether an image fills it, whatever its shape. mean, std: of the
    normalisation, for values in [0, 1]."""

    side: int = 1024
    stretched: bool = False
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    def inner(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the resized image in the top left corner of the square."""
        if self.stretched:
            return self.side, self.side
        scale = self.side / max(height, width)
        return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resized(image: Tensor, frame: Frame) -> np.ndarray:
    """uint8 (h, w, 3), the resized image, neither normalised nor padded. image: (3, H, W), RGB in [0, 1]."""
    height, width = frame.inner(*image.shape[1:])
    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))


def pixel_values(images: Tensor, frame: Frame) -> Tensor:
    """(B, 3, side, side), resized, normalised, then padded with zeros. images: (B, 3, H, W), RGB in [0, 1]."""
    small = np.stack([resized(image, frame) for image in images])
    values = torch.from_numpy(small).to(images.device).permute(0, 3, 1, 2).float() / 255
    mean, std = (values.new_tensor(three).view(1, 3, 1, 1) for three in (frame.mean, frame.std))
    return padded((values - mean) / std, frame.side)


def padded(x: Tensor, side: int, value: float = 0.0) -> Tensor:
    """``x`` padded to a square at the bottom and on the right."""
    height, width = x.shape[-2:]
    return F.pad(x, (0, side - width, 0, side - height), value=value)


def places(coordinates: Tensor, size: tuple[int, int], frame: Frame) -> Tensor:
    """(N, 2) float32 rows (x, y) in the square, of (row, col) in an image of ``size``."""
    scale = [to / side for to, side in zip(frame.inner(*size), size, strict=True)]
    return (coordinates * coordinates.new_tensor(scale)).flip(-1).float()


def mask_input(previous: Tensor, frame: Frame, side: int) -> Tensor | None:
    """(1, 1, side, side): a previous mask as the logits that the network takes; None for an empty one.

    previous: (1, 1, H, W), probabilities.
    """
    if not bool(previous.any()):
        return None
    logits = torch.logit(previous.float(), eps=1e-7).clamp(-LIMIT, LIMIT)
    inner = F.interpolate(logits, frame.inner(*previous.shape[-2:]), mode="bilinear", antialias=True)
    return F.interpolate(padded(inner, frame.side, -LIMIT), (side, side), mode="bilinear", antialias=True)


def full_size(logits: Tensor, size: tuple[int, int], frame: Frame) -> Tensor:
    """(1, 1, H, W): the network's small mask (1, 1, h, w) at the image's ``size``."""
    if not frame.stretched:
        height, width = frame.inner(*size)
        logits = F.interpolate(logits, (frame.side, frame.side), mode="bilinear", align_corners=False)
        logits = logits[..., :height, :width]
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)
