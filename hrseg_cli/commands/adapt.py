"""hrseg adapt: train an adapter of a model. hrseg merge: fold an adapter into its model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from hrseg_cli import catalog
from hrseg_cli.commands import headings, options, train
from hrseg_cli.errors import HrsegError
from hrseg_cli.training.recipes import adapting_recipe, recipe_for


def adapt(
    base: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="MODEL",
            autocompletion=options.starting(options.model_names),
            rich_help_panel=headings.MODEL,
            help=f"Model to adapt: a name with weights such as {catalog.DEFAULT_MODEL}, a checkpoint, or BASE+ADAPTER.",
        ),
    ] = catalog.DEFAULT_MODEL,
    dataset: train.Datasets = [],  # noqa: B006 - Typer copies it
    root: options.Root = None,
    skip_broken: options.SkipBroken = False,
    adapter: Annotated[
        str | None,
        train.adapter_option(f"Adapter to train: {options.ADAPTERS} ('hrseg list adapters')."),
    ] = None,
    recipe: train.RecipeName = None,
    set_: train.Changes = [],  # noqa: B006
    out: Annotated[
        Path | None,
        options.out_option("FOLDER", "Run folder to write.", "runs/adapt-ADAPTER-DATASETS"),
    ] = None,
    resume: train.Resume = None,
    merge: Annotated[
        Path | None,
        typer.Option(
            "--merge", metavar="FILE", rich_help_panel=headings.OUTPUT, help="Same as 'hrseg merge MODEL FILE'."
        ),
    ] = None,
    logger: train.Loggers = [],  # noqa: B006
    device: train.Device = None,
    processes: train.Processes = None,
    nodes: train.Nodes = None,
    workers: train.Workers = None,
) -> None:
    """Adapt a trained model to your images: train a small adapter and leave the model itself unchanged.

    Writes a run folder like 'hrseg train'. The adapter's file, best.safetensors, is small and belongs to its base
    model: use both as --model BASE+ADAPTER, or fold them into one checkpoint with 'hrseg merge'.
    """
    asked = train.machine_of(device, processes, nodes, workers, logger, root, skip_broken)
    if merge:
        others = {"adapter": adapter, "dataset": dataset, "recipe": recipe, "set": set_, "out": out, "resume": resume}
        given = [f"--{name}" for name, value in {**others, **asked}.items() if value not in (None, [])]
        if given:
            raise HrsegError(f"--merge {merge}: only merges the model of --from; remove {', '.join(given)}")
        write_merged(base, merge, "--from", "--merge")
        return
    if resume:
        chosen, folder = train.resumed(resume, bool(set_ or out or dataset or adapter or recipe), asked), resume
    else:
        if adapter is None and recipe is None:
            raise HrsegError("give --adapter ADAPTER (such as lora), or a --recipe with one")
        start = recipe or recipe_for(str(adapter))
        train.note_replaced(start, dataset, [f"model.weights={json.dumps(base)}", *set_])
        chosen = adapting_recipe(base, dataset, adapter, recipe, set_)
        folder = out or options.run_folder(chosen.name)
    if chosen.adapter.name == "none":
        raise HrsegError(f"recipe {chosen.name}: trains no adapter; add --adapter, or use 'hrseg train'")
    train.run_training(chosen, folder, "adapt", asked, own=bool(dataset or resume))


def merge(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model and adapter, BASE+ADAPTER.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Checkpoint to write (.safetensors).")],
) -> None:
    """Fold an adapter into its base model and write one stand-alone checkpoint with the same predictions.

    Works for lora and the controls; adapters that add layers (conv, pointrend) stay separate files.
    """
    write_merged(model, out, "MODEL", "OUT")


def write_merged(spec: str, path: Path, spec_option: str, path_option: str) -> None:
    """Write BASE+ADAPTER as one checkpoint. The last two parameters name the arguments in errors."""
    from hrseg_cli.checkpoints.adapters import merged
    from hrseg_cli.checkpoints.formats import save_checkpoint
    from hrseg_cli.checkpoints.resolve import load_model
    from hrseg_cli.writing import only_one

    with only_one(path, f"{path_option} {path}"):
        model, provenance = load_model(spec)
        if "adapter" not in provenance:
            raise HrsegError(f"{spec_option} {spec}: has no adapter to merge; give BASE+ADAPTER")
        save_checkpoint(merged(model), path, {"merged_from": provenance})
    typer.echo(json.dumps({"written": str(path)}))
