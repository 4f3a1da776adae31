"""The files of the dataset ``samples``: masks in this package, photographs in scikit-image. Light to import."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from hrseg_cli.errors import HrsegError
from hrseg_cli.writing import make_folder, write_atomically

SAMPLES = Path(__file__).resolve().parent.parent / "samples"  # masks IMAGE_OBJECT.png, drawn by hand
PHOTOGRAPHS = {"astronaut": "astronaut.png", "chelsea": "chelsea.png", "coffee": "coffee.png", "rocket": "rocket.jpg"}
MISSING = "its photographs are in scikit-image; run pip install 'hrseg[samples]'"


def sample_photographs() -> Path | None:
    """The folder of the photographs in scikit-image, which is not imported; None if they are not installed."""
    found = importlib.util.find_spec("skimage")
    folder = Path(found.origin).parent / "data" if found and found.origin else None
    return folder if folder and all((folder / file).is_file() for file in PHOTOGRAPHS.values()) else None


def sample_masks() -> dict[Path, str]:
    """Mask -> file name of its photograph."""
    return {mask: PHOTOGRAPHS[mask.stem.partition("_")[0]] for mask in sorted(SAMPLES.glob("*.png"))}


def copy_samples(folder: Path) -> int:
    """Copy photographs to ``images/`` and masks to ``masks/`` of a folder, and list the pairs in ``pairs.csv``. Returns
    the number of masks.

    Raises HrsegError if scikit-image is missing, and if these folders contain other files: nothing is overwritten.
    """
    photographs = sample_photographs()
    if photographs is None:
        raise HrsegError(f"samples: {MISSING}")
    masks = sample_masks()
    sources = {folder / "images" / name: photographs / name for name in PHOTOGRAPHS.values()}
    sources |= {folder / "masks" / mask.name: mask for mask in masks}
    existing = {path for part in ("images", "masks") for path in (folder / part).glob("*")}
    for path in sorted(existing):
        if path not in sources or path.read_bytes() != sources[path].read_bytes():
            raise HrsegError(f"{path}: not a file of the samples; use another folder")
    for path, source in sources.items():
        if path not in existing:
            make_folder(path.parent, str(folder))
            write_atomically(path, source.read_bytes())
    pairs = [f"images/{name},masks/{mask.name}" for mask, name in masks.items()]
    write_atomically(folder / "pairs.csv", "\n".join(["image,mask", *pairs]) + "\n")
    return len(masks)
