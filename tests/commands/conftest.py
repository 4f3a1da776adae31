from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from two_disks import IMAGE


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """a/cat.png, a/dog.png and, of the same stem, b/cat.png."""
    for name in ("a/cat.png", "a/dog.png", "b/cat.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(IMAGE).save(tmp_path / name)
    return tmp_path
