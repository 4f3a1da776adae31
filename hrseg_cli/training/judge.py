"""Validation during training: clicks on fixed held-out objects, with the averaged weights if there are any."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # a deprecation in a dependency of Lightning
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import Callback, WeightAveraging

from hrseg_cli.data.datasets import open_dataset
from hrseg_cli.data.samples import Ref, load
from hrseg_cli.engine.devices import reproducible
from hrseg_cli.engine.simulate import Plan, simulate
from hrseg_cli.errors import HrsegError, UnknownName
from hrseg_cli.recipe import Recipe, load_protocol
from hrseg_cli.training.feed import held_out_objects
from hrseg_cli.training.logs import JUDGED, Logs, append_row

BEST_WEIGHTS = "best.safetensors"
Save = Callable[[Any, Path, dict[str, Any]], None]


class Judge(Callback):
    """Clicks on fixed held-out objects and keeps the weights that need the fewest clicks.

    columns: what is measured on each object; the first one decides, then the last, which is better if it is higher.
    better: 1 if the first is better if it is higher, else -1.
    """

    columns: tuple[str, ...] = ("clicks", "first", "last")
    better = -1

    def __init__(self, refs: Sequence[Ref], recipe: Recipe, folder: Path, save: Save, logs: Logs) -> None:
        self.refs, self.recipe, self.folder, self.save, self.logs = refs, recipe, folder, save, logs
        self.validation = validation = recipe.validation
        self.best, self.best_last, self.bad = -self.better * math.inf, 0.0, 0
        self.epoch, self.values = 0, dict.fromkeys(self.columns, math.nan)  # of the last validation
        try:
            protocol = load_protocol(validation.protocol, validation.changes)
        except UnknownName:
            raise
        except HrsegError as error:
            raise HrsegError(f"validation.changes: {error}") from None
        self.plan = Plan(
            protocol=protocol,
            until={validation.metric: validation.until},
            max_clicks=validation.max_clicks,
        )

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_last": self.best_last, "bad": self.bad, "epoch": self.epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.best_last, self.bad = (state_dict[key] for key in ("best", "best_last", "bad"))
        self.epoch = state_dict.get("epoch", 0)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.validation.patience and self.bad >= self.validation.patience:
            trainer.should_stop = True  # it stopped early: a resumed run stays finished

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if not self.refs or (epoch % self.validation.every and epoch != trainer.max_epochs):
            return
        model = trained_model(trainer, pl_module)
        if trainer.world_size > 1:  # batch statistics differ between processes: validate those that are saved
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, 0)
        model.eval()
        with reproducible():  # crops have many sizes, and cuDNN would benchmark its algorithms for each of them
            found = _over_ranks(self.measured(model, trainer.global_rank, trainer.world_size))
        self.epoch, self.values = epoch, dict(zip(self.columns, map(float, found.mean(0)), strict=True))
        self.logs.judged = {f"val/{name}": value for name, value in self.values.items()}
        first, last = self.values[self.columns[0]], self.values[self.columns[-1]]
        # Equal clicks, as at the start: compare scores.
        better = (self.better * first, last) > (self.better * self.best, self.best_last)
        if better:
            self.best, self.best_last = first, last
        self.bad = 0 if better else self.bad + 1
        if trainer.is_global_zero:
            record = {"epoch": epoch, **self.values}
            append_row(self.folder / JUDGED, record)
            if better:
                self.save(model, self.folder / BEST_WEIGHTS, {"judged": record})
        if self.validation.patience and self.bad >= self.validation.patience:
            trainer.should_stop = True

    def measured(self, model: Any, rank: int = 0, world: int = 1) -> np.ndarray:
        """(objects of this rank, columns)."""
        rows = [self._measure(model, number) for number in range(rank, len(self.refs), world)]
        return np.array(rows, np.float64).reshape(-1, len(self.columns))

    def _measure(self, model: Any, number: int) -> tuple[float, ...]:
        """The columns of an object: clicks needed, first and last score."""
        trace, _ = simulate(load(self.refs[number]), model, self.plan)
        scores = trace.scores[self.validation.metric]
        reached = [k for k, score in enumerate(scores, 1) if score >= self.validation.until]
        return (reached[0] if reached else self.validation.max_clicks, scores[0], scores[-1])

    def told(self) -> str:
        """The last validation in a few words."""
        return f"{self.values['clicks']:.2f} clicks"


class Averaging(WeightAveraging):
    """Keeps the average on the training device; at its setup Lightning has not moved the model there yet."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)


def trained_model(trainer: pl.Trainer, pl_module: pl.LightningModule) -> Any:
    """The model with averaged weights if there is one, else the model in training."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set by a connector
        if isinstance(callback, WeightAveraging) and callback._average_model is not None:
            pl_module = callback._average_model.module  # type: ignore[assignment]
    return pl_module.model


def move_average(decay: float, average: list[Tensor], current: list[Tensor], number: Tensor) -> None:
    """Update ``average`` in place. The decay grows with the steps, so that the initial weights fade quickly."""
    decay = min(decay, (1 + int(number)) / (10 + int(number)))
    if average[0].is_floating_point():
        torch._foreach_lerp_(average, current, 1 - decay)
    else:
        torch._foreach_copy_(average, current)


def _over_ranks(rows: np.ndarray) -> np.ndarray:
    if not torch.distributed.is_initialized():
        return rows
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, rows)
    return np.concatenate(parts)


def judged_objects(recipe: Recipe, root: Path | None, broken: list[str] | None = None) -> list[Ref]:
    """The objects used for validation: ``validation.objects`` of each dataset, evenly spread. broken: with a list,
    broken files are left out and added to it."""
    named = [open_dataset(name, root=root, broken=broken) for name in recipe.validation.datasets]
    if not named and recipe.data.held_out:
        named = held_out_objects(recipe.data, root, broken)
    chosen = []
    for refs in named:
        places = np.linspace(0, len(refs), min(len(refs), recipe.validation.objects), endpoint=False)
        chosen += [refs[int(place)] for place in places]
    return chosen
