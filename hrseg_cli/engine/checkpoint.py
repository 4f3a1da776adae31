"""Weights on disk: RITM's public ``.pth`` files and hrseg's own safetensors. Nothing is ever unpickled unsafely.

hrseg's format is one safetensors file whose metadata holds one key, ``hrseg``: JSON with the model's name and options
and its provenance. (One key, because safetensors does not keep the order of several, and equal models should give equal
bytes.) An adapter's file holds only what it changes, and the hash of the weights that it was trained on.
"""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from hrseg_cli import catalog
from hrseg_cli.adapters import adapter_state, load_adapter_state
from hrseg_cli.adapters.controls import StillBatchNorm, hold
from hrseg_cli.adapters.lora import merge as fold
from hrseg_cli.errors import HrsegError, UnknownName
from hrseg_cli.models import ritm_weights
from hrseg_cli.models.base import InteractiveModel
from hrseg_cli.writing import write_atomically

FORMAT = 1
PACKED = 20  # times as large as the file: PyTorch does not compress, and a repacked file shrinks by a tenth
WEIGHTS = Path(__file__).resolve().parent.parent / "weights"  # what comes with hrseg


def load_model(spec: str, device: str = "cpu") -> tuple[InteractiveModel, dict[str, Any]]:
    """A model ready to be asked, in eval mode, and its provenance (name, options, file, sha256).

    spec: path of a checkpoint, or the name of a model that comes with weights or needs none; ``BASE+ADAPTER`` for a
        model with an adapter's file, and the adapter's file alone where its base comes with hrseg.
    Raises HrsegError or UnknownName.
    """
    model, provenance = _load_any(spec)
    return model.to(device).eval().requires_grad_(False), provenance


def _load_any(spec: str) -> tuple[InteractiveModel, dict[str, Any]]:
    path = Path(spec)
    if path.is_file():
        if sniff(path) == "safetensors" and (adapter := _read_adapter(path)):
            return _attach(_shipped_base(adapter), adapter)
        return read_checkpoint(path)
    splits = [(spec[:at], spec[at + 1 :]) for at, sign in enumerate(spec) if sign == "+" and at]
    if splits:  # names of run folders may hold a "+" too
        base, second = next((split for split in reversed(splits) if Path(split[1]).is_file()), splits[0])
        if not Path(second).is_file():
            raise HrsegError(
                f"--model {spec}: {second}: no such file; write BASE+ADAPTER, two files or a name and a file"
            )
        adapter = _read_adapter(Path(second)) if sniff(Path(second)) == "safetensors" else None
        if adapter is None:
            read_checkpoint(Path(second))  # which says what is wrong with it, if anything
            raise HrsegError(f"--model {spec}: {second} is a whole model, not an adapter; give it alone")
        return _attach(_load_any(base), adapter)
    if spec in catalog.MODELS:
        shipped = WEIGHTS / f"{spec}.safetensors"
        if shipped.is_file():
            return read_checkpoint(shipped)
        if spec != "grabcut":
            raise HrsegError(f"--model {spec}: an architecture without weights; give the path of a checkpoint of it")
        model = catalog.resolve("model", spec)()
        return model, {"name": model.name, "options": model.config}
    if path.is_dir():
        raise HrsegError(f"--model {spec}: is a folder; give the checkpoint file in it")
    if path.suffix or "/" in spec:
        raise HrsegError(f"--model {spec}: no such file; give the path of a checkpoint, or 'grabcut'")
    raise UnknownName("model", spec, catalog.MODELS, "A path of a checkpoint works too.")


class AdapterFile(NamedTuple):
    """An adapter as it lies on disk; ``base`` is the hash of the weights it was trained on."""

    path: Path
    name: str
    options: dict[str, Any]
    base: str
    base_name: str
    tensors: dict[str, Tensor]
    provenance: dict[str, Any]


def weights_hash(model: InteractiveModel) -> str:
    """Of names and values of all weights as float32: the same for one model in any file format."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if value.is_floating_point():
            digest.update(name.encode())
            digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def attach(model: InteractiveModel, name: str, options: dict[str, Any]) -> InteractiveModel:
    """The model with an adapter of the catalog, ready to be trained; what is frozen is frozen. Raises HrsegError."""
    try:
        adapted: InteractiveModel = catalog.resolve("adapter", name)(model, **options)
    except (TypeError, ValueError, AttributeError) as error:
        raise HrsegError(f"adapter '{name}': {error}; mend adapter.options") from None
    return adapted


def save_adapter(
    model: InteractiveModel, path: Path, name: str, options: dict[str, Any], base: str, provenance: dict[str, Any]
) -> None:
    """Write only what the adapter changes, beside the hash of its ``base`` (:func:`weights_hash`)."""
    header = {"format": FORMAT, "kind": "adapter", "name": name, "options": options, "base": base}
    tensors = {key: value.detach().cpu().contiguous() for key, value in adapter_state(model).items()}
    text = json.dumps({**header, "provenance": provenance}, sort_keys=True)
    write_atomically(path, save_safetensors(tensors, {"hrseg": text}))


def merged(model: InteractiveModel) -> InteractiveModel:
    """The same answers without an adapter, in place. Raises HrsegError for one that cannot be folded."""
    if model.name == "resample":
        raise HrsegError(
            "a resampling adapter stays a part of the network; use it as --model BASE+ADAPTER, or take the base alone"
        )
    fold(model)
    for module in model.modules():
        if isinstance(module, StillBatchNorm):
            hold(module, still=False)
    return model


def _attach(
    base: tuple[InteractiveModel, dict[str, Any]], adapter: AdapterFile
) -> tuple[InteractiveModel, dict[str, Any]]:
    model, provenance = base
    if weights_hash(model) != adapter.base:
        raise HrsegError(
            f"{adapter.path}: was trained on other weights ({adapter.base_name}, {adapter.base[:12]}); give that base"
        )
    try:
        with torch.device("meta"):  # without memory first: options may ask for any rank or width
            load_adapter_state(attach(_shapes_of(model), adapter.name, adapter.options), adapter.tensors)
        model = attach(model, adapter.name, adapter.options)
        load_adapter_state(model, adapter.tensors)
    except (HrsegError, RuntimeError) as error:
        raise HrsegError(f"{adapter.path}: {error}") from None
    return model, {
        **provenance,
        "adapter": {
            "name": adapter.name,
            "options": adapter.options,
            "file": adapter.path.name,
            "sha256": hashlib.sha256(adapter.path.read_bytes()).hexdigest(),
            **adapter.provenance,
        },
    }


def _shapes_of(model: InteractiveModel) -> InteractiveModel:
    """A copy of a model that has shapes, and no memory for them."""
    memo: dict[int, Tensor] = {id(one): torch.empty_like(one, device="meta") for one in model.buffers()}
    for one in model.parameters():
        memo[id(one)] = nn.Parameter(torch.empty_like(one, device="meta"), one.requires_grad)
    return copy.deepcopy(model, memo)


def _shipped_base(adapter: AdapterFile) -> tuple[InteractiveModel, dict[str, Any]]:
    """The model among those that come with hrseg that an adapter belongs to."""
    for path in sorted(WEIGHTS.glob("*.safetensors")):
        model, provenance = read_checkpoint(path)
        if weights_hash(model) == adapter.base:
            return model, provenance
    raise HrsegError(
        f"{adapter.path}: is an adapter for {adapter.base_name}, which does not come with hrseg; write BASE+ADAPTER"
    )


def _read_adapter(path: Path) -> AdapterFile | None:
    """None for a file that is no adapter; then :func:`read_checkpoint` says what it is."""
    blob = path.read_bytes()
    try:
        size = int.from_bytes(blob[:8], "little")
        header = json.loads(json.loads(blob[8 : 8 + size]).get("__metadata__", {})["hrseg"])
        if header["kind"] != "adapter":
            return None
        tensors = load_safetensors(blob)
        found = dict(header["options"]), str(header["base"]), dict(header["provenance"])
    except (SafetensorError, ValueError, KeyError, TypeError):
        return None
    if header["format"] > FORMAT:
        raise HrsegError(f"{path}: was written by a newer hrseg (format {header['format']}); update hrseg")
    bad = next((k for k, v in tensors.items() if v.is_floating_point() and not bool(torch.isfinite(v).all())), None)
    if bad:
        raise HrsegError(f"{path}: {bad} holds NaN or infinite numbers; the training that wrote it had diverged")
    options, base, provenance = found
    return AdapterFile(path, str(header["name"]), options, base, str(provenance.get("base")), tensors, provenance)


def read_checkpoint(path: Path) -> tuple[InteractiveModel, dict[str, Any]]:
    """The model in a checkpoint file and its provenance. Raises HrsegError in one line that says what the file is."""
    kind = sniff(path)
    try:
        name, options, tensors, provenance = (_read_own if kind == "safetensors" else _read_ritm)(path)
    except HrsegError as error:
        raise HrsegError(f"{path}: {error}") from None
    try:
        with torch.device("meta"):  # without memory first: options may ask for any width
            shapes = catalog.resolve("model", name)(**options).state_dict()
    except Exception as error:  # options of any kind can raise nearly anything
        reason = " ".join(str(error).split())[:200]
        raise HrsegError(f"{path}: describes a model that cannot be built ({reason}); was it edited?") from None
    _check_shapes(shapes, tensors, path)
    model: InteractiveModel = catalog.resolve("model", name)(**options)
    _check_finite(tensors, path)
    model.load_state_dict(tensors)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return model, {"name": name, "options": model.config, "file": path.name, "sha256": digest, **provenance}


def read_backbone(spec: str) -> dict[str, Tensor]:
    """The state dict of a pretrained backbone: a name of the catalog, or a file. Raises HrsegError."""
    if spec in catalog.BACKBONES:
        named: dict[str, Tensor] = catalog.resolve("backbone", spec)()
        return named
    path = Path(spec)
    if not path.exists() and path.name == spec and not path.suffix:
        raise UnknownName("backbone", spec, catalog.BACKBONES)
    content: Any
    try:
        if sniff(path) == "safetensors":
            content = load_safetensors(path.read_bytes())
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except HrsegError:
        raise
    except Exception:  # a torn file can raise nearly anything
        raise HrsegError(f"{path}: is damaged, or holds more than tensors and is not run; download it again") from None
    found = content.get("state_dict", content) if isinstance(content, dict) else {}
    return {str(key): value for key, value in found.items() if isinstance(value, Tensor)}


def save_checkpoint(model: InteractiveModel, path: Path, provenance: dict[str, Any], half: bool = False) -> None:
    """Write hrseg's format, as float16 where ``half``; equal models and provenance give equal bytes."""
    header = {"format": FORMAT, "kind": "model", "name": model.name, "options": model.config, "provenance": provenance}
    tensors = {
        key: (value.half() if half and value.is_floating_point() else value).detach().cpu().contiguous()
        for key, value in model.state_dict().items()
    }
    write_atomically(path, save_safetensors(tensors, {"hrseg": json.dumps(header, sort_keys=True)}))


def sniff(path: Path) -> str:
    """``torch`` or ``safetensors`` by the first bytes; for anything else HrsegError says what it seems to be."""
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise HrsegError(f"{path}: cannot be read ({error.strerror})") from None
    text = head.lstrip().lower()
    if not head:
        raise HrsegError(f"{path}: is empty; download it again")
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise HrsegError(f"{path}: is a web page, the answer of a failed download; download the file itself again")
    if head.startswith(b"version https://git-lfs"):
        raise HrsegError(
            f"{path}: is a Git LFS pointer, not the weights; run 'git lfs pull' or download the file itself"
        )
    if head.startswith(b"PK\x03\x04"):
        _check_zip(path)
        return "torch"
    if head.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return "torch"
    if head[8:9] == b"{":
        return "safetensors"
    raise HrsegError(f"{path}: is neither a PyTorch nor a safetensors file; give a RITM .pth or an hrseg .safetensors")


def _check_zip(path: Path) -> None:
    """A PyTorch file is a zip archive, but not every zip archive is one."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except zipfile.BadZipFile:
        raise HrsegError(f"{path}: is a damaged or truncated PyTorch file; download it again") from None
    if any(name.endswith("/constants.pkl") for name in names):
        raise HrsegError(f"{path}: is a TorchScript program, which is not run; give the checkpoint it was made from")
    if unpacked > PACKED * path.stat().st_size:
        raise HrsegError(f"{path}: would unpack to {unpacked:,} bytes, which no weights do; download it again")
    if not any(name.endswith("/data.pkl") for name in names):
        raise HrsegError(f"{path}: is a zip archive of {len(names)} files, not a checkpoint; unpack it first")


Loaded = tuple[str, dict[str, Any], dict[str, Tensor], dict[str, Any]]


def _read_own(path: Path) -> Loaded:
    blob = path.read_bytes()
    try:
        size = int.from_bytes(blob[:8], "little")
        metadata = json.loads(blob[8 : 8 + size]).get("__metadata__", {})
        tensors = load_safetensors(blob)
    except (SafetensorError, ValueError):
        raise HrsegError("is a damaged or truncated safetensors file; download or write it again") from None
    if "hrseg" not in metadata:
        raise HrsegError("is a safetensors file of another program: it does not say which model it holds")
    try:
        header = json.loads(metadata["hrseg"])
        kind, version, name, options = header["kind"], int(header["format"]), header["name"], dict(header["options"])
    except (ValueError, KeyError, TypeError):
        raise HrsegError("its 'hrseg' metadata cannot be read; write it again with hrseg") from None
    if kind != "model":
        raise HrsegError(f"holds an {kind}, not a whole model; give the base checkpoint it was made for")
    if version > FORMAT:
        raise HrsegError(f"was written by a newer hrseg (format {version}, this one reads {FORMAT}); update hrseg")
    return name, options, tensors, dict(header.get("provenance", {}))


def _read_ritm(path: Path) -> Loaded:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it warns of (an odd pickle protocol) ends in one of the lines below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|global) (\S+)", str(error))
        inside = f" ({found.group(1)})" if found else ""
        raise HrsegError(
            f"holds more than tensors{inside} and is not run; ask its author for a state_dict with its config"
        ) from None
    except Exception:  # a torn pickle can raise nearly anything
        raise HrsegError("is a damaged or truncated PyTorch file; download it again") from None
    if isinstance(content, list):
        raise HrsegError(f"is a list of {len(content)} stages (one model per click); save one of them by itself")
    if not isinstance(content, dict):
        raise HrsegError(f"holds a {type(content).__name__}, not a checkpoint")
    if "state_dict" not in content or "config" not in content:
        raise HrsegError(_what_else(content))
    state = content["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise HrsegError("its 'state_dict' is not a dictionary of tensors; save model.state_dict() there")
    if any(value.numel() * value.element_size() > value.untyped_storage().nbytes() for value in state.values()):
        raise HrsegError("one of its tensors repeats itself instead of holding its numbers; save contiguous weights")
    if state and all(str(key).startswith("module.") for key in state):
        raise HrsegError("was saved from a model wrapped in DataParallel; save model.module.state_dict() instead")
    return "hrnet_ocr", ritm_weights.options(content["config"]), state, {"from": "RITM checkpoint"}


def _what_else(content: dict[Any, Any]) -> str:
    """What a PyTorch file without RITM's two entries seems to be, and what to do."""
    if "pytorch-lightning_version" in content:
        return "is a training checkpoint of Lightning; give the weights that the run exported"
    if "model" in content and "optimizer" in content:
        return "is a training checkpoint of another program; ask for a state_dict with its config"
    state = content.get("state_dict", content.get("model", content))
    keys = [str(key) for key in state] if isinstance(state, dict) else []
    joined = " ".join(keys)
    if "image_encoder." in joined:
        return "holds a SAM-type model; hrseg reads RITM's HRNet models (h18s, h18, h32)"
    if "lora_" in joined:
        return "holds an adapter, not a whole model; give the base checkpoint it was made for"
    if any(key.startswith("feature_extractor.") for key in keys):
        return (
            "holds click-network weights without their 'config'; save {'state_dict': ..., 'config': ...} as RITM does"
        )
    if "incre_modules" in joined or ("stage4." in joined and "conv1.weight" in joined):
        return "is an ImageNet HRNet backbone, not a click model; it can start a training, not answer clicks"
    if "blocks.0.attn" in joined or "pos_embed" in joined:
        return "is a plain ViT backbone (MAE or ImageNet), not a click model"
    return "has no 'state_dict' and 'config'; hrseg reads RITM's HRNet checkpoints and its own .safetensors"


def _check_shapes(wanted: dict[str, Tensor], tensors: dict[str, Tensor], path: Path) -> None:
    missing = [key for key in wanted if key not in tensors]
    extra = [key for key in tensors if key not in wanted]
    if missing or extra:
        first = f"missing {missing[0]}" if missing else f"unexpected {extra[0]}"
        raise HrsegError(
            f"{path}: its weights do not fit its own configuration: {len(missing)} missing, {len(extra)} unexpected "
            f"({first}); the file is incomplete or its config was changed"
        )
    for key, tensor in tensors.items():
        if tensor.shape != wanted[key].shape:
            raise HrsegError(
                f"{path}: {key} is {tuple(tensor.shape)}, its configuration says {tuple(wanted[key].shape)}; "
                "the config belongs to another size of the model"
            )


def _check_finite(tensors: dict[str, Tensor], path: Path) -> None:
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise HrsegError(f"{path}: {key} holds NaN or infinite numbers; the training that wrote it had diverged")
