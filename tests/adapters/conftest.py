from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from reference import deterministic_weights
from torch import Tensor, nn

from hrseg_cli.models.hrnet import h18s
from hrseg_cli.models.hrnet.network import ClickHRNet

State = dict[str, Tensor]


@pytest.fixture(scope="session")
def trained() -> ClickHRNet:
    """A click network that answers something; not to be changed."""
    model = h18s()
    model.load_state_dict(deterministic_weights(model.state_dict()))
    return model.eval()


@pytest.fixture
def base(trained: ClickHRNet) -> ClickHRNet:
    return copy.deepcopy(trained)


@pytest.fixture
def two_steps() -> Callable[[nn.Module], tuple[State, State]]:
    """Two steps of training on noise; the state before and after. Adam moves every tensor that a gradient reaches."""

    def train(model: nn.Module) -> tuple[State, State]:
        torch.manual_seed(0)
        before = copy.deepcopy(model.state_dict())
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        image, truth = torch.rand(2, 4, 32, 48), torch.rand(2, 1, 32, 48).round()
        points = torch.tensor([[[10.0, 30, 0], [-1, -1, -1], [25, 12, 1], [-1, -1, -1]]]).repeat(2, 1, 1)
        model.train()
        for _ in range(2):
            optimizer.zero_grad()
            nn.functional.binary_cross_entropy_with_logits(model(image, points)["logits"], truth).backward()
            optimizer.step()
        model.eval()
        return before, copy.deepcopy(model.state_dict())

    return train
