"""Loads the model that a user named: a checkpoint, a catalog name, a prefix with a place, or BASE+ADAPTER."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hrseg_cli import catalog
from hrseg_cli.checkpoints.adapters import AdapterFile, attached, read_adapter
from hrseg_cli.checkpoints.formats import read_checkpoint, sniff
from hrseg_cli.checkpoints.manifests import load_model_manifest, model_manifest_names, on_first_use
from hrseg_cli.checkpoints.provenance import weights_hash
from hrseg_cli.errors import HrsegError, UnknownName
from hrseg_cli.models.base import InteractiveModel
from hrseg_cli.models.parts.meta import shapes_only

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"  # shipped with hrseg


def load_model(spec: str, device: str = "cpu") -> tuple[InteractiveModel, dict[str, Any]]:
    """A model in eval mode, without gradients, and its provenance (name, options, file, sha256).

    spec: the path of a checkpoint; the name of a model that ships with weights or needs none; the name of public
        weights ('hrseg list weights'), which are downloaded on first use; ``BASE+ADAPTER`` for a model with an adapter
        file; an adapter file alone if its base ships with hrseg; or a prefix of
        :data:`catalog.PREFIXES` with a place, such as ``sam:FOLDER``.
    Raises HrsegError or UnknownName.
    """
    model, provenance = _load_any(spec)
    return model.to(device).eval().requires_grad_(False), provenance


def _load_any(spec: str) -> tuple[InteractiveModel, dict[str, Any]]:
    path = Path(spec)
    if path.is_file():
        if sniff(path) == "safetensors" and (adapter := read_adapter(path)):
            return attached(_shipped_base(adapter), adapter)
        return read_checkpoint(path)
    prefix, colon, place = spec.partition(":")
    if colon and prefix in catalog.PREFIXES:
        opened: tuple[InteractiveModel, dict[str, Any]] = catalog.resolve("prefix", prefix)(place)
        return opened
    splits = [(spec[:at], spec[at + 1 :]) for at, sign in enumerate(spec) if sign == "+" and at]
    if splits:  # names of run folders may contain a "+" too
        base, second = next((split for split in reversed(splits) if Path(split[1]).is_file()), splits[0])
        if not Path(second).is_file():
            raise HrsegError(
                f"`model` {spec}: {second}: no such file; give BASE+ADAPTER, where BASE is a file or a model's name"
            )
        adapter = read_adapter(Path(second)) if sniff(Path(second)) == "safetensors" else None
        if adapter is None:
            read_checkpoint(Path(second))  # raises if the file is damaged
            raise HrsegError(f"`model` {spec}: {second} is a whole model, not an adapter; give it on its own")
        return attached(_load_any(base), adapter)
    if spec in catalog.MODELS:
        shipped = WEIGHTS / f"{spec}.safetensors"
        if shipped.is_file():
            return read_checkpoint(shipped)
        if (model := _weightless(spec)) is None:
            raise HrsegError(f"`model` {spec}: hrseg ships no weights for it; give the path of a checkpoint")
        return model, {"name": model.name, "options": model.config}
    if spec in model_manifest_names():
        manifest = load_model_manifest(spec)
        if manifest.hub:
            model, found = catalog.resolve("prefix", "sam")(manifest.hub)
            return model, {**found, "weights": spec}
        model, found = read_checkpoint(on_first_use(spec))
        return model, {**found, "weights": spec}
    if path.is_dir():
        fix = "give the checkpoint file in it"
        if (path / "config.json").is_file():
            fix = f"give sam:{spec} if it is a Segment Anything model, otherwise a checkpoint"
        raise HrsegError(f"`model` {spec}: a folder; {fix}")
    if path.suffix or "/" in spec:
        raise HrsegError(f"`model` {spec}: no such file; give the path of a checkpoint, or 'grabcut'")
    known = [*catalog.MODELS, *model_manifest_names()]
    raise UnknownName("model", spec, known, "The path of a checkpoint works too.")


def _weightless(name: str) -> InteractiveModel | None:
    """The model of this name if it works without weights, otherwise None."""
    build = catalog.resolve("model", name)
    try:
        with shapes_only():
            found: bool = build().weightless
    except (TypeError, ValueError):  # it requires a size, so it has weights
        return None
    return build() if found else None


def _shipped_base(adapter: AdapterFile) -> tuple[InteractiveModel, dict[str, Any]]:
    """The shipped model that an adapter was trained on, with its provenance."""
    for path in sorted(WEIGHTS.glob("*.safetensors")):
        if path.stem in catalog.REFINERS:
            continue
        model, provenance = read_checkpoint(path)
        if weights_hash(model) == adapter.base:
            return model, provenance
    raise HrsegError(
        f"{adapter.path}: an adapter for {adapter.base_name}, which does not ship with hrseg; give BASE+ADAPTER"
    )
