"""PointRend as an adapter: identity at the start, how many pixels it touches, what training may move."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference import FakeNetwork
from torch import Tensor, nn

from hrseg_cli.adapters import adapter_state
from hrseg_cli.adapters.pointrend import PointRendered
from hrseg_cli.engine.export import export
from hrseg_cli.engine.refining import open_refiner
from hrseg_cli.errors import HrsegError
from hrseg_cli.models.base import InteractiveModel
from hrseg_cli.models.hrnet.network import ClickHRNet
from hrseg_cli.recipe import Refine

NOWHERE = torch.full((1, 2, 3), -1.0)


class Blurred(InteractiveModel):
    """A base without layers to compute: its logits are the image's red channel at a quarter of the size, enlarged."""

    name = "blurred"

    def __init__(self) -> None:
        super().__init__()
        self.config, self.taps = {}, {"stem": 1, "fine": 1}
        self.unneeded = nn.Parameter(torch.zeros(1))

    def tapped(self, image: Tensor, points: Tensor, inject: Tensor | None = None) -> dict[str, Tensor]:
        size = image.shape[-2:]
        padded = F.pad(image[:, :1], (0, -size[1] % 4, 0, -size[0] % 4), mode="replicate")
        stem, fine = F.avg_pool2d(padded, 2), F.avg_pool2d(padded, 4)
        logits = F.interpolate(8 * fine - 4, scale_factor=4, mode="bilinear", align_corners=False)
        halves = [-(-side // 2) for side in size]
        return {
            "logits": logits[..., : size[0], : size[1]],
            "stem": stem[..., : halves[0], : halves[1]],
            "fine": fine,
        }

    def forward(self, image: Tensor, points: Tensor) -> dict[str, Tensor]:
        return {"logits": self.tapped(image, points)["logits"]}


def discs(*size: int) -> Tensor:
    """(2, 4, H, W): discs of radius 0.3 and 0.4 of the height; the red channel is their exact mask."""
    rows, cols = torch.meshgrid(*(torch.arange(side) + 0.5 for side in size), indexing="ij")
    distance = ((rows - size[0] / 2) ** 2 + (cols - size[1] / 2) ** 2).sqrt()
    return torch.stack([(distance < size[0] * radius).float().expand(4, -1, -1) for radius in (0.3, 0.4)])


def noisy(model: PointRendered) -> PointRendered:
    torch.manual_seed(0)
    nn.init.normal_(model.head.predictor.weight)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("size", [(46, 70), (33, 47), (1, 20)])
def test_before_training_it_answers_as_its_base(base: ClickHRNet, size: tuple[int, int]) -> None:
    """To the bit, so that a head that was never trained does no harm."""
    image = torch.rand(1, 4, *size)
    model = PointRendered(base).eval()
    found, wanted = model(image, NOWHERE), base(image, NOWHERE)
    assert found.keys() == wanted.keys()
    assert torch.equal(found["logits"], wanted["logits"])
    assert not torch.equal(noisy(model)(torch.rand(1, 4, 64, 64), NOWHERE)["logits"], base(image, NOWHERE)["logits"])


@torch.no_grad()
@pytest.mark.parametrize("steps", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_at_2048_by_3072_it_recomputes_at_most_2_percent_of_the_pixels(steps: int) -> None:
    """Counted at the head. With two steps, corrections at half the size are interpolated."""
    model = noisy(PointRendered(Blurred(), hidden=8, steps=steps))
    seen: list[int] = []
    model.head.register_forward_hook(lambda head, inputs, output: seen.append(inputs[0].shape[2]))
    image = discs(2048, 3072)[:1]
    logits, plain = (one(image, NOWHERE)["logits"] for one in (model, model.base))
    assert len(seen) == steps
    assert 0.019 * 2048 * 3072 < sum(seen) <= 0.02 * 2048 * 3072
    changed = logits != plain
    assert 0 < changed.float().mean() < (0.02 if steps == 1 else 0.1)
    assert changed[plain.abs() < 3.9].float().mean() > 0.99


@torch.no_grad()
def test_corrections_follow_each_image_of_a_batch() -> None:
    model, images = noisy(PointRendered(Blurred())), discs(64, 96)
    both = model(images, NOWHERE.repeat(2, 1, 1))["logits"]
    for number in range(2):
        alone = model(images[number : number + 1], NOWHERE)["logits"]
        torch.testing.assert_close(both[number : number + 1], alone, atol=1e-5, rtol=0)


def test_training_moves_the_head_and_nothing_else(base: ClickHRNet, two_steps: Any) -> None:
    model = PointRendered(base)
    before, after = two_steps(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.startswith("head.")} == set(adapter_state(model))


def test_training_corrects_few_pixels_most_of_them_uncertain() -> None:
    model = noisy(PointRendered(Blurred(), points=200)).train()
    assert not model.base.training
    image = discs(128, 192)
    correction = model(image, NOWHERE.repeat(2, 1, 1))["logits"] - model.base(image, NOWHERE)["logits"]
    changed = (correction != 0).sum((1, 2, 3))
    assert bool(((changed > 100) & (changed <= 200)).all())
    unsure = model.base(image, NOWHERE)["logits"].abs() < 3
    # Of three times as many random pixels the least certain ones are kept, so with few uncertain ones nearly all are.
    assert unsure[correction != 0].float().mean() > 2.5 * unsure.float().mean() > 0


def test_a_trained_head_sharpens_a_coarse_outline() -> None:
    torch.manual_seed(0)
    model, images = PointRendered(Blurred(), hidden=16, points=300), discs(64, 96)
    optimizer = torch.optim.Adam(model.head.parameters(), lr=0.005)
    points, truth = NOWHERE.repeat(2, 1, 1), images[:, :1]
    model.train()
    for _ in range(125):
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(model(images, points)["logits"], truth).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        wrong = [int(((one(images, points)["logits"] > 0) != (truth > 0)).sum()) for one in (model.base, model)]
    assert wrong[1] < 0.5 * wrong[0]


def test_options_and_bases_that_do_not_work(base: ClickHRNet, tmp_path: Path) -> None:
    for option, value in {"hidden": 0, "layers": 0, "points": 0, "share": 0.0, "steps": 3}.items():
        with pytest.raises(HrsegError, match=f"pointrend: {option} is {value}; it must be"):
            PointRendered(base, **{option: value})  # type: ignore[arg-type]
    with pytest.raises(HrsegError, match=r"needs inner features, which '.+' does not provide; use another model"):
        PointRendered(FakeNetwork())
    with pytest.raises(HrsegError, match=r"pointrend: cannot be exported, .*; use `runtime` torch"):
        export(PointRendered(base), tmp_path / "model.onnx", {})
    assert not list(tmp_path.iterdir())


def test_refiner_zoom_in_runs_the_head_on_existing_masks() -> None:
    base = Blurred()
    headed = noisy(PointRendered(base))
    image = (255 * discs(90, 120)[0, :3]).byte().permute(1, 2, 0).numpy()
    mask = np.roll(image[..., 0] > 0, 3, 1).astype(np.float32)
    refiner = open_refiner(Refine(name="zoom_in", options={"side": 96}))
    alone, corrected = (refiner(image, mask, (), model) for model in (base, headed))
    changed = alone != corrected
    assert 0 < changed.mean() < 0.1
    assert (np.abs(alone[changed] - 0.5) < 0.4).any(), "where the model was not certain"
