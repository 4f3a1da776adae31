"""Many objects in flight: same clicks as one at a time, whichever objects share a batch, and full batches."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from reference import GOLDEN, FakeNetwork, case

from hrseg_cli.data.datasets import open_dataset
from hrseg_cli.data.samples import Ref
from hrseg_cli.engine import in_flight as module
from hrseg_cli.engine import simulate
from hrseg_cli.engine.devices import reproducible
from hrseg_cli.engine.fast import open_fast
from hrseg_cli.engine.in_flight import batched
from hrseg_cli.engine.runtimes import ModelChoice
from hrseg_cli.engine.simulate import Outcome, Plan, clicking, run
from hrseg_cli.errors import HrsegError
from hrseg_cli.interaction import Click, Sample
from hrseg_cli.models.base import InteractiveModel
from hrseg_cli.recipe import load_protocol

RECORDED = json.loads((GOLDEN / "noc_fixture.json").read_text())


def write_objects(home: Path, numbers: list[int], step: int = 4) -> list[Ref]:
    """A folder of synthetic objects of several sizes, and its listing."""
    for part in ("images", "masks"):
        (home / part).mkdir(parents=True)
    for number in numbers:
        image, truth = (pixels[::step, ::step] for pixels in case(number))
        cv2.imwrite(str(home / "images" / f"{number:02d}.png"), image[..., ::-1])
        cv2.imwrite(str(home / "masks" / f"{number:02d}.png"), np.where(truth == 1, 255, 0).astype(np.uint8))
    return open_dataset(str(home))


@pytest.fixture(autouse=True, scope="module")
def opened_once() -> Iterator[None]:
    """Opening the network takes longer than all clicks on it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelChoice, "open", cache(ModelChoice.open))
        yield


@pytest.fixture(scope="module")
def refs(tmp_path_factory: pytest.TempPathFactory) -> list[Ref]:
    """Four objects, the first two of one size."""
    home = tmp_path_factory.mktemp("objects") / "mine"
    written = write_objects(home, [0, 2, 7])
    for part in ("images", "masks"):
        (home / part / "00b.png").write_bytes((home / part / "00.png").read_bytes())
    listed = open_dataset(str(home))
    assert len(listed) == len(written) + 1
    return listed


def outcomes(plan: Plan, refs: list[Ref], workers: int = 1, in_flight: int = 1) -> list[Outcome]:
    found = dict(run(plan, ModelChoice("h18s"), refs, workers, in_flight))
    assert sorted(found) == list(range(len(refs)))
    return [found[index] for index in range(len(refs))]


def assert_same(ours: list[Outcome], alone: list[Outcome]) -> None:
    """Another order of summation may change the last bits: clicks must be equal, scores to within 1e-5."""
    for one, other in zip(ours, alone, strict=True):
        assert one.trace.clicks == other.trace.clicks
        for name, values in other.trace.scores.items():
            np.testing.assert_allclose(one.trace.scores[name], values, atol=1e-5)
        fixed = {"clicks": (), "scores": {}, "seconds": ()}
        assert replace(one.trace, **fixed) == replace(other.trace, **fixed)
        assert one.masks == other.masks


@pytest.mark.parametrize(("groups", "which"), [(1, slice(0, None, 2)), (2, slice(1, None, 2))])
def test_recorded_sequences_click_for_click(groups: int, which: slice) -> None:
    """RITM's recorded clicks with five objects in flight, in one group or in two that take turns, as on a GPU; half of
    the objects each."""
    plan = Plan(load_protocol("ritm"), {"iou": 0.9}, max_clicks=20)
    model = FakeNetwork()
    sequences = RECORDED["cvpr_zoom400_flip@0.90"]["samples"][which]
    samples = [Sample(str(one["case"]), "synthetic", *case(one["case"])) for one in sequences]
    courses = (clicking(sample, model, plan) for sample in samples)
    landed = dict(batched(model, courses, in_flight=5, threads=2, groups=groups))
    for number, recorded in enumerate(sequences):
        trace, _ = landed[number]
        assert [[c.row, c.col, int(c.positive)] for c in trace.clicks] == recorded["clicks"], recorded["case"]
        np.testing.assert_allclose(trace.scores["iou"], recorded["ious"], atol=1e-4)


PROTOCOLS = {
    "ritm": ("ritm", ["zoom.target=64"]),
    "photo": ("photo", ["zoom.target=64"]),
    "padded": ("photo", ["zoom.target=64", "zoom.pad=24"]),
    "a second look": ("ritm", ["zoom.target=64", "zoom.skip_clicks=0"]),
    "tiles": ("plain", ["flip=true", "tiles.size=64", "tiles.overlap=16"]),
}


QUICK = ("ritm", "padded")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in PROTOCOLS]
)
def test_the_number_in_flight_does_not_matter(name: str, refs: list[Ref], monkeypatch: pytest.MonkeyPatch) -> None:
    """One, more in flight than there are objects, and two in two groups that take turns, as on a GPU; with stored
    masks, on a trained network."""
    plan = Plan(load_protocol(*PROTOCOLS[name]), {"iou": 0.95, "biou": 0.95}, 3, keep_masks=(1, 2))
    alone = outcomes(plan, refs)
    assert_same(outcomes(plan, refs, workers=3, in_flight=8), alone)
    monkeypatch.setattr(simulate, "batched", partial(batched, groups=2))
    assert_same(outcomes(plan, refs, workers=2, in_flight=2), alone)


def test_groups_take_turns() -> None:
    """Never more in flight than requested, whatever the groups, and every task finishes."""
    for in_flight, most in ((1, 1), (3, 2), (9, 5)):
        model = Counting()
        begun = courses(model, [(40, 40)] * 7, "plain", [])
        landed = [number for number, _ in batched(model, begun, in_flight, threads=2, groups=2)]
        assert sorted(landed) == list(range(7))
        assert max(shape[0] for shape in model.seen) == min(most, 7)


def test_one_object_and_none(refs: list[Ref]) -> None:
    plan = Plan(load_protocol("photo", ["zoom.target=64"]), {"iou": 0.9}, 3)
    assert_same(outcomes(plan, refs[:1], in_flight=32), outcomes(plan, refs[:1]))
    assert list(run(plan, ModelChoice("h18s"), [], 1, 32)) == []


def test_replayed_clicks_and_a_datasets_own_protocol(refs: list[Ref]) -> None:
    given = {
        f"{ref.dataset}/{ref.id}": (Click(20, 20, True), Click(5, 40, False))[: 1 + i % 2] for i, ref in enumerate(refs)
    }
    own = {refs[0].dataset: load_protocol("plain")}
    plan = Plan(load_protocol("ritm"), {"iou": 0.9}, 20, protocols=own, replay=given)
    alone, together = outcomes(plan, refs), outcomes(plan, refs, in_flight=3)
    assert_same(together, alone)
    assert [len(one.trace.clicks) for one in together] == [1, 2, 1, 2]
    other = outcomes(replace(plan, protocols={}), refs)
    assert any(a.trace.scores != b.trace.scores for a, b in zip(alone, other, strict=True))


class Counting(InteractiveModel):
    """Predicts empty masks and records input shapes."""

    mirror = False

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def forward(self, image: torch.Tensor, points: torch.Tensor) -> dict[str, torch.Tensor]:
        assert len(points) == len(image)
        self.seen.append(tuple(image.shape))
        return {"logits": image[:, :1] * 0 - 9}


def courses(
    model: InteractiveModel, sizes: list[tuple[int, int]], protocol: str, changes: list[str]
) -> Iterator[object]:
    plan = Plan(load_protocol(protocol, changes), {"iou": 0.9}, 1)
    for number, (height, width) in enumerate(sizes):
        truth = np.zeros((height, width), np.int8)
        truth[5:20, 5:20] = 1
        yield clicking(Sample(str(number), "squares", np.zeros((height, width, 3), np.uint8), truth), model, plan)


def test_looks_of_one_size_share_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [(40, 60), (60, 40), (40, 60), (40, 60), (60, 40)]
    model = Counting()
    list(batched(model, courses(model, sizes, "plain", []), in_flight=5, threads=2))
    assert sorted(model.seen) == [(2, 4, 60, 40), (3, 4, 40, 60)]
    model.seen.clear()
    monkeypatch.setattr(module, "BATCH_PIXELS", 2 * 40 * 60)
    list(batched(model, courses(model, sizes, "plain", []), in_flight=5, threads=2))
    assert sorted(model.seen) == [(1, 4, 40, 60), (2, 4, 40, 60), (2, 4, 60, 40)]
    model.seen.clear()
    monkeypatch.setattr(module, "BATCH_PIXELS", 1)  # smaller than any picture: one at a time
    list(batched(model, courses(model, sizes, "plain", []), in_flight=5, threads=2))
    assert len(model.seen) == 5


def test_padded_crops_share_a_pass() -> None:
    sizes = [(70, 100), (80, 100), (90, 100), (100, 85)]
    for changes, passes in (([], 4), (["zoom.pad=100"], 1)):
        model = Counting()
        list(batched(model, courses(model, sizes, "photo", ["zoom.target=100", *changes]), in_flight=4, threads=2))
        assert len(model.seen) == passes, changes
    assert model.seen == [(4, 4, 100, 100)]


def test_no_more_are_under_way_than_asked_for(refs: list[Ref]) -> None:
    model, begun = Counting(), []

    def counted() -> Iterator[object]:
        for course in courses(model, [(40, 40)] * 9, "plain", []):
            begun.append(course)
            yield course

    flying = batched(model, counted(), in_flight=3, threads=2)
    for landed in range(1, 10):
        next(flying)
        assert len(begun) <= landed + 3


def test_an_error_lets_those_in_the_air_land() -> None:
    """After a damaged file or a failing task, running tasks finish and no new one is started."""
    model = Counting()

    def broken_file() -> Iterator[object]:
        yield from courses(model, [(40, 40)] * 3, "plain", [])
        raise HrsegError("b.png: is broken")

    def broken_course() -> Iterator[object]:
        plan = Plan(load_protocol("plain"), {"iou": 0.9}, 1, replay={"squares/bad": (Click(99, 0, True),)})
        yield clicking(Sample("bad", "squares", np.zeros((9, 9, 3), np.uint8), np.zeros((9, 9), np.int8)), model, plan)
        yield from courses(model, [(40, 40)] * 9, "plain", [])

    for failing, most in ((broken_file(), 3), (broken_course(), 3)):
        landed: list[int] = []
        with pytest.raises(HrsegError, match=r"b\.png|squares/bad"):
            landed.extend(number for number, _ in batched(model, failing, in_flight=4, threads=2))
        assert len(landed) == most


def test_seconds_of_a_click_are_a_share_of_the_wall(refs: list[Ref]) -> None:
    plan = Plan(load_protocol("photo", ["zoom.target=64"]), {"iou": 1.01}, 4)
    started = time.perf_counter()
    together = outcomes(plan, refs, workers=2, in_flight=3)
    wall = time.perf_counter() - started
    total = sum(sum(one.trace.seconds) for one in together)
    # A click's time is divided by the objects that are left at its end, so the sum may exceed the wall time a little;
    # undivided it would be nearly three times as long.
    assert 0 < total <= 1.5 * wall
    assert all(len(one.trace.seconds) == len(one.trace.clicks) for one in together)


def test_reproducible_is_single_precision_and_puts_things_back() -> None:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.set_float32_matmul_precision("high")
    try:
        with reproducible():
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cudnn.allow_tf32
            assert torch.backends.cudnn.deterministic
            assert not torch.backends.cudnn.benchmark
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    now = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    assert now == before


def test_a_batch_of_a_trained_network_answers_as_one_by_one() -> None:
    """The inference form for accelerators, run on a CPU: four queries give equal results batched and alone."""
    from hrseg_cli.checkpoints.resolve import load_model
    from hrseg_cli.engine import views

    model = load_model("h18s")[0].for_inference(keep_layers=True)
    generator = torch.Generator().manual_seed(0)
    looks = [
        views.Query(
            views.View(torch.rand(1, 3, 64, 96, generator=generator)),
            torch.rand(1, 1, 64, 96, generator=generator),
            [Click(9 * i + j, 20.5 + j, bool(j % 2)) for j in range(1 + i)],
            True,
        )
        for i in range(4)
    ]
    with torch.inference_mode():
        together = views.infer(model, looks)
        alone = torch.cat([views.infer(model, [look]) for look in looks])
    torch.testing.assert_close(together, alone, atol=2e-4, rtol=1e-4)
    assert open_fast("h18s")[0] is not model
