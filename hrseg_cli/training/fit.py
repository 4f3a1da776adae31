"""A training, on Lightning: what it starts from, what it keeps, and how it goes on after an interruption."""

from __future__ import annotations

import logging
import math
import signal
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # a deprecation in a dependency of Lightning
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.plugins.io import TorchCheckpointIO
    from lightning.pytorch.utilities import rank_zero_only

from hrseg_cli import catalog
from hrseg_cli.checkpoints.adapters import attach, merged, save_adapter
from hrseg_cli.checkpoints.formats import read_backbone, save_checkpoint
from hrseg_cli.checkpoints.provenance import weights_hash
from hrseg_cli.checkpoints.resolve import load_model
from hrseg_cli.data.samples import Ref
from hrseg_cli.engine.cost import costs
from hrseg_cli.errors import HrsegError, Interrupted
from hrseg_cli.losses import signed_distance
from hrseg_cli.models.base import InteractiveModel
from hrseg_cli.recipe import Recipe
from hrseg_cli.training.feed import Feed, Loader, Order
from hrseg_cli.training.judge import Averaging, Judge, Save, move_average, trained_model
from hrseg_cli.training.logs import Logs, cut, join_events, loggers
from hrseg_cli.training.step import ClickTraining
from hrseg_cli.writing import writing_atomically

LAST = "last.ckpt"
LAST_WEIGHTS = "last.safetensors"
PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
KEEP_EVERY = 300  # seconds between checkpoints inside of an epoch

for _name in ("lightning.pytorch", "lightning.fabric"):  # they greet, advertise and repeat what we set
    logging.getLogger(_name).setLevel(logging.WARNING)


@dataclass(frozen=True)
class Machine:
    """What a training runs on; nothing here decides a number but by rounding. processes: on each of ``nodes``."""

    device: str = "cpu"
    processes: int = 1
    nodes: int = 1
    workers: int = 1
    loggers: tuple[str, ...] = ("csv", "tensorboard")
    progress: bool = True


class Keeper(Callback):
    """Keeps what a run needs to go on: every few minutes, after each epoch, and when it is asked to stop. Last of all
    that is written of an epoch: after a kill everything before it is made again."""

    def __init__(self, folder: Path, judge: Judge, logs: Logs, save: Save, say: Callable[[str], None]) -> None:
        self.folder, self.judge, self.logs, self.save, self.say = folder, judge, logs, save, say
        self.asked = False
        self.kept = time.monotonic()
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Only now, for Lightning has set a handler that leaves in the middle of things, as if all were done.
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._ask)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:  # asked twice: at once
            raise Interrupted
        self.asked = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx + 1 == trainer.num_training_batches or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # the end of an epoch keeps by itself; between two updates gradients would be lost
        late = trainer.is_global_zero and time.monotonic() - self.kept > KEEP_EVERY
        if trainer.strategy.reduce_boolean_decision(self.asked, all=False):
            self._keep(trainer)
            raise Interrupted
        if trainer.strategy.reduce_boolean_decision(late, all=False):
            self._keep(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if trainer.is_global_zero:
            self.save(trained_model(trainer, pl_module), self.folder / LAST_WEIGHTS, {"epoch": epoch})
        self._keep(trainer)
        if trainer.is_global_zero:
            judged = f", {self.judge.clicks:.2f} clicks" if self.judge.epoch == epoch else ""
            self.say(f"epoch {epoch}/{trainer.max_epochs}: loss {self.logs.means['train/loss_epoch']:.4f}{judged}")
        if trainer.strategy.reduce_boolean_decision(self.asked, all=False):
            raise Interrupted

    def _keep(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.folder / LAST)
        self.kept = time.monotonic()


class _Durable(TorchCheckpointIO):
    """Lightning's own way leaves what a kill interrupts in the system's folder for temporary files."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with writing_atomically(Path(path)) as file:
            torch.save(checkpoint, file)


def fit(
    model: InteractiveModel,
    recipe: Recipe,
    feed: Feed,
    judged: Sequence[Ref],
    folder: Path,
    machine: Machine,
    provenance: dict[str, Any],
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train ``model`` in place, from the beginning or from where ``folder`` says it stopped.

    Writes best and last weights, the checkpoint to go on from, judged.csv and the logs. Raises HrsegError for a loss
    that is not a number, Interrupted when asked to stop; then the checkpoint is there. say: gets a line an epoch.
    """
    fixed = set(model.parameter_groups().get("fixed", ()))
    for name, parameter in model.named_parameters():
        if parameter in fixed or any(part in name for part in model.unused):
            parameter.requires_grad_(False)
    check(model, recipe)
    if machine.device == "cpu" and recipe.precision == "fp16":
        raise HrsegError("precision=fp16: only on a GPU; set precision=auto")
    last = folder / LAST
    steps, epoch = _done(last) if last.exists() else (0, 0)
    first = not getattr(rank_zero_only, "rank", 0)
    if first:
        cut(folder, steps, epoch)
    trainer = make_trainer(recipe, folder, machine, judged, partial(write_weights, recipe, provenance), say)
    module = ClickTraining(model, recipe)
    if recipe.channels_last:
        module.to(memory_format=torch.channels_last)
    order = Order(recipe.data.epoch, recipe.batch, trainer.global_rank, trainer.world_size)
    loader = Loader(feed, order, machine.workers, pin=machine.device != "cpu")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning|torch")
        trainer.fit(module, loader, ckpt_path=last if last.exists() else None, weights_only=True)
    if first:
        join_events(folder)
    judge = next(callback for callback in trainer.callbacks if isinstance(callback, Judge))  # type: ignore[attr-defined]
    done = {
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "best": judge.best if math.isfinite(judge.best) else None,
    }
    return {**done, **costs(model, recipe.data.crop)}


def start_model(recipe: Recipe) -> tuple[InteractiveModel, dict[str, Any]]:
    """The model that a training starts from, and where its weights are from. Raises HrsegError."""
    wanted, adapter = recipe.model, recipe.adapter
    torch.manual_seed(recipe.seed)
    model: InteractiveModel
    if wanted.weights:
        model, found = load_model(wanted.weights)
        started = {key: found[key] for key in ("file", "sha256", "adapter") if key in found}
        model.requires_grad_(True)
        if adapter.name == "none":
            try:
                return merged(model), {"started_from": started}  # or what is written would have names of no model
            except HrsegError as error:
                raise HrsegError(f"model.weights={wanted.weights}: {error}") from None
        base = {"base": started.get("file", wanted.weights), "base_weights": weights_hash(model)}
        return attach(model, adapter.name, adapter.options), base
    try:
        model = catalog.resolve("model", wanted.name)(**wanted.options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise HrsegError(f"model.name={wanted.name}: {error}; correct model.options") from None
    if not wanted.backbone:
        model.initialise(None, wanted.coverage)
        return model, {}
    weights = read_backbone(wanted.backbone)
    try:
        share = model.initialise(weights, wanted.coverage)
    except HrsegError as error:
        raise HrsegError(f"model.backbone={wanted.backbone}: {error}") from None
    return model, {"backbone": Path(wanted.backbone).name, "coverage": round(share, 4)}


def check(model: InteractiveModel, recipe: Recipe) -> None:
    """What only the network and the losses can tell about a recipe. Raises HrsegError naming the key, before a step."""
    catalog.resolve("metric", recipe.validation.metric)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise HrsegError(f"model: '{model.name}' has nothing to train; choose a model with weights")
    some = torch.zeros(1, 1, 4, 4)
    for term in recipe.losses:
        loss = catalog.resolve("loss", term.name)
        try:
            if term.name == "boundary":
                signed_distance(some[0, 0].numpy().astype(np.int8), **term.options)
            else:
                loss(some, some, **term.options)
        except (TypeError, ValueError, AttributeError) as error:
            raise HrsegError(f"losses: '{term.name}': {error}; correct its options") from None
    size = [side if side <= 128 else 128 + side % 32 for side in recipe.data.crop]
    planes = 4 if model.with_prev_mask else 3
    try:
        with torch.no_grad():
            out = model.eval()(torch.zeros(1, planes, *size), torch.full((1, 2, 3), -1.0))
    except (RuntimeError, ValueError) as error:
        raise HrsegError(
            f"data.crop={list(recipe.data.crop)}: the network cannot take it ({str(error).splitlines()[0]}); "
            "take sides of at least 32 pixels, divisible by 2"
        ) from None
    for term in recipe.losses:
        if term.output not in out:
            raise HrsegError(
                f"losses: '{term.name}' is of output '{term.output}', which this network does not have; "
                f"take one of {', '.join(out)}, or leave the term out"
            )


def write_weights(
    recipe: Recipe, provenance: dict[str, Any], model: InteractiveModel, path: Path, more: dict[str, Any]
) -> None:
    """The model as a checkpoint, or what an adapter changes of its base."""
    adapter = recipe.adapter
    if adapter.name == "none":
        save_checkpoint(model, path, {**provenance, **more}, recipe.half)
    else:
        save_adapter(model, path, adapter.name, adapter.options, provenance["base_weights"], {**provenance, **more})


def make_trainer(
    recipe: Recipe,
    folder: Path,
    machine: Machine,
    judged: Sequence[Ref],
    save: Save,
    say: Callable[[str], None],
) -> pl.Trainer:
    callbacks: list[Callback] = []
    if recipe.optim.ema:
        callbacks.append(Averaging(multi_avg_fn=partial(move_average, recipe.optim.ema)))
    logs = Logs(folder, recipe, "csv" in machine.loggers)
    judge = Judge(judged, recipe, folder, save, logs)
    callbacks += [judge, logs, Keeper(folder, judge, logs, save, say)]  # in this order: see Keeper
    processes = machine.processes * machine.nodes
    bars = _bars() if machine.progress else []
    return pl.Trainer(
        accelerator="cpu" if machine.device == "cpu" else "gpu",
        devices=devices_of(machine),
        num_nodes=machine.nodes,
        strategy="ddp" if processes > 1 else "auto",
        precision=PRECISION[recipe.precision],  # type: ignore[arg-type]
        max_epochs=recipe.epochs,
        gradient_clip_val=recipe.optim.clip,
        accumulate_grad_batches=recipe.optim.accumulate,
        use_distributed_sampler=False,
        benchmark=machine.device != "cpu",  # all crops have one size: cuDNN may try which of its ways is quickest
        enable_checkpointing=False,
        enable_model_summary=False,
        logger=loggers(machine.loggers, folder, recipe),
        plugins=[_Durable()],
        callbacks=[*callbacks, *bars],
        enable_progress_bar=bool(bars),
        default_root_dir=folder,
        log_every_n_steps=20,
        num_sanity_val_steps=0,
    )


def devices_of(machine: Machine) -> int | list[int]:
    """The Trainer's ``devices``: how many, or the very one that was named. Raises HrsegError for one named to many."""
    _, named, number = machine.device.partition(":")
    if not named or machine.device.startswith("cpu"):
        return machine.processes
    if machine.processes > 1:
        raise HrsegError(f"`device` {machine.device}: one GPU for {machine.processes} processes; write `device` cuda")
    return [int(number)]


def _done(last: Path) -> tuple[int, int]:
    """Steps of a checkpoint to go on from, and the epoch that was judged last. Raises HrsegError for a damaged one."""
    try:
        kept = torch.load(last, mmap=True, weights_only=True)
        judge = kept["callbacks"]["Judge"]
        return int(kept["global_step"]), int(judge.get("epoch", kept["epoch"] + 1))  # an earlier version kept none
    except Exception:  # a torn file can raise nearly anything
        raise HrsegError(f"{last}: is damaged; delete it, and the training begins anew") from None


def _bars() -> list[Callback]:
    from lightning.pytorch.callbacks import RichProgressBar

    return [RichProgressBar(leave=False, console_kwargs={"stderr": True})]
