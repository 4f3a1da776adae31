"""Run a training: from its recipe to its run folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from hrseg_cli.data.paths import data_root
from hrseg_cli.engine.devices import best_precision
from hrseg_cli.errors import HrsegError, Interrupted, UnknownName
from hrseg_cli.recipe import Recipe, recipe_of
from hrseg_cli.runs import RECORD, Run
from hrseg_cli.training import fit
from hrseg_cli.training.feed import training_images
from hrseg_cli.training.judge import judged_objects
from hrseg_cli.training.recipes import LOGGERS, moved


def train_in(
    folder: Path,
    recipe: Recipe,
    command: str,
    machine: dict[str, Any],
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any] | None:
    """Start or resume the training in ``folder``; its summary, or None in all processes but the first.

    command: "train" or "adapt". machine: device, processes, nodes, workers, logger (names), root and skip_broken, as
    stored in the run folder. say: receives one line per epoch. Raises HrsegError, and Interrupted after a signal to
    stop.
    """
    for name in machine["logger"]:
        if name not in LOGGERS:
            raise UnknownName("logger", name, LOGGERS)
    if recipe.precision == "auto":
        recipe = recipe.model_copy(update={"precision": best_precision(machine["device"])})
    place = data_root(machine["root"] and Path(machine["root"]))
    model, provenance = fit.start_model(recipe)
    provenance = {"recipe": recipe.name, "seed": recipe.seed, **provenance}
    broken: list[str] | None = [] if machine.get("skip_broken") else None
    here = moved(recipe, machine["root"] and place) if (folder / RECORD).is_file() else recipe
    images = training_images(here.data, place, folder.parent / "copies", broken)
    feed = fit.TASKS[recipe.task].feed(images, recipe)
    judged = judged_objects(here, place, broken)
    if not judged:
        raise HrsegError(
            "no objects to validate on; set data.held_out (such as data.held_out=0.1) or validation.datasets"
        )
    runs_on = fit.Machine(
        machine["device"],
        machine["processes"],
        machine["nodes"],
        machine["workers"],
        tuple(machine["logger"]),
        sys.stderr.isatty() and os.environ.get("TERM") != "dumb",
    )
    settings = {
        "recipe": recipe.model_dump(mode="json"),
        "processes": runs_on.processes * runs_on.nodes,
        "images": [len(part) for part in feed.images],
        "judged": [f"{ref.dataset}/{ref.id}" for ref in judged],
        "started_from": {
            key: provenance[key] for key in ("started_from", "base_weights", "teacher") if key in provenance
        },
    }
    if runs_on.processes * runs_on.nodes > 1 and not _is_first():
        # The first process reports the reason for stopping; a non-zero exit code here would kill it before that.
        with suppress(Interrupted):
            fit.fit(model, recipe, feed, judged, folder, runs_on, provenance)
        return None
    root = machine["root"] and str(Path(machine["root"]).absolute())
    with Run(folder, command, settings, {**machine, "root": root}, partial(_completed, folder)) as run:
        summary = fit.fit(model, recipe, feed, judged, folder, runs_on, provenance, say)
        run.summary = summary = {**summary, **({"skipped": len(broken), "broken": broken} if broken else {})}
    return summary


def _completed(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    recipe = recipe_of(settings["recipe"], f"{folder}/run.json")
    return {**settings, "recipe": recipe.model_dump(mode="json")}


def _is_first() -> bool:
    """Whether this process is the first of a distributed training. Only the first one writes.

    The others are started by it, by torchrun, by srun, or manually on other machines.
    """
    ranks = ["RANK"] if "RANK" in os.environ else ["LOCAL_RANK", "NODE_RANK", "GROUP_RANK"]
    if int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1) > 1:  # see shards
        ranks.append("SLURM_PROCID")
    return not any(int(os.environ.get(name) or 0) for name in ranks)
