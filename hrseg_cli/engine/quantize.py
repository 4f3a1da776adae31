"""An exported click network in 8 bits: scales of activations from real clicks, one scale of weights per channel."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hrseg_cli.data.samples import Ref, load
from hrseg_cli.engine.export import clicks_of, export, need, write_graph
from hrseg_cli.engine.simulate import Plan, simulate
from hrseg_cli.errors import HrsegError
from hrseg_cli.models.base import InteractiveModel
from hrseg_cli.recipe import load_protocol

CLICKS = 4  # steps of each object: the first ones differ most from each other

Feed = dict[str, np.ndarray]


class Recorder(InteractiveModel):
    """The model, and what it was asked, as the inputs of its graph."""

    def __init__(self, model: InteractiveModel) -> None:
        super().__init__()
        self.model = model
        self.name, self.config = model.name, model.config
        self.with_prev_mask, self.mirror, self.enlarge = model.with_prev_mask, model.mirror, model.enlarge
        self.asked: list[Feed] = []

    def forward(self, image: Tensor, points: Tensor) -> dict[str, Tensor]:
        feed = {"image": image[:, :3].numpy(), "clicks": clicks_of(points).numpy()}
        if self.with_prev_mask:
            feed["previous"] = image[:, 3:].numpy()
        self.asked.append(feed)
        answer: dict[str, Tensor] = self.model(image, points)
        return answer


def click_steps(model: InteractiveModel, refs: Sequence[Ref]) -> list[Feed]:
    """What the network is asked while these objects are clicked on, :data:`CLICKS` times each, as ``photo`` looks."""
    recorder = Recorder(model)
    plan = Plan(model="", protocol=load_protocol("photo", ["flip=false"]), until={"iou": 2.0}, max_clicks=CLICKS)
    for ref in refs:
        simulate(load(ref), recorder, plan)
    return recorder.asked
