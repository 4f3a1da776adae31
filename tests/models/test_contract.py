"""The contract of every line of ``catalog.MODELS``: a new family is covered by adding its line."""

from __future__ import annotations

import contract
import pytest
from contract import *  # noqa: F403

from hrseg_cli import catalog

# Other sizes of a network that another line has: the same layers, in more time.
OTHER_SIZES = ["h18", "h32", "h18_baseline", "hrnet_ocr", "clicknet_s", "clicknet"]
TRANSFORMERS = [f"simpleclick{size}" for size in ("_xtiny", "_b", "_l", "_h", "")]  # toy_vit is quicker
SLOW = ["h18s", *OTHER_SIZES, *TRANSFORMERS]  # h18s is what most other tests use


@pytest.fixture(params=[pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in catalog.MODELS])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("line", [*OTHER_SIZES, "simpleclick_xtiny"])
def test_groups_and_names_at_other_sizes(line: str) -> None:
    contract.test_groups_and_names(line)
