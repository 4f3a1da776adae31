"""What all Segment Anything models have in common, whatever runs their networks.

The encoder sees the image alone, once an image or once a crop. Clicks, box and previous mask go to a small decoder,
which answers with several masks and estimates of their quality. One of them is the answer.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from hrseg_cli.models.base import Features, InteractiveModel
from hrseg_cli.models.parts.click_maps import valid_slots
from hrseg_cli.models.sam import frame as frames
from hrseg_cli.models.sam.frame import Frame

CHOICES = ("iou", "previous", "single")


class Prompt(NamedTuple):
    """The prompt of one object, in pixels of the network's square.

    points: (N, 2), rows (x, y). labels: (N,), 1 for object and 0 for background. box: (4,), left, top, right, bottom.
    mask: (1, 1, h, w), logits. None: not given.
    """

    points: Tensor
    labels: Tensor
    box: Tensor | None
    mask: Tensor | None


class SegmentAnything(InteractiveModel):
    """A Segment Anything model. It cannot be trained, saved or exported by hrseg.

    choose: which of the decoder's masks is the answer. "iou": the one with the highest predicted IoU. "previous": the
        one most like the previous answer; without one, by predicted IoU. "single": the decoder's mask for unambiguous
        prompts.
    frame: the square that the network sees. mask_side: of the masks that the decoder takes.
    """

    mirror = False  # the published protocols of this family do not, and an average of two objects is neither
    has_encoder = True
    takes_boxes = True
    fixed_input = True
    exportable = False

    def __init__(self, name: str, frame: Frame, mask_side: int, choose: str) -> None:
        super().__init__()
        self.name, self.config = name, {"choose": choose}
        self.frame, self.mask_side, self.choose = frame, mask_side, choose

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"fixed": list(self.parameters())}

    def encode(self, image: Tensor) -> Features:
        """Embeddings of an image of any size, (B, 3, H, W); they are as large for a small image as for a large one."""
        return self.embed(frames.pixel_values(image, self.frame))

    def decode(
        self, features: Features, previous: Tensor, points: Tensor, boxes: Tensor | None = None
    ) -> dict[str, Tensor]:
        # One object at a time: a decoder attends to the padding of shorter prompts too, which would change its answer.
        logits = [
            self._answer(
                tuple(part[k : k + 1] for part in features),
                previous[k : k + 1],
                points[k : k + 1],
                None if boxes is None else boxes[k],
            )
            for k in range(len(previous))
        ]
        return {"logits": torch.cat(logits)}

    def _answer(self, features: Features, previous: Tensor, points: Tensor, box: Tensor | None) -> Tensor:
        size = (previous.shape[-2], previous.shape[-1])
        prompt = self.prompt(previous, points, box)
        masks, scores = self.masks(features, prompt, size)
        best = scores.argmax()
        if self.choose == "previous" and prompt.mask is not None:
            small = (masks.shape[-2], masks.shape[-1])
            before = frames.full_size(prompt.mask, small, Frame(self.frame.side, stretched=True)) > 0
            now = masks > 0
            best = ((now & before).sum((0, 2, 3)) / (now | before).sum((0, 2, 3)).clamp(min=1)).argmax()
        return frames.full_size(masks[:, best : best + 1].float(), size, self.frame)

    def prompt(self, previous: Tensor, points: Tensor, box: Tensor | None) -> Prompt:
        """The prompt of one object; arguments as for :meth:`decode`, of one object. Clicks outside the view, and a box
        outside it, are left out; the rest of a box that exceeds it is cut off."""
        size = (previous.shape[-2], previous.shape[-1])
        positive = torch.arange(points.shape[1], device=points.device) < points.shape[1] // 2
        limits = points.new_tensor(size)
        inside = valid_slots(points)[0] & ((points[0, :, :2] >= 0) & (points[0, :, :2] < limits)).all(1)
        order = points[0, inside, 2].argsort(stable=True)
        clicked = frames.places(points[0, inside, :2][order], size, self.frame)
        corners = None
        if box is not None and bool((box[2:] >= 0).all() and (box[:2] < box.new_tensor(size)).all()):
            ends = torch.minimum(box.view(2, 2).clamp(min=0), box.new_tensor(size) - 1)
            corners = frames.places(ends, size, self.frame).flatten()
        mask = frames.mask_input(previous, self.frame, self.mask_side)
        return Prompt(clicked, positive[inside][order].long(), corners, mask)

    def embed(self, pixels: Tensor) -> Features:
        """The embeddings of normalised pixels, (B, 3, side, side)."""
        raise NotImplementedError

    def masks(self, features: Features, prompt: Prompt, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The masks to choose from, as logits (1, M, h, w) of the square, and their predicted IoU, (M,).

        features: of one image. size: of that image as the session sees it, (H, W).
        """
        raise NotImplementedError
