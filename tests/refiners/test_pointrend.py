"""PointRend against recorded answers, and its claim: a fine mask for a thirtieth of the work."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hrseg_cli.refiners.draws import Draw, uniform
from hrseg_cli.refiners.pointrend import (
    PointHead,
    at_box_points,
    at_points,
    grid,
    in_image,
    most_uncertain,
    of_class,
    point_loss,
    points_within,
    render_mask,
    sample,
    subdivide,
    training_points,
    uncertainty,
)

GOLDEN = Path(__file__).parents[1] / "golden"
SIZE = (24, 32)  # of the image in the recorded answers


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(GOLDEN / "pointrend.npz") as file:
        return {key: torch.from_numpy(np.asarray(file[key])) for key in file.files}


def head(golden: dict[str, Tensor], prefix: str, *arguments: Any, **options: Any) -> PointHead:
    made = PointHead(*arguments, **options).requires_grad_(False)
    made.load_state_dict({key.removeprefix(prefix): value for key, value in golden.items() if key.startswith(prefix)})
    return made


@pytest.fixture(scope="module")
def mask_head(golden: dict[str, Tensor]) -> PointHead:
    return head(golden, "head_w/", 5, hidden=16)


@pytest.fixture(scope="module")
def class_head(golden: dict[str, Tensor]) -> PointHead:
    return head(golden, "sem_head_w/", 5, 3, hidden=16, coarse_each_layer=False)


def recorded(*draws: Tensor) -> Draw:
    remaining = iter(draws)

    def draw(shape: tuple[int, ...]) -> Tensor:
        numbers = next(remaining)
        assert tuple(numbers.shape) == shape
        return numbers

    return draw


def close(one: Tensor, other: Tensor, atol: float = 1e-6) -> None:
    torch.testing.assert_close(one, other, atol=atol, rtol=0)


# Recorded answers


def test_recorded_samples(golden: dict[str, Tensor]) -> None:
    close(sample(golden["ps_feat"], golden["ps_coords"]), golden["ps_out"])
    close(sample(golden["ps_feat"], golden["ps_coords"], "nearest"), golden["ps_out_nearest"])
    close(sample(golden["ps_feat"], golden["ps_coords_grid"]), golden["ps_out_grid"])
    close(grid(5, 5).expand(2, -1, -1), golden["regular_grid_R2_S5"])


def test_recorded_points_of_boxes(golden: dict[str, Tensor]) -> None:
    points = in_image(golden["fg_coords"], golden["fg_boxes"], SIZE)
    close(points * torch.tensor(SIZE[::-1]), golden["fg_coords_img"], atol=1e-5)
    fine = sample(golden["fg_feat"], points.flatten(0, 1)[None])[0].unflatten(1, points.shape[:2]).transpose(0, 1)
    close(fine, golden["fg_out"])
    labels = sample(golden["gt_masks"].float()[:, None], points)[:, 0]
    close(labels, golden["gt_labels"], atol=1e-5)


def test_recorded_uncertainty(golden: dict[str, Tensor]) -> None:
    logits = golden["unc_logits"]
    assert torch.equal(uncertainty(of_class(logits, golden["unc_classes"])), golden["unc_out"])
    assert torch.equal(uncertainty(logits), golden["unc_sem_out"])


@pytest.mark.parametrize(("count", "name"), [(10, ""), (48, "_all"), (100, "_all")])
def test_recorded_most_uncertain_pixels(golden: dict[str, Tensor], count: int, name: str) -> None:
    index, points = most_uncertain(golden["grid_unc"], count)
    assert torch.equal(index, golden[f"grid_idx{name}"])
    close(points, golden[f"grid_coords{name}"])


def test_recorded_training_points(golden: dict[str, Tensor]) -> None:
    for logits, name in (("tr_logits", "tr_coords"), ("unc_logits", "tr_coords_sem")):
        points = training_points(golden[logits], 20, recorded(golden["tr_u1"], golden["tr_u2"]))
        assert torch.equal(points, golden[name])


def test_recorded_heads(golden: dict[str, Tensor], mask_head: PointHead) -> None:
    close(mask_head(golden["head_fine"], golden["head_coarse"]), golden["head_out"])
    assert sum(value.numel() for value in PointHead(256, 80).parameters()) == 285_776  # the public mask head of COCO


def test_recorded_mask(golden: dict[str, Tensor], mask_head: PointHead) -> None:
    ask = at_box_points(mask_head, golden["fg_feat"], golden["fg_boxes"], SIZE, golden["sub_coarse"])
    rendered = render_mask(ask, 2, side=4, steps=3, count=30)
    close(rendered.logits, golden["sub_out"])
    assert rendered.points == 4 * 4 + 3 * 30


def test_recorded_classes(golden: dict[str, Tensor], class_head: PointHead) -> None:
    coarse = golden["sem_coarse"]
    rendered = subdivide(coarse, at_points(class_head, golden["fg_feat"], coarse), 2, 40)
    close(rendered.logits, golden["sem_out"])
    points = training_points(coarse, 20, recorded(golden["sem_u1"], golden["sem_u2"]))
    logits = at_points(class_head, golden["fg_feat"], coarse)(points)
    labels = sample(golden["sem_target"][:, None].float(), points, "nearest")[:, 0].long()
    close(F.cross_entropy(logits, labels, ignore_index=255).double(), golden["sem_point_loss"])


def test_recorded_binary_image(golden: dict[str, Tensor], mask_head: PointHead) -> None:
    coarse = golden["bin_coarse"]
    rendered = subdivide(coarse, at_points(mask_head, golden["bin_feat"], coarse), 2, 50)
    close(rendered.logits, golden["bin_out"])
    assert rendered.points == 2 * 50


def test_recorded_loss(golden: dict[str, Tensor]) -> None:
    logits, labels = golden["pl_logits"], golden["pl_labels"]
    close(point_loss(logits, labels, over="all").mean().double(), golden["pl_loss"])


# What must hold


def test_ignored_points_count_nowhere() -> None:
    logits = torch.tensor([[[2.0, -1.0, 5.0]]], requires_grad=True)
    labels = torch.tensor([[1.0, 0.25, -1.0]])
    loss = point_loss(logits, labels)
    close(loss, point_loss(logits[..., :2], labels[:, :2]))
    loss.sum().backward()
    assert logits.grad is not None
    assert logits.grad[0, 0].tolist()[2] == 0
    assert point_loss(logits, torch.full((1, 3), -1.0)).item() == 0


def test_training_points_lie_where_the_answer_changes() -> None:
    """Three quarters of them near the one column where the logit changes its sign; the rest anywhere."""
    logits = torch.linspace(-8, 8, 64).expand(2, 1, 32, 64)
    points = training_points(logits, 400, uniform(0))
    assert points.shape == (2, 400, 2)
    away = (points[..., 0] - 0.5).abs()
    assert away[:, :300].max() < 0.25
    assert away[:, 300:].max() > 0.45
    assert 0 <= points.min() <= points.max() < 1


def circle(points: Tensor) -> Tensor:
    """Logits (N, 1, P) of a disk with a ripple on its outline, finer than a coarse grid can show."""
    x, y = (points - 0.5).unbind(-1)
    outline = 0.3 + 0.02 * torch.sin(24 * torch.atan2(y, x))
    return (200 * (outline - torch.hypot(x, y)))[:, None]


def counted(ask: Callable[[Tensor], Tensor], counts: list[int]) -> Callable[[Tensor], Tensor]:
    def answer(points: Tensor) -> Tensor:
        counts.append(points.shape[1])
        return ask(points)

    return answer


def test_few_points_give_the_mask_that_all_would() -> None:
    """6 % of the pixels are asked for; interpolating the coarse mask misses many times more."""
    counts: list[int] = []
    rendered = render_mask(counted(circle, counts), 1)
    truth = circle(grid(224, 224)).view(1, 1, 224, 224) > 0
    coarse = circle(grid(28, 28)).view(1, 1, 28, 28)
    interpolated = F.interpolate(coarse, (224, 224), mode="bilinear") > 0
    assert rendered.logits.shape == truth.shape
    assert counts == [784] * 4  # 28 x 28 and three steps: what 7 x 7 and five come to
    assert rendered.points == sum(counts) < 0.065 * truth.numel()
    wrong, before = ((mask != truth).sum().item() for mask in (rendered.logits > 0, interpolated))
    assert wrong < 0.05 * before


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 7, 100_000])
def test_never_more_points_than_said(steps: int, count: int) -> None:
    counts: list[int] = []
    coarse = circle(grid(12, 20)).view(1, 1, 12, 20)
    rendered = subdivide(coarse, counted(circle, counts), steps, count)
    pixels = [12 * 20 * 4**step for step in range(1, steps + 1)]
    assert counts == [min(count, number) for number in pixels]
    assert rendered.points == sum(counts)
    assert rendered.logits.shape == (1, 1, 12 * 2**steps, 20 * 2**steps)


def test_share_of_a_large_image() -> None:
    """At 2048 x 3072, from logits at a quarter of that, at most 2 % of the pixels are asked for."""
    height, width = 2048, 3072
    coarse = circle(grid(height // 4, width // 4)).view(1, 1, height // 4, width // 4)
    rendered = subdivide(coarse, circle, 2, points_within(height, width, 2))
    assert 0.0199 * height * width < rendered.points <= 0.02 * height * width
    wrong = (rendered.logits > 0) != (circle(grid(height, width)).view(1, 1, height, width) > 0)
    assert wrong.sum() < 20


def test_pixels_that_were_not_asked_for_stay_interpolated() -> None:
    coarse = torch.randn(2, 1, 6, 8, generator=torch.Generator().manual_seed(0))
    rendered = subdivide(coarse, lambda points: torch.full((2, 1, points.shape[1]), 99.0), 1, 10)
    plain = F.interpolate(coarse, scale_factor=2, mode="bilinear")
    asked = rendered.logits == 99
    assert asked.flatten(1).sum(1).tolist() == [10, 10]
    assert torch.equal(rendered.logits[~asked], plain[~asked])
    for mask, chosen in zip(plain.abs(), asked, strict=True):  # each mask its own most uncertain ones
        assert mask[chosen].max() <= mask[~chosen].min()


# The claim


class Counter:
    """Multiply-adds, and the most numbers that layers held at a time (their outputs, until :meth:`forget`)."""

    def __init__(self) -> None:
        self.multiply_adds, self.held, self.most = 0, 0, 0

    @contextmanager
    def watching(self, module: nn.Module) -> Iterator[None]:
        def note(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            self.held += output.numel()
            self.most = max(self.most, self.held)

        layers = [layer for layer in module.modules() if not list(layer.children())]
        hooks = [layer.register_forward_hook(note) for layer in layers]
        with FlopCounterMode(display=False) as flops, torch.no_grad():
            yield
        self.multiply_adds = flops.get_total_flops() // 2
        for hook in hooks:
            hook.remove()

    def forget(self) -> None:
        self.held = 0


def test_a_fine_mask_costs_a_thirtieth_of_a_dense_head() -> None:
    """224 x 224 for one object of COCO's 80 classes, by the head of Mask R-CNN and by points (paper: table 2).

    The dense head has four convolutions at half the resolution and a transposed one to all of it. Points are asked for
    in four steps; what one step held is free for the next.
    """
    dense = nn.Sequential(
        *(nn.Conv2d(256, 256, 3, padding=1) for _ in range(4)),
        nn.ConvTranspose2d(256, 256, 2, 2),
        nn.Conv2d(256, 80, 1),
    ).to("meta")
    one = Counter()
    with one.watching(dense):
        assert dense(torch.empty(1, 256, 112, 112, device="meta")).shape[-2:] == (224, 224)
    points, other = PointHead(256, 80), Counter()
    features, coarse = torch.randn(1, 256, 56, 56), torch.randn(1, 80, 28, 28)
    ask = at_points(points, features, coarse)

    def of_one_class(where: Tensor) -> Tensor:
        other.forget()
        return ask(where)[:, :1]

    with other.watching(points):
        rendered = render_mask(of_one_class, 1)
    assert rendered.logits.shape[-2:] == (224, 224)
    assert one.multiply_adds == pytest.approx(33.9e9, rel=0.01)
    assert other.multiply_adds == rendered.points * (3 * 336 * 256 + 336 * 80)
    assert one.multiply_adds / other.multiply_adds > 30
    assert one.most / other.most > 30


def test_a_new_head_starts_near_zero() -> None:
    """Public initialisation: variance 2 / outputs in the layers, a predictor so small that the coarse answer leads."""
    made = PointHead(64, 1, hidden=512)
    assert made.get_submodule("fc2").weight.std().item() == pytest.approx(math.sqrt(2 / 512), rel=0.02)
    assert made.predictor.weight.std().item() == pytest.approx(0.001, rel=0.2)
    biases: Iterable[Tensor] = (value for name, value in made.named_parameters() if name.endswith("bias"))
    assert not any(bias.any() for bias in biases)
