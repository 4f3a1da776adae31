"""hrseg prepare-model: download public weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from hrseg_cli.commands import options
from hrseg_cli.errors import HrsegError


def _names() -> list[str]:
    from hrseg_cli.checkpoints.manifests import model_manifest_names

    return model_manifest_names()


def prepare_model(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            autocompletion=options.starting(_names),
            help="Public weights, such as ritm_h18 ('hrseg list weights').",
        ),
    ],
    from_: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="PATH",
            help="Use this file, or the file in this folder, instead of downloading it.",
        ),
    ] = None,
) -> None:
    """Download public weights, resumably, and verify them; --model NAME then needs no network.

    Commands and hrseg.load() do the same on first use. Files are kept in the user's cache. A file without a published
    checksum is pinned: later downloads must be the same. Prints one JSON row on stdout, licence and problems on stderr.
    """
    from hrseg_cli.checkpoints.manifests import fetched, load_model_manifest, place_of

    manifest = load_model_manifest(name)
    typer.echo(f"{manifest.title}. Licence: {manifest.licence}", err=True)
    row: dict[str, Any] = {"model": name, "family": manifest.family, "protocol": manifest.protocol}
    if manifest.hub:
        if from_:
            raise HrsegError(f"--from {from_}: {name} is a folder; use it directly, --model sam:{from_}")
        from hrseg_cli.checkpoints.resolve import load_model

        _, provenance = load_model(name)
        typer.echo(json.dumps({**row, "hub": manifest.hub, "sha256": provenance["sha256"]}))
        return
    with options.progress(of_bytes=True) as bar:
        task = bar.add_task(f"downloading {name}", total=None)
        got = fetched(manifest, lambda done, total: bar.update(task, completed=done, total=total), from_)
    place = place_of(manifest)
    if from_ and place and not place.is_file():  # a copy of the user's stays where it is, which --model does not know
        from hrseg_cli.writing import write_atomically

        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(place, got["path"].read_bytes())
    if got["pinned"]:
        options.note(f"{name}: no checksum is published; recorded SHA-256 {got['sha256']} for later downloads")
    typer.echo(json.dumps({**row, "file": str(place), "sha256": got["sha256"]}))
