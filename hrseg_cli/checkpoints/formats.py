"""Checkpoint files: hrseg's own safetensors, and public ``.pth`` files in the layouts of :data:`catalog.CHECKPOINTS`.

hrseg's format is a safetensors file with a single metadata key, ``hrseg``: JSON with the model's name, options and
provenance. (A single key, because safetensors does not preserve the order of several, and equal models should give
identical files.)
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from hrseg_cli import catalog
from hrseg_cli.errors import HrsegError, UnknownName
from hrseg_cli.limits import WEIGHTS
from hrseg_cli.models.base import InteractiveModel
from hrseg_cli.models.parts.meta import shapes_only
from hrseg_cli.parsing import hrseg_metadata, read_bytes, reason, safetensors_header
from hrseg_cli.writing import write_atomically

FORMAT = 1
WRAPPERS = ("module.", "_orig_mod.", "model.")
UNUSED = ".num_batches_tracked"  # a counter of batch normalisation, which old programs do not save
MAX_COMPRESSION = 20  # PyTorch does not compress, and recompressed weights shrink by about a tenth


def read_checkpoint(path: Path) -> tuple[InteractiveModel, dict[str, Any]]:
    """The model in a checkpoint file and its provenance. Raises HrsegError that says what else the file is."""
    kind = sniff(path)
    try:
        name, options, tensors, provenance = (read_own if kind == "safetensors" else _read_public)(path)
    except HrsegError as error:
        raise HrsegError(f"{path}: {error}") from None
    try:
        with shapes_only():  # an untrusted file may specify any width
            shapes = catalog.resolve("model", name)(**options).state_dict()
    except Exception as error:  # arbitrary options can raise nearly anything
        reason = " ".join(str(error).split())[:200]
        raise HrsegError(
            f"{path}: its options describe a model that cannot be built ({reason}); use the original, unedited file"
        ) from None
    check_shapes(shapes, tensors, path)
    model: InteractiveModel = catalog.resolve("model", name)(**options)
    check_finite(tensors, path)
    model.load_state_dict({**{k: v for k, v in model.state_dict().items() if k.endswith(UNUSED)}, **tensors})
    digest = hashlib.sha256(read_bytes(path, WEIGHTS)).hexdigest()
    return model, {"name": name, "options": model.config, "file": path.name, "sha256": digest, **provenance}


def read_backbone(spec: str) -> dict[str, Tensor]:
    """The state dict of a pretrained backbone, given by catalog name or path. Raises HrsegError or UnknownName."""
    if spec in catalog.BACKBONES:
        named: dict[str, Tensor] = catalog.resolve("backbone", spec)()
        return named
    path = Path(spec)
    if not path.exists() and path.name == spec and not path.suffix:
        raise UnknownName("backbone", spec, catalog.BACKBONES)
    content: Any
    try:
        if sniff(path) == "safetensors":
            content = load_safetensors(read_bytes(path, WEIGHTS))
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except HrsegError:
        raise
    except Exception:  # a damaged file can raise nearly anything
        raise HrsegError(
            f"{path}: damaged, or contains Python objects other than tensors, which hrseg does not load; download it "
            "again"
        ) from None
    found = content.get("state_dict", content.get("model", content)) if isinstance(content, dict) else {}
    if not isinstance(found, dict):
        raise HrsegError(f"{path}: contains no dictionary of tensors; give pretrained weights")
    return {str(key): value for key, value in found.items() if isinstance(value, Tensor)}


def save_checkpoint(model: InteractiveModel, path: Path, provenance: dict[str, Any], half: bool = False) -> None:
    """Write hrseg's format, as float16 if ``half``. Equal models and provenance give identical files."""
    save_network(model, path, {"kind": "model", "name": model.name, "options": model.config}, provenance, half)


def save_network(
    model: nn.Module, path: Path, what: dict[str, Any], provenance: dict[str, Any], half: bool = False
) -> None:
    """:func:`save_checkpoint` for any network. what: its kind, name and options."""
    header = {"format": FORMAT, **what, "provenance": provenance}
    tensors = {
        key: (value.half() if half and value.is_floating_point() else value).detach().cpu().contiguous()
        for key, value in model.state_dict().items()
    }
    write_atomically(path, save_safetensors(tensors, {"hrseg": json.dumps(header, sort_keys=True)}))


def sniff(path: Path) -> str:
    """``torch`` or ``safetensors``, by the first bytes. Raises HrsegError that says what other files seem to be."""
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise HrsegError(f"{path}: cannot be read ({error.strerror})") from None
    if path.stat().st_size > WEIGHTS:
        raise HrsegError(f"{path}: larger than {WEIGHTS / 1e9:.0f} GB, too large for weights; download it again")
    text = head.lstrip().lower()
    if not head:
        raise HrsegError(f"{path}: empty file; download it again")
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise HrsegError(f"{path}: a web page, probably from a failed download; download the file itself")
    if head.startswith(b"version https://git-lfs"):
        raise HrsegError(f"{path}: a Git LFS pointer, not the weights; run 'git lfs pull' or download the file itself")
    if head.startswith(b"PK\x03\x04"):
        _check_zip(path)
        return "torch"
    if head.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return "torch"
    if head[8:9] == b"{":
        return "safetensors"
    raise HrsegError(f"{path}: neither a PyTorch nor a safetensors file; give a .pth or an hrseg .safetensors")


def _check_zip(path: Path) -> None:
    """Raise HrsegError for a zip archive that is not a PyTorch checkpoint."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except Exception:  # a damaged archive can raise nearly anything
        raise HrsegError(f"{path}: damaged or truncated PyTorch file; download it again") from None
    if any(name.endswith("/constants.pkl") for name in names):
        raise HrsegError(
            f"{path}: a TorchScript program, which hrseg does not run; give the checkpoint it was made from"
        )
    if unpacked > MAX_COMPRESSION * path.stat().st_size:
        raise HrsegError(f"{path}: would unpack to {unpacked:,} bytes, too many for weights; download it again")
    if not any(name.endswith("/data.pkl") for name in names):
        raise HrsegError(f"{path}: a zip archive of {len(names)} files, not a checkpoint; unpack it first")


Loaded = tuple[str, dict[str, Any], dict[str, Tensor], dict[str, Any]]


def read_own(path: Path, wanted: str = "model") -> Loaded:
    """Name, options, tensors and provenance of a ``wanted`` in hrseg's format. Raises HrsegError without the path."""
    blob = read_bytes(path, WEIGHTS)
    try:
        found = safetensors_header(blob)
        tensors = load_safetensors(blob)
    except (SafetensorError, ValueError) as error:
        raise HrsegError(
            f"damaged or truncated safetensors file ({reason(error)}); download it again or recreate it"
        ) from None
    try:
        header = hrseg_metadata(found)
        if header is None:
            raise HrsegError(_what_safetensors(found))
        kind, version, name, options = header["kind"], int(header["format"]), header["name"], dict(header["options"])
        provenance = dict(header.get("provenance", {}))
        if not (isinstance(kind, str) and isinstance(name, str)):
            raise ValueError("'kind' or 'name' is not text")
    except (ValueError, KeyError, TypeError) as error:
        raise HrsegError(
            f"its 'hrseg' metadata cannot be read ({reason(error)}); recreate the file with hrseg"
        ) from None
    if kind != wanted:
        fix = "give the base checkpoint it was made for" if wanted == "model" else "give a file of such weights"
        whole = "a whole model" if wanted == "model" else f"a {wanted}"
        raise HrsegError(f"contains a{'n' if kind[:1] in 'aeiou' else ''} {kind}, not {whole}; {fix}")
    if version > FORMAT:
        raise HrsegError(
            f"written by a newer hrseg (format {version}; this version reads up to {FORMAT}); update hrseg"
        )
    return name, options, tensors, provenance


def _read_public(path: Path) -> Loaded:
    """Read a PyTorch file in one of the layouts in :data:`catalog.CHECKPOINTS`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd pickle protocols, which are reported below
            with torch.serialization.safe_globals(_placeholders()):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|global) (\S+)", str(error))
        inside = f" ({found.group(1)})" if found else ""
        raise HrsegError(
            f"contains more than tensors{inside}, which hrseg does not load; ask its author for a state_dict with its "
            "config"
        ) from None
    except Exception:  # a damaged pickle can raise nearly anything
        raise HrsegError("damaged or truncated PyTorch file; download it again") from None
    if isinstance(content, list):
        raise HrsegError(
            f"a list of {len(content)} stages (one model per click); save one of them to a file of its own"
        )
    if not isinstance(content, dict):
        raise HrsegError(
            f"contains a {type(content).__name__}, not a checkpoint; save model.state_dict() with its config"
        )
    if "pytorch-lightning_version" in content:
        raise HrsegError("a Lightning training checkpoint; give the weights that the training exported")
    if "model" in content and "optimizer" in content:
        raise HrsegError("a training checkpoint of another program; ask its author for a state_dict with its config")
    for layout in catalog.CHECKPOINTS:
        if (read := catalog.resolve("checkpoint layout", layout)(content)) is not None:
            name, options, state = read
            _check_state(state)
            return name, options, _unwrapped(state), {"from": f"{layout} checkpoint"}
    raise HrsegError(_what_else(content))


def _placeholders() -> list[Any]:
    """Empty classes with the names of the Python objects in files of known layouts, for PyTorch to put in their
    place."""
    names: list[str] = []
    for layout in catalog.CHECKPOINTS:
        reader = catalog.resolve("checkpoint layout", layout)
        names += getattr(sys.modules[reader.__module__], "OBJECTS", ())
    split = (name.rpartition(".") for name in names)
    return [type(name, (), {"__module__": module}) for module, _, name in split]


def _check_state(state: Any) -> None:
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise HrsegError("its 'state_dict' is not a dictionary of tensors; store model.state_dict() in it")
    if any(value.numel() * value.element_size() > value.untyped_storage().nbytes() for value in state.values()):
        raise HrsegError("one of its tensors is a broadcast view larger than its storage; save contiguous weights")


def _unwrapped(state: dict[Any, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names of the model itself, without the prefix of what it was wrapped in when it was saved:
    DataParallel, torch.compile, a Lightning module."""
    found = {str(key): value for key, value in state.items()}
    while prefix := next((one for one in WRAPPERS if found and all(key.startswith(one) for key in found)), ""):
        found = {key.removeprefix(prefix): value for key, value in found.items()}
    return found


def _what_else(content: dict[Any, Any]) -> str:
    """What a PyTorch file in an unknown layout seems to be, and what to do about it."""
    state = content.get("state_dict", content.get("model", content))
    joined = " ".join(str(key) for key in state) if isinstance(state, dict) else ""
    readable = f"hrseg reads its own .safetensors and public checkpoints of {', '.join(catalog.CHECKPOINTS)}"
    if "image_encoder." in joined:
        return (
            "a Segment Anything model (SAM) in its authors' own format; give the model in the format of Hugging Face "
            "transformers, as sam:FOLDER"
        )
    if "lora_" in joined:
        return "contains an adapter, not a whole model; give the base checkpoint it was made for"
    if "blocks.0.attn" in joined or "pos_embed" in joined:
        return f"a plain ViT backbone (MAE or ImageNet), not a click model; {readable}"
    return f"unknown layout; {readable}"


def _what_safetensors(header: dict[str, Any]) -> str:
    """What a safetensors file of another program seems to be, and what to do about it."""
    if any(key.startswith(("mask_decoder.", "prompt_encoder.")) for key in header):
        return "the weights of a Segment Anything model; give the folder that contains it, as sam:FOLDER"
    return "a safetensors file of another program, which does not name its model; give a checkpoint written by hrseg"


def check_shapes(wanted: dict[str, Tensor], tensors: dict[str, Tensor], path: Path) -> None:
    missing = [key for key in wanted if key not in tensors and not key.endswith(UNUSED)]
    extra = [key for key in tensors if key not in wanted]
    if missing or extra:
        first = f"missing {missing[0]}" if missing else f"unexpected {extra[0]}"
        raise HrsegError(
            f"{path}: its weights do not match its configuration: {len(missing)} missing, {len(extra)} unexpected "
            f"({first}); the file is incomplete or its config was edited: download it again"
        )
    for key, tensor in tensors.items():
        if tensor.shape != wanted[key].shape:
            raise HrsegError(
                f"{path}: {key} has shape {tuple(tensor.shape)}, its configuration says {tuple(wanted[key].shape)}; "
                "the config is for another size of the model: save the weights with their own config"
            )


def check_finite(tensors: dict[str, Tensor], path: Path) -> None:
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise HrsegError(
                f"{path}: {key} contains NaN or infinite values; its training diverged: use an earlier checkpoint"
            )
