"""Many machines: which share of the objects this process takes, and where it leaves it.

A share is every N-th object: known without talk between machines, equal in number to one object, and for a dataset of
sequences equal in kind. ``--shard I/N`` says it; torchrun and srun say it in the environment.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple, TypeVar

import typer

from hrseg_cli.errors import HrsegError

T = TypeVar("T")

Option = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="I/N",
        help="Only the I-th of N equal shares of the objects, 1/N to N/N [under torchrun or srun: one a process].",
    ),
]


class Shard(NamedTuple):
    """``number`` counts from 1 to ``of``."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def share(self, objects: Sequence[T]) -> list[T]:
        return list(objects[self.number - 1 :: self.of])

    def folder(self, out: Path) -> Path:
        """Its run folder below the evaluation's."""
        return out / f"shard-{self.number}-of-{self.of}"

    def file(self, out: Path) -> Path:
        """Its file beside the one that was named: ``clicks.jsonl`` -> ``clicks.shard-1-of-4.jsonl``."""
        return out.with_name(f"{out.stem}.shard-{self.number}-of-{self.of}{out.suffix}")


# (this process's number from 0, how many) in the environment, by whom. Not SLURM_NTASKS: a batch script that starts
# one process without srun has it too, and would do a share only.
_LAUNCHERS = {"torchrun": ("RANK", "WORLD_SIZE"), "srun": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")}


def shard_of(text: str | None) -> Shard | None:
    """The share that was asked for, else the launcher's; None for all objects. Raises HrsegError for a wrong text."""
    if text is not None:
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise HrsegError(f"--shard {text}: write I/N with I from 1 to N, such as 1/8 for the first of eight")
        return Shard(int(found[1]), int(found[2]))
    for launcher, (number, of) in _LAUNCHERS.items():
        if os.environ.get(number, "").isdigit() and os.environ.get(of, "").isdigit():
            shard = Shard(int(os.environ[number]) + 1, int(os.environ[of]))
            if shard.of > 1:
                typer.echo(f"shard {shard}, from {launcher}'s {number} and {of}", err=True)
                return shard
    return None


def share_of_cores(workers: int) -> int:
    """Of the processes that one machine has cores for, those of one of torchrun's ranks. srun binds cores itself."""
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, workers // int(ranks)) if ranks.isdigit() and int(ranks) else workers


def own_device(device: str) -> str:
    """``cuda`` becomes the rank's own GPU where one process sees several."""
    if device != "cuda":
        return device
    import torch

    local = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or "0"
    seen = torch.cuda.device_count()
    return f"cuda:{int(local) % seen}" if local.isdigit() and seen > 1 else device
