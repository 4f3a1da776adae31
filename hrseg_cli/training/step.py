"""One training step. Of a click network: iterative training with the network's own previous mask (Sofiiuk et al. 2021,
sections 3.2 and 4).

A step depends only on weights, recipe and (epoch, step), so a resumed training ends with the same weights as an
uninterrupted one.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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
from hrseg_cli.models.base import InteractiveModel
from hrseg_cli.recipe import Optim, Recipe
from hrseg_cli.refiners.segrefiner.training import TrainedDenoiser
from hrseg_cli.training.feed import Batch

Network = InteractiveModel | TrainedDenoiser


class Training(pl.LightningModule):
    """One step of any network: its outputs for a batch, compared with the truth by the losses of the recipe."""

    def __init__(self, model: Network, recipe: Recipe) -> None:
        super().__init__()
        self.model: Any = model
        self.recipe = recipe
        self.terms = [(term, catalog.resolve("loss", term.name)) for term in recipe.losses]
        self.boundary = recipe.losses.index(recipe.boundary) if recipe.boundary else None
        self.values: dict[str, Tensor] = {}  # the loss and its terms at the last step

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        torch.manual_seed(_seed(self.recipe.seed, batch["key"][0].tolist(), self.global_rank))  # for dropout

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        total, values = self.loss(self.outputs(batch["image"].float().div_(255), batch), batch, self.current_epoch)
        self._refuse_nan(total, batch)
        self.values = {name: value.detach() for name, value in {"train/loss": total, **values}.items()}
        self.log("train/loss", total, prog_bar=True, logger=False)
        return total

    def outputs(self, image: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The outputs that are trained. image: (B, 3, H, W), RGB in [0, 1]."""
        raise NotImplementedError

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
        steps = math.ceil(self.recipe.data.epoch // (self.recipe.batch * self.trainer.world_size) / optim.accumulate)
        factor = schedule(optim, steps, self.recipe.epochs)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, factor), "interval": "step"}]


class ClickTraining(Training):
    """A click network: up to ``clicks.rounds`` predictions without gradient, each followed by a simulated corrective
    click, then the prediction that is trained."""

    def outputs(self, image: Tensor, batch: Batch) -> dict[str, Tensor]:
        points, previous = self.rounds(image, batch["truth"], batch["points"], batch["key"], batch.get("previous"))
        train_mode(self.model, len(image))
        found: dict[str, Tensor] = self.model(self.joined(image, previous), points)
        return found

    def rounds(
        self, image: Tensor, truth: Tensor, points: Tensor, key: Tensor, previous: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Points and previous masks after a random number of click rounds, which is the same on all ranks.

        image: (B, 3, H, W) in [0, 1]. truth: (B, 1, H, W). points: (B, 2N, 3). key: (B, 2), epoch and step.
        previous: (B, 1, H, W) in [0, 1], before the first click; None: empty.
        """
        clicks, seed = self.recipe.clicks, self.recipe.seed
        previous = torch.zeros_like(image[:, :1]) if previous is None else previous
        world = self.trainer.world_size if self._trainer else 1
        epoch, first = key[0].tolist()
        turn = np.random.default_rng((seed, epoch, first // (len(image) * world), 1))
        count = int(turn.integers(clicks.rounds, endpoint=True))
        if not count:
            return points, previous
        truths = truth[:, 0].cpu().numpy()
        self.model.eval()
        with torch.no_grad():
            for number in range(1, count + 1):
                previous = self.model(self.joined(image, previous), points)["logits"].float().sigmoid()
                seen = previous[:, 0].cpu().numpy()
                lists = points.cpu().numpy()
                seeds = [(seed, *pair, 1 + number) for pair in key.tolist()]
                correct = partial(_correct, number, clicks.off_centre)
                each = _threads().map if image.is_cuda else map  # on a CPU the network already uses all cores
                points = torch.from_numpy(np.stack(list(each(correct, lists, seen, truths, seeds)))).to(image.device)
        torch.clear_autocast_cache()  # before torch 2.11, weights cached without gradient would get none below
        if clicks.drop_previous:
            kept = turn.random(len(image)) >= clicks.drop_previous
            previous = previous * torch.from_numpy(kept).to(previous)[:, None, None, None]
        return points, previous

    def joined(self, image: Tensor, previous: Tensor) -> Tensor:
        """The network's image input: RGB and, if the model uses it, the previous mask."""
        joined = torch.cat([image, previous], 1) if self.model.with_prev_mask else image
        return joined.contiguous(memory_format=torch.channels_last) if self.recipe.channels_last else joined


def reduced(truth: Tensor, size: torch.Size) -> Tensor:
    """Ground truth (B, 1, H, W) of 1, 0 and -1 (ignored), downsampled to the size of a coarser output: the share of
    object pixels in each cell, or -1 if any of its pixels is ignored."""
    if truth.shape[-2:] == size:
        return truth
    share = F.adaptive_avg_pool2d(truth.clamp(min=0), (size[0], size[1]))
    ignored = F.adaptive_max_pool2d((truth < 0).float(), (size[0], size[1])) > 0
    return share.masked_fill(ignored, -1.0)


def _correct(
    order: int, off_centre: float, points: np.ndarray, seen: np.ndarray, truth: np.ndarray, seed: tuple[int, ...]
) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return add_next_click(points, seen, truth, order=order, rng=rng, off_centre=off_centre)


@cache
def _threads() -> ThreadPoolExecutor:
    """Threads that simulate clicks while a GPU waits: OpenCV and NumPy release the GIL."""
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1))


def train_mode(model: InteractiveModel, batch: int) -> None:
    """``model.train()``, but with one sample per batch, BatchNorm layers on pooled features stay in eval mode: they
    would see a single value per channel."""
    model.train()
    if batch == 1:
        for name, module in model.named_modules():
            if isinstance(module, nn.BatchNorm2d) and any(part in name for part in model.pooled_norms):
                module.eval()


def make_optimizer(model: Network, optim: Optim) -> torch.optim.Optimizer:
    """An optimizer over the model's parameter groups: new layers at ``optim.lr``, the others scaled by their factor."""
    factors = {"new": 1.0, "heads": optim.heads, "backbone": optim.backbone}
    groups = [
        {"params": [p for p in parameters if p.requires_grad], "lr": optim.lr * factors[name]}
        for name, parameters in model.parameter_groups().items()
        if name in factors
    ]
    groups = [group for group in groups if group["params"]]
    if optim.name == "sgd":
        return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.betas[0], weight_decay=optim.weight_decay)
    kind = torch.optim.AdamW if optim.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay)


def schedule(optim: Optim, steps: int, epochs: int) -> Callable[[int], float]:
    """The factor on the learning rate as a function of the step. steps: per epoch."""

    def factor(step: int) -> float:
        rise = min(1.0, (step + 1) / optim.warmup) if optim.warmup else 1.0
        if optim.schedule == "steps":
            return rise * optim.gamma ** sum(step >= steps * epoch for epoch in optim.milestones)
        if optim.schedule == "cosine":
            share = min(1.0, step / max(1, steps * epochs))
            return rise * (optim.floor + (1 - optim.floor) * (1 + math.cos(math.pi * share)) / 2)
        return rise

    return factor


def _seed(*numbers: Any) -> int:
    flat = [int(n) for number in numbers for n in (number if isinstance(number, list) else [number])]
    return int(np.random.default_rng(flat).integers(2**63))
