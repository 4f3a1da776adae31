"""hrseg prepare-data: datasets, made or checked."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hrseg_cli.commands import options
from hrseg_cli.errors import HrsegError

if TYPE_CHECKING:
    from hrseg_cli.recipe import BinarizeRule


def prepare_data(
    what: Annotated[str, typer.Argument(help="'procedural' to draw a set, or a folder to check and index.")],
    count: Annotated[int, typer.Option("--count", metavar="N", min=1, help="procedural: how many objects.")] = 20,
    size: Annotated[
        int, typer.Option("--size", metavar="PIXELS", min=64, help="procedural: longer side in pixels.")
    ] = 1024,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="procedural: same seed, same pictures.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="procedural: the folder [ROOT/procedural]; otherwise the index file."),
    ] = None,
    binarize: options.Binarize = None,
    instances: options.Instances = False,
    root: options.Root = None,
) -> None:
    """Draw the procedural set, or check every file of a folder and write its index.

    The procedural set: thin and intricate objects with exact masks, the same for the same seed. A folder: every image
    and mask is decoded, sizes and pairs are compared, and index.jsonl is written with one line per object.
    """
    if what == "procedural":
        _draw(out or _root(root) / "procedural", count, size, seed)
    else:
        _index(what, out, instances, options.binarize_of(binarize), root)


def _root(root: Path | None) -> Path:
    return root or Path(os.environ.get("HRSEG_DATA", "data"))


def _draw(folder: Path, count: int, size: int, seed: int) -> None:
    from hrseg_cli.data import procedural

    with options.progress() as bar:
        task = bar.add_task("drawing", total=count)
        procedural.write(folder, count, size, seed, lambda done: bar.update(task, completed=done))
    typer.echo(
        json.dumps({"dataset": "procedural", "folder": str(folder), "objects": count, "size": size, "seed": seed})
    )


def _index(spec: str, out: Path | None, instances: bool, binarize: BinarizeRule, root: Path | None) -> None:
    from hrseg_cli.data.index import build_index

    with options.progress() as bar:
        task = bar.add_task("checking", total=None)
        found = build_index(
            spec,
            root=root,
            instances=instances,
            binarize=binarize,
            out=out,
            progress=lambda done, all_: bar.update(task, completed=done, total=all_),
        )
    for problem in found.problems:
        typer.echo(f"hrseg: {problem}", err=True)
    typer.echo(
        json.dumps(
            {
                "dataset": spec,
                "index": str(found.path),
                "images": found.images,
                "objects": found.objects,
                "rules": found.rules,
                "problems": len(found.problems),
            }
        )
    )
    if found.problems:
        raise HrsegError(
            f"{spec}: {len(found.problems)} problems, named above; the {found.objects} good objects are indexed"
        )
