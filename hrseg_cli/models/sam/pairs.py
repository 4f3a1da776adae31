"""Encoder and decoder of a SAM as two ONNX files, in the layout of segment-anything's exporter.

The decoder takes image_embeddings, point_coords, point_labels, mask_input, has_mask_input and orig_im_size, and returns
masks, iou_predictions and low_res_masks. There is no common layout of encoders: those that take (1, 3, side, side) get
normalised pixels, those that take (height, width, 3) get the resized image itself, values 0 to 255.
"""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hrseg_cli.errors import HrsegError
from hrseg_cli.limits import WEIGHTS
from hrseg_cli.models.base import Features
from hrseg_cli.models.sam import frame as frames
from hrseg_cli.models.sam.frame import Frame
from hrseg_cli.models.sam.network import Prompt, SegmentAnything
from hrseg_cli.parsing import read_bytes, reason

INPUTS = ("image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input", "orig_im_size")
OUTPUTS = ("iou_predictions", "low_res_masks")
MOST = 4096  # pixels of the square


class OnnxPair(SegmentAnything):
    """An encoder and a decoder in ONNX Runtime, on the CPU with PyTorch's number of threads."""

    def __init__(self, encoder: Any, decoder: Any, frame: Frame, mask_side: int, choose: str) -> None:
        super().__init__("sam_onnx", frame, mask_side, choose)
        self.encoder, self.decoder = encoder, decoder

    def _apply(self, move: Any, recurse: bool = True) -> Any:
        """What moves a model to a device; there are no weights to move."""
        if move(torch.empty(0)).device.type != "cpu":
            raise HrsegError("`device`: a pair of ONNX files runs on the CPU only; omit it")
        return super()._apply(move, recurse)  # type: ignore[no-untyped-call]

    def encode(self, image: Tensor) -> Features:
        (given,) = self.encoder.get_inputs()
        if len(given.shape) == 4:
            inputs = list(frames.pixel_values(image, self.frame)[:, None].numpy())
        else:
            inputs = [frames.resized(one, self.frame).astype(np.float32) for one in image]
        found = [_run(self.encoder, "encoder", None, {given.name: one})[0] for one in inputs]
        return (torch.from_numpy(np.concatenate(found)),)

    def masks(self, features: Features, prompt: Prompt, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        points, labels = prompt.points.numpy(), prompt.labels.numpy()
        # Corners of a box are points with labels of their own; without a box, the decoder expects one point of padding.
        more, kinds = (np.zeros((1, 2)), [-1]) if prompt.box is None else (prompt.box.numpy().reshape(2, 2), [2, 3])
        empty = np.zeros((1, 1, self.mask_side, self.mask_side), np.float32)
        inputs = {
            "image_embeddings": features[0].numpy(),
            "point_coords": np.concatenate([points, more])[None].astype(np.float32),
            "point_labels": np.concatenate([labels, kinds])[None].astype(np.float32),
            "mask_input": empty if prompt.mask is None else prompt.mask.numpy(),
            "has_mask_input": np.array([prompt.mask is not None], np.float32),
            "orig_im_size": np.array(size, np.float32),
        }
        scores, masks = _run(self.decoder, "decoder", list(OUTPUTS), inputs)
        count = masks.shape[1]
        # Of four masks, the first is the one for unambiguous prompts.
        if self.choose == "single" and count not in (1, 4):
            raise HrsegError(f"the ONNX decoder returns {count} masks, none of them for choose=single; omit it")
        kept = slice(0, 1) if self.choose == "single" else slice(int(count == 4), None)
        return torch.from_numpy(masks[:, kept]), torch.from_numpy(scores[0, kept])


def _run(session: Any, which: str, outputs: list[str] | None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    try:
        return [np.asarray(one) for one in session.run(outputs, inputs)]
    except Exception as error:  # the runtime has its own
        raise HrsegError(f"the ONNX {which} cannot run ({reason(error)[:150]}); export it again") from None


def open_pair(encoder: Path, decoder: Path, choose: str) -> tuple[OnnxPair, dict[str, Any]]:
    """The model in two ONNX files and its provenance. Raises HrsegError."""
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError:
        raise HrsegError(
            f"`model` sam:{encoder},{decoder}: onnxruntime is not installed; run: pip install 'hrseg[export]'"
        ) from None
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.log_severity_level = 3
    sessions, digests = [], []
    for path in (encoder, decoder):
        try:
            blob = read_bytes(path, WEIGHTS)
            # By its bytes: a file that refers to others, anywhere on the disk, is refused.
            sessions.append(runtime.InferenceSession(blob, options, providers=["CPUExecutionProvider"]))
        except FileNotFoundError:
            raise HrsegError(f"`model` sam:{encoder},{decoder}: {path}: no such file") from None
        except Exception as error:  # a damaged file can raise nearly anything
            raise HrsegError(
                f"{path}: not an ONNX file that can be loaded ({reason(error)[:150]}); export it again"
            ) from None
        digests.append(hashlib.sha256(blob).hexdigest())
    first, second = sessions
    lost = set(INPUTS).symmetric_difference(one.name for one in second.get_inputs())
    lost |= set(OUTPUTS) - {one.name for one in second.get_outputs()}
    if lost:
        raise HrsegError(
            f"{decoder}: not a decoder as segment-anything exports it: {', '.join(sorted(lost))} missing or unknown; "
            "give ENCODER.onnx,DECODER.onnx of a SAM, in this order"
        )
    shapes = {one.name: one.shape for one in second.get_inputs()}
    given = [one.shape for one in first.get_inputs()]
    if len(given) != 1 or len(given[0]) not in (3, 4):
        raise HrsegError(
            f"{encoder}: not an image encoder, which has one input, (1, 3, side, side) or (height, width, 3)"
        )
    mask_side = shapes["mask_input"][-1]
    side = given[0][-1] if len(given[0]) == 4 and isinstance(given[0][-1], int) else None
    if side is None and isinstance(mask_side, int):
        side = 4 * mask_side  # 256 of 1024
    side = side or 1024
    mask_side = mask_side if isinstance(mask_side, int) else side // 4
    if not (0 < side <= MOST and 0 < mask_side <= MOST):
        raise HrsegError(f"{encoder}: an input of {side} pixels; at most {MOST} are possible")
    model = OnnxPair(first, second, Frame(side), mask_side, choose)
    digest = hashlib.sha256("".join(digests).encode()).hexdigest()
    return model, {
        "name": model.name,
        "options": model.config,
        "file": f"{encoder.name},{decoder.name}",
        "sha256": digest,
    }
