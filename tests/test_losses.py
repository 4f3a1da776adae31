"""Losses against recorded reference answers, against their definitions in double precision, and at their edges."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hrseg_cli.losses import (
    bce,
    boundary,
    boundary_bce,
    dice,
    focal,
    l1_l2,
    lovasz_hinge,
    lovasz_softmax,
    normalized_focal,
    scheduled,
    signed_distance,
    soft_iou,
    weighted_bce,
)

GOLDEN = Path(__file__).parent / "golden"
RECORDED = np.load(GOLDEN / "losses.npz")
EDGE = np.load(GOLDEN / "boundary_loss.npz")

Loss = Callable[[Tensor, Tensor], Tensor]
ALL: dict[str, Loss] = {
    "nfl": normalized_focal,
    "nfl_scale_trained": partial(normalized_focal, detach=False),
    "nfl_limited": partial(normalized_focal, max_mult=0.5),
    "focal": focal,
    "bce": bce,
    "bce_valid": partial(bce, over="valid"),
    "weighted_bce": weighted_bce,
    "dice": dice,
    "dice_squared": partial(dice, squared=True),
    "soft_iou": soft_iou,
    "l1_l2": l1_l2,
    "lovasz_hinge": lovasz_hinge,
    "lovasz_softmax": lovasz_softmax,
}
every_loss = pytest.mark.parametrize("loss", ALL.values(), ids=ALL.keys())


def answer(loss: Loss, logits: Tensor | np.ndarray, target: Tensor | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values and the gradient of their mean."""
    z = torch.as_tensor(logits).clone().requires_grad_()
    values = loss(z, torch.as_tensor(target))
    (gradient,) = torch.autograd.grad(values.mean(), z)
    return values.detach().numpy(), gradient.numpy()


def row(*values: float) -> Tensor:
    """One sample of one row of pixels."""
    return torch.tensor(values, dtype=torch.float32).reshape(1, 1, 1, -1)


def summed(logits: Tensor, target: Tensor) -> Tensor:
    """The recorded sum form; the sample without a valid pixel stays 0."""
    return normalized_focal(logits, target) * (target != -1).sum((1, 2, 3))


@pytest.mark.parametrize(
    ("name", "labels", "loss"),
    [
        ("ritm_nfl_a05_g2", "ritm_label", normalized_focal),
        ("ritm_nfl_default", "ritm_label", partial(normalized_focal, alpha=0.25)),
        ("ritm_nfl_a05_g2_nodetach", "ritm_label", partial(normalized_focal, detach=False)),
        ("ritm_nfl_a05_g2_maxmult05", "ritm_label", partial(normalized_focal, max_mult=0.5)),
        ("ritm_nfl_a05_g2_sum", "ritm_label", summed),
        ("ritm_nfl_soft", "ritm_soft", normalized_focal),
        ("ritm_bce", "ritm_label", bce),
        ("ritm_focal_a05_g2", "ritm_label", focal),
        ("ritm_softiou", "ritm_label", soft_iou),
        ("algo_ritm_a05_g2", "algo_labels", normalized_focal),
        ("algo_default", "algo_labels", partial(normalized_focal, alpha=0.25)),
        ("algo_a05_g2_nodetach", "algo_labels", partial(normalized_focal, detach=False)),
        ("algo_a05_g2_sum", "algo_labels", summed),
        ("algo_bce", "algo_labels", bce),
        ("algo_focal", "algo_labels", focal),
        ("algo_softiou", "algo_labels", soft_iou),
    ],
)
def test_values_and_gradients_are_the_recorded_ones(name: str, labels: str, loss: Loss) -> None:
    """Three samples: all valid, some ignored, all ignored. The reference itself is only good to 1e-5."""
    values, gradient = answer(loss, RECORDED[f"{name[:5]}logits"], RECORDED[labels])
    np.testing.assert_allclose(values, RECORDED[f"{name}__loss"], rtol=1e-5, atol=1e-6)
    expected = RECORDED[f"{name}__grad"]
    np.testing.assert_allclose(gradient, expected, atol=3e-4 * np.abs(expected).max())


def test_without_focus_ignored_pixels_do_not_count_in_the_scale() -> None:
    """With gamma 0 the reference counts them (0 ** 0 is 1): its value is ours times the share of valid pixels."""
    values, gradient = answer(partial(normalized_focal, gamma=0), RECORDED["algo_logits"], RECORDED["algo_labels"])
    share = (RECORDED["algo_labels"] != -1).mean((1, 2, 3))
    assert share[1] < 1
    np.testing.assert_allclose(values * share, RECORDED["algo_g0__loss"], rtol=1e-5)
    np.testing.assert_allclose(gradient * share[:, None, None, None], RECORDED["algo_g0__grad"], atol=1e-7)


def test_an_almost_perfect_answer_is_scaled_up_by_a_limited_factor() -> None:
    """An error of 1e-6 weighs its square, as much as the limit 1e-12: half of what the scale would make of it, 1."""
    values, _ = answer(normalized_focal, row(np.log(1e6)), row(1))
    np.testing.assert_allclose(values, 0.5 * 0.5 * 1e-6, rtol=1e-3)


def test_half_is_background_for_the_class_weight() -> None:
    """A target above 0.5 is object: alpha 0.25 halves its loss, and multiplies that of others by 1.5."""
    for target, factor in ((0.5, 1.5), (0.45, 1.5), (0.51, 0.5)):
        weighted, equal = (answer(partial(focal, alpha=alpha), row(2), row(target))[0] for alpha in (0.25, 0.5))
        np.testing.assert_allclose(weighted, factor * equal, rtol=1e-6)


def test_absolute_and_squared_error_add_up() -> None:
    """Probabilities 0.5 of an object pixel and 0.75 of a background pixel, by hand."""
    values, _ = answer(l1_l2, row(0, np.log(3)), row(1, 0))
    np.testing.assert_allclose(values, (0.5 + 0.5**2 + 0.75 + 0.75**2) / 2, rtol=1e-6)


@pytest.mark.parametrize("label", [0, 1])
def test_recorded_gradients_of_large_logits(label: int) -> None:
    """Equal to the reference up to |logit| 10; beyond it the reference jumps (-212 at -20) or falls to 0."""
    logits = RECORDED["algo_ext_logits"]
    _, gradient = answer(normalized_focal, logits, np.full_like(logits, label))
    expected = RECORDED[f"algo_ext{label}__grad"]
    sound = np.abs(logits) <= 10
    np.testing.assert_allclose(gradient[sound], expected[sound], rtol=2e-3)
    wrong_way = (logits > 10) if label == 0 else (logits < -10)
    np.testing.assert_allclose(np.abs(gradient[wrong_way]), np.abs(gradient[sound]).max(), rtol=2e-3)


def focal_in_double(logits: Tensor, target: Tensor, normalized: bool) -> Tensor:
    """The definition, in float64 and with both sigmoids, so that nothing rounds to 0 or 1."""
    z, y = logits.double(), target.double()
    pt = torch.minimum(z.sigmoid() + (1 - y), (-z).sigmoid() + y)
    miss = torch.maximum(1 - pt, torch.where(y > 0.5, (-z).sigmoid() - (1 - y), z.sigmoid() - y))
    weight = miss**2
    if normalized:
        weight = weight * (weight.numel() / weight.sum()).detach()
    return (-0.5 * weight * pt.log()).mean((1, 2, 3))


@pytest.mark.parametrize("size", [17.0, 18.0, 20.0, 24.0, 30.0])
@pytest.mark.parametrize("label", [0.0, 0.02, 0.4, 0.97, 1.0])
@pytest.mark.parametrize("loss", [normalized_focal, focal])
def test_gradients_of_confident_answers_are_right(loss: Loss, label: float, size: float) -> None:
    """Confidently wrong pixels beside ordinary ones, where a rounded probability has no logarithm."""
    logits, target = row(-size, size, -1, 0.5, 2), row(label, label, 0, 1, 1)
    values, gradient = answer(loss, logits, target)
    expected, slope = answer(partial(focal_in_double, normalized=loss is normalized_focal), logits, target)
    np.testing.assert_allclose(values, expected, rtol=2e-5)
    np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [8.0, 12.0, 16.0, 20.0])
def test_small_errors_keep_their_digits(size: float) -> None:
    """The distance of a confident right answer from its label is smaller than float32's step at 1."""
    logits, target = row(-size, size), row(0, 1)
    values, gradient = answer(focal, logits, target)
    expected, slope = answer(partial(focal_in_double, normalized=False), logits, target)
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, slope, rtol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_perfect_answers_cost_nothing_and_push_nowhere(gamma: float) -> None:
    """A power below 1 has no slope at 0, and the scale divides by almost 0."""
    for loss in (normalized_focal, focal):
        values, gradient = answer(partial(loss, gamma=gamma), row(-200, 200, -40, 40), row(0, 1, 0, 1))
        np.testing.assert_allclose(values, 0, atol=1e-6)
        np.testing.assert_allclose(gradient, 0, atol=1e-6)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_finite_numbers(loss: Loss, dtype: torch.dtype) -> None:
    """The reference's epsilon is 0 in float16. Values are those of the same logits in float32."""
    logits = row(-60000, -200, -18, 0, 18, 200, 60000).to(dtype)
    for target in (row(1, 1, 1, 1, 1, 1, 1), row(0, 0, 0, 0, 0, 0, 0), row(0, 1, 0, -1, 1, 0, 1)):
        z = logits.clone().requires_grad_()
        values = loss(z, target.to(dtype))
        (gradient,) = torch.autograd.grad(values.sum(), z)
        assert values.dtype == torch.float32
        assert gradient.dtype == dtype
        assert torch.isfinite(values).all()
        assert torch.isfinite(gradient).all()
        assert torch.equal(values, loss(logits.float(), target))


@every_loss
def test_a_sample_without_valid_pixels_says_nothing(loss: Loss) -> None:
    """It has no gradient and leaves its neighbour alone; soft IoU counts it as 1, as recorded, all others as 0."""
    logits = torch.stack([row(-3, 2, 5)[0], row(1, -2, 30)[0]])
    target = torch.stack([row(-1, -1, -1)[0], row(1, 1, 0)[0]])
    values, gradient = answer(loss, logits, target)
    alone, slope = answer(loss, logits[1:], target[1:])
    assert values[0] == (1 if loss is soft_iou else 0)
    assert not gradient[0].any()
    np.testing.assert_allclose(values[1], alone[0], rtol=1e-6)
    np.testing.assert_allclose(gradient[1] * 2, slope[0], rtol=1e-5)


PICTURES = st.integers(1, 12).flatmap(
    lambda n: st.tuples(
        arrays.arrays(np.float32, n, elements=st.floats(-30, 30, width=32)),
        arrays.arrays(np.float32, n, elements=st.floats(width=32)),  # infinite and not a number as well
        arrays.arrays(np.float32, n, elements=st.sampled_from([-1, 0, 1])),
    )
)


@every_loss
@settings(max_examples=25)
@given(PICTURES)
def test_ignored_pixels_never_count(loss: Loss, picture: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    """Other logits there change nothing; leaving the pixels out neither, but for the mean over all pixels."""
    logits, other, labels = picture
    valid = labels != -1
    values, gradient = answer(loss, row(*logits), row(*labels))
    changed, slope = answer(loss, row(*np.where(valid, logits, other)), row(*labels))
    np.testing.assert_array_equal(values, changed)
    np.testing.assert_array_equal(gradient, slope)
    assert not gradient[..., ~valid].any()
    if valid.any():
        share = valid.mean() if loss is bce else 1
        without, slope = answer(loss, row(*logits[valid]), row(*labels[valid]))
        np.testing.assert_allclose(values, without * share, rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(gradient[..., valid], slope * share, rtol=2e-4, atol=1e-6)


@every_loss
def test_shapes_that_would_broadcast_are_refused(loss: Loss) -> None:
    """(B, 1, H, W) against (B, H, W) makes B * B samples of nonsense."""
    with pytest.raises(ValueError, match=r"both must be \(B, 1, H, W\)"):
        loss(torch.zeros(2, 1, 3, 3), torch.zeros(2, 3, 3))


def test_boundary_bce_counts_pixels_near_both_classes() -> None:
    """Distances are chessboard distances to a pixel of the other class; ignored pixels are no class."""
    logits, target = row(*[0.5] * 9), row(0, 0, 0, 0, 1, 1, 1, 1, 1)
    for soft in (target, row(0, 0, 0, 0.5, 0.55, 1, 1, 1, 1)):  # as edges of resized masks are
        _, gradient = answer(boundary_bce, logits, soft)
        assert (gradient.ravel() != 0).tolist() == [False, False, True, True, True, True, False, False, False]
    _, gradient = answer(partial(boundary_bce, radius=1), logits, row(0, 0, 0, -1, 1, 1, 1, 1, 1))
    assert not gradient.any()
    values, _ = answer(boundary_bce, logits, target)
    assert values == pytest.approx(answer(bce, row(*[0.5] * 4), row(0, 0, 1, 1))[0])


def test_weighted_bce_halves_its_weight_between_the_classes() -> None:
    """By hand; a hundred times the background does not drown one object pixel; a lone class is half of the mean."""
    few, _ = answer(weighted_bce, row(-2, 1), row(1, 0))
    many, _ = answer(weighted_bce, row(-2, *[1] * 100), row(1, *[0] * 100))
    np.testing.assert_allclose(few, (np.log1p(np.exp(2)) + np.log1p(np.exp(1))) / 2, rtol=1e-6)
    np.testing.assert_allclose(many, few, rtol=1e-6)
    lone, _ = answer(weighted_bce, row(1, 1), row(0, 0))
    np.testing.assert_allclose(lone, np.log1p(np.exp(1)) / 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("logits", "target", "smooth", "expected"),
    [
        ((0, 0, 0, 0), (1, 1, 0, 0), 0, 1 - 2 / 4),
        ((0, 0, 0, 0), (1, 1, 0, 0), 1, 1 - 3 / 5),
        ((0, 0, 0, 0), (1, 1, 0, -1), 1, 1 - 3 / 4.5),
        ((99, 99, -99, -99), (1, 1, 0, 0), 1, 0),
        ((-99, -99), (0, 0), 1, 0),
        ((99, 99), (0, 0), 1, 1 - 1 / 3),
    ],
)
def test_dice_by_hand(logits: tuple[float, ...], target: tuple[float, ...], smooth: float, expected: float) -> None:
    """Half-sure pixels, an ignored one, and an empty truth, for which an empty mask is perfect. 1 is the default."""
    values, _ = answer(dice if smooth == 1 else partial(dice, smooth=smooth), row(*logits), row(*target))
    np.testing.assert_allclose(values, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("logits", "target", "smooth", "expected"),
    [
        ((0, 0, 0, 0), (1, 1, 0, 0), 0, 1 - 2 / 3),
        ((0, 0, 0, -1), (1, 1, 0, -1), 1, 1 - 3 / (0.75 + 2 + 1)),
        ((-99, -99), (0, 0), 1, 0),
    ],
)
def test_squared_dice_by_hand(
    logits: tuple[float, ...], target: tuple[float, ...], smooth: float, expected: float
) -> None:
    values, _ = answer(partial(dice, smooth=smooth, squared=True), row(*logits), row(*target))
    np.testing.assert_allclose(values, expected, atol=1e-6)


def lovasz_by_sets(logits: np.ndarray, labels: np.ndarray) -> float:
    """The paper's definition: hinge errors, largest first, each times the growth of the Jaccard loss of the set."""
    pixels = [i for i in range(len(labels)) if labels[i] != -1]
    errors = {i: max(0.0, 1 - float(logits[i]) * (1 if labels[i] == 1 else -1)) for i in pixels}
    return lovasz_extension(errors, {i for i in pixels if labels[i] == 1})


def lovasz_extension(errors: dict[int, float], truth: set[int]) -> float:

    def jaccard_loss(wrong: set[int]) -> float:
        mask = truth ^ wrong
        return 1 - len(mask & truth) / len(mask | truth) if mask | truth else 0.0

    order = sorted(errors, key=lambda i: -errors[i])
    sets = [set(order[:n]) for n in range(len(order) + 1)]
    return sum(errors[i] * (jaccard_loss(b) - jaccard_loss(a)) for i, (a, b) in zip(order, pairwise(sets), strict=True))


@given(PICTURES)
def test_lovasz_is_its_definition_over_sets(picture: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    """Empty and full truths and ties come up among the examples."""
    logits, _, labels = picture
    values, _ = answer(lovasz_hinge, row(*logits), row(*labels))
    np.testing.assert_allclose(values, lovasz_by_sets(logits, labels), rtol=1e-5, atol=1e-6)


@given(PICTURES)
def test_lovasz_softmax_is_its_definition_over_sets(picture: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    """The mean over those of object and background that are there."""
    logits, _, labels = picture
    pixels = [i for i in range(len(labels)) if labels[i] != -1]
    errors = {i: 1 / (1 + np.exp(float(logits[i]) * (1 if labels[i] == 1 else -1))) for i in pixels}
    classes = [members for value in (1, 0) if (members := {i for i in pixels if labels[i] == value})]
    wanted = sum(lovasz_extension(errors, members) for members in classes) / max(1, len(classes))
    values, _ = answer(lovasz_softmax, row(*logits), row(*labels))
    np.testing.assert_allclose(values, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", [lovasz_hinge, lovasz_softmax])
def test_half_is_background_for_lovasz(loss: Loss) -> None:
    """A set has no soft members; as for the boundary, a pixel is in it above one half."""
    logits = row(0.3, -0.2, 0.1, 0.4)
    np.testing.assert_array_equal(
        answer(loss, logits, row(1, 0.5, 0.51, 0))[0], answer(loss, logits, row(1, 0, 1, 0))[0]
    )


def test_lovasz_weights_are_exact_in_a_large_image() -> None:
    """With every pixel wrong, the last of a million weighs 1 / 2**20; differences of rounded IoUs miss it by 6 %."""
    size = 1 << 20
    target = torch.zeros(1, 1, 1024, 1024)
    target.view(-1)[::2] = 1
    errors = torch.linspace(3, 2, size).view_as(target)  # in raster order, largest first
    _, gradient = answer(lovasz_hinge, torch.where(target == 1, 1 - errors, errors - 1), target)
    rank = np.arange(size)
    false = (rank + 1) // 2  # background pixels among those so far, the pixel itself included
    union, left = size // 2 + false, size // 2 - (rank // 2 + 1)
    expected = np.where(rank % 2 == 0, -1 / union, left / (union * np.maximum(union - 1, 1)))
    np.testing.assert_allclose(gradient.ravel(), expected, rtol=1e-6)


def test_lovasz_rests_once_the_margin_is_kept() -> None:
    values, gradient = answer(lovasz_hinge, row(1.5, -1.5, 9, 0.2), row(1, 0, 1, -1))
    assert values == 0
    assert not gradient.any()


REGULAR = ["ellipse", "square", "border", "single", "hole", "noise", "thin"]  # with an outline
SHAPES = [*REGULAR, "empty", "full"]


def reference_distance(mask: np.ndarray, truncate: bool = False) -> np.ndarray:
    return signed_distance(mask.astype(np.int8), inner="reference", truncate=truncate)


@pytest.mark.parametrize("name", REGULAR)
def test_distances_are_the_recorded_ones(name: str) -> None:
    """Of the object and of its complement; floats, and whole pixels as the reference's loader made them."""
    mask = EDGE[f"{name}__mask"]
    for side, truth in (("fg", mask), ("bg", ~mask)):
        np.testing.assert_allclose(reference_distance(truth), EDGE[f"{name}__dist_float_{side}"], atol=1e-5)
        np.testing.assert_array_equal(reference_distance(truth, truncate=True), EDGE[f"{name}__dist_int_{side}"])


@pytest.mark.parametrize("name", SHAPES)
def test_boundary_loss_is_the_recorded_one(name: str) -> None:
    """Of given distances: value, gradient, the truncated form, both channels, and a perfect mask."""
    logits = EDGE["logits"]

    def fed(distances: str, z: np.ndarray = logits) -> tuple[np.ndarray, np.ndarray]:
        return answer(boundary, z, EDGE[f"{name}__{distances}"].astype(np.float32)[None, None])

    value, gradient = fed("dist_float_fg")
    np.testing.assert_allclose(value, EDGE[f"{name}__loss_float"], rtol=1e-6)
    np.testing.assert_allclose(gradient[0, 0], EDGE[f"{name}__grad_float"], atol=1e-8)
    np.testing.assert_allclose(fed("dist_int_fg")[0], EDGE[f"{name}__loss_int"], rtol=1e-6)
    background, _ = fed("dist_float_bg", -logits)
    np.testing.assert_allclose((value + background) / 2, EDGE[f"{name}__loss_2ch"], rtol=1e-5)
    perfect = np.where(EDGE[f"{name}__mask"], 200, -200).astype(np.float32)[None, None]
    np.testing.assert_allclose(fed("dist_float_fg", perfect)[0], EDGE[f"{name}__loss_perfect"], rtol=1e-5)


def distance_by_pairs(truth: np.ndarray, outside: float, inside: float) -> np.ndarray:
    """Every pixel of one kind against every pixel of the other."""
    places = np.argwhere(np.ones(truth.shape, bool)).reshape(*truth.shape, 2)
    result = np.zeros(truth.shape)
    if (truth == 1).any() and (truth == 0).any():
        for kind, other, sign, shift in ((0, 1, 1, outside), (1, 0, -1, inside)):
            here, there = places[truth == kind], places[truth == other]
            apart = np.sqrt(((here[:, None] - there[None]) ** 2).sum(-1)).min(1)
            result[truth == kind] = sign * (apart - shift)
    return result


TRUTHS = arrays.arrays(
    np.int8, arrays.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.sampled_from([-1, 0, 0, 1])
)


@given(TRUTHS)
def test_distances_are_those_between_pairs_of_pixels(truth: np.ndarray) -> None:
    """In both forms; ignored pixels are 0 and of neither kind; a truth of one kind only is 0 throughout."""
    for inner, outside, inside in (("half", 0.5, 0.5), ("reference", 0, 1)):
        distance = signed_distance(truth, inner=inner)  # type: ignore[arg-type]
        assert distance.dtype == np.float32
        np.testing.assert_allclose(distance, distance_by_pairs(truth, outside, inside), atol=1e-5)


@given(TRUTHS)
def test_half_distances_change_sign_with_the_sides(truth: np.ndarray) -> None:
    """The outline lies halfway: object and background swapped give the negative."""
    swapped = np.where(truth == -1, -1, 1 - truth).astype(np.int8)
    np.testing.assert_array_equal(signed_distance(swapped), -signed_distance(truth))


def test_thin_structures_pull_the_mask_only_in_the_half_form() -> None:
    """A line one pixel wide: the reference has nothing negative, its best mask is none at all."""
    line = EDGE["thin__mask"].astype(np.int8)
    assert signed_distance(line, inner="reference").min() == 0
    distance = signed_distance(line)
    assert (distance[line == 1] == -0.5).all()
    _, gradient = answer(boundary, EDGE["logits"], distance[None, None])
    assert (gradient[0, 0][line == 1] < 0).all()


@pytest.mark.parametrize("normalize", ["diagonal", "max"])
def test_normalized_distances_do_not_grow_with_the_image(normalize: str) -> None:
    """The same disc four times as large: the same loss, up to its ragged edge; in pixels it is four times as much."""

    def disc(side: int, normalize: str) -> np.ndarray:
        rows, cols = np.mgrid[:side, :side] - (side - 1) / 2
        return signed_distance((np.hypot(rows, cols) < side / 4).astype(np.int8), normalize=normalize)  # type: ignore[arg-type]

    small, large = disc(64, normalize), disc(256, normalize)
    assert np.abs(small).max() <= 1
    np.testing.assert_allclose(large.mean(), small.mean(), rtol=0.03)
    np.testing.assert_allclose(disc(256, "none").mean(), 4 * disc(64, "none").mean(), rtol=0.03)
    assert not signed_distance(np.zeros((5, 5), np.int8), normalize=normalize).any()  # type: ignore[arg-type]


def test_normalized_distances_by_hand() -> None:
    """Truncated, half distances below 1 are all 0, and nothing is left to divide by."""
    truth = np.array([[1, 0, 0, 0]], np.int8)
    np.testing.assert_allclose(signed_distance(truth, normalize="max"), [[-0.2, 0.2, 0.6, 1]])
    np.testing.assert_allclose(
        signed_distance(truth, normalize="diagonal") * 17**0.5, signed_distance(truth), rtol=1e-6
    )
    assert not signed_distance(truth[:, :2], normalize="max", truncate=True).any()
    for wrong in ({"inner": "outer"}, {"normalize": "mean"}):
        with pytest.raises(ValueError, match="inner must be half or reference, normalize none, diagonal or max"):
            signed_distance(truth, **wrong)  # type: ignore[arg-type]


def test_ignored_pixels_do_not_count_in_the_boundary_loss() -> None:
    truth = np.zeros((6, 7), np.int8)
    truth[2:4, 1:5] = 1
    truth[:, 4] = -1
    distance = signed_distance(truth)[None, None]
    logits = np.random.default_rng(0).standard_normal((1, 1, 6, 7)).astype(np.float32)
    value, gradient = answer(boundary, logits, distance)
    other, _ = answer(boundary, np.where(truth == -1, 30, logits).astype(np.float32), distance)
    assert value == other
    assert not gradient[0, 0, :, 4].any()
    assert gradient[0, 0][truth != -1].all()


@pytest.mark.parametrize("kind", ["rebalance", "increase"])
def test_schedules_are_the_recorded_ones(kind: str) -> None:
    """A hundred epochs of the first, in which the main weight reaches its floor and the other grows past 1."""
    recorded = EDGE[f"schedule_{kind}"]
    weights = [scheduled(kind, epoch, (1, 0.01)) for epoch in range(len(recorded))]  # type: ignore[arg-type]
    np.testing.assert_allclose(weights, recorded, atol=1e-9)


def test_a_constant_schedule_and_a_main_weight_below_the_floor_stay() -> None:
    assert [scheduled("constant", epoch, (1, 0.1)) for epoch in (0, 50)] == [(1, 0.1)] * 2
    assert scheduled("rebalance", 50, (0.05, 0.5)) == (0.05, 1.0)
