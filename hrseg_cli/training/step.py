"""One training step. Of a click network: iterative training with the network's own previous mask (Sofiiuk et al. 2021,
sections 3.2 and 4).

A step depends only on weights, recipe and (epoch, step), so a resumed training ends with the same weights as an
uninterrupted one.
"""

from __future__ import annotations

import math
import os
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # a deprecation in a dependency of Lightning
    import lightning.pytorch as pl

from hrseg_cli import catalog
from hrseg_cli.clicks.sampler import add_next_click
from hrseg_cli.errors import HrsegError, Interrupted
from hrseg_cli.losses import scheduled
from hrseg_cli.models.base import Features, InteractiveModel
from hrseg_cli.recipe import Optim, Recipe
from hrseg_cli.recipe.training import LEAST_LATE, MOST_LATE
from hrseg_cli.refiners import TrainedRefiner
from hrseg_cli.training.feed import Batch, steps_per_epoch

Network = InteractiveModel | TrainedRefiner


@dataclass
class Interaction:
    """A batch of objects and the clicks on them so far.

    batch: from the feed. image: (B, 3, H, W) in [0, 1]. points: (B, 2N, 3). previous: (B, 1, H, W) in [0, 1], the mask
    that the network sees next. seen: the mask that it has predicted from these, and that the next click corrects; None
    before the prediction. rounds: corrective rounds so far. late: how many of them precede the first prediction that is
    trained, where every one after it is.
    features: of the image, if they stay the same for the whole batch; else None.
    memory: of the last prediction, by a model that remembers.
    """

    batch: Batch
    image: Tensor
    points: Tensor
    previous: Tensor
    seen: Tensor | None = None
    rounds: int = 0
    late: int = 0
    features: Features | None = None
    memory: Tensor | None = None


class Training(pl.LightningModule, ABC):
    """One step of any network: its outputs for a batch, compared with the truth by the losses of the recipe."""

    def __init__(self, model: Network, recipe: Recipe) -> None:
        super().__init__()
        self.model: Any = model
        self.recipe = recipe
        self.terms = [(term, catalog.resolve("loss", term.name)) for term in recipe.losses]
        self.boundary = recipe.losses.index(recipe.boundary) if recipe.boundary else None
        self.values: dict[str, Tensor] = {}  # the loss and its terms at the last step

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        key, turn = batch["key"][0].tolist(), int(batch["turn"][1])
        torch.manual_seed(_seed(self.recipe.seed, key, self.global_rank, turn))  # for dropout

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        out, seen = self.outputs(batch)
        total, values = self.loss(out, seen, self.current_epoch)
        self._refuse_nan(total, seen)
        self.values = {name: value.detach() for name, value in {"train/loss": total, **values}.items()}
        self.log("train/loss", total, prog_bar=True, logger=False, batch_size=len(seen["key"]))
        return total

    @abstractmethod
    def outputs(self, batch: Batch) -> tuple[dict[str, Tensor], Batch]:
        """The outputs that are trained, and the batch with what the network was given."""

    def loss(self, out: dict[str, Tensor], batch: Batch, epoch: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        """The recipe's weighted loss and its unweighted terms by name, averaged over the batch."""
        truth = batch["truth"].float()
        values, weights = {}, [term.weight for term in self.recipe.losses]
        for term, loss in self.terms:
            logits = out[term.output]
            if term.name == "boundary":
                value = loss(logits, batch["distance"])
            else:
                value = loss(logits, reduced(truth, logits.shape[-2:]), **term.options)
            values[f"train/{term.output}_{term.name}"] = value.mean()
        if self.boundary is not None:
            plan = self.recipe.loss_schedule
            pair = weights[0], weights[self.boundary]
            weights[0], weights[self.boundary] = scheduled(plan.kind, epoch, pair, step=plan.step)
        total = sum(weight * value for weight, value in zip(weights, values.values(), strict=True))
        return torch.as_tensor(total), values

    def _refuse_nan(self, loss: Tensor, batch: Batch) -> None:
        """Raise HrsegError for a loss that is not finite, in all processes at once: a single one would leave the others
        waiting."""
        bad = not bool(torch.isfinite(loss))
        folder = Path(self.trainer.default_root_dir)
        if bad:
            kept = {name: value.cpu() for name, value in batch.items()}
            torch.save(kept, folder / f"bad_batch_{self.global_rank}.pt")
        if not self.trainer.strategy.reduce_boolean_decision(bad, all=False):
            return
        if self.global_rank:
            raise Interrupted  # rank 0 reports the error
        seen = next(iter(sorted(folder.glob("bad_batch_*.pt"))), folder / "bad_batch_*.pt")
        raise HrsegError(
            f"the loss became {loss.item() if bad else 'NaN or infinite'} at step {self.global_step} (batch saved to "
            f"{seen}); lower optim.lr, set optim.clip=1, or set precision=fp32"
        )

    def configure_optimizers(self) -> Any:
        optim = self.recipe.optim
        optimizer = make_optimizer(self.model, optim)
        steps = math.ceil(steps_per_epoch(self.recipe, self.trainer.world_size) / optim.accumulate)
        factor = schedule(optim, steps, self.recipe.epochs)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, factor), "interval": "step"}]


class ClickTraining(Training):
    """A click network: corrective clicks on earlier predictions, then the prediction that is trained.

    With ``clicks.trained=last`` a batch takes one step, and the earlier predictions are computed for it, without
    gradient. With ``every`` it takes one step per prediction, and each step corrects the prediction of the one before.
    """

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        if "image" in batch:
            self.current = begun(batch, self.recipe.channels_last)
        super().on_train_batch_start({**self.current.batch, **batch}, batch_idx)

    def outputs(self, batch: Batch) -> tuple[dict[str, Tensor], Batch]:
        number, turn, _ = batch["turn"].tolist()
        current, epoch = self.current, self.current_epoch
        rng = np.random.default_rng((self.recipe.seed, epoch, number, 1, turn))  # the same in all processes
        if not turn and rng.random() < self.recipe.clicks.late:
            current.late = int(rng.integers(LEAST_LATE, MOST_LATE + 1))
        self.interact(current, current.late + turn)
        if turn and self.recipe.clicks.drop_previous:
            kept = rng.random(len(current.image)) >= self.recipe.clicks.drop_previous
            current.previous = current.previous * torch.from_numpy(kept).to(current.previous)[:, None, None, None]
        optim = self.recipe.optim
        train_mode(self.model, len(current.image), optim.freeze_norms)
        later = turn and self.recipe.clicks.trained == "every"
        out = self.predict(current, whole=not later or rng.random() < optim.backbone_later)
        current.seen = out["logits"].detach().float().sigmoid()
        return out, {**current.batch, "points": current.points, "previous": current.previous}

    def predict(self, current: Interaction, whole: bool = True) -> dict[str, Tensor]:
        """The network's outputs for the clicks so far. whole: whether the backbone is trained by them too."""
        model = self.model
        if not model.has_encoder:
            with nullcontext() if whole else model.backbone_fixed():
                out: dict[str, Tensor] = model(self.joined(current.image, current.previous), current.points)
                return out
        features = current.features or model.encode(current.image)
        if model.training and not any(one.requires_grad for one in features):
            current.features = features  # nothing that is trained precedes them
        if not whole:
            features = tuple(one.detach() for one in features)
        if model.remembers:
            recalled: dict[str, Tensor]
            recalled, memory = model.recall(features, current.previous, current.points, current.memory)
            current.memory = memory.detach()
            return recalled
        boxes = (current.batch["box"],) if "box" in current.batch else ()
        with nullcontext() if whole else model.backbone_fixed():
            decoded: dict[str, Tensor] = model.decode(features, current.previous, current.points, *boxes)
            return decoded

    def interact(self, current: Interaction, rounds: int) -> None:
        """Corrective rounds until there have been so many. Predictions for them are made without gradient."""
        if current.rounds == rounds:
            return
        kept = current.features
        while current.rounds < rounds:
            if current.seen is None:
                self.model.eval()
                with torch.no_grad():
                    if self.model.has_encoder and current.features is None:
                        current.features = self.model.encode(current.image)
                    current.seen = self.predict(current)["logits"].float().sigmoid()
            self._correct(current, current.seen)
        current.features = kept  # in training mode they may differ
        torch.clear_autocast_cache()  # before torch 2.11, weights cached without gradient would get none below

    def _correct(self, current: Interaction, seen: Tensor) -> None:
        """Add a click to each object where the prediction is wrong."""
        batch, seed = current.batch, self.recipe.seed
        current.rounds += 1
        earlier = batch["corrections"].tolist() if "corrections" in batch else [0] * len(seen)
        rounds = [current.rounds + corrections for corrections in earlier]
        seeds = [(seed, *pair, 1 + current.rounds) for pair in batch["key"].tolist()]
        arrays = (part.cpu().numpy() for part in (current.points, seen[:, 0], batch["truth"][:, 0]))
        add = partial(_with_correction, self.recipe.clicks.off_centre)
        each = _threads().map if seen.is_cuda else map  # on a CPU the network already uses all cores
        points = np.stack(list(each(add, *arrays, rounds, seeds)))
        current.points, current.previous, current.seen = torch.from_numpy(points).to(seen.device), seen, None

    def joined(self, image: Tensor, previous: Tensor) -> Tensor:
        """The network's image input: RGB and, if the model uses it, the previous mask."""
        joined = torch.cat([image, previous], 1) if self.model.with_prev_mask else image
        return joined.contiguous(memory_format=torch.channels_last) if self.recipe.channels_last else joined


def begun(batch: Batch, channels_last: bool = False) -> Interaction:
    """A batch from the feed, before its first prediction."""
    image = batch["image"].float().div_(255)
    if channels_last:
        image = image.contiguous(memory_format=torch.channels_last)
    previous = batch["previous"] if "previous" in batch else torch.zeros_like(image[:, :1])
    return Interaction(batch, image, batch["points"], previous)


def reduced(truth: Tensor, size: torch.Size) -> Tensor:
    """Ground truth (B, 1, H, W) of 1, 0 and -1 (ignored), downsampled to the size of a coarser output: the share of
    object pixels in each cell, or -1 if any of its pixels is ignored."""
    if truth.shape[-2:] == size:
        return truth
    share = F.adaptive_avg_pool2d(truth.clamp(min=0), (size[0], size[1]))
    ignored = F.adaptive_max_pool2d((truth < 0).float(), (size[0], size[1])) > 0
    return share.masked_fill(ignored, -1.0)


def _with_correction(
    off_centre: float, points: np.ndarray, seen: np.ndarray, truth: np.ndarray, order: int, seed: tuple[int, ...]
) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return add_next_click(points, seen, truth, order=order, rng=rng, off_centre=off_centre)


@cache
def _threads() -> ThreadPoolExecutor:
    """Threads that simulate clicks while a GPU waits: OpenCV and NumPy release the GIL."""
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1))


def train_mode(model: InteractiveModel, batch: int, freeze_norms: bool = False) -> None:
    """``model.train()``, but BatchNorm layers stay in eval mode if ``freeze_norms``; with one sample per batch, those
    on pooled features do, which would see a single value per channel."""
    model.train()
    if batch == 1 or freeze_norms:
        for name, module in model.named_modules():
            frozen = freeze_norms or any(part in name for part in model.pooled_norms)
            if isinstance(module, nn.BatchNorm2d) and frozen:
                module.eval()


def make_optimizer(model: Network, optim: Optim) -> torch.optim.Optimizer:
    """An optimizer over the model's parameter groups: new layers at ``optim.lr``, the others scaled by their factor,
    and pretrained layers also by ``optim.layer_decay`` to the power of their distance from the new ones.

    Raises HrsegError if the groups do not have every parameter exactly once.
    """
    factors = {"new": 1.0, "heads": optim.heads, "backbone": optim.backbone, "fixed": 0.0}
    found = model.parameter_groups()
    _check_groups(model, found, factors)
    distances = model.distances() if optim.layer_decay < 1 and isinstance(model, InteractiveModel) else {}
    by_rate: dict[tuple[str, int], list[nn.Parameter]] = {}
    for name, parameters in found.items():
        for parameter in parameters:
            if name != "fixed" and parameter.requires_grad:
                by_rate.setdefault((name, distances.get(parameter, 0)), []).append(parameter)
    groups = [
        {"params": parameters, "lr": optim.lr * factors[name] * optim.layer_decay**distance}
        for (name, distance), parameters in by_rate.items()
    ]
    if optim.name == "sgd":
        return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.betas[0], weight_decay=optim.weight_decay)
    if optim.name == "rmsprop":
        return torch.optim.RMSprop(groups, lr=optim.lr, alpha=optim.betas[1], weight_decay=optim.weight_decay)
    kind = torch.optim.AdamW if optim.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay)


def _check_groups(model: Network, groups: dict[str, list[nn.Parameter]], known: Collection[str]) -> None:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    listed = Counter(id(parameter) for parameters in groups.values() for parameter in parameters)
    wrong = [f"unknown group '{name}'" for name in groups.keys() - known]
    wrong += [f"{name} is in {listed[key]} groups" for key, name in names.items() if listed[key] != 1]
    wrong += ["a listed parameter is not one of the model's"] if listed.keys() - names.keys() else []
    if wrong:
        raise HrsegError(
            f"model '{model.name}': parameter_groups() must list each parameter once, under {', '.join(known)}; "
            f"{wrong[0]}"
        )


def schedule(optim: Optim, steps: int, epochs: int) -> Callable[[int], float]:
    """The factor on the learning rate as a function of the step. steps: per epoch."""

    def factor(step: int) -> float:
        rise = min(1.0, (step + 1) / optim.warmup) if optim.warmup else 1.0
        if optim.schedule == "steps":
            return rise * optim.gamma ** sum(step >= steps * epoch for epoch in optim.milestones)
        if optim.schedule == "cosine":
            level = optim.level * steps * epochs
            share = min(1.0, max(0.0, step - level) / max(1.0, steps * epochs - level))
            return rise * (optim.floor + (1 - optim.floor) * (1 + math.cos(math.pi * share)) / 2)
        return rise

    return factor


def _seed(*numbers: Any) -> int:
    flat = [int(n) for number in numbers for n in (number if isinstance(number, list) else [number])]
    return int(np.random.default_rng(flat).integers(2**63))
