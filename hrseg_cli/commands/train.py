"""hrseg train: from a recipe to weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hrseg_cli.commands import options
from hrseg_cli.errors import HrsegError
from hrseg_cli.training.recipes import adapter_change as adapter_change  # adapt takes them from here
from hrseg_cli.training.recipes import recipe_for as recipe_for

if TYPE_CHECKING:
    from hrseg_cli.recipe import Recipe

RecipeName = Annotated[
    str | None, typer.Option("--recipe", "-r", metavar="RECIPE", help="A recipe by name, or a YAML file.")
]
Changes = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Change the recipe, e.g. optim.lr=1e-4. Repeatable.")
]
Resume = Annotated[
    Path | None, typer.Option("--resume", metavar="RUN", help="Go on with the training in this run folder.")
]
AdapterName = Annotated[
    str | None,
    typer.Option("--adapter", metavar="ADAPTER", help="lora, conv, or a control: full, head, bn, bitfit."),
]
Device = Annotated[
    str | None, typer.Option("--device", metavar="DEVICE", help="cpu or cuda[:N] [that of --resume, else cpu].")
]
Processes = Annotated[
    int | None,
    typer.Option(
        "--processes", metavar="N", min=1, help="Processes on this machine, one per GPU [--resume's, else 1]."
    ),
]
Nodes = Annotated[
    int | None,
    typer.Option("--nodes", metavar="N", min=1, help="Machines, each running this command [as before, or 1]."),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers", metavar="N", min=0, help="Processes that prepare samples, for each process [as before, or 1]."
    ),
]
Loggers = Annotated[
    list[str],
    typer.Option(
        "--logger", metavar="NAME", help="csv, tensorboard or wandb; repeatable [as before, or csv and tensorboard]."
    ),
]
MACHINE = {"device": "cpu", "processes": 1, "nodes": 1, "workers": 1, "logger": ["csv", "tensorboard"], "root": None}


def train(
    recipe: RecipeName = None,
    adapter: AdapterName = None,
    set_: Changes = [],  # noqa: B006 - Typer copies it
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FOLDER", help="Run folder [runs/train-RECIPE].")
    ] = None,
    resume: Resume = None,
    device: Device = None,
    processes: Processes = None,
    nodes: Nodes = None,
    workers: Workers = None,
    logger: Loggers = [],  # noqa: B006
    root: options.Root = None,
) -> None:
    """Train a click model by a recipe; the same command goes on where an interrupted one stopped.

    Writes a run folder: best and last weights, a checkpoint to go on from, what was judged, and the logs.
    """
    from hrseg_cli.recipe import load_recipe

    if (recipe is None and adapter is None) == (resume is None):
        raise HrsegError("give either --recipe RECIPE (or --adapter ADAPTER) or --resume RUN")
    asked = dict(zip(MACHINE, (device, processes, nodes, workers, logger, root), strict=True))
    if resume:
        chosen, folder = resumed(resume, bool(set_ or out), asked), resume
    else:
        chosen = load_recipe(recipe or recipe_for(str(adapter)), [*adapter_change(recipe, adapter, set_), *set_])
        folder = out or options.run_folder(f"train-{chosen.name}")
    run_training(chosen, folder, "train", asked)


def resumed(run: Path, more: bool, asked: dict[str, Any]) -> Recipe:
    """The recipe of a run folder; what it ran on fills the gaps of ``asked``. Raises HrsegError."""
    from hrseg_cli.recipe import recipe_of
    from hrseg_cli.runs import read_run

    if more:
        raise HrsegError("--resume: goes on with the recipe of that run; leave the options that change it off")
    record = read_run(run)["asked"]
    settings = record["settings"]
    if "recipe" not in settings:
        raise HrsegError(f"--resume {run}: is no training; give a run folder of 'hrseg train' or 'hrseg adapt'")
    asked |= {key: value for key, value in record.get("machine", {}).items() if asked.get(key) in (None, [])}
    return recipe_of(settings["recipe"], f"--resume {run}: run.json")


def run_training(recipe: Recipe, folder: Path, command: str, asked: dict[str, Any]) -> None:
    """Train in ``folder``, from the beginning or from where it stopped; prints one JSON line.

    asked: the options of :data:`MACHINE` as they were given, None or an empty list where they were not.
    """
    asked = {key: MACHINE[key] if value in (None, []) else value for key, value in asked.items()}
    options.device_of(asked["device"])

    from hrseg_cli.training.run import train_in

    summary = train_in(folder, recipe, command, asked, options.note)
    if summary is not None:
        typer.echo(json.dumps({"run": str(folder), **summary}))
