"""Who computes the network: PyTorch, ONNX Runtime or OpenVINO. For the click loop they are all one InteractiveModel."""

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

from hrseg_cli import __version__
from hrseg_cli.checkpoints.provenance import weights_hash
from hrseg_cli.checkpoints.resolve import load_model
from hrseg_cli.engine.devices import cache_folder
from hrseg_cli.engine.export import FORMAT, OPSET, clicks_of, export, need, read_header
from hrseg_cli.engine.fast import open_fast
from hrseg_cli.errors import HrsegError, UnknownName
from hrseg_cli.models.base import InteractiveModel


@dataclass(frozen=True)
class ModelChoice:
    """Which model answers, and what computes it, as :func:`open_model` takes them; travels to worker processes."""

    spec: str
    runtime: str | None = None
    device: str = "cpu"
    precision: str | None = "fp32"

    def open(self) -> tuple[InteractiveModel, dict[str, Any]]:
        """The model, ready to be asked, and its provenance. Raises HrsegError or UnknownName."""
        return open_model(self.spec, self.runtime, self.device, self.precision)


Feed = dict[str, np.ndarray]
Answer = Callable[[Feed], np.ndarray]


def open_model(
    spec: str, runtime: str | None = None, device: str = "cpu", precision: str | None = "fp32"
) -> tuple[InteractiveModel, dict[str, Any]]:
    """A model ready to be asked, computed by ``torch`` or one of :data:`GRAPHS`, and its provenance.

    spec: as :func:`hrseg_cli.checkpoints.resolve.load_model` takes it, or an ``.onnx`` file of ``hrseg export``.
    precision: fp32 or bf16, for PyTorch, which answers with its fast form; None: the quicker of the two here.
    runtime: None is PyTorch, and ONNX Runtime for an ``.onnx`` file. Others than PyTorch compute on the CPU, with as
        many threads as PyTorch has when this is called.
    A checkpoint is exported once, to :func:`cache_folder`. Raises HrsegError or UnknownName.
    """
    file = Path(spec) if spec.endswith(".onnx") else None
    chosen = runtime or ("onnxruntime" if file else "torch")
    if chosen == "torch":
        if file:
            raise HrsegError(f"`runtime` torch: {spec} is a graph; take onnxruntime or openvino, or the checkpoint")
        return open_fast(spec, device, precision)
    if precision not in (None, "fp32"):
        raise HrsegError(
            f"`precision` {precision}: is for `runtime` torch; take `runtime` openvino-bf16, or leave it out"
        )
    if chosen not in GRAPHS:
        raise UnknownName("runtime", chosen, ["torch", *GRAPHS])
    if device != "cpu":
        raise HrsegError(f"`device` {device}: `runtime` {chosen} computes on the CPU; leave one of them out")
    start, package, arithmetic = GRAPHS[chosen]
    need(package)
    if file is None:
        path, provenance = _exported(spec)
        header, _ = read_header(path)
    else:
        path = file
        if not path.is_file():
            raise HrsegError(f"`model` {spec}: no such file; write it with 'hrseg export MODEL --out {spec}'")
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
    return GraphModel(start(path), header).eval(), provenance


class GraphModel(InteractiveModel):
    """An exported click network. It has no parameters of its own, and gives logits only.

    answer: inputs by name -> logits (B, 1, H, W). header: the file's metadata.
    """

    def __init__(self, answer: Answer, header: dict[str, Any]) -> None:
        super().__init__()
        self.name, self.config = header["name"], header["options"]
        self.with_prev_mask, self.mirror, self.enlarge = header["with_prev_mask"], header["mirror"], header["enlarge"]
        self.answer = answer

    def forward(self, image: Tensor, points: Tensor) -> dict[str, Tensor]:
        feed = {"image": image[:, :3].contiguous().numpy(), "clicks": clicks_of(points).numpy()}
        if self.with_prev_mask:
            feed["previous"] = image[:, 3:4].contiguous().numpy()
        return {"logits": torch.from_numpy(self.answer(feed))}


def start_onnxruntime(path: Path) -> Answer:
    ort = need("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.enable_mem_pattern = False  # planned for one size of input, and crops are of any size
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def answer(feed: Feed) -> np.ndarray:
        (logits,) = session.run(["logits"], feed)
        return np.asarray(logits)

    return answer


def start_openvino(path: Path, precision: str = "f32") -> Answer:
    openvino = need("openvino")
    # Unless told, it computes in bfloat16 where the processor can.
    options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    network = openvino.Core().compile_model(str(path), "CPU", {**options, "PERFORMANCE_HINT": "LATENCY"})
    request = network.create_infer_request()

    def answer(feed: Feed) -> np.ndarray:
        return np.array(request.infer(feed)["logits"])  # a copy: the next call writes into the same memory

    return answer


def start_openvino_bf16(path: Path) -> Answer:
    return start_openvino(path, "bf16")


# name -> how it is started, the package it needs, in what it computes a graph of single precision
GRAPHS: dict[str, tuple[Callable[[Path], Answer], str, str]] = {
    "onnxruntime": (start_onnxruntime, "onnxruntime", "fp32"),
    "openvino": (start_openvino, "openvino", "fp32"),
    "openvino-bf16": (start_openvino_bf16, "openvino", "bf16"),
}


def _exported(spec: str) -> tuple[Path, dict[str, Any]]:
    """The graph of a checkpoint, written when it is asked for first, and the checkpoint's provenance."""
    model, provenance = load_model(spec)
    decides = {
        "weights": weights_hash(model),
        "options": [model.name, model.config, provenance.get("adapter", {}).get("options")],
        "made_by": [__version__, torch.__version__, need("onnx").__version__, FORMAT, OPSET],
    }
    path = cache_folder() / f"{hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:32]}.onnx"
    if not path.is_file():
        export(model, path, provenance)
    return path, provenance
