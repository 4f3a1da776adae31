"""The network compared with outputs of RITM's own code, on deterministic weights and inputs."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
import torch
from reference import GOLDEN, deterministic_weights

from hrseg_cli import catalog
from hrseg_cli.models.hrnet.network import ClickHRNet

RECORDED = np.load(GOLDEN / "network.npz")
STATES = json.loads(gzip.decompress((GOLDEN / "state_dicts.json.gz").read_bytes()))
INPUTS = {"A": (0, 2, 96, 128), "B": (1, 1, 101, 75)}


def inputs(which: str, channels: int = 4) -> torch.Tensor:
    seed, batch, height, width = INPUTS[which]
    rng = np.random.default_rng(seed)
    parts = [rng.random((batch, 3, height, width)), rng.random((batch, 1, height, width))]
    return torch.from_numpy(np.concatenate(parts, 1)[:, :channels].astype(np.float32))


def build(model: ClickHRNet) -> ClickHRNet:
    model.load_state_dict(deterministic_weights(model.state_dict()))
    return model.eval()


def assert_recorded(output: dict[str, torch.Tensor], prefix: str, atol: float = 1e-4) -> None:
    assert set(output) == {name for name in ("logits", "aux") if f"{prefix}_{name}" in RECORDED}
    for name, values in output.items():
        recorded = RECORDED[f"{prefix}_{name}"]
        np.testing.assert_allclose(values.numpy()[..., 1::3, 1::3], recorded, atol=atol, rtol=0)


@pytest.mark.parametrize("size", ["h18s", "h18", "h32", "h18_baseline"])
def test_state_dict_is_the_public_one(size: str) -> None:
    """Keys, order, shapes and dtypes, so that the published checkpoints load."""
    model = catalog.resolve("model", size)()
    ours = [[key, list(value.shape), str(value.dtype)[6:]] for key, value in model.state_dict().items()]
    assert ours == STATES[size]["keys"]
    assert sum(p.numel() for p in model.parameters()) == STATES[size]["params"]


@torch.inference_mode()
@pytest.mark.parametrize("which", ["A", "B"])
@pytest.mark.parametrize("size", ["h18s", "h18"])
def test_outputs_are_the_recorded_ones(size: str, which: str) -> None:
    model = build(catalog.resolve("model", size)())
    output = model(inputs(which), torch.from_numpy(RECORDED[f"{size}_{which}_points"]))
    assert set(output) == {"logits", "aux"}
    assert_recorded(output, f"{size}_{which}")


@torch.inference_mode()
@pytest.mark.parametrize("variant", sorted(STATES["variants"]))
def test_every_variant_gives_the_recorded_outputs(variant: str) -> None:
    recorded = STATES["variants"][variant]
    model = build(ClickHRNet(**recorded["options"]))
    state = model.state_dict()
    assert len(state) == recorded["n_keys"]
    for key, shape in recorded["own_keys"]:
        assert list(state[key].shape) == shape
    x = inputs("B", 4 if recorded["options"]["with_prev_mask"] else 3)
    assert_recorded(model(x, torch.from_numpy(RECORDED["h18s_B_points"])), f"variant_{variant}")


@torch.inference_mode()
def test_dead_attention_weights_do_not_matter() -> None:
    """They exist for the checkpoints only; if they were used, noise in them would change the output."""
    model = build(catalog.resolve("model", "h18s")())
    x, points = inputs("B"), torch.from_numpy(RECORDED["h18s_B_points"])
    before = model(x, points)["logits"]
    block = model.feature_extractor.ocr_distri_head.object_context_block
    for name in ("f_pixel", "f_object"):
        for parameter in block[name].parameters():
            parameter.normal_()
    assert torch.equal(model(x, points)["logits"], before)


@torch.inference_mode()
@pytest.mark.parametrize(("height", "width"), [(33, 47), (1, 64), (200, 31)])
def test_any_size_works(height: int, width: int) -> None:
    model = build(catalog.resolve("model", "h18s")())
    points = torch.tensor([[[0.0, 5.0, 0.0], [-1.0, -1.0, -1.0]]])
    assert model(torch.rand(1, 4, height, width), points)["logits"].shape == (1, 1, height, width)


def test_aux_output_needs_the_ocr_head() -> None:
    with pytest.raises(ValueError, match="ocr_width"):
        ClickHRNet(width=18, ocr_width=0)
