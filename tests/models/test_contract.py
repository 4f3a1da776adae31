"""The contract of every line of ``catalog.MODELS``: a new family is covered by adding its line."""

from __future__ import annotations

import contract
import pytest
from contract import *  # noqa: F403
from small_zoo import SMALL_ZOO

from hrseg_cli import catalog

# Other sizes of a network that another line has: the same layers, in more time.
OTHER_SIZES = ["h18", "h32", "h18_baseline", "hrnet_ocr", "clicknet_s", "clicknet"]
TRANSFORMERS = [f"simpleclick{size}" for size in ("_xtiny", "_b", "_l", "_h", "")]  # toy_vit is quicker
CLASSICAL = ["kmeans", "mean_shift", "slic", "felzenszwalb", "watershed"]  # random_walker stands for them
# h18s is what most other tests use; test_zoo.py asks the essential of the zoo in less time.
SLOW = ["h18s", *OTHER_SIZES, *TRANSFORMERS, *SMALL_ZOO, *CLASSICAL]


@pytest.fixture(params=[pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in catalog.MODELS])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


QUICK = ("h18", "clicknet_s", "simpleclick_xtiny", "deeplab_v3plus", "unet")


@pytest.mark.parametrize(
    "line", [*QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in OTHER_SIZES if n not in QUICK)]
)
def test_groups_and_names_at_other_sizes(line: str) -> None:
    contract.test_groups_and_names(line)
