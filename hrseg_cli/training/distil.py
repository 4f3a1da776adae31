"""Distillation: a click model's features at stride 16 learn to predict those of a trained one, from images alone.

The features are those without clicks, so masks are not used. The teacher's are normalised at each place over the
channels, as in Wei et al. 2022, "Contrastive Learning Rivals Masked Image Modeling in Fine-tuning via Feature
Distillation".
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrseg_cli.data.samples import load
from hrseg_cli.errors import HrsegError
from hrseg_cli.models.base import InteractiveModel
from hrseg_cli.recipe import Data
from hrseg_cli.training.feed import Batch, Feed
from hrseg_cli.training.judge import Judge
from hrseg_cli.training.step import Training


class Distillation(InteractiveModel):
    """A student with a linear layer to the channels of its teacher.

    forward: {"features": (B, channels of the teacher, h, w)} of an image, at stride 16; points are not used. The
    teacher is frozen, and no part of this model: it is neither saved nor averaged. Raises HrsegError for a model
    without such features.
    """

    name = "distillation"

    def __init__(self, student: InteractiveModel, teacher: InteractiveModel) -> None:
        super().__init__()
        for model, key in ((student, "model.name"), (teacher, "teacher")):
            if not model.image_channels:
                raise HrsegError(f"{key}: '{model.name}' has no features at stride 16 to distil; use another model")
        self.config: dict[str, Any] = {}
        self.student = student
        self.with_prev_mask, self.unused = student.with_prev_mask, student.unused
        self.projection = nn.Conv2d(student.image_channels, teacher.image_channels, 1)
        self._teacher = [teacher.eval().requires_grad_(False)]  # in a list, PyTorch does not register it

    def forward(self, image: Tensor, points: Tensor | None = None) -> dict[str, Tensor]:
        return {"features": self.projection(self.student.image_features(image[:, :3]))}

    def targets(self, image: Tensor) -> Tensor:
        """The teacher's features of an image, (B, 3, H, W), normalised at each place."""
        self._teacher = [self._teacher[0].to(image.device)]
        with torch.no_grad():
            found = self._teacher[0].image_features(image)
        return F.layer_norm(found.permute(0, 2, 3, 1), found.shape[1:2]).permute(0, 3, 1, 2)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        groups = self.student.parameter_groups()
        return {**groups, "new": [*groups.get("new", ()), *self.projection.parameters()]}

    def distances(self) -> dict[nn.Parameter, int]:
        return self.student.distances()

    @contextmanager
    def backbone_fixed(self) -> Iterator[None]:
        with self.student.backbone_fixed():
            yield


class DistilFeed(Feed):
    """Like :class:`Feed`, images alone."""

    def _task(self, truths: np.ndarray, data: Data, rng: np.random.Generator) -> Batch:
        return {}


class DistilTraining(Training):
    """The student's features of an image, compared with the teacher's."""

    def outputs(self, batch: Batch) -> tuple[dict[str, Tensor], Batch]:
        self.model.train()
        image = batch["image"].float().div_(255)
        return self.model(image), {**batch, "truth": self.model.targets(image)}


class DistilJudge(Judge):
    """Keeps the weights whose features of held-out photographs, resized to the crop, are most similar to the
    teacher's: the mean cosine over all places."""

    columns = ("cosine",)
    better = 1

    def _measure(self, model: Any, number: int) -> tuple[float, ...]:
        height, width = self.recipe.data.crop
        photo = cv2.resize(load(self.refs[number]).image, (width, height), interpolation=cv2.INTER_AREA)
        device = next(model.parameters()).device
        image = torch.from_numpy(photo).to(device).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            similarity = F.cosine_similarity(model(image)["features"].float(), model.targets(image).float())
        return (float(similarity.mean()),)

    def told(self) -> str:
        return f"cosine similarity {self.values['cosine']:.4f}"
