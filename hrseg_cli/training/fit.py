"""Training on Lightning: initial weights, checkpoints, and resuming after an interruption."""

from __future__ import annotations

import logging
import math
import signal
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # a deprecation in a dependency of Lightning
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.plugins.io import TorchCheckpointIO
    from lightning.pytorch.utilities import rank_zero_only

from hrseg_cli import catalog
from hrseg_cli.checkpoints.adapters import attach, merged, save_adapter
from hrseg_cli.checkpoints.formats import read_backbone, save_checkpoint, save_network
from hrseg_cli.checkpoints.provenance import weights_hash
from hrseg_cli.checkpoints.resolve import load_model
from hrseg_cli.data.samples import Ref
from hrseg_cli.engine.cost import costs
from hrseg_cli.errors import HrsegError, Interrupted
from hrseg_cli.losses import signed_distance
from hrseg_cli.models.base import InteractiveModel
from hrseg_cli.recipe import Recipe
from hrseg_cli.training.distil import DistilFeed, DistilJudge, Distillation, DistilTraining
from hrseg_cli.training.feed import Feed, Loader, Order
from hrseg_cli.training.judge import Averaging, Judge, Save, move_average, trained_model
from hrseg_cli.training.logs import Logs, join_events, loggers, rewind
from hrseg_cli.training.refine import RefineFeed, RefineJudge, RefineTraining
from hrseg_cli.training.step import ClickTraining, Network, Training, make_optimizer
from hrseg_cli.writing import writing_atomically

LAST = "last.ckpt"
LAST_WEIGHTS = "last.safetensors"
PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
KEEP_EVERY = 300  # seconds between checkpoints within an epoch


class Task(NamedTuple):
    """What a training depends on besides its network."""

    feed: type[Feed]
    step: type[Training]
    judge: type[Judge]


TASKS = {
    "click": Task(Feed, ClickTraining, Judge),
    "refine": Task(RefineFeed, RefineTraining, RefineJudge),
    "distil": Task(DistilFeed, DistilTraining, DistilJudge),
}

for _name in ("lightning.pytorch", "lightning.fabric"):  # silence banners, tips and echoed settings
    logging.getLogger(_name).setLevel(logging.WARNING)


@dataclass(frozen=True)
class Machine:
    """Where and how a training runs. Affects results by rounding only. processes: per node."""

    device: str = "cpu"
    processes: int = 1
    nodes: int = 1
    workers: int = 1
    loggers: tuple[str, ...] = ("csv", "tensorboard")
    progress: bool = True


class Checkpointing(Callback):
    """Saves a checkpoint to resume from every few minutes, after each epoch, and on SIGINT or SIGTERM.

    It must be the last callback: after a kill, everything written since the last checkpoint is written again.
    """

    def __init__(self, folder: Path, judge: Judge, logs: Logs, save: Save, say: Callable[[str], None]) -> None:
        self.folder, self.judge, self.logs, self.save, self.say = folder, judge, logs, save, say
        self.stop_requested = False
        self.saved = time.monotonic()
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Not before: Lightning installs handlers that stop mid-step as if the training were complete.
        for number in (signal.SIGINT, signal.SIGTERM):
            self._handlers[number] = signal.signal(number, self._request_stop)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _request_stop(self, number: int, frame: FrameType | None) -> None:
        if self.stop_requested:  # a second signal: stop immediately
            raise Interrupted
        self.stop_requested = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        _, turn, last = batch["turn"].tolist()
        if batch_idx + 1 == trainer.num_training_batches or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # the end of the epoch saves anyway; between two updates accumulated gradients would be lost
        if turn < last:
            return  # the batch's next click follows
        due = trainer.is_global_zero and time.monotonic() - self.saved > KEEP_EVERY
        if trainer.strategy.reduce_boolean_decision(self.stop_requested, all=False):
            self._save_checkpoint(trainer)
            raise Interrupted
        if trainer.strategy.reduce_boolean_decision(due, all=False):
            self._save_checkpoint(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if trainer.is_global_zero:
            self.save(trained_model(trainer, pl_module), self.folder / LAST_WEIGHTS, {"epoch": epoch})
        self._save_checkpoint(trainer)
        if trainer.is_global_zero:
            judged = f", {self.judge.told()}" if self.judge.epoch == epoch else ""
            self.say(f"epoch {epoch}/{trainer.max_epochs}: loss {self.logs.means['train/loss_epoch']:.4f}{judged}")
        if trainer.strategy.reduce_boolean_decision(self.stop_requested, all=False):
            raise Interrupted

    def _save_checkpoint(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.folder / LAST)
        self.saved = time.monotonic()


class _AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's own writer, when killed, leaves partial files in the system's temporary folder."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with writing_atomically(Path(path)) as file:
            torch.save(checkpoint, file)


def fit(
    model: Network,
    recipe: Recipe,
    feed: Feed,
    judged: Sequence[Ref],
    folder: Path,
    machine: Machine,
    provenance: dict[str, Any],
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train ``model`` in place, resuming from the checkpoint in ``folder`` if there is one.

    Writes the best and last weights, a checkpoint to resume from, judged.csv and the logs. say: receives one line per
    epoch. Returns the numbers of epochs and steps, the best validation result and the model's costs.
    Raises HrsegError for a loss that is not finite; Interrupted on SIGINT or SIGTERM, after saving a checkpoint.
    """
    for parameter in model.untrained():
        parameter.requires_grad_(False)
    check_recipe(model, recipe)
    if machine.device == "cpu" and recipe.precision == "fp16":
        raise HrsegError("precision=fp16: only supported on a GPU; set precision=auto")
    last = folder / LAST
    steps, epoch = _progress(last, make_optimizer(model, recipe.optim)) if last.exists() else (0, 0)
    first = not getattr(rank_zero_only, "rank", 0)
    if first:
        rewind(folder, steps, epoch)
    trainer = make_trainer(recipe, folder, machine, judged, partial(write_weights, recipe, provenance), say)
    module = TASKS[recipe.task].step(model, recipe)
    if recipe.channels_last:
        module.to(memory_format=torch.channels_last)
    order = Order(recipe, trainer.global_rank, trainer.world_size)
    loader = Loader(feed, order, machine.workers, pin=machine.device != "cpu")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning|torch")
        with _worker_deaths_named():
            trainer.fit(module, loader, ckpt_path=last if last.exists() else None, weights_only=True)
    if first:
        join_events(folder)
    judge = next(callback for callback in trainer.callbacks if isinstance(callback, Judge))  # type: ignore[attr-defined]
    done = {
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "best": judge.best if math.isfinite(judge.best) else None,
    }
    return {**done, **(costs(model, recipe.data.crop) if isinstance(model, InteractiveModel) else {})}


@contextmanager
def _worker_deaths_named() -> Iterator[None]:
    """PyTorch reports a process of its loader that was killed, as a kernel short of memory does it, as a bug."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise HrsegError(
            "a process that prepares samples died, most likely because memory ran out; rerun the same command with "
            "fewer `workers` to resume"
        ) from None


def start_model(recipe: Recipe) -> tuple[Network, dict[str, Any]]:
    """The initial model of a training, and the provenance of its weights. Raises HrsegError."""
    torch.manual_seed(recipe.seed)
    model, provenance = _start(recipe)
    if recipe.teacher is None:
        return model, provenance
    teacher, found = load_model(recipe.teacher)
    told = {key: found[key] for key in ("name", "file", "sha256") if key in found}
    return Distillation(cast(InteractiveModel, model), teacher), {**provenance, "teacher": told}


def _start(recipe: Recipe) -> tuple[Network, dict[str, Any]]:
    wanted, adapter = recipe.model, recipe.adapter
    if recipe.task == "refine":
        return _built("trained refiner", wanted.name, wanted.options), {}
    model: InteractiveModel
    if wanted.weights:
        model, found = load_model(wanted.weights)
        started = {key: found[key] for key in ("file", "sha256", "adapter") if key in found}
        model.requires_grad_(True)
        if adapter.name == "none":
            try:
                return merged(model), {"started_from": started}  # saved weights must have a plain model's names
            except HrsegError as error:
                raise HrsegError(f"model.weights={wanted.weights}: {error}") from None
        base = {"base": started.get("file", wanted.weights), "base_weights": weights_hash(model)}
        return attach(model, adapter.name, adapter.options), base
    model = _built("model", wanted.name, wanted.options)
    if not wanted.backbone:
        model.initialise(None, wanted.coverage)
        return model, {}
    weights = read_backbone(wanted.backbone)
    try:
        share = model.initialise(weights, wanted.coverage)
    except HrsegError as error:
        raise HrsegError(f"model.backbone={wanted.backbone}: {error}") from None
    return model, {"backbone": Path(wanted.backbone).name, "coverage": round(share, 4)}


def _built(kind: str, name: str, options: dict[str, Any]) -> Any:
    try:
        return catalog.resolve(kind, name)(**options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise HrsegError(f"model.name={name}: {error}; fix model.options") from None


def check_recipe(model: Network, recipe: Recipe) -> None:
    """Check a recipe against its network and losses before the first step. Raises HrsegError that names the key."""
    catalog.resolve("metric", recipe.validation.metric)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise HrsegError(f"model: '{model.name}' has no trainable weights; choose another model")
    if recipe.optim.layer_decay < 1 and not (isinstance(model, InteractiveModel) and model.distances()):
        raise HrsegError(f"optim.layer_decay: '{model.name}' has no sequence of pretrained layers; set it to 1")
    sample = torch.zeros(1, 1, 4, 4)
    for term in recipe.losses:
        loss = catalog.resolve("loss", term.name)
        try:
            if term.name == "boundary":
                signed_distance(sample[0, 0].numpy().astype(np.int8), **term.options)
            else:
                loss(sample, sample, **term.options)
        except (TypeError, ValueError, AttributeError) as error:
            raise HrsegError(f"losses: '{term.name}': {error}; fix its options") from None
    if isinstance(model, InteractiveModel):
        if recipe.clicks.box_probability and not model.takes_boxes:
            raise HrsegError(f"clicks.box_probability: '{model.name}' does not take boxes; set it to 0")
        if (recipe.clicks.perturbed_probability or recipe.clicks.focus) and not model.with_prev_mask:
            key = "perturbed_probability" if recipe.clicks.perturbed_probability else "focus"
            raise HrsegError(f"clicks.{key}: '{model.name}' sees no previous mask; set it to 0")
    for size in recipe.sizes:
        out = _outputs(model, size.crop)
    for term in recipe.losses:
        if term.output not in out:
            raise HrsegError(
                f"losses: '{term.name}' applies to output '{term.output}', which this network does not have; "
                f"use one of {', '.join(out)}, or remove the term"
            )


def _outputs(model: Network, crop: tuple[int, int]) -> Collection[str]:
    """Names of the outputs for a small crop with the sides of ``crop`` modulo 32. Raises HrsegError."""
    if not isinstance(model, InteractiveModel):
        if crop != (model.side, model.side):
            raise HrsegError(
                f"data.crop={list(crop)}: model.options.side of the refiner is {model.side}; set both to the same size"
            )
        with torch.no_grad():
            image, mask = torch.zeros(2, 3, *crop), torch.zeros(2, 1, *crop)
            return list(cast(Any, model).eval().predicted(image, mask, mask, torch.rand))
    size = [side if side <= 128 else 128 + side % 32 for side in crop]
    planes = 4 if model.with_prev_mask else 3
    try:
        with torch.no_grad():
            out = model.eval()(torch.zeros(1, planes, *size), torch.full((1, 2, 3), -1.0))
    except (RuntimeError, ValueError) as error:
        raise HrsegError(
            f"data.crop={list(crop)}: the network does not accept this size "
            f"({str(error).splitlines()[0]}); use even sides of at least 32 pixels"
        ) from None
    return list(out)


def write_weights(recipe: Recipe, provenance: dict[str, Any], model: Network, path: Path, more: dict[str, Any]) -> None:
    """Save the model as a checkpoint, or only the adapter's weights."""
    adapter = recipe.adapter
    if isinstance(model, Distillation):
        model = model.student
    if not isinstance(model, InteractiveModel):
        what = {"kind": "refiner", "name": model.name, "options": model.config}
        save_network(cast(nn.Module, model), path, what, {**provenance, **more}, recipe.half)
    elif adapter.name == "none":
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
    """Lightning's trainer for a recipe, with validation, logs and checkpoints as callbacks.

    judged: the objects to validate on. save: writes the weights to a file. say: receives one line per epoch.
    """
    callbacks: list[Callback] = []
    if recipe.optim.ema:
        callbacks.append(Averaging(multi_avg_fn=partial(move_average, recipe.optim.ema)))
    kind = TASKS[recipe.task].judge
    logs = Logs(folder, recipe, "csv" in machine.loggers, kind.columns)
    judge = kind(judged, recipe, folder, save, logs)
    callbacks += [judge, logs, Checkpointing(folder, judge, logs, save, say)]  # Checkpointing must come last
    processes = machine.processes * machine.nodes
    bars = _bars() if machine.progress else []
    return pl.Trainer(
        accelerator="cpu" if machine.device == "cpu" else "gpu",
        devices=devices_of(machine),
        num_nodes=machine.nodes,
        strategy=_strategy(recipe) if processes > 1 else "auto",
        precision=PRECISION[recipe.precision],  # type: ignore[arg-type]
        max_epochs=recipe.epochs,
        gradient_clip_val=recipe.optim.clip,
        accumulate_grad_batches=recipe.optim.accumulate,
        use_distributed_sampler=False,
        benchmark=machine.device != "cpu",  # all crops have one size, so cuDNN's autotuning pays off
        enable_checkpointing=False,
        enable_model_summary=False,
        logger=loggers(machine.loggers, folder, recipe),
        plugins=[_AtomicCheckpointIO()],
        callbacks=[*callbacks, *bars],
        enable_progress_bar=bool(bars),
        default_root_dir=folder,
        log_every_n_steps=20,
        num_sanity_val_steps=0,
    )


def _strategy(recipe: Recipe) -> str:
    """Lightning's strategy for several processes. Gradients of layers that steps skip must not be awaited."""
    skips = recipe.clicks.trained == "every" and recipe.optim.backbone_later < 1
    skips |= recipe.task == "distil"  # decoders get no gradient
    return "ddp_find_unused_parameters_true" if skips else "ddp"


def devices_of(machine: Machine) -> int | list[int]:
    """The Trainer's ``devices``: a number, or the GPU that was named. Raises HrsegError for one GPU and several
    processes."""
    _, named, number = machine.device.partition(":")
    if not named or machine.device.startswith("cpu"):
        return machine.processes
    if machine.processes > 1:
        raise HrsegError(f"`device` {machine.device}: one GPU for {machine.processes} processes; use `device` cuda")
    return [int(number)]


def _progress(last: Path, optimizer: torch.optim.Optimizer) -> tuple[int, int]:
    """Number of steps of a checkpoint, and its last validated epoch. Raises HrsegError for a damaged file, or one of an
    earlier version that trained other layers than ``optimizer``."""
    try:
        kept = torch.load(last, mmap=True, weights_only=True)
        judge = next(state for name, state in kept["callbacks"].items() if name.endswith("Judge"))
        steps, epoch = int(kept["global_step"]), int(judge.get("epoch", kept["epoch"] + 1))  # older ones lack it
        groups = [len(group["params"]) for group in kept["optimizer_states"][0]["param_groups"]]
    except Exception:  # a damaged file can raise nearly anything
        raise HrsegError(f"{last}: damaged checkpoint; delete it to restart the training from the beginning") from None
    if groups != [len(group["params"]) for group in optimizer.param_groups]:
        raise HrsegError(
            f"{last}: of an earlier version, which trained other layers; resume with that version, or start a new run "
            f"with model.weights={last.with_name(LAST_WEIGHTS)}"
        )
    return steps, epoch


def _bars() -> list[Callback]:
    from lightning.pytorch.callbacks import RichProgressBar

    return [RichProgressBar(leave=False, console_kwargs={"stderr": True})]
