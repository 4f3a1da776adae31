"""Public weights by name: where they come from, their licence, and a copy of the file in the user's cache.

One YAML file per model in ``model_manifests``. Files are downloaded, verified and pinned by :mod:`hrseg_cli.data.fetch`
as archives of datasets are; models of the Hugging Face hub are left to its own client. Nothing here imports torch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hrseg_cli.data.fetch import archive_path, fetch
from hrseg_cli.data.manifest import ArchiveFile
from hrseg_cli.data.paths import cache_folder
from hrseg_cli.data.unpack import size_text
from hrseg_cli.errors import HrsegError, UnknownName
from hrseg_cli.parsing import Malformed, read_yaml, reason
from hrseg_cli.recipe import data_folder

log = logging.getLogger(__name__)
Text = Annotated[str, Field(min_length=1)]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class WeightsFile(_Frozen):
    """A file of weights. urls: mirrors of the same bytes, best first. size: in bytes, if it is known exactly. sha256:
    None means pinned at the first download. how: one line for the user, if there is no link."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.+-]*$")]
    urls: tuple[Annotated[str, Field(pattern="^https?://")], ...] = ()
    size: Annotated[int, Field(ge=1)] | None = None
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    how: str | None = None


class ModelManifest(_Frozen):
    """Public weights: either a ``file``, or the name of a model on the Hugging Face ``hub``.

    family: as hrseg names it. download: approximate size, for tables. protocol: the one its authors evaluate with.
    """

    name: Annotated[str, Field(pattern="^[a-z][a-z0-9_.]*$")]
    version: Annotated[int, Field(ge=1)]
    title: Text
    family: Text
    file: WeightsFile | None = None
    hub: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")] | None = None
    parameters: Text
    download: Text
    trained_on: Text
    licence: Text
    citation: Text
    sources: Annotated[tuple[str, ...], Field(min_length=1)]
    protocol: Text
    notes: str = ""

    @model_validator(mode="after")
    def _one_place(self) -> ModelManifest:
        if (self.file is None) == (self.hub is None):
            raise ValueError("needs either file or hub")
        if self.file and not self.file.urls and not self.file.how:
            raise ValueError("file needs urls, or 'how' to get it manually")
        return self


def model_manifest_names(folder: Path | None = None) -> list[str]:
    """Names of the known public weights. folder: of the manifests, by default those that come with hrseg."""
    return sorted(path.stem for path in (folder or data_folder("model_manifests")).glob("[!.]*.yaml"))


def load_model_manifest(name: str, folder: Path | None = None) -> ModelManifest:
    """The manifest of that name. Raises UnknownName, or HrsegError that names the file and the problem."""
    folder = folder or data_folder("model_manifests")
    if name not in model_manifest_names(folder):
        raise UnknownName("public weights", name, model_manifest_names(folder))
    return _read(folder / f"{name}.yaml")


@cache
def _read(path: Path) -> ModelManifest:
    try:
        manifest = ModelManifest.model_validate(read_yaml(path))
    except (OSError, Malformed) as error:
        raise HrsegError(f"{path}: cannot be read as YAML ({reason(error)}); correct the file") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise HrsegError(f"{path}: {place + ': ' if place else ''}{first['msg']}; correct the file") from None
    if manifest.name != path.stem:
        raise HrsegError(f"{path}: name is '{manifest.name}'; it must match the file name")
    return manifest


def place_of(manifest: ModelManifest) -> Path | None:
    """Where its file is kept; None for a model of the hub, which has a cache of its own."""
    entry = _entry(manifest)
    return archive_path(entry, _root()) if entry else None


def fetched(
    manifest: ModelManifest,
    progress: Callable[[int, int | None], None] | None = None,
    from_path: Path | None = None,
    **patience: Any,
) -> dict[str, Any]:
    """The verified file of the weights: an existing one, the user's own, or a download.

    progress, from_path, patience: see :func:`hrseg_cli.data.fetch.fetch`. Returns its path under "path", "sha256", and
    whether that was "pinned" just now. Raises HrsegError, one line that says how to get the file otherwise.
    """
    entry = _entry(manifest)
    if entry is None:
        raise HrsegError(f"{manifest.name}: comes from the Hugging Face hub; use `model` sam:{manifest.hub}")
    try:
        got = fetch(entry, _root(), progress=progress, from_path=from_path, **patience)
    except HrsegError as error:
        copy = f"give a copy: hrseg prepare-model {manifest.name} `from` FILE"
        text = str(error).replace("give the archive with `from`", copy).replace("then rerun with `from`", copy)
        text = text.replace("use another `root`", "set XDG_CACHE_HOME to another folder")
        raise HrsegError(f"{manifest.name}: {text}") from None
    return {"path": got.path, "sha256": got.sha256, "pinned": got.pinned}


def on_first_use(name: str) -> Path:
    """The file of named weights, for a model that is opened by its name: downloaded if it is not there yet, with the
    progress in the log. Raises HrsegError."""
    manifest = load_model_manifest(name)
    place = place_of(manifest)
    told = 0

    def tell(done: int, total: int | None) -> None:
        nonlocal told
        quarter = 4 * done // total if total else done >> 24
        if quarter > told:
            log.warning("%s: %s%s", name, size_text(done), f" of {size_text(total)}" if total else "")
        told = quarter

    if place is None or place.is_file():
        path: Path = fetched(manifest)["path"]
        return path
    assert manifest.file is not None
    if manifest.file.urls:
        log.warning("%s: downloading %s (%s) to %s", name, manifest.file.name, manifest.download, place.parent)
    got = fetched(manifest, tell)
    if got["pinned"]:
        log.warning("%s: no checksum is published; recorded SHA-256 %s", name, got["sha256"])
    return Path(got["path"])


def _root() -> Path:
    return cache_folder() / "models"


def _entry(manifest: ModelManifest) -> ArchiveFile | None:
    if manifest.file is None:
        return None
    return ArchiveFile(**manifest.file.model_dump(), unpack="weights", into=manifest.name)
