"""A mask that predict writes as COCO is the same mask for pycocotools and for our own reader of datasets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from reference import case

from hrseg_cli.data.datasets import open_dataset
from hrseg_cli.data.samples import load


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # inside of pycocotools
@pytest.mark.parametrize("kind", ["rle", "polygon"])
def test_written_and_read_back(kind: str, hrseg: Callable[..., Any], tmp_path: Path) -> None:
    image, _ = case(0)
    Image.fromarray(image).save(tmp_path / "disk.png")
    out = tmp_path / "out"
    done = hrseg(
        "predict", tmp_path / "disk.png", "-m", "grabcut", "--click", "120,160",
        "--format", "png", "--format", kind, "--tolerance", 0, "-o", out,
    )  # fmt: skip
    assert done.code == 0, done.err
    mask = np.asarray(Image.open(out / "disk.png")) > 0
    assert 0.01 < mask.mean() < 0.9
    file = out / f"disk_{kind}.json"

    theirs = COCO(str(file))
    (annotation,) = theirs.loadAnns(theirs.getAnnIds())
    assert np.array_equal(theirs.annToMask(annotation) > 0, mask)
    rows, cols = np.nonzero(mask)
    assert annotation["bbox"] == [cols.min(), rows.min(), np.ptp(cols) + 1, np.ptp(rows) + 1]
    assert annotation["area"] == mask.sum()

    (out / "images").mkdir()
    (tmp_path / "disk.png").rename(out / "images" / "disk.png")
    (ref,) = open_dataset(f"mine={file}")
    assert np.array_equal(load(ref).truth == 1, mask)
