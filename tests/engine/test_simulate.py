"""Decoding ahead of the network: same objects in the same order, errors raised in order."""

from __future__ import annotations

from concurrent.futures import wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hrseg_cli.data.datasets import open_dataset
from hrseg_cli.engine import simulate as module
from hrseg_cli.engine.runtimes import ModelChoice
from hrseg_cli.engine.simulate import Plan, decoded, run
from hrseg_cli.errors import HrsegError
from hrseg_cli.recipe import load_protocol


def test_decoding_ahead_changes_nothing() -> None:
    refs = open_dataset("procedural:count=3,size=64")
    for (one, rule), (other, same) in zip(decoded(refs, ahead=False), decoded(refs, ahead=True), strict=True):
        assert (one.id, rule) == (other.id, same)
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.truth, other.truth)
    assert list(decoded([], ahead=True)) == []


def test_a_broken_file_ahead_does_not_cost_the_object_before_it(tmp_path: Path) -> None:
    refs = open_dataset("procedural:count=2,size=64")
    refs[1] = replace(refs[1], draw=None, image=tmp_path / "gone.png")
    samples = decoded(refs, ahead=True)
    assert next(samples)[0].id == refs[0].id
    with pytest.raises(HrsegError):
        next(samples)


def test_an_object_that_fails_does_not_cost_those_finished_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_workers: None
) -> None:
    refs = open_dataset("procedural:count=3,size=64")
    refs[1] = replace(refs[1], draw=None, image=tmp_path / "gone.png")

    def all_at_once(tasks: dict[Any, int], return_when: str) -> tuple[list[Any], None]:
        return sorted(wait(tasks).done, key=lambda future: future.exception() is None), None

    monkeypatch.setattr(module, "wait", all_at_once)
    plan = Plan(load_protocol("plain"), {"iou": 0.9}, 1)
    finished: list[int] = []
    with pytest.raises(HrsegError, match="gone"):
        finished.extend(i for i, _ in run(plan, ModelChoice("grabcut"), refs, workers=2))
    assert sorted(finished) == [0, 2]
