"""Zoom-in geometry compared with RITM's recorded cases; tiles and flips compared with plain inference."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from reference import GOLDEN, FakeNetwork
from torch import nn

from hrseg_cli.engine import views
from hrseg_cli.interaction import Box, Click
from hrseg_cli.models.base import InteractiveModel
from hrseg_cli.models.parts.click_maps import disk_maps, distance_maps
from hrseg_cli.recipe import Protocol, Tiles
from hrseg_cli.refiners import Look

RECORDED = json.loads((GOLDEN / "unit_fixture.json").read_text())


def test_expanding_and_clamping_boxes() -> None:
    for case in RECORDED["expand_bbox"]:
        grown = views.expand(Box(*case["bbox"]), case["expand"], case["min_crop"])
        assert list(grown) == case["expanded"], case
        assert list(views.clamp(grown, *case["hw"])) == case["clamped"], case


def test_box_overlap() -> None:
    for a, b, overlap in RECORDED["bbox_iou"]:
        assert views.box_iou(Box(*a), Box(*b)) == pytest.approx(overlap)


def test_crop_sizes() -> None:
    for case in RECORDED["roi_sizes"]:
        target = case["target"] if isinstance(case["target"], int) else tuple(case["target"])
        assert list(views.crop_size(Box(*case["roi"]), target)) == case["out"], case


@given(st.tuples(*[st.integers(1, 70)] * 2), st.tuples(*[st.integers(1, 40)] * 2), st.tuples(*[st.floats(0, 1)] * 4))
def test_a_crop_is_a_bilinear_copy_of_its_box(
    shape: tuple[int, int], size: tuple[int, int], ends: tuple[float, float, float, float]
) -> None:
    """Same as PyTorch's interpolation, up and down, uint8 and float, for any box and memory layout."""
    (top, bottom), (left, right) = (
        sorted(int(end * (side - 1)) for end in pair) for side, pair in zip(shape, (ends[:2], ends[2:]), strict=True)
    )
    image = torch.randint(0, 256, (*shape, 3), dtype=torch.uint8).permute(2, 0, 1)[None]
    window = image[:, :, top : bottom + 1, left : right + 1].float() / 255
    wanted = nn.functional.interpolate(window, size=size, mode="bilinear", align_corners=True)
    for x in (image, views.unit(image), views.unit(image).contiguous()):
        torch.testing.assert_close(views.crop(x, Box(top, bottom, left, right), size), wanted, atol=5e-7, rtol=0)


def test_points_are_padded_to_equal_sides() -> None:
    clicks = [Click(5, 6, True), Click(7, 8, False), Click(1, 2, False)]
    expected = [[[5, 6, 0], [-1, -1, -1], [7, 8, 1], [1, 2, 2]]]
    assert views.points_tensor(clicks).tolist() == expected
    assert views.points_tensor([]).tolist() == [[[-1, -1, -1], [-1, -1, -1]]]


def test_points_of_many_share_their_slots() -> None:
    few, many = [Click(5, 6, True)], [Click(7, 8, False), Click(1, 2, False)]
    pad = [-1, -1, -1]
    expected = [[[5, 6, 0], pad, pad, pad], [pad, pad, [7, 8, 0], [1, 2, 1]]]
    assert views.points_tensor(few, many).tolist() == expected


@pytest.mark.parametrize("draw", [disk_maps, distance_maps])
def test_further_slots_draw_nothing(draw: Callable[..., torch.Tensor]) -> None:
    """In a batch, all objects get as many slots as the one with the most clicks."""
    few = [Click(5, 6, True), Click(20, 30.5, False), Click(-3, 12, True)]
    many = [Click(2.25 * i, 3 * i, i % 3 > 0) for i in range(20)]
    both = draw(views.points_tensor(few, many), 50, 70, 5)
    assert torch.equal(both[:1], draw(views.points_tensor(few), 50, 70, 5))
    assert torch.equal(both[1:], draw(views.points_tensor(many), 50, 70, 5))


def answer(model: InteractiveModel, x: torch.Tensor, clicks: list[Click], protocol: Protocol) -> torch.Tensor:
    return views.drive(model, views.crop_queries(views.View(x[:, :3]), x[:, 3:], clicks, protocol))


def test_padding_repeats_the_last_row_and_column() -> None:
    x = torch.arange(6.0).view(1, 1, 2, 3)
    assert views.padded(x, 4)[0, 0].tolist() == [[0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5], [3, 4, 5, 5]]
    assert views.padded(x[..., :2], 2).shape == (1, 1, 2, 2)


class LocalNetwork(InteractiveModel):
    """Its output depends on the pixel and on click columns only, so any tile that contains both predicts the same."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, image: torch.Tensor, points: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.scale * (image[:, :1] - 2 * image[:, 3:4])}


@given(
    height=st.integers(40, 200),
    width=st.integers(40, 200),
    size=st.integers(64, 90),
    overlap=st.integers(0, 30),
)
def test_tiles_of_a_local_network_equal_one_pass(height: int, width: int, size: int, overlap: int) -> None:
    """Blending weights sum to one everywhere, and every pixel is covered."""
    x = torch.rand(1, 4, height, width)
    whole = answer(LocalNetwork(), x, [], Protocol(name="one"))
    tiled = answer(LocalNetwork(), x, [], Protocol(name="tiles", tiles=Tiles(size=size, overlap=overlap)))
    torch.testing.assert_close(tiled, whole, atol=1e-5, rtol=0)


def test_a_border_shows_the_network_the_mirrored_image() -> None:
    """Answers are those for the enlarged image, without its border; clicks stay on their pixels."""
    seen: list[tuple[torch.Tensor, list[float]]] = []

    class Spy(LocalNetwork):
        def forward(self, image: torch.Tensor, points: torch.Tensor) -> dict[str, torch.Tensor]:
            seen.append((image, points[0, 0].tolist()))
            return super().forward(image, points)

    x = torch.rand(1, 4, 20, 30)
    plain = answer(LocalNetwork(), x, [], Protocol(name="one"))
    found = answer(Spy(), x, [Click(3, 7, True)], Protocol(name="border", tiles=Tiles(size=64, overlap=0, border=9)))
    assert torch.equal(found, plain)
    (image, click), *others = seen
    assert not others
    assert click == [12, 16, 0]
    assert torch.equal(image, F.pad(x, (9, 9, 9, 9), mode="reflect"))
    protocol = Protocol(name="border", tiles=Tiles(size=64, overlap=0, border=9))
    queries = views.crop_queries(views.View(x[:, :3]), x[:, 3:], [], protocol, Box(2, 11, 4, 20))
    assert next(queries).box == Box(11, 20, 13, 29), "a box moves with the image"
    tiled = answer(Spy(), x, [], Protocol(name="both", tiles=Tiles(size=64, overlap=8, border=32)))
    torch.testing.assert_close(tiled, plain)
    assert len(seen) == 1 + 4
    assert "border" not in Tiles().model_dump()  # stored runs have no such key
    assert Tiles(**Tiles(border=3).model_dump()).border == 3


def test_a_tile_sees_only_its_own_clicks() -> None:
    """A click left of a tile has a negative column there; with a negative row too, it would count as padding."""
    seen: list[list[list[float]]] = []

    class Spy(LocalNetwork):
        def forward(self, image: torch.Tensor, points: torch.Tensor) -> dict[str, torch.Tensor]:
            seen.append(points[0].tolist())
            return super().forward(image, points)

    protocol = Protocol(name="tiles", tiles=Tiles(size=64, overlap=0))
    answer(Spy(), torch.rand(1, 4, 64, 128), [Click(10, 100, True)], protocol)
    assert seen == [[[-1, -1, -1], [-1, -1, -1]], [[10, 36, 0], [-1, -1, -1]]]


def test_tiles_divide_clicks_and_box_among_them() -> None:
    """A click on the first row of a tile is not one of the tile above; a box is moved to each tile's corner."""
    protocol = Protocol(name="tiles", tiles=Tiles(size=64, overlap=0))
    clicks = [Click(63, 63, True), Click(64, 0, True), Click(0, 64, False), Click(64, 64, False)]
    view, previous = views.View(torch.rand(1, 3, 100, 128)), torch.zeros(1, 1, 100, 128)
    queries = views.crop_queries(view, previous, clicks, protocol, Box(60, 70, 10, 100))
    seen = [next(queries)]
    for _ in range(3):
        seen.append(queries.send(torch.zeros_like(seen[-1].previous)))
    assert [tuple(query.previous.shape[2:]) for query in seen] == [(64, 64), (64, 64), (64, 64), (64, 64)]
    assert [list(query.clicks) for query in seen] == [
        [Click(63, 63, True)],
        [Click(0, 0, False)],
        [Click(27, 63, True), Click(28, 0, True)],
        [Click(28, 0, False)],
    ]
    assert [query.box for query in seen] == [
        Box(60, 70, 10, 100),
        Box(60, 70, -54, 36),
        Box(24, 34, 10, 100),
        Box(24, 34, -54, 36),
    ]


def test_the_box_of_a_mask_counts_all_of_its_rows() -> None:
    mask = torch.zeros(9, 12, dtype=torch.bool)
    mask[2, 5] = mask[6, 1] = mask[7, 9] = True
    assert views.mask_box(mask) == Box(2, 7, 1, 9)
    assert views.mask_box(mask.flip(0)) == Box(1, 6, 1, 9)
    assert views.mask_box(torch.zeros(3, 3, dtype=torch.bool)) is None


def test_the_answers_of_tiles_fade_into_each_other() -> None:
    """By hand: two tiles that overlap by as much as asked, by more, and without a wish; the first says 0, the other
    1."""
    view, previous = views.View(torch.rand(1, 3, 64, 100)), torch.zeros(1, 1, 64, 100)
    for overlap, ramp in ((28, 28), (10, 10), (0, 0)):
        protocol = Protocol(name="tiles", tiles=Tiles(size=64, overlap=overlap))
        queries = views.crop_queries(view, previous, [], protocol)
        first = next(queries)
        queries.send(torch.zeros_like(first.previous))
        with pytest.raises(StopIteration) as end:
            queries.send(torch.ones_like(first.previous))
        column = torch.arange(100.0)
        fallen, risen = ((x / (ramp + 1)).clamp(max=1) for x in (64 - column, column - 35))
        wanted = (risen / (risen + fallen))[36:64]
        assert end.value.value[0, 0, 7, 36:64].tolist() == pytest.approx(wanted.tolist())
        assert end.value.value[0, 0, 20, [0, 35, 64, 99]].tolist() == [0, 0, 1, 1]


def test_tiles_are_no_more_than_needed() -> None:
    """A view of just the size is not cut: it keeps its features and its memory. One more pixel takes two tiles."""
    protocol = Protocol(name="tiles", tiles=Tiles(size=64, overlap=16))
    memory = views.Memory({})

    def asked(height: int, width: int) -> list[views.Query]:
        view = views.View(torch.rand(1, 3, height, width))
        queries = views.crop_queries(view, torch.zeros(1, 1, height, width), [], protocol, memory=memory)
        seen = [next(queries)]
        with suppress(StopIteration):
            while True:
                seen.append(queries.send(torch.zeros_like(seen[-1].previous)))
        assert (seen[0].view is view) == (len(seen) == 1)
        return seen

    (whole,) = asked(64, 64)
    assert whole.memory is memory
    assert [len(asked(64, width)) for width in (65, 64 + 48, 64 + 49)] == [2, 2, 3]
    assert [len(asked(height, 64)) for height in (65, 64 + 48, 64 + 49)] == [2, 2, 3]


def test_the_smallest_crop_has_a_pixel() -> None:
    assert views.crop_size(Box(0, 0, 0, 999), 100) == (1, 100)
    assert views.crop_size(Box(0, 999, 4, 4), 100) == (100, 1)


def test_flip_is_the_mean_over_both_sides() -> None:
    x = torch.rand(1, 4, 30, 41)
    click, mirrored = Click(10, 7, True), Click(10, 41 - 7 - 1, True)
    model = FakeNetwork()
    straight = answer(model, x, [click], Protocol(name="straight"))
    turned = answer(model, x.flip(3), [mirrored], Protocol(name="straight")).flip(3)
    assert not torch.allclose(straight, turned)  # or the test could not fail
    both = answer(model, x, [click], Protocol(name="flip", flip=True))
    torch.testing.assert_close(both, (straight + turned) / 2)


class Boxed(InteractiveModel):
    """The object is the box."""

    name = "boxed"
    has_encoder = True

    def encode(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (image,)

    def decode(
        self,
        features: tuple[torch.Tensor, ...],
        previous: torch.Tensor,
        points: torch.Tensor,
        boxes: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        assert boxes is not None
        top, left, bottom, right = boxes[0].int().tolist()
        logits = torch.full_like(previous, -8.0)
        logits[..., top : bottom + 1, left : right + 1] = 8
        return {"logits": logits}


def test_a_box_is_mirrored_with_the_image() -> None:
    view, previous = views.View(torch.rand(1, 3, 20, 41)), torch.zeros(1, 1, 20, 41)
    for flip in (False, True):
        found = views.infer(Boxed(), [views.Query(view, previous, [], flip, Box(3, 8, 5, 11))])
        assert views.mask_box(found[0, 0] > 0) == Box(3, 8, 5, 11)
        assert found.unique().tolist() == [-8, 8], "both sides agree"


def test_a_missing_box_is_minus_one() -> None:
    """What models are told, those of others too."""
    found = views.boxes_tensor([Box(top=1, bottom=2, left=3, right=4), None])
    assert found.tolist() == [[1, 3, 2, 4], [-1, -1, -1, -1]]


# Boxes and crops at their borders


def test_positive_clicks_of_a_crop_lie_before_its_last_row_and_column() -> None:
    """RITM's definition, which decides when a crop is chosen anew; negative clicks do not matter."""
    box = Box(10, 20, 30, 50)
    for row, col, held in (
        (10, 30, True), (19.9, 49.9, True), (9.9, 40, False), (20, 40, False), (15, 29.9, False), (15, 50, False)
    ):  # fmt: skip
        assert views.holds_positive_clicks(box, [Click(15, 40, True), Click(row, col, True)]) == held
        assert views.holds_positive_clicks(box, [Click(15, 40, True), Click(row, col, False)])


def test_boxes_side_by_side_do_not_overlap() -> None:
    assert views.box_iou(Box(0, 4, 0, 4), Box(5, 9, 0, 4)) == 0
    assert views.box_iou(Box(0, 4, 0, 4), Box(0, 4, 7, 9)) == 0
    assert views.box_iou(Box(0, 0, 0, 0), Box(0, 0, 0, 1)) == 0.5


def test_a_box_is_drawn_into_a_crop_corner_on_corner() -> None:
    """The corner pixels of the crop and of what it was cropped from coincide, also where a side has one or two."""
    crop = Box(10, 20, 30, 50)
    assert views.crop_box(crop, crop, (31, 81)) == Box(0, 30, 0, 80)
    assert views.crop_box(Box(12, 15, 35, 60), crop, (31, 81)) == Box(6, 15, 20, 120)
    assert views.crop_box(Box(5, 6, 8, 8), Box(5, 6, 8, 8), (9, 7)) == Box(0, 8, 0, 0)


def test_a_crop_is_pasted_corner_on_corner() -> None:
    pasted = views.paste(torch.tensor([[[[0.0, 1.0]]]]), Box(1, 2, 3, 7), 4, 10)
    assert pasted[0, 0].tolist() == [[0] * 10, *[[0, 0, 0, 0, 0.25, 0.5, 0.75, 1, 0, 0]] * 2, [0] * 10]


def test_a_model_that_enlarges_gets_larger_crops() -> None:
    assert views.enlarged(50, 2) == 100
    assert views.enlarged((30, 50), 2) == (60, 100)


def test_the_last_position_is_never_rounded_beyond_the_last_pixel() -> None:
    """In float32, 20 * (82 / 20) and the like may be a little more than 82."""
    beyond = 0
    for size in range(1, 130):
        for to in (1, 2, 21, 42, 83, 100):
            _, after, weight = views.neighbours(size, to)
            beyond += bool(torch.arange(to)[-1] * torch.tensor((size - 1) / max(1, to - 1)) > size - 1)
            assert int(after.max()) == (size - 1 if to > 1 else min(1, size - 1))
            assert 0 <= float(weight.min()) <= float(weight.max()) < 1
    assert beyond, "or the test could not fail"


def test_views_are_kept_up_to_two_megapixels() -> None:
    """One of the whole image and one crop, each as long as nothing else is asked for; large ones would fill the
    memory, but of those a model with features of a fixed size keeps everything except the pixels."""
    wide = torch.zeros(1, 3, 1025, 2048, dtype=torch.uint8)
    for fixed in (False, True):
        cache = views.ViewCache(wide, fixed_input=True) if fixed else views.ViewCache(wide)
        small, large = (1024, 2048), (1025, 2048)
        crop = cache.view(Box(0, 1023, 0, 2047), small)
        whole = cache.view(None, large)
        assert cache.view(Box(0, 1023, 0, 2047), small) is crop
        assert (cache.view(None, large) is whole) == fixed
        assert isinstance(crop._image, torch.Tensor)
        assert isinstance(whole._image, torch.Tensor) != fixed
        assert whole.image.shape == wide.shape
        assert cache.view(Box(0, 1023, 0, 2046), (1024, 2047)) is not crop
        assert cache.view(Box(0, 1023, 0, 2047), small) is not crop
    cache = views.ViewCache(wide[..., :40, :50])
    first, second = Box(0, 39, 0, 49), Box(0, 38, 0, 49)
    whole, part = cache.view(first, (20, 25)), cache.view(second, (20, 25))
    assert cache.view(first, (20, 25)) is whole
    assert cache.view(second, (20, 25)) is part
    assert cache.view(None, (40, 50)) is not whole


# Batches, memory, and what a GPU does


class Remembering(InteractiveModel):
    """Adds what it remembers, the sum of all columns clicked on so far, to the brightness of each pixel."""

    name = "remembering"
    has_encoder = remembers = True

    def encode(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return image.mean(1, keepdim=True), image

    def recall(
        self, features: Any, previous: torch.Tensor, points: torch.Tensor, memory: torch.Tensor | None
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        after = points[..., 1].clamp(min=0).sum(1).float()[:, None, None, None]
        after = after if memory is None else after + memory
        return {"logits": features[0] + previous + after}, after


@pytest.mark.parametrize("flip", [False, True])
def test_each_view_of_a_batch_has_its_own_memory(flip: bool) -> None:
    """By hand, for views of which one has a memory, one has an empty one, and one none; a mirrored view has another."""
    model, previous = Remembering(), torch.zeros(1, 1, 4, 9)
    memories = [views.Memory({False: torch.full((1, 1, 1, 1), 100.0), True: torch.full((1, 1, 1, 1), 200.0)})]
    memories.append(views.Memory({}))
    pictures = [torch.rand(1, 3, 4, 9) for _ in range(3)]
    queries = [
        views.Query(views.View(picture), previous, [Click(1, col, True)], flip, None, memory)
        for picture, col, memory in zip(pictures, (2, 3, 5), [*memories, None], strict=True)
    ]
    found = views.infer(model, queries)
    mirrored = [200 + 6, 5, 3]
    for picture, logits, straight, turned in zip(pictures, found, [102, 3, 5], mirrored, strict=True):
        wanted = picture.mean(1) + ((straight + turned) / 2 if flip else straight)
        torch.testing.assert_close(logits, wanted)
    kept = [{side: float(value) for side, value in memory.after.items()} for memory in memories]
    assert kept == [{False: 102, True: 206} if flip else {False: 102}, {False: 3, True: 5} if flip else {False: 3}]


class OnGpu(torch.Tensor):
    """A tensor that says it lies on a GPU, so that the code for GPUs runs here."""

    is_cuda = True  # type: ignore[assignment]


def test_what_a_gpu_does_gives_the_same() -> None:
    """There, a view and its mirror image are one batch, and masks are not copied."""
    pictures = [torch.rand(1, 3, 12, 17) for _ in range(3)]
    clicks = [[Click(3, 5, True), Click(8, 2, False)], [Click(1, 16, True)], []]
    for model in (FakeNetwork(), Remembering()):
        answers = []
        for kind in (torch.Tensor, OnGpu):
            queries = [
                views.Query(
                    views.View(picture),
                    torch.full((1, 1, 12, 17), 0.3).as_subclass(kind),
                    some,
                    flip=True,
                    memory=views.Memory({False: torch.ones(1, 1, 1, 1), True: torch.zeros(1, 1, 1, 1)}),
                )
                for picture, some in zip(pictures, clicks, strict=True)
            ]
            answers.append(views.infer(model, queries))
            answers += [query.memory.after.get(side, torch.ones(1)) for query in queries for side in (False, True)]
        half = len(answers) // 2
        for here, there in zip(answers[:half], answers[half:], strict=True):
            torch.testing.assert_close(torch.Tensor(there), here)
    probability = torch.rand(1, 1, 12, 17)
    probability[0, 0, 2, 3] = 0.5
    probability[0, 0, 0, 0] = 1
    there = probability.as_subclass(OnGpu)
    for threshold in (0.3, 0.5):
        assert torch.equal(torch.Tensor(views.above(there, threshold)), views.above(probability, threshold).float())
    mask = probability[0, 0] > 0.4
    assert views.mask_box(mask.as_subclass(OnGpu)) == views.mask_box(mask)
    box = Box(2, 9, 4, 15)
    torch.testing.assert_close(
        torch.Tensor(views.crop(there, box, (20, 9))), views.crop(probability, box, (20, 9)), atol=1e-6, rtol=0
    )
    pasted = views.paste(there, box, 14, 20)
    assert torch.equal(torch.Tensor(pasted), views.paste(probability, box, 14, 20))


def test_a_refiner_is_sent_the_probability_of_its_view() -> None:
    looks: list[np.ndarray] = []

    def refiner() -> Generator[Look, np.ndarray, str]:
        image = np.random.default_rng(0).integers(0, 255, (5, 8, 3), np.uint8)
        looks.append((yield Look(image, np.zeros((5, 8)), (Click(1, 2, True),))))
        looks.append((yield Look(image, np.ones((5, 8)), ())))
        looks.append(image)
        return "done"

    model = Remembering()
    assert views.drive(model, views.look_queries(refiner(), "cpu", flip=False)) == "done"
    first, second, image = looks
    light = image.mean(2) / 255
    np.testing.assert_allclose(first, 1 / (1 + np.exp(-light - 2)), rtol=1e-5)
    np.testing.assert_allclose(second, 1 / (1 + np.exp(-light - 1)), rtol=1e-5)
