"""hrseg train: from a recipe to weights."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hrseg_cli import catalog
from hrseg_cli.commands import options
from hrseg_cli.errors import HrsegError, UnknownName

if TYPE_CHECKING:
    from hrseg_cli.recipe import Recipe

LOGGERS = ("csv", "tensorboard", "wandb")

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
Processes = Annotated[
    int, typer.Option("--processes", metavar="N", min=1, help="Processes on this machine, one per GPU.")
]
Nodes = Annotated[int, typer.Option("--nodes", metavar="N", min=1, help="Machines, each running this command.")]
Workers = Annotated[
    int, typer.Option("--workers", metavar="N", min=0, help="Processes that prepare samples, for each process.")
]
Loggers = Annotated[list[str], typer.Option("--logger", metavar="NAME", help="csv, tensorboard or wandb; repeatable.")]


def train(
    recipe: RecipeName = None,
    adapter: AdapterName = None,
    set_: Changes = [],  # noqa: B006 - Typer copies it
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FOLDER", help="Run folder [runs/train-RECIPE].")
    ] = None,
    resume: Resume = None,
    device: options.Device = "cpu",
    processes: Processes = 1,
    nodes: Nodes = 1,
    workers: Workers = 1,
    logger: Loggers = ["csv", "tensorboard"],  # noqa: B006
    root: options.Root = None,
) -> None:
    """Train a click model by a recipe; the same command goes on where an interrupted one stopped.

    Writes a run folder: best and last weights, a checkpoint to go on from, what was judged, and the logs.
    """
    from hrseg_cli.recipe import load_recipe

    if (recipe is None and adapter is None) == (resume is None):
        raise HrsegError("give either --recipe RECIPE (or --adapter ADAPTER) or --resume RUN")
    if resume:
        chosen, folder = resumed(resume, bool(set_ or out)), resume
    else:
        chosen = load_recipe(recipe or recipe_for(str(adapter)), [*adapter_change(recipe, adapter), *set_])
        folder = out or Path("runs") / f"train-{chosen.name}"
    run_training(chosen, folder, "train", device, processes, nodes, workers, logger, root)


def recipe_for(adapter: str) -> str:
    """The recipe that an adapter is trained by where none is named: its own, or that of the comparison."""
    from hrseg_cli.recipe import recipe_names

    if adapter not in catalog.ADAPTERS:
        raise UnknownName("adapter", adapter, catalog.ADAPTERS)
    own = f"adapt_{adapter}"
    return own if own in recipe_names() else "adapt_lora"


def adapter_change(recipe: str | None, adapter: str | None) -> list[str]:
    """What makes a recipe one for this adapter, when it is not so already."""
    if adapter is None:
        return []
    if adapter not in catalog.ADAPTERS:
        raise UnknownName("adapter", adapter, catalog.ADAPTERS)
    own = recipe_for(adapter) == f"adapt_{adapter}" and recipe in (None, f"adapt_{adapter}")
    return [] if own else [f"adapter={{name: {adapter}}}"]


def resumed(run: Path, more: bool) -> Recipe:
    """The recipe of a run folder. Raises HrsegError."""
    from hrseg_cli.recipe import recipe_of
    from hrseg_cli.runs import read_run

    if more:
        raise HrsegError("--resume: goes on with the recipe of that run; leave the options that change it off")
    settings = read_run(run)["asked"]["settings"]
    if "recipe" not in settings:
        raise HrsegError(f"--resume {run}: is no training; give a run folder of 'hrseg train' or 'hrseg adapt'")
    return recipe_of(settings["recipe"], f"--resume {run}: run.json")


def run_training(
    recipe: Recipe,
    folder: Path,
    command: str,
    device: str,
    processes: int,
    nodes: int,
    workers: int,
    logger: list[str],
    root: Path | None,
) -> None:
    """Train in ``folder``, from the beginning or from where it stopped; prints one JSON line."""
    for name in logger:
        if name not in LOGGERS:
            raise UnknownName("logger", name, LOGGERS)
    options.device_of(device)

    from hrseg_cli.engine import fit
    from hrseg_cli.engine.feed import Feed, training_images
    from hrseg_cli.runs import Run

    place = options.data_root(root)
    model, provenance = fit.start_model(recipe)
    provenance = {"recipe": recipe.name, "seed": recipe.seed, **provenance}
    feed = Feed(training_images(recipe.data, place, folder.parent / "copies"), recipe)
    judged = fit.judged_objects(recipe, place)
    if not judged:
        raise HrsegError("nothing to judge by: no object is held out; raise data.held_out or set validation.datasets")
    machine = fit.Machine(device, processes, nodes, workers, tuple(logger), sys.stderr.isatty())
    settings = {
        "recipe": recipe.model_dump(mode="json"),
        "processes": processes * nodes,
        "images": [len(part) for part in feed.images],
        "judged": [f"{ref.dataset}/{ref.id}" for ref in judged],
        "started_from": {key: provenance[key] for key in ("started_from", "base_weights") if key in provenance},
    }
    if int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", 0))) > 0:  # started by the first process
        fit.fit(model, recipe, feed, judged, folder, machine, provenance)
        return
    with Run(folder, command, settings) as run:
        run.summary = fit.fit(model, recipe, feed, judged, folder, machine, provenance, options.note)
    typer.echo(json.dumps({"run": str(folder), **run.summary}))
