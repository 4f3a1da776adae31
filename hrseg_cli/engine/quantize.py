"""Export a click network in 8 bits: activation ranges from simulated clicks, one weight scale per channel."""

from __future__ import annotations

import logging
import re
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from hrseg_cli.data.samples import Ref, load
from hrseg_cli.engine.export import export, need, write_graph
from hrseg_cli.engine.runtimes import GraphInputs, RunGraph, inputs_of, start_onnxruntime
from hrseg_cli.engine.simulate import Plan, simulate
from hrseg_cli.errors import HrsegError
from hrseg_cli.models.base import InteractiveModel
from hrseg_cli.recipe import Protocol, load_protocol

CLICKS = 3  # per object
HELD = 6  # every sixth step is used for the comparison, not for calibration


def quantize(
    model: InteractiveModel,
    path: Path,
    provenance: dict[str, Any],
    refs: Sequence[Ref],
    count: int,
    protocol: Protocol | None = None,
) -> dict[str, Any]:
    """Write ``model`` to ``path`` as an ONNX file that computes in 8 bits, and return the file's metadata.

    refs, count: the objects to click on, and how many of them to use, evenly spread. protocol: how clicks become
        network inputs; None: "photo" without mirroring.
    ``int8`` in the metadata compares the outputs with single precision on clicks not used for calibration.
    Raises HrsegError like :func:`hrseg_cli.engine.export.export`.
    """
    onnx = need("onnx")
    quantization = need("onnxruntime.quantization")
    if count > len(refs):
        raise HrsegError(f"`calibrate_count` {count}: only {len(refs)} objects found; add data or lower the count")
    with tempfile.TemporaryDirectory() as folder:
        plain, small = Path(folder) / "plain.onnx", Path(folder) / "small.onnx"
        header = export(model, plain, provenance)
        kept = re.compile("|".join(model.single_precision) or "$.")
        nodes = onnx.load(plain).graph.node
        single = [node.name for node in nodes if kept.search(node.name)]
        if not any(node.op_type == "Conv" and node.name not in single for node in nodes):
            raise HrsegError(f"`int8`: '{model.name}' has no inner convolution to quantise; omit `int8`")
        chosen = [refs[number * len(refs) // count] for number in range(count)]
        steps = click_steps(model, chosen, protocol or load_protocol("photo", ["flip=false"]))
        held, calibrated = steps[::HELD], [step for number, step in enumerate(steps) if number % HELD]
        logging.disable(logging.WARNING)  # recommends a preprocessing step that fails for dynamic sizes
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                quantization.quantize_static(
                    plain,
                    small,
                    _Reader(calibrated),
                    quant_format=quantization.QuantFormat.QDQ,
                    op_types_to_quantize=["Conv"],
                    nodes_to_exclude=single,
                    per_channel=True,
                    activation_type=quantization.QuantType.QUInt8,
                    weight_type=quantization.QuantType.QInt8,
                )
        finally:
            logging.disable(logging.NOTSET)
        header["precision"] = "int8"
        header["int8"] = {
            "objects": count,
            "steps": len(calibrated),
            **compare(start_onnxruntime(plain), start_onnxruntime(small), held),
        }
        write_graph(onnx.load(small), header, path)
    return header


def click_steps(model: InteractiveModel, refs: Sequence[Ref], protocol: Protocol) -> list[GraphInputs]:
    """The inputs of the network while clicking on these objects, :data:`CLICKS` times each, as inputs of the graph."""
    recorder = _Recorder(model)
    plan = Plan(protocol, until={"iou": 2.0}, max_clicks=CLICKS)
    for ref in refs:
        simulate(load(ref), recorder, plan)
    return recorder.steps


def compare(one: RunGraph, other: RunGraph, steps: Sequence[GraphInputs]) -> dict[str, Any]:
    """Difference between two graphs: share of pixels on the other side of 0.5, mean difference of the probability."""
    flipped, apart = [], []
    for step in steps:
        a, b = one(step), other(step)
        flipped.append(np.mean((a > 0) != (b > 0)))
        apart.append(np.abs(1 / (1 + np.exp(-a)) - 1 / (1 + np.exp(-b))).mean())
    return {
        "compared": len(steps),
        "flipped": round(float(np.mean(flipped)), 6),
        "probability": round(float(np.mean(apart)), 6),
    }


class _Recorder(InteractiveModel):
    """A model that records its inputs."""

    def __init__(self, model: InteractiveModel) -> None:
        super().__init__()
        self.model = model
        self.with_prev_mask, self.mirror, self.enlarge = model.with_prev_mask, model.mirror, model.enlarge
        self.takes_boxes = model.takes_boxes
        self.steps: list[GraphInputs] = []

    def forward(self, image: Tensor, points: Tensor) -> dict[str, Tensor]:
        self.steps.append(inputs_of(self, image[:, :3], image[:, 3:], points, None))
        answer: dict[str, Tensor] = self.model(image, points)
        return answer


class _Reader:
    """An iterator of steps with the interface of ONNX Runtime's calibration."""

    def __init__(self, steps: Sequence[GraphInputs]) -> None:
        self.steps = iter(steps)

    def get_next(self) -> GraphInputs | None:
        return next(self.steps, None)
