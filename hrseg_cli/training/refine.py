"""Training of refiners: samples with coarse masks, and validation by how much the masks of held-out objects improve."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hrseg_cli import catalog
from hrseg_cli.data.samples import load
from hrseg_cli.recipe import Data
from hrseg_cli.refiners.coarse import coarsened
from hrseg_cli.training.feed import Batch, Feed
from hrseg_cli.training.judge import Judge
from hrseg_cli.training.step import Training


class RefineFeed(Feed):
    """Like :class:`Feed`, with "coarse" instead of clicks: uint8 (1, h, w), a coarse mask of one object, 0 or 1."""

    def _task(self, truths: np.ndarray, data: Data, rng: np.random.Generator) -> Batch:
        targets = truths[(truths == 1).sum((1, 2)) >= data.min_area]
        if len(targets):
            truth = targets[rng.integers(len(targets))]
        else:
            truth = np.where((truths != 0).any(0), np.int8(-1), np.int8(0))
        coarse = coarsened(truth == 1, rng, rng.uniform(*self.recipe.coarse.iou))
        return {"truth": torch.from_numpy(truth[None].copy()), "coarse": torch.from_numpy(coarse[None].view(np.uint8))}


class RefineTraining(Training):
    """A refiner's network: one prediction, from a mask of the refiner's choice between coarse and fine."""

    def outputs(self, batch: Batch) -> tuple[dict[str, Tensor], Batch]:
        self.model.train()
        image = batch["image"].float().div_(255)
        # The seed of the step also determines these numbers.
        return self.model.predicted(image, batch["coarse"], batch["truth"], torch.rand), batch


class RefineJudge(Judge):
    """Refines a fixed coarse mask of each object, and keeps the weights with the best mean of ``validation.metric``."""

    columns = ("refined", "coarse", "coarse_biou", "refined_biou")
    better = 1

    def _measure(self, model: Any, number: int) -> tuple[float, ...]:
        sample = load(self.refs[number])
        coarse = coarsened(sample.truth == 1, np.random.default_rng(number), sum(self.recipe.coarse.iou) / 2)
        refined = model.refined(sample.image, coarse)
        score, biou = (catalog.resolve("metric", name)(sample.truth) for name in (self.validation.metric, "biou"))
        return score(refined), score(coarse), biou(coarse), biou(refined)

    def told(self) -> str:
        return f"{self.validation.metric} {self.values['refined']:.4f}, coarse masks {self.values['coarse']:.4f}"
