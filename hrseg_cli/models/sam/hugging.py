"""SAM, SAM-HQ and SAM 2 in the format of Hugging Face transformers, which brings the networks.

Only ``config.json``, ``preprocessor_config.json`` and safetensors files are read, never pickles, and no code of a
checkpoint runs. The network is built for its shapes first and compared with the headers of the files, because either
may come from anywhere.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from hrseg_cli.errors import HrsegError
from hrseg_cli.limits import SETTINGS, TEXT, WEIGHTS
from hrseg_cli.models.base import Features
from hrseg_cli.models.parts.meta import shapes_only
from hrseg_cli.models.sam.frame import MEAN, STD, Frame
from hrseg_cli.models.sam.network import Prompt, SegmentAnything
from hrseg_cli.parsing import read_bytes, read_json, reason, safetensors_header

EXTRA = "pip install 'hrseg[sam]'"

FAMILIES = {  # "model_type" of a config.json -> classes in transformers
    "sam": ("SamModel", "SamConfig"),
    "sam_hq": ("SamHQModel", "SamHQConfig"),
    "sam2": ("Sam2Model", "Sam2Config"),
    "sam2_video": ("Sam2Model", "Sam2Config"),  # of the published SAM 2 checkpoints, which contain the image model
}
PARTS = {"vision_config": "sam2_vision_model", "backbone_config": "sam2_hiera_det_model"}  # the only ones of SAM 2
UNSAFE = ("auto_map", "implementation", "quantization")  # parts of names of settings that could run other code
FILES = ("config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json")
MOST = 1 << 16  # of any number in a config.json
LAYERS = 512
SIDE = 4096  # of the square that the network sees, in pixels


class HuggingFaceModel(SegmentAnything):
    """A network of transformers. kind: a key of :data:`FAMILIES`."""

    def __init__(self, network: nn.Module, kind: str, frame: Frame, mask_side: int, choose: str) -> None:
        super().__init__(kind, frame, mask_side, choose)
        self.network = network

    def embed(self, pixels: Tensor) -> Features:
        found = self.network.get_image_embeddings(pixels)  # type: ignore[operator]
        if self.name == "sam":
            return (found,)
        if self.name == "sam_hq":
            embedding, early = found
            return embedding, early[0]  # the decoder uses the first only
        return tuple(found)

    def masks(self, features: Features, prompt: Prompt, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        given: dict[str, Any] = {"image_embeddings": features[0]}
        if self.name == "sam_hq":
            given["intermediate_embeddings"] = [features[1]]
        elif self.name == "sam2":
            given["image_embeddings"] = list(features)
        if len(prompt.points):
            given |= {"input_points": prompt.points[None, None], "input_labels": prompt.labels[None, None]}
        if prompt.box is not None:
            given["input_boxes"] = prompt.box[None, None]
        out = self.network(**given, input_masks=prompt.mask, multimask_output=self.choose != "single")
        return out.pred_masks[:, 0], out.iou_scores[0, 0]


def transformers() -> Any:
    """The library, quiet. Raises HrsegError with the command that installs it."""
    try:
        library = importlib.import_module("transformers")
        models = [getattr(library, name) for names in FAMILIES.values() for name in names]
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "transformers"
        problem = "transformers is not installed" if missing else f"transformers does not work ({reason(error)})"
        raise HrsegError(f"`model` sam: {problem}; run: {EXTRA}") from None
    except (AttributeError, RuntimeError):
        raise HrsegError(f"`model` sam: this transformers is too old for SAM-HQ or SAM 2; run: {EXTRA}") from None
    assert models
    library.utils.logging.set_verbosity_error()
    return library


def snapshot(name: str) -> Path:
    """The folder of a model of the Hugging Face hub, downloaded on first use. Raises HrsegError.

    name: OWNER/NAME, or OWNER/NAME@REVISION.
    """
    found = re.fullmatch(r"([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?", name)
    if not found or name.startswith((".", "/")) or ".." in name:
        problem = "a file, not a folder" if Path(name).expanduser().is_file() else "no such folder"
        raise HrsegError(
            f"`model` sam:{name}: {problem}; give a folder, a name on the Hugging Face hub such as "
            "sam:facebook/sam-vit-base, or sam:ENCODER.onnx,DECODER.onnx"
        )
    transformers()
    hub = importlib.import_module("huggingface_hub")
    asked: dict[str, Any] = {"repo_id": found[1], "revision": found[2], "allow_patterns": list(FILES)}
    try:
        return Path(hub.snapshot_download(**asked, local_files_only=True))
    except Exception:  # not downloaded yet, in many forms
        pass
    try:
        return Path(hub.snapshot_download(**asked))
    except Exception as error:  # the hub's, the network's, the disk's
        raise HrsegError(
            f"`model` sam:{name}: not in the current folder, and cannot be downloaded from the Hugging Face hub "
            f"({_why(error)}); check the name and the network, or give a folder with the model"
        ) from None


def _why(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status:
        return f"HTTP {status}"
    return "no network" if type(error).__name__ in NO_NETWORK else reason(error)[:120]


NO_NETWORK = ("LocalEntryNotFoundError", "ConnectError", "ConnectTimeout", "ConnectionError", "OfflineModeIsEnabled")


def open_folder(folder: Path, choose: str, name: str) -> tuple[HuggingFaceModel, dict[str, Any]]:
    """The model in a folder and its provenance. name: as the user gave it, for messages. Raises HrsegError."""
    place = f"`model` sam:{name}"
    try:
        config = read_json(folder / "config.json", SETTINGS)
        kind = str(config["model_type"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HrsegError(
            f"{place}: its config.json cannot be read ({reason(error)}); give a folder in the format of Hugging Face "
            "transformers"
        ) from None
    if kind not in FAMILIES:
        known = ", ".join(one for one in FAMILIES if one != "sam2_video")
        raise HrsegError(f"{place}: a model of type {kind[:50]!r}; give one of type {known}")
    _check_numbers(config, place)
    _check_parts(config, place)
    library = transformers()
    model_class, config_class = (getattr(library, one) for one in FAMILIES[kind])
    kind = "sam2" if kind == "sam2_video" else kind
    try:
        settings = config_class.from_dict({**_plain(config), "model_type": kind})
        with shapes_only():
            network = model_class(settings)
        prompts = settings.prompt_encoder_config
        side = int(prompts.image_size if kind == "sam2" else settings.vision_config.image_size)
        mask_side = 4 * side // int(prompts.patch_size)
        if not 0 < mask_side <= side <= SIDE:
            raise ValueError(f"images of {side} pixels")
    except Exception as error:  # arbitrary settings can raise nearly anything
        raise HrsegError(
            f"{place}: its config.json describes a model that cannot be built ({reason(error)[:150]}); use the "
            "original, unedited file"
        ) from None
    tensors, digest = _weights(folder, network, place)
    network.load_state_dict(tensors, strict=False, assign=True)
    network.tie_weights()
    network.float().eval()
    if any(one.is_meta for one in (*network.parameters(), *network.buffers())):
        raise HrsegError(f"{place}: some weights are missing; use the original config.json")
    mean, std = _constants(folder, side, place)
    model = HuggingFaceModel(network, kind, Frame(side, kind == "sam2", mean, std), mask_side, choose)
    return model, {"name": kind, "options": model.config, "file": Path(name).name, "sha256": digest}


def _check_numbers(config: Any, place: str) -> None:
    for key, value in _numbers(config):
        most = LAYERS if "layers" in key or "blocks" in key or "multimask" in key or "depth" in key else MOST
        if isinstance(value, int) and abs(value) > most:
            raise HrsegError(
                f"{place}: config.json: {key[:50]} is {value}, at most {most} is possible; use the original"
            )


def _check_parts(config: dict[str, Any], place: str) -> None:
    """Raise HrsegError for a SAM 2 whose image encoder is another network of the library."""
    vision = config.get("vision_config")
    for name, part in (
        ("vision_config", vision),
        ("backbone_config", vision.get("backbone_config") if isinstance(vision, dict) else None),
    ):
        if (
            isinstance(part, dict)
            and part.get("model_type", PARTS[name]) != PARTS[name]
            and "sam2" in config["model_type"]
        ):
            raise HrsegError(
                f"{place}: an image encoder of type {str(part['model_type'])[:50]!r}; give a SAM 2 with Hiera"
            )


def _plain(value: Any) -> Any:
    """Settings without those that choose other code."""
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {
        key: _plain(one)
        for key, one in value.items()
        if not key.startswith("_") and not any(word in key for word in UNSAFE)
    }


def _numbers(value: Any, key: str = "") -> Iterator[tuple[str, int | float]]:
    """All numbers in a JSON value, each with the last key above it."""
    if isinstance(value, dict):
        for name, one in value.items():
            yield from _numbers(one, str(name))
    elif isinstance(value, list):
        for one in value:
            yield from _numbers(one, key)
    elif isinstance(value, int | float):
        yield key, value


def _weights(folder: Path, network: Any, place: str) -> tuple[dict[str, Tensor], str]:
    """The tensors in a folder, which fit the network, and their SHA-256. network: without memory for its weights."""
    wanted = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    optional = set(getattr(network, "_tied_weights_keys", None) or {})
    ignored = [re.compile(one) for one in getattr(network, "_keys_to_ignore_on_load_unexpected", None) or []]
    files = _files(folder, place)
    tensors: dict[str, Tensor] = {}
    digests = []
    try:
        for file in files:
            blob = read_bytes(file, WEIGHTS)
            digests.append(hashlib.sha256(blob).hexdigest())
            safetensors_header(blob)  # within the limits
            for key, value in load_safetensors(blob).items():
                if key in wanted:
                    tensors[key] = value.float()
                elif not any(one.search(key) for one in ignored):
                    raise ValueError(f"unexpected {key}")
    except HrsegError:
        raise
    except Exception as error:  # a damaged file can raise nearly anything
        raise HrsegError(f"{place}: {file.name}: {reason(error)[:150]}; download it again") from None
    missing = [key for key in wanted if key not in tensors and key not in optional]
    if missing:
        raise HrsegError(
            f"{place}: {len(missing)} weights are missing, such as {missing[0]}; the folder is incomplete, or its "
            "config.json is of another model: download it again"
        )
    for key, value in tensors.items():
        if tuple(value.shape) != wanted[key]:
            raise HrsegError(
                f"{place}: {key} has shape {tuple(value.shape)}, config.json says {wanted[key]}; use the config.json "
                "of these weights"
            )
        if not bool(torch.isfinite(value).all()):
            raise HrsegError(f"{place}: {key} contains NaN or infinite values; download it again")
    return tensors, digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _files(folder: Path, place: str) -> list[Path]:
    """The files of the weights: one, or the parts that an index names."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if index.is_file():
        try:
            names = sorted(set(read_json(index, TEXT)["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise HrsegError(f"{place}: {index.name} cannot be read ({reason(error)}); download it again") from None
        parts = [folder / Path(str(name)).name for name in names]
        if lost := next((part.name for part in parts if not part.is_file()), None):
            raise HrsegError(f"{place}: {lost} is missing; download it again")
        if parts:
            return parts
    pickles = [one for one in ("*.bin", "*.pth", "*.pt") if any(folder.glob(one))]
    fix = "convert them: model.save_pretrained(FOLDER, safe_serialization=True)" if pickles else "download it again"
    found = "only pickled weights, which hrseg does not load" if pickles else "no model.safetensors"
    raise HrsegError(f"{place}: {found}; {fix}")


def _constants(folder: Path, side: int, place: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the normalisation, as the folder says, by default ImageNet's."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return MEAN, STD
    try:
        found = read_json(path, SETTINGS)
        mean, std = (tuple(map(float, found.get(key, of))) for key, of in (("image_mean", MEAN), ("image_std", STD)))
        asked = {int(value) for value in found.get("size", {}).values() if value is not None}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise HrsegError(f"{place}: {path.name} cannot be read ({reason(error)}); use the original") from None
    if len(mean) != 3 or len(std) != 3 or not all(std):
        raise HrsegError(
            f"{place}: {path.name}: {json.dumps([mean, std])[:100]} is no mean and deviation; use the original"
        )
    if asked - {side}:
        raise HrsegError(f"{place}: {path.name} says {max(asked)} pixels, config.json {side}; use the original files")
    return mean, std
