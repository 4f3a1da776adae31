"""On a GPU in single precision: same clicks one at a time and in flight, and reproducible."""

from __future__ import annotations

import pytest
import torch

from hrseg_cli.data.datasets import open_dataset
from hrseg_cli.data.samples import Ref
from hrseg_cli.engine.runtimes import ModelChoice
from hrseg_cli.engine.simulate import Outcome, Plan, run
from hrseg_cli.recipe import load_protocol

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture(scope="module")
def refs() -> list[Ref]:
    return open_dataset("procedural:count=12,size=256")


def outcomes(
    plan: Plan, refs: list[Ref], in_flight: int, device: str = "cuda", precision: str = "fp32"
) -> list[Outcome]:
    found = dict(run(plan, ModelChoice("h18s", None, device, precision), refs, 4, in_flight))
    return [found[index] for index in range(len(refs))]


def plan_of(protocol: str, *changes: str) -> Plan:
    metrics = {"iou": 0.95, "biou": 0.95}
    chosen = load_protocol(protocol, changes)
    return Plan(chosen, metrics, 8, keep_masks=(1, 3))


@pytest.mark.parametrize(
    ("protocol", "changes"),
    [("ritm", ()), ("photo", ("zoom.pad=100",)), ("plain", ("flip=true", "tiles.size=128", "tiles.overlap=16"))],
)
def test_in_flight_and_alone(protocol: str, changes: tuple[str, ...], refs: list[Ref]) -> None:
    plan = plan_of(protocol, *changes)
    alone = outcomes(plan, refs, 1)
    for in_flight in (2, 5, 32):
        for one, other in zip(outcomes(plan, refs, in_flight), alone, strict=True):
            assert one.trace.clicks == other.trace.clicks
            for name, values in other.trace.scores.items():
                assert one.trace.scores[name] == pytest.approx(values, abs=1e-4)


@pytest.mark.parametrize("in_flight", [1, 5])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_again(in_flight: int, precision: str, refs: list[Ref]) -> None:
    plan = plan_of("ritm")
    first, second = (outcomes(plan, refs, in_flight, precision=precision) for _ in range(2))
    assert [one.trace.clicks for one in first] == [one.trace.clicks for one in second]
    assert [one.trace.scores for one in first] == [one.trace.scores for one in second]
    assert [one.masks for one in first] == [one.masks for one in second]


def test_a_gpu_and_a_cpu_click_alike_at_first(refs: list[Ref]) -> None:
    """Sums in another order: first predictions and the clicks that follow agree; later ones may differ."""
    gpu, cpu = outcomes(plan_of("ritm"), refs[:4], 4), outcomes(plan_of("ritm"), refs[:4], 1, device="cpu")
    for one, other in zip(gpu, cpu, strict=True):
        assert one.trace.clicks[:3] == other.trace.clicks[:3]  # the first precedes any answer
        assert one.trace.scores["iou"][:3] == pytest.approx(other.trace.scores["iou"][:3], abs=1e-3)
