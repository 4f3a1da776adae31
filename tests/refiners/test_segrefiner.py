"""SegRefiner's diffusion and refining, against recorded answers of a toy network and against what they must be."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hrseg_cli.errors import HrsegError
from hrseg_cli.refiners.draws import Draw, half, uniform
from hrseg_cli.refiners.segrefiner.diffusion import (
    FINE_AFTER,
    FINE_BEFORE,
    STEPS,
    denoise,
    finer,
    loss,
    mixed,
    steps_to_train,
    texture,
)
from hrseg_cli.refiners.segrefiner.inference import refine_large, refine_objects
from hrseg_cli.refiners.segrefiner.unet import Denoiser

GOLDEN = Path(__file__).parents[1] / "golden"


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


@pytest.fixture(scope="module")
def core() -> dict[str, Tensor]:
    return {key: torch.from_numpy(value) for key, value in load("segrefiner").items() if value.ndim}


def toy(x: Tensor, step: Tensor) -> Tensor:
    """The network of the recorded answers."""
    image, mask = x[:, :3], x[:, 3:]
    return 3 * image[:, :1] + 2 * (mask - 0.5) + 0.5 * image[:, 1:2] * image[:, 2:] + 0.1 * (step.view(-1, 1, 1, 1) - 2)


def recorded(draws: Iterable[Tensor]) -> Draw:
    remaining = iter(draws)

    def draw(shape: tuple[int, ...]) -> Tensor:
        numbers = next(remaining)
        assert tuple(numbers.shape) == shape
        return numbers

    return draw


# Diffusion


def test_recorded_schedule(core: dict[str, Tensor]) -> None:
    np.testing.assert_allclose(FINE_AFTER, core["betas_cumprod"], atol=1e-12)
    np.testing.assert_allclose(FINE_BEFORE, core["betas_cumprod_prev"], atol=1e-12)
    np.testing.assert_allclose(np.divide(FINE_AFTER, FINE_BEFORE), core["betas"], atol=1e-12)


def test_recorded_mix_of_fine_and_coarse(core: dict[str, Tensor]) -> None:
    mix = mixed(core["q_x_start"], core["q_x_last"], core["q_t"], recorded([core["q_u"]]))
    assert torch.equal(mix, core["q_sample"])


@pytest.mark.parametrize("step", range(STEPS))
def test_recorded_step(core: dict[str, Tensor], step: int) -> None:
    logits = toy(torch.cat([core["p_img"], core["p_x"]], 1), torch.full((2,), step))
    assert torch.equal(logits, core[f"p_logits_t{step}"])
    torch.testing.assert_close(finer(core["p_fine_in"], logits, step), core[f"p_fine_out_t{step}"], atol=2e-7, rtol=0)


@pytest.mark.parametrize(("name", "steps"), [("loop6", range(5, -1, -1)), ("loop5", range(5, 0, -1))])
def test_recorded_loop(core: dict[str, Tensor], name: str, steps: range) -> None:
    """A single wrong choice would flip pixels."""
    refined = denoise(toy, core["p_img"], core["p_x"], steps, recorded(core["loop_u"]))
    torch.testing.assert_close(refined.probability, core[f"{name}_prob"], atol=2e-7, rtol=0)
    torch.testing.assert_close(refined.fine, core[f"{name}_fine"], atol=2e-7, rtol=0)


def test_recorded_losses() -> None:
    golden = load("segrefiner")
    logits, truth = (torch.from_numpy(golden[f"loss_{name}"]) for name in ("pred", "target"))
    logits.requires_grad_()
    entropy, both = loss(logits, truth, texture_weight=0).mean(), loss(logits, truth).mean()
    both.backward()
    assert entropy.item() == pytest.approx(float(golden["loss_mask"]), abs=1e-6)
    assert (both - entropy).item() == pytest.approx(float(golden["loss_texture"]), abs=1e-6)
    np.testing.assert_allclose(logits.grad, golden["loss_grad"], atol=1e-8)
    np.testing.assert_allclose(texture(logits.sigmoid()).detach(), golden["sobel_pred"], atol=1e-6)
    np.testing.assert_allclose(texture(truth), golden["sobel_target"], atol=1e-6)


@given(st.lists(st.floats(-6, 6, width=32), min_size=1, max_size=5))
def test_a_network_that_answers_alike_ends_as_fine_as_it_is_sure(logits: list[float]) -> None:
    """The steps telescope: after step t a pixel is fine with probability FINE_BEFORE[t] times the certainty."""
    answer = torch.tensor(logits)
    sure = 2 * (answer.sigmoid() - 0.5).abs()
    fine = torch.zeros_like(answer)
    for step in reversed(range(STEPS)):
        fine = finer(fine, answer, step)
        torch.testing.assert_close(fine, sure * FINE_BEFORE[step], atol=1e-6, rtol=0)


def test_mix_keeps_the_share_that_the_schedule_says() -> None:
    fine, coarse = torch.ones(STEPS, 1, 100, 100), torch.zeros(STEPS, 1, 100, 100)
    shares = mixed(fine, coarse, torch.arange(STEPS), uniform(0)).mean((1, 2, 3))
    torch.testing.assert_close(shares, torch.tensor(FINE_AFTER), atol=0.02, rtol=0)
    assert shares[-1] == 0  # the last step is all coarse


def test_all_steps_are_trained_alike() -> None:
    counts = torch.bincount(steps_to_train(6000, uniform(0)))
    assert len(counts) == STEPS
    assert counts.min() > 900


def test_a_seed_decides_and_nobody_elses_numbers_are_used() -> None:
    picture = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    coarse = (picture[:, 1:2] > 0).float()
    before = torch.get_rng_state()

    def refined(draw: Draw) -> Tensor:
        # An answer that depends on the mask it is shown, or no draw would show.
        return denoise(lambda x, step: x[:, :1] + 2 * (x[:, 3:] - 0.5), picture, coarse, range(5, -1, -1), draw)[0]

    assert torch.equal(refined(uniform(3)), refined(uniform(3)))
    assert not torch.equal(refined(uniform(3)), refined(uniform(4)))
    assert torch.equal(refined(half), refined(half))
    assert torch.equal(torch.get_rng_state(), before)


def test_training_learns() -> None:
    """Mix, network and loss fit together: after a few steps on one picture its coarse mask is refined to the truth."""
    torch.manual_seed(0)
    truth = torch.from_numpy(disk(32, 32, 15, 15, 9).astype(np.float32))[None, None]
    picture = torch.cat([truth * 2 - 1] * 3, 1) + 0.1 * torch.randn(1, 3, 32, 32)
    coarse = truth.roll(5, 3)
    network, draw = Denoiser(8, (1, 2), blocks=1, attention_strides=(), heads=2), uniform(0)
    for _ in range(25):
        step = steps_to_train(1, draw)
        shown = mixed(truth, coarse, step, draw)
        logits = network(torch.cat([picture, shown], 1), step)
        slopes = torch.autograd.grad(loss(logits, truth).mean(), list(network.parameters()))
        with torch.no_grad():  # by sign, as Adam begins; an optimizer takes seconds to import
            for weight, slope in zip(network.parameters(), slopes, strict=True):
                weight -= 4e-3 * slope.sign()
    with torch.no_grad():
        refined = denoise(network.eval(), picture, coarse, range(5, -1, -1), uniform(1)).probability > 0.5
    assert iou(refined.numpy(), truth.numpy() > 0) > 0.9 > 0.6 > iou(coarse.numpy() > 0, truth.numpy() > 0)


# Refining objects


def by_colour(x: Tensor, step: Tensor) -> Tensor:
    """A network that knows the truth: objects are bright in the first channel."""
    return 8 * x[:, :1]


def bright(truth: np.ndarray) -> np.ndarray:
    """An image whose object :func:`by_colour` sees."""
    return np.repeat(np.where(truth, 200, 40).astype(np.uint8)[..., None], 3, 2)


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.count_nonzero(one & other) / np.count_nonzero(one | other))


def disk(height: int, width: int, row: float, col: float, radius: float) -> np.ndarray:
    rows, cols = np.indices((height, width))
    return np.asarray((rows - row) ** 2 + (cols - col) ** 2 <= radius**2)


def test_recorded_objects() -> None:
    golden = load("segrefiner_objects")
    draws = [torch.from_numpy(one) for name in ("u_batch0", "u_batch1") for one in golden[name]]
    image = np.ascontiguousarray(golden["img"][0].transpose(1, 2, 0))
    answers = refine_objects(
        toy, image, golden["masks"], recorded(draws), side=32, margin=5, smallest=100, batch=2, reference=True
    )
    for answer, expected in zip(answers, golden["out_masks"], strict=True):
        np.testing.assert_array_equal(answer >= 0.5, expected)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_small_and_empty_objects_keep_their_place(batch: int) -> None:
    truth = disk(90, 120, 40, 50, 30)
    masks = [disk(90, 120, 10, 10, 3), disk(90, 120, 44, 54, 28), np.zeros((90, 120), bool), disk(90, 120, 36, 46, 32)]
    answers = list(refine_objects(by_colour, bright(truth), masks, side=64, batch=batch))
    assert [answer.dtype for answer in answers] == [np.float32] * 4
    for number in (0, 2):
        np.testing.assert_array_equal(answers[number], masks[number])
    for number in (1, 3):
        assert iou(answers[number] > 0.5, truth) > 0.97 > iou(masks[number], truth)


def test_an_object_at_the_border_is_not_eaten_there() -> None:
    """The public code blends the outermost pixels of a crop with 0."""
    truth = disk(200, 200, 0, 100, 60)
    kept, eaten = (
        next(refine_objects(by_colour, bright(truth), [truth], side=32, reference=reference))
        for reference in (False, True)
    )
    assert kept[0, 100] > 0.95 > 0.75 > eaten[0, 100]


def test_the_value_of_a_mask_does_not_matter() -> None:
    truth = disk(90, 120, 40, 50, 30)
    masks = [np.roll(truth, 3, 1), disk(90, 120, 10, 10, 3)]
    large = [[mask.astype(np.uint8) * value for mask in masks] for value in (1, 255)]
    for one, other in zip(*(refine_objects(by_colour, bright(truth), some, side=64) for some in large), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(*(refine_large(by_colour, bright(truth), some[0], side=64) for some in large))


def test_a_mask_of_another_size_is_refused() -> None:
    """Both are shown at the same size, so nothing else would notice."""
    image, mask = np.zeros((90, 120, 3), np.uint8), np.ones((120, 90), bool)
    with pytest.raises(HrsegError, match=r"\(120, 90\)"):
        next(refine_objects(by_colour, image, [mask]))
    with pytest.raises(HrsegError, match=r"\(120, 90\)"):
        refine_large(by_colour, image, mask)


# Refining large images


def test_recorded_large_image() -> None:
    golden = load("segrefiner_large")
    image = np.ascontiguousarray(golden["img"][0].transpose(1, 2, 0))
    shown: list[Tensor] = []

    def watched(x: Tensor, step: Tensor) -> Tensor:
        if not step.any():
            shown.append(x)
        return toy(x, step)

    draw = recorded(torch.from_numpy(golden["u"]))
    answer = refine_large(watched, image, golden["coarse"] > 0, draw, side=32, batch=4, reference=True)
    np.testing.assert_array_equal(answer >= 0.5, golden["out_mask"])
    expected = [image[top:bottom, left:right] for left, top, right, bottom in golden["kept_patches"]]
    patches = torch.cat(shown)[:, :3].permute(0, 2, 3, 1).numpy()
    assert {patch.tobytes() for patch in patches} == {patch.tobytes() for patch in expected}
    assert len(patches) == len(expected)


def test_patches_bring_what_the_small_picture_cannot_show() -> None:
    """A comb of teeth thinner than a pixel of the small picture."""
    truth = disk(300, 420, 150, 200, 100)
    truth[100:200, 290:400] = (np.arange(100) % 8 < 4)[:, None]
    coarse = disk(300, 420, 150, 200, 100)
    coarse[100:200, 290:400] = True

    def unsure_of_mixed_colours(x: Tensor, step: Tensor) -> Tensor:
        return 3 * (x[:, :1] - 0.2)

    answers = [
        refine_large(unsure_of_mixed_colours, bright(truth), coarse, side=64, most=most) > 0.5 for most in (0, None)
    ]
    assert iou(answers[1], truth) > 0.99
    assert iou(answers[0], truth) < 0.95


@pytest.mark.parametrize("most", [0, 1, 3, 1000])
def test_no_more_patches_than_said(most: int) -> None:
    truth = disk(256, 512, 128, 256, 100)
    asked = 0

    def counting(x: Tensor, step: Tensor) -> Tensor:
        nonlocal asked
        asked += len(x) if step[0] == 0 else 0
        return by_colour(x, step) / 20

    refine_large(counting, bright(truth), truth, side=64, most=most, batch=2)
    assert asked <= most
    assert asked > 0 or most == 0


@pytest.mark.parametrize("size", [(40, 200), (200, 40), (50, 30)])
def test_an_image_smaller_than_a_patch_is_refined_in_all_its_parts(size: tuple[int, int]) -> None:
    """The public code starts such patches before the image and loses them."""
    truth = disk(*size, size[0] / 2, size[1] / 2, 14)
    coarse = np.roll(truth, 4, axis=1)
    answer = refine_large(by_colour, bright(truth), coarse, side=64)
    assert answer.shape == size
    assert iou(answer > 0.5, truth) > 0.97


def test_a_small_object_of_a_large_image_is_not_lost() -> None:
    """The whole image at 64 x 64 pixels may show nothing of it, nor of a wire, which fills no pixel by half: a network
    that only repeats what it is shown would lose it."""
    dot = disk(900, 1200, 700, 300, 7)
    assert iou(refine_large(by_colour, bright(dot), np.roll(dot, 3, 1), side=64) > 0.5, dot) > 0.95
    wire = np.zeros((900, 1200), bool)
    wire[:, 600:603] = True

    def repeating(x: Tensor, step: Tensor) -> Tensor:
        return 6 * x[:, 3:] - 3

    answer = refine_large(repeating, bright(wire), wire, side=64) > 0.5
    assert answer[:, 601].mean() > 0.9


def test_tiny_masks_are_refined_and_empty_ones_stay_empty() -> None:
    """The public code clears masks of up to 128 pixels."""
    truth = disk(100, 100, 50, 50, 6)
    assert np.count_nonzero(truth) <= 128
    assert iou(refine_large(by_colour, bright(truth), truth, side=64) > 0.5, truth) == 1
    assert not refine_large(by_colour, bright(truth), truth, side=64, reference=True).any()
    assert not refine_large(by_colour, bright(truth), np.zeros_like(truth), side=64).any()
