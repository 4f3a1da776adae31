"""Train a model or an adapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from hrseg_cli.api.arguments import changes_of, checked_count, listed, path_of
from hrseg_cli.engine.devices import available
from hrseg_cli.errors import HrsegError
from hrseg_cli.recipe import Recipe, load_recipe
from hrseg_cli.training.judge import BEST_WEIGHTS
from hrseg_cli.training.recipes import adapting_recipe
from hrseg_cli.training.run import train_in

Changes = Mapping[str, Any] | Sequence[str]


class Trained(NamedTuple):
    """A finished training.

    folder: its run folder. weights: the file of the best weights, a checkpoint or an adapter. model: the argument of
    :func:`hrseg_cli.load` that loads them. summary: epochs, steps, "best" (clicks needed on held-out objects) and the
    model's costs.
    """

    folder: Path
    weights: Path
    model: str
    summary: dict[str, Any]


def train(
    recipe: str | PathLike[str],
    out: str | PathLike[str],
    *,
    changes: Changes = (),
    root: str | PathLike[str] | None = None,
    device: str = "cpu",
    workers: int = 1,
    loggers: str | Sequence[str] = ("csv",),
    skip_broken: bool = False,
    say: Callable[[str], None] | None = None,
) -> Trained:
    """Train a click model by a recipe, like ``hrseg train`` in one process.

    recipe: the name of a recipe, or a YAML file; its ``seed`` determines all randomness.
    changes: to the recipe, as ``{"optim.lr": 1e-4}`` or ``["optim.lr=1e-4"]``.
    out: the run folder. The same call resumes an interrupted training, and so does ``hrseg train --resume``.
    root: folder of the known datasets; None: $HRSEG_DATA, or ./data. When a training resumes, also the new place of
        folders that have moved.
    device: "cpu", "cuda" or "cuda:N". workers: number of processes that prepare samples. loggers: any of "csv",
        "tensorboard" and "wandb". skip_broken: as for :func:`hrseg_cli.evaluate`; the summary
        has their number as "skipped" and lines about them as "broken". say: called with a line after each epoch.

    Raises HrsegError for errors that the caller can fix, UnknownName for an unknown name.
    """
    chosen = load_recipe(str(recipe), changes_of(changes))
    return _train(chosen, "train", out, root, device, workers, loggers, skip_broken, say)


def adapt(
    model: str | PathLike[str],
    datasets: str | PathLike[str] | Sequence[str | PathLike[str]],
    out: str | PathLike[str],
    *,
    adapter: str | None = "lora",
    recipe: str | PathLike[str] | None = None,
    changes: Changes = (),
    root: str | PathLike[str] | None = None,
    device: str = "cpu",
    workers: int = 1,
    loggers: str | Sequence[str] = ("csv",),
    skip_broken: bool = False,
    say: Callable[[str], None] | None = None,
) -> Trained:
    """Train an adapter of a model on some datasets, like ``hrseg adapt``; the model itself is unchanged.

    model: a name or a file, as for :func:`hrseg_cli.load`. datasets: the training data, as for
        :func:`hrseg_cli.evaluate`.
    adapter: "lora", "conv" or "pointrend", or a control: "full", "head", "bn", "bitfit". None: the
        adapter of ``recipe``.
    out: the run folder. recipe: the name of a recipe, or a YAML file; None: the adapter's own. changes: to the recipe.
    root, device, workers, loggers, skip_broken, say: as for :func:`train`.

    The adapter's file is small and works only with its model: ``load(adapt(...).model)`` loads both.

    Raises HrsegError for errors that the caller can fix, UnknownName for an unknown name.
    """
    if adapter is None and recipe is None:
        raise HrsegError("`adapter`: give one, such as 'lora', or a `recipe` with one")
    base = listed("model", model)[0]
    name = None if recipe is None else str(recipe)
    chosen = adapting_recipe(base, listed("datasets", datasets), adapter, name, changes_of(changes))
    if chosen.adapter.name == "none":
        raise HrsegError(f"`recipe` {name}: trains no adapter; give `adapter`, or use train()")
    done = _train(chosen, "adapt", out, root, device, workers, loggers, skip_broken, say)
    return done._replace(model=f"{base}+{done.weights}")


def _train(
    recipe: Recipe,
    command: str,
    out: str | PathLike[str],
    root: str | PathLike[str] | None,
    device: str,
    workers: int,
    loggers: str | Sequence[str],
    skip_broken: bool,
    say: Callable[[str], None] | None,
) -> Trained:
    place = path_of(root)
    machine = {
        "device": available(str(device)),
        "processes": 1,
        "nodes": 1,
        "workers": checked_count("workers", workers, 0),
        "logger": listed("loggers", loggers),
        "root": place,
        "skip_broken": skip_broken,
    }
    folder = Path(out)
    summary = train_in(folder, recipe, command, machine, say or (lambda line: None))
    assert summary is not None  # this process is the only one
    weights = folder / BEST_WEIGHTS
    return Trained(folder, weights, str(weights), summary)
