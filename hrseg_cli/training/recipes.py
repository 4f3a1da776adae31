"""Recipes and loggers by name, for commands that have not started a training yet. Light to import."""

from __future__ import annotations

from collections.abc import Sequence

from hrseg_cli import catalog
from hrseg_cli.errors import UnknownName

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
