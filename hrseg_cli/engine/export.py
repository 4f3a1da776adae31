"""The whole click step as one ONNX file: image, previous mask and clicks in, the object's probability out.

    image       (batch, 3, height, width) float32, RGB in [0, 1]
    previous    (batch, 1, height, width) float32, the previous probability; zeros before the first click
    clicks      (batch, clicks, 3) float32, rows (row, col, label): label 1 is object, 0 background, -1 padding
    box         (batch, 4) float32, (top, left, bottom, right) in pixels, inclusive; -1, -1, -1, -1 if there is none
    probability (batch, 1, height, width) float32 in [0, 1]
    logits      (batch, 1, height, width) float32; the probability is their sigmoid

All four sizes may change from call to call. Normalisation and the drawing of clicks are part of the graph.
The file's metadata has one key, ``hrseg``, with JSON: the source of the weights, and the differences from PyTorch.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import io
import json
import re
import warnings
from itertools import chain
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from hrseg_cli import __version__
from hrseg_cli.adapters.lora import merge
from hrseg_cli.errors import HrsegError
from hrseg_cli.limits import WEIGHTS
from hrseg_cli.models.base import InteractiveModel
from hrseg_cli.parsing import Malformed, own_metadata, read_bytes, reason
from hrseg_cli.writing import write_atomically

FORMAT = 2  # 1 had no input for boxes
OPSET = 17
TOLERANCE = 1e-4
SIZES = ((1, 96, 128, 3), (2, 101, 75, 6), (1, 64, 160, 1))  # batch, height, width, clicks
ABOUT = " ".join((__doc__ or "").split())


class ClickStep(nn.Module):
    """A click network with the interface of the file: ``(image, previous, clicks) -> (probability, logits)``, without
    ``previous`` if the network does not use it, with ``box`` last if it takes boxes."""

    def __init__(self, model: InteractiveModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        box = rest[-1] if self.model.takes_boxes else None
        *previous, clicks = rest if box is None else rest[:-1]
        if box is None:
            logits: Tensor = self.model(torch.cat([image, *previous], 1), points_of(clicks))["logits"]
        else:
            logits = self.model.decode(self.model.encode(image), previous[0], points_of(clicks), box)["logits"]
        return logits.sigmoid(), logits


def points_of(clicks: Tensor) -> Tensor:
    """Clicks with labels, (B, N, 3), converted to the input of the network, (B, 2N, 3).

    See :mod:`hrseg_cli.models.parts.click_maps`.
    """
    place, label = clicks[..., :2], clicks[..., 2:]
    empty = torch.full_like(place, -1)
    sides = torch.cat([torch.where(label == side, place, empty) for side in (1, 0)], 1)
    return torch.cat([sides, torch.zeros_like(sides[..., :1])], 2)


def clicks_of(points: Tensor) -> Tensor:
    """The reverse of :func:`points_of`, float32 (B, 2N, 3)."""
    half = points.shape[1] // 2
    label = torch.cat([points.new_ones(half, 1), points.new_zeros(half, 1)])
    label = torch.where(points[..., :2].amax(2, keepdim=True) < 0, -1, label)
    return torch.cat([points[..., :2], label], 2).float()


def export(model: InteractiveModel, path: Path, provenance: dict[str, Any]) -> dict[str, Any]:
    """Check the graph of ``model`` against PyTorch, write it to ``path``, and return the file's metadata.

    LoRA is folded; convolutional adapters are part of the graph. Raises HrsegError for a model without a network, for
    a missing package, and if an output differs by more than :data:`TOLERANCE`; nothing is written then.
    """
    onnx = need("onnx")
    if next(model.parameters(), None) is None:
        raise HrsegError(f"{model.name}: has no network to export; use a checkpoint")
    if not model.exportable:
        raise HrsegError(f"{model.name}: cannot be exported as one graph; use `runtime` torch, or another model")
    model = copy.deepcopy(model).cpu().eval()
    merge(model)
    step = ClickStep(model).eval()
    maps = ["image", *(["previous"] if model.with_prev_mask else [])]
    names = [*maps, "clicks", *(["box"] if model.takes_boxes else [])]
    sizes: dict[str, dict[int, str]] = {name: {0: "batch", 2: "height", 3: "width"} for name in maps}
    sizes["clicks"] = {0: "batch", 1: "clicks"}
    if model.takes_boxes:
        sizes["box"] = {0: "batch"}
    sizes["probability"] = sizes["logits"] = sizes["image"]
    traced = trace(step, names, sizes)
    graph = onnx.load_model_from_string(traced)
    for output in graph.graph.output:
        output.type.tensor_type.shape.dim[1].dim_value = 1
    header = {
        "format": FORMAT,
        "name": model.name,
        "options": model.config,
        "with_prev_mask": model.with_prev_mask,
        "mirror": model.mirror,
        "takes_boxes": model.takes_boxes,
        "enlarge": model.enlarge,
        "opset": OPSET,
        "precision": "fp32",
        "provenance": provenance,
        "made_by": {"hrseg": __version__, "torch": torch.__version__, "onnx": onnx.__version__},
    }
    header["checked"] = check(graph.SerializeToString(), step)
    write_graph(graph, header, path)
    return header


def trace(step: ClickStep, names: list[str], sizes: dict[str, dict[int, str]]) -> bytes:
    """The step as an ONNX graph. Raises HrsegError with the name of the operator that ONNX does not support."""
    file: Any = io.BytesIO()  # Any: the exporter accepts it, but is not annotated so
    silent = patch.object(torch._C, "_jit_onnx_log", create=True)  # on an error it would print the whole graph
    try:
        with silent, warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # about shapes traced as constants, which `check` would detect
            # torch.export takes 35 times as long (33 s for h18s) for the same graph and the same outputs.
            torch.onnx.export(
                step,
                inputs(step, *SIZES[0]),
                file,
                dynamo=False,
                opset_version=OPSET,
                input_names=names,
                output_names=["probability", "logits"],
                dynamic_axes=sizes,
            )
    except Exception as error:  # of several classes; most messages end with the whole graph
        raise HrsegError(f"{step.model.name}: cannot be exported, {_reason(error)}; use `runtime` torch") from None
    return bytes(file.getvalue())


def _reason(error: Exception) -> str:
    """The cause of an error of the exporter or a runtime, in a few words on one line."""
    text = str(error)
    operator = re.search(r"\b(?:aten|prim|quantized|torchvision|mkldnn)::\w+", text)
    if operator and "not supported" in text:
        return f"ONNX opset {OPSET} does not support its operator {operator[0]}"
    first = next((line for line in text.splitlines() if line.strip()), type(error).__name__).strip()
    first = re.split(r"\[Caused by|\(node defined", first)[0].strip(" .")[:160]
    return f"operator {operator[0]}: {first}" if operator and operator[0] not in first else first


def write_graph(graph: Any, header: dict[str, Any], path: Path) -> None:
    """Write an ONNX graph to a file, with ``header`` as its metadata."""
    graph.doc_string = ABOUT
    graph.producer_name, graph.producer_version = "hrseg", __version__
    del graph.metadata_props[:]
    graph.metadata_props.add(key="hrseg", value=json.dumps(header, sort_keys=True))
    write_atomically(path, graph.SerializeToString())


def check(graph: bytes, step: ClickStep) -> list[dict[str, Any]]:
    """Largest differences between ONNX Runtime and PyTorch at each of :data:`SIZES`. Raises HrsegError above 1e-4."""
    ort = need("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 4  # errors are raised as well
    try:
        session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has a dozen classes of its own
        raise HrsegError(f"{step.model.name}: ONNX Runtime cannot load its graph ({_reason(error)})") from None
    rows: list[dict[str, Any]] = []
    for size in SIZES:
        given = inputs(step, *size)
        with torch.inference_mode():
            wanted = step(*given)
        feed = {entry.name: value.numpy() for entry, value in zip(session.get_inputs(), given, strict=True)}
        try:
            found = session.run(None, feed)
        except Exception as error:
            batch, height, width, _ = size
            raise HrsegError(
                f"{step.model.name}: its graph does not run on {batch} images of {height}x{width} "
                f"({_reason(error)}); the network may fix a size"
            ) from None
        if any(a.shape != b.shape for a, b in zip(wanted, found, strict=True)):
            raise HrsegError(
                f"{step.model.name}: its graph returns shape {tuple(found[1].shape)}, PyTorch "
                f"{tuple(wanted[1].shape)}; the network fixes a size"
            )
        apart = [float(np.abs(a.numpy() - b).max()) for a, b in zip(wanted, found, strict=True)]
        rows.append({"batch_height_width_clicks": list(size), "probability": apart[0], "logits": apart[1]})
    worst = max(chain.from_iterable((row["probability"], row["logits"]) for row in rows))
    if not worst <= TOLERANCE:  # NaN too
        raise HrsegError(
            f"outputs of the exported graph differ from PyTorch by {worst:.1e}, more than {TOLERANCE:.0e}; nothing was "
            "written; please report the model and the versions of torch and onnx"
        )
    return rows


def inputs(step: ClickStep, batch: int, height: int, width: int, clicks: int) -> tuple[Tensor, ...]:
    """Inputs of that size: noise, random clicks, whole and fractional, a third of each label, and a box in the first
    image."""
    random = torch.Generator().manual_seed(height * width)
    image = torch.rand(batch, 3, height, width, generator=random)
    previous = torch.rand(batch, 1, height, width, generator=random)
    place = torch.rand(batch, clicks, 2, generator=random) * torch.tensor([height - 1, width - 1])
    place[:, ::2] = place[:, ::2].round()
    label = torch.tensor([1.0, 0.0, -1.0]).repeat(clicks)[:clicks, None].expand(batch, -1, 1)
    box = torch.full((batch, 4), -1.0)
    box[0] = torch.tensor([height // 4, width // 4, height // 2, width // 2])
    prompt = [torch.cat([place, label], 2), *([box] if step.model.takes_boxes else [])]
    return (image, *([previous] if step.model.with_prev_mask else []), *prompt)


def read_header(path: Path) -> tuple[dict[str, Any], str]:
    """The metadata of a file written by :func:`export`, and the file's sha256. Raises HrsegError for other files."""
    onnx = need("onnx")
    try:
        blob = read_bytes(path, WEIGHTS)
        graph = onnx.load_model_from_string(blob)
    except (OSError, Malformed) as error:
        raise HrsegError(f"{path}: cannot be read ({reason(error)}); export it again with 'hrseg export'") from None
    except Exception:  # protobuf's own, which is not always the same class
        raise HrsegError(f"{path}: is not an ONNX file, or is damaged; export it again with 'hrseg export'") from None
    if any(one.data_location == one.EXTERNAL for one in graph.graph.initializer):
        raise HrsegError(f"{path}: keeps its weights in other files; export it again with 'hrseg export'")
    try:
        header = own_metadata({entry.key: entry.value for entry in graph.metadata_props}["hrseg"])
        version = int(header["format"])
        kinds = {"name": str, "options": dict, "provenance": dict, "precision": str, "with_prev_mask": bool}
        sound = all(isinstance(header[key], kind) for key, kind in {**kinds, "mirror": bool}.items())
        if not sound or header["enlarge"] not in (1, 2):  # a factor on the size of crops: larger ones need much memory
            raise ValueError
    except (KeyError, ValueError, TypeError):
        raise HrsegError(
            f"{path}: was not written by 'hrseg export', so its inputs are unknown; export the model with hrseg"
        ) from None
    if version > FORMAT:
        raise HrsegError(f"{path}: was written by a newer hrseg (format {version}); update hrseg")
    return header, hashlib.sha256(blob).hexdigest()


def need(package: str) -> Any:
    """An optional package. Raises HrsegError with the command that installs it."""
    try:
        return importlib.import_module(package)
    except ImportError:
        name = package.partition(".")[0]
        packages = " ".join(dict.fromkeys(["onnx", "onnxruntime", name]))
        raise HrsegError(f"{name} is not installed; run: pip install {packages}") from None
