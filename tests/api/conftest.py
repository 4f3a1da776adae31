from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def hrseg_command(hrseg: Callable[..., Any]) -> Callable[..., Any]:
    """The console command, where ``hrseg`` is the imported package."""
    return hrseg
