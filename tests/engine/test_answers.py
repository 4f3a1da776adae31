"""Answers resized in parts compared with PyTorch's interpolation of the whole, bit by bit."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from hrseg_cli.engine import answers, views
from hrseg_cli.engine.answers import Answer, blank
from hrseg_cli.engine.views import Box

SIZE = (210, 190)


@pytest.fixture(autouse=True, scope="module")
def large() -> Iterator[None]:
    """Treat the small images of these tests as large ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers, "PASTED", 0)
        yield


sides = st.tuples(st.floats(0, 1), st.floats(0, 1))


def pasted(patch: Tensor, box: Box) -> Tensor:
    whole = torch.zeros(1, 1, *SIZE)
    inside = nn.functional.interpolate(patch, size=box.size, mode="bilinear", align_corners=True)
    whole[:, :, box.top : box.bottom + 1, box.left : box.right + 1] = inside
    return whole


def box_of(down: tuple[float, float], across: tuple[float, float]) -> Box:
    (top, bottom), (left, right) = (
        sorted(int(end * (side - 1)) for end in ends) for ends, side in zip((down, across), SIZE, strict=True)
    )
    return Box(top, bottom, left, right)


@given(
    st.tuples(*[st.integers(1, 60)] * 2), sides, sides, sides, sides, st.integers(0, 99), st.sampled_from((1, 2**15))
)
def test_an_answer_is_its_patch_enlarged_into_zeros(
    shape: tuple[int, int],
    down: tuple[float, float],
    across: tuple[float, float],
    rows: tuple[float, float],
    cols: tuple[float, float],
    seed: int,
    band: int,
) -> None:
    """Map, mask, bounding box and crop, for boxes of any size, sharp and flat maps, and crops that leave the box. band:
    in a large image every two rows of the map make a band of their own."""
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(answers, "BAND", band)
        torch.manual_seed(seed)
        patch = torch.rand(1, 1, *shape) ** (1 + 8 * (seed % 3))
        box = box_of(down, across)
        answer, whole = Answer(patch, box, SIZE), pasted(patch, box)
        assert torch.equal(answer.whole, whole)
        for threshold in (0.0, 0.49, 0.9, float(patch.max()), float(patch[0, 0, 0, 0])):
            mask = whole[0, 0].numpy() > np.float32(threshold)
            assert np.array_equal(answer.above(threshold), mask)
            assert answer.extent(threshold) == views.mask_box(torch.from_numpy(mask))
        other, size = box_of(rows, cols), (37, 53)
        assert torch.equal(answer.crop(other, size), views.crop(whole, other, size))


def test_an_answer_for_the_whole_image_is_its_patch() -> None:
    patch = torch.rand(1, 1, *SIZE)
    answer = Answer(patch, None, SIZE)
    assert answer.whole is patch
    assert np.array_equal(answer.above(0.3), patch[0, 0].numpy() > np.float32(0.3))
    assert answer.extent(0.999999) == views.mask_box(patch[0, 0] > 0.999999)
    assert torch.equal(answer.crop(Box(3, 90, 5, 70), (20, 30)), views.crop(patch, Box(3, 90, 5, 70), (20, 30)))


def test_a_blank_answer_is_empty() -> None:
    answer = blank(SIZE, torch.device("cpu"))
    assert not answer.whole.any()
    assert not answer.above(0.0).any()
    assert answer.extent(0.0) is None
    assert not answer.crop(Box(0, 99, 0, 99), (30, 20)).any()


def test_an_answer_for_a_small_image_is_resized_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "PASTED", SIZE[0] * SIZE[1])
    patch, box = torch.rand(1, 1, 13, 29), Box(3, 140, 10, 99)
    answer = Answer(patch, box, SIZE)
    assert answer.box is None
    assert torch.equal(answer.whole, pasted(patch, box))


@pytest.mark.slow
def test_a_large_answer_is_exact() -> None:
    """At 24 megapixels, as a photograph's."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 277), torch.linspace(-1, 1, 416), indexing="ij")
    patch = torch.sigmoid(9 * (0.4 - torch.hypot(x - 0.1, y)))[None, None] + 0.01 * torch.rand(1, 1, 277, 416)
    for box in (Box(0, 3999, 0, 5999), Box(500, 3100, 700, 5000)):
        whole = torch.zeros(1, 1, 4000, 6000)
        inside = nn.functional.interpolate(patch, size=box.size, mode="bilinear", align_corners=True)
        whole[:, :, box.top : box.bottom + 1, box.left : box.right + 1] = inside
        answer = Answer(patch, box, (4000, 6000))
        mask = whole[0, 0].numpy() > np.float32(0.49)
        assert torch.equal(answer.whole, whole)
        assert np.array_equal(answer.above(0.49), mask)
        assert answer.extent(0.49) == views.mask_box(torch.from_numpy(mask))
