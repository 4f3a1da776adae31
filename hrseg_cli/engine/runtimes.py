"""Opening a model on PyTorch, ONNX Runtime or OpenVINO, behind one interface: InteractiveModel."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hrseg_cli import __version__, catalog
from hrseg_cli.checkpoints.provenance import weights_hash
from hrseg_cli.checkpoints.resolve import load_model
from hrseg_cli.data.paths import cache_folder
from hrseg_cli.engine.export import FORMAT, OPSET, clicks_of, export, need, read_header
from hrseg_cli.engine.fast import open_fast
from hrseg_cli.errors import HrsegError, UnknownName
from hrseg_cli.models.base import Features, InteractiveModel

GRAPH = 2  # of the graphs made from the same weights: raise it when they change, or cached ones would be used

GraphInputs = dict[str, np.ndarray]
RunGraph = Callable[[GraphInputs], np.ndarray]  # returns logits (B, 1, H, W)


@dataclass(frozen=True)
class ModelChoice:
    """Which model to run and how, as :func:`open_model` takes them; travels to worker processes."""

    spec: str
    runtime: str | None = None
    device: str = "cpu"
    precision: str | None = "fp32"

    def open(self) -> tuple[InteractiveModel, dict[str, Any]]:
        """The model, ready for inference, and its provenance. Raises HrsegError or UnknownName."""
        return open_model(self.spec, self.runtime, self.device, self.precision)


def automatic_device(spec: str, runtime: str | None = None) -> str:
    """A GPU for a model that PyTorch runs, if PyTorch sees one; else the CPU. Arguments as for :func:`open_model`."""
    _, chosen = _file_and_runtime(spec, runtime)
    return "cuda" if chosen == "torch" and torch.cuda.is_available() else "cpu"


def _file_and_runtime(spec: str, runtime: str | None) -> tuple[Path | None, str]:
    """The ONNX file that a model is, if it is one, and what runs it."""
    opener = spec.partition(":")[0] in catalog.PREFIXES  # it may open files with this ending itself
    file = Path(spec) if spec.endswith(".onnx") and not opener else None
    return file, runtime or ("onnxruntime" if file else "torch")


def open_model(
    spec: str, runtime: str | None = None, device: str = "cpu", precision: str | None = "fp32"
) -> tuple[InteractiveModel, dict[str, Any]]:
    """A model for inference and its provenance.

    spec: see :func:`hrseg_cli.checkpoints.resolve.load_model`; or an ``.onnx`` file written by ``hrseg export``.
    runtime: ``torch`` or one of :data:`GRAPHS`. None: ONNX Runtime for an ``.onnx`` file, otherwise PyTorch. The graph
        runtimes run on the CPU with PyTorch's current number of threads.
    precision: fp32 or bf16, for PyTorch, which uses the inference form of the model. None: the faster one here.
    For a graph runtime, a checkpoint is exported once and cached in :func:`cache_folder`. Raises HrsegError or
    UnknownName.
    """
    file, chosen = _file_and_runtime(spec, runtime)
    if chosen == "torch":
        if file:
            raise HrsegError(
                f"`runtime` torch: cannot run the ONNX file {spec}; use `runtime` onnxruntime or openvino, or give the "
                "checkpoint"
            )
        return open_fast(spec, device, precision)
    if precision not in (None, "fp32"):
        raise HrsegError(
            f"`precision` {precision}: only for `runtime` torch; use `runtime` openvino-bf16, or omit `precision`"
        )
    if chosen not in GRAPHS:
        raise UnknownName("runtime", chosen, ["torch", *GRAPHS])
    if device != "cpu":
        raise HrsegError(f"`device` {device}: `runtime` {chosen} runs on the CPU only; omit one of the two options")
    start, package, arithmetic = GRAPHS[chosen]
    need(package)
    if file is None:
        path, provenance = _exported(spec)
        header, _ = read_header(path)
    else:
        path = file
        if not path.is_file():
            raise HrsegError(f"`model` {spec}: no such file; create it with 'hrseg export MODEL `out` {spec}'")
        header, digest = read_header(path)
        provenance = {
            "name": header["name"],
            "options": header["options"],
            "file": path.name,
            "sha256": digest,
            "exported_from": header["provenance"],
        }
    provenance["runtime"] = {
        "name": chosen,
        "version": need(package).__version__,
        "weights": header["precision"],
        "arithmetic": arithmetic if header["precision"] == "fp32" else header["precision"],
    }
    try:
        run = start(path)
    except Exception as error:  # each runtime has its own
        raise HrsegError(f"{path}: {chosen} cannot load it ({_line(error)}); export the model again") from None

    def guarded(inputs: GraphInputs) -> np.ndarray:
        try:
            return run(inputs)
        except Exception as error:
            raise HrsegError(f"{path}: {chosen} cannot run it ({_line(error)}); export the model again") from None

    return GraphModel(guarded, header).eval(), provenance


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


class GraphModel(InteractiveModel):
    """An exported click network. It has no parameters and returns logits only.

    run: inputs by name -> logits (B, 1, H, W). header: the file's metadata.
    """

    def __init__(self, run: RunGraph, header: dict[str, Any]) -> None:
        super().__init__()
        self.name, self.config = header["name"], header["options"]
        self.with_prev_mask, self.mirror, self.enlarge = header["with_prev_mask"], header["mirror"], header["enlarge"]
        self.takes_boxes = header.get("takes_boxes", False)  # not in files of format 1
        self.run = run

    def forward(self, image: Tensor, points: Tensor) -> dict[str, Tensor]:
        return self.decode((image[:, :3],), image[:, 3:], points)

    def decode(
        self, features: Features, previous: Tensor, points: Tensor, boxes: Tensor | None = None
    ) -> dict[str, Tensor]:
        return {"logits": torch.from_numpy(self.run(inputs_of(self, features[0], previous, points, boxes)))}


def inputs_of(
    model: InteractiveModel, image: Tensor, previous: Tensor, points: Tensor, boxes: Tensor | None
) -> GraphInputs:
    """The inputs of the graph of ``model``; the others as for :meth:`InteractiveModel.decode`."""
    inputs = {"image": image.contiguous().numpy(), "clicks": clicks_of(points).numpy()}
    if model.with_prev_mask:
        inputs["previous"] = previous.contiguous().numpy()
    if model.takes_boxes:
        none = torch.full((image.shape[0], 4), -1.0)
        inputs["box"] = (none if boxes is None else boxes.float()).numpy()
    return inputs


def start_onnxruntime(path: Path) -> RunGraph:
    """Load a graph in ONNX Runtime, on the CPU with PyTorch's number of threads. Raises HrsegError if it is missing."""
    ort = need("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.enable_mem_pattern = False  # it assumes a fixed input size; crops vary
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(inputs: GraphInputs) -> np.ndarray:
        (logits,) = session.run(["logits"], inputs)
        return np.asarray(logits)

    return run


def start_openvino(path: Path, precision: str = "f32") -> RunGraph:
    """Load a graph in OpenVINO, on the CPU with PyTorch's number of threads. precision: of its arithmetic, "f32" or
    "bf16". Raises HrsegError if OpenVINO is missing."""
    openvino = need("openvino")
    # Without a hint, OpenVINO uses bfloat16 wherever the processor supports it.
    options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    network = openvino.Core().compile_model(str(path), "CPU", {**options, "PERFORMANCE_HINT": "LATENCY"})
    request = network.create_infer_request()

    def run(inputs: GraphInputs) -> np.ndarray:
        return np.array(request.infer(inputs)["logits"])  # copy: the next call overwrites this memory

    return run


def start_openvino_bf16(path: Path) -> RunGraph:
    """:func:`start_openvino` with bf16 arithmetic."""
    return start_openvino(path, "bf16")


# name -> how to load a graph, required package, arithmetic used for an fp32 graph
GRAPHS: dict[str, tuple[Callable[[Path], RunGraph], str, str]] = {
    "onnxruntime": (start_onnxruntime, "onnxruntime", "fp32"),
    "openvino": (start_openvino, "openvino", "fp32"),
    "openvino-bf16": (start_openvino_bf16, "openvino", "bf16"),
}


def _exported(spec: str) -> tuple[Path, dict[str, Any]]:
    """The cached graph of a checkpoint, exported on first use, and the checkpoint's provenance."""
    model, provenance = load_model(spec)
    identity = {
        "weights": weights_hash(model),
        "options": [model.name, model.config, provenance.get("adapter", {}).get("options")],
        "made_by": [__version__, torch.__version__, need("onnx").__version__, FORMAT, OPSET, GRAPH],
    }
    path = cache_folder() / f"{hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]}.onnx"
    if not path.is_file():
        export(model, path, provenance)
    return path, provenance
