"""SegRefiner's network: the public layout, and recorded answers for weights that follow from the tensors' names."""

from __future__ import annotations

import gzip
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from reference import drawn_weights
from torch.utils.flop_counter import FlopCounterMode

from hrseg_cli.refiners.segrefiner.unet import Denoiser, full, small

GOLDEN = Path(__file__).parents[1] / "golden"
KEYS = json.loads(gzip.decompress((GOLDEN / "segrefiner_keys.json.gz").read_bytes()))


def recorded() -> Denoiser:
    """The small network whose answer is recorded: sine embedding, scale and shift."""
    return Denoiser(32, (1, 2, 2), blocks=1, attention_strides=(4,), heads=2, steps=None, scale_shift=True)


@pytest.mark.parametrize(("network", "keys"), [(full, KEYS["full"]), (recorded, KEYS["recorded"])])
def test_layout_is_the_public_one(network: type[Denoiser], keys: list[list[object]]) -> None:
    """Names, shapes and order: a public checkpoint loads strictly."""
    with torch.device("meta"):
        state = network().state_dict()
    assert [[key, list(value.shape)] for key, value in state.items()] == keys


def test_a_state_with_the_public_names_loads_strictly() -> None:
    with torch.device("meta"):
        network = full()
        public = {key: torch.empty(shape) for key, shape in KEYS["full"]}
    network.load_state_dict(public, assign=True)
    assert sum(value.numel() for value in network.parameters()) == 118_604_673
    public.pop("out.2.bias")
    with pytest.raises(RuntimeError, match=r"out\.2\.bias"):
        network.load_state_dict(public, assign=True)


@torch.no_grad()
def test_recorded_answer() -> None:
    network = recorded()
    network.load_state_dict(drawn_weights(network.state_dict()))
    with np.load(GOLDEN / "segrefiner_unet_small.npz") as file:
        answer = network(torch.from_numpy(file["x"]), torch.from_numpy(file["t"]))
        np.testing.assert_allclose(answer, file["y"], atol=2e-5)


@pytest.mark.slow
@torch.no_grad()
def test_recorded_answers_of_the_published_size() -> None:
    with torch.device("meta"):
        network = full()
    network.load_state_dict(drawn_weights(network.state_dict()), assign=True)
    with np.load(GOLDEN / "segrefiner_unet.npz") as file:
        answer = network(torch.from_numpy(file["x"]), torch.from_numpy(file["t"]))
        np.testing.assert_allclose(answer, file["y"], atol=2e-5)
        generator = np.random.default_rng(int(file["x256_seed"][0]))
        generator.standard_normal((2, 4, 64, 64))
        picture = generator.standard_normal((1, 4, 256, 256)).astype(np.float32)
        picture[:, 3] = picture[:, 3] > 0
        answer = network(torch.from_numpy(picture), torch.tensor([2]))
        np.testing.assert_allclose(answer[..., ::8, ::8], file["y256_sub"], atol=2e-5)
        assert float(answer.mean()) == pytest.approx(float(file["y256_mean"]), abs=1e-6)


def test_cost_of_both_sizes() -> None:
    """Multiply-adds for 256 x 256 pixels, as the docstrings say; the small one has to fit into 8 MB in fp16."""
    billions = []
    for network in (full, small):
        with torch.device("meta"):
            made, x, step = network(), torch.empty(1, 4, 256, 256), torch.zeros(1, dtype=torch.int64)
        with FlopCounterMode(display=False) as counter:
            made(x, step)
        billions.append(counter.get_total_flops() / 2e9)
    assert billions[0] == pytest.approx(248.8, abs=0.05)
    assert billions[1] < billions[0] / 38
    assert sum(value.numel() for value in made.parameters()) * 2 < 8e6


@torch.no_grad()
def test_the_step_is_heard() -> None:
    network = small().eval()
    x = torch.rand(1, 4, 32, 48, generator=torch.Generator().manual_seed(0))
    answers = [network(x, torch.tensor([step])) for step in range(6)]
    assert answers[0].shape == (1, 1, 32, 48)
    assert all((one - other).abs().max() > 1e-4 for one, other in pairwise(answers))


def test_a_size_that_does_not_divide_is_answered_with_one_that_does() -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=r"pad it to \(48, 64\)"):
        small()(torch.empty(1, 4, 40, 64), torch.zeros(1, dtype=torch.int64))
