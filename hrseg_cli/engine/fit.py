"""Training of a click network, on Lightning (Sofiiuk et al. 2021, sections 3.2 and 4: iterative training with the
network's own previous mask).

A step is a pure function of weights, recipe and (epoch, step), so that an interrupted training goes on to the very
weights of an uninterrupted one.
"""

from __future__ import annotations

import csv
import logging
import math
import os
import signal
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # a deprecation in a dependency of Lightning
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
    from lightning.pytorch.utilities import rank_zero_only

from hrseg_cli import catalog
from hrseg_cli.clicks.sampler import add_next_click
from hrseg_cli.data.samples import Ref
from hrseg_cli.engine.checkpoint import attach, load_backbone, load_model, save_adapter, save_checkpoint, weights_hash
from hrseg_cli.engine.cost import costs
from hrseg_cli.engine.feed import Batch, Feed, Loader, Order
from hrseg_cli.engine.judge import Averaging, Judge, Save, append_row, move_average, trained_model
from hrseg_cli.errors import HrsegError, Interrupted
from hrseg_cli.losses import scheduled, signed_distance
from hrseg_cli.models.base import InteractiveModel
from hrseg_cli.models.hrnet_ocr import Scale
from hrseg_cli.recipe import Optim, Recipe

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


# ---- a step ----------------------------------------------------------------------------------------------------------


class ClickTraining(pl.LightningModule):
    """One step: up to ``clicks.rounds`` answers without gradient, each followed by the click a person would make, then
    the answer that is trained."""

    def __init__(self, model: InteractiveModel, recipe: Recipe) -> None:
        super().__init__()
        self.model, self.recipe = model, recipe
        self.terms = [(term, catalog.resolve("loss", term.name)) for term in recipe.losses]
        self.boundary = recipe.losses.index(recipe.boundary) if recipe.boundary else None

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        torch.manual_seed(_seed(self.recipe.seed, batch["key"][0].tolist(), self.global_rank))  # for dropout

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        image = batch["image"].float().div_(255)
        truth = batch["truth"]
        points, previous = self.rounds(image, truth, batch["points"], batch["key"])
        train_mode(self.model, len(image))
        total, values = self.loss(self.model(self.joined(image, previous), points), batch, self.current_epoch)
        self._refuse_nan(total, batch)
        self.log_dict(values, on_step=False, on_epoch=True, sync_dist=True)
        self.log("train/loss", total, prog_bar=True, on_step=True, on_epoch=True, sync_dist=True)
        return total

    def loss(self, out: dict[str, Tensor], batch: Batch, epoch: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        """The recipe's weighted sum and its terms by name, means over the batch."""
        truth = batch["truth"].float()
        values, weights = {}, [term.weight for term in self.recipe.losses]
        for term, loss in self.terms:
            logits = out[term.output]
            value = loss(logits, batch["distance"]) if term.name == "boundary" else loss(logits, truth, **term.options)
            values[f"train/{term.output}_{term.name}"] = value.mean()
        if self.boundary is not None:
            plan = self.recipe.loss_schedule
            pair = weights[0], weights[self.boundary]
            weights[0], weights[self.boundary] = scheduled(plan.kind, epoch, pair, step=plan.step)
        total = sum(weight * value for weight, value in zip(weights, values.values(), strict=True))
        return torch.as_tensor(total), values

    def rounds(self, image: Tensor, truth: Tensor, points: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Points and previous mask after the network's own first answers; their number is the same on all ranks."""
        clicks, seed = self.recipe.clicks, self.recipe.seed
        previous = torch.zeros_like(image[:, :1])
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
                each = _threads().map if image.is_cuda else map  # on a CPU the network has the cores
                points = torch.from_numpy(np.stack(list(each(correct, lists, seen, truths, seeds)))).to(image.device)
        torch.clear_autocast_cache()  # or, before torch 2.11, weights cached here would get no gradient below
        if clicks.drop_previous:
            kept = turn.random(len(image)) >= clicks.drop_previous
            previous = previous * torch.from_numpy(kept).to(previous)[:, None, None, None]
        return points, previous

    def joined(self, image: Tensor, previous: Tensor) -> Tensor:
        """What the network sees of pixels."""
        joined = torch.cat([image, previous], 1) if self.model.with_prev_mask else image
        return joined.contiguous(memory_format=torch.channels_last) if self.recipe.channels_last else joined

    def _refuse_nan(self, loss: Tensor, batch: Batch) -> None:
        """All processes stop together: one that left alone would leave the others waiting for it."""
        bad = not bool(torch.isfinite(loss))
        folder = Path(self.trainer.default_root_dir)
        if bad:
            kept = {name: value.cpu() for name, value in batch.items()}
            torch.save(kept, folder / f"bad_batch_{self.global_rank}.pt")
        if not self.trainer.strategy.reduce_boolean_decision(bad, all=False):
            return
        if self.global_rank:
            raise Interrupted  # the first process says why
        seen = next(iter(sorted(folder.glob("bad_batch_*.pt"))), folder / "bad_batch_*.pt")
        raise HrsegError(
            f"the loss became {loss.item() if bad else 'no number'} at step {self.global_step}; its batch is kept in "
            f"{seen}; lower optim.lr, set optim.clip=1, or train in fp32"
        )

    def configure_optimizers(self) -> Any:
        optim = self.recipe.optim
        optimizer = make_optimizer(self.model, optim)
        steps = math.ceil(self.recipe.data.epoch // (self.recipe.batch * self.trainer.world_size) / optim.accumulate)
        factor = schedule(optim, steps, self.recipe.epochs)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, factor), "interval": "step"}]


def _correct(
    order: int, off_centre: float, points: np.ndarray, seen: np.ndarray, truth: np.ndarray, seed: tuple[int, ...]
) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return add_next_click(points, seen, truth, order=order, rng=rng, off_centre=off_centre)


@cache
def _threads() -> ThreadPoolExecutor:
    """For clicks while a GPU waits for them: OpenCV and NumPy let go of the interpreter's lock."""
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1))


def train_mode(model: InteractiveModel, batch: int) -> None:
    """``model.train()``; with one sample a batch, normalisations that see one value a channel keep their statistics."""
    model.train()
    if batch == 1:
        for name, module in model.named_modules():
            if isinstance(module, nn.BatchNorm2d) and "object_context_block" in name:
                module.eval()


def make_optimizer(model: InteractiveModel, optim: Optim) -> torch.optim.Optimizer:
    """An optimizer over the model's groups: new layers at ``lr``, the others at their factors of it."""
    factors = {"new": 1.0, "heads": optim.heads, "backbone": optim.backbone}
    groups = [
        {"params": [p for p in parameters if p.requires_grad], "lr": optim.lr * factors[name]}
        for name, parameters in model.parameter_groups().items()
    ]
    groups = [group for group in groups if group["params"]]
    if optim.name == "sgd":
        return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.betas[0], weight_decay=optim.weight_decay)
    kind = torch.optim.AdamW if optim.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay)


def schedule(optim: Optim, steps: int, epochs: int) -> Callable[[int], float]:
    """Factor on the learning rate at a step; ``steps`` are those of one epoch."""

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


def best_precision(device: str) -> Literal["bf16", "fp32"]:
    """bf16 where ``device`` has units for it, else fp32: without them a CPU is eight times slower in bf16."""
    if device == "cpu":
        try:
            flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
        except OSError:
            flags = []
        return "bf16" if {"avx512_bf16", "amx_bf16"}.intersection(flags) else "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


# ---- the run ---------------------------------------------------------------------------------------------------------


class Keeper(Callback):
    """Keeps what a run needs to go on: every few minutes, after each epoch, and when it is asked to stop."""

    def __init__(self, folder: Path, judge: Judge, save: Save, say: Callable[[str], None]) -> None:
        self.folder, self.judge, self.save, self.say = folder, judge, save, say
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
        self._keep(trainer)
        seen = {name: float(value) for name, value in trainer.callback_metrics.items()}  # all ranks: this averages them
        model = trained_model(trainer, pl_module)
        if trainer.is_global_zero:
            epoch = trainer.current_epoch + 1
            self.save(model, self.folder / LAST_WEIGHTS, {"epoch": epoch})
            judged = f", {seen['val/clicks']:.2f} clicks" if self.judge.epoch == epoch else ""
            self.say(f"epoch {epoch}/{trainer.max_epochs}: loss {seen['train/loss_epoch']:.4f}{judged}")
        if trainer.strategy.reduce_boolean_decision(self.asked, all=False):
            raise Interrupted

    def _keep(self, trainer: pl.Trainer) -> None:
        beside = self.folder / f".{LAST}"
        trainer.save_checkpoint(beside)
        if trainer.is_global_zero:
            beside.replace(self.folder / LAST)
        self.kept = time.monotonic()


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
    for name, parameter in model.named_parameters():
        if any(part in name for part in model.unused):
            parameter.requires_grad_(False)
    check(model, recipe)
    if machine.device == "cpu" and recipe.precision == "fp16":
        raise HrsegError("precision=fp16: only on a GPU; set precision=auto")
    if (last := folder / LAST).exists():
        _steps_done(last)
    trainer = make_trainer(recipe, folder, machine, judged, partial(write_weights, recipe, provenance), say)
    module = ClickTraining(model, recipe)
    if recipe.channels_last:
        module.to(memory_format=torch.channels_last)
    order = Order(recipe.data.epoch, recipe.batch, trainer.global_rank, trainer.world_size)
    loader = Loader(feed, order, machine.workers, pin=machine.device != "cpu")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning|torch")
        trainer.fit(module, loader, ckpt_path=last if last.exists() else None, weights_only=True)
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
        started = {key: found[key] for key in ("file", "sha256") if key in found}
        model.requires_grad_(True)
        if adapter.name == "none":
            return model, {"started_from": started}
        base = {"base": started.get("file", wanted.weights), "base_weights": weights_hash(model)}
        return attach(model, adapter.name, adapter.options), base
    try:
        model = catalog.resolve("model", wanted.name)(**wanted.options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise HrsegError(f"model.name={wanted.name}: {error}; mend model.options") from None
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.xavier_normal_(module.weight, gain=math.sqrt(2))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    if not wanted.backbone:
        for module in model.modules():
            if isinstance(module, Scale):  # starts small to spare ImageNet's features, of which there are none
                nn.init.ones_(module.scale)
        return model, {}
    share = load_backbone(model, Path(wanted.backbone), wanted.coverage)
    return model, {"backbone": Path(wanted.backbone).name, "coverage": round(share, 4)}


def check(model: InteractiveModel, recipe: Recipe) -> None:
    """What only the network and the losses can tell about a recipe. Raises HrsegError naming the key, before a step."""
    catalog.resolve("metric", recipe.validation.metric)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise HrsegError(f"model: '{model.name}' has nothing to train; take h18s, h18 or h32, or a checkpoint of one")
    some = torch.zeros(1, 1, 4, 4)
    for term in recipe.losses:
        loss = catalog.resolve("loss", term.name)
        try:
            if term.name == "boundary":
                signed_distance(some[0, 0].numpy().astype(np.int8), **term.options)
            else:
                loss(some, some, **term.options)
        except (TypeError, ValueError, AttributeError) as error:
            raise HrsegError(f"losses: '{term.name}': {error}; mend its options") from None
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
    judge = Judge(judged, recipe, folder, save)
    callbacks += [judge, Keeper(folder, judge, save, say)]
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
        logger=_loggers(machine.loggers, folder, recipe),
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
        raise HrsegError(f"--device {machine.device}: one GPU for {machine.processes} processes; write --device cuda")
    return [int(number)]


def _steps_done(last: Path) -> int:
    """Steps of a checkpoint to go on from. Raises HrsegError for a damaged one."""
    try:
        return int(torch.load(last, mmap=True, weights_only=True)["global_step"])
    except Exception:  # a torn file can raise nearly anything
        raise HrsegError(f"{last}: is damaged; delete it, and the training begins anew") from None


def _csv_logger(folder: Path) -> CSVLogger:
    """Goes on below the rows of the steps that are kept: Lightning would begin a new file."""
    logger = CSVLogger(folder, name="", version="log", flush_logs_every_n_steps=1)
    path = folder / "log" / "metrics.csv"
    if getattr(rank_zero_only, "rank", 0) or not (path.exists() and (folder / LAST).exists()):
        return logger
    done = _steps_done(folder / LAST)
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        rows = [row for row in reader if int(row["step"]) < done]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the file goes here: its rows come back below
        logger.experiment.metrics_keys = list(reader.fieldnames or ())
    for row in rows:
        append_row(path, row)
    return logger


def _loggers(names: Sequence[str], folder: Path, recipe: Recipe) -> list[Logger]:
    made: list[Logger] = []
    if "csv" in names:
        made.append(_csv_logger(folder))
    if "tensorboard" in names:
        made.append(TensorBoardLogger(folder, name="", version="log"))
    if "wandb" in names:
        from lightning.pytorch.loggers import WandbLogger

        try:
            made.append(
                WandbLogger(name=folder.name, save_dir=folder, project="hrseg", config=recipe.model_dump(mode="json"))
            )
        except ModuleNotFoundError:
            raise HrsegError("--logger wandb: not installed; pip install 'hrseg[wandb]'") from None
    return made


def _bars() -> list[Callback]:
    from lightning.pytorch.callbacks import RichProgressBar

    return [RichProgressBar(leave=False, console_kwargs={"stderr": True})]
