"""hrseg train: from a recipe to weights."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from hrseg_cli.commands import options
from hrseg_cli.errors import HrsegError, UnknownName

LOGGERS = ("csv", "tensorboard", "wandb")


def train(
    recipe: Annotated[
        str | None, typer.Option("--recipe", "-r", metavar="RECIPE", help="A recipe by name, or a YAML file.")
    ] = None,
    set_: Annotated[
        list[str],
        typer.Option("--set", metavar="KEY=VALUE", help="Change the recipe, e.g. optim.lr=1e-4. Repeatable."),
    ] = [],  # noqa: B006 - Typer copies it
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FOLDER", help="Run folder [runs/train-RECIPE].")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", metavar="RUN", help="Go on with the training in this run folder.")
    ] = None,
    device: options.Device = "cpu",
    processes: Annotated[
        int, typer.Option("--processes", metavar="N", min=1, help="Processes on this machine, one per GPU.")
    ] = 1,
    nodes: Annotated[int, typer.Option("--nodes", metavar="N", min=1, help="Machines, each running this command.")] = 1,
    workers: Annotated[
        int, typer.Option("--workers", metavar="N", min=0, help="Processes that prepare samples, for each process.")
    ] = 1,
    logger: Annotated[
        list[str], typer.Option("--logger", metavar="NAME", help="csv, tensorboard or wandb; repeatable.")
    ] = ["csv", "tensorboard"],  # noqa: B006
    root: options.Root = None,
) -> None:
    """Train a click model by a recipe; the same command goes on where an interrupted one stopped.

    Writes a run folder: best and last weights, a checkpoint to go on from, what was judged, and the logs.
    """
    for name in logger:
        if name not in LOGGERS:
            raise UnknownName("logger", name, LOGGERS)

    from hrseg_cli.recipe import load_recipe, recipe_of
    from hrseg_cli.runs import Run, read_run

    if (recipe is None) == (resume is None):
        raise HrsegError("give either --recipe RECIPE or --resume RUN")
    if resume:
        if set_ or out:
            raise HrsegError("--resume: goes on with the recipe of that run; leave --set and --out off")
        settings = read_run(resume)["asked"]["settings"]
        chosen = recipe_of(settings.get("recipe"), f"--resume {resume}: run.json")
        out = resume
    else:
        chosen = load_recipe(str(recipe), set_)
    folder = out or Path("runs") / f"train-{chosen.name}"
    options.device_of(device)

    from hrseg_cli.engine import fit
    from hrseg_cli.engine.feed import Feed, training_images

    machine = fit.Machine(device, processes, nodes, workers, tuple(logger), sys.stderr.isatty())
    images = training_images(chosen.data, options.data_root(root), folder / "copies")
    judged = fit.judged_objects(chosen, options.data_root(root))
    settings = {
        "recipe": chosen.model_dump(mode="json"),
        "processes": processes * nodes,
        "images": [len(part) for part in images],
        "judged": [f"{ref.dataset}/{ref.id}" for ref in judged],
    }
    model, provenance = fit.start_model(chosen)
    helper = int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", 0))) > 0  # started by the first process
    provenance = {"recipe": chosen.name, "seed": chosen.seed, **provenance}
    if helper:
        fit.fit(model, chosen, Feed(images, chosen), judged, folder, machine, provenance)
        return
    with Run(folder, "train", settings) as run:
        run.summary = fit.fit(
            model,
            chosen,
            Feed(images, chosen),
            judged,
            folder,
            machine,
            provenance,
            lambda line: typer.echo(line, err=True),
        )
    typer.echo(json.dumps({"run": str(folder), **run.summary}))
