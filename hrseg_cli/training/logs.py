"""Training logs: judged.csv, log/metrics.csv, TensorBoard, Weights & Biases.

Rows are written before the checkpoint that covers their step. On resuming, rows after the checkpoint are removed. So a
training that was killed at any moment and resumed has the same logs as an uninterrupted one.
"""

from __future__ import annotations

import csv
import re
import struct
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # a deprecation in a dependency of Lightning
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.loggers import Logger, TensorBoardLogger

from hrseg_cli.errors import HrsegError
from hrseg_cli.recipe import Recipe
from hrseg_cli.writing import sweep, write_atomically, writing_atomically

JUDGED = "judged.csv"
METRICS = "log/metrics.csv"
EVERY = 20  # steps between rows within an epoch


class Logs(Callback):
    """Logs the loss every few steps, and after each epoch the means of the loss and its terms and the validation
    results."""

    def __init__(self, folder: Path, recipe: Recipe, csv_too: bool, judged: Sequence[str]) -> None:
        terms = [f"train/{term.output}_{term.name}" for term in recipe.losses]
        judged = [f"val/{name}" for name in judged]
        self.columns = sorted({"epoch", "step", "train/loss_step", "train/loss_epoch", *terms, *judged})
        self.path = folder / METRICS if csv_too else None
        self.judged: dict[str, float] = {}  # validation results of this epoch, set by Judge
        self.means: dict[str, float] = {}  # of the last epoch
        self._sums: dict[str, Tensor] = {}  # over this rank's batches so far
        self._batches = 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        values: dict[str, Tensor] = pl_module.values  # type: ignore[assignment]
        for name, value in values.items():
            self._sums[name] = value.double() + self._sums.get(name, 0)
        self._batches += 1
        last = batch_idx + 1 == trainer.num_training_batches
        moved = last or not (batch_idx + 1) % trainer.accumulate_grad_batches
        if moved and not trainer.global_step % EVERY:
            loss = trainer.strategy.reduce(values["train/loss"].clone(), reduce_op="mean")  # in place
            self._write(trainer, {"train/loss_step": float(loss)})

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.means = {
            "train/loss_epoch" if name == "train/loss" else name: value / self._batches / trainer.world_size
            for name, value in self._over_ranks(trainer).items()
        }
        self._write(trainer, {**self.means, **self.judged})
        self.judged, self._sums, self._batches = {}, {}, 0

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["logs"] = {"sums": self._over_ranks(trainer), "batches": self._batches}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        kept = checkpoint.get("logs", {"sums": {}, "batches": 0})
        self._batches = kept["batches"]
        if trainer.is_global_zero:
            self._sums = {name: torch.tensor(value, dtype=torch.float64) for name, value in kept["sums"].items()}

    def _over_ranks(self, trainer: pl.Trainer) -> dict[str, float]:
        reduce = trainer.strategy.reduce  # in place
        return {name: float(reduce(value.clone(), reduce_op="sum")) for name, value in self._sums.items()}

    def _write(self, trainer: pl.Trainer, row: dict[str, float]) -> None:
        """Log values at the last step."""
        if not trainer.is_global_zero:
            return
        place = {"epoch": trainer.current_epoch, "step": trainer.global_step - 1}
        if self.path:
            append_row(self.path, {name: {**place, **row}.get(name, "") for name in self.columns})
        for logger in trainer.loggers:
            logger.log_metrics({**row, "epoch": place["epoch"]}, place["step"])
            logger.save()  # TensorBoard flushes only every two minutes


class _Events(TensorBoardLogger):
    def save(self) -> None:
        """Flush without writing the file of hyperparameters, which is empty here."""
        if self._experiment is not None:
            self._experiment.flush()


def loggers(names: Sequence[str], folder: Path, recipe: Recipe) -> list[Logger]:
    """Lightning's TensorBoard and Weights & Biases loggers, where named. Raises HrsegError for a missing package."""
    made: list[Logger] = []
    if "tensorboard" in names:
        made.append(_Events(folder, name="", version="log"))
    if "wandb" in names:
        from lightning.pytorch.loggers import WandbLogger

        try:
            made.append(
                WandbLogger(name=folder.name, save_dir=folder, project="hrseg", config=recipe.model_dump(mode="json"))
            )
        except ModuleNotFoundError:
            raise HrsegError("`loggers` wandb: wandb is not installed; run pip install 'hrseg[wandb]'") from None
    return made


def append_row(path: Path, record: dict[str, Any]) -> None:
    """Append a row to a CSV file; a new file gets the record's keys as its header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(record))
        if new:
            writer.writeheader()
        writer.writerow(record)


def rewind(folder: Path, steps: int, judged: int) -> None:
    """Remove all log entries after a checkpoint of ``steps`` steps whose last validated epoch is ``judged``."""
    sweep(folder / "log")
    _drop_rows(folder / JUDGED, "epoch", judged)
    _drop_rows(folder / METRICS, "step", steps - 1)
    join_events(folder, steps)


def _drop_rows(path: Path, column: str, last: int) -> None:
    """Remove rows whose ``column`` is above ``last``, and an incomplete row."""
    if not path.exists():
        return
    text = path.read_bytes().decode(errors="replace")
    head, *lines = text.splitlines(keepends=True) or [""]
    place = next(csv.reader([head]), []).index(column) if column in head and head.endswith("\n") else None
    kept = [
        line
        for line in lines
        if place is not None and line.endswith("\n") and _number(next(csv.reader([line]), []), place) <= last
    ]
    if not kept:
        path.unlink()
    elif len(kept) < len(lines):
        write_atomically(path, "".join([head, *kept]))


def _number(row: list[str], place: int) -> int:
    return int(row[place]) if place < len(row) and re.fullmatch("[0-9]{1,18}", row[place]) else 0


def join_events(folder: Path, steps: int | None = None) -> None:
    """Merge the TensorBoard event files, of which every start writes one. steps: drop events after that many steps."""
    from tensorboard.compat.proto.event_pb2 import Event

    files = sorted((folder / "log").glob("events.out.tfevents.*"))
    events: dict[Any, tuple[int, bytes]] = {}
    count = 0
    for number, file in enumerate(files):
        for record in _records(file.read_bytes()):
            count += 1
            event = Event.FromString(record[12:-4])
            if not event.HasField("summary"):
                if number == 0:
                    events[len(events)] = -1, record  # the file's header
            elif steps is None or event.step < steps:
                events[event.step, *(value.tag for value in event.summary.value)] = event.step, record
    if len(files) == 1 and len(events) == count:
        return
    if any(step >= 0 for step, _ in events.values()):
        with writing_atomically(files.pop(0)) as out:
            out.writelines(record for _, record in sorted(events.values(), key=lambda one: one[0]))
    for file in files:
        file.unlink()


def _records(data: bytes) -> Iterator[bytes]:
    """Records of a TFRecord file: 8 bytes length, 4 bytes its checksum, the data, 4 bytes the data's checksum.

    An incomplete last record is dropped.
    """
    start = 0
    while start + 12 <= len(data):
        end = start + 16 + int(struct.unpack_from("<Q", data, start)[0])
        if end > len(data):
            return
        yield data[start:end]
        start = end
