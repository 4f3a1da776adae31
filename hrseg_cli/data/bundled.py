"""The files of the dataset ``samples``: masks in this package, photographs in scikit-image. Light to import."""

from __future__ import annotations

import importlib.util
from pathlib import Path

SAMPLES = Path(__file__).resolve().parent.parent / "samples"  # masks IMAGE_OBJECT.png, drawn by hand
PHOTOGRAPHS = {"astronaut": "astronaut.png", "chelsea": "chelsea.png", "coffee": "coffee.png", "rocket": "rocket.jpg"}


def sample_photographs() -> Path | None:
    """The folder of the photographs in scikit-image, which is not imported; None if they are not installed."""
    found = importlib.util.find_spec("skimage")
    folder = Path(found.origin).parent / "data" if found and found.origin else None
    return folder if folder and all((folder / file).is_file() for file in PHOTOGRAPHS.values()) else None
