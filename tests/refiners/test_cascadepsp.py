"""CascadePSP against recorded answers of the public code: of its network, and of its steps with a toy network."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from reference import deterministic_weights
from torch import Tensor

from hrseg_cli.refiners.cascadepsp.network import Refined, RefinementModule
from hrseg_cli.refiners.cascadepsp.refiner import CascadePSP, as_input, crops, refined

GOLDEN = Path(__file__).parents[1] / "golden"
RECORDED = np.load(GOLDEN / "cascadepsp.npz")  # every third pixel


def picture(height: int, width: int) -> np.ndarray:
    rows, cols = np.mgrid[:height, :width]
    planes = [120 + 80 * np.sin(cols / 9 + c) + 40 * np.cos(rows / (5 + c)) for c in range(3)]
    return np.stack(planes, -1).clip(0, 255).astype(np.uint8)


def ellipse(height: int, width: int) -> np.ndarray:
    rows, cols = np.mgrid[:height, :width]
    inside = ((rows - height * 0.45) / (height * 0.33)) ** 2 + ((cols - width * 0.5) / (width * 0.3)) ** 2 < 1
    return np.asarray(inside)


def toy(image: Tensor, mask: Tensor, found: Tensor | None = None) -> list[Refined]:
    """The network of the recorded steps."""
    found = mask if found is None else found
    stride4 = 2 * mask + image[:, :1] + 0.5 * found
    return [Refined(stride4, stride4, 1.5 * mask + found + 1.5 * image[:, 1:2] * image[:, :1])]


def thinned(x: Tensor | np.ndarray) -> np.ndarray:
    return np.asarray(x)[..., ::3, ::3].squeeze()


def test_layout_is_the_public_one() -> None:
    with torch.device("meta"):
        state = RefinementModule().state_dict()
    keys = json.loads(gzip.decompress((GOLDEN / "cascadepsp_keys.json.gz").read_bytes()))
    assert {key: list(value.shape) for key, value in state.items()} == keys
    assert CascadePSP.public({f"module.{key}": value for key, value in state.items()}).keys() == state.keys()


@torch.inference_mode()
def test_the_network_of_the_public_code() -> None:
    network = RefinementModule(width=4, blocks=(1, 1, 1, 1)).eval()
    network.load_state_dict(deterministic_weights(network.state_dict()))
    image, mask = as_input(picture(64, 56), ellipse(64, 56))
    first, second, last = network(image, mask)
    answers = {
        "out_28": first.stride8,
        "out_28_2": second.stride8,
        "out_56": second.stride4,
        "out_28_3": last.stride8,
        "out_56_2": last.stride4,
        "out_224": last.fine,
        "found_out_224": network(image, mask, mask / 2)[-1].fine,
    }
    for name, answer in answers.items():
        np.testing.assert_allclose(thinned(answer), RECORDED[name], rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize(("name", "size", "side"), [("large", (150, 189), 101), ("small", (67, 91), 121)])
def test_global_and_local_steps_of_the_public_code(name: str, size: tuple[int, int], side: int) -> None:
    image, mask = picture(*size), ellipse(*size)
    for local, key in ((True, name), (False, f"{name}_global")):
        answer = refined(toy, image, mask, side, local)
        assert answer.shape == size
        np.testing.assert_allclose(thinned(answer), RECORDED[key], atol=1e-5, err_msg=key)


def test_local_crops_cover_the_image() -> None:
    for height, width, side in ((150, 189, 101), (64, 64, 64), (50, 300, 80), (1, 1, 64)):
        seen = np.zeros((height, width), int)
        for rows, cols in crops(height, width, side):
            assert rows.stop - rows.start == min(side, height)
            assert cols.stop - cols.start == min(side, width)
            seen[rows, cols] += 1
        assert seen.all()
