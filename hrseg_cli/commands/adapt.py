"""hrseg adapt: fit a trained model to one's pictures, by training little of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from hrseg_cli.commands import options, train
from hrseg_cli.errors import HrsegError


def adapt(
    base: Annotated[
        str, typer.Option("--from", metavar="MODEL", help="The model to start from, as --model takes it.")
    ] = "h18s",
    adapter: train.AdapterName = None,
    dataset: Annotated[
        list[str], typer.Option("--dataset", "-d", metavar="DATASET", help="What to train on. Repeatable.")
    ] = [],  # noqa: B006 - Typer copies it
    recipe: train.RecipeName = None,
    set_: train.Changes = [],  # noqa: B006
    merge: Annotated[
        Path | None,
        typer.Option(
            "--merge", metavar="FILE", help="Only write BASE+ADAPTER of --from as one stand-alone checkpoint."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FOLDER", help="Run folder [runs/adapt-ADAPTER-DATASETS].")
    ] = None,
    resume: train.Resume = None,
    device: train.Device = None,
    processes: train.Processes = None,
    nodes: train.Nodes = None,
    workers: train.Workers = None,
    logger: train.Loggers = [],  # noqa: B006
    root: options.Root = None,
) -> None:
    """Adapt a model to pictures: train an adapter on the frozen model and keep only what it changes.

    The adapter's file is small and names its base by hash; use both as --model BASE+ADAPTER.
    """
    asked = dict(zip(train.MACHINE, (device, processes, nodes, workers, logger, root), strict=True))
    if merge:
        others = {"adapter": adapter, "dataset": dataset, "recipe": recipe, "set": set_, "out": out, "resume": resume}
        given = [f"--{name}" for name, value in {**others, **asked}.items() if value not in (None, [])]
        if given:
            raise HrsegError(f"--merge {merge}: only folds --from into one file; leave {', '.join(given)} off")
        write_merged(base, merge)
        return
    if resume:
        recipe_, folder = train.resumed(resume, bool(set_ or out or dataset or adapter or recipe), asked), resume
    else:
        from hrseg_cli.recipe import load_recipe

        if adapter is None and recipe is None:
            raise HrsegError("give --adapter ADAPTER (lora or conv, for example), or a --recipe that names one")
        changes = [f"model.weights={json.dumps(base)}"]
        if dataset:
            changes.append(f"data.parts={json.dumps([{'dataset': name} for name in dataset])}")
        changes += [*train.adapter_change(recipe, adapter, [*changes, *set_]), *set_]
        recipe_ = load_recipe(recipe or train.recipe_for(str(adapter)), changes)
        names = [Path(name.partition("=")[0].partition(":")[0]).name for name in dataset]
        name = "+".join(["-".join(["adapt", recipe_.adapter.name, *names]), *set_])
        recipe_ = recipe_.model_copy(update={"name": name})
        folder = out or options.run_folder(recipe_.name)
    if recipe_.adapter.name == "none":
        raise HrsegError(f"recipe {recipe_.name}: trains no adapter; add --adapter, or use 'hrseg train'")
    train.run_training(recipe_, folder, "adapt", asked)


def write_merged(spec: str, path: Path) -> None:
    """One checkpoint that answers as BASE+ADAPTER does."""
    from hrseg_cli.checkpoints.adapters import merged
    from hrseg_cli.checkpoints.formats import save_checkpoint
    from hrseg_cli.checkpoints.resolve import load_model
    from hrseg_cli.writing import only_one

    with only_one(path, f"--merge {path}"):
        model, provenance = load_model(spec)
        if "adapter" not in provenance:
            raise HrsegError(f"--from {spec}: has no adapter to fold; give BASE+ADAPTER")
        save_checkpoint(merged(model), path, {"merged_from": provenance})
    typer.echo(json.dumps({"written": str(path)}))
