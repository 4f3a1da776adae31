"""What a training is judged by."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_sets

from hrseg_cli.errors import HrsegError, UnknownName
from hrseg_cli.recipe import Recipe, recipe_of
from hrseg_cli.training.judge import judged_objects


def judged_by(*datasets: str, objects: int = 20) -> Recipe:
    settings = {
        "name": "x",
        "data": {"parts": [{"dataset": "procedural"}]},
        "validation": {"datasets": list(datasets), "objects": objects},
    }
    return recipe_of(settings, "test")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    tiny_sets.write_all(folder)
    return folder


def test_a_known_dataset_can_judge(root: Path) -> None:
    """By its name, its validation split, which is what an evaluation of that name counts; or another split."""
    assert [ref.dataset for ref in judged_objects(judged_by("hqseg44k"), root)] == [
        "dis5k", "dis5k", "thinobject5k", "thinobject5k", "coift", "coift", "hrsod", "hrsod",
    ]  # fmt: skip
    assert {ref.dataset for ref in judged_objects(judged_by("sbd:split=train"), root)} == {"sbd-train"}


def test_objects_are_spread_over_each_dataset(root: Path) -> None:
    refs = judged_objects(judged_by("hqseg44k", "procedural:count=9,size=64", objects=3), root)
    assert [ref.dataset for ref in refs] == ["dis5k", "thinobject5k", "coift"] + ["procedural"] * 3
    assert [ref.draw[1] for ref in refs[3:] if ref.draw] == [0, 3, 6]


def test_an_unknown_one_is_told_with_a_near_name(root: Path) -> None:
    with pytest.raises(UnknownName, match="Did you mean 'hqseg44k'"):
        judged_objects(judged_by("hqseg44"), root)
    with pytest.raises(HrsegError, match="prepare-data grabcut"):
        judged_objects(judged_by("grabcut"), root / "nowhere")
