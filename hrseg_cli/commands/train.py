"""hrseg train: from a recipe to weights."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hrseg_cli import catalog
from hrseg_cli.commands import options
from hrseg_cli.errors import HrsegError, Interrupted, UnknownName

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


def recipe_for(adapter: str) -> str:
    """The recipe that an adapter is trained by where none is named: its own, or that of the comparison."""
    from hrseg_cli.recipe import recipe_names

    if adapter not in catalog.ADAPTERS:
        raise UnknownName("adapter", adapter, catalog.ADAPTERS)
    own = f"adapt_{adapter}"
    return own if own in recipe_names() else "adapt_lora"


def adapter_change(recipe: str | None, adapter: str | None, changes: list[str]) -> list[str]:
    """What makes a recipe one for this adapter, when it is not so already. changes: all others of the recipe."""
    from hrseg_cli.recipe import load_recipe

    if adapter is None:
        return []
    if adapter not in catalog.ADAPTERS:
        raise UnknownName("adapter", adapter, catalog.ADAPTERS)
    own = load_recipe(recipe or recipe_for(adapter), changes).adapter.name
    return [] if own == adapter else [f"adapter={{name: {adapter}}}"]


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


def _is_first() -> bool:
    """Whether this process is the first of those that train together: the only one that writes.

    The others were started by it, by torchrun, by srun, or by hand on further machines.
    """
    ranks = ["RANK"] if "RANK" in os.environ else ["LOCAL_RANK", "NODE_RANK", "GROUP_RANK"]
    if int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1) > 1:  # see shards
        ranks.append("SLURM_PROCID")
    return not any(int(os.environ.get(name) or 0) for name in ranks)


def run_training(recipe: Recipe, folder: Path, command: str, asked: dict[str, Any]) -> None:
    """Train in ``folder``, from the beginning or from where it stopped; prints one JSON line.

    asked: the options of :data:`MACHINE` as they were given, None or an empty list where they were not.
    """
    asked = {key: MACHINE[key] if value in (None, []) else value for key, value in asked.items()}
    for name in asked["logger"]:
        if name not in LOGGERS:
            raise UnknownName("logger", name, LOGGERS)
    options.device_of(asked["device"])

    from hrseg_cli.engine.devices import best_precision
    from hrseg_cli.runs import Run
    from hrseg_cli.training import fit
    from hrseg_cli.training.feed import Feed, training_images
    from hrseg_cli.training.judge import judged_objects

    if recipe.precision == "auto":
        recipe = recipe.model_copy(update={"precision": best_precision(asked["device"])})
    place = options.data_root(asked["root"] and Path(asked["root"]))
    model, provenance = fit.start_model(recipe)
    provenance = {"recipe": recipe.name, "seed": recipe.seed, **provenance}
    feed = Feed(training_images(recipe.data, place, folder.parent / "copies"), recipe)
    judged = judged_objects(recipe, place)
    if not judged:
        raise HrsegError("nothing to judge by: no object is held out; raise data.held_out or set validation.datasets")
    machine = fit.Machine(
        asked["device"],
        asked["processes"],
        asked["nodes"],
        asked["workers"],
        tuple(asked["logger"]),
        sys.stderr.isatty(),
    )
    settings = {
        "recipe": recipe.model_dump(mode="json"),
        "processes": machine.processes * machine.nodes,
        "images": [len(part) for part in feed.images],
        "judged": [f"{ref.dataset}/{ref.id}" for ref in judged],
        "started_from": {key: provenance[key] for key in ("started_from", "base_weights") if key in provenance},
    }
    if machine.processes * machine.nodes > 1 and not _is_first():
        # Which says itself why all stop; a code other than 0 would have it killed before it can.
        with suppress(Interrupted):
            fit.fit(model, recipe, feed, judged, folder, machine, provenance)
        return
    root = asked["root"] and str(Path(asked["root"]).absolute())
    with Run(folder, command, settings, {**asked, "root": root}) as run:
        run.summary = fit.fit(model, recipe, feed, judged, folder, machine, provenance, options.note)
    typer.echo(json.dumps({"run": str(folder), **run.summary}))
