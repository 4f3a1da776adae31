"""Decoding ahead of the network: the same objects in the same order, and errors at their turn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hrseg_cli.data.samples import open_dataset
from hrseg_cli.engine.simulate import decoded
from hrseg_cli.errors import HrsegError


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
