"""Recipes and loggers, as chosen before a training starts. Light to import."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hrseg_cli import catalog
from hrseg_cli.errors import UnknownName

if TYPE_CHECKING:
    from hrseg_cli.recipe import Recipe

LOGGERS = ("csv", "tensorboard", "wandb")


def recipe_for(adapter: str) -> str:
    """The default recipe of an adapter: its own, or ``adapt_lora`` for the controls. Raises UnknownName."""
    from hrseg_cli.recipe import recipe_names

    if adapter not in catalog.ADAPTERS:
        raise UnknownName("adapter", adapter, catalog.ADAPTERS)
    own = f"adapt_{adapter}"
    return own if own in recipe_names() else "adapt_lora"


def adapter_change(recipe: str | None, adapter: str | None, changes: Sequence[str]) -> list[str]:
    """The change that selects this adapter, if the recipe has another one. changes: all other changes of the recipe."""
    from hrseg_cli.recipe import load_recipe

    if adapter is None:
        return []
    if adapter not in catalog.ADAPTERS:
        raise UnknownName("adapter", adapter, catalog.ADAPTERS)
    own = load_recipe(recipe or recipe_for(adapter), changes).adapter.name
    return [] if own == adapter else [f"adapter={{name: {adapter}}}"]


def dataset_change(datasets: Sequence[str]) -> list[str]:
    """The change that makes a recipe train only on these datasets; none if there are none.

    The rest of ``data`` (crop, held-out share) stays, and so do the datasets that the recipe validates on.
    """
    return [f"data.parts={json.dumps([{'dataset': name} for name in datasets])}"] if datasets else []


def adapting_recipe(
    base: str, datasets: Sequence[str], adapter: str | None, recipe: str | None, changes: Sequence[str]
) -> Recipe:
    """The recipe that trains an adapter of the model ``base``, named after the adapter, the datasets and the changes.

    datasets: to train on; if empty, those of the recipe. adapter: by default the recipe's. recipe: by default the
    adapter's own; give at least one of the two. changes: any others. Raises HrsegError or UnknownName.
    """
    from hrseg_cli.recipe import load_recipe

    first = [f"model.weights={json.dumps(base)}", *dataset_change(datasets)]
    first += [*adapter_change(recipe, adapter, [*first, *changes]), *changes]
    chosen = load_recipe(recipe or recipe_for(str(adapter)), first)
    return renamed(chosen, ["adapt", chosen.adapter.name], datasets, changes)


def moved(recipe: Recipe, root: Path | None) -> Recipe:
    """The recipe with the new places, below ``root``, of datasets that are no longer where they were."""
    from hrseg_cli.data import datasets

    parts = [part.model_copy(update={"dataset": datasets.moved(part.dataset, root)}) for part in recipe.data.parts]
    judged = [datasets.moved(name, root) for name in recipe.validation.datasets]
    data = recipe.data.model_copy(update={"parts": type(recipe.data.parts)(parts)})
    validation = recipe.validation.model_copy(update={"datasets": type(recipe.validation.datasets)(judged)})
    return recipe.model_copy(update={"data": data, "validation": validation})


def renamed(recipe: Recipe, first: Sequence[str], datasets: Sequence[str], changes: Sequence[str]) -> Recipe:
    """The recipe renamed after its adapter or origin, its datasets and its changes, without the folders of paths."""
    names = [Path(name.partition("=")[0].partition(":")[0]).name for name in datasets]
    return recipe.model_copy(update={"name": "+".join(["-".join([*first, *names]), *changes])})
