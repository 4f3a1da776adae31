"""A new family is one file (toy_vit.py) and one line of the catalog: this one is no convolutional network."""

from __future__ import annotations

from pathlib import Path

import pytest
from contract import *  # noqa: F403

from hrseg_cli import catalog


@pytest.fixture(autouse=True)
def name(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.setitem(catalog.MODELS, "toy_vit", "toy_vit:ToyViT")
    return "toy_vit"
