"""Split work over machines: the share of the objects for this process, and where it writes its results.

A share is every N-th object. Machines need not talk to each other; sizes differ by at most one object, and in a dataset
of sequences every share has a bit of each. ``--shard I/N`` sets it; torchrun and srun set it in the environment.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple, TypeVar

import typer

from hrseg_cli.commands import headings
from hrseg_cli.errors import HrsegError

T = TypeVar("T")

Option = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="I/N",
        rich_help_panel=headings.MACHINE,
        help="Process only the I-th of N equal shares of the objects, to spread work over machines. Automatic under "
        "torchrun and srun.",
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
        """The shard's run folder, inside that of the evaluation."""
        return out / f"shard-{self.number}-of-{self.of}"

    def file(self, out: Path) -> Path:
        """The shard's file: ``clicks.jsonl`` -> ``clicks.shard-1-of-4.jsonl``."""
        return out.with_name(f"{out.stem}.shard-{self.number}-of-{self.of}{out.suffix}")


# launcher -> environment variables of this process's number (from 0) and the number of processes. Not SLURM_NTASKS: a
# batch script that starts one process without srun has it too, and would process a share only.
_LAUNCHERS = {"torchrun": ("RANK", "WORLD_SIZE"), "srun": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")}


def shard_of(text: str | None) -> Shard | None:
    """The requested share, else the launcher's; None for all objects. Raises HrsegError."""
    if text is not None:
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise HrsegError(f"--shard {text}: write I/N with I from 1 to N, such as 1/8 for the first of eight")
        return Shard(int(found[1]), int(found[2]))
    for launcher, (number, of) in _LAUNCHERS.items():
        if os.environ.get(number, "").isdigit() and os.environ.get(of, "").isdigit():
            shard = Shard(int(os.environ[number]) + 1, int(os.environ[of]))
            if shard.of > 1:
                typer.echo(f"processing shard {shard}, set by {launcher} ({number}, {of})", err=True)
                return shard
    return None


def share_of_cores(workers: int) -> int:
    """How many of ``workers`` processes one of torchrun's ranks may start. srun binds cores itself."""
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, workers // int(ranks)) if ranks.isdigit() and int(ranks) else workers


def own_device(device: str) -> str:
    """``cuda`` becomes the GPU of this rank where a process sees several."""
    if device != "cuda":
        return device
    import torch

    local = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or "0"
    seen = torch.cuda.device_count()
    return f"cuda:{int(local) % seen}" if local.isdigit() and seen > 1 else device
