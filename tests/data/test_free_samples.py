"""The dataset ``samples``: masks of our own for photographs in scikit-image, which need not be installed here."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hrseg_cli.data.bundled import PHOTOGRAPHS, copy_samples
from hrseg_cli.data.datasets import open_dataset
from hrseg_cli.data.samples import load
from hrseg_cli.errors import HrsegError

SIZES = {"astronaut": (512, 512), "chelsea": (451, 300), "coffee": (600, 400), "rocket": (640, 427)}  # width, height


@pytest.fixture
def photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of scikit-image's name, with grey photographs of the same sizes; importing it would fail."""
    folder = tmp_path / "skimage" / "data"
    folder.mkdir(parents=True)
    (tmp_path / "skimage" / "__init__.py").write_text("raise AssertionError")
    for name, file in PHOTOGRAPHS.items():
        Image.new("RGB", SIZES[name], "grey").save(folder / file)
    monkeypatch.delitem(sys.modules, "skimage", raising=False)  # an earlier test may have imported the real one
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_seven_objects_fit_their_photographs(photographs: Path) -> None:
    refs = open_dataset("samples")
    assert [ref.id for ref in refs] == [
        *("astronaut_patch", "astronaut_person", "chelsea_cat", "chelsea_eye", "coffee_cup", "coffee_spoon", "rocket"),
    ]
    for ref in refs:
        truth = load(ref).truth  # raises if the sizes differ
        assert 2000 < (truth == 1).sum() < 0.8 * truth.size, ref.id
        assert (truth == -1).mean() < 0.05, ref.id
    assert [ref.dataset for ref in open_dataset("mine=samples:held=0.5")][:1] == ["mine"]


def test_a_copy_is_the_same_dataset_and_overwrites_nothing(photographs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    assert copy_samples(folder) == 7
    assert copy_samples(folder) == 7, "a second time"
    copied = {ref.id: ref for ref in open_dataset(str(folder))}
    for ref in open_dataset("samples"):
        sample, copy = load(ref), load(copied.pop(ref.id))
        assert np.array_equal(sample.image, copy.image)
        assert np.array_equal(sample.truth, copy.truth)
    assert not copied
    mine = folder / "masks" / "rocket.png"
    mine.write_bytes(b"mine")
    with pytest.raises(HrsegError, match=r"rocket\.png: not a file of the samples; use another folder"):
        copy_samples(folder)
    assert mine.read_bytes() == b"mine"


def test_a_missing_scikit_image_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(HrsegError, match=r"dataset samples: .*pip install 'hrseg\[samples\]'"):
        open_dataset("samples")
    with pytest.raises(HrsegError, match=r"samples: .*pip install 'hrseg\[samples\]'"):
        copy_samples(Path("unused"))


def test_photographs_of_another_version_are_reported(photographs: Path) -> None:
    (photographs / "rocket.jpg").unlink()
    with pytest.raises(HrsegError, match=r"pip install 'hrseg\[samples\]'"):
        open_dataset("samples")
