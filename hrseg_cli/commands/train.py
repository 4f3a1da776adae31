"""hrseg train: train a model from a recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hrseg_cli import catalog
from hrseg_cli.commands import headings, options
from hrseg_cli.errors import HrsegError, UnknownName
from hrseg_cli.training.recipes import LOGGERS, adapter_change, dataset_change, moved, recipe_for, renamed

if TYPE_CHECKING:
    from hrseg_cli.recipe import Recipe


def _recipes() -> list[str]:
    from hrseg_cli.recipe import recipe_names

    return recipe_names()


RecipeName = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        "-r",
        metavar="RECIPE",
        autocompletion=options.starting(_recipes),
        rich_help_panel=headings.TRAINING,
        help="Recipe: a name ('hrseg list recipes') or a YAML file.",
    ),
]
Changes = Annotated[list[str], options.changes_option(headings.TRAINING, "recipe", "optim.lr=1e-4")]
Datasets = Annotated[
    list[str],
    typer.Option(
        "--dataset",
        "-d",
        metavar="DATASET",
        autocompletion=options.starting(options.dataset_names),
        rich_help_panel=headings.DATA,
        show_default="the recipe's data",
        help="Dataset to train on instead of all data.parts of the recipe: a folder, a known name ('hrseg list "
        "datasets') or NAME=FOLDER. Repeatable.",
    ),
]
Resume = Annotated[
    Path | None,
    typer.Option(
        "--resume",
        metavar="RUN",
        rich_help_panel=headings.OUTPUT,
        help="Resume the training in this run folder, with its original machine settings. If its data has moved, "
        "--root is the new place.",
    ),
]


def adapter_option(text: str) -> Any:
    return typer.Option(
        "--adapter",
        metavar="ADAPTER",
        autocompletion=options.starting(lambda: catalog.ADAPTERS),
        rich_help_panel=headings.TRAINING,
        help=text,
    )


AdapterName = Annotated[
    str | None,
    adapter_option(
        f"Train only this adapter, on the frozen model of its recipe: {options.ADAPTERS} ('hrseg list adapters'). For "
        "another model, use 'hrseg adapt --from MODEL'."
    ),
]
Device = Annotated[str | None, options.device_option("cpu")]
Processes = Annotated[
    int | None,
    typer.Option(
        "--processes",
        metavar="N",
        min=1,
        rich_help_panel=headings.MACHINE,
        show_default="1",
        help="Training processes on this machine, one per GPU.",
    ),
]
Nodes = Annotated[
    int | None,
    typer.Option(
        "--nodes",
        metavar="N",
        min=1,
        rich_help_panel=headings.MACHINE,
        show_default="1",
        help="Number of machines, each running this command.",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        metavar="N",
        min=0,
        rich_help_panel=headings.MACHINE,
        show_default="1",
        help="Data-loading processes per training process.",
    ),
]
Loggers = Annotated[
    list[str],
    typer.Option(
        "--logger",
        metavar="NAME",
        rich_help_panel=headings.OUTPUT,
        show_default="csv, tensorboard",
        help=f"Training logs: {', '.join(LOGGERS)}. Repeatable.",
    ),
]
MACHINE = {
    "device": "cpu",
    "processes": 1,
    "nodes": 1,
    "workers": 1,
    "logger": ["csv", "tensorboard"],
    "root": None,
    "skip_broken": False,
}


def machine_of(*values: Any) -> dict[str, Any]:
    """The options of :data:`MACHINE`, in its order; None or an empty list where not given."""
    return {key: value or None if key == "skip_broken" else value for key, value in zip(MACHINE, values, strict=True)}


def train(
    dataset: Datasets = [],  # noqa: B006 - Typer copies it
    root: options.Root = None,
    skip_broken: options.SkipBroken = False,
    recipe: RecipeName = None,
    adapter: AdapterName = None,
    set_: Changes = [],  # noqa: B006
    out: Annotated[
        Path | None,
        options.out_option("FOLDER", "Run folder to write.", "runs/train-RECIPE"),
    ] = None,
    resume: Resume = None,
    logger: Loggers = [],  # noqa: B006
    device: Device = None,
    processes: Processes = None,
    nodes: Nodes = None,
    workers: Workers = None,
) -> None:
    """Train a click model, or an adapter of one, from a recipe.

    Writes a run folder: best and last weights, a checkpoint to resume from, validation results and logs. Rerun the same
    command, or use --resume, to resume an interrupted training.
    """
    from hrseg_cli.recipe import load_recipe

    if (recipe is None and adapter is None) == (resume is None):
        raise HrsegError("give --recipe RECIPE or --adapter ADAPTER to start a training, or --resume RUN alone")
    asked = machine_of(device, processes, nodes, workers, logger, root, skip_broken)
    if resume:
        chosen, folder = resumed(resume, bool(set_ or out or dataset), asked), resume
    else:
        base = recipe or recipe_for(str(adapter))
        note_replaced(base, dataset, set_)
        data = dataset_change(dataset)
        chosen = load_recipe(base, [*data, *adapter_change(recipe, adapter, [*data, *set_]), *set_])
        if dataset:
            chosen = renamed(
                chosen, [load_recipe(base).name if adapter is None else chosen.adapter.name], dataset, set_
            )
        folder = out or options.run_folder(f"train-{chosen.name}")
    run_training(chosen, folder, "train", asked, own=bool(dataset or resume))


def note_replaced(recipe: str, datasets: list[str], changes: list[str]) -> None:
    """Note on stderr which datasets of a recipe these ones replace. changes: all others of the recipe."""
    from hrseg_cli.recipe import load_recipe

    if not datasets:
        return
    own = load_recipe(recipe, changes)
    replaced = ", ".join(part.dataset for part in own.data.parts)
    judged = f"; validation still on {', '.join(own.validation.datasets)}" if own.validation.datasets else ""
    options.note(f"training on {', '.join(datasets)}, not on {replaced} of recipe {recipe}{judged}")


def resumed(run: Path, more: bool, asked: dict[str, Any]) -> Recipe:
    """The recipe of a run folder. Missing values of ``asked`` are filled from its record. Raises HrsegError."""
    from hrseg_cli.recipe import recipe_of
    from hrseg_cli.runs import read_run

    if more:
        raise HrsegError("--resume: uses the recipe of that run; remove the options that change it")
    record = read_run(run)["asked"]
    settings = record["settings"]
    if "recipe" not in settings:
        raise HrsegError(f"--resume {run}: not a training run; give a run folder of 'hrseg train' or 'hrseg adapt'")
    asked |= {key: value for key, value in record.get("machine", {}).items() if asked.get(key) in (None, [])}
    return recipe_of(settings["recipe"], f"--resume {run}: run.json")


def run_training(recipe: Recipe, folder: Path, command: str, asked: dict[str, Any], own: bool) -> None:
    """Start or resume the training in ``folder``; prints one JSON line.

    asked: the options of :data:`MACHINE` as given; None or an empty list where not given. own: whether the datasets are
    the user's, not the recipe's.
    """
    asked = {key: MACHINE[key] if value in (None, []) else value for key, value in asked.items()}
    for name in asked["logger"]:
        if name not in LOGGERS:
            raise UnknownName("logger", name, LOGGERS)
    options.device_of(asked["device"])
    _check_datasets(recipe, asked["root"] and Path(asked["root"]), folder, own)

    from hrseg_cli.training.run import train_in

    if asked["skip_broken"]:
        options.note("decoding every file first")
    summary = train_in(folder, recipe, command, asked, options.note)
    if summary is not None:
        broken = summary.pop("broken", [])
        typer.echo(json.dumps({"run": str(folder), **summary}))
        options.complain_of(broken)


def _check_datasets(recipe: Recipe, root: Path | None, folder: Path, own: bool) -> None:
    """Report a missing dataset before torch is imported."""
    from hrseg_cli.data.datasets import check_found
    from hrseg_cli.runs import RECORD

    resumes = (folder / RECORD).is_file()
    try:
        for part in (moved(recipe, root) if resumes else recipe).data.parts:
            check_found(part.dataset, root=root, split="train")
    except HrsegError as error:
        if resumes:
            raise HrsegError(f"{error}; if the data has moved, give its new place as `root`") from None
        if own:
            raise
        if isinstance(error, UnknownName):  # its folder lies elsewhere, rather than having another name
            error = HrsegError(f"{str(error).rstrip('.')}; give the folder that contains it as `root`")
        raise HrsegError(f"{error}; to train on your own images, give `dataset` my_photos") from None
