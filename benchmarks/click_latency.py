"""Latency of a first click and of later clicks of networks of several families, in one run.

    python benchmarks/click_latency.py [NAME ...] [--threads 1] [--clicks 3] [--size 480x640]

Markdown, a row per network: milliseconds of CPU time of a session's first click, and the median of later ones on the
same image, from the click to the mask at full size, each also as a ratio to the first row; and wall time. Each family
has its own protocol, without mirroring, so that a click is one pass. h18s and clicknet_m have their trained weights,
the others random ones. Segment Anything models are of transformers' classes (hrseg[sam]) and of ViT-B size: their
encoder runs at the first click only. A session before the measured one warms up, except for Segment Anything, whose
encoder takes half a minute of CPU time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import cv2
import numpy as np
import torch

from hrseg_cli import catalog
from hrseg_cli.checkpoints.resolve import load_model
from hrseg_cli.engine.devices import processor
from hrseg_cli.engine.fast import fast
from hrseg_cli.engine.session import Session
from hrseg_cli.interaction import Click
from hrseg_cli.models.base import InteractiveModel
from hrseg_cli.models.sam.frame import Frame
from hrseg_cli.models.sam.hugging import FAMILIES, HuggingFaceModel, transformers
from hrseg_cli.recipe import load_protocol

HIERA = {  # of SAM 2's base_plus
    "model_type": "sam2_hiera_det_model",
    "hidden_size": 112,
    "embed_dim_per_stage": [112, 224, 448, 896],
    "num_attention_heads_per_stage": [2, 4, 8, 16],
    "blocks_per_stage": [2, 3, 16, 3],
    "window_size_per_stage": [8, 4, 14, 7],
    "global_attention_blocks": [12, 16, 20],
    "window_positional_embedding_background_size": [14, 14],
}
SAM = {  # settings that differ from the configuration classes' own, which are those of ViT-B
    "sam": {},
    "sam_hq": {},
    "sam2": {"vision_config": {"backbone_config": HIERA, "backbone_channel_list": [896, 448, 224, 112]}},
}


def segment_anything(kind: str) -> InteractiveModel:
    model_class, config_class = (getattr(transformers(), name) for name in FAMILIES[kind])
    network = model_class(config_class(**SAM[kind])).eval()
    return HuggingFaceModel(network, kind, Frame(1024, kind == "sam2"), 256, "iou")


def shipped(name: str) -> InteractiveModel:
    return load_model(name)[0]


def untrained(name: str) -> InteractiveModel:
    model: InteractiveModel = catalog.resolve("model", name)()
    return model


NETWORKS: dict[str, tuple[Callable[[str], InteractiveModel], str]] = {
    "h18s": (shipped, "fast"),
    "clicknet_m": (shipped, "fast"),
    "simpleclick_xtiny": (untrained, "simpleclick"),
    "simpleclick_b": (untrained, "simpleclick"),
    **dict.fromkeys(SAM, (segment_anything, "sam")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NETWORKS)}; all by default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clicks", type=int, default=3, help="later clicks")
    parser.add_argument("--size", default="480x640", help="of the image, rows x columns")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    torch.set_flush_denormal(True)  # activations of random weights may be so small that they are computed slowly
    torch.manual_seed(0)
    height, width = (int(side) for side in options.size.split("x"))
    image = drawn(height, width)
    where = f"{processor()} ({torch.backends.cpu.get_cpu_capability()})"
    print(f"torch {torch.__version__}, {options.threads} thread(s), {where}, fp32, image {options.size}\n")
    print("| network | parameters (M) | protocol | first, CPU ms | ratio | later, CPU ms | ratio | wall ms |")
    print("|---|---:|---|---:|---:|---:|---:|---|", flush=True)
    base: dict[str, float] = {}
    for name in options.names or NETWORKS:
        build, protocol = NETWORKS[name]
        model = build(name)
        count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        found = measure(fast(model.eval()), image, protocol, options.clicks, warm=name not in SAM)
        del model
        base = base or {key: found[key] for key in ("first", "later")}
        cells = [f"{found[key]:,.0f} | {found[key] / base[key]:.2f}" for key in ("first", "later")]
        wall = f"{found['first wall']:,.0f}, {found['later wall']:,.0f}"
        print(f"| {name} | {count:.1f} | {protocol} | {' | '.join(cells)} | {wall} |", flush=True)


def measure(model: InteractiveModel, image: np.ndarray, protocol: str, clicks: int, *, warm: bool) -> dict[str, float]:
    """Milliseconds of the first click and of the median later one: CPU time of the process, and wall time."""
    settings = load_protocol(protocol, ["flip=false"])
    height, width = image.shape[:2]
    for _ in range(1 + warm):
        session = Session(model, image, settings, undo=0)
        spent: list[tuple[float, float]] = []
        for number in range(1 + clicks):
            click = Click(height // 2 + 3 * number, width // 2 - 5 * number, True)
            before = time.process_time(), time.perf_counter()
            session.click(click)
            spent.append((1000 * (time.process_time() - before[0]), 1000 * (time.perf_counter() - before[1])))
    later = [median(column) for column in zip(*spent[1:], strict=True)]
    return {"first": spent[0][0], "later": later[0], "first wall": spent[0][1], "later wall": later[1]}


def drawn(height: int, width: int) -> np.ndarray:
    """uint8 (H, W, 3): an ellipse on a ground of soft spots."""
    spots: Any = np.random.default_rng(0).integers(0, 70, (30, 40, 3), np.uint8)
    image = cv2.resize(spots, (width, height))
    cv2.ellipse(image, (width // 2, height // 2), (width // 5, height // 5), 30, 0, 360, (220, 160, 60), -1)
    return image


if __name__ == "__main__":
    main()
